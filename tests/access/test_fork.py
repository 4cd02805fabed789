"""Forked children: of local repositories they read and commit, of remote ones they are told what to do instead."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import queue
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zarr
from obstore.store import MemoryStore
from zarr.core.buffer import default_buffer_prototype

import vstore
from tests.access import workers
from tests.access.workers import CHILD_S, VALUES, check_values, commit, make, put, with_alarm
from tests.repositories import LOCAL_KINDS, quick_folder
from tests.unit.storage.children import run_in_child
from vstore.blobs.cache import CACHE
from vstore.ids import PackId

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=LOCAL_KINDS)
def repository(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder, make(folder / "repository", catalog=request.param) as repository:
        yield repository


@pytest.fixture
def remote() -> vstore.Repository:
    return make(MemoryStore())


def in_child(body: Callable[[], object]) -> None:
    run_in_child(with_alarm(body))


# --- local -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("catalog", LOCAL_KINDS)
@pytest.mark.parametrize("forks", [3, pytest.param(50, marks=pytest.mark.deep)])
def test_forking_while_threads_read_and_commit(catalog: str, forks: int) -> None:
    with quick_folder() as folder:
        command = [sys.executable, "-m", "tests.access.fork_hammer", str(folder / "r"), catalog, str(forks)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=290, check=False, env=_with_path()
        )
    assert done.returncode == 0, done.stderr


def _with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_lease_ends_only_by_the_process_that_took_it(repository: vstore.Repository) -> None:
    session = repository.readonly_session("main", lease=timedelta(hours=1))

    def child() -> None:
        session.close()
        with vstore.open(repository.handle.storage) as own:
            assert len(own.list_leases()) == 1

    in_child(child)
    (lease,) = repository.list_leases()
    assert lease == session.lease
    session.renew_lease(timedelta(hours=2))
    session.close()
    assert repository.list_leases() == []


def test_a_child_takes_and_ends_a_lease_of_its_own(repository: vstore.Repository) -> None:
    session = repository.readonly_session("main", lease=timedelta(hours=1))

    def child() -> None:
        session.renew_lease(timedelta(hours=2))
        assert len(repository.list_leases()) == 2
        session.close()

    in_child(child)
    assert repository.list_leases() == [session.lease]


def test_a_registration_ends_only_by_the_process_that_made_it(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    put(session, "key", b"1" * 1000)
    session._draft.registration.begin()

    def child() -> None:
        with pytest.raises(vstore.ForkedProcessError, match="child can only read"):
            session.discard_changes()
        session.close()
        assert len(repository.list_sessions()) == 1

    in_child(child)
    assert len(repository.list_sessions()) == 1
    session.commit("by the parent")
    assert repository.list_sessions() == []


ATTEMPTS: dict[str, Callable[[vstore.Session], object]] = {
    "commit": lambda session: session.commit("no"),
    "amend": lambda session: session.amend("no"),
    "flush": lambda session: session.flush("no"),
    "rebase": lambda session: session.rebase(),
    "discard": lambda session: session.discard_changes(),
    "commit without changes": lambda session: session.commit("no", allow_empty=True),
    "move": lambda session: session.move("a", "b"),
    "set": lambda session: put(session, "key", b"2"),
}


@pytest.mark.parametrize("changed", [False, True])
def test_an_inherited_session_is_a_view(repository: vstore.Repository, *, changed: bool) -> None:
    session = repository.writable_session("main")
    if changed:
        put(session, "key", b"1" * 1000)

    def child() -> None:
        for attempt in ATTEMPTS.values():
            with pytest.raises(vstore.ForkedProcessError, match="child can only read"):
                attempt(session)
        check_values(session)
        assert session.tree.read("key") == (b"1" * 1000 if changed else None)
        assert session.has_uncommitted_changes is changed
        copy = pickle.loads(pickle.dumps(session))
        assert copy.tree.read("key") == session.tree.read("key")

    in_child(child)
    put(session, "key", b"2" * 1000)
    session.commit("by the parent")
    assert repository.readonly_session("main").tree.read("key") == b"2" * 1000


def locks_of(repository: vstore.Repository, reader: vstore.Session, writer: vstore.Session) -> dict[str, Any]:
    """Return the locks that a child may want although another thread of its parent held them."""
    blobs = reader.tree.blobs
    locks = {
        "cache": CACHE._lock,
        "reader's worktree": reader.tree.lock,
        "reader's session": reader._lock,
        "reader's relocations": blobs._moved._lock,
        "writer's worktree": writer.tree.lock,
        "writer's session": writer._lock,
        "writer's packs": writer.tree.writer.slots.lock,
        "writer's spilling": writer.tree.spilling,
        "early seal": writer.tree.writer._sealer._announcing,
        "retried seals": writer.tree.writer._sealer._retrying,
    }
    newest = getattr(repository.handle.catalog, "_seen", None)
    return locks if newest is None else {**locks, "newest record": newest._lock}


def test_every_lock_may_be_held_by_another_thread_at_the_fork(repository: vstore.Repository) -> None:
    reader, writer = repository.readonly_session("main"), repository.writable_session("main")
    put(writer, "key", b"1" * 100_000)
    for name, lock in locks_of(repository, reader, writer).items():
        held, release = threading.Event(), threading.Event()

        def hold(lock: Any = lock, held: Any = held, release: Any = release) -> None:
            with lock:
                held.set()
                release.wait(CHILD_S)

        def child() -> None:
            check_values(reader)
            check_values(writer)
            assert writer.tree.read("key") == b"1" * 100_000
            reader.tree.blobs._moved.note({PackId(bytes(16)): PackId(bytes(16))})
            pickle.dumps(writer)
            with pytest.raises(vstore.ForkedProcessError):
                put(writer, "key", b"2")
            writer.status()
            writer.close()
            reader.close()
            commit(repository, "by a child")

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(CHILD_S)
        try:
            in_child(child)
        except AssertionError as error:
            raise AssertionError(f"the lock of {name} was held") from error
        finally:
            release.set()
            thread.join()
    put(writer, "another", b"1")
    writer.commit("by the parent", rebase_with="ours")


KNOWN_LOCKS = {
    "locks": "makes those that are renewed in a child",
    "blobs/cache": "renewed in a child",
    "blobs/fetching": "not taken where another process id is seen",
    "blobs/once": "renewed in a child",
    "blobs/moved": "renewed in a child",
    "blobs/sealing": "only taken where writing is refused in a child",
    "blobs/slots": "renewed in a child",
    "blobs/writer": "a condition of the lock of `blobs/slots`",
    "handle": "renewed in a child",
    "catalog/log_head": "renewed when another process id is seen",
    "catalog/sqlite/connection": "a child never uses its parent's connections",
    "catalog/sqlite/pool": "taken by the forking thread at a fork, made anew in the child",
    "session/__init__": "renewed in a child",
    "shield": "one for each piece of work, whose threads a child does not have",
    "storage/objects/client": "taken only after the process was checked",
    "storage/objects/pack": "taken only after the process was checked",
    "storage/objects/providers": "taken only by requests, after the process was checked",
    "storage/staged": "taken only after the process was checked",
    "transfer/packs": "one for each copy, whose threads a child does not have",
    "transfer/replicate": "one for each copy, whose threads a child does not have",
    "worktree/tree": "renewed in a child",
}


def test_each_lock_of_the_package_is_known_to_be_safe_in_a_child() -> None:
    """A lock that is new gets a line here, and above one in `locks_of` where a child can come to want it."""
    words = ("threading.Lock", "threading.RLock", "threading.Condition", "ForkSafeLock(", "Semaphore(")
    found = set()
    for path in (ROOT / "vstore").rglob("*.py"):
        name = path.relative_to(ROOT / "vstore").with_suffix("").as_posix()
        if not name.startswith("testing/") and any(word in path.read_text() for word in words):
            found.add(name)
    assert found == set(KNOWN_LOCKS)


def test_a_fork_waits_for_the_imports_of_other_threads(tmp_path: Path) -> None:
    """A child could never import what another thread was in the middle of importing."""
    (tmp_path / "slowly_imported.py").write_text("import time\ntime.sleep(0.3)\nDONE = True\n")
    code = """
import importlib, os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import vstore.locks
thread = threading.Thread(target=importlib.import_module, args=("slowly_imported",))
thread.start()
while "slowly_imported" not in importlib._bootstrap._module_locks:
    pass
pid = os.fork()
if pid == 0:
    signal.alarm(20)
    import slowly_imported
    os._exit(0 if slowly_imported.DONE else 1)
thread.join()
assert os.waitpid(pid, 0)[1] == 0
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


def test_a_fork_within_an_import_does_not_wait_for_itself(tmp_path: Path) -> None:
    (tmp_path / "forking.py").write_text(
        "import os, vstore.locks\n"
        "vstore.locks._IMPORT_LOOKS = 10**9\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    subprocess.run([sys.executable, "-c", "import forking"], check=True, timeout=60, env=environment)


def test_the_parent_goes_on_beside_children_that_end_in_every_way(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    put(session, "key", b"1" * 2_000_000)

    def collected() -> None:
        nonlocal session
        del session
        gc.collect()

    for way in (lambda: None, collected, lambda: os.kill(os.getpid(), 9)):
        with contextlib.suppress(AssertionError):
            in_child(way)
        check_values(repository.readonly_session("main"))
    put(session, "key 2", b"2" * 2_000_000)
    session.commit("by the parent")
    reader = repository.readonly_session("main")
    assert reader.tree.read("key") == b"1" * 2_000_000
    assert repository.fsck(data=True).is_clean


# --- data loaders ----------------------------------------------------------------------------------------------


def load(array: zarr.Array[Any]) -> dict[int, Any]:
    """Read an array as a data loader does: forked workers that inherit it take indices from a queue."""
    context = multiprocessing.get_context("fork")
    wanted, found = context.Queue(), context.Queue()
    started = [context.Process(target=workers.serve, args=(array, wanted, found)) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for process in started:
            process.start()
    indices = range(0, len(VALUES), 100)
    for index in (*indices, None, None, None):
        wanted.put(index)
    try:
        results = dict(found.get(timeout=CHILD_S) for _ in indices)
        for process in started:
            process.join(CHILD_S)
            assert process.exitcode == 0
    except queue.Empty:
        for process in started:
            process.kill()
        raise
    finally:
        for each in (wanted, found):
            each.close()
            each.join_thread()
    return results


def test_a_data_loader_reads_a_local_array(repository: vstore.Repository) -> None:
    array = workers.array_of(repository.readonly_session("main"))
    array[:100]
    assert load(array) == {index: VALUES[index : index + 100].sum() for index in range(0, len(VALUES), 100)}


def test_a_data_loader_of_a_remote_array_is_told_instead_of_hanging(remote: vstore.Repository) -> None:
    array = workers.array_of(remote.readonly_session("main"))
    array[:100]
    assert set(load(array).values()) == {"ForkedProcessError"}


# --- remote ----------------------------------------------------------------------------------------------------


def raising_calls(
    repository: vstore.Repository, reader: vstore.Session, writer: vstore.Session
) -> dict[str, Callable[[], object]]:
    prototype = default_buffer_prototype()
    value = prototype.buffer.from_bytes(b"1")
    array = workers.array_of(reader)
    return {
        "look up": lambda: repository.lookup_branch("main"),
        "open": lambda: vstore.Repository.open(repository.handle.storage),
        "exists": lambda: vstore.Repository.exists(repository.handle.storage),
        "reader": lambda: repository.readonly_session("main"),
        "writer": lambda: repository.writable_session("main"),
        "ops log": lambda: list(repository.ops_log()),
        "fsck": lambda: repository.fsck(),
        "gc": lambda: repository.garbage_collect(),
        "tag": lambda: repository.create_tag("new", reader.snapshot_id),
        "look up, async": lambda: asyncio.run(repository.lookup_branch_async("main")),
        "array": lambda: array[:10],
        "open an array": lambda: workers.array_of(reader),
        "get": lambda: asyncio.run(reader.store.get("a/c/0", prototype)),
        "get a document": lambda: asyncio.run(reader.store.get("a/zarr.json", prototype)),
        "get, blocking": lambda: reader.store.get_sync("a/c/0"),
        "exists in the store": lambda: asyncio.run(reader.store.exists("a/zarr.json")),
        "size": lambda: asyncio.run(reader.store.getsize("a/c/0")),
        "list": lambda: asyncio.run(_listed(reader.store)),
        "set": lambda: asyncio.run(writer.store.set("key", value)),
        "delete": lambda: asyncio.run(writer.store.delete("key")),
        "commit": lambda: writer.commit("no"),
        "commit, async": lambda: asyncio.run(writer.commit_async("no")),
        "status": lambda: writer.status(),
        "totals": lambda: reader.totals(),
        "diff": lambda: reader.diff(branch="main"),
        "lease": lambda: reader.renew_lease(timedelta(hours=1)),
    }


async def _listed(store: Any) -> list[str]:
    return [key async for key in store.list()]


def check_remote_child(repository: vstore.Repository) -> None:
    reader = repository.readonly_session("main", lease=timedelta(hours=1))
    writer = repository.writable_session("main")
    put(writer, "key", b"1" * 1000)
    stores = reader.store, writer.store
    calls = raising_calls(repository, reader, writer)

    def child() -> None:
        for call in calls.values():
            with pytest.raises(vstore.ForkedProcessError, match="fork"):
                call()
        with pytest.raises(vstore.ForkedProcessError, match="spawn or forkserver"):
            calls["array"]()
        # What needs no request does not hang.
        assert repr((repository, reader, writer, reader.store, *stores))
        assert pickle.dumps((repository, reader, writer, *stores))
        assert reader == reader
        assert hash(stores)
        for each in (reader, writer, repository):
            each.close()

    in_child(child)

    def dropped() -> None:
        calls.clear()
        gc.collect()

    in_child(dropped)
    # The parent goes on, with its lease.
    assert [reader.lease] == repository.list_leases()
    check_values(reader)
    writer.commit("by the parent")
    reader.close()
    assert repository.list_leases() == []


def test_a_forked_child_of_a_remote_repository_is_told_by_every_call(remote: vstore.Repository) -> None:
    check_remote_child(remote)


REMOTE_PROCESS = """
import os, signal, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import vstore
from tests.access.workers import check_values, commit
from tests.servers import s3_store
repository = None
if sys.argv[2] == "opened":
    repository = vstore.open(s3_store(sys.argv[1], "forked"))
elif sys.argv[2] == "store made":
    store = s3_store(sys.argv[1], "forked")
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    try:
        repository = repository or vstore.open(s3_store(sys.argv[1], "forked"))
        check_values(repository.readonly_session("main"))
        commit(repository, "by a child")
    except vstore.ForkedProcessError as error:
        assert sys.argv[2] == "opened" and "spawn" in str(error)
    # Through all finalizers.
    sys.exit(0)
status = os.waitpid(pid, 0)[1]
assert status == 0, status
repository = vstore.open(s3_store(sys.argv[1], "forked"))
check_values(repository.readonly_session("main"))
"""


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    from tests import servers

    with servers.ministack() as url:
        make(servers.s3_store(url, "forked"))
        yield url


@pytest.mark.server
@pytest.mark.parametrize("state", ["imported", "opened", pytest.param("store made", marks=pytest.mark.deep)])
def test_a_child_may_make_the_first_request_to_a_server(s3: str, state: str) -> None:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", REMOTE_PROCESS, s3, state]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=_with_path()
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.server
def test_a_forked_child_of_a_repository_on_a_server_is_told_by_every_call(s3: str) -> None:
    from tests import servers

    check_remote_child(vstore.open(servers.s3_store(s3, "forked")))
