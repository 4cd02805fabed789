"""Threads that share a repository, a session, a store: nothing is lost, and closing beside readers is clean."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import vstore
from tests.access.workers import SIZE, VALUES, array_of, check_values, commit, put
from tests.repositories import KINDS, Place, array_document, quick_folder
from vstore.blobs.cache import CACHE
from vstore.worktree.batch.reading import plan_reads

CLOSED = (vstore.SessionStateError, vstore.ReadOnlyError)


@pytest.fixture(params=KINDS)
def repository(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder, Place.new(request.param, folder).create() as repository:
        with repository.transaction("main", message="base") as store:
            zarr.create_array(store, name="a", data=VALUES, chunks=200, compressors=None)
        yield repository


@pytest.fixture(autouse=True)
def hurry() -> Iterator[None]:
    """Let threads change places much more often than they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@contextmanager
def threads(*bodies: Callable[[], object]) -> Iterator[None]:
    """Run bodies beside the block, which waits for their end; whatever one raises fails the test."""
    failed: list[str] = []

    def guarded(body: Callable[[], object]) -> None:
        try:
            body()
        except BaseException:  # noqa: BLE001
            failed.append(traceback.format_exc())

    started = [threading.Thread(target=guarded, args=(body,)) for body in bodies]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for thread in started:
            thread.join()
    assert not failed, "\n".join(failed)


def run(*bodies: Callable[[], object]) -> None:
    with threads(*bodies):
        pass


def until(stop: threading.Event, body: Callable[[], object]) -> Callable[[], None]:
    def loop() -> None:
        while not stop.is_set():
            body()

    return loop


@pytest.mark.parametrize("commits", [6, pytest.param(60, marks=pytest.mark.deep)])
def test_commits_of_many_threads_all_land(repository: vstore.Repository, commits: int) -> None:
    def work(name: str) -> None:
        for number in range(commits):
            commit(repository, f"{name}/{number}", f"{name}{number}".encode() * 300)

    run(*(lambda name=name: work(name) for name in "abcd"))  # type: ignore[misc]
    reader = repository.readonly_session("main")
    for name in "abcd":
        for number in range(commits):
            assert reader.tree.read(f"{name}/{number}") == f"{name}{number}".encode() * 300
    assert len(list(repository.ancestry(branch="main"))) == 2 + 4 * commits
    assert repository.fsck(data=True).is_clean


def test_one_session_is_written_to_by_many_threads(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="b", shape=(8, SIZE), chunks=(1, 200), dtype="i8", compressors=None)
    store = session.store

    def fill(row: int) -> None:
        array = zarr.open_array(store, path="b", mode="r+")
        array[row] = VALUES + row
        np.testing.assert_array_equal(array[row], VALUES + row)

    run(*(lambda row=row: fill(row) for row in range(8)))  # type: ignore[misc]
    session.commit("by many threads")
    found = zarr.open_array(repository.readonly_session("main").store, path="b", mode="r")[:]
    np.testing.assert_array_equal(found, VALUES + np.arange(8)[:, None])
    assert repository.fsck(data=True).is_clean


@pytest.mark.parametrize("way", ["value", "chunk", "document", "batch"])
def test_a_key_is_read_while_it_is_overwritten(repository: vstore.Repository, way: str) -> None:
    """Readers get one of the values that were set, whole."""
    session = repository.writable_session("main")
    group = zarr.open_group(session.store)
    key = {"value": "key", "chunk": "b/c/1/0", "document": "b/zarr.json", "batch": "b/c/1/0"}[way]
    group.create_array("b", shape=(12, 3000), chunks=(1, 3000), dtype="u1", compressors=None, fill_value=255)

    def value(number: int) -> bytes:
        if way != "document":
            return bytes([number % 250]) * 3000
        return array_document((12, 3000), (1, 3000), attributes={"a": f"{number % 250:03}" * 1000})

    put(session, key, value(0))
    known = {value(number) for number in range(250)}
    stop = threading.Event()

    def write_on() -> None:
        for number in range(250):
            put(session, key, value(number))

    def read_on() -> None:
        if way == "batch":
            rows = dict(
                row for task in plan_reads(session.tree, [f"b/c/{n}/0" for n in range(12)]) for row in task
            )
            assert bytes(rows[1]) in known  # type: ignore[arg-type]
        else:
            assert session.tree.read(key) in known

    with threads(*(until(stop, read_on) for _ in range(2))):
        try:
            run(write_on, write_on)
        finally:
            stop.set()
    session.commit("the last one")
    assert repository.readonly_session("main").tree.read(key) in known


def test_reading_goes_on_while_a_session_commits(repository: vstore.Repository) -> None:
    stop = threading.Event()
    session = repository.writable_session("main")
    readers = [until(stop, lambda: check_values(session)) for _ in range(3)]
    with threads(*readers):
        try:
            for number in range(5):
                put(session, "key", bytes([number]) * 50_000)
                session.commit(f"commit {number}")
                check_values(session)
                session = repository.writable_session("main")
        finally:
            stop.set()


def test_writes_beside_a_commit_are_in_it_or_refused(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    put(session, "first", b"1")
    taken: list[list[str]] = [[], []]

    def write_on(number: int) -> None:
        for count in range(100_000):
            key = f"w{number}/{count}"
            try:
                put(session, key, key.encode() * 100)
            except CLOSED:
                return
            taken[number].append(key)

    with threads(lambda: write_on(0), lambda: write_on(1)):
        while not (taken[0] and taken[1]):
            pass
        session.commit("beside writers")
    reader = repository.readonly_session("main")
    for key in (*taken[0], *taken[1]):
        assert reader.tree.read(key) == key.encode() * 100
    assert repository.fsck(data=True).is_clean


def test_closing_beside_readers_and_writers(repository: vstore.Repository) -> None:
    """Readers go on or are told; no other error, and never a crash: local packs are mapped."""
    session = repository.writable_session("main")
    reader = repository.readonly_session("main")
    shown = [array_of(reader)[:200]]
    stop = threading.Event()

    def read_on() -> None:
        CACHE.clear()
        check_values(reader)
        check_values(repository.readonly_session("main"))
        shown.append(array_of(reader)[200:400])

    def write_on() -> None:
        try:
            put(session, "key", b"1" * 20_000)
            session.tree.read("key")
        except CLOSED:
            stop.wait(0.001)

    with threads(*(until(stop, body) for body in (read_on, read_on, write_on, write_on))):
        try:
            for _ in range(20):
                repository.close()
                reader.close()
                session.close()
        finally:
            stop.set()
    repository.close()
    check_values(repository.readonly_session("main"))
    assert all((part == VALUES[:200]).all() or (part == VALUES[200:400]).all() for part in shown)


def test_discarding_beside_writers(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    stop = threading.Event()

    def write_on() -> None:
        with suppress(CLOSED):
            put(session, "key", b"1" * 20_000)

    with threads(*(until(stop, write_on) for _ in range(3))):
        try:
            for _ in range(20):
                session.discard_changes()
        finally:
            stop.set()
    session.discard_changes()
    assert not session.has_uncommitted_changes
    put(session, "last", b"1")
    session.commit("what was not discarded")
    reader = repository.readonly_session("main")
    assert reader.tree.read("key") is None
    assert reader.tree.read("last") == b"1"


def test_views_of_mapped_packs_outlive_everything(tmp_path: Path) -> None:
    repository = vstore.Repository.create(tmp_path / "r")
    commit(repository, "key", b"x" * 100_000)
    session = repository.readonly_session("main")
    view: Any = session.tree.get("key")
    session.close()
    repository.close()
    del session, repository
    assert bytes(view) == b"x" * 100_000


@pytest.mark.parametrize("many", [30])
def test_threads_stay_few_however_many_sessions(repository: vstore.Repository, many: int) -> None:
    before = threading.active_count()
    sessions = [repository.writable_session("main") for _ in range(many)]
    for number, session in enumerate(sessions):
        put(session, f"key {number}", b"x" * 10_000)
        session.status()
        array_of(session)[:10]
    # zarr's own, and those that are shared by the process.
    assert threading.active_count() <= before + 20
    for session in sessions:
        session.commit("one of many", rebase_with="ours")
    assert threading.active_count() <= before + 20
