"""One connection to `catalog.sqlite`: how it is opened, and what SQLite's errors mean.

In a process that uses the catalog nothing but sqlite3 opens the file, its `-wal` or its `-shm`: closing such a
descriptor would drop the POSIX locks that SQLite holds on them. Looking at them with stat is harmless.
Above: `pool` keeps connections.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import threading
import urllib.parse
from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import Any, TypeVar

from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    ForkedProcessError,
    InternalError,
    OutOfSpaceError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
    UnsafeStorageError,
    UnsupportedFormatError,
    VStoreError,
)

T = TypeVar("T")

BUSY_TIMEOUT_S = 30
ROWS_AT_ONCE = 128
"""Rows that are read together, where there may be any number of them."""
SCHEMA_VERSION = 1
"""The `PRAGMA user_version` that the newest step of the migrations leaves."""

_MAX_ROW_BYTES = 64 * 1024 * 1024
_JOURNAL_LIMIT_BYTES = 1024 * 1024
"""About the size at which SQLite checkpoints by itself (1,000 pages); a longer log is cut back to it."""
_COPY_TRIES = 8
_SAID_CHARACTERS = 500
_ALONE_TIMEOUT_MS = 1000
_COMPUTES = re.compile(rb"\b(?:as|check|collate|default|generated|references|virtual)\b", re.IGNORECASE)
"""Words that make SQLite compute what a table's rows are, or run code of others; no step of the migrations has one."""

Stamp = tuple[int, int, int]
File = tuple[int, int]
"""What tells a file from another of the same name: its device and inode."""


class Access(Enum):
    """How a connection reaches the file."""

    WRITE = "write"
    READ = "read"
    """Read-only, beside writers, with SQLite's locks."""
    COPY = "copy"
    """A copy in memory, for folders where SQLite can't lock; made only when there is no `-wal`."""


class Connection:
    """An sqlite3 connection of this process; its errors are ours. Statements from several threads take turns."""

    def __init__(
        self, raw: sqlite3.Connection, path: str, access: Access, stamp: Stamp | None = None
    ) -> None:
        self.path = path
        self.access = access
        self.stamp = stamp
        self.file: File | None = None
        self.pid = os.getpid()
        self.is_broken = False
        self._raw: sqlite3.Connection | None = raw
        self._lock = threading.Lock()

    def rows(self, statement: str, *parameters: object) -> list[Any]:
        """Run a statement and return its rows."""
        return self._run(lambda raw: raw.execute(statement, parameters).fetchall())

    def iter_rows(self, statement: str) -> Generator[Any, None, None]:
        """Run a statement and yield its rows, read some at a time; close the iterator before the transaction ends."""
        cursor = self._run(lambda raw: raw.execute(statement))
        try:
            while rows := self._run(lambda _: cursor.fetchmany(ROWS_AT_ONCE)):
                yield from rows
        finally:
            with self._lock:
                cursor.close()

    def _run(self, act: Callable[[sqlite3.Connection], T]) -> T:
        if self.pid != os.getpid():
            raise forked_error(self.path, self.pid)
        with self._lock:
            if self._raw is None:
                raise InternalError(f"a closed connection to {self.path!r} was used")
            try:
                return act(self._raw)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                self.is_broken = True
                raise translate(error, self.path) from error

    def roll_back(self) -> None:
        """End the transaction, if there is one, without effect."""
        with self._lock:
            if self._raw is None or not self._raw.in_transaction:
                return
            try:
                self._raw.execute("ROLLBACK")
            except sqlite3.Error:
                # Closing rolls back as well.
                self.is_broken = True

    def close(self) -> None:
        """Close; of the last connection anywhere SQLite also makes the checkpoint and removes the `-wal`."""
        with self._lock:
            raw, self._raw = self._raw, None
            if raw is not None:
                with contextlib.suppress(sqlite3.Error):
                    raw.close()

    def leak(self) -> None:
        """Keep the sqlite3 connection of another process from ever being closed in this one."""
        import ctypes

        # A module's variables are dropped, and their connections closed, when the interpreter ends.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._raw))


def connect(path: str, access: Access) -> Connection:
    """Return a new connection to the catalog at `path`."""
    if not os.path.lexists(path):
        raise RepositoryNotFoundError(
            f"there is no catalog at {path!r}. If it was converted since this object was opened, open the repository "
            "again. Else check the location; create() makes a new repository."
        )
    if access is Access.WRITE and os.path.islink(path):
        raise UnsafeStorageError(
            f"{path!r} is a symbolic link: nothing is written behind it, as that is outside the repository. Put the "
            "file in the link's place, or open the repository where it is."
        )
    if access is Access.COPY:
        return _connect_copy(path)
    # Asked before it is opened: if it is replaced in between, the connection counts as one to the old file.
    file = file_of(path)
    connection = _open(path, "rw" if access is Access.WRITE else "ro", access)
    with closing_on_error(connection):
        connection.file = file
        _check_schema(connection)
        if access is Access.WRITE:
            configure_writing(connection)
    return connection


@contextlib.contextmanager
def closing_on_error(connection: Connection) -> Iterator[None]:
    try:
        yield
    except BaseException:
        connection.close()
        raise


def create_file(path: str) -> Connection:
    """Return a connection to a new, empty database file."""
    connection = _open(path, "rwc", Access.WRITE)
    with closing_on_error(connection):
        # 4 KiB pages write three times as much per commit to the write-ahead log.
        connection.rows("PRAGMA page_size = 1024")
        configure_writing(connection)
    return connection


@contextlib.contextmanager
def building(path: str) -> Iterator[Connection]:
    """Make a catalog at `path` in one transaction: complete, durable and without a write-ahead log afterwards."""
    connection = create_file(path)
    try:
        migrate(connection)
        connection.rows("BEGIN IMMEDIATE")
        yield connection
        connection.rows("COMMIT")
    finally:
        # The last connection's close makes the checkpoint, which syncs the file.
        connection.close()
    if os.path.exists(f"{path}-wal"):
        raise StorageError(
            f"{path!r} could not be completed: its write-ahead log could not be removed. Try again."
        )


def configure_writing(connection: Connection) -> None:
    """Make commits durable when they return."""
    (mode,) = connection.rows("PRAGMA journal_mode = WAL")[0]
    if bytes(mode).lower() != b"wal":
        raise StorageError(
            f"{connection.path!r} can't use a write-ahead log (journal mode {bytes(mode).decode()!r}): its file "
            "system lacks the shared memory that SQLite needs. Put the repository on a local disk."
        )
    connection.rows("PRAGMA synchronous = FULL")
    # Both matter on macOS only, where a plain fsync stops at the drive's cache.
    connection.rows("PRAGMA fullfsync = ON")
    connection.rows("PRAGMA checkpoint_fullfsync = ON")
    connection.rows(f"PRAGMA journal_size_limit = {_JOURNAL_LIMIT_BYTES}")


def migrate(connection: Connection) -> None:
    """Make the schema, or bring an older one up to date. The only place that loads sqlite_utils (0.3 s)."""
    import sqlite_utils

    from vstore.migrations.catalog import MIGRATIONS

    raw = connection._raw
    assert raw is not None
    # Its rows expect text to be str.
    raw.text_factory = str
    try:
        MIGRATIONS.apply(sqlite_utils.Database(raw, recursive_triggers=False, execute_plugins=False))
    except sqlite3.Error as error:
        raise translate(error, connection.path) from error
    finally:
        raw.text_factory = bytearray


def _open(path: str, mode: str, access: Access, *, immutable: bool = False) -> Connection:
    uri = f"file:{urllib.parse.quote(os.fsencode(path))}?mode={mode}{'&immutable=1' if immutable else ''}"
    try:
        raw = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise translate(error, path) from error
    return _prepared(raw, path, access)


def _prepared(raw: sqlite3.Connection, path: str, access: Access, stamp: Stamp | None = None) -> Connection:
    connection = Connection(raw, path, access, stamp)
    with closing_on_error(connection):
        # The catalog keeps no text. A flipped bit makes text of a blob, which sorts differently: it must be told
        # from bytes, and must not fail to decode.
        raw.text_factory = bytearray
        raw.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_ROW_BYTES)
        connection.rows("PRAGMA cell_size_check = ON")
        connection.rows("PRAGMA trusted_schema = OFF")
        # A file that is cut while it is mapped kills the process.
        connection.rows("PRAGMA mmap_size = 0")
    return connection


def _check_schema(connection: Connection) -> None:
    (version,) = connection.rows("PRAGMA user_version")[0]
    if version > SCHEMA_VERSION:
        raise UnsupportedFormatError(
            f"{connection.path!r} has schema version {version}; this vstore knows up to {SCHEMA_VERSION}. "
            "Upgrade vstore to open it."
        )
    if version <= 0:
        # A catalog gets its name only when it is complete.
        raise CorruptionError(
            f"{connection.path!r} is not a vstore catalog: its schema version is {version}, not 1 to "
            f"{SCHEMA_VERSION}. Restore the file from a backup."
        )
    _check_objects(connection)
    if version < SCHEMA_VERSION and connection.access is Access.WRITE:
        migrate(connection)


def _check_objects(connection: Connection) -> None:
    """Refuse a schema that computes: a view or a trigger of a hostile file could run for ever, or make rows."""
    for kind, name, sql in connection.rows("SELECT type, name, sql FROM sqlite_master"):
        if bytes(kind) not in (b"table", b"index") or _COMPUTES.search(bytes(sql or b"")):
            raise damage(
                connection.path,
                f"its schema has {bytes(name)[:50]!r}, which vstore did not make: {bytes(sql or b'')[:100]!r}",
            )


# --- folders where SQLite can't lock ---------------------------------------------------------------------------


def stamp_of(path: str) -> Stamp | None:
    """Return what tells one version of the file from another; None while there is a write-ahead log."""
    try:
        if os.stat(f"{path}-wal").st_size:
            return None
    except FileNotFoundError:
        pass
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def file_of(path: str) -> File | None:
    """Return which file has this name now, or None."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _connect_copy(path: str) -> Connection:
    """Return a connection to a copy, taken while nobody wrote: immutable=1 reads without locks."""
    for _ in range(_COPY_TRIES):
        try:
            before = stamp_of(path)
            if before is None:
                break
            copy = _copy(path)
            if stamp_of(path) == before:
                copy.stamp = before
                return copy
            copy.close()
        except OSError as error:
            raise AccessDeniedError(
                f"{path!r} can't be read: {error.strerror}. Check the permissions of the file and its folder."
            ) from error
    raise AccessDeniedError(
        f"{path!r} can't be read just now: its write-ahead log is in use, and reading that needs SQLite's locks, "
        "which this folder does not give to this process. Try again when the writer has closed the repository; "
        "if there is no writer, open and close it once with write permission, on the machine that has the disk."
    )


def connect_alone(path: str) -> Connection:
    """Return a connection to a copy of a catalog whose write-ahead log has no index, where there is no room for one.

    With the file to itself SQLite keeps the index in memory. Whoever has the file open keeps the index there, too.
    """
    return _copy(path, alone=True)


def _copy(path: str, *, alone: bool = False) -> Connection:
    source = _open(path, "rw" if alone else "ro", Access.COPY, immutable=not alone)
    if alone:
        source.rows(f"PRAGMA busy_timeout = {_ALONE_TIMEOUT_MS}")
        source.rows("PRAGMA locking_mode = EXCLUSIVE")
    raw = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    try:
        assert source._raw is not None
        source._raw.backup(raw)
        copy = _prepared(raw, path, Access.COPY)
        _check_schema(copy)
        return copy
    except sqlite3.Error as error:
        raw.close()
        raise translate(error, path) from error
    except BaseException:
        raw.close()
        raise
    finally:
        source.close()


# --- errors ----------------------------------------------------------------------------------------------------

_FULL = {sqlite3.SQLITE_FULL}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_READ_ONLY = {sqlite3.SQLITE_READONLY}
_DENIED = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}
_DEVICE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_NOLFS}
_OURS = {sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_RANGE}


def translate(error: sqlite3.Error | UnicodeDecodeError, path: str) -> VStoreError:
    """Return what to raise for `error`, met in the catalog at `path`.

    A UnicodeDecodeError is SQLite's message about a damaged schema, which quotes it.
    """
    # Extended codes have the primary one in their lowest byte.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    # It may quote a damaged schema.
    said = str(error)[:_SAID_CHARACTERS]
    found = f"{path!r}: {said}"
    if code in _FULL:
        return OutOfSpaceError(
            f"{found}. Nothing was changed. Free some space or raise the quota, then try again."
        )
    if code in _BUSY:
        return StorageError(
            f"{found}: other connections held its lock for {BUSY_TIMEOUT_S} s. Nothing was changed. Try again; if "
            "no one is writing, look for a stopped process that has the file open."
        )
    if code in _READ_ONLY:
        return ReadOnlyError(
            f"{found}. Check that the file and its folder are writable for this user and the disk is not mounted "
            "read-only, then open the repository again."
        )
    if code in _DENIED:
        return AccessDeniedError(
            f"{found}. Check the permissions of the file and its folder, and the limit of open files."
        )
    if code in _DEVICE:
        return StorageError(f"{found}. Check the disk and the system's log, then open the repository again.")
    if code in _OURS or isinstance(error, sqlite3.InterfaceError):
        return InternalError(f"{found}. Please report this with the traceback.")
    # What is left (malformed, not a database, no such table, constraint failed ...) is met only in a damaged file.
    if code == sqlite3.SQLITE_CORRUPT:
        return damage(path, f"SQLite says: {said}, or its disk failed to read it (see the system's log)")
    return damage(path, f"SQLite says: {said}")


def damage(path: str, finding: str) -> CorruptionError:
    """Return the error for damage found in the catalog at `path`."""
    return CorruptionError(
        f"{path!r} is damaged: {finding}. Check it with vstore.ops.fsck, and restore the file from a backup."
    )


def forked_error(path: str, pid: int) -> ForkedProcessError:
    """Return the error for using what process `pid` opened in a process forked from it."""
    return ForkedProcessError(
        f"{path!r} was in use in process {pid} when process {os.getpid()} was forked from it, so SQLite's locks "
        "don't work here and commits could be lost. Fork while no thread reads or commits, or start workers by "
        "spawn or forkserver."
    )
