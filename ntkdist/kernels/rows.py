"""Kernels of the angle or the distance between two rows.

Legend: x (n, d) and y (n', d) rows; θ the angle and r the distance of two rows; Σ the covariance of a layer on unit
rows; K the tangent kernel on unit rows.
"""

import abc
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ntkdist.kernels.base import F8, Depth, Kernel, angle_of, chosen, flat, kappa0, one_minus_kappa1, unit, with_bias

Positive = Annotated[float, Meta(gt=0)]
CLOSE = 0.01  # in units of the largest possible value: below, 1 − |cos θ| is computed from a difference


class ZonalKernel(Kernel, frozen=True):
    """A kernel ‖x‖‖y‖ times a function of the angle between the rows: homogeneous, a zero row gives zero."""

    @abc.abstractmethod
    def zonal(self, theta: F8) -> F8:
        """Compute the kernel of unit rows at the angles ``theta``, an array of any shape."""

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the rows (n, d') of the lengths and angles, in x's dtype: x (n, d), with its bias column if any."""
        return x

    @abc.abstractmethod
    def with_slope(self, x: NDArray[Any], y: NDArray[Any], steepest: float) -> tuple[F8, F8]:
        """Compute the kernel of unit rows, (n, n'), and its derivative by their inner product, the lengths held.

        The rows have their bias column already.  Between rows that nearly agree, most kernels' derivatives grow without
        bound: what is not below ``steepest`` is given as 0, so that a landmark has no part in the gradient at itself.
        """

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        norms, theta = _polar(self.rows(flat(x)), None if y is None else self.rows(flat(y)))
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
        Appended to every row as one more column; functions are then not homogeneous.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.array([[3.0, 4.0], [1.0, 0.0]])
    >>> np.diag(nd.NTK(depth=2)(x)).round(6).tolist()
    [75.0, 3.0]
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

    def with_slope(self, x: NDArray[Any], y: NDArray[Any], steepest: float) -> tuple[F8, F8]:
        first = theta = _polar(x, y)[1]
        k, slope, turned = np.cos(theta), -np.sin(theta), np.ones_like(theta)  # derivatives by the first angle
        for _ in range(self.depth):
            gap, share = one_minus_kappa1(theta), kappa0(theta)
            slope = slope * share - (k / np.pi + np.sin(theta) * share) * turned
            k = k * share + (1 - gap)
            theta, turned = _next_layer(theta, turned)
        return k, _by_cosine(slope, first, steepest)

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

    def with_slope(self, x: NDArray[Any], y: NDArray[Any], steepest: float) -> tuple[F8, F8]:
        first = theta = _polar(x, y)[1]
        turned = np.ones_like(theta)
        for _ in range(self.depth):
            theta, turned = _next_layer(theta, turned)
        return np.cos(theta), _by_cosine(-np.sin(theta) * turned, first, steepest)


class RadialKernel(ZonalKernel, frozen=True):
    """A function of the distance, or, if homogeneous, ‖x‖‖y‖ times that function of x/‖x‖ and y/‖y‖.

    The homogeneous form is that of Geifman et al., "On the similarity between the Laplace and neural tangent
    kernels", NeurIPS 2020: an approximation of the NTK with one more parameter.

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
        """Compute the kernel at the distances ``r``, an array of any shape."""

    @abc.abstractmethod
    def slope(self, r: F8) -> F8:
        """Compute the derivative of `of_distance` at the distances ``r`` > 0."""

    def zonal(self, theta: F8) -> F8:
        return self.of_distance(2 * np.sin(theta / 2))

    def with_slope(self, x: NDArray[Any], y: NDArray[Any], steepest: float) -> tuple[F8, F8]:
        """Compute as any zonal kernel; if not homogeneous, of rows of any length.  ``steepest`` is in lengthscale⁻²."""
        r = _distances(x, y)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = -self.slope(r) / r
        return self.of_distance(r), _bounded(slope, steepest / self.lengthscale**2)

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        return super().__call__(x, y) if self.homogeneous else self.of_distance(_distances(x, y))


class Gaussian(RadialKernel, frozen=True):
    """The kernel exp(−r²/(2 lengthscale²)), scikit-learn's ``RBF(length_scale)``, with ``gamma`` 1/(2 lengthscale²).

    Parameters
    ----------
    lengthscale : float
    homogeneous : bool
        ‖x‖‖y‖ times the kernel of the unit rows.
    """

    homogeneous: bool = False

    def of_distance(self, r: F8) -> F8:
        return np.exp(-0.5 * np.square(r / self.lengthscale))

    def slope(self, r: F8) -> F8:
        return -self.of_distance(r) * r / self.lengthscale**2


class Laplace(RadialKernel, frozen=True):
    """The kernel exp(−r/lengthscale), r the Euclidean distance; scikit-learn's ``laplacian_kernel`` sums |x − y|.

    Parameters
    ----------
    lengthscale : float
    homogeneous : bool
        ‖x‖‖y‖ times the kernel of the unit rows.
    """

    homogeneous: bool = False

    def of_distance(self, r: F8) -> F8:
        return np.exp(-r / self.lengthscale)

    def slope(self, r: F8) -> F8:
        return -self.of_distance(r) / self.lengthscale


class GammaExponential(RadialKernel, frozen=True):
    """The kernel exp(−(r/lengthscale)^gamma): gamma = 1 is `Laplace`, 2 is `Gaussian` of lengthscale/√2.

    Parameters
    ----------
    lengthscale : float
    gamma : float
        In (0, 2]: above 2 the kernel is not positive definite.
    homogeneous : bool
        ‖x‖‖y‖ times the kernel of the unit rows.
    """

    gamma: Annotated[float, Meta(gt=0, le=2)]
    homogeneous: bool = False

    def of_distance(self, r: F8) -> F8:
        return np.exp(-np.power(r / self.lengthscale, self.gamma))

    def slope(self, r: F8) -> F8:
        return -self.of_distance(r) * np.power(r / self.lengthscale, self.gamma - 1) * self.gamma / self.lengthscale


class ProductLaplace(Kernel, frozen=True):
    """The kernel exp(−Σ |x_i − y_i|/lengthscale), a product over columns; scikit-learn's ``laplacian_kernel``.

    It is not invariant to rotations: functions of single columns, and of few of them, are learned from fewer rows than
    with a kernel of the distance, as by trees.  Take it with a diagonal metric.

    Parameters
    ----------
    lengthscale : float
    """

    lengthscale: Positive

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        x = flat(x)
        return np.exp(-cdist(x, x if y is None else flat(y), "cityblock") / self.lengthscale)


def _polar(x: NDArray[Any], y: NDArray[Any] | None) -> tuple[F8, F8]:
    """Compute the products of norms and the angles, (n, n') each; a zero row has norm 0 and any angle."""
    u, r = unit(x)
    v, s = (u, r) if y is None else unit(y)
    c = u @ v.T
    theta = np.arccos(np.clip(c, -1, 1))
    for sign in (1, -1):  # rows that are nearly (anti)parallel: 2 asin(‖u ∓ v‖/2) keeps the digits
        for a, b in chosen(sign * c > 1 - CLOSE):
            near = 2 * np.arcsin(np.minimum(np.linalg.norm(u[a] - sign * v[b], axis=1) / 2, 1.0))
            theta[a, b] = near if sign == 1 else np.pi - near
    return np.outer(r, s), theta


def _next_layer(theta: F8, turned: F8) -> tuple[F8, F8]:
    """Return the angle after a layer and its derivative by the first angle, from those before it.

    sin θ' dθ' = sin θ κ₀(θ) dθ, and dθ' = dθ where both angles vanish.
    """
    after = angle_of(one_minus_kappa1(theta))
    s = np.sin(after)
    return after, turned * np.divide(np.sin(theta) * kappa0(theta), s, out=np.ones_like(s), where=s > 0)


def _by_cosine(slope: F8, theta: F8, steepest: float) -> F8:
    """Turn a derivative by the angle into one by its cosine, and 0 where that is not below ``steepest``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _bounded(-slope / np.sin(theta), steepest)


def _bounded(slope: F8, steepest: float) -> F8:
    """Replace what is not below ``steepest``, or no number, by 0, in place."""
    slope[~(np.abs(slope) < steepest)] = 0
    return slope


def _distances(x: NDArray[Any], y: NDArray[Any] | None) -> F8:
    """Compute distances (n, n'), to a few hundred roundings, also of rows that nearly agree or are far from 0."""
    x = flat(x)
    y = x if y is None else flat(y)
    middle = y.mean(0) if len(y) else 0.0
    a, b = x - middle, y - middle  # else rows that are all far from 0 would count as close
    bound = np.add.outer(np.einsum("ij,ij->i", a, a), np.einsum("ij,ij->i", b, b))
    r2 = bound - 2 * (a @ b.T)
    r = np.sqrt(np.maximum(r2, 0))
    for i, j in chosen(r2 < CLOSE * bound):
        r[i, j] = np.linalg.norm(x[i] - y[j], axis=1)
    return r
