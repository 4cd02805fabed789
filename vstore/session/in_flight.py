"""The commit that a session has asked the catalog for, until it is known whether it landed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vstore.errors import SessionStateError
from vstore.handle import Handle

# To a process that reads one value, imports are most of the time.
if TYPE_CHECKING:
    from vstore.catalog.base import Transaction
    from vstore.commit import Prepared


class InFlight:
    """Remembers a prepared commit, and how far its session was written when it was prepared."""

    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._mutations = 0

    def begin(self, prepared: Prepared, mutations: int) -> None:
        """Take note before the catalog is asked, so that an interrupt leaves the truth."""
        self._prepared, self._mutations = prepared, mutations

    def end(self) -> None:
        """Take note that its outcome is known."""
        self._prepared = None

    def follow(self, before: int, after: int) -> None:
        """Take note that what was prepared at `before` mutations is held by a worktree that counts `after`."""
        if self._mutations == before:
            self._mutations = after

    def transaction(self, author: str) -> Transaction | None:
        """Return the catalog's transaction, if its outcome is unknown."""
        if self._prepared is None:
            return None
        from vstore.commit import transaction_of, updates_of

        return transaction_of(self._prepared, author, (), updates_of(self._prepared))

    def settle(self, handle: Handle, mutations: int) -> Prepared | None:
        """Find out whether a commit whose outcome is unknown landed, and return it if it did.

        Raises `SessionStateError` if it landed and there are other `mutations` by now than it has.
        """
        prepared = self._prepared
        if prepared is None:
            return None
        from vstore.commit import settle

        landed = settle(handle, prepared)
        self._prepared = None
        if not landed:
            return None
        if mutations != self._mutations:
            raise SessionStateError(
                f"the earlier commit of this session, whose outcome was unknown, landed as {prepared.entry.id.hex()}. "
                "What was written since is not in it: open a new session on the branch and write that again, or "
                "keep it with flush(message)."
            )
        return prepared
