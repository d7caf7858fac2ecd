"""Tables read in blocks: csv, whose types are decided by a scan over the whole file, and parquet, which is typed."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet, types

from ntkdist.data import sources
from ntkdist.data.npy import readable
from ntkdist.data.sources import CODES, DTYPES, MAX_CLASSES, Block, Fields, RawTable, Wanted
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import nearest

MAX_CATEGORIES = 2**16  # names of a column
NUMBERS = ("int", "float", "bool")
PATTERNS = {
    "bool": "(?i)^(true|false)$",
    "date": r"^\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?$",
    "time": r"^\d\d?:\d\d(:\d\d(\.\d+)?)?$",
}
MOSTLY = 0.9  # share of a column's strings that are dates, above which another string is a mistake
MICROSECONDS = pa.timestamp("us")


@dataclass
class Column:
    """A column and the result of its scan; its kind depends on all values, and not on how they are cut into blocks."""

    name: str
    place: str  # for messages
    text: bool  # numbers are still text
    kinds: tuple[str, ...]  # kinds that every value so far can have, best first; none: a string
    most: int  # distinct values to keep
    values: set[Any] = field(default_factory=set)  # distinct ones; if they are more than most and null, not all
    first_null: int = -1
    dates: int = 0  # values that are written as dates are
    others: int = 0
    first_other: tuple[str, int] = ("", -1)  # a value that is not, and its row

    @property
    def kind(self) -> str:
        return self.kinds[0] if self.kinds else "string"

    def scan(self, values: Any, start: int) -> None:
        """Take note of a block of values, the first of which is in row ``start``."""
        if self.text:
            self._count_dates(values, start)
            self.kinds = tuple(k for k in self.kinds if _can_be(values, k))
        if len(self.values) <= self.most + 1:  # one more for null
            self.values |= set(pc.unique(values)[: self.most + 2].to_pylist())
        if self.first_null < 0 and (null := pc.index(pc.is_null(values, nan_is_null=True), True).as_py()) >= 0:
            self.first_null = start + null

    def _count_dates(self, values: Any, start: int) -> None:
        """Count the strings that are dates, until it is known that the column holds none."""
        if "date" not in self.kinds and not self.dates:
            return
        alike = pc.match_substring_regex(values, PATTERNS["date"])
        self.dates += pc.sum(alike).as_py() or 0
        self.others += pc.sum(pc.invert(alike)).as_py() or 0
        if self.first_other[1] < 0 and (at := pc.index(alike, False).as_py()) >= 0:
            self.first_other = str(values[at]), start + at

    def refuse_no_date(self) -> None:
        """Raise a `DataError` if nearly all strings are dates, and some are not."""
        if self.kind == "string" and self.others and self.dates > MOSTLY * (self.dates + self.others):
            raise self._no_date(*self.first_other)

    def _no_date(self, value: str, row: int) -> DataError:
        return DataError(
            f"{self.place} holds '{value}' in row {row}, which cannot be read as a date such as 2026-01-31 or "
            f"2026-01-31T09:30; mend it, or take the column's strings as names with --category {self.name}"
        )

    def seconds(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert dates and times to seconds since 1970-01-01 UTC, null to NaN; ``start`` is the row of the first."""
        if not pa.types.is_temporal(values.type):
            values = self._read_dates(values, start)
        elif not pa.types.is_date(values.type):
            values = values.cast(pa.timestamp("us", getattr(values.type, "tz", None)), safe=False)
        microseconds = values.cast(MICROSECONDS, safe=False).cast(pa.int64()).cast(pa.float64(), safe=False)
        return microseconds.to_numpy(zero_copy_only=False) / 1e6

    def _read_dates(self, values: Any, start: int) -> Any:
        """Read ISO dates and times; without an offset they are UTC."""
        with contextlib.suppress(pa.ArrowInvalid):
            return values.cast(MICROSECONDS)
        read: list[datetime | None] = []
        for i, value in enumerate(values.to_pylist()):
            try:
                read.append(None if value is None else datetime.fromisoformat(value))
            except ValueError:
                raise self._no_date(value, start + i) from None
        aware = [d.replace(tzinfo=d.tzinfo or UTC).astimezone(UTC).replace(tzinfo=None) if d else None for d in read]
        return pa.array(aware, MICROSECONDS)

    def typed(self, values: Any) -> Any:
        """Cast an Arrow array to integers, double, bool or string."""
        if self.text and self.kind == "bool":
            return pc.equal(pc.utf8_lower(values), "true")
        if self.kind == "string":
            return values.cast(pa.string())
        target = {"int": pa.int64() if self.text else values.type, "float": pa.float64(), "bool": pa.bool_()}
        return values.cast(target[self.kind])

    def numbers(self, values: Any) -> NDArray[np.float64]:
        """Convert values to float64, null to NaN."""
        return self.typed(values).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)

    def whole(self, values: Any) -> NDArray[Any]:
        """Convert values to NumPy, integers exactly; numbers with a null among them to float64, null to NaN."""
        if values.null_count and self.kind != "string":
            return self.numbers(values)
        return self.typed(values).to_numpy(zero_copy_only=False)

    def categories(self) -> list[str]:
        """Return the sorted distinct strings; null is the empty one."""
        categories = sorted({v or "" for v in self.values})
        if len(categories) > MAX_CATEGORIES:
            raise DataError(
                f"{self.place} holds strings with more than {MAX_CATEGORIES:,} distinct values; "
                f"leave it out with --drop {self.name}"
            )
        return categories

    def labels(self) -> Any:
        """Return the sorted distinct class labels as an Arrow array."""
        if self.first_null >= 0:
            raise DataError(f"{self.place} has no class label in row {self.first_null}; leave the row out or mend it")
        if len(self.values) > MAX_CLASSES:
            raise DataError(f"{self.place} has more than {MAX_CLASSES} distinct labels; is it a number to regress on?")
        values = pa.array(list(self.values), pa.string() if self.text else None)
        labels = sorted(set(self.typed(values).to_pylist()))
        if self.kind == "float" and (odd := [v for v in labels if not v.is_integer()]):
            raise DataError(f"{self.place} holds {odd[0]}, which is no class label; expected whole numbers or strings")
        return pa.array([int(v) for v in labels] if self.kind == "float" else labels)

    def codes(self, values: Any, labels: Any) -> NDArray[np.int32]:
        return pc.index_in(self.typed(values).cast(labels.type), value_set=labels).to_numpy()

    def expect(self, kinds: tuple[str, ...], use: str, remedy: str) -> None:
        """Raise a `DataError` unless the column is of one of some kinds."""
        if self.kind not in kinds:
            names = {"date": "dates", "time": "times", "nested": "lists, structures or bytes", "string": "strings"}
            held = names.get(self.kind, "numbers")
            raise DataError(f"{self.place} holds {held}, which cannot be {use}; turn it into numbers, or {remedy}")


def open_table(path: Path, wanted: Wanted, scratch: Path) -> RawTable:
    """Open a csv or parquet file: a scan over csv, or over the strings of parquet, comes before the reading pass."""
    if wanted.x != "x":
        raise SpecError(f"{path.name} has columns, no array '{wanted.x}'; --x is for npz files")
    kinds, batches = opened(path)
    apart = (*wanted.target, *wanted.drop, *wanted.beside().values())
    for name in wanted.category:
        if name not in kinds or name in apart:
            raise DataError(
                f"{path.name} has no input column '{name}' (named by --category)"
                f"{nearest(name, [n for n in kinds if n not in apart])}"
            )
    for name in apart:
        if name not in kinds:
            raise DataError(f"{path.name} has no column '{name}'{nearest(name, list(kinds))}")
        if apart.count(name) > 1:
            raise SpecError(
                f"column '{name}' is named twice among --target, --weight, --groups, --holdout and --drop; once is "
                "possible"
            )
    if wanted.classes and len(wanted.target) != 1:
        raise SpecError(f"{path.name}: classes need one target, got {len(wanted.target)}; name it with --target")
    columns = {
        n: Column(n, f"column '{n}' of {path.name}", not k, k or ("int", "float", *PATTERNS), MAX_CATEGORIES)
        for n, k in kinds.items()
        if n not in wanted.drop
    }
    for name in wanted.category:
        columns[name] = Column(name, columns[name].place, False, ("string",), MAX_CATEGORIES)
    batches = functools.partial(_with_names, batches, frozenset(wanted.category))
    for name in wanted.target:
        columns[name].most = MAX_CLASSES
    rows = 0
    for batch in batches(list(columns)):
        for name, column in columns.items():
            if column.text or column.kind == "string" or name in wanted.target:
                column.scan(batch[name], rows)
        rows += batch.num_rows
    return _raw_table(path, wanted, columns, rows, lambda: batches(list(columns)))


def opened(path: Path) -> tuple[dict[str, tuple[str, ...]], Callable[[list[str]], Iterator[Any]]]:
    """Open a csv or parquet file: the kinds of its columns, () where they are text, and batches of some columns."""
    with readable(path.name):
        return _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_csv(path)


def _raw_table(
    path: Path, wanted: Wanted, columns: dict[str, Column], rows: int, batches: Callable[[], Iterator[Any]]
) -> RawTable:
    """Check scanned columns against their use, and describe the rows they make."""
    beside = {role: columns[name] for role, name in wanted.beside().items()}
    inputs = [c for n, c in columns.items() if n not in (*wanted.target, *wanted.beside().values())]
    targets = [columns[n] for n in wanted.target]
    if not inputs:
        raise DataError(f"{path.name} has no columns left for the inputs; drop fewer")
    for column in inputs:
        column.expect((*NUMBERS, "string", "date"), "inputs", f"leave it out with --drop {column.name}")
        column.refuse_no_date()
    categories = {c.name: c.categories() for c in inputs if c.kind == "string"}
    dates = tuple(c.name for c in inputs if c.kind == "date")
    fields: Fields = {"x": (np.dtype(np.float64), (len(inputs),))}
    labels = None
    if len(targets) == 1 and (wanted.classes or targets[0].kind in ("string", "bool")):
        targets[0].expect((*NUMBERS, "string"), "class labels", "name another target")
        labels = targets[0].labels()
        fields["y"] = np.min_scalar_type(max(len(labels), 1) - 1), ()
    elif targets:
        for column in targets:
            column.expect(NUMBERS, "one of several targets" if targets[1:] else "a target", "name another target")
        fields["y"] = np.dtype(np.float64), (len(targets),) * (len(targets) > 1)
    for role, column in beside.items():
        kinds = (*NUMBERS, "string") if role == "groups" else NUMBERS
        column.expect(kinds, "weights" if role == "weight" else role, "name another column")
        fields[role] = DTYPES[role], ()
    row_bytes = sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in fields.values())

    def blocks() -> Iterator[Block]:
        count, at = max(1, sources.BLOCK_BYTES // row_bytes), 0
        for batch in batches():
            for start in range(0, batch.num_rows, count):
                part = batch.slice(start, count)
                block: Block = {"x": _inputs(part, inputs, categories, at)}
                if labels is not None:
                    block["y"] = targets[0].codes(part[targets[0].name], labels)
                elif targets:
                    y = np.stack([c.numbers(part[c.name]) for c in targets], axis=1)
                    block["y"] = y if targets[1:] else y[:, 0]
                for role, column in beside.items():
                    values = part[column.name]
                    code = CODES.get(role)
                    block[role] = code(column.whole(values), column.place, at) if code else column.numbers(values)
                at += part.num_rows
                yield block

    classes = () if labels is None else tuple(map(str, labels.to_pylist()))
    names = tuple(c.name for c in inputs)
    return RawTable(rows, fields, blocks, {"source": path}, classes, names, wanted.target, categories, dates)


def _inputs(batch: Any, inputs: list[Column], categories: dict[str, list[str]], start: int) -> NDArray[np.float64]:
    """Return the inputs (rows, columns) of a batch whose first row is ``start``: numbers, seconds, codes of strings."""
    x = np.empty((batch.num_rows, len(inputs)))
    for i, column in enumerate(inputs):
        values = batch[column.name]
        if known := categories.get(column.name):
            x[:, i] = column.codes(values.fill_null(""), pa.array(known))
        else:
            x[:, i] = column.seconds(values, start) if column.kind == "date" else column.numbers(values)
    return x


def _with_names(
    batches: Callable[[list[str]], Iterator[Any]], category: frozenset[str], columns: list[str]
) -> Iterator[Any]:
    """Yield batches in which integers that are categories are strings."""
    for batch in batches(columns):
        each = [named(n, batch[n]) if n in category else batch[n] for n in columns]
        yield pa.record_batch(each, names=columns)


def named(name: str, values: Any) -> Any:
    """Convert whole numbers to strings."""
    if types.is_floating(values.type):
        values = pc.if_else(pc.is_nan(values), None, values)
        try:
            values = values.cast(pa.int64())
        except pa.ArrowInvalid:
            raise DataError(
                f"column '{name}' (named by --category) holds fractions; name columns of integers or strings"
            ) from None
    return values.cast(pa.string())


def _open_csv(path: Path) -> tuple[dict[str, tuple[str, ...]], Callable[[list[str]], Iterator[Any]]]:
    """Return the columns, of kinds yet unknown, and a function that yields batches of text."""

    def opened(column_types: dict[str, Any]) -> Any:
        # one thread, so that an error names the row; newlines allowed, or a quoted one at a block's end is misparsed
        return csv.open_csv(
            path,
            csv.ReadOptions(use_threads=False, block_size=sources.BLOCK_BYTES // 2),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(column_types=column_types, strings_can_be_null=True),
        )

    with opened({}) as reader:
        names = _distinct(reader.schema.names, path)
    numbered = [[str(i) for i in range(k, k + len(names))] for k in (0, 1)]  # pandas' names of unnamed columns
    if all(map(_is_number, names)) and names not in numbered:
        raise DataError(f"{path.name}: its first row is all numbers ({names[0]}, …); expected the names of the columns")

    def batches(columns: list[str]) -> Iterator[Any]:
        with readable(path.name), opened({n: pa.string() for n in names}) as reader:
            for batch in reader:
                trimmed = [pc.utf8_trim_whitespace(batch[n]) for n in columns]
                yield pa.record_batch(trimmed, names=columns)

    return dict.fromkeys(names, ()), batches


def _open_parquet(path: Path) -> tuple[dict[str, tuple[str, ...]], Callable[[list[str]], Iterator[Any]]]:
    """Return the columns with their kinds, and a function that yields batches, dictionaries decoded to strings."""
    with parquet.ParquetFile(path) as file:
        schema = file.schema_arrow
    _distinct(schema.names, path)

    def batches(columns: list[str]) -> Iterator[Any]:
        with readable(path.name), parquet.ParquetFile(path, buffer_size=2**20) as file:
            count = max(1, sources.BLOCK_BYTES // (8 * len(columns)))
            for batch in file.iter_batches(count, columns=columns, use_threads=False):
                yield pa.record_batch([_decoded(batch[n]) for n in columns], names=columns)

    return {f.name: (_kind(f.type),) for f in schema}, batches


def _decoded(values: Any) -> Any:
    """Decode dictionaries, and cast any strings to Arrow's plain ones."""
    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode().cast(pa.string())
    return values.cast(pa.string()) if _kind(values.type) == "string" else values


def _kind(type: Any) -> str:
    if types.is_dictionary(type) or types.is_string(type) or types.is_large_string(type) or types.is_string_view(type):
        return "string"
    if types.is_boolean(type):
        return "bool"
    if types.is_integer(type):
        return "int"
    if types.is_floating(type) or types.is_decimal(type) or types.is_null(type):
        return "float"
    if types.is_date(type) or types.is_timestamp(type):
        return "date"
    return "time" if types.is_temporal(type) else "nested"


def _can_be(values: Any, kind: str) -> bool:
    """Return whether every string can be read as a kind of value."""
    if kind in PATTERNS:
        return bool(pc.all(pc.match_substring_regex(values, PATTERNS[kind]), min_count=0).as_py())
    with contextlib.suppress(pa.ArrowInvalid):
        values.cast(pa.int64() if kind == "int" else pa.float64())
        return True
    return False


def _is_number(name: str) -> bool:
    with contextlib.suppress(ValueError):
        float(name)
        return True
    return False


def _distinct(names: list[str], path: Path) -> list[str]:
    """Return names of columns, or raise a `DataError` if one occurs twice."""
    if twice := [n for n in names if names.count(n) > 1]:
        raise DataError(f"{path.name} has several columns named '{twice[0]}'; give each its own name in the first row")
    return names
