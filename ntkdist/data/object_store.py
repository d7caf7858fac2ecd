"""Object stores: the only file that knows of clouds.

A bucket is opened from its URL and the environment, once a process.  What does not answer is asked again for two
minutes, with pauses that grow, and then named in one sentence.  An object is written whole or not at all.
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
SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
PATIENCE_SECONDS = 120.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 8.0
# One request, with its body: a shard of 128 MiB at a megabyte a second.  What is retried at once is retried below us.
CLIENT: Any = {"timeout": "120s", "connect_timeout": "10s", "allow_http": True}  # http only where an endpoint says so
RETRIES: Any = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
# Where a cloud's own machines ask for credentials if the environment has none
METADATA = re.compile(r"https?://[^/\s]+/(latest/(api/token|meta-data)|computeMetadata/|metadata/identity/)")


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

    def __str__(self) -> str:  # obstore's own panics for Azure, where the account's name comes from the environment
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

    async def _create(self, at: str, value: Buffer) -> None:
        if not isinstance(self._store, FsspecStore):
            return await self._store.set_if_not_exists(at, value)
        try:  # Zarr would look first and write then
            await self._store.fs._pipe_file(f"{self._store.path}/{at}", value.to_bytes(), mode="create")
        except OSError as error:  # s3fs passes on what S3 says: a pre-condition did not hold
            if not isinstance(error, FileExistsError) and "pre-condition" not in str(error).lower():
                raise

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


async def listed(store: Store, prefix: str) -> list[str]:
    return [name async for name in store.list_dir(prefix)]


def _refusal(error: Exception, root: str) -> str:
    """What a store answered that asking again would not change, or ''."""
    if METADATA.search(str(error)):
        return (
            "no credentials were found in the environment of this process, and this machine has none from its cloud; "
            "set them here and for every worker"
        )
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


@functools.lru_cache(maxsize=64)
def open_bucket(root: str) -> Store:
    """The store of a bucket, opened once a process, with what the environment says."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        try:
            return FsspecStore.from_url(root, storage_options={"use_listings_cache": False})  # others write, too
        except ImportError as error:
            raise StoreError(
                f'{root} needs a package that is not installed ({error}); pip install "ntkdist[s3]", which has all '
                'object stores, or "ntkdist[fsspec]"'
            ) from None
    try:
        return ObjectStore(from_url(root, client_options=CLIENT, retry_config=RETRIES))
    except BaseError as error:
        raise StoreError(f"{root} cannot be opened ({_said(error)}); check what the environment says of it") from None
