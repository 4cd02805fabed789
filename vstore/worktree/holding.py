"""Which blobs of its session's writer a worktree's edits hold, so that what a rebase dropped can be let go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vstore.worktree.contents import Content, OwnBlob
from vstore.worktree.tree import Worktree


def held_slots(tree: Worktree) -> Counter[int]:
    """Return how often the edits of a worktree point at each slot of its writer."""
    slots: Counter[int] = Counter(_slots_of(tree.nodes.values.values()))
    for node in tree.nodes.drafts.values():
        if node is None:
            continue
        slots.update(_slots_of(node.documents.values()))
        for tile in node.array.pending.values() if node.array is not None else ():
            slots.update(tile.own_slots().tolist())
    return slots


def _slots_of(contents: Iterable[Content | None]) -> list[int]:
    return [content.slot for content in contents if isinstance(content, OwnBlob)]
