"""Pending refs that moved out of memory: a session holds any number of them in bounded memory.

Once the refs in memory pass a bound, those of whole tiles are encoded as manifests, which are blobs of the session's
writer like its chunks, and only the blobs' slots are kept. A tile's manifests are layers below what it has in memory,
newest first, merged like those of a commit; where a tile consists of a single one and the base has nothing there, a
commit names that manifest as it is. Refs are spilled once their place can't change any more: a chunk of this session
whose pack is not sealed stays in memory. A manifest that is of no use any more is left where it is, as others may be
reading it. Below: `changes` and the writer; above: `arrays`, which sees both, `session` and `virtual`, which ask for
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.cache import CACHE
from vstore.blobs.once import check_may_wait
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.layering import IndexedLayer, count_to_merge, merge_manifests
from vstore.changes.pending import PendingKind, PendingTile
from vstore.changes.rows import ChunkRows, join, select, translate, with_deleted
from vstore.errors import CorruptionError
from vstore.format.envelope import BlobKind
from vstore.format.manifest import MAX_TILE_CHUNKS, Manifest, decode_manifest, encode_manifest
from vstore.format.page import Totals
from vstore.ids import Digest, PackId, blake3_digest
from vstore.worktree.contents import OwnBlobs

if TYPE_CHECKING:
    from vstore.worktree.arrays import ArrayState
    from vstore.worktree.tree import Worktree

MAX_PENDING_BYTES = 256 * 1024 * 1024
"""Refs in memory: about 4 million where writes are dense."""
FEWEST_REFS = 64
"""A tile with fewer refs in memory stays there: what is kept of a spilled one takes as much."""
_EDIT_BYTES = 2048
"""What one edit adds at most, but for an inline chunk: a ref in a tile of its own."""
_REF_BYTES = 70

Positions = npt.NDArray[np.uint16]


class SpilledLayer(NamedTuple):
    """One manifest of a tile: its blob in the session's writer, and what a tile pointer says of it.

    `packs` are those that its refs name.
    """

    slot: int
    length: int
    digest: Digest
    ref_count: int
    totals: Totals
    packs: frozenset[PackId]


@dataclass(frozen=True, slots=True)
class SpilledTile:
    """A tile's manifests, newest first. Where a bit of `unchanged` is set, what the base holds shows instead.

    `own` is where they are read from; a pickled one is given it anew.
    """

    own: OwnBlobs | None
    layers: tuple[SpilledLayer, ...] = ()
    unchanged: bytes = b""

    @property
    def memory_bytes(self) -> int:
        return 400 * len(self.layers) + len(self.unchanged)

    def is_unchanged(self, position: int) -> bool:
        """Tell whether what was written at `position` equals what the base holds."""
        return bool(self.unchanged) and bool(self.unchanged[position >> 3] & (0x80 >> (position & 7)))

    def find(self, position: int) -> tuple[IndexedLayer, int] | None:
        """Return the manifest and the row of the newest ref at `position`, which may be a tombstone."""
        for layer in self.layers:
            indexed = self._indexed(layer)
            row = indexed.find(position)
            if row is not None:
                return indexed, row
        return None

    def _indexed(self, layer: SpilledLayer) -> IndexedLayer:
        found: IndexedLayer | None = CACHE.get(("layer", layer.digest))
        if found is None:
            found = IndexedLayer(self._read(layer))
            CACHE.put(("layer", layer.digest), found, found.memory_bytes)
        return found

    def _read(self, layer: SpilledLayer) -> Manifest:
        assert self.own is not None, "a copy of spilled refs was read before it was given their blobs"
        check_may_wait()
        data = self.own.read(layer.slot, layer.length)
        if blake3_digest(data) != layer.digest:
            raise CorruptionError(
                f"the storage did not keep chunk references {layer.digest.hex()} of a session that is not committed "
                "yet. Nothing committed is affected; run the writes again in a new session."
            )
        return decode_manifest(data)

    def manifests(self, count: int | None = None) -> list[Manifest]:
        """Return the newest `count` manifests, or all."""
        return [self._read(layer) for layer in self.layers[:count]]

    def rows(self, dictionaries: Dictionaries) -> ChunkRows:
        """Return all refs, tombstones and unchanged ones among them, numbered by `dictionaries`."""
        merged = with_deleted(merge_manifests(self.manifests(), drop_deleted=False), dictionaries)
        same = np.flatnonzero(to_bits(self.unchanged)).astype(np.uint16)
        if not len(same):
            return merged
        unchanged = np.zeros(len(same), merged.rows.dtype)
        unchanged["kind"] = PendingKind.UNCHANGED
        return join([select(merged, ~np.isin(merged.positions, same)), ChunkRows(same, unchanged)])

    def on_top(
        self, layer: SpilledLayer | None, replaced: int, written: Positions, same: Positions
    ) -> SpilledTile:
        """Return these with a layer in place of the newest `replaced`; `same` are the positions newly unchanged.

        `written` are those at which the layer, or what is in memory by now, has anything else.
        """
        layers = (*(() if layer is None else (layer,)), *self.layers[replaced:])
        bits = to_bits(self.unchanged)
        bits[written] = False
        bits[same] = True
        return replace(self, layers=layers, unchanged=np.packbits(bits).tobytes() if bits.any() else b"")

    def __getstate__(self) -> tuple[Any, ...]:
        return (self.layers, self.unchanged)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        object.__setattr__(self, "own", None)
        object.__setattr__(self, "layers", state[0])
        object.__setattr__(self, "unchanged", state[1])


def to_bits(packed: bytes) -> npt.NDArray[np.bool_]:
    """Return a tile's marks, bool[16384], from a bit for each; none are set in no bytes."""
    if not packed:
        return np.zeros(MAX_TILE_CHUNKS, dtype=bool)
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8)).astype(bool)


# --- reading -------------------------------------------------------------------------------------------------


class Written(NamedTuple):
    """What a session wrote into a tile, at one moment: what was in memory, and what was spilled below it."""

    in_memory: ChunkRows
    spilled: SpilledTile | None

    @property
    def only_layer(self) -> SpilledLayer | None:
        """The one manifest that holds all, if there is nothing else."""
        spilled = self.spilled
        if spilled is None or len(self.in_memory) or len(spilled.layers) != 1 or spilled.unchanged:
            return None
        return spilled.layers[0]

    def rows(self, own: Dictionaries, dictionaries: Dictionaries) -> ChunkRows:
        """Return all refs, tombstones and unchanged ones among them, numbered by `dictionaries`.

        `own` are the session's, which number what is in memory.
        """
        above = translate(self.in_memory, own, dictionaries)
        if self.spilled is None:
            return above
        below = self.spilled.rows(dictionaries)
        return join([select(below, ~np.isin(below.positions, above.positions)), above])

    def positions(self) -> Positions:
        """Return all positions that were written, increasing."""
        if self.spilled is None:
            return self.in_memory.positions
        anyhow = Dictionaries()
        return self.rows(anyhow, anyhow).positions


def edits_in(tile: PendingTile) -> Written:
    """Return what a tile holds now. The caller holds the lock; reading what was spilled can be done without it."""
    return Written(ChunkRows(*tile.to_rows(), bytes(tile.inline)), spilled_of(tile))


def spilled_of(tile: PendingTile) -> SpilledTile | None:
    """Return what was spilled of a tile."""
    spilled = tile.spilled
    assert spilled is None or isinstance(spilled, SpilledTile)
    return spilled


def unspill(tile: PendingTile, dictionaries: Dictionaries) -> None:
    """Bring all refs of a tile back to memory, numbered by the session's dictionaries. The caller holds the lock."""
    every = edits_in(tile)
    if every.spilled is not None:
        content = every.rows(dictionaries, dictionaries)
        tile.spilled = None
        tile.keep(content.positions, content.rows, bytes(content.inline))


# --- spilling ------------------------------------------------------------------------------------------------


def make_room(tree: Worktree) -> None:
    """Spill if the refs in memory pass the bound, and say in `tree.room_until` after how many edits to look again.

    Takes the lock for moments only: what is encoded and written meanwhile may be edited, and then stays in memory. Does
    nothing while another thread is at it.
    """
    if not tree.spilling.acquire(blocking=False):
        return
    try:
        if _used_bytes(tree) > MAX_PENDING_BYTES * 7 // 8:
            spill(tree)
        # Where nothing more can be spilled, looking at each edit would take more time than it could save memory.
        room = max(MAX_PENDING_BYTES - _used_bytes(tree), MAX_PENDING_BYTES // 8)
        tree.room_until = tree.mutations + 1 + room // (_EDIT_BYTES + tree.inline_bytes)
    finally:
        tree.spilling.release()


def count_refs(tree: Worktree, count: int) -> None:
    """Say that one edit put so many refs into memory at once, as if they had been written one by one."""
    tree.room_until -= count * _REF_BYTES // (_EDIT_BYTES + tree.inline_bytes)


def _used_bytes(tree: Worktree) -> int:
    with tree.lock:
        return sum(tile.memory_bytes for _, _, tile in pending_tiles(tree))


def pending_tiles(tree: Worktree) -> Iterator[tuple[ArrayState, bytes, PendingTile]]:
    """Yield the edited tiles of all arrays, with their keys. The caller holds the lock."""
    for node in tree.nodes.drafts.values():
        if node is not None and node.array is not None:
            for key, tile in node.array.pending.items():
                yield node.array, key, tile


def spill(tree: Worktree, *, fewest_refs: int = FEWEST_REFS) -> None:
    """Move what can be moved out of memory, of tiles with at least so many refs there."""
    with tree.lock:
        tiles = list(pending_tiles(tree))
    for array, key, tile in tiles:
        if len(tile) >= fewest_refs:
            _spill_tile(tree, array, key, tile)


def spill_array(tree: Worktree, array: ArrayState) -> None:
    """Do the same for one array, which need not be part of the worktree yet."""
    for key, tile in list(array.pending.items()):
        if len(tile) >= FEWEST_REFS:
            _spill_tile(tree, array, key, tile)


def _spill_tile(tree: Worktree, array: ArrayState, key: bytes, tile: PendingTile) -> None:
    # Imported late: encoding knows of spilling.
    from vstore.worktree.encode import pending_manifest

    with tree.lock:
        seen = edits_in(tile)
    positions, rows, inline = seen.in_memory.positions, seen.in_memory.rows, seen.in_memory.inline
    own = rows["kind"] == PendingKind.OWN
    taken = ~own
    taken[own] = tree.writer.slots.are_sealed(rows["at"][own])
    same = taken & (rows["kind"] == PendingKind.UNCHANGED)
    refs = taken & ~same
    if not taken.any():
        return
    new = pending_manifest(positions[refs], rows[refs], inline, tree.dictionaries, tree.writer)
    layer, replaced = _put(tree, array, key, seen.spilled, new)
    with tree.lock:
        now = edits_in(tile)
        if _is_current(tree, array, key, tile) and _are_equal(now, seen):
            tile.keep(positions[~taken], rows[~taken])
            _stack(tree, tile, layer, replaced, positions[refs], positions[same])


def spill_manifest(tree: Worktree, path: str, array: ArrayState, key: bytes, new: Manifest) -> None:
    """Write live refs, none of them to blobs of the session, into a tile as a manifest, without rows in memory."""
    with tree.lock:
        tile = array.pending.get(key)
        before = None if tile is None else spilled_of(tile)
    layer, replaced = _put(tree, array, key, before, new)
    with tree.lock:
        tree.begin_chunk_edits(path, array)
        tile = array.tile_for_edit(key)
        if tile.spilled is not before:
            # Another thread spilled it meanwhile. What was not merged is right on top of anything.
            layer, replaced = _put_layer(tree, new), 0
        positions, rows = tile.to_rows()
        over = np.isin(positions, new.positions)
        if over.any():
            tree.writer.release_many(rows["at"][over & (rows["kind"] == PendingKind.OWN)])
            tile.keep(positions[~over], rows[~over], bytes(tile.inline))
        _stack(tree, tile, layer, replaced, new.positions, np.zeros(0, np.uint16))


def _put(
    tree: Worktree, array: ArrayState, key: bytes, below: SpilledTile | None, new: Manifest
) -> tuple[SpilledLayer | None, int]:
    """Store a manifest, merged with layers of the tile where that is due; return its layer and how many it replaces."""
    layers = () if below is None else below.layers
    if len(new) == 0:
        return None, 0
    replaced = count_to_merge([len(new), *(layer.ref_count for layer in layers)]) - 1
    older = [] if below is None or not replaced else below.manifests(replaced)
    # A tombstone is only worth keeping where something lies below it.
    is_last = replaced == len(layers) and array.base_pointer(key) is None
    merged = merge_manifests([new, *older], drop_deleted=is_last)
    return (_put_layer(tree, merged) if len(merged) else None), replaced


def _put_layer(tree: Worktree, manifest: Manifest) -> SpilledLayer:
    data = encode_manifest(manifest)
    digest = blake3_digest(data)
    slot = tree.writer.put(data, digest, BlobKind.MANIFEST)
    totals = Totals(manifest.live_count, manifest.live_bytes)
    return SpilledLayer(slot, len(data), digest, len(manifest), totals, frozenset(manifest.packs))


def _is_current(tree: Worktree, array: ArrayState, key: bytes, tile: PendingTile) -> bool:
    return tree.closed is None and array.pending.get(key) is tile


def _are_equal(one: Written, other: Written) -> bool:
    return (
        one.spilled is other.spilled
        and np.array_equal(one.in_memory.positions, other.in_memory.positions)
        and bool((one.in_memory.rows == other.in_memory.rows).all())
        and one.in_memory.inline == other.in_memory.inline
    )


def _stack(
    tree: Worktree,
    tile: PendingTile,
    layer: SpilledLayer | None,
    replaced: int,
    refs: Positions,
    same: Positions,
) -> None:
    """Put a layer on what was spilled of a tile, and let go of those that it replaces. The caller holds the lock."""
    below = spilled_of(tile) or SpilledTile(tree.writer)
    tile.spilled = below.on_top(layer, replaced, refs, same)
