"""Conversions, copies and backups, stopped at each step on the disk and at each request of a store.

A conversion leaves a repository that opens with all it had, and goes on or back; a copy leaves no repository, or the
copy as it was, or the new one; the next call finishes either.
"""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from obstore.store import MemoryStore

import vstore
from tests.crash.faulty import open_faulty
from tests.crash.steps import Steps
from tests.repositories import Place, commit, contents, quick_folder
from tests.unit.transfer.houses import contents_of, furnish, require_converted, require_sound, state_of
from vstore.blobs.cache import CACHE
from vstore.storage.location import open_storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage, SimulatedCrash

OTHER = {"sqlite": "log", "log": "sqlite"}
CRASHES = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER)


@cache
def template(kind: str, commits: int) -> Path:
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    folder = Path(mkdtemp(prefix="vstore-house-", dir=shared))
    furnish(Place.new(kind, folder), commits).close()
    return folder / "repository"


@contextmanager
def house(kind: str, commits: int = 4) -> Iterator[Place]:
    with quick_folder() as folder:
        place = Place.new(kind, folder)
        shutil.copytree(template(kind, commits), place.location)
        yield place


def numbers(total: int, step: int) -> Iterator[int]:
    assert total > 10, "the plan does not see the steps"
    yield from range(0, total, step)


# --- conversions -----------------------------------------------------------------------------------------------


def stop_conversion(kind: str, step: int, faults: tuple[Fault, ...], *, is_second: bool) -> None:
    """Stop at each step; go on with it, and go back from it."""

    def prepared(place: Place) -> None:
        if is_second:
            # What was converted before has left a log.
            with place.open() as repository:
                repository.convert_catalog(OTHER[kind])
                repository.convert_catalog(kind)

    with house(kind) as place:
        prepared(place)
        steps = Steps()
        with place.open() as repository, steps.watching():
            repository.convert_catalog(OTHER[kind])
        total = steps.count
    for number in numbers(total, step):
        for fault in faults:
            for wanted in (OTHER[kind], kind):
                with house(kind) as place:
                    prepared(place)
                    try:
                        _stopped_conversion(place, kind, wanted, Steps(number, fault))
                    except BaseException as error:
                        error.add_note(f"{kind}, step {number} of {total}, {fault}, then to {wanted}")
                        raise


def _stopped_conversion(place: Place, kind: str, wanted: str, steps: Steps) -> None:
    with place.open() as repository:
        before, held = state_of(repository), contents_of(repository)
        with suppress(SimulatedCrash), steps.watching():
            repository.convert_catalog(OTHER[kind])
    # Threads of the probe may have made fewer steps this time: then it is done, which is a case as well.
    with place.open() as found:
        # Whichever counts, all is there.
        assert contents_of(found) == held
        landed = None
        if found.status == "online":
            landed = commit(found, {"after": b"a"})
        else:
            with pytest.raises(vstore.ReadOnlyError, match="convert_catalog"):
                commit(found, {"after": b"a"})
        found.convert_catalog(wanted)
        after = commit(found, {"after all": b"a"})
    with place.open() as last:
        ancestors = [info.id for info in last.ancestry(branch="main")]
        assert ancestors[0] == after
        assert landed in (None, ancestors[1])
        assert held.items() <= contents_of(last).items()
        require_sound(last)
        if landed is None:
            now = state_of(last)
            assert now["transactions"][now["sequence"] - before["sequence"] :] == before["transactions"]


@pytest.mark.parametrize("kind", ["sqlite", "log"])
def test_a_conversion_stops_at_every_sixth_step(kind: str) -> None:
    stop_conversion(kind, 6, (Fault.CRASH_AFTER,), is_second=False)


@pytest.mark.deep
@pytest.mark.parametrize("is_second", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "log"])
def test_a_conversion_stops_at_every_step(kind: str, is_second: bool) -> None:
    stop_conversion(kind, 1, CRASHES, is_second=is_second)


# --- copies to a directory -------------------------------------------------------------------------------------


def stop_copy(kind: str, step: int, faults: tuple[Fault, ...], *, is_update: bool) -> None:
    """Stop a copy to a directory at each step on the disk."""

    def prepared(place: Place, copy: Path) -> None:
        if is_update:
            with place.open() as repository:
                repository.copy_to(copy, catalog=kind)
                for number in range(3):
                    commit(repository, {"later": bytes([number]) * 3000})

    with house("sqlite") as place:
        copy = place.location.parent / "copy"
        prepared(place, copy)
        steps = Steps()
        with place.open() as repository, steps.watching():
            repository.copy_to(copy, catalog=kind)
        total = steps.count
    for number in numbers(total, step):
        for fault in faults:
            with house("sqlite") as place:
                copy = place.location.parent / "copy"
                prepared(place, copy)
                try:
                    _stopped_copy(place, copy, kind, Steps(number, fault))
                except BaseException as error:
                    error.add_note(f"{kind}, step {number} of {total}, {fault}")
                    raise


def _stopped_copy(place: Place, copy: Any, kind: str, steps: Steps) -> None:
    old = _look(copy)
    with place.open() as repository:
        try:
            with steps.watching():
                repository.copy_to(copy, catalog=kind)
        except (SimulatedCrash, vstore.InternalError):
            # The crash of one thread takes the packs of the others away.
            assert steps.plan.crashed
        # Errors of threads keep descriptors, and thereby locks, until they are collected.
        gc.collect()
        new = state_of(repository), contents_of(repository)
        # Packs are copied by threads, which may have made fewer steps this time.
        assert not steps.plan.crashed or _look(copy) in (old, new[1])
        repository.copy_to(copy, catalog=kind)
    with vstore.Repository.open(copy) as made:
        require_sound(made)
        assert contents_of(made) == new[1]
        require_converted({**new[0], "epoch": 0}, {**state_of(made), "epoch": 0})
        # Nothing is left that gc would never remove.
        staging = Path(copy, "staging") if isinstance(copy, Path) else None
        needed = {info.name for info in made.handle.storage.list("packs/")}
        assert not staging or not [
            name for name in (each.name for each in staging.iterdir()) if f"packs/{name[:2]}/{name}" in needed
        ]


def _look(copy: Any) -> dict[str, dict[str, bytes]] | None:
    """Return what a copy holds; None if there is none, and the error says why."""
    try:
        with vstore.Repository.open(copy) as found:
            require_sound(found)
            return contents_of(found)
    except vstore.RepositoryNotFoundError:
        assert not vstore.Repository.exists(copy)
        return None


@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "log"])
def test_a_copy_stops_at_every_eleventh_step(kind: str, is_update: bool) -> None:
    stop_copy(kind, 11, (Fault.CRASH_AFTER,), is_update=is_update)


@pytest.mark.deep
@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize("kind", ["sqlite", "log"])
def test_a_copy_stops_at_every_step(kind: str, is_update: bool) -> None:
    stop_copy(kind, 1, CRASHES, is_update=is_update)


# --- copies to a store -----------------------------------------------------------------------------------------

FAULTS = (
    Fault.NOT_APPLIED,
    Fault.LOST,
    Fault.APPLIED,
    Fault.LATE,
    Fault.CRASH_BEFORE,
    Fault.CRASH_AFTER,
)


def fail_uploads(step: int, faults: tuple[Fault, ...], *, is_update: bool) -> None:
    """Let each request to the store fail in each way, and copy again."""

    def start(repository: vstore.Repository) -> ObjectStorage:
        target = ObjectStorage(MemoryStore())
        if is_update:
            repository.copy_to(target)
        return target

    with house("sqlite") as place, place.open() as repository:
        if is_update:
            snapshot = _contents_of_store(start(repository))
            for number in range(3):
                commit(repository, {"later": bytes([number]) * 3000})
        else:
            snapshot = {}
        expected = contents_of(repository)
        plan = FaultPlan()
        repository.copy_to(FaultyStorage(_store_with(snapshot), plan))
        for number in numbers(len(plan.requests), step):
            for fault in faults:
                try:
                    _failed_upload(
                        repository, expected, _store_with(snapshot), FaultPlan().inject(number, fault)
                    )
                except BaseException as error:
                    error.add_note(f"request {number} of {plan.requests}, {fault}")
                    raise


def _failed_upload(
    repository: vstore.Repository, expected: Any, target: ObjectStorage, plan: FaultPlan
) -> None:
    old = _look(target)
    is_done = False
    with suppress(vstore.StorageError, SimulatedCrash):
        repository.copy_to(FaultyStorage(target, plan))
        is_done = True
    assert _look(target) in ((expected,) if is_done else (old, expected))
    plan.land()
    repository.copy_to(target)
    plan.land()
    assert _look(target) == expected
    with vstore.Repository.open(target) as copy:
        commit(copy, {"own": b"1"})
        plan.land()
        assert contents(copy.readonly_session("main"))["own"] == b"1"
        require_sound(copy)


def _contents_of_store(storage: ObjectStorage) -> dict[str, bytes]:
    return {info.name: bytes(storage.read(info.name, 0, info.size)) for info in storage.list("")}


def _store_with(objects: dict[str, bytes]) -> ObjectStorage:
    store = MemoryStore()
    for name, data in objects.items():
        store.put(name, data)
    return ObjectStorage(store)


@pytest.mark.parametrize("is_update", [False, True])
def test_some_requests_of_a_copy_to_a_store_fail(is_update: bool) -> None:
    fail_uploads(11, (Fault.APPLIED, Fault.CRASH_AFTER), is_update=is_update)


@pytest.mark.deep
@pytest.mark.parametrize("is_update", [False, True])
def test_each_request_of_a_copy_to_a_store_fails_in_every_way(is_update: bool) -> None:
    fail_uploads(1, FAULTS, is_update=is_update)


# --- the source ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["log", "memory"])
def test_some_reads_of_the_source_fail(kind: str) -> None:
    """Nothing is taken from a source that fails, and the next call goes on."""
    with quick_folder() as folder:
        place = Place.new(kind, folder)
        furnish(place, 4).close()
        plan = FaultPlan()
        with open_faulty(place, plan) as repository:
            expected = contents_of(repository)
            plan.reset()
            CACHE.clear()
            repository.copy_to(MemoryStore())
            total = len(plan.requests)
            assert total > 10, "the plan does not see the requests"
            for number in range(0, total, 7):
                for fault in (Fault.NOT_APPLIED, Fault.CORRUPT, Fault.TRUNCATE):
                    _failed_read(repository, plan, number, fault, expected)


def _failed_read(
    repository: vstore.Repository, plan: FaultPlan, number: int, fault: Fault, expected: Any
) -> None:
    CACHE.clear()
    plan.reset()
    plan.inject(number, fault)
    target = open_storage(MemoryStore())
    with suppress(vstore.StorageError, vstore.FormatError):
        repository.copy_to(target, verify=True)
    plan.reset()
    assert _look(target) in (None, expected)
    repository.copy_to(target, verify=True)
    assert _look(target) == expected


# --- damage on the way -----------------------------------------------------------------------------------------


def damage_replies(step: int, *, is_update: bool) -> None:
    """Let replies of the source, then of the target, be damaged on their way: the copy is whole all the same."""
    with quick_folder() as folder:
        place = Place.new("memory", folder)
        furnish(place, 4).close()
        of_source, of_target = FaultPlan(), FaultPlan()
        with open_faulty(place, of_source) as repository:
            old = ObjectStorage(MemoryStore())
            if is_update:
                repository.copy_to(old)
                commit(repository, {"later": bytes(3000), "a/c/1": bytes(1000)})
            start, expected = _contents_of_store(old), contents_of(repository)

            def copy() -> None:
                target = _store_with(start)
                CACHE.clear()
                repository.copy_to(FaultyStorage(target, of_target))
                of_source.disarm()
                CACHE.clear()
                assert _look(target) == expected

            for plan in (of_source, of_target):
                for number in itertools.count(0, step):
                    for fault in (Fault.CORRUPT, Fault.TRUNCATE):
                        of_source.reset()
                        of_target.reset()
                        plan.inject(number, fault)
                        try:
                            copy()
                        except BaseException as error:
                            error.add_note(f"request {number} of {plan.requests}, {fault}")
                            raise
                    if number >= len(plan.requests):
                        break
                assert number > 10, "the plan does not see the requests"


@pytest.mark.parametrize("is_update", [False, True])
def test_some_replies_of_a_copy_are_damaged_on_their_way(is_update: bool) -> None:
    damage_replies(7, is_update=is_update)


@pytest.mark.deep
@pytest.mark.parametrize("is_update", [False, True])
def test_each_reply_of_a_copy_is_damaged_on_its_way(is_update: bool) -> None:
    damage_replies(1, is_update=is_update)
