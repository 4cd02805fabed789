"""The Zarr store on a session: zarr, xarray and dask use it as they use any other.

All of `zarr.abc.store.Store`, the range and multi-get calls that newer Zarr versions make, and the synchronous
protocol. On local storage reads are quick and made on the event loop itself; elsewhere they are awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.abc.store import (
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.buffer.cpu import Buffer as CpuBuffer

from vstore.blobs.once import RequestNeededError
from vstore.blobs.reader import ByteSpan
from vstore.blobs.waiting import run_waiting
from vstore.errors import ReadOnlyError
from vstore.format.refs import BlobRef
from vstore.ids import BytesLike
from vstore.keys.zarr import normalize_prefix
from vstore.worktree.contents import ChunkSource, source_length

if TYPE_CHECKING:
    import numpy.typing as npt

    from vstore.format.manifest import Checksum
    from vstore.session import Session

    ByteRequest = RangeByteRequest | OffsetByteRequest | SuffixByteRequest


_BYTE = np.dtype("B")


class SessionStore(Store):
    """A Zarr store that reads and writes through `session`."""

    def __init__(self, session: Session, *, read_only: bool = False) -> None:
        super().__init__(read_only=read_only)
        self._session = session
        # Zarr's fused pipeline asks this before it calls get_sync and its like.
        self._supports_sync_io = session.is_local

    @property
    def session(self) -> Session:
        """The session that this store belongs to."""
        return self._session

    def with_read_only(self, read_only: bool = False) -> SessionStore:
        """Return a store on the same session; a writable one needs a writable session."""
        return type(self)(self._session, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SessionStore)
            and self._session == other._session
            and self.read_only == other.read_only
        )

    def __hash__(self) -> int:
        return hash((self._session, self.read_only))

    def __repr__(self) -> str:
        return f"SessionStore({self._session!r}, read_only={self.read_only})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpickle, (self._session, self.read_only))

    def __dask_tokenize__(self) -> tuple[object, ...]:
        return self._session.state_token

    # --- capabilities ----------------------------------------------------------------------------------------

    @property
    def supports_writes(self) -> bool:
        return True

    @property
    def supports_deletes(self) -> bool:
        return True

    @property
    def supports_listing(self) -> bool:
        return True

    @property
    def supports_consolidated_metadata(self) -> bool:
        """False: all metadata of a snapshot is at hand, and a second copy of it could go stale."""
        return False

    # --- reading ---------------------------------------------------------------------------------------------

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the value of `key` or a range of it, or None if there is none. Blocks; thread-safe."""
        tree = self._session.tree
        if byte_range is None:
            found = tree.get(key)
            return None if found is None else _to_buffer(found, prototype)
        source = tree.find(key)
        if source is None:
            return None
        span = _span(source, byte_range)
        data = (
            tree.contents.read(source, span, f"key {key!r}")
            if span is None or span.stop > span.start
            else b""
        )
        return _to_buffer(data, prototype)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the value of `key` or a range of it, or None if there is none."""
        if not self._is_open:
            await self._open()
        tree = self._session.tree
        if self._supports_sync_io:
            if byte_range is not None:
                return self.get_sync(key, prototype=prototype, byte_range=byte_range)
            found = tree.get_soon(key)
            if callable(found):
                # Zarr asks for several chunks at once: one is hashed while the event loop copies another.
                found = await asyncio.to_thread(found)
            return None if found is None else _to_buffer(found, prototype)
        source = await self._find_remote(key)
        if source is None:
            return None
        span = _span(source, byte_range)
        if span is not None and span.stop <= span.start:
            return _to_buffer(b"", prototype)
        return _to_buffer(await tree.contents.read_async(source, span, f"key {key!r}"), prototype)

    async def _find_remote(self, key: str) -> ChunkSource | BlobRef | None:
        tree = self._session.tree
        try:
            # Mostly the metadata is at hand. What is asked for in one turn of the event loop can come together then.
            return tree.find_at_once(key)
        except RequestNeededError:
            return await run_waiting(tree.find, key)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several values or ranges, in the order asked for; None for absent keys."""
        return list(await asyncio.gather(*(self.get(key, prototype, span) for key, span in key_ranges)))

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int = 10,
        max_gap_bytes: int = 1 << 20,
        max_coalesced_bytes: int = 16 << 20,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yield ranges of one value in batches of (index, buffer).

        Raises a `BaseExceptionGroup` that holds `FileNotFoundError` if the key is absent.
        """
        if self._supports_sync_io:
            for index, byte_range in enumerate(byte_ranges):
                buffer = await self.get(key, prototype, byte_range)
                if buffer is None:
                    raise BaseExceptionGroup("a key is absent", [FileNotFoundError(key)])
                yield [(index, buffer)]
            return
        # Zarr before 3.4 neither has this method nor calls it.
        batches = super().get_ranges(  # type: ignore[misc, unused-ignore]
            key,
            byte_ranges,
            prototype=prototype,
            max_concurrency=max_concurrency,
            max_gap_bytes=max_gap_bytes,
            max_coalesced_bytes=max_coalesced_bytes,
        )
        async for batch in batches:
            yield batch

    async def exists(self, key: str) -> bool:
        """Tell whether `key` has a value; reads no data."""
        await self._ready()
        if self._supports_sync_io:
            return self._session.tree.find(key) is not None
        return await self._find_remote(key) is not None

    async def getsize(self, key: str) -> int:
        """Return the bytes of one value, without reading it."""
        await self._ready()
        size = await self._run(self._session.tree.size, key)
        if size is None:
            raise FileNotFoundError(key)
        return int(size)

    async def getsize_prefix(self, prefix: str) -> int:
        """Return the bytes of all values below the folder `prefix`, without reading them."""
        await self._ready()
        from vstore.worktree.listing import size_below

        return int(await self._run(size_below, self._session.tree, normalize_prefix(prefix)))

    # --- writing ---------------------------------------------------------------------------------------------

    def set_sync(self, key: str, value: Buffer) -> None:
        """Store `value` under `key`. Blocks; thread-safe."""
        self._check_writable()
        self._session.tree_for_writing().set(key, _to_bytes(value))

    async def set(self, key: str, value: Buffer) -> None:
        """Store `value` under `key`."""
        if not self._is_open:
            await self._open()
        if self._supports_sync_io:
            self.set_sync(key, value)
            return
        self._check_writable()
        data = _to_bytes(value)
        await run_waiting(self._session.tree_for_writing().set, key, data)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store `value` under `key` if it has none."""
        await self._ready()
        self._check_writable()
        if not await self.exists(key):
            await self.set(key, value)

    def delete_sync(self, key: str) -> None:
        """Delete `key`; nothing happens if it is absent. Blocks; thread-safe."""
        self._check_writable()
        self._session.tree_for_writing().delete(key)

    async def delete(self, key: str) -> None:
        """Delete `key`; nothing happens if it is absent."""
        await self._ready()
        self._check_writable()
        await self._run(self._session.tree_for_writing().delete, key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete everything below the folder `prefix`; costs no more for a large array than for a small one."""
        await self._ready()
        self._check_writable()
        await self._run(self._session.tree_for_writing().delete_folder, normalize_prefix(prefix))

    async def clear(self) -> None:
        """Delete everything."""
        await self.delete_dir("")

    # --- listing ---------------------------------------------------------------------------------------------

    def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        return self.list_prefix("")

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that start with `prefix`."""
        from vstore.worktree.listing import iter_keys

        return self._stream(lambda: iter_keys(self._session.tree, prefix))

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names right below the folder `prefix`."""
        from vstore.worktree.listing import iter_folder

        return self._stream(lambda: iter_folder(self._session.tree, normalize_prefix(prefix)))

    async def _stream(self, start: Callable[[], Iterator[str]]) -> AsyncIterator[str]:
        """Yield what an iterator yields: taken here if storage is local, else some at a time in a thread."""
        await self._ready()
        names = start()
        if self._supports_sync_io:
            for name in names:
                yield name
            return
        while batch := await run_waiting(_take, names):
            for name in batch:
                yield name

    async def is_empty(self, prefix: str) -> bool:
        """Tell whether nothing lies below the folder `prefix`."""
        await self._ready()
        from vstore.worktree.listing import is_folder_empty

        return bool(await self._run(is_folder_empty, self._session.tree, normalize_prefix(prefix)))

    # --- virtual references ----------------------------------------------------------------------------------

    def set_virtual_refs_arr(
        self,
        array_path: str,
        chunk_grid_shape: tuple[int, ...],
        locations: Sequence[str] | npt.NDArray[Any],
        offsets: npt.NDArray[np.uint64],
        lengths: npt.NDArray[np.uint64],
        *,
        arr_offset: tuple[int, ...] | None = None,
        checksum: Checksum | Sequence[Checksum | None] | None = None,
    ) -> None:
        """Point many chunks of an array at ranges of existing files, in one columnar call.

        `locations`, `offsets` and `lengths` have one item for each chunk of a box of shape `chunk_grid_shape`, in C
        order (arrays of that shape are taken too); an empty location leaves its chunk as it is. The box starts at
        chunk index `arr_offset` (default: zero). `checksum`, one for all or one for each: an etag, or the source's
        modification time in microseconds since 1970; a source that no longer matches raises when it is read.

        Raises `InvalidInputError` before anything is changed.
        """
        self._check_writable()
        from vstore.worktree.virtual import VirtualColumns, set_virtual_refs

        columns = VirtualColumns.build(chunk_grid_shape, locations, offsets, lengths, arr_offset, checksum)
        set_virtual_refs(self._session.tree_for_writing(), normalize_prefix(array_path), columns)

    # --- plumbing --------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.read_only:
            # The first words are those of Zarr's own stores.
            raise ReadOnlyError(
                "store was opened in read-only mode and does not support writing: use the store of a session that "
                "repo.writable_session(branch) opened."
            )

    async def _ready(self) -> None:
        if not self._is_open:
            await self._open()

    async def _run(self, function: Any, *args: Any) -> Any:
        """Call `function`: here if storage is local, else in a thread, for it may wait for the network."""
        if self._supports_sync_io:
            return function(*args)
        return await run_waiting(function, *args)


def _unpickle(session: Session, read_only: bool) -> SessionStore:
    return SessionStore(session, read_only=read_only)


def _take(keys: Iterator[str], count: int = 1000) -> list[str]:
    from itertools import islice

    return list(islice(keys, count))


def _span(source: ChunkSource | BlobRef, byte_range: ByteRequest | None) -> ByteSpan | None:
    """Return the span that a byte request means for a source, clipped to its length; None for all of it."""
    if byte_range is None:
        return None
    length = source.length if isinstance(source, BlobRef) else source_length(source)
    if isinstance(byte_range, RangeByteRequest):
        return ByteSpan(min(byte_range.start, length), min(byte_range.end, length))
    if isinstance(byte_range, OffsetByteRequest):
        return ByteSpan(min(byte_range.offset, length), length)
    if isinstance(byte_range, SuffixByteRequest):
        return ByteSpan(max(length - byte_range.suffix, 0), length)
    raise ValueError(f"Unexpected byte_range, got {byte_range!r}.")


def _to_buffer(data: BytesLike, prototype: BufferPrototype | None) -> Buffer:
    kind = (prototype or default_buffer_prototype()).buffer
    if kind is CpuBuffer:
        # What from_bytes does, in half the time.
        return CpuBuffer(np.frombuffer(data, dtype=_BYTE))
    return kind.from_bytes(data)


def _to_bytes(value: Buffer) -> memoryview:
    if not isinstance(value, Buffer):
        raise TypeError(
            f"a store holds Buffers, not a {type(value).__name__}: `value` must be a Buffer instance"
        )
    return np.ascontiguousarray(value.as_numpy_array()).data
