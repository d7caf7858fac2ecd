"""Kernels of the angle between two rows.

Legend: x (n, d) and y (n', d) rows; θ the angle between two rows; Σ the covariance of a layer on unit rows; K the
tangent kernel on unit rows.
"""

import abc
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.kernels.base import F8, Depth, Kernel, angle_of, chosen, flat, kappa0, one_minus_kappa1, unit, with_bias

CLOSE = 0.01  # in units of the largest possible value: below, 1 − |cos θ| is computed from a difference


class ZonalKernel(Kernel, frozen=True):
    """A kernel ‖x‖‖y‖ times a function of the angle between the rows: homogeneous, a zero row gives zero."""

    @abc.abstractmethod
    def zonal(self, theta: F8) -> F8:
        """Compute the kernel of unit rows at the angles ``theta``, an array of any shape."""

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """Return the rows (n, d') of the lengths and angles, in x's dtype: x (n, d), with its bias column if any."""
        return x

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
