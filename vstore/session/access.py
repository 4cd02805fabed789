"""Who may use a session's worktree, and for what: not a forked child, not a copy, and no one who would write too late.

A local session that a child inherited can be read, a copy that came through pickle too; only the session itself, in the
process that opened it, can be written, until it is committed or closed.
"""

from __future__ import annotations

import os

from vstore.errors import ForkedProcessError, ReadOnlyError
from vstore.session.draft import Draft
from vstore.worktree import Worktree


class Access:
    """What of a `Session` its stores use."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._pid = os.getpid()
        self._is_copy = False
        self.is_local = draft.handle.storage.is_local
        """Whether reads are quick enough to be made on an event loop."""

    @property
    def tree(self) -> Worktree:
        """The worktree that this session's stores read and write; `ForkedProcessError` where it can't be used."""
        if not self.is_local and self._pid != os.getpid():
            # At once, and not only when something is needed that is not in memory.
            from vstore.storage.objects.requests import forked

            raise forked(self._pid)
        return self._draft.tree

    def tree_for_writing(self) -> Worktree:
        """Return the worktree, or raise `ReadOnlyError` saying what to do instead."""
        draft = self._draft
        if draft.is_read_only or self._is_copy:
            self._require_writable()
        # Before any lock is taken: a forked child may have inherited it locked.
        tree = draft.tree
        tree.writer.check_usable()
        if tree.mutations >= tree.room_until:
            from vstore.worktree.spilling import make_room

            make_room(tree)
        return tree

    def _require_writable(self) -> None:
        if self._pid != os.getpid() and not self._draft.is_read_only:
            raise ForkedProcessError(
                f"this session belongs to process {self._pid}, from which process {os.getpid()} was forked; a forked "
                "child can only read through it. Open the repository and a writable session in the child itself."
            )
        if self._is_copy:
            raise ReadOnlyError(
                "this is a copy of a session that came through pickle, and the changes of a copy would be lost. Write "
                "through the session itself, in its own process."
            )
        if self._draft.is_read_only:
            raise ReadOnlyError(
                "this session is read-only: it was opened so, committed or closed. Open a new one with "
                "repo.writable_session(branch)."
            )
