"""What a merge is, said in another way than the code says it: a hierarchy as a table of facts.

A fact's key is (node, kind of fact, name). Nodes have names of their own that no move changes, and "place" is the fact
of where one is: (its parent group, its name there), None if it is deleted. What a side did is the facts that it
changed, and a merge is both sides' facts, if none was changed in two ways and what comes out can be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from vstore.merge.conflicts import ConflictType

Key: TypeAlias = tuple[str, str, Any]
Changes: TypeAlias = Mapping[Key, Any]
Facts: TypeAlias = dict[Key, Any]
Hierarchy: TypeAlias = dict[str, Any]
"""Nodes by path, each its metadata and, by number, its chunks' bytes; plain values by key."""

CELLS, CHUNK = 8, 2
ATTRIBUTES = {"units": "K", "kept": [1, 2]}
DTYPES = {"u1": "uint8", "u2": "uint16"}
MEANING = ("data_type", "codecs", "chunk_grid")


def regular_grid(chunk: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": [chunk]}}


def group_changes(node: str, place: tuple[str, str], attributes: Mapping[str, Any] | None = None) -> Facts:
    facts: Facts = {(node, "place", None): place, (node, "kind", None): "group"}
    return facts | {(node, "attribute", name): value for name, value in (attributes or {}).items()}


def array_changes(
    node: str, place: tuple[str, str], dtype: str, cells: int, attributes: Mapping[str, Any]
) -> Facts:
    codecs: list[Any] = [{"name": "bytes"}]
    if dtype != "u1":
        codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    facts: Facts = {(node, "place", None): place, (node, "kind", None): "array"}
    facts |= {
        (node, "field", "shape"): [cells],
        (node, "field", "data_type"): DTYPES[dtype],
        (node, "field", "chunk_grid"): regular_grid(CHUNK),
        (node, "field", "fill_value"): 0,
        (node, "field", "codecs"): codecs,
    }
    return facts | {(node, "attribute", name): value for name, value in attributes.items()}


def _base() -> Facts:
    facts: Facts = {("", "place", None): ("", ""), ("", "kind", None): "group"}
    facts |= group_changes("g", ("", "g"), {"title": "base", "kept": 1})
    facts |= group_changes("other", ("", "other"))
    for node, parent in (("a", "g"), ("b", "g"), ("c", "other")):
        facts |= array_changes(node, (parent, node), "u1", CELLS, ATTRIBUTES)
        facts |= {(node, "chunk", n): bytes([2 * n + 1, 2 * n + 2]) for n in range(CELLS // CHUNK)}
    return facts | {("notes", "value", None): b"base"}


BASE = _base()


# --- merging -------------------------------------------------------------------------------------------------


def merged(ours: Changes, theirs: Changes) -> Facts:
    """Return the base with both sides' changes; where both changed one fact, theirs holds."""
    return {**BASE, **ours, **theirs}


def winning(winner: Changes, loser: Changes) -> Facts:
    """Return the base with both sides' changes, where one side holds for all that both changed.

    A shape takes along what the other side did to the chunks that it cuts off, or that the other one cut off.
    """
    facts = {**BASE, **loser, **winner}
    for (node, kind, name), shape in winner.items():
        if (kind, name) == ("field", "shape") and (node, "field", "shape") in loser:
            kept = min(shape[0], loser[node, "field", "shape"][0])
            for key in loser:
                if key[:2] == (node, "chunk") and key[2] * CHUNK >= kept:
                    facts[key] = winner.get(key, BASE.get(key))
    return facts


def find_conflicts(ours: Changes, theirs: Changes) -> set[tuple[str, str]]:
    """Return each conflict's letter (see `cases.LETTERS`) and node; none if the two go together."""
    found: set[tuple[str, str]] = set()
    gone = {side: _deleted(changes) for side, changes in (("ours", ours), ("theirs", theirs))}
    for node in gone["ours"] ^ gone["theirs"]:
        updating = theirs if node in gone["ours"] else ours
        if any(key[0] == node for key in updating):
            found.add(("D", node))
    deleted = gone["ours"] | gone["theirs"]
    redefined = {key[0] for key in _redefined(ours, theirs)} - deleted
    found |= {("X", node) for node in redefined}
    for key in ours.keys() & theirs.keys():
        if key[0] not in deleted | redefined and ours[key] != theirs[key]:
            found.add((_letter(key, ours, theirs), key[0]))
    facts = {key: value for key, value in merged(ours, theirs).items() if key[0] not in deleted}
    if not found & {("V", key[0]) for key in facts}:
        found |= _impossible(facts)
    return found


def _deleted(changes: Changes) -> set[str]:
    return {key[0] for key, value in changes.items() if key[1] == "place" and value is None}


def _redefined(ours: Changes, theirs: Changes) -> set[Key]:
    """Return the changes of what chunks mean where the other side wrote chunks."""
    return {
        key
        for one, other in ((ours, theirs), (theirs, ours))
        for key, value in one.items()
        if (key in BASE and key[1] == "field" and key[2] in MEANING and other.get(key) != value)
        and any(changed[:2] == (key[0], "chunk") for changed in other)
    }


def _letter(key: Key, ours: Changes, theirs: Changes) -> str:
    shape = (key[0], "field", "shape")
    if key[1] == "chunk":
        if shape in ours and shape in theirs and ours[shape] != theirs[shape]:
            return "M"
        is_cut = any(side.get(shape, [CELLS])[0] <= key[2] * CHUNK for side in (ours, theirs))
        return "X" if is_cut else "C"
    return {"place": "V", "value": "K"}.get(key[1], "M")


def _impossible(facts: Facts) -> set[tuple[str, str]]:
    """Return orphans, places that two nodes share, and cycles."""
    places = {key[0]: value for key, value in facts.items() if key[1] == "place" and key[0]}
    found = set()
    for node, place in places.items():
        if facts.get((place[0], "kind", None)) != "group":
            found.add(("P", node))
        if any(other != node and places[other] == place for other in places):
            found.add(("N", node))
        above, seen = place[0], {node}
        while above in places and above not in seen:
            seen.add(above)
            above = places[above][0]
        if above in seen:
            found.add(("V", node))
    return found


def conflict_types(ours: Changes, theirs: Changes) -> set[ConflictType]:
    """Return the types of the conflicts that our side is told of."""
    return {_conflict_type(letter, node, ours, theirs) for letter, node in find_conflicts(ours, theirs)}


_TYPES = {
    "N": ConflictType.NewNodeConflictsWithExistingNode,
    "P": ConflictType.NewNodeInInvalidGroup,
    "M": ConflictType.ZarrMetadataDoubleUpdate,
    "C": ConflictType.ChunkDoubleUpdate,
    "X": ConflictType.ChunksUpdatedInUpdatedArray,
    "V": ConflictType.MoveOperationCannotBeRebased,
    "K": ConflictType.ValueDoubleUpdate,
}


def _conflict_type(letter: str, node: str, ours: Changes, theirs: Changes) -> ConflictType:
    if letter != "D":
        return _TYPES[letter]
    is_array = BASE[node, "kind", None] == "array"
    if node in _deleted(ours):
        return ConflictType.DeleteOfUpdatedArray if is_array else ConflictType.DeleteOfUpdatedGroup
    kinds = {key[1] for key in ours if key[0] == node}
    if kinds & {"attribute", "field"}:
        if is_array:
            return ConflictType.ZarrMetadataUpdateOfDeletedArray
        return ConflictType.ZarrMetadataUpdateOfDeletedGroup
    if "chunk" in kinds:
        return ConflictType.ChunksUpdatedInDeletedArray
    return ConflictType.MoveOperationCannotBeRebased


# --- how it looks --------------------------------------------------------------------------------------------


def render(facts: Facts) -> Hierarchy:
    """Return what a hierarchy of these facts reads as."""
    found: Hierarchy = {}
    nodes = {key[0] for key, value in facts.items() if key[1] == "place" and value is not None}
    for node in nodes:
        mine = {key: value for key, value in facts.items() if key[0] == node}
        metadata = {key[2]: value for key, value in mine.items() if key[1] == "field"}
        attributes = {key[2]: value for key, value in mine.items() if key[1] == "attribute"}
        chunks = {key[2]: value for key, value in mine.items() if key[1] == "chunk" and value is not None}
        found[_path(facts, node)] = {
            "node_type": mine[node, "kind", None],
            **metadata,
            "attributes": attributes,
            "chunks": chunks,
        }
    if facts["notes", "value", None] is not None:
        found[f"{_path(facts, 'g')}/notes"] = facts["notes", "value", None]
    return found


def _path(facts: Facts, node: str) -> str:
    parts = []
    while node:
        parent, name = facts[node, "place", None]
        parts.append(name)
        node = parent
    return "/".join(reversed(parts))


def read(keys: Mapping[str, bytes]) -> Hierarchy:
    """Return what a store's keys and values say, in the same form."""
    found: Hierarchy = {}
    documents = {
        key.removesuffix("zarr.json").rstrip("/"): value for key, value in keys.items() if _is_document(key)
    }
    for path, document in documents.items():
        fields = json.loads(document)
        kept = ("node_type", "shape", "data_type", "chunk_grid", "fill_value", "codecs", "dimension_names")
        found[path] = {name: fields[name] for name in kept if name in fields}
        found[path] |= {"attributes": fields.get("attributes", {}), "chunks": {}}
    for key, value in keys.items():
        array, is_chunk, number = key.rpartition("/c/")
        if _is_document(key):
            continue
        if is_chunk and array in documents:
            found[array]["chunks"][int(number)] = value
        else:
            found[key] = value
    return found


def _is_document(key: str) -> bool:
    return key.rpartition("/")[2] == "zarr.json"


def orphans(hierarchy: Hierarchy) -> list[str]:
    """Return the nodes whose parent is no group."""
    groups = {path for path, node in hierarchy.items() if _kind(node) == "group"}
    return [path for path, node in hierarchy.items() if _kind(node) and path.rpartition("/")[0] not in groups]


def _kind(node: Any) -> str:
    return node["node_type"] if isinstance(node, dict) else ""


def cells(node: Mapping[str, Any]) -> Any:
    """Return the cells of an array of `read`."""
    (size,) = node["shape"]
    data = [node["chunks"].get(n) for n in range(-(-size // CHUNK))]
    dtype = np.dtype(node["data_type"])
    filled = np.full(CHUNK, node["fill_value"], dtype)
    return np.concatenate([filled if chunk is None else np.frombuffer(chunk, dtype) for chunk in data])[:size]
