"""Groups of arrays in Zarr v3, written so that they can be verified: the only module that uses Zarr's arrays.

Arrays are sharded by rows; a shard is a partition, the unit of writing and of work.  Every inner chunk is stored, also
one of zeros, and ends in a CRC32C checksum; the group's attribute ``complete`` is written last.  A chunk that is
missing, short or damaged is therefore never read as data.
"""

import functools
import math
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from ntkdist.data import storage
from ntkdist.data.partitions import Content, chunks_per_partition, partition_rows
from ntkdist.data.source_files import is_table
from ntkdist.errors import Damaged, DataError, StoreError
from ntkdist.spec import nearest

T = TypeVar("T")
PAUSES = (0.1, 0.4)  # seconds before each new attempt to read
AT_ONCE = 4  # partitions that are encoded together
WRITER = "written_by"  # attribute of a group that is not complete: an identifier of its writer
DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError)  # what Zarr raises on unexpected metadata
READ_ERRORS = (*DAMAGED, OSError, RuntimeError, zarr.errors.BaseZarrError)


def open_group(url: str, *kinds: str) -> zarr.Group:
    """Open a finished group of one of the given kinds for reading; refuse any other."""
    try:
        group = _open(url)
    except READ_ERRORS as error:
        storage.exists(url)  # raises the right error if the bucket does not exist
        raise DataError(f"{url}: no Zarr v3 group found there ({type(error).__name__}); check the path") from None
    kind = group.attrs.get("kind")
    if kind not in kinds:
        raise DataError(f"{url}: expected a group of kind {' or '.join(kinds)}, got {kind}; check the path")
    if not group.attrs.get("complete"):
        raise DataError(f"{url}: the group was never finished (no 'complete' mark); write it again")
    return group


def open_foreign(url: str) -> zarr.Group:
    """Open a group that others wrote, of any Zarr version; refuse what ntkdist has written."""
    try:
        group = _patiently(lambda: zarr.open_group(storage.open_plain_store(url), mode="r"))
    except READ_ERRORS as error:
        raise DataError(f"{url}: no Zarr group can be opened there ({type(error).__name__}); check the path") from None
    if (kind := str(group.attrs.get("kind", ""))).startswith("ntkdist."):
        raise DataError(f"{url} is a group of kind {kind} already; use it as it is, or convert its source again")
    return group


class ForeignArray(NamedTuple):
    """An array of a group that others wrote; its chunks that were never written hold fill values."""

    name: str  # for messages
    array: zarr.Array[Any]

    @classmethod
    def of(cls, group: zarr.Group, key: str, name: str) -> "ForeignArray":
        return cls(name, member(name, group, key))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype("U1") if self.array.dtype.kind in "TO" else np.dtype(self.array.dtype)  # strings of any length

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * max(np.dtype(self.array.dtype).itemsize, 1)

    def blocks(self, count: int, scratch: Path) -> Iterator[NDArray[Any]]:
        """Yield blocks of ``count`` rows; whole chunks are read at a time, so that none is decoded twice."""
        size = (self.array.shards or self.array.chunks)[0] if self.shape else 1
        parts: list[NDArray[Any]] = []
        for start in range(0, self.shape[0], size * max(1, count // size)):
            parts.append(self._read(start, start + size * max(1, count // size)))
            rows = np.concatenate(parts)
            whole = len(rows) // count * count
            yield from (rows[i : i + count] for i in range(0, whole, count))
            parts = [rows[whole:]]
        if parts and len(parts[0]):
            yield parts[0]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        try:
            values = _patiently(lambda: np.asarray(self.array[start:stop]))
        except READ_ERRORS as error:
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{self.name} cannot be read ({why}); mend the group or get it again") from error
        return np.array(values.tolist(), np.str_) if values.dtype.kind in "TO" else values


def refuse_existing(url: str) -> None:
    if finished(url):
        raise StoreError(f"{url} exists already; choose another destination or remove it")


def finished(url: str) -> bool:
    """Return whether something exists at a URL, other than a group in a bucket whose writer has not finished it."""
    # on a file system an unfinished group has another name
    return storage.exists(url) and (storage.is_local(url) or not _writer(url))


def _writer(url: str) -> str:
    try:
        return str(_open(url).attrs.get(WRITER, ""))
    except READ_ERRORS:
        return ""


@contextmanager
def new_group(url: str, kind: str, attrs: Mapping[str, Any]) -> Iterator[str]:
    """Create a group that appears whole or not at all.

    Yields the URL to write arrays into, by any process, with `create_array` and `write_rows`.  At the end of the block
    the group gets its attributes (``attrs`` as they are then) and is marked complete.  On a file system it is written
    under another name and then renamed to ``url``; a bucket cannot rename.  If the block fails, everything is removed.
    """
    if is_table(url):
        raise StoreError(f"{url} is the name of a table, but a Zarr group is a directory; end it in .zarr")
    refuse_existing(url)
    place, writer = url, uuid.uuid4().hex
    if storage.is_local(url):
        place = str(storage.unfinished(storage.local_path(url).absolute()))
    storage.remove(place)
    try:
        with storage.writing(url):
            store = storage.open_store(place)
            zarr.open_group(store, mode="w-", zarr_format=3, attributes={"kind": kind, WRITER: writer})
        yield place
        with storage.writing(url):
            group = zarr.open_group(store, mode="r+", zarr_format=3)
            if group.attrs.get(WRITER) != writer:
                raise StoreError(f"{url} was begun by another process meanwhile; choose another destination")
            members = sorted(group.members(max_depth=None))
            arrays = {name: describe(array) for name, array in members if isinstance(array, zarr.Array)}
            group.attrs.put({"kind": kind, "version": 1, **attrs, "arrays": arrays, "complete": True})
            if place != url:
                os.replace(place, storage.local_path(url))
    except BaseException:
        with suppress(StoreError):  # the store itself may be what failed
            if storage.is_local(url) or _writer(place) == writer:
                storage.remove(place)
        raise


def create_array(
    url: str,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    rows_per_partition: int,
    row_chunks: int = 1,
    chunks: int = 1,
) -> None:
    """Create an empty array in the group at ``url``, sharded by partition, every chunk with a checksum.

    ``row_chunks`` is the number of chunks that a row of a two-dimensional array is divided into.  A partition is
    divided into ``chunks``, or the next smaller number that divides its rows; into more if they would be too large.
    """
    asked = max(k for k in range(1, min(chunks, rows_per_partition) + 1) if rows_per_partition % k == 0)
    k = max(asked, chunks_per_partition(rows_per_partition, shape[1:], dtype))
    inner = (shape[1] // row_chunks,) if row_chunks > 1 else shape[1:]
    with storage.writing(url):
        zarr.open_group(storage.open_store(url), mode="r+", zarr_format=3).create_array(
            name,
            shape=shape,
            dtype=dtype,
            shards=(rows_per_partition, *shape[1:]),
            chunks=(rows_per_partition // k, *inner),
            compressors=_codecs(),
            fill_value=0,
        )


def _codecs() -> list[Any]:
    return [ZstdCodec(level=1), Crc32cCodec()]


def write_rows(url: str, name: str, start: int, values: NDArray[Any]) -> None:
    """Write whole shards of an array; writing the same rows again changes nothing."""
    with storage.writing(url), zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(storage.open_store(url), path=name, mode="r+", zarr_format=3)
        size, stop = (array.shards or array.chunks)[0], start + len(values)
        if start % size or (stop % size and stop != array.shape[0]):
            raise ValueError(f"rows {start}–{stop - 1} are not whole shards of {size} rows")
        array[start:stop] = values


def write_content(url: str, name: str, start: int, values: NDArray[Any]) -> Content:
    """Write whole shards as `write_rows` does, of values of the array's type, and digest them in a second thread."""
    with ThreadPoolExecutor(1) as pool:
        content = pool.submit(Content.of, name, start, values)
        write_rows(url, name, start, values)
        return content.result()


def write_whole(url: str, name: str, values: NDArray[Any]) -> None:
    """Create an array and write it a few partitions at a time, to bound the memory that encoding takes."""
    n = partition_rows(max(len(values), 1), values.shape[1:], values.dtype, at_least=1)
    create_array(url, name, values.shape, values.dtype, n)
    for start in range(0, len(values) if values.size else 0, AT_ONCE * n):
        write_rows(url, name, start, values[start : start + AT_ONCE * n])


@functools.cache  # the threads stay
def warm() -> None:
    """Start the threads that Zarr decodes on, and load its codecs."""
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, shape=(64, 8), shards=(64, 8), chunks=(1, 8), dtype="f4", compressors=_codecs())
    array[:] = 1
    array[:]


def find(url: str, name: str) -> str:
    """Return the URL of the group ``name`` inside a run directory, or ``url`` itself if there is no such group."""
    inner = storage.join(url, name)
    return inner if storage.exists(inner) else url


def read_attributes(url: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    group = open_group(url, *kinds)
    return str(group.attrs["kind"]), dict(group.attrs)


def read_whole(url: str, name: str) -> NDArray[Any]:
    """Read a whole array, verified as in `read_rows`."""
    return read_rows(url, name, 0, member(url, _open(url), name).shape[0])


def read_rows(url: str, name: str, start: int, stop: int, fingerprint: str = "") -> NDArray[Any]:
    """Read rows of an array; a missing shard is an error, and every chunk is checked against its checksum.

    ``fingerprint`` identifies the content, so that an array that is already open can be used again; without, it is
    opened anew.  A missing or damaged chunk raises `Damaged`, a failure of the operating system a `StoreError`.
    """
    array = _opened(url, name, fingerprint) if fingerprint else member(url, _open(url), name)
    try:
        return _patiently(lambda: np.asarray(array[start:stop]))
    except storage.MissingChunk as error:
        size = (array.shards or array.chunks)[0]
        first = int((re.findall(r"\d+", error.key.removeprefix(array.path)) or [0])[0]) * size
        rows = f"rows {first}–{min(first + size, array.shape[0]) - 1}"
        raise Damaged(f"{url}: {error} ({rows}); restore it or convert again") from None
    except READ_ERRORS as error:
        message = f"{url}: array '{name}', rows {start}–{stop - 1}, cannot be read ({' '.join(str(error).split())})"
        if isinstance(error, OSError):
            raise StoreError(f"{message}; see what is wrong with the disk or the network, and run again") from error
        raise Damaged(f"{message}; restore the file or convert again") from error


def _patiently(read: Callable[[], T]) -> T:
    """Read with retries: I/O errors and checksum failures can be transient."""
    for pause in PAUSES:
        try:
            return read()
        except FileNotFoundError:
            raise
        except READ_ERRORS:
            time.sleep(pause * random.uniform(0.5, 1))
    return read()


def member(url: str, group: zarr.Group, name: str) -> zarr.Array[Any]:
    """Open an array of a group by name."""
    with _opening(url):
        array = _patiently(lambda: group.get(name))
        others = [] if isinstance(array, zarr.Array) else _patiently(lambda: sorted(group.array_keys()))
    if not isinstance(array, zarr.Array):
        raise DataError(f"{url}: no array '{name}'{nearest(name, others)}")
    return array


def has(url: str, group: zarr.Group, name: str) -> bool:
    with _opening(url):
        return _patiently(lambda: name in group)


@contextmanager
def _opening(url: str) -> Iterator[None]:
    """Translate Zarr's errors while arrays are opened into a `DataError`."""
    try:
        yield
    except READ_ERRORS as error:
        why = " ".join(str(error).split())
        raise DataError(f"{url}: its arrays cannot be opened ({why}); restore the files or write it again") from error


def describe(array: zarr.Array[Any]) -> str:
    """Describe type, shape and partition of an array, as recorded when its group was finished."""
    return f"{array.dtype} {list(array.shape)} in shards of {(array.shards or array.chunks)[0]} rows"


@functools.lru_cache(maxsize=64)
def _opened(url: str, name: str, fingerprint: str) -> zarr.Array[Any]:
    """Return a cached open array; with ``fingerprint`` in the key, a dataset replaced in place is opened anew."""
    return member(url, _open(url), name)


def _open(url: str) -> zarr.Group:
    return _patiently(lambda: zarr.open_group(storage.open_store(url), mode="r", zarr_format=3))
