"""Datasets in Zarr: row-aligned arrays in one group, cut into partitions, read verified or not at all.

A dataset is a Zarr v3 group with an array ``x`` (rows first), usually a ``y``, and whatever else has one
entry a row.  All arrays are sharded alike: one shard is one partition, the unit of writing and of work.
Every inner chunk is stored, also one of zeros, and ends in a CRC32C checksum; the group's attribute
``complete`` is written last.  So a chunk that is missing, short or damaged cannot be mistaken for data.
"""

import functools
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote, urlparse

import numpy as np
import zarr
import zarr.errors
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.sync import sync  # the one call without a public twin: it runs a store's coroutine from any thread

from ntkdist.errors import DataError, StoreError
from ntkdist.spec import Spec, digest, nearest

FORMAT = "ntkdist.dataset"
MIN_PARTITIONS = 20
MAX_PARTITION_BYTES = 128 * 2**20
MAX_CHUNK_BYTES = 8 * 2**20
DAMAGED = (ValueError, TypeError, KeyError, IndexError, AttributeError)  # what Zarr raises on unexpected metadata
READ_ERRORS = (*DAMAGED, OSError, RuntimeError, zarr.errors.BaseZarrError)


class Rows(NamedTuple):
    """Some rows of a dataset, as read: raw values, nothing scaled."""

    x: NDArray[Any]
    y: NDArray[Any] | None
    weight: NDArray[np.float64] | None
    start: int  # position of the first row in the dataset
    dropped: int = 0  # rows left out because of NaN or Inf
    nbytes: int = 0  # bytes of the arrays before rows were dropped

    def take(self, rows: slice | NDArray[Any]) -> "Rows":
        """The same with some of the rows."""
        y, weight = (None if a is None else a[rows] for a in (self.y, self.weight))
        return self._replace(x=self.x[rows], y=y, weight=weight)


class Layout(Spec, frozen=True):
    """What is known of a dataset without reading a row.

    ``fingerprint`` names the data: it is a hash of the group's attributes, which hold the SHA-256 of the
    source, and of the arrays' shapes, types and partitions.
    """

    rows: int
    rows_per_partition: int
    input_shape: tuple[int, ...]
    x_dtype: str
    fingerprint: str
    targets: int = 0  # 0: no y, or y is one-dimensional
    labelled: bool = False
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()

    @property
    def partitions(self) -> int:
        return -(-self.rows // self.rows_per_partition)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.input_shape)) * np.dtype(self.x_dtype).itemsize

    def span(self, partition: int) -> tuple[int, int]:
        """First row of a partition and the row after its last."""
        start = partition * self.rows_per_partition
        return start, min(start + self.rows_per_partition, self.rows)


class Dataset(Spec, frozen=True):
    """A dataset by its place and the names of its arrays.

    Parameters
    ----------
    store : str
        Path or URL of the Zarr group.
    x, y : str
        Names of the input and target arrays.
    weight : str
        Name of an array of non-negative sample weights; empty for none.
    nan : {"error", "drop"}
        What to do with rows that hold a NaN or an infinity: refuse, or leave them out and count them.
    """

    store: str
    x: str = "x"
    y: str = "y"
    weight: str = ""
    nan: Literal["error", "drop"] = "error"

    def layout(self, *, labelled: bool = True) -> Layout:
        """Open the group, check that it is complete and consistent, and describe it.

        Parameters
        ----------
        labelled : bool
            Whether targets are needed.  Without, a dataset that has none is fine.

        Raises
        ------
        DataError
            If there is no such dataset, it is incomplete or empty, or an array is absent or of the wrong length.
        """
        group = open_group(self.store, FORMAT)
        attrs: dict[str, Any] = dict(group.attrs)
        x = _array(self.store, group, self.x)
        rows = x.shape[0]
        if rows == 0:
            raise DataError(f"{self.store}: the dataset has no rows; convert a source that has some")
        if x.ndim < 2:
            raise DataError(f"{self.store}: array '{self.x}' has shape {x.shape}; expected (rows, columns) or images")
        has_y = self.y in group
        arrays = {self.x: x}
        if labelled or has_y:
            arrays[self.y] = y = _array(self.store, group, self.y)
        if self.weight:
            arrays[self.weight] = _array(self.store, group, self.weight)
        for name, array in arrays.items():
            if array.shape[0] != rows:
                raise DataError(
                    f"{self.store}: array '{name}' has {array.shape[0]} rows but '{self.x}' has {rows}; convert again"
                )
            recorded = attrs.get("arrays", {}).get(name)
            if recorded != _describe(array):
                raise DataError(
                    f"{self.store}: array '{name}' is {_describe(array)} but {recorded} was recorded; convert again"
                )
        return Layout(
            rows=rows,
            rows_per_partition=(x.shards or x.chunks)[0],
            input_shape=x.shape[1:],
            x_dtype=str(x.dtype),
            fingerprint=digest(attrs),
            targets=y.shape[1] if has_y and y.ndim == 2 else 0,
            labelled=has_y,
            classes=tuple(attrs.get("classes", ())),
            columns=tuple(attrs.get("columns", ())) if self.x == "x" else (),
            target_names=tuple(attrs.get("target_names", ())) if self.y == "y" else (),
        )

    def read(self, layout: Layout, start: int, stop: int, *, labelled: bool = True) -> Rows:
        """Rows ``start`` to ``stop``, verified.

        Raises
        ------
        DataError
            If a chunk is missing or damaged, or a value is NaN or infinite and ``nan`` is "error".  The message
            names the array and the rows.
        """
        x = self.column(layout, self.x, start, stop)
        y = self.column(layout, self.y, start, stop) if labelled else None
        w = self.column(layout, self.weight, start, stop).astype(np.float64) if self.weight else None
        rows = Rows(x, y, w, start, 0, sum(a.nbytes for a in (x, y, w) if a is not None))
        bad = np.zeros(len(x), bool)
        for name, array in ((self.x, x), (self.y, y), (self.weight, w)):
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                bad |= ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                if self.nan == "error":
                    raise DataError(
                        f"{self.store}: array '{name}' has NaN or Inf in {bad.sum()} of the rows {start}–{stop - 1}, "
                        f'first in row {start + int(bad.argmax())}; mend the source, or set nan = "drop"'
                    )
        if w is not None and (w[~bad] < 0).any():
            raise DataError(f"{self.store}: array '{self.weight}' has negative weights in rows {start}–{stop - 1}")
        return rows.take(~bad)._replace(dropped=int(bad.sum())) if bad.any() else rows

    def column(self, layout: Layout, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows of one array of the dataset, verified as in `read`."""
        return _read(self.store, name, _cached_array(self.store, name, layout.fingerprint), start, stop)

    def others(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and type of every array beside the input."""
        arrays = open_group(self.store, FORMAT).arrays()
        return {str(k): (a.shape, str(a.dtype)) for k, a in sorted(arrays) if k != self.x}


def local_path(url: str) -> Path:
    """The path that a plain path or ``file://`` URL means.

    Raises
    ------
    StoreError
        For any other scheme.
    """
    parsed = urlparse(url)
    if parsed.scheme in ("", "file"):
        return Path(unquote(parsed.path)) if parsed.scheme else Path(url)
    raise StoreError(f"cannot open {url}: only paths and file:// URLs are supported")


def open_group(url: str, *kinds: str) -> zarr.Group:
    """Open a finished group of one of the given kinds for reading.

    Raises
    ------
    DataError
        If there is none, it is of another kind, or it was never finished.
    """
    try:
        group = zarr.open_group(local_path(url), mode="r", zarr_format=3)
    except READ_ERRORS as error:
        raise DataError(f"{url}: no Zarr v3 group found there ({type(error).__name__}); check the path") from None
    found = group.attrs.get("kind")
    if found not in kinds:
        raise DataError(f"{url}: expected a group of kind {' or '.join(kinds)}, got {found}; check the path")
    if not group.attrs.get("complete"):
        raise DataError(f"{url}: the group was never finished (no 'complete' mark); write it again")
    return group


def refuse_existing(url: str) -> Path:
    """The path of a destination that does not exist yet.

    Raises
    ------
    StoreError
        If it does.
    """
    path = local_path(url)
    if path.exists():
        raise StoreError(f"{url} exists already; choose another destination or remove it")
    return path


@contextmanager
def new_group(url: str, kind: str, attrs: Mapping[str, Any]) -> Iterator[str]:
    """A group that appears whole or not at all.

    Yields the URL to write arrays into, by any process, with `create_array` and `write_rows`.  When the block ends
    the group is marked complete and moved to ``url``; when it fails everything is removed.

    Raises
    ------
    StoreError
        If ``url`` exists.
    """
    final = refuse_existing(url)
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        group = zarr.open_group(partial, mode="w-", zarr_format=3, attributes={"kind": kind, "version": 1, **attrs})
        yield str(partial)
        group = zarr.open_group(partial, mode="r+")
        group.attrs["arrays"] = {name: _describe(array) for name, array in sorted(group.arrays())}
        group.attrs["complete"] = True
        os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def create_array(url: str, name: str, shape: tuple[int, ...], dtype: Any, rows_per_partition: int) -> None:
    """An empty array in the group at ``url``, sharded by partition, every chunk with a checksum."""
    k = chunks_per_partition(rows_per_partition, shape[1:], dtype)
    zarr.open_group(local_path(url), mode="r+").create_array(
        name,
        shape=shape,
        dtype=dtype,
        shards=(rows_per_partition, *shape[1:]),
        chunks=(rows_per_partition // k, *shape[1:]),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
    )


def write_rows(url: str, name: str, start: int, values: NDArray[Any]) -> None:
    """Write whole shards of an array; writing the same rows again changes nothing.

    Raises
    ------
    ValueError
        If the rows do not begin and end at the borders of shards.
    """
    with zarr.config.set({"array.write_empty_chunks": True}):
        array = zarr.open_array(local_path(url) / name, mode="r+")
        size, stop = (array.shards or array.chunks)[0], start + len(values)
        if start % size or (stop % size and stop != array.shape[0]):
            raise ValueError(f"rows {start}–{stop - 1} are not whole shards of {size} rows")
        array[start:stop] = values


def write_whole(url: str, name: str, values: NDArray[Any]) -> None:
    """Create an array of a few partitions and write it at once."""
    n = partition_rows(max(len(values), 1), values.shape[1:], values.dtype, at_least=1)
    create_array(url, name, values.shape, values.dtype, n)
    if values.size:
        write_rows(url, name, 0, values)


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


def remove(url: str) -> None:
    """Remove a group, if there is one."""
    shutil.rmtree(local_path(url), ignore_errors=True)


def find(url: str, name: str) -> str:
    """The group ``name`` inside a run directory, or ``url`` itself if it is not one."""
    inner = local_path(url) / name
    return str(inner) if inner.exists() else url


def read_attributes(url: str, kinds: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Kind and attributes of a finished group of one of the given kinds."""
    group = open_group(url, *kinds)
    return str(group.attrs["kind"]), dict(group.attrs)


def read_whole(url: str, name: str) -> NDArray[Any]:
    """All of an array, verified as in `Dataset.read`."""
    array = _array(url, zarr.open_group(local_path(url), mode="r", zarr_format=3), name)
    return _read(url, name, array, 0, array.shape[0])


def _read(url: str, name: str, array: zarr.Array[Any], start: int, stop: int) -> NDArray[Any]:
    """Rows of an array, each shard first seen to be there, its chunks checked against their checksums."""
    size = (array.shards or array.chunks)[0]
    for i in range(start // size, -(-stop // size)):
        key = array.metadata.encode_chunk_key((i,) + (0,) * (array.ndim - 1))
        rows = f"rows {i * size}–{min((i + 1) * size, array.shape[0]) - 1}"
        try:
            found = sync(array.store.getsize(f"{array.path}/{key}"))
        except FileNotFoundError:
            raise DataError(f"{url}: chunk {name}/{key} is missing ({rows}); restore it or convert again") from None
        if found == 0:
            raise DataError(f"{url}: chunk {name}/{key} is empty ({rows}); restore it or convert again")
    try:
        values: NDArray[Any] = np.asarray(array[start:stop])
    except READ_ERRORS as error:
        raise DataError(
            f"{url}: array '{name}', rows {start}–{stop - 1}, cannot be read "
            f"({' '.join(str(error).split())}); restore the file or convert again"
        ) from error
    return values


def _array(url: str, group: zarr.Group, name: str) -> zarr.Array[Any]:
    try:
        arrays = dict(group.arrays())
    except READ_ERRORS as error:
        said = " ".join(str(error).split())
        raise DataError(f"{url}: its arrays cannot be opened ({said}); restore the files or write it again") from error
    if name not in arrays:
        raise DataError(f"{url}: no array '{name}'{nearest(name, sorted(arrays))}")
    array = arrays[name]
    assert isinstance(array, zarr.Array)
    return array


def _describe(array: zarr.Array[Any]) -> str:
    return f"{array.dtype} {list(array.shape)} in shards of {(array.shards or array.chunks)[0]} rows"


@functools.lru_cache(maxsize=64)
def _cached_array(url: str, name: str, fingerprint: str) -> zarr.Array[Any]:
    """An open array; ``fingerprint`` is there so that a dataset replaced in place is opened anew."""
    return _array(url, zarr.open_group(local_path(url), mode="r", zarr_format=3), name)
