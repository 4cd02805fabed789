"""Merges in a repository, cherry-picks and reverts: the public methods, which hand over to `branching`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vstore.refs import MAIN
from vstore.repository.opened import Opened
from vstore.twins import async_twin

# What only merging needs is imported by the methods, as in `session`.
if TYPE_CHECKING:
    from vstore.merge.solvers import SolverSpec
    from vstore.session import Session


class Merging(Opened):
    """How a `Repository` brings together what was committed apart."""

    def merge(
        self,
        source: str,
        into: str = MAIN,
        *,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        solver: SolverSpec = None,
        fast_forward: bool = True,
        squash: bool = False,
    ) -> str:
        """Merge a branch, tag or snapshot into a branch, and return the id of the branch's head then.

        What only one side changed since their common ancestor is taken, what both changed alike is one change, and
        `solver` decides the rest as for `Session.rebase`, "ours" being branch `into`. The new snapshot has two
        parents, or with `squash` only the branch's. If the branch has nothing of its own it is moved to the source
        (`fast_forward`); if the source is in it already, nothing happens.

        Raises `MergeConflictError`, which has the conflicts, `UnrelatedHistoriesError`, `RefNotFoundError`; nothing
        is changed then.
        """
        from vstore.branching import CommitText, MergeRequest, merge

        request = MergeRequest(source, into, solver, squash)
        text = CommitText(message, metadata)
        return merge(self._handle, request, text, self._default_metadata, fast_forward=fast_forward)

    def merge_session(
        self, source: str, into: str = MAIN, *, solver: SolverSpec = None, squash: bool = False
    ) -> Session:
        """Return a writable session on branch `into` that holds the result of a merge, to be looked at and edited.

        `session.status()` shows it, `session.conflicts` what the solver decided; its commit is the merge. Raises what
        `merge` raises, and `NothingToCommitError` if the source is merged already.
        """
        from vstore.branching import MergeRequest, merge_session

        return merge_session(self._handle, MergeRequest(source, into, solver, squash), self._default_metadata)

    def cherry_pick(
        self,
        snapshot_id: str,
        branch: str = MAIN,
        *,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        solver: SolverSpec = None,
        parent: int | None = None,
    ) -> str:
        """Put what one commit changed onto a branch as a new commit, and return its id.

        `snapshot_id` may be a branch's or tag's name. Of a merge, `parent` says which parent it is compared with,
        counted from 1. The message and metadata are the picked commit's, unless given. If the branch has all of it
        already, its head's id is returned. Raises `MergeConflictError`, as `merge` does.
        """
        from vstore.branching import CommitText, cherry_pick

        text = CommitText(message, metadata)
        return cherry_pick(
            self._handle, snapshot_id, branch, text, self._default_metadata, solver=solver, parent=parent
        )

    def revert(
        self,
        snapshot_id: str,
        branch: str = MAIN,
        *,
        since: str | None = None,
        message: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        solver: SolverSpec = None,
        parent: int | None = None,
    ) -> str:
        """Undo what one commit changed, by a new commit on a branch, and return its id.

        With `since`, an ancestor, all commits after that one are undone together. Of a merge, `parent` says which
        parent's state to go back to, counted from 1. Raises `MergeConflictError` if the branch changed the same since.
        """
        from vstore.branching import CommitText, revert

        text = CommitText(message, metadata)
        return revert(
            self._handle,
            snapshot_id,
            branch,
            text,
            self._default_metadata,
            since=since,
            solver=solver,
            parent=parent,
        )

    merge_async = async_twin(merge)
    merge_session_async = async_twin(merge_session)
    cherry_pick_async = async_twin(cherry_pick)
    revert_async = async_twin(revert)
