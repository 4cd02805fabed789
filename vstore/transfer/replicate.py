"""Copies a whole repository elsewhere, and brings such a copy up to date: packs as they are, then the catalog's state.

The order, which makes a copy whole or not there, whatever happens to the source meanwhile and wherever it stops:

1. The place is looked at; its object `repo` says whose it will be.
2. A state of the source is looked at, and the packs that it needs are copied: nearly all the bytes. So is what newer
   states need by then, until nothing is missing.
3. The newest state is staged beside what the place holds. This is the moment that the copy will be of.
4. The packs that it needs and that step 2 did not know of are copied.
5. The staged state is shown, in one step.

What the copy's own compact has moved stays where it is, by the copy's relocations: its gc may have deleted the packs
that it was in, and a name that was deleted never comes back (I3 of docs/architecture.md,
"Invariants").

The source is only read, and nothing keeps its gc, compact and expiry back: a pack of the state that is gone before it
was copied sends the copy back to step 2, with a newer state that does not need it. What was copied stays, for this
round and for the next call. In the copy it is garbage if no state needs it after all.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from vstore.blobs.spill import PackSpill
from vstore.catalog.base import STATUS, CatalogView
from vstore.catalog.exported import Exported, fillers
from vstore.catalog.handover import CatalogKind, moved_to
from vstore.catalog.location import default_kind, open_catalog
from vstore.catalog.log import StaleStateError
from vstore.catalog.log_import import next_number
from vstore.errors import (
    ConflictError,
    InvalidInputError,
    MissingBlobError,
    StorageError,
)
from vstore.format.record import relocations
from vstore.handle import Handle
from vstore.ids import PackId
from vstore.keys.objects import PACK_PREFIX, STAGING_PREFIX, pack_name, parse_pack_name, parse_staging_name
from vstore.ops.marks import Progress, Roots, final_packs, take_roots
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.transfer.catalogs import NOTHING, Staged, directory_of, stage, state_view
from vstore.transfer.convert import sole_change_of
from vstore.transfer.packs import PackCopier
from vstore.transfer.plan import MovedOnError, Needs
from vstore.transfer.target import claim, look_at, relate, require_elsewhere

_ROUNDS = 10
_CATCH_UPS = 10
"""Looks at a source that is written to all the time; each is of what came while the last was copied."""
_QUESTIONS_AT_ONCE = 16


@dataclass(slots=True)
class CopyReport:
    """What a copy holds now, and what had to be copied for it; or in a dry run would have.

    It is of the repository after its operation number `sequence`, as `ops_log()` counts them. `packs` and `bytes` are
    what the state needs, `copied_packs` and `copied_bytes` what of that was not there. `is_current` says that the copy
    held this state before.
    """

    dry_run: bool
    location: str
    catalog: str
    repository_id: str
    sequence: int = NOTHING
    packs: int = 0
    bytes: int = 0
    copied_packs: int = 0
    copied_bytes: int = 0
    is_current: bool = False

    def __str__(self) -> str:
        verb = "to be copied" if self.dry_run else "copied"
        state = f"operation {self.sequence} of repository {self.repository_id}"
        if self.is_current:
            return f"{self.location} is up to date: it holds {state}"
        return (
            f"{self.copied_packs} of {self.packs} packs, {self.copied_bytes} of {self.bytes} bytes, {verb} to "
            f"{self.location}, for {state} (catalog: {self.catalog})"
        )


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """Where to copy to, and how; `Repository.copy_to` documents the options."""

    target: Storage
    catalog: str | None = None
    verify: bool = False
    dry_run: bool = False


def replicate(handle: Handle, request: CopyRequest, progress: Progress) -> CopyReport:
    """Copy the repository of `handle`; `Repository.copy_to` documents it."""
    require_elsewhere(handle.storage, request.target)
    if request.catalog not in (None, "sqlite", "log"):
        raise InvalidInputError(f"{request.catalog!r} is no kind of catalog: choose 'sqlite' or 'log'.")
    if request.dry_run:
        return _Replication(handle, request, progress).plan()
    if isinstance(request.target, LocalStorage):
        request.target.make_root()
    with sole_change_of(request.target):
        return _Replication(handle, request, progress).run()


class _Replication:
    def __init__(self, handle: Handle, request: CopyRequest, progress: Progress) -> None:
        self._handle = handle
        self._target = request.target
        self._request = request
        self._progress = progress
        self._lock = threading.Lock()
        self._needs = Needs(handle)
        self._copied: dict[PackId, int] = {}
        self._sizes: dict[PackId, int] = {}
        self._ready: set[PackId] = set()
        self._lost: PackId | None = None
        # Nothing is copied on the word of a hint, nor is a place claimed.
        handle.catalog.confirm()
        self._copy = look_at(self._target, handle.catalog.identity, handle.clock)
        self._kind = self._choose_kind()
        self._report = CopyReport(
            request.dry_run, self._target.url, self._kind, handle.catalog.identity.repository.hex()
        )

    def _choose_kind(self) -> CatalogKind:
        wanted = self._request.catalog
        if self._copy.kind is not None:
            if wanted not in (None, self._copy.kind):
                raise InvalidInputError(
                    f"{self._target.url} has a catalog of kind {self._copy.kind!r}, not {wanted!r}: open the copy and "
                    "call convert_catalog()."
                )
            return self._copy.kind
        if wanted == "sqlite":
            directory_of(self._target)
            return "sqlite"
        return "log" if wanted == "log" else default_kind(self._target)

    # --- a dry run ---------------------------------------------------------------------------------------------

    def plan(self) -> CopyReport:
        """Say what would be copied."""
        return self._in_rounds(self._plan_once)

    def _plan_once(self) -> CopyReport:
        with self._reading() as view:
            relation = relate(self._copy, view, self._target)
            roots = take_roots(view)
        packs = self._packs_of(roots)
        self._look_at_sizes(packs)
        present = self._list(self._target)
        absent = [pack for pack in packs if present.get(pack) != self._sizes[pack]]
        report = self._fill_report(roots, packs, is_current=not relation.is_behind)
        if relation.is_behind:
            report.copied_packs = len(absent)
            report.copied_bytes = sum(self._sizes[pack] for pack in absent)
        return report

    # --- the real one ------------------------------------------------------------------------------------------

    def run(self) -> CopyReport:
        """Copy what is not there."""
        self._prepare_place()
        return self._in_rounds(self._round)

    def _in_rounds(self, act: Callable[[], CopyReport]) -> CopyReport:
        """Do this in as many rounds as the source's own clearing up makes necessary."""
        for _ in range(_ROUNDS):
            try:
                return act()
            except (MovedOnError, StaleStateError):
                # What was named by states before may be what is gone.
                self._needs = Needs(self._handle)
                self._sizes = {pack: size for pack, size in self._sizes.items() if pack in self._ready}
        raise StorageError(
            f"packs kept being deleted from {self._handle.storage.url} while they were to be copied, in {_ROUNDS} "
            "tries. What was copied stays; call again when no garbage collection is running."
        )

    def _prepare_place(self) -> None:
        """See that the place can be written, and say whose it is."""
        if self._copy.newest != NOTHING:
            existing = open_catalog(self._target, PackSpill(self._target), clock=self._handle.clock)
            try:
                existing.check_writable()
            finally:
                existing.close()
        elif self._kind == "log":
            from vstore.catalog.log_probe import probe

            probe(self._target)
        else:
            from vstore.catalog.sqlite import SqliteCatalog

            new = SqliteCatalog(directory_of(self._target))
            if not new.can_lock():
                new.check_writable()
        claim(self._target, self._handle.catalog.identity, self._handle.clock)
        if self._kind == "sqlite":
            from vstore.catalog.sqlite import SqliteCatalog

            SqliteCatalog(directory_of(self._target)).sweep()

    def _round(self) -> CopyReport:
        with self._reading() as view:
            relation = relate(self._copy, view, self._target)
            roots = take_roots(view)
        packs = self._packs_of(roots)
        if not relation.is_behind and relation.has_own:
            # Nothing but what keeps it well was done to it, and nothing at all to the source.
            self._look_at_sizes(packs)
            return self._fill_report(roots, packs, is_current=True)
        self._catch_up(packs)
        with self._reading() as view:
            relation = relate(self._copy, view, self._target)
            roots = take_roots(view)
            if not relation.is_behind:
                return self._fill_report(roots, packs, is_current=True)
            staged = self._stage(view)
        try:
            packs = self._packs_of(roots)
            self._bring(packs)
            self._progress(len(packs), len(packs), "catalog put in place")
            staged.publish()
        finally:
            staged.discard()
        return self._fill_report(roots, packs)

    def _catch_up(self, packs: set[PackId]) -> None:
        """Copy `packs`, and what newer states need meanwhile: what is staged keeps the copy's other writers waiting."""
        for _ in range(_CATCH_UPS):
            self._bring(packs)
            with self._reading() as view:
                roots = take_roots(view)
            packs = self._packs_of(roots)
            if packs <= self._ready:
                return

    def _stage(self, view: CatalogView) -> Staged:
        # Numbers and epoch of a copy only grow, also where its own housekeeping took some.
        last = self._copy.newest + 1
        if self._kind == "log":
            last = next_number(self._target, self._copy.newest, max(view.sequence, last))
        more = fillers(view.sequence + 1, last, self._handle.clock.now_us(), self._handle.author)
        # So that a gc of the copy that is at work looks anew.
        epoch = 0 if self._copy.newest == NOTHING else self._copy.epoch + 1
        state = Exported(state_view(view), more=more, marks=self._copy.moved, epoch=epoch)
        return stage(self._target, self._kind, state, self._copy.newest, self._handle.clock)

    def _fill_report(
        self, roots: Roots, packs: Collection[PackId], *, is_current: bool = False
    ) -> CopyReport:
        report = self._report
        report.sequence, report.is_current = roots.sequence, is_current
        report.packs, report.bytes = len(packs), sum(self._sizes[pack] for pack in packs)
        report.copied_packs, report.copied_bytes = len(self._copied), sum(self._copied.values())
        return report

    @contextlib.contextmanager
    def _reading(self) -> Iterator[CatalogView]:
        with self._handle.catalog.reading() as view:
            if moved_to(view.value(STATUS)):
                raise ConflictError(
                    f"{self._handle.storage.url} is being converted to another catalog, or that was interrupted. "
                    "Finish it with repo.convert_catalog(), open the repository again, then copy."
                )
            yield view

    def _packs_of(self, roots: Roots) -> set[PackId]:
        """Return the packs that the copy must have under their own names: not those that it has relocated.

        All that the source needs of such a pack was live when it was last copied, and is therefore where the copy's own
        relocation says.
        """
        here = relocations(self._copy.moved).keys()
        named = self._needs.named_by(roots, self._progress)
        return final_packs(named - here, roots.moved)

    # --- packs -------------------------------------------------------------------------------------------------

    def _bring(self, packs: set[PackId]) -> None:
        """Copy those of `packs` that the target lacks, and look at those that it has."""
        wanted = sorted(packs - self._ready)
        if not wanted:
            return
        self._look_at_sizes(wanted)
        present = self._list(self._target)
        self._remove_staged(packs)
        total, done = sum(self._sizes[pack] for pack in wanted), 0

        def note(pack: PackId, size: int, was_copied: bool) -> None:
            nonlocal done
            with self._lock:
                done += size
                self._ready.add(pack)
                if was_copied:
                    self._copied[pack] = size
                self._progress(done, total, "bytes of packs copied")

        copier = PackCopier(self._handle.storage, self._target, note, verify=self._request.verify)
        copier.copy(((pack, self._sizes[pack]) for pack in wanted), present)

    def _look_at_sizes(self, packs: Collection[PackId]) -> None:
        if all(pack in self._sizes for pack in packs):
            return
        # A read-only web server lists nothing, and a listing may be stale: what it lacks is asked for by name.
        with contextlib.suppress(StorageError):
            self._sizes |= self._list(self._handle.storage)
        unlisted = [pack for pack in packs if pack not in self._sizes]
        with ThreadPoolExecutor(_QUESTIONS_AT_ONCE) as pool:
            sizes = pool.map(lambda pack: self._handle.storage.size(pack_name(pack)), unlisted)
            for pack, size in zip(unlisted, sizes, strict=True):
                if size is None:
                    self._raise_missing(pack)
                else:
                    self._sizes[pack] = size

    def _raise_missing(self, pack: PackId) -> None:
        """Raise what it means that a needed pack is gone."""
        # An entry of a state that is not the newest any more? The next round tells.
        if self._lost == pack:
            raise MissingBlobError(
                f"{pack_name(pack)} is missing in {self._handle.storage.url}, and snapshots need it, so that a copy "
                "would not be whole. repo.fsck() names what is damaged."
            )
        self._lost = pack
        raise MovedOnError(f"{pack_name(pack)} was deleted before it was copied")

    def _list(self, storage: Storage) -> dict[PackId, int]:
        found = ((parse_pack_name(info.name), info.size) for info in storage.list(PACK_PREFIX))
        return {pack: size for pack, size in found if pack is not None}

    def _remove_staged(self, packs: set[PackId]) -> None:
        """Remove what a crash has left of packs that were being copied: gc would take it for needed."""
        if not self._target.is_local:
            return
        names = [
            info.name
            for info in self._target.list(STAGING_PREFIX)
            if parse_staging_name(info.name) in packs and not self._target.is_held(info.name)
        ]
        self._target.delete(names)
