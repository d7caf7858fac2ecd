"""Tables written as csv and parquet files, block by block, whole or not at all."""

import csv as csv_writer
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv, parquet

from ntkdist.data import storage
from ntkdist.data.dataset import Kind
from ntkdist.data.sources import output_format
from ntkdist.data.zarr_groups import refuse_existing


@contextmanager
def writer(out: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Write a csv or parquet file from columns, block by block; it appears whole or not at all.

    Yields a function that takes the columns of some rows by name, of the same names and types every time; it has to be
    called once or more.
    """
    refuse_existing(out)
    make = parquet.ParquetWriter if output_format(out) == "parquet" else _CsvWriter
    file: Any = None
    with storage.new_file(out) as part:

        def write(columns: dict[str, Any]) -> None:
            nonlocal file
            batch = pa.record_batch(list(map(pa.array, columns.values())), names=list(columns))
            with storage.writing(out):
                file = file or make(part, batch.schema)
                file.write_batch(batch)

        try:
            yield write
        finally:
            if file is not None:
                file.close()


class _CsvWriter:
    """A csv file with quotes only where values need them; Arrow's own writer quotes all strings."""

    def __init__(self, path: Path, schema: Any) -> None:
        self.file = path.open("wb")
        header = io.StringIO()
        csv_writer.writer(header, lineterminator="\n").writerow(schema.names)
        self.file.write(header.getvalue().encode())

    def write_batch(self, batch: Any) -> None:
        """Write rows."""
        try:
            self.file.write(_csv(batch, "none"))
        except pa.ArrowInvalid:
            self.file.write(_csv(batch, "needed"))

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _csv(batch: Any, quoting: str) -> bytes:
    sink = pa.BufferOutputStream()
    csv.write_csv(batch, sink, csv.WriteOptions(include_header=False, quoting_style=quoting))
    return bytes(sink.getvalue().to_pybytes())


def decoded(values: NDArray[Any], kind: Kind, names: tuple[str, ...] = ()) -> Any:
    """Return stored values (n,) as an Arrow array: codes as their names, seconds as dates, NaN as null."""
    if values.dtype.kind != "f" and not names:
        return pa.array(values)
    missing = np.isnan(values.astype(np.float64))
    if kind == "category":
        codes = np.where(missing, 0, values).astype(np.int64)
        return pa.array(np.array([name or None for name in names], object)[codes], pa.string(), mask=missing)
    if kind == "date":
        microseconds = np.round(np.where(missing, 0, values) * 1e6).astype("datetime64[us]")
        return pa.array(microseconds, mask=missing)
    return pa.array(values, mask=missing)
