"""Makes an SQLite catalog of a state that comes from elsewhere: a new file, or in place of all that one holds.

Either is one transaction, so that nobody ever sees a part of it. Below: `rows`; above: `vstore.transfer`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from vstore.catalog.exported import ADDING, Exported
from vstore.catalog.sqlite import SqliteCatalog, publish_file
from vstore.catalog.sqlite.connection import Connection, building
from vstore.catalog.sqlite.rows import (
    INDEX,
    Head,
    Tally,
    index_crc,
    log_row_of,
    read_head,
    write_head,
    write_log_row,
    write_state,
)
from vstore.catalog.state import Space
from vstore.errors import RepositoryExistsError, StorageError
from vstore.format.record import Operation, SnapshotEntry
from vstore.ids import SnapshotId, new_nonce
from vstore.keys.objects import SQLITE_FILE
from vstore.storage.files import storage_error, sync_directory

_TEMPORARY = f"{SQLITE_FILE}.new-"
_BESIDE = ("-wal", "-shm")


class NewFile:
    """A complete catalog beside its place, in `directory`: nobody's until `publish`."""

    def __init__(self, directory: str, state: Exported) -> None:
        self._path = os.path.join(os.path.realpath(directory), SQLITE_FILE)
        self._temporary = os.path.join(os.path.dirname(self._path), f"{_TEMPORARY}{new_nonce().hex()}")
        try:
            with building(self._temporary) as connection:
                _write(connection, state)
        except BaseException:
            self.discard()
            raise

    def publish(self) -> None:
        """Give the file its name, durably; `RepositoryExistsError` if there is one."""
        if os.path.lexists(self._path):
            raise RepositoryExistsError(f"{self._path!r} was made by somebody else meanwhile.")
        # Left of a catalog that was removed, SQLite would take them for this one's.
        _unlink(f"{self._path}{suffix}" for suffix in _BESIDE)
        publish_file(self._temporary, self._path)
        self.discard()

    def discard(self) -> None:
        """Remove the file by the name that it was built under."""
        with contextlib.suppress(StorageError):
            _unlink(f"{self._temporary}{suffix}" for suffix in ("", *_BESIDE))


class Replacement:
    """A state that takes the place of all that the catalog in `directory` holds, in one open transaction.

    `expected` is the number of the newest operation that is replaced; `RepositoryExistsError` if it is another.
    """

    def __init__(self, directory: str, state: Exported, expected: int) -> None:
        self._stack = contextlib.ExitStack()
        self._catalog = SqliteCatalog(directory)
        self._catalog.check_writable()
        try:
            self._connection = self._stack.enter_context(self._catalog.lend())
            self._replace(state, expected)
        except BaseException:
            self.discard()
            raise

    def _replace(self, state: Exported, expected: int) -> None:
        self._connection.rows("BEGIN IMMEDIATE")
        head = read_head(self._connection)[1]
        if head.sequence != expected:
            raise RepositoryExistsError(
                f"{self._catalog.directory!r} was written to by somebody else meanwhile. Nothing was changed."
            )
        for table in ("log", "state", "snapshots"):
            self._connection.rows(f"DELETE FROM {table}")
        _write(self._connection, state)

    def publish(self) -> None:
        """Commit, durably."""
        self._connection.rows("COMMIT")
        self.discard()

    def discard(self) -> None:
        """Roll back what was not committed, and close."""
        self._stack.close()
        self._catalog.close()


def remove_catalog(directory: str) -> None:
    """Remove the catalog in `directory`, which nobody may need any more, durably."""
    path = os.path.join(os.path.realpath(directory), SQLITE_FILE)
    # The database first: without its write-ahead log it could be an older state of it.
    for names in ((path,), tuple(f"{path}{suffix}" for suffix in _BESIDE)):
        _unlink(iter(names))
        try:
            sync_directory(os.path.dirname(path))
        except OSError as error:
            raise storage_error(error, "sync the folder", os.path.dirname(path)) from error


def _unlink(paths: Iterator[str]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise storage_error(error, "remove", path) from error


def _write(connection: Connection, state: Exported) -> None:
    """Write a whole state into empty tables, within the open transaction."""
    tallies: dict[int, Tally] = {}

    def count(part: int, crc: int) -> None:
        tallies[part] = tallies.get(part, Tally()).plus(crc)

    for operation in state.iter_operations():
        entry = _added(state, operation)
        if entry is not None and log_row_of(connection, entry.id) is not None:
            # An operation after this one added it again.
            entry = None
        if entry is not None:
            count(INDEX, index_crc(entry.id))
        write_log_row(connection, operation, entry)
    for space in Space:
        if space == Space.OPERATION:
            continue
        for key, value in state.iter_space(space):
            if space != Space.SNAPSHOT or log_row_of(connection, SnapshotId(key)) is None:
                count(space, write_state(connection, space, key, value))
    write_head(connection, Head(state.sequence, state.epoch, state.identity, tallies))


def _added(state: Exported, operation: Operation) -> SnapshotEntry | None:
    """Return the snapshot that an operation added, if it is to be in the operation's row, as commits put it there."""
    if operation.kind not in ADDING or len(operation.changes) != 1:
        return None
    snapshot = operation.changes[0].after
    return None if snapshot is None else state.snapshot(snapshot)
