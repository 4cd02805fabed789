"""Ranges of blobs: what to read for one, and how it is checked.

A range of a blob over 64 KiB is widened to blocks of 64 KiB, which are checked against the crc32c table behind the
blob. Above: `reader` and `remote` read what is planned here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vstore.format.pack import find_bad_block
from vstore.format.refs import CHECK_BLOCK_BYTES, BlobRef

_JOINED_GAP_BYTES = 256 * 1024


class ByteSpan(msgspec.Struct, frozen=True):
    """A half-open range of bytes within a blob."""

    start: int
    stop: int


class DamagedBytesError(Exception):
    """Bytes are not what was written; `finding` says how that shows."""

    def __init__(self, finding: str) -> None:
        super().__init__(finding)
        self.finding = finding


class SpanPlan(msgspec.Struct, frozen=True):
    """What to read for a span: whole blocks and their checksums, as (offset, length) in the pack.

    One read if the checksums, which lie behind the blob, are near; the first part starts with the blocks, the last
    ends with the checksums.
    """

    blocks: ByteSpan
    table_size: int
    reads: tuple[tuple[int, int], ...]

    def take(self, parts: Sequence[memoryview]) -> tuple[memoryview, memoryview]:
        """Return the blocks and their checksums from what was read."""
        return parts[0][: self.blocks.stop - self.blocks.start], parts[-1][-self.table_size :]

    def cut(self, blocks: memoryview, span: ByteSpan) -> memoryview:
        """Return the span from its blocks."""
        return blocks[span.start - self.blocks.start : span.stop - self.blocks.start]

    def find_damage(self, blocks: memoryview, table: memoryview) -> str | None:
        """Return what is wrong with the blocks, or None."""
        bad = find_bad_block(blocks, table)
        return (
            None
            if bad is None
            else f"its block at byte {self.blocks.start + bad * CHECK_BLOCK_BYTES} fails its crc32c"
        )


def plan_span(ref: BlobRef, span: ByteSpan) -> SpanPlan:
    """Return what to read for a span of a blob that has checksums."""
    first = span.start // CHECK_BLOCK_BYTES
    count = -(-span.stop // CHECK_BLOCK_BYTES) - first
    blocks = ByteSpan(first * CHECK_BLOCK_BYTES, min((first + count) * CHECK_BLOCK_BYTES, ref.length))
    start, stop = ref.offset + blocks.start, ref.offset + blocks.stop
    table = ref.offset + ref.length + 4 * first
    if table - stop <= _JOINED_GAP_BYTES:
        return SpanPlan(blocks, 4 * count, ((start, table + 4 * count - start),))
    return SpanPlan(blocks, 4 * count, ((start, stop - start), (table, 4 * count)))
