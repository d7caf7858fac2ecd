"""New rows of tables in the columns of a model, read block by block.

Columns are taken by name and read as what they held in training, whatever they look like here, and others are ignored.
"""

import contextlib
import csv as csv_reader  # Arrow's does not say in which line a row is
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ntkdist.data.columns import PATTERNS, Column, named
from ntkdist.data.dataset import HELD, Kind
from ntkdist.data.frames import Known
from ntkdist.data.source_files import TEXT, Format, SourceFiles, ending
from ntkdist.data.table_files import opened
from ntkdist.errors import DataError
from ntkdist.spec import nearest

READ_AS: Mapping[str, tuple[str, ...]] = {  # kinds of columns of parquet files
    "number": ("int", "float", "bool", "string", "time"),
    "date": ("date", "string", "float"),  # of which all are null
    "category": ("string", "int", "float", "bool"),
}


class Block(NamedTuple):
    """Some rows of a file: inputs of the model, (n, d) with codes of names or images in bytes, and columns kept.

    An unknown name has the code −1; an empty cell is NaN.
    """

    x: NDArray[Any]
    kept: dict[str, Any]  # Arrow arrays, or others that can become such, by name


@dataclass(frozen=True)
class NewTable:
    """Files of a table, opened to read the columns of a model, and others to keep as they are, by name."""

    files: SourceFiles
    form: Format
    batches: Callable[[list[str]], Iterator[Any]]
    inputs: Sequence["NewColumn"]
    keep: Sequence[str]
    ignored: Sequence[str]  # columns that are neither

    @classmethod
    def open(
        cls, files: SourceFiles, form: Format, columns: Sequence[str], known: Known, keep: Sequence[str]
    ) -> "NewTable":
        """Open files.

        Raises
        ------
        DataError
            If a file cannot be opened, or a column is missing or of another kind than in training.
        """
        kinds, batches = opened(files, form)
        for name in (*columns, *keep):
            if name not in kinds:
                raise DataError(
                    f"{files.name} has no column '{name}', which {_use(name, keep)}{nearest(name, list(kinds))}"
                )
        inputs = [NewColumn.of(name, files, form, kinds[name], known) for name in columns]
        ignored = [name for name in kinds if name not in columns and name not in keep]
        return cls(files, form, batches, inputs, list(keep), ignored)

    @property
    def name(self) -> str:
        return self.files.name

    def places(self, rows: Sequence[int]) -> list[str]:
        """Return the words for ascending rows."""
        return places(self.files, self.form, rows)

    def blocks(self) -> Iterator[Block]:
        """Read block by block.

        Raises
        ------
        DataError
            If a value cannot be read; the row is named.
        """
        at, names = 0, list(dict.fromkeys([*(column.column.name for column in self.inputs), *self.keep]))
        for batch in _one_or_more(self.batches, names):
            read = [column.read(batch[column.column.name], at) for column in self.inputs]
            yield Block(np.stack(read, axis=1), {name: batch[name] for name in self.keep})
            at += batch.num_rows


def place(files: SourceFiles, form: Format, row: int) -> str:
    """Return the words for a row of data, numbered from 0: in csv the line in which it begins, as editors count."""
    words = places(files, form, [row])[0]
    return f"{words} (counted from 0)" if words.startswith("row") else words


def places(files: SourceFiles, form: Format, rows: Sequence[int]) -> list[str]:
    """Return the words for ascending rows of data, numbered from 0, by one reading."""
    if form.sep or all(ending(path.name) in TEXT for path in files.paths):
        with contextlib.suppress(csv_reader.Error):  # a cell longer than Python's reader takes
            return list(_lines(files, form, rows))
    return [f"row {row:,}" for row in rows]


def _lines(files: SourceFiles, form: Format, rows: Sequence[int]) -> Iterator[str]:
    """Yield the lines of csv files, from 1, in which ascending rows of data begin; cells may span lines."""
    wanted, start = iter(rows), 0
    row = next(wanted, None)
    for path in files.paths:
        of = f" of {path.name}" * (len(files.paths) > 1)
        unpack: Any = gzip.open if path.suffix.lower() == ".gz" else open
        encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
        with unpack(path, "rt", encoding=encoding, errors="replace", newline="") as file:
            reader = csv_reader.reader(file, delimiter=form.separator(path))
            at, last = start - form.header, 0
            for cells in reader:
                if cells and at == row:
                    yield f"line {last + 1:,}{of}"
                    row = next(wanted, None)
                if row is None:
                    return
                at, last = at + bool(cells), reader.line_num  # empty lines are no rows
            start = at


def _one_or_more(batches: Callable[[list[str]], Iterator[Any]], columns: list[str]) -> Iterator[Any]:
    """Yield batches, or an empty one of text if there are none."""
    batch = None
    for batch in batches(columns):
        yield batch
    if batch is None:
        yield pa.record_batch([pa.array([], pa.string()) for _ in columns], names=columns)


def _use(name: str, keep: Sequence[str]) -> str:
    return "is to be kept" if name in keep else "the model was fitted to"


@dataclass(frozen=True)
class NewColumn:
    """A column of a file that is read as what it held in training."""

    column: Column
    files: SourceFiles
    form: Format
    kind: Kind
    names: tuple[str, ...]  # of the codes of a category

    @classmethod
    def of(cls, name: str, files: SourceFiles, form: Format, types: tuple[str, ...], known: Known) -> "NewColumn":
        """Prepare to read a column; refuse one whose type cannot be what it was in training."""
        kind = known.kinds.get(name, "number")
        words = f"column '{name}' of {files.name}"
        text = len(types) != 1
        if not text and types[0] not in READ_AS[kind]:
            held = {"date": "dates", "time": "times", "string": "strings", "nested": "lists or structures"}
            raise DataError(
                f"{words} holds {held.get(types[0], 'numbers')}, but {HELD[kind]} in training; convert it as then"
            )
        return cls(Column(name, words, text, (), 0), files, form, kind, known.categories.get(name, ()))

    def read(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert a block of values, of which the first is in row ``start``, to numbers; null is NaN."""
        converts = {"category": self._codes, "date": self._seconds, "number": self._numbers}
        convert: Callable[[Any, int], NDArray[np.float64]] = converts[self.kind]
        try:
            numbers = convert(values, start)
        except (DataError, pa.ArrowInvalid):
            self._refuse(values, start, convert)
            raise
        if (infinite := np.isinf(numbers)).any():
            row = int(infinite.argmax())
            raise DataError(
                f"{self.column.place} holds '{values[row]}' in {place(self.files, self.form, start + row)}, but finite "
                f"{HELD[self.kind]} in training; mend it"
            )
        return np.asarray(numbers)

    def _codes(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert names to the codes of training, others to −1, null to NaN."""
        words = named(self.column.name, values)
        codes = pc.index_in(words, value_set=pa.array(self.names, pa.string())).fill_null(-1).cast(pa.float64())
        return np.asarray(pc.if_else(pc.is_null(words), np.nan, codes))

    def _seconds(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert dates, or their text, to seconds, null to NaN; refuse numbers."""
        if not pa.types.is_floating(values.type):
            return self.column.seconds(values, start)
        numbers = np.asarray(values.to_numpy(zero_copy_only=False), np.float64)
        if not np.isnan(numbers).all():
            raise DataError(f"{self.column.place} holds numbers, but dates in training; convert it as then")
        return numbers

    def _numbers(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert numbers, booleans, and times of a day, or their text, to float64, null to NaN."""
        if not pa.types.is_string(values.type):
            if pa.types.is_temporal(values.type):
                return self.column.clock(values, start)
            return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        is_bool, is_time = (pc.match_substring_regex(values, PATTERNS[kind]) for kind in ("bool", "time"))
        if pc.any(is_bool).as_py():
            digits = pc.if_else(pc.equal(pc.utf8_lower(values), "true"), "1", "0")
            values = pc.if_else(is_bool, digits, values)
        times = self.column.clock(pc.if_else(is_time, values, None), start) if pc.any(is_time).as_py() else None
        others = values if times is None else pc.if_else(is_time, None, values)
        numbers = np.asarray(others.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
        return numbers if times is None else np.where(np.isnan(times), numbers, times)

    def _refuse(self, values: Any, start: int, convert: Callable[[Any, int], Any]) -> None:
        """Raise a DataError that names the first value that cannot be read."""
        for i in range(len(values)):
            try:
                convert(values.slice(i, 1), start + i)
            except (DataError, pa.ArrowInvalid):
                raise DataError(
                    f"{self.column.place} holds '{values[i]}' in {place(self.files, self.form, start + i)}, but "
                    f"{HELD[self.kind]} in training; mend it, or leave it empty if training had empty ones"
                ) from None
