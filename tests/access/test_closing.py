"""Closing: twice, in any order, or never; nothing is left open, and nothing warns, also at the interpreter's end."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr
from obstore.store import MemoryStore

import vstore
from tests.access.workers import VALUES, array_of, check_values, commit, put
from tests.repositories import KINDS, LOCAL_KINDS, Place, quick_folder
from vstore.blobs.cache import CACHE

ROOT = Path(__file__).resolve().parents[2]


def fill(repository: vstore.Repository) -> vstore.Repository:
    with repository.transaction("main", message="base") as store:
        zarr.create_array(store, name="a", data=VALUES, chunks=200, compressors=None)
    return repository


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new(request.param, folder)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with fill(place.create()) as repository:
        yield repository


# --- twice, in any order, afterwards ---------------------------------------------------------------------------


def test_everything_may_be_closed_twice_and_in_any_order(repository: vstore.Repository) -> None:
    reader, writer = repository.readonly_session("main"), repository.writable_session("main")
    put(writer, "key", b"1" * 100_000)
    for each in (repository, writer, reader, writer, repository, reader):
        each.close()
    with reader, writer, repository:
        pass
    reader.store.close()
    writer.store.close()


def test_a_closed_writer_says_so_and_reads_its_snapshot(repository: vstore.Repository) -> None:
    writer = repository.writable_session("main")
    put(writer, "key", b"1")
    store = writer.store
    writer.close()
    for attempt in (
        lambda: put(writer, "key", b"2"),
        lambda: writer.commit("no"),
        lambda: writer.flush("no"),
        lambda: writer.rebase(),
        lambda: writer.discard_changes(),
        lambda: asyncio.run(store.set("key", zarr.core.buffer.cpu.Buffer.from_bytes(b"2"))),
    ):
        with pytest.raises(vstore.ReadOnlyError, match="closed") as refused:
            attempt()
        assert "writable_session" in str(refused.value)
    check_values(writer)
    assert writer.tree.read("key") is None
    assert writer.read_only


def test_a_closed_reader_goes_on_reading(repository: vstore.Repository) -> None:
    reader = repository.readonly_session("main")
    reader.close()
    check_values(reader)


def test_a_closed_repository_opens_what_it_needs_again(repository: vstore.Repository) -> None:
    reader, writer = repository.readonly_session("main"), repository.writable_session("main")
    put(writer, "key", b"1" * 100_000)
    for number in range(3):
        repository.close()
        check_values(reader)
        check_values(repository.readonly_session("main"))
        put(writer, f"key {number}", b"2" * 100_000)
    repository.close()
    writer.commit("after closing")
    repository.close()
    assert repository.readonly_session("main").tree.read("key 2") == b"2" * 100_000
    assert repository.fsck(data=True).is_clean


def test_an_exception_in_a_block_closes_too(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    with pytest.raises(TypeError), session:
        put(session, "key", None)  # type: ignore[arg-type]
    assert session.read_only
    with pytest.raises(TypeError), repository.transaction("main", message="no") as store:
        put(store.session, "key", None)  # type: ignore[arg-type]
    assert store.session.read_only
    assert repository.readonly_session("main").tree.read("key") is None


# --- what is left ----------------------------------------------------------------------------------------------


def open_files() -> set[str]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            continue
    return found


def maps_below(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def work(location: object, kind: str) -> None:
    """Do a bit of everything, and close it all."""
    with vstore.open(location) as repository:
        for number in range(3):
            commit(repository, f"{kind} {number}", b"x" * 200_000)
        with repository.writable_session("main") as session:
            put(session, "dropped", b"x" * 3_000_000)
            session.status()
        check_values(repository.readonly_session("main"))
        list(repository.ops_log())
        repository.fsck()
        repository.compact()
        repository.garbage_collect()
        with pytest.raises(vstore.ConflictError):
            _conflict(repository)


def _conflict(repository: vstore.Repository) -> None:
    with repository.writable_session("main") as session:
        put(session, "key", b"1" * 1000)
        commit(repository, "other", os.urandom(1000))
        session.commit("too late")


needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux's /proc")


@needs_proc
@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_files_maps_and_threads_go_with_what_opened_them(kind: str, tmp_path: Path) -> None:
    place = Place.new(kind, tmp_path)
    fill(place.create()).close()
    # What the process keeps: zarr's loop, threads for commits.
    work(place.location, kind)
    gc.collect()
    files, count = open_files(), threading.active_count()
    for _ in range(5):
        work(place.location, kind)
    assert open_files() == files
    assert maps_below(tmp_path) == []
    assert threading.active_count() <= count + 8


@needs_proc
@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_what_is_never_closed_goes_when_it_is_collected(kind: str, tmp_path: Path) -> None:
    place = Place.new(kind, tmp_path)
    fill(place.create()).close()
    work(place.location, kind)

    def leave_open() -> None:
        repository = vstore.open(place.location)
        reader, writer = repository.readonly_session("main"), repository.writable_session("main")
        array_of(reader)[:]
        put(writer, "key", b"x" * 3_000_000)
        writer.status()
        list(zip(range(2), repository.ops_log(), strict=False))

    gc.collect()
    files, count = open_files(), threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            leave_open()
            gc.collect()
    assert not [each for each in caught if issubclass(each.category, ResourceWarning)]
    assert open_files() == files
    assert maps_below(tmp_path) == []
    assert threading.active_count() <= count + 8
    assert list((tmp_path / "repository" / "staging").iterdir()) == []


@needs_proc
def test_what_is_cached_keeps_no_file_open(tmp_path: Path) -> None:
    """Each pack takes a descriptor while it is mapped, of which a process has about a thousand."""
    with vstore.Repository.create(tmp_path / "r") as repository:
        for number in range(20):
            with repository.transaction("main", message="an array in a pack of its own") as store:
                zarr.create_array(store, name=f"a{number}", data=VALUES, chunks=200, compressors=None)
    CACHE.clear()
    with vstore.open(tmp_path / "r") as repository:
        reader = repository.readonly_session("main")
        for number in range(20):
            zarr.open_array(reader.store, path=f"a{number}", mode="r")[:]
        assert len(maps_below(tmp_path)) >= 20
    assert CACHE.size_bytes > 0
    gc.collect()
    assert maps_below(tmp_path) == []
    assert not [name for name in open_files() if str(tmp_path) in name]


def test_many_sessions_and_repositories_share_their_threads(tmp_path: Path) -> None:
    place = Place.new("sqlite", tmp_path)
    fill(place.create()).close()
    work(place.location, "sqlite")
    count = threading.active_count()
    repositories = [vstore.open(place.location) for _ in range(10)]
    sessions = [each.writable_session("main") for each in repositories for _ in range(3)]
    for number, session in enumerate(sessions):
        put(session, f"key {number}", b"x" * 1000)
        session.commit("one of many", rebase_with="ours")
    assert threading.active_count() <= count + 8
    for each in (*sessions, *repositories):
        each.close()


# --- the interpreter's end -------------------------------------------------------------------------------------

SCRIPT = """
import asyncio, sys
import numpy as np, xarray, zarr
import vstore
{imports}
repository = vstore.Repository.create({location})
with repository.transaction("main", message="base") as store:
    xarray.Dataset({{"t": ("x", np.arange(100_000.0))}}).to_zarr(store, consolidated=False)
session = repository.writable_session("main")
group = zarr.open_group(session.store)
group.create_array("b", data=np.arange(500_000.0))
reader = repository.readonly_session("main")
dataset = xarray.open_zarr(reader.store, consolidated=False, chunks=None)
assert float(dataset.t.sum()) == 4999950000.0
asyncio.run(repository.list_branches_async())
log = repository.ops_log()
next(log)
{end}
"""

ENDS: dict[str, str] = {
    "closed": "dataset.close(); session.commit('b'); session.close(); reader.close(); repository.close()",
    "left open": "session.commit('b')",
    "uncommitted": "",
    "an error": "try:\n    repository.lookup_branch('no')\nexcept vstore.RefNotFoundError as error:\n    kept = error",
    "exit": "sys.exit(0)",
    "in a cycle": "cycle = [session, reader, repository, log]; cycle.append(cycle)",
}


def run_script(location: str, end: str, imports: str = "") -> str:
    """Run a typical script with every warning an error and shown; return what it says that is not about others."""
    code = SCRIPT.format(location=location, end=end, imports=imports)
    # Deprecations are the business of those who import.
    options = ["-X", "dev", "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "end",
    [
        name if name in ("closed", "uncommitted") else pytest.param(name, marks=pytest.mark.deep)
        for name in ENDS
    ],
)
def test_a_script_ends_without_a_word(end: str, tmp_path: Path) -> None:
    """Sessions of all kinds in one script: each of them costs the start of a process."""
    assert run_script(repr(str(tmp_path / "sqlite")), ENDS[end]) == ""
    if end != "closed":
        assert run_script(repr("memory://ending"), ENDS[end]) == ""


@pytest.mark.deep
@pytest.mark.parametrize("end", ENDS)
def test_a_script_with_a_log_ends_without_a_word(end: str, tmp_path: Path) -> None:
    location = f"{str(tmp_path / 'log')!r}, catalog='log'"
    assert run_script(location, ENDS[end]) == ""


# --- the tests' own net ----------------------------------------------------------------------------------------


def test_a_warning_that_nobody_can_catch_fails_a_test(tmp_path: Path) -> None:
    """A ResourceWarning is mostly raised where no test could catch it: within a finalizer."""
    (tmp_path / "test_leak.py").write_text(
        "import gc\n\n\ndef test_leak():\n    open(__file__)\n    gc.collect()\n"
    )
    options = ["-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "-n0", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "test_leak.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "PytestUnraisableExceptionWarning" in done.stdout
    assert "unclosed file" in done.stdout


def test_the_memory_store_of_a_closed_repository_is_let_go() -> None:
    repository = fill(vstore.Repository.create(MemoryStore()))
    kept = weakref.ref(repository.handle.storage)
    session = repository.readonly_session("main")
    check_values(session)
    repository.close()
    del repository, session
    gc.collect()
    assert kept() is None
