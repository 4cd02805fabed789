"""The catalog's state as a sorted map of bytes in spaces: what a transaction does to it, and how it is viewed.

Both catalogs keep the same keys and values, so that one can be converted into the other; they differ only in where
the map is. `plan` turns a transaction into an operation and edits of the map; `StateView` is a `CatalogView` over
two primitive look-ups, which `sqlite` and `log` supply. All pure.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections.abc import Iterator
from enum import IntEnum
from itertools import groupby, islice
from typing import Annotated, Any

import msgspec

from vstore.catalog.base import (
    FORMAT_VERSION,
    SUPPORTED_FEATURES,
    AddSnapshot,
    AdvanceEpoch,
    CloseSession,
    DropRef,
    DropSnapshots,
    Identity,
    MarkPacks,
    OpenSession,
    RescuePacks,
    SetRef,
    SetValue,
    Transaction,
    UnmarkPacks,
    Update,
)
from vstore.errors import CorruptionError, FormatError, InvalidInputError, UnsupportedFormatError
from vstore.format.record import (
    MAX_TIME_US,
    ExpiredEntry,
    Operation,
    OperationKind,
    PackMark,
    PackState,
    RefChange,
    RefKind,
    SessionEntry,
    SnapshotEntry,
    decode_operation,
    entry_from_wire,
    entry_to_wire,
    expired_from_wire,
    expired_to_wire,
    is_recordable,
    operation_to_wire,
    pack_state_from_wire,
    session_from_wire,
    session_to_wire,
)
from vstore.format.refs import BlobRef, message_shape, pack_message, unpack_message
from vstore.ids import (
    DIGEST_SIZE,
    PACK_ID_SIZE,
    PackId,
    RepositoryId,
    SessionId,
    SnapshotId,
    TransactionId,
    new_transaction_id,
)


class Space(IntEnum):
    """A part of the state, with what its keys and values are. Persisted: never renumber."""

    BRANCH = 1
    """Name: [snapshot id, sequence of the last change]."""
    TAG = 2
    """Name: [snapshot id or nil where the name is retired, sequence of the last change]."""
    VALUE = 3
    """Name: JSON bytes."""
    PACK = 4
    """Pack id and mark (u8): [pack id, mark, epoch, target]."""
    SESSION = 5
    """Session id: [session id, epoch, opened, expires], and of a lease its snapshot id."""
    SNAPSHOT = 6
    """Snapshot id: snapshot entry."""
    OPERATION = 7
    """Sequence (u64, big-endian): operation."""
    EXPIRED = 8
    """Snapshot id: [parents, time, depth, jump]."""


class Edit(msgspec.Struct, frozen=True):
    """One change of the map; None deletes the key."""

    space: Space
    key: bytes
    value: bytes | None


class Plan(msgspec.Struct, frozen=True):
    """What a transaction comes to: `edits` hold all but the operation, and the snapshot entries that come and go."""

    operation: Operation
    entries: tuple[SnapshotEntry, ...]
    dropped: tuple[SnapshotId, ...]
    edits: tuple[Edit, ...]
    epoch: int


class _Ref(msgspec.Struct, array_like=True):
    snapshot: Annotated[bytes, msgspec.Meta(min_length=DIGEST_SIZE, max_length=DIGEST_SIZE)] | None
    sequence: int


_REF = message_shape(_Ref)


class _Identity(msgspec.Struct, array_like=True):
    repository: bytes
    format_version: int
    features: Annotated[list[Annotated[str, msgspec.Meta(max_length=100)]], msgspec.Meta(max_length=100)]
    created_us: Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME_US)]


_IDENTITY = message_shape(_Identity)


def space_of(kind: RefKind) -> Space:
    """Return where refs of this kind are."""
    return Space.BRANCH if kind == RefKind.BRANCH else Space.TAG


def text_key(name: str) -> bytes:
    """Return the key of a name; one that is not Unicode gets a key that nothing has."""
    return name.encode("utf-8", "surrogatepass")


def pack_key(pack: PackId, mark: PackMark) -> bytes:
    return pack + bytes([mark])


def operation_key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


# --- changing ------------------------------------------------------------------------------------------------


def plan(view: StateView, transaction: Transaction, sequence: int) -> Plan:
    """Return what `transaction` does to the state in `view` as operation number `sequence`."""
    edits: list[Edit] = []
    changes: list[RefChange] = []
    entries: list[SnapshotEntry] = []
    dropped: list[SnapshotId] = []
    epoch = view.epoch
    for update in transaction.updates:
        match update:
            case SetRef() | DropRef():
                _plan_ref(view, update, sequence, edits, changes)
            case AddSnapshot(entry):
                if not view.seems_retained(entry.id):
                    entries.append(_checked_entry(entry))
            case DropSnapshots(snapshots):
                for retained in filter(None, map(view.snapshot, snapshots)):
                    dropped.append(retained.id)
                    expired = ExpiredEntry(
                        retained.id, retained.parents, retained.time_us, retained.depth, retained.jump
                    )
                    edits.append(Edit(Space.EXPIRED, expired.id, pack_message(expired_to_wire(expired))))
            case AdvanceEpoch():
                epoch += 1
            case _:
                edits += _plain_edits(view, update)
    operation = Operation(
        sequence,
        transaction.transaction,
        transaction.kind,
        transaction.time_us,
        transaction.author,
        tuple(changes),
        transaction.details,
    )
    return Plan(_checked_operation(operation), tuple(entries), tuple(dropped), tuple(edits), epoch)


def plan_no_operation(view: StateView, transaction: Transaction) -> Plan:
    """Return an operation that changes nothing, to take the number under which `transaction` might still appear."""
    kind = OperationKind.NO_OPERATION
    operation = Operation(view.sequence + 1, new_transaction_id(), kind, transaction.time_us, "", (), {})
    return Plan(operation, (), (), (), view.epoch)


def _plan_ref(
    view: StateView, update: SetRef | DropRef, sequence: int, edits: list[Edit], changes: list[RefChange]
) -> None:
    before = view.ref(update.kind, update.name)
    after = update.snapshot if isinstance(update, SetRef) else None
    if before is None and after is None:
        return
    changes.append(RefChange(update.kind, update.name, before, after))
    is_kept = isinstance(update, SetRef) or update.retire
    value = pack_message((after, sequence)) if is_kept else None
    edits.append(Edit(space_of(update.kind), text_key(update.name), value))


def _plain_edits(view: StateView, update: Update) -> Iterator[Edit]:
    match update:
        case SetValue(name, value):
            yield Edit(Space.VALUE, text_key(name), bytes(value))
        case MarkPacks(states):
            for state in states:
                yield Edit(Space.PACK, pack_key(state.pack, state.mark), pack_message(tuple(state)))
        case UnmarkPacks(marks):
            for pack, mark in sorted(marks):
                yield Edit(Space.PACK, pack_key(pack, mark), None)
        case RescuePacks(packs):
            for state in view.pack_states(packs):
                if state.mark in (PackMark.CONDEMNED, PackMark.REPLACING):
                    yield Edit(Space.PACK, pack_key(state.pack, state.mark), None)
        case OpenSession(entry):
            yield Edit(Space.SESSION, entry.session, pack_message(session_to_wire(entry)))
        case CloseSession(session):
            yield Edit(Space.SESSION, session, None)
        case _:
            raise InvalidInputError(f"{type(update).__name__} is not an update")


def _checked_operation(operation: Operation) -> Operation:
    """Return `operation` as it will be read, so that a repeated call returns an equal one."""
    if not operation.details and is_recordable(operation):
        return operation
    try:
        return decode_operation(encode_operation(operation))
    except (FormatError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"this transaction can't be recorded: {error}. Its details must be what JSON can say, its time "
            "microseconds since 1970."
        ) from error


def _checked_entry(entry: SnapshotEntry) -> SnapshotEntry:
    try:
        return decode_entry(encode_entry(entry))
    except (FormatError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"the entry of snapshot {entry.id.hex()} can't be recorded: {error}"
        ) from error


# --- encoding ------------------------------------------------------------------------------------------------


def encode_operation(operation: Operation) -> bytes:
    return pack_message(operation_to_wire(operation))


def encode_entry(entry: SnapshotEntry) -> bytes:
    return pack_message(entry_to_wire(entry))


def decode_entry(data: bytes) -> SnapshotEntry:
    return entry_from_wire(unpack_message(data, "snapshot entry"))


def encode_identity(identity: Identity) -> bytes:
    return pack_message(tuple(identity))


def decode_identity(data: bytes) -> Identity:
    """Return the identity in `data`; raise `UnsupportedFormatError` if this vstore can't serve such a repository."""
    fields = unpack_message(data, "repository's identity", _IDENTITY)
    identity = Identity(
        RepositoryId(fields.repository), fields.format_version, tuple(fields.features), fields.created_us
    )
    check_supported(identity)
    return identity


def check_supported(identity: Identity) -> None:
    """Raise `UnsupportedFormatError`, naming what is missing, if the repository needs a newer vstore."""
    if identity.format_version > FORMAT_VERSION:
        raise UnsupportedFormatError(
            f"this repository has format version {identity.format_version}; this vstore reads up to "
            f"{FORMAT_VERSION}. Upgrade vstore to open it."
        )
    missing = sorted(set(identity.required_features) - SUPPORTED_FEATURES)
    if missing:
        raise UnsupportedFormatError(
            f"this repository requires {', '.join(map(repr, missing))}, which this vstore does not have. "
            "Upgrade vstore to open it."
        )


# --- viewing -------------------------------------------------------------------------------------------------


class StateView(ABC):
    """A `CatalogView` over `_get` and `_scan`."""

    sequence: int
    epoch: int
    identity: Identity

    @abstractmethod
    def _get(self, space: Space, key: bytes) -> bytes | None:
        """Return the value of a key."""

    @abstractmethod
    def _scan(
        self, space: Space, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values with start <= key < stop, in order."""

    def iter_space(self, space: Space) -> Iterator[tuple[bytes, bytes]]:
        """Yield all keys and values of a space, in the order of the keys: the state as both catalogs mean it."""
        return self._scan(space)

    @abstractmethod
    def iter_operations(self, before: int | None = None) -> Iterator[Operation]:
        """Yield the operations numbered below `before` (None: all), newest first, lazily."""

    @abstractmethod
    def find_transaction(self, transaction: TransactionId, since: int) -> Operation | None:
        """Return the operation of this transaction if one after sequence `since` has it."""

    @abstractmethod
    def iter_pages(self) -> Iterator[BlobRef]:
        """Yield where the catalog's own pages are."""

    @abstractmethod
    def seems_retained(self, snapshot: SnapshotId) -> bool:
        """Tell whether a snapshot is known to be retained, as far as that is quickly said.

        Every commit asks it of its new snapshot: a sure no would cost more than the commit.
        """

    def ref(self, kind: RefKind, name: str) -> SnapshotId | None:
        ref = self._ref(kind, name)
        return None if ref is None or ref.snapshot is None else SnapshotId(ref.snapshot)

    def is_retired(self, kind: RefKind, name: str) -> bool:
        ref = self._ref(kind, name)
        return ref is not None and ref.snapshot is None

    def _ref(self, kind: RefKind, name: str) -> Any:
        value = self._get(space_of(kind), text_key(name))
        return None if value is None else unpack_message(value, f"ref {name!r}", _REF)

    def iter_refs(self, kind: RefKind) -> Iterator[tuple[str, SnapshotId]]:
        for key, value in self._scan(space_of(kind)):
            snapshot = unpack_message(value, "ref", _REF).snapshot
            if snapshot is not None:
                yield _name_of(key), SnapshotId(snapshot)

    def snapshot(self, snapshot: SnapshotId) -> SnapshotEntry | None:
        value = self._get(Space.SNAPSHOT, snapshot)
        return None if value is None else _entry(snapshot, value)

    def expired(self, snapshot: SnapshotId) -> ExpiredEntry | None:
        value = self._get(Space.EXPIRED, snapshot)
        return None if value is None else _expired(snapshot, value)

    def find_snapshots(self, prefix: str, limit: int) -> list[SnapshotId]:
        start, stop = prefix_range(prefix)
        retained = self._snapshot_ids(start, stop, limit)
        expired = (SnapshotId(key) for key, _ in self._scan(Space.EXPIRED, start, stop))
        # One that was retained again is both.
        merged = (snapshot for snapshot, _ in groupby(heapq.merge(retained, expired)))
        return list(islice(merged, limit))

    def _snapshot_ids(self, start: bytes, stop: bytes | None, limit: int) -> Iterator[SnapshotId]:
        """Yield ids of retained snapshots with start <= id < stop, sorted; the first `limit` or more."""
        for key, _ in self._scan(Space.SNAPSHOT, start, stop):
            yield SnapshotId(key)

    def iter_snapshots(self) -> Iterator[SnapshotEntry]:
        for key, value in self._scan(Space.SNAPSHOT):
            yield _entry(key, value)

    def iter_expired(self) -> Iterator[ExpiredEntry]:
        for key, value in self._scan(Space.EXPIRED):
            yield _expired(SnapshotId(key), value)

    def value(self, name: str) -> bytes | None:
        return self._get(Space.VALUE, text_key(name))

    def pack_states(self, packs: frozenset[PackId] | None) -> list[PackState]:
        if packs is None:
            return [_pack_state(value) for _, value in self._scan(Space.PACK)]
        found: list[PackState] = []
        for pack in sorted(packs):
            found += [_pack_state(value) for _, value in self._scan(Space.PACK, pack, pack + b"\xff")]
        return found

    def session(self, session: SessionId) -> SessionEntry | None:
        value = self._get(Space.SESSION, session)
        return None if value is None else session_from_wire(unpack_message(value, "session entry"))

    def iter_sessions(self) -> Iterator[SessionEntry]:
        for _, value in self._scan(Space.SESSION):
            yield session_from_wire(unpack_message(value, "session entry"))


def _name_of(key: bytes) -> str:
    try:
        return key.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        raise CorruptionError(
            f"the name {key[:100]!r} of a ref in the catalog is not text. repo.fsck() names all that is damaged."
        ) from None


def _entry(key: bytes, value: bytes) -> SnapshotEntry:
    entry = decode_entry(value)
    if entry.ref.digest != key:
        raise CorruptionError(
            f"the catalog's entry of snapshot {key[:DIGEST_SIZE].hex()} is that of {entry.id.hex()}. repo.fsck() names "
            "all that is damaged."
        )
    return entry


def _expired(snapshot: SnapshotId, value: bytes) -> ExpiredEntry:
    return expired_from_wire(snapshot, unpack_message(value, "expired snapshot's entry"))


def _pack_state(value: bytes) -> PackState:
    return pack_state_from_wire(unpack_message(value, "pack mark"))


def prefix_range(prefix: str) -> tuple[bytes, bytes | None]:
    """Return the range of ids whose text starts with these hex digits: the first, and the first beyond (or None)."""
    digits = 2 * DIGEST_SIZE
    if len(prefix) > digits or any(digit not in "0123456789abcdef" for digit in prefix):
        raise InvalidInputError(
            f"{prefix!r} can't begin a snapshot id: expected up to 64 lower-case hex digits"
        )
    beyond = (int(prefix or "0", 16) + 1) << 4 * (digits - len(prefix))
    stop = beyond.to_bytes(DIGEST_SIZE + 1, "big")
    return bytes.fromhex(prefix.ljust(digits, "0")), stop[1:] if stop[0] == 0 else None


def find_damage(view: StateView) -> Iterator[str]:
    """Yield a sentence for each rule that the state in `view` breaks; damaged bytes raise instead."""
    for kind in RefKind:
        for name, snapshot in view.iter_refs(kind):
            if view.snapshot(snapshot) is None:
                yield f"{kind.name.lower()} {name!r} points at snapshot {snapshot.hex()}, which is not retained"
    for state in view.pack_states(None):
        if len(state.pack) != PACK_ID_SIZE or state.epoch > view.epoch:
            yield f"pack {state.pack.hex()} is marked {state.mark.name} in the future epoch {state.epoch}"
    for entries in (view.iter_snapshots(), view.iter_expired(), view.iter_sessions()):
        for _ in entries:
            # Read to the end: what can't be read raises.
            pass
    expected = view.sequence
    for operation in view.iter_operations():
        if operation.sequence != expected:
            yield f"the operations log holds number {operation.sequence} where {expected} is expected"
            return
        expected -= 1
    if expected != -1:
        yield f"the operations log ends at number {expected + 1} instead of 0"
