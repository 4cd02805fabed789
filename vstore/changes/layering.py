"""Layers of a tile: merging manifests, and looking up single chunks in the merged one.

A commit adds to each touched tile one manifest of just its changes. While the newest times `MERGE_FACTOR` has at
least as many refs as the next, the two are merged, which keeps a tile at about five layers and the amortised cost
of a ref logarithmic (a log-structured merge; measured: factors 1, 2, 4 and 8 give 2.25, 2.25, 2.19 and 2.45 kB a
commit).
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from vstore.format.manifest import (
    MAX_TILE_CHUNKS,
    Checksum,
    ChunkKind,
    Manifest,
    empty_manifest,
)
from vstore.ids import DIGEST_SIZE, Digest, PackId

MERGE_FACTOR = 4
MAX_UNMERGED_LAYERS = 8
"""Where layers are not at hand (an object store), they stack up to this many before a commit fetches and merges."""

_FEW = 64
_DELETED = int(ChunkKind.DELETED)


def count_to_merge(counts: Sequence[int]) -> int:
    """Return how many of the newest layers become one; `counts` are their ref counts, newest first."""
    merged, total = 1, counts[0]
    while merged < len(counts) and total * MERGE_FACTOR >= counts[merged]:
        total += counts[merged]
        merged += 1
    return merged


def merge_manifests(layers: Sequence[Manifest], *, drop_deleted: bool) -> Manifest:
    """Return one manifest for layers given newest first; `drop_deleted` if nothing lies below them."""
    if not layers:
        return empty_manifest()
    if len(layers) == 1 and not (drop_deleted and (layers[0].kinds == ChunkKind.DELETED).any()):
        return layers[0]
    positions = np.concatenate([layer.positions for layer in layers])
    # The first of equal positions is the newest, for the sort is stable and unique keeps the first.
    _, keep = np.unique(positions, return_index=True)
    if drop_deleted:
        kinds = np.concatenate([layer.kinds for layer in layers])
        keep = keep[kinds[keep] != ChunkKind.DELETED]
    return _gather(layers, keep)


def select_rows(manifest: Manifest, keep: npt.NDArray[Any]) -> Manifest:
    """Return only the refs in rows `keep` (indices, increasing, or a mask)."""
    rows = np.flatnonzero(keep) if keep.dtype == bool else keep
    kinds, lengths = manifest.kinds[rows], manifest.lengths[rows]
    offsets, inline = _repack_inline(kinds, manifest.offsets[rows], lengths, manifest.inline)
    return _with_used_sources(
        Manifest(
            manifest.positions[rows],
            kinds,
            manifest.sources[rows],
            offsets,
            lengths,
            manifest.checks[rows],
            manifest.digests[rows],
            inline,
            manifest.packs,
            manifest.locations,
            manifest.checksums,
        )
    )


def same_refs(
    one: Manifest, rows_one: npt.NDArray[Any], other: Manifest, rows_other: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Tell, for pairs of rows of two manifests, whether both refs stand for the same bytes.

    Stored chunks are compared by digest, inline ones by content, virtual ones by source, range and checksum.
    """
    kinds = one.kinds[rows_one]
    same: npt.NDArray[np.bool_] = (kinds == other.kinds[rows_other]) & (
        one.lengths[rows_one] == other.lengths[rows_other]
    )
    stored = kinds == ChunkKind.STORED
    if stored.any():
        same &= ~stored | np.all(one.digests[rows_one] == other.digests[rows_other], axis=1)
    virtual = kinds == ChunkKind.VIRTUAL
    if virtual.any():
        same &= ~virtual | _same_sources(one, rows_one, other, rows_other)
    for pair in np.flatnonzero(same & (kinds == ChunkKind.INLINE)).tolist():
        same[pair] = inline_bytes(one, int(rows_one[pair])) == inline_bytes(other, int(rows_other[pair]))
    return same


def inline_bytes(manifest: Manifest, row: int) -> bytes:
    """Return the bytes of the inline chunk in a row."""
    start = int(manifest.offsets[row])
    return manifest.inline[start : start + int(manifest.lengths[row])]


def _same_sources(
    one: Manifest, rows_one: npt.NDArray[Any], other: Manifest, rows_other: npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    locations = {location: number for number, location in enumerate(one.locations)}
    sources = np.array([locations.get(name, -1) for name in other.locations] or [-1], dtype=np.int64)
    checksums = {checksum: number + 1 for number, checksum in enumerate(one.checksums)}
    checks = np.array([0, *(checksums.get(check, -1) for check in other.checksums)], dtype=np.int64)
    other_sources = np.minimum(other.sources[rows_other], len(sources) - 1)
    same: npt.NDArray[np.bool_] = (
        (one.offsets[rows_one] == other.offsets[rows_other])
        & (one.sources[rows_one] == sources[other_sources])
        & (one.checks[rows_one] == checks[np.minimum(other.checks[rows_other], len(checks) - 1)])
    )
    return same


def _gather(layers: Sequence[Manifest], keep: npt.NDArray[Any]) -> Manifest:
    """Return the refs at rows `keep` of the layers laid end to end, with one set of dictionaries."""
    packs: dict[PackId, int] = {}
    locations: dict[str, int] = {}
    checksums: dict[Checksum, int] = {}
    sources, checks, offsets, inlines = [], [], [], []
    inline_start = 0
    for layer in layers:
        sources.append(_renumber(layer, packs, locations))
        checks.append(_renumber_checks(layer, checksums))
        shift = np.where(layer.kinds == ChunkKind.INLINE, np.uint64(inline_start), np.uint64(0))
        offsets.append(layer.offsets + shift)
        inlines.append(layer.inline)
        inline_start += len(layer.inline)
    kinds = np.concatenate([layer.kinds for layer in layers])[keep]
    lengths = np.concatenate([layer.lengths for layer in layers])[keep]
    offset = np.concatenate(offsets)[keep]
    offset, inline = _repack_inline(kinds, offset, lengths, b"".join(inlines))
    source = np.concatenate(sources)[keep]
    return _with_used_sources(
        Manifest(
            np.concatenate([layer.positions for layer in layers])[keep],
            kinds,
            source,
            offset,
            lengths,
            np.concatenate(checks)[keep],
            np.concatenate([layer.digests for layer in layers])[keep],
            inline,
            tuple(packs),
            tuple(locations),
            tuple(checksums),
        )
    )


def _renumber(layer: Manifest, packs: dict[PackId, int], locations: dict[str, int]) -> npt.NDArray[np.uint32]:
    pack_map = np.array([packs.setdefault(pack, len(packs)) for pack in layer.packs] or [0], dtype=np.uint32)
    place_map = np.array([locations.setdefault(p, len(locations)) for p in layer.locations] or [0], np.uint32)
    sources = layer.sources.copy()
    stored, virtual = layer.kinds == ChunkKind.STORED, layer.kinds == ChunkKind.VIRTUAL
    sources[stored] = pack_map[sources[stored]]
    sources[virtual] = place_map[sources[virtual]]
    return sources


def _renumber_checks(layer: Manifest, checksums: dict[Checksum, int]) -> npt.NDArray[np.uint32]:
    numbers = [0, *(checksums.setdefault(check, len(checksums)) + 1 for check in layer.checksums)]
    return np.array(numbers, dtype=np.uint32)[layer.checks]


def _repack_inline(
    kinds: npt.NDArray[np.uint8],
    offsets: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    inline: bytes,
) -> tuple[npt.NDArray[np.uint64], bytes]:
    """Keep only the inline bytes that refs still point to, in the refs' order."""
    rows = np.flatnonzero(kinds == ChunkKind.INLINE)
    if len(rows) == 0:
        return offsets, b""
    starts, sizes = offsets[rows].tolist(), lengths[rows].tolist()
    pieces = [inline[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    offsets = offsets.copy()
    ends = np.cumsum(lengths[rows], dtype=np.uint64)
    offsets[rows] = ends - lengths[rows]
    return offsets, b"".join(pieces)


def _with_used_sources(manifest: Manifest) -> Manifest:
    """Drop dictionary entries that no ref uses any more."""
    sources = manifest.sources.copy()
    packs = _used(manifest.packs, sources, manifest.kinds == ChunkKind.STORED)
    locations = _used(manifest.locations, sources, manifest.kinds == ChunkKind.VIRTUAL)
    checks = manifest.checks.copy()
    used = np.unique(checks)
    used = used[used > 0]
    if len(used) < len(manifest.checksums):
        table = np.zeros(len(manifest.checksums) + 1, dtype=np.uint32)
        table[used] = np.arange(1, len(used) + 1, dtype=np.uint32)
        checks = table[checks]
    checksums = tuple(manifest.checksums[index - 1] for index in used.tolist())
    return Manifest(
        manifest.positions,
        manifest.kinds,
        sources,
        manifest.offsets,
        manifest.lengths,
        checks,
        manifest.digests,
        manifest.inline,
        packs,
        locations,
        checksums,
    )


def _used(
    names: tuple[Any, ...], sources: npt.NDArray[np.uint32], rows: npt.NDArray[np.bool_]
) -> tuple[Any, ...]:
    """Return the names that these rows use, and renumber the rows in place."""
    used = np.unique(sources[rows])
    if len(used) < len(names):
        sources[rows] = np.searchsorted(used, sources[rows]).astype(np.uint32)
        return tuple(names[index] for index in used.tolist())
    return names


class IndexedLayer:
    """One layer of a tile with quick look-ups of single positions, and marks of what was verified.

    Columns that reading a chunk needs are memoryviews: their items are ints at once (40 ns), where numpy would make a
    scalar first (100 ns and more for each further use).
    """

    __slots__ = (
        "__weakref__",
        "_positions",
        "_reaches",
        "_table",
        "digests",
        "kinds",
        "lengths",
        "manifest",
        "offsets",
        "sources",
        "verified",
    )

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.verified = bytearray(len(manifest))
        self.kinds = _view(manifest.kinds, np.uint8)
        self.sources = _view(manifest.sources, np.uint32)
        self.offsets = _view(manifest.offsets, np.uint64)
        self.lengths = _view(manifest.lengths, np.uint64)
        self.digests = _view(manifest.digests, np.uint8)
        self._positions = array("H", manifest.positions.tobytes())
        self._reaches: list[int] | None = None
        self._table: array[int] | None = None
        if len(manifest) >= _FEW:
            table = np.full(MAX_TILE_CHUNKS, 0xFFFF, dtype=np.uint16)
            table[manifest.positions] = np.arange(len(manifest), dtype=np.uint16)
            self._table = array("H", table.tobytes())

    def find(self, position: int) -> int | None:
        """Return the row of the ref at `position`, or None."""
        if self._table is not None:
            row = self._table[position]
            return None if row == 0xFFFF else row
        row = bisect_left(self._positions, position)
        return row if row < len(self._positions) and self._positions[row] == position else None

    def digest(self, row: int) -> Digest:
        """Return the digest of the stored chunk in a row."""
        start = row * DIGEST_SIZE
        return Digest(bytes(self.digests[start : start + DIGEST_SIZE]))

    def pack(self, row: int) -> PackId:
        """Return the pack of the stored chunk in a row."""
        return self.manifest.packs[self.sources[row]]

    def reach(self, row: int) -> int:
        """Return where the last of this layer's chunks ends in the pack of the stored chunk in a row."""
        if self._reaches is None:
            manifest = self.manifest
            stored = manifest.kinds == ChunkKind.STORED
            reaches = np.zeros(len(manifest.packs), dtype=np.uint64)
            np.maximum.at(reaches, manifest.sources[stored], (manifest.offsets + manifest.lengths)[stored])
            self._reaches = reaches.tolist()
        return self._reaches[self.sources[row]]

    @property
    def memory_bytes(self) -> int:
        manifest = self.manifest
        return (
            70 * len(manifest)
            + len(manifest.inline)
            + 60 * (len(manifest.packs) + len(manifest.locations) + len(manifest.checksums))
            + sum(map(len, manifest.locations))
            + sum(len(check) for check in manifest.checksums if isinstance(check, str))
            + (2 * MAX_TILE_CHUNKS if self._table is not None else 0)
        )


def _view(column: npt.NDArray[Any], dtype: npt.DTypeLike) -> memoryview:
    return np.ascontiguousarray(column, dtype=dtype).reshape(-1).data


class LayeredTile:
    """The layers of a tile, newest first, read as one. Layers are merged only for who asks for all of it."""

    __slots__ = ("layers",)

    def __init__(self, layers: Sequence[IndexedLayer]) -> None:
        self.layers = layers

    def find(self, position: int) -> tuple[IndexedLayer, int] | None:
        """Return the layer and the row of the ref at `position`, or None if there is none."""
        for layer in self.layers:
            row = layer.find(position)
            if row is not None:
                return None if layer.kinds[row] == _DELETED else (layer, row)
        return None

    def merged(self) -> Manifest:
        """Return all live refs."""
        return merge_manifests([layer.manifest for layer in self.layers], drop_deleted=True)

    def at(self, positions: npt.NDArray[np.uint16]) -> Manifest:
        """Return the live refs at these positions (increasing)."""
        if len(positions) * 2 > max((len(layer.manifest) for layer in self.layers), default=0):
            whole = self.merged()
            return select_rows(whole, np.isin(whole.positions, positions, assume_unique=True))
        parts = []
        for layer in self.layers:
            manifest = layer.manifest
            rows = np.searchsorted(manifest.positions, positions)
            rows[rows == len(manifest)] = 0
            hit = manifest.positions[rows] == positions if len(manifest) else np.zeros(len(rows), dtype=bool)
            if hit.any():
                parts.append(select_rows(manifest, rows[hit]))
        return merge_manifests(parts, drop_deleted=True)
