"""What the catalog holds, as values with msgpack forms: entries of snapshots, operations, pack marks, sessions.

Each has `to_wire`, a msgpack-able tuple, and `from_wire`, which checks every field. Both catalogs keep these same
bytes, so that one can be converted into the other. The log catalog's record is in `log_record`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from vstore.format.refs import BlobRef, expect, message_shape, to_size, unpack_message
from vstore.ids import (
    DIGEST_SIZE,
    PACK_ID_SIZE,
    BytesLike,
    Digest,
    PackId,
    SessionId,
    SnapshotId,
    TransactionId,
)

MAX_TIME_US = 253_402_300_799_999_999
"""The last microsecond of the year 9999, beyond which no calendar here goes."""
MAX_CHANGES = 1_000_000
"""Of refs by one operation."""
_ID_SIZE = 16


class RefKind(IntEnum):
    """What a ref is. Persisted: never renumber."""

    BRANCH = 1
    TAG = 2


class OperationKind(IntEnum):
    """What an operation did. Persisted: never renumber."""

    CREATE_REPOSITORY = 1
    COMMIT = 2
    AMEND = 3
    FLUSH = 4
    CREATE_BRANCH = 5
    DELETE_BRANCH = 6
    RESET_BRANCH = 7
    CREATE_TAG = 8
    DELETE_TAG = 9
    SET_CONFIG = 10
    SET_METADATA = 11
    SET_STATUS = 12
    OPEN_SESSION = 13
    CLOSE_SESSION = 14
    NO_OPERATION = 15
    MERGE = 16
    CHERRY_PICK = 17
    REVERT = 18
    UNDO = 19
    RESTORE = 20
    PROTECT_BRANCH = 21
    UNPROTECT_BRANCH = 22
    EXPIRE = 23
    COLLECT = 24
    COMPACT = 25


class PackMark(IntEnum):
    """What gc and compact intend with a pack. Persisted: never renumber."""

    CONDEMNED = 1
    DELETING = 2
    REPLACING = 3
    RELOCATED = 4


class _WireChange(msgspec.Struct, array_like=True):
    kind: int
    name: str
    before: bytes | None
    after: bytes | None


class _WireOperation(msgspec.Struct, array_like=True):
    """What an operation holds behind its sequence number and its transaction; newer fields are ignored."""

    kind: int
    time_us: int
    author: str
    changes: Annotated[list[_WireChange], msgspec.Meta(max_length=MAX_CHANGES)]
    details: msgspec.Raw


class _WholeWireOperation(msgspec.Struct, array_like=True):
    sequence: int
    transaction: bytes
    kind: int
    time_us: int
    author: str
    changes: Annotated[list[_WireChange], msgspec.Meta(max_length=MAX_CHANGES)]
    details: msgspec.Raw


_OPERATION = message_shape(_WireOperation)
_WHOLE_OPERATION = message_shape(_WholeWireOperation)


class SnapshotEntry(NamedTuple):
    """What the catalog knows of a retained snapshot, without reading the snapshot itself.

    `ref` is where its blob is (`ref.digest` is the id). `stretch_offset` and `stretch_length` are the part of
    that pack that holds all metadata blobs of its commit. `depth` counts first parents down to the root; `jump`
    is an ancestor along first parents (None for the root), chosen so that any ancestor is found in O(log depth)
    steps (the jump pointers of E. W. Myers, "An applicative random-access stack", 1983). `info` is the snapshot's
    message and JSON metadata, or None where they are too long to be repeated here.
    """

    ref: BlobRef
    parents: tuple[SnapshotId, ...]
    time_us: int
    depth: int
    jump: SnapshotId | None
    stretch_offset: int
    stretch_length: int
    info: tuple[str, bytes] | None

    @property
    def id(self) -> SnapshotId:
        return SnapshotId(self.ref.digest)


class ExpiredEntry(NamedTuple):
    """What history keeps of an expired snapshot: when it was made and how it descends, for those that come from it."""

    id: SnapshotId
    parents: tuple[SnapshotId, ...]
    time_us: int
    depth: int
    jump: SnapshotId | None


HistoryEntry: TypeAlias = SnapshotEntry | ExpiredEntry


class RefChange(NamedTuple):
    """A ref before and after an operation; None is absent."""

    kind: RefKind
    name: str
    before: SnapshotId | None
    after: SnapshotId | None


class Operation(NamedTuple):
    """One entry of the operations log. `sequence` orders; `time_us` only informs."""

    sequence: int
    transaction: TransactionId
    kind: OperationKind
    time_us: int
    author: str
    changes: tuple[RefChange, ...]
    details: dict[str, Any]


class PackState(NamedTuple):
    """A pack's mark in the catalog; `target` is set where it is relocated."""

    pack: PackId
    mark: PackMark
    epoch: int
    target: PackId | None


def relocations(states: Iterable[PackState]) -> dict[PackId, PackId]:
    """Return where the blobs of relocated packs are now."""
    return {s.pack: s.target for s in states if s.mark == PackMark.RELOCATED and s.target is not None}


class SessionEntry(NamedTuple):
    """A registered session: gc leaves its packs alone until it is closed. `expires_us` is only shown.

    With a `snapshot` it is a reader's lease: the snapshot does not expire before `expires_us`.
    """

    session: SessionId
    epoch: int
    opened_us: int
    expires_us: int
    snapshot: SnapshotId | None = None


def entry_to_wire(entry: SnapshotEntry) -> tuple[Any, ...]:
    return (
        tuple(entry.ref),
        entry.parents,
        entry.time_us,
        entry.depth,
        entry.jump,
        entry.stretch_offset,
        entry.stretch_length,
        entry.info,
    )


def entry_from_wire(value: Any) -> SnapshotEntry:
    from vstore.format.refs import from_wire

    ref, parents, time_us, depth, jump, offset, length, info = _fields(value, 8, "snapshot entry")
    expect(isinstance(parents, list), "a snapshot entry's parents are malformed")
    if info is not None:
        expect(
            isinstance(info, list)
            and len(info) == 2
            and isinstance(info[0], str)
            and isinstance(info[1], bytes),
            "a snapshot entry's info is malformed",
        )
        info = (info[0], info[1])
    return SnapshotEntry(
        from_wire(ref),
        tuple(SnapshotId(_bytes(parent, DIGEST_SIZE)) for parent in parents),
        to_size(time_us, "time", MAX_TIME_US),
        to_size(depth, "depth", 2**48),
        None if jump is None else SnapshotId(_bytes(jump, DIGEST_SIZE)),
        to_size(offset, "stretch offset"),
        to_size(length, "stretch length"),
        info,
    )


def expired_to_wire(entry: ExpiredEntry) -> tuple[Any, ...]:
    """Return all but the id, which is the key."""
    return tuple(entry[1:])


def expired_from_wire(snapshot: SnapshotId, value: Any) -> ExpiredEntry:
    parents, time_us, depth, jump = _fields(value, 4, "expired snapshot's entry")
    expect(isinstance(parents, list), "an expired snapshot's parents are malformed")
    return ExpiredEntry(
        snapshot,
        tuple(SnapshotId(_bytes(parent, DIGEST_SIZE)) for parent in parents),
        to_size(time_us, "time", MAX_TIME_US),
        to_size(depth, "depth", 2**48),
        _optional_id(jump),
    )


def operation_to_wire(operation: Operation) -> tuple[Any, ...]:
    changes = tuple(tuple(change) for change in operation.changes)
    return (*operation[:5], changes, operation.details)


def is_recordable(operation: Operation) -> bool:
    """Tell whether an operation without details would be read just as it is."""
    return (
        type(operation.sequence) is type(operation.time_us) is int
        and 0 <= operation.sequence <= 10**20
        and 0 <= operation.time_us <= MAX_TIME_US
        and type(operation.transaction) is bytes
        and len(operation.transaction) == _ID_SIZE
        and isinstance(operation.kind, OperationKind)
        and type(operation.author) is str
        and operation.author.isascii()
        and len(operation.changes) <= MAX_CHANGES
    )


def decode_operation(data: BytesLike) -> Operation:
    """Return the operation in a message, which may be long: it may change very many refs."""
    fields = unpack_message(data, "operation", _WHOLE_OPERATION)
    return _operation_of(fields.sequence, fields.transaction, fields)


def decode_operation_fields(sequence: int, transaction: bytes, data: BytesLike) -> Operation:
    """Return the operation whose other fields are in a message."""
    return _operation_of(sequence, transaction, unpack_message(data, "operation", _OPERATION))


def _operation_of(
    sequence: int, transaction: bytes, fields: _WireOperation | _WholeWireOperation
) -> Operation:
    changes = [(change.kind, change.name, change.before, change.after) for change in fields.changes]
    details = unpack_message(fields.details, "operation's details")
    return operation_from_wire(
        (sequence, transaction, fields.kind, fields.time_us, fields.author, changes, details)
    )


def operation_from_wire(value: Any) -> Operation:
    sequence, transaction, kind, time_us, author, changes, details = _fields(value, 7, "operation")
    expect(isinstance(author, str) and isinstance(details, dict), "an operation is malformed")
    expect(isinstance(changes, list), "an operation's changes are malformed")
    return Operation(
        to_size(sequence, "sequence", 10**20),
        TransactionId(_bytes(transaction, _ID_SIZE)),
        _enum(OperationKind, kind),
        to_size(time_us, "time", MAX_TIME_US),
        author,
        tuple(map(_change, changes)),
        details,
    )


def _change(value: Any) -> RefChange:
    kind, name, before, after = _fields(value, 4, "ref change")
    expect(isinstance(name, str), "a ref change has no name")
    return RefChange(_enum(RefKind, kind), name, _optional_id(before), _optional_id(after))


def pack_state_from_wire(value: Any) -> PackState:
    pack, mark, epoch, target = _fields(value, 4, "pack state")
    return PackState(
        PackId(_bytes(pack, PACK_ID_SIZE)),
        _enum(PackMark, mark),
        to_size(epoch, "epoch", 2**62),
        None if target is None else PackId(_bytes(target, PACK_ID_SIZE)),
    )


def session_to_wire(entry: SessionEntry) -> tuple[Any, ...]:
    return tuple(entry) if entry.snapshot is not None else tuple(entry[:4])


def session_from_wire(value: Any) -> SessionEntry:
    session, epoch, opened_us, expires_us = _fields(value, 4, "session entry")
    return SessionEntry(
        SessionId(_bytes(session, _ID_SIZE)),
        to_size(epoch, "epoch", 2**62),
        to_size(opened_us, "time", MAX_TIME_US),
        to_size(expires_us, "time", MAX_TIME_US),
        _optional_id(value[4]) if len(value) > 4 else None,
    )


def digest_of(value: Any) -> Digest:
    return Digest(_bytes(value, DIGEST_SIZE))


def _fields(value: Any, count: int, what: str) -> Any:
    expect(isinstance(value, (list, tuple)) and len(value) >= count, f"a {what} is not an array of {count}")
    # A newer vstore may append fields; they are optional by the format's rules.
    return value[:count]


def _bytes(value: Any, size: int) -> bytes:
    expect(isinstance(value, bytes) and len(value) == size, f"an id is not {size} bytes")
    return bytes(value)


def _optional_id(value: Any) -> SnapshotId | None:
    return None if value is None else SnapshotId(_bytes(value, DIGEST_SIZE))


def _enum(kind: Any, value: Any) -> Any:
    known = type(value) is int and value in kind._value2member_map_
    expect(known, f"{value if type(value) is int else type(value).__name__} is not a known {kind.__name__}")
    return kind(value)
