"""Starts a log in the middle: a record that holds a whole state, under the number of the state's newest operation.

A log's numbers are those of its operations, so that a state which has many begins at a high number. The numbers before
it are passed over by a *jump*: a tombstone under the next number of what is there (0 where there is nothing), which
names the record to come. It is created first, if absent, and so is the record: who comes later, or at the same time,
finds the number taken, and goes on from there. No record is ever made that a reader would not come to, and none is
ever met but by a jump or by the number before it. Until the record is there, readers stay at what was there before.

Below: `exported`, `log_state`; above: `vstore.transfer`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from itertools import islice

from vstore.catalog.exported import Exported
from vstore.catalog.log_head import Head, LogReader
from vstore.catalog.log_pages import SpillStore
from vstore.catalog.log_patience import Patience
from vstore.catalog.log_state import (
    COLD_KEPT_BYTES,
    HOT_BYTES,
    HOT_KEPT_BYTES,
    INLINE_BYTES,
    KEPT_TXIDS,
    POLICY,
    entry_size,
    full_key,
)
from vstore.catalog.state import (
    Space,
    encode_entry,
    encode_identity,
    encode_operation,
    operation_key,
)
from vstore.clock import Clock
from vstore.errors import ObjectExistsError, OutcomeUnknownError, RepositoryExistsError, StorageError
from vstore.format.log_record import (
    LogRecord,
    Tombstone,
    encode_identity_object,
    encode_record,
    encode_tombstone,
)
from vstore.format.page import Child, Entry, Page, Totals, encode_child, encode_page, sum_children
from vstore.format.refs import unpack_message
from vstore.ids import SnapshotId, new_nonce
from vstore.keys.objects import LATEST, REPO, log_name
from vstore.storage.base import Storage
from vstore.tree import PageSink
from vstore.tree.writing import FANOUT

_HOT = (Space.VALUE, Space.BRANCH, Space.TAG, Space.SESSION, Space.PACK)
"""What every opening asks for comes first."""
_ROOM_BYTES = 256
NEAR = 1000
"""Numbers that a log may have taken beyond the newest operation: none or a few."""
_MOVE_LOG = "Move the folder 'log' elsewhere, then try again."


# --- the record ------------------------------------------------------------------------------------------------


def build_record(state: Exported, spill: SpillStore) -> LogRecord:
    """Return a record that holds `state`; what it has no room for is written to pages, and durable.

    Pages are written as the state is read, so that no more of it is held than the view holds.
    """
    kept = _few(state)
    if kept is not None:
        return _record(state, kept, None, 0, b"")
    kept = _hot_entries(state) | _newest_entries(state)
    spilled = 0
    with spill.write_pages() as sink:
        builder = _TreeBuilder(sink)
        for key, value in _entries(state):
            if key not in kept:
                builder.add(Entry(key, 0, value))
                spilled |= 1 << key[0]
        root = builder.finish()
    oldest = state.sequence + 1 - sum(key[0] == Space.OPERATION for key in kept)
    earlier = [each.transaction for each in islice(state.iter_operations(oldest), KEPT_TXIDS)]
    return _record(state, kept, root, spilled, b"".join(reversed(earlier)))


def _record(
    state: Exported, entries: dict[bytes, bytes], root: Child | None, spilled: int, txids: bytes
) -> LogRecord:
    ordered: dict[bytes, bytes | None] = dict(entries)
    return LogRecord(
        state.sequence,
        new_nonce(),
        state.epoch,
        encode_identity(state.identity),
        ordered,
        root,
        spilled,
        txids,
    )


def _entries(state: Exported) -> Iterator[tuple[bytes, bytes]]:
    for space in sorted(Space):
        for key, value in state.iter_space(space):
            yield full_key(space, key), value


def _few(state: Exported) -> dict[bytes, bytes] | None:
    """Return the whole state if a record has room for it."""
    found: dict[bytes, bytes] = {}
    size = 0
    for key, value in _entries(state):
        size += entry_size(key, value)
        if size > INLINE_BYTES - _ROOM_BYTES:
            return None
        found[key] = value
    return found


def _hot_entries(state: Exported) -> dict[bytes, bytes]:
    """Return refs, values, sessions and marks, as many as a record keeps."""
    found: dict[bytes, bytes] = {}
    size = 0
    for space in _HOT:
        for key, value in state.iter_space(space):
            whole = full_key(space, key)
            size += entry_size(whole, value)
            if size > HOT_BYTES:
                # Too many: only the first few stay, so that there is room for changes.
                return _first(found, HOT_KEPT_BYTES)
            found[whole] = value
    return found


def _first(entries: dict[bytes, bytes], limit: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for key, value in entries.items():
        limit -= entry_size(key, value)
        if limit < 0:
            break
        found[key] = value
    return found


def _newest_entries(state: Exported) -> dict[bytes, bytes]:
    """Return the newest operations and the snapshots of branches: what openings and commits ask for."""
    found: dict[bytes, bytes] = {}
    size = 0
    for snapshot in _heads(state):
        entry = state.snapshot(snapshot)
        if entry is None:
            continue
        key, value = full_key(Space.SNAPSHOT, snapshot), encode_entry(entry)
        size += entry_size(key, value)
        if size > COLD_KEPT_BYTES // 2:
            break
        found[key] = value
    newest: list[tuple[bytes, bytes]] = []
    for operation in state.iter_operations():
        key, value = (
            full_key(Space.OPERATION, operation_key(operation.sequence)),
            encode_operation(operation),
        )
        size += entry_size(key, value)
        if size > COLD_KEPT_BYTES:
            break
        newest.append((key, value))
    return found | dict(reversed(newest))


def _heads(state: Exported) -> Iterator[SnapshotId]:
    for _, value in islice(state.iter_space(Space.BRANCH), 64):
        snapshot, _ = unpack_message(value, "ref")
        if snapshot is not None:
            yield SnapshotId(snapshot)


class _TreeBuilder:
    """Builds a page tree from entries that come sorted, each page written once, when it is full."""

    def __init__(self, sink: PageSink) -> None:
        self._sink = sink
        self._open: list[list[Entry]] = [[]]
        self._leaf_bytes = 0

    def add(self, entry: Entry) -> None:
        size = len(entry.key) + len(entry.value) + 8
        leaf = self._open[0]
        if leaf and (len(leaf) == POLICY.leaf_entries or self._leaf_bytes + size > POLICY.leaf_bytes):
            self._close(0)
        self._open[0].append(entry)
        self._leaf_bytes += size

    def finish(self) -> Child | None:
        """Write what is left and return the root."""
        level = 0
        while True:
            entries = self._open[level]
            is_top = level + 1 == len(self._open)
            if is_top and not entries:
                return None
            if is_top:
                return self._write(level, entries)
            if entries:
                self._close(level)
            level += 1

    def _close(self, level: int) -> None:
        """Write the page that is open at a level, and put it into the one above, which is written when it is full."""
        entries, self._open[level] = self._open[level], []
        if level == 0:
            self._leaf_bytes = 0
        if level + 1 == len(self._open):
            self._open.append([])
        above = self._open[level + 1]
        if len(above) == FANOUT:
            self._close(level + 1)
        child = self._write(level, entries)
        self._open[level + 1].append(Entry(entries[0].key, 0, encode_child(child)))

    def _write(self, level: int, entries: list[Entry]) -> Child:
        keys, values = [entry.key for entry in entries], [entry.value for entry in entries]
        page = Page(level, keys, bytes(len(entries)), values)
        ref = self._sink.add_page(encode_page(level, entries), page)
        if level == 0:
            return Child(ref, len(entries), Totals())
        return Child(ref, *sum_children(values))


# --- its number ------------------------------------------------------------------------------------------------


def publish_record(storage: Storage, record: LogRecord, after: int, clock: Clock) -> None:
    """Make `record` the newest of the log, whose newest number is `after` now (-1: there is no log).

    A crash leaves the log as it was, or with the record; in between a jump may be there, which the next try goes on
    from. Raises `RepositoryExistsError` if somebody else made another record meanwhile.
    """
    reader = LogReader(storage)
    patience = Patience(clock)
    number = after + 1
    while number < record.sequence:
        jump = encode_tombstone(Tombstone(number, record.sequence))
        found = _settle(storage, reader, number, jump, patience)
        if isinstance(found, Head):
            raise _taken(storage, number)
        number = found.head
    if number > record.sequence:
        raise _taken(storage, number)
    data = encode_record(record)
    found = _settle(storage, reader, number, data, patience)
    if isinstance(found, Tombstone) or found.record.nonce != record.nonce:
        raise _taken(storage, number)
    with contextlib.suppress(StorageError):
        storage.write(LATEST, data, durable=False)
    # The record is there: nothing that fails now is told. The next writer makes it.
    with contextlib.suppress(StorageError):
        if storage.size(REPO) is None:
            storage.create(REPO, encode_identity_object(record.identity))


def newest_number(storage: Storage) -> int:
    """Return the number of the newest record, whatever the hint says; `RepositoryNotFoundError` if there is none."""
    reader = LogReader(storage)
    return (reader.confirm(reader.resolve(None)) or reader.resolve_unaided()).sequence


def next_number(
    storage: Storage, after: int, sequence: int, *, near: int = NEAR, remedy: str = _MOVE_LOG
) -> int:
    """Return the number that a record after number `after` must have at least: jumps are never taken back.

    Raises `StorageError` if it is more than `near` above `sequence`, the newest operation's: for each number between
    an operation must be made, and a tombstone alone, which may be damaged or forged, says how many.
    """
    reader, number = LogReader(storage), after + 1
    while isinstance(found := reader.read(number), Tombstone):
        number = found.head
        if number > sequence + near:
            raise StorageError(
                f"the log in {storage.url!r} goes on to number {number}, far beyond the {sequence} operations of this "
                f"repository. {remedy}"
            )
    return number


def _settle(
    storage: Storage, reader: LogReader, number: int, data: bytes, patience: Patience
) -> Head | Tombstone:
    """Create an object of the log, and return what is under its number then: this, or another's."""
    while True:
        try:
            storage.create(log_name(number), data)
        except (ObjectExistsError, OutcomeUnknownError) as error:
            patience.note_trouble(error)
        found = reader.read(number)
        if found is not None:
            return found
        if patience.is_spent:
            raise StorageError(
                f"{storage.url!r} does not tell whether {log_name(number)!r} was created. Nothing is lost; call again "
                f"to find out (the last failure: {patience.error})."
            )
        patience.wait()


def _taken(storage: Storage, number: int) -> RepositoryExistsError:
    return RepositoryExistsError(
        f"{storage.url!r} has a catalog that somebody else wrote to meanwhile (number {number} of its log is taken). "
        "Its state was not replaced, but a number of its log may be passed over now; look at it, then decide."
    )
