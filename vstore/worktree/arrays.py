"""One array in a worktree: which chunk ref each index has, seen through the session's edits.

An edit goes into a `PendingTile`; what is not there shows the base snapshot's tile, unless the session hid it: by
deleting and recreating the array (`cleared`), or by shrinking it (`limit`).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from vstore.blobs.ahead import in_windows
from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.blobs.virtual import VirtualRange
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.documents import ArraySpec
from vstore.changes.layering import IndexedLayer, LayeredTile, merge_manifests
from vstore.changes.pending import PendingKind, PendingRef, PendingTile
from vstore.changes.rows import NO_ROWS, ChunkRows, from_manifest, overlay, select
from vstore.changes.tiling import join_indices, split_index, tile_is_inside, tile_reaches_into
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest
from vstore.format.node import Layer, TilePointer, Tiles, check_tile_key, decode_pointer, tile_key, tile_of
from vstore.format.page import Totals
from vstore.format.refs import BlobRef
from vstore.ids import Digest, NodeId
from vstore.locks import ForkSafeLock
from vstore.tree import get as tree_get
from vstore.tree import iter_entries
from vstore.worktree.contents import ChunkSource, OwnBlob, StoredChunk, base_source
from vstore.worktree.spilling import SpilledTile, Written, edits_in, spilled_of, unspill

_DELETED = int(ChunkKind.DELETED)
_REMEMBERED_TILES = 4096
_TILES_TO_REMEMBER = 16


class PendingChunk(msgspec.Struct, frozen=True):
    """What the edits say of a chunk: where it is (None: none), or that what the base holds there shows."""

    source: ChunkSource | None
    shows_base: bool
    spilled: SpilledTile | None = None
    """Where to look first, outside the lock: its refs go before the base's."""


class VisibleTile(msgspec.Struct, frozen=True):
    """The refs of one tile as they read now: positions u16[n], increasing, and their lengths u64[n]."""

    tile: tuple[int, ...]
    positions: npt.NDArray[np.uint16]
    lengths: npt.NDArray[np.uint64]


class ArrayState:
    """An array node and its chunk refs. `lock`, the worktree's, covers all edits.

    `spec` is what its document says now; `base` the tiles of the base snapshot that it continues (None: none);
    `limit` the smallest grid since then, outside which the base does not show through.
    """

    def __init__(
        self,
        reader: BlobReader,
        node_id: NodeId,
        spec: ArraySpec,
        extents: tuple[int, ...],
        base: Tiles | None,
        lock: ForkSafeLock,
    ) -> None:
        self.reader = reader
        self._lock = lock
        self.node_id = node_id
        self.spec = spec
        self.extents = extents
        self.base = base
        self.cleared = False
        self.limit: tuple[int, ...] | None = None
        self.pending: dict[bytes, PendingTile] = {}
        # The base's layers of tiles that were asked for, while the cache keeps them.
        self._layers: dict[bytes, tuple[weakref.ref[IndexedLayer], ...]] = {}

    # --- single chunks ---------------------------------------------------------------------------------------

    def locate(self, index: tuple[int, ...]) -> tuple[bytes, int]:
        """Return the key of a chunk's tile, and its position in it."""
        tile, position = split_index(index, self.extents)
        return tile_key(tile), position

    def pending_chunk(self, key: bytes, position: int, dictionaries: Dictionaries) -> PendingChunk:
        """Return what the session's edits say of a chunk."""
        pending = self.pending.get(key)
        ref = None if pending is None else pending.get(position)
        if pending is not None and ref is not None and ref.kind != PendingKind.UNCHANGED:
            return PendingChunk(ref_source(ref, pending.inline, dictionaries), False)
        if pending is None or pending.spilled is None or ref is not None:
            return PendingChunk(None, ref is not None or self._base_shows(key, position))
        spilled = spilled_of(pending)
        assert spilled is not None
        if spilled.is_unchanged(position):
            return PendingChunk(None, True)
        return PendingChunk(None, self._base_shows(key, position), spilled)

    def find(self, index: tuple[int, ...], dictionaries: Dictionaries) -> ChunkSource | None:
        """Return where a chunk's bytes are, or None if there are none."""
        key, position = self.locate(index)
        with self._lock:
            pending = self.pending_chunk(key, position, dictionaries)
        return self.resolve(key, position, pending)

    def resolve(self, key: bytes, position: int, pending: PendingChunk) -> ChunkSource | None:
        """Return where a chunk's bytes are, given what the edits in memory say; needs no lock."""
        if pending.spilled is not None:
            found = pending.spilled.find(position)
            if found is not None:
                return None if found[0].manifest.kinds[found[1]] == ChunkKind.DELETED else base_source(*found)
        return self.find_base(key, position) if pending.shows_base else pending.source

    def index_at(self, key: bytes, position: int) -> tuple[int, ...]:
        """Return the index of the chunk at a position of a tile."""
        return tuple(join_indices(tile_of(key), np.array([position]), self.extents)[0].tolist())

    def holds(self, key: bytes, position: int) -> bool:
        """Tell whether the position of a tile is within the array's grid as it is now."""
        return self.spec.contains(self.index_at(key, position))

    def _base_shows(self, key: bytes, position: int) -> bool:
        """Tell whether the base's chunk shows where the session wrote nothing."""
        if self.base is None or self.cleared:
            return False
        if self.limit is None:
            return True
        index = self.index_at(key, position)
        return all(i < bound for i, bound in zip(index, self.limit, strict=True))

    def find_base(self, key: bytes, position: int) -> ChunkSource | None:
        """Return what the base snapshot holds, hidden or not."""
        found = self.base_row(key, position)
        return None if found is None else base_source(*found)

    def base_row(self, key: bytes, position: int) -> tuple[IndexedLayer, int] | None:
        """Return the layer and the row of the base's chunk at a position of a tile, hidden or not."""
        near = self._layers.get(key)
        if near is None:
            return self._base_row_far(key, position)
        for reference in near:
            layer = reference()
            if layer is None:
                return self._base_row_far(key, position)
            row = layer.find(position)
            if row is not None:
                return None if layer.kinds[row] == _DELETED else (layer, row)
        return None

    def _base_row_far(self, key: bytes, position: int) -> tuple[IndexedLayer, int] | None:
        tile = self.base_tile(key)
        layers = () if tile is None else tile.layers
        if len(self._layers) >= _REMEMBERED_TILES:
            self._layers.clear()
        self._layers[key] = tuple(map(weakref.ref, layers))
        return None if tile is None else tile.find(position)

    # --- tiles -----------------------------------------------------------------------------------------------

    def base_pointer(self, key: bytes) -> TilePointer | None:
        """Return the base's pointer of a tile."""
        if self.base is None:
            return None
        if self.base.root is None:
            return self.base.few.get(key)
        entry = tree_get(self.reader, self.base.root, key)
        return None if entry is None else decode_pointer(entry.value)

    def base_tile(self, key: bytes) -> LayeredTile | None:
        """Return the base's tile."""
        pointer = self.base_pointer(key)
        return None if pointer is None else resolve_tile(self.reader, pointer)

    def base_tile_is_cached(self, key: bytes) -> bool:
        """Tell whether `base_tile` would need no manifest from storage."""
        pointer = self.base_pointer(key)
        return pointer is None or tile_is_cached(pointer)

    def iter_base_pointers(self, prefix: bytes = b"") -> Iterator[tuple[bytes, TilePointer]]:
        """Yield the base's tiles whose keys start with `prefix`, hidden or not, in the order of their keys."""
        if self.base is None:
            return
        if self.base.root is None:
            yield from sorted(item for item in self.base.few.items() if item[0].startswith(prefix))
            return
        # No tile's key has a byte 0xff where another one's coordinate begins.
        for entry in iter_entries(self.reader, self.base.root, prefix, prefix + b"\xff"):
            check_tile_key(entry.key, self.extents)
            yield entry.key, decode_pointer(entry.value)

    def iter_visible(self, first: tuple[int, ...] = ()) -> Iterator[VisibleTile]:
        """Yield what every tile shows now, in the order of their keys; tiles that show nothing are left out.

        `first` are the first indices of the chunks that are wanted: only tiles that may hold such are looked at.
        """
        # A tile's key is its coordinates one after the other.
        prefix = tile_key(tuple(i // extent for i, extent in zip(first, self.extents, strict=False)))
        with self._lock:
            edits = {key: tile for key, tile in self.pending.items() if key.startswith(prefix)}
            cleared = self.cleared
        left = sorted(edits, reverse=True)
        pointers = () if cleared else _expecting(self.reader, self.iter_base_pointers(prefix))
        for number, (key, pointer) in enumerate(pointers):
            while left and left[-1] < key:
                yield from self._visible(left[-1], edits[left.pop()], None)
            if left and left[-1] == key:
                left.pop()
            # Walking through a large array must not push all else out of the cache.
            base = whole_tile(self.reader, pointer, remember=number < _TILES_TO_REMEMBER)
            yield from self._visible(key, edits.get(key), base)
        for key in reversed(left):
            before = self.base_pointer(key)
            yield from self._visible(
                key, edits[key], None if before is None else whole_tile(self.reader, before, remember=False)
            )

    def _visible(
        self, key: bytes, pending: PendingTile | None, base: Manifest | None
    ) -> Iterator[VisibleTile]:
        tile = tile_of(key)
        positions = np.zeros(0, np.uint16) if base is None else base.positions
        lengths = np.zeros(0, np.uint64) if base is None else base.lengths
        shown = self.shown_mask(tile, positions)
        if pending is not None:
            with self._lock:
                edits = edits_in(pending)
            # What the rows number is of no interest here.
            anyhow = Dictionaries()
            content = edits.rows(anyhow, anyhow)
            written, rows = content.positions, content.rows
            same = written[rows["kind"] == PendingKind.UNCHANGED]
            shown = (shown & ~np.isin(positions, written)) | np.isin(positions, same)
            live = (rows["kind"] != PendingKind.DELETED) & (rows["kind"] != PendingKind.UNCHANGED)
            positions = np.concatenate((positions[shown], written[live]))
            lengths = np.concatenate((lengths[shown], rows["length"][live]))
            order = np.argsort(positions)
            positions, lengths = positions[order], lengths[order]
        else:
            positions, lengths = positions[shown], lengths[shown]
        if len(positions):
            yield VisibleTile(tile, positions, lengths)

    def shown_mask(self, tile: tuple[int, ...], positions: npt.NDArray[np.uint16]) -> npt.NDArray[np.bool_]:
        """Return which of the base's positions in a tile show where the session wrote nothing."""
        if self.cleared:
            return np.zeros(len(positions), dtype=bool)
        if self.limit is None or tile_is_inside(tile, self.extents, self.limit):
            return np.ones(len(positions), dtype=bool)
        indices = join_indices(tile, positions, self.extents)
        inside: npt.NDArray[np.bool_] = np.all(indices < np.array(self.limit, dtype=np.int64), axis=1)
        return inside

    def iter_indices(
        self, first: tuple[int, ...] = ()
    ) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.uint64]]]:
        """Yield chunk indices i64[n, d] and lengths u64[n], tile by tile; only of chunks that begin with `first`."""
        for visible in self.iter_visible(first):
            indices = join_indices(visible.tile, visible.positions, self.extents)
            if not first:
                yield indices, visible.lengths
                continue
            wanted = (indices[:, : len(first)] == np.array(first, dtype=np.int64)).all(axis=1)
            if wanted.any():
                yield indices[wanted], visible.lengths[wanted]

    def rows(
        self,
        key: bytes,
        own: Dictionaries,
        dictionaries: Dictionaries,
        positions: npt.NDArray[np.uint16] | None = None,
    ) -> ChunkRows:
        """Return what a tile shows now, at all or only at some positions (increasing), numbered by `dictionaries`.

        `own` are the dictionaries of this array's edits.
        """
        edits = self.written(key)
        written = None if edits is None else edits.rows(own, dictionaries)
        base = None if self.cleared and written is None else self.base_tile(key)
        below = NO_ROWS
        if base is not None:
            below = from_manifest(base.merged() if positions is None else base.at(positions), dictionaries)
        shown = self.shown_mask(tile_of(key), below.positions)
        if written is None:
            return select(below, shown)
        at, rows = written.positions, written.rows
        if positions is not None:
            wanted = np.isin(at, positions)
            at, rows = at[wanted], rows[wanted]
        # What was written and equals the base shows the base even where the rest of it is hidden.
        same = at[rows["kind"] == PendingKind.UNCHANGED]
        below = select(below, shown | np.isin(below.positions, same))
        return overlay(below, at, rows, written.inline)

    def written(self, key: bytes) -> Written | None:
        """Return what the session wrote into a tile; None if it wrote nothing."""
        with self._lock:
            pending = self.pending.get(key)
            return None if pending is None else edits_in(pending)

    def written_positions(self, key: bytes) -> npt.NDArray[np.uint16]:
        """Return the positions of a tile that the session wrote, increasing."""
        edits = self.written(key)
        return np.zeros(0, np.uint16) if edits is None else edits.positions()

    @property
    def is_edited(self) -> bool:
        """Whether the session touched any chunk ref."""
        return bool(self.pending) or self.cleared or self.limit is not None

    def totals(self) -> Totals:
        """Return the exact count and bytes of the chunks as they read now."""
        if not self.is_edited:
            recorded = Totals() if self.base is None else self.base.totals
            if recorded.exact:
                return recorded
        chunks = size = 0
        for visible in self.iter_visible():
            chunks += len(visible.positions)
            size += int(visible.lengths.sum())
        return Totals(chunks, size)

    # --- edits -----------------------------------------------------------------------------------------------

    def tile_for_edit(self, key: bytes) -> PendingTile:
        """Return the pending tile of `key`, a new one if need be."""
        tile = self.pending.get(key)
        if tile is None:
            tile = self.pending[key] = PendingTile()
        return tile

    def take_spec(self, spec: ArraySpec, own: Dictionaries) -> npt.NDArray[np.uint64]:
        """Follow the array's document: what lies outside a smaller grid is dropped.

        Returns the slots of the session's blobs that dropped refs pointed at, one for each ref. `own` are the
        dictionaries of this array's edits.
        """
        old, self.spec = self.spec.grid, spec
        if spec.grid is None or old is None or all(n >= o for n, o in zip(spec.grid, old, strict=True)):
            return _NO_SLOTS
        bounds = self.limit or old
        self.limit = tuple(map(min, bounds, spec.grid))
        return self._drop_outside(spec.grid, own)

    def _drop_outside(self, grid: tuple[int, ...], own: Dictionaries) -> npt.NDArray[np.uint64]:
        dropped = [_NO_SLOTS]
        bounds = np.array(grid, dtype=np.int64)
        for key, tile in list(self.pending.items()):
            if tile_is_inside(tile_of(key), self.extents, grid):
                continue
            if not tile_reaches_into(tile_of(key), self.extents, grid):
                dropped.append(tile.own_slots())
                del self.pending[key]
                continue
            # Only the tiles at the new edge are read. Another worktree may share the old one.
            tile = self.pending[key] = tile.copy()
            unspill(tile, own)
            positions, rows = tile.to_rows()
            inside = (join_indices(tile_of(key), positions, self.extents) < bounds).all(axis=1)
            dropped.append(rows["at"][~inside & (rows["kind"] == PendingKind.OWN)])
            tile.keep(positions[inside], rows[inside], bytes(tile.inline))
            if not len(tile):
                del self.pending[key]
        return np.concatenate(dropped)

    def clear(self) -> npt.NDArray[np.uint64]:
        """Hide everything; return the slots of the session's blobs that were held, once for each ref."""
        gone = [_NO_SLOTS, *(tile.own_slots() for tile in self.pending.values())]
        self.pending = {}
        self.cleared = self.base is not None
        return np.concatenate(gone)


_NO_SLOTS = np.zeros(0, dtype=np.uint64)


def resolve_tile(reader: BlobReader, pointer: TilePointer) -> LayeredTile:
    """Return a tile's layers, each from the cache if it is there."""
    return LayeredTile([_indexed(reader, layer) for layer in pointer.layers])


def whole_tile(reader: BlobReader, pointer: TilePointer, *, remember: bool) -> Manifest:
    """Return all live refs of a tile; layers that had to be read for it are kept in the cache only if asked for."""
    if remember:
        return resolve_tile(reader, pointer).merged()
    manifests = []
    for layer in pointer.layers:
        found: IndexedLayer | None = CACHE.get(_layer_key(layer))
        manifests.append(read_layer(reader, layer) if found is None else found.manifest)
    return merge_manifests(manifests, drop_deleted=True)


def _indexed(reader: BlobReader, layer: Layer) -> IndexedLayer:
    key = _layer_key(layer)
    found: IndexedLayer | None = CACHE.get(key)
    if found is not None:
        return found
    if isinstance(layer.manifest, bytes):
        return remember_layer(layer, decode_manifest(layer.manifest))
    return reader.once(key, lambda: CACHE.get(key) or remember_layer(layer, read_layer(reader, layer)))


def remember_layer(layer: Layer, manifest: Manifest) -> IndexedLayer:
    """Keep a layer's manifest in the cache, to be found without reading it."""
    indexed = IndexedLayer(manifest)
    CACHE.put(_layer_key(layer), indexed, indexed.memory_bytes)
    return indexed


def unshared_positions(
    reader: BlobReader, one: TilePointer | None, other_reader: BlobReader, other: TilePointer | None
) -> npt.NDArray[np.uint16]:
    """Return the only positions at which two states of a tile can differ: those in layers that they don't share."""
    mine, others = (() if one is None else one.layers), (() if other is None else other.layers)
    shared = 0
    for left, right in zip(reversed(mine), reversed(others), strict=False):
        if left != right:
            break
        shared += 1
    layers = [_indexed(reader, layer) for layer in mine[: len(mine) - shared]]
    layers += [_indexed(other_reader, layer) for layer in others[: len(others) - shared]]
    if not layers:
        return np.zeros(0, np.uint16)
    return np.unique(np.concatenate([layer.manifest.positions for layer in layers]))


def expecting_tiles(arrays: Sequence[ArrayState | None], keys: Iterable[bytes]) -> Iterator[bytes]:
    """Yield keys of tiles that several arrays will be read at, while what they have at the next ones is on its way."""
    distant = [array for array in arrays if array is not None and array.reader.remote is not None]
    if not distant:
        yield from keys
        return
    for window in in_windows(keys):
        for array in distant:
            _expect(array.reader, filter(None, map(array.base_pointer, window)))
        yield from window


def _expecting(
    reader: BlobReader, pointers: Iterator[tuple[bytes, TilePointer]]
) -> Iterator[tuple[bytes, TilePointer]]:
    """Yield tiles, while the manifests of the next ones are on their way from an object store."""
    if reader.remote is None:
        yield from pointers
        return
    for window in in_windows(pointers):
        _expect(reader, (pointer for _, pointer in window))
        yield from window


def _expect(reader: BlobReader, pointers: Iterable[TilePointer]) -> None:
    layers = (layer for pointer in pointers for layer in pointer.layers)
    reader.expect(layer.manifest for layer in layers if isinstance(layer.manifest, BlobRef))


def tile_is_cached(pointer: TilePointer) -> bool:
    """Tell whether `resolve_tile` would need no read."""
    return all(
        isinstance(layer.manifest, bytes) or CACHE.get(_layer_key(layer)) is not None
        for layer in pointer.layers
    )


def read_layer(reader: BlobReader, layer: Layer) -> Manifest:
    """Return one manifest of a tile, read from where it is."""
    if isinstance(layer.manifest, bytes):
        return decode_manifest(layer.manifest)
    return reader.manifest(layer.manifest)


def _layer_key(layer: Layer) -> tuple[str, bytes]:
    return "layer", layer.manifest if isinstance(layer.manifest, bytes) else layer.manifest.digest


def ref_source(ref: PendingRef, inline: bytes | bytearray, dictionaries: Dictionaries) -> ChunkSource | None:
    """Return where the bytes of a pending ref are; None if it is a deletion."""
    if ref.kind == PendingKind.OWN:
        return OwnBlob(ref.at, ref.length, Digest(ref.digest))
    if ref.kind == PendingKind.INLINE:
        return bytes(inline[ref.at : ref.at + ref.length])
    if ref.kind == PendingKind.STORED:
        blob = BlobRef(Digest(ref.digest), dictionaries.packs.names[ref.source], ref.at, ref.length)
        return StoredChunk(blob)
    if ref.kind == PendingKind.VIRTUAL:
        location = dictionaries.locations.names[ref.source]
        return VirtualRange(location, ref.at, ref.length, dictionaries.checksum(ref.check))
    return None
