"""Buckets of object stores, the only module that knows clouds.

A bucket is opened from its URL and the environment, once per process.  A request without an answer is repeated for two
minutes, with growing pauses, and then raises an error of one sentence.  An object is written whole or not at all.
"""

import asyncio
import functools
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, ObjectStore, WrapperStore

from ntkdist.errors import StoreError

T = TypeVar("T")
MEMORY = "memory"  # scheme of fsspec's files in the memory of this process, which no other process sees
SCHEMES = ("s3", "gs", "az", "abfs", "abfss", MEMORY)
PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
# The timeout is of one request with its body: a shard of 128 MiB at a megabyte per second.  obstore retries at once.
# Plain http is for an endpoint of http:// only.
CLIENT: Any = {"timeout": "120s", "connect_timeout": "10s", "allow_http": True}
RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
# Addresses of a cloud's metadata service, which is asked for credentials if the environment has none
METADATA = re.compile(r"https?://[^/\s]+/(latest/(api/token|meta-data)|computeMetadata/|metadata/identity/)")


class Patient(WrapperStore[Store]):
    """A store below a key of a bucket that repeats failed requests, and raises a `StoreError` in the end."""

    def __init__(self, store: Store, root: str, below: str = "") -> None:
        super().__init__(store)
        self.root, self.below = root, below

    def _with_store(self, store: Store) -> "Patient":
        return type(self)(store, self.root, self.below)

    def __str__(self) -> str:  # obstore's own panics for Azure if the account's name comes from the environment
        return "/".join(part for part in (self.root, self.below) if part)

    __repr__ = __str__

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
        for name in await self._ask(prefix, lambda at: listed(self._store, at)):
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for name in await self._ask(prefix, lambda at: _all(self._store, f"{at}/" if at else "")):
            yield name

    async def _create(self, at: str, value: Buffer) -> None:
        """Write an object unless it exists."""
        if not isinstance(self._store, FsspecStore):
            return await self._store.set_if_not_exists(at, value)
        try:  # Zarr's own method first asks whether it exists and then writes, which is not atomic
            await self._store.fs._pipe_file(f"{self._store.path}/{at}", value.to_bytes(), mode="create")
        except OSError as error:  # of s3fs, with S3's message that a pre-condition did not hold
            if not isinstance(error, FileExistsError) and "pre-condition" not in str(error).lower():
                raise

    async def _ask(self, key: str, call: Callable[[str], Awaitable[T]]) -> T:
        """Make a request until it is answered, refused, or out of time."""
        at = "/".join(part for part in (self.below, key) if part)
        start, pause = time.monotonic(), FIRST_PAUSE_SECONDS
        while True:
            try:
                return await call(at)
            except (TypeError, ValueError, NotImplementedError):  # a wrong call, no failure of the store
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


async def listed(store: Store, prefix: str) -> list[str]:
    """List the names directly below a prefix."""
    return [name async for name in store.list_dir(prefix)]


async def listed_below(store: Patient) -> list[str]:
    """List the keys of all objects below a store's own key, from there on."""
    return [name.removeprefix(store.below).lstrip("/") async for name in store.list_prefix("")]


async def _all(store: Store, prefix: str) -> list[str]:
    return [name async for name in store.list_prefix(prefix)]


def _refusal(error: Exception, root: str) -> str:
    """Explain an error that repeating the request would not change; '' for any other."""
    if METADATA.search(str(error)):
        return (
            "no credentials were found in the environment of this process, and this machine has none from its cloud; "
            "set them here and for every worker"
        )
    code = re.search(r"status code: (\d{3})", str(error))
    status, kind = int(code[1]) if code else 0, type(error).__name__
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
    """Return the first line of an error, without queries, which may hold signatures."""
    first = re.sub(r"\?\S+", "", str(error).partition("\n")[0])
    return f"{type(error).__name__}: {' '.join(first.split())[:200]}"


@functools.lru_cache(maxsize=64)
def open_bucket(root: str) -> Store:
    """Open the store of a bucket with the settings of the environment, once per process."""
    if root.startswith(f"{MEMORY}:"):
        return FsspecStore.from_url(root)
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        try:
            return FsspecStore.from_url(root, storage_options={"use_listings_cache": False})  # other processes write
        except ImportError as error:
            raise StoreError(
                f'{root} needs a package that is not installed ({error}); pip install "ntkdist[s3]", which has all '
                'object stores, or "ntkdist[fsspec]"'
            ) from None
    try:
        return ObjectStore(from_url(root, client_options=CLIENT, retry_config=RETRIES))
    except BaseError as error:
        raise StoreError(f"{root} cannot be opened ({_said(error)}); check what the environment says of it") from None
