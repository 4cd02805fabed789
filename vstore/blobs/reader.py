"""Reads blobs: finds the pack, checks the bytes, decodes metadata into the cache.

A whole blob is checked against its digest; a range of a blob over 64 KiB is widened to 64 KiB blocks, which are
checked against the crc32c table behind the blob. A pack that is gone is asked for in the catalog (`recover`, handed
in from above): compact may have moved its blobs. What can't be had or doesn't match raises; it is never fill value.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from vstore.blobs.cache import CACHE, cached_blob
from vstore.blobs.moved import IndexedFooter, Relocations
from vstore.blobs.once import Once, check_may_wait
from vstore.blobs.spans import ByteSpan as ByteSpan
from vstore.blobs.spans import DamagedBytesError, plan_span
from vstore.blobs.waiting import run_waiting
from vstore.errors import (
    CorruptionError,
    FormatError,
    InternalError,
    MissingBlobError,
    ObjectNotFoundError,
    StorageError,
    VStoreError,
)
from vstore.format.manifest import Manifest, decode_manifest
from vstore.format.pack import (
    TRAILER_SIZE,
    Footer,
    Trailer,
    decode_footer,
    decode_trailer,
)
from vstore.format.page import Page, PageNames, decode_page, decode_page_names
from vstore.format.refs import CHECK_BLOCK_BYTES, BlobRef
from vstore.format.snapshot import Snapshot, decode_snapshot
from vstore.ids import Digest, PackId, blake3_digest
from vstore.keys.objects import pack_name
from vstore.storage.base import Storage, read_twice

if TYPE_CHECKING:
    from vstore.blobs.fetching import PackFetcher
    from vstore.blobs.remote import RemoteBlobs

Recover: TypeAlias = Callable[[BlobRef, str], Mapping[PackId, PackId]]
"""Given a ref whose pack is gone and what the blob holds: where compact moved packs, this one among them, or a typed
error."""

T = TypeVar("T")

_MAX_METADATA_BYTES = 256 * 1024 * 1024
_TAIL_BYTES = 16 * 1024
_DECODED = ("page", "names", "layer", "snapshot")
_STRETCH_LIMIT_BYTES = 8 * 1024 * 1024
_MOVE_TRIES = 4
"""Looks for a blob while compact keeps moving it: each takes another run of compact and two of gc in between."""


def no_recovery(ref: BlobRef, what: str) -> Mapping[PackId, PackId]:
    """Stand in where there is no catalog to ask."""
    raise MissingBlobError(_missing_message(ref, what))


def _missing_message(ref: BlobRef, what: str) -> str:
    return (
        f"{what} is missing: pack {ref.pack.hex()} should hold blob {ref.digest.hex()} "
        f"({ref.length} bytes at {ref.offset}), but there is no such pack. "
        "repo.fsck() names all that is damaged; restore the pack from a copy of the repository."
    )


class BlobReader:
    """Reads the blobs of one repository. Thread-safe.

    `fetcher`, which readers of the same remote storage share, makes their requests; None is one of its own.
    """

    def __init__(
        self, storage: Storage, recover: Recover = no_recovery, fetcher: PackFetcher | None = None
    ) -> None:
        self.storage = storage
        self.remote: RemoteBlobs | None = None
        """How blobs of an object store are read; None on a local disk."""
        self._recover = recover
        self._moved = Relocations()
        if not storage.is_local:
            # What reads a local disk has no need of threads.
            from vstore.blobs.fetching import PackFetcher
            from vstore.blobs.remote import RemoteBlobs

            self.remote = RemoteBlobs(fetcher or PackFetcher(storage))

    # --- metadata --------------------------------------------------------------------------------------------

    def page(self, ref: BlobRef) -> Page:
        """Return a page of a page tree."""
        page: Page | None = CACHE.get(("page", ref.digest))
        return self.once(("page", ref.digest), lambda: self._page(ref)) if page is None else page

    def _page(self, ref: BlobRef) -> Page:
        page = self._decoded(decode_page, self.metadata(ref, "a page of the hierarchy"), ref)
        remember_page(ref.digest, page)
        return page

    def names(self, ref: BlobRef) -> PageNames:
        """Return only the keys and tags of a page."""
        names = CACHE.get(("page", ref.digest)) or CACHE.get(("names", ref.digest))
        if names is None:
            # Who lists pages often wants them whole a moment later.
            data = self.metadata(ref, "a page of the hierarchy", keep=True)
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

    def metadata(self, ref: BlobRef, what: str, *, keep: bool = False) -> memoryview:
        """Return a whole blob's verified bytes, which the cache may `keep`; `what` says what it holds, for messages."""
        if ref.length > _MAX_METADATA_BYTES:
            raise CorruptionError(f"{what} claims to be {ref.length} bytes long")
        return self._whole(ref, what, verify=True, reach=0, keep=keep)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` makes of metadata; where that may take a request, one thread does it for all."""
        return make() if self.remote is None else _ONCE.run(key, make)

    def prefetch(self, snapshot: BlobRef, offset: int, length: int) -> None:
        """Begin to fetch the stretch of a pack that holds a commit's metadata, so that its blobs need no more requests.

        Only where that saves some: not of a snapshot that is at hand, for so are its pages, as a rule. Nothing is
        waited for or verified here, and a failure shows when a blob is read.
        """
        if self.remote is None or not 0 < length <= _STRETCH_LIMIT_BYTES:
            return
        if CACHE.get(("snapshot", snapshot.digest)) is None:
            self.remote.fetcher.begin(snapshot.pack, offset, offset + length)

    def expect(self, refs: Iterable[BlobRef]) -> None:
        """Begin to fetch metadata that will be read soon, neighbours in a pack together.

        Of an object store, and what is not at hand; nothing is waited for, and a failure shows when it is read.
        """
        if self.remote is None:
            return
        from vstore.blobs.ahead import plan_stretches

        # No more than the cache will keep until it is read.
        missing = (ref for ref in refs if not _is_at_hand(ref))
        for pack, start, stop in plan_stretches(missing, CACHE.limit_bytes // 8):
            self.remote.fetcher.begin(pack, start, stop)

    def _decoded(self, decode: Callable[[memoryview], T], data: memoryview, ref: BlobRef) -> T:
        try:
            return decode(data)
        except FormatError as error:
            # The digest matched: these are the bytes that were written.
            raise type(error)(f"blob {ref.digest.hex()} in pack {ref.pack.hex()}: {error.message}") from None

    # --- bytes -----------------------------------------------------------------------------------------------

    def whole(self, ref: BlobRef, what: str, *, verify: bool = True, reach: int = 0) -> memoryview:
        """Return a whole blob, verified against its digest unless that was done before.

        Up to `reach` the pack is known to hold blobs that may be read next.
        """
        return self._whole(ref, what, verify=verify, reach=reach, keep=True)

    def _whole(self, ref: BlobRef, what: str, *, verify: bool, reach: int, keep: bool) -> memoryview:
        """Do what `whole` does; `keep` remote bytes in the cache."""
        remote = self.remote
        if remote is not None:
            return self._with_recovery(ref, what, lambda at: remote.whole(at, reach, keep=keep))
        if not verify:
            return self._with_recovery(ref, what, self._read)
        return self._with_recovery(ref, what, self._verified)

    def span(self, ref: BlobRef, span: ByteSpan, what: str, *, verify: bool = True) -> memoryview:
        """Return a range of a blob, verified unless the whole blob was before."""
        remote = self.remote
        if remote is None and not verify:
            return self._with_recovery(ref, what, lambda at: self._read(_part(at, span)))
        if ref.length <= CHECK_BLOCK_BYTES:
            return self.whole(ref, what)[span.start : span.stop]
        if remote is not None:
            return self._with_recovery(ref, what, lambda at: remote.span(at, span))
        return self._with_recovery(ref, what, lambda at: self._read_span(at, span))

    async def whole_async(self, ref: BlobRef, what: str, reach: int = 0) -> memoryview:
        """Do what `whole` does without blocking the event loop."""
        if self.remote is None or self._moved.get(ref.pack) is not None:
            return await run_waiting(self.whole, ref, what)
        try:
            return await self.remote.whole_async(ref, reach)
        except ObjectNotFoundError:
            return await run_waiting(self.whole, ref, what)
        except DamagedBytesError as error:
            raise self._damage(ref, what, error.finding) from None
        except CorruptionError as error:
            raise _named(error, what) from None

    async def span_async(self, ref: BlobRef, span: ByteSpan, what: str) -> memoryview:
        """Do what `span` does without blocking the event loop."""
        if ref.length <= CHECK_BLOCK_BYTES:
            return (await self.whole_async(ref, what))[span.start : span.stop]
        if self.remote is None or self._moved.get(ref.pack) is not None:
            return await run_waiting(self.span, ref, span, what)
        try:
            return await self.remote.span_async(ref, span)
        except ObjectNotFoundError:
            return await run_waiting(self.span, ref, span, what)
        except DamagedBytesError as error:
            raise self._damage(ref, what, error.finding) from None
        except CorruptionError as error:
            raise _named(error, what) from None

    def stretch(self, pack: PackId, start: int, stop: int) -> memoryview:
        """Return a range of a pack, of whatever blobs, unverified. Raises what `Storage.read` raises."""
        if self.remote is None:
            return self.storage.read(pack_name(pack), start, stop - start)
        return self.remote.fetcher.read(pack, start, stop)

    def _read(self, ref: BlobRef) -> memoryview:
        return self.storage.read(pack_name(ref.pack), ref.offset, ref.length)

    def _verified(self, ref: BlobRef) -> memoryview:
        data = self._read(ref)
        found = blake3_digest(data)
        if found != ref.digest:
            raise DamagedBytesError(f"its bytes have digest {found.hex()}")
        return data

    def _read_span(self, ref: BlobRef, span: ByteSpan) -> memoryview:
        plan = plan_span(ref, span)
        blocks, table = plan.take([self.storage.read(pack_name(ref.pack), *part) for part in plan.reads])
        finding = plan.find_damage(blocks, table)
        if finding is not None:
            raise DamagedBytesError(finding)
        return plan.cut(blocks, span)

    def _damage(self, ref: BlobRef, what: str, found: str) -> CorruptionError:
        return CorruptionError(
            f"{what} is damaged: blob {ref.digest.hex()} at {ref.offset} (length {ref.length}) in "
            f"{pack_name(ref.pack)} of {self.storage.url}: {found}. "
            "repo.fsck() names all that is damaged; restore the file from a copy of the repository."
        )

    def _with_recovery(self, ref: BlobRef, what: str, read: Callable[[BlobRef], memoryview]) -> memoryview:
        at = ref
        try:
            target = self._moved.get(ref.pack)
            for tries_left in reversed(range(_MOVE_TRIES)):
                try:
                    at = ref if target is None else self.find(ref, target)
                    return read(at)
                except ObjectNotFoundError:
                    moved = self._recover(ref, what)
                    self._moved.note(moved)
                    # The catalog folds chains: a pack that it names is gone only if compact was here again.
                    if not tries_left:
                        raise
                    target = moved[ref.pack]
            raise InternalError("unreachable")
        except DamagedBytesError as error:
            raise self._damage(at, what, error.finding) from None
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
        check_may_wait()
        return read_twice(self.storage, lambda: self._read_footer(pack))

    def _read_footer(self, pack: PackId) -> tuple[Trailer, Footer]:
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

    def iter_footers(
        self, packs: Iterable[PackId]
    ) -> Iterator[tuple[PackId, tuple[Trailer, Footer] | VStoreError]]:
        """Yield packs with their trailers and footers, or why they can't be read; in order, some fetched ahead."""
        remote = self.remote
        if remote is None:
            yield from map(self._try_footer, packs)
        else:
            yield from remote.fetcher.iter_map(self._try_footer, packs)

    def _try_footer(self, pack: PackId) -> tuple[PackId, tuple[Trailer, Footer] | VStoreError]:
        try:
            return pack, self.read_footer(pack)
        except (FormatError, StorageError) as error:
            return pack, error


_ONCE = Once()


def _is_at_hand(ref: BlobRef) -> bool:
    """Tell whether metadata was decoded, or its bytes kept, before."""
    if cached_blob(ref.digest) is not None:
        return True
    return any(CACHE.get((kind, ref.digest)) is not None for kind in _DECODED)


def _part(ref: BlobRef, span: ByteSpan) -> BlobRef:
    return ref._replace(offset=ref.offset + span.start, length=span.stop - span.start)


def _named(error: CorruptionError, what: str) -> CorruptionError:
    """Return the error with a word on what the damaged bytes hold."""
    return error if what in error.message else CorruptionError(f"{what} can't be read: {error.message}")


def remember_page(digest: Digest, page: Page) -> None:
    """Keep a decoded page in the cache."""
    CACHE.put(("page", digest), page, _page_size(page.keys) + sum(map(len, page.values)))


def remember_snapshot(ref: BlobRef, snapshot: Snapshot) -> None:
    """Keep a decoded snapshot in the cache."""
    CACHE.put(("snapshot", ref.digest), snapshot, 1000 + len(snapshot.message) + len(snapshot.metadata))


def _page_size(keys: list[bytes]) -> int:
    return sum(map(len, keys)) + 120 * len(keys)
