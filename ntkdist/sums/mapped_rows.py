"""Mapped rows: features and scaled targets of rows as read, and those that a process remembers between passes."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkdist.data.dataset import Rows, Shard
from ntkdist.data.scaling import Preprocessing
from ntkdist.errors import DataError


class Features(Protocol):
    """A feature map, as far as sums know one."""

    @property
    def n_components(self) -> int: ...
    def __call__(self, x: NDArray[Any], /) -> NDArray[Any]: ...
    def on_gpu(self, x: NDArray[Any], /) -> Any: ...


class RowCache:
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


_memory = RowCache()


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
class RowMapper:
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

    features: Features
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


def check_finite(z_sum: NDArray[Any], rows: Rows, dtype: str) -> None:
    """Stop at the first rows whose features overflow, by a sum of features."""
    if not np.isfinite(z_sum).all():
        raise not_finite(f"from {rows.start} on", dtype)


def not_finite(which: str, dtype: str) -> DataError:
    """Say that features of some rows overflow."""
    return DataError(
        f"Features of rows {which} are not finite in {dtype}; look for huge values there, or use dtype float64"
    )
