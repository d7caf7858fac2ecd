"""A kernel between rows and landmarks: by compiled polynomials of the angle where the kernel allows it, else exactly.

Legend: Z (r, d) landmarks, u rows; of a homogeneous kernel, both are unit rows.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist import backend, gpu
from ntkdist.features import loops
from ntkdist.features.base import Params, flat, normalised
from ntkdist.kernels import Kernel, ProductLaplace, RadialKernel, ZonalKernel

F8 = NDArray[np.float64]
ROWS = 256  # that are mapped at a time: with fewer, reading L takes longer than solving with it
SMOOTH = 1e-12  # of k(x, x), the error allowed in the polynomials of a kernel of the angle


def kernel_rows(kernel: Kernel, x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return rows as `kernel_block` needs them: unit rows and lengths if the kernel is homogeneous, else the rows."""
    if not isinstance(kernel, ZonalKernel) or not getattr(kernel, "homogeneous", True):
        return np.ascontiguousarray(x), None
    return normalised(gpu.array_module(x).ascontiguousarray(kernel.rows(flat(x))))


def kernel_params(kernel: Kernel, z: F8) -> Params:
    """Return the parameters of `kernel_block` for the landmarks z."""
    near_far = polynomials(kernel)
    return {"rows": z} | ({} if near_far is None else {"near": near_far[0], "far": near_far[1]})


def kernel_block(kernel: Kernel, params: Params, u: NDArray[Any]) -> NDArray[Any]:
    """Compute k(u, Z), (n, r), in u's dtype."""
    z = numbers(params["rows"])
    if isinstance(kernel, ProductLaplace):
        return loops.product_laplace(u, z, kernel.lengthscale)
    if "near" not in params:
        if getattr(kernel, "bias", 0.0):  # rows have their bias column already
            kernel = msgspec.structs.replace(kernel, bias=0.0)
        return np.ascontiguousarray(kernel(u, z), u.dtype)
    t = u @ z.T
    loops.zonal(t, u, z, numbers(params["near"]), numbers(params["far"]))
    return t


def kernel_slopes(
    kernel: Kernel, params: Params, u: NDArray[Any], steepest: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Compute k(u, Z) and its derivative by the inner products of u and Z, (n, r) each: `ZonalKernel.with_slope`."""
    z = numbers(params["rows"])
    if "near" not in params:
        assert isinstance(kernel, ZonalKernel)
        k, slopes = kernel.with_slope(u, z, steepest)
        return k.astype(u.dtype, copy=False), slopes.astype(u.dtype, copy=False)
    t = u @ z.T
    return t, loops.zonal_slopes(t, u, z, numbers(params["near"]), numbers(params["far"]), steepest)


def kernel_square(kernel: Kernel, params: Params, z: F8) -> F8:
    """Compute k(Z, Z), a piece at a time."""
    k = np.empty((len(z), len(z)))
    for i in range(0, len(z), ROWS):
        k[i : i + ROWS] = kernel_block(kernel, params, z[i : i + ROWS])
    return k


@cache
def polynomials(kernel: Kernel) -> tuple[F8, F8] | None:
    """Fit `fit_zonal` to a kernel of unit rows; None where its error exceeds `SMOOTH`.

    Arc-cosine kernels are smooth enough, up to depths of about ten, and homogeneous kernels of the distance.
    """
    if not isinstance(kernel, ZonalKernel) or not getattr(kernel, "homogeneous", True):
        return None
    return fit_zonal(kernel.zonal)


def fit_zonal(function: Callable[[F8], F8]) -> tuple[F8, F8] | None:
    """Fit a function of the angle by polynomials in the sine of half the angle, and of half its supplement.

    They are the arguments of `loops.zonal`; None where their error exceeds `SMOOTH` of the value at 0.
    """
    n, top = 2 * loops.ZONAL_HALF, math.sqrt(0.5)
    a = top * np.sin((np.arange(16 * n) + 0.5) * np.pi / (32 * n)) ** 2  # dense at the ends, as Chebyshev's points
    powers, whole = np.vander(a, n, increasing=True), float(function(np.zeros(1))[0])
    fits = []
    for theta in (2 * np.arcsin(a), np.pi - 2 * np.arcsin(a)):
        f = function(theta)
        with backend.one_thread():
            c = np.linalg.lstsq(powers / top ** np.arange(n), f, rcond=None)[0] / top ** np.arange(n)
        if np.abs(powers @ c - f).max() > SMOOTH * whole:
            return None
        fits.append(c)
    return fits[0], fits[1]


def kernel_diagonal(kernel: Kernel, x: F8) -> F8:
    """Compute k(x, x) of every row, (n,)."""
    if isinstance(kernel, ProductLaplace) or (isinstance(kernel, RadialKernel) and not kernel.homogeneous):
        return np.ones(len(x))
    if isinstance(kernel, ZonalKernel):
        rows = kernel.rows(flat(x))
        return np.einsum("ij,ij->i", rows, rows) * kernel.zonal(np.zeros(1))
    return np.array([kernel(row[None])[0, 0] for row in x])


def numbers(a: NDArray[Any]) -> NDArray[Any]:
    """View the bits of float64 numbers, kept as integers, as numbers again."""
    return a.view(np.float64) if a.dtype == np.int64 else a
