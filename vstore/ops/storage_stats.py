"""Where the bytes are: by array, branch, tag and snapshot, shared and exclusive, from pointers and manifests alone.

A walk over all retained snapshots, oldest first, notes of each metadata blob the first snapshot that needs it, whether
another does, and the set of refs that reach it. A blob is visited again only when one of these changes, which is twice
as a rule. Then each manifest is read once, its refs take over what was noted of it, and refs to one blob are joined by
sorting. Millions of refs are done in parts, by their digests, so that memory is bounded. No chunk is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.reader import BlobReader
from vstore.catalog.base import CatalogView
from vstore.errors import FormatError, StorageError
from vstore.format.columns import U64
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest
from vstore.format.node import Content, Tiles
from vstore.format.record import HistoryEntry, RefKind, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.handle import Handle
from vstore.ids import Digest, SnapshotId, blake3_digest
from vstore.keys.objects import PACK_PREFIX
from vstore.ops.live import digest_prefixes
from vstore.ops.marks import Progress, silent
from vstore.reachability import Found, NeededBlob, TilePlace, Unreadable, Walk
from vstore.storage.base import reads_only

PART_ROWS = 2_000_000
"""So many refs are joined at once, in about 200 MB."""
_VALUES = "\0"
"""Stands for the path of plain values, which belong to no array."""
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)


class ArrayStats(NamedTuple):
    """What all versions of one array, in all retained snapshots, take; what several arrays share counts for each."""

    path: str
    native_bytes: int
    inlined_bytes: int
    virtual_bytes: int


class RefStats(NamedTuple):
    """A branch or tag: `live_bytes` is what its snapshot's chunks stand for, an upper bound unless `is_exact`.

    `stored_bytes` is all that it reaches, its history included. `exclusive_bytes` is what only it reaches: deleting it
    would free that, once its snapshots have expired.
    """

    kind: str
    name: str
    live_bytes: int
    is_exact: bool
    stored_bytes: int
    exclusive_bytes: int


class SnapshotStats(NamedTuple):
    """A retained snapshot: `new_bytes` is what it needs and no older one does, `exclusive_bytes` what no other does.

    If it alone expired, that would be freed. `live_bytes` as for `RefStats`.
    """

    id: str
    message: str | None
    live_bytes: int
    is_exact: bool
    new_bytes: int
    exclusive_bytes: int


@dataclass(slots=True)
class StorageStats:
    """What a repository's retained snapshots take; every blob counts once, in bytes as they are stored.

    `native_bytes` are chunks and plain values in packs, `inlined_bytes` chunks inside manifests, `virtual_bytes` ranges
    of other people's files, `metadata_bytes` snapshots, pages, manifests and documents. `versions_bytes` is what native
    chunks would take if each version of each chunk were stored by itself. `pack_bytes` is the size of all packs (0 on a
    web server, which lists nothing), `unreferenced_bytes` what is needed only by snapshots that no branch or tag
    reaches, and `unreadable` the metadata blobs that can't be read, below which nothing was counted.
    """

    native_bytes: int = 0
    inlined_bytes: int = 0
    virtual_bytes: int = 0
    metadata_bytes: int = 0
    versions_bytes: int = 0
    pack_bytes: int = 0
    unreferenced_bytes: int = 0
    unreadable: int = 0
    arrays: dict[str, ArrayStats] = field(default_factory=dict)
    branches: dict[str, RefStats] = field(default_factory=dict)
    tags: dict[str, RefStats] = field(default_factory=dict)
    snapshots: dict[str, SnapshotStats] = field(default_factory=dict)
    largest: list[SnapshotStats] = field(default_factory=list)

    def non_virtual_bytes(self) -> int:
        """Return the bytes of all chunks that are in the repository."""
        return self.native_bytes + self.inlined_bytes

    def total_bytes(self) -> int:
        """Return the bytes of all chunks."""
        return self.native_bytes + self.inlined_bytes + self.virtual_bytes

    @property
    def dedup_share(self) -> float:
        """Which part of the versions of chunks is stored by another's bytes: 0.0 to 1.0."""
        return max(0.0, 1 - self.native_bytes / self.versions_bytes) if self.versions_bytes else 0.0

    @property
    def inlined_share(self) -> float:
        """Which part of the chunks' own bytes is inside manifests: 0.0 to 1.0."""
        own = self.non_virtual_bytes()
        return self.inlined_bytes / own if own else 0.0

    def __str__(self) -> str:
        saved, inlined = f"{self.dedup_share:.0%}", f"{self.inlined_share:.0%}"
        lines = [
            f"{self.native_bytes:,} bytes of chunks in packs ({saved} saved by equal content)",
            f"{self.inlined_bytes:,} bytes of inline chunks ({inlined}), {self.virtual_bytes:,} of virtual ones",
            f"{self.metadata_bytes:,} bytes of metadata; all packs have {self.pack_bytes:,} bytes",
        ]
        lines += [
            f"{ref.kind} {ref.name!r}: {ref.stored_bytes:,} bytes, {ref.exclusive_bytes:,} of them its own"
            for ref in (*self.branches.values(), *self.tags.values())
        ]
        lines += [
            f"snapshot {each.id[:12]} added {each.new_bytes:,} bytes: {each.message!r}"
            for each in self.largest
        ]
        return "\n".join(lines)


def storage_stats(handle: Handle, *, top: int = 10, progress: Progress = silent) -> StorageStats:
    """Return what the retained snapshots take; `top` is how many of the largest changes are listed."""
    with handle.catalog.reading() as view:
        history = _History(view)
        pages = list(view.iter_pages())
    census = _Census(handle.blobs_for(None), history)
    census.run(progress)
    stats = StorageStats(unreadable=census.unreadable)
    try:
        stats.pack_bytes = sum(info.size for info in handle.storage.list(PACK_PREFIX))
    except StorageError:
        if not reads_only(handle.storage):
            raise
    sums = _Sums(len(history.entries), census.masks)
    for state, length in census.iter_metadata():
        sums.add_metadata(state, length)
    # The catalog's own pages belong to no snapshot.
    sums.metadata_bytes += sum(ref.length for ref in {(ref.digest, ref.pack): ref for ref in pages}.values())
    _Refs(census, sums).run(progress)
    _fill(stats, history, census, sums, top)
    return stats


# --- history -------------------------------------------------------------------------------------------------


class _History:
    """Retained snapshots, oldest first, and by which refs each is reached, as the bits of an int.

    `loose` is the bit of those that no ref reaches.
    """

    def __init__(self, view: CatalogView) -> None:
        self.refs = [(kind, name, snapshot) for kind in RefKind for name, snapshot in view.iter_refs(kind)]
        self.entries = sorted(view.iter_snapshots(), key=lambda entry: (entry.time_us, entry.id))
        known: list[HistoryEntry] = [*self.entries, *view.iter_expired()]
        self.loose = 1 << len(self.refs)
        self._reached: dict[SnapshotId, int] = {}
        for bit, (_, _, snapshot) in enumerate(self.refs):
            self._reached[snapshot] = self._reached.get(snapshot, 0) | 1 << bit
        # Children first: a snapshot is later than its parents.
        for entry in sorted(known, key=lambda entry: -entry.time_us):
            bits = self._reached.get(entry.id, 0)
            for parent in entry.parents if bits else ():
                self._reached[parent] = self._reached.get(parent, 0) | bits

    def reached_by(self, entry: SnapshotEntry) -> int:
        return self._reached.get(entry.id, self.loose)


class _Masks:
    """Sets of refs, as numbers: few, as most snapshots are reached by the same ones."""

    def __init__(self) -> None:
        self.values: list[int] = []
        self._numbers: dict[int, int] = {}

    def number(self, bits: int) -> int:
        found = self._numbers.get(bits)
        if found is None:
            found = self._numbers[bits] = len(self.values)
            self.values.append(bits)
        return found

    def join(self, one: int, other: int) -> int:
        return one if one == other else self.number(self.values[one] | self.values[other])


# --- the walk ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _State:
    """Who needs a blob: the first snapshot, by its number, whether others do too, and the refs, by their mask."""

    first: int
    is_shared: bool
    mask: int


class _Tile(NamedTuple):
    """A manifest of an array: a blob or bytes, and who needs it."""

    place: TilePlace
    manifest: BlobRef | bytes
    state: _State


class _Census(Walk):
    """Visits metadata but for manifests, until it is known of each blob who needs it."""

    def __init__(self, blobs: BlobReader, history: _History) -> None:
        super().__init__(blobs)
        self.masks = _Masks()
        self.unreadable = 0
        self.tiles: dict[bytes, _Tile] = {}
        self.values: dict[bytes, tuple[BlobRef, _State]] = {}
        self._history = history
        self._number = self._mask = 0
        self._visits: dict[bytes, _State] = {}
        self._metadata_blobs: dict[bytes, tuple[_State, int]] = {}
        self._array = b""

    def run(self, progress: Progress) -> None:
        unreadable = set()
        for number, entry in enumerate(self.iter_snapshots(self._history.entries)):
            progress(number, len(self._history.entries), "snapshots")
            self._number = number
            self._mask = self.masks.number(self._history.reached_by(entry))
            for found in self.snapshot(entry):
                if isinstance(found, Unreadable):
                    unreadable.add(found.blob.ref.digest)
        self.unreadable = len(unreadable)

    def iter_metadata(self) -> Iterator[tuple[_State, int]]:
        """Yield who needs each metadata blob, and its length."""
        return iter(self._metadata_blobs.values())

    def enters(self, ref: BlobRef) -> bool:
        return self._note(ref)

    def _note(self, ref: BlobRef, array: bytes = b"") -> bool:
        """Note that the present snapshot needs a blob; tell whether that changes anything for what is below it."""
        key = ref.digest + ref.pack
        known = self._metadata_blobs.get(key)
        if known is None:
            self._metadata_blobs[key] = _State(self._number, False, self._mask), ref.length
        else:
            self._join(known[0])
        # What arrays share is visited for each of them.
        return self._visit(key + (array or self._array))

    def _visit(self, key: bytes) -> bool:
        state = self._visits.get(key)
        if state is None:
            self._visits[key] = _State(self._number, False, self._mask)
            return True
        return self._join(state)

    def _join(self, state: _State) -> bool:
        is_shared = state.is_shared or state.first != self._number
        mask = self.masks.join(state.mask, self._mask)
        changed = is_shared != state.is_shared or mask != state.mask
        state.is_shared, state.mask = is_shared, mask
        return changed

    def value(self, name: str, content: Content) -> Iterator[Found]:
        if isinstance(content, BlobRef):
            key = content.digest + content.pack
            self._visit(key)
            self.values[key] = content, self._visits[key]
        yield from ()

    def document(self, path: str, name: str, content: Content) -> Iterator[Found]:
        if isinstance(content, BlobRef):
            self._note(content)
        yield from ()

    def tile_tree(self, path: str, tiles: Tiles, root: BlobRef) -> Iterator[Found]:
        self._array = path.encode()
        yield from super().tile_tree(path, tiles, root)
        self._array = b""

    def manifest(self, place: TilePlace, ref: BlobRef) -> Iterator[Found]:
        array = place.path.encode()
        self._note(ref, array)
        key = ref.digest + ref.pack + array
        self.tiles.setdefault(key, _Tile(place, ref, self._visits[key]))
        yield from ()

    def inline_manifest(self, place: TilePlace, data: bytes, holder: NeededBlob) -> Iterator[Found]:
        key = blake3_digest(data) + repr(place).encode()
        self._visit(key)
        self.tiles.setdefault(key, _Tile(place, data, self._visits[key]))
        yield from ()


# --- sums ----------------------------------------------------------------------------------------------------


class _Sums:
    """What is summed up, by snapshot and by the mask of refs."""

    def __init__(self, snapshots: int, masks: _Masks) -> None:
        self.masks = masks
        self.native_bytes = self.inlined_bytes = self.virtual_bytes = 0
        self.metadata_bytes = self.versions_bytes = 0
        self.new_bytes = np.zeros(snapshots)
        self.exclusive_bytes = np.zeros(snapshots)
        self.by_mask: dict[int, int] = {}
        self.arrays: dict[str, list[int]] = {}

    def add_metadata(self, state: _State, length: int) -> None:
        self.metadata_bytes += length
        self.new_bytes[state.first] += length
        if not state.is_shared:
            self.exclusive_bytes[state.first] += length
        self.by_mask[state.mask] = self.by_mask.get(state.mask, 0) + length

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


class _Refs:
    """Reads manifests and sums up their refs, each blob and each range once."""

    def __init__(self, census: _Census, sums: _Sums) -> None:
        self._census = census
        self._sums = sums
        self._paths: dict[str, int] = {_VALUES: 0}
        self._unreadable: set[Digest] = set()

    def run(self, progress: Progress) -> None:
        total = self._read_inline(progress)
        parts = max(1, -(-total // PART_ROWS))
        width = 2**64 // parts
        for part in range(parts):
            progress(part, parts, "parts of the references")
            low, high = part * width, 2**64 - 1 if part == parts - 1 else (part + 1) * width - 1
            columns = [self._rows(*found, low, high) for found in self._manifests()]
            columns.append(self._value_rows(low, high))
            self._sum(_Rows(*(np.concatenate(column) for column in zip(*columns, strict=True))))
        self._sums.arrays.pop(_VALUES, None)
        self._census.unreadable += len(self._unreadable)

    def _manifests(self) -> Iterator[tuple[_Tile, Manifest]]:
        for tile in self._census.tiles.values():
            try:
                if isinstance(tile.manifest, bytes):
                    yield tile, decode_manifest(tile.manifest)
                else:
                    yield tile, self._census.blobs.manifest(tile.manifest)
            except (FormatError, StorageError):
                if isinstance(tile.manifest, BlobRef):
                    self._unreadable.add(tile.manifest.digest)

    def _read_inline(self, progress: Progress) -> int:
        """Sum up the inline chunks, and return how many other refs there are."""
        total = 0
        count = len(self._census.tiles)
        seen: set[bytes | Digest] = set()
        for number, (tile, manifest) in enumerate(self._manifests()):
            progress(number, count, "manifests")
            self._paths.setdefault(tile.place.path, len(self._paths))
            inlined = int(manifest.lengths[manifest.kinds == ChunkKind.INLINE].sum())
            total += int(np.count_nonzero(_is_ref(manifest)))
            self._sums.add_array(tile.place.path, 0, inlined, 0)
            # A manifest that arrays share holds its inline chunks once.
            name = tile.manifest if isinstance(tile.manifest, bytes) else tile.manifest.digest
            if inlined and name not in seen:
                seen.add(name)
                self._sums.inlined_bytes += inlined
        return total

    def _rows(self, tile: _Tile, manifest: Manifest, low: int, high: int) -> _Rows:
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
        state = tile.state

        def constant(value: int) -> npt.NDArray[np.int64]:
            return np.full(count, value, np.int64)

        return _Rows(
            keys[rows],
            content[rows] ^ (chunks * _MIX),
            manifest.lengths[rows],
            constant(self._paths[tile.place.path]),
            constant(state.first),
            constant(state.mask),
            np.full(count, state.is_shared),
            is_virtual[rows],
        )

    def _value_rows(self, low: int, high: int) -> _Rows:
        values = [
            (ref, state)
            for ref, state in self._census.values.values()
            if low <= int.from_bytes(ref.digest[:8], "little") <= high
        ]
        refs, states = [ref for ref, _ in values], [state for _, state in values]
        keys = np.array([int.from_bytes(ref.pack[8:], "little") for ref in refs], np.uint64)
        keys += np.array([ref.offset for ref in refs], np.uint64) * _MIX
        return _Rows(
            keys,
            # Each blob counts as one version.
            keys ^ _MIX,
            np.array([ref.length for ref in refs], np.uint64),
            np.zeros(len(refs), np.int64),
            np.array([state.first for state in states], np.int64),
            np.array([state.mask for state in states], np.int64),
            np.array([state.is_shared for state in states], bool),
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


def _fill(stats: StorageStats, history: _History, census: _Census, sums: _Sums, top: int) -> None:
    stats.native_bytes, stats.inlined_bytes = sums.native_bytes, sums.inlined_bytes
    stats.virtual_bytes, stats.metadata_bytes = sums.virtual_bytes, sums.metadata_bytes
    stats.versions_bytes = sums.versions_bytes
    stats.unreadable = census.unreadable
    stats.arrays = {path: ArrayStats(path, *sizes) for path, sizes in sorted(sums.arrays.items())}
    masks = sums.masks.values
    stats.unreferenced_bytes = sum(
        size for mask, size in sums.by_mask.items() if masks[mask] == history.loose
    )
    live = {entry.id: _live(census.blobs, entry) for entry in history.entries}
    for bit, (kind, name, snapshot) in enumerate(history.refs):
        stored = sum(size for mask, size in sums.by_mask.items() if masks[mask] >> bit & 1)
        own = sum(size for mask, size in sums.by_mask.items() if masks[mask] == 1 << bit)
        noun = kind.name.lower()
        of_kind = stats.branches if kind == RefKind.BRANCH else stats.tags
        of_kind[name] = RefStats(noun, name, *live.get(snapshot, (0, False)), stored, own)
    for number, entry in enumerate(history.entries):
        message = None if entry.info is None else entry.info[0]
        new, own = int(sums.new_bytes[number]), int(sums.exclusive_bytes[number])
        found = SnapshotStats(entry.id.hex(), message, *live[entry.id], new, own)
        stats.snapshots[found.id] = found
    stats.largest = _largest(list(stats.snapshots.values()), top)


def _largest(snapshots: Sequence[SnapshotStats], top: int) -> list[SnapshotStats]:
    return sorted(snapshots, key=lambda each: -each.new_bytes)[: max(top, 0)]


def _live(blobs: BlobReader, entry: SnapshotEntry) -> tuple[int, bool]:
    """Return what a snapshot's chunks stand for, and whether that is exact."""
    try:
        root = blobs.snapshot(entry.ref).root
    except (FormatError, StorageError):
        return 0, False
    return (0, True) if root is None else (root.totals.bytes, root.totals.exact)
