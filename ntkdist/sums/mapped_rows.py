"""Mapped rows: features and scaled targets of rows as read, kept in a process's memory between passes while they fit.

Blocks that are kept and blocks that are mapped again are the same to the bit.
"""

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
    """A feature map, as sums call it."""

    @property
    def n_components(self) -> int: ...
    def __call__(self, x: NDArray[Any], /) -> NDArray[Any]: ...
    def on_gpu(self, x: NDArray[Any], /) -> Any: ...


class RowCache:
    """A process's cache of mapped rows: the shards of one run, in the order of arrival, up to a limit of bytes."""

    def __init__(self) -> None:
        self.lock, self.run = threading.Lock(), ""
        self.sizes: dict[Any, int] = {}
        self.held: dict[Any, list[Rows]] = {}

    def reserve(self, run: str, key: Any, size: int, limit: int) -> bool:
        """Reserve room for a shard, if there is any; rows of another run are dropped first."""
        with self.lock:
            if run != self.run:
                self.clear()
                self.run = run
            if key in self.sizes or sum(self.sizes.values()) + size > limit:
                return False
            self.sizes[key] = size
            return True

    def settle(self, run: str, key: Any, blocks: list[Rows] | None, row_bytes: int) -> None:
        """Store the blocks of a shard and give back the rest of its reserved room, or all if they are None."""
        with self.lock:
            if run == self.run and blocks is not None:
                self.held[key], self.sizes[key] = blocks, sum(rows.n for rows in blocks) * row_bytes
            elif run == self.run:
                self.sizes.pop(key, None)

    def clear(self) -> None:
        self.run = ""
        self.sizes.clear()
        self.held.clear()


_cache = RowCache()


def forget() -> int:
    """Free the rows that this process keeps, and return their bytes."""
    with _cache.lock:
        kept = sum(_cache.sizes.values())
        _cache.clear()
    return kept


def row_bytes(m: int, t: int, dtype: str) -> int:
    """Return the bytes of a mapped row: features, targets, weight and position."""
    return m * np.dtype(dtype).itemsize + 8 * (t + 2)


@dataclass(frozen=True)
class RowMapper:
    """A map from rows as read to features and scaled targets, with a cache."""

    features: Features
    preprocessing: Preprocessing
    dtype: str
    run: str  # key of the cache: names everything that decides the mapped rows, except their positions
    limit: int  # bytes of mapped rows that a process may keep

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.features.n_components, self.preprocessing.t, self.dtype)

    def of(self, rows: Rows) -> Rows:
        """Replace inputs by features, targets by scaled targets (n, t), and weights by those of the equations."""
        assert rows.y is not None
        z = self.features(self.preprocessing.of_rows(rows, self.dtype))
        return rows._replace(x=z, y=self.preprocessing.targets(rows.y), weight=self.preprocessing.weights(rows))

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Rows]:
        """Yield a shard's mapped blocks, from the cache if it has them; then nothing is read."""
        key = (self.run, shard.spans, shard.copies)
        if (kept := _cache.held.get(key)) is not None:
            yield from kept
            return
        if not _cache.reserve(self.run, key, shard.rows * self.row_bytes, self.limit):
            yield from map(self.of, read)
            return
        mapped: list[Rows] = []
        whole = False
        try:
            for rows in map(self.of, read):
                mapped.append(rows)
                yield rows
            whole = True
        finally:
            _cache.settle(self.run, key, mapped if whole else None, self.row_bytes)


@dataclass(frozen=True)
class OverMappedRows:
    """Base of the summands of many passes, which take mapped rows from the cache where it has them."""

    mapped: RowMapper

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Rows]:
        return self.mapped.blocks(shard, read)


def check_finite(z_sum: NDArray[Any], rows: Rows, dtype: str) -> None:
    """Refuse rows whose features overflow, given the sum of features up to them."""
    if not np.isfinite(z_sum).all():
        raise not_finite(f"from {rows.start} on", dtype)


def not_finite(which: str, dtype: str) -> DataError:
    return DataError(
        f"Features of rows {which} are not finite in {dtype}; look for huge values there, or use dtype float64"
    )
