"""A seeded sample of rows: the k of smallest key are a sum too."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RowSample:
    """The ``size`` rows of smallest key seen so far: a value with ``+``, the same for any cutting and order.

    With keys that are independent and uniform, a simple random sample without replacement; with −log(uniform)/weight,
    one in which rows enter in proportion to their weights (Efraimidis, Spirakis, 2006).

    Attributes
    ----------
    size : int
    keys : (k,) float64 array
        Ascending, k ≤ size; a row with an infinite key is never kept.
    x : (k, *shape) array
    """

    def __init__(self, size: int, keys: NDArray[np.float64], x: NDArray[Any]) -> None:
        keep = np.flatnonzero(np.isfinite(keys))
        keep = keep[np.argsort(keys[keep], kind="stable")[:size]]
        self.size, self.keys, self.x = size, keys[keep], x[keep]

    def __add__(self, other: "RowSample") -> "RowSample":
        return RowSample(self.size, np.concatenate([self.keys, other.keys]), np.concatenate([self.x, other.x]))

    def __sizeof__(self) -> int:
        return self.keys.nbytes + self.x.nbytes
