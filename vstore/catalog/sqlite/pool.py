"""The connections of one process to one catalog: lent to one view or update at a time, kept for the next.

A pool instead of one connection under a lock, because a view is held while its user does other work: others must be
able to read and commit meanwhile, and so must its own thread.

Forking needs care. SQLite keeps its locks' state in memory that a forked child inherits, while the locks themselves
stay with the parent: a child that opens the file while it holds the parent's connections, even unused ones, believes
to have locks that nobody holds. (Tried: the parent closed, removed the write-ahead log as the last user, and three
commits of the child were gone.) So all idle connections are closed before a fork, borrowed ones of other threads are
awaited for a moment, and a child that has inherited one all the same refuses the file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator

from vstore.catalog.sqlite.connection import (
    Access,
    Connection,
    connect,
    connect_alone,
    file_of,
    forked_error,
    stamp_of,
)
from vstore.errors import AccessDeniedError, ReadOnlyError, StorageError, VStoreError
from vstore.storage.files import FULL, close_quietly, pwrite_all, storage_error

_MAX_IDLE = 4
_ROOM_BYTES = 128 * 1024
_FORK_WAIT_S = 1.0

_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_inherited: dict[str, int] = {}
"""Files that must not be used in this process, with the process that had them open when this one was forked."""


class _Loan:
    """Who has a connection; `connection` is None while it is being opened."""

    __slots__ = ("connection", "thread")

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.connection: Connection | None = None


class Pool:
    """Connections to the catalog at `path`; `can_lock` tells whether SQLite's locks work on its file system."""

    def __init__(self, path: str, can_lock: Callable[[], bool]) -> None:
        self.path = path
        self.can_lock = can_lock
        self._access: Access | None = None
        self._start()
        _pools.add(self)

    def _start(self) -> None:
        self.pid = os.getpid()
        self.gate = threading.Condition()
        self._idle: list[Connection] = []
        self._lent: set[_Loan] = set()
        self._generation = 0
        self._is_forking = False
        # Connections that are not closed warn when they are collected. Those of a generator that was dropped half-way
        # may be collected together with the pool, before it could return them.
        self._finalizer = weakref.finalize(self, _close_all, self._idle, self._lent)

    @property
    def access(self) -> Access:
        """How this process may use the file."""
        if self._access is None:
            self._access = self._find_access()
        return self._access

    def _find_access(self) -> Access:
        if not self.can_lock():
            return Access.COPY
        folder = os.path.dirname(self.path)
        if os.access(self.path, os.W_OK) and os.access(folder, os.W_OK):
            return Access.WRITE
        # Beside a writer the `-shm` is there, and its locks can be taken read-only.
        try:
            connection = connect(self.path, Access.READ)
            try:
                connection.rows("SELECT 1 FROM state LIMIT 1")
            finally:
                connection.close()
        except (AccessDeniedError, ReadOnlyError):
            return Access.COPY
        return Access.READ

    @contextlib.contextmanager
    def lend(self, *, for_reading: bool = False) -> Iterator[Connection]:
        """Lend a connection; it is rolled back when it returns."""
        loan = _Loan()
        self._enter(loan)
        try:
            generation = self._generation
            connection = loan.connection = self._take(for_reading=for_reading)
            try:
                yield connection
            finally:
                self._return(connection, generation)
        finally:
            # Last, so that a fork never meets a connection that is neither lent nor idle.
            self._leave(loan)

    def _enter(self, loan: _Loan) -> None:
        if self.pid != os.getpid():
            # Forked by something that does not run Python's hooks.
            self.after_fork_in_child()
        if self.path in _inherited:
            raise forked_error(self.path, _inherited[self.path])
        with self.gate:
            # Else readers that follow each other would keep a fork waiting; who has one may take another.
            self.gate.wait_for(lambda: not self._is_forking or not self._is_free_of(loan.thread))
            self._lent.add(loan)

    def _is_free_of(self, thread: int) -> bool:
        return all(loan.thread != thread for loan in self._lent)

    def _leave(self, loan: _Loan) -> None:
        with self.gate:
            self._lent.discard(loan)
            self.gate.notify_all()

    def _take(self, *, for_reading: bool) -> Connection:
        access = self.access
        while True:
            with self.gate:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if self._is_current(connection):
                return connection
            connection.close()
        try:
            return connect(self.path, access)
        except VStoreError as error:
            # Whether there is a writer, and who may write, may have changed.
            self._access = None
            if not isinstance(error, StorageError):
                raise
            trouble = find_trouble(os.path.dirname(self.path))
            if trouble is None or trouble.errno not in FULL:
                raise
            if for_reading:
                # SQLite makes a file beside the database even to read it; there is no room for it.
                is_whole = stamp_of(self.path) is not None
                return connect(self.path, Access.COPY) if is_whole else connect_alone(self.path)
            raise storage_error(trouble, "open", self.path) from error

    def _is_current(self, connection: Connection) -> bool:
        """Tell whether a connection is to what has the name now: a catalog that was converted is removed."""
        if connection.access is not Access.COPY:
            return connection.file == file_of(self.path)
        with contextlib.suppress(FileNotFoundError):
            return connection.stamp == stamp_of(self.path)
        return False

    def _return(self, connection: Connection, generation: int) -> None:
        if connection.pid != os.getpid():
            connection.leak()
            return
        connection.roll_back()
        with self.gate:
            is_fit = not connection.is_broken and connection.access is self.access
            # Not for a pool that is being collected itself.
            is_fit = is_fit and self._finalizer.alive
            if is_fit and generation == self._generation and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close what is idle now, and what is lent when it returns."""
        if self.pid != os.getpid():
            return
        with self.gate:
            self._generation += 1
            idle = list(self._idle)
            self._idle.clear()
            self._access = None
        if idle and idle[0].access is Access.WRITE:
            # Passive: nobody is waited for. The last one to close does the rest.
            with contextlib.suppress(StorageError):
                idle[0].rows("PRAGMA wal_checkpoint(PASSIVE)")
        for connection in idle:
            connection.close()

    def before_fork(self) -> None:
        """Take the gate, and close what can be closed; what is still lent then spoils the file for the child."""
        self.gate.acquire()
        self._is_forking = True
        me = threading.get_ident()
        self.gate.wait_for(lambda: all(loan.thread == me for loan in self._lent), _FORK_WAIT_S)
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def after_fork_in_parent(self) -> None:
        """Let the others go on."""
        self._is_forking = False
        self.gate.notify_all()
        self.gate.release()

    def after_fork_in_child(self) -> None:
        """Start anew, without the parent's connections and locks."""
        if (self._idle or self._lent) and self._access is not Access.COPY:
            _inherited.setdefault(self.path, self.pid)
        # Not closed either: a thread that is not in this process may have held SQLite's mutex.
        for connection in (*self._idle, *(loan.connection for loan in self._lent)):
            if connection is not None:
                connection.leak()
        self._finalizer.detach()
        self._start()


def _close_all(idle: list[Connection], lent: set[_Loan]) -> None:
    for connection in (*idle, *(loan.connection for loan in lent)):
        if connection is None:
            continue
        if connection.pid == os.getpid():
            connection.close()
        else:
            connection.leak()


_forking = threading.Lock()
_gates: list[Pool] = []


def _before_fork() -> None:
    _forking.acquire()
    for pool in list(_pools):
        if pool.pid == os.getpid():
            pool.before_fork()
            _gates.append(pool)


def _after_fork_in_parent() -> None:
    for pool in _gates:
        pool.after_fork_in_parent()
    _gates.clear()
    _forking.release()


def _after_fork_in_child() -> None:
    global _forking
    _gates.clear()
    _forking = threading.Lock()
    for pool in list(_pools):
        pool.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )


def find_trouble(folder: str) -> OSError | None:
    """Return why nothing can be written in `folder`, if that is so: SQLite tells a quota from a broken disk not at all.

    Tried with a file that never has a name, so that nothing is left behind.
    """
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except AttributeError:
        # macOS
        found = os.statvfs(folder)
        is_full = found.f_bavail * found.f_frsize < _ROOM_BYTES
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if is_full else None
    except OSError as error:
        return None if error.errno in (errno.EOPNOTSUPP, errno.EISDIR) else error
    try:
        # Enough for the files that SQLite makes beside a database.
        pwrite_all(fd, 0, [bytes(_ROOM_BYTES)])
        os.fsync(fd)
    except OSError as error:
        return error
    finally:
        close_quietly(fd)
    return None
