"""Something of every row, gathered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rowwise:
    """Arrays with one entry a row and the places of the rows: a value with ``+``.

    Attributes
    ----------
    places : (n,) integer array
    values : dict of str to (n, ...) array
    """

    places: NDArray[np.int64]
    values: dict[str, NDArray[Any]]

    def __add__(self, other: "Rowwise") -> "Rowwise":
        both = {k: np.concatenate([v, other.values[k]]) for k, v in self.values.items()}
        return Rowwise(np.concatenate([self.places, other.places]), both)

    def in_order(self) -> "Rowwise":
        """The same by ascending place."""
        order = np.argsort(self.places, kind="stable")
        return Rowwise(self.places[order], {k: v[order] for k, v in self.values.items()})

    def __sizeof__(self) -> int:
        return self.places.nbytes + sum(v.nbytes for v in self.values.values())
