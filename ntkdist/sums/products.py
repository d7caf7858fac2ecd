"""Products of the Gram with vectors, one pass over the data each, and what else an iteration asks of the rows.

Mapped rows stay in the memory of the process that mapped them while they fit; the others are mapped anew.  The blocks
are the same either way, and so are the bits.

Legend: z (n, m) features of a block, w (n,) weights; a *column* of v (m, k) belongs to a training set, which leaves out
a fold, or none; z̄ (m,) the mean of the features over it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data.dataset import Rows, Shard
from ntkdist.sums.cross import CrossSums
from ntkdist.sums.mapped_rows import RowMapper, check_finite

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


class Folds(NamedTuple):
    """Which fold a block is of: all rows of a shard are of one."""

    rows_per_partition: int
    of_partition: tuple[int, ...]

    def of(self, rows: Rows) -> int:
        return self.of_partition[rows.start // self.rows_per_partition]


@dataclass(frozen=True)
class OverMappedRows:
    """A summand of mapped rows, which may come from memory."""

    mapped: RowMapper

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Rows]:
        return self.mapped.blocks(shard, read)


@dataclass(frozen=True)
class CrossOf(OverMappedRows):
    """`CrossSums` of the features."""

    def zero(self) -> CrossSums:
        return CrossSums.zeros(self.mapped.features.n_components, self.mapped.preprocessing.t)

    def update(self, total: CrossSums, rows: Rows) -> CrossSums:
        assert rows.y is not None
        total.update(rows.x, rows.y, rows.weight)
        check_finite(total.z_sum, rows, self.mapped.dtype)
        return total


@dataclass(frozen=True)
class ProductsOf(OverMappedRows):
    """Σ w [z 1]ᵀ(zv − shift), (m + 1, k): a column sums the rows of its training set, multiplied in the features'
    precision and added in float64."""

    folds: Folds
    v: NDArray[Any]  # (m, k)
    shift: F8  # (k,), z̄v
    left_out: I8  # (k,), the fold that a column's training set leaves out, or −1

    def zero(self) -> F8:
        return np.zeros((len(self.v) + 1, self.v.shape[1]))

    def update(self, total: F8, rows: Rows) -> F8:
        columns = np.flatnonzero(self.left_out != self.folds.of(rows))
        add_products(total, rows.x, rows.weight, self.v[:, columns], self.shift[columns], columns)
        return total


@dataclass(frozen=True)
class LossesOf(OverMappedRows):
    """Σ w (y − zᵀcoef − intercept)², (k,): a column sums the rows that its training set leaves out."""

    folds: Folds
    coef: NDArray[Any]  # (m, k)
    intercept: F8  # (k,)
    target: I8  # (k,), which of the targets a column predicts
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
    """zv − shift, tile by tile of rows, in z's precision."""
    out = np.empty((len(z), v.shape[1]), z.dtype)

    def fill(i: int) -> None:
        np.matmul(z[i : i + backend.TILE], v, out=out[i : i + backend.TILE])
        out[i : i + backend.TILE] -= shift.astype(z.dtype)

    backend.parallel_for(fill, range(0, len(z), backend.TILE))
    return out
