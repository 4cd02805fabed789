"""Turns a worktree's edits into metadata blobs: manifests, pages, and the new root of the node tree.

Only what differs from the base is written: a tile whose refs all equal the base's keeps its pointer, a node whose
entry is the same keeps its page. The writer must have placed all chunk blobs in packs before (`BlobWriter.flush`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from vstore.blobs.metadata import MetadataBatch
from vstore.blobs.writer import BlobWriter
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.few import (
    DELETED_REF,
    FEW_REFS,
    Ref,
    Refs,
    is_same,
    manifest_of,
    merge_few,
    pending_refs,
    ref_at,
    refs_of,
)
from vstore.changes.layering import (
    MAX_UNMERGED_LAYERS,
    LayeredTile,
    count_to_merge,
    merge_manifests,
    same_refs,
    select_rows,
)
from vstore.changes.pending import PendingKind
from vstore.changes.rows import NO_ROWS, ChunkRows
from vstore.format.envelope import BlobKind
from vstore.format.manifest import ChunkKind, Manifest, encode_manifest
from vstore.format.node import (
    MAX_LAYER_INLINE_BYTES,
    Layer,
    Node,
    TilePointer,
    Tiles,
    encode_node,
    encode_pointer,
    encode_value,
    measure_node,
    measure_pointer,
    node_key,
    tile_of,
    value_key,
)
from vstore.format.node import Content as StoredContent
from vstore.format.page import Child, Entry, Totals
from vstore.format.refs import BlobRef
from vstore.ids import PackId
from vstore.tree import get as tree_get
from vstore.tree.writing import Change, TreePolicy, update
from vstore.worktree.arrays import ArrayState, remember_layer, resolve_tile, tile_is_cached
from vstore.worktree.contents import Content, OwnBlob
from vstore.worktree.nodes import NodeState
from vstore.worktree.spilling import SpilledLayer
from vstore.worktree.tree import Worktree

NODE_POLICY = TreePolicy(leaf_bytes=16 * 1024, leaf_entries=4096, measure=measure_node)
TILE_POLICY = TreePolicy(leaf_bytes=4 * 1024, leaf_entries=64, measure=measure_pointer)
MAX_TILES_IN_NODE = 4
"""More tile pointers than this go to a page tree of their own."""
_REMEMBERED_REFS = 262_144
"""How many refs of a commit stay in the cache, about 20 MiB: a large commit must not fill it with what none reads."""


class EncodedTree(NamedTuple):
    """The new root of the node tree, whether it differs from the base's, and the packs that the new parts name."""

    root: Child | None
    is_changed: bool
    packs: frozenset[PackId]


def encode_worktree(tree: Worktree, batch: MetadataBatch) -> EncodedTree:
    """Write the metadata blobs of a worktree's edits into `batch`. The caller holds the worktree's lock."""
    return _Encoder(tree, batch).encode()


class _Encoder:
    def __init__(self, tree: Worktree, batch: MetadataBatch) -> None:
        self._tree = tree
        self._batch = batch
        self._writer: BlobWriter = tree.writer
        self._packs: set[PackId] = set()
        self._refs_to_remember = _REMEMBERED_REFS

    def encode(self) -> EncodedTree:
        changes = sorted((*self._node_changes(), *self._value_changes()), key=lambda change: change.key)
        base = self._tree.nodes.root
        root = update(self._tree.blobs, self._batch, base, changes, NODE_POLICY)
        if self._batch.length:
            self._packs.add(self._batch.pack.pack)
        return EncodedTree(root, bool(changes), frozenset(self._packs))

    # --- nodes and values ------------------------------------------------------------------------------------

    def _node_changes(self) -> list[Change]:
        nodes = self._tree.nodes
        drafts = dict(nodes.drafts)
        for folder in nodes.hidden:
            prefix = f"{folder}/" if folder else ""
            for path in (folder, *nodes.iter_base_nodes(prefix)):
                drafts.setdefault(path, None)
        changes = []
        for path, state in drafts.items():
            entry = None if state is None else self._node_entry(state)
            changes += self._change(node_key(path), entry)
        return changes

    def _value_changes(self) -> list[Change]:
        nodes = self._tree.nodes
        values = dict(nodes.values)
        for folder in nodes.hidden:
            for key in nodes.iter_base_values(f"{folder}/" if folder else ""):
                values.setdefault(key, None)
        changes = []
        for key, content in values.items():
            entry = None if content is None else encode_value(key, self._stored(content, BlobKind.CHUNK))
            changes += self._change(value_key(key), entry)
        return changes

    def _change(self, key: bytes, entry: Entry | None) -> list[Change]:
        """Return the change of one entry, or nothing if the base has it so."""
        base = tree_get(self._tree.blobs, self._tree.nodes.root, key)
        return [] if base == entry else [Change(key, entry)]

    def _node_entry(self, state: NodeState) -> Entry:
        documents = {
            name: self._stored(content, BlobKind.DOCUMENT) for name, content in state.documents.items()
        }
        tiles = None if state.array is None else self._array_tiles(state.array)
        return encode_node(state.path, Node(state.node_id, documents, tiles))

    def _stored(self, content: Content, kind: BlobKind) -> StoredContent:
        if not isinstance(content, OwnBlob):
            return content
        pack, offset = self._writer.slots.place_of(content.slot)
        self._packs.add(pack)
        return BlobRef(content.digest, pack, offset, content.length)

    # --- tiles -----------------------------------------------------------------------------------------------

    def _array_tiles(self, array: ArrayState) -> Tiles:
        base = array.base or Tiles(array.extents)
        if not array.is_edited:
            return base
        keys = set(array.pending)
        if array.cleared or array.limit is not None:
            keys.update(key for key, _ in array.iter_base_pointers())
        changed: dict[bytes, TilePointer | None] = {}
        for key in sorted(keys):
            before = array.base_pointer(key)
            after = self._tile_pointer(array, key, before)
            if after != before:
                changed[key] = after
        return self._with_pointers(base, changed)

    def _with_pointers(self, base: Tiles, changed: dict[bytes, TilePointer | None]) -> Tiles:
        if not changed:
            return base
        if base.root is None:
            few = {key: pointer for key, pointer in {**base.few, **changed}.items() if pointer is not None}
            if len(few) <= MAX_TILES_IN_NODE:
                return msgspec.structs.replace(base, few=few)
            changed = dict(few)
        changes = [
            Change(key, None if pointer is None else encode_pointer(key, pointer))
            for key, pointer in sorted(changed.items())
        ]
        root = update(self._tree.blobs, self._batch, base.root, changes, TILE_POLICY)
        return Tiles(base.extents, {}, root)

    def _tile_pointer(self, array: ArrayState, key: bytes, before: TilePointer | None) -> TilePointer | None:
        """Return the pointer of a tile with the session's edits; None if no chunk is left."""
        edits = array.written(key)
        assert edits is not None or before is not None
        spilled = None if edits is None or before is not None else edits.only_layer
        if spilled is not None:
            return self._spilled_pointer(spilled)
        # One for each tile, where it is large: a session may name more packs and locations than fit into memory.
        own = self._tree.dictionaries
        dictionaries = own if edits is None or edits.spilled is None else Dictionaries()
        content = NO_ROWS if edits is None else edits.rows(own, dictionaries)
        positions, rows = content.positions, content.rows
        hides = array.cleared or array.limit is not None
        if not hides and len(positions) <= FEW_REFS and (before is None or self._is_at_hand(before)):
            return self._few_pointer(content, dictionaries, before)
        base: Manifest | None = None
        if before is not None and (hides or self._is_at_hand(before)):
            tile = resolve_tile(self._tree.blobs, before)
            if hides:
                whole = tile.merged().positions
                gone = whole[~array.shown_mask(tile_of(key), whole) & ~np.isin(whole, positions)]
                positions, rows = _with_tombstones(positions, rows, gone)
            base = tile.at(positions)
        new = self._changed_refs(ChunkRows(positions, rows, content.inline), dictionaries, before, base)
        if len(new) == 0:
            return before
        layers, totals = self._stack(new, before, base)
        if totals.exact and totals.chunks == 0:
            return None
        return TilePointer(layers, totals)

    def _spilled_pointer(self, layer: SpilledLayer) -> TilePointer:
        """Return the pointer of a tile whose refs are a manifest in a pack already."""
        blob = self._stored(OwnBlob(layer.slot, layer.length, layer.digest), BlobKind.MANIFEST)
        self._packs.update(layer.packs)
        return TilePointer((Layer(blob, layer.ref_count),), layer.totals)

    def _few_pointer(
        self, content: ChunkRows, dictionaries: Dictionaries, before: TilePointer | None
    ) -> TilePointer | None:
        """Do the same for a few edits of a tile whose layers are at hand, without columns."""
        tile = LayeredTile(()) if before is None else resolve_tile(self._tree.blobs, before)
        positions = content.positions.tolist()
        edits = pending_refs(
            positions, content.rows, content.inline, dictionaries, self._writer.slots.place_of
        )
        new, replaced = _changed_few(edits, tile)
        if not new:
            return before
        added = [ref for ref in new.values() if ref.kind != ChunkKind.DELETED]
        self._packs.update(ref.source for ref in added if ref.kind == ChunkKind.STORED)
        old = () if before is None else before.layers
        merged = count_to_merge([len(new), *(layer.ref_count for layer in old)]) - 1
        taken = [layer.manifest for layer in tile.layers[:merged]]
        manifest = _merge_few(new, taken, drop_deleted=merged == len(old))
        if before is None or merged == len(old):
            totals = Totals(manifest.live_count, manifest.live_bytes)
        else:
            below = self._exact_totals(before)
            chunks = below.chunks - len(replaced) + len(added)
            size = below.bytes - sum(ref.length for ref in replaced) + sum(ref.length for ref in added)
            totals = Totals(chunks, size)
        if totals.chunks == 0:
            return None
        return TilePointer((self._layer(manifest), *old[merged:]), totals)

    def _is_at_hand(self, pointer: TilePointer) -> bool:
        """Tell whether a tile's layers need not be fetched from an object store."""
        return self._tree.blobs.storage.is_local or tile_is_cached(pointer)

    def _changed_refs(
        self,
        edits: ChunkRows,
        dictionaries: Dictionaries,
        before: TilePointer | None,
        base: Manifest | None,
    ) -> Manifest:
        """Return the refs, tombstones included, in which the tile now differs from the base.

        `base` is what the base holds at these positions, None where that is not known.
        """
        positions, rows = edits.positions, edits.rows
        edited = rows["kind"] != PendingKind.UNCHANGED
        if before is None or base is not None:
            # A tombstone is only worth keeping where something lies below it.
            below = np.zeros(len(positions), bool) if base is None else np.isin(positions, base.positions)
            edited &= (rows["kind"] != PendingKind.DELETED) | below
        new = pending_manifest(positions[edited], rows[edited], edits.inline, dictionaries, self._writer)
        return new if base is None else _without_equal(new, base)

    def _stack(
        self, new: Manifest, before: TilePointer | None, base: Manifest | None
    ) -> tuple[tuple[Layer, ...], Totals]:
        """Put a layer on top of a tile's, merging where it is due, and return the layers and their totals."""
        self._packs.update(new.packs)
        old = () if before is None else before.layers
        merged = count_to_merge([len(new), *(layer.ref_count for layer in old)]) - 1
        if base is None and old:
            # Fetching layers only to merge them is left to compact, as long as the stack is not too high.
            merged = len(old) if len(old) >= MAX_UNMERGED_LAYERS else 0
        taken = [
            layer.manifest
            for layer in (resolve_tile(self._tree.blobs, before).layers[:merged] if before and merged else ())
        ]
        manifest = merge_manifests([new, *taken], drop_deleted=merged == len(old))
        if merged == len(old):
            return (self._layer(manifest),), Totals(manifest.live_count, manifest.live_bytes)
        return (self._layer(manifest), *old[merged:]), self._totals(new, before, base)

    def _totals(self, new: Manifest, before: TilePointer | None, base: Manifest | None) -> Totals:
        """Return a tile's totals after `new` was put on top; an upper bound where the base is not at hand."""
        added = Totals(new.live_count, new.live_bytes)
        if before is None:
            return added
        if base is None:
            sum_of_both = before.totals + added
            return sum_of_both._replace(exact=False)
        old = self._exact_totals(before)
        replaced = np.isin(base.positions, new.positions)
        chunks, size = int(np.count_nonzero(replaced)), int(base.lengths[replaced].sum())
        return Totals(old.chunks - chunks, old.bytes - size) + added

    def _exact_totals(self, pointer: TilePointer) -> Totals:
        if pointer.totals.exact:
            return pointer.totals
        whole = resolve_tile(self._tree.blobs, pointer).merged()
        return Totals(whole.live_count, whole.live_bytes)

    def _layer(self, manifest: Manifest) -> Layer:
        data = encode_manifest(manifest)
        is_small = len(data) <= MAX_LAYER_INLINE_BYTES
        layer = Layer(data if is_small else self._batch.add(BlobKind.MANIFEST, data), len(manifest))
        if self._refs_to_remember >= len(manifest):
            # The next session of this process starts from it.
            self._refs_to_remember -= len(manifest)
            remember_layer(layer, manifest)
        return layer


def _changed_few(edits: Mapping[int, Ref | None], tile: LayeredTile) -> tuple[dict[int, Ref], list[Ref]]:
    """Return the edits in which a tile now differs from its base, and what the base holds in their places."""
    new: dict[int, Ref] = {}
    replaced: list[Ref] = []
    for position, ref in edits.items():
        if ref is None:
            continue
        found = tile.find(position)
        old = DELETED_REF if found is None else ref_at(found[0].manifest, found[1])
        if is_same(ref, old):
            continue
        new[position] = ref
        if found is not None:
            replaced.append(old)
    return new, replaced


def _merge_few(new: Refs, taken: Sequence[Manifest], *, drop_deleted: bool) -> Manifest:
    """Return one manifest of a tile's changed refs and the layers that are merged with them."""
    if any(len(manifest) > FEW_REFS for manifest in taken):
        return merge_manifests([manifest_of(new), *taken], drop_deleted=drop_deleted)
    return manifest_of(merge_few([new, *map(refs_of, taken)], drop_deleted=drop_deleted))


def _with_tombstones(
    positions: npt.NDArray[np.uint16], rows: npt.NDArray[Any], gone: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[Any]]:
    if len(gone) == 0:
        return positions, rows
    tombstones = np.zeros(len(gone), dtype=rows.dtype)
    tombstones["kind"] = PendingKind.DELETED
    positions = np.concatenate((positions, gone))
    order = np.argsort(positions)
    return positions[order], np.concatenate((rows, tombstones))[order]


def _without_equal(new: Manifest, base: Manifest) -> Manifest:
    """Drop the refs of `new` that the base has just so."""
    if not len(base) or not len(new):
        return new
    _, rows_new, rows_base = np.intersect1d(
        new.positions, base.positions, assume_unique=True, return_indices=True
    )
    same = same_refs(new, rows_new, base, rows_base)
    if not same.any():
        return new
    keep = np.ones(len(new), dtype=bool)
    keep[rows_new[same]] = False
    return select_rows(new, keep)


def pending_manifest(
    positions: npt.NDArray[np.uint16],
    rows: npt.NDArray[Any],
    inline: bytes | bytearray,
    dictionaries: Dictionaries,
    writer: BlobWriter,
) -> Manifest:
    """Return pending refs (none of them UNCHANGED) as a manifest, with own blobs where their packs are now."""
    kinds = rows["kind"].copy()
    offsets, sources = rows["at"].copy(), rows["source"].astype(np.int64)
    own = kinds == PendingKind.OWN
    if own.any():
        # Own packs are numbered from 0, other sessions' packs after them.
        numbers, own_offsets = writer.slots.locate(offsets[own])
        own_packs = list(writer.slots.pack_ids)
        sources[kinds == PendingKind.STORED] += len(own_packs)
        sources[own], offsets[own] = numbers, own_offsets
        names = [*own_packs, *dictionaries.packs.names]
        kinds[own] = ChunkKind.STORED
    else:
        names = dictionaries.packs.names
    packs = _number(sources, kinds == ChunkKind.STORED, names)
    locations = _number(sources, kinds == ChunkKind.VIRTUAL, dictionaries.locations.names)
    checks = rows["check"].astype(np.int64) - 1
    checksums = _number(checks, checks >= 0, dictionaries.checksums.names)
    data, offsets = _gather_inline(kinds, offsets, rows["length"], inline)
    return Manifest(
        positions,
        kinds,
        sources.astype(np.uint32),
        offsets,
        rows["length"].astype(np.uint64),
        (checks + 1).astype(np.uint32),
        np.ascontiguousarray(rows["digest"]),
        data,
        packs,
        locations,
        checksums,
    )


def _number(sources: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_], names: list[Any]) -> tuple[Any, ...]:
    """Renumber, in place, the sources under `mask` to the few names that they use, and return those."""
    if not mask.any():
        return ()
    used = np.unique(sources[mask])
    sources[mask] = np.searchsorted(used, sources[mask])
    return tuple(names[number] for number in used.tolist())


def _gather_inline(
    kinds: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    inline: bytes | bytearray,
) -> tuple[bytes, npt.NDArray[np.uint64]]:
    rows = np.flatnonzero(kinds == ChunkKind.INLINE)
    if len(rows) == 0:
        return b"", offsets
    starts, sizes = offsets[rows].tolist(), lengths[rows].tolist()
    data = b"".join(bytes(inline[start : start + size]) for start, size in zip(starts, sizes, strict=True))
    offsets[rows] = np.cumsum(lengths[rows], dtype=np.uint64) - lengths[rows]
    return data, offsets
