"""compact: copies the live blobs of small and of mostly dead packs into few large ones.

Snapshots, manifests and pages stay as they are: a *relocation* in the catalog says that the blobs of one pack are in
another now, and readers ask for it when the pack is gone. The replaced packs are then garbage, which gc deletes.

For each group of packs: they are marked as being replaced; what is live in them is found in a state of the catalog
that has the marks; the copies are made durable; and one transaction puts the relocations in place of the marks. A
commit that names one of the packs meanwhile strikes its mark, and the copy is garbage. A crash between any two steps
leaves marks that hinder nobody and a pack that gc deletes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from vstore.blobs.packing import NO_SLOT, OpenPack
from vstore.blobs.reader import BlobReader
from vstore.blobs.runs import REMOTE_GAP_BYTES, BlobColumns, plan_runs
from vstore.blobs.uploads import UploadTries
from vstore.catalog.base import (
    AdvanceEpoch,
    Applied,
    EpochIs,
    MarkPacks,
    PacksMarked,
    PacksUsable,
    Precondition,
    UnmarkPacks,
    Update,
)
from vstore.errors import (
    CorruptionError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    VStoreError,
)
from vstore.format.envelope import BlobKind
from vstore.format.pack import Footer, Trailer
from vstore.format.record import OperationKind, PackMark, PackState, RefKind
from vstore.format.refs import BlobRef
from vstore.handle import Handle, require_online
from vstore.ids import Digest, PackId, blake3_digest, new_pack_id
from vstore.keys.objects import PACK_PREFIX, pack_name, parse_pack_name
from vstore.ops import rewrite
from vstore.ops.live import LiveBlobs, LiveRows, join_rows
from vstore.ops.marks import Marks, Progress, Roots, final_packs, silent, take_roots
from vstore.storage.base import read_twice

MIN_LIVE_SHARE = 0.5
"""A pack of which less is live is rewritten, however large it is."""
_SMALL_PART = 4
"""Packs smaller than this part of a full one are small."""
_GROWTH = 4
"""A small pack is merged only with others that hold this part of it at least, so that bytes are copied few times."""
_COPIED_BYTES = 4 * 1024 * 1024
_MAX_SOURCES = 2000
_TRIES = 3


class Source(NamedTuple):
    """A pack that is to be replaced: its size, and the bytes in it that are still needed."""

    pack: PackId
    size: int
    live_bytes: int


@dataclass(slots=True)
class CompactReport:
    """What compact did, or in a dry run would do: so many packs, of so many bytes, became others.

    `skipped` groups were needed by commits meanwhile; the next run looks at them again. The replaced packs are
    deleted by `garbage_collect`. `rewritten_heads` are the new heads of branches that were rewritten.
    """

    dry_run: bool
    packs: int = 0
    bytes: int = 0
    replaced_packs: int = 0
    replaced_bytes: int = 0
    new_packs: int = 0
    new_bytes: int = 0
    skipped: int = 0
    rewritten_heads: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        verb = "would become" if self.dry_run else "became"
        text = (
            f"{self.replaced_packs} of {self.packs} packs, {self.replaced_bytes} of {self.bytes} bytes, {verb} "
            f"{self.new_packs} packs of {self.new_bytes} bytes"
        )
        return text + (f"; {self.skipped} groups were needed meanwhile" if self.skipped else "")


def compact(
    handle: Handle,
    *,
    rewrite_heads: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
) -> CompactReport:
    """Merge small packs and rewrite mostly dead ones. Safe beside commits, readers, gc and another compact.

    Raises `CorruptionError` if metadata can't be read, or a blob that is to be copied is damaged; nothing has changed
    for the packs concerned then.
    """
    if not dry_run:
        handle.catalog.check_writable()
    report = _Compactor(handle, dry_run, progress).run()
    if rewrite_heads and not dry_run:
        # Afterwards: they name the packs where blobs are now.
        report.rewritten_heads = rewrite.rewrite_heads(handle, "Rewrite the metadata of the head", progress)
    return report


class _Compactor:
    def __init__(self, handle: Handle, dry_run: bool, progress: Progress) -> None:
        self._handle = handle
        self._progress = progress
        self._live = LiveBlobs()
        self._marks = Marks(handle, self._live.visit)
        self._blobs: BlobReader = handle.blobs_for(None)
        self._report = CompactReport(dry_run)
        self._names: dict[PackId, list[PackId]] = {}

    def run(self) -> CompactReport:
        roots = self._look(heads_first=True)
        groups = plan_groups(self._sources(roots), self._handle.storage.pack_policy.target_bytes)
        for done, group in enumerate(groups):
            self._progress(done, len(groups), "groups of packs rewritten")
            if self._report.dry_run:
                self._count(group, sum(source.live_bytes for source in group))
                continue
            for _ in range(_TRIES):
                copied = self._replace([source.pack for source in group])
                if copied is not None:
                    self._count(group, copied)
                    break
            else:
                self._report.skipped += 1
        if not self._report.dry_run:
            self._handle.catalog.tidy()
        return self._report

    def _count(self, group: Sequence[Source], copied: int) -> None:
        report = self._report
        report.replaced_packs += len(group)
        report.replaced_bytes += sum(source.size for source in group)
        report.new_packs += copied > 0
        report.new_bytes += copied

    # --- looking ---------------------------------------------------------------------------------------------

    def _look(self, *, heads_first: bool = False) -> Roots:
        """Take a state of the catalog and find what is live in it.

        With the heads of branches first, blobs are copied in the order in which those who read a head want them.
        """
        self._handle.catalog.confirm()
        with self._handle.catalog.reading() as view:
            if not self._report.dry_run:
                require_online(view)
            roots = take_roots(view)
            heads = {snapshot for _, snapshot in view.iter_refs(RefKind.BRANCH)} if heads_first else set()
        entries = sorted(roots.entries, key=lambda entry: (entry.id not in heads, -entry.time_us))
        self._marks.mark(roots._replace(entries=tuple(entries)), self._progress)
        self._names = {}
        for old, target in roots.moved.items():
            self._names.setdefault(target, []).append(old)
        return roots

    def _sources(self, roots: Roots) -> list[Source]:
        """Return the packs that may be replaced: named by snapshots, not by the catalog or a session's work alone."""
        named = final_packs(self._marks.named, roots.moved)
        kept = {ref.pack for ref in roots.pages} | {
            state.pack for state in roots.states if state.mark == PackMark.DELETING
        }
        sizes = {}
        for info in self._handle.storage.list(PACK_PREFIX):
            pack = parse_pack_name(info.name)
            if pack is not None and pack in named:
                sizes[pack] = info.size
        self._report.packs, self._report.bytes = len(sizes), sum(sizes.values())
        found = []
        candidates = sorted(sizes.keys() - kept)
        for done, (pack, result) in enumerate(self._blobs.iter_footers(candidates)):
            self._progress(done, len(candidates), "packs looked at")
            size = sizes[pack]
            if isinstance(result, ObjectNotFoundError):
                # It was listed: another compact replaced it, and gc deleted it since.
                continue
            footer = _footer(result)
            live, _ = self._live_in(pack).find(footer.digests)
            found.append(Source(pack, size, int(footer.lengths[live].sum())))
        return found

    def _live_in(self, pack: PackId) -> LiveRows:
        """Return what is live in a pack, also by refs that name a pack which it replaced."""
        return join_rows([self._live.rows(name) for name in (pack, *self._names.get(pack, ()))])

    # --- replacing -------------------------------------------------------------------------------------------

    def _replace(self, packs: list[PackId]) -> int | None:
        """Replace `packs` by one; return its size, or None if one of them was needed meanwhile."""
        marks = self._announce(packs)
        if marks is None:
            return None
        roots = self._look()
        if not set(marks) <= set(roots.states):
            return None
        try:
            target, size = self._copy(packs)
        except ObjectNotFoundError:
            # Another compact was quicker.
            return None
        return size if self._relocate(marks, target, roots) else None

    def _announce(self, packs: list[PackId]) -> tuple[PackState, ...] | None:
        """Mark packs as being replaced."""
        with self._handle.catalog.reading() as view:
            epoch = view.epoch
        marks = tuple(PackState(pack, PackMark.REPLACING, epoch + 1, None) for pack in packs)
        conditions = (EpochIs(epoch), PacksUsable(frozenset(packs)))
        return marks if self._update(conditions, (MarkPacks(marks), AdvanceEpoch()), {}) else None

    def _relocate(self, marks: tuple[PackState, ...], target: PackId | None, roots: Roots) -> bool:
        """Put relocations in place of the marks, unless a commit struck one of them."""
        epoch = roots.epoch
        packs = frozenset(mark.pack for mark in marks)
        updates: list[Update] = [UnmarkPacks(frozenset((pack, PackMark.REPLACING) for pack in packs))]
        usable = packs
        if target is not None:
            # Chains are folded: what was moved into one of these packs is in the new one now.
            olds = {old for old, now in roots.moved.items() if now in packs}
            moved = (PackState(pack, PackMark.RELOCATED, epoch + 1, target) for pack in sorted(packs | olds))
            updates.append(MarkPacks(tuple(moved)))
            usable = packs | {target}
        updates.append(AdvanceEpoch())
        # As long as the epoch is as it was before the new pack was there, no collector has judged that one.
        conditions = (EpochIs(epoch), PacksMarked(marks), PacksUsable(usable))
        return self._update(conditions, tuple(updates), {"replaced": len(packs)})

    def _update(
        self, conditions: tuple[Precondition, ...], updates: tuple[Update, ...], details: dict[str, int]
    ) -> bool:
        outcome = self._handle.update_online(OperationKind.COMPACT, conditions, updates, dict(details))
        return isinstance(outcome, Applied)

    # --- copying ---------------------------------------------------------------------------------------------

    def _copy(self, packs: list[PackId]) -> tuple[PackId | None, int]:
        """Write the live blobs of `packs` to a new pack; return its id and size, or None if nothing is live."""
        footers = [(pack, _footer(result)) for pack, result in self._blobs.iter_footers(packs)]
        blobs = ordered_blobs([(pack, footer, self._live_in(pack)) for pack, footer in footers])
        if not blobs:
            return None, 0
        data = self._fetch(blobs)
        tries = UploadTries(self._handle.storage, self._handle.clock)
        while True:
            pack = OpenPack(self._handle.storage.open_pack(new_pack_id()), 0)
            try:
                _fill(pack, blobs, data)
                pack.seal()
            except OutcomeUnknownError:
                # Its name is in doubt, and a name is put once.
                pack.discard()
                if not tries.wait():
                    raise
                continue
            except BaseException:
                pack.discard()
                raise
            return pack.pack, pack.end

    def _fetch(self, blobs: list[_Copied]) -> dict[Digest, memoryview]:
        """Return the verified bytes of blobs, which are no more than a pack holds; neighbours in one request."""
        found = {}
        refs = [blob.ref for blob in blobs]
        storage = self._handle.storage
        for run in plan_runs(BlobColumns.of(refs), gap_bytes=REMOTE_GAP_BYTES):
            data = read_twice(
                storage, partial(storage.read, pack_name(run.pack), run.start, run.stop - run.start)
            )
            for ref in map(refs.__getitem__, run.rows.tolist()):
                blob = data[ref.offset - run.start : ref.offset - run.start + ref.length]
                if blake3_digest(blob) != ref.digest and not storage.is_local:
                    # Perhaps it was damaged on its way.
                    blob = storage.read(pack_name(ref.pack), ref.offset, ref.length)
                if blake3_digest(blob) != ref.digest:
                    raise CorruptionError(
                        f"blob {ref.digest.hex()} in {pack_name(ref.pack)} is damaged, so that its pack can't be "
                        "replaced; nothing has changed for it. repo.fsck(data=True) names all that is damaged."
                    )
                found[ref.digest] = blob
        return found


def _footer(result: tuple[Trailer, Footer] | VStoreError) -> Footer:
    if isinstance(result, VStoreError):
        raise result
    return result[1]


def _fill(pack: OpenPack, blobs: list[_Copied], data: dict[Digest, memoryview]) -> None:
    """Write blobs into a new pack, some megabytes at a time."""
    for batch in _batches(blobs):
        start = pack.end
        for blob in batch:
            pack.place(NO_SLOT, blob.kind, blob.ref.digest, blob.ref.length)
        pack.write(start, [data[blob.ref.digest] for blob in batch])


class _Copied(NamedTuple):
    """A blob that is to be copied."""

    kind: BlobKind
    ref: BlobRef


def ordered_blobs(sources: list[tuple[PackId, Footer, LiveRows]]) -> list[_Copied]:
    """Return the live blobs, each once: chunks in the order in which a walk met them, then all metadata likewise."""
    found: dict[bytes, tuple[bool, int, _Copied]] = {}
    for pack, footer, live in sources:
        is_live, order = live.find(footer.digests)
        for row in np.flatnonzero(is_live).tolist():
            digest = Digest(footer.digests[row].tobytes())
            kind = BlobKind(int(footer.kinds[row]))
            ref = BlobRef(digest, pack, int(footer.offsets[row]), int(footer.lengths[row]))
            found.setdefault(digest, (kind != BlobKind.CHUNK, int(order[row]), _Copied(kind, ref)))
    return [copied for *_, copied in sorted(found.values(), key=lambda item: item[:2])]


def plan_groups(sources: list[Source], target_bytes: int) -> list[list[Source]]:
    """Return groups of packs, each to be replaced by one: mostly dead packs, and small ones where that saves some."""
    sparse = [source for source in sources if source.live_bytes < MIN_LIVE_SHARE * source.size]
    rest = sorted(set(sources) - set(sparse), key=lambda source: (source.size, source.pack))
    small = [source for source in rest if source.size < target_bytes // _SMALL_PART]
    copied = sum(source.live_bytes for source in (*sparse, *small))
    # The largest goes along only if it is not most of what is copied.
    while small and _GROWTH * (copied - small[-1].live_bytes) < small[-1].size:
        copied -= small.pop().live_bytes
    return list(_grouped([*sparse, *small], target_bytes))


def _grouped(sources: list[Source], target_bytes: int) -> Iterator[list[Source]]:
    group: list[Source] = []
    total = 0
    for source in sorted(sources):
        if group and (total + source.live_bytes > target_bytes or len(group) >= _MAX_SOURCES):
            yield group
            group, total = [], 0
        group.append(source)
        total += source.live_bytes
    if group:
        yield group


def _batches(blobs: list[_Copied]) -> Iterator[list[_Copied]]:
    batch: list[_Copied] = []
    size = 0
    for blob in blobs:
        batch.append(blob)
        size += blob.ref.length
        if size >= _COPIED_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
