"""Rows written in the order of the source: an external sort by the array ``row``, each row's place in the source.

One pass over the data sorts each span of rows by it and writes the span to a scratch array; a second gathers each range
of places from the sorted spans, of which it reads the chunks that hold them.

Memory of a task: a span of records, then a range of 64 MiB of them twice.  Scratch: the size of the records, in the
group itself, which is not there before it is whole.
"""

import uuid
from collections.abc import Iterator
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
from ntkdist.data.dataset import Dataset, Rows, Shard
from ntkdist.data.partitions import Content, partition_rows

RANGE_BYTES = 64 * 2**20
Order = Literal["source", "shuffled", "dataset"]  # as rows lie in the source, to be sorted by `row`, or not known
Sorted = tuple[int, NDArray[np.int64]]  # first row of a span, and where in it each range begins


class Table(Protocol):
    """A value for every row: a record, whose fields become arrays."""

    @property
    def record(self) -> np.dtype[Any]:
        """Names, types and shapes of the fields."""

    def __call__(self, rows: Rows) -> NDArray[Any]:
        """Records (n,) of some rows."""


def order_of(source: Source, client: Client | None, watch: Watch | None) -> Order:
    """Find the order of a dataset's rows by one pass over its array ``row``.

    It is not known where there is none, or it is not a permutation of the rows, as of a part of another dataset.
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
    """Create an array for each field and write the records of all rows, by ``row`` if shuffled, else as they lie.

    Returns
    -------
    Part
        The `Content` of what was written, and what was counted of the rows.
    """
    layout, record = source.layout, table.record
    rows, width = layout.rows, record.itemsize
    size = min(partition_rows(rows, (width,), np.uint8), layout.rows_per_partition)
    for name in record.names or ():
        zarr_groups.create_array(place, name, (rows, *record[name].shape), record[name].base, size)
    if not shuffled:
        return reduce_all(source, Written(table, place), size, client, "predict", watch)
    span = size * max(1, RANGE_BYTES // (size * width))
    scratch = f"unsorted-{uuid.uuid4().hex}"  # which names its content, too, for readers that keep arrays open
    zarr_groups.create_array(place, scratch, (rows, width), np.uint8, size, chunks=-(-rows // span))
    ranges = np.arange(0, rows + span, span)
    sorted_spans = reduce_all(source, SortedSpans(table, place, scratch, ranges), size, client, "predict", watch)
    gathered = Gathered(place, scratch, record, span, sorted_spans.total)
    content = reduce_all(source, gathered, span, client, "sort", watch).total
    storage.remove(storage.join(place, scratch))
    return Part(content, sorted_spans.tally)


@dataclass(frozen=True)
class PlacesOf:
    """Hashes of ``row`` less those of the rows' positions, 0 of a permutation, and how many rows are moved."""

    source: Source

    def zero(self) -> NDArray[np.uint64]:
        return np.zeros(2, np.uint64)

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Any]:
        """Yield spans of the one array, in place of what would be read."""
        for start, stop in shard.spans:
            yield column(self.source, "row", start, stop), np.arange(start, stop)

    def update(self, total: NDArray[np.uint64], span: Any) -> NDArray[np.uint64]:
        row, at = span
        names, theirs = (random.hashes(each, np.zeros(1, np.int64)) for each in (row, at))
        return total + np.array([(names - theirs).sum(), np.count_nonzero(row != at)], np.uint64)


@dataclass(frozen=True)
class Written:
    """Records written where their rows lie; the sum is the content."""

    table: Table
    place: str

    def zero(self) -> Content:
        return Content()

    def update(self, total: Content, rows: Rows) -> Content:
        return total + write_fields(self.place, rows.start, self.table(rows))


@dataclass(frozen=True)
class SortedSpans:
    """Records of each span, sorted by ``row`` and written to a scratch array; the sum says where the ranges lie."""

    table: Table
    place: str
    scratch: str
    ranges: NDArray[np.int64]  # the first place of each, and one behind the last

    def zero(self) -> tuple[Sorted, ...]:
        return ()

    def update(self, total: tuple[Sorted, ...], rows: Rows) -> tuple[Sorted, ...]:
        found = self.table(rows)
        found = found[np.argsort(found["row"])]
        zarr_groups.write_rows(self.place, self.scratch, rows.start, found.view(np.uint8).reshape(len(found), -1))
        return (*total, (rows.start, np.searchsorted(found["row"], self.ranges)))


@dataclass(frozen=True)
class Gathered:
    """Ranges of records, gathered from sorted spans and written; the sum is the content."""

    place: str
    scratch: str
    record: np.dtype[Any]
    span: int
    spans: tuple[Sorted, ...]

    def zero(self) -> Content:
        return Content()

    def blocks(self, shard: Shard, read: Iterator[Rows]) -> Iterator[Any]:
        """Yield ranges, in place of what would be read."""
        for start, stop in shard.spans:
            out = np.empty(stop - start, self.record)
            for found in self._pieces(start // self.span):
                out[found["row"].astype(np.int64) - start] = found
            yield start, out

    def _pieces(self, k: int) -> Iterator[NDArray[Any]]:
        for first, begins in self.spans:
            start, stop = (first + int(each) for each in begins[k : k + 2])
            if start < stop:
                found = zarr_groups.read_rows(self.place, self.scratch, start, stop, self.scratch)
                yield np.ascontiguousarray(found).reshape(-1).view(self.record)

    def update(self, total: Content, found: Any) -> Content:
        return total + write_fields(self.place, *found)


def write_fields(place: str, start: int, records: NDArray[Any]) -> Content:
    """Write the fields of some records, an array each, and digest them."""
    content = Content()
    for name in records.dtype.names or ():
        content += zarr_groups.write_content(place, name, start, np.ascontiguousarray(records[name]))
    return content


def column(source: Source, name: str, start: int, stop: int) -> NDArray[Any]:
    """Read some rows of one array of the dataset of a source."""
    assert isinstance(source.dataset, Dataset)
    return source.dataset.column(source.layout, name, start, stop)
