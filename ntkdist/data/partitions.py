"""Partitions of row-aligned arrays: how many rows and chunks they have, and digests of what is written into them."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

MIN_PARTITIONS = 20
MAX_PARTITION_BYTES = 128 * 2**20
MAX_CHUNK_BYTES = 8 * 2**20
DIGEST_BYTES = 16
T = TypeVar("T")


def evenly(items: Sequence[T], count: int) -> list[Sequence[T]]:
    """Cut items into at most ``count`` runs whose lengths differ by one at most."""
    count = min(len(items), count)
    cuts = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(cuts)]


def partition_rows(
    rows: int, shape: tuple[int, ...], dtype: Any, wanted: int | None = None, at_least: int = MIN_PARTITIONS
) -> int:
    """Choose the rows of a partition, for at least 20 partitions of at most 128 MiB (but at least one row).

    The number is rounded down, by less than a sixteenth, to one with many divisors, so that arrays of any width divide
    into chunks.  ``wanted`` overrides this, unless wide rows need chunks into which it does not divide.
    """
    row_bytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    n: int = wanted or max(1, min(rows // at_least, MAX_PARTITION_BYTES // row_bytes))
    if wanted and chunks_per_partition(n, shape, dtype) < 2 * -(-n * row_bytes // MAX_CHUNK_BYTES):
        return n
    step = 1 << max(0, n.bit_length() - 5)
    return n // step * step


def chunks_per_partition(rows_per_partition: int, shape: tuple[int, ...], dtype: Any) -> int:
    """Return the least number of equal inner chunks, of at most 8 MiB each (but at least one row), of a partition."""
    n = rows_per_partition
    needed = min(n, -(-n * int(np.prod(shape)) * np.dtype(dtype).itemsize // MAX_CHUNK_BYTES))
    return min(k for i in range(1, math.isqrt(n) + 1) if n % i == 0 for k in (i, n // i) if k >= needed)


@dataclass(frozen=True)
class Content:
    """Digests of the values written into the arrays of a group, by array name: a value with ``+``.

    A digest is the sum, modulo 2^128, of the SHA-256 of all pieces (name, first row, type, shape and bytes of each).
    It does not depend on the order of the pieces or on the processes that write them.
    """

    sums: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, start: int, values: NDArray[Any]) -> "Content":
        """Digest one piece of an array: the rows from ``start`` on."""
        values = np.ascontiguousarray(values)
        piece = hashlib.sha256(f"{name} {start} {values.dtype.str} {values.shape} ".encode())
        piece.update(values.reshape(-1).view(np.uint8).data)
        return cls({name: int.from_bytes(piece.digest()[:DIGEST_BYTES])})

    def __add__(self, other: "Content") -> "Content":
        names, modulus = self.sums.keys() | other.sums.keys(), 1 << 8 * DIGEST_BYTES
        return Content({n: (self.sums.get(n, 0) + other.sums.get(n, 0)) % modulus for n in sorted(names)})

    def to_dict(self) -> dict[str, str]:
        return {name: f"{value:0{2 * DIGEST_BYTES}x}" for name, value in self.sums.items()}
