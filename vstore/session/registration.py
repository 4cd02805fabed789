"""What the catalog knows of one session: a writer's registration, or a reader's lease.

Each is taken, renewed and ended by the process that took it. What came about although nobody said so is ended too, so
an id is remembered before it is asked for. Below: `leases` and `refs` have the transactions.
"""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta

from vstore import leases
from vstore.catalog.base import CloseSession, OpenSession
from vstore.errors import CommitOutcomeUnknownError, ReadOnlyError, StorageError
from vstore.format.record import OperationKind, SessionEntry
from vstore.handle import Handle
from vstore.ids import SessionId, SnapshotId, new_session_id
from vstore.refs import Change, apply

SESSION_REGISTRATION_US = 7 * 24 * 3600 * 1_000_000
"""What a registration says of its expiry; only an explicit update ends it."""


class Registration:
    """Whether the catalog knows that a session has packs which no snapshot names yet."""

    def __init__(self, handle: Handle, session: SessionId) -> None:
        self._handle = handle
        self._id = session
        self._is_there = False
        self._may_be_there = False

    @property
    def session(self) -> SessionId | None:
        """The session's id, if it is surely registered."""
        return self._id if self._is_there else None

    def begin(self) -> None:
        """Tell the catalog that packs of this session come before its commit, so that gc leaves them alone."""
        now = self._handle.clock.now_us()
        with self._handle.catalog.reading() as view:
            entry = SessionEntry(self._id, view.epoch, now, now + SESSION_REGISTRATION_US)
        # Before the request: what lands late, or is interrupted, is ended by `close` too.
        self._may_be_there = True
        self._change(OperationKind.OPEN_SESSION, OpenSession(entry))
        self._is_there = True

    def end(self) -> None:
        """Tell the catalog that this session's packs need no protection any more."""
        if self._may_be_there:
            # Before the request: it may end it although that is not heard.
            self._is_there = False
            self._change(OperationKind.CLOSE_SESSION, CloseSession(self._id))
            self._may_be_there = False

    def forget(self) -> None:
        """Take note that a commit ended it, if it was surely there; else the commit did not name it."""
        if self._is_there:
            self._is_there = self._may_be_there = False

    def _change(self, kind: OperationKind, update: OpenSession | CloseSession) -> None:
        change = Change(kind, (), (update,))
        # Done twice, it is as done once; an earlier try says nothing, as the other kind may have come after it.
        apply(self._handle, lambda view: change)


class HeldLease:
    """The lease of a read-only session, if it has one."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._entry: SessionEntry | None = None
        self._id: SessionId | None = None
        self._pid = os.getpid()

    @property
    def info(self) -> leases.SessionInfo | None:
        """The lease as it was taken or renewed last."""
        return None if self._entry is None else leases.session_info(self._entry)

    def renew(self, snapshot: SnapshotId, duration: timedelta) -> leases.SessionInfo:
        """Keep a snapshot from expiring for `duration` from now, by taking a lease or renewing this one."""
        if self._pid != os.getpid():
            # A forked child's lease is its own: its parent's may be ended before.
            self._entry = self._id = None
            self._pid = os.getpid()
        lease_id = self._id or new_session_id()
        is_held = self._entry is not None
        try:
            self._entry = leases.take(self._handle, snapshot, duration, lease_id, is_held=is_held)
        except (CommitOutcomeUnknownError, KeyboardInterrupt):
            # It may be there: to be renewed, or ended.
            self._id = lease_id
            raise
        self._id = lease_id
        return leases.session_info(self._entry)

    def end(self) -> None:
        """End the lease, if this process took one."""
        lease, self._entry, self._id = self._id, None, None
        if lease is not None and self._pid == os.getpid():
            with contextlib.suppress(StorageError, ReadOnlyError):
                # If it can't be said now, its time will be over.
                leases.end(self._handle, lease)
