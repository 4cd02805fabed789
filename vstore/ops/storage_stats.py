"""Where the bytes are: by array, branch, tag and snapshot, shared and exclusive, from pointers and manifests alone.

`census` finds out who needs each metadata blob, `ref_sums` reads the manifests and sums up what chunks take. This
module asks both and has the answer, `StorageStats`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from vstore.blobs.reader import BlobReader
from vstore.errors import FormatError, StorageError
from vstore.format.record import RefKind, SnapshotEntry
from vstore.handle import Handle
from vstore.keys.objects import PACK_PREFIX
from vstore.ops.census import Census, History
from vstore.ops.marks import Progress, silent
from vstore.ops.ref_sums import RefSums, Sums
from vstore.storage.base import reads_only


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
        if self.unreadable:
            lines.append(
                f"{self.unreadable:,} metadata blobs can't be read, so that these figures are too low: see repo.fsck()"
            )
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
        history = History(view)
        pages = list(view.iter_pages())
    census = Census(handle.blobs_for(None), history)
    census.run(progress)
    stats = StorageStats(unreadable=census.unreadable)
    try:
        stats.pack_bytes = sum(info.size for info in handle.storage.list(PACK_PREFIX))
    except StorageError:
        if not reads_only(handle.storage):
            raise
    sums = Sums(len(history.entries), census.masks)
    for need, length in census.iter_metadata():
        sums.add_metadata(need, length)
    # The catalog's own pages belong to no snapshot.
    sums.metadata_bytes += sum(ref.length for ref in {(ref.digest, ref.pack): ref for ref in pages}.values())
    RefSums(census, sums).run(progress)
    _fill(stats, history, census, sums, top)
    return stats


def _fill(stats: StorageStats, history: History, census: Census, sums: Sums, top: int) -> None:
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
