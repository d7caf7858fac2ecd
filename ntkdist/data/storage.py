"""Files and directories by path or URL, on disk or in an object store.

A location is a string, also where it is sent or saved; each process opens it with credentials from its own environment,
so credentials are never sent or saved.
"""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync  # runs a store's coroutine from any thread; Zarr has no public function for it
from zarr.storage import LocalStore, WrapperStore

from ntkdist.data import object_store
from ntkdist.errors import DataError, StoreError

PARTIAL = "partial"  # in the name of a file that is being written
COPY_BYTES = 16 * 2**20


class MissingChunk(FileNotFoundError):
    """A missing chunk, which Zarr would read as fill values."""

    def __init__(self, key: str) -> None:
        super().__init__(f"chunk {key} is missing")
        self.key = key


class Strict(WrapperStore[Store]):
    """A store that, opened for reading, raises on a missing or empty chunk instead of reading fill values."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        chunk = await self._store.get(key, prototype, byte_range)
        if self.read_only and not key.endswith("zarr.json"):
            if chunk is None:
                raise MissingChunk(key)
            if not chunk:
                raise ValueError(f"chunk {key} is empty")
        return chunk


def is_local(url: str) -> bool:
    """Return whether a location is a path or a ``file://`` URL, not an object store's; refuse any other URL."""
    if "://" not in url or url.startswith("file:"):
        return True
    scheme, _, rest = url.partition("://")
    bucket = rest.partition("/")[0]
    if scheme not in object_store.SCHEMES or not bucket:
        raise StoreError(
            f"cannot open {url.partition('?')[0]}: expected a path, file://, or {', '.join(object_store.SCHEMES)} "
            "with a bucket, as in s3://bucket/name"
        )
    if "?" in rest or ":" in bucket or ("@" in bucket and not scheme.startswith("abfs")):
        raise StoreError(f"cannot open a {scheme}:// URL with credentials or a query; give them in the environment")
    return False


def check_shared(url: str) -> None:
    """Raise a `StoreError` if a location is in the memory of this process, which workers do not see."""
    if url.startswith(f"{object_store.MEMORY}:"):
        raise StoreError(f"{url} is in the memory of this process, which workers do not see; use a file or a bucket")


def local_path(url: str) -> Path:
    assert is_local(url), url
    return Path(unquote(urlparse(url).path)) if url.startswith("file:") else Path(url)


def absolute(url: str) -> str:
    """Return the location as seen from any working directory."""
    return str(local_path(url).absolute()) if is_local(url) else url


def join(url: str, *names: str) -> str:
    """Return the location of names below a location."""
    return "/".join((url.rstrip("/") if len(url) > 1 else url, *names))


def name(url: str) -> str:
    """Return the last part of a path or URL, without spaces; "" for none."""
    return "-".join(url.rstrip("/").rsplit("/", 1)[-1].split())


def open_store(url: str) -> Store:
    """Return the Zarr store of a location; the connection to its bucket is reused."""
    return Strict(open_plain_store(url))


def open_plain_store(url: str) -> Store:
    """Return a store that reads what was never written as fill values, as others' groups may ask for."""
    return LocalStore(local_path(url)) if is_local(url) else _below(url)


def _below(url: str) -> object_store.Patient:
    """Return the part of a bucket at a URL and below it; the key of an object that is there is ""."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    root = f"{scheme}://{bucket}"
    return object_store.Patient(object_store.open_bucket(root), root, key.strip("/"))


def exists(url: str) -> bool:
    """Return whether a file, a directory, an object or anything below the location exists."""
    if is_local(url):
        return local_path(url).exists()
    store = _below(url)
    return sync(store.exists("")) or not sync(store.is_empty(""))


def is_file(url: str) -> bool:
    """Return whether the location is a file or an object."""
    if is_local(url):
        return local_path(url).is_file()
    store = _below(url)  # of fsspec, a place exists too if something is below it
    return sync(store.exists("")) and not any(sync(object_store.listed_below(store)))


def files(url: str) -> list[str]:
    """List the locations of all files or objects below a location, sorted; none if nothing exists there."""
    if not is_local(url):
        return sorted(join(url, name) for name in sync(object_store.listed_below(_below(url))))
    return sorted(str(path) for path in local_path(url).rglob("*") if path.is_file())


def empty(url: str) -> bool:
    """Return whether nothing exists there, or a directory without any finished file."""
    return not exists(url) or (is_local(url) and local_path(url).is_dir() and not names(url))


def names(url: str) -> list[str]:
    """List the names directly below a location, without unfinished files; none if nothing exists there."""
    if not is_local(url):
        return sorted(sync(object_store.listed(_below(url), "")))
    path = local_path(url)
    return sorted(p.name for p in path.iterdir() if not _is_unfinished(p)) if path.is_dir() else []


def sweep(url: str) -> None:
    """Remove unfinished files that killed writers left in a directory; a bucket never shows unfinished objects."""
    if is_local(url) and local_path(url).is_dir():
        for path in filter(_is_unfinished, list(local_path(url).iterdir())):
            remove(str(path))


def unfinished(path: Path) -> Path:
    """Return the name of a file or directory until it is finished."""
    return path.with_name(f".{path.name}.{PARTIAL}")


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and f".{PARTIAL}" in path.name


def check_directory(url: str) -> None:
    """Raise a `StoreError` unless a local path is, or can become, a writable directory; a bucket is not checked."""
    if not is_local(url):
        return
    path = local_path(url)
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise StoreError(f"{url} cannot be a run directory: {nearest} is not a directory that can be written to")


def read_text(url: str) -> str | None:
    """Read the text of a small file or object; None if it does not exist."""
    if is_local(url):
        path = local_path(url)
        return path.read_text() if path.exists() else None
    content = sync(_below(url).get("", default_buffer_prototype()))
    return None if content is None else content.to_bytes().decode()


def write_text(url: str, text: str) -> None:
    """Write or replace a small file or object, whole or not at all; raise a `StoreError` if that fails."""
    if is_local(url):
        _write_file(url, text, os.replace)
    else:
        sync(_below(url).set("", _buffer(text.encode())))


def claim(url: str, text: str) -> str:
    """Write a small file or object unless it exists, and return its text, the same to all who claim it at once."""
    if is_local(url):
        _write_file(url, text, _link)
    else:
        sync(_below(url).set_if_not_exists("", _buffer(text.encode())))
    claimed = read_text(url)
    if claimed is None:
        raise StoreError(f"{url} was removed while it was written; run again")
    return claimed


@contextmanager
def new_directory(url: str) -> Iterator[Path]:
    """Yield a directory whose files appear at a location if the block succeeds: at once, in a bucket one by one."""
    if not is_local(url):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            for path in sorted(Path(scratch).iterdir()):
                sync(_below(url).set(path.name, _buffer(path.read_bytes())))
        return
    final = local_path(url)
    partial = unfinished(final)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(url):
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(partial: Path, path: Path) -> None:
    """Give a finished file its name, unless that exists."""
    with suppress(FileExistsError):
        os.link(partial, path)


def _write_file(url: str, text: str, appear: Callable[[Path, Path], None]) -> None:
    """Write text under another name, and call ``appear`` to give the file its own."""
    path = local_path(url)
    partial = Path(f"{unfinished(path)}{uuid.uuid4().hex}")
    try:
        with writing(url):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
            appear(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(url: str) -> Iterator[None]:
    """Translate an error of the operating system in writing into a `StoreError`."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{url} cannot be written ({error.strerror or error}); make room there, or choose another place"
        ) from error


def remove(url: str) -> None:
    """Remove a file or directory, or an object and all below it, if it exists."""
    if is_local(url):
        path = local_path(url)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return
    store = _below(url)
    sync(store.delete("zarr.json"))  # first, so that a half-removed group cannot be opened
    sync(store.delete_dir(""))
    sync(store.delete(""))


@contextmanager
def new_file(url: str) -> Iterator[Path]:
    """Yield the path of a file to write, which appears at a location if the block succeeds, whole or not at all."""
    if not is_local(url):
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "file"
            yield path
            mapped: Any = np.memmap(path, np.uint8, "r")  # no copy of the file in memory
            sync(_below(url).set("", default_buffer_prototype().buffer.from_array_like(mapped)))
        return
    final = local_path(url).absolute()
    partial = unfinished(final)
    try:
        with writing(url):
            yield partial
            os.replace(partial, final)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def scratch(url: str) -> Iterator[str]:
    """Yield a new location beside another, which every process sees that sees the other; it is removed in the end."""
    name = f".{url.rstrip('/').rpartition('/')[2]}.{PARTIAL}-{uuid.uuid4().hex}"
    place = str(local_path(url).absolute().with_name(name)) if is_local(url) else join(url.rpartition("/")[0], name)
    try:
        yield place
    finally:
        remove(place)


def fetch(url: str, directory: Path) -> Path:
    """Return a file to read: the local file itself, or a copy of an object, made in ``directory``."""
    if is_local(url):
        return local_path(url)
    store = _below(url)
    if not sync(store.exists("")):
        raise DataError(f"{url}: no such object; check the URL")
    directory.mkdir()
    path, size = directory / store.below.rpartition("/")[2], sync(store.getsize(""))
    with path.open("wb") as file:
        for start in range(0, size, COPY_BYTES):
            span = RangeByteRequest(start, min(start + COPY_BYTES, size))
            part = sync(store.get("", default_buffer_prototype(), span))
            if part is None or len(part) != span.end - start:
                raise DataError(f"{url} changed while it was read; run again")
            file.write(part.to_bytes())
    return path


def read(urls: Sequence[str]) -> list[bytes]:
    """Read files or objects that are small, those of a bucket at the same time.

    Raises
    ------
    DataError
        If one does not exist.
    """
    if all(map(is_local, urls)):
        return [local_path(url).read_bytes() for url in urls]
    found = sync(_all_at_once(urls))
    if None in found:
        raise DataError(f"{urls[found.index(None)]}: no such object; check the URL")
    return [each.to_bytes() for each in found if each is not None]


async def _all_at_once(urls: Sequence[str]) -> list[Buffer | None]:
    return await asyncio.gather(*(_below(url).get("", default_buffer_prototype()) for url in urls))


def _buffer(content: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(content)
