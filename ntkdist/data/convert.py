"""Conversion of raw tables to datasets: a seeded shuffle on disk in bounded memory, then whole partitions in order.

Rows are appended to random files ("buckets") of about 64 MiB in a scratch directory beside the destination (among the
system's temporary files if the destination is in an object store).  Each bucket is then permuted in memory, and the
buckets are cut, one after the other, into partitions.  A row's place depends only on the seed and its number, so the
same source and seed give the same dataset bit for bit.

Memory: four blocks of the source (16 MiB each), two buckets (64 MiB each) and three partitions (one, at most 128 MiB
by default, and its encoding by Zarr): at most 0.6 GB; for tables about 0.2 GB more (Arrow, and the pages of a row
group of parquet, or a record batch of Arrow's files); for a Zarr group one row of its chunks, for a Dask frame one of
its partitions; for images 64 files, and a decoded one for each core.  Memory does not grow with the number of rows.
Scratch: the size of the decoded rows; for an array stored columns first, for objects, and for frames their size more.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from ntkdist import random
from ntkdist.data import dataset, image_files, sparse, storage, zarr_groups
from ntkdist.data.column_summary import ATTRIBUTE, Counts
from ntkdist.data.dataset import Dataset, Layout
from ntkdist.data.images import Decoding
from ntkdist.data.partitions import Content, partition_rows
from ntkdist.data.source_files import SEVERAL, Format, fetched, images, is_raw, is_zarr
from ntkdist.data.sources import RawSparseTable, RawTable, Wanted, open_arrays, open_sparse, open_zarr
from ntkdist.data.zarr_groups import refuse_existing
from ntkdist.errors import DataError, SpecError, StoreError
from ntkdist.spec import installed

BUCKET_BYTES = 64 * 2**20
DRAW_ROWS = 65536  # rows whose buckets are drawn together, independent of the blocks of the source
SHUFFLE, BUCKET, ORDER = 1000, 0, 1  # keys of the random streams: a layer number that no map uses, and two roles


def convert(
    source: Any,
    dest: str,
    *,
    target: Sequence[str] = (),
    x: str = "x",
    classes: bool = False,
    weight: str = "",
    drop: Sequence[str] = (),
    category: Sequence[str] = (),
    rows_per_partition: int | None = None,
    shuffle_seed: int | None = 0,
    groups: str = "",
    holdout: str = "",
    channels_first: bool = False,
    sep: str = "",
    decimal: str = ".",
    encoding: str = "utf-8",
    header: bool = True,
    missing: Sequence[str] = (),
    size: str | Sequence[int] = "",
    mode: str = "",
) -> Layout:
    """Convert tables, arrays or images to a dataset in Zarr v3; it appears whole or not at all.

    An npz that `scipy.sparse.save_npz` wrote gives sparse rows; it is held in memory, and so is its target.

    Numbers and booleans become numbers, strings become names of categories, dates become seconds since 1970-01-01 UTC,
    and times of a day such as 13:45 seconds since midnight.  What csv holds is decided by all rows of a column.
    Images become bytes (height, width, channels), which takes Pillow.  A directory has a folder for each of their
    classes, or no folders and no classes; parquet and the like have them in one column of bytes, or of structures of
    bytes and a path as Hugging Face writes them.  All have one size, and are gray or rgb with 8 bits a value.  They are
    turned as their EXIF data says; palettes become rgb, of several frames the first is taken, and an alpha channel
    without effect is left out.  `predict` decodes images as the dataset's were.

    `columns` shows what each column became, with notes of what to look at.

    Parameters
    ----------
    source : str or frame
        Path of a file, or URL of an object (which is copied): csv, tsv or JSON lines (also gzipped), Parquet, Feather
        or Arrow IPC, npz, npy, or IDX, recognised by its first bytes.  A directory or a pattern (``t/*.parquet``,
        ``s3://bucket/t/**``; ** is any folders) stands for all its tables of one kind, or all its images (PNG, JPEG,
        BMP, GIF, PPM, TIFF, WebP), in the order of their names; folders of tables such as ``year=2024`` give a column.
        A Zarr group of others is read as an npz is.  A frame of Dask, pandas, polars or Arrow is written beside the
        destination first, a partition at a time, without its index.
    dest : str
        Path or URL of the new dataset.
    target : sequence of str
        The target: columns of a table, an array of an npz (default: ``y`` if there is one), or for npy, IDX and
        sparse rows another file.
    x : str
        The input array of an npz or a Zarr group.
    classes : bool
        Read an integer target as class labels, not as numbers to regress on; strings and booleans always are labels.
    weight, groups, holdout : str
        Columns, arrays or files, named as the target is: sample weights; groups of rows that stay in one fold, as
        integers or as strings, which are hashed; holdout flags, 1 or true for the rows that a penalty is chosen by.
    drop : sequence of str
        Columns of a table to leave out.
    category : sequence of str
        Columns of a table whose integers are names of categories; strings always are.
    rows_per_partition : int, optional
        The default gives at least 20 partitions of at most 128 MiB.
    shuffle_seed : int or None
        Seed of the shuffle; None keeps the order of the source.
    channels_first : bool
        Images are (rows, channels, height, width); a dataset has the channels last.
    sep, decimal, encoding : str
        The way that csv is written.  ``sep`` is a comma by default, a tab in tsv, and a semicolon where ``decimal`` is
        a comma.
    header : bool
        The first row of csv holds the names of the columns; without it they are ``column_1``, ``column_2`` and so on.
    missing : sequence of str
        Texts that stand for a missing value, beside the empty one and the usual ones of csv, such as NA and n/a.
    size : str or (width, height)
        Pixels to resize encoded images to, as in "32x24", by a bilinear filter that averages where it shrinks;
        proportions are not kept.
    mode : {"gray", "rgb"}, optional
        Convert encoded images to one mode; transparency is left out.

    Returns
    -------
    Layout
        The layout of the new dataset.  Its arrays are ``x``, those of ``y``, ``weight``, ``groups`` and ``holdout``
        that were named, and ``row``, each row's position in the source.

    Raises
    ------
    DataError
        If the source is damaged, empty, or does not hold what was asked for.
    SpecError
        If the options contradict each other.
    StoreError
        If the destination exists or has no space.

    Examples
    --------
    >>> import ntkdist as nd
    >>> x = np.random.default_rng(0).standard_normal((400, 3))
    >>> np.savez("waves.npz", x=x, y=np.sin(2 * x[:, 0]))
    >>> layout = nd.convert("waves.npz", "waves.zarr")
    >>> layout.rows, layout.input_shape
    (400, (3,))
    """
    target, drop, category = ((v,) if isinstance(v, str) else tuple(v) for v in (target, drop, category))
    if shuffle_seed is not None and shuffle_seed < 0:
        raise SpecError(f"shuffle_seed is {shuffle_seed}; expected a number of at least 0, or none to keep the order")
    if rows_per_partition is not None and rows_per_partition < 1:
        raise SpecError(f"rows_per_partition is {rows_per_partition}; expected at least 1")
    form = Format.of(sep, decimal, encoding, header, missing)
    source = os.fspath(source) if isinstance(source, os.PathLike) else source
    if isinstance(source, str) and SEVERAL not in source and storage.is_local(source) and not storage.exists(source):
        raise DataError(f"{source}: no such file; check the path")
    refuse_existing(dest)
    decoding = Decoding.of(size, mode)
    wanted = Wanted(target, x, classes, weight, drop, groups, holdout, category, channels_first, decoding)
    with _scratch(dest) as directory:
        opened = _opened(source, wanted, form, Path(directory))
        if isinstance(opened, RawSparseTable):
            _write_sparse(dest, opened, rows_per_partition, shuffle_seed)
        elif opened.rows == 0:
            raise DataError(f"{opened.files['source'].name} has no rows; convert a source that has some")
        else:
            _write_dense(dest, opened, rows_per_partition, shuffle_seed, Path(directory))
    return Dataset(dest).layout(labelled=False)


def _opened(source: Any, wanted: Wanted, form: Format, scratch: Path) -> RawTable | RawSparseTable:
    """Open a source by what it is."""
    if isinstance(source, str) and is_zarr(source):
        return open_zarr(source, wanted, scratch)
    if not isinstance(source, str) or form.sep or is_raw(source):
        if isinstance(source, str) and not form.sep and (found := images(source)):
            return image_files.open_images(found, wanted)
        from ntkdist.data import table_files, tables  # import pyarrow

        files = fetched(source, scratch, form) if isinstance(source, str) else table_files.of_frame(source, scratch)
        return tables.open_table(files, wanted, form)
    path = storage.fetch(source, scratch / "source")
    return open_sparse(path, wanted, scratch) or open_arrays(path, wanted, scratch)


def _scratch(dest: str) -> tempfile.TemporaryDirectory[str]:
    """Create a directory beside the destination, or for a URL among the system's temporary files."""
    if not storage.is_local(dest):
        return tempfile.TemporaryDirectory(prefix="ntkdist-scratch-")
    final = storage.local_path(dest).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{final.name}.scratch-", dir=final.parent)


def _attributes(source: RawTable, seed: int | None) -> dict[str, Any]:
    """Return the attributes of a dataset: names, and the source with its hashes."""
    hashes = {role: files.identity() for role, files in source.files.items()}
    of_columns = {"categories": dict(source.categories), "dates": list(source.dates)}
    return {
        "columns": list(source.columns),
        **{name: value for name, value in of_columns.items() if value},
        "target_names": list(source.target_names),
        "classes": list(source.classes),
        **({"images": msgspec.to_builtins(source.images)} if source.images is not None else {}),
        "source": {"rows": source.rows, **hashes.pop("source"), **hashes},
        "shuffle_seed": seed,
        "ntkdist": installed("ntkdist"),
    }


def _fill_buckets(
    source: RawTable, record: np.dtype[Any], seed: int | None, scratch: Path
) -> tuple[list[Path], Counts]:
    """Append each row of the source, as a ``record``, to the file of its bucket; count what the columns hold."""
    needed, free = source.rows * record.itemsize, shutil.disk_usage(scratch).free
    if needed > free:
        raise StoreError(
            f"Converting needs {needed / 1e9:.1f} GB of scratch space in {scratch.parent} but {free / 1e9:.1f} GB "
            "are free; make room or choose a destination on another disk"
        )
    buckets = [scratch / str(b) for b in range(-(-needed // BUCKET_BYTES))]
    start, counts = 0, Counts(source)
    for block in source.blocks():
        counts.add(block)
        stop = start + len(block["x"])
        rows = np.empty(stop - start, record)
        for name, values in block.items():
            rows[name] = values
        rows["row"] = np.arange(start, stop)
        bucket = _bucket_of(start, stop, len(buckets), source.rows, seed)
        order = np.argsort(bucket, kind="stable")
        rows, edges = rows[order], np.searchsorted(bucket[order], np.arange(len(buckets) + 1))
        for b in np.flatnonzero(np.diff(edges)):
            with buckets[b].open("ab") as file:
                rows[edges[b] : edges[b + 1]].tofile(file)
        start = stop
    if start != source.rows:
        name = source.files["source"].name
        raise DataError(f"{name} had {source.rows} rows, then {start}; it changed while it was read")
    return buckets, counts


def _bucket_of(start: int, stop: int, buckets: int, rows: int, seed: int | None) -> NDArray[np.int64]:
    """Draw the bucket of each row; without a seed, consecutive rows share one."""
    if seed is None:
        return np.arange(start, stop) * buckets // rows
    first, last = start // DRAW_ROWS, -(-stop // DRAW_ROWS)
    drawn = [random.integers(buckets, DRAW_ROWS, seed, SHUFFLE, BUCKET, g) for g in range(first, last)]
    return np.concatenate(drawn)[start - first * DRAW_ROWS : stop - first * DRAW_ROWS]


def _shuffled(
    buckets: list[Path], record: np.dtype[Any], seed: int | None
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Yield each bucket's rows and their order, and remove its file."""
    for b, path in enumerate(buckets):
        rows = np.fromfile(path, record) if path.exists() else np.empty(0, record)
        path.unlink(missing_ok=True)
        keys = np.arange(len(rows)) if seed is None else random.uniforms(len(rows), seed, SHUFFLE, ORDER, b)
        yield rows, np.argsort(keys, kind="stable")


def _write_dense(dest: str, source: RawTable, wanted: int | None, seed: int | None, scratch: Path) -> None:
    """Shuffle rows through buckets, and cut them into partitions, each written once and digested."""
    dtype, shape = source.fields["x"]
    size = partition_rows(source.rows, shape, dtype, wanted)
    fields = {**source.fields, "row": (np.dtype(np.int64), ())}
    record = np.dtype([(name, dtype, shape) for name, (dtype, shape) in fields.items()])
    buckets, counts = _fill_buckets(source, record, seed, scratch)
    attrs = _attributes(source, seed) | {ATTRIBUTE: counts.attribute()}
    attrs |= {"missing": counts.gaps} if counts.gaps else {}
    with zarr_groups.new_group(dest, dataset.FORMAT, attrs) as url:
        for name, (dtype, shape) in fields.items():
            zarr_groups.create_array(url, name, (source.rows, *shape), dtype, size)
        part = {k: np.empty((min(size, source.rows), *shape), dtype) for k, (dtype, shape) in fields.items()}
        start, filled, content = 0, 0, Content()
        for rows, order in _shuffled(buckets, record, seed):
            at = 0
            while at < len(order):
                take = order[at : at + size - filled]
                for name, values in part.items():
                    values[filled : filled + len(take)] = rows[name][take]
                at, filled = at + len(take), filled + len(take)
                if filled == size or start + filled == source.rows:
                    for name, values in part.items():
                        content += zarr_groups.write_content(url, name, start, values[:filled])
                    start, filled = start + filled, 0
        attrs["content"] = content.to_dict()


def _write_sparse(dest: str, source: RawSparseTable, wanted: int | None, seed: int | None) -> None:
    """Permute sparse rows, and write them partition by partition."""
    x, beside = source.x, source.beside
    n, d = x.shape
    keys = np.arange(n) if seed is None else random.uniforms(n, seed, SHUFFLE, ORDER)
    order = np.argsort(keys, kind="stable")
    row_bytes = max(1, -(-x.nnz * (x.dtype.itemsize + 4) // n))
    shape = sparse.Shape(n, d, partition_rows(n, (row_bytes,), np.uint8, wanted))
    counts = np.diff(x.indptr)[order]
    edges = np.arange(0, n, shape.rows_per_partition)
    attrs = _attributes(source.described, seed) | {"sparse": {"x": [n, d]}}
    with zarr_groups.new_group(dest, dataset.FORMAT, attrs) as url:
        width = sparse.create(url, "x", shape, int(np.add.reduceat(counts, edges).max()), x.dtype)
        arrays = beside | {"row": np.arange(n)}
        for name, values in arrays.items():
            zarr_groups.create_array(url, name, values.shape, values.dtype, shape.rows_per_partition)
        content = Content()
        for p, start in enumerate(edges):
            take = order[start : start + shape.rows_per_partition]
            content += sparse.write(url, "x", p, csr_array(x[take]), shape, width)
            for name, values in arrays.items():
                content += zarr_groups.write_content(url, name, int(start), values[take])
        attrs["content"] = content.to_dict()
