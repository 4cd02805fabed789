"""The snapshot: the whole hierarchy at one commit. Its id is the digest of its blob.

An envelope of kind SNAPSHOT with one section, a msgpack map:

    parents    ids, none for the first snapshot, two for a merge
    time       microseconds since 1970 UTC; later than every parent's
    message    text
    metadata   JSON text of an object
    root       the node tree's root as a page `Child`, or nil for an empty hierarchy

Fields that this version does not know are ignored.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from vstore.config import load_object
from vstore.errors import FormatError
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.page import Child, decode_child, encode_child
from vstore.format.record import MAX_TIME_US
from vstore.format.refs import expect, guard, message_shape, pack_message, to_size, unpack_message
from vstore.ids import DIGEST_SIZE, BytesLike, SnapshotId

SNAPSHOT_VERSION = 1
MAX_PARENTS = 64


class _Fields(msgspec.Struct):
    parents: Annotated[list[bytes], msgspec.Meta(max_length=MAX_PARENTS)]
    time: int
    message: str
    metadata: bytes
    root: bytes | None = None


_FIELDS = message_shape(_Fields)


class Snapshot(msgspec.Struct, frozen=True):
    """The hierarchy at one commit; `metadata` is the user's, as JSON bytes of an object."""

    parents: tuple[SnapshotId, ...]
    time_us: int
    message: str
    metadata: bytes
    root: Child | None


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the snapshot's envelope."""
    fields = {
        "parents": snapshot.parents,
        "time": snapshot.time_us,
        "message": snapshot.message,
        "metadata": snapshot.metadata,
        "root": None if snapshot.root is None else encode_child(snapshot.root),
    }
    return encode_envelope(BlobKind.SNAPSHOT, SNAPSHOT_VERSION, (Section(pack_message(fields), level=3),))


def decode_snapshot(data: BytesLike) -> Snapshot:
    """Return the snapshot in `data`."""
    try:
        envelope = decode_envelope(data, BlobKind.SNAPSHOT, SNAPSHOT_VERSION)
        expect(len(envelope) == 1, "a snapshot has one section")
        return _from_fields(unpack_message(envelope.section(0), "snapshot", _FIELDS))
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise guard(error, "snapshot") from None


def _from_fields(fields: _Fields) -> Snapshot:
    expect(all(len(p) == DIGEST_SIZE for p in fields.parents), "a snapshot's parents are malformed")
    load_object(fields.metadata, "a snapshot's metadata")
    return Snapshot(
        tuple(SnapshotId(parent) for parent in fields.parents),
        to_size(fields.time, "time", MAX_TIME_US),
        fields.message,
        fields.metadata,
        None if fields.root is None else decode_child(fields.root),
    )
