"""The branches and tags of a repository: looked up, made, moved, deleted, protected and put back.

Below: `refs` has the transactions, which are imported when they are called, and the operations log.
"""

from __future__ import annotations

from collections.abc import Iterator

from vstore.catalog.base import PROTECTED
from vstore.format.record import RefKind
from vstore.handle import protected_patterns
from vstore.history import require_branch, require_tag
from vstore.refs import OperationInfo, iter_operations, operation_info
from vstore.repository.opened import Opened
from vstore.twins import async_twin


class References(Opened):
    """What a `Repository` knows of its branches and tags, and does to them."""

    def list_branches(self) -> set[str]:
        """Return the names of all branches."""
        return self._list(RefKind.BRANCH)

    def list_tags(self) -> set[str]:
        """Return the names of all tags."""
        return self._list(RefKind.TAG)

    def _list(self, kind: RefKind) -> set[str]:
        with self._handle.catalog.reading() as view:
            return {name for name, _ in view.iter_refs(kind)}

    def lookup_branch(self, branch: str) -> str:
        """Return the id of a branch's snapshot."""
        with self._handle.catalog.reading() as view:
            return require_branch(view, branch).hex()

    def lookup_tag(self, tag: str) -> str:
        """Return the id of a tag's snapshot."""
        with self._handle.catalog.reading() as view:
            return require_tag(view, tag).hex()

    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """Make a branch that holds a snapshot. Raises `RefExistsError` if there is one of this name."""
        from vstore.refs import branches

        branches.create_branch(self._handle, branch, snapshot_id)

    def create_tag(self, tag: str, snapshot_id: str, *, force: bool = False) -> None:
        """Make a tag, which never moves. The name of a deleted tag stays taken, unless `force`.

        Raises `RefExistsError` if the name is taken.
        """
        from vstore.refs import branches

        branches.create_tag(self._handle, tag, snapshot_id, force=force)

    def delete_branch(self, branch: str) -> None:
        """Delete a branch. Its snapshots stay readable by id until they expire; "main" can't be deleted.

        Raises `ProtectedBranchError` if the branch is protected.
        """
        from vstore.refs import branches

        branches.delete_branch(self._handle, branch)

    def delete_tag(self, tag: str) -> None:
        """Delete a tag. Its name stays taken, so that it never comes to mean something else by accident."""
        from vstore.refs import branches

        branches.delete_tag(self._handle, tag)

    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Point a branch at any snapshot. With `from_snapshot_id`, a full id, only if the branch holds that one.

        Raises `ConflictError` if the branch holds something else, or moved meanwhile, `ProtectedBranchError` if it is
        protected.
        """
        from vstore.refs import branches

        branches.reset_branch(self._handle, branch, snapshot_id, from_snapshot_id)

    def protect_branch(self, pattern: str) -> None:
        """Refuse from now on to reset, delete or undo a branch, by its name or a glob such as "release/*".

        "*" also matches "/". Commits are never refused. Branches need not be there yet; protecting again does
        nothing.
        """
        from vstore.refs import protection

        protection.protect(self._handle, pattern)

    def unprotect_branch(self, pattern: str) -> None:
        """Lift a protection; `pattern` is a name or glob as `list_protected_branches` returns it."""
        from vstore.refs import protection

        protection.unprotect(self._handle, pattern)

    def list_protected_branches(self) -> set[str]:
        """Return the names and globs of protected branches."""
        with self._handle.catalog.reading() as view:
            return set(protected_patterns(view.value(PROTECTED)))

    # --- the operations log ----------------------------------------------------------------------------------

    def ops_log(self) -> Iterator[OperationInfo]:
        """Yield what was done to this repository, newest first, as a stream."""
        return map(operation_info, iter_operations(self._handle))

    def undo(self, *, expected: int | None = None) -> OperationInfo:
        """Put the branches and tags of the newest operation that changed any back to what they held before it.

        Undoing an undo does the operation again. `expected` is the number of the operation that you mean to undo. A
        tag that is deleted by this keeps its name taken, as with `delete_tag`.

        Raises `ConflictError` if that is not the newest one, or a ref moved meanwhile; `ProtectedBranchError` if a
        protected branch would be moved back; `SnapshotExpiredError` if a snapshot is gone. Nothing is changed then.
        """
        from vstore.refs import undo

        return operation_info(undo.undo(self._handle, expected))

    def restore(self, operation: int | OperationInfo) -> OperationInfo:
        """Make all branches and tags what they were right after an operation, in one step that can be undone.

        Settings and metadata stay. If nothing is to be changed, nothing is written and the newest operation is
        returned. Tags that are deleted by this keep their names taken.

        Raises `ConflictError` if a ref moved meanwhile, and otherwise what `undo` raises.
        """
        from vstore.refs import undo

        return operation_info(undo.restore(self._handle, operation))

    list_branches_async = async_twin(list_branches)
    list_tags_async = async_twin(list_tags)
    lookup_branch_async = async_twin(lookup_branch)
    lookup_tag_async = async_twin(lookup_tag)
    create_branch_async = async_twin(create_branch)
    create_tag_async = async_twin(create_tag)
    delete_branch_async = async_twin(delete_branch)
    delete_tag_async = async_twin(delete_tag)
    reset_branch_async = async_twin(reset_branch)
    protect_branch_async = async_twin(protect_branch)
    unprotect_branch_async = async_twin(unprotect_branch)
    list_protected_branches_async = async_twin(list_protected_branches)
    undo_async = async_twin(undo)
    restore_async = async_twin(restore)
