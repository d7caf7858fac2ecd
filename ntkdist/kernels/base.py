"""The base class of exact kernels, and the arc-cosine functions of which the kernels of ReLU networks consist.

Legend: θ the angle between two rows; κ₀, κ₁ the arc-cosine functions of order 0 and 1 with κ(1) = 1.
"""

import abc
import math
from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from ntkdist import gpu
from ntkdist.spec import Spec

F8 = NDArray[np.float64]
Depth = Annotated[int, Meta(ge=1)]
PAIRS = 1 << 16  # of rows whose angle or distance is recomputed at a time


class Kernel(Spec, frozen=True):
    """A positive semi-definite function of two rows, as a value."""

    @abc.abstractmethod
    def __call__(self, x: NDArray[Any], y: NDArray[Any] | None = None) -> F8:
        """Compute the kernel matrix.

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

    def check_shape(self, input_shape: tuple[int, ...], source: str = "X") -> None:
        """Refuse rows of a shape that the kernel does not take; by default none, as rows are flattened.

        Raises
        ------
        DataError
            It names the ``source`` of the rows.
        """


def kappa0(theta: F8) -> F8:
    """Compute κ₀ from the angle: twice the share of half-spaces that contain both rows."""
    return 1 - theta / np.pi


def one_minus_kappa1(theta: F8) -> F8:
    """Compute 1 − κ₁, to full relative precision also at small angles, where κ₁ ≈ 1 − θ²/2 + θ³/(3π)."""
    return 2 * np.square(np.sin(theta / 2)) - sine_excess(theta) / np.pi


def sine_excess(theta: F8) -> F8:
    """Compute sin θ − θ cos θ, to full relative precision also at small angles."""
    small = theta < 0.1
    t2 = np.square(np.where(small, theta, 0.0))
    series = theta * t2 * (1 / 3 - t2 * (1 / 30 - t2 * (1 / 840 - t2 / 45360)))
    return np.where(small, series, np.sin(theta) - theta * np.cos(theta))


def angle_of(gap: F8) -> F8:
    """Return the angle whose cosine is 1 − gap."""
    return 2 * np.arcsin(np.sqrt(np.minimum(gap / 2, 1.0)))


def with_bias(x: NDArray[Any], bias: float) -> NDArray[Any]:
    """Append the constant column ``bias`` to rows; return them unchanged if ``bias`` is 0."""
    xp = gpu.array_module(x)
    x = xp.asarray(x)
    return x if bias == 0 else xp.concatenate([x, xp.full((len(x), 1), bias, x.dtype)], axis=1)


def chosen(where: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield the row and column indices of true entries, `PAIRS` at a time."""
    i, j = np.nonzero(where)
    for part in range(0, len(i), PAIRS):
        yield i[part : part + PAIRS], j[part : part + PAIRS]


def flat(x: NDArray[Any]) -> F8:
    """Flatten rows to (n, d) in float64."""
    x = np.asarray(x, np.float64)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def unit(x: NDArray[Any]) -> tuple[F8, F8]:
    """Return unit rows in float64 and their lengths (n,); a zero row stays zero."""
    x = np.asarray(x, np.float64)
    r: F8 = np.linalg.norm(x, axis=1)
    return x / np.where(r == 0, 1.0, r)[:, None], r
