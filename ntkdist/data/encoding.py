"""Encoding of tables: raw columns of numbers, dates and codes of categories to columns of numbers, all scaled.

It is fitted to `ColumnSums` of every fold, and part of a model.  Categories of many names become means of the targets,
for training rows those of the other folds: a *part* of the training rows is a fold, or where folds are too few to leave
enough rows, a share of one.

Legend: d raw columns, w weights, K names of a column, P parts, t columns of the targets.
"""

import functools
import hashlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkdist.data.category_tables import one_hot, target_means
from ntkdist.data.column_sums import (
    PERIODIC,
    ColumnSums,
    TableSample,
    codes_of,
    periodic,
    split_of,
    target_columns,
)
from ntkdist.data.dataset import Kind, Layout
from ntkdist.data.knots import bin_edges, in_bins, normal_quantiles, quantiles, tree_edges
from ntkdist.data.ranges import Range, SeenRange
from ntkdist.errors import DataError

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Front = Literal["standard", "quantile", "both", "bins", "target-bins"]
KNOTS = 1000  # quantiles of a column
SPLITS = 5  # parts of rows that no other fold can say something of
WAVES = ("time of day", "day of week", "day of year")
ARRAYS = (
    "fill",
    "mean",
    "scale",
    "low",
    "high",
    "indicator_mean",
    "period_mean",
    "edges",
    "bin_mean",
    "bin_scale",
    "seen",
)
PLAIN = ("kinds", "columns", "categories", "front", "one_hot", "impute", "splits", "indicators")


class Settings(Protocol):
    """The settings of `Preprocess` that an encoding follows."""

    @property
    def front(self) -> Front: ...
    @property
    def bins(self) -> int: ...
    @property
    def one_hot(self) -> int: ...
    @property
    def quantiles(self) -> tuple[float, float] | None: ...


class Limits(NamedTuple):
    """The limits and the scaling of raw columns, (d,) each."""

    mean: F8
    scale: F8
    low: F8
    high: F8


@dataclass(frozen=True, eq=False)
class Encoding:
    """A map from raw rows (n, d) to scaled rows (n, width), with tables for the rows of each part of the training rows.

    Columns follow in groups: scaled numbers and dates, normal quantiles or bins of numbers, marks of missing values,
    waves of dates, and categories.
    """

    kinds: tuple[Kind, ...]
    columns: tuple[str, ...]  # names of the raw columns
    categories: tuple[tuple[str, ...], ...]  # names of each column's codes; empty for numbers and dates
    front: Front
    one_hot: int  # names of a column that are one-hot, at most
    impute: bool  # whether numbers and dates may be missing
    splits: int  # parts of fold 0
    indicators: tuple[int, ...]  # raw columns with a mark of missing values
    fill: F8  # (d,), in place of what is missing
    mean: F8  # (d,)
    scale: F8  # (d,)
    low: F8  # (d,)
    high: F8  # (d,)
    indicator_mean: F8
    period_mean: F8  # (dates, 6); NaN for waves that do not vary
    edges: F8  # (numbers, knots), of quantiles or of bins; NaN behind the last
    bin_mean: F8  # (numbers, bins)
    bin_scale: F8  # (numbers,)
    seen: NDArray[np.uint8]  # (C,), 1 for names of rows with weight, of all columns
    tables: tuple[F8, ...]  # of each column of categories, (P + 1, K + 1, its width), see `target_means`

    @classmethod
    def fit(
        cls, settings: Settings, layout: Layout, folds: Sequence[ColumnSums], limits: Limits, impute: bool
    ) -> "Encoding":
        """Fit to the sums of every fold; ``limits`` are fitted to their moments."""
        total = functools.reduce(operator.add, folds)
        numeric, d = np.array([kind != "category" for kind in layout.kinds]), len(layout.kinds)
        x, y = total.moments.split(d)
        known = numeric & (x.weight > 0)
        neutral = zip(limits, (0.0, 1.0, -np.inf, np.inf), strict=True)
        mean, scale, low, high = (np.where(known, values, other) for values, other in neutral)
        marked = np.flatnonzero(known & (total.missing[1] > 0))
        weight = y.counts.sum() if layout.classes else y.weight[0]
        edges, bin_mean, bin_scale = _knots(settings, layout, total.sample)
        constant = total.periods.std <= 1e-6
        return cls(
            kinds=layout.kinds,
            columns=layout.columns or tuple(f"column {j}" for j in range(d)),
            categories=layout.names,
            front=settings.front,
            one_hot=settings.one_hot,
            impute=impute,
            splits=folds[0].sums.shape[0],
            indicators=tuple(marked.tolist()),
            fill=_medians(total.sample, numeric, mean),
            mean=mean,
            scale=scale,
            low=low,
            high=high,
            indicator_mean=1 - x.weight[marked] / weight,
            period_mean=np.where(constant, np.nan, total.periods.mean).reshape(-1, PERIODIC),
            edges=edges,
            bin_mean=bin_mean,
            bin_scale=bin_scale,
            seen=(total.named > 0).astype(np.uint8),
            tables=_tables(settings, layout, folds, total),
        )

    # What it makes of rows.

    def __call__(self, x: NDArray[Any], fold: int = -1, places: I8 | None = None) -> F8:
        """Encode raw rows (n, d); those of a ``fold`` that it was fitted to by what the others say.

        Where fold 0 has several parts, rows are dealt to them by their ``places``.

        Raises
        ------
        DataError
            If a number is infinite, or missing where it may not be.
        """
        x = np.asarray(x, np.float64)
        filled = self._filled(x)
        blocks = [self._scaled(filled), self._front(filled)]
        if self.indicators:
            blocks.append(np.isnan(x[:, self.indicators]) - self.indicator_mean)
        blocks += [self._waves(x[:, j], i) for i, j in enumerate(self._of("date"))]
        part = self._part(len(x), fold, places)
        for table, j in zip(self.tables, self._of("category"), strict=True):
            blocks.append(table[part if len(table) > 1 else -1, codes_of(x[:, j], self.categories[j])])
        return np.concatenate(blocks, axis=1)

    def for_fold(self, fold: int) -> "Encoding":
        """Return the encoding that knows nothing of a fold's targets; of several parts of fold 0, the whole."""
        part = self.splits - 1 + fold if fold > 0 or self.splits == 1 else -1
        tables = tuple(t[part : part + 1] if 0 <= part < len(t) - 1 else t[-1:] for t in self.tables)
        return replace(self, tables=tables)

    @property
    def parts(self) -> int:
        """The parts of the training rows that have means of their own; 0 without means of targets."""
        return max((len(table) for table in self.tables), default=1) - 1

    @property
    def width(self) -> int:
        """The number of columns that it makes."""
        return len(self._made)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns that it makes."""
        return tuple(name for name, _ in self._made)

    @property
    def source_column(self) -> I8:
        """The raw column that each column is made of, (width,)."""
        return np.array([j for _, j in self._made], np.int64)

    @property
    def had_gaps(self) -> NDArray[np.bool_]:
        """Marks of the raw columns that had empty cells in training, (d,)."""
        marked = np.isin(np.arange(len(self.kinds)), self.indicators)
        return marked | np.array(["" in names for names in self.categories], bool)

    @property
    def seen_range(self) -> "SeenRange":
        """The values and names that are not counted as new."""
        return SeenRange(Range(self.low, self.high), self.categories, self._seen_by_column(), ~self.had_gaps)

    @functools.cached_property
    def _made(self) -> list[tuple[str, int]]:
        return list(self._columns())

    def _columns(self) -> Iterator[tuple[str, int]]:
        for j in self._scaled_columns:
            yield self.columns[j], j
        for i, j in enumerate(self._of("number")):
            if self.front in ("quantile", "both"):
                yield f"{self.columns[j]} quantile", j
            elif self.front in ("bins", "target-bins"):
                for k in range(self._bins(i)):
                    yield f"{self.columns[j]} bin {k}", j
        for j in self.indicators:
            yield f"{self.columns[j]} missing", j
        for i, j in enumerate(self._of("date")):
            for k in np.flatnonzero(~np.isnan(self.period_mean[i])).tolist():
                yield f"{self.columns[j]} {WAVES[k // 2]} {('sine', 'cosine')[k % 2]}", j
        for table, j in zip(self.tables, self._of("category"), strict=True):
            yield from ((name, j) for name in self._category_names(j, table.shape[2]))

    def _category_names(self, j: int, width: int) -> list[str]:
        seen = [name for name, known in zip(self.categories[j], self._seen_by_column()[j], strict=True) if known]
        if len(self.categories[j]) <= self.one_hot:
            return [f"{self.columns[j]}={name}" for name in seen]
        targets = [f"{self.columns[j]} target{f' {k}' if width > 2 else ''}" for k in range(width - 1)]
        return [*targets, f"{self.columns[j]} count"]

    def _seen_by_column(self) -> list[NDArray[np.bool_]]:
        edges = np.cumsum([len(names) for names in self.categories])
        return np.split(self.seen.astype(bool), edges[:-1])

    def _of(self, kind: Kind) -> list[int]:
        return [j for j, each in enumerate(self.kinds) if each == kind]

    @property
    def _scaled_columns(self) -> list[int]:
        kinds = ("number", "date") if self.front in ("standard", "both") else ("date",)
        return [j for j, kind in enumerate(self.kinds) if kind in kinds]

    def _filled(self, x: F8) -> F8:
        """Return rows with their missing numbers and dates filled in."""
        numeric = [j for j, kind in enumerate(self.kinds) if kind != "category"]
        if np.isfinite(x[:, numeric]).all():
            return x
        if (infinite := np.isinf(x)).any():
            row, j = np.argwhere(infinite)[0]
            raise DataError(f"Column '{self.columns[j]}' is infinite in row {row}; mend the source")
        gaps = np.isnan(x)
        if not self.impute and (wrong := gaps[:, numeric]).any():
            row, i = np.argwhere(wrong)[0]
            raise DataError(
                f"Column '{self.columns[numeric[i]]}' has no value in row {row}, and the model was fitted to rows "
                'without missing values; mend the source, or fit with nan = "impute"'
            )
        return np.where(gaps, self.fill, x)

    def _scaled(self, x: F8) -> F8:
        columns = self._scaled_columns
        mean, scale = self.mean[columns], self.scale[columns]
        out = x[:, columns] - mean
        out /= scale
        Range(self.low[columns], self.high[columns]).scaled(mean, scale).clip(out)
        return out

    def _front(self, x: F8) -> F8:
        """Return the columns that are made of each number by its knots."""
        numbers, blocks = self._of("number"), [np.zeros((len(x), 0))]
        for i, j in enumerate(numbers if self.front != "standard" else ()):
            knots = self.edges[i][~np.isnan(self.edges[i])]
            if self.front in ("quantile", "both"):
                blocks.append(normal_quantiles(x[:, j], knots)[:, None])
            else:
                blocks.append((in_bins(x[:, j], knots) - self.bin_mean[i, : self._bins(i)]) * self.bin_scale[i])
        return np.concatenate(blocks, axis=1)

    def _bins(self, i: int) -> int:
        return int(np.count_nonzero(~np.isnan(self.edges[i]))) - 1

    def _waves(self, seconds: F8, i: int) -> F8:
        """Return the waves of a date that vary in the training rows, without their mean; 0 where it is missing."""
        waves = periodic(seconds) - self.period_mean[i]
        return np.nan_to_num(waves[:, ~np.isnan(self.period_mean[i])], nan=0.0)

    def _part(self, n: int, fold: int, places: I8 | None) -> I8 | int:
        """Return the part of rows of a fold, −1 for new rows and for folds that it was not fitted to."""
        if fold == 0 and self.splits > 1 and places is not None and self.parts:
            return split_of(places, self.splits)
        part = self.splits - 1 + fold
        return part if fold >= 0 and (fold > 0 or self.splits == 1) and part < self.parts else -1

    # What is saved.

    def digest(self) -> str:
        """Return a short hash, equal for equal encodings."""
        found = hashlib.sha256(repr([getattr(self, name) for name in PLAIN]).encode())
        for name, array in self.arrays().items():
            found.update(f"{name} {array.shape} {array.dtype.str}".encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return all arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS} | {f"table{i}": t for i, t in enumerate(self.tables)}

    def plain(self) -> dict[str, Any]:
        """Return all else, as the plain objects of JSON, with the shapes of arrays that hold nothing."""
        empty = {name: array.shape for name, array in self.arrays().items() if not array.size}
        return {name: getattr(self, name) for name in PLAIN} | {"tables": len(self.tables), "empty": empty}

    @classmethod
    def of_saved(cls, plain: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> "Encoding":
        """Make the encoding of what `plain` and `arrays` returned; empty arrays may be absent."""
        every = {name: np.zeros(shape) for name, shape in plain["empty"].items()} | dict(arrays)
        rest = {name: _tuples(plain[name]) for name in PLAIN}
        return cls(
            **rest, **{n: every[n] for n in ARRAYS}, tables=tuple(every[f"table{i}"] for i in range(plain["tables"]))
        )


def needed(layout: Layout, settings: Settings, nan: str) -> bool:
    """Return whether rows may have to be encoded, or quantiles be known; if only for missing values, the data decide.

    Images, and sparse rows, are never encoded.
    """
    if layout.sparse or len(layout.input_shape) != 1:
        return False
    return bool(
        layout.categories or layout.dates or settings.front != "standard" or settings.quantiles or nan == "impute"
    )


def by_parts(layout: Layout, settings: Settings) -> bool:
    """Return whether a column has so many names that its codes become means of the targets."""
    return any(len(names) > settings.one_hot for names in layout.names)


def widest(layout: Layout, settings: Settings, nan: str) -> int:
    """Bound the columns that an encoding of a layout can make."""
    kinds, t = layout.kinds, target_columns(layout)
    numbers, dates = kinds.count("number"), kinds.count("date")
    of_number = {"standard": 1, "quantile": 1, "both": 2}.get(settings.front, settings.bins)
    marks = (len(layout.missing) or numbers + dates) if nan == "impute" else 0
    coded = [n if n <= settings.one_hot else t + 1 for n in map(len, layout.names) if n]
    return numbers * of_number + dates * (1 + PERIODIC) + marks + sum(coded)


def _knots(settings: Settings, layout: Layout, sample: TableSample) -> tuple[F8, F8, F8]:
    """Return the knots of every number, and means and a factor of their bins."""
    numbers = [j for j, kind in enumerate(layout.kinds) if kind == "number"] if settings.front != "standard" else []
    bins = settings.front in ("bins", "target-bins")
    edges = np.full((len(numbers), settings.bins + 1 if bins else KNOTS), np.nan)
    mean, scale = np.zeros((len(numbers), settings.bins if bins else 0)), np.ones(len(numbers) if bins else 0)
    for i, j in enumerate(numbers):
        some = ~np.isnan(sample.x[:, j])
        x, weight = sample.x[some, j], sample.weight[some]
        if not bins:
            found = quantiles(x, weight, np.linspace(0, 1, min(KNOTS, max(len(x), 2))))
        elif settings.front == "bins":
            found = bin_edges(x, weight, settings.bins)
        else:
            found = tree_edges(x, sample.y[some], weight, settings.bins)
        edges[i, : len(found)] = found
        if bins and len(x):
            z = in_bins(x, found)
            mean[i, : len(found) - 1] = weight @ z / weight.sum()
            spread = float((weight @ (z - mean[i, : len(found) - 1]) ** 2).sum() / weight.sum())
            scale[i] = 1 / np.sqrt(spread) if spread > 0 else 1.0
    return edges, mean, scale


def _medians(sample: TableSample, numeric: NDArray[np.bool_], mean: F8) -> F8:
    """Return the medians of numbers and dates in a sample; NaN for categories, which are not filled."""
    out = np.where(numeric, mean, np.nan)
    for j in np.flatnonzero(numeric):
        some = ~np.isnan(sample.x[:, j])
        if some.any():
            out[j] = quantiles(sample.x[some, j], sample.weight[some], np.array([0.5]))[0]
    return out


def _tables(settings: Settings, layout: Layout, folds: Sequence[ColumnSums], total: ColumnSums) -> tuple[F8, ...]:
    """Return the table of each column of categories: one-hot, or of means and counts."""
    parts = np.concatenate([folds[0].sums, *(fold.sums[:1] for fold in folds[1:])])
    tables, at = [], 0
    for names in layout.names:
        if not names:
            continue
        mine = slice(at, at + len(names))
        at += len(names)
        seen = total.named[mine] > 0
        few = len(names) <= settings.one_hot
        tables.append(one_hot(parts[:, mine, 0].sum(axis=0), seen) if few else target_means(parts[:, mine]))
    return tuple(tables)


def _tuples(value: Any) -> Any:
    """Convert lists to tuples, all the way down."""
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value
