"""Who needs each metadata blob: the first snapshot, whether another does, and the set of refs that reach it.

A walk over all retained snapshots, oldest first. A blob is visited again only when one of these changes, which is twice
as a rule. Manifests are not read: `ref_sums` does that, and `storage_stats` says what it all takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vstore.blobs.reader import BlobReader
from vstore.catalog.base import CatalogView
from vstore.errors import UnsafeStorageError
from vstore.format.node import Content, Tiles
from vstore.format.record import HistoryEntry, RefKind, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import SnapshotId, blake3_digest
from vstore.ops.marks import Progress
from vstore.reachability import Found, NeededBlob, TilePlace, Unreadable, Walk


class History:
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


class Masks:
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


@dataclass(slots=True)
class Need:
    """Who needs a blob: the first snapshot, by its number, whether others do too, and the refs, by their mask."""

    first: int
    is_shared: bool
    mask: int


class TileNeed(NamedTuple):
    """A manifest of an array: a blob or bytes, and who needs it."""

    place: TilePlace
    manifest: BlobRef | bytes
    need: Need


class Census(Walk):
    """Visits metadata but for manifests, until it is known of each blob who needs it."""

    def __init__(self, blobs: BlobReader, history: History) -> None:
        super().__init__(blobs)
        self.masks = Masks()
        self.unreadable = 0
        self.tiles: dict[bytes, TileNeed] = {}
        self.values: dict[bytes, tuple[BlobRef, Need]] = {}
        self._history = history
        self._number = self._mask = 0
        self._visits: dict[bytes, Need] = {}
        self._metadata_blobs: dict[bytes, tuple[Need, int]] = {}
        self._array = b""

    def run(self, progress: Progress) -> None:
        unreadable = set()
        for number, entry in enumerate(self.iter_snapshots(self._history.entries)):
            progress(number, len(self._history.entries), "snapshots")
            self._number = number
            self._mask = self.masks.number(self._history.reached_by(entry))
            for found in self.snapshot(entry):
                if isinstance(found, Unreadable):
                    if isinstance(found.error, UnsafeStorageError):
                        # Of the server, which reads nothing rightly: there would be nothing but zeros.
                        raise found.error
                    unreadable.add(found.blob.ref.digest)
        self.unreadable = len(unreadable)

    def iter_metadata(self) -> Iterator[tuple[Need, int]]:
        """Yield who needs each metadata blob, and its length."""
        return iter(self._metadata_blobs.values())

    def enters(self, ref: BlobRef) -> bool:
        return self._note(ref)

    def _note(self, ref: BlobRef, array: bytes = b"") -> bool:
        """Note that the present snapshot needs a blob; tell whether that changes anything for what is below it."""
        key = ref.digest + ref.pack
        known = self._metadata_blobs.get(key)
        if known is None:
            self._metadata_blobs[key] = Need(self._number, False, self._mask), ref.length
        else:
            self._join(known[0])
        # What arrays share is visited for each of them.
        return self._visit(key + (array or self._array))

    def _visit(self, key: bytes) -> bool:
        need = self._visits.get(key)
        if need is None:
            self._visits[key] = Need(self._number, False, self._mask)
            return True
        return self._join(need)

    def _join(self, need: Need) -> bool:
        is_shared = need.is_shared or need.first != self._number
        mask = self.masks.join(need.mask, self._mask)
        changed = is_shared != need.is_shared or mask != need.mask
        need.is_shared, need.mask = is_shared, mask
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
        self.tiles.setdefault(key, TileNeed(place, ref, self._visits[key]))
        yield from ()

    def inline_manifest(self, place: TilePlace, data: bytes, holder: NeededBlob) -> Iterator[Found]:
        key = blake3_digest(data) + repr(place).encode()
        self._visit(key)
        self.tiles.setdefault(key, TileNeed(place, data, self._visits[key]))
        yield from ()
