"""What chunks take, by snapshot, array and set of refs: each manifest is read once, and refs to one blob are joined.

Refs take over what `census` noted of their manifest, and are joined by sorting. Millions of them are done in parts, by
their digests, so that memory is bounded. No chunk is read. Above: `storage_stats`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.ahead import in_windows
from vstore.errors import FormatError, StorageError
from vstore.format.columns import U64
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest
from vstore.format.refs import BlobRef
from vstore.ids import Digest, blake3_digest
from vstore.ops.census import Census, Masks, Need, TileNeed
from vstore.ops.live import digest_prefixes
from vstore.ops.marks import Progress

PART_ROWS = 2_000_000
"""So many refs are joined at once, in about 200 MB."""
_VALUES = "\0"
"""Stands for the path of plain values, which belong to no array."""
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)


class Sums:
    """What is summed up, by snapshot and by the mask of refs."""

    def __init__(self, snapshots: int, masks: Masks) -> None:
        self.masks = masks
        self.native_bytes = self.inlined_bytes = self.virtual_bytes = 0
        self.metadata_bytes = self.versions_bytes = 0
        self.new_bytes = np.zeros(snapshots)
        self.exclusive_bytes = np.zeros(snapshots)
        self.by_mask: dict[int, int] = {}
        self.arrays: dict[str, list[int]] = {}

    def add_metadata(self, need: Need, length: int) -> None:
        self.metadata_bytes += length
        self.new_bytes[need.first] += length
        if not need.is_shared:
            self.exclusive_bytes[need.first] += length
        self.by_mask[need.mask] = self.by_mask.get(need.mask, 0) + length

    def add_array(self, path: str, native: int, inlined: int, virtual: int) -> None:
        sums = self.arrays.setdefault(path, [0, 0, 0])
        for at, count in enumerate((native, inlined, virtual)):
            sums[at] += count


class _Rows(NamedTuple):
    """Refs as columns: `keys` of what is referred to and `versions` of which chunk that is, u64[n] each.

    `lengths` u64[n]; `arrays`, `firsts` and `masks` i64[n]; `shared` and `virtual` bool[n].
    """

    keys: U64
    versions: U64
    lengths: U64
    arrays: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    masks: npt.NDArray[np.int64]
    shared: npt.NDArray[np.bool_]
    virtual: npt.NDArray[np.bool_]


class RefSums:
    """Reads manifests and sums up their refs, each blob and each range once."""

    def __init__(self, census: Census, sums: Sums) -> None:
        self._census = census
        self._sums = sums
        self._paths: dict[str, int] = {_VALUES: 0}
        self._unreadable: set[Digest] = set()

    def run(self, progress: Progress) -> None:
        total, columns = self._read_inline(progress)
        parts = max(1, -(-total // PART_ROWS))
        width = 2**64 // parts
        for part in range(parts):
            progress(part, parts, "parts of the references")
            low, high = part * width, 2**64 - 1 if part == parts - 1 else (part + 1) * width - 1
            if parts > 1:
                columns = [self._rows(*found, low, high) for found in self._manifests()]
            columns.append(self._value_rows(low, high))
            self._sum(_Rows(*(np.concatenate(column) for column in zip(*columns, strict=True))))
        self._sums.arrays.pop(_VALUES, None)
        self._census.unreadable += len(self._unreadable)

    def _manifests(self) -> Iterator[tuple[TileNeed, Manifest]]:
        blobs = self._census.blobs
        for window in in_windows(self._census.tiles.values()):
            blobs.expect(tile.manifest for tile in window if isinstance(tile.manifest, BlobRef))
            for tile in window:
                try:
                    if isinstance(tile.manifest, bytes):
                        yield tile, decode_manifest(tile.manifest)
                    else:
                        yield tile, blobs.manifest(tile.manifest)
                except (FormatError, StorageError):
                    if isinstance(tile.manifest, BlobRef):
                        self._unreadable.add(tile.manifest.digest)

    def _read_inline(self, progress: Progress) -> tuple[int, list[_Rows]]:
        """Sum up the inline chunks; return how many other refs there are, and all of them if they are one part."""
        total = 0
        columns: list[_Rows] = []
        count = len(self._census.tiles)
        seen: set[bytes | Digest] = set()
        for number, (tile, manifest) in enumerate(self._manifests()):
            progress(number, count, "manifests")
            self._paths.setdefault(tile.place.path, len(self._paths))
            inlined = int(manifest.lengths[manifest.kinds == ChunkKind.INLINE].sum())
            total += int(np.count_nonzero(_is_ref(manifest)))
            if total <= PART_ROWS:
                columns.append(self._rows(tile, manifest, 0, 2**64 - 1))
            else:
                columns.clear()
            self._sums.add_array(tile.place.path, 0, inlined, 0)
            # A manifest that arrays share holds its inline chunks once.
            name = tile.manifest if isinstance(tile.manifest, bytes) else tile.manifest.digest
            if inlined and name not in seen:
                seen.add(name)
                self._sums.inlined_bytes += inlined
        return total, columns

    def _rows(self, tile: TileNeed, manifest: Manifest, low: int, high: int) -> _Rows:
        is_virtual = manifest.kinds == ChunkKind.VIRTUAL
        keys = manifest.offsets * _MIX + np.where(
            is_virtual,
            _lookup(_location_keys(manifest), manifest.sources),
            _lookup(_pack_keys(manifest), manifest.sources),
        )
        # By content, so that all refs to a blob, and to a version of a chunk, are in one part.
        content = np.where(is_virtual, keys, digest_prefixes(manifest.digests))
        rows = _is_ref(manifest) & (content >= np.uint64(low)) & (content <= np.uint64(high))
        chunk = int.from_bytes(blake3_digest(repr(tile.place).encode())[:8], "little")
        chunks = np.uint64(chunk) + manifest.positions[rows].astype(np.uint64)
        count = int(np.count_nonzero(rows))
        need = tile.need

        def constant(value: int) -> npt.NDArray[np.int64]:
            return np.full(count, value, np.int64)

        return _Rows(
            keys[rows],
            content[rows] ^ (chunks * _MIX),
            manifest.lengths[rows],
            constant(self._paths[tile.place.path]),
            constant(need.first),
            constant(need.mask),
            np.full(count, need.is_shared),
            is_virtual[rows],
        )

    def _value_rows(self, low: int, high: int) -> _Rows:
        values = [
            (ref, need)
            for ref, need in self._census.values.values()
            if low <= int.from_bytes(ref.digest[:8], "little") <= high
        ]
        refs, needs = [ref for ref, _ in values], [need for _, need in values]
        keys = np.array([int.from_bytes(ref.pack[8:], "little") for ref in refs], np.uint64)
        keys += np.array([ref.offset for ref in refs], np.uint64) * _MIX
        return _Rows(
            keys,
            # Each blob counts as one version.
            keys ^ _MIX,
            np.array([ref.length for ref in refs], np.uint64),
            np.zeros(len(refs), np.int64),
            np.array([need.first for need in needs], np.int64),
            np.array([need.mask for need in needs], np.int64),
            np.array([need.is_shared for need in needs], bool),
            np.zeros(len(refs), bool),
        )

    def _sum(self, rows: _Rows) -> None:
        sums = self._sums
        if len(rows.keys) == 0:
            return
        own = np.flatnonzero(~rows.virtual)
        sums.versions_bytes += int(rows.lengths[own[_one_of_each(rows.versions[own])]].sum())
        self._sum_arrays(rows)
        order = np.argsort(rows.keys)
        starts = _starts(rows.keys[order])
        lengths = rows.lengths[order][starts].astype(np.float64)
        virtual = rows.virtual[order][starts]
        sums.virtual_bytes += int(lengths[virtual].sum())
        sums.native_bytes += int(lengths[~virtual].sum())
        lengths[virtual] = 0
        firsts = rows.firsts[order]
        first = np.minimum.reduceat(firsts, starts)
        is_own = (first == np.maximum.reduceat(firsts, starts)) & ~np.logical_or.reduceat(
            rows.shared[order], starts
        )
        count = len(sums.new_bytes)
        sums.new_bytes += np.bincount(first, lengths, count)
        sums.exclusive_bytes += np.bincount(first[is_own], lengths[is_own], count)
        masks = self._joined_masks(rows.masks[order], starts)
        for mask, size in enumerate(np.bincount(masks, lengths).tolist()):
            if size:
                sums.by_mask[mask] = sums.by_mask.get(mask, 0) + int(size)

    def _sum_arrays(self, rows: _Rows) -> None:
        one = _one_of_each(rows.keys ^ (rows.arrays.astype(np.uint64) * _MIX))
        sizes = []
        for is_virtual in (False, True):
            some = one[rows.virtual[one] == is_virtual]
            sizes.append(np.bincount(rows.arrays[some], rows.lengths[some], len(self._paths)).tolist())
        for path, native, virtual in zip(self._paths, *sizes, strict=True):
            self._sums.add_array(path, int(native), 0, int(virtual))

    def _joined_masks(
        self, masks: npt.NDArray[np.int64], starts: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.int64]:
        """Return for each group of rows the mask of all that its rows have."""
        groups = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(masks))))
        pairs = (
            np.unique(np.stack((groups, masks), axis=1), axis=0) if len(self._sums.masks.values) > 1 else None
        )
        if pairs is None:
            return masks[starts]
        first = _starts(pairs[:, 0])
        sizes = np.diff(np.append(first, len(pairs)))
        joined: npt.NDArray[np.int64] = pairs[first, 1].copy()
        for at in range(1, int(sizes.max())):
            rows = np.flatnonzero(sizes > at)
            combined, where = np.unique(
                np.stack((joined[rows], pairs[first[rows] + at, 1]), axis=1), axis=0, return_inverse=True
            )
            numbers = [self._sums.masks.join(one, other) for one, other in combined.tolist()]
            joined[rows] = np.array(numbers, np.int64)[where.reshape(-1)]
        return joined


def _is_ref(manifest: Manifest) -> npt.NDArray[np.bool_]:
    kinds = manifest.kinds
    found: npt.NDArray[np.bool_] = kinds == ChunkKind.STORED
    found |= kinds == ChunkKind.VIRTUAL
    return found


def _pack_keys(manifest: Manifest) -> U64:
    # By the random half of the id: the other is the session's.
    return np.array([int.from_bytes(pack[8:], "little") for pack in manifest.packs], np.uint64)


def _location_keys(manifest: Manifest) -> U64:
    digests = (blake3_digest(location.encode()) for location in manifest.locations)
    return np.array([int.from_bytes(digest[:8], "little") for digest in digests], np.uint64)


def _lookup(values: U64, sources: npt.NDArray[np.uint32]) -> U64:
    if len(values) == 0:
        return np.zeros(len(sources), np.uint64)
    return values[np.minimum(sources, len(values) - 1)]


def _starts(values: npt.NDArray[np.generic]) -> npt.NDArray[np.intp]:
    """Return where runs of equal values start."""
    is_start = np.ones(len(values), dtype=bool)
    is_start[1:] = values[1:] != values[:-1]
    return np.flatnonzero(is_start)


def _one_of_each(values: U64) -> npt.NDArray[np.intp]:
    """Return a row of each value that there is."""
    order: npt.NDArray[np.intp] = np.argsort(values)
    return order[_starts(values[order])] if len(order) else order
