"""A view of `catalog.sqlite` within one read transaction, which checks all that it returns.

A found row is right if its checksum is. Before something is said to be absent, or listed, the table or index that
would hold it is read whole and compared with the head's tallies, once per state of it (`Verified` remembers).
Neighbours: `rows` says what is in them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from contextlib import closing

from vstore.catalog.sqlite.connection import ROWS_AT_ONCE, Connection, damage
from vstore.catalog.sqlite.rows import (
    HEAD_SPACE,
    INDEX,
    LOG_COLUMNS,
    SNAPSHOTS_TABLE,
    STATE_TABLE,
    Head,
    LogRow,
    Tally,
    check_log_row,
    check_state_row,
    decode_entry_row,
    decode_operation_row,
    index_crc,
    log_crc,
    log_row_of,
    read_head,
    table_of,
)
from vstore.catalog.state import Space, StateView, encode_entry, encode_operation, operation_key
from vstore.errors import CorruptionError, InternalError
from vstore.format.record import Operation, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import SnapshotId, TransactionId

MAX_DECODED_ENTRIES = 1024
"""Snapshot entries that a handle remembers; a commit asks for a handful near the head."""

_REMEMBERED_ROWS = 64
_BEYOND = b"\xff" * 64
"""Greater than any key."""
_INDEX_NAME = "log_snapshot"


class Verified:
    """Which tables and indexes were found whole, and in which state. Shared by the views of a handle.

    It also remembers what some rows were decoded to: each row is read and checked again, but not decoded again.
    """

    def __init__(self) -> None:
        self._found: dict[str, dict[int, Tally]] = {}
        self._entries: dict[SnapshotId, tuple[int, SnapshotEntry]] = {}
        self.head: tuple[bytes, Head] | None = None

    def entry(self, snapshot: SnapshotId, crc: int) -> SnapshotEntry | None:
        """Return what the log's row of a snapshot, with this checksum, was decoded to, if that is remembered."""
        known = self._entries.get(snapshot)
        return known[1] if known is not None and known[0] == crc else None

    def remember_entry(self, entry: SnapshotEntry, crc: int) -> None:
        """Remember what the log's row of a snapshot holds."""
        if len(self._entries) >= MAX_DECODED_ENTRIES:
            self._entries.clear()
        self._entries[entry.id] = crc, entry

    def holds(self, head: Head, table: str) -> bool:
        return self._found.get(table) == _tallies(head, table)

    def note(self, head: Head, table: str) -> None:
        self._found[table] = _tallies(head, table)

    def follow(self, before: Head, after: Head) -> None:
        """Carry over what was verified in `before` to the state that an own update made of it."""
        for table in (STATE_TABLE, SNAPSHOTS_TABLE, _INDEX_NAME):
            if self.holds(before, table):
                self.note(after, table)


def _tallies(head: Head, table: str) -> dict[int, Tally]:
    return {INDEX: head.tally(INDEX)} if table == _INDEX_NAME else head.tallies_of(table)


class SqliteView(StateView):
    """The state that `connection`'s transaction sees."""

    def __init__(self, connection: Connection, verified: Verified) -> None:
        self._open_connection: Connection | None = connection
        self._path = connection.path
        self._verified = verified
        self._rows: dict[tuple[int, bytes], tuple[bytes, int]] = {}
        verified.head = read_head(connection, verified.head)
        self.head = verified.head[1]
        self.sequence = self.head.sequence
        self.epoch = self.head.epoch
        self.identity = self.head.identity

    def end(self) -> None:
        """Refuse all further use."""
        self._open_connection = None

    @property
    def _connection(self) -> Connection:
        if self._open_connection is None:
            raise InternalError(
                "a catalog's view was used after its `with` block; take what is needed inside it"
            )
        return self._open_connection

    # State

    def _get(self, space: Space, key: bytes) -> bytes | None:
        row = self._row(space, key)
        return None if row is None else row[0]

    def take_crc(self, space: Space, key: bytes) -> int | None:
        """Return the checksum of a row that is about to be written, or None if there seems to be no such row."""
        known = self._rows.pop((space, key), None)
        if known is not None:
            return known[1]
        rows = self._connection.rows(
            f"SELECT crc FROM {table_of(space)} WHERE space = ? AND key = ?", space, key
        )
        return rows[0][0] if rows else None

    def _row(self, space: Space, key: bytes) -> tuple[bytes, int] | None:
        # A commit asks for the branch's row three times: as a precondition, for the log, and for its tally.
        known = self._rows.get((space, key))
        if known is not None:
            return known
        if not self.head.tally(space).rows:
            return None
        table = table_of(space)
        rows = self._connection.rows(
            f"SELECT value, crc FROM {table} WHERE space = ? AND key = ?", space, key
        )
        if not rows:
            self._verify_table(table)
            return None
        row = check_state_row(self._path, space, key, *rows[0]), rows[0][1]
        if len(self._rows) < _REMEMBERED_ROWS:
            self._rows[space, key] = row
        return row

    def _scan(
        self, space: Space, start: bytes = b"", stop: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        if not self.head.tally(space).rows:
            return
        table = table_of(space)
        self._verify_table(table)
        is_whole, found = start == b"" and stop is None, 0
        while True:
            rows = self._connection.rows(
                f"SELECT key, value, crc FROM {table} WHERE space = ? AND key >= ? AND key < ? ORDER BY key LIMIT ?",
                space,
                start,
                _BEYOND if stop is None else stop,
                ROWS_AT_ONCE,
            )
            found += len(rows)
            is_last = len(rows) < ROWS_AT_ONCE
            if is_last and is_whole and found != self.head.tally(space).rows:
                raise self._table_damage(table)
            for key, value, crc in rows:
                yield key, check_state_row(self._path, space, key, value, crc)
            if is_last:
                return
            start = key + b"\0"

    def _verify_table(self, table: str) -> None:
        if not self._verified.holds(self.head, table):
            self._load_table(table)

    def _load_table(self, table: str) -> None:
        """Read a whole table, in the order of its tree: a wrong key anywhere in it may misguide a search."""
        tallies: dict[int, Tally] = {}
        last: tuple[int, bytes] | None = None
        with closing(self._connection.iter_rows(f"SELECT space, key, value, crc FROM {table}")) as rows:
            for space, key, value, crc in rows:
                if type(space) is not int or not 0 <= space < 256:
                    raise self._table_damage(table)
                check_state_row(self._path, space, key, value, crc)
                if last is not None and (space, key) <= last:
                    raise self._table_damage(table)
                last = (space, key)
                if space != HEAD_SPACE:
                    tallies[space] = tallies.get(space, Tally()).plus(crc)
        if tallies != self.head.tallies_of(table):
            raise self._table_damage(table)
        self._verified.note(self.head, table)

    def _table_damage(self, table: str) -> CorruptionError:
        return damage(
            self._path, f"table {table!r} does not hold the rows that the head says, in their order"
        )

    def iter_space(self, space: Space) -> Iterator[tuple[bytes, bytes]]:
        # Rows of the log hold two spaces, each in parts.
        if space == Space.OPERATION:
            return self._encoded_operations()
        if space == Space.SNAPSHOT:
            return heapq.merge(self._encoded_snapshots(), super().iter_space(space))
        return super().iter_space(space)

    def _encoded_operations(self) -> Iterator[tuple[bytes, bytes]]:
        for first in range(0, self.sequence + 1, ROWS_AT_ONCE):
            for row in reversed(list(self.iter_log(first, first + ROWS_AT_ONCE))):
                yield operation_key(row.sequence), encode_operation(decode_operation_row(self._path, row))

    def _encoded_snapshots(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the snapshots that are in the log, in the order of their ids."""
        self._verify_index()
        last = b""
        while True:
            rows = self._connection.rows(
                f"{LOG_COLUMNS} WHERE snapshot > ? ORDER BY snapshot LIMIT ?", last, ROWS_AT_ONCE
            )
            for fields in rows:
                row = check_log_row(self._path, *fields)
                entry = decode_entry_row(self._path, row)
                if entry is None or entry.id <= last:
                    raise self._index_damage("is out of order")
                last = entry.id
                yield last, encode_entry(entry)
            if len(rows) < ROWS_AT_ONCE:
                return

    # Snapshots: those that came alone are in the log, the others in a table of their own.

    def snapshot(self, snapshot: SnapshotId) -> SnapshotEntry | None:
        row = log_row_of(self._connection, snapshot)
        if row is None:
            entry = super().snapshot(snapshot)
            if entry is None:
                self._verify_index()
            return entry
        crc = log_crc(row)
        entry = self._verified.entry(snapshot, crc)
        if entry is None:
            entry = decode_entry_row(self._path, row)
            if entry is None:
                raise damage(
                    self._path, f"table 'log', row {row.sequence} does not hold snapshot {snapshot.hex()}"
                )
            self._verified.remember_entry(entry, crc)
        return entry

    def seems_retained(self, snapshot: SnapshotId) -> bool:
        rows = self._connection.rows(
            "SELECT 1 FROM log WHERE snapshot = ?1 UNION ALL SELECT 1 FROM snapshots WHERE space = ?2 AND key = ?1",
            snapshot,
            Space.SNAPSHOT,
        )
        return bool(rows)

    def _snapshot_ids(self, start: bytes, stop: bytes | None, limit: int) -> Iterator[SnapshotId]:
        self._verify_index()
        rows = self._connection.rows(
            "SELECT snapshot FROM log WHERE snapshot >= ? AND snapshot < ? ORDER BY snapshot LIMIT ?",
            start,
            _BEYOND if stop is None else stop,
            limit,
        )
        return heapq.merge((SnapshotId(row[0]) for row in rows), super()._snapshot_ids(start, stop, limit))

    def iter_snapshots(self) -> Iterator[SnapshotEntry]:
        for row in self.iter_log():
            entry = decode_entry_row(self._path, row)
            if entry is not None:
                yield entry
        yield from super().iter_snapshots()

    def _verify_index(self) -> None:
        if not self._verified.holds(self.head, _INDEX_NAME):
            self._load_index()

    def _load_index(self) -> None:
        statement = (
            f"SELECT snapshot FROM log INDEXED BY {_INDEX_NAME} WHERE snapshot IS NOT NULL ORDER BY snapshot"
        )
        tally = Tally()
        last = b""
        with closing(self._connection.iter_rows(statement)) as rows:
            for (snapshot,) in rows:
                if not isinstance(snapshot, bytes) or snapshot <= last:
                    raise self._index_damage("is out of order")
                tally = tally.plus(index_crc(snapshot))
                last = snapshot
        if tally != self.head.tally(INDEX):
            raise self._index_damage("does not hold the snapshots that the head says")
        self._verified.note(self.head, _INDEX_NAME)

    def _index_damage(self, finding: str) -> CorruptionError:
        return damage(self._path, f"index {_INDEX_NAME!r} {finding}")

    def verify(self) -> None:
        """Read everything, and raise `CorruptionError` at the first damage."""
        self._load_table(STATE_TABLE)
        self._load_table(SNAPSHOTS_TABLE)
        self._load_index()
        for _ in self.iter_snapshots():
            pass
        ((count,),) = self._connection.rows("SELECT count(*) FROM log")
        if count != self.sequence + 1:
            raise damage(self._path, f"table 'log' holds {count} rows where {self.sequence + 1} belong")

    # Operations

    def iter_operations(self, before: int | None = None) -> Iterator[Operation]:
        for row in self.iter_log(before=before):
            yield decode_operation_row(self._path, row)

    def find_transaction(self, transaction: TransactionId, since: int) -> Operation | None:
        for row in self.iter_log(since + 1):
            if row.transaction == transaction:
                return decode_operation_row(self._path, row)
        return None

    def iter_log(self, oldest: int = 0, before: int | None = None) -> Iterator[LogRow]:
        """Yield the log's rows below `before` down to `oldest`, newest first; numbers are dense."""
        expected = self.sequence if before is None else min(self.sequence, before - 1)
        while expected >= oldest:
            rows = self._connection.rows(
                f"{LOG_COLUMNS} WHERE sequence BETWEEN ? AND ? ORDER BY sequence DESC LIMIT ?",
                oldest,
                expected,
                ROWS_AT_ONCE,
            )
            for fields in rows or [(None,)]:
                if fields[0] != expected:
                    raise damage(self._path, f"table 'log', row {expected} is missing")
                yield check_log_row(self._path, *fields)
                expected -= 1

    def iter_pages(self) -> Iterator[BlobRef]:
        return iter(())
