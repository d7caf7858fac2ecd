"""Exact kernels, as values: ``NTK(depth=2)(x, y)`` is an (n, n') matrix.

Legend: x (n, d) and y (n', d) rows; θ the angle between two rows; Σ the covariance of a layer on unit
rows; κ₀, κ₁ the arc-cosine functions of order 0 and 1 with κ(1) = 1; K the tangent kernel on unit rows.

Everything is a function of the angle, never of a clipped cosine: near ±1 the arc cosine loses half of
the digits, so angles of nearly parallel rows are taken from the length of x̂ − ŷ, and each layer passes
1 − Σ on, not Σ.
"""

import abc
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist.spec import Spec

F8 = NDArray[np.float64]
Depth = Annotated[int, Meta(ge=1)]


class Kernel(Spec, frozen=True):
    """A positive semi-definite function of two rows, as a value."""

    @abc.abstractmethod
    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        """The kernel matrix.

        Parameters
        ----------
        x : (n, d) array
        y : (n', d) array, optional
            ``x`` itself if absent.

        Returns
        -------
        (n, n') float64 array
        """


class NTK(Kernel, frozen=True):
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

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        norms, theta = _polar(with_bias(x, self.bias), None if y is None else with_bias(y, self.bias))
        k = np.cos(theta)
        for _ in range(self.depth):
            gap = one_minus_kappa1(theta)
            k = k * kappa0(theta) + (1 - gap)
            theta = angle_of(gap)
        k *= norms
        return k


class NNGP(Kernel, frozen=True):
    """The Gaussian process of the same network at initialisation: ‖x‖‖y‖ Σ^L, k(x, x) = ‖x‖².

    Cho, Saul, "Kernel methods for deep learning", NeurIPS 2009 (arc-cosine of order 1, composed).

    Parameters
    ----------
    depth : int
        L, the number of hidden layers.
    """

    depth: Depth

    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        norms, theta = _polar(np.asarray(x, np.float64), None if y is None else np.asarray(y, np.float64))
        for _ in range(self.depth):
            gap = one_minus_kappa1(theta)
            theta = angle_of(gap)
        return norms * (1 - gap)


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
        i, j = np.nonzero(sign * c > 0.99)
        for part in range(0, len(i), 1 << 16):
            a, b = i[part : part + (1 << 16)], j[part : part + (1 << 16)]
            near = 2 * np.arcsin(np.minimum(np.linalg.norm(u[a] - sign * v[b], axis=1) / 2, 1.0))
            theta[a, b] = near if sign == 1 else np.pi - near
    return np.outer(r, s), theta


def _unit(x: NDArray[Any]) -> tuple[F8, F8]:
    x = np.asarray(x, np.float64)
    r: F8 = np.linalg.norm(x, axis=1)
    return x / np.where(r == 0, 1.0, r)[:, None], r
