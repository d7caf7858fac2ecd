"""Exact kernels, as values: ``NTK(depth=2)(x, y)`` is an (n, n') matrix.

Legend: x (n, d) and y (n', d) rows; θ the angle between two rows and r their distance; Σ the covariance of
a layer on unit rows; κ₀, κ₁ the arc-cosine functions of order 0 and 1 with κ(1) = 1; K the tangent kernel on
unit rows.

Everything is a function of the angle, never of a clipped cosine: near ±1 the arc cosine loses half of
the digits, so angles of nearly parallel rows are taken from the length of x̂ − ŷ, and each layer passes
1 − Σ on, not Σ.  Likewise distances of close rows are those of their difference.
"""

import abc
import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist.spec import Spec

F8 = NDArray[np.float64]
Depth = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]
CLOSE = 0.01  # of the largest that it could be: below, 1 − |cos θ| and r² are taken from differences
PAIRS = 1 << 16  # that are refined at a time


class Kernel(Spec, frozen=True):
    """A positive semi-definite function of two rows, as a value."""

    @abc.abstractmethod
    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        """The kernel matrix.

        Parameters
        ----------
        x : (n, *shape) array
            Rows, flattened to d values each.
        y : (n', *shape) array, optional
            ``x`` itself if absent.

        Returns
        -------
        (n, n') float64 array
        """


class ZonalKernel(Kernel, frozen=True):
    """‖x‖‖y‖ times a function of the angle between the rows: homogeneous, a zero row gives zero."""

    @abc.abstractmethod
    def zonal(self, theta: F8) -> F8:
        """The kernel of unit rows at the angles ``theta``, an array of any shape."""

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """The rows (n, d') whose lengths and angles are meant, in x's dtype: x (n, d), with its bias column if any."""
        return x

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        norms, theta = _polar(self.rows(_flat(x)), None if y is None else self.rows(_flat(y)))
        k = self.zonal(theta)
        k *= norms
        return k


class NTK(ZonalKernel, frozen=True):
    """The neural tangent kernel of a fully connected ReLU network of infinite width.

    K⁰ = cos θ and K^h = K^{h−1} κ₀(θ_{h−1}) + κ₁(θ_{h−1}); the kernel is ‖x‖‖y‖ K^L, so that
    k(x, x) = (L + 1)‖x‖².  Jacot, Gabriel, Hongler, NeurIPS 2018; in this form equation (4) of
    Bietti, Mairal, NeurIPS 2019.

    Parameters
    ----------
    depth : int
        L, the number of hidden layers.
    bias : float
        Appended to every row as one more column, which makes functions that are not homogeneous.
    """

    depth: Depth
    bias: float = 0.0

    def zonal(self, theta: F8) -> F8:
        k = np.cos(theta)
        for _ in range(self.depth):
            gap = one_minus_kappa1(theta)
            k = k * kappa0(theta) + (1 - gap)
            theta = angle_of(gap)
        return k

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        return with_bias(x, self.bias)


class NNGP(ZonalKernel, frozen=True):
    """The Gaussian process of the same network at initialisation: ‖x‖‖y‖ Σ^L, k(x, x) = ‖x‖².

    Cho, Saul, "Kernel methods for deep learning", NeurIPS 2009 (arc-cosine of order 1, composed).

    Parameters
    ----------
    depth : int
        L, the number of hidden layers.
    """

    depth: Depth

    def zonal(self, theta: F8) -> F8:
        for _ in range(self.depth):
            gap = one_minus_kappa1(theta)
            theta = angle_of(gap)
        return 1 - gap


class RadialKernel(ZonalKernel, frozen=True):
    """A function of the distance; on request, homogeneous: ‖x‖‖y‖ times that function of x/‖x‖ and y/‖y‖.

    The homogeneous form is that of Geifman et al., "On the similarity between the Laplace and neural tangent
    kernels", NeurIPS 2020: a stand-in for the NTK with one parameter more.

    Parameters
    ----------
    lengthscale : float
    homogeneous : bool
    """

    lengthscale: Positive

    @property
    @abc.abstractmethod
    def homogeneous(self) -> bool: ...

    @abc.abstractmethod
    def of_distance(self, r: F8) -> F8:
        """The kernel of rows ``r`` apart, an array of any shape."""

    def zonal(self, theta: F8) -> F8:
        return self.of_distance(2 * np.sin(theta / 2))

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        return super().__call__(x, y) if self.homogeneous else self.of_distance(_distances(x, y))


class Gaussian(RadialKernel, frozen=True):
    """exp(−r²/(2 lengthscale²)), as scikit-learn's ``RBF(length_scale)``; its ``gamma`` is 1/(2 lengthscale²).

    Parameters
    ----------
    lengthscale : float
    homogeneous : bool
        ‖x‖‖y‖ times the kernel of the unit rows.
    """

    homogeneous: bool = False

    def of_distance(self, r: F8) -> F8:
        return np.exp(-0.5 * np.square(r / self.lengthscale))


class Laplace(RadialKernel, frozen=True):
    """exp(−r/lengthscale), r the Euclidean distance (scikit-learn's ``laplacian_kernel`` takes the sum of |x − y|).

    Parameters
    ----------
    lengthscale : float
    homogeneous : bool
        ‖x‖‖y‖ times the kernel of the unit rows.
    """

    homogeneous: bool = False

    def of_distance(self, r: F8) -> F8:
        return np.exp(-r / self.lengthscale)


class GammaExponential(RadialKernel, frozen=True):
    """exp(−(r/lengthscale)^gamma): gamma = 1 is `Laplace`, 2 is `Gaussian` of lengthscale/√2.

    Parameters
    ----------
    lengthscale : float
    gamma : float
        Of (0, 2]: beyond 2 it is not positive definite.
    homogeneous : bool
        ‖x‖‖y‖ times the kernel of the unit rows.
    """

    gamma: Annotated[float, Meta(gt=0, le=2)]
    homogeneous: bool = False

    def of_distance(self, r: F8) -> F8:
        return np.exp(-np.power(r / self.lengthscale, self.gamma))


AnyKernel = NTK | NNGP | Gaussian | Laplace | GammaExponential  # what a job file or a saved model may name


def kappa0(theta: F8) -> F8:
    """κ₀ as a function of the angle: the share of half-spaces that hold both rows, times two."""
    return 1 - theta / np.pi


def one_minus_kappa1(theta: F8) -> F8:
    """1 − κ₁, to full relative precision also at small angles, where κ₁ ≈ 1 − θ²/2 + θ³/(3π)."""
    small = theta < 0.1
    t2 = np.square(np.where(small, theta, 0.0))
    series = theta * t2 * (1 / 3 - t2 * (1 / 30 - t2 * (1 / 840 - t2 / 45360)))
    sin_minus = np.where(small, series, np.sin(theta) - theta * np.cos(theta))
    return 2 * np.square(np.sin(theta / 2)) - sin_minus / np.pi


def angle_of(gap: F8) -> F8:
    """The angle whose cosine is 1 − gap."""
    return 2 * np.arcsin(np.sqrt(np.minimum(gap / 2, 1.0)))


def with_bias(x: NDArray[Any], bias: float) -> NDArray[Any]:
    """Rows with the constant column ``bias`` appended; unchanged if ``bias`` is 0."""
    if bias == 0:
        return np.asarray(x)
    x = np.asarray(x)
    return np.concatenate([x, np.full((len(x), 1), bias, x.dtype)], axis=1)


def _polar(x: NDArray[Any], y: NDArray[Any] | None) -> tuple[F8, F8]:
    """Products of norms and angles, (n, n') each; a zero row has norm 0 and any angle."""
    u, r = _unit(x)
    v, s = (u, r) if y is None else _unit(y)
    c = u @ v.T
    theta = np.arccos(np.clip(c, -1, 1))
    for sign in (1, -1):  # rows that are nearly (anti)parallel: 2 asin(‖u ∓ v‖/2) keeps the digits
        for a, b in _chosen(sign * c > 1 - CLOSE):
            near = 2 * np.arcsin(np.minimum(np.linalg.norm(u[a] - sign * v[b], axis=1) / 2, 1.0))
            theta[a, b] = near if sign == 1 else np.pi - near
    return np.outer(r, s), theta


def _distances(x: NDArray[Any], y: NDArray[Any] | None) -> F8:
    """Distances (n, n'), to a few hundred roundings of themselves, also of rows that nearly agree or are far from 0."""
    x = _flat(x)
    y = x if y is None else _flat(y)
    middle = y.mean(0) if len(y) else 0.0
    a, b = x - middle, y - middle  # where all rows are far from 0, that is no reason to call them close
    bound = np.add.outer(np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b))
    r2 = bound - 2 * (a @ b.T)
    r = np.sqrt(np.maximum(r2, 0))
    for i, j in _chosen(r2 < CLOSE * bound):
        r[i, j] = np.linalg.norm(x[i] - y[j], axis=1)
    return r


def _chosen(where: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Rows and columns of what is true, some at a time."""
    i, j = np.nonzero(where)
    for part in range(0, len(i), PAIRS):
        yield i[part : part + PAIRS], j[part : part + PAIRS]


def _flat(x: NDArray[Any]) -> F8:
    x = np.asarray(x, np.float64)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _unit(x: NDArray[Any]) -> tuple[F8, F8]:
    x = np.asarray(x, np.float64)
    r: F8 = np.linalg.norm(x, axis=1)
    return x / np.where(r == 0, 1.0, r)[:, None], r
