"""Reads blobs: finds the pack, checks the bytes, decodes metadata into the cache.

A whole blob is checked against its digest; a range of a blob over 64 KiB is widened to 64 KiB blocks, which are
checked against the crc32c table behind the blob. A pack that is gone is asked for in the catalog (`recover`, handed
in from above): compact may have moved its blobs. What can't be had or doesn't match raises; it is never fill value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias, TypeVar

import msgspec

from vstore.blobs.cache import CACHE
from vstore.blobs.moved import IndexedFooter, Relocations
from vstore.errors import (
    CorruptionError,
    FormatError,
    InternalError,
    MissingBlobError,
    ObjectNotFoundError,
    StorageError,
)
from vstore.format.manifest import Manifest, decode_manifest
from vstore.format.pack import (
    TRAILER_SIZE,
    Footer,
    Trailer,
    decode_footer,
    decode_trailer,
    find_bad_block,
)
from vstore.format.page import Page, PageNames, decode_page, decode_page_names
from vstore.format.refs import CHECK_BLOCK_BYTES, BlobRef
from vstore.format.snapshot import Snapshot, decode_snapshot
from vstore.ids import Digest, PackId, blake3_digest
from vstore.keys.objects import pack_name
from vstore.storage.base import Storage

Recover: TypeAlias = Callable[[BlobRef, str], Mapping[PackId, PackId]]
"""Given a ref whose pack is gone and what the blob holds: where compact moved packs, this one among them, or a typed
error."""

T = TypeVar("T")

_MAX_METADATA_BYTES = 256 * 1024 * 1024
_JOINED_GAP_BYTES = 256 * 1024
_TAIL_BYTES = 16 * 1024
_STRETCH_LIMIT_BYTES = 8 * 1024 * 1024
_MOVE_TRIES = 4
"""Looks for a blob while compact keeps moving it: each takes another run of compact and two of gc in between."""


class ByteSpan(msgspec.Struct, frozen=True):
    """A half-open range of bytes within a blob."""

    start: int
    stop: int


def no_recovery(ref: BlobRef, what: str) -> Mapping[PackId, PackId]:
    """Stand in where there is no catalog to ask."""
    raise MissingBlobError(_missing_message(ref, what))


def _missing_message(ref: BlobRef, what: str) -> str:
    return (
        f"{what} is missing: pack {ref.pack.hex()} should hold blob {ref.digest.hex()} "
        f"({ref.length} bytes at {ref.offset}), but there is no such pack. "
        "vstore.ops.fsck names all that is damaged; restore the pack from a copy of the repository."
    )


class BlobReader:
    """Reads the blobs of one repository. Thread-safe."""

    def __init__(self, storage: Storage, recover: Recover = no_recovery) -> None:
        self.storage = storage
        self._recover = recover
        self._moved = Relocations()
        self._stretch: tuple[PackId, int, memoryview] | None = None

    # --- metadata --------------------------------------------------------------------------------------------

    def page(self, ref: BlobRef) -> Page:
        """Return a page of a page tree."""
        page = CACHE.get(("page", ref.digest))
        if page is None:
            data = self.metadata(ref, "a page of the hierarchy")
            page = self._decoded(decode_page, data, ref)
            remember_page(ref.digest, page)
        return page

    def names(self, ref: BlobRef) -> PageNames:
        """Return only the keys and tags of a page."""
        names = CACHE.get(("page", ref.digest)) or CACHE.get(("names", ref.digest))
        if names is None:
            data = self.metadata(ref, "a page of the hierarchy")
            names = self._decoded(decode_page_names, data, ref)
            CACHE.put(("names", ref.digest), names, _page_size(names.keys))
        return names

    def manifest(self, ref: BlobRef) -> Manifest:
        """Return one layer of a tile; callers cache the merged tile."""
        # Copied, as its columns show parts of it: else what is cached would keep the mapped pack open, or a whole
        # stretch in memory.
        data = memoryview(bytes(self.metadata(ref, "a manifest of chunk references")))
        return self._decoded(decode_manifest, data, ref)

    def snapshot(self, ref: BlobRef) -> Snapshot:
        """Return a snapshot."""
        snapshot = CACHE.get(("snapshot", ref.digest))
        if snapshot is None:
            snapshot = self._decoded(decode_snapshot, self.metadata(ref, "a snapshot"), ref)
            remember_snapshot(ref, snapshot)
        return snapshot

    def metadata(self, ref: BlobRef, what: str) -> memoryview:
        """Return a whole blob's verified bytes; `what` says what it holds, for messages."""
        if ref.length > _MAX_METADATA_BYTES:
            raise CorruptionError(f"{what} claims to be {ref.length} bytes long")
        return self.whole(ref, what)

    def prefetch(self, pack: PackId, offset: int, length: int) -> None:
        """Fetch the stretch of a pack that holds a commit's metadata, so that its blobs need no more requests.

        Only a help: nothing is verified here, and a failure shows when a blob is read.
        """
        if self.storage.is_local or not 0 < length <= _STRETCH_LIMIT_BYTES:
            return
        try:
            data = self.storage.read(pack_name(pack), offset, length)
        except (StorageError, FormatError):
            return
        self._stretch = (pack, offset, data)

    def _decoded(self, decode: Callable[[memoryview], T], data: memoryview, ref: BlobRef) -> T:
        try:
            return decode(data)
        except FormatError as error:
            # The digest matched: these are the bytes that were written.
            raise type(error)(f"blob {ref.digest.hex()} in pack {ref.pack.hex()}: {error.message}") from None

    # --- bytes -----------------------------------------------------------------------------------------------

    def whole(self, ref: BlobRef, what: str, *, verify: bool = True) -> memoryview:
        """Return a whole blob, verified against its digest unless that was done before."""
        if not verify:
            return self._with_recovery(ref, what, self._read)
        data = self._from_stretch(ref)
        if data is not None and blake3_digest(data) == ref.digest:
            return data
        return self._with_recovery(ref, what, lambda at: self._verified(at, self._read(at), what))

    def span(self, ref: BlobRef, span: ByteSpan, what: str, *, verify: bool = True) -> memoryview:
        """Return a range of a blob, verified unless the whole blob was before."""
        if not verify:
            return self._with_recovery(ref, what, lambda at: self._read(_part(at, span)))
        if ref.length <= CHECK_BLOCK_BYTES:
            return self.whole(ref, what)[span.start : span.stop]
        return self._with_recovery(ref, what, lambda at: self._read_span(at, span, what))

    async def whole_async(self, ref: BlobRef, what: str) -> memoryview:
        """Do what `whole` does without blocking the event loop."""
        if self._moved.get(ref.pack) is not None:
            return await _in_thread(self.whole, ref, what)
        try:
            data = await self.storage.read_async(pack_name(ref.pack), ref.offset, ref.length)
        except ObjectNotFoundError:
            return await _in_thread(self.whole, ref, what)
        except CorruptionError as error:
            raise _named(error, what) from None
        return self._verified(ref, data, what)

    async def span_async(self, ref: BlobRef, span: ByteSpan, what: str) -> memoryview:
        """Do what `span` does without blocking the event loop."""
        if ref.length <= CHECK_BLOCK_BYTES:
            return (await self.whole_async(ref, what))[span.start : span.stop]
        if self._moved.get(ref.pack) is not None:
            return await _in_thread(self.span, ref, span, what)
        plan = _plan_span(ref, span)
        name = pack_name(ref.pack)
        try:
            parts = [await self.storage.read_async(name, *part) for part in plan.reads]
        except ObjectNotFoundError:
            return await _in_thread(self.span, ref, span, what)
        except CorruptionError as error:
            raise _named(error, what) from None
        return self._checked_span(ref, span, plan, parts, what)

    def _read(self, ref: BlobRef) -> memoryview:
        return self.storage.read(pack_name(ref.pack), ref.offset, ref.length)

    def _read_span(self, ref: BlobRef, span: ByteSpan, what: str) -> memoryview:
        plan = _plan_span(ref, span)
        parts = [self.storage.read(pack_name(ref.pack), *part) for part in plan.reads]
        return self._checked_span(ref, span, plan, parts, what)

    def _checked_span(
        self, ref: BlobRef, span: ByteSpan, plan: _SpanPlan, parts: list[memoryview], what: str
    ) -> memoryview:
        size = plan.blocks.stop - plan.blocks.start
        data, table = parts[0][:size], parts[-1][-plan.table_size :]
        bad = find_bad_block(data, table)
        if bad is not None:
            start = plan.blocks.start + bad * CHECK_BLOCK_BYTES
            raise CorruptionError(self._damage(ref, what, f"its block at byte {start} fails its crc32c"))
        return data[span.start - plan.blocks.start : span.stop - plan.blocks.start]

    def _verified(self, ref: BlobRef, data: memoryview, what: str) -> memoryview:
        found = blake3_digest(data)
        if found != ref.digest:
            raise CorruptionError(self._damage(ref, what, f"its bytes have digest {found.hex()}"))
        return data

    def _damage(self, ref: BlobRef, what: str, found: str) -> str:
        return (
            f"{what} is damaged: blob {ref.digest.hex()} at {ref.offset} (length {ref.length}) in "
            f"{pack_name(ref.pack)} of {self.storage.url}: {found}. "
            "vstore.ops.fsck names all that is damaged; restore the file from a copy of the repository."
        )

    def _from_stretch(self, ref: BlobRef) -> memoryview | None:
        stretch = self._stretch
        if stretch is None or stretch[0] != ref.pack:
            return None
        start = ref.offset - stretch[1]
        if start < 0 or start + ref.length > len(stretch[2]):
            return None
        return stretch[2][start : start + ref.length]

    def _with_recovery(self, ref: BlobRef, what: str, read: Callable[[BlobRef], memoryview]) -> memoryview:
        try:
            target = self._moved.get(ref.pack)
            for tries_left in reversed(range(_MOVE_TRIES)):
                try:
                    return read(ref if target is None else self.find(ref, target))
                except ObjectNotFoundError:
                    moved = self._recover(ref, what)
                    self._moved.note(moved)
                    # The catalog folds chains: a pack that it names is gone only if compact was here again.
                    if not tries_left:
                        raise
                    target = moved[ref.pack]
            raise InternalError("unreachable")
        except CorruptionError as error:
            raise _named(error, what) from None

    # --- footers ---------------------------------------------------------------------------------------------

    def find(self, ref: BlobRef, pack: PackId) -> BlobRef:
        """Return where `pack` has the blob of `ref`, by its footer."""
        indexed = self.footer(pack)
        row = indexed.find(ref.digest)
        if row is None:
            raise MissingBlobError(_missing_message(ref._replace(pack=pack), "a relocated blob"))
        footer = indexed.footer
        return BlobRef(ref.digest, pack, int(footer.offsets[row]), int(footer.lengths[row]))

    def footer(self, pack: PackId) -> IndexedFooter:
        """Return a pack's footer."""
        found: IndexedFooter | None = CACHE.get(("footer", pack))
        if found is None:
            found = IndexedFooter(self.read_footer(pack)[1])
            CACHE.put(("footer", pack), found, found.memory_bytes)
        return found

    def read_footer(self, pack: PackId) -> tuple[Trailer, Footer]:
        """Return a pack's trailer and footer, read from storage."""
        name = pack_name(pack)
        # Most footers are this short, and come along with the trailer in one request.
        tail, size = self.storage.read_tail(name, _TAIL_BYTES)
        try:
            trailer = decode_trailer(tail[-TRAILER_SIZE:], size)
            if trailer.pack != pack:
                raise CorruptionError(f"its trailer says that it is pack {trailer.pack.hex()}")
            start = trailer.footer_offset - (size - len(tail))
            if start >= 0:
                footer = tail[start : start + trailer.footer_size]
            else:
                footer = self.storage.read(name, trailer.footer_offset, trailer.footer_size)
            return trailer, decode_footer(footer, trailer)
        except FormatError as error:
            raise type(error)(f"{name} of {self.storage.url}: {error.message}") from None


def _part(ref: BlobRef, span: ByteSpan) -> BlobRef:
    return ref._replace(offset=ref.offset + span.start, length=span.stop - span.start)


def _named(error: CorruptionError, what: str) -> CorruptionError:
    """Return the error with a word on what the damaged bytes hold."""
    return error if what in error.message else CorruptionError(f"{what} can't be read: {error.message}")


class _SpanPlan(msgspec.Struct, frozen=True):
    """What to read for a span: whole blocks and their checksums, as (offset, length) in the pack.

    One read if the checksums, which lie behind the blob, are near; the first part starts with the blocks, the last
    ends with the checksums.
    """

    blocks: ByteSpan
    table_size: int
    reads: tuple[tuple[int, int], ...]


def _plan_span(ref: BlobRef, span: ByteSpan) -> _SpanPlan:
    first = span.start // CHECK_BLOCK_BYTES
    count = -(-span.stop // CHECK_BLOCK_BYTES) - first
    blocks = ByteSpan(first * CHECK_BLOCK_BYTES, min((first + count) * CHECK_BLOCK_BYTES, ref.length))
    start, stop = ref.offset + blocks.start, ref.offset + blocks.stop
    table = ref.offset + ref.length + 4 * first
    if table - stop <= _JOINED_GAP_BYTES:
        return _SpanPlan(blocks, 4 * count, ((start, table + 4 * count - start),))
    return _SpanPlan(blocks, 4 * count, ((start, stop - start), (table, 4 * count)))


def remember_page(digest: Digest, page: Page) -> None:
    """Keep a decoded page in the cache."""
    CACHE.put(("page", digest), page, _page_size(page.keys) + sum(map(len, page.values)))


def remember_snapshot(ref: BlobRef, snapshot: Snapshot) -> None:
    """Keep a decoded snapshot in the cache."""
    CACHE.put(("snapshot", ref.digest), snapshot, 1000 + len(snapshot.message) + len(snapshot.metadata))


def _page_size(keys: list[bytes]) -> int:
    return sum(map(len, keys)) + 120 * len(keys)


async def _in_thread(function: Callable[..., T], *args: object) -> T:
    import asyncio

    return await asyncio.to_thread(function, *args)
