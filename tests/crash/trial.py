"""One run of a commit, from a fresh repository on, and what must be true of the repository after it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from obstore.store import MemoryStore

import vstore
from tests.crash.faulty import open_faulty
from tests.repositories import GROUP, Place, array_document, commit, contents, quick_folder, write
from vstore.blobs.cache import CACHE
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.storage.base import PackPolicy
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage
from vstore.worktree.spilling import spill

BASE = {
    "zarr.json": GROUP,
    "a/zarr.json": array_document((6000,), (1000,)),
    **{f"a/c/{n}": bytes([n]) * 1000 for n in range(4)},
    "gone/zarr.json": GROUP,
    "value": b"v" * 5000,
}
EDITS = {
    "a/zarr.json": array_document((8000,), (1000,)),
    "a/c/1": b"one" * 400,
    "a/c/7": b"small",
    "b/zarr.json": array_document((1000,), (1000,)),
    "b/c/0": b"b" * 80_000,
    "new value": b"n" * 5000,
}
MANY = {
    "b/zarr.json": array_document((40_000,), (1000,)),
    **{f"b/c/{n}": bytes([n]) * 1000 for n in range(40)},
}


class TinyPacks(FaultyStorage):
    """Seals a pack every few chunks."""

    def __init__(self, inner: Any, plan: FaultPlan) -> None:
        super().__init__(inner, plan)
        self.pack_policy = PackPolicy(target_bytes=12_000, buffer_bytes=5000, direct_bytes=None)


@dataclass
class Scenario:
    """An operation on a repository that holds `BASE`, and what it makes of it."""

    edits: dict[str, bytes]
    deleted: str
    method: str = "commit"
    storage: type[FaultyStorage] = FaultyStorage

    @property
    def after(self) -> dict[str, bytes]:
        kept = {key: value for key, value in BASE.items() if not key.startswith(f"{self.deleted}/")}
        return kept | self.edits

    def write(self, session: Session) -> None:
        session.tree_for_writing().delete_folder(self.deleted)
        write(session, self.edits)

    def finish(self, session: Session) -> str:
        return str(getattr(session, self.method)("the change"))

    def run(self, session: Session) -> str:
        self.write(session)
        return self.finish(session)


class Spilling(Scenario):
    """One whose pending refs leave the memory whenever they can."""

    def write(self, session: Session) -> None:
        session.tree_for_writing().delete_folder(self.deleted)
        for number, (key, value) in enumerate(self.edits.items()):
            write(session, {key: value})
            if number % 10 == 9:
                spill(session.tree, fewest_refs=1)


SCENARIOS = {
    "small": Scenario(EDITS, "gone"),
    "amend": Scenario(EDITS, "gone", "amend"),
    "flush": Scenario(EDITS, "gone", "flush"),
    "several packs": Scenario(MANY, "gone", storage=TinyPacks),
    "spilled": Spilling(MANY, "gone", storage=TinyPacks),
}


class Trial:
    """One run of a scenario, from a fresh repository on, with one fault or none."""

    def __init__(
        self,
        kind: str,
        scenario: Scenario,
        fault: tuple[int, Fault] | None = None,
        *,
        make_plan: Callable[[], FaultPlan] = FaultPlan,
    ) -> None:
        self.scenario = scenario
        self.fault = fault
        self._folder = quick_folder()
        self.place, self.before = copy_of_base(kind, self._folder.__enter__())
        CACHE.clear()
        self.plan = make_plan()
        self.repository = open_faulty(self.place, self.plan, scenario.storage)
        self.session = self.repository.writable_session("main")
        self.plan.reset()
        if fault is not None:
            self.plan.inject(*fault)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None and self.fault is not None:
            number, fault = self.fault
            error.add_note(f"with request {number} of {self.plan.requests} {fault}")
        self.plan.reset()
        self.session.close()
        self.repository.close()
        self._folder.__exit__(None, None, None)

    def made(self, reader: vstore.Repository) -> set[str]:
        """Return the snapshots that the operation may have made: those in the operations log."""
        found = {after for entry in reader.ops_log() for _, _, _, after in entry.changes if after}
        return found - {self.before, *(info.id for info in reader.ancestry(snapshot_id=self.before))}

    def verify(self, acknowledged: str | None = None) -> None:
        """Look at the repository from outside: the old state, or the new one if it was acknowledged."""
        with self.place.open() as reader:
            assert contents(reader.readonly_session(snapshot_id=self.before)) == BASE
            new = self.made(reader)
            assert len(new) <= 1, "the change was made twice"
            head = reader.lookup_branch("main")
            if self.scenario.method == "flush":
                assert head == self.before
            else:
                assert head in ({acknowledged} if acknowledged else {self.before, *new})
            for snapshot_id in new | ({acknowledged} if acknowledged else set()):
                assert contents(reader.readonly_session(snapshot_id=snapshot_id)) == self.scenario.after
                assert reader.lookup_snapshot(snapshot_id).message == "the change"
            report = check(reader, data=True)
            assert report.damages == []

    def run_to_the_end(self, *errors: type[BaseException]) -> None:
        """Run the scenario; after one of `errors` do again what failed, and what follows, and look at the outcome."""
        steps = [self.scenario.write, self.scenario.finish]
        try:
            for step in list(steps):
                step(self.session)
                steps.remove(step)
        except errors:
            self.verify()
            if not self.session.read_only:
                for step in steps:
                    step(self.session)
        # Packs are sealed in the background: this run may have made fewer requests than the one that was counted.
        self.plan.disarm()
        acknowledged = self.session.snapshot_id
        assert acknowledged != self.before, "it did not commit"
        self.verify(acknowledged)
        assert contents(self.session) == self.scenario.after


_kept = ExitStack()
"""Folders of originals, until the process ends."""


@cache
def _original(kind: str) -> tuple[Place, str]:
    place = Place.new(kind, _kept.enter_context(quick_folder()))
    with place.create() as repository:
        return place, commit(repository, BASE)


def copy_of_base(kind: str, folder: Path) -> tuple[Place, str]:
    """Return a repository of its own that holds `BASE`, and its head: copied, as making one takes most of a trial."""
    original, head = _original(kind)
    place = Place.new(kind, folder)
    if isinstance(place.location, MemoryStore):
        for batch in original.location.list():
            for item in batch:
                place.location.put(item["path"], bytes(original.location.get(item["path"]).bytes()))
    else:
        shutil.copytree(original.location, place.location)
    return place, head


def count_requests(kind: str, scenario: Scenario) -> int:
    with Trial(kind, scenario) as trial:
        made = scenario.run(trial.session)
        count = len(trial.plan.requests)
        trial.verify(made)
    return count
