"""Arrays of files, read in blocks of rows: npy (plain, gzipped or a member of an npz) and IDX.

Nothing is unpickled.  A file must hold exactly the bytes that its header announces.
"""

import gzip
import math
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ntkdist.errors import DataError, NtkdistError

IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Translate any error of a reader into a `DataError` of one sentence."""
    try:
        yield
    except NtkdistError:
        raise
    except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        why = " ".join(str(error).split())[:200]
        raise DataError(f"{name} cannot be read ({why}); mend the file or get it again") from error


class Array(NamedTuple):
    """An array of a file, as its header describes it."""

    name: str  # for messages
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], IO[bytes]]
    offset: int  # of the first byte of data
    columns_first: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @contextmanager
    def _data(self) -> Iterator[IO[bytes]]:
        with readable(self.name), self.open() as file:
            file.read(self.offset)
            yield file

    def blocks(self, count: int, scratch: Path) -> Iterator[NDArray[Any]]:
        """Yield blocks of ``count`` rows; an array stored columns first is copied to ``scratch`` for this."""
        if self.columns_first:
            yield from self._transposed(count, scratch)
            return
        with self._data() as file:
            for start in range(0, self.shape[0], count):
                rows = min(count, self.shape[0] - start)
                data = file.read(rows * self.row_bytes)
                self._check_length(start * self.row_bytes + len(data), (start + rows) * self.row_bytes)
                yield np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
            if file.read(1):
                raise DataError(f"{self.name} goes on after its {self.shape[0]} rows; get the file again")

    def _transposed(self, count: int, scratch: Path) -> Iterator[NDArray[Any]]:
        with tempfile.TemporaryFile(dir=scratch) as copy:
            with self._data() as file:
                shutil.copyfileobj(file, copy, 2**20)
            self._check_length(copy.tell(), self.shape[0] * self.row_bytes)
            for start in range(0, self.shape[0], count):  # a new map each time, so that pages do not stay resident
                yield np.array(np.memmap(copy, self.dtype, "r", shape=self.shape, order="F")[start : start + count])

    def _check_length(self, got: int, expected: int) -> None:
        if got != expected:
            raise DataError(
                f"{self.name} ends early: got {got} bytes of data, expected {expected} for {self.shape[0]} rows; "
                "get the file again"
            )


def array_file(path: Path, role: str) -> Array:
    """Open the array of an npy or IDX file, which is recognised by its first bytes."""
    if not path.is_file():
        raise DataError(f"{path}: no such file (the {role}); for npy and IDX sources it is a file of the same kind")

    def opened() -> IO[bytes]:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        return cast(IO[bytes], gzip.open(path)) if zipped else path.open("rb")

    with readable(path.name), opened() as file:
        magic = file.read(6)
    if magic == b"\x93NUMPY":
        return npy_array(path.name, opened)
    if magic[:2] == b"\0\0" and len(magic) >= 4 and magic[2] in IDX_TYPES:
        return _idx(path.name, opened, IDX_TYPES[magic[2]], magic[3])
    raise DataError(
        f"{path.name}: not a format that can be converted (it begins with {magic!r}); "
        "expected .npz, .npy, an IDX file, or a table (.csv, .tsv, .jsonl, also .gz; .parquet, .feather, .arrow)"
    )


def npy_array(name: str, opened: Callable[[], IO[bytes]]) -> Array:
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with readable(name), opened() as file:
        version = np.lib.format.read_magic(file)
        if version not in headers:
            raise DataError(f"{name} has npy version {version}; expected plain numbers, saved with numpy.save")
        shape, columns_first, dtype = headers[version](file)
        offset = file.tell()
    if dtype.hasobject:
        raise DataError(f"{name} holds Python objects, which are never unpickled; save it as numbers or strings")
    return Array(name, shape, dtype, opened, offset, columns_first and sum(n != 1 for n in shape) > 1)


def _idx(name: str, opened: Callable[[], IO[bytes]], dtype: str, ndim: int) -> Array:
    with readable(name), opened() as file:
        shape = struct.unpack(f">{ndim}I", file.read(4 + 4 * ndim)[4:])
    return Array(name, shape, np.dtype(dtype), opened, 4 + 4 * ndim)
