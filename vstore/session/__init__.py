"""Sessions: a transaction's handle.

A read-only session stays on one snapshot; a writable one collects changes to a branch's head until it commits, after
which it is a read-only session on the new snapshot. Here are its public methods, and who of several threads goes first;
`draft` does what they ask for, `access` says who may, `edits` moves things, `registration` has leases.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vstore.config import encode_metadata
from vstore.errors import (
    ConflictError,
    InvalidInputError,
    NothingToCommitError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from vstore.format.page import Child, Totals
from vstore.format.record import OperationKind, SnapshotEntry
from vstore.handle import Handle
from vstore.history import resolve
from vstore.ids import SessionId, new_session_id
from vstore.keys.zarr import normalize_prefix
from vstore.leases import SessionInfo
from vstore.locks import ForkSafeLock
from vstore.rebase import Changes, Rebase
from vstore.session.draft import NOT_KNOWN, Draft
from vstore.session.edits import Edits
from vstore.session.registration import HeldLease
from vstore.storage.base import require_writable
from vstore.twins import async_twin

# What only writing, committing, comparing or merging needs is imported by the methods that do it: to a process that
# reads one value, imports are most of the time.
if TYPE_CHECKING:
    from vstore.catalog.base import Transaction
    from vstore.changes.diff import Diff
    from vstore.commit import Encode
    from vstore.merge.conflicts import Conflict
    from vstore.merge.solvers import Solver, SolverSpec
    from vstore.store import SessionStore
    from vstore.worktree.frozen import FrozenChanges


class Session(Edits):
    """A view of one snapshot; writable ones add changes on top. Made by a `Repository`. Thread-safe."""

    def __init__(
        self,
        handle: Handle,
        entry: SnapshotEntry,
        *,
        branch: str | None = None,
        default_metadata: Mapping[str, Any] | None = None,
        epoch: int = 0,
        root: Child | None = NOT_KNOWN,
    ) -> None:
        """`epoch` is the catalog's when `entry` was looked up; an earlier one only makes a commit look twice.

        `root` is the snapshot's, if that is known; else it is read.
        """
        if branch is not None:
            require_writable(handle.storage)
        self._handle = handle
        self._id = new_session_id()
        self._default_metadata = dict(default_metadata or {})
        self._lock = ForkSafeLock()
        self._lease = HeldLease(handle)
        super().__init__(Draft(handle, entry, self._id, branch=branch, epoch=epoch, root=root))

    # --- what it is ------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The session's own id, as hex text."""
        return self._id.hex()

    @property
    def snapshot_id(self) -> str:
        """The snapshot that the session is based on, or made by committing."""
        return self._draft.entry.id.hex()

    @property
    def branch(self) -> str | None:
        """The branch that the session commits to; None for a read-only session."""
        return None if self._draft.is_read_only and not self._is_copy else self._draft.branch

    @property
    def read_only(self) -> bool:
        """Whether the session can't change anything."""
        return self._draft.is_read_only

    @property
    def has_uncommitted_changes(self) -> bool:
        """Whether the session holds changes that differ from its snapshot."""
        tree = self.tree
        if tree.mutations == 0:
            return False
        from vstore.worktree.compare import compare

        with tree.lock:
            return not compare(tree.unedited(), tree).is_empty()

    @property
    def store(self) -> SessionStore:
        """A Zarr store on this session; all stores of a session show the same state."""
        from vstore.store import SessionStore

        return SessionStore(self, read_only=self._draft.is_read_only and not self._is_copy)

    def totals(self, path: str = "") -> Totals:
        """Return count and bytes of the chunks of all arrays at and below `path`; reads no chunk."""
        from vstore.worktree.listing import totals_below

        return totals_below(self.tree, normalize_prefix(path))

    def status(self, *, values: bool = False) -> Diff:
        """Return what this session changed since its snapshot, by content; `values` as in `Repository.diff`."""
        from vstore.comparison import diff

        tree = self.tree
        with tree.lock:
            return diff(tree.unedited(), tree, values=values)

    def diff(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        values: bool = False,
    ) -> Diff:
        """Return what differs from another snapshot to what this session shows; `values` as in `Repository.diff`."""
        from vstore.comparison import diff, snapshot_tree

        with self._handle.catalog.reading() as view:
            entry = resolve(view, branch, tag, snapshot_id)
        tree = self._draft.tree
        with tree.lock:
            return diff(snapshot_tree(self._handle, entry), tree, values=values)

    def __repr__(self) -> str:
        mode = "read-only" if self._draft.is_read_only else f"branch {self._draft.branch!r}"
        return f"<vstore.Session {mode}, snapshot {self.snapshot_id[:12]}, {self._handle.storage.url}>"

    # --- rebasing and merging --------------------------------------------------------------------------------

    def rebase(self, solver: SolverSpec = None) -> None:
        """Put this session's changes onto what its branch holds now; nothing happens if that did not move.

        What only one side changed is that side's, and equal changes are one. `solver` decides the rest: "ours" (the
        session's), "theirs", "cells" (merge the cells of chunks), {path pattern: solver}, or a function that gets a
        `Conflict`. Raises `RebaseFailedError`, which has the conflicts, if any are left; the session is as before
        then. Raises `RefNotFoundError` if the branch was deleted.
        """
        from vstore.merge.solvers import make_solver

        chosen = make_solver(solver)
        with self._lock:
            self._settle_doubt()
            self._require_writable()
            self._draft.rebase(chosen)

    def apply(self, changes: Changes, solver: Solver) -> None:
        """Put what changed between two snapshots onto this session, which must not have been written to."""
        with self._lock:
            self._require_writable()
            self._draft.apply(changes, solver)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts that a solver decided while this session was merged or rebased, to be looked at."""
        return self._draft.origin.settled

    # --- committing ------------------------------------------------------------------------------------------

    def commit(
        self,
        message: str,
        metadata: Mapping[str, Any] | None = None,
        *,
        rebase_with: SolverSpec = None,
        rebase_tries: int = 1000,
        allow_empty: bool = False,
    ) -> str:
        """Make the session's changes the branch's new head, atomically, and return the new snapshot's id.

        Afterwards the session is read-only, on that snapshot. If all that was written equals the head, nothing is
        made and the head's id is returned, unless `allow_empty`. With `rebase_with`, a solver as for `rebase` ("fail"
        decides nothing), a moved branch is followed, up to `rebase_tries` times; what was uploaded is used again.

        Raises `NothingToCommitError` if nothing was written; `ConflictError` if the branch moved, and
        `RebaseFailedError` if the changes clash (the session keeps them); `CommitOutcomeUnknownError` if the storage
        can't tell whether it landed (call again to find out). On any error nothing is visible and nothing is lost.
        """
        if type(rebase_tries) is not int or rebase_tries < 0:
            raise InvalidInputError(
                f"rebase_tries is {rebase_tries!r}; give how often to follow the branch, 0 or more"
            )
        rebase = None
        if rebase_with is not None:
            from vstore.merge.solvers import make_solver

            rebase = Rebase(make_solver(rebase_with), rebase_tries, self._handle.clock)
        return self._commit(self._draft.origin.kind, message, metadata, allow_empty, rebase)

    def amend(
        self, message: str, metadata: Mapping[str, Any] | None = None, *, allow_empty: bool = False
    ) -> str:
        """Replace the branch's head by a snapshot with this session's changes on top of it.

        The new snapshot has the head's parents; the old head stays readable by its id until it expires. Raises what
        `commit` raises, and `SessionStateError` for the first snapshot, which has no parent.
        """
        if self._draft.origin.parents:
            raise SessionStateError("a merge can't be amended into the branch's head. Use commit().")
        if not self._draft.entry.parents:
            raise SessionStateError("the first snapshot of a repository can't be amended. Use commit().")
        return self._commit(OperationKind.AMEND, message, metadata, allow_empty)

    def flush(self, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Save the session's changes as a snapshot that no branch holds, and return its id.

        The branch does not move, and may have moved; the session is read-only afterwards. The snapshot can become a
        branch (`repo.create_branch`, `repo.reset_branch`); if no ref reaches it, it expires in time.
        """
        return self._commit(OperationKind.FLUSH, message, metadata, True)

    def commit_encoded(self, encode: Encode, message: str, metadata: Mapping[str, Any] | None = None) -> str:
        """Commit what `encode` makes of this session, which must not have been written to, and reads the same."""
        self._draft.encode = encode
        return self._commit(OperationKind.COMMIT, message, metadata, True)

    def _commit(
        self,
        kind: OperationKind,
        message: str,
        metadata: Mapping[str, Any] | None,
        allow_empty: bool,
        rebase: Rebase | None = None,
    ) -> str:
        from vstore.shield import run_shielded

        if not isinstance(message, str):
            raise InvalidInputError(f"a commit message is a str, not a {type(message).__name__}")
        try:
            message.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(f"the commit message {message!r} is not valid Unicode") from None
        encoded = encode_metadata(metadata)
        if self._default_metadata:
            encoded = encode_metadata({**self._default_metadata, **(metadata or {})})
        return run_shielded(lambda: self._commit_encoded(kind, message, encoded, allow_empty, rebase))

    def _commit_encoded(
        self, kind: OperationKind, message: str, encoded: bytes, allow_empty: bool, rebase: Rebase | None
    ) -> str:
        with self._lock:
            landed = self._settle_doubt()
            if landed is not None:
                return landed
            self._require_writable()
            if self._draft.tree.mutations == 0 and not allow_empty and kind != OperationKind.AMEND:
                raise NothingToCommitError(
                    "nothing was written in this session. Write something, or pass allow_empty=True."
                )
            while True:
                try:
                    self._draft.commit(kind, message, encoded, allow_empty)
                    return self.snapshot_id
                except ConflictError as error:
                    if rebase is None or not rebase.wait_for_another_try():
                        raise
                    if error.actual_parent is None:
                        # The branch is gone: there is nothing to follow.
                        raise
                self._draft.rebase(rebase.solver)

    @property
    def transaction_in_doubt(self) -> Transaction | None:
        """The transaction of a commit of which it is not known whether it landed."""
        return self._draft.in_flight.transaction(self._handle.author)

    def _settle_doubt(self) -> str | None:
        """Find out whether an earlier commit of this session landed although it did not say so."""
        # A forked child leaves that to the process whose commit it is.
        if self._pid == os.getpid() and self._draft.settle():
            return self.snapshot_id
        return None

    def discard_changes(self) -> None:
        """Forget everything that was written in this session; it stays writable, on the same snapshot."""
        with self._lock:
            self._require_writable()
            self._draft.discard()

    # --- leases ----------------------------------------------------------------------------------------------

    @property
    def lease(self) -> SessionInfo | None:
        """The lease that keeps this session's snapshot from expiring, as it was taken or renewed last."""
        return self._lease.info

    def renew_lease(self, duration: timedelta) -> SessionInfo:
        """Keep the snapshot of this read-only session from expiring for `duration` from now, and return the lease.

        A session without a lease takes one. It ends when its time is over, which blocks nothing any more, or with
        `close`. Raises `SnapshotExpiredError` if it is too late, `SessionStateError` if somebody ended the lease.
        """
        with self._lock:
            if not self._draft.is_read_only or self._is_copy:
                raise SessionStateError(
                    "a lease is for reading: the snapshot that a writable session is based on is kept as long as its "
                    "branch holds it. Open a read-only session for a lease."
                )
            return self._lease.renew(self._draft.entry.id, duration)

    def close(self) -> None:
        """Let go of what the session holds; uncommitted changes are lost, a lease is ended. May be called again.

        A forked child lets go of its view only; what its parent holds, and its lease, stay.
        """
        with self._lock:
            self._lease.end()
            if not self._draft.is_read_only:
                self._draft.close()
            if self._pid != os.getpid():
                return
            with contextlib.suppress(StorageError, ReadOnlyError):
                # If it can't be said now, the entry stays, and gc names it.
                self._draft.registration.end()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- identity and copies ---------------------------------------------------------------------------------

    @property
    def state_token(self) -> tuple[object, ...]:
        """What identifies the state that this session shows: equal tokens, equal content."""
        repository = self._handle.catalog.identity.repository.hex()
        token: tuple[object, ...] = ("vstore", repository, self.snapshot_id)
        mutations = self._draft.tree.mutations
        return (*token, self._id.hex(), mutations) if mutations else token

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        mine, others = self._handle.catalog.identity, other._handle.catalog.identity
        return mine.repository == others.repository and self._id == other._id

    def __hash__(self) -> int:
        return hash((self._handle.catalog.identity.repository, self._id))

    def __reduce__(self) -> tuple[Any, ...]:
        from vstore.worktree.frozen import freeze

        with self._lock:
            draft = self._draft
            changes = freeze(draft.tree) if draft.tree.mutations else None
            was_writable = not draft.is_read_only or self._is_copy
            # With the root, so that nothing is asked for where it is unpickled: an error there would have no task.
            base = draft.entry, draft.tree.nodes.root
            return (_unpickle, (self._handle, *base, draft.branch, self._id, was_writable, changes))

    commit_async = async_twin(commit)
    amend_async = async_twin(amend)
    flush_async = async_twin(flush)
    rebase_async = async_twin(rebase)
    discard_changes_async = async_twin(discard_changes)
    status_async = async_twin(status)
    renew_lease_async = async_twin(renew_lease)


def _unpickle(
    handle: Handle,
    entry: SnapshotEntry,
    root: Child | None,
    branch: str | None,
    session: SessionId,
    was_writable: bool,
    changes: FrozenChanges | None,
) -> Session:
    """Return a copy of a session: it reads what the original read when it was pickled, and can't write."""
    copy = Session(handle, entry, root=root)
    copy._draft.branch = branch
    copy._id = session
    copy._is_copy = was_writable
    if changes is not None:
        from vstore.worktree.frozen import thaw

        copy._draft.tree = thaw(copy._draft.tree, changes)
    return copy
