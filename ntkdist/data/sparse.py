"""Sparse rows in a dataset: CSR arrays, one shard per partition.

An array ``x`` of sparse rows is three arrays, each with one row per partition: ``x/indptr`` (P, rows + 1), and
``x/indices`` and ``x/data`` (P, max_nnz).  A partition fills as many entries as its last ``indptr``; the rest is zero.
The group's attribute ``sparse`` holds the numbers of rows and columns.

Legend: P partitions; max_nnz the most non-zeros of a partition, rounded up so that chunks divide it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack

from ntkdist.data import zarr_groups
from ntkdist.data.partitions import MAX_CHUNK_BYTES, Content
from ntkdist.errors import Damaged


class Shape(NamedTuple):
    """Numbers of rows, columns, and rows per partition."""

    rows: int
    columns: int
    rows_per_partition: int

    @property
    def partitions(self) -> int:
        return -(-self.rows // self.rows_per_partition)


def create(url: str, name: str, shape: Shape, max_nnz: int, dtype: Any) -> int:
    """Create the three arrays, empty, in the group at ``url``, and return the columns of ``data``."""
    chunks = -(-max(max_nnz, 1) * 8 // MAX_CHUNK_BYTES)
    width = -(-max(max_nnz, 1) // chunks) * chunks
    zarr_groups.create_array(url, f"{name}/indptr", (shape.partitions, shape.rows_per_partition + 1), np.int64, 1)
    for part, kind in (("indices", np.dtype(np.int32)), ("data", np.dtype(dtype))):
        zarr_groups.create_array(url, f"{name}/{part}", (shape.partitions, width), kind, 1, row_chunks=chunks)
    return width


def write(url: str, name: str, partition: int, x: csr_array, shape: Shape, width: int) -> Content:
    """Write one partition and digest it."""
    indptr = np.full((1, shape.rows_per_partition + 1), x.nnz, np.int64)
    indptr[0, : len(x.indptr)] = x.indptr
    content = zarr_groups.write_content(url, f"{name}/indptr", partition, indptr)
    for part, values in (("indices", x.indices.astype(np.int32)), ("data", x.data)):
        padded = np.zeros((1, width), values.dtype)
        padded[0, : x.nnz] = values
        content += zarr_groups.write_content(url, f"{name}/{part}", partition, padded)
    return content


def read(url: str, name: str, shape: Shape, start: int, stop: int, fingerprint: str) -> csr_array:
    """Read rows ``start`` to ``stop``, verified, from each partition that has some."""
    rows = []
    for p in range(start // shape.rows_per_partition, -(-stop // shape.rows_per_partition)):
        first = p * shape.rows_per_partition
        count = min(shape.rows_per_partition, shape.rows - first)
        indptr, indices, data = (
            zarr_groups.read_rows(url, f"{name}/{part}", p, p + 1, fingerprint)[0]
            for part in ("indptr", "indices", "data")
        )
        nnz = int(indptr[count])
        indptr, indices, data = indptr[: count + 1], indices[:nnz], data[:nnz]
        outside = ((indices < 0) | (indices >= shape.columns)).any()
        if indptr[0] != 0 or (np.diff(indptr) < 0).any() or len(data) != nnz or outside:
            raise Damaged(
                f"{url}: partition {p} of array '{name}' (rows {first}–{first + count - 1}) is no sparse array; "
                "convert again"
            )
        x = csr_array((data, indices, indptr.astype(np.int32)), (count, shape.columns))
        rows.append(x[max(start - first, 0) : stop - first])
    return rows[0] if len(rows) == 1 else concatenate(rows)


def concatenate(parts: list[Any]) -> Any:
    return csr_array(vstack(parts, format="csr")) if isinstance(parts[0], csr_array) else np.concatenate(parts)


def bad_rows(x: NDArray[Any] | csr_array) -> NDArray[np.bool_]:
    """Mark the rows (n,) that hold a NaN or an infinity."""
    if not isinstance(x, csr_array):
        return ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
    bad = np.zeros(x.shape[0], bool)
    bad[x.tocoo(copy=False).row[~np.isfinite(x.data)]] = True
    return bad
