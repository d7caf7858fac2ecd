"""The range of a model's training inputs: values outside are clipped to it, and their rows counted.

A kernel such as the NTK grows with its inputs, so one value far outside the training data would dominate a prediction.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist.data.column_sums import codes_of
from ntkdist.data.dataset import Layout
from ntkdist.errors import DataError

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
COUNTED = 2**20  # values that are compared at once, to bound memory
FEW = 10  # rows outside that are named


class Range(NamedTuple):
    """The least and greatest value of each column or channel, ∓inf in one without a limit; (1,) if none has a limit."""

    low: F8
    high: F8

    @property
    def bounded(self) -> bool:
        """True if any column has a limit."""
        return bool(np.isfinite(self.low).any() or np.isfinite(self.high).any())

    def scaled(self, mean: F8, scale: F8) -> "Range":
        """Return the range of (x − mean)/scale, to the bit."""
        return Range((self.low - mean) / scale, (self.high - mean) / scale)

    def holds(self, x: NDArray[Any] | csr_array) -> bool:
        """Return whether every value of rows (n, *shape) lies within; NaN does not."""
        if not self.bounded or not x.shape[0]:
            return True
        if isinstance(x, csr_array):
            return not self._outside(x).any()
        low, high = self._as(x.dtype)
        lowest, highest = (end(axis=0).reshape(-1, len(low)) for end in (x.min, x.max))  # fast, without temporaries
        return bool((lowest >= low).all() and (highest <= high).all())

    def clip(self, x: NDArray[Any] | csr_array) -> None:
        """Clip floating-point rows (n, *shape) in place, except infinities, which are errors and not outliers."""
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
        """Count the rows with a value outside: in any column, and in each column, (d,) or (c,)."""
        rows, columns = 0, np.zeros(len(self.low), np.int64)
        if self.holds(x):
            return rows, columns
        step = max(1, COUNTED // int(np.prod(x.shape[1:])))
        for i in range(0, x.shape[0], step):
            part = x[i : i + step]
            outside: Any = self._outside(part)
            if isinstance(part, csr_array):
                rows += len(np.unique(part.tocoo(copy=False).row[outside]))
                columns += np.bincount(part.indices[outside], minlength=len(columns))
            else:
                each = outside.reshape(len(part), -1, len(columns)).any(axis=1)
                rows += int(each.any(axis=1).sum())
                columns += each.sum(axis=0)
        return rows, columns

    def _outside(self, x: NDArray[Any] | csr_array) -> NDArray[np.bool_]:
        """Mark the values outside; of sparse rows, among those stored."""
        values, low, high = self._beside(x)
        return (values < low) | (values > high)

    def _beside(self, x: NDArray[Any] | csr_array) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return values, and lower and upper limits that broadcast with them."""
        low, high = self._as(x.dtype)
        if isinstance(x, csr_array):
            return x.data, low[x.indices], high[x.indices]
        if len(low) == np.prod(x.shape[1:]):
            low, high = low.reshape(x.shape[1:]), high.reshape(x.shape[1:])
        return x, low, high

    def _as(self, dtype: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """Cast the limits to the precision of rows, so that training rows cast to lower precision still lie within."""
        with np.errstate(over="ignore"):
            low, high = (a.astype(np.result_type(dtype, np.float32)) for a in self)
        return low, high


class SeenRange(NamedTuple):
    """The ranges and the names of the columns of a table: rows beyond them are counted, as those of a `Range`."""

    range: Range
    categories: tuple[tuple[str, ...], ...]
    seen: list[NDArray[np.bool_]]  # by column, of each of its names
    filled: NDArray[np.bool_]  # the columns that had no empty cells

    @property
    def bounded(self) -> bool:
        """True if any value can lie outside."""
        return self.range.bounded or any(map(len, self.categories))

    def rows_outside(self, x: NDArray[Any]) -> tuple[int, I8]:
        """Count the rows with a value or a name outside: in any column, and in each, (d,)."""
        outside = (x < self.range.low) | (x > self.range.high)
        for j, names in enumerate(self.categories):
            if names:
                outside[:, j] = ~np.append(self.seen[j], False)[codes_of(np.asarray(x[:, j], np.float64), names)]
        return int(outside.any(axis=1).sum()), outside.sum(axis=0)

    def empty(self, x: Any) -> I8:
        """Count the empty cells of numbers and dates in columns that had none, (d,)."""
        return (np.isnan(x) & self.filled).sum(axis=0)

    def in_columns(self, columns: I8, layout: Layout) -> "SeenRange":
        """Return the same for a table with other columns and names, of which ``columns`` are those of this one."""
        d = len(layout.kinds)
        low, high = np.full(d, -np.inf), np.full(d, np.inf)
        low[columns], high[columns] = self.range
        filled = np.zeros(d, bool)
        filled[columns] = self.filled
        seen = [np.ones(len(names), bool) for names in layout.names]
        for mine, j in enumerate(columns.tolist()):
            known = {n for n, s in zip(self.categories[mine], self.seen[mine], strict=True) if s}
            seen[j] = np.array([name in known for name in layout.names[j]], bool)
        return SeenRange(Range(low, high), layout.names, seen, filled)


def first_outside(range: Range | SeenRange, x: Any) -> list[tuple[int, I8]]:
    """Return the first few rows outside, by position, each with its columns outside, (k,)."""
    return list(islice(_outside_rows(range, x, 0), FEW))


def _outside_rows(range: Range | SeenRange, x: Any, start: int) -> Iterator[tuple[int, I8]]:
    """Yield the rows outside, of which x (n, *shape) is searched by halves; ``start`` is the position of the first."""
    count, columns = range.rows_outside(x)
    if count and x.shape[0] == 1:
        yield start, np.flatnonzero(columns)
    elif count:
        half = x.shape[0] // 2
        yield from _outside_rows(range, x[:half], start)
        yield from _outside_rows(range, x[half:], start + half)
