"""Blobs of an object store: from the process's cache if they are there, else fetched, checked, and kept.

Whole blobs are kept by their digest, ranges as blocks of 64 KiB by digest and number; only what was checked is. What
is short or does not match was perhaps damaged on its way: it is fetched once more, alone, before that counts as
damage. Below: `fetching` makes the requests; above, `reader` finds blobs that were moved.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import suppress
from typing import NamedTuple

from vstore.blobs.cache import CACHE, cached_blob, keep_blob
from vstore.blobs.fetching import PackFetcher
from vstore.blobs.once import check_may_wait
from vstore.blobs.spans import ByteSpan, DamagedBytesError, SpanPlan, plan_span
from vstore.blobs.waiting import run_waiting
from vstore.errors import CorruptionError
from vstore.format.refs import CHECK_BLOCK_BYTES, BlobRef, check_table_size
from vstore.ids import Digest, blake3_digest


class RemoteBlobs:
    """Reads blobs through one fetcher. Thread-safe.

    Raises what `Storage.read` raises, and `DamagedBytesError`.
    """

    def __init__(self, fetcher: PackFetcher) -> None:
        self.fetcher = fetcher

    # --- whole blobs -----------------------------------------------------------------------------------------

    def whole(self, ref: BlobRef, reach: int, *, keep: bool = True) -> memoryview:
        """Return a whole blob; kept, unless its reader keeps what it makes of it."""
        found = cached_blob(ref.digest)
        if found is not None:
            return found
        check_may_wait()
        with suppress(CorruptionError):
            data = self.fetcher.read(ref.pack, ref.offset, ref.offset + ref.length, reach)
            if blake3_digest(data) == ref.digest:
                return _kept(ref.digest, data) if keep else data
        return self._fetched_again(ref, keep)

    async def whole_async(self, ref: BlobRef, reach: int) -> memoryview:
        """Do what `whole` does without blocking the event loop."""
        found = cached_blob(ref.digest)
        if found is not None:
            return found
        with suppress(CorruptionError):
            data = await self.fetcher.read_async(ref.pack, ref.offset, ref.offset + ref.length, reach)
            if blake3_digest(data) == ref.digest:
                return _kept(ref.digest, data)
        return await run_waiting(self._fetched_again, ref, True)

    def _fetched_again(self, ref: BlobRef, keep: bool) -> memoryview:
        start, stop = ref.offset, ref.offset + ref.length
        self.fetcher.forget(ref.pack, start, stop)
        data = self.fetcher.read_alone(ref.pack, start, stop)
        found = blake3_digest(data)
        if found != ref.digest:
            raise DamagedBytesError(f"its bytes have digest {found.hex()}")
        return _kept(ref.digest, data) if keep else data

    # --- ranges ----------------------------------------------------------------------------------------------

    def span(self, ref: BlobRef, span: ByteSpan) -> memoryview:
        """Return a range of a blob that has checksums."""
        found = _cached_span(ref, span)
        if found is not None:
            return found
        check_may_wait()
        wanted = _wanted_span(ref, span)
        with suppress(CorruptionError):
            parts = [self.fetcher.read(ref.pack, *place, wanted.reach) for place in wanted.places]
            if wanted.find_damage(parts) is None:
                return wanted.keep(parts)
        return self._span_again(wanted)

    async def span_async(self, ref: BlobRef, span: ByteSpan) -> memoryview:
        """Do what `span` does without blocking the event loop."""
        found = _cached_span(ref, span)
        if found is not None:
            return found
        wanted = _wanted_span(ref, span)
        reads = [self.fetcher.read_async(ref.pack, *place, wanted.reach) for place in wanted.places]
        with suppress(CorruptionError):
            parts = [await reads[0]] if len(reads) == 1 else await _gather(reads)
            if wanted.find_damage(parts) is None:
                return wanted.keep(parts)
        return await run_waiting(self._span_again, wanted)

    def _span_again(self, wanted: _WantedSpan) -> memoryview:
        # The checksums may be what is wrong.
        CACHE.drop_bytes(_table_key(wanted.ref))
        wanted = _wanted_span(wanted.ref, wanted.span)
        for place in wanted.places:
            self.fetcher.forget(wanted.ref.pack, *place)
        parts = [self.fetcher.read_alone(wanted.ref.pack, *place) for place in wanted.places]
        finding = wanted.find_damage(parts)
        if finding is not None:
            raise DamagedBytesError(finding)
        return wanted.keep(parts)


class _WantedSpan(NamedTuple):
    """A range that is to be fetched, as (start, stop) in the pack: the blocks, and the checksums if they are not kept.

    All checksums of a blob come at once, for other ranges of it are likely to be read, too.
    """

    ref: BlobRef
    span: ByteSpan
    plan: SpanPlan
    table: memoryview | None
    places: tuple[tuple[int, int], ...]

    @property
    def reach(self) -> int:
        return self.ref.offset + self.ref.length

    def find_damage(self, parts: Sequence[memoryview]) -> str | None:
        """Return what is wrong with what was fetched, or None."""
        return self.plan.find_damage(*self._take(parts))

    def _take(self, parts: Sequence[memoryview]) -> tuple[memoryview, memoryview]:
        """Return the blocks and their checksums."""
        blocks = self.plan.blocks
        first = 4 * (blocks.start // CHECK_BLOCK_BYTES)
        table = self._table(parts)
        return parts[0][: blocks.stop - blocks.start], table[first : first + self.plan.table_size]

    def _table(self, parts: Sequence[memoryview]) -> memoryview:
        return parts[-1][-check_table_size(self.ref.length) :] if self.table is None else self.table

    def keep(self, parts: Sequence[memoryview]) -> memoryview:
        """Keep what was fetched, which is right, and return the range."""
        blocks, _ = self._take(parts)
        if self.table is None:
            CACHE.put_bytes(_table_key(self.ref), bytes(self._table(parts)))
        first = self.plan.blocks.start // CHECK_BLOCK_BYTES
        for number, start in enumerate(range(0, len(blocks), CHECK_BLOCK_BYTES), first):
            CACHE.put_bytes(_block_key(self.ref, number), bytes(blocks[start : start + CHECK_BLOCK_BYTES]))
        return self.plan.cut(blocks, self.span)


def _wanted_span(ref: BlobRef, span: ByteSpan) -> _WantedSpan:
    plan = plan_span(ref, span)
    start, stop = ref.offset + plan.blocks.start, ref.offset + plan.blocks.stop
    table = CACHE.get_bytes(_table_key(ref))
    if table is not None:
        return _WantedSpan(ref, span, plan, table, ((start, stop),))
    end = ref.offset + ref.length
    last = end + check_table_size(ref.length)
    is_near = len(plan.reads) == 1
    return _WantedSpan(ref, span, plan, None, ((start, last),) if is_near else ((start, stop), (end, last)))


def _block_key(ref: BlobRef, number: int) -> tuple[str, Digest, int]:
    return "block", ref.digest, number


def _table_key(ref: BlobRef) -> tuple[str, Digest]:
    return "checks", ref.digest


def _cached_span(ref: BlobRef, span: ByteSpan) -> memoryview | None:
    whole = cached_blob(ref.digest)
    if whole is not None:
        return whole[span.start : span.stop]
    first, last = span.start // CHECK_BLOCK_BYTES, -(-span.stop // CHECK_BLOCK_BYTES)
    blocks = []
    for number in range(first, last):
        block = CACHE.get_bytes(_block_key(ref, number))
        if block is None:
            return None
        blocks.append(block)
    data = blocks[0] if len(blocks) == 1 else memoryview(b"".join(blocks))
    start = first * CHECK_BLOCK_BYTES
    return data[span.start - start : span.stop - start]


def _kept(digest: Digest, data: memoryview) -> memoryview:
    keep_blob(digest, data)
    return data


async def _gather(reads: Sequence[Awaitable[memoryview]]) -> list[memoryview]:
    import asyncio

    return list(await asyncio.gather(*reads))
