"""Products of the Gram with vectors, one pass over the data each, and what else an iteration asks of the rows.

Mapped rows stay in the memory of the process that mapped them while they fit; the others are mapped anew.  The blocks
are the same either way, and so are the bits.

Legend: z (n, m) features of a block, w (n,) weights; a *column* of v (m, k) belongs to a training set, which leaves out
a fold, or none; z̄ (m,) the mean of the features over it.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from ntkdist import backend
from ntkdist.data import Rows
from ntkdist.errors import DataError
from ntkdist.features import AnyMap
from ntkdist.preprocess import Preprocessing
from ntkdist.progress import Progress
from ntkdist.reduce import reduce
from ntkdist.shards import Shard, Source
from ntkdist.sums import CrossSums, Tally

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]


class Memory:
    """Mapped rows that this process keeps: the shards of one run, up to a bound, first come, first kept."""

    def __init__(self) -> None:
        self.lock, self.run = threading.Lock(), ""
        self.sizes: dict[Any, int] = {}
        self.held: dict[Any, list[Rows]] = {}

    def reserve(self, run: str, key: Any, size: int, limit: int) -> bool:
        """Whether there is room for a shard of a run; what is kept of another run gives way."""
        with self.lock:
            if run != self.run:
                self.clear()
                self.run = run
            if key in self.sizes or sum(self.sizes.values()) + size > limit:
                return False
            self.sizes[key] = size
            return True

    def keep(self, run: str, key: Any, made: list[Rows]) -> None:
        """Fill a place that was reserved."""
        with self.lock:
            if run == self.run:
                self.held[key] = made

    def release(self, run: str, key: Any) -> None:
        """Give a place back that will not be filled."""
        with self.lock:
            if run == self.run:
                self.sizes.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.run = ""
        self.sizes.clear()
        self.held.clear()


_memory = Memory()


def forget() -> int:
    """Free what this process keeps, and say how many bytes that was."""
    with _memory.lock:
        kept = sum(_memory.sizes.values())
        _memory.clear()
    return kept


def row_bytes(m: int, t: int, dtype: str) -> int:
    """Of a mapped row: features, targets, weight and place."""
    return m * np.dtype(dtype).itemsize + 8 * (t + 2)


@dataclass(frozen=True)
class Mapped:
    """What turns rows as read into features and scaled targets, and remembers them.

    Attributes
    ----------
    features : FeatureMap
    preprocessing : Preprocessing
    dtype : str
    run : str
        Names everything that decides the mapped rows but their places.
    limit : int
        Bytes of mapped rows that a process keeps.
    """

    features: AnyMap
    preprocessing: Preprocessing
    dtype: str
    run: str
    limit: int

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.features.n_components, self.preprocessing.t, self.dtype)

    def of(self, rows: Rows) -> Rows:
        """Features in place of inputs, scaled targets (n, t) of targets, and what rows weigh in sums of weights."""
        assert rows.y is not None
        z = self.features(self.preprocessing.inputs(rows.x, self.dtype))
        return rows._replace(x=z, y=self.preprocessing.targets(rows.y), weight=self.preprocessing.weights(rows))

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Rows]:
        """A shard's mapped blocks, from memory if they are there: then nothing is read."""
        key = (self.run, shard.spans)
        found = _memory.held.get(key)
        if found is not None:
            yield from found
            return
        if not _memory.reserve(self.run, key, shard.rows * self.row_bytes, self.limit):
            yield from map(self.of, read)
            return
        made: list[Rows] = []
        try:
            for rows in map(self.of, read):
                made.append(rows)
                yield rows
            _memory.keep(self.run, key, made)
        finally:
            if key not in _memory.held:
                _memory.release(self.run, key)


class Folds(NamedTuple):
    """Which fold a block is of: all rows of a shard are of one."""

    rows_per_partition: int
    of_partition: tuple[int, ...]

    def of(self, rows: Rows) -> int:
        return self.of_partition[rows.start // self.rows_per_partition]


@dataclass(frozen=True)
class OfFeatures:
    """A summand of mapped rows, which may come from memory."""

    mapped: Mapped

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Rows]:
        return self.mapped.blocks(shard, read)


@dataclass(frozen=True)
class CrossOf(OfFeatures):
    """`CrossSums` of the features."""

    def zero(self) -> CrossSums:
        return CrossSums.zeros(self.mapped.features.n_components, self.mapped.preprocessing.t)

    def update(self, total: CrossSums, rows: Rows) -> CrossSums:
        assert rows.y is not None
        total.update(rows.x, rows.y, rows.weight)
        check_finite(total.z_sum, rows, self.mapped.dtype)
        return total


@dataclass(frozen=True)
class ProductsOf(OfFeatures):
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
class LossesOf(OfFeatures):
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

    backend.each(add, range(0, len(v), backend.TILE))
    total[-1, columns] += u.sum(axis=0, dtype=np.float64)


def _centred_products(z: NDArray[Any], v: NDArray[Any], shift: F8) -> NDArray[Any]:
    """zv − shift, tile by tile of rows, in z's precision."""
    out = np.empty((len(z), v.shape[1]), z.dtype)

    def fill(i: int) -> None:
        np.matmul(z[i : i + backend.TILE], v, out=out[i : i + backend.TILE])
        out[i : i + backend.TILE] -= shift.astype(z.dtype)

    backend.each(fill, range(0, len(z), backend.TILE))
    return out


def check_finite(z_sum: NDArray[Any], rows: Rows, dtype: str) -> None:
    """Stop at the first rows whose features overflow, by a sum of features."""
    if not np.isfinite(z_sum).all():
        raise DataError(
            f"Features of rows from {rows.start} on are not finite in {dtype}; look for huge values there, "
            "or use dtype float64"
        )


class Passes:
    """The rows of a run, to be summed over again and again.

    Attributes
    ----------
    count : int
        Passes so far.
    tally : Tally
        Of all passes; its rows are those of one.
    """

    def __init__(
        self, source: Source, shards: Sequence[Shard], fan_in: int, client: Client | None, mapped: Mapped
    ) -> None:
        self.source, self.shards, self.fan_in, self.client = source, list(shards), fan_in, client
        self.mapped, self.count, self.tally = mapped, 0, Tally()
        of = {i // source.layout.rows_per_partition: shard.group for shard in shards for i, _ in shard.spans}
        self.folds = Folds(source.layout.rows_per_partition, tuple(of[p] for p in range(source.layout.partitions)))

    def cross(self, progress: Progress) -> list[CrossSums]:
        """The sums of every fold."""
        return self._sum(CrossOf(self.mapped), self.shards, progress)

    def total(self, summand: OfFeatures, progress: Progress) -> F8:
        """One sum over all rows."""
        total: F8
        (total,) = self._sum(summand, [shard._replace(group=0) for shard in self.shards], progress)
        return total

    def _sum(self, summand: Any, shards: Iterable[Shard], progress: Progress) -> list[Any]:
        parts = reduce(self.source, summand, list(shards), self.fan_in, self.client, progress)
        tally = self.tally
        for part in parts:
            tally = tally + part.tally
        if self.count:
            tally = tally.of_rows(self.tally)
        self.tally, self.count = tally, self.count + 1
        return [part.total for part in parts]


class DataGram:
    """The centred Gram of every column, over the data: a `GramOperator`.

    Parameters
    ----------
    passes : Passes
    sets : sequence of CrossSums
        Sums of the training sets.
    of : (c,) integer array
        Training set of every column.
    left_out : (c,) integer array
        The fold that it leaves out, or −1.
    rhs : (m, c) array
    progress : callable
    """

    def __init__(
        self, passes: Passes, sets: Sequence[CrossSums], of: I8, left_out: I8, rhs: F8, progress: Progress
    ) -> None:
        self.passes, self.of, self.left_out, self.rhs, self.progress = passes, of, left_out, rhs, progress
        self.means = np.stack([each.z_sum / each.weight for each in sets], axis=1)
        self.dtype = np.dtype(passes.mapped.dtype)

    def matmul(self, v: NDArray[Any], columns: I8) -> F8:
        """Σ w (z − z̄)(z − z̄)ᵀv: only one factor need be centred, but centring the rounded sum too keeps it exact."""
        means = self.means[:, self.of[columns]]
        shift = np.einsum("ij,ij->j", means, v)
        summand = ProductsOf(self.passes.mapped, self.passes.folds, v, shift, self.left_out[columns])
        total = self.passes.total(summand, self.progress)
        product: F8 = total[:-1]
        means *= total[-1]
        product -= means
        return product
