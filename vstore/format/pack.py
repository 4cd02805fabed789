"""The pack: blobs end to end, then a footer that lists them, then a trailer that finds the footer.

    0   16   header: magic "VSTOREPK", format version u16, zero u16, zero u32
    16  ..   blobs; each of more than 64 KiB is followed by its table of crc32c, one for each 64 KiB block
    F   ..   footer: an envelope of kind FOOTER (columns kind, offset, length; digests)
    T   64   trailer: footer position u64, footer size u32, blob count u32, crc32c of the footer u32,
             format version u16, zero u16, pack id 16 bytes, zero 12 bytes, crc32c of the trailer so far u32,
             magic "VSTOREPE"

Reading a blob needs none of this; gc, compact, fsck and copies do. All numbers are little-endian.
"""

from __future__ import annotations

import struct

import msgspec
import numpy as np
import numpy.typing as npt

from vstore.errors import CorruptionError, FormatError, UnsupportedFormatError
from vstore.format.columns import U64, EncodedColumn, decode_column, encode_column
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.refs import CHECK_BLOCK_BYTES, expect, guard, message_shape, pack_message, unpack_message
from vstore.ids import DIGEST_SIZE, BytesLike, PackId

PACK_VERSION = 1
HEADER_SIZE = 16
TRAILER_SIZE = 64
MAX_PACK_BLOBS = 1_000_000
"""A pack is sealed before it holds more, so that its footer stays within a section."""

MAX_PACK_BYTES = 2**60
"""More than any disk holds, and little enough that sums of offsets and lengths fit into 64 bits."""

_HEADER = struct.Struct("<8sHHI")
_TRAILER = struct.Struct("<QIIIHH16s12s")
_TRAILER_END = struct.Struct("<I8s")
_MAGIC = b"VSTOREPK"
_END_MAGIC = b"VSTOREPE"

PACK_HEADER = _HEADER.pack(_MAGIC, PACK_VERSION, 0, 0)


class _Columns(msgspec.Struct):
    """The footer's first section; fields that this version does not know are ignored."""

    n: int
    kind: EncodedColumn
    offset: EncodedColumn
    length: EncodedColumn


_COLUMNS = message_shape(_Columns)


class Footer(msgspec.Struct, frozen=True):
    """The blobs of a pack in the order of their offsets.

    `kinds` u8[n], `digests` u8[n, 32], `offsets` and `lengths` u64[n]; lengths without checksum tables.
    """

    kinds: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint8]
    offsets: U64
    lengths: U64

    def __len__(self) -> int:
        return len(self.offsets)


class Trailer(msgspec.Struct, frozen=True):
    """Where a pack's footer is."""

    pack: PackId
    footer_offset: int
    footer_size: int
    blob_count: int
    footer_crc: int


def check_table(blob: BytesLike) -> bytes:
    """Return the crc32c table that follows `blob` in a pack: empty up to 64 KiB."""
    if len(blob) <= CHECK_BLOCK_BYTES:
        return b""
    from crc32c import crc32c

    view = memoryview(blob)
    starts = range(0, len(view), CHECK_BLOCK_BYTES)
    return struct.pack(f"<{len(starts)}I", *(crc32c(view[i : i + CHECK_BLOCK_BYTES]) for i in starts))


def find_bad_block(data: BytesLike, table: BytesLike) -> int | None:
    """Return the index of the first 64 KiB block of `data` that does not match `table`, or None.

    `data` starts at a block's start; `table` holds one little-endian u32 for each block of it.
    """
    from crc32c import crc32c

    view = memoryview(data)
    for index, (expected,) in enumerate(struct.iter_unpack("<I", table)):
        start = index * CHECK_BLOCK_BYTES
        if crc32c(view[start : start + CHECK_BLOCK_BYTES]) != expected:
            return index
    return None


def encode_ending(pack: PackId, footer: Footer, footer_offset: int) -> bytes:
    """Return footer and trailer of a pack whose blobs end at `footer_offset`."""
    from crc32c import crc32c

    columns = {
        "n": len(footer),
        "kind": encode_column(footer.kinds),
        "offset": encode_column(footer.offsets),
        "length": encode_column(footer.lengths),
    }
    body = encode_envelope(
        BlobKind.FOOTER,
        PACK_VERSION,
        (Section(pack_message(columns), level=1), Section(footer.digests.tobytes())),
    )
    head = _TRAILER.pack(
        footer_offset, len(body), len(footer), crc32c(body), PACK_VERSION, 0, pack, bytes(12)
    )
    return body + head + _TRAILER_END.pack(crc32c(head), _END_MAGIC)


def decode_header(data: BytesLike) -> None:
    """Check a pack's first 16 bytes."""
    if len(data) < HEADER_SIZE:
        raise CorruptionError("a pack is shorter than its header")
    magic, version, zero, zero4 = _HEADER.unpack_from(data)
    if magic != _MAGIC or zero or zero4:
        raise CorruptionError("a pack does not start with its magic number")
    _check_version(version)


def decode_trailer(data: BytesLike, pack_size: int) -> Trailer:
    """Return the trailer in a pack's last 64 bytes; `pack_size` is the whole pack's size."""
    from crc32c import crc32c

    if len(data) != TRAILER_SIZE or pack_size < HEADER_SIZE + TRAILER_SIZE:
        raise CorruptionError("a pack is shorter than its header and trailer: it was cut")
    if pack_size > MAX_PACK_BYTES:
        raise CorruptionError(f"a pack can't have {pack_size} bytes")
    view = memoryview(data)
    crc, magic = _TRAILER_END.unpack_from(view, _TRAILER.size)
    if magic != _END_MAGIC or crc != crc32c(view[: _TRAILER.size]):
        raise CorruptionError("a pack does not end in an intact trailer: it was cut or damaged")
    offset, size, count, footer_crc, version, zero, pack, padding = _TRAILER.unpack_from(view)
    _check_version(version)
    if zero or any(padding) or offset < HEADER_SIZE or offset + size + TRAILER_SIZE != pack_size:
        raise CorruptionError(f"a pack's trailer places its footer wrongly for a pack of {pack_size} bytes")
    if count > MAX_PACK_BLOBS:
        raise CorruptionError(f"a pack's trailer claims {count} blobs")
    return Trailer(PackId(pack), offset, size, count, footer_crc)


def decode_footer(data: BytesLike, trailer: Trailer) -> Footer:
    """Return the footer that `trailer` describes."""
    from crc32c import crc32c

    if len(data) != trailer.footer_size or crc32c(data) != trailer.footer_crc:
        raise CorruptionError("a pack's footer does not match its checksum")
    try:
        return _decode_footer(data, trailer)
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise guard(error, "pack footer") from None


def _decode_footer(data: BytesLike, trailer: Trailer) -> Footer:
    envelope = decode_envelope(data, BlobKind.FOOTER, PACK_VERSION)
    expect(len(envelope) == 2, "a footer has two sections")
    columns: _Columns = unpack_message(envelope.section(0), "pack footer", _COLUMNS)
    count = columns.n
    digests = envelope.plain_section(1)
    expect(count == trailer.blob_count and len(digests) == count * DIGEST_SIZE, "footer and trailer disagree")
    kinds = decode_column(columns.kind, count)
    offsets = decode_column(columns.offset, count)
    lengths = decode_column(columns.length, count)
    _check_layout(kinds, offsets, lengths, trailer.footer_offset)
    return Footer(
        kinds.astype(np.uint8),
        np.frombuffer(digests, dtype=np.uint8).reshape(count, DIGEST_SIZE),
        offsets,
        lengths,
    )


def _check_layout(kinds: U64, offsets: U64, lengths: U64, end: int) -> None:
    if len(offsets) == 0:
        return
    expect(
        int(np.max(kinds)) <= max(BlobKind) and int(np.min(kinds)) > 0,
        "a footer lists a blob of unknown kind",
    )
    expect(
        int(np.max(lengths)) <= end and int(np.max(offsets)) <= end, "a footer places a blob outside the pack"
    )
    blocks = -(-lengths.astype(np.int64) // CHECK_BLOCK_BYTES)
    tables = np.where(lengths > CHECK_BLOCK_BYTES, 4 * blocks, 0)
    ends = offsets.astype(np.int64) + lengths.astype(np.int64) + tables
    starts = np.append(offsets[1:].astype(np.int64), end)
    expect(int(offsets[0]) >= HEADER_SIZE and bool((ends <= starts).all()), "blobs of a footer overlap")


def _check_version(version: int) -> None:
    if version > PACK_VERSION:
        raise UnsupportedFormatError(
            f"this pack has format version {version}; this vstore reads up to {PACK_VERSION}. Upgrade vstore."
        )
    if version == 0:
        raise CorruptionError("a pack has format version 0")
