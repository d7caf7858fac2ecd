"""Normal equations without their Gram, for iterative solvers, which need only its products with vectors.

Legend: z (n, m) features; y (n, t) targets; w (n,) weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data.dataset import Rows
from ntkdist.sums.equations import TargetSums
from ntkdist.sums.mapped_rows import OverMappedRows, check_finite

F8 = NDArray[np.float64]


class CrossSums(TargetSums):
    """Σ w [z y 1]ᵀ[y 1] and Σ w ‖z‖² over rows, in float64: a value with ``+``, ``-`` and a size.

    The attributes are those of `NormalEquations` except the Gram, of which only the trace is known.
    """

    def __init__(self, cross: F8, inner: F8, square: float) -> None:
        self._cross, self._inner, self._square = cross, inner, square

    @classmethod
    def zeros(cls, m: int, t: int) -> "CrossSums":
        """Return the empty sum for m features and t targets."""
        return cls(np.zeros((m, t + 1)), np.zeros((t + 1, t + 1)), 0.0)

    def update(self, z: NDArray[Any], y: F8, weight: NDArray[Any] | None = None) -> "CrossSums":
        """Add a block of rows, in place; arguments and result are those of `NormalEquations.update`."""
        y1 = np.column_stack([y, np.ones(len(y))])
        wy1 = y1 if weight is None else y1 * np.asarray(weight, np.float64)[:, None]
        right = wy1.astype(z.dtype)
        squares = np.zeros(-(-self.m // backend.TILE))

        def add(i: int) -> None:
            tile = z[:, i : i + backend.TILE]
            self._cross[i : i + backend.TILE] += tile.T @ right
            squares[i // backend.TILE] = wy1[:, -1] @ np.einsum("ij,ij->i", tile, tile)

        backend.parallel_for(add, range(0, self.m, backend.TILE))
        self._inner += y1.T @ wy1
        self._square += float(squares.sum())
        return self

    def __add__(self, other: "CrossSums") -> "CrossSums":
        return CrossSums(self._cross + other._cross, self._inner + other._inner, self._square + other._square)

    def __sub__(self, other: "CrossSums") -> "CrossSums":
        return CrossSums(self._cross - other._cross, self._inner - other._inner, self._square - other._square)

    def centred_rhs(self) -> F8:
        """Return the right-hand side about the weighted means, (m, t)."""
        rhs: F8 = self.rhs - np.outer(self.z_sum / self.weight, self.y_sum)
        return rhs

    def trace(self) -> float:
        """Return the trace of the centred Gram, Σ w ‖z − z̄‖²."""
        return self._square - float(self.z_sum @ self.z_sum) / self.weight

    def __sizeof__(self) -> int:
        return self._cross.nbytes + self._inner.nbytes


@dataclass(frozen=True)
class CrossOf(OverMappedRows):
    """A summand: the `CrossSums` of mapped rows."""

    def zero(self) -> CrossSums:
        return CrossSums.zeros(self.mapped.features.n_components, self.mapped.preprocessing.t)

    def update(self, total: CrossSums, rows: Rows) -> CrossSums:
        assert rows.y is not None
        total.update(rows.x, rows.y, rows.weight)
        check_finite(total.z_sum, rows, self.mapped.dtype)
        return total
