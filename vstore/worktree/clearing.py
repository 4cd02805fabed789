"""Deletes all below a folder: edits are dropped and the base is hidden, which costs the same for any size of array.

Only where a folder lies inside an array, between the parts of its chunk keys, its chunks are deleted one by one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import OwnBlob
from vstore.worktree.nodes import NodeState

if TYPE_CHECKING:
    from vstore.worktree.tree import Worktree


def clear(tree: Worktree, folder: str) -> None:
    """Delete everything below `folder`, and the node at it. The caller holds the worktree's lock."""
    owner = tree.nodes.owner(folder) if folder else None
    if owner is not None and owner.array is not None:
        _delete_chunks_below(tree, owner, owner.array, folder)
    _drop_edits_below(tree, folder)
    tree.nodes.hidden.add(folder)


def _drop_edits_below(tree: Worktree, folder: str) -> None:
    nodes = tree.nodes
    for path in [p for p in nodes.drafts if p == folder or p.startswith(folder + "/" if folder else "")]:
        state = nodes.drafts.pop(path)
        if state is not None and state.array is not None:
            tree.writer.release_many(state.array.clear())
    for key in [k for k in nodes.values if k.startswith(folder + "/" if folder else "")]:
        content = nodes.values.pop(key)
        if isinstance(content, OwnBlob):
            tree.writer.release(content.slot)


def _delete_chunks_below(tree: Worktree, owner: NodeState, array: ArrayState, folder: str) -> None:
    """Delete the chunks of an array whose keys lie below a folder inside it."""
    inside = folder[len(owner.path) + 1 if owner.path else 0 :]
    encoding = array.spec.encoding
    if encoding is None or encoding.separator != "/":
        return
    if inside == encoding.leading:
        tree.nodes.drafts[owner.path] = owner
        tree.writer.release_many(array.clear())
        return
    first = encoding.first_indices(inside)
    for indices, _ in () if first is None else list(array.iter_indices(first)):
        for index in map(tuple, indices.tolist()):
            tree.delete_chunk(tree.nodes.arrays, (owner, array, *array.locate(index)))
