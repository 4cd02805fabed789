"""The storage over an obstore store.

An object appears whole or not at all. obstore may repeat a request whose reply was lost, so a create that meets an
object may have met its own. Neighbours: `requests` guards every request, `pack` is a pack on its way up.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vstore.clock import from_datetime
from vstore.errors import (
    CorruptionError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageError,
    UnsafeStorageError,
)
from vstore.ids import PackId, new_nonce
from vstore.keys.objects import SQLITE_FILE, check_object_name, pack_name
from vstore.storage.base import ObjectInfo, PackPolicy, require_writable
from vstore.storage.names import check_prefix, check_range, is_object_name
from vstore.storage.objects.pack import ObjectPack
from vstore.storage.objects.requests import check_process, request
from vstore.storage.objects.stores import borrow_memory_store, describe, is_a, lend_memory_store

if TYPE_CHECKING:
    from obstore.store import ObjectStore

REMOTE_PACKS = PackPolicy(target_bytes=32 * 1024 * 1024, buffer_bytes=32 * 1024 * 1024, direct_bytes=None)
DELETE_BATCH = 256
"""Azure takes no more at once."""
LIST_BATCH = 1000

_RANGE_TROUBLE = re.compile(r"range|416", re.IGNORECASE)


class ObjectStorage:
    """A `Storage` over an obstore store, below the folder `prefix` in it.

    `url` names it in messages; by default it is made from the store, without its secrets. `token` is the name of a
    MemoryStore in this process's pickles.
    """

    is_local = False
    pack_policy = REMOTE_PACKS

    def __init__(
        self, store: ObjectStore, prefix: str = "", *, url: str | None = None, token: str = ""
    ) -> None:
        self._store = store
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._token = token or new_nonce().hex()
        self.reads_only = is_a(store, "HTTPStore")
        self.url = url if url is not None else describe(store, self._prefix)

    def __repr__(self) -> str:
        return f"ObjectStorage({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # The pickle of most stores holds their credentials in clear.
        if is_a(self._store, "MemoryStore"):
            lend_memory_store(self._store, self._token)
            return _restore_memory, (self._token, self._prefix, self.url)
        return _restore, (self._store, self._prefix, self.url)

    # Reading

    def read(self, name: str, offset: int, length: int) -> memoryview:
        path = self._path(name)
        check_range(offset, length)
        if not length:
            return self._check_offset(name, offset, self.size(name))
        try:
            with request("read", self._where(name)):
                data = memoryview(self._store.get_range(path, start=offset, length=length))
        except StorageError as error:
            if _RANGE_TROUBLE.search(error.message):
                self._check_size(name, offset + length, self.size(name))
            raise
        return self._check_length(name, offset, length, data)

    async def read_async(self, name: str, offset: int, length: int) -> memoryview:
        path = self._path(name)
        check_range(offset, length)
        if not length:
            return self._check_offset(name, offset, await self._size_async(name))
        try:
            with request("read", self._where(name)):
                data = memoryview(await self._store.get_range_async(path, start=offset, length=length))
        except StorageError as error:
            if _RANGE_TROUBLE.search(error.message):
                self._check_size(name, offset + length, await self._size_async(name))
            raise
        return self._check_length(name, offset, length, data)

    def read_tail(self, name: str, length: int) -> tuple[memoryview, int]:
        path = self._path(name)
        check_range(0, length)
        try:
            with request("read the end of", self._where(name)):
                result = self._store.get(path, options={"range": {"suffix": length}})
                size = result.meta["size"]
                tail = memoryview(result.bytes())
            if len(tail) == min(length, size):
                return tail, size
        except StorageError as error:
            if not isinstance(error, UnsafeStorageError) and not _RANGE_TROUBLE.search(error.message):
                raise
        # Azure has no suffix ranges, S3 none of empty objects, and some servers get them wrong: two requests then.
        found = self._existing(name, self.size(name))
        wanted = min(length, found)
        return self.read(name, found - wanted, wanted), found

    def read_whole(self, name: str, limit: int) -> bytes:
        path = self._path(name)
        with request("read", self._where(name)):
            result = self._store.get(path)
            size = result.meta["size"]
            if size <= limit:
                return result.bytes().to_bytes()
        raise CorruptionError(
            f"{self._where(name)} holds {size} bytes where at most {limit} are expected. Run fsck."
        )

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            with request("look up", self._where(name)):
                return self._store.head(path)["size"]
        except ObjectNotFoundError:
            return None

    def has_sqlite_catalog(self) -> bool:
        """Tell whether a repository's files lie here whose catalog works only in a directory."""
        try:
            with request("look up", self._where(SQLITE_FILE)):
                self._store.head(self._prefix + SQLITE_FILE)
        except StorageError:
            return False
        return True

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        return self._list(check_prefix(prefix))

    def is_held(self, name: str) -> bool:
        check_object_name(name)
        return False

    # Writing

    def create(self, name: str, data: bytes) -> None:
        self._check_writable()
        with request("create", self._where(name), writes=True):
            self._store.put(self._path(name), bytes(data), mode="create", use_multipart=False)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        self._check_writable()
        with request("write", self._where(name)):
            self._store.put(self._path(name), bytes(data), mode="overwrite", use_multipart=False)

    def delete(self, names: Sequence[str]) -> None:
        paths = [self._path(name) for name in names]
        self._check_writable()
        for start in range(0, len(paths), DELETE_BATCH):
            batch = paths[start : start + DELETE_BATCH]
            try:
                with request("delete", self._where(names[start])):
                    self._store.delete(batch)
            except ObjectNotFoundError:
                # Azure, Google and obstore's LocalStore stop at an absent name.
                for path in batch:
                    with (
                        contextlib.suppress(ObjectNotFoundError),
                        request("delete", self._where(names[start])),
                    ):
                        self._store.delete(path)

    def open_pack(self, pack: PackId) -> ObjectPack:
        self._check_writable()
        check_process()
        name = pack_name(pack)
        return ObjectPack(
            pack,
            lambda data: self._upload(name, data),
            lambda offset, length: self.read(name, offset, length),
        )

    def replace_damaged_pack(self, pack: PackId) -> ObjectPack:
        self._check_writable()
        check_process()
        name = pack_name(pack)
        return ObjectPack(
            pack,
            lambda data: self._overwrite(name, data),
            lambda offset, length: self.read(name, offset, length),
        )

    def close(self) -> None:
        """Do nothing: obstore keeps its connections to itself."""

    # Parts of the above

    def _path(self, name: str) -> str:
        return self._prefix + check_object_name(name)

    def _where(self, name: str) -> str:
        return f"{name} of {self.url}"

    def _check_writable(self) -> None:
        require_writable(self)

    def _upload(self, name: str, data: memoryview) -> None:
        # `data` must never change again: obstore's MemoryStore keeps the buffer that it is given.
        try:
            with request("upload", self._where(name), writes=True):
                self._store.put(self._path(name), data, mode="create", use_multipart=False)
        except ObjectExistsError as error:
            raise OutcomeUnknownError(
                f"{self._where(name)} exists already, most likely by the first try of this upload. Write what it "
                "holds to a new pack; gc will remove this one."
            ) from error

    def _overwrite(self, name: str, data: memoryview) -> None:
        with request("replace", self._where(name), writes=True):
            self._store.put(self._path(name), data, mode="overwrite", use_multipart=False)

    def _check_offset(self, name: str, offset: int, size: int | None) -> memoryview:
        self._check_size(name, offset, self._existing(name, size))
        return memoryview(b"")

    def _existing(self, name: str, size: int | None) -> int:
        if size is None:
            raise ObjectNotFoundError(f"{self._where(name)} is not there.")
        return size

    def _check_size(self, name: str, wanted: int, size: int | None) -> None:
        if size is not None and size < wanted:
            raise CorruptionError(
                f"{self._where(name)} was cut: bytes up to {wanted} were wanted, it holds {size}. Run fsck to see "
                "what is affected; restore the object from a copy."
            )

    def _check_length(self, name: str, offset: int, length: int, data: memoryview) -> memoryview:
        if len(data) != length:
            self._check_size(name, offset + length, offset + len(data))
            raise StorageError(f"{self._where(name)}: {len(data)} bytes came where {length} were asked for.")
        return data

    async def _size_async(self, name: str) -> int | None:
        try:
            with request("look up", self._where(name)):
                return (await self._store.head_async(self._path(name)))["size"]
        except ObjectNotFoundError:
            return None

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        with request("list", self._where(prefix)):
            batches = iter(
                self._store.list((self._prefix + prefix).rstrip("/") or None, chunk_size=LIST_BATCH)
            )
        while True:
            with request("list", self._where(prefix)):
                batch = next(batches, None)
            if batch is None:
                return
            for meta in batch:
                name = meta["path"].removeprefix(self._prefix)
                if is_object_name(name):
                    yield ObjectInfo(name, meta["size"], from_datetime(meta["last_modified"]))


def _restore(store: Any, prefix: str, url: str) -> ObjectStorage:
    return ObjectStorage(store, prefix, url=url)


def _restore_memory(token: str, prefix: str, url: str) -> ObjectStorage:
    return ObjectStorage(borrow_memory_store(token, url), prefix, url=url, token=token)
