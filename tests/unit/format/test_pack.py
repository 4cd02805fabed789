from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format.strategies import as_values, pack_ids
from vstore.errors import CorruptionError, UnsupportedFormatError
from vstore.format.envelope import BlobKind, Section, encode_envelope
from vstore.format.pack import (
    HEADER_SIZE,
    MAX_PACK_BLOBS,
    PACK_HEADER,
    TRAILER_SIZE,
    Footer,
    Trailer,
    check_table,
    decode_footer,
    decode_header,
    decode_trailer,
    encode_ending,
    find_bad_block,
)
from vstore.format.refs import CHECK_BLOCK_BYTES, check_table_size, pack_message
from vstore.ids import PackId, blake3_digest

PACK = PackId(bytes(range(16)))


def footer_of(blobs: list[tuple[BlobKind, int]], gap: int = 0) -> tuple[Footer, int]:
    """Return the footer of blobs of these kinds and lengths, with `gap` unused bytes before each, and their end."""
    offsets, end = [], HEADER_SIZE
    for _, length in blobs:
        offsets.append(end + gap)
        end += gap + length + check_table_size(length)
    digests = b"".join(blake3_digest(bytes([i % 256])) for i in range(len(blobs)))
    footer = Footer(
        np.array([kind for kind, _ in blobs], np.uint8),
        np.frombuffer(digests, np.uint8).reshape(len(blobs), 32),
        np.array(offsets, np.uint64),
        np.array([length for _, length in blobs], np.uint64),
    )
    return footer, end


def open_ending(ending: bytes, end: int) -> tuple[Trailer, Footer]:
    trailer = decode_trailer(ending[-TRAILER_SIZE:], end + len(ending))
    assert trailer.footer_offset == end
    assert trailer.footer_size == len(ending) - TRAILER_SIZE
    return trailer, decode_footer(ending[:-TRAILER_SIZE], trailer)


@given(
    pack_ids,
    st.lists(st.tuples(st.sampled_from(BlobKind), st.integers(0, 2**30) | st.integers(0, 100)), max_size=40),
    st.integers(0, 3),
)
def test_encode_then_decode(pack, blobs, gap):
    footer, end = footer_of(blobs, gap)
    trailer, found = open_ending(encode_ending(pack, footer, end), end)
    assert (trailer.pack, trailer.blob_count) == (pack, len(blobs))
    assert as_values(found) == as_values(footer)


def test_header():
    assert PACK_HEADER.hex(" ", 8) == b"VSTOREPK".hex() + " 0100000000000000"
    assert len(PACK_HEADER) == HEADER_SIZE
    decode_header(PACK_HEADER)
    decode_header(PACK_HEADER + b"more")


@pytest.mark.parametrize("index", range(HEADER_SIZE))
def test_every_byte_of_the_header_is_checked(index):
    damaged = bytearray(PACK_HEADER)
    damaged[index] ^= 0x80
    with pytest.raises((CorruptionError, UnsupportedFormatError)):
        decode_header(damaged)


def test_a_cut_header_is_refused():
    for length in range(HEADER_SIZE):
        with pytest.raises(CorruptionError):
            decode_header(PACK_HEADER[:length])


def test_packs_of_newer_and_impossible_versions():
    with pytest.raises(UnsupportedFormatError, match=r"format version 2; .* Upgrade"):
        decode_header(b"VSTOREPK" + bytes([2, 0, 0, 0, 0, 0, 0, 0]))
    with pytest.raises(CorruptionError):
        decode_header(b"VSTOREPK" + bytes(8))


# --- checksum tables -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size", [0, 1, CHECK_BLOCK_BYTES, CHECK_BLOCK_BYTES + 1, 3 * CHECK_BLOCK_BYTES, 200_000]
)
def test_check_table(size):
    blob = np.random.default_rng(size).bytes(size)
    table = check_table(blob)
    assert len(table) == check_table_size(size)
    if table:
        blocks = [blob[i : i + CHECK_BLOCK_BYTES] for i in range(0, size, CHECK_BLOCK_BYTES)]
        assert table == b"".join(crc32c(block).to_bytes(4, "little") for block in blocks)
    assert find_bad_block(blob, table) is None


def test_crc32c_is_castagnoli():
    assert crc32c(b"123456789") == 0xE3069283
    assert check_table(bytes(65_537))[4:] == (0x527D5351).to_bytes(4, "little")  # of one zero byte


def test_find_bad_block_names_the_first():
    blob = bytearray(4 * CHECK_BLOCK_BYTES)
    table = check_table(blob)
    for position, block in [(-1, 3), (2 * CHECK_BLOCK_BYTES, 2), (2 * CHECK_BLOCK_BYTES - 1, 1), (0, 0)]:
        blob[position] ^= 1
        assert find_bad_block(blob, table) == block


def test_find_bad_block_in_part_of_a_blob():
    blob = bytearray(np.random.default_rng(0).bytes(3 * CHECK_BLOCK_BYTES + 5))
    table = check_table(blob)
    part, part_table = memoryview(blob)[CHECK_BLOCK_BYTES:], memoryview(table)[4:]
    assert find_bad_block(part, part_table) is None
    blob[-1] ^= 1
    assert find_bad_block(part, part_table) == 2


def test_a_cut_block_is_bad():
    blob = bytes(CHECK_BLOCK_BYTES + 10)
    assert find_bad_block(blob[:-1], check_table(blob)) == 1


# --- what is refused -----------------------------------------------------------------------------------------

TWO_BLOBS = [(BlobKind.CHUNK, 100), (BlobKind.PAGE, 50)]


def test_a_cut_or_damaged_trailer_is_refused():
    footer, end = footer_of(TWO_BLOBS)
    ending = encode_ending(PACK, footer, end)
    trailer, size = ending[-TRAILER_SIZE:], end + len(ending)
    for cut in range(TRAILER_SIZE):
        with pytest.raises(CorruptionError):
            decode_trailer(trailer[:cut], size)
    for index in range(TRAILER_SIZE):
        damaged = bytearray(trailer)
        damaged[index] ^= 1
        with pytest.raises(CorruptionError):
            decode_trailer(damaged, size)


def test_trailer_of_a_pack_of_another_size_is_refused():
    footer, end = footer_of(TWO_BLOBS)
    ending = encode_ending(PACK, footer, end)
    for size in (0, TRAILER_SIZE, end + len(ending) - 1, end + len(ending) + 1, 2**63):
        with pytest.raises(CorruptionError):
            decode_trailer(ending[-TRAILER_SIZE:], size)


def test_footer_is_checked_against_the_trailer():
    footer, end = footer_of(TWO_BLOBS)
    ending = encode_ending(PACK, footer, end)
    trailer = decode_trailer(ending[-TRAILER_SIZE:], end + len(ending))
    body = ending[:-TRAILER_SIZE]
    for wrong in (body[:-1], body + b"x", body[:-1] + b"\0", b""):
        with pytest.raises(CorruptionError, match="does not match its checksum"):
            decode_footer(wrong, trailer)


def trailer_bytes(
    offset=150, size=300, count=2, version=1, zero=0, padding=bytes(12), magic=b"VSTOREPE"
) -> bytes:
    head = struct.pack("<QIIIHH16s12s", offset, size, count, 7, version, zero, PACK, padding)
    return head + struct.pack("<I8s", crc32c(head), magic)


def test_the_base_of_the_next_test_is_good():
    assert decode_trailer(trailer_bytes(), 514) == Trailer(PACK, 150, 300, 2, 7)


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 151},
        {"offset": 15, "size": 435},
        {"offset": 2**64 - 1},
        {"size": 299},
        {"size": 2**32 - 1},
        {"count": MAX_PACK_BLOBS + 1},
        {"count": 2**32 - 1},
        {"version": 0},
        {"zero": 1},
        {"padding": bytes(11) + b"\1"},
        {"magic": b"VSTOREPK"},
    ],
    ids=repr,
)
def test_broken_rules_of_a_trailer_are_refused(fields):
    with pytest.raises(CorruptionError):
        decode_trailer(trailer_bytes(**fields), 514)


def test_trailer_of_a_newer_version():
    with pytest.raises(UnsupportedFormatError):
        decode_trailer(trailer_bytes(version=2), 514)


GOOD: dict[str, Any] = {
    "n": 2,
    "kind": [1, 1, 3, b""],
    "offset": [1, 16, 100, b""],
    "length": [1, 100, -50, b""],
}


def footer_bytes(digests: bytes = bytes(64), sections: int = 2, end: int = 166, **changes: Any):
    columns = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    parts = (Section(pack_message(columns)), Section(digests), Section(b""))[:sections]
    body = encode_envelope(BlobKind.FOOTER, 1, parts)
    return body, Trailer(PACK, end, len(body), 2, crc32c(body))


def test_the_base_of_the_last_tests_is_good():
    footer = decode_footer(*footer_bytes())
    assert footer.kinds.tolist() == [1, 4]
    assert footer.offsets.tolist() == [16, 116]
    assert footer.lengths.tolist() == [100, 50]
    assert as_values(decode_footer(*footer_bytes(more=[1]))) == as_values(footer)


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize(
    "value", [..., None, True, -1, 2**63, 1.5, "text", b"bytes", [], {}, [0, 0, 0]], ids=repr
)
def test_wrong_types_in_a_footer_are_refused(name, value):
    with pytest.raises(CorruptionError):
        decode_footer(*footer_bytes(**{name: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 1},
        {"n": 3},
        {"digests": bytes(63)},
        {"digests": bytes(96)},
        {"kind": [0, 0, 0, b""]},
        {"kind": [0, max(BlobKind) + 1, 0, b""]},
        {"kind": [0, 2**64 - 1, 0, b""]},
        {"offset": [1, 15, 101, b""]},
        {"offset": [1, 16, 99, b""]},
        {"offset": [1, 16, 101, b""]},
        {"offset": [1, 116, -100, b""]},
        {"offset": [1, 16, 2**63 - 1, b""]},
        {"offset": [1, 2**63, 2**63 - 1, b""]},
        {"offset": [0, 2**64 - 16, 0, b""]},
        {"length": [1, 101, -51, b""]},
        {"length": [1, 100, -49, b""]},
        {"length": [0, 2**64 - 1, 0, b""]},
        {"length": [0, 2**63, 0, b""]},
        {"end": 165},
        # The second blob's checksum table would lie in the footer.
        {"length": [1, 100, 65_537 - 100, b""], "end": 116 + 65_537},
        # The first blob's checksum table would lie in the second blob.
        {"length": [1, 65_537, 50 - 65_537, b""], "offset": [1, 16, 65_537, b""], "end": 70_000},
        {"sections": 1},
        {"sections": 3},
    ],
    ids=repr,
)
def test_broken_rules_of_a_footer_are_refused(changes):
    with pytest.raises(CorruptionError):
        decode_footer(*footer_bytes(**changes))


def test_room_that_no_blob_uses_is_allowed():
    assert len(decode_footer(*footer_bytes(end=1000))) == 2
