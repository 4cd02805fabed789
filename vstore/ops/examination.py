"""Compares what snapshots need with what packs hold, a manifest at a time; chunk data is not read.

The one walk behind fsck and behind rebuilding a catalog: it knows no catalog, only snapshots and which pack has the
blobs of which. Memory is bounded by the indexes of packs and by what is wrong. Neighbours: `pack_index` below, `fsck`
and `rebuild` above.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from vstore.blobs.reader import BlobReader
from vstore.errors import FormatError, MissingBlobError, ObjectNotFoundError, StorageError, UnsafeStorageError
from vstore.format.record import SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import PackId
from vstore.keys.objects import pack_name
from vstore.ops.findings import Findings, Problem
from vstore.ops.marks import Progress, silent
from vstore.ops.pack_index import (
    BlobColumns,
    PackIndex,
    PackIndexes,
    chunk_columns,
    columns_of,
    join_columns,
)
from vstore.reachability import Found, NeededBlob, NeededChunks, Unreadable, Walk
from vstore.storage.base import Storage

_LOOSE_PARTS = 64


class Scope(NamedTuple):
    """What is examined: snapshots, pages of the catalog, and the packs that have the blobs of replaced ones."""

    entries: Sequence[SnapshotEntry]
    pages: Sequence[BlobRef]
    moved: Mapping[PackId, PackId]


def reader_of(storage: Storage, moved: Mapping[PackId, PackId]) -> BlobReader:
    """Return a reader that finds moved blobs by `moved` alone."""

    def recover(ref: BlobRef, what: str) -> Mapping[PackId, PackId]:
        if ref.pack not in moved:
            raise MissingBlobError(f"{what} is missing: there is no pack {ref.pack.hex()}.")
        return moved

    return BlobReader(storage, recover)


class Examination:
    """Compares; `findings` has what is wrong.

    `needed` are the packs that must be there, `met` those that are read from: also the replaced ones that are not
    deleted yet.
    """

    def __init__(self, storage: Storage, scope: Scope) -> None:
        self.scope = scope
        self.blobs = reader_of(storage, scope.moved)
        self.findings = Findings()
        self.needed: set[PackId] = set()
        self.met: set[PackId] = set()
        self.refs = 0
        self.bytes = 0
        self._indexes = PackIndexes(self.blobs)

    def run(self, progress: Progress = silent) -> None:
        """Compare all of it."""
        self._indexes.read_ahead({entry.ref.pack for entry in self.scope.entries})
        for found in iter_needed(Walk(self.blobs), self.scope, progress):
            if isinstance(found, Unreadable):
                if isinstance(found.error, UnsafeStorageError):
                    raise found.error
                self._note_unreadable(found)
            elif isinstance(found, NeededBlob):
                self._compare(found.ref.pack, columns_of(found.ref, found.kind))
            else:
                for pack, rows in found.by_pack():
                    self._compare(pack, chunk_columns(found, rows))

    def index(self, pack: PackId) -> PackIndex | FormatError | StorageError:
        """Return a pack's index, or why its footer can't be read."""
        return self._indexes.get(pack)

    def _compare(self, pack: PackId, blobs: BlobColumns) -> None:
        self.refs += len(blobs)
        self.bytes += int(blobs.lengths.sum())
        target = self.scope.moved.get(pack)
        self.needed.add(pack if target is None else target)
        index = self._indexes.get(pack)
        if target is not None:
            self._compare_target(target, blobs)
            if isinstance(index, ObjectNotFoundError):
                return
        self.met.add(pack)
        # Also where compact moved the blobs: as long as the pack is there, readers read it.
        if not isinstance(index, PackIndex):
            self._note_trouble(pack, index)
            return
        good = index.has_there(blobs)
        if not good.all():
            bad = blobs.take(~good)
            is_elsewhere = index.has(bad)
            self.findings.of(pack).add(bad.take(is_elsewhere), Problem.ELSEWHERE)
            self.findings.of(pack).add(bad.take(~is_elsewhere), Problem.ABSENT)

    def _compare_target(self, target: PackId, blobs: BlobColumns) -> None:
        index = self._indexes.get(target)
        self.met.add(target)
        if not isinstance(index, PackIndex):
            self._note_trouble(target, index)
            return
        good = index.has(blobs)
        if not good.all():
            self.findings.of(target).add(blobs.take(~good), Problem.ABSENT)

    def _note_trouble(self, pack: PackId, error: FormatError | StorageError) -> None:
        found = self.findings.of(pack)
        found.is_missing = isinstance(error, ObjectNotFoundError)
        found.is_out_of_reach = isinstance(error, StorageError) and not found.is_missing
        place = f"{pack_name(pack)} of {self.blobs.storage.url}: "
        found.whole = "is missing" if found.is_missing else error.message.removeprefix(place)

    def _note_unreadable(self, found: Unreadable) -> None:
        """Note metadata that can't be read; where it lies was compared before."""
        ref = found.blob.ref
        target = self.scope.moved.get(ref.pack)
        if target is not None and isinstance(self._indexes.get(ref.pack), ObjectNotFoundError):
            if not isinstance(self._indexes.get(target), PackIndex):
                return
            try:
                ref = self.blobs.find(ref, target)
            except (FormatError, StorageError):
                # Noted when it was compared: the target does not have it.
                return
        known = self.findings.get(ref.pack)
        if known is None or not known.is_missing:
            self.findings.note_unreadable(ref, columns_of(ref, found.blob.kind), str(found.error))


def iter_needed(walk: Walk, scope: Scope, progress: Progress = silent) -> Iterator[Found]:
    """Yield everything that `scope` need, each snapshot's metadata fetched at once where that saves requests."""
    for ref in scope.pages:
        yield from walk.catalog_page(ref)
    for number, entry in enumerate(walk.iter_snapshots(scope.entries)):
        progress(number, len(scope.entries), "snapshots")
        yield from walk.snapshot(entry)


class Wanted(NamedTuple):
    """The blobs that are needed of one pack: at their places, or (`moved_here`) wherever in it."""

    placed: BlobColumns
    moved_here: BlobColumns


def gather(storage: Storage, scope: Scope, packs: Set[PackId]) -> dict[PackId, Wanted]:
    """Return what is needed of `packs`, as far as metadata can be read."""
    placed = _Parts(packs)
    moved_here = _Parts(packs)
    for found in iter_needed(Walk(reader_of(storage, scope.moved)), scope):
        if isinstance(found, NeededBlob):
            blob = columns_of(found.ref, found.kind)
            placed.add(found.ref.pack, blob)
            moved_here.add(scope.moved.get(found.ref.pack), blob)
        elif isinstance(found, NeededChunks):
            for pack, rows in found.by_pack():
                target = scope.moved.get(pack)
                if pack in packs or target in packs:
                    blobs = chunk_columns(found, rows)
                    placed.add(pack, blobs)
                    moved_here.add(target, blobs)
    return {pack: Wanted(placed.take(pack), moved_here.take(pack)) for pack in packs}


class _Parts:
    """Columns that come in pieces, for some packs; memory is that of the distinct rows."""

    def __init__(self, packs: Set[PackId]) -> None:
        self._packs = packs
        self._parts: dict[PackId, list[BlobColumns]] = defaultdict(list)

    def add(self, pack: PackId | None, blobs: BlobColumns) -> None:
        if pack is None or pack not in self._packs:
            return
        parts = self._parts[pack]
        parts.append(blobs)
        if len(parts) > _LOOSE_PARTS:
            self._parts[pack] = [join_columns(parts)]

    def take(self, pack: PackId) -> BlobColumns:
        return join_columns(self._parts.pop(pack, []))
