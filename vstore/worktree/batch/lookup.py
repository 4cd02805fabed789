"""Where the chunks of a batch are: in packs, by columns; elsewhere as a source, or nowhere.

Below a session's pending rows, which go first, each layer of a base tile is searched for all positions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.changes.layering import IndexedLayer, LayeredTile
from vstore.changes.pending import PendingKind, PendingTile
from vstore.format.manifest import ChunkKind
from vstore.ids import DIGEST_SIZE, PackId
from vstore.worktree.arrays import ArrayState, ref_source
from vstore.worktree.batch.keys import Located, TilePart
from vstore.worktree.contents import ChunkSource
from vstore.worktree.tree import Worktree


@dataclass(slots=True)
class Stored:
    """Chunks in packs, found so far: columns by chunk, and where the mark of what was verified is."""

    packs: dict[PackId, int] = field(default_factory=dict)
    columns: list[tuple[npt.NDArray[Any], ...]] = field(default_factory=list)
    marks: list[tuple[bytearray | None, npt.NDArray[np.int64]]] = field(default_factory=list)

    def add_layer(self, layer: IndexedLayer, rows: npt.NDArray[np.intp], at: npt.NDArray[np.int64]) -> None:
        """Add the chunks in rows `at` of a layer's manifest, which are `rows` of the batch."""
        manifest = layer.manifest
        numbers = np.array(
            [self.packs.setdefault(pack, len(self.packs)) for pack in manifest.packs], np.uint32
        )
        verified = np.array(layer.verified, dtype=np.uint8)[at].astype(bool)
        sources = numbers[manifest.sources[at]]
        self.columns.append(
            (rows, sources, manifest.offsets[at], manifest.lengths[at], manifest.digests[at], verified)
        )
        self.marks.append((layer.verified, at))

    def add_pending(
        self, rows: npt.NDArray[np.intp], found: npt.NDArray[Any], packs: Sequence[PackId]
    ) -> None:
        """Add pending refs of sealed packs."""
        numbers = [
            self.packs.setdefault(packs[source], len(self.packs)) for source in found["source"].tolist()
        ]
        none = np.zeros(len(rows), dtype=bool)
        sources = np.array(numbers, dtype=np.uint32)
        self.columns.append((rows, sources, found["at"], found["length"], found["digest"], none))
        self.marks.append((None, np.zeros(len(rows), np.int64)))


class Found(NamedTuple):
    """Where the chunks of a batch are: in packs by columns, elsewhere as a source, or nowhere (None)."""

    others: list[tuple[int, ChunkSource | None]]
    stored: Stored


def find(tree: Worktree, located: Located) -> Found:
    """Return where the chunks are; may wait for metadata."""
    others: list[tuple[int, ChunkSource | None]] = []
    stored = Stored()
    for part in located.parts:
        _find_in_tile(tree, located, part, others, stored)
    return Found(others, stored)


def _find_in_tile(
    tree: Worktree,
    located: Located,
    part: TilePart,
    others: list[tuple[int, ChunkSource | None]],
    stored: Stored,
) -> None:
    array = located.chunk.array
    with tree.lock:
        pending = array.pending.get(part.key)
        chunks = None
        if pending is not None and pending.spilled is not None:
            chunks = [array.pending_chunk(part.key, at, tree.dictionaries) for at in part.positions.tolist()]
        else:
            shows = base_shows(array, located.indices[part.rows])
            if pending is not None:
                _take_pending(tree, pending, part, shows, others, stored)
            else:
                others += [(row, None) for row in part.rows[~shows].tolist()]
    if chunks is not None:
        # What a session wrote so long ago that it was spilled is hardly ever read back by it.
        for row, at, chunk in zip(part.rows.tolist(), part.positions.tolist(), chunks, strict=True):
            others.append((row, array.resolve(part.key, at, chunk)))
    elif shows.any():
        _find_in_base(array, part, np.flatnonzero(shows), others, stored)


def _take_pending(
    tree: Worktree,
    pending: PendingTile,
    part: TilePart,
    shows: npt.NDArray[np.bool_],
    others: list[tuple[int, ChunkSource | None]],
    stored: Stored,
) -> None:
    """Take what the session wrote; `shows`, where the base shows through, is brought up to date by it."""
    written, rows = pending.rows_at(part.positions)
    kinds = rows["kind"]
    shows[written] = kinds == PendingKind.UNCHANGED
    packed = kinds == PendingKind.STORED
    stored.add_pending(part.rows[written[packed]], rows[packed], tree.dictionaries.packs.names)
    for at in np.flatnonzero(~packed & (kinds != PendingKind.UNCHANGED)).tolist():
        row = int(part.rows[written[at]])
        ref = pending.get(int(part.positions[written[at]]))
        assert ref is not None, "rows_at found it under the same lock"
        others.append((row, ref_source(ref, pending.inline, tree.dictionaries)))
    hidden = np.ones(len(part.rows), dtype=bool)
    hidden[written] = False
    others += [(row, None) for row in part.rows[hidden & ~shows].tolist()]


def _find_in_base(
    array: ArrayState,
    part: TilePart,
    shown: npt.NDArray[np.intp],
    others: list[tuple[int, ChunkSource | None]],
    stored: Stored,
) -> None:
    tile = array.base_tile(part.key)
    refs = base_refs(tile, part.positions[shown])
    others += [(row, None) for row in part.rows[shown[refs.layer < 0]].tolist()]
    for number, layer in enumerate(refs.layers):
        here = np.flatnonzero(refs.layer == number)
        at = refs.row[here]
        packed = layer.manifest.kinds[at] == ChunkKind.STORED
        if packed.any():
            stored.add_layer(layer, part.rows[shown[here[packed]]], at[packed])
        for index in here[~packed].tolist():
            position = int(part.positions[shown[index]])
            others.append((int(part.rows[shown[index]]), array.find_base(part.key, position)))


def base_shows(array: ArrayState, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell at which indices the base's chunks show where the session wrote nothing. The caller holds the lock."""
    if array.base is None or array.cleared:
        return np.zeros(len(indices), dtype=bool)
    if array.limit is None:
        return np.ones(len(indices), dtype=bool)
    inside: npt.NDArray[np.bool_] = np.all(indices < np.array(array.limit, dtype=np.int64), axis=1)
    return inside


class BaseRefs(NamedTuple):
    """What a base tile holds at some positions: the layer's number (-1: nothing), and the row in its manifest."""

    layers: Sequence[IndexedLayer]
    layer: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]

    def digests(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """Return the digests of these; zeros where there is no stored chunk."""
        found = np.zeros((len(rows), DIGEST_SIZE), dtype=np.uint8)
        for number, layer in enumerate(self.layers):
            here = np.flatnonzero(self.layer[rows] == number)
            at = self.row[rows[here]]
            stored = layer.manifest.kinds[at] == ChunkKind.STORED
            found[here[stored]] = layer.manifest.digests[at[stored]]
        return found

    def inline(self, row: int) -> bytes | None:
        """Return the bytes of an inline chunk."""
        if self.layer[row] < 0:
            return None
        manifest = self.layers[int(self.layer[row])].manifest
        at = int(self.row[row])
        if int(manifest.kinds[at]) != ChunkKind.INLINE:
            return None
        start = int(manifest.offsets[at])
        return manifest.inline[start : start + int(manifest.lengths[at])]


def base_refs(tile: LayeredTile | None, positions: npt.NDArray[np.uint16]) -> BaseRefs:
    """Return what a base tile holds at these positions."""
    found = np.full(len(positions), -1, dtype=np.int64)
    rows = np.zeros(len(positions), dtype=np.int64)
    layers = [] if tile is None else list(tile.layers)
    deleted = np.zeros(len(positions), dtype=bool)
    for number, layer in enumerate(layers):
        manifest = layer.manifest
        if not len(manifest):
            continue
        at = np.minimum(np.searchsorted(manifest.positions, positions), len(manifest) - 1)
        hit = (manifest.positions[at] == positions) & (found < 0) & ~deleted
        gone = manifest.kinds[at] == ChunkKind.DELETED
        deleted |= hit & gone
        hit &= ~gone
        found[hit], rows[hit] = number, at[hit]
    return BaseRefs(layers, found, rows)
