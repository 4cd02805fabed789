"""One operation with one fault, and what must be true of the repository whatever the fault was.

The caller is told that it landed, and then it did, once; or it is told that it did not, and then it did not and never
will; or that this is unknown, and then asking again tells. Somebody else's handle, which no fault meets, judges.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import vstore
from tests.faults.cases import is_quick
from tests.faults.operations import OPERATIONS, Act, Operation
from tests.faults.site import IMPATIENT, OPTIONS, Site, far_future
from tests.repositories import contents
from vstore.blobs.cache import CACHE
from vstore.catalog.base import VALUE_NAMES
from vstore.format.record import OperationKind, RefKind
from vstore.keys.objects import PACK_PREFIX
from vstore.ops.fsck import check
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions
from vstore.testing.proxy import DROP_BEFORE, Exchange, NetworkFault

NO_OPERATION = OperationKind.NO_OPERATION


class State(NamedTuple):
    """What a repository says, in words that are the same for each run: contents and messages in place of ids."""

    refs: dict[tuple[RefKind, str], tuple[Any, ...]]
    settings: tuple[bytes | None, ...]
    writers: list[bool]
    """The registered sessions: whether each is a writer's, or else a lease."""

    operations: list[str]
    snapshots: int


_contents: dict[str, tuple[Any, ...]] = {}


def _describe(repository: vstore.Repository, snapshot_id: str) -> tuple[Any, ...]:
    """Return what a snapshot holds and its history; equal ids hold equal things, so it is looked at once."""
    if snapshot_id not in _contents:
        session = repository.readonly_session(snapshot_id=snapshot_id)
        messages = [info.message for info in repository.ancestry(snapshot_id=snapshot_id)]
        _contents[snapshot_id] = (contents(session), messages)
    return _contents[snapshot_id]


def look(site: Site, folder: str) -> State:
    """Return the state as somebody else sees it."""
    with site.open(folder) as repository:
        with repository.handle.catalog.reading() as view:
            held = {(kind, name): snapshot for kind in RefKind for name, snapshot in view.iter_refs(kind)}
            settings = tuple(view.value(name) for name in VALUE_NAMES)
            sessions = [entry.snapshot is None for entry in view.iter_sessions()]
            operations = [each.kind.name for each in view.iter_operations() if each.kind != NO_OPERATION]
            snapshots = sum(1 for _ in view.iter_snapshots())
        refs = {ref: _describe(repository, snapshot.hex()) for ref, snapshot in held.items()}
        return State(refs, settings, sessions, operations[::-1], snapshots)


class Clean(NamedTuple):
    """What an operation does when nothing goes wrong."""

    before: State
    after: State
    requests: list[Exchange]


class Trial:
    """An operation on a fresh copy of its repository; `run` it under a fault, then `judge` and `finish`."""

    def __init__(
        self,
        site: Site,
        operation: Operation,
        clean: Clean | None = None,
    ) -> None:
        self.site = site
        self.operation = operation
        site.proxy.reset()
        self.folder, _ = site.copy(operation.original)
        self.repository = site.open(self.folder, through_proxy=True)
        self.repository.handle.catalog._is_probed = not operation.probes
        self.act: Act = operation.prepare(self.repository, site, self.folder)
        self.before = look(site, self.folder) if clean is None else clean.before
        # Whether it was looked or not: the operation's requests are the same each time.
        CACHE.clear()
        site.proxy.reset()

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *exception: object) -> None:
        self.site.proxy.reset()
        self.repository.close()

    def be(self, options: RequestOptions) -> None:
        """Let the handle wait as long as `options` say from now on.

        Only a fault is met impatiently: on a busy machine any request may take longer than that.
        """
        storage = self.repository.handle.storage
        assert isinstance(storage, ObjectStorage)
        storage._client._options = options
        storage._client._rebuilt.clear()

    def try_it(self) -> vstore.VStoreError | None:
        """Run it; return what it raised. Anything that is not an error of ours is a defect."""
        try:
            self.act()
        except vstore.VStoreError as error:
            return error
        return None

    def has_landed(self, clean: Clean) -> bool:
        """Tell whether it landed; it must have done so as a whole and once, or not at all."""
        now = look(self.site, self.folder)
        added = now.operations[len(self.before.operations) :]
        wanted = clean.after.operations[len(clean.before.operations) :]
        assert now.operations[: len(self.before.operations)] == self.before.operations
        if self.operation.is_repeatable:
            assert now.refs == self.before.refs
            return False
        if added == wanted:
            assert now._replace(operations=[]) == clean.after._replace(operations=[])
            return bool(wanted)
        assert added == wanted[: len(added)], f"{added} was done where {wanted} was asked for"
        assert (now.refs, now.settings) == (self.before.refs, self.before.settings), "it was done in part"
        return False

    def check_soundness(self) -> None:
        with self.site.open(self.folder) as repository:
            assert check(repository, data=True).damages == []

    def collect(self) -> None:
        """Collect without grace: nothing that is reachable may go, and nothing may be left that is not."""
        before = look(self.site, self.folder)
        with self.site.open(self.folder) as repository:
            for session in repository.list_sessions():
                if session.snapshot_id is None:
                    raise AssertionError(f"{session} stays registered")
            for _ in range(2):
                repository.garbage_collect(far_future())
            report = repository.garbage_collect(far_future(), dry_run=True)
            assert (report.garbage_packs, report.held_packs) == (0, 0)
            packs = {name for name in self.site.names(self.folder) if name.startswith(PACK_PREFIX)}
            assert len(packs) == report.live_packs
        assert look(self.site, self.folder)[:3] == before[:3]
        self.check_soundness()


@cache
def run_cleanly(site: Site, name: str) -> Clean:
    """Run an operation without faults."""
    operation = OPERATIONS[name]
    with Trial(site, operation) as trial:
        error = trial.try_it()
        assert operation.refusal is not None or error is None, error
        assert operation.refusal is None or isinstance(error, operation.refusal)
        requests = list(site.proxy.exchanges)
        clean = Clean(trial.before, look(site, trial.folder), requests)
        trial.collect()
        return clean


def try_fault(
    site: Site,
    name: str,
    number: int,
    fault: NetworkFault,
    *,
    outage: bool = False,
    lands_first: bool = True,
    collects: bool = True,
    second: tuple[int, NetworkFault] | None = None,
) -> str:
    """Run an operation whose request `number` meets `fault`, and return what became of it, in words.

    In an `outage` all requests after that one are dropped until the operation gives up. What is held lands right after
    the error, or, without `lands_first`, when the operation has been asked for again. Another request may meet a
    `second` fault.
    """
    clean = run_cleanly(site, name)
    operation = OPERATIONS[name]
    with Trial(site, operation, clean) as trial:
        trial.be(OPTIONS if is_quick(fault) else IMPATIENT)
        site.proxy.inject(fault, nth=number)
        if second is not None:
            site.proxy.inject(second[1], nth=second[0])
        if outage:
            site.proxy.choose(lambda _: DROP_BEFORE if len(site.proxy.exchanges) > number + 1 else None)
        try:
            return _judge(site, trial, clean, lands_first, collects)
        except BaseException as error:
            log = "\n".join(
                f"{n}: {each.method} {each.path} {each.status} {each.server_status} {each.fault or ''}"
                for n, each in enumerate(site.proxy.exchanges)
            )
            then = "" if second is None else f", then request {second[0]} {second[1]}"
            error.add_note(f"{name} with request {number} {fault}{then}, {outage=} {lands_first=}\n{log}")
            raise


def _judge(site: Site, trial: Trial, clean: Clean, lands_first: bool, collects: bool) -> str:
    operation = trial.operation
    error = trial.try_it()
    outcome = _name(trial, error)
    site.proxy.clear()
    trial.be(OPTIONS)
    if lands_first:
        site.proxy.release()
    landed = trial.has_landed(clean)
    if error is None:
        assert operation.refusal is None, "it was not refused"
        assert landed or operation.is_repeatable, "it was acknowledged, and is not there"
    elif not isinstance(error, vstore.CommitOutcomeUnknownError):
        assert not landed, f"it is there, although {error!r}"
    if error is not None:
        again = trial.try_it()
        assert _name(trial, again) == "landed", f"asked again: {again!r}, after {error!r}"
    if site.proxy.release() or error is not None:
        again_landed = trial.has_landed(clean)
        assert again_landed or operation.is_repeatable or operation.refusal is not None, (
            "it is not there once"
        )
    trial.check_soundness()
    if collects:
        trial.collect()
    return outcome + (", and it had landed" if landed and error is not None else "")


def _name(trial: Trial, error: vstore.VStoreError | None) -> str:
    """Return the class of an outcome; all but refusals that no fault explains."""
    refusal = trial.operation.refusal
    if error is None or (refusal is not None and isinstance(error, refusal)):
        return "landed"
    if isinstance(error, vstore.CommitOutcomeUnknownError):
        return "unknown"
    assert isinstance(error, vstore.StorageError | vstore.FormatError), f"a false refusal: {error!r}"
    return "not landed" if isinstance(error, vstore.StorageError) else "damage"
