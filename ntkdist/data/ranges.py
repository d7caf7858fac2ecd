"""The range of the inputs that a model has seen: values outside are clipped to it, and their rows counted.

A kernel such as the NTK grows with its inputs, so that one value far outside the data would decide a prediction.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist.errors import DataError

F8 = NDArray[np.float64]
COUNTED = 2**20  # values that are compared at once, for the memory of it


class Range(NamedTuple):
    """Least and greatest value of every column.

    Attributes
    ----------
    low, high : (d,) float64 arrays, or (c,) for channels
        ∓inf where there is no limit; (1,) where there is none at all.
    """

    low: F8
    high: F8

    @property
    def bounded(self) -> bool:
        """Whether there is any limit."""
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())

    def scaled(self, mean: F8, scale: F8) -> "Range":
        """Return the range of (x − mean)/scale, to the bit."""
        return Range((self.low - mean) / scale, (self.high - mean) / scale)

    def holds(self, x: NDArray[Any] | csr_array) -> bool:
        """Tell whether every value of rows (n, *shape) lies within; of NaN, that it does not."""
        if not self.bounded or not x.shape[0]:
            return True
        if isinstance(x, csr_array):
            return not self._outside(x).any()
        low, high = self._as(x.dtype)
        lowest, highest = (end(axis=0).reshape(-1, len(low)) for end in (x.min, x.max))  # fast, and without temporaries
        return bool((lowest >= low).all() and (highest <= high).all())

    def clip(self, x: NDArray[Any] | csr_array) -> None:
        """Clip floating-point rows (n, *shape) in place; infinities stay, for they are errors and no outliers.

        Raises
        ------
        DataError
            If rows are sparse and the range of a column leaves out 0.
        """
        if isinstance(x, csr_array) and ((self.low > 0).any() or (self.high < 0).any()):
            raise DataError("The model clips to a range without 0, which would fill sparse rows; make the rows dense")
        if self.holds(x):
            return
        values, low, high = self._beside(x)
        infinite = np.isinf(values)
        kept = values[infinite]
        np.clip(values, low, high, out=values)
        values[infinite] = kept

    def rows_outside(self, x: NDArray[Any] | csr_array) -> tuple[int, NDArray[np.int64]]:
        """Count the rows with a value outside: in any column, and in each, (d,) or (c,)."""
        rows, columns = 0, np.zeros(len(self.low), np.int64)
        if self.holds(x):
            return rows, columns
        step = max(1, COUNTED // int(np.prod(x.shape[1:])))
        for i in range(0, x.shape[0], step):
            part = x[i : i + step]
            outside: Any = self._outside(part)
            if isinstance(part, csr_array):
                row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
                rows += len(np.unique(row[outside]))
                columns += np.bincount(part.indices[outside], minlength=len(columns))
            else:
                each = outside.reshape(len(part), -1, len(columns)).any(axis=1)
                rows += int(each.any(axis=1).sum())
                columns += each.sum(axis=0)
        return rows, columns

    def _outside(self, x: NDArray[Any] | csr_array) -> NDArray[np.bool_]:
        """Tell which values are outside; of sparse rows, which of those stored."""
        values, low, high = self._beside(x)
        return (values < low) | (values > high)

    def _beside(self, x: NDArray[Any] | csr_array) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return values, and the limits of each, which broadcast."""
        low, high = self._as(x.dtype)
        if isinstance(x, csr_array):
            return x.data, low[x.indices], high[x.indices]
        if len(low) == np.prod(x.shape[1:]):
            low, high = low.reshape(x.shape[1:]), high.reshape(x.shape[1:])
        return x, low, high

    def _as(self, dtype: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cast the limits to the precision of rows: in less than they were learnt in, the same rows lie within."""
        with np.errstate(over="ignore"):
            low, high = (a.astype(np.result_type(dtype, np.float32)) for a in self)
        return low, high
