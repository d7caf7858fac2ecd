"""Kernels of the distance between two rows.

Legend: x (n, d) and y (n', d) rows; r the distance of two rows; θ the angle between them.
"""

import abc
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist.kernels.base import F8, chosen, flat
from ntkdist.kernels.ntk import CLOSE, ZonalKernel

Positive = Annotated[float, Meta(gt=0)]


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

    def zonal(self, theta: F8) -> F8:
        return self.of_distance(2 * np.sin(theta / 2))

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
