"""What a session shows, and how that becomes a commit: a snapshot, the worktree on it, and where its changes are from.

`Session` decides who may do what and takes the lock; here it is done. A commit freezes the worktree, is prepared and
published by `commit`, and what was published is then shown read-only. A rebase puts the changes onto another snapshot.
Neighbours: `in_flight` keeps a commit whose outcome is not known yet, `registration` the writer's entry in the catalog.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from vstore.blobs.reader import BlobReader
from vstore.catalog.base import Precondition
from vstore.errors import CommitOutcomeUnknownError, InternalError, ReadOnlyError, StorageError
from vstore.format.page import Child
from vstore.format.record import HistoryEntry, OperationKind, SnapshotEntry
from vstore.handle import Handle, require_unprotected
from vstore.history import require_branch, require_entry, require_known
from vstore.ids import SessionId
from vstore.rebase import Changes, Origin, rebase_changes, unique_sources
from vstore.session.in_flight import InFlight
from vstore.session.registration import Registration
from vstore.worktree import Worktree

# What only writing, committing or merging needs is imported by the methods that do it: to a process that reads one
# value, imports are most of the time.
if TYPE_CHECKING:
    from vstore.blobs.writer import BlobWriter
    from vstore.commit import CommitRequest, Encode, Prepared
    from vstore.merge.solvers import Solver

NOT_KNOWN: Any = object()
"""In place of a snapshot's root that is yet to be read."""


class Draft:
    """A worktree on a snapshot, and what is known of its changes. Who changes it holds the session's lock."""

    def __init__(
        self,
        handle: Handle,
        entry: SnapshotEntry,
        session: SessionId,
        *,
        branch: str | None,
        epoch: int,
        root: Child | None,
    ) -> None:
        self.handle = handle
        self.entry = entry
        """The snapshot that is shown, or that the changes are on top of."""
        self.branch = branch
        self.is_read_only = branch is None
        self.registration = Registration(handle, session)
        self.in_flight = InFlight()
        self.origin = Origin(OperationKind.COMMIT)
        self.encode: Encode | None = None
        """What makes the metadata of a commit, if not the edits of the worktree."""
        self._session = session
        self._epoch = epoch
        self._rebases = 0
        if root is NOT_KNOWN:
            blobs = handle.open_snapshot(entry)
            root = blobs.snapshot(entry.ref).root
        else:
            blobs = handle.blobs_for(entry.id)
        self.tree = self._clean_tree(blobs, root)

    def _clean_tree(self, blobs: BlobReader, root: Child | None) -> Worktree:
        """Return a worktree without changes; nothing is read for it."""
        if self.is_read_only:
            return self._tree_with(blobs, root, None)
        import vstore.commit  # noqa: F401 - or a process's first commit would wait for it
        from vstore.blobs.writer import BlobWriter

        storage, clock = self.handle.storage, self.handle.clock
        return self._tree_with(
            blobs, root, BlobWriter(storage, self.registration.begin, self._session, clock=clock)
        )

    def _tree_with(self, blobs: BlobReader, root: Child | None, writer: BlobWriter | None) -> Worktree:
        threshold = self.handle.config.inline_chunk_threshold_bytes
        return Worktree(blobs, root, virtual=self.handle.virtual, writer=writer, inline_bytes=threshold)

    # --- rebasing and merging --------------------------------------------------------------------------------

    def rebase(self, solver: Solver) -> None:
        """Put the changes onto what the branch holds now."""
        assert self.branch is not None
        with self.handle.catalog.reading() as view:
            head = require_entry(view, require_branch(view, self.branch))
        if head.id == self.entry.id:
            return
        blobs = self.handle.open_snapshot(head)
        root = blobs.snapshot(head.ref).root
        old = self.tree
        with _frozen(old, "this session is being rebased. Wait for it."):
            merged = rebase_changes(
                old,
                Worktree(blobs, root, virtual=self.handle.virtual),
                solver,
                lambda: self._tree_with(blobs, root, old.writer),
                ids=(self.entry.id.hex(), head.id.hex()),
            )
        old.closed = "this session was rebased while this was being written. Write it again."
        sources = unique_sources(self.origin.sources, *([self.entry.id] if merged.borrows else []))
        self.origin = msgspec.structs.replace(
            self.origin, sources=sources, settled=(*self.origin.settled, *merged.settled)
        )
        self.tree, self.entry = merged.tree, head
        self._rebases += 1

    def apply(self, changes: Changes, solver: Solver) -> None:
        """Put what changed between two snapshots onto a worktree that has no changes."""
        from vstore.merge.three_way import merge_trees

        old = self.tree
        with _frozen(old, "a merge is being made. Wait for it."):
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
        self.tree = merged.tree
        self.origin = msgspec.structs.replace(changes.origin, settled=merged.settled)

    # --- committing ------------------------------------------------------------------------------------------

    def commit(self, kind: OperationKind, message: str, metadata: bytes, allow_empty: bool) -> None:
        """Make the changes a snapshot, and show that from now on, read-only; on any error they are all kept."""
        request = self.request(kind, message, metadata, allow_empty)
        tree = self.tree
        why = "this session is being committed; what is written meanwhile would be lost. Wait for it."
        with _frozen(tree, why):
            self._commit_frozen(request)
        tree.closed = "this session was committed. Open a new one with repo.writable_session(branch)."

    def request(self, kind: OperationKind, message: str, metadata: bytes, allow_empty: bool) -> CommitRequest:
        """Return what is to be committed, as of now."""
        from vstore.commit import CommitRequest
        from vstore.worktree.encode import encode_worktree

        parents: tuple[HistoryEntry, ...] = (self.entry, *self.origin.parents)
        conditions: tuple[Precondition, ...] = ()
        if kind == OperationKind.AMEND:
            assert self.branch is not None
            with self.handle.catalog.reading() as view:
                parents = tuple(require_known(view, parent) for parent in self.entry.parents)
                conditions = (require_unprotected(view, self.branch),)
        return CommitRequest(
            kind,
            message,
            metadata,
            None if kind == OperationKind.FLUSH else self.branch,
            self.entry.id,
            parents,
            # An amend changes the message at least, a merge the history.
            allow_empty or kind == OperationKind.AMEND or len(parents) > 1,
            self._epoch,
            self.origin.sources,
            conditions,
            {**self.origin.details, **({"rebases": self._rebases} if self._rebases else {})},
            self.encode or encode_worktree,
        )

    def _commit_frozen(self, request: CommitRequest) -> None:
        from vstore.commit import MOVED_TRIES, PacksMovedError, Unchanged, prepare, publish

        for tries_left in reversed(range(MOVED_TRIES)):
            prepared = prepare(self.handle, self.tree, request)
            if isinstance(prepared, Unchanged):
                self._show(self.entry, self.tree.nodes.root)
                with contextlib.suppress(StorageError, ReadOnlyError):
                    # If it can't be said now, closing the session says it.
                    self.registration.end()
                return
            self.in_flight.begin(prepared, self.tree.mutations)
            try:
                publish(self.handle, prepared, self.registration.session)
            except PacksMovedError:
                self.in_flight.end()
                if not tries_left:
                    raise
                continue
            except (StorageError, KeyboardInterrupt) as error:
                # Whether it landed is asked when the session is used again.
                if isinstance(error, (CommitOutcomeUnknownError, KeyboardInterrupt)):
                    self._note_doubt(prepared)
                raise
            except Exception:
                self.in_flight.end()
                raise
            self.in_flight.end()
            self._become_read_only(prepared.entry, prepared.root)
            return
        raise InternalError("unreachable")

    def settle(self) -> bool:
        """Find out whether an earlier commit landed although it did not say so; if so, show it, read-only."""
        prepared = self.in_flight.settle(self.handle, self.tree.mutations)
        if prepared is None:
            return False
        self._become_read_only(prepared.entry, prepared.root)
        return True

    def _note_doubt(self, prepared: Prepared) -> None:
        """Let changes of the same branch that are in doubt as well know of this one, should it have come later."""
        transaction = self.in_flight.transaction(self.handle.author)
        if transaction is not None:
            self.handle.doubts.note(("commit", prepared.entry.id), transaction)

    def _become_read_only(self, entry: SnapshotEntry, root: Child | None) -> None:
        """Show a snapshot from now on, whose commit ended the registration."""
        self.registration.forget()
        self._show(entry, root)

    def _show(self, entry: SnapshotEntry, root: Child | None) -> None:
        """Show a snapshot from now on, read-only. Nothing here may fail: the commit has landed."""
        old, was_closed = self.tree, self.is_read_only
        self.entry = entry
        self.is_read_only = True
        self.tree = self._clean_tree(self.handle.blobs_for(entry.id), root)
        if not was_closed:
            old.writer.close()

    # --- letting go ------------------------------------------------------------------------------------------

    def discard(self) -> None:
        """Forget all changes, and what was uploaded for them."""
        old = self.tree
        self.tree = self._clean_tree(old.blobs, old.nodes.root)
        self.tree.mutations = old.mutations + 1
        self.origin = Origin(OperationKind.COMMIT)
        old.closed = "the changes of this session were discarded while this was being written"
        old.writer.close()
        self.registration.end()

    def close(self) -> None:
        """Forget all changes and show the snapshot read-only; the registration stays."""
        old = self.tree
        self.is_read_only = True
        self.tree = self._clean_tree(old.blobs, old.nodes.root)
        # A commit in doubt can still be asked for, as after `with repo.transaction(...)`.
        self.in_flight.follow(old.mutations, self.tree.mutations)
        old.closed = "this session was closed. Open a new one with repo.writable_session(branch)."
        old.writer.close()


@contextlib.contextmanager
def _frozen(tree: Worktree, why: str) -> Iterator[None]:
    """Let nothing be written to a worktree; it is open again afterwards, unless it was closed for good."""
    with tree.lock:
        tree.closed = why
    try:
        yield
    except BaseException:
        tree.closed = None
        raise
