"""Tables as sources: csv (text, decided by one scan over the whole file) and parquet (typed)."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ntkdist.data import sources
from ntkdist.data.npy import readable
from ntkdist.data.side_columns import CODES, DTYPES
from ntkdist.data.sources import MAX_CLASSES, Block, RawTable, Wanted
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import nearest

MAX_CATEGORIES = 256
NUMBERS = ("int", "float", "bool")
PATTERNS = {
    "bool": "(?i)^(true|false)$",
    "time": r"^(\d{4}-\d\d-\d\d([ T]\d\d:\d\d.*)?|\d\d?:\d\d(:\d\d(\.\d+)?)?)$",
}


@dataclass
class Column:
    """A column, and what a scan learns of it; what it can be is decided by all its values, in whatever blocks."""

    name: str
    place: str  # for messages
    text: bool  # numbers are still text
    kinds: tuple[str, ...]  # what every value so far can be, best first; none: a string
    most: int  # distinct values worth remembering
    values: set[Any] | None = field(default_factory=set)  # None: more than that
    first_null: int = -1

    @property
    def kind(self) -> str:
        return self.kinds[0] if self.kinds else "string"

    def see(self, values: Any, start: int) -> None:
        import pyarrow.compute as pc

        if self.text:
            self.kinds = tuple(k for k in self.kinds if _can_be(values, k))
        if self.values is not None:
            found = pc.unique(values)
            self.values = None if len(found) > self.most + 1 else self.values | set(found.to_pylist())
            if self.values is not None and len(self.values) > self.most + 1:  # one more for null
                self.values = None
        null = pc.index(pc.is_null(values, nan_is_null=True), True).as_py() if self.first_null < 0 else -1
        self.first_null = start + null if null >= 0 else self.first_null

    def typed(self, values: Any) -> Any:
        """Values of an Arrow array as int64, double, bool or string."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.text and self.kind == "bool":
            return pc.equal(pc.utf8_lower(values), "true")
        if self.kind == "string":
            return values.cast(pa.string())
        types = {"int": values.type if not self.text else pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
        return values.cast(types[self.kind])

    def numbers(self, values: Any) -> NDArray[np.float64]:
        """Values as float64, null as NaN."""
        import pyarrow as pa

        found: NDArray[np.float64] = self.typed(values).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        return found

    def whole(self, values: Any) -> NDArray[Any]:
        """Values as NumPy has them, integers exact; with a null among them, numbers as float64 and null as NaN."""
        if values.null_count and self.kind != "string":
            return self.numbers(values)
        found: NDArray[Any] = self.typed(values).to_numpy(zero_copy_only=False)
        return found

    def categories(self) -> list[str]:
        """Sorted distinct strings; null is the empty one."""
        if self.values is None or len({v or "" for v in self.values}) > MAX_CATEGORIES:
            raise DataError(
                f"{self.place} holds strings with more than {MAX_CATEGORIES} distinct values; "
                f"leave it out with --drop {self.name}"
            )
        return sorted({v or "" for v in self.values})

    def labels(self) -> Any:
        """Sorted distinct class labels, as an Arrow array."""
        import pyarrow as pa

        if self.first_null >= 0:
            raise DataError(f"{self.place} has no class label in row {self.first_null}; leave the row out or mend it")
        if self.values is None or len(self.values) > MAX_CLASSES:
            raise DataError(f"{self.place} has more than {MAX_CLASSES} distinct labels; is it a number to regress on?")
        values = pa.array(list(self.values), pa.string()) if self.text else pa.array(list(self.values))
        found = sorted(set(self.typed(values).to_pylist()))
        if self.kind == "float" and (odd := [v for v in found if not v.is_integer()]):
            raise DataError(f"{self.place} holds {odd[0]}, which is no class label; expected whole numbers or strings")
        return pa.array([int(v) for v in found] if self.kind == "float" else found)

    def codes(self, values: Any, labels: Any) -> NDArray[np.int32]:
        """Position of each value among the labels."""
        import pyarrow.compute as pc

        found: NDArray[np.int32] = pc.index_in(self.typed(values).cast(labels.type), value_set=labels).to_numpy()
        return found

    def expect(self, kinds: tuple[str, ...], use: str, remedy: str) -> None:
        if self.kind not in kinds:
            said = {"time": "dates or times", "nested": "lists, structures or bytes", "string": "strings"}
            found = said.get(self.kind, "numbers")
            raise DataError(f"{self.place} holds {found}, which cannot be {use}; turn it into numbers, or {remedy}")


def open_table(path: Path, wanted: Wanted, scratch: Path) -> RawTable:
    """A csv or parquet file as a `Source`: two passes over csv, one over parquet plus one over its strings.

    Raises
    ------
    DataError
        If the file is damaged, a column is absent, or cannot become numbers or class labels.
    SpecError
        If the columns asked for contradict each other.
    """
    if wanted.x != "x":
        raise SpecError(f"{path.name} has columns, no array '{wanted.x}'; --x is for npz files")
    with readable(path.name):
        kinds, batches = _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_csv(path)
    apart = (*wanted.target, *wanted.drop, *wanted.beside().values())
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
        n: Column(n, f"column '{n}' of {path.name}", not k, k or ("int", "float", "bool", "time"), MAX_CATEGORIES)
        for n, k in kinds.items()
        if n not in wanted.drop
    }
    for name in wanted.target:
        columns[name].most = MAX_CLASSES
    rows = 0
    for batch in batches(list(columns)):
        for name, column in columns.items():
            if column.text or column.kind == "string" or name in wanted.target:
                column.see(batch[name], rows)
        rows += batch.num_rows
    return _source(path, wanted, columns, rows, lambda: batches(list(columns)))


def _source(
    path: Path, wanted: Wanted, columns: dict[str, Column], rows: int, batches: Callable[[], Iterator[Any]]
) -> RawTable:
    beside = {role: columns[name] for role, name in wanted.beside().items()}
    inputs = [c for n, c in columns.items() if n not in (*wanted.target, *wanted.beside().values())]
    targets = [columns[n] for n in wanted.target]
    if not inputs:
        raise DataError(f"{path.name} has no columns left for the inputs; drop fewer")
    for column in inputs:
        column.expect((*NUMBERS, "string"), "inputs", f"leave it out with --drop {column.name}")
    categories = {c.name: c.categories() for c in inputs if c.kind == "string"}
    names = [n for c in inputs for n in ([f"{c.name}={v}" for v in categories.get(c.name, ())] or [c.name])]
    fields: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {"x": (np.dtype(np.float64), (len(names),))}
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
                block: Block = {"x": _inputs(part, inputs, categories, len(names))}
                if labels is not None:
                    block["y"] = targets[0].codes(part[targets[0].name], labels)
                elif targets:
                    y = np.stack([c.numbers(part[c.name]) for c in targets], axis=1)
                    block["y"] = y if targets[1:] else y[:, 0]
                for role, column in beside.items():
                    values = column.numbers if role == "weight" else column.whole
                    block[role] = values(part[column.name])
                    if role in CODES:
                        block[role] = CODES[role](block[role], column.place, at)
                at += part.num_rows
                yield block

    return RawTable(
        rows,
        fields,
        blocks,
        files={"source": path},
        classes=() if labels is None else tuple(str(v) for v in labels.to_pylist()),
        columns=tuple(names),
        target_names=wanted.target,
    )


def _inputs(batch: Any, inputs: list[Column], categories: dict[str, list[str]], width: int) -> NDArray[np.float64]:
    import pyarrow as pa

    x, at = np.empty((batch.num_rows, width)), 0
    for column in inputs:
        values = batch[column.name]
        if known := categories.get(column.name):
            codes = column.codes(values.fill_null(""), pa.array(known))
            x[:, at : at + len(known)] = codes[:, None] == np.arange(len(known))
        else:
            x[:, at] = column.numbers(values)
        at += len(known) if known else 1
    return x


def _open_csv(path: Path) -> tuple[dict[str, tuple[str, ...]], Callable[[list[str]], Iterator[Any]]]:
    """Columns, of kinds yet unknown, and a function that yields batches of text."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    def opened(types: dict[str, Any]) -> Any:
        # one thread, so that an error names the row; newlines allowed, or a quoted one at a block's border misparses
        return csv.open_csv(
            path,
            csv.ReadOptions(use_threads=False, block_size=sources.BLOCK_BYTES // 2),
            csv.ParseOptions(newlines_in_values=True),
            csv.ConvertOptions(column_types=types, strings_can_be_null=True),
        )

    with opened({}) as reader:
        names = _distinct(reader.schema.names, path)
    numbered = [[str(i) for i in range(k, k + len(names))] for k in (0, 1)]  # as pandas names columns without names
    if all(map(_is_number, names)) and names not in numbered:
        raise DataError(f"{path.name}: its first row is all numbers ({names[0]}, …); expected the names of the columns")

    def batches(columns: list[str]) -> Iterator[Any]:
        with readable(path.name), opened({n: pa.string() for n in names}) as reader:
            for batch in reader:
                trimmed = [pc.utf8_trim_whitespace(batch[n]) for n in columns]
                yield pa.record_batch(trimmed, names=columns)

    return dict.fromkeys(names, ()), batches


def _open_parquet(path: Path) -> tuple[dict[str, tuple[str, ...]], Callable[[list[str]], Iterator[Any]]]:
    """Columns with their kinds, and a function that yields batches; dictionaries are decoded to strings."""
    import pyarrow as pa
    from pyarrow import parquet

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
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        return values.dictionary_decode().cast(pa.string())
    return values.cast(pa.string()) if _kind(values.type) == "string" else values


def _kind(type: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(type) or types.is_string(type) or types.is_large_string(type) or types.is_string_view(type):
        return "string"
    if types.is_boolean(type):
        return "bool"
    if types.is_integer(type):
        return "int"
    if types.is_floating(type) or types.is_decimal(type) or types.is_null(type):
        return "float"
    return "time" if types.is_temporal(type) else "nested"


def _can_be(values: Any, kind: str) -> bool:
    """Whether each of some strings can be read as one kind of value."""
    import pyarrow as pa
    import pyarrow.compute as pc

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
    twice = [n for n in names if names.count(n) > 1]
    if twice:
        raise DataError(f"{path.name} has several columns named '{twice[0]}'; give each its own name in the first row")
    return names
