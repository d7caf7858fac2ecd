"""Raw data in blocks of rows, in order and in bounded memory: a `Source`, and those of array files."""

import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz

from ntkdist.data.npy import Array, array_file, npy_array, readable
from ntkdist.data.side_columns import CODES, DTYPES
from ntkdist.data.storage import fetch
from ntkdist.errors import DataError, SpecError
from ntkdist.spec import nearest

Block = dict[str, NDArray[Any]]  # arrays of equal length, named as in the dataset: x, y, weight, groups, holdout
Fields = dict[str, tuple[np.dtype[Any], tuple[int, ...]]]  # types and final shapes of a row of each

BLOCK_BYTES = 16 * 2**20
MAX_CLASSES = 2**16


class Wanted(NamedTuple):
    """What to take from a source: names of columns or arrays, or for npy and IDX the files of all but the inputs."""

    target: tuple[str, ...] = ()
    x: str = "x"
    classes: bool = False
    weight: str = ""
    drop: tuple[str, ...] = ()
    groups: str = ""
    holdout: str = ""

    def one_target(self, file: str) -> str:
        """The target of a file of arrays; empty if none was named."""
        if len(self.target) > 1:
            raise SpecError(f"{file}: got {len(self.target)} targets; an array takes one, of several columns or not")
        return "".join(self.target)

    def beside(self) -> dict[str, str]:
        """What has one number a row beside the target, by its name in the dataset, which is also its option's."""
        named = {"weight": self.weight, "groups": self.groups, "holdout": self.holdout}
        return {role: name for role, name in named.items() if name}


@dataclass(frozen=True)
class RawTable:
    """A source as the dataset will have it: final shapes (of one row) and types, and an iterator over blocks."""

    rows: int
    fields: Fields
    blocks: Callable[[], Iterator[Block]]
    files: Mapping[str, Path]  # "source", and "target", "weight" and so on where they are files of their own
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()


class RawSparseTable(NamedTuple):
    """Sparse rows, what lies beside them (``y``, ``weight`` …), and a `Source` without blocks that describes both."""

    x: csr_array
    beside: dict[str, NDArray[Any]]
    described: RawTable


def open_arrays(path: Path, wanted: Wanted, scratch: Path) -> RawTable:
    """An npz, npy or IDX file as a `Source`.

    Raises
    ------
    DataError
        If a file is damaged or of no known format, an array is absent, of another length, or not of numbers.
    SpecError
        If something was asked for that such a file does not have.
    """
    if wanted.drop:
        raise SpecError(f"{path.name} has no columns to drop ({', '.join(wanted.drop)}); --drop is for csv and parquet")
    arrays, files = _members(path, wanted) if path.suffix.lower() == ".npz" else _files(path, wanted, scratch)
    x = arrays["x"]
    if not 1 <= len(x.shape) <= 4 or 0 in x.shape[1:]:
        raise DataError(f"{x.name} has shape {x.shape}; expected (rows, columns) or (rows, height, width, channels)")
    _check_numbers(x)
    described = _described(arrays, x.name, x.shape[0], wanted, scratch)
    fields = {"x": (_plain(x.dtype), x.shape[1:] + (1,) * (len(x.shape) in (1, 3)))} | described.fields

    def blocks() -> Iterator[Block]:
        count = max(1, BLOCK_BYTES // sum(a.row_bytes for a in arrays.values()))
        streams = (a.blocks(count, scratch) for a in arrays.values())
        for i, parts in enumerate(zip(*streams, strict=True)):
            block = {k: described.coded(arrays[k], k, v, i * count) for k, v in zip(arrays, parts, strict=True)}
            yield {k: v.reshape(len(v), *fields[k][1]).astype(fields[k][0], copy=False) for k, v in block.items()}

    return RawTable(x.shape[0], fields, blocks, files, classes=described.names)


def open_sparse(path: Path, wanted: Wanted, scratch: Path) -> RawSparseTable | None:
    """An npz as `scipy.sparse.save_npz` writes it, in memory; None if the file is none.

    Raises
    ------
    DataError
        If it is damaged, or empty, or its target or weights are not as long.
    SpecError
        If something was asked for that such a file does not have.
    """
    if path.suffix.lower() != ".npz":
        return None
    with readable(path.name), zipfile.ZipFile(path) as file:
        if not {"format.npy", "shape.npy", "data.npy"} <= set(file.namelist()):
            return None
    if wanted.drop or wanted.x != "x":
        raise SpecError(f"{path.name} holds sparse rows without names; --drop and --x are for tables and arrays")
    with readable(path.name):
        x = csr_array(load_npz(path))
    x.sum_duplicates()
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise DataError(
            f"{path.name} has shape {x.shape} and type {x.dtype}; expected rows and columns of real numbers"
        )
    x = x.astype(np.float32 if x.dtype == np.float32 else np.float64)
    arrays, files = _beside(path, wanted, scratch)
    described = _described(arrays, path.name, x.shape[0], wanted, scratch)
    beside = {}
    for name, (dtype, shape) in described.fields.items():
        values = np.concatenate(list(arrays[name].blocks(x.shape[0], scratch)))
        beside[name] = described.coded(arrays[name], name, values, 0).reshape(-1, *shape).astype(dtype)
    return RawSparseTable(x, beside, RawTable(x.shape[0], described.fields, lambda: iter(()), files, described.names))


def _members(path: Path, wanted: Wanted) -> tuple[dict[str, Array], dict[str, Path]]:
    with readable(path.name), zipfile.ZipFile(path) as file:
        known = [n.removesuffix(".npy") for n in file.namelist() if n.endswith(".npy")]
    target = wanted.one_target(path.name) or ("y" if "y" in known else "")
    names = {"x": wanted.x} | ({"y": target} if target else {}) | wanted.beside()
    for role, name in names.items():
        if name not in known:
            option = "target" if role == "y" else role
            raise DataError(f"{path.name} has no array '{name}' (named by --{option}){nearest(name, known)}")

    def member(name: str) -> IO[bytes]:
        with zipfile.ZipFile(path) as file:  # the member keeps the file open
            return file.open(f"{name}.npy")

    return {k: npy_array(f"array '{n}' of {path.name}", partial(member, n)) for k, n in names.items()}, {"source": path}


def _files(path: Path, wanted: Wanted, scratch: Path) -> tuple[dict[str, Array], dict[str, Path]]:
    if wanted.x != "x":
        raise SpecError(f"{path.name} has no array '{wanted.x}'; --x is for npz files")
    arrays, files = _beside(path, wanted, scratch)
    return {"x": array_file(path, "source")} | arrays, files


def _beside(path: Path, wanted: Wanted, scratch: Path) -> tuple[dict[str, Array], dict[str, Path]]:
    """Arrays in files of their own beside that of the inputs, and all files; what is in a bucket is copied."""
    target = wanted.one_target(path.name)
    named = ({"target": target} if target else {}) | wanted.beside()
    files = {role: fetch(name, scratch / role) for role, name in named.items()}
    arrays = {"y" if role == "target" else role: array_file(file, role) for role, file in files.items()}
    return arrays, {"source": path} | files


class _Described(NamedTuple):
    """Types and shapes of a row of arrays, and the sorted class labels where the target has classes."""

    fields: Fields
    classes: NDArray[Any] | None

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.classes is None else tuple(_class_name(c) for c in self.classes)

    def coded(self, array: Array, role: str, values: NDArray[Any], start: int) -> NDArray[Any]:
        """Values of an array from a row on as a dataset has them: classes, groups and holdouts as numbers."""
        if role == "y" and self.classes is not None:
            return np.searchsorted(self.classes, values.ravel())
        return CODES[role](values.ravel(), array.name, start) if role in CODES else values


def _described(arrays: Mapping[str, Array], name: str, rows: int, wanted: Wanted, scratch: Path) -> _Described:
    """What lies beside the inputs, which have a name and a number of rows."""
    for array in arrays.values():
        if array.shape[:1] != (rows,):
            raise DataError(f"{array.name} has {(*array.shape, 0)[0]} rows but {name} has {rows}; they must be as many")
    fields: Fields = {}
    classes: NDArray[Any] | None = None
    for role in (r for r in DTYPES if r in arrays):
        _check_vector(arrays[role], "weights" if role == "weight" else role)
        if role != "groups":
            _check_numbers(arrays[role])
        fields[role] = (DTYPES[role], ())
    if "y" in arrays:
        fields["y"], classes = _target(arrays["y"], wanted.classes, scratch)
    elif wanted.classes:
        raise SpecError("classes were asked for without a target; name it with --target")
    return _Described(fields, classes)


def _target(
    y: Array, classes: bool, scratch: Path
) -> tuple[tuple[np.dtype[Any], tuple[int, ...]], NDArray[Any] | None]:
    """Type and shape of a row of y, and its sorted class labels where it has classes."""
    if classes or y.dtype.kind in "USb":
        _check_vector(y, "class labels")
        found = _labels(y, scratch)
        return (np.min_scalar_type(len(found) - 1) if len(found) else np.dtype(np.uint8), ()), found
    _check_numbers(y)
    if len(y.shape) > 2 or 0 in y.shape[1:]:
        raise DataError(f"{y.name} has shape {y.shape}; expected targets of shape (rows,) or (rows, targets)")
    single = y.dtype.kind == "f" and y.dtype.itemsize <= 4
    return (np.dtype(np.float32 if single else np.float64), y.shape[1:]), None


def _labels(y: Array, scratch: Path) -> NDArray[Any]:
    found = np.empty(0, y.dtype)
    count = max(1, BLOCK_BYTES // y.row_bytes)
    for i, block in enumerate(y.blocks(count, scratch)):
        values = block.ravel()
        if values.dtype.kind == "f" and not (whole := np.isfinite(values) & (values == np.rint(values))).all():
            row = int(whole.argmin())
            where = f"{values[row]} in row {i * count + row}"
            raise DataError(f"{y.name}: {where} is no class label; expected whole numbers")
        found = np.union1d(found, values)
        if len(found) > MAX_CLASSES:
            raise DataError(f"{y.name} has more than {MAX_CLASSES} distinct labels; is it a number to regress on?")
    return found


def _class_name(label: Any) -> str:
    if isinstance(label, bytes):
        return label.decode("utf-8", "replace")
    return str(int(label)) if isinstance(label, np.floating) else str(label)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _check_numbers(array: Array) -> None:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{array.name} has type {array.dtype}; expected real numbers of at most 64 bits")


def _check_vector(array: Array, what: str) -> None:
    if math.prod(array.shape[1:]) != 1 or array.dtype.kind not in "biufUS" or array.dtype.itemsize == 0:
        raise DataError(f"{array.name} has shape {array.shape} and type {array.dtype}; expected {what}, one a row")
