"""gc: deletes the packs that nothing names, in two phases, so that it may run beside anything.

A pack that no root names is *condemned* in one run, and goes to *deleting* in a later one if nothing named it
meanwhile; only then are its bytes deleted, and when they are seen to be gone the catalog forgets it. Each step is one
compare-and-swap that advances the epoch. A commit that names a condemned pack rescues it; one that names a pack which
is being deleted fails cleanly (I2: deleting is final). Grace and clocks decide how long to wait, never what is right.
docs/gc.md says what a crash between any two steps leaves: the next run goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, TypeVar

from vstore.catalog.base import (
    AdvanceEpoch,
    Applied,
    EpochIs,
    MarkPacks,
    PacksMarked,
    Transaction,
    UnmarkPacks,
    Update,
    ValueIs,
)
from vstore.errors import StorageError
from vstore.format.record import OperationKind, PackMark, PackState
from vstore.handle import Handle, require_online
from vstore.ids import PackId, new_transaction_id
from vstore.keys.objects import (
    PACK_PREFIX,
    STAGING_PREFIX,
    pack_name,
    parse_pack_name,
    parse_staging_name,
    staging_name,
)
from vstore.ops.marks import Marks, Progress, Roots, final_packs, silent, take_roots

DEFAULT_GRACE_US = 24 * 3600 * 1_000_000
"""How old a pack must be, by the storage's clock, before it is judged."""
MIN_STAGED_GRACE_US = 60 * 1_000_000
"""A staged file is created before it is locked, and a record before it is linked: both take moments."""
_MARKS_AT_ONCE = 2000
_DELETES_AT_ONCE = 1000
_CHECKS_AT_ONCE = 64
_ROUNDS = 4
_TRIES = 10

T = TypeVar("T")


@dataclass(slots=True)
class GcReport:
    """What gc found and did, or in a dry run would do. Bytes are of whole packs.

    `waiting` packs are garbage younger than the grace; `held` are of registered sessions or of living writers, whose
    `sessions` are named. `failures` says what could not be deleted: a later run does it.
    """

    dry_run: bool
    live_packs: int = 0
    live_bytes: int = 0
    garbage_packs: int = 0
    garbage_bytes: int = 0
    condemned_packs: int = 0
    deleted_packs: int = 0
    deleted_bytes: int = 0
    rescued_packs: int = 0
    waiting_packs: int = 0
    waiting_bytes: int = 0
    held_packs: int = 0
    held_bytes: int = 0
    sessions: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether all that was to be deleted is gone."""
        return not self.failures

    def __str__(self) -> str:
        verb = "would be deleted" if self.dry_run else "deleted"
        count, size = (
            (self.garbage_packs, self.garbage_bytes)
            if self.dry_run
            else (self.deleted_packs, self.deleted_bytes)
        )
        lines = [
            f"{count} packs of {size} bytes {verb}; {self.live_packs} of {self.live_bytes} bytes are in use"
        ]
        if self.waiting_packs:
            lines.append(
                f"{self.waiting_packs} packs of {self.waiting_bytes} bytes are too young to be judged"
            )
        if self.held_packs:
            by = f" (sessions {', '.join(self.sessions)})" if self.sessions else ""
            lines.append(f"{self.held_packs} packs of {self.held_bytes} bytes belong to work in progress{by}")
        return "\n".join([*lines, *self.failures])


class _File(NamedTuple):
    """A pack, sealed or staged, as the storage lists it."""

    size: int
    modified_us: int
    is_staged: bool


@dataclass(frozen=True, slots=True)
class GcPlan:
    """What one run does to the catalog's marks, from the state `roots`; `doomed` are deleted after it."""

    roots: Roots
    live: frozenset[PackId]
    rescued: tuple[PackState, ...]
    condemned: tuple[PackId, ...]
    doomed: tuple[PackState, ...]
    stale: tuple[PackState, ...]

    @property
    def changes_marks(self) -> bool:
        return bool(self.rescued or self.condemned or self.doomed or self.stale)


def collect(
    handle: Handle, *, cutoff_us: int | None = None, dry_run: bool = False, progress: Progress = silent
) -> GcReport:
    """Delete what nothing names and what is older than `cutoff_us` (None: 24 hours); or only say what that is.

    Raises `CorruptionError` if metadata can't be read, and then deletes nothing. Interrupted anywhere, it is gone on
    with by the next run.
    """
    if cutoff_us is None:
        cutoff_us = handle.clock.now_us() - DEFAULT_GRACE_US
    if not dry_run:
        handle.catalog.check_writable()
    return _Collector(handle, cutoff_us, dry_run, progress).run()


class _Collector:
    def __init__(self, handle: Handle, cutoff_us: int, dry_run: bool, progress: Progress) -> None:
        self._handle = handle
        self._cutoff_us = cutoff_us
        self._progress = progress
        self._marks = Marks(handle)
        self._report = GcReport(dry_run)
        self._files: dict[PackId, _File] = {}

    def run(self) -> GcReport:
        # One round condemns, the next deletes: two for each pack. A third is for what gc itself left behind: the
        # catalog's pages that its own updates replaced.
        for number in range(_ROUNDS):
            condemned = self._report.condemned_packs
            roots = self._round(is_first=number == 0)
            if roots is not None:
                self._delete(roots)
            if self._report.condemned_packs == condemned:
                break
        if not self._report.dry_run:
            self._sweep()
        return self._report

    def _sweep(self) -> None:
        try:
            self._handle.catalog.sweep()
        except StorageError as error:
            self._report.failures.append(f"what crashed creators left could not be deleted: {error}")

    def _round(self, *, is_first: bool) -> Roots | None:
        """Apply one plan; return the state after it, or None in a dry run."""
        for _ in range(_TRIES):
            # Nothing is judged on the word of a hint.
            self._handle.catalog.confirm()
            with self._handle.catalog.reading() as view:
                online = None if self._report.dry_run else require_online(view)
                roots = take_roots(view)
            # Only after the state: a pack that comes in between is young, or condemned and rescued.
            self._files = self._list()
            self._marks.mark(roots, self._progress)
            garbage = self._garbage(roots, count=is_first)
            plan = plan_gc(roots, self._marks.named, garbage, self._cutoff_us)
            if is_first:
                self._count_live(plan)
            if online is None:
                return None
            if self._apply(plan, online):
                with self._handle.catalog.reading() as view:
                    return take_roots(view)
        raise StorageError(
            f"gc gave up after {_TRIES} tries, as another collector kept moving. Nothing is lost; run it again later."
        )

    def _list(self) -> dict[PackId, _File]:
        files = {}
        for prefix, parse in ((STAGING_PREFIX, parse_staging_name), (PACK_PREFIX, parse_pack_name)):
            if prefix == STAGING_PREFIX and not self._handle.storage.is_local:
                # Packs are staged on disks only: a request less in each round.
                continue
            for info in self._handle.storage.list(prefix):
                pack = parse(info.name)
                if pack is not None:
                    files[pack] = _File(info.size, info.modified_us, prefix == STAGING_PREFIX)
        return files

    def _garbage(self, roots: Roots, *, count: bool) -> set[PackId]:
        """Return the listed packs that nothing names, but for those that are to be left alone for now."""
        live = final_packs(self._marks.named, roots.moved)
        garbage = {
            state.pack
            for state in roots.states
            # Condemned and not listed: gone already, or the listing is stale.
            if state.mark == PackMark.CONDEMNED
            and state.pack not in self._files
            and state.pack not in live
            and not _is_registered(state.pack, roots)
        }
        waiting, held = [], []
        for pack, file in self._files.items():
            if pack in live:
                continue
            if _is_registered(pack, roots) or self._is_held(pack, file):
                held.append(file.size)
            elif file.modified_us >= self._newest_us(file):
                waiting.append(file.size)
            else:
                garbage.add(pack)
        if count:
            report = self._report
            listed = [self._files[pack].size for pack in garbage if pack in self._files]
            report.garbage_packs, report.garbage_bytes = len(listed), sum(listed)
            report.waiting_packs, report.waiting_bytes = len(waiting), sum(waiting)
            report.held_packs, report.held_bytes = len(held), sum(held)
            report.sessions = tuple(sorted(prefix.hex() for prefix in roots.session_prefixes))
        return garbage

    def _newest_us(self, file: _File) -> int:
        if not file.is_staged:
            return self._cutoff_us
        return min(self._cutoff_us, self._handle.clock.now_us() - MIN_STAGED_GRACE_US)

    def _is_held(self, pack: PackId, file: _File) -> bool:
        if not file.is_staged or file.modified_us >= self._newest_us(file):
            return False
        return self._handle.storage.is_held(staging_name(pack))

    def _count_live(self, plan: GcPlan) -> None:
        live = [file.size for pack, file in self._files.items() if pack in plan.live]
        self._report.live_packs, self._report.live_bytes = len(live), sum(live)

    # --- the catalog -----------------------------------------------------------------------------------------

    def _apply(self, plan: GcPlan, online: ValueIs) -> bool:
        """Make the plan's changes, some at a time; False if the catalog has moved, so that all is looked at anew."""
        if not plan.changes_marks:
            return True
        epoch = plan.roots.epoch
        for part in _parts(plan):
            outcome = self._handle.catalog.update(self._transaction(plan.roots, part, epoch, online))
            if not isinstance(outcome, Applied):
                return False
            epoch += 1
            self._report.rescued_packs += len(part.rescued)
            self._report.condemned_packs += len(part.condemned)
        return True

    def _transaction(self, roots: Roots, part: GcPlan, epoch: int, online: ValueIs) -> Transaction:
        gone = [(state.pack, state.mark) for state in (*part.rescued, *part.doomed, *part.stale)]
        marked = [PackState(pack, PackMark.CONDEMNED, epoch + 1, None) for pack in part.condemned]
        marked += [PackState(state.pack, PackMark.DELETING, epoch + 1, None) for state in part.doomed]
        updates: list[Update] = [AdvanceEpoch()]
        if gone:
            updates.append(UnmarkPacks(frozenset(gone)))
        if marked:
            updates.append(MarkPacks(tuple(marked)))
        return Transaction(
            new_transaction_id(),
            roots.sequence,
            OperationKind.COLLECT,
            self._handle.clock.now_us(),
            self._handle.author,
            # A commit that rescued a pack since has struck its mark.
            (online, EpochIs(epoch), PacksMarked((*part.doomed, *part.stale))),
            tuple(updates),
            {"condemned": len(part.condemned), "deleting": len(part.doomed)},
        )

    # --- the bytes -------------------------------------------------------------------------------------------

    def _delete(self, roots: Roots) -> None:
        """Delete every pack that is marked for it, by whichever run, and let the catalog forget those that are gone."""
        doomed = [state for state in roots.states if state.mark == PackMark.DELETING]
        for done, batch in enumerate(_batches(doomed, _DELETES_AT_ONCE)):
            self._progress(done * _DELETES_AT_ONCE, len(doomed), "packs deleted")
            names = [name for state in batch for name in self._names(state.pack)]
            try:
                self._handle.storage.delete(names)
            except StorageError as error:
                self._report.failures.append(f"some of {len(batch)} packs could not be deleted: {error}")
            self._forget(self._absent(batch))

    def _names(self, pack: PackId) -> list[str]:
        file = self._files.get(pack)
        # What is not listed may be there all the same, if the listing is stale.
        return (
            [pack_name(pack)] if file is None or not file.is_staged else [pack_name(pack), staging_name(pack)]
        )

    def _absent(self, states: Sequence[PackState]) -> list[PackState]:
        """Return the packs of `states` that are seen to be gone, each asked for by its name."""

        def is_gone(state: PackState) -> bool:
            try:
                return all(self._handle.storage.size(name) is None for name in self._names(state.pack))
            except StorageError as error:
                self._report.failures.append(f"{pack_name(state.pack)} may still be there: {error}")
                return False

        with ThreadPoolExecutor(1 if self._handle.storage.is_local else _CHECKS_AT_ONCE) as pool:
            return [state for state, gone in zip(states, pool.map(is_gone, states), strict=True) if gone]

    def _forget(self, gone: list[PackState]) -> None:
        if not gone:
            return
        with self._handle.catalog.reading() as view:
            online = require_online(view)
            roots = Roots(view.sequence, view.epoch, (), (), (), frozenset(), {}, 0)
            present = set(view.pack_states(frozenset(state.pack for state in gone)))
        ours = [state for state in gone if state in present]
        if not ours:
            return
        plan = GcPlan(roots, frozenset(), (), (), (), tuple(ours))
        outcome = self._handle.catalog.update(self._transaction(roots, plan, roots.epoch, online))
        if not isinstance(outcome, Applied):
            # Another collector moved: what it did not forget, the next run does.
            return
        for state in ours:
            self._report.deleted_packs += 1
            file = self._files.get(state.pack)
            self._report.deleted_bytes += 0 if file is None else file.size


def plan_gc(roots: Roots, named: set[PackId], garbage: set[PackId], cutoff_us: int) -> GcPlan:
    """Decide what one run does; `named` are the packs that roots name, `garbage` those that may be judged.

    Marks of a compact that did nothing since `cutoff_us` are struck: if it still lives, it begins anew.
    """
    live = final_packs(named, roots.moved)
    condemned = [state for state in roots.states if state.mark == PackMark.CONDEMNED]
    marked = {s.pack for s in roots.states if s.mark in (PackMark.CONDEMNED, PackMark.DELETING)}
    return GcPlan(
        roots,
        frozenset(live),
        rescued=tuple(state for state in condemned if state.pack in live),
        condemned=tuple(sorted(garbage - marked)),
        doomed=tuple(state for state in condemned if state.pack in garbage),
        # No marked manifest names the source of a relocation any more: nobody will ask where it went.
        stale=tuple(
            s
            for s in roots.states
            if (s.mark == PackMark.RELOCATED and s.pack not in named)
            or (s.mark == PackMark.REPLACING and roots.compacted_us < cutoff_us)
        ),
    )


def _is_registered(pack: PackId, roots: Roots) -> bool:
    """Tell whether a pack is of a session that is registered, and therefore never judged."""
    return pack[: len(pack) // 2] in roots.session_prefixes


def _parts(plan: GcPlan) -> Iterator[GcPlan]:
    """Yield the plan in parts, each of which is one transaction of bounded size."""
    rescued, condemned = iter(plan.rescued), iter(plan.condemned)
    doomed, stale = iter(plan.doomed), iter(plan.stale)
    while True:
        part = GcPlan(
            plan.roots,
            plan.live,
            tuple(islice(rescued, _MARKS_AT_ONCE)),
            tuple(islice(condemned, _MARKS_AT_ONCE)),
            tuple(islice(doomed, _MARKS_AT_ONCE)),
            tuple(islice(stale, _MARKS_AT_ONCE)),
        )
        if not part.changes_marks:
            return
        yield part


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
