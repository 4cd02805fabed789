"""Sessions: a transaction's handle.

A read-only session stays on one snapshot; a writable one collects changes to a branch's head until it commits, after
which it is a read-only session on the new snapshot.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

import msgspec

from vstore import leases, refs
from vstore.blobs.reader import BlobReader
from vstore.catalog.base import CloseSession, OpenSession, Precondition, Transaction
from vstore.config import encode_metadata
from vstore.errors import (
    CommitOutcomeUnknownError,
    ConflictError,
    ForkedProcessError,
    InternalError,
    InvalidInputError,
    NodeNotFoundError,
    NothingToCommitError,
    ReadOnlyError,
    SessionStateError,
    StorageError,
)
from vstore.format.page import Child, Totals
from vstore.format.record import HistoryEntry, OperationKind, SessionEntry, SnapshotEntry
from vstore.handle import Handle, require_unprotected
from vstore.history import require_branch, require_entry, require_known, resolve
from vstore.ids import SessionId, new_session_id
from vstore.keys.zarr import normalize_prefix
from vstore.locks import ForkSafeLock
from vstore.rebase import Changes, Origin, Rebase, rebase_changes, unique_sources
from vstore.storage.base import require_writable
from vstore.twins import async_twin
from vstore.worktree import Worktree

# What only writing, committing, comparing or merging needs is imported by the methods that do it: to a process that
# reads one value, imports are most of the time.
if TYPE_CHECKING:
    from vstore.blobs.writer import BlobWriter
    from vstore.changes.diff import Diff
    from vstore.commit import CommitRequest, Encode, Prepared
    from vstore.merge.conflicts import Conflict
    from vstore.merge.solvers import Solver, SolverSpec
    from vstore.store import SessionStore
    from vstore.worktree.frozen import FrozenChanges

SESSION_REGISTRATION_US = 7 * 24 * 3600 * 1_000_000
"""What a registration says of its expiry; only an explicit update ends it."""


_NOT_KNOWN: Any = object()


class Session:
    """A view of one snapshot; writable ones add changes on top. Made by a `Repository`. Thread-safe."""

    def __init__(
        self,
        handle: Handle,
        entry: SnapshotEntry,
        *,
        branch: str | None = None,
        default_metadata: Mapping[str, Any] | None = None,
        epoch: int = 0,
        root: Child | None = _NOT_KNOWN,
    ) -> None:
        """`epoch` is the catalog's when `entry` was looked up; an earlier one only makes a commit look twice.

        `root` is the snapshot's, if that is known; else it is read.
        """
        if branch is not None:
            require_writable(handle.storage)
        self._handle = handle
        self._entry = entry
        self._epoch = epoch
        self._branch = branch
        self._id = new_session_id()
        self._pid = os.getpid()
        self.is_local = handle.storage.is_local
        """Whether reads are quick enough to be made on an event loop."""
        self._default_metadata = dict(default_metadata or {})
        self._lock = ForkSafeLock()
        self._is_registered = False
        self._may_be_registered = False
        self._lease: SessionEntry | None = None
        self._lease_id: SessionId | None = None
        self._lease_pid = self._pid
        self._is_copy = False
        self._is_read_only = branch is None
        self._in_doubt: Prepared | None = None
        self._mutations_in_doubt = 0
        self._origin = Origin(OperationKind.COMMIT)
        self._rebases = 0
        self._encode: Encode | None = None
        if root is _NOT_KNOWN:
            blobs = handle.open_snapshot(entry)
            root = blobs.snapshot(entry.ref).root
        else:
            blobs = handle.blobs_for(entry.id)
        self._tree = self._clean_tree(blobs, root)

    def _clean_tree(self, blobs: BlobReader, root: Child | None) -> Worktree:
        """Return a worktree without changes; nothing is read for it."""
        if self._is_read_only:
            return self._tree_with(blobs, root, None)
        import vstore.commit  # noqa: F401 - or a process's first commit would wait for it
        from vstore.blobs.writer import BlobWriter

        return self._tree_with(
            blobs, root, BlobWriter(self._handle.storage, self._register, self._id, clock=self._handle.clock)
        )

    def _tree_with(self, blobs: BlobReader, root: Child | None, writer: BlobWriter | None) -> Worktree:
        threshold = self._handle.config.inline_chunk_threshold_bytes
        return Worktree(blobs, root, virtual=self._handle.virtual, writer=writer, inline_bytes=threshold)

    # --- what it is ------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """The session's own id, as hex text."""
        return self._id.hex()

    @property
    def snapshot_id(self) -> str:
        """The snapshot that the session is based on, or made by committing."""
        return self._entry.id.hex()

    @property
    def branch(self) -> str | None:
        """The branch that the session commits to; None for a read-only session."""
        return None if self._is_read_only and not self._is_copy else self._branch

    @property
    def read_only(self) -> bool:
        """Whether the session can't change anything."""
        return self._is_read_only

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

        return SessionStore(self, read_only=self._is_read_only and not self._is_copy)

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
        with self._tree.lock:
            return diff(snapshot_tree(self._handle, entry), self._tree, values=values)

    def __repr__(self) -> str:
        mode = "read-only" if self._is_read_only else f"branch {self._branch!r}"
        return f"<vstore.Session {mode}, snapshot {self.snapshot_id[:12]}, {self._handle.storage.url}>"

    # --- moving things ---------------------------------------------------------------------------------------

    def move(self, from_path: str, to_path: str) -> None:
        """Move a node and all below it to another path, whose parent is a group (or the root) and which is free.

        An edit of metadata, whatever the node holds; it keeps its id, so that merges follow it. Raises
        `NodeNotFoundError`, `NodeExistsError`, or `InvalidInputError` for a move into itself or below an array.
        """
        from vstore.worktree.moving import move_node

        move_node(self.tree_for_writing(), normalize_prefix(from_path), normalize_prefix(to_path))

    def shift_array(self, array_path: str, chunk_offset: Sequence[int]) -> None:
        """Move every chunk of an array by so many chunks along each dimension, without reading any.

        What leaves the chunk grid is dropped, what becomes free reads as fill value. A chunk at the array's edge is
        moved whole, with what it holds beyond the edge. Raises `InvalidInputError` for grids that are not regular.
        """
        from vstore.worktree.reindexing import check_index, reindex, require_array, shift_by

        tree, path = self.tree_for_writing(), normalize_prefix(array_path)
        with tree.lock:
            array = require_array(tree, path)[1]
            assert array.spec.grid is not None
            offset = check_index(chunk_offset, array.spec.ndim, path)
            reindex(tree, path, shift_by(offset, array.spec.grid))

    def reindex_array(
        self,
        array_path: str,
        forward: Callable[[tuple[int, ...]], Sequence[int] | None],
        backward: Callable[[tuple[int, ...]], Sequence[int] | None] | None = None,
    ) -> None:
        """Give every chunk the index that `forward` returns for its own; None drops it. No chunk is read.

        A place that no chunk is moved to reads as fill value afterwards. `backward`, if given, must undo `forward`.
        Raises `InvalidInputError`, before anything is changed, if two chunks would get one index, or one lies outside
        the chunk grid, or the grid is not regular. For millions of chunks `shift_array` is faster.
        """
        from vstore.worktree.reindexing import map_each, reindex

        path = normalize_prefix(array_path)
        reindex(self.tree_for_writing(), path, map_each(forward, backward, path))

    def get_node_id(self, path: str) -> str:
        """Return the id of a group or array, which moves and renames keep, as hex text."""
        node = self.tree.nodes.node(normalize_prefix(path))
        if node is None:
            raise NodeNotFoundError(f"there is no group or array at {path!r}.")
        return node.node_id.hex()

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
            self._rebase(chosen)

    def _rebase(self, solver: Solver) -> None:
        assert self._branch is not None
        with self._handle.catalog.reading() as view:
            head = require_entry(view, require_branch(view, self._branch))
        if head.id == self._entry.id:
            return
        blobs = self._handle.open_snapshot(head)
        root = blobs.snapshot(head.ref).root
        old = self._tree
        with self._frozen(old, "this session is being rebased. Wait for it."):
            merged = rebase_changes(
                old,
                Worktree(blobs, root, virtual=self._handle.virtual),
                solver,
                lambda: self._tree_with(blobs, root, old.writer),
                ids=(self.snapshot_id, head.id.hex()),
            )
        old.closed = "this session was rebased while this was being written. Write it again."
        sources = unique_sources(self._origin.sources, *([self._entry.id] if merged.borrows else []))
        self._origin = msgspec.structs.replace(
            self._origin, sources=sources, settled=(*self._origin.settled, *merged.settled)
        )
        self._tree, self._entry = merged.tree, head
        self._rebases += 1

    def apply(self, changes: Changes, solver: Solver) -> None:
        """Put what changed between two snapshots onto this session, which must not have been written to."""
        from vstore.merge.three_way import merge_trees

        with self._lock:
            self._require_writable()
            old = self._tree
            with self._frozen(old, "a merge is being made. Wait for it."):
                merged = merge_trees(
                    changes.base,
                    old.unedited(),
                    changes.incoming,
                    solver,
                    lambda: self._tree_with(old.blobs, old.nodes.root, old.writer),
                    incoming_is_ours=False,
                )
            merged.tree.mutations = old.mutations + 1
            old.closed = "a merge was made while this was being written. Write it again."
            self._tree = merged.tree
            self._origin = msgspec.structs.replace(changes.origin, settled=merged.settled)

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts that a solver decided while this session was merged or rebased, to be looked at."""
        return self._origin.settled

    @contextlib.contextmanager
    def _frozen(self, tree: Worktree, why: str) -> Iterator[None]:
        """Let nothing be written to a worktree; it is open again afterwards, unless it was closed for good."""
        with tree.lock:
            tree.closed = why
        try:
            yield
        except BaseException:
            tree.closed = None
            raise

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
        return self._commit(self._origin.kind, message, metadata, allow_empty, rebase)

    def amend(
        self, message: str, metadata: Mapping[str, Any] | None = None, *, allow_empty: bool = False
    ) -> str:
        """Replace the branch's head by a snapshot with this session's changes on top of it.

        The new snapshot has the head's parents; the old head stays readable by its id until it expires. Raises what
        `commit` raises, and `SessionStateError` for the first snapshot, which has no parent.
        """
        if self._origin.parents:
            raise SessionStateError("a merge can't be amended into the branch's head. Use commit().")
        if not self._entry.parents:
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
        self._encode = encode
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
            if self._tree.mutations == 0 and not allow_empty and kind != OperationKind.AMEND:
                raise NothingToCommitError(
                    "nothing was written in this session. Write something, or pass allow_empty=True."
                )
            while True:
                try:
                    return self._commit_request(self._request(kind, message, encoded, allow_empty))
                except ConflictError as error:
                    if rebase is None or not rebase.wait_for_another_try():
                        raise
                    if error.actual_parent is None:
                        # The branch is gone: there is nothing to follow.
                        raise
                self._rebase(rebase.solver)

    def _request(
        self, kind: OperationKind, message: str, metadata: bytes, allow_empty: bool
    ) -> CommitRequest:
        from vstore.commit import CommitRequest
        from vstore.worktree.encode import encode_worktree

        parents: tuple[HistoryEntry, ...] = (self._entry, *self._origin.parents)
        conditions: tuple[Precondition, ...] = ()
        if kind == OperationKind.AMEND:
            assert self._branch is not None
            with self._handle.catalog.reading() as view:
                parents = tuple(require_known(view, parent) for parent in self._entry.parents)
                conditions = (require_unprotected(view, self._branch),)
        return CommitRequest(
            kind,
            message,
            metadata,
            None if kind == OperationKind.FLUSH else self._branch,
            self._entry.id,
            parents,
            # An amend changes the message at least, a merge the history.
            allow_empty or kind == OperationKind.AMEND or len(parents) > 1,
            self._epoch,
            self._origin.sources,
            conditions,
            {**self._origin.details, **({"rebases": self._rebases} if self._rebases else {})},
            self._encode or encode_worktree,
        )

    def _commit_request(self, request: CommitRequest) -> str:
        tree = self._tree
        why = "this session is being committed; what is written meanwhile would be lost. Wait for it."
        with self._frozen(tree, why):
            snapshot = self._commit_frozen(request)
        tree.closed = "this session was committed. Open a new one with repo.writable_session(branch)."
        return snapshot

    def _commit_frozen(self, request: CommitRequest) -> str:
        from vstore.commit import MOVED_TRIES, PacksMovedError, Unchanged, prepare, publish

        for tries_left in reversed(range(MOVED_TRIES)):
            prepared = prepare(self._handle, self._tree, request)
            if isinstance(prepared, Unchanged):
                self._unregister()
                self._become_read_only(self._entry, self._tree.nodes.root)
                return self.snapshot_id
            self._in_doubt, self._mutations_in_doubt = prepared, self._tree.mutations
            try:
                publish(self._handle, prepared, self._id if self._is_registered else None)
            except PacksMovedError:
                self._in_doubt = None
                if not tries_left:
                    raise
                continue
            except (StorageError, KeyboardInterrupt):
                # Whether it landed is asked when the session is used again.
                raise
            except Exception:
                self._in_doubt = None
                raise
            self._in_doubt = None
            self._become_read_only(prepared.entry, prepared.root)
            return self.snapshot_id
        raise InternalError("unreachable")

    @property
    def transaction_in_doubt(self) -> Transaction | None:
        """The transaction of a commit of which it is not known whether it landed."""
        if self._in_doubt is None:
            return None
        from vstore.commit import transaction_of

        return transaction_of(self._in_doubt, self._handle.author)

    def _settle_doubt(self) -> str | None:
        """Find out whether an earlier commit of this session landed although it did not say so."""
        prepared = self._in_doubt
        if prepared is None or self._pid != os.getpid():
            return None
        from vstore.commit import settle

        if not settle(self._handle, prepared):
            self._in_doubt = None
            return None
        self._in_doubt = None
        if self._tree.mutations != self._mutations_in_doubt:
            raise SessionStateError(
                f"the earlier commit of this session, whose outcome was unknown, landed as {prepared.entry.id.hex()}. "
                "What was written since is not in it: open a new session on the branch and write that again, or "
                "keep it with flush(message)."
            )
        self._become_read_only(prepared.entry, prepared.root)
        return self.snapshot_id

    def _become_read_only(self, entry: SnapshotEntry, root: Child | None) -> None:
        """Show a snapshot from now on. Nothing here may fail: the commit has landed."""
        old, was_closed = self._tree, self._is_read_only
        self._entry = entry
        self._is_read_only = True
        self._is_registered = self._may_be_registered = False
        self._tree = self._clean_tree(self._handle.blobs_for(entry.id), root)
        if not was_closed:
            old.writer.close()

    def discard_changes(self) -> None:
        """Forget everything that was written in this session; it stays writable, on the same snapshot."""
        with self._lock:
            self._require_writable()
            old = self._tree
            self._tree = self._clean_tree(old.blobs, old.nodes.root)
            self._tree.mutations = old.mutations + 1
            self._origin = Origin(OperationKind.COMMIT)
            old.closed = "the changes of this session were discarded while this was being written"
            old.writer.close()
            self._unregister()

    # --- leases ----------------------------------------------------------------------------------------------

    @property
    def lease(self) -> leases.SessionInfo | None:
        """The lease that keeps this session's snapshot from expiring, as it was taken or renewed last."""
        return None if self._lease is None else leases.session_info(self._lease)

    def renew_lease(self, duration: timedelta) -> leases.SessionInfo:
        """Keep the snapshot of this read-only session from expiring for `duration` from now, and return the lease.

        A session without a lease takes one. It ends when its time is over, which blocks nothing any more, or with
        `close`. Raises `SnapshotExpiredError` if it is too late, `SessionStateError` if somebody ended the lease.
        """
        with self._lock:
            if not self._is_read_only or self._is_copy:
                raise SessionStateError(
                    "a lease is for reading: the snapshot that a writable session is based on is kept as long as its "
                    "branch holds it. Open a read-only session for a lease."
                )
            if self._lease_pid != os.getpid():
                # A forked child's lease is its own: its parent's may be ended before.
                self._lease = self._lease_id = None
                self._lease_pid = os.getpid()
            lease_id = self._lease_id or new_session_id()
            is_held = self._lease is not None
            try:
                self._lease = leases.take(self._handle, self._entry.id, duration, lease_id, is_held=is_held)
            except (CommitOutcomeUnknownError, KeyboardInterrupt):
                # It may be there: to be renewed, or ended.
                self._lease_id = lease_id
                raise
            self._lease_id = lease_id
            return leases.session_info(self._lease)

    def _end_lease(self) -> None:
        lease, self._lease, self._lease_id = self._lease_id, None, None
        if lease is not None and self._lease_pid == os.getpid():
            with contextlib.suppress(StorageError, ReadOnlyError):
                # If it can't be said now, its time will be over.
                leases.end(self._handle, lease)

    def close(self) -> None:
        """Let go of what the session holds; uncommitted changes are lost, a lease is ended. May be called again.

        A forked child lets go of its view only; what its parent holds, and its lease, stay.
        """
        with self._lock:
            self._end_lease()
            if self._is_read_only:
                return
            old = self._tree
            self._is_read_only = True
            self._tree = self._clean_tree(old.blobs, old.nodes.root)
            if old.mutations == self._mutations_in_doubt:
                # A commit in doubt can still be asked for, as after `with repo.transaction(...)`.
                self._mutations_in_doubt = self._tree.mutations
            old.closed = "this session was closed. Open a new one with repo.writable_session(branch)."
            old.writer.close()
            if self._pid != os.getpid():
                return
            with contextlib.suppress(StorageError, ReadOnlyError):
                # If it can't be said now, the entry stays, and gc names it.
                self._unregister()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require_writable(self) -> None:
        if self._pid != os.getpid() and not self._is_read_only:
            raise ForkedProcessError(
                f"this session belongs to process {self._pid}, from which process {os.getpid()} was forked; a forked "
                "child can only read through it. Open the repository and a writable session in the child itself."
            )
        if self._is_copy:
            raise ReadOnlyError(
                "this is a copy of a session that came through pickle, and the changes of a copy would be lost. Write "
                "through the session itself, in its own process."
            )
        if self._is_read_only:
            raise ReadOnlyError(
                "this session is read-only: it was opened so, committed or closed. Open a new one with "
                "repo.writable_session(branch)."
            )

    def _register(self) -> None:
        """Tell the catalog that packs of this session come before its commit, so that gc leaves them alone."""
        now = self._handle.clock.now_us()
        with self._handle.catalog.reading() as view:
            entry = SessionEntry(self._id, view.epoch, now, now + SESSION_REGISTRATION_US)
        # Before the request: what lands late, or is interrupted, is ended by `close` too.
        self._may_be_registered = True
        self._change_registration(OperationKind.OPEN_SESSION, OpenSession(entry))
        self._is_registered = True

    def _unregister(self) -> None:
        """Tell the catalog that this session's packs need no protection any more."""
        if self._may_be_registered:
            self._change_registration(OperationKind.CLOSE_SESSION, CloseSession(self._id))
            self._is_registered = self._may_be_registered = False

    def _change_registration(self, kind: OperationKind, update: OpenSession | CloseSession) -> None:
        change = refs.Change(kind, (), (update,))
        refs.apply(self._handle, lambda view: change, request=(kind, self._id))

    # --- for stores ------------------------------------------------------------------------------------------

    @property
    def tree(self) -> Worktree:
        """The worktree that this session's stores read and write; `ForkedProcessError` where it can't be used."""
        if not self.is_local and self._pid != os.getpid():
            # At once, and not only when something is needed that is not in memory.
            from vstore.storage.objects.requests import forked

            raise forked(self._pid)
        return self._tree

    def tree_for_writing(self) -> Worktree:
        """Return the worktree, or raise `ReadOnlyError` saying what to do instead."""
        if self._is_read_only or self._is_copy:
            self._require_writable()
        # Before any lock is taken: a forked child may have inherited it locked.
        tree = self._tree
        tree.writer.check_usable()
        if tree.mutations >= tree.room_until:
            from vstore.worktree.spilling import make_room

            make_room(tree)
        return tree

    @property
    def state_token(self) -> tuple[object, ...]:
        """What identifies the state that this session shows: equal tokens, equal content."""
        repository = self._handle.catalog.identity.repository.hex()
        token: tuple[object, ...] = ("vstore", repository, self.snapshot_id)
        return (*token, self._id.hex(), self._tree.mutations) if self._tree.mutations else token

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
            changes = freeze(self._tree) if self._tree.mutations else None
            was_writable = not self._is_read_only or self._is_copy
            # With the root, so that nothing is asked for where it is unpickled: an error there would have no task.
            base = self._entry, self._tree.nodes.root
            return (_unpickle, (self._handle, *base, self._branch, self._id, was_writable, changes))

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
    copy._branch = branch
    copy._id = session
    copy._is_copy = was_writable
    if changes is not None:
        from vstore.worktree.frozen import thaw

        copy._tree = thaw(copy._tree, changes)
    return copy
