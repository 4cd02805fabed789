"""What damage affects: which arrays, which boxes of their chunks, which other keys, and which snapshots.

A second walk, made only if something is damaged. Each damage has a number; a metadata blob carries the set of the
numbers below it, as bits of an int, so that a snapshot that shares a page with another is not walked again. What is
kept of each damage is bounded. Below: `findings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.reader import BlobReader
from vstore.changes.boxes import Box, boxes_of
from vstore.changes.tiling import join_indices
from vstore.format.columns import U64
from vstore.format.record import SnapshotEntry
from vstore.ids import Digest, PackId, SnapshotId
from vstore.ops.examination import Scope, iter_needed, reader_of
from vstore.ops.findings import Findings
from vstore.ops.live import digest_prefixes
from vstore.ops.marks import Progress, silent
from vstore.ops.pack_index import BlobColumns, chunk_columns, columns_of
from vstore.reachability import NeededBlob, NeededChunks, Walk
from vstore.storage.base import Storage

SHOWN_BLOBS = 16
"""So many bad blobs of a pack are told apart; the others make one damage."""
SHOWN_SNAPSHOTS = 8
SHOWN_ARRAYS = 8
SHOWN_BOXES = 8
SHOWN_OTHERS = 8
_KEPT_CHUNKS = 16_384
_NONE = np.int64(-1)


class AffectedArray(NamedTuple):
    """Chunks of one array: the first `boxes` of them; `more_boxes` are not listed, `chunks` are all."""

    path: str
    boxes: tuple[Box, ...]
    more_boxes: int
    chunks: int

    def __str__(self) -> str:
        boxes = ", ".join(map(str, self.boxes)) + (
            f" and {self.more_boxes:,} more boxes" if self.more_boxes else ""
        )
        noun = "chunk" if self.chunks == 1 else "chunks"
        return f"{noun} {boxes} of array {self.path!r}"


@dataclass(slots=True)
class Effects:
    """What one damage affects: everything in the lists is the first of what there is, which is counted beside."""

    arrays: list[AffectedArray] = field(default_factory=list)
    array_count: int = 0
    others: list[str] = field(default_factory=list)
    other_count: int = 0
    snapshots: list[SnapshotId] = field(default_factory=list)
    snapshot_count: int = 0

    def __str__(self) -> str:
        parts = [str(array) for array in self.arrays] + _more(len(self.arrays), self.array_count, "arrays")
        parts += self.others + _more(len(self.others), self.other_count, "blobs")
        text = "; ".join(parts) or "nothing that is known"
        if self.snapshot_count:
            ids = ", ".join(snapshot.hex()[:12] for snapshot in self.snapshots)
            more = self.snapshot_count - len(self.snapshots)
            noun = "snapshot" if self.snapshot_count == 1 else "snapshots"
            text += f"; in {noun} {ids}" + (f" and {more:,} more" if more else "")
        return text


def _more(shown: int, count: int, noun: str) -> list[str]:
    return [f"and {count - shown:,} more {noun}"] if count > shown else []


class Damaged(NamedTuple):
    """One damage: a pack as a whole (`rows` is None), or the bad blobs in these rows of its findings."""

    pack: PackId
    rows: tuple[int, int] | None


def number_damages(findings: Findings) -> list[Damaged]:
    """Return the damages to tell apart: each pack as a whole, its first bad blobs singly, the others together."""
    damages = []
    for pack, found in findings:
        if found.whole:
            damages.append(Damaged(pack, None))
        count = len(found.bad_blobs().problems)
        single = min(count, SHOWN_BLOBS)
        damages += [Damaged(pack, (row, row + 1)) for row in range(single)]
        if count > single:
            damages.append(Damaged(pack, (single, count)))
    return damages


def find_effects(
    storage: Storage,
    scope: Scope,
    findings: Findings,
    damages: list[Damaged],
    progress: Progress = silent,
) -> list[Effects]:
    """Return what each of `damages` affects, in what `scope` can be read of."""
    return _Tracer(
        reader_of(storage, scope.moved), _Matcher(findings, damages, scope.moved), len(damages)
    ).effects(scope, progress)


def find_affected(storage: Storage, scope: Scope, findings: Findings) -> set[SnapshotId]:
    """Return all snapshots that anything in `findings` affects."""
    damages = [Damaged(pack, None) for pack, found in findings if found.whole]
    damages += [
        Damaged(pack, (0, count)) for pack, found in findings if (count := len(found.bad_blobs().blobs))
    ]
    tracer = _Tracer(reader_of(storage, scope.moved), _Matcher(findings, damages, scope.moved), len(damages))
    tracer.effects(scope, silent)
    return {entry.id for entry in scope.entries if tracer.is_affected(entry)}


class _Matcher:
    """Finds the numbers of the damages that blobs are hit by."""

    def __init__(self, findings: Findings, damages: list[Damaged], moved: Mapping[PackId, PackId]) -> None:
        self._moved = moved
        self._whole = {damage.pack: number for number, damage in enumerate(damages) if damage.rows is None}
        self._there: dict[PackId, _Numbers] = {}
        self._anywhere: dict[PackId, _Numbers] = {}
        rows: dict[PackId, list[tuple[int, int, int]]] = {}
        for number, damage in enumerate(damages):
            if damage.rows is not None:
                rows.setdefault(damage.pack, []).append((*damage.rows, number))
        for pack, parts in rows.items():
            found = findings.get(pack)
            assert found is not None
            blobs = found.bad_blobs().blobs
            numbers = np.full(len(blobs), _NONE)
            for start, stop, number in parts:
                numbers[start:stop] = number
            self._there[pack] = _Numbers(blobs.keys(), numbers)
            self._anywhere[pack] = _Numbers(digest_prefixes(blobs.digests), numbers)

    def match(self, pack: PackId, blobs: BlobColumns) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        """Yield the number of each damage with the rows of `blobs`, which refs place in `pack`, that it hits."""
        target = self._moved.get(pack)
        for place in (pack, target):
            whole = None if place is None else self._whole.get(place)
            if whole is not None:
                yield whole, np.arange(len(blobs))
        there = self._there.get(pack)
        if there is not None:
            yield from there.match(blobs.keys())
        anywhere = None if target is None else self._anywhere.get(target)
        if anywhere is not None:
            yield from anywhere.match(digest_prefixes(blobs.digests))


class _Numbers:
    """A table from keys to numbers."""

    def __init__(self, keys: U64, numbers: npt.NDArray[np.int64]) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._numbers = keys[order], numbers[order]

    def match(self, keys: U64) -> Iterator[tuple[int, npt.NDArray[np.intp]]]:
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        hit = np.flatnonzero((self._keys[at] == keys) & (self._numbers[at] != _NONE))
        numbers = self._numbers[at[hit]]
        for number in np.unique(numbers).tolist():
            yield number, hit[numbers == number]


class _Chunks:
    """Chunks of one array: the first of their indices, distinct, and how many there are at most."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.int64]] = []
        self._kept = 0
        self._more = 0

    def add(self, indices: npt.NDArray[np.int64]) -> None:
        if self._kept >= _KEPT_CHUNKS:
            # Which of them are new is not told any more.
            self._more += len(indices)
            return
        self._parts.append(indices)
        self._kept += len(indices)
        if self._kept >= _KEPT_CHUNKS:
            self._parts = [np.unique(np.concatenate(self._parts), axis=0)]
            self._kept = len(self._parts[0])

    def summary(self, path: str) -> AffectedArray:
        joined = np.concatenate(self._parts)
        distinct = np.unique(joined, axis=0) if joined.shape[1] else joined[:1]
        boxes = boxes_of(distinct)
        more = max(len(boxes) - SHOWN_BOXES, 0)
        return AffectedArray(path, boxes[:SHOWN_BOXES], more, len(distinct) + self._more)


class _Tracer(Walk):
    """A walk that notes which damage is below which metadata."""

    def __init__(self, blobs: BlobReader, matcher: _Matcher, count: int) -> None:
        super().__init__(blobs)
        self._matcher = matcher
        self._effects = [Effects() for _ in range(count)]
        self._below: dict[Digest, int] = {}
        self._chunks: list[dict[str, _Chunks]] = [{} for _ in range(count)]
        self._more_arrays: list[set[str]] = [set() for _ in range(count)]

    def effects(self, scope: Scope, progress: Progress) -> list[Effects]:
        """Walk through `scope` and return what is affected by each damage."""
        # The newest first: what is affected is called by its name of today.
        entries = sorted(scope.entries, key=lambda entry: -entry.time_us)
        for found in iter_needed(self, scope._replace(entries=entries), progress):
            if isinstance(found, NeededBlob):
                self._take_blob(found)
            elif isinstance(found, NeededChunks):
                self._take_chunks(found)
        for entry in entries:
            for number in _bits(self._below.get(entry.ref.digest, 0)):
                effects = self._effects[number]
                effects.snapshot_count += 1
                if len(effects.snapshots) < SHOWN_SNAPSHOTS:
                    effects.snapshots.append(entry.id)
        for effects, arrays, more in zip(self._effects, self._chunks, self._more_arrays, strict=True):
            effects.arrays = [chunks.summary(path) for path, chunks in arrays.items()]
            effects.array_count = len(arrays) + len(more)
        return self._effects

    def is_affected(self, entry: SnapshotEntry) -> bool:
        """Tell whether a snapshot of those that were walked through needs anything that is damaged."""
        return bool(self._below.get(entry.ref.digest))

    def met_again(self, digest: Digest) -> None:
        below = self._below.get(digest, 0)
        if below:
            self._mark(below)

    def _take_blob(self, found: NeededBlob) -> None:
        ref = found.ref
        for number, _ in self._matcher.match(ref.pack, columns_of(ref, found.kind)):
            self._mark(1 << number)
            self._below[ref.digest] = self._below.get(ref.digest, 0) | 1 << number
            effects = self._effects[number]
            effects.other_count += 1
            if len(effects.others) < SHOWN_OTHERS:
                effects.others.append(found.what)

    def _take_chunks(self, found: NeededChunks) -> None:
        for pack, rows in found.by_pack():
            for number, hit in self._matcher.match(pack, chunk_columns(found, rows)):
                self._mark(1 << number)
                arrays = self._chunks[number]
                if found.path not in arrays and len(arrays) >= SHOWN_ARRAYS:
                    self._more_arrays[number].add(found.path)
                    continue
                indices = join_indices(found.tile, found.positions[rows[hit]], found.extents)
                arrays.setdefault(found.path, _Chunks()).add(indices)

    def _mark(self, bits: int) -> None:
        for digest in self.spine:
            self._below[digest] = self._below.get(digest, 0) | bits


def _bits(number: int) -> Iterator[int]:
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
