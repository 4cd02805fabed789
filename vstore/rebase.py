"""Putting a session's uncommitted changes, or another snapshot's, onto a snapshot: the merge behind a session.

Below: `merge`, which decides; above: `session`, which swaps its worktree for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from vstore.clock import Clock
from vstore.errors import MergeConflictError, RebaseFailedError
from vstore.format.record import OperationKind, SnapshotEntry
from vstore.ids import SnapshotId, jitter

if TYPE_CHECKING:
    # Every session has an `Origin`; few of them rebase.
    from vstore.merge.conflicts import Conflict
    from vstore.merge.solvers import Solver
    from vstore.merge.three_way import Merged
    from vstore.worktree import Worktree

_FIRST_WAIT_S = 0.001
_LONGEST_WAIT_S = 0.1


class Origin(msgspec.Struct, frozen=True):
    """Where the changes of a session come from, but from its own writes.

    `parents` are a merge's other parents; `sources` are snapshots whose blobs the changes point at, which must be
    retained when they are committed; `settled` the conflicts that a solver decided; `details` go to the operations log.
    """

    kind: OperationKind
    parents: tuple[SnapshotEntry, ...] = ()
    sources: tuple[SnapshotId, ...] = ()
    settled: tuple[Conflict, ...] = ()
    details: Mapping[str, Any] = msgspec.field(default_factory=dict)


class Changes(msgspec.Struct, frozen=True):
    """What changed from one snapshot to another, to be put onto a session."""

    base: Worktree
    incoming: Worktree
    origin: Origin


class Rebase:
    """How a commit follows a branch that moves: with what solver, and how often."""

    def __init__(self, solver: Solver, tries: int, clock: Clock) -> None:
        self.solver = solver
        self._left = tries
        self._clock = clock
        self._wait_s = _FIRST_WAIT_S

    def wait_for_another_try(self) -> bool:
        """Wait, longer each time; return whether another try is allowed.

        Waiting longer lets the others through: of several writers on one branch only one gets on at a time, and tries
        that lose are work for nothing (measured, four processes: doubling up to 0.1 s gives 110 to 132 commits/s, up to
        0.02 s 45 to 105, pauses of about one try's length 77).
        """
        if self._left <= 0:
            return False
        self._left -= 1
        self._clock.sleep(jitter(self._wait_s))
        self._wait_s = min(self._wait_s * 2, _LONGEST_WAIT_S)
        return True


def rebase_changes(
    tree: Worktree,
    head: Worktree,
    solver: Solver,
    make_result: Callable[[], Worktree],
    *,
    ids: tuple[str, str],
) -> Merged:
    """Return a worktree on `head` with the changes of `tree`, whose blobs it takes over.

    `tree` is left as it is, and if the merge fails it is as good as before. `ids` are the old and the new snapshot's,
    for messages. Raises `RebaseFailedError` with the conflicts that the solver leaves.
    """
    from vstore.merge.three_way import merge_trees

    def make() -> Worktree:
        result = make_result()
        # Pending refs are numbered by these.
        result.dictionaries = tree.dictionaries
        return result

    try:
        merged = merge_trees(tree.unedited(), head, tree, solver, make, incoming_is_ours=True)
    except MergeConflictError as error:
        raise RebaseFailedError(
            f"the changes of this session can't be put on {ids[1][:12]}: {error.message}",
            conflicts=error.conflicts,
            expected_parent=ids[0],
            actual_parent=ids[1],
        ) from None
    _release_dropped(tree, merged.tree)
    merged.tree.mutations = tree.mutations + 1
    return merged


def _release_dropped(old: Worktree, new: Worktree) -> None:
    """Let go of the blobs of changes that are not in the result."""
    from vstore.blobs.writer import BlobWriter
    from vstore.worktree.holding import held_slots

    # What is in a pack stays there.
    if isinstance(old.own, BlobWriter) and old.own.has_waiting_blobs:
        for slot in (held_slots(old) - held_slots(new)).elements():
            old.own.release(slot)


def unique_sources(sources: tuple[SnapshotId, ...], *more: SnapshotId) -> tuple[SnapshotId, ...]:
    """Return snapshots without repeats, in order."""
    return tuple(dict.fromkeys((*sources, *more)))
