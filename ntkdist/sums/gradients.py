"""Gradient outer products: how much a fitted function changes along every direction of its inputs, as one more sum.

Legend: x scaled inputs, u = xP what the map takes, P the metric, (d, d) or its diagonal, (d,); f the t functions of a
fitted model, in scaled targets; g = ∇_u f_t their gradients, w weights.  Radhakrishnan, Beaglehole, Pandit, Belkin,
"Mechanism for feature learning in neural networks and backpropagation-free machine learning models", Science 2024.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkdist.data.dataset import Rows
from ntkdist.data.scaling import Preprocessing

F8 = NDArray[np.float64]
PIECE_BYTES = 2**24  # of gradients that are held at once
ARRAYS = ("weight", "gradient", "outer", "mean", "square")


@dataclass(eq=False)
class GradientSums:
    """Sums over rows, in float64: a value with ``+`` and ``-``.

    With a diagonal metric, ``outer`` and ``square`` are the diagonals of the matrices.
    """

    weight: F8  # Σ w, ()
    gradient: F8  # Σ w g, (t, d)
    outer: F8  # Σ_t Σ w g gᵀ, (d, d) or (d,)
    mean: F8  # Σ w x, (d,)
    square: F8  # Σ w x xᵀ, (d, d) or (d,)

    @classmethod
    def zeros(cls, t: int, d: int, full: bool) -> "GradientSums":
        shape = (d, d) if full else (d,)
        return cls(np.zeros(()), np.zeros((t, d)), np.zeros(shape), np.zeros(d), np.zeros(shape))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, F8]) -> "GradientSums":
        return cls(**arrays)

    @staticmethod
    def bytes_of(t: int, d: int, full: bool) -> int:
        """Return the bytes of a sum."""
        return 8 * (1 + t * d + d + 2 * (d**2 if full else d))

    def arrays(self) -> dict[str, F8]:
        """Return the arrays to save."""
        return {name: getattr(self, name) for name in ARRAYS}

    def __add__(self, other: "GradientSums") -> "GradientSums":
        return GradientSums(*(getattr(self, name) + getattr(other, name) for name in ARRAYS))

    def __sub__(self, other: "GradientSums") -> "GradientSums":
        return GradientSums(*(getattr(self, name) - getattr(other, name) for name in ARRAYS))

    @property
    def average(self) -> F8:
        """The average outer product of gradients less their mean, summed over targets: (d, d), or its diagonal."""
        g = self.gradient / self.weight
        return self.outer / self.weight - (g.T @ g if self.outer.ndim == 2 else np.einsum("td,td->d", g, g))

    @property
    def covariance(self) -> F8:
        """The covariance of x: (d, d), or its diagonal."""
        x = self.mean / self.weight
        return self.square / self.weight - (np.outer(x, x) if self.square.ndim == 2 else x * x)

    def __sizeof__(self) -> int:
        return sum(array.nbytes for array in self.arrays().values())


class HasGradients(Protocol):
    """A feature map of vectors, as this sum calls it."""

    def gradients(self, x: NDArray[Any], coef: NDArray[Any], /) -> NDArray[Any]: ...


@dataclass(frozen=True)
class GradientsOf:
    """A summand: the outer products of the gradients of φ(u) @ coef, and those of scaled inputs."""

    features: HasGradients
    preprocessing: Preprocessing  # with the metric P
    coef: F8  # (m, t)
    dtype: str
    full: bool  # or only the diagonals

    def zero(self) -> GradientSums:
        return GradientSums.zeros(self.coef.shape[1], int(np.prod(self.preprocessing.mapped_shape)), self.full)

    def update(self, total: GradientSums, rows: Rows) -> GradientSums:
        step = max(1, PIECE_BYTES // (8 * total.gradient.size))
        for i in range(0, rows.n, step):
            total += self._of(rows.take(slice(i, i + step)))
        return total

    def _of(self, rows: Rows) -> GradientSums:
        x = self.preprocessing.scaled(rows.x, rows.fold, rows.places)
        u = self.preprocessing.measured(x).astype(self.dtype)
        g = self.features.gradients(u, self.coef).astype(np.float64)
        weight = self.preprocessing.weights(rows)
        w = np.ones(rows.n) if weight is None else weight
        root = np.sqrt(w)[:, None]
        gradients, inputs = (g * root[:, None]).reshape(-1, g.shape[2]), x * root
        outer, square = (a.T @ a if self.full else np.einsum("nd,nd->d", a, a) for a in (gradients, inputs))
        return GradientSums(np.array(w.sum()), np.einsum("n,ntd->td", w, g), outer, w @ x, square)
