"""What the log catalog stores: the record, the tombstone that replaces an old one, and the identity object `repo`.

All three are framed alike:

    0   4  magic: "VSLR" record, "VSLT" tombstone, "VSLI" identity
    4   4  crc32c of all that follows, little-endian
    8  ..  an envelope of kind RECORD with one section

The section of a record is a msgpack map, of a tombstone [own number, head], of the identity the bytes that records
repeat. The hint `latest` is a copy of the record that it points to. Map fields that this version does not know are
kept as they are, so that an older writer does not lose what a newer one wrote. `vstore.catalog.log` says what the
records mean.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from vstore.errors import CorruptionError, FormatError
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.page import Child, decode_child, encode_child
from vstore.format.refs import expect, guard, message_shape, pack_message, to_size, unpack_message
from vstore.ids import BytesLike

LOG_VERSION = 1
MAX_RECORD_BYTES = 64 * 1024
"""No record is larger; writers stay below a quarter of it."""
MAX_DECODED_BYTES = 1024 * 1024
MAX_SEQUENCE = 2**62
"""No log comes so far; what follows it can still be written."""
NONCE_SIZE = 16
TXID_SIZE = 16

_FRAME = struct.Struct("<4sI")
_RECORD = b"VSLR"
_TOMBSTONE = b"VSLT"
_IDENTITY = b"VSLI"
_LEVEL_ZSTD = 3
_RAW_SIZE = struct.Struct("<I")
_RAW_SIZE_OFFSET = 9
"""Where an envelope says how large its first section is when decoded."""

Raw: TypeAlias = bytes
"""A msgpack value as it was found."""


class LogRecord(msgspec.Struct, frozen=True):
    """The whole state of the catalog after operation `sequence`.

    `nonce` is new for every attempt to write a record. `entries` are the state's newest keys and values, oldest first,
    and override what the page tree at `root` holds; None deletes. `spilled` has bit s set if the tree may hold keys of
    space s. `txids` are the transaction ids of the operations just before the oldest one in `entries`, 16 bytes each,
    oldest first. `extra` holds the fields that this version does not know.
    """

    sequence: int
    nonce: bytes
    epoch: int
    identity: bytes
    entries: dict[bytes, bytes | None]
    root: Child | None = None
    spilled: int = 0
    txids: bytes = b""
    extra: dict[str, Raw] = msgspec.field(default_factory=dict)


class Tombstone(NamedTuple):
    """What is left of an old record: `head` was the newest one when it was replaced."""

    sequence: int
    head: int


_FIELDS: dict[str, Any] = {
    "seq": message_shape(int),
    "nonce": message_shape(Annotated[bytes, msgspec.Meta(min_length=NONCE_SIZE, max_length=NONCE_SIZE)]),
    "epoch": message_shape(int),
    "repo": message_shape(bytes),
    "entries": message_shape(dict[bytes, bytes | None]),
    "root": message_shape(bytes | None),
    "spilled": message_shape(int),
    "txids": message_shape(bytes),
}
_MAP = message_shape(dict[str, msgspec.Raw])
_PAIR = message_shape(tuple[int, int])


def encode_record(record: LogRecord) -> bytes:
    """Return the bytes of a record."""
    fields: dict[str, Any] = {name: msgspec.Raw(raw) for name, raw in record.extra.items()}
    fields |= {
        "seq": record.sequence,
        "nonce": record.nonce,
        "epoch": record.epoch,
        "repo": record.identity,
        "entries": record.entries,
        "root": None if record.root is None else encode_child(record.root),
        "spilled": record.spilled,
        "txids": record.txids,
    }
    return _frame(_RECORD, pack_message(fields))


def encode_tombstone(tombstone: Tombstone) -> bytes:
    """Return the bytes of a tombstone."""
    return _frame(_TOMBSTONE, pack_message(tuple(tombstone)))


def encode_identity_object(identity: bytes) -> bytes:
    """Return the bytes of the object `repo`."""
    return _frame(_IDENTITY, identity)


def decode_log_object(data: BytesLike) -> LogRecord | Tombstone:
    """Return what is stored under a log number."""
    try:
        magic, section = _open(data)
        if magic == _TOMBSTONE:
            own, head = unpack_message(section, "tombstone", _PAIR)
            expect(0 <= own < head <= MAX_SEQUENCE, "a tombstone does not point forward")
            return Tombstone(own, head)
        expect(magic == _RECORD, f"these bytes do not start like a log record: {magic.hex()}")
        return _to_record(unpack_message(section, "log record", _MAP))
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise guard(error, "log record") from None


def decode_identity_object(data: BytesLike) -> bytes:
    """Return the identity in the bytes of the object `repo`."""
    magic, section = _open(data)
    expect(magic == _IDENTITY, f"these bytes do not start like a repository's identity: {magic.hex()}")
    return bytes(section)


def _frame(magic: bytes, section: bytes) -> bytes:
    from crc32c import crc32c

    envelope = encode_envelope(BlobKind.RECORD, LOG_VERSION, (Section(section, _LEVEL_ZSTD),))
    return _FRAME.pack(magic, crc32c(envelope)) + envelope


def _open(data: BytesLike) -> tuple[bytes, memoryview]:
    """Return the magic and the decoded section of a framed object."""
    from crc32c import crc32c

    view = memoryview(data)
    if not _FRAME.size < len(view) <= MAX_RECORD_BYTES:
        raise CorruptionError(f"a log object can't have {len(view)} bytes")
    magic, crc = _FRAME.unpack_from(view)
    body = view[_FRAME.size :]
    if crc32c(body) != crc:
        raise CorruptionError("a log object does not match its checksum")
    envelope = decode_envelope(body, BlobKind.RECORD, LOG_VERSION)
    expect(len(envelope) == 1, "a log object has one section")
    if _RAW_SIZE.unpack_from(body, _RAW_SIZE_OFFSET)[0] > MAX_DECODED_BYTES:
        raise CorruptionError("a log object is too large when decoded")
    return magic, envelope.section(0)


def _to_record(fields: dict[str, msgspec.Raw]) -> LogRecord:
    known: dict[str, Any] = {}
    for name, shape in _FIELDS.items():
        expect(name in fields, f"a log record has no field {name!r}")
        known[name] = unpack_message(fields[name], f"log record's field {name!r}", shape)
    expect(len(known["txids"]) % TXID_SIZE == 0, "a log record's transaction ids are cut")
    return LogRecord(
        to_size(known["seq"], "sequence", MAX_SEQUENCE),
        known["nonce"],
        to_size(known["epoch"], "epoch", 2**62),
        known["repo"],
        known["entries"],
        None if known["root"] is None else decode_child(known["root"]),
        to_size(known["spilled"], "set of spaces", 2**62),
        known["txids"],
        {name: bytes(raw) for name, raw in fields.items() if name not in _FIELDS},
    )
