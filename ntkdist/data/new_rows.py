"""New rows of tables in the columns of a model, read block by block; and tables written beside them.

Columns are taken by name and read as what they held in training, whatever they look like here, and others are ignored.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from ntkdist.data import storage
from ntkdist.data.columns import PATTERNS, Column, named
from ntkdist.data.dataset import Kind
from ntkdist.data.frames import WORDS, Known
from ntkdist.data.source_files import Format, SourceFiles
from ntkdist.data.table_files import opened
from ntkdist.data.zarr_groups import refuse_existing
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import nearest

READ_AS: Mapping[str, tuple[str, ...]] = {  # kinds of columns of parquet files
    "number": ("int", "float", "bool", "string", "time"),
    "date": ("date", "string"),
    "category": ("string", "int", "float", "bool"),
}


class Block(NamedTuple):
    """Some rows of a file: inputs of the model (n, d) with codes of names, −1 for unknown ones, and columns kept."""

    x: NDArray[np.float64]
    kept: dict[str, Any]  # Arrow arrays by name
    unknown: dict[str, int]  # how many names were not in training, by column


def blocks(
    files: SourceFiles, form: Format, columns: Sequence[str], known: Known, keep: Sequence[str]
) -> Iterator[Block]:
    """Read the columns of a model, and others to keep as they are, block by block.

    Raises
    ------
    DataError
        If a column is missing or of another kind than in training, or a value cannot be read; the row is named.
    """
    kinds, batches = opened(files, form)
    for name in (*columns, *keep):
        if name not in kinds:
            raise DataError(
                f"{files.name} has no column '{name}', which {_use(name, keep)}{nearest(name, list(kinds))}"
            )
    inputs = [NewColumn.of(name, files.name, kinds[name], known) for name in columns]
    at = 0
    for batch in _one_or_more(batches, list(dict.fromkeys([*columns, *keep]))):
        read = [column.read(batch[column.column.name], at) for column in inputs]
        codes = {c.column.name: x for c, x in zip(inputs, read, strict=True) if c.kind == "category"}
        unknown = {name: int((x < 0).sum()) for name, x in codes.items() if (x < 0).any()}
        yield Block(np.stack(read, axis=1), {name: batch[name] for name in keep}, unknown)
        at += batch.num_rows


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
    kind: Kind
    names: tuple[str, ...]  # of the codes of a category

    @classmethod
    def of(cls, name: str, table: str, types: tuple[str, ...], known: Known) -> "NewColumn":
        """Prepare to read a column; refuse one whose type cannot be what it was in training."""
        kind = known.kinds.get(name, "number")
        place = f"column '{name}' of {table}"
        text = len(types) != 1
        if not text and types[0] not in READ_AS[kind]:
            held = {"date": "dates", "time": "times", "string": "strings", "nested": "lists or structures"}
            raise DataError(
                f"{place} holds {held.get(types[0], 'numbers')}, but {WORDS[kind]} in training; convert it as then"
            )
        return cls(Column(name, place, text, (), 0), kind, known.categories.get(name, ()))

    def read(self, values: Any, start: int) -> NDArray[np.float64]:
        """Convert a block of values, of which the first is in row ``start``, to numbers; null is NaN."""
        if self.kind == "category":
            words = named(self.column.name, values)
            codes = pc.index_in(words.fill_null(""), value_set=pa.array(self.names, pa.string())).fill_null(-1)
            return np.asarray(codes.cast(pa.float64()))
        convert = self.column.seconds if self.kind == "date" else self._numbers
        try:
            return convert(values, start)
        except (DataError, pa.ArrowInvalid):
            self._refuse(values, start, convert)
            raise

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
                    f"{self.column.place} holds '{values[i]}' in row {start + i}, but {WORDS[self.kind]} in training; "
                    "mend it, or leave it empty if training had empty ones"
                ) from None


@contextlib.contextmanager
def writer(out: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write a csv or parquet file from columns, block by block; it appears whole or not at all.

    Yields a function that takes the columns of some rows by name, of the same names and types every time; it has to be
    called once or more.
    """
    if not out.lower().endswith((".csv", ".parquet")):
        raise SpecError(f"{out} is neither a csv nor a parquet file by its ending; name it so")
    if not storage.is_local(out):
        raise SpecError(f"{out} is in an object store; write a local file, and copy it there")
    refuse_existing(out)
    final = storage.local_path(out).absolute()
    part = storage.unfinished(final)
    make = parquet.ParquetWriter if final.suffix.lower() == ".parquet" else csv.CSVWriter
    file: Any = None

    def write(columns: dict[str, Any]) -> None:
        nonlocal file
        batch = pa.record_batch(list(map(pa.array, columns.values())), names=list(columns))
        with storage.writing(out):
            file = file or make(part, batch.schema)
            file.write_batch(batch)

    try:
        yield write
        with storage.writing(out):
            file.close()
            os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)
