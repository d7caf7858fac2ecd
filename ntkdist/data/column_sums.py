"""Sums over the rows of a raw table, to which an encoding is fitted: moments, names, and a seeded sample of rows.

Legend: n rows, d raw columns, t columns of the targets, C names of all columns of categories, one column after another.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist import random
from ntkdist.data.dataset import Layout, Rows
from ntkdist.data.moments import Mode, Moments, MomentsOf
from ntkdist.errors import DataError

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
SAMPLE_ROWS, SAMPLE_BYTES = 32768, 32 * 2**20  # of the sample, whichever is less
SAMPLE, SPLIT = 2010, 2011  # roles of random streams, distinct from those of maps
PERIODIC = 6  # columns of the periods of a date: sine and cosine of the time of day, the day of the week, of the year
DAY, WEEK, YEAR = 86400.0, 7.0, 365.2425


@dataclass(frozen=True, eq=False)
class TableSample:
    """The ``size`` rows of smallest key, whatever the order and the cut of the data: a value with ``+`` and ``-``.

    Rows of keys above ``limit`` are not known.  A difference lacks the rows that only a larger sample would hold.
    """

    size: int
    keys: F8  # (k,), ascending
    x: F8  # (k, d)
    y: F8  # (k, t), or (k, 0) if targets are not needed
    weight: F8  # (k,), positive
    limit: float = np.inf

    def __add__(self, other: "TableSample") -> "TableSample":
        limit = min(self.limit, other.limit)
        keys = np.concatenate([self.keys, other.keys])
        order = np.argsort(keys, kind="stable")
        order = order[keys[order] <= limit]
        if len(order) > self.size:
            order = order[: self.size]
            limit = float(keys[order[-1]])
        x, y, weight = (
            np.concatenate(pair)[order] for pair in ((self.x, other.x), (self.y, other.y), (self.weight, other.weight))
        )
        return TableSample(self.size, keys[order], x, y, weight, limit)

    def __sub__(self, other: "TableSample") -> "TableSample":
        left = ~np.isin(self.keys, other.keys)
        return TableSample(self.size, self.keys[left], self.x[left], self.y[left], self.weight[left], self.limit)

    def __sizeof__(self) -> int:
        return sum(a.nbytes for a in (self.keys, self.x, self.y, self.weight))


@dataclass(frozen=True, eq=False)
class ColumnSums:
    """Sums over the rows of a table: a value with ``+`` and ``-``."""

    moments: Moments  # as of `MomentsOf`, NaN left out
    periods: Moments  # of `periodic` of every date
    missing: I8  # (2, d), rows with NaN: those without weight, and those with
    named: I8  # (C,), rows with weight of each name
    sums: F8  # (splits, C, 1 + t), Σ w and Σ w y of each name
    sample: TableSample

    def __add__(self, other: "ColumnSums") -> "ColumnSums":
        mine, theirs = self._values(), other._values()
        return ColumnSums(*(a + b for a, b in zip(mine, theirs, strict=True)))

    def __sub__(self, other: "ColumnSums") -> "ColumnSums":
        mine, theirs = self._values(), other._values()
        return ColumnSums(*(a - b for a, b in zip(mine, theirs, strict=True)))

    def _values(self) -> tuple[Any, ...]:
        return self.moments, self.periods, self.missing, self.named, self.sums, self.sample

    def __sizeof__(self) -> int:
        nbytes = self.missing.nbytes + self.named.nbytes + self.sums.nbytes
        return nbytes + sum(value.__sizeof__() for value in (self.moments, self.periods, self.sample))


@dataclass(frozen=True)
class ColumnSumsOf:
    """A summand: the `ColumnSums` of rows.

    With ``splits``, rows of fold 0 are dealt to as many parts by a hash of their place, each with its own ``sums``;
    rows of other folds are all of the first part.
    """

    mode: Mode
    layout: Layout
    splits: int = 1
    targets: bool = False  # whether the sample holds them

    @property
    def sample_rows(self) -> int:
        t = target_columns(self.layout) if self.targets else 0
        return min(SAMPLE_ROWS, max(1, SAMPLE_BYTES // (8 * (self.layout.row_values + t + 2))))

    @property
    def nbytes(self) -> int:
        """The bytes of a sum, at most."""
        d, t, names = self.layout.row_values, target_columns(self.layout), sum(map(len, self.layout.names))
        sampled = min(self.sample_rows, self.layout.rows) * (d + 2 + t * self.targets)
        return 8 * (sampled + names * (1 + self.splits * (1 + t)) + 5 * (d + t + PERIODIC * len(self.layout.dates)))

    def zero(self) -> ColumnSums:
        d, t = self.layout.row_values, target_columns(self.layout)
        names = sum(map(len, self.layout.names))
        sampled = np.zeros((0, d)), np.zeros((0, t if self.targets else 0)), np.zeros(0)
        return ColumnSums(
            MomentsOf(self.mode, self.layout).zero(),
            Moments.zeros(PERIODIC * len(self.layout.dates)),
            np.zeros((2, d), np.int64),
            np.zeros(names, np.int64),
            np.zeros((self.splits, names, 1 + t)),
            TableSample(self.sample_rows, np.zeros(0), *sampled),
        )

    def update(self, total: ColumnSums, rows: Rows) -> ColumnSums:
        assert rows.y is not None
        x = np.asarray(rows.x, np.float64).reshape(rows.n, -1)
        y, weight = encoded_targets(self.layout, rows.y), np.ones(rows.n) if rows.weight is None else rows.weight
        dates = np.flatnonzero([kind == "date" for kind in self.layout.kinds])
        periods = np.concatenate([periodic(x[:, j]) for j in dates], axis=1) if len(dates) else np.zeros((rows.n, 0))
        named, sums = self._names(x, y, weight, rows)
        return ColumnSums(
            MomentsOf(self.mode, self.layout).update(total.moments, rows),
            total.periods + Moments.of(periods, rows.weight, None, 0),
            total.missing + np.stack([np.isnan(x[some]).sum(axis=0) for some in (weight == 0, weight > 0)]),
            total.named + named,
            total.sums + sums,
            total.sample + self._sampled(x, y, weight, rows.places),
        )

    def _names(self, x: F8, y: F8, weight: F8, rows: Rows) -> tuple[I8, F8]:
        """Count the names of rows (n, d), and sum weights and targets by name."""
        split = split_of(rows.places, self.splits) if rows.fold <= 0 else np.zeros(rows.n, np.int64)
        counts, sums = [np.zeros(0, np.int64)], [np.zeros((self.splits, 0, 1 + y.shape[1]))]
        for j, names in enumerate(self.layout.names):
            if not names:
                continue
            k = len(names)
            code = codes_of(x[:, j], names)
            if (code < 0).any():
                raise DataError(
                    f"Column '{self.layout.columns[j]}' holds {x[code < 0, j][0]:g} in row "
                    f"{rows.places[code < 0][0]}, which is the code of none of its {k} names; convert again"
                )
            counts.append(np.bincount(code[weight > 0], minlength=k))
            at, wy = split * k + code, [weight, *(weight * column for column in y.T)]
            each = [np.bincount(at, values, self.splits * k).reshape(self.splits, k) for values in wy]
            sums.append(np.stack(each, axis=2))
        return np.concatenate(counts), np.concatenate(sums, axis=1)

    def _sampled(self, x: F8, y: F8, weight: F8, places: I8) -> TableSample:
        some = np.flatnonzero(weight > 0)
        keys = random.uniforms_of(places[some], 0, 0, SAMPLE)
        order = np.argsort(keys, kind="stable")[: self.sample_rows]
        some, keys, limit = some[order], keys[order], np.inf if len(order) == len(keys) else float(keys[order[-1]])
        y = y[some] if self.targets else np.zeros((len(some), 0))
        return TableSample(self.sample_rows, keys, x[some], y, weight[some], limit)


def target_columns(layout: Layout) -> int:
    """Return the columns of `encoded_targets`."""
    k = len(layout.classes)
    return 1 if k == 2 else k or max(layout.targets, 1)


def encoded_targets(layout: Layout, y: NDArray[Any]) -> F8:
    """Return targets as numbers, (n, t): those of a class 1 where it applies, the second of two classes alone."""
    k = len(layout.classes)
    if not k:
        return np.asarray(y, np.float64).reshape(len(y), -1)
    return (y[:, None] == (np.arange(1, 2) if k == 2 else np.arange(k))).astype(np.float64)


def codes_of(values: NDArray[Any], names: tuple[str, ...]) -> I8:
    """Return the codes of some rows; NaN is the name "", and what is no code is −1."""
    missing = np.isnan(values)
    code = np.where(missing, names.index("") if "" in names else -1, values)
    return np.where((code >= 0) & (code < len(names)), code, -1).astype(np.int64)


def split_of(places: I8, splits: int) -> I8:
    """Deal rows to parts by a hash of their places."""
    return np.floor(random.uniforms_of(places, 0, 0, SPLIT) * splits).astype(np.int64)


def periodic(seconds: F8) -> F8:
    """Return √2 sin and √2 cos of time of day, day of week and day of year of seconds since 1970 UTC, (n, 6)."""
    known = np.isfinite(seconds)
    day = np.floor(np.where(known, seconds, 0.0) / DAY).astype("datetime64[D]")
    of_year = (day - day.astype("datetime64[Y]").astype("datetime64[D]")).astype(np.float64)
    turns = np.stack([seconds / DAY % 1, np.floor(seconds / DAY) % WEEK / WEEK, of_year / YEAR], axis=1)
    turns[~known] = np.nan
    angle = 2 * np.pi * turns
    waves = np.stack([np.sin(angle), np.cos(angle)], axis=2)
    return np.sqrt(2.0) * waves.reshape(len(seconds), PERIODIC)
