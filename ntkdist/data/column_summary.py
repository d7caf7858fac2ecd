"""Summary of what the columns of a dataset hold, counted while it is written and kept in its attributes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ntkdist.data import zarr_groups
from ntkdist.data.dataset import FORMAT, Dataset, Layout
from ntkdist.data.source_files import flags
from ntkdist.data.sources import DTYPES, RawTable
from ntkdist.display import aligned, date

ATTRIBUTE = "summary"  # of a dataset
INDEX_NAMES = ("", "index", "unnamed: 0", "__index_level_0__")
ROLES = {"x": "input", "y": "target"}
LABELS = 20  # distinct whole numbers of a target, at most, that may be labels
SHOWN = 4  # names of a column that are shown
WIDTH = 40  # characters of them


class ColumnSummary(msgspec.Struct, frozen=True):
    """A column: its role, its kind, the range of its numbers or how many names it has, and how many are missing."""

    name: str
    role: str  # "input", "target", "weight", "groups" or "holdout"
    kind: str  # "number", "date", "category"; of a target "number" or "class"
    low: float | None = None  # least number; of a date in seconds since 1970-01-01 UTC
    high: float | None = None
    levels: int | None = None  # names of a category or classes
    missing: int | None = None  # rows; None where that was not counted
    names: tuple[str, ...] = ()  # the first of its levels


class Columns(msgspec.Struct, frozen=True):
    """The columns of a dataset, and notes of its conversion; as text, a table."""

    dataset: str
    rows: int
    columns: tuple[ColumnSummary, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.table()

    def table(self, most: int | None = None) -> str:
        """Write the table, of ``most`` columns at most, as text."""
        shown = self.columns if most is None else self.columns[:most]
        rows = [("column", "role", "kind", "values", "missing"), *map(_row, shown)]
        lines = [aligned(rows)]
        if len(self.columns) > len(shown):
            lines.append(f"… and {len(self.columns) - len(shown):,} more: ntkdist columns {self.dataset}")
        return "\n".join([*lines, *(f"Note: {note}." for note in self.notes)])


def columns(dataset: str | Dataset) -> Columns:
    """Describe the columns of a dataset, as counted when it was converted; no row is read.

    Parameters
    ----------
    dataset : str or Dataset
        Path or URL.

    Returns
    -------
    Columns
        A value whose ``columns`` have name, role, kind, range or number of names, and count of missing values, and
        whose ``notes`` say what to look at, such as a column that only counts the rows; ``str`` makes a table of it.
        Ranges and counts are None where a dataset was not converted from a source, or by a version without them.

    Raises
    ------
    DataError
        If there is no such dataset.
    """
    of = Dataset(dataset) if isinstance(dataset, str) else dataset
    layout = of.layout(labelled=False)
    kept = zarr_groups.read_attributes(of.store, (FORMAT,))[1].get(ATTRIBUTE, {})
    counted = {(role, name): numbers for role, name, *numbers in kept.get("columns", ())}
    found = [_summary(*each, counted.pop(each[:2], [None] * 3)) for each in _described(layout)]
    found += [
        _summary(role, name, "number", (), numbers) for (role, name), numbers in counted.items() if role in DTYPES
    ]
    return Columns(of.store, layout.rows, tuple(found), tuple(kept.get("notes", ())))


def _summary(role: str, name: str, kind: str, names: tuple[str, ...], numbers: Sequence[Any]) -> ColumnSummary:
    """Return the summary of a column from its names and its least, greatest and missing numbers."""
    low, high, missing = numbers
    if kind not in ("category", "class"):
        return ColumnSummary(name, role, kind, low, high, missing=missing)
    present = tuple(each for each in names[: SHOWN + 1] if each)  # "" is that of missing ones
    count = len(names) - ("" in names[:1])
    return ColumnSummary(name, role, kind, levels=count, missing=missing, names=present[:SHOWN])


def _described(layout: Layout) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Yield role, name, kind and names of the inputs and targets of a layout."""
    if layout.columns:
        for name, kind, names in zip(layout.columns, layout.kinds, layout.names, strict=True):
            yield "input", name, kind, names
    else:
        yield "input", _whole(layout.input_shape), "number", ()
    if layout.labelled:
        for name in _target_names(layout.target_names, max(layout.targets, 1)):
            yield "target", name, "class" if layout.classes else "number", layout.classes


def _whole(shape: Sequence[int]) -> str:
    return f"x ({' × '.join(map(str, shape))})"


def _target_names(names: Sequence[str], count: int) -> Sequence[str]:
    return names or (["y"] if count == 1 else [f"y {i}" for i in range(count)])


class Counts:
    """Ranges, missing values and notes of a raw table, counted over its blocks in their order."""

    def __init__(self, source: RawTable) -> None:
        self.source, self.rows = source, 0
        self.low: dict[str, NDArray[Any]] = {}
        self.high: dict[str, NDArray[Any]] = {}
        self.missing: dict[str, NDArray[Any]] = {}
        self.counting = np.ones((2, len(source.columns)), bool)  # whether a column has counted the rows from 0, from 1
        self.labels: NDArray[Any] | None = np.empty(0)  # distinct whole numbers of one target; None if it holds others
        firsts = [source.categories.get(name, ["-"])[:1] for name in source.columns]
        self.nameless = np.array([first == [""] for first in firsts], np.bool_)  # code 0 is a missing name

    def add(self, block: Mapping[str, NDArray[Any]]) -> None:
        """Count the next block of rows."""
        for role, values in block.items():
            table = values if role == "y" and values.ndim == 2 else values.reshape(len(values), -1)
            table = table if role == "y" or (role == "x" and self.source.columns) else table.reshape(-1, 1)
            gaps = np.isnan(table).sum(axis=0) if table.dtype.kind == "f" else np.zeros(table.shape[1], np.int64)
            if role == "x" and self.nameless.any():
                gaps = gaps + (table == 0).sum(axis=0) * self.nameless
            self.missing[role] = self.missing.get(role, 0) + gaps
            low: NDArray[Any] = np.fmin.reduce(table, axis=0)
            high: NDArray[Any] = np.fmax.reduce(table, axis=0)
            self.low[role] = np.fmin(self.low[role], low) if role in self.low else low
            self.high[role] = np.fmax(self.high[role], high) if role in self.high else high
        still = np.flatnonzero(self.counting.any(axis=0))
        if len(still):
            places = self.rows + np.arange(len(block["x"]))[:, None]
            self.counting[:, still] &= [(block["x"][:, still] == places + first).all(axis=0) for first in (0, 1)]
        self._count_labels(block.get("y"))
        self.rows += len(block["x"])

    def _count_labels(self, y: NDArray[Any] | None) -> None:
        if self.labels is None or y is None:
            return
        distinct = np.union1d(self.labels, y) if y.size == len(y) else np.full(1, np.nan)
        whole = bool((distinct == np.rint(distinct)).all()) and len(distinct) <= LABELS
        self.labels = distinct if whole else None

    def attribute(self) -> dict[str, Any]:
        """Return what a dataset keeps: role, name, least, greatest, missing of every column, and notes."""
        each = []
        for role, counts in self.missing.items():
            for i, name in enumerate(self._names(role, len(counts))):
                low, high = (_finite(values[role][i]) for values in (self.low, self.high))
                bounds = [None, None] if role == "groups" else [low, high]  # which may be hashes of names
                each.append([ROLES.get(role, role), name, *bounds, int(counts[i])])
        return {"columns": each, "notes": list(self.notes())}

    @property
    def gaps(self) -> list[str]:
        """The columns of numbers or dates with missing values."""
        named = zip(self.source.columns, self.missing["x"], self.nameless, strict=False)
        return [name for name, count, nameless in named if count and not nameless]

    def _names(self, role: str, count: int) -> Sequence[str]:
        if role == "x":
            return self.source.columns or [_whole(self.source.fields["x"][1])]
        return _target_names(self.source.target_names, count) if role == "y" else [role]

    def notes(self) -> Iterator[str]:
        """Say what a person should look at before a fit."""
        yield from self.source.notes
        named = zip(self.source.columns, map(any, self.counting.T), strict=True)
        numbers = [(name, counts) for name, counts in named if name not in self.source.categories]
        if indices := [n for n, counts in numbers if (counts and self.rows > 2) or n.lower() in INDEX_NAMES]:
            names = ", ".join(f"'{name}'" for name in indices)
            yield f"{names} numbers the rows, which says nothing of new ones; leave out with {flags('drop', indices)}"
        labels = self.labels if "y" in self.source.fields and not self.source.classes else None
        if labels is not None and len(labels) > 1 and self.rows >= 10 * len(labels):
            yield (
                f"the target holds {len(labels)} whole numbers, from {labels[0]:.0f} to {labels[-1]:.0f}, taken as "
                "numbers to regress on; --classes takes them as labels"
            )
        if gaps := self.gaps:
            counts = dict(zip(self.source.columns, self.missing["x"].tolist(), strict=True))
            each = ", ".join(f"'{name}' {counts[name]:,}" for name in gaps[:SHOWN]) + ", …" * (len(gaps) > SHOWN)
            yield f'numbers are missing ({each}), so that fit needs nan = "impute", or "drop" to leave these rows out'


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _row(column: ColumnSummary) -> tuple[str, ...]:
    missing = "" if column.missing is None else f"{column.missing:,}"
    return column.name or "''", column.role, column.kind, _values(column), missing


def _values(column: ColumnSummary) -> str:
    """Return the range of a column, or its names, as text."""
    if column.levels is not None:
        names = ", ".join(column.names)
        names = names if len(names) <= WIDTH else f"{names[:WIDTH]}…"
        return f"{column.levels:,}: {names}{', …' * (column.levels > len(column.names))}"
    if column.low is None or column.high is None:
        return ""
    low, high = (date(v) if column.kind == "date" else f"{v:.6g}" for v in (column.low, column.high))
    return f"{low} … {high}"
