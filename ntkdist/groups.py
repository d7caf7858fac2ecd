"""Groups of arrays in Zarr v3, written so that they can be verified: the only file that knows Zarr's arrays.

Arrays are sharded by rows; a shard is a partition, the unit of writing and of work.  Every inner chunk is stored, also
one of zeros, and ends in a CRC32C checksum; the group's attribute ``complete`` is written last.  So a chunk that is
missing, short or damaged cannot be mistaken for data.
"""

import functools
import hashlib
import math
import os
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from ntkdist import places
from ntkdist.errors import Damaged, DataError, StoreError
from ntkdist.spec import nearest

T = TypeVar("T")
PAUSES = (0.1, 0.4)  # seconds until something that could not be read is read again
MIN_PARTITIONS = 20
MAX_PARTITION_BYTES = 128 * 2**20
MAX_CHUNK_BYTES = 8 * 2**20
AT_ONCE = 4  # partitions that are encoded together
WRITER = "written_by"  # attribute of a group that is not complete
DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError)  # what Zarr raises on unexpected metadata
READ_ERRORS = (*DAMAGED, OSError, RuntimeError, zarr.errors.BaseZarrError)
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Content:
    """Digests of what was written into the arrays of a group, by name: a value with ``+``.

    A digest is the sum, modulo 2^128, of the SHA-256 of all pieces (name, first row, type, shape and bytes of each), so
    it is the same in whatever order, and by whatever processes, the same pieces were written.
    """

    sums: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, start: int, values: NDArray[Any]) -> "Content":
        """Digest one piece of an array, its rows from ``start`` on."""
        values = np.ascontiguousarray(values)
        found = hashlib.sha256(f"{name} {start} {values.dtype.str} {values.shape} ".encode())
        found.update(values.reshape(-1).view(np.uint8).data)
        return cls({name: int.from_bytes(found.digest()[:DIGEST_BYTES])})

    def __add__(self, other: "Content") -> "Content":
        names, modulus = self.sums.keys() | other.sums.keys(), 1 << 8 * DIGEST_BYTES
        return Content({n: (self.sums.get(n, 0) + other.sums.get(n, 0)) % modulus for n in sorted(names)})

    def to_dict(self) -> dict[str, str]:
        """The digests in hexadecimal digits, as a group records them."""
        return {name: f"{found:0{2 * DIGEST_BYTES}x}" for name, found in self.sums.items()}


def open_group(url: str, *kinds: str) -> zarr.Group:
    """Open a finished group of one of the given kinds for reading.

    Raises
    ------
    DataError
        If there is none, it is of another kind, or it was never finished.
    """
    try:
        group = _open(url)
    except READ_ERRORS as error:
        places.exists(url)  # where there is no such bucket, this says so
        raise DataError(f"{url}: no Zarr v3 group found there ({type(error).__name__}); check the path") from None
    found = group.attrs.get("kind")
    if found not in kinds:
        raise DataError(f"{url}: expected a group of kind {' or '.join(kinds)}, got {found}; check the path")
    if not group.attrs.get("complete"):
        raise DataError(f"{url}: the group was never finished (no 'complete' mark); write it again")
    return group


def refuse_existing(url: str) -> None:
    """See that a destination does not exist yet.

    Raises
    ------
    StoreError
        If it does.
    """
    if finished(url):
        raise StoreError(f"{url} exists already; choose another destination or remove it")


def finished(url: str) -> bool:
    """Whether there is something, and it is not what a writer was cut off from."""
    return places.exists(url) and not _unfinished(url)


def _unfinished(url: str) -> bool:
    """Whether there is what a writer into a bucket left when it was cut off, or has not finished yet."""
    return not places.is_local(url) and bool(_writer(url))  # on a file system it has another name


def _writer(url: str) -> str:
    """Who writes a group that is not finished, or ''."""
    try:
        return str(_open(url).attrs.get(WRITER, ""))
    except READ_ERRORS:
        return ""


@contextmanager
def new_group(url: str, kind: str, attrs: Mapping[str, Any]) -> Iterator[str]:
    """A group that appears whole or not at all.

    Yields the URL to write arrays into, by any process, with `create_array` and `write_rows`.  When the block ends
    the group gets its attributes, ``attrs`` as they are by then, and is marked complete; on a file system it is written
    under another name and moved to ``url`` then, as a bucket has no renaming.  When the block fails everything is
    removed.

    Raises
    ------
    StoreError
        If ``url`` exists or cannot be written, or another process began to write it meanwhile.
    """
    refuse_existing(url)
    place, writer = _while_written(url), uuid.uuid4().hex
    places.remove(place)
    try:
        with places.writing(url):
            store = places.open_store(place)
            zarr.open_group(store, mode="w-", zarr_format=3, attributes={"kind": kind, WRITER: writer})
        yield place
        with places.writing(url):
            group = zarr.open_group(store, mode="r+", zarr_format=3)
            if group.attrs.get(WRITER) != writer:
                raise StoreError(f"{url} was begun by another process meanwhile; choose another destination")
            members = sorted(group.members(max_depth=None))
            arrays = {name: describe(array) for name, array in members if isinstance(array, zarr.Array)}
            group.attrs.put({"kind": kind, "version": 1, **attrs, "arrays": arrays, "complete": True})
            if place != url:
                os.replace(place, places.local_path(url))
    except BaseException:
        with suppress(StoreError):  # as where the store is what failed
            if places.is_local(url) or _writer(place) == writer:
                places.remove(place)
        raise


def _while_written(url: str) -> str:
    if not places.is_local(url):
        return url
    final = places.local_path(url).absolute()
    return str(final.with_name(f".{final.name}.{places.PARTIAL}"))


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
    divided into ``chunks``, or the next smaller number that divides its rows, and more where they would be large.
    """
    asked = max(k for k in range(1, min(chunks, rows_per_partition) + 1) if rows_per_partition % k == 0)
    k = max(asked, chunks_per_partition(rows_per_partition, shape[1:], dtype))
    inner = (shape[1] // row_chunks,) if row_chunks > 1 else shape[1:]
    with places.writing(url):
        zarr.open_group(places.open_store(url), mode="r+", zarr_format=3).create_array(
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
    """Write whole shards of an array; writing the same rows again changes nothing.

    Raises
    ------
    ValueError
        If the rows do not begin and end at the borders of shards.
    StoreError
        If they cannot be written, as on a full disk.
    """
    with places.writing(url), zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(places.open_store(url), path=name, mode="r+", zarr_format=3)
        size, stop = (array.shards or array.chunks)[0], start + len(values)
        if start % size or (stop % size and stop != array.shape[0]):
            raise ValueError(f"rows {start}–{stop - 1} are not whole shards of {size} rows")
        array[start:stop] = values


def write_content(url: str, name: str, start: int, values: NDArray[Any]) -> Content:
    """Write whole shards as `write_rows` does, of values that have the type of the array, and digest them meanwhile."""
    with ThreadPoolExecutor(1) as beside:
        content = beside.submit(Content.of, name, start, values)
        write_rows(url, name, start, values)
        return content.result()


def write_whole(url: str, name: str, values: NDArray[Any]) -> None:
    """Create an array of a few partitions and write it, some at a time: all at once would take as much memory again."""
    n = partition_rows(max(len(values), 1), values.shape[1:], values.dtype, at_least=1)
    create_array(url, name, values.shape, values.dtype, n)
    for start in range(0, len(values) if values.size else 0, AT_ONCE * n):
        write_rows(url, name, start, values[start : start + AT_ONCE * n])


def warm() -> None:
    """Have Zarr start the threads that it decodes on, and load its codecs."""
    store = zarr.storage.MemoryStore()
    array = zarr.create_array(store, shape=(64, 8), shards=(64, 8), chunks=(1, 8), dtype="f4", compressors=_codecs())
    array[:] = 1
    array[:]


def partition_rows(
    rows: int, shape: tuple[int, ...], dtype: Any, wanted: int | None = None, at_least: int = MIN_PARTITIONS
) -> int:
    """Rows a partition: at least 20 partitions, at most 128 MiB each (but one row at least).

    The number is rounded down, by less than a sixteenth, to one with many divisors, so that arrays of any width divide
    into chunks.  ``wanted`` overrides all of this, unless rows so wide need chunks into which it does not divide.
    """
    row_bytes = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
    n: int = wanted or max(1, min(rows // at_least, MAX_PARTITION_BYTES // row_bytes))
    if wanted and chunks_per_partition(n, shape, dtype) < 2 * -(-n * row_bytes // MAX_CHUNK_BYTES):
        return n
    step = 1 << max(0, n.bit_length() - 5)
    return n // step * step


def chunks_per_partition(rows_per_partition: int, shape: tuple[int, ...], dtype: Any) -> int:
    """The least number of inner chunks of at most 8 MiB (but one row at least) into which a partition divides."""
    n = rows_per_partition
    needed = min(n, -(-n * int(np.prod(shape)) * np.dtype(dtype).itemsize // MAX_CHUNK_BYTES))
    return min(k for i in range(1, math.isqrt(n) + 1) if n % i == 0 for k in (i, n // i) if k >= needed)


def find(url: str, name: str) -> str:
    """The group ``name`` inside a run directory, or ``url`` itself if it is not one."""
    inner = places.join(url, name)
    return inner if places.exists(inner) else url


def read_attributes(url: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Kind and attributes of a finished group of one of the given kinds."""
    group = open_group(url, *kinds)
    return str(group.attrs["kind"]), dict(group.attrs)


def read_whole(url: str, name: str) -> NDArray[Any]:
    """All of an array, verified as in `read_rows`."""
    return read_rows(url, name, 0, member(url, _open(url), name).shape[0])


def read_rows(url: str, name: str, start: int, stop: int, fingerprint: str = "") -> NDArray[Any]:
    """Rows of an array; every shard that is read must be there, its chunks are checked against their checksums.

    Parameters
    ----------
    fingerprint : str
        Names the content, so that an array opened before is used again; without, it is opened anew.

    Raises
    ------
    Damaged
        If a chunk is missing or damaged; the message names the array and the rows.
    StoreError
        If the system fails to read it, again and again.
    """
    array = _opened(url, name, fingerprint) if fingerprint else member(url, _open(url), name)
    try:
        return _patiently(lambda: np.asarray(array[start:stop]))
    except places.MissingChunk as error:
        size = (array.shards or array.chunks)[0]
        first = int((re.findall(r"\d+", error.key.removeprefix(array.path)) or [0])[0]) * size
        rows = f"rows {first}–{min(first + size, array.shape[0]) - 1}"
        raise Damaged(f"{url}: {error} ({rows}); restore it or convert again") from None
    except READ_ERRORS as error:
        said = f"{url}: array '{name}', rows {start}–{stop - 1}, cannot be read ({' '.join(str(error).split())})"
        if isinstance(error, OSError):
            raise StoreError(f"{said}; see what is wrong with the disk or the network, and run again") from error
        raise Damaged(f"{said}; restore the file or convert again") from error


def _patiently(read: Callable[[], T]) -> T:
    """What reading gives in the end: an error, or bytes that are not those written, may be the way's and not theirs."""
    for pause in PAUSES:
        try:
            return read()
        except FileNotFoundError:
            raise
        except READ_ERRORS:
            time.sleep(pause * random.uniform(0.5, 1))
    return read()


def member(url: str, group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of an open group, by name."""
    with _opening(url):
        array = _patiently(lambda: group.get(name))
        others = [] if isinstance(array, zarr.Array) else _patiently(lambda: sorted(group.array_keys()))
    if not isinstance(array, zarr.Array):
        raise DataError(f"{url}: no array '{name}'{nearest(name, others)}")
    return array


def has(url: str, group: zarr.Group, name: str) -> bool:
    """Whether there is an array or a group of a name."""
    with _opening(url):
        return _patiently(lambda: name in group)


@contextmanager
def _opening(url: str) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        said = " ".join(str(error).split())
        raise DataError(f"{url}: its arrays cannot be opened ({said}); restore the files or write it again") from error


def describe(array: zarr.Array[Any]) -> str:
    """Type, shape and partition of an array, as recorded when its group was finished."""
    return f"{array.dtype} {list(array.shape)} in shards of {(array.shards or array.chunks)[0]} rows"


@functools.lru_cache(maxsize=64)
def _opened(url: str, name: str, fingerprint: str) -> zarr.Array[Any]:
    """An open array; ``fingerprint`` is there so that a dataset replaced in place is opened anew."""
    return member(url, _open(url), name)


def _open(url: str) -> zarr.Group:
    return _patiently(lambda: zarr.open_group(places.open_store(url), mode="r", zarr_format=3))
