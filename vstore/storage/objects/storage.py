"""The storage over an obstore store.

An object appears whole or not at all. Neighbours: `client` sends every request, `listing` is a listing under way,
`pack` a pack on its way up.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vstore.clock import from_datetime
from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    InvalidInputError,
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
from vstore.storage.objects.client import Client
from vstore.storage.objects.listing import Listing
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.pack import ObjectPack
from vstore.storage.objects.requests import RangeTroubleError, ShortReplyError, check_process
from vstore.storage.objects.stores import (
    borrow_memory_store,
    can_leave_credentials,
    describe,
    is_a,
    lend_memory_store,
    lists_in_order,
    restored,
    retry_config_of,
    without_credentials,
)

if TYPE_CHECKING:
    from obstore.store import ObjectStore

REMOTE_PACKS = PackPolicy(target_bytes=32 * 1024 * 1024, buffer_bytes=32 * 1024 * 1024, direct_bytes=None)
DELETE_BATCH = 256
"""Azure takes no more at once."""


class ObjectStorage:
    """A `Storage` over an obstore store, below the folder `prefix` in it.

    `url` names it in messages; by default it is made from the store, without its secrets. `options` say how requests
    are made; by default they follow the store's `retry_config`. `token` is the name of a MemoryStore in this process's
    pickles, `left_out` names the settings that a pickle did not carry.
    """

    is_local = False
    pack_policy = REMOTE_PACKS

    def __init__(
        self,
        store: ObjectStore,
        prefix: str = "",
        *,
        url: str | None = None,
        token: str = "",
        options: RequestOptions | None = None,
        left_out: tuple[str, ...] = (),
    ) -> None:
        self._store = store
        self._options = options or RequestOptions.of({}, retry_config_of(store))
        self._left_out = left_out
        self._client = Client(store, self._options, left_out=left_out)
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._token = token or new_nonce().hex()
        self.reads_only = is_a(store, "HTTPStore")
        self._in_order = lists_in_order(store)
        storage_class = self._options.storage_class
        self._of_packs = {"attributes": {"Storage-Class": storage_class}} if storage_class else {}
        self.url = url if url is not None else describe(store, self._prefix)

    def __repr__(self) -> str:
        return f"ObjectStorage({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        store, rest = self._store, (self._prefix, self.url, self._options)
        if is_a(store, "MemoryStore"):
            lend_memory_store(store, self._token)
            return _restore_memory, (self._token, *rest)
        if self._options.pickle_credentials or is_a(store, "LocalStore"):
            return _restore, (store, *rest, self._left_out)
        if not can_leave_credentials(store):
            raise InvalidInputError(
                f"{self.url} is reached through a {type(store).__name__}, of which vstore can't tell what is secret. "
                "To pickle it with all that it holds, open it with the storage option pickle_credentials=True."
            )
        parts, left_out = without_credentials(store)
        return _restore_without, (parts, *rest, tuple(sorted({*left_out, *self._left_out})))

    # Reading

    def read(self, name: str, offset: int, length: int) -> memoryview:
        path = self._path(name)
        check_range(offset, length)
        if not length:
            return self._check_offset(name, offset, self.size(name))
        try:
            return self._client.run(
                lambda store: _whole(store.get_range(path, start=offset, length=length), length),
                f"read {self._where(name)}",
                size=length,
            )
        except (RangeTroubleError, ShortReplyError) as error:
            raise self._of_range(error, name, offset + length, self.size(name)) from error.__cause__

    def read_tail(self, name: str, length: int) -> tuple[memoryview, int]:
        path = self._path(name)
        check_range(0, length)
        if not length:
            # As a suffix it would be "bytes=-0", to which Ceph answers with the whole object.
            return memoryview(b""), self._existing(name, self.size(name))

        def get(store: Any) -> tuple[memoryview, int]:
            result = store.get(path, options={"range": {"suffix": length}})
            size = result.meta["size"]
            return _whole(result.bytes(), min(length, size)), size

        # Azure has no suffix ranges, S3 none of empty objects, and some servers get them wrong: two requests then.
        with contextlib.suppress(UnsafeStorageError, RangeTroubleError, ShortReplyError):
            return self._client.run(get, f"read the end of {self._where(name)}", size=length)
        found = self._existing(name, self.size(name))
        wanted = min(length, found)
        return self.read(name, found - wanted, wanted), found

    def read_whole(self, name: str, limit: int) -> bytes:
        path = self._path(name)

        def get(store: Any) -> bytes | int:
            result = store.get(path)
            size: int = result.meta["size"]
            return size if size > limit else _whole(result.bytes(), size).tobytes()

        found = self._client.run(get, f"read {self._where(name)}", size=limit)
        if isinstance(found, bytes):
            return found
        raise CorruptionError(
            f"{self._where(name)} holds {found} bytes where at most {limit} are expected. repo.fsck() names all that "
            "is damaged."
        )

    def size(self, name: str) -> int | None:
        path = self._path(name)
        try:
            return self._client.run(
                lambda store: int(store.head(path)["size"]),
                f"look up {self._where(name)}",
                ask_why=lambda store: int(store.get(path).meta["size"]),
            )
        except ObjectNotFoundError:
            return None

    def has_sqlite_catalog(self) -> bool:
        """Tell whether a repository's files lie here whose catalog works only in a directory."""
        try:
            self._client.run(
                lambda store: store.head(self._prefix + SQLITE_FILE), f"look up {self._where(SQLITE_FILE)}"
            )
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
        self._put(name, bytes(data), "create", "create", creates=True)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        # What need not be durable is a hint: it is not waited for, lest a commit that has landed is held up.
        self._put(name, bytes(data), "write", "overwrite", repeats=durable)

    def delete(self, names: Sequence[str]) -> None:
        paths = [self._path(name) for name in names]
        self._check_writable()
        for start in range(0, len(paths), DELETE_BATCH):
            batch = paths[start : start + DELETE_BATCH]
            doing = f"delete {self._where(names[start])}"
            with self._telling_of_writes():
                self._delete(batch, doing)

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
        return f"{name} of {self.url}" if name else self.url

    def _check_writable(self) -> None:
        require_writable(self)

    def _put(
        self,
        name: str,
        data: bytes | memoryview,
        verb: str,
        mode: str,
        *,
        repeats: bool = True,
        creates: bool = False,
        attributes: dict[str, Any] | None = None,
    ) -> None:
        """Put an object in one request; `creates` if an unclear answer leaves doubt, and it is sent only once."""
        self._check_writable()
        path, more = self._path(name), attributes or {}
        with self._telling_of_writes():
            self._client.run(
                lambda store: store.put(path, data, mode=mode, use_multipart=False, **more),
                f"{verb} {self._where(name)}",
                size=len(data),
                repeats=repeats,
                creates=creates,
            )

    @contextlib.contextmanager
    def _telling_of_writes(self) -> Iterator[None]:
        """Say of a change that was denied whether the credentials are good for anything else."""
        try:
            yield
        except AccessDeniedError as error:
            if not self._client.has_succeeded:
                raise
            raise AccessDeniedError(
                f"{error.message} Reading works with these credentials, changing does not: to read, readonly_session "
                "is enough."
            ) from error.__cause__

    def _delete(self, paths: Sequence[str], doing: str) -> None:
        try:
            self._client.run(functools.partial(_delete, paths=[*paths]), doing)
        except ObjectNotFoundError:
            # Azure, Google and obstore's LocalStore stop at an absent name.
            for path in paths:
                with contextlib.suppress(ObjectNotFoundError):
                    self._client.run(functools.partial(_delete, paths=path), doing)

    def _upload(self, name: str, data: memoryview) -> None:
        # `data` must never change again: obstore's MemoryStore keeps the buffer that it is given.
        try:
            self._put(name, data, "upload", "create", creates=True, attributes=self._of_packs)
        except ObjectExistsError as error:
            raise OutcomeUnknownError(
                f"{self._where(name)} exists already, most likely by an upload of which the answer was lost. Write "
                "what it holds to a new pack; gc will remove this one."
            ) from error

    def _overwrite(self, name: str, data: memoryview) -> None:
        # Not repeated: it could land when gc has deleted the pack.
        self._put(name, data, "replace", "overwrite", creates=True, attributes=self._of_packs)

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
                f"{self._where(name)} was cut: bytes up to {wanted} were wanted, it holds {size}. repo.fsck() tells "
                "what is affected; restore the object from a copy."
            )

    def _of_range(
        self, error: RangeTroubleError | ShortReplyError, name: str, wanted: int, size: int | None
    ) -> StorageError:
        """Return what a range that was not read means, now that the size is known."""
        self._check_size(name, wanted, size)
        if isinstance(error, ShortReplyError):
            return StorageError(
                f"could not read {self._where(name)}: {error.message}, twice, though it holds {size}. Try again."
            )
        return StorageError(error.message)

    def _list(self, prefix: str) -> Iterator[ObjectInfo]:
        listing = Listing(self._client, self._prefix + prefix, self._where(prefix), in_order=self._in_order)
        is_empty = True
        for meta in listing:
            is_empty = False
            name = meta["path"][len(self._prefix) :]
            if is_object_name(name):
                yield ObjectInfo(name, meta["size"], from_datetime(meta["last_modified"]))
        if is_empty and self.reads_only:
            # A web server may well answer that there is nothing, which would be taken for damage.
            raise StorageError(
                f"{self.url} lists no files, as web servers do not. Do this where the files are."
            )


def _delete(store: Any, paths: str | list[str]) -> None:
    store.delete(paths)


def _whole(data: Any, length: int) -> memoryview:
    view = memoryview(data)
    if len(view) != length:
        raise ShortReplyError(f"{len(view)} bytes came where {length} were asked for")
    return view


def _restore(
    store: Any, prefix: str, url: str, options: RequestOptions, left_out: tuple[str, ...]
) -> ObjectStorage:
    return ObjectStorage(store, prefix, url=url, options=options, left_out=left_out)


def _restore_without(
    parts: tuple[Any, ...], prefix: str, url: str, options: RequestOptions, left_out: tuple[str, ...]
) -> ObjectStorage:
    return ObjectStorage(restored(parts, left_out), prefix, url=url, options=options, left_out=left_out)


def _restore_memory(token: str, prefix: str, url: str, options: RequestOptions) -> ObjectStorage:
    return ObjectStorage(borrow_memory_store(token, url), prefix, url=url, token=token, options=options)
