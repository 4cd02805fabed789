from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import zstd

from vstore.errors import CorruptionError, FormatError, InternalError, UnsupportedFormatError
from vstore.format.envelope import (
    MAX_SECTION_BYTES,
    BlobKind,
    Compression,
    Section,
    decode_envelope,
    encode_envelope,
)

PAGE = BlobKind.PAGE
sections = st.lists(
    st.builds(
        Section, st.binary(max_size=300) | st.binary(max_size=3).map(lambda b: b * 100), st.integers(0, 4)
    ),
    min_size=1,
    max_size=4,
).map(tuple)


@given(st.sampled_from(BlobKind), st.integers(1, 255), sections)
def test_encode_then_decode(kind, version, parts):
    data = encode_envelope(kind, version, parts)
    envelope = decode_envelope(data, kind, 255)
    assert (envelope.kind, envelope.version, len(envelope)) == (kind, version, len(parts))
    assert [bytes(envelope.section(i)) for i in range(len(parts))] == [part.data for part in parts]


def test_bytes_of_an_envelope():
    data = encode_envelope(PAGE, 3, (Section(b"abc"), Section(b"")))
    assert data == bytes([4, 3, 2, 0, 0, 3, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + b"abc"


def test_compresses_only_what_gets_smaller():
    repetitive, short, noise = b"a" * 1000, b"a" * 63, bytes(range(256))
    data = encode_envelope(PAGE, 1, tuple(Section(part, 1) for part in (repetitive, short, noise)))
    table = [data[4 + 9 * i : 13 + 9 * i] for i in range(3)]
    assert [row[0] for row in table] == [Compression.ZSTD, Compression.NONE, Compression.NONE]
    assert int.from_bytes(table[0][1:5], "little") < 100
    assert int.from_bytes(table[0][5:9], "little") == 1000
    assert len(data) < 4 + 27 + 100 + 63 + 256


def test_sections_are_decompressed_when_asked_for():
    data = bytearray(encode_envelope(PAGE, 1, (Section(b"names"), Section(b"v" * 500, 1))))
    data[-1] ^= 0xFF
    envelope = decode_envelope(data, PAGE, 1)
    assert bytes(envelope.section(0)) == b"names"
    with pytest.raises(CorruptionError):
        envelope.section(1)


def test_newer_version_asks_for_a_newer_vstore():
    data = encode_envelope(PAGE, 2, (Section(b"abc"),))
    with pytest.raises(
        UnsupportedFormatError, match=r"PAGE has format version 2; .* reads up to 1\. Upgrade"
    ):
        decode_envelope(data, PAGE, 1)
    assert decode_envelope(data, PAGE, 2).version == 2


def test_other_kind_is_refused():
    data = encode_envelope(BlobKind.MANIFEST, 1, (Section(b"abc"),))
    with pytest.raises(CorruptionError, match="do not start like a PAGE"):
        decode_envelope(data, PAGE, 1)


def envelope(*rows: tuple[int, int, int], body: bytes = b"", head: bytes | None = None) -> bytes:
    """Return an envelope with this section table, whatever it says."""
    table = b"".join(
        bytes([c]) + stored.to_bytes(4, "little") + raw.to_bytes(4, "little") for c, stored, raw in rows
    )
    return (head or bytes([PAGE, 1, len(rows), 0])) + table + body


FRAME = zstd.compress(b"a" * 1000, 1)
"""One frame whose header states 1,000 bytes."""
SIZELESS_FRAME = bytes.fromhex("28b52ffd0058") + (1 | 1 << 1 | 1000 << 3).to_bytes(3, "little") + b"a"
"""The same bytes in a frame whose header does not say how many."""


def test_frames_of_the_next_tests_are_what_they_claim():
    assert zstd.decompress(FRAME) == b"a" * 1000
    assert zstd.decompress(SIZELESS_FRAME, bytearray(1000)) == b"a" * 1000
    good = decode_envelope(envelope((1, len(FRAME), 1000), body=FRAME), PAGE, 1)
    assert bytes(good.section(0)) == b"a" * 1000


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\4\1\1",
        envelope(head=bytes([PAGE, 1, 0, 0])),
        envelope(*[(0, 0, 0)] * 5),
        envelope((0, 0, 0), head=bytes([PAGE, 0, 1, 0])),
        envelope((0, 0, 0), head=bytes([PAGE, 1, 1, 1])),
        envelope((0, 0, 0), head=bytes([0, 1, 1, 0])),
        envelope((0, 3, 2), body=b"abc"),
        envelope((0, 2, 3), body=b"abc"),
        envelope((2, 3, 3), body=b"abc"),
        envelope((255, 3, 3), body=b"abc"),
        envelope((0, 3, 3), body=b"abcd"),
        envelope((0, 3, 3), body=b"ab"),
        envelope((0, 2**32 - 1, 2**32 - 1), body=b"ab"),
        envelope((1, 5, MAX_SECTION_BYTES + 1), body=b"abcde"),
        envelope((0, 0, 0), (0, 0, 0))[:-1],
    ],
)
def test_malformed_envelopes_are_refused(data):
    with pytest.raises(CorruptionError):
        decode_envelope(data, PAGE, 1)


@pytest.mark.parametrize(
    ("frame", "raw_size"),
    [
        (b"", 0),
        (b"", 10),
        (b"not zstd", 8),
        (FRAME, 999),
        (FRAME, 1001),
        (FRAME, 0),
        (FRAME[:-1], 1000),
        (FRAME[:6], 1000),
        (FRAME + b"x", 1000),
        (FRAME + FRAME, 1000),
        (FRAME + FRAME, 2000),
        (SIZELESS_FRAME, 1000),
        (FRAME + SIZELESS_FRAME, 1000),
        (b"\x50\x2a\x4d\x18\0\0\0\0" + FRAME, 1000),
    ],
)
def test_sections_that_are_not_one_frame_of_the_stated_size_are_refused(frame, raw_size):
    decoded = decode_envelope(envelope((1, len(frame), raw_size), body=frame), PAGE, 1)
    with pytest.raises(CorruptionError):
        decoded.section(0)


@given(sections, st.data())
def test_every_cut_is_noticed(parts, data):
    whole = encode_envelope(PAGE, 1, parts)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(FormatError):
        decode_envelope(cut, PAGE, 1)


def test_a_section_over_the_limit_is_not_written():
    with pytest.raises(InternalError):
        encode_envelope(PAGE, 1, (Section(bytes(MAX_SECTION_BYTES + 1)),))


def test_numbers_never_change():
    assert {kind.name: kind.value for kind in BlobKind} == {
        "CHUNK": 1,
        "DOCUMENT": 2,
        "MANIFEST": 3,
        "PAGE": 4,
        "SNAPSHOT": 5,
        "FOOTER": 6,
        "RECORD": 7,
    }
    assert {code.name: code.value for code in Compression} == {"NONE": 0, "ZSTD": 1}
