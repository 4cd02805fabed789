"""What can't be in the result of a merge as far as it is decided, and what a solver may do about it.

Two nodes at one path, nodes whose group the other side deleted or that ended up inside an array, nodes that were moved
into each other, and plain values that would be taken for chunks. Each round of `three_way` has `Problems` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from vstore.ids import NodeId
from vstore.keys.zarr import iter_ancestors, parent_path
from vstore.merge.conflicts import Conflict, ConflictType
from vstore.merge.decisions import Decisions
from vstore.merge.places import Places
from vstore.merge.sides import Side
from vstore.worktree.routes import Chunk, Document
from vstore.worktree.tree import Worktree


class Problem(NamedTuple):
    """A conflict with what to do if incoming's side holds, and if onto's does; None where a side can't."""

    conflict: Conflict
    take_incoming: Callable[[], None] | None
    take_onto: Callable[[], None] | None


class Problems:
    """The problems of one round's `result`, as they are found. What they do changes `todo`, for the next round."""

    def __init__(self, onto: Side, incoming: Side, todo: Decisions, places: Places, result: Worktree) -> None:
        self._onto = onto
        self._incoming = incoming
        self._todo = todo
        self._places = places
        self._result = result
        self.found: list[Problem] = []

    def add_open(self, conflict: Conflict) -> None:
        """Note a conflict about which no side can do anything."""
        self.found.append(Problem(conflict, None, None))

    def add_collision(self, path: str, placed: NodeId, existing: NodeId) -> None:
        """Note that two nodes, by the names they have in the result, belong at one path."""
        conflict = Conflict(ConflictType.NewNodeConflictsWithExistingNode, f"/{path}")
        incoming = [node for node in (placed, existing) if self._places.comes_from_incoming(node)]
        onto = [node for node in (placed, existing) if node not in incoming]
        if len(incoming) != 1 or len(onto) != 1:
            self.add_open(conflict)
            return
        self.found.append(
            Problem(conflict, self._removal_from_onto(onto[0]), self._removal_from_incoming(incoming[0]))
        )

    def only_cycle(self, nodes: list[NodeId]) -> None:
        """Let the only problem be that the sides moved nodes into each other: nothing else can be told before."""
        todo = self._todo
        path = min(self._places.on_onto(node) for node in nodes)
        conflict = Conflict(ConflictType.MoveOperationCannotBeRebased, f"/{path}")
        followed = [node for node in nodes if node in todo.follow_incoming]
        moved = [node for node in nodes if node in self._onto.moves and node not in todo.back_to_base]
        self.found = [
            Problem(
                conflict,
                (lambda: todo.back_to_base.update(moved)) if moved else None,
                (lambda: todo.follow_incoming.difference_update(followed)) if followed else None,
            )
        ]

    def check_parents(self) -> None:
        """Find nodes that one side put below what is a group there, and is none in the result."""
        todo = self._todo
        placed = (self._incoming.created - todo.drop_incoming) | todo.follow_incoming | todo.revive
        for node in placed - todo.delete:
            self._check_parent(node, self._incoming)
        kept = (self._onto.created - todo.drop_onto) | (set(self._onto.moves) - todo.back_to_base) | todo.kept
        for node in kept - todo.delete - todo.follow_incoming:
            self._check_parent(node, self._onto)

    def _check_parent(self, node: NodeId, side: Side) -> None:
        path = self._places.of(node)
        state = self._result.nodes.node(path)
        if state is None or self._places.name(state.node_id) != self._places.name(node):
            return
        if node in self._todo.revive:
            own_path = self._places.revived(node).path
        else:
            own_path = side.path(node) if side is self._incoming else self._places.on_onto(node)
        if not own_path:
            return
        own_parent = side.tree.nodes.node(parent_path(own_path))
        parent = self._result.nodes.node(parent_path(path))
        is_orphan = own_parent is not None and (parent is None or parent.array is not None)
        is_inside = _array_above(self._result, path) and not _array_above(side.tree, own_path)
        if not is_orphan and not is_inside:
            return
        conflict = Conflict(ConflictType.NewNodeInInvalidGroup, f"/{path}")
        keep = None
        if own_parent is not None and parent is None:
            keep = self._restoration(self._places.name(own_parent.node_id), side)
        if side is self._incoming:
            self.found.append(Problem(conflict, keep, self._removal_from_incoming(node)))
        else:
            self.found.append(Problem(conflict, self._removal_from_onto(node), keep))

    def check_keys(self) -> None:
        """Find plain values that would be taken for chunks or documents of a node that the other side made."""
        for key, content in list(self._result.nodes.values.items()):
            if content is not None:
                self._check_key(key)
        placed = (
            (self._incoming.created - self._todo.drop_incoming)
            | self._todo.follow_incoming
            | self._todo.revive
        )
        for node in placed - self._todo.delete:
            for key in list(self._result.values_below(self._places.of(node))):
                self._check_key(key)

    def _check_key(self, key: str) -> None:
        route = self._result.route(key)
        if isinstance(route, Chunk) or (isinstance(route, Document) and self._is_document(route)):
            conflict = Conflict(ConflictType.NewNodeConflictsWithExistingNode, f"/{route.path}")
            if conflict not in [problem.conflict for problem in self.found]:
                self.add_open(conflict)

    def _is_document(self, route: Document) -> bool:
        node = self._result.nodes.node(route.path)
        return node is not None and route.name in node.documents

    def _removal_from_onto(self, node: NodeId) -> Callable[[], None] | None:
        """Return what takes away from a place a node that onto put there."""
        todo = self._todo
        if node in self._onto.created:
            below = self._onto.after[node].path + "/"
            nodes = {node, *(n for n in self._onto.created if self._onto.after[n].path.startswith(below))}
            return lambda: todo.drop_onto.update(nodes)
        if node in self._onto.moves:
            return lambda: todo.back_to_base.add(node)
        if node in todo.kept:

            def delete_after_all() -> None:
                todo.kept.discard(node)
                todo.delete.add(node)

            return delete_after_all
        return None

    def _removal_from_incoming(self, node: NodeId) -> Callable[[], None] | None:
        """Return what takes away from a place a node that incoming put there."""
        todo = self._todo
        if node in self._incoming.created:
            below = self._incoming.after[node].path + "/"
            created = self._incoming.created
            nodes = {node, *(n for n in created if self._incoming.after[n].path.startswith(below))}
            return lambda: todo.drop_incoming.update(nodes)
        if node in todo.follow_incoming:
            return lambda: todo.follow_incoming.discard(node)
        if node in todo.revive:
            return lambda: todo.revive.discard(node)
        return None

    def _restoration(self, node: NodeId, side: Side) -> Callable[[], None] | None:
        """Return what keeps a group that the other side deleted."""
        todo = self._todo
        if side is self._incoming and node in self._onto.deleted:
            return lambda: todo.revive.add(node)
        if side is self._onto and node in self._incoming.deleted:

            def keep() -> None:
                todo.delete.discard(node)
                todo.kept.add(node)

            return keep
        return None


def _array_above(tree: Worktree, path: str) -> bool:
    states = (tree.nodes.node(above) for above in iter_ancestors(path))
    return any(state is not None and state.array is not None for state in states)
