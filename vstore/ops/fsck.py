"""fsck: verifies catalog -> snapshots -> pages -> manifests -> pack footers, and if asked the blobs themselves.

It names each damage and what it affects, and goes on after a damage to find them all; it changes nothing, unless it is
given a copy to repair from. The invariants that tests check after every crash are these checks. `examination` compares
refs with packs, `scrub` reads blobs, `affected` finds who needs what is damaged, `repair` puts it back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from vstore.blobs.cache import CACHE
from vstore.errors import (
    FormatError,
    InvalidInputError,
    ObjectNotFoundError,
    StorageError,
    UnsafeStorageError,
    VStoreError,
)
from vstore.format.record import SnapshotEntry, relocations
from vstore.handle import Handle
from vstore.ids import PackId
from vstore.keys.objects import PACK_PREFIX, pack_name, parse_pack_name
from vstore.ops.affected import AffectedArray, Damaged, Effects, find_effects, number_damages
from vstore.ops.examination import Examination, Scope, gather
from vstore.ops.findings import Findings
from vstore.ops.marks import Progress, silent
from vstore.ops.pack_index import PackIndex, footer_columns, read_checked_footer
from vstore.ops.repair import Repaired, repair
from vstore.ops.scrub import Choose, Scrub, everything, sampler
from vstore.repository import Location, Repository
from vstore.storage.base import reads_only

MAX_DAMAGES = 1000
"""No more are listed; the others are counted."""
_LOOKS = 3
_MAX_ROUNDS = 32


class Damage(NamedTuple):
    """Something wrong: `place` is a pack's object name or "catalog", `affects` what can't be read because of it.

    `blob` is the digest of the one blob that is damaged, or None. `arrays` and `snapshots` (ids) list the first of
    those that are affected; `snapshot_count` counts all.
    """

    place: str
    problem: str
    affects: str
    blob: str | None = None
    arrays: tuple[AffectedArray, ...] = ()
    snapshots: tuple[str, ...] = ()
    snapshot_count: int = 0

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; affects {self.affects}"


@dataclass(slots=True)
class FsckReport:
    """What was checked and what was found.

    `unreferenced_packs` are no damage: gc removes them. A web server, which lists nothing, shows none of them.

    `damages` are those that are left after the repairs, `more_damages` how many there are beyond those listed.
    `blobs` and `bytes` count references to blobs, `read_blobs` and `read_bytes` what was read and checked against its
    digest. `repaired` are the packs that were put back, `not_repaired` says why others were not.
    """

    damages: list[Damage] = field(default_factory=list)
    more_damages: int = 0
    snapshots: int = 0
    packs: int = 0
    blobs: int = 0
    bytes: int = 0
    read_blobs: int = 0
    read_bytes: int = 0
    unreferenced_packs: int = 0
    repaired: list[Repaired] = field(default_factory=list)
    not_repaired: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages and not self.more_damages

    def __str__(self) -> str:
        count = len(self.damages) + self.more_damages
        found = "no damage" if self.is_clean else f"{count:,} damages"
        read = f", {self.read_blobs} blobs of {self.read_bytes} bytes read" if self.read_blobs else ""
        refs = f"{self.blobs} references to {self.bytes} bytes"
        lines = [f"{self.snapshots} snapshots, {self.packs} packs, {refs}{read}: {found}"]
        lines += map(str, self.damages)
        if self.more_damages:
            lines.append(f"and {self.more_damages:,} more damages")
        return "\n".join([*lines, *map(str, self.repaired), *self.not_repaired])


def check(
    repository: Repository,
    *,
    data: bool = False,
    sample: float | None = None,
    seed: int = 0,
    repair_from: Repository | Location | None = None,
    progress: Progress | None = None,
) -> FsckReport:
    """Verify a repository and return what was found.

    With `data` every blob is read and checked against its digest; with `sample` a share of them (a float up to 1.0)
    or so many of them (an int), which `seed` chooses: equal seeds choose equal blobs. With `repair_from`, a copy of the
    repository or its location, damaged packs are put back and checked again. `progress` gets (done, total, what).

    Raises `InvalidInputError` if `repair_from` is another repository, or this one itself; `UnsafeStorageError` where
    nothing can be told of what lies there, as on a web server without ranges.
    """
    if data and sample is not None:
        raise InvalidInputError("give data=True to read all blobs, or sample= to read some of them, not both")
    if repair_from is not None and not isinstance(repair_from, Repository):
        repair_from = Repository.open(repair_from)
    source = None if repair_from is None else _source_handle(repository.handle, repair_from.handle)
    # What this process wrote or read before is right in memory, whatever the storage made of it since.
    CACHE.clear()
    fsck = _Fsck(repository.handle, progress or silent)
    return fsck.run(1.0 if data else sample, seed, source)


def _source_handle(mine: Handle, theirs: Handle) -> Handle:
    if theirs.catalog.identity.repository != mine.catalog.identity.repository:
        raise InvalidInputError(
            f"{theirs.storage.url} is not a copy of {mine.storage.url}: it is repository "
            f"{theirs.catalog.identity.repository.hex()}, not {mine.catalog.identity.repository.hex()}. Nothing was "
            "changed; give a copy, which has the same id."
        )
    # Stores in memory have no names of their own.
    is_named = not mine.storage.url.startswith("memory:")
    if theirs.storage is mine.storage or (is_named and theirs.storage.url == mine.storage.url):
        raise InvalidInputError(
            f"{mine.storage.url} can't be repaired from itself: give the location of a copy."
        )
    return theirs


class _Seen(NamedTuple):
    """One look at the repository."""

    epoch: int
    scope: Scope
    examination: Examination


class _Fsck:
    def __init__(self, handle: Handle, progress: Progress) -> None:
        self._handle = handle
        self._progress = progress
        self._report = FsckReport()

    def run(self, sample: float | None, seed: int, source: Handle | None) -> FsckReport:
        try:
            for problem in self._handle.catalog.check():
                self._damage("catalog", problem, "refs and history")
            seen = self._examine()
            read = Findings()
            if sample is not None:
                seen = self._scrub(seen, self._choice(seen, sample, seed), read)
            if source is not None:
                seen = self._repair(seen, read, source)
        except VStoreError as error:
            # A storage that can't be used as it is says nothing about what lies there.
            if not isinstance(error, FormatError | StorageError) or isinstance(error, UnsafeStorageError):
                raise
            self._damage("catalog", str(error), "the whole repository")
            return self._report
        self._count(seen)
        self._check_entries(seen)
        self._report_damages(seen, _joined(seen, read))
        return self._report

    def _damage(self, place: str, problem: str, affects: str) -> None:
        if len(self._report.damages) < MAX_DAMAGES:
            self._report.damages.append(Damage(place, problem, affects))
        else:
            self._report.more_damages += 1

    # --- looking ---------------------------------------------------------------------------------------------

    def _take_scope(self) -> tuple[int, Scope]:
        with self._handle.catalog.reading() as view:
            moved = relocations(view.pack_states(None))
            return view.epoch, Scope(tuple(view.iter_snapshots()), tuple(view.iter_pages()), moved)

    def _examine(self) -> _Seen:
        """Compare what is needed with what is there; again if something is wrong and a collector moved meanwhile."""
        for looks_left in reversed(range(_LOOKS)):
            epoch, scope = self._take_scope()
            examination = Examination(self._handle.storage, scope)
            examination.run(self._progress)
            if not len(examination.findings) or not looks_left or self._epoch() == epoch:
                break
        return _Seen(epoch, scope, examination)

    def _epoch(self) -> int:
        with self._handle.catalog.reading() as view:
            return view.epoch

    # --- reading blobs ---------------------------------------------------------------------------------------

    def _choice(self, seen: _Seen, sample: float, seed: int) -> Choose:
        if sample == 1.0 and isinstance(sample, float):
            return everything
        indexes = map(seen.examination.index, sorted(seen.examination.met))
        return sampler(sample, seed, (index for index in indexes if isinstance(index, PackIndex)))

    def _scrub(self, seen: _Seen, choose: Choose, findings: Findings) -> _Seen:
        """Read blobs of all needed packs; `findings` takes what is bad."""
        self._read_packs(seen, seen.examination.met, choose, findings)
        if not len(findings) or self._epoch() == seen.epoch:
            return seen
        # Compact and gc may have taken packs away while they were read: only what is needed still counts.
        again = self._examine()
        gone = [pack for pack, _ in findings if not self._is_needed_here(again, pack)]
        for pack in gone:
            findings.drop(pack)
        return again

    def _is_needed_here(self, seen: _Seen, pack: PackId) -> bool:
        return pack in seen.examination.met and self._handle.storage.size(pack_name(pack)) is not None

    def _read_packs(self, seen: _Seen, packs: Iterable[PackId], choose: Choose, findings: Findings) -> None:
        scrub = Scrub(self._handle.storage, findings)
        without_footer = set()
        ordered = sorted(packs)
        for number, pack in enumerate(ordered):
            self._progress(number, len(ordered), "packs read")
            try:
                footer = read_checked_footer(seen.examination.blobs, pack)
            except ObjectNotFoundError:
                continue
            except (FormatError, StorageError):
                without_footer.add(pack)
                continue
            scrub.check(pack, choose(footer_columns(footer)))
        if without_footer:
            wanted = gather(self._handle.storage, seen.scope, without_footer)
            for pack, blobs in wanted.items():
                scrub.check(pack, choose(blobs.placed))
        self._report.read_blobs += scrub.blobs
        self._report.read_bytes += scrub.bytes

    # --- repairing -------------------------------------------------------------------------------------------

    def _repair(self, seen: _Seen, read: Findings, source: Handle) -> _Seen:
        """Put packs back until nothing more can be: what was hidden below a damaged page shows after its repair."""
        tried: dict[PackId, str] = {}
        for _ in range(_MAX_ROUNDS):
            findings = _joined(seen, read)
            signs = {pack: found.fingerprint() for pack, found in findings}
            # What a repair did not change is not tried again.
            due = findings.only(lambda pack, signs=signs: tried.get(pack) != signs[pack])  # type: ignore[misc]
            if not len(due):
                break
            tried.update((pack, signs[pack]) for pack, _ in due)
            repairs, touched = repair(self._handle, source, seen.scope, due, self._progress)
            self._report.repaired += repairs.done
            self._report.not_repaired += repairs.failed
            if not touched:
                break
            CACHE.clear()
            for pack in touched:
                read.drop(pack)
            seen = self._examine()
            self._read_packs(seen, touched, everything, read)
        return seen

    # --- reporting -------------------------------------------------------------------------------------------

    def _count(self, seen: _Seen) -> None:
        report, examination = self._report, seen.examination
        try:
            present = {
                pack
                for info in self._handle.storage.list(PACK_PREFIX)
                if (pack := parse_pack_name(info.name))
            }
        except StorageError:
            if not reads_only(self._handle.storage):
                raise
            # Web servers list nothing: what is not needed can't be seen.
            present = {pack for pack in examination.met if isinstance(examination.index(pack), PackIndex)}
        report.snapshots, report.packs = len(seen.scope.entries), len(present)
        report.unreferenced_packs = len(present - examination.needed)
        report.blobs, report.bytes = examination.refs, examination.bytes

    def _check_entries(self, seen: _Seen) -> None:
        """Compare what the catalog repeats of snapshots with the snapshots themselves."""
        for entry in seen.scope.entries:
            problem = self._entry_problem(seen, entry)
            if problem:
                self._damage(
                    "catalog", f"snapshot {entry.id.hex()} {problem}", "the history that comes from it"
                )

    def _entry_problem(self, seen: _Seen, entry: SnapshotEntry) -> str | None:
        try:
            snapshot = seen.examination.blobs.snapshot(entry.ref)
        except (FormatError, StorageError):
            # A finding already.
            return None
        if snapshot.parents != entry.parents:
            return "is listed with other parents than it has"
        if snapshot.time_us != entry.time_us:
            return "is listed with another time than it has"
        if entry.info is not None and entry.info != (snapshot.message, snapshot.metadata):
            return "is listed with another message or metadata than it has"
        return None

    def _report_damages(self, seen: _Seen, findings: Findings) -> None:
        if not len(findings):
            return
        numbered = number_damages(findings)
        while numbered and len(self._report.damages) < MAX_DAMAGES:
            some, numbered = numbered[:MAX_DAMAGES], numbered[MAX_DAMAGES:]
            effects = find_effects(self._handle.storage, seen.scope, findings, some, self._progress)
            for damaged, effect in zip(some, effects, strict=True):
                # What nothing needs is no damage: gc and compact will drop it.
                if effect.snapshot_count or effect.other_count:
                    self._report.damages.append(_describe(damaged, effect, findings))
        self._report.more_damages += len(numbered)


def _joined(seen: _Seen, read: Findings) -> Findings:
    joined = Findings()
    joined.include(seen.examination.findings)
    joined.include(read)
    return joined


def _describe(damaged: Damaged, effects: Effects, findings: Findings) -> Damage:
    found = findings.of(damaged.pack)
    blob = None
    if damaged.rows is None:
        problem = found.whole
    else:
        start, stop = damaged.rows
        problem = found.describe(start)
        if stop - start == 1:
            blob = found.bad_blobs().blobs.digests[start].tobytes().hex()
        else:
            problem += f", and {stop - start - 1:,} more blobs are damaged"
    return Damage(
        pack_name(damaged.pack),
        problem,
        str(effects),
        blob,
        tuple(effects.arrays),
        tuple(snapshot.hex() for snapshot in effects.snapshots),
        effects.snapshot_count,
    )
