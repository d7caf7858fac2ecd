"""Sums for iterative solvers: right-hand sides, products of the Gram with vectors, and losses on rows left out.

Legend: z (n, m) features of a block, y (n, t) targets, w (n,) weights; a *column* of v (m, k) belongs to a training
set, which leaves out a fold, or none; z̄ (m,) the mean of the features over the training set.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data.dataset import Rows
from ntkdist.sums.equations import NormalEquations, TargetSums, TargetSumsOf
from ntkdist.sums.mapped_rows import OverMappedRows

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


class CrossSums(TargetSums):
    """Normal equations without their Gram, for iterative solvers: Σ w [z y 1]ᵀ[y 1] and Σ w ‖z‖² over rows, in float64.

    The attributes are those of `NormalEquations` except the Gram, of which only the trace is known.
    """

    def __init__(self, cross: F8, inner: F8, square: float) -> None:
        self._cross, self._inner, self._square = cross, inner, square

    @classmethod
    def zeros(cls, m: int, t: int) -> "CrossSums":
        """Return the empty sum for m features and t targets."""
        return cls(np.zeros((m, t + 1)), np.zeros((t + 1, t + 1)), 0.0)

    @classmethod
    def of(cls, equations: NormalEquations) -> "CrossSums":
        """Return a copy of equations without their Gram."""
        inner = np.block([[equations.yy, equations.y_sum[:, None]], [equations.y_sum, equations.weight]])
        return cls(np.column_stack([equations.rhs, equations.z_sum]), inner, float(equations.squares.sum()))

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
class CrossOf(TargetSumsOf):
    """A summand: the `CrossSums` of mapped rows."""

    sums: ClassVar[Any] = CrossSums


class Folds(NamedTuple):
    """The fold of every partition; all rows of a block are of one fold."""

    rows_per_partition: int
    of_partition: tuple[int, ...]

    def of(self, rows: Rows) -> int:
        return self.of_partition[rows.start // self.rows_per_partition]


@dataclass(frozen=True)
class ProductsOf(OverMappedRows):
    """A summand: Σ w [z 1]ᵀ(zv − shift), (m + 1, k), each column over the rows of its training set."""

    folds: Folds
    v: NDArray[Any]  # (m, k)
    shift: F8  # (k,), z̄v
    left_out: I8  # (k,), the fold that a column's training set leaves out; −1 for none

    def zero(self) -> F8:
        return np.zeros((len(self.v) + 1, self.v.shape[1]))

    def update(self, total: F8, rows: Rows) -> F8:
        columns = np.flatnonzero(self.left_out != self.folds.of(rows))
        add_products(total, rows.x, rows.weight, self.v[:, columns], self.shift[columns], columns)
        return total


@dataclass(frozen=True)
class LossesOf(OverMappedRows):
    """A summand: Σ w (y − zᵀcoef − intercept)², (k,), each column over the rows that its training set leaves out."""

    folds: Folds
    coef: NDArray[Any]  # (m, k)
    intercept: F8  # (k,)
    target: I8  # (k,), the target that a column predicts
    left_out: I8  # (k,)

    def zero(self) -> F8:
        return np.zeros(len(self.target))

    def update(self, total: F8, rows: Rows) -> F8:
        assert rows.y is not None
        columns = np.flatnonzero(self.left_out == self.folds.of(rows))
        error = _centred_products(rows.x, self.coef[:, columns], -self.intercept[columns]).astype(np.float64)
        error -= rows.y[:, self.target[columns]]
        total[columns] += np.einsum("i,ij,ij->j", np.ones(rows.n) if rows.weight is None else rows.weight, error, error)
        return total


def add_products(total: F8, z: Any, weight: F8 | None, v: NDArray[Any], shift: F8, columns: I8) -> None:
    """Add Σ w [z 1]ᵀ(zv − shift) of a block to some columns of a total, tile by tile of features."""
    u = _centred_products(z, v, shift)
    if weight is not None:
        u *= weight[:, None].astype(u.dtype)

    def add(i: int) -> None:
        total[i : min(i + backend.TILE, len(v)), columns] += z[:, i : i + backend.TILE].T @ u

    backend.parallel_for(add, range(0, len(v), backend.TILE))
    total[-1, columns] += u.sum(axis=0, dtype=np.float64)


def _centred_products(z: NDArray[Any], v: NDArray[Any], shift: F8) -> NDArray[Any]:
    """Compute zv − shift, tile by tile of rows, in z's precision."""
    out = np.empty((len(z), v.shape[1]), z.dtype)

    def fill(i: int) -> None:
        np.matmul(z[i : i + backend.TILE], v, out=out[i : i + backend.TILE])
        out[i : i + backend.TILE] -= shift.astype(z.dtype)

    backend.parallel_for(fill, range(0, len(z), backend.TILE))
    return out
