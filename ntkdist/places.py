"""Places: what a path or URL names, and the store that holds it.  The only file that knows of clouds.

A place is a string wherever it travels.  A process that meets one opens its store from the string and from its own
environment, once a bucket, so that no credentials are ever sent or saved.  An object store that does not answer is
asked again for two minutes, with pauses that grow, and then named in one sentence.
"""

import asyncio
import functools
import os
import random
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync  # the one call without a public twin: it runs a store's coroutine from any thread
from zarr.storage import FsspecStore, LocalStore, ObjectStore, WrapperStore

from ntkdist.errors import DataError, StoreError

T = TypeVar("T")
SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
# One request, with its body: a shard of 128 MiB at a megabyte a second.  What is retried at once is retried below us.
CLIENT: Any = {"timeout": "120s", "connect_timeout": "10s", "allow_http": True}  # http only where an endpoint says so
RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
COPY_BYTES = 16 * 2**20


class MissingChunk(FileNotFoundError):
    """A chunk that is not there, or is empty, where Zarr would see one of fill values."""

    def __init__(self, key: str, state: str) -> None:
        super().__init__(key)
        self.key, self.state = key, state


class Strict(WrapperStore[Store]):
    """A store that, opened for reading, never takes a missing or empty chunk for fill values."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        found = await self._store.get(key, prototype, byte_range)
        if self.read_only and not key.endswith("zarr.json") and not found:
            raise MissingChunk(key, "missing" if found is None else "empty")
        return found


class Patient(WrapperStore[Store]):
    """What is below a place in a bucket; the bucket's store is asked again where it did not answer.

    Raises
    ------
    StoreError
        If it still does not after `PATIENCE_SECONDS`, or refuses.
    """

    def __init__(self, store: Store, root: str, below: str = "") -> None:
        super().__init__(store)
        self.root, self.below = root, below

    def _with_store(self, store: Store) -> "Patient":
        return type(self)(store, self.root, self.below)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await self._ask(key, lambda at: self._store.get(at, prototype, byte_range))

    async def getsize(self, key: str) -> int:
        return await self._ask(key, self._store.getsize)

    async def exists(self, key: str) -> bool:
        return await self._ask(key, self._store.exists)

    async def is_empty(self, prefix: str) -> bool:
        return await self._ask(prefix, self._store.is_empty)

    async def set(self, key: str, value: Buffer) -> None:
        await self._ask(key, lambda at: self._store.set(at, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._ask(key, lambda at: self._create(at, value))

    async def delete(self, key: str) -> None:
        await self._ask(key, self._store.delete)

    async def delete_dir(self, prefix: str) -> None:
        await self._ask(prefix, self._store.delete_dir)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._ask(prefix, lambda at: _listed(self._store, at)):
            yield name

    async def _create(self, at: str, value: Buffer) -> None:
        if not isinstance(self._store, FsspecStore):
            return await self._store.set_if_not_exists(at, value)
        try:  # Zarr would look first and write then
            await self._store.fs._pipe_file(f"{self._store.path}/{at}", value.to_bytes(), mode="create")
        except FileExistsError:
            return None

    async def _ask(self, key: str, call: Callable[[str], Awaitable[T]]) -> T:
        at = "/".join(part for part in (self.below, key) if part)
        start, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return await call(at)
            except (TypeError, ValueError, NotImplementedError):  # not of the store's making
                raise
            except Exception as error:
                if why := _refusal(error, self.root):
                    raise StoreError(f"{self.root}/{at}: {why}") from None
                if time.monotonic() - start + pause > PATIENCE_SECONDS:
                    raise StoreError(
                        f"{self.root}/{at}: the store has not answered for {PATIENCE_SECONDS:.0f} s ({_said(error)}); "
                        "check its endpoint and the credentials in the environment, and run again"
                    ) from None
            await asyncio.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _listed(store: Store, prefix: str) -> list[str]:
    return [name async for name in store.list_dir(prefix)]


def _refusal(error: Exception, root: str) -> str:
    """What a store answered that asking again would not change, or ''."""
    found = re.search(r"status code: (\d{3})", str(error))
    status, kind = int(found[1]) if found else 0, type(error).__name__
    denied = ("PermissionDeniedError", "UnauthenticatedError", "NoCredentialsError", "ClientAuthenticationError")
    if isinstance(error, PermissionError) or kind in denied or status in (401, 403):
        return (
            f"access was refused ({_said(error)}); check the credentials in the environment of this process and of "
            "every worker"
        )
    if isinstance(error, FileNotFoundError) or status == 404:
        return f"not found; check that {root} exists, or create it"
    if 400 <= status < 500 and status not in (408, 409, 429):
        return f"the store refused the request ({_said(error)})"
    return ""


def _said(error: Exception) -> str:
    """The first line of an error, without queries, which may hold signatures."""
    first = re.sub(r"\?\S+", "", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {' '.join(first.split())[:200]}"


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
    if scheme not in SCHEMES or not bucket:
        raise StoreError(
            f"cannot open {url.partition('?')[0]}: expected a path, file://, or {', '.join(SCHEMES)} with a bucket, "
            "as in s3://bucket/name"
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
    return Strict(Patient(_bucket(root), root, key))


def _at(url: str) -> tuple[Store, str]:
    """The store that holds an object or file, and its key there."""
    if is_local(url):
        path = local_path(url).absolute()
        return LocalStore(path.parent), path.name
    root, key = _split(url)
    return Patient(_bucket(root), root), key


def _split(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key.strip("/")


@functools.lru_cache(maxsize=64)
def _bucket(root: str) -> Store:
    """The store of a bucket, opened once a process, with what the environment says."""
    try:
        from obstore.store import from_url
    except ImportError:
        try:
            return FsspecStore.from_url(root, storage_options={"use_listings_cache": False})  # others write, too
        except ImportError as error:
            raise StoreError(
                f'{root} needs a package that is not installed ({error}); pip install "ntkdist[s3]", which has all '
                'object stores, or "ntkdist[fsspec]"'
            ) from None
    return ObjectStore(from_url(root, client_options=CLIENT, retry_config=RETRIES))


def exists(url: str) -> bool:
    """Whether there is something: a file or an object, or anything below."""
    if is_local(url):
        return local_path(url).exists()
    store, key = _at(url)
    return sync(store.exists(key)) or not sync(store.is_empty(key))


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


def empty(url: str) -> bool:
    """Whether there is nothing, or a directory with nothing in it."""
    return not exists(url) or (is_local(url) and local_path(url).is_dir() and not names(url))


def names(url: str) -> list[str]:
    """Names of what is right below a place; none where there is nothing."""
    if is_local(url):
        path = local_path(url)
        return sorted(os.listdir(path)) if path.is_dir() else []
    return sorted(sync(_listed(*_at(url))))


def read_text(url: str) -> str | None:
    """The text of a small file or object, or None if there is none."""
    store, key = _at(url)
    found = sync(store.get(key, default_buffer_prototype()))
    return None if found is None else found.to_bytes().decode()


def write_text(url: str, text: str) -> None:
    """Write a small file or object, whole or not at all, over what was there."""
    store, key = _at(url)
    sync(store.set(key, _buffer(text)))


def claim(url: str, text: str) -> str:
    """Write a small file or object if there is none, and return what is there then.

    Of many processes that claim one place at once, all get the text of the same one.
    """
    store, key = _at(url)
    sync(store.set_if_not_exists(key, _buffer(text)))
    found = read_text(url)
    if found is None:
        raise StoreError(f"{url} was removed while it was written; run again")
    return found


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


def _buffer(text: str) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(text.encode())
