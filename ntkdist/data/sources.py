"""Raw tables: data to convert, read in blocks of rows, in order and in bounded memory; here those of array files."""

import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz

from ntkdist.data import storage, zarr_groups
from ntkdist.data.images import Decoding
from ntkdist.data.npy import array_file, npy_array, readable
from ntkdist.data.source_files import SourceFiles
from ntkdist.data.storage import fetch
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import nearest

Block = dict[str, NDArray[Any]]  # arrays of equal length, named as in the dataset: x, y, weight, groups, holdout
Fields = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]  # type and shape of a row of each array

BLOCK_BYTES = 16 * 2**20
MAX_CLASSES = 2**16


class RowArray(Protocol):
    """An array of a source, with one entry a row."""

    @property
    def name(self) -> str: ...  # for messages

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def row_bytes(self) -> int: ...

    def blocks(self, count: int, scratch: Path) -> Iterator[NDArray[Any]]: ...


def output_format(out: str, bare: str = "") -> str:
    """Return "csv", "parquet" or "zarr" by the ending of a path or URL to write to, ``bare`` without an ending.

    Raises
    ------
    SpecError
        If the ending is another, or there is none and no ``bare``.
    """
    name = out.rstrip("/").rpartition("/")[2].lower()
    ending = name.rpartition(".")[2] if "." in name.lstrip(".") else bare
    if ending not in ("csv", "parquet", "zarr"):
        raise SpecError(f"{out} is neither csv, parquet nor Zarr by its ending; end it in .csv, .parquet or .zarr")
    return ending


class Wanted(NamedTuple):
    """Names of what to read: columns or arrays, or for npy and IDX files of all but the inputs."""

    target: tuple[str, ...] = ()
    x: str = "x"
    classes: bool = False
    weight: str = ""
    drop: tuple[str, ...] = ()
    groups: str = ""
    holdout: str = ""
    category: tuple[str, ...] = ()
    channels_first: bool = False  # images are (rows, channels, height, width)
    images: Decoding = Decoding()

    def one_target(self, file: str) -> str:
        """Return the target of a file of arrays; empty if none was named."""
        if len(self.target) > 1:
            raise SpecError(f"{file}: got {len(self.target)} targets; an array takes one, of several columns or not")
        return "".join(self.target)

    def beside(self) -> dict[str, str]:
        """Return the names of the side columns by role; a role is also the name in the dataset, and of the option."""
        return {role: name for role in ("weight", "groups", "holdout") if (name := getattr(self, role))}


class Identified(Protocol):
    """Files of a source, by a name for messages and a hash once they were read."""

    @property
    def name(self) -> str: ...

    def identity(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class RawTable:
    """A table to convert: types and shapes of its rows in the dataset, and an iterator over blocks of them."""

    rows: int
    fields: Fields
    blocks: Callable[[], Iterator[Block]]
    files: Mapping[str, Identified]  # "source", and "target", "weight" and so on if they are separate files
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()
    categories: Mapping[str, list[str]] = field(default_factory=dict)  # names by column
    dates: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # for a person
    images: Decoding | None = None  # of rows that were encoded images


class RawSparseTable(NamedTuple):
    """Sparse rows, arrays beside them (``y``, ``weight`` …), and a `RawTable` without blocks that describes both."""

    x: csr_array
    beside: dict[str, NDArray[Any]]
    described: RawTable


def open_arrays(path: Path, wanted: Wanted, scratch: Path) -> RawTable:
    """Open an npz, npy or IDX file."""
    _refuse_columns(path.name, wanted)
    if path.suffix.lower() == ".npz":
        arrays, files = _members(path, wanted)
    elif wanted.x != "x":
        raise SpecError(f"{path.name} has no array '{wanted.x}'; --x is for npz files")
    else:
        beside, files = _beside(path, wanted, scratch)
        arrays = {"x": array_file(path, "source")} | beside
    return _of_arrays(arrays, files, wanted, scratch)


def open_zarr(url: str, wanted: Wanted, scratch: Path) -> RawTable:
    """Open a Zarr group that is no dataset of ntkdist: arrays of it, named as those of an npz are."""
    _refuse_columns(url, wanted)
    group = zarr_groups.open_foreign(url)
    name = storage.join(url).rpartition("/")[2]
    arrays: dict[str, RowArray] = {
        role: zarr_groups.ForeignArray.of(group, each, f"array '{each}' of {name}")
        for role, each in _names(name, sorted(group.array_keys()), wanted).items()
    }
    return _of_arrays(arrays, {"source": SourceFiles(name, ())}, wanted, scratch)


def _of_arrays(
    arrays: Mapping[str, RowArray], files: Mapping[str, SourceFiles], wanted: Wanted, scratch: Path
) -> RawTable:
    """Describe the rows that arrays by role make."""
    x = arrays["x"]
    if not 1 <= len(x.shape) <= 4 or 0 in x.shape[1:]:
        raise DataError(f"{x.name} has shape {x.shape}; expected (rows, columns) or (rows, height, width, channels)")
    _check_numbers(x)
    if wanted.channels_first and len(x.shape) != 4:
        raise SpecError(f"{x.name} has shape {x.shape}; --channels-first is for (rows, channels, height, width)")
    shape = (*x.shape[2:], x.shape[1]) if wanted.channels_first else x.shape[1:] + (1,) * (len(x.shape) in (1, 3))
    fields: Fields = {"x": (_plain(x.dtype), shape)}
    notes = () if wanted.channels_first else tuple(channels_first(x.name, shape, "convert with --channels-first"))
    described = _described(arrays, x.name, x.shape[0], fields, wanted, scratch)

    def blocks() -> Iterator[Block]:
        count = max(1, BLOCK_BYTES // sum(a.row_bytes for a in arrays.values()))
        streams = (a.blocks(count, scratch) for a in arrays.values())
        for i, parts in enumerate(zip(*streams, strict=True)):
            block = dict(zip(arrays, parts, strict=True))
            if wanted.channels_first:
                block["x"] = np.moveaxis(block["x"], 1, -1)
            yield {k: described.stored(arrays[k], k, v, i * count) for k, v in block.items()}

    return RawTable(x.shape[0], described.fields, blocks, files, classes=described.names, notes=notes)


def channels_first(name: str, shape: tuple[int, ...], remedy: str) -> Iterator[str]:
    """Say that rows of a shape (height, width, channels) look as if their channels came first, if they do."""
    if len(shape) == 3 and shape[0] in (1, 3, 4) and shape[1] > 4 and shape[2] > 4:
        yield (
            f"{name} has rows of shape {shape}, taken as {shape[0]} by {shape[1]} pixels of {shape[2]} channels; if "
            f"the channels come first, {remedy}"
        )


def open_sparse(path: Path, wanted: Wanted, scratch: Path) -> RawSparseTable | None:
    """Read an npz of `scipy.sparse.save_npz` into memory; return None for any other file."""
    if path.suffix.lower() != ".npz":
        return None
    with readable(path.name), zipfile.ZipFile(path) as file:
        if not {"format.npy", "shape.npy", "data.npy"} <= set(file.namelist()):
            return None
    if wanted.drop or wanted.x != "x":
        raise SpecError(f"{path.name} holds sparse rows without names; --drop and --x are for tables and arrays")
    _refuse_columns(path.name, wanted)
    with readable(path.name):
        x = csr_array(load_npz(path))
    x.sum_duplicates()
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise DataError(
            f"{path.name} has shape {x.shape} and type {x.dtype}; expected rows and columns of real numbers"
        )
    x = x.astype(np.float32 if x.dtype == np.float32 else np.float64)
    arrays, files = _beside(path, wanted, scratch)
    described = _described(arrays, path.name, x.shape[0], {}, wanted, scratch)
    beside = {}
    for name in described.fields:
        (values,) = arrays[name].blocks(x.shape[0], scratch)
        beside[name] = described.stored(arrays[name], name, values, 0)
    return RawSparseTable(x, beside, RawTable(x.shape[0], described.fields, lambda: iter(()), files, described.names))


def _refuse_columns(name: str, wanted: Wanted) -> None:
    """Refuse options of columns for a source that has none."""
    if wanted.drop:
        raise SpecError(f"{name} has no columns to drop ({', '.join(wanted.drop)}); --drop is for csv and parquet")
    if wanted.category:
        raise SpecError(f"{name} has no column '{wanted.category[0]}'; --category is for csv and parquet")
    refuse_images(name, wanted)


def refuse_images(name: str, wanted: Wanted) -> None:
    """Refuse options of encoded images for a source that has none."""
    if wanted.images != Decoding():
        raise SpecError(f"{name} holds no encoded images; --size and --mode are for PNG, JPEG and the like")


def _names(file: str, known: list[str], wanted: Wanted) -> dict[str, str]:
    """Return the names of the arrays of a file by role."""
    target = wanted.one_target(file) or ("y" if "y" in known else "")
    names = {"x": wanted.x} | ({"y": target} if target else {}) | wanted.beside()
    for role, name in names.items():
        if name not in known:
            option = "target" if role == "y" else role
            raise DataError(f"{file} has no array '{name}' (named by --{option}){nearest(name, known)}")
    return names


def _members(path: Path, wanted: Wanted) -> tuple[dict[str, RowArray], dict[str, SourceFiles]]:
    """Open the arrays of an npz by role; return them and the files."""
    with readable(path.name), zipfile.ZipFile(path) as file:
        known = [n.removesuffix(".npy") for n in file.namelist() if n.endswith(".npy")]
    names = _names(path.name, known, wanted)

    def member(name: str) -> IO[bytes]:
        with zipfile.ZipFile(path) as file:  # the member keeps the file open
            return file.open(f"{name}.npy")

    arrays: dict[str, RowArray] = {
        k: npy_array(f"array '{n}' of {path.name}", partial(member, n)) for k, n in names.items()
    }
    return arrays, {"source": SourceFiles.of(path)}


def _beside(path: Path, wanted: Wanted, scratch: Path) -> tuple[dict[str, RowArray], dict[str, SourceFiles]]:
    """Open the arrays beside the inputs that are separate files, and return them and all files; objects are copied."""
    target = wanted.one_target(path.name)
    named = ({"target": target} if target else {}) | wanted.beside()
    files = {role: fetch(name, scratch / role) for role, name in named.items()}
    arrays: dict[str, RowArray] = {
        "y" if role == "target" else role: array_file(file, role) for role, file in files.items()
    }
    return arrays, {role: SourceFiles.of(file) for role, file in ({"source": path} | files).items()}


class _Described(NamedTuple):
    """Types and shapes of a row of each array, and the sorted class labels if the target has classes."""

    fields: Fields
    classes: NDArray[Any] | None

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.classes is None else tuple(_class_name(c) for c in self.classes)

    def stored(self, array: RowArray, role: str, values: NDArray[Any], start: int) -> NDArray[Any]:
        """Convert values of rows from ``start`` on to what a dataset stores: classes and side columns to numbers."""
        if role == "y" and self.classes is not None:
            values = np.searchsorted(self.classes, values.ravel())
        elif role in CODES:
            values = CODES[role](values.ravel(), array.name, start)
        dtype, shape = self.fields[role]
        return values.reshape(len(values), *shape).astype(dtype, copy=False)


def _described(
    arrays: Mapping[str, RowArray], name: str, rows: int, fields: Fields, wanted: Wanted, scratch: Path
) -> _Described:
    """Check and describe the arrays beside the inputs, whose name, number of rows and fields are given."""
    for array in arrays.values():
        if array.shape[:1] != (rows,):
            raise DataError(f"{array.name} has {(*array.shape, 0)[0]} rows but {name} has {rows}; they must be as many")
    classes: NDArray[Any] | None = None
    for role in (r for r in DTYPES if r in arrays):
        _check_vector(arrays[role], "weights" if role == "weight" else role)
        if role != "groups":
            _check_numbers(arrays[role])
        fields = fields | {role: (DTYPES[role], ())}
    if "y" in arrays:
        y, classes = _target(arrays["y"], wanted.classes, scratch)
        fields = fields | {"y": y}
    elif wanted.classes:
        raise SpecError("classes were asked for without a target; name it with --target")
    return _Described(fields, classes)


def _target(
    y: RowArray, classes: bool, scratch: Path
) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], NDArray[Any] | None]:
    """Return type and shape of a row of y, and its sorted class labels if it has classes."""
    if classes or y.dtype.kind in "USb":
        _check_vector(y, "class labels")
        labels = _labels(y, scratch)
        return (np.min_scalar_type(max(len(labels), 1) - 1), ()), labels
    _check_numbers(y)
    if len(y.shape) > 2 or 0 in y.shape[1:]:
        raise DataError(f"{y.name} has shape {y.shape}; expected targets of shape (rows,) or (rows, targets)")
    single = y.dtype.kind == "f" and y.dtype.itemsize <= 4
    return (np.dtype(np.float32 if single else np.float64), y.shape[1:]), None


def _labels(y: RowArray, scratch: Path) -> NDArray[Any]:
    labels = np.empty(0, y.dtype)
    count = max(1, BLOCK_BYTES // y.row_bytes)
    for i, block in enumerate(y.blocks(count, scratch)):
        values = block.ravel()
        if values.dtype.kind == "f" and not (whole := np.isfinite(values) & (values == np.rint(values))).all():
            row = int(whole.argmin())
            raise DataError(
                f"{y.name}: {values[row]} in row {i * count + row} is no class label; expected whole numbers"
            )
        labels = np.union1d(labels, values)
        if len(labels) > MAX_CLASSES:
            raise DataError(f"{y.name} has more than {MAX_CLASSES} distinct labels; is it a number to regress on?")
    return labels


def _class_name(label: Any) -> str:
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    return str(int(label)) if isinstance(label, np.floating) else str(label)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type that values are stored as: booleans as bytes, any byte order as the machine's."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _check_numbers(array: RowArray) -> None:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{array.name} has type {array.dtype}; expected real numbers of at most 64 bits")


def _check_vector(array: RowArray, what: str) -> None:
    if math.prod(array.shape[1:]) != 1 or array.dtype.kind not in "biufUS" or array.dtype.itemsize == 0:
        raise DataError(f"{array.name} has shape {array.shape} and type {array.dtype}; expected {what}, one a row")


# Side columns: one number a row beside inputs and target.

DTYPES: dict[str, np.dtype[Any]] = {
    "weight": np.dtype(np.float64),
    "groups": np.dtype(np.int64),
    "holdout": np.dtype(np.uint8),
}


def group_codes(values: NDArray[Any], name: str, start: int = 0) -> NDArray[np.int64]:
    """Encode groups: an integer as itself, a string as the first eight bytes of its BLAKE2b, equal in every file.

    Values that are missing, NaN or not whole are refused, by ``name`` and by rows counted from ``start``.
    """
    if values.dtype.kind == "f":
        _refuse(~(np.isfinite(values) & (values == np.rint(values))), values, name, start, "whole numbers or strings")
    if values.dtype.kind in "biuf":
        return values.astype(np.int64)
    if values.dtype.kind == "O":
        missing = np.array([v is None for v in values], bool)
        _refuse(missing, values, name, start, "a group for every row")
        values = values.astype(str)
    names, positions = np.unique(values, return_inverse=True)
    texts = [bytes(n) if isinstance(n, bytes) else str(n).encode() for n in names]
    codes = [int.from_bytes(hashlib.blake2b(t, digest_size=8).digest(), "little", signed=True) for t in texts]
    return np.array(codes, np.int64)[positions]


def holdout_flags(values: NDArray[Any], name: str, start: int = 0) -> NDArray[np.uint8]:
    """Check flags, 1 for rows that are held out and 0 for the others, as `group_codes` checks groups."""
    _refuse((values != 0) & (values != 1), values, name, start, "0, or 1 for rows that are held out")
    return values.astype(np.uint8)


CODES: dict[str, Callable[[NDArray[Any], str, int], NDArray[Any]]] = {"groups": group_codes, "holdout": holdout_flags}


def _refuse(wrong: NDArray[np.bool_], values: NDArray[Any], name: str, start: int, expected: str) -> None:
    """Raise a `DataError` if any value is wrong."""
    if wrong.any():
        rows = np.flatnonzero(wrong)
        shown = ", ".join(str(start + r) for r in rows[:8]) + ", …" * (len(rows) > 8)
        raise DataError(
            f"{name} is {values[rows[0]]} in row{'s' * (len(rows) > 1)} {shown}; expected {expected}: mend the source, "
            "or leave these rows out"
        )
