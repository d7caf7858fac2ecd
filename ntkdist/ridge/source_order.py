"""An external sort of rows into the order of their source, by the array ``row``: each row's place in the source.

The first pass sorts each span of rows and writes it to a scratch array.  The second gathers each range of places from
the sorted spans; it reads the chunks that hold the range.

Memory of a task: a span of records, then two copies of a range of 64 MiB.  Scratch space: the size of the records,
inside the group, which appears at its place when it is complete.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ntkdist import random
from ntkdist.cluster import Client
from ntkdist.cluster.progress import Watch
from ntkdist.cluster.reduce import reduce_all
from ntkdist.cluster.shards import Part, Source
from ntkdist.data import storage, zarr_groups
from ntkdist.data.dataset import Dataset, Layout, Rows, Shard
from ntkdist.data.partitions import Content, partition_rows

RANGE_BYTES = 64 * 2**20
Order = Literal["source", "shuffled", "dataset"]  # in the source's order, to be sorted by `row`, or unknown
Sorted = tuple[int, NDArray[np.int64]]  # first row of a span, and offsets in it at which the ranges begin


class Table(Protocol):
    """A function from rows to records; each field becomes an array."""

    @property
    def record(self) -> np.dtype[Any]:
        """The names, types and shapes of the fields."""

    def __call__(self, rows: Rows) -> NDArray[Any]:
        """Return the records (n,) of some rows."""


def order_of(source: Source, client: Client | None, watch: Watch | None) -> Order:
    """Find the order of a dataset's rows by one pass over its array ``row``.

    It is "dataset" if there is no such array, or it is no permutation of the rows, as in a part of another dataset.
    """
    dataset, layout = source.dataset, source.layout
    assert isinstance(dataset, Dataset)
    shape, dtype = dataset.others().get("row", ((), ""))
    if shape != (layout.rows,) or np.dtype(dtype).kind not in "iu":
        return "dataset"
    part = reduce_all(source, PlacesOf(source), layout.rows_per_partition, client, "order", watch)
    surplus, moved = part.total.tolist()
    return "dataset" if surplus else "shuffled" if moved else "source"


def write(table: Table, source: Source, place: str, shuffled: bool, client: Client | None, watch: Watch | None) -> Part:
    """Create an array for each field and write all records; return their `Content`.

    With ``shuffled``, records are sorted by their field ``row``.
    """
    layout, record = source.layout, table.record
    rows, width = layout.rows, record.itemsize
    size = min(partition_rows(rows, (width,), np.uint8), layout.rows_per_partition)
    for name in record.names or ():
        zarr_groups.create_array(place, name, (rows, *record[name].shape), record[name].base, size)
    if not shuffled:
        return reduce_all(source, Written(table, place), size, client, "predict", watch)
    span = size * max(1, RANGE_BYTES // (size * width))
    scratch = f"unsorted-{uuid.uuid4().hex}"  # unique, as readers keep arrays open by name
    zarr_groups.create_array(place, scratch, (rows, width), np.uint8, size, chunks=-(-rows // span))
    ranges = np.arange(0, rows + span, span)
    sorted_spans = reduce_all(source, SortedSpans(table, place, scratch, ranges), size, client, "predict", watch)
    gathered = Gathered(place, scratch, record, span, sorted_spans.total)
    content = reduce_all(source, gathered, span, client, "sort", watch).total
    storage.remove(storage.join(place, scratch))
    return Part(content, sorted_spans.tally)


@dataclass(frozen=True)
class PlacesOf:
    """A summand: hashes of ``row`` less those of positions, in sum 0 for a permutation, and a count of moved rows."""

    source: Source

    def zero(self) -> NDArray[np.uint64]:
        return np.zeros(2, np.uint64)

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Any]:
        """Yield spans of the array ``row`` instead of rows."""
        for start, stop in shard.spans:
            yield column(self.source, "row", start, stop), np.arange(start, stop)

    def update(self, total: NDArray[np.uint64], span: Any) -> NDArray[np.uint64]:
        hashes, expected = (random.hashes(places, np.zeros(1, np.int64)) for places in span)
        row, position = span
        return total + np.array([(hashes - expected).sum(), np.count_nonzero(row != position)], np.uint64)


@dataclass(frozen=True)
class Written:
    """A summand that writes records at their rows' positions; the sum is the content."""

    table: Table
    place: str

    def zero(self) -> Content:
        return Content()

    def update(self, total: Content, rows: Rows) -> Content:
        return total + write_fields(self.place, rows.start, self.table(rows))


@dataclass(frozen=True)
class SortedSpans:
    """A summand that writes each span's records, sorted by ``row``, to scratch; the sum lists where ranges begin."""

    table: Table
    place: str
    scratch: str
    ranges: NDArray[np.int64]  # first place of each range, and the end of the last

    def zero(self) -> tuple[Sorted, ...]:
        return ()

    def update(self, total: tuple[Sorted, ...], rows: Rows) -> tuple[Sorted, ...]:
        records = self.table(rows)
        records = records[np.argsort(records["row"])]
        zarr_groups.write_rows(self.place, self.scratch, rows.start, records.view(np.uint8).reshape(len(records), -1))
        return (*total, (rows.start, np.searchsorted(records["row"], self.ranges)))


@dataclass(frozen=True)
class Gathered:
    """A summand that gathers ranges of records from sorted spans and writes them; the sum is the content."""

    place: str
    scratch: str
    record: np.dtype[Any]
    span: int
    spans: tuple[Sorted, ...]

    def zero(self) -> Content:
        return Content()

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Any]:
        """Yield each range, with its first place, instead of rows."""
        for start, stop in shard.spans:
            out = np.empty(stop - start, self.record)
            for records in self._pieces(start // self.span):
                out[records["row"].astype(np.int64) - start] = records
            yield start, out

    def _pieces(self, k: int) -> Iterator[NDArray[Any]]:
        """Read the records of range k from each span that has some."""
        for first, begins in self.spans:
            start, stop = (first + int(each) for each in begins[k : k + 2])
            if start < stop:
                piece = zarr_groups.read_rows(self.place, self.scratch, start, stop, self.scratch)
                yield np.ascontiguousarray(piece).reshape(-1).view(self.record)

    def update(self, total: Content, records: Any) -> Content:
        return total + write_fields(self.place, *records)


def first_rows(dataset: Dataset, layout: Layout, first: Sequence[tuple[int, list[str]]]) -> list[tuple[int, list[str]]]:
    """Return some rows by their rows in the source, from 0, or positions where these are not known; ascending."""
    rows = dataset.source_rows(layout, [place for place, _ in first]) if first else []
    return sorted((place if rows is None else rows[i], columns) for i, (place, columns) in enumerate(first))


def write_fields(place: str, start: int, records: NDArray[Any]) -> Content:
    """Write the fields of some records, an array each, and return their digests."""
    content = Content()
    for name in records.dtype.names or ():
        content += zarr_groups.write_content(place, name, start, np.ascontiguousarray(records[name]))
    return content


def column(source: Source, name: str, start: int, stop: int) -> NDArray[Any]:
    """Read some rows of one array of a source's dataset."""
    assert isinstance(source.dataset, Dataset)
    return source.dataset.column(source.layout, name, start, stop)
