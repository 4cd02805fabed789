"""Puts damaged and missing packs back, from another copy of the repository and from equal blobs in this one.

A pack is written anew beside the damaged one: blob by blob, each at its place, each verified against its digest, from
wherever it is found. Only when all of that is durable does it take the damaged one's place, in one step. As a pack
never changes, the new one holds what the old one held, and it does not matter which of them a reader meets. Nothing is
guessed, nothing is deleted; what no source has is left out and reported. A crash leaves the damaged pack as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.reader import BlobReader
from vstore.errors import FormatError, StorageError
from vstore.format.pack import (
    HEADER_SIZE,
    PACK_HEADER,
    Footer,
    check_table,
    encode_ending,
)
from vstore.format.record import PackMark
from vstore.format.refs import CHECK_BLOCK_BYTES
from vstore.handle import Handle
from vstore.ids import BytesLike, PackId
from vstore.keys.objects import PACK_PREFIX, pack_name, parse_pack_name
from vstore.ops.examination import Scope, Wanted, gather
from vstore.ops.findings import Findings, PackFindings
from vstore.ops.live import digest_prefixes
from vstore.ops.marks import Progress, silent
from vstore.ops.pack_index import NO_BLOBS, BlobColumns, PackIndex, PackIndexes, concatenate, footer_columns
from vstore.ops.scrub import iter_intact
from vstore.storage.base import PackSink, Storage

_WRITE_BYTES = 4 * 1024 * 1024
_MAX_COPIES = 4
_PACKS_AT_ONCE = 16


class Repaired(NamedTuple):
    """A pack that was put back: `blobs` of it were fetched; `left` blobs that are needed were found nowhere."""

    place: str
    blobs: int
    bytes: int
    left: int

    def __str__(self) -> str:
        text = f"{self.place}: put back, with {self.blobs} blobs of {self.bytes} bytes from elsewhere"
        return text + (f"; {self.left} blobs that are needed were found nowhere" if self.left else "")


@dataclass(slots=True)
class Repairs:
    """What was put back, and why other packs were not."""

    done: list[Repaired] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def repair(
    handle: Handle, source: Handle, scope: Scope, findings: Findings, progress: Progress = silent
) -> tuple[Repairs, set[PackId]]:
    """Put back what `findings` say is damaged, as far as it is found; return what was done, and to which packs."""
    return _Repairer(handle, source, scope, findings).run(progress)


class _Layout(NamedTuple):
    """What a pack is to hold, in the order of places, and its ending if that is known byte for byte."""

    blobs: BlobColumns
    ending: memoryview | None


class _Known(NamedTuple):
    """The footer of one copy of a pack, and the bytes from it to the end."""

    footer: Footer
    ending: memoryview


class _Repairer:
    def __init__(self, handle: Handle, source: Handle, scope: Scope, findings: Findings) -> None:
        self._handle = handle
        self._scope = scope
        self._findings = findings
        self._source = source
        self._mine = BlobReader(handle.storage)
        self._theirs = BlobReader(source.storage)
        self._my_packs = AllPacks(handle.storage)
        self._their_packs = AllPacks(source.storage)
        self._repairs = Repairs()
        self._touched: set[PackId] = set()

    def run(self, progress: Progress) -> tuple[Repairs, set[PackId]]:
        later = []
        for number, (pack, found) in enumerate(self._findings):
            progress(number, len(self._findings), "packs repaired")
            if found.is_out_of_reach:
                self._repairs.failed.append(
                    f"{pack_name(pack)}: it is out of reach, which is no damage: {found.whole}"
                )
                continue
            layout = self._footer_layout(pack, found)
            if layout is None or not self._put_back(pack, found, layout, None):
                later.append(pack)
        # These need to be told from the refs what they should hold: a walk through all metadata.
        for start in range(0, len(later), _PACKS_AT_ONCE):
            some = later[start : start + _PACKS_AT_ONCE]
            wanted = gather(self._handle.storage, self._scope, set(some))
            for pack in some:
                found = self._findings.of(pack)
                self._put_back(pack, found, self._ref_layout(pack, wanted[pack]), wanted[pack])
        return self._repairs, self._touched

    # --- what a pack should hold -----------------------------------------------------------------------------

    def _footer_layout(self, pack: PackId, found: PackFindings) -> _Layout | None:
        """Return what a footer says that a pack holds; None if no footer is known to list all that it should."""
        mine, theirs = _known(self._mine, pack), _known(self._theirs, pack)
        if mine is None and not found.is_missing:
            return None
        for known in (theirs, mine):
            if known is None:
                continue
            index = PackIndex(known.footer)
            lists_bad = bool(index.has_there(found.bad_blobs().blobs).all())
            lists_mine = mine is None or bool(index.has_there(footer_columns(mine.footer)).all())
            if lists_bad and lists_mine:
                return _Layout(footer_columns(known.footer), known.ending)
        return None

    def _ref_layout(self, pack: PackId, wanted: Wanted) -> _Layout:
        """Return what a pack should hold by footers and refs together."""
        mine, theirs = _known(self._mine, pack), _known(self._theirs, pack)
        blobs = NO_BLOBS
        ending = None
        for known in (mine, theirs):
            if known is not None:
                blobs, grew = _with_those_that_fit(blobs, footer_columns(known.footer))
                ending = known.ending if grew else ending
        blobs, grew = _with_those_that_fit(blobs, wanted.placed)
        ending = None if grew else ending
        absent = ~_lists(blobs, wanted.moved_here)
        if absent.any():
            blobs, ending = _appended(blobs, wanted.moved_here.take(absent)), None
        return _Layout(blobs, ending)

    # --- putting back ----------------------------------------------------------------------------------------

    def _put_back(self, pack: PackId, found: PackFindings, layout: _Layout, wanted: Wanted | None) -> bool:
        """Write a pack anew; return False if it must be known first what is needed of it."""
        sink = self._handle.storage.replace_damaged_pack(pack)
        try:
            return self._fill_and_seal(sink, found, layout, wanted)
        except StorageError as error:
            self._repairs.failed.append(f"{pack_name(pack)}: could not be put back: {error}")
            return True
        finally:
            sink.discard()

    def _fill_and_seal(
        self, sink: PackSink, found: PackFindings, layout: _Layout, wanted: Wanted | None
    ) -> bool:
        pack, name = sink.pack, pack_name(sink.pack)
        filling = _Filling(sink, layout.blobs)
        self._fill(filling, pack)
        if not filling.is_there.all() and wanted is None:
            return False
        bad = _lists(found.bad_blobs().blobs, layout.blobs)
        mended = np.count_nonzero(filling.is_there & (bad | found.is_missing))
        if not mended and (not found.whole or found.is_missing):
            self._repairs.failed.append(f"{name}: nothing of what is damaged in it was found elsewhere")
            return True
        with self._handle.catalog.reading() as view:
            if any(state.mark == PackMark.DELETING for state in view.pack_states(frozenset({pack}))):
                self._repairs.failed.append(f"{name}: it is being deleted, as nothing needs it any more")
                return True
        sink.seal(filling.finish(layout.ending))
        self._touched.add(pack)
        left = 0 if wanted is None else _count_left(filling, layout.blobs, wanted)
        self._repairs.done.append(Repaired(name, filling.fetched, filling.fetched_bytes, left))
        return True

    def _fill(self, filling: _Filling, pack: PackId) -> None:
        """Fill a pack from itself, then from its copy, then with equal blobs of any pack."""
        mine, theirs = self._handle.storage, self._source.storage
        for storage, is_elsewhere in ((mine, False), (theirs, True)):
            if storage.size(pack_name(pack)) is not None:
                blobs, rows = filling.absent()
                filling.take(rows, iter_intact(storage, pack, blobs), is_elsewhere)
        for indexes in (self._their_packs, self._my_packs):
            for place in indexes.names:
                blobs, rows = filling.absent()
                if len(rows) == 0:
                    return
                index = indexes.get(place)
                if not isinstance(index, PackIndex):
                    continue
                found, offsets = index.locate(blobs)
                if found.any():
                    there = blobs._replace(offsets=offsets).take(found)
                    order = np.argsort(there.offsets, kind="stable")
                    intact = iter_intact(indexes.storage, place, there.take(order))
                    filling.take(rows[found][order], intact, True)


class _Filling:
    """A pack being written: which of its blobs are there, and how many of them came from elsewhere."""

    def __init__(self, sink: PackSink, blobs: BlobColumns) -> None:
        self._sink = sink
        self._blobs = blobs
        self.is_there = np.zeros(len(blobs), dtype=bool)
        self.fetched = 0
        self.fetched_bytes = 0
        sink.write(0, [PACK_HEADER])

    def absent(self) -> tuple[BlobColumns, npt.NDArray[np.intp]]:
        """Return the blobs that are not there yet, and their rows."""
        rows = np.flatnonzero(~self.is_there)
        return self._blobs.take(rows), rows

    def take(
        self, rows: npt.NDArray[np.intp], found: Iterator[tuple[int, memoryview]], is_elsewhere: bool
    ) -> None:
        """Write intact blobs to their places, neighbours together; `found` has indices into `rows`, and bytes."""
        start = end = 0
        buffers: list[BytesLike] = []
        for at, data in found:
            row = rows[at]
            offset = int(self._blobs.offsets[row])
            if buffers and (offset != end or end - start >= _WRITE_BYTES):
                self._sink.write(start, buffers)
                buffers = []
            if not buffers:
                start = offset
            table = check_table(data)
            buffers += [data, table]
            end = offset + len(data) + len(table)
            self.is_there[row] = True
            self.fetched += is_elsewhere
            self.fetched_bytes += len(data) * is_elsewhere
        if buffers:
            self._sink.write(start, buffers)

    def finish(self, ending: memoryview | None) -> int:
        """Write footer and trailer and return the pack's size."""
        there = self._blobs.take(self.is_there)
        end = max(HEADER_SIZE, int(_ends(there).max())) if len(there) else HEADER_SIZE
        if ending is None or not self.is_there.all():
            footer = Footer(there.kinds, there.digests, there.offsets, there.lengths)
            data: BytesLike = encode_ending(self._sink.pack, footer, end)
        else:
            data = ending
        self._sink.write(end, [data])
        return end + len(data)


class AllPacks(PackIndexes):
    """The indexes of all packs of a storage, by the `names` of those that there were."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(BlobReader(storage))
        self.storage = storage
        self.names = list_packs(storage)


def list_packs(storage: Storage) -> list[PackId]:
    """Return the packs of a storage."""
    found = (parse_pack_name(info.name) for info in storage.list(PACK_PREFIX))
    return sorted(pack for pack in found if pack is not None)


def _known(reader: BlobReader, pack: PackId) -> _Known | None:
    try:
        trailer, footer = reader.read_footer(pack)
        size = reader.storage.size(pack_name(pack)) or 0
        start = trailer.footer_offset
        return _Known(footer, reader.storage.read(pack_name(pack), start, size - start))
    except (FormatError, StorageError):
        return None


def _ends(blobs: BlobColumns) -> npt.NDArray[np.uint64]:
    """Return where blobs end, checksums included."""
    blocks = (blobs.lengths + np.uint64(CHECK_BLOCK_BYTES - 1)) // np.uint64(CHECK_BLOCK_BYTES)
    tables = np.where(blobs.lengths > CHECK_BLOCK_BYTES, np.uint64(4) * blocks, np.uint64(0))
    return blobs.offsets + blobs.lengths + tables


def _lists(blobs: BlobColumns, wanted: BlobColumns) -> npt.NDArray[np.bool_]:
    """Tell which of `wanted` are among `blobs`, by digest."""
    return np.isin(digest_prefixes(wanted.digests), digest_prefixes(blobs.digests))


def _with_those_that_fit(blobs: BlobColumns, more: BlobColumns) -> tuple[BlobColumns, bool]:
    """Return `blobs` with those of `more` that lie in none of them, sorted, and whether there were such."""
    new = more.take(~np.isin(more.keys(), blobs.keys()))
    if len(new) == 0:
        return blobs, False
    joined = concatenate((blobs, new))
    order = np.argsort(joined.offsets, kind="stable")
    joined = joined.take(order)
    is_new = order >= len(blobs)
    ends = _ends(joined)
    overlaps = np.zeros(len(joined), dtype=bool)
    overlaps[1:] = joined.offsets[1:] < np.maximum.accumulate(ends)[:-1]
    clashes = overlaps | np.append(overlaps[1:], False)
    kept = joined.take(~(clashes & is_new))
    return kept, len(kept) > len(blobs)


def _appended(blobs: BlobColumns, more: BlobColumns) -> BlobColumns:
    """Return `blobs` and, behind them, `more` at places of their own."""
    end = int(_ends(blobs).max()) if len(blobs) else HEADER_SIZE
    sizes = _ends(more) - more.offsets
    starts = np.uint64(end) + np.cumsum(sizes, dtype=np.uint64) - sizes
    return concatenate((blobs, more._replace(offsets=starts)))


def _count_left(filling: _Filling, blobs: BlobColumns, wanted: Wanted) -> int:
    """Return how many needed blobs are not in the new pack."""
    there = blobs.take(filling.is_there)
    placed = np.isin(wanted.placed.keys(), there.keys())
    return int(np.count_nonzero(~placed)) + int(np.count_nonzero(~_lists(there, wanted.moved_here)))
