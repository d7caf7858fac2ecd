"""Sparse rows in a dataset: CSR arrays, one shard a partition.

An array ``x`` of sparse rows is three arrays, each with one row a partition: ``x/indptr`` (P, rows + 1), and
``x/indices`` and ``x/data`` (P, max_nnz), of which a partition fills as much as its last ``indptr`` says and the rest
is zero.  The group's attribute ``sparse`` holds the numbers of rows and columns.

Legend: P partitions; max_nnz the most non-zeros of a partition, rounded up so that chunks divide it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from ntkdist.data import zarr_groups
from ntkdist.errors import Damaged


class Shape(NamedTuple):
    """Numbers of rows, columns, and rows a partition."""

    rows: int
    columns: int
    rows_per_partition: int

    @property
    def partitions(self) -> int:
        return -(-self.rows // self.rows_per_partition)


def create(url: str, name: str, shape: Shape, max_nnz: int, dtype: Any) -> int:
    """Make the three arrays, empty, in the group at ``url``; returns the columns of ``data``."""
    chunks = -(-max(max_nnz, 1) * 8 // zarr_groups.MAX_CHUNK_BYTES)
    width = -(-max(max_nnz, 1) // chunks) * chunks
    zarr_groups.create_array(url, f"{name}/indptr", (shape.partitions, shape.rows_per_partition + 1), np.int64, 1)
    for part, kind in (("indices", np.dtype(np.int32)), ("data", np.dtype(dtype))):
        zarr_groups.create_array(url, f"{name}/{part}", (shape.partitions, width), kind, 1, row_chunks=chunks)
    return width


def write(url: str, name: str, partition: int, x: csr_array, shape: Shape, width: int) -> zarr_groups.Content:
    """Write one partition, and digest it."""
    indptr = np.full((1, shape.rows_per_partition + 1), x.nnz, np.int64)
    indptr[0, : len(x.indptr)] = x.indptr
    content = zarr_groups.write_content(url, f"{name}/indptr", partition, indptr)
    for part, values in (("indices", x.indices.astype(np.int32)), ("data", x.data)):
        padded = np.zeros((1, width), values.dtype)
        padded[0, : x.nnz] = values
        content += zarr_groups.write_content(url, f"{name}/{part}", partition, padded)
    return content


def read(url: str, name: str, shape: Shape, start: int, stop: int, fingerprint: str) -> csr_array:
    """Rows ``start`` to ``stop``, verified.

    Raises
    ------
    Damaged
        If a chunk is missing or damaged, or the arrays do not make up rows.
    """
    found = list(_partitions(url, name, shape, start, stop, fingerprint))
    return found[0] if len(found) == 1 else csr_array(vstack(found, format="csr"))


def _partitions(url: str, name: str, shape: Shape, start: int, stop: int, fingerprint: str) -> Iterator[csr_array]:
    for p in range(start // shape.rows_per_partition, -(-stop // shape.rows_per_partition)):
        first = p * shape.rows_per_partition
        count = min(shape.rows_per_partition, shape.rows - first)
        indptr, indices, data = (
            zarr_groups.read_rows(url, f"{name}/{part}", p, p + 1, fingerprint)[0]
            for part in ("indptr", "indices", "data")
        )
        nnz = int(indptr[count])
        indptr, indices, data = indptr[: count + 1], indices[:nnz], data[:nnz]
        if indptr[0] != 0 or (np.diff(indptr) < 0).any() or len(data) != nnz or _outside(indices, shape.columns):
            raise Damaged(
                f"{url}: partition {p} of array '{name}' (rows {first}–{first + count - 1}) is no sparse array; "
                "convert again"
            )
        x = csr_array((data, indices, indptr.astype(np.int32)), (count, shape.columns))
        yield x[max(start - first, 0) : stop - first]


def _outside(indices: NDArray[Any], columns: int) -> bool:
    return len(indices) > 0 and not (indices.min() >= 0 and indices.max() < columns)


def concatenate(parts: list[Any]) -> Any:
    """Rows after rows, dense or sparse."""
    return csr_array(vstack(parts, format="csr")) if isinstance(parts[0], csr_array) else np.concatenate(parts)


def bad_rows(x: NDArray[Any] | csr_array) -> NDArray[np.bool_]:
    """Which rows hold a NaN or an infinity."""
    if not isinstance(x, csr_array):
        return ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    bad = np.zeros(x.shape[0], bool)
    bad[np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))[~np.isfinite(x.data)]] = True
    return bad
