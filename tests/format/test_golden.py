"""Files of format version 1 decode to what was put into them, and today's encoders make the same payloads.

Payloads are compared section by section, decompressed: zstd frames differ between releases of the library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.format import make_golden as golden
from tests.format.decoders import ENVELOPES, MESSAGES, open_pack, read
from vstore.errors import CorruptionError
from vstore.format.envelope import BlobKind, Envelope, decode_envelope
from vstore.format.manifest import Manifest, decode_manifest
from vstore.format.pack import TRAILER_SIZE, Footer, decode_trailer, find_bad_block
from vstore.format.page import Entry, decode_page, decode_page_names
from vstore.format.snapshot import decode_snapshot
from vstore.ids import blake3_digest

BUILT = golden.build()


def test_every_file_is_listed():
    assert sorted(path.name for path in golden.GOLDEN.iterdir()) == sorted(BUILT)


# --- decoding ------------------------------------------------------------------------------------------------


def as_values(decoded: Any) -> Any:
    """Return a decoded value in a form that == compares, with the types of its arrays."""
    if isinstance(decoded, (Manifest, Footer)):
        fields = {name: getattr(decoded, name) for name in type(decoded).__slots__}
        return {k: (v.dtype.name, v.tolist()) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return decoded


EXPECTED: dict[str, Any] = {
    "manifest-one.bin": golden.ONE_REF,
    "manifest-mixed.bin": golden.MIXED,
    "manifest-virtual.bin": golden.VIRTUAL,
    "manifest-none.bin": golden.NO_REF,
    "snapshot.bin": golden.SNAPSHOT,
    "snapshot-first.bin": golden.FIRST_SNAPSHOT,
    "node-group.bin": golden.GROUP,
    "node-array.bin": golden.ARRAY,
    "node-large-array.bin": golden.LARGE_ARRAY,
    "node-scalar-array.bin": golden.SCALAR_ARRAY,
    "value-inline.bin": golden.INLINE_VALUE,
    "value-long.bin": golden.LONG_VALUE,
    "pointer.bin": golden.POINTER,
    "child.bin": golden.CHILDREN[1],
    "entry.bin": golden.ENTRY,
    "entry-first.bin": golden.FIRST_ENTRY,
    "operation.bin": golden.OPERATION,
    "pack-relocated.bin": golden.RELOCATED,
    "pack-condemned.bin": golden.CONDEMNED,
    "session.bin": golden.SESSION,
    "lease.bin": golden.LEASE,
    "expired.bin": golden.EXPIRED,
    "expired-first.bin": golden.FIRST_EXPIRED,
}
PAGES = {
    "page-leaf.bin": (0, golden.LEAF),
    "page-inner.bin": (1, golden.INNER),
    "page-tiles.bin": (0, golden.TILES),
}
PACKS = {
    "pack-empty.bin": (golden.PACK_A, []),
    "pack-tiny.bin": (golden.PACK_A, golden.TINY_PACK),
    "pack-full.bin": (golden.PACK_A, golden.FULL_PACK),
    "pack-large.bin": (golden.PACK_B, golden.LARGE_PACK),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_decodes_to_what_was_written(name):
    decode = {**ENVELOPES, **MESSAGES}[name]
    assert as_values(decode(read(name))) == as_values(EXPECTED[name])


@pytest.mark.parametrize("name", PAGES)
def test_page_decodes_to_what_was_written(name):
    level, entries = PAGES[name]
    page, names = decode_page(read(name)), decode_page_names(read(name))
    assert (names.level, names.keys, names.tags) == (page.level, page.keys, page.tags)
    assert page.level == level
    assert [Entry(*fields) for fields in zip(page.keys, page.tags, page.values, strict=True)] == entries


@pytest.mark.parametrize("name", PACKS)
def test_pack_decodes_to_what_was_written(name):
    pack, blobs = PACKS[name]
    data = read(name)
    trailer, footer = open_pack(data)
    assert trailer.pack == pack
    assert trailer.blob_count == len(footer) == len(blobs)
    expected_footer = golden.pack_of(pack, blobs)[1]
    assert as_values(footer) == as_values(expected_footer)
    found = [
        bytes(data[offset : offset + length])
        for offset, length in zip(footer.offsets.tolist(), footer.lengths.tolist(), strict=True)
    ]
    if name == "pack-full.bin":
        # Its metadata blobs were compressed by the library of their day.
        assert found[:3] == [blob for _, blob in blobs[:3]]
    else:
        assert found == [blob for _, blob in blobs]
    assert [blake3_digest(blob) for blob in found] == [bytes(row) for row in footer.digests]


def test_checksum_table_of_a_large_blob():
    data = read("pack-large.bin")
    _, footer = open_pack(data)
    start, length = int(footer.offsets[0]), int(footer.lengths[0])
    blob, table = data[start : start + length], data[start + length : int(footer.offsets[1])]
    assert len(table) == 8
    assert find_bad_block(blob, table) is None
    damaged = bytearray(blob)
    damaged[-1] ^= 1
    assert find_bad_block(damaged, table) == 1


# --- encoding ------------------------------------------------------------------------------------------------

KINDS = {
    decode_manifest: BlobKind.MANIFEST,
    decode_snapshot: BlobKind.SNAPSHOT,
}


def payload(data: bytes, kind: BlobKind) -> tuple[int, list[bytes]]:
    envelope = decode_envelope(data, kind, 255)
    return envelope.version, sections_of(envelope)


def sections_of(envelope: Envelope) -> list[bytes]:
    return [bytes(envelope.section(index)) for index in range(len(envelope))]


@pytest.mark.parametrize("name", ENVELOPES)
def test_payload_is_encoded_as_before(name):
    kind = KINDS.get(ENVELOPES[name], BlobKind.PAGE)
    assert payload(BUILT[name], kind) == payload(read(name), kind)


@pytest.mark.parametrize("name", ["pack-empty.bin", "pack-tiny.bin", "pack-large.bin"])
def test_pack_is_encoded_as_before(name):
    old, new = read(name), BUILT[name]
    (old_trailer, _), (new_trailer, _) = open_pack(old), open_pack(new)
    end = old_trailer.footer_offset
    assert end == new_trailer.footer_offset
    assert old[:end] == new[:end]
    assert payload(old[end:-TRAILER_SIZE], BlobKind.FOOTER) == payload(
        new[end:-TRAILER_SIZE], BlobKind.FOOTER
    )
    # Between the footer's position and its crc32c lies its size, which depends on the zstd library.
    assert old[-TRAILER_SIZE:][:8] == new[-TRAILER_SIZE:][:8]
    assert old[-TRAILER_SIZE:][20:52] == new[-TRAILER_SIZE:][20:52]


@pytest.mark.parametrize("name", MESSAGES)
def test_message_is_encoded_as_before(name):
    assert BUILT[name] == read(name)


def test_every_file_is_tested():
    tested = {*EXPECTED, *PAGES, *PACKS}
    assert tested == set(BUILT)


def test_a_pack_of_another_size_is_refused():
    data = read("pack-tiny.bin")
    with pytest.raises(CorruptionError, match="places its footer wrongly"):
        decode_trailer(data[-TRAILER_SIZE:], len(data) + 1)
