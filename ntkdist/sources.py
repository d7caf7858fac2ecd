"""Raw data in blocks of rows, in order and in bounded memory: a `Source`, and the array files npz, npy and IDX.

Nothing here is ever unpickled.  What a file promises in its header it must hold, to the byte.
"""

import gzip
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, load_npz

from ntkdist.beside import CODES, DTYPES
from ntkdist.errors import DataError, NtkdistError, SpecError
from ntkdist.places import fetch
from ntkdist.spec import nearest

Block = dict[str, NDArray[Any]]  # arrays of equal length, named as in the dataset: x, y, weight, groups, holdout

BLOCK_BYTES = 16 * 2**20
MAX_CLASSES = 2**16
_ARRAYS = {"source": "x", "target": "y"}  # names in the dataset of files that are called otherwise
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Wanted(NamedTuple):
    """What to take from a source: names of columns or arrays, or for npy and IDX the files of all but the inputs."""

    target: tuple[str, ...] = ()
    x: str = "x"
    classes: bool = False
    weight: str = ""
    drop: tuple[str, ...] = ()
    groups: str = ""
    holdout: str = ""

    def beside(self) -> dict[str, str]:
        """What has one number a row beside the target, by its name in the dataset, which is also its option's."""
        named = {"weight": self.weight, "groups": self.groups, "holdout": self.holdout}
        return {role: name for role, name in named.items() if name}


@dataclass(frozen=True)
class Source:
    """A source as the dataset will have it: final shapes (of one row) and types, and an iterator over blocks."""

    rows: int
    fields: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
    blocks: Callable[[], Iterator[Block]]
    files: Mapping[str, Path]  # "source", and "target", "weight" and so on where they are files of their own
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    target_names: tuple[str, ...] = ()


class SparseSource(NamedTuple):
    """Sparse rows, what lies beside them (``y``, ``weight`` …), and a `Source` without blocks that describes both."""

    x: csr_array
    beside: dict[str, NDArray[Any]]
    described: Source


class Array(NamedTuple):
    """One array of a file: its header, and how to open the file at its first byte of data."""

    name: str  # for messages
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], IO[bytes]]
    columns_first: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def blocks(self, count: int, scratch: Path) -> Iterator[NDArray[Any]]:
        """Blocks of ``count`` rows; an array stored columns first is copied to ``scratch``, to be read in rows."""
        if self.columns_first:
            yield from self._transposed(count, scratch)
            return
        with readable(self.name), self.open() as file:
            for start in range(0, self.shape[0], count):
                rows = min(count, self.shape[0] - start)
                found = file.read(rows * self.row_bytes)
                self._check_length(start * self.row_bytes + len(found), (start + rows) * self.row_bytes)
                yield np.frombuffer(found, self.dtype).reshape(rows, *self.shape[1:])
            if file.read(1):
                raise DataError(f"{self.name} goes on after its {self.shape[0]} rows; get the file again")

    def _transposed(self, count: int, scratch: Path) -> Iterator[NDArray[Any]]:
        with tempfile.TemporaryFile(dir=scratch) as copy:
            with readable(self.name), self.open() as file:
                shutil.copyfileobj(file, copy, 2**20)
            self._check_length(copy.tell(), self.shape[0] * self.row_bytes)
            for start in range(0, self.shape[0], count):  # mapped anew each time, so that pages do not stay resident
                yield np.array(np.memmap(copy, self.dtype, "r", shape=self.shape, order="F")[start : start + count])

    def _check_length(self, got: int, expected: int) -> None:
        if got != expected:
            raise DataError(
                f"{self.name} ends early: got {got} bytes of data, expected {expected} for {self.shape[0]} rows; "
                "get the file again"
            )


def open_arrays(path: Path, wanted: Wanted, scratch: Path) -> Source:
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
    if len(wanted.target) > 1:
        raise SpecError(f"{path.name}: got {len(wanted.target)} targets; an array takes one, of several columns or not")
    arrays, files = _members(path, wanted) if path.suffix.lower() == ".npz" else _files(path, wanted, scratch)
    x = arrays["x"]
    if not 1 <= len(x.shape) <= 4 or 0 in x.shape[1:]:
        raise DataError(f"{x.name} has shape {x.shape}; expected (rows, columns) or (rows, height, width, channels)")
    for array in arrays.values():
        if array.shape[:1] != x.shape[:1]:
            rows = (*array.shape, 0)[0]
            raise DataError(f"{array.name} has {rows} rows but {x.name} has {x.shape[0]}; they must be as many")
    _check_numbers(x)
    fields = {"x": (_plain(x.dtype), x.shape[1:] + (1,) * (len(x.shape) in (1, 3)))} | _beside(arrays)
    classes: NDArray[Any] | None = None
    if "y" in arrays:
        fields["y"], classes = _target(arrays["y"], wanted.classes, scratch)
    elif wanted.classes:
        raise SpecError(f"{path.name}: classes were asked for without a target; name it with --target")

    def blocks() -> Iterator[Block]:
        count = max(1, BLOCK_BYTES // sum(a.row_bytes for a in arrays.values()))
        streams = (a.blocks(count, scratch) for a in arrays.values())
        for i, parts in enumerate(zip(*streams, strict=True)):
            block = dict(zip(arrays, parts, strict=True))
            if classes is not None:
                block["y"] = np.searchsorted(classes, block["y"].ravel())
            for role in (r for r in CODES if r in block):
                block[role] = CODES[role](block[role].ravel(), arrays[role].name, i * count)
            yield {k: v.reshape(len(v), *fields[k][1]).astype(fields[k][0], copy=False) for k, v in block.items()}

    names = () if classes is None else tuple(_class_name(c) for c in classes)
    return Source(x.shape[0], fields, blocks, files, classes=names)


def open_sparse(path: Path, wanted: Wanted, scratch: Path) -> SparseSource | None:
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
    if len(wanted.target) > 1:
        raise SpecError(f"{path.name}: got {len(wanted.target)} targets; an array takes one, of several columns or not")
    with readable(path.name):
        x = csr_array(load_npz(path))
    x.sum_duplicates()
    if x.ndim != 2 or 0 in x.shape or x.dtype.kind not in "biuf":
        raise DataError(
            f"{path.name} has shape {x.shape} and type {x.dtype}; expected rows and columns of real numbers"
        )
    x = x.astype(np.float32 if x.dtype == np.float32 else np.float64)
    files, beside_files = {"source": path}, _named_files(wanted, scratch)
    files |= beside_files
    arrays = {_ARRAYS.get(role, role): _array_file(file, role) for role, file in beside_files.items()}
    fields = _beside(arrays)
    classes: NDArray[Any] | None = None
    if "y" in arrays:
        fields["y"], classes = _target(arrays["y"], wanted.classes, scratch)
    elif wanted.classes:
        raise SpecError(f"{path.name}: classes were asked for without a target; name it with --target")
    beside = {}
    for name, array in arrays.items():
        if array.shape[0] != x.shape[0]:
            raise DataError(
                f"{array.name} has {array.shape[0]} rows but {path.name} has {x.shape[0]}; they must be as many"
            )
        values = np.concatenate(list(array.blocks(array.shape[0], scratch)))
        values = np.searchsorted(classes, values.ravel()) if name == "y" and classes is not None else values
        values = CODES[name](values.ravel(), array.name, 0) if name in CODES else values
        beside[name] = values.reshape(len(values), *fields[name][1]).astype(fields[name][0])
    names = () if classes is None else tuple(_class_name(c) for c in classes)
    return SparseSource(x, beside, Source(x.shape[0], fields, lambda: iter(()), files, classes=names))


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever a reader trips over becomes one sentence."""
    try:
        yield
    except NtkdistError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{name} cannot be read ({said}); mend the file or get it again") from error


def _members(path: Path, wanted: Wanted) -> tuple[dict[str, Array], dict[str, Path]]:
    with readable(path.name), zipfile.ZipFile(path) as file:
        known = [n.removesuffix(".npy") for n in file.namelist() if n.endswith(".npy")]
    target = wanted.target[0] if wanted.target else "y" if "y" in known else ""
    names = {"x": wanted.x} | ({"y": target} if target else {}) | wanted.beside()
    for role, name in names.items():
        if name not in known:
            option = "target" if role == "y" else role
            raise DataError(f"{path.name} has no array '{name}' (named by --{option}){nearest(name, known)}")

    def member(name: str) -> IO[bytes]:
        with zipfile.ZipFile(path) as file:  # the member keeps the file open
            return file.open(f"{name}.npy")

    return {k: _npy(f"array '{n}' of {path.name}", partial(member, n)) for k, n in names.items()}, {"source": path}


def _files(path: Path, wanted: Wanted, scratch: Path) -> tuple[dict[str, Array], dict[str, Path]]:
    if wanted.x != "x":
        raise SpecError(f"{path.name} has no array '{wanted.x}'; --x is for npz files")
    files = {"source": path} | _named_files(wanted, scratch)
    return {_ARRAYS.get(role, role): _array_file(file, role) for role, file in files.items()}, files


def _named_files(wanted: Wanted, scratch: Path) -> dict[str, Path]:
    """Files of their own, by role; what is in a bucket is copied to ``scratch``."""
    target = {"target": wanted.target[0]} if wanted.target else {}
    return {role: fetch(name, scratch / role) for role, name in (target | wanted.beside()).items()}


def _beside(arrays: Mapping[str, Array]) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Types of what has one number a row beside the target."""
    found = {role: dtype for role, dtype in DTYPES.items() if role in arrays}
    for role in found:
        _check_vector(arrays[role], "weights" if role == "weight" else role)
        if role != "groups":
            _check_numbers(arrays[role])
    return {role: (dtype, ()) for role, dtype in found.items()}


def _array_file(path: Path, role: str) -> Array:
    if not path.is_file():
        raise DataError(f"{path}: no such file (the {role}); for npy and IDX sources it is a file of the same kind")

    def opened() -> IO[bytes]:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")

    with readable(path.name), opened() as file:
        magic = file.read(6)
    if magic == b"\x93NUMPY":
        return _npy(path.name, opened)
    if magic[:2] == b"\0\0" and len(magic) >= 4 and magic[2] in IDX_TYPES:
        return _idx(path.name, opened, IDX_TYPES[magic[2]], magic[3])
    raise DataError(
        f"{path.name}: not a format that can be converted (it begins with {magic!r}); "
        "expected .npz, .npy, .csv, .csv.gz, .parquet or an IDX file"
    )


def _npy(name: str, opened: Callable[[], IO[bytes]]) -> Array:
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with readable(name), opened() as file:
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise DataError(f"{name} has npy version {version}; expected plain numbers, saved with numpy.save")
        shape, columns_first, dtype = headers[version](file)
        offset = file.tell()
    _check_plain(name, dtype)
    return Array(name, shape, dtype, _skipping(opened, offset), columns_first and sum(n != 1 for n in shape) > 1)


def _idx(name: str, opened: Callable[[], IO[bytes]], dtype: str, ndim: int) -> Array:
    with readable(name), opened() as file:
        shape = struct.unpack(f">{ndim}I", file.read(4 + 4 * ndim)[4:])
    return Array(name, shape, np.dtype(dtype), _skipping(opened, 4 + 4 * ndim))


def _skipping(opened: Callable[[], IO[bytes]], offset: int) -> Callable[[], IO[bytes]]:
    def at_data() -> IO[bytes]:
        file = opened()
        file.read(offset)
        return file

    return at_data


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


def _check_plain(name: str, dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which are never unpickled; save it as numbers or strings")


def _check_numbers(array: Array) -> None:
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise DataError(f"{array.name} has type {array.dtype}; expected real numbers of at most 64 bits")


def _check_vector(array: Array, what: str) -> None:
    if math.prod(array.shape[1:]) != 1 or array.dtype.kind not in "biufUS" or array.dtype.itemsize == 0:
        raise DataError(f"{array.name} has shape {array.shape} and type {array.dtype}; expected {what}, one a row")
