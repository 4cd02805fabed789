"""What merging means, said once more: a hierarchy as a dict of nodes by id, and its three-way merge.

Written from docs/merging.md, "Rules", and not from vstore's merge code: nodes have a parent and
a name instead of paths, so that a move of a group is one change, and chunks are a dict. Where a solver decides about
the shape of the hierarchy itself, `Unsure` is raised: several results are right then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

Index: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """A group or array. `attributes` are pairs, as their order is part of a document's bytes.

    `born` is an array's shape when it was made, on which depends how vstore tiles it; it is not compared.
    """

    parent: str | None
    name: str
    is_array: bool = False
    attributes: tuple[tuple[str, Any], ...] = ()
    dtype: str = ""
    shape: Index = ()
    chunks: Mapping[Index, bytes] = field(default_factory=dict)
    born: Index = field(default=(), compare=False)

    @property
    def place(self) -> tuple[str | None, str]:
        return self.parent, self.name

    @property
    def document(self) -> tuple[Any, ...]:
        return self.attributes, self.dtype, self.shape


State: TypeAlias = Mapping[str, Node]
"""A hierarchy: nodes by id, the root among them."""


class Clash(Exception):
    """Both sides changed the same in different ways."""


class Unsure(Exception):
    """A solver was asked about more than single values: the model does not say what comes out."""


def path_of(state: State, node: str) -> str:
    names = []
    seen = set()
    current: str | None = node
    while current is not None and state[current].parent is not None:
        assert current not in seen, "a node lies in itself"
        seen.add(current)
        names.append(state[current].name)
        current = state[current].parent
    return "/".join(reversed(names))


def paths_of(state: State) -> dict[str, str]:
    """Return the node ids by path, sorted by path."""
    return dict(sorted((path_of(state, node), node) for node in state))


def inside(index: Index, shape: Index) -> bool:
    return all(i < size for i, size in zip(index, shape, strict=True))


class Merge:
    """Puts what changed from `base` to `incoming` onto `onto`.

    `prefer` says whose side holds in conflicts: "onto", "incoming", None for neither, or "clash" for a value that
    equals neither, which is what a merged merge base has.
    """

    def __init__(self, base: State, onto: State, incoming: State, prefer: str | None = None) -> None:
        self.base, self.onto, self.incoming, self.prefer = base, onto, incoming, prefer
        self.aliases: dict[str, str] = {}
        self.settled = 0

    def run(self) -> dict[str, Node]:
        result: dict[str, Node] = {}
        for node in [*self.onto, *(node for node in self.incoming if node not in self.onto)]:
            merged = self.merge_existence(node)
            if merged is not None:
                result[node] = merged
        self.merge_twins(result)
        self.check(result)
        return result

    def decide(self, one: Any, other: Any) -> Any:
        """Return the value that holds where both sides changed one thing: `one` is onto's."""
        self.settled += 1
        if self.prefer is None:
            raise Clash
        if self.prefer == "clash":
            raise Unsure
        return one if self.prefer == "onto" else other

    def fail(self) -> None:
        raise Clash if self.prefer is None else Unsure

    # --- nodes -----------------------------------------------------------------------------------------------

    def merge_existence(self, node: str) -> Node | None:
        base, onto, incoming = self.base.get(node), self.onto.get(node), self.incoming.get(node)
        if base is None:
            if onto is not None and incoming is not None:
                # Both sides got it from somewhere, but their common ancestor had it not: by cherry-picks.
                return self.merge_node(None, onto, incoming)
            return onto or incoming
        if onto is not None and incoming is not None:
            return self.merge_node(base, onto, incoming)
        if onto is None:
            return None if incoming is None or incoming == base else self.decide(None, incoming)
        return None if onto == base else self.decide(onto, None)

    def merge_node(self, base: Node | None, onto: Node, incoming: Node) -> Node:
        place = self.three(None if base is None else base.place, onto.place, incoming.place)
        return replace(self.merge_content(base, onto, incoming), parent=place[0], name=place[1])

    def three(self, base: Any, onto: Any, incoming: Any) -> Any:
        if onto == incoming or incoming == base:
            return onto
        return incoming if onto == base else self.decide(onto, incoming)

    def merge_twins(self, result: dict[str, Node]) -> None:
        """Nodes of one kind that both sides made at one place are one node, with onto's id."""
        made = [node for node in self.incoming if node not in self.base and node not in self.onto]
        for node in sorted(made, key=lambda node: path_of(self.incoming, node).count("/")):
            if node not in result:
                continue
            mine = result[node]
            mine = result[node] = replace(mine, parent=self.aliases.get(mine.parent or "", mine.parent))
            for other, twin in list(result.items()):
                if other == node or twin.place != mine.place:
                    continue
                if other not in self.onto or other in self.base or other in self.incoming:
                    self.fail()
                if (twin.is_array, twin.dtype, len(twin.shape)) != (
                    mine.is_array,
                    mine.dtype,
                    len(mine.shape),
                ):
                    self.fail()
                if twin.born != mine.born:
                    # vstore tiles them differently and can't compare their chunks: stricter than need be.
                    self.fail()
                if self.prefer == "clash":
                    raise Unsure
                result[other] = self.merge_content(None, twin, mine)
                self.aliases[node] = other
                del result[node]
        for node, state in result.items():
            if state.parent in self.aliases:
                result[node] = replace(state, parent=self.aliases[state.parent])

    def check(self, result: Mapping[str, Node]) -> None:
        places = [node.place for node in result.values()]
        if len(places) != len(set(places)):
            self.fail()
        for state in result.values():
            if state.parent is not None and (state.parent not in result or result[state.parent].is_array):
                self.fail()
        for node in result:
            seen = {node}
            parent = result[node].parent
            while parent is not None:
                if parent in seen:
                    self.fail()
                seen.add(parent)
                parent = result[parent].parent

    # --- one node --------------------------------------------------------------------------------------------

    def merge_content(self, base: Node | None, onto: Node, incoming: Node) -> Node:
        if onto.dtype != incoming.dtype:
            # What chunks mean was changed.
            if base is None:
                return self.decide(onto, incoming)  # type: ignore[no-any-return]
            wrote = onto.chunks != base.chunks, incoming.chunks != base.chunks
            if (onto.dtype != base.dtype and wrote[1]) or (incoming.dtype != base.dtype and wrote[0]):
                return self.decide(onto, incoming)  # type: ignore[no-any-return]
        merged = self.merge_document(base, onto, incoming)
        if not onto.is_array:
            return merged
        if base is not None:
            for side in (onto, incoming):
                for index, data in side.chunks.items():
                    if base.chunks.get(index) != data and not inside(index, merged.shape):
                        # The other side cut off what this one wrote.
                        self.fail()
        chunks: dict[Index, bytes] = {}
        old: Mapping[Index, bytes] = {} if base is None else base.chunks
        for index in {*onto.chunks, *incoming.chunks}:
            values = old.get(index), onto.chunks.get(index), incoming.chunks.get(index)
            chunk = self.merge_chunk(*values)
            if chunk is not None and inside(index, merged.shape):
                chunks[index] = chunk
        return replace(merged, chunks=chunks)

    def merge_chunk(self, base: bytes | None, onto: bytes | None, incoming: bytes | None) -> bytes | None:
        if self.prefer == "clash" and len({base, onto, incoming}) == 3:
            return b"equals nothing"
        merged: bytes | None = self.three(base, onto, incoming)
        return merged

    def merge_document(self, base: Node | None, onto: Node, incoming: Node) -> Node:
        if onto.document == incoming.document or (base is not None and base.document == incoming.document):
            return onto
        if base is not None and base.document == onto.document:
            return replace(onto, attributes=incoming.attributes, dtype=incoming.dtype, shape=incoming.shape)
        attributes = self.merge_attributes(
            dict(base.attributes) if base is not None else {},
            dict(onto.attributes),
            dict(incoming.attributes),
        )
        dtype = self.three(None if base is None else base.dtype, onto.dtype, incoming.dtype)
        shape = self.merge_shape(None if base is None else base.shape, onto.shape, incoming.shape)
        for side in (onto, incoming):
            if (attributes, dtype, shape) == (dict(side.attributes), side.dtype, side.shape):
                # Spelt as that side does.
                attributes = dict(side.attributes)
                break
        return replace(onto, attributes=tuple(attributes.items()), dtype=dtype, shape=shape)

    def merge_attributes(
        self, base: dict[str, Any], onto: dict[str, Any], incoming: dict[str, Any]
    ) -> dict[str, Any]:
        if onto == incoming or incoming == base:
            return onto
        if onto == base:
            return incoming
        merged = {}
        for key in {**base, **onto, **incoming}:
            values = base.get(key), onto.get(key), incoming.get(key)
            if self.prefer == "clash" and len(set(values)) == 3:
                merged[key] = -1
                continue
            value = self.three(*values)
            if value is not None:
                merged[key] = value
        return merged

    def merge_shape(self, base: Index | None, onto: Index, incoming: Index) -> Index:
        if base is None or onto == incoming:
            return self.three(base, onto, incoming)  # type: ignore[no-any-return]
        found = []
        for old, one, other in zip(base, onto, incoming, strict=True):
            if old != one and old != other and one != other:
                # Taken whole from one side.
                return self.decide(onto, incoming)  # type: ignore[no-any-return]
            found.append(other if one == old else one)
        return tuple(found)


@dataclass(frozen=True)
class Version:
    """A snapshot: its parents and its hierarchy; `order` counts snapshots."""

    parents: tuple[str, ...]
    state: State
    order: int


class History:
    """Snapshots by id and how they descend from each other."""

    def __init__(self) -> None:
        self.versions: dict[str, Version] = {}

    def __getitem__(self, snapshot: str) -> Version:
        return self.versions[snapshot]

    def add(self, snapshot: str, parents: Iterable[str], state: State) -> None:
        self.versions[snapshot] = Version(tuple(parents), state, len(self.versions))

    def ancestors(self, snapshot: str) -> set[str]:
        """Return a snapshot and all that it descends from."""
        found: set[str] = set()
        pending = [snapshot]
        while pending:
            current = pending.pop()
            if current not in found:
                found.add(current)
                pending += self[current].parents
        return found

    def bases(self, one: str, other: str) -> list[str]:
        """Return the common ancestors of which none is another's ancestor, newest first."""
        common = self.ancestors(one) & self.ancestors(other)
        best = common - {a for c in common for a in self.ancestors(c) - {c}}
        return sorted(best, key=lambda snapshot: -self[snapshot].order)

    def base_state(self, one: str, other: str) -> State:
        """Return what two snapshots have in common; several bases are merged."""
        first, *more = self.bases(one, other)
        state = self[first].state
        for base in more:
            state = Merge(self.base_state(first, base), state, self[base].state, "clash").run()
        return state
