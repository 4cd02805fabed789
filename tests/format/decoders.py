"""Every decoder of vstore.format, by the golden files that it reads, and ways to damage these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.format.make_golden import EXPIRED, GOLDEN
from vstore.errors import CorruptionError
from vstore.format.manifest import decode_manifest
from vstore.format.node import NodeTag, decode_node, decode_pointer, decode_value, path_of, tile_of
from vstore.format.pack import (
    TRAILER_SIZE,
    Footer,
    Trailer,
    decode_footer,
    decode_header,
    decode_trailer,
    find_bad_block,
)
from vstore.format.page import decode_child, decode_page
from vstore.format.record import (
    entry_from_wire,
    expired_from_wire,
    operation_from_wire,
    pack_state_from_wire,
    session_from_wire,
)
from vstore.format.refs import check_table_size, unpack_message
from vstore.format.snapshot import decode_snapshot
from vstore.ids import blake3_digest


def decode_node_page(data: bytes) -> list[Any]:
    """Decode a leaf of the node tree and every entry in it."""
    page = decode_page(data)
    found = []
    for key, tag, value in zip(page.keys, page.tags, page.values, strict=True):
        path_of(key)
        found.append(decode_value(value) if tag == NodeTag.VALUE else decode_node(value))
    return found


def decode_inner_page(data: bytes) -> list[Any]:
    """Decode an inner page and every entry in it."""
    return [decode_child(value) for value in decode_page(data).values]


def decode_tile_page(data: bytes) -> list[Any]:
    """Decode a leaf of a tile tree and every entry in it."""
    page = decode_page(data)
    return [(tile_of(key), decode_pointer(value)) for key, value in zip(page.keys, page.values, strict=True)]


def from_message(decode: Callable[[Any], Any]) -> Callable[[bytes], Any]:
    return lambda data: decode(unpack_message(data, "record"))


ENVELOPES: dict[str, Callable[[bytes], Any]] = {
    "manifest-one.bin": decode_manifest,
    "manifest-mixed.bin": decode_manifest,
    "manifest-virtual.bin": decode_manifest,
    "manifest-none.bin": decode_manifest,
    "page-leaf.bin": decode_node_page,
    "page-inner.bin": decode_inner_page,
    "page-tiles.bin": decode_tile_page,
    "snapshot.bin": decode_snapshot,
    "snapshot-first.bin": decode_snapshot,
}
MESSAGES: dict[str, Callable[[bytes], Any]] = {
    "node-group.bin": decode_node,
    "node-array.bin": decode_node,
    "node-large-array.bin": decode_node,
    "node-scalar-array.bin": decode_node,
    "value-inline.bin": decode_value,
    "value-long.bin": decode_value,
    "pointer.bin": decode_pointer,
    "child.bin": decode_child,
    "entry.bin": from_message(entry_from_wire),
    "entry-first.bin": from_message(entry_from_wire),
    "operation.bin": from_message(operation_from_wire),
    "pack-relocated.bin": from_message(pack_state_from_wire),
    "pack-condemned.bin": from_message(pack_state_from_wire),
    "session.bin": from_message(session_from_wire),
    "lease.bin": from_message(session_from_wire),
    "expired.bin": from_message(lambda value: expired_from_wire(EXPIRED.id, value)),
    "expired-first.bin": from_message(lambda value: expired_from_wire(EXPIRED.id, value)),
}
PACKS = ["pack-empty.bin", "pack-tiny.bin", "pack-full.bin", "pack-large.bin"]


PATTERNS = (0x01, 0x20, 0x80, 0xFF)


def flips(data: bytes, positions: range | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield copies of `data` with one byte flipped in several ways, and that byte's position."""
    damaged = bytearray(data)
    for position in positions or range(len(data)):
        for pattern in PATTERNS:
            damaged[position] ^= pattern
            yield position, bytes(damaged)
            damaged[position] ^= pattern


def read(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def open_pack(data: bytes) -> tuple[Trailer, Footer]:
    """Return the trailer and footer of a whole pack."""
    decode_header(data)
    trailer = decode_trailer(data[-TRAILER_SIZE:], len(data))
    return trailer, decode_footer(data[trailer.footer_offset :][: trailer.footer_size], trailer)


def verify_pack(data: bytes) -> None:
    """Raise unless every blob and checksum table of a whole pack is right."""
    _, footer = open_pack(data)
    for row, (start, length) in enumerate(zip(footer.offsets.tolist(), footer.lengths.tolist(), strict=True)):
        blob = data[start : start + length]
        if blake3_digest(blob) != footer.digests[row].tobytes():
            raise CorruptionError("a blob does not match its digest")
        table = data[start + length :][: check_table_size(length)]
        if find_bad_block(blob, table) is not None:
            raise CorruptionError("a blob does not match its checksum table")
