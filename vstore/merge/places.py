"""Where nodes end up: each below the group that its side put it in, wherever that group is in the result.

A node is placed by the side that made or moved it, else it stays where onto has it; so a path of either side becomes
a path of the result by following the nearest node above it.
"""

from __future__ import annotations

from vstore.errors import InternalError
from vstore.ids import NodeId
from vstore.keys.zarr import iter_ancestors, join_key
from vstore.merge.decisions import Decisions
from vstore.merge.sides import Side
from vstore.worktree.nodes import NodeState


class CycleError(Exception):
    """Nodes were moved into each other."""

    def __init__(self, nodes: list[NodeId]) -> None:
        super().__init__("nodes were moved into each other")
        self.nodes = nodes


class Places:
    """The paths of the result, as far as is decided. `twins` are nodes that both sides made alike, by incoming's id."""

    def __init__(self, onto: Side, incoming: Side, todo: Decisions) -> None:
        self._onto = onto
        self._incoming = incoming
        self._todo = todo
        self._twins: dict[NodeId, NodeId] = {}
        self._known: dict[NodeId, str] = {}
        self._searching: list[NodeId] = []
        nodes = (todo.follow_incoming | todo.back_to_base) - todo.delete - todo.drop_onto - todo.revive
        self.moved = {self.on_onto(node): node for node in nodes}
        """By their paths on onto's side, the nodes that the result has elsewhere."""

    def add_twin(self, node: NodeId, existing: NodeId, path: str) -> None:
        """Let incoming's new node be onto's."""
        self._twins[node] = existing
        self._known.pop(node, None)
        self._known[existing] = path

    def name(self, node: NodeId) -> NodeId:
        """Return the one id of a node that has several."""
        node = self._onto.names.get(node, self._incoming.names.get(node, node))
        return self._twins.get(node, node)

    def of(self, node: NodeId) -> str:
        """Return a node's path in the result. Raises `CycleError` if it would lie in itself."""
        node = self.name(node)
        if node in self._known:
            return self._known[node]
        if node in self._searching:
            raise CycleError(self._searching[self._searching.index(node) :])
        self._searching.append(node)
        path = self._find(node)
        self._searching.pop()
        self._known[node] = path
        return path

    def _find(self, node: NodeId) -> str:
        if node in self._todo.revive:
            return self.from_incoming(self.revived(node).path)
        if self.comes_from_incoming(node):
            return self.from_incoming(self._incoming.path(node))
        if node in self._todo.back_to_base:
            return self.from_onto(self._onto.before[node].path, node)
        return self.from_onto(self.on_onto(node), node)

    def comes_from_incoming(self, node: NodeId) -> bool:
        """Tell whether incoming put the node where it is."""
        todo = self._todo
        created = node in self._incoming.created and node not in self._onto.created
        return created or node in todo.follow_incoming or node in todo.revive

    def revived(self, node: NodeId) -> NodeState:
        """Return a node that onto deleted, as incoming has it."""
        state = self._incoming.after.get(node)
        if state is None:
            state = self._incoming.tree.nodes.node(self._onto.before[node].path)
        if state is None:
            raise InternalError("a node to be kept is not there")
        return state

    def on_onto(self, node: NodeId) -> str:
        """Return where onto has a node."""
        if node in self._onto.after or node in self._onto.before:
            return self._onto.path(node)
        # Onto did not touch it, so that it is where the base has it.
        before = self._incoming.before.get(node)
        if before is None:
            raise InternalError("a node that no side has was asked for")
        return before.path

    def from_onto(self, path: str, node: NodeId | None = None) -> str:
        """Return where a path of onto's ends up, as groups above it follow incoming's moves."""
        for above in iter_ancestors(path):
            other = self.moved.get(above)
            if above and other is not None and other != node:
                return join_key(self.of(other), path[len(above) + 1 :])
        return path

    def from_incoming(self, path: str) -> str:
        """Return where a path of incoming's ends up: below the same group as there, wherever that is now."""
        for above in iter_ancestors(path):
            state = self._incoming.tree.nodes.node(above) if above else None
            if state is not None:
                return join_key(self._of_state(state), path[len(above) + 1 :])
        return path

    def _of_state(self, state: NodeState) -> str:
        node = self.name(state.node_id)
        if node in self._incoming.after or node in self._onto.after or node in self._onto.before:
            return self.of(node)
        # Neither side touched it: only what is above it may have moved.
        return self.from_onto(state.path, node)
