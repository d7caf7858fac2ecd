"""Something of every row, gathered."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Block = tuple[NDArray[np.int64], dict[str, NDArray[Any]]]


class Rowwise:
    """Arrays with one entry a row, and the places of the rows: a value with ``+``, kept in blocks until it is read.

    Attributes
    ----------
    blocks : sequence of (places, values)
        Each as `places` and `values`.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)

    @classmethod
    def of(cls, places: NDArray[np.int64], values: dict[str, NDArray[Any]]) -> "Rowwise":
        """Of one block of rows: their places (n,), and arrays (n, ...) by name."""
        return cls([(places, values)])

    def __add__(self, other: "Rowwise") -> "Rowwise":
        return Rowwise(self.blocks + other.blocks)

    def in_order(self) -> "Rowwise":
        """The same as one block, by ascending place."""
        order = np.argsort(places := self.places, kind="stable")
        return Rowwise.of(places[order], {k: v[order] for k, v in self.values.items()})

    @property
    def places(self) -> NDArray[np.int64]:
        """Of the rows in the data, (n,)."""
        return np.concatenate([places for places, _ in self.blocks])

    @property
    def values(self) -> dict[str, NDArray[Any]]:
        """Arrays (n, ...) by name."""
        return {name: np.concatenate([values[name] for _, values in self.blocks]) for name in self.blocks[0][1]}

    def __sizeof__(self) -> int:
        return sum(places.nbytes + sum(v.nbytes for v in values.values()) for places, values in self.blocks)
