"""Nystrom: a kernel through its values at some rows of the data, the landmarks.

Legend: Z (r, d) landmarks, r ≤ m = n_components; K_rr = k(Z, Z) = L Lᵀ; φ(x) = k(x, Z) L⁻ᵀ, so that
φ(x) φ(y)ᵀ = k(x, Z) K_rr⁻¹ k(Z, y).  For a homogeneous kernel the lengths of landmarks cancel, and Z are unit rows.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.linalg.blas import dtrsm, strsm
from scipy.linalg.lapack import dpotrf, dpstrf

from ntkdist import backend, gpu, random
from ntkdist.errors import SpecError
from ntkdist.features import loops
from ntkdist.features.base import OF_IMAGES, Arrays, FeatureMap, FittedMap, Params, RowWeights, _cast, flat
from ntkdist.features.landmarks import (
    ROWS,
    kernel_block,
    kernel_diagonal,
    kernel_params,
    kernel_rows,
    kernel_slopes,
    kernel_square,
    numbers,
    polynomials,
)
from ntkdist.features.pull_back import of_lengths, pull_back
from ntkdist.kernels import NTK, AnyKernel, ProductLaplace, ZonalKernel

F8 = NDArray[np.float64]
CHOICE, PIVOT = range(2)  # roles of the random streams
DEPENDENT = 1e-10  # of k(z, z): a landmark with a smaller residual given the others is dropped
POOL = 4  # candidate rows of rpcholesky, in units of n_components
SCORED = 2048  # rows, at most, from which leverage scores are estimated
BLOCK = 128  # proposals of rpcholesky at a time
HEAD = 256  # landmarks that are always eliminated in float64; float32 may be enough for the others
PROBES, SINGLE = 64, 1e-5  # rows that decide whether it is, and the largest relative difference from float64


class Nystrom(FeatureMap, frozen=True):
    """The whitened map of Nyström, φ(x) = k(x, Z) L⁻ᵀ at landmarks Z chosen from the data.

    Williams, Seeger, "Using the Nyström method to speed up kernel machines", NeurIPS 2000.  Landmarks are drawn

    - ``uniform``: any row with equal chance;
    - ``leverage``: in proportion to approximate ridge leverage scores, in one more pass.  The score of x is
      k(x, x) − k(x, S)(K_SS + μI)⁻¹k(S, x), S up to 2048 uniform rows and μ = (2/s) Σ_{i > s/2} σ_i(K_SS), s = |S|:
      Musco, Musco, "Recursive sampling for the Nyström method", NeurIPS 2017, Algorithm 2 with one level;
    - ``rpcholesky``: one after the other, in proportion to the residual of k(x, x) given those before, among 4 times
      as many uniform rows: Chen, Epperly, Tropp, Webber, "Randomly pivoted Cholesky", CPAM 2025.  In blocks with
      rejection, which has the same law: Epperly, Tropp, Webber, "Embrace rejection", 2024.

    Promise: a function of the data and the seed, for any partitions; one-sided: k − φφᵀ is positive semi-definite up
    to rounding; exact at the landmarks; the error falls faster than n_components^-½ where the kernel is smooth on the
    data.  Landmarks with a residual below 1e-10 k(z, z) given the others, such as copies, are dropped; their columns,
    the last, are zero, and so are columns beyond the rows of the data.  Float32 rows are whitened in float64 too where
    L is so ill-conditioned that float32 would show.  Only the landmarks are stored: every process computes L again.  A
    float64 row depends on its own input only to 1e-12, or to 1e-10 with kernels so smooth that landmarks are nearly
    dependent.

    Parameters
    ----------
    n_components : int
        Columns, and landmarks at most.
    kernel : Kernel
    landmarks : {"uniform", "leverage", "rpcholesky"}
    seed : int

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((100, 4))
    >>> kernel = nd.Gaussian(lengthscale=3.0)
    >>> features = nd.Nystrom(60, kernel).fit(x)  # `ntkdist.fit` and the estimators do this
    >>> z = features(x)
    >>> bool(np.linalg.norm(z @ z.T - kernel(x)) < 0.01 * np.linalg.norm(kernel(x)))
    True
    """

    no_gradient: ClassVar[tuple[str, str]] = OF_IMAGES  # of a convolutional kernel
    kernel: AnyKernel = NTK(depth=2)  # also implements `FeatureMap.kernel`, as a kernel is called with rows
    landmarks: Literal["uniform", "leverage", "rpcholesky"] = "uniform"
    seed: Annotated[int, Meta(ge=0)] = 0

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        self.kernel.check_shape(input_shape, source)

    # Choosing landmarks.

    @property
    def sample_rows(self) -> int:
        return self.n_components * (POOL if self.landmarks == "rpcholesky" else 1)

    def row_weights(self, sample: NDArray[Any]) -> RowWeights | None:
        if self.landmarks != "leverage":
            return None
        z = np.asarray(sample[:SCORED], np.float64)
        z = z[kernel_diagonal(self.kernel, z) > 0]
        with backend.one_thread():
            values = np.linalg.eigvalsh(self.kernel(z))
        half = values[: len(z) // 2]
        ridge = max(half.sum() / max(len(half), 1), DEPENDENT * values[-1]) if len(z) else 0.0
        spec = msgspec.structs.replace(self, n_components=max(len(z), 1))
        return Leverage(FittedMap(spec, {"landmarks": z, "ridge": np.array(ridge)}), self.kernel)

    def fit(self, sample: NDArray[Any]) -> FittedMap:
        """Choose landmarks among rows (k, *input_shape), by the rule ``landmarks`` if there are more than needed.

        `nd.fit` passes a sample of `sample_rows`; all rows of a dataset that fits in memory work as well.
        """
        z = np.asarray(sample, np.float64)
        with backend.one_thread():
            if self.landmarks == "rpcholesky":
                z = z[self._pivots(z)]
            elif len(z) > self.n_components:
                key = -np.log(random.uniforms(len(z), self.seed, 0, CHOICE))
                weights = self.row_weights(z[np.argsort(key, kind="stable")[: self.n_components]])
                with np.errstate(divide="ignore"):
                    key /= 1 if weights is None else weights(z)
                chosen = np.argsort(key, kind="stable")[: self.n_components]
                z = z[chosen[np.isfinite(key[chosen])]]
            u, _ = kernel_rows(self.kernel, z)
            z = z[independent(kernel_square(self.kernel, kernel_params(self.kernel, u), u))]
        return FittedMap(self, {"landmarks": z})

    def _pivots(self, x: F8) -> list[int]:
        """Choose rows by randomly pivoted Cholesky: draw one ∝ the residual diagonal, eliminate it, and repeat.

        A block is proposed by the diagonal at its start; a proposal is accepted with the probability (its diagonal
        after elimination of those before it) / (its diagonal at the start).
        """
        u, length = kernel_rows(self.kernel, x)
        at = kernel_params(self.kernel, u)
        weight = np.ones(len(x)) if length is None else np.square(length[:, 0])
        whole = kernel_diagonal(self.kernel, x) / np.where(weight > 0, weight, 1)
        left = np.where(weight > 0, whole, 0.0)  # the residual of k(x, x)/weight
        factor, chosen = np.empty((min(self.n_components, len(x)), len(x))), list[int]()
        for block in range(10 * len(factor)):
            chance = np.cumsum(weight * left)
            if len(chosen) == len(factor) or chance[-1] <= 0:
                break
            w = random.uniforms(2 * BLOCK, self.seed, 0, PIVOT, block)
            proposed = np.minimum(np.searchsorted(chance, w[:BLOCK] * chance[-1], side="right"), len(x) - 1)
            done = factor[: len(chosen)]
            g = kernel_block(self.kernel, kernel_params(self.kernel, u[proposed]), u[proposed])
            g -= done[:, proposed].T @ done[:, proposed]
            passed, low = _reject(g, w[BLOCK:] * left[proposed], DEPENDENT * whole[proposed])
            left[proposed[low]] = 0
            if new := [int(i) for i in proposed[passed]][: len(factor) - len(chosen)]:
                rows = kernel_block(self.kernel, at, u[new]) - done[:, new].T @ done
                lower = cholesky(rows[:, new], lower=True)
                rows = solve_triangular(lower, rows, lower=True, overwrite_b=True, check_finite=False)
                left -= np.einsum("ij,ij->j", rows, rows)
                factor[len(chosen) : len(chosen) + len(new)] = rows
                chosen += new
                left[chosen] = 0
                left[left <= DEPENDENT * whole] = 0
        return chosen

    # Mapping rows.

    def draw(self, input_shape: tuple[int, ...]) -> Params:
        raise SpecError("Nystrom has to look at rows first; use its fit(sample), or the model of nd.fit")

    def draw_fitted(self, input_shape: tuple[int, ...], arrays: Arrays) -> Params:
        z, length = kernel_rows(self.kernel, arrays["landmarks"])
        params = kernel_params(self.kernel, z)
        with backend.one_thread():
            k = kernel_square(self.kernel, params, z)
            if "ridge" in arrays:
                k.flat[:: len(k) + 1] += arrays["ridge"] / (1 if length is None else np.square(length[:, 0]))
            upper = cholesky(k.T, overwrite_a=True, check_finite=False) if len(k) else k
        params |= {"head": upper.T[:, :HEAD], "tail": upper.T[HEAD:, HEAD:]}
        bits = {name: np.ascontiguousarray(a).view(np.int64) for name, a in params.items()}
        for mixed in ({"head": bits["head"]}, {**bits, "tail": params["tail"]}):
            if self._near_enough(params | mixed, bits, arrays["landmarks"]):
                return params | mixed
        return bits

    def _near_enough(self, params: Params, bits: Params, z: F8) -> bool:
        """Return whether the arrays not kept as bits, cast for float32 rows, give the features of float64.

        Tested at landmarks and at midpoints between them, which behave like other rows of the data.
        """
        some = z[: PROBES + 1]
        x = np.concatenate([some, (some[1:] + some[:-1]) / 2]).astype(np.float32)
        single = self.apply({name: _cast(a, x.dtype) for name, a in params.items()}, x)
        double = self.apply(bits, x)
        off, size = (np.linalg.norm(a, axis=1) for a in (single - double, double))
        return bool((off <= SINGLE * size).all())

    def apply(self, params: Params, x: NDArray[Any]) -> NDArray[Any]:
        z, head, tail = (numbers(params[name]) for name in ("rows", "head", "tail"))
        xp = gpu.array_module(x)
        out = xp.zeros((len(x), self.n_components), x.dtype)
        if len(x) and len(z):
            u, length = kernel_rows(self.kernel, x.astype(z.dtype, copy=False))
            k = kernel_block(self.kernel, params, u)
            h = head.shape[1]
            first = _solved(head[:h], k[:, :h].astype(np.float64))
            rest = k[:, h:] - first @ head[h:].T
            rest = _solved(tail, rest.astype(tail.dtype, copy=False))
            scale = 1 if length is None else length
            xp.multiply(first, scale, out=out[:, :h])
            xp.multiply(rest, scale, out=out[:, h : len(z)])
        return out

    # Gradients.

    @property
    def has_gradient(self) -> bool:
        return isinstance(self.kernel, ZonalKernel | ProductLaplace)

    def gradient_weights(self, params: Params, coef: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return L⁻ᵀ coef, the weights of the kernel's values at the landmarks, (r, t), in the landmarks' dtype."""
        z, head, tail = (numbers(params[name]) for name in ("rows", "head", "tail"))
        h, r = head.shape[1], len(z)
        rest = solve_upper(tail.T, coef[h:r])
        first = solve_upper(head[:h].T, coef[:h] - head[h:].T @ rest)
        return np.concatenate([first, rest]).astype(z.dtype, copy=False)

    def gradient_of(self, params: Params, x: NDArray[Any], weights: NDArray[Any]) -> NDArray[Any]:
        if not self.has_gradient:
            raise self._no_gradient()
        z, d = numbers(params["rows"]), math.prod(x.shape[1:])
        u, length = kernel_rows(self.kernel, x.astype(z.dtype, copy=False))
        if isinstance(self.kernel, ProductLaplace):
            k = kernel_block(self.kernel, params, u)
            return loops.product_laplace_gradients(u, z, k, weights, self.kernel.lengthscale).astype(
                x.dtype, copy=False
            )
        steepest = np.finfo(x.dtype).eps ** -0.5  # rounding of a gradient is ε times that
        k, slopes = kernel_slopes(self.kernel, params, u, float(steepest))
        z, u = flat(z), flat(u)
        values = (slopes if length is None else k) @ weights
        del k
        out = pull_back(slopes, weights, z)
        if length is None:
            out -= values[:, :, None] * u[:, None]
        else:
            out = of_lengths(out, u, values, length, d)
        return out.astype(x.dtype, copy=False)

    def gradient_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        d = math.prod(input_shape) + 1
        product = isinstance(self.kernel, ProductLaplace)
        blocks = 2 if product else 3 if polynomials(self.kernel) is not None else 13
        return 40 * d + 8 * blocks * self.n_components + 8 * t * (3 * d + 3) + 32

    def gradient_weights_bytes(self, input_shape: tuple[int, ...], dtype: Any, t: int) -> int:
        return 32 * self.n_components * t

    def runs_on_gpu(self, input_shape: tuple[int, ...]) -> bool:
        return polynomials(self.kernel) is not None

    def warm(self, dtype: Any) -> None:
        types = {np.dtype(dtype), np.dtype(np.float64)}  # the block of the landmarks is float64
        if isinstance(self.kernel, ProductLaplace):
            for each in types:
                loops.product_laplace(np.ones((1, 1), each), np.ones((1, 1), each), 1.0)
        for each in types if polynomials(self.kernel) is not None else ():
            one = np.ones((1, 1), each)
            loops.zonal(one, one, one, one[0], one[0])

    def row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, size = math.prod(input_shape) + 1, np.dtype(dtype).itemsize
        blocks = 2 if polynomials(self.kernel) is not None or isinstance(self.kernel, ProductLaplace) else 8
        return 40 * d + (8 * blocks + 2 * size) * self.n_components + 8 * HEAD + 32

    def draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        d, m = math.prod(input_shape) + 1, self.n_components
        return m * (20 * m + 24 * d) + ROWS * self.row_bytes(input_shape, np.float64) + 2**18

    def gpu_row_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the row and its features in dtype, and the rest in float64, the largest case."""
        d, m, size = math.prod(input_shape) + 1, self.n_components, np.dtype(dtype).itemsize
        return size * (d + m) + 8 * (4 * d + m) + loops.zonal_bytes(m, d, 8)

    def gpu_draw_bytes(self, input_shape: tuple[int, ...], dtype: Any) -> int:
        """Count the landmarks, L's first `HEAD` columns and the square of its others, all in float64."""
        d, m = math.prod(input_shape) + 1, self.n_components
        head, tail = min(m, HEAD), max(m - HEAD, 0)
        return 8 * (m * (d + head) + tail**2) + 2**13

    @property
    def piece_rows(self) -> int:
        return ROWS


@dataclass(frozen=True)
class Leverage:
    """The function k(x, x) − ‖φ(x)‖², φ with the ridge μ added to K_SS: μ times the ridge leverage score of x."""

    features: FittedMap
    kernel: AnyKernel

    def __call__(self, x: NDArray[Any]) -> F8:
        out = kernel_diagonal(self.kernel, x)
        for i in range(0, len(x), 4 * ROWS):
            z = self.features(np.asarray(x[i : i + 4 * ROWS], np.float64))
            out[i : i + 4 * ROWS] -= np.einsum("ij,ij->i", z, z)
        return np.maximum(out, 0)


def independent(k: F8) -> NDArray[np.intp]:
    """Select rows of K (r, r) with a residual diagonal above `DEPENDENT` given those before, in order of elimination.

    All rows, in their order, where all qualify; else the largest first, by LAPACK's pivoted Cholesky.
    """
    if not len(k):
        return np.arange(0)
    least = DEPENDENT * k.diagonal().max()
    c, failed = dpotrf(k.T)
    if not failed and np.square(c.diagonal()).min() > least:
        return np.arange(len(k))
    _, order, rank, _ = dpstrf(k.T, tol=least)
    return order[:rank] - 1


def _reject(g: F8, bar: F8, least: F8) -> tuple[list[int], list[int]]:
    """Split proposals: those above the bar once those before are eliminated from g, and those with no residual."""
    passed, low = list[int](), list[int]()
    for i in range(len(g)):
        if g[i, i] <= least[i]:
            low.append(i)
        elif g[i, i] > bar[i]:
            passed.append(i)
            column = g[:, i] / math.sqrt(g[i, i])
            g -= np.outer(column, column)
    return passed, low


def solve_upper(upper: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Solve U x = b, in U's dtype."""
    if not b.size:
        return b
    return (strsm if upper.dtype == np.float32 else dtrsm)(1.0, upper, b)


def _solved(lower: NDArray[Any], k: NDArray[Any]) -> NDArray[Any]:
    """Solve for k L⁻ᵀ in the memory of k, a contiguous array."""
    if not k.size:
        return k
    if gpu.array_module(k) is not np:
        return gpu.solve_lower(lower, k.T).T
    return (strsm if k.dtype == np.float32 else dtrsm)(1.0, lower.T, k.T, trans_a=1, overwrite_b=1).T
