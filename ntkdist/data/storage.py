"""Places: what a path or URL names, and what one does with what lies there, on disk or in a bucket.

A place is a string wherever it travels; a process that meets one opens it from the string and from its own environment,
so that no credentials are ever sent or saved.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlparse

from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync  # the one call without a public twin: it runs a store's coroutine from any thread
from zarr.storage import LocalStore, WrapperStore

from ntkdist.data import object_store
from ntkdist.errors import DataError, StoreError

PARTIAL = "partial"  # in the name of a file that is being written
COPY_BYTES = 16 * 2**20


class MissingChunk(FileNotFoundError):
    """A chunk that is not there, where Zarr would see one of fill values."""

    def __init__(self, key: str) -> None:
        super().__init__(f"chunk {key} is missing")
        self.key = key


class Strict(WrapperStore[Store]):
    """A store that, opened for reading, never takes a missing or empty chunk for fill values."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await self._store.get(key, prototype, byte_range)
        if self.read_only and not key.endswith("zarr.json"):
            if found is None:
                raise MissingChunk(key)
            if not found:
                raise ValueError(f"chunk {key} is empty")
        return found


def is_local(url: str) -> bool:
    """Whether a place is a path or a ``file://`` URL.

    Raises
    ------
    StoreError
        If it is neither, nor a URL of an object store without credentials in it.
    """
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


def local_path(url: str) -> Path:
    """The path that a plain path or ``file://`` URL means."""
    assert is_local(url), url
    return Path(unquote(urlparse(url).path)) if url.startswith("file:") else Path(url)


def absolute(url: str) -> str:
    """The same place for a process with another working directory."""
    return str(local_path(url).absolute()) if is_local(url) else url


def join(url: str, *names: str) -> str:
    """The place of a name below another place."""
    return "/".join((url.rstrip("/") if len(url) > 1 else url, *names))


def open_store(url: str) -> Store:
    """What is at and below a place, for Zarr; opened anew, it costs no connection."""
    if is_local(url):
        return Strict(LocalStore(local_path(url)))
    root, key = _split(url)
    return Strict(object_store.Patient(object_store.open_bucket(root), root, key))


def _at(url: str) -> tuple[Store, str]:
    """The bucket that holds an object, and its key there."""
    root, key = _split(url)
    return object_store.Patient(object_store.open_bucket(root), root), key


def _split(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key.strip("/")


def exists(url: str) -> bool:
    """Whether there is something: a file or an object, or anything below."""
    if is_local(url):
        return local_path(url).exists()
    store, key = _at(url)
    return sync(store.exists(key)) or not sync(store.is_empty(key))


def empty(url: str) -> bool:
    """Whether there is nothing, or a directory with nothing finished in it."""
    return not exists(url) or (is_local(url) and local_path(url).is_dir() and not names(url))


def names(url: str) -> list[str]:
    """Names of what is right below a place, less what is not finished; none where there is nothing."""
    if not is_local(url):
        return sorted(sync(object_store.listed(*_at(url))))
    path = local_path(url)
    return sorted(p.name for p in path.iterdir() if not _unfinished(p)) if path.is_dir() else []


def sweep(url: str) -> None:
    """Remove from a directory what writers that were killed left unfinished; in a bucket, nothing shows before."""
    if is_local(url) and local_path(url).is_dir():
        for path in filter(_unfinished, list(local_path(url).iterdir())):
            remove(str(path))


def _unfinished(path: Path) -> bool:
    return path.name.startswith(".") and f".{PARTIAL}" in path.name


def check_directory(url: str) -> None:
    """See that a place is, or could be made, a directory to write to; of a bucket only writing tells.

    Raises
    ------
    StoreError
        If it cannot.
    """
    if not is_local(url):
        return
    place = local_path(url)
    nearest = next(p for p in (place, *place.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise StoreError(f"{url} cannot be a run directory: {nearest} is not a directory that can be written to")


def read_text(url: str) -> str | None:
    """The text of a small file or object, or None if there is none."""
    if is_local(url):
        path = local_path(url)
        return path.read_text() if path.exists() else None
    store, key = _at(url)
    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes().decode()


def write_text(url: str, text: str) -> None:
    """Write a small file or object, whole or not at all, over what was there.

    Raises
    ------
    StoreError
        If it cannot be written, as on a full disk.
    """
    if is_local(url):
        _write_file(url, text, os.replace)
    else:
        store, key = _at(url)
        sync(store.set(key, _buffer(text.encode())))


def claim(url: str, text: str) -> str:
    """Write a small file or object if there is none, and return what is there then.

    Of many processes that claim one place at once, all get the text of the same one.

    Raises
    ------
    StoreError
        If it cannot be written, or was removed meanwhile.
    """
    if is_local(url):
        _write_file(url, text, _link)
    else:
        store, key = _at(url)
        sync(store.set_if_not_exists(key, _buffer(text.encode())))
    found = read_text(url)
    if found is None:
        raise StoreError(f"{url} was removed while it was written; run again")
    return found


@contextmanager
def new_directory(url: str) -> Iterator[Path]:
    """A directory for files that are at a place when the block ends, all at once; in a bucket, one after the other.

    When the block fails, nothing is there.
    """
    if not is_local(url):
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
            for path in sorted(Path(scratch).iterdir()):
                store, key = _at(join(url, path.name))
                sync(store.set(key, _buffer(path.read_bytes())))
        return
    final = local_path(url)
    partial = final.with_name(f".{final.name}.{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(url):
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(partial: Path, path: Path) -> None:
    with suppress(FileExistsError):
        os.link(partial, path)


def _write_file(url: str, text: str, appear: Callable[[Path, Path], None]) -> None:
    path = local_path(url)
    partial = path.with_name(f".{path.name}.{PARTIAL}{uuid.uuid4().hex}")
    try:
        with writing(url):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
            appear(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing(url: str) -> Iterator[None]:
    """What the system refuses to write, as one sentence."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{url} cannot be written ({error.strerror or error}); make room there, or choose another place"
        ) from error


def remove(url: str) -> None:
    """Remove a file or directory, an object or all below a place, if there is something."""
    if is_local(url):
        path = local_path(url)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        return
    store, key = _at(url)
    sync(store.delete(f"{key}/zarr.json"))  # first, so that nobody takes what is left of a group for whole
    sync(store.delete_dir(key))
    sync(store.delete(key))


def fetch(url: str, directory: Path) -> Path:
    """A file to read: the local one itself, or a copy of an object in a directory.

    Raises
    ------
    DataError
        If there is no such file.
    """
    if is_local(url):
        return local_path(url)
    store, key = _at(url)
    if not sync(store.exists(key)):
        raise DataError(f"{url}: no such object; check the URL")
    directory.mkdir()
    path, size = directory / key.rpartition("/")[2], sync(store.getsize(key))
    with path.open("wb") as file:
        for start in range(0, size, COPY_BYTES):
            span = RangeByteRequest(start, min(start + COPY_BYTES, size))
            part = sync(store.get(key, default_buffer_prototype(), span))
            if part is None or len(part) != span.end - start:
                raise DataError(f"{url} changed while it was read; run again")
            file.write(part.to_bytes())
    return path


def _buffer(content: bytes) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(content)
