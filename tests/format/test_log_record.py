"""The log catalog's objects: what they say, what damage does to them, and the files of format version 1.

`python -m tests.format.test_log_record FOLDER` writes the golden files. Those under golden/log_v1 are what vstore wrote
when version 1 was settled: all later versions must read them, so they are never made again.
"""

from __future__ import annotations

import struct
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from crc32c import crc32c
from msgspec.structs import replace

from vstore.errors import CorruptionError, FormatError, UnsupportedFormatError
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.log_record import (
    MAX_DECODED_BYTES,
    MAX_RECORD_BYTES,
    LogRecord,
    Tombstone,
    decode_identity_object,
    decode_log_object,
    encode_identity_object,
    encode_record,
    encode_tombstone,
)
from vstore.format.page import Child, Totals
from vstore.format.refs import BlobRef, pack_message
from vstore.ids import PackId, blake3_digest

GOLDEN = Path(__file__).parent / "golden" / "log_v1"
MEMORY_LIMIT_BYTES = 8 * 1024 * 1024

IDENTITY = pack_message((bytes(range(16)), 1, ["feature"], 1_764_000_000_123_456))
SMALL = LogRecord(0, bytes(16), 0, IDENTITY, {})
FULL = LogRecord(
    sequence=70_000,
    nonce=bytes(range(16)),
    epoch=3,
    identity=IDENTITY,
    entries={b"\x02v1": None, b"\x01main": b"value", b"\x07" + bytes(8): b"operation " * 20, b"": b""},
    root=Child(BlobRef(blake3_digest(b"root"), PackId(bytes(range(100, 116))), 16, 900), 1234, Totals()),
    spilled=0b1100_0000,
    txids=bytes(range(48)),
    extra={"later": pack_message({"unknown": [1, 2.5, None]})},
)
TOMBSTONE = Tombstone(17, 2000)

FILES = {
    "log-record.bin": encode_record(FULL),
    "log-record-first.bin": encode_record(SMALL),
    "log-tombstone.bin": encode_tombstone(TOMBSTONE),
    "log-identity.bin": encode_identity_object(IDENTITY),
}
MEANINGS = {
    "log-record.bin": FULL,
    "log-record-first.bin": SMALL,
    "log-tombstone.bin": TOMBSTONE,
    "log-identity.bin": IDENTITY,
}


def decode(name: str, data: bytes) -> LogRecord | Tombstone | bytes:
    return decode_identity_object(data) if name == "log-identity.bin" else decode_log_object(data)


def framed(magic: bytes, envelope: bytes) -> bytes:
    return magic + struct.pack("<I", crc32c(envelope)) + envelope


def record_of(fields: object) -> bytes:
    """Return a record with a right checksum around any message."""
    message = fields if isinstance(fields, bytes) else pack_message(fields)
    return framed(b"VSLR", encode_envelope(BlobKind.RECORD, 1, (Section(message, 3),)))


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_LIMIT_BYTES


# --- what they say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_round_trip(name):
    assert decode(name, FILES[name]) == MEANINGS[name]
    assert decode(name, memoryview(FILES[name])) == MEANINGS[name]


def test_entries_keep_their_order():
    found = decode_log_object(encode_record(FULL))
    assert isinstance(found, LogRecord)
    assert list(found.entries) == list(FULL.entries)


@pytest.mark.parametrize("name", FILES)
def test_golden_files_are_still_read(name):
    assert decode(name, (GOLDEN / name).read_bytes()) == MEANINGS[name]


@pytest.mark.parametrize("name", FILES)
def test_golden_files_would_be_written_the_same(name):
    # But for compression, which differs between releases of the zstd library.
    golden, written = (GOLDEN / name).read_bytes(), FILES[name]
    assert golden[:4] == written[:4]
    sections = [decode_envelope(data[8:], BlobKind.RECORD, 1).section(0) for data in (golden, written)]
    assert bytes(sections[0]) == bytes(sections[1])


def test_a_tombstone_is_small():
    assert len(encode_tombstone(Tombstone(10**12, 10**12 + 1000))) <= 100


def test_an_older_writer_keeps_the_fields_of_a_newer_one():
    found = decode_log_object(encode_record(FULL))
    assert isinstance(found, LogRecord)
    again = decode_log_object(encode_record(replace(found, sequence=70_001, extra=found.extra)))
    assert isinstance(again, LogRecord)
    assert again.extra == FULL.extra


# --- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("name", FILES)
def test_every_flipped_byte_is_noticed(name):
    data = bytearray(FILES[name])
    for position in range(len(data)):
        for mask in (0xFF, 1 << position % 8):
            data[position] ^= mask
            with pytest.raises(FormatError):
                decode(name, bytes(data))
            data[position] ^= mask


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("name", FILES)
def test_every_cut_and_addition_is_noticed(name):
    data = FILES[name]
    for length in range(len(data)):
        with pytest.raises(CorruptionError):
            decode(name, data[:length])
    with pytest.raises(CorruptionError):
        decode(name, data + b"\0")


def test_objects_are_told_apart():
    with pytest.raises(CorruptionError, match="log record"):
        decode_log_object(FILES["log-identity.bin"])
    for name in ("log-record.bin", "log-tombstone.bin"):
        with pytest.raises(CorruptionError, match="identity"):
            decode_identity_object(FILES[name])


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize(
    "data",
    [
        bytes(MAX_RECORD_BYTES + 1),
        framed(b"VSLR", encode_envelope(BlobKind.RECORD, 1, (Section(bytes(MAX_DECODED_BYTES + 1), 3),))),
        framed(b"VSLI", encode_envelope(BlobKind.RECORD, 1, (Section(bytes(60 * 1024 * 1024), 1),)))[:60_000],
        framed(b"VSLR", encode_envelope(BlobKind.PAGE, 1, (Section(b""),))),
        framed(b"VSLR", encode_envelope(BlobKind.RECORD, 1, (Section(b"\x80"), Section(b"")))),
    ],
    ids=["too long", "too long when decoded", "a bomb", "another kind", "two sections"],
)
def test_sizes_and_shapes_are_bounded(data):
    with pytest.raises(CorruptionError):
        decode_log_object(data)


GOOD_FIELDS = msgspec.msgpack.decode(
    decode_envelope(FILES["log-record.bin"][8:], BlobKind.RECORD, 1).section(0)
)


@pytest.mark.parametrize("name", ["seq", "nonce", "epoch", "repo", "entries", "root", "spilled", "txids"])
@pytest.mark.parametrize(
    "value", [-1, 2**64 - 1, "text", b"x", [], {}, {"a": 1}, {b"a": "b"}, 1.5, True, "absent"]
)
def test_wrong_fields_are_refused(name, value):
    fields = dict(GOOD_FIELDS)
    if value == "absent":
        del fields[name]
    else:
        fields[name] = value
    if isinstance(decode_record_or_none(record_of(fields)), LogRecord):
        assert (name, value) in [("repo", b"x"), ("entries", {})]


def decode_record_or_none(data: bytes) -> LogRecord | Tombstone | None:
    try:
        return decode_log_object(data)
    except FormatError:
        return None


@pytest.mark.parametrize(
    "message", [b"", b"\xc1", b"\x80", b"\x90", b"\x01", b"\x81\xa1a", b"\xc0", b"\x91" * 5000]
)
def test_messages_that_are_no_record_are_refused(message):
    with pytest.raises(CorruptionError):
        decode_log_object(record_of(message))


@pytest.mark.parametrize("pair", [(5, 5), (5, 4), (-1, 4), (1, 2**64 - 1), (1,), (1, 2, 3), ("a", 2), {}])
def test_tombstones_that_do_not_point_forward_are_refused(pair):
    envelope = encode_envelope(BlobKind.RECORD, 1, (Section(pack_message(pair)),))
    with pytest.raises(CorruptionError):
        decode_log_object(framed(b"VSLT", envelope))


@pytest.mark.parametrize("magic", [b"VSLR", b"VSLT"])
def test_a_newer_version_is_named(magic):
    envelope = encode_envelope(BlobKind.RECORD, 2, (Section(b"anything"),))
    with pytest.raises(UnsupportedFormatError, match="version 2"):
        decode_log_object(framed(magic, envelope))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
