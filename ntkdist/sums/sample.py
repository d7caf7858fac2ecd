"""A seeded sample of rows: the k of smallest key are a sum too."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist.sparse import concatenate


class RowSample:
    """The ``size`` rows of smallest key seen so far: a value with ``+``, the same for any cutting and order.

    With keys that are independent and uniform, a simple random sample without replacement; with −log(uniform)/weight,
    one in which rows enter in proportion to their weights (Efraimidis, Spirakis, 2006).

    Attributes
    ----------
    size : int
    keys : (k,) float64 array
        Ascending, k ≤ size; a row with an infinite key is never kept.
    x : (k, *shape) array, or a sparse one (k, d)
    """

    def __init__(self, size: int, keys: NDArray[np.float64], x: NDArray[Any] | csr_array) -> None:
        keep = np.flatnonzero(np.isfinite(keys))
        keep = keep[np.argsort(keys[keep], kind="stable")[:size]]
        self.size, self.keys, self.x = size, keys[keep], x[keep]

    def __add__(self, other: "RowSample") -> "RowSample":
        return RowSample(self.size, np.concatenate([self.keys, other.keys]), concatenate([self.x, other.x]))

    def __sizeof__(self) -> int:
        x: Any = self.x
        return self.keys.nbytes + (x.data.nbytes + x.indices.nbytes if isinstance(x, csr_array) else x.nbytes)
