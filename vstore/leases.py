"""Leases and registrations: sessions that the catalog knows, so that what they use is not deleted.

A reader's *lease* keeps its snapshot from expiring until a time; a *registered writer* has packs that no snapshot names
yet, and gc leaves them alone until the registration is ended. Both are entries of one kind in the catalog. Neighbours:
`refs` applies changes, `session` takes, renews and gives back, `repository` gives the public names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vstore.catalog.base import CatalogView, CloseSession, OpenSession, Retained, SessionIs
from vstore.clock import to_datetime
from vstore.errors import InvalidInputError, NotFoundError, SessionStateError
from vstore.format.record import OperationKind, SessionEntry
from vstore.handle import Handle
from vstore.history import require_entry
from vstore.ids import SessionId, SnapshotId
from vstore.refs import Change, Done, apply, carry_out

MAX_LEASE_DAYS = 366
"""A reader that crashed keeps its snapshot for no longer than this, if nobody ends its lease before."""

_ID_DIGITS = 32


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """A session that the catalog knows. With a `snapshot_id` it is a reader's lease, which ends at `expires_at`.

    Else it is a writer; gc leaves its packs alone until it commits, is closed or abandoned, whatever `expires_at` says.
    """

    id: str
    snapshot_id: str | None
    opened_at: datetime
    expires_at: datetime


def session_info(entry: SessionEntry) -> SessionInfo:
    """Return what users see of an entry."""
    return SessionInfo(
        entry.session.hex(),
        None if entry.snapshot is None else entry.snapshot.hex(),
        to_datetime(entry.opened_us),
        to_datetime(entry.expires_us),
    )


def list_sessions(handle: Handle) -> list[SessionInfo]:
    """Return all sessions that the catalog knows, the oldest first."""
    with handle.catalog.reading() as view:
        entries = sorted(view.iter_sessions(), key=lambda entry: (entry.opened_us, entry.session))
    return list(map(session_info, entries))


def take(
    handle: Handle, snapshot: SnapshotId, duration: timedelta, lease_id: SessionId, *, is_held: bool
) -> SessionEntry:
    """Keep a snapshot from expiring for `duration` from now, by a new lease or by renewing the one of this id.

    A lease never gets shorter. Raises `SnapshotExpiredError` if it is too late, `SessionStateError` if the lease
    `is_held` and was ended by somebody else. After `CommitOutcomeUnknownError` it may be there, or come: `end` it, or
    ask again with the same id.
    """
    duration_us = _checked(duration) // timedelta(microseconds=1)

    def plan(view: CatalogView) -> Change:
        require_entry(view, snapshot)
        now_us = handle.clock.now_us()
        retained = Retained((snapshot,))
        found = view.session(lease_id)
        if found is None and is_held:
            raise _ended(lease_id)
        if found is None:
            lease = SessionEntry(lease_id, view.epoch, now_us, now_us + duration_us, snapshot)
            return Change(OperationKind.OPEN_SESSION, (retained,), (OpenSession(lease),))
        lease = found._replace(expires_us=max(found.expires_us, now_us + duration_us))
        return Change(OperationKind.OPEN_SESSION, (retained, SessionIs(found)), (OpenSession(lease),))

    def lasts(view: CatalogView, done: Done) -> bool:
        # It may have been ended since, or be over sooner than is asked for now.
        found = view.session(lease_id)
        return found == _lease_of(done) and found.expires_us >= handle.clock.now_us() + duration_us

    request = (OperationKind.OPEN_SESSION, lease_id, duration)
    return _lease_of(carry_out(handle, plan, request=request, lasts=lasts))


def _lease_of(done: Done) -> SessionEntry:
    return next(update.entry for update in done.updates if isinstance(update, OpenSession))


def _ended(lease_id: SessionId) -> SessionStateError:
    return SessionStateError(
        f"lease {lease_id.hex()} was ended by somebody else. Open a new session to take another."
    )


def _checked(duration: timedelta) -> timedelta:
    if not isinstance(duration, timedelta) or not timedelta(0) < duration <= timedelta(days=MAX_LEASE_DAYS):
        raise InvalidInputError(
            f"a lease of {duration!r} can't be taken: give a timedelta above zero and of at most {MAX_LEASE_DAYS} days"
        )
    return duration


def end(handle: Handle, session: SessionId) -> None:
    """End a registration, also one of which it is not known whether it came about: it can't any more then."""
    apply(handle, lambda view: Change(OperationKind.CLOSE_SESSION, (), (CloseSession(session),)))


def abandon(handle: Handle, session_id: str | SessionInfo) -> None:
    """End somebody's registration; `Repository` documents it."""
    text = session_id.id if isinstance(session_id, SessionInfo) else session_id
    try:
        session = SessionId(bytes.fromhex(text)) if len(text) == _ID_DIGITS else None
    except (TypeError, ValueError):
        session = None
    if session is None:
        raise InvalidInputError(
            f"{session_id!r} is not a session's id: give 32 hex digits, as list_sessions() has them"
        )

    def plan(view: CatalogView) -> Change:
        found = view.session(session)
        if found is None:
            raise NotFoundError(f"no session {text} is registered; list_sessions() has those that are.")
        return Change(OperationKind.CLOSE_SESSION, (SessionIs(found),), (CloseSession(session),))

    apply(handle, plan, request=(OperationKind.CLOSE_SESSION, session))
