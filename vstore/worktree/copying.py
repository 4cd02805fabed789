"""A second worktree with the same edits, which can be changed without changing the first."""

from __future__ import annotations

from msgspec.structs import replace

from vstore.worktree.arrays import ArrayState
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree


def copy_worktree(tree: Worktree) -> Worktree:
    """Return a worktree with the same keys and refs; it can't read what a session of `tree` wrote itself."""
    copy = tree.unedited()
    copy.dictionaries = tree.dictionaries
    nodes = copy.nodes
    nodes.hidden, nodes.moved = set(tree.nodes.hidden), set(tree.nodes.moved)
    nodes.values = dict(tree.nodes.values)
    for path, state in tree.nodes.drafts.items():
        nodes.drafts[path] = None if state is None else _copy_deeply(copy, state)
    return copy


def _copy_deeply(tree: Worktree, state: NodeState) -> NodeState:
    copy = copy_node(tree, state)
    if copy.array is not None:
        copy.array.pending = {key: tile.copy() for key, tile in copy.array.pending.items()}
    return copy


def copy_node(tree: Worktree, state: NodeState) -> NodeState:
    """Return a node as one of another worktree, whose lock covers its edits; pending tiles are shared."""
    array = state.array
    if array is None:
        return state
    copy = ArrayState(array.reader, array.node_id, array.spec, array.extents, array.base, tree.lock)
    copy.pending, copy.cleared, copy.limit = dict(array.pending), array.cleared, array.limit
    return replace(state, array=copy)
