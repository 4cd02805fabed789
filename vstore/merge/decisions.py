"""What is decided of a merge, node by node, and what the solver is asked before anything is built.

That is about nodes that one side deleted and the other changed, and nodes that both moved. What only shows when the
result is built is asked about later, by `problems`, and added to the same `Decisions`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vstore.ids import NodeId
from vstore.merge.conflicts import Conflict, ConflictType
from vstore.merge.questions import Questions
from vstore.merge.sides import Side


@dataclass
class Decisions:
    """What was decided so far, by node. All else follows from what the sides did."""

    delete: set[NodeId] = field(default_factory=set)
    """Deleted by incoming; what onto made of it does not matter."""
    revive: set[NodeId] = field(default_factory=set)
    """Deleted by onto, kept as incoming has it."""
    drop_incoming: set[NodeId] = field(default_factory=set)
    """Created by incoming, left out."""
    drop_onto: set[NodeId] = field(default_factory=set)
    """Created by onto, deleted."""
    follow_incoming: set[NodeId] = field(default_factory=set)
    """Placed where incoming moved it."""
    back_to_base: set[NodeId] = field(default_factory=set)
    """Moved by onto, put back."""
    kept: set[NodeId] = field(default_factory=set)
    """Deleted by incoming, kept as onto has it."""


def first_decisions(onto: Side, incoming: Side, questions: Questions) -> Decisions:
    """Return what follows of the sides' deletions and moves alone."""
    decider = _Decider(onto, incoming, questions)
    decider.decide_deletions()
    decider.decide_moves()
    return decider.todo


class _Decider:
    def __init__(self, onto: Side, incoming: Side, questions: Questions) -> None:
        self._onto = onto
        self._incoming = incoming
        self._questions = questions
        self.todo = Decisions()

    def decide_deletions(self) -> None:
        for node in sorted(self._incoming.deleted - self._onto.deleted, key=self._incoming.path):
            if not self._onto.is_updated(node):
                self.todo.delete.add(node)
                continue
            conflict = self._deletion_conflict(node, self._incoming, self._onto)
            choice = self._questions.ask(("delete", node), conflict)
            # An open one is seen as deleted, whichever side did it, lest one conflict be reported as two.
            is_kept = choice is not None and not self._questions.is_incoming(choice)
            (self.todo.kept if is_kept else self.todo.delete).add(node)
        for node in sorted(self._onto.deleted - self._incoming.deleted, key=self._onto.path):
            if not self._incoming.is_updated(node):
                continue
            conflict = self._deletion_conflict(node, self._onto, self._incoming)
            if self._questions.is_incoming(self._questions.ask(("delete", node), conflict)):
                self.todo.revive.add(node)

    def _deletion_conflict(self, node: NodeId, deleting: Side, updating: Side) -> Conflict:
        state = deleting.before[node]
        is_array = state.array is not None
        if (deleting is self._incoming) == self._questions.incoming_is_ours:
            kind = ConflictType.DeleteOfUpdatedArray if is_array else ConflictType.DeleteOfUpdatedGroup
        elif updating.documents_changed(node):
            kind = (
                ConflictType.ZarrMetadataUpdateOfDeletedArray
                if is_array
                else ConflictType.ZarrMetadataUpdateOfDeletedGroup
            )
        elif updating.chunks_changed(node):
            kind = ConflictType.ChunksUpdatedInDeletedArray
        else:
            kind = ConflictType.MoveOperationCannotBeRebased
        return Conflict(kind, f"/{state.path}")

    def decide_moves(self) -> None:
        """Find out which nodes incoming's moves apply to."""
        for node, (old, new) in sorted(self._incoming.moves.items(), key=lambda item: item[1]):
            if node in self._onto.deleted:
                continue
            if node not in self._onto.moves:
                self.todo.follow_incoming.add(node)
            elif self._onto.moves[node][1] != new:
                self._ask_move(node, old)
        for node in sorted(self._incoming.created & self._onto.created, key=self._incoming.path):
            # Both sides got it, by a cherry-pick or a squash, say; then one of them moved it.
            if self._onto.place(node) != self._incoming.place(node):
                self._ask_move(node, self._onto.path(node))

    def _ask_move(self, node: NodeId, path: str) -> None:
        conflict = Conflict(ConflictType.MoveOperationCannotBeRebased, f"/{path}")
        if self._questions.is_incoming(self._questions.ask(("move", node), conflict)):
            self.todo.follow_incoming.add(node)
