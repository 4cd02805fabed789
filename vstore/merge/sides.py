"""What each side of a merge did to the base: nodes by id, moves, and nodes that are the same although their ids differ.

A node that was deleted and made again with the same meaning (a group, or an array of the same dtype, codecs, chunk grid
and tiles) is the same node, as it is within one session; so is one whose other id comes from a merge of twins.
"""

from __future__ import annotations

from typing import NamedTuple

from vstore.errors import InternalError
from vstore.ids import NodeId
from vstore.keys.zarr import ZARR_JSON, parent_path
from vstore.worktree.compare import (
    TreeDelta,
    compare,
    elementary_moves,
    iter_chunk_changes,
    same_documents,
)
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree


class Side:
    """What one side changed since the base. Nodes are named by the base's ids wherever the base has them."""

    def __init__(self, base: Worktree, tree: Worktree) -> None:
        self.tree = tree
        self.base = base
        delta = compare(base, tree)
        self.names = _match_remade(base, tree, delta)
        """The base's id of each node that has another one here."""
        self.before, self.after, self.values = delta.before, delta.after, delta.values
        self._documents, self._chunks = delta.documents, delta.chunks
        self.created = set(delta.created)
        self.deleted = set(delta.deleted)
        self.moves = elementary_moves(base, tree, delta)
        self.paths = {
            old.path: self.after[node].path
            for node, old in self.before.items()
            if node in self.after and self.after[node].path != old.path
        }
        """Old and new paths of every node that is elsewhere now, moved itself or along with a group."""

    def documents_changed(self, node: NodeId) -> bool:
        return node in self._documents

    def chunks_changed(self, node: NodeId) -> bool:
        return node in self._chunks

    def is_updated(self, node: NodeId) -> bool:
        """Tell whether a node that lives on was changed: more than carried along with a group."""
        return node in self.moves or self.documents_changed(node) or self.chunks_changed(node)

    def path(self, node: NodeId) -> str:
        """Return where a node is on this side, or was in the base."""
        state = self.after.get(node) or self.before.get(node)
        if state is None:
            raise InternalError("a node was asked for that this side did not touch")
        return state.path

    def place(self, node: NodeId) -> tuple[NodeId | None, str]:
        """Return the id of a node's parent, and its name."""
        path = self.path(node)
        parent = self.tree.nodes.node(parent_path(path)) if path else None
        parent_id = None if parent is None else self.names.get(parent.node_id, parent.node_id)
        return parent_id, path.rpartition("/")[2]


def mean_the_same(one: NodeState, other: NodeState) -> bool:
    """Tell whether two nodes may be one: two groups, or two arrays whose chunks and keys mean the same."""
    if one.array is None or other.array is None:
        return one.array is None and other.array is None and same_format(one, other)
    return (
        one.array.extents == other.array.extents
        and one.array.spec.identity == other.array.spec.identity
        and one.array.spec.encoding == other.array.spec.encoding
    )


def same_format(one: NodeState, other: NodeState) -> bool:
    """Tell whether both nodes are of Zarr format 3, or both of 2."""
    return (ZARR_JSON in one.documents) == (ZARR_JSON in other.documents)


def _match_remade(base: Worktree, tree: Worktree, delta: TreeDelta) -> dict[NodeId, NodeId]:
    """Treat nodes that were deleted and made again alike as changed ones; return their new ids with the old."""
    remade = {}
    deleted = {delta.before[node].path: node for node in delta.deleted}
    for node in delta.created:
        state = delta.after[node]
        old = deleted.get(state.path)
        if old is None or not mean_the_same(delta.before[old], state):
            continue
        remade[node] = old
        del delta.after[node]
        delta.after[old] = state
        if not same_documents(delta.before[old], state):
            delta.documents.add(old)
        if next(iter_chunk_changes(base, delta.before[old], tree, state), None) is not None:
            delta.chunks.add(old)
    return remade


class NodeStates(NamedTuple):
    """A node as the three sides have it: `onto` is the result's, which is onto's before it is merged."""

    node: NodeId
    path: str
    base: NodeState | None
    onto: NodeState
    incoming: NodeState
