"""Two processes on one repository: racing commits, and sessions that a forked child inherits."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from zarr.core.buffer import default_buffer_prototype

import vstore
from tests.repositories import GROUP, LOCAL_KINDS, Place, array_document, commit, contents, write
from tests.unit.storage.children import run_in_child
from vstore.ops.fsck import check
from vstore.session import Session

ROOT = Path(__file__).parents[2]
ROUNDS = 15


@pytest.fixture(params=LOCAL_KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place.new(request.param, tmp_path)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        yield repository


# --- racing commits ------------------------------------------------------------------------------------------

RACER = """
import sys
import vstore

repository = vstore.Repository.open(sys.argv[1])
name = sys.argv[2]
for line in sys.stdin:
    # Both have opened a session before either commits.
    session = repository.writable_session("main")
    session.tree.set(name, line.encode())
    session.tree.set("last", name.encode())
    print("opened", session.snapshot_id, flush=True)
    sys.stdin.readline()
    try:
        print("won", session.commit(name), flush=True)
    except vstore.ConflictError as error:
        print("lost", error.expected_parent, error.actual_parent, flush=True)
"""

PERSISTENT = """
import sys
import vstore

repository = vstore.Repository.open(sys.argv[1])
name = sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    while True:
        session = repository.writable_session("main")
        session.tree.set(f"{name}{number}", b"x" * 1000)
        try:
            print(session.commit(f"{name}{number}"), flush=True)
            break
        except vstore.ConflictError:
            continue
"""


class Child:
    """A process that is talked to by lines."""

    def __init__(self, code: str, *arguments: object) -> None:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> list[str]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the child has died"
        return line.split()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_of_two_racing_commits_one_wins_each_time(place: Place, repository: vstore.Repository) -> None:
    base = repository.lookup_branch("main")
    winners = []
    with Child(RACER, place.location, "a") as one, Child(RACER, place.location, "b") as other:
        for number in range(ROUNDS):
            for child in (one, other):
                child.tell(str(number))
            assert [child.hear() for child in (one, other)] == [["opened", base]] * 2
            for child in (one, other):
                child.tell("go")
            answers = sorted([child.hear() for child in (one, other)])
            (lost, expected, actual), (won, made) = answers
            assert (lost, won) == ("lost", "won")
            assert (expected, actual) == (base, made)
            base = made
            winners.append(made)
    history = [info.id for info in repository.ancestry(branch="main")]
    assert history[:-1] == winners[::-1]
    assert check(repository, data=True).damages == []


def test_no_commit_of_two_busy_processes_is_lost(place: Place, repository: vstore.Repository) -> None:
    count = 15
    with (
        Child(PERSISTENT, place.location, "a", count) as one,
        Child(PERSISTENT, place.location, "b", count) as other,
    ):
        for child in (one, other):
            assert child.hear() == ["ready"]
        for child in (one, other):
            child.tell("go")
        acknowledged = {child.hear()[0] for child in (one, other) for _ in range(count)}
    assert acknowledged == {info.id for info in repository.ancestry(branch="main")} - {_first(repository)}
    expected = {f"{name}{number}": b"x" * 1000 for name in "ab" for number in range(count)}
    assert contents(repository.readonly_session("main")) == expected
    assert check(repository, data=True).damages == []


def _first(repository: vstore.Repository) -> str:
    return list(repository.ancestry(branch="main"))[-1].id


# --- forked children -----------------------------------------------------------------------------------------

BASE = {
    "zarr.json": GROUP,
    "a/zarr.json": array_document((5000,), (1000,)),
    "a/c/0": b"x" * 1000,
    "a/c/1": b"y",
}
EDITS = {"a/c/1": b"small", "a/c/2": b"z" * 1000, "a/c/3": b"w" * 1_100_000, "value": b"v" * 5000}


@pytest.fixture
def session(repository: vstore.Repository) -> Session:
    """A session with edits of all kinds over a base, read before it is inherited."""
    commit(repository, BASE)
    session = repository.writable_session("main")
    write(session, EDITS)
    assert contents(session) == BASE | EDITS
    return session


def with_alarm(body: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        body()

    return run


def test_a_forked_child_reads_through_an_inherited_session(
    repository: vstore.Repository, session: Session
) -> None:
    reader = repository.readonly_session("main")
    run_in_child(with_alarm(lambda: _require(contents(session), BASE | EDITS)))
    run_in_child(with_alarm(lambda: _require(contents(reader), BASE)))
    run_in_child(with_alarm(lambda: _require(contents(repository.readonly_session("main")), BASE)))


def _require(found: object, expected: object) -> None:
    assert found == expected


WRITES: dict[str, Callable[[Session], object]] = {
    "inline chunk": lambda session: write(session, {"a/c/4": b"small"}),
    "buffered chunk": lambda session: write(session, {"a/c/4": b"c" * 1000}),
    "large chunk": lambda session: write(session, {"a/c/4": b"c" * 200_000}),
    "the same chunk": lambda session: write(session, {"a/c/0": b"x" * 1000}),
    "document": lambda session: write(session, {"g/zarr.json": GROUP}),
    "value": lambda session: write(session, {"value": b"1"}),
    "large value": lambda session: write(session, {"value": b"1" * 10_000}),
    "delete": lambda session: session.tree_for_writing().delete("a/c/0"),
    "delete folder": lambda session: session.tree_for_writing().delete_folder("a"),
    "through the store": lambda session: session.store.set_sync(
        "a/c/4", default_buffer_prototype().buffer.from_bytes(b"small")
    ),
    "commit": lambda session: session.commit("from the child"),
    "flush": lambda session: session.flush("from the child"),
}


@pytest.mark.parametrize("attempt", WRITES)
def test_a_forked_child_can_not_write_through_an_inherited_session(
    repository: vstore.Repository, session: Session, attempt: str
) -> None:
    def child() -> None:
        with pytest.raises(vstore.ForkedProcessError, match=r"child|fork"):
            WRITES[attempt](session)

    run_in_child(with_alarm(child))
    assert contents(session) == BASE | EDITS
    session.commit("by the parent")
    assert contents(repository.readonly_session("main")) == BASE | EDITS
    assert check(repository, data=True).damages == []


def test_a_child_that_ends_does_not_spoil_the_parents_packs(
    repository: vstore.Repository, session: Session
) -> None:
    """It closes what it inherited: sessions, staged files, connections."""

    def child() -> None:
        session.close()
        repository.close()

    run_in_child(with_alarm(child))
    write(session, {"a/c/4": b"after the child " * 80_000})
    session.commit("by the parent")
    assert contents(repository.readonly_session("main")) == BASE | EDITS | {
        "a/c/4": b"after the child " * 80_000
    }
    assert check(repository, data=True).damages == []


def test_a_forked_child_commits_in_a_session_of_its_own(
    repository: vstore.Repository, session: Session
) -> None:
    def child() -> None:
        commit(repository, {"from the child": b"1"})

    run_in_child(with_alarm(child))
    assert contents(repository.readonly_session("main")) == BASE | {"from the child": b"1"}
    with pytest.raises(vstore.ConflictError):
        session.commit("overtaken by the child")
    commit(repository, {"from the parent": b"2"})
    run_in_child(with_alarm(child))
    assert check(repository, data=True).damages == []


def test_children_that_commit_at_once(repository: vstore.Repository) -> None:
    def child(name: str) -> None:
        for number in range(5):
            while True:
                try:
                    commit(repository, {f"{name}{number}": b"x" * 1000})
                    break
                except vstore.ConflictError:
                    continue

    threads = [
        threading.Thread(target=run_in_child, args=(with_alarm(lambda name=name: child(name)),))
        for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = contents(repository.readonly_session("main"))
    assert set(found) == {f"{name}{number}" for name in "abc" for number in range(5)}
    assert check(repository, data=True).damages == []


@pytest.mark.parametrize("what", ["reader", "writer"])
def test_a_child_forked_while_another_thread_reads_can_read(
    repository: vstore.Repository, session: Session, what: str
) -> None:
    """The other thread may hold any lock of the session at that moment, and does not exist in the child."""
    subject = session if what == "writer" else repository.readonly_session("main")
    expected = contents(subject)
    stop = threading.Event()

    def read_on() -> None:
        while not stop.is_set():
            contents(subject)

    threads = [threading.Thread(target=read_on) for _ in range(2)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            run_in_child(with_alarm(lambda: _require(contents(subject), expected)))
    finally:
        stop.set()
        sys.setswitchinterval(before)
        for thread in threads:
            thread.join()


def test_a_child_forked_while_a_thread_holds_the_sessions_lock_can_read(session: Session) -> None:
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with session.tree.lock:
            held.set()
            release.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    try:
        run_in_child(with_alarm(lambda: _require(session.tree.read("a/c/2"), EDITS["a/c/2"])))
    finally:
        release.set()
        thread.join()


def test_a_fork_in_the_middle_of_the_operations_log(repository: vstore.Repository) -> None:
    """An unfinished listing must not spoil the repository for the child."""
    commit(repository, BASE)
    log = repository.ops_log()
    assert next(log).kind == "commit"
    run_in_child(with_alarm(lambda: _require(contents(repository.readonly_session("main")), BASE)))
    assert [entry.kind for entry in log] == ["create-repository"]


def test_an_object_store_in_a_forked_child_says_what_to_do() -> None:
    from obstore.store import MemoryStore

    repository = vstore.Repository.create(MemoryStore())
    commit(repository, BASE)

    def child() -> None:
        with pytest.raises(vstore.ForkedProcessError, match=r"spawn|forkserver"):
            repository.lookup_branch("main")

    run_in_child(with_alarm(child))
    assert contents(repository.readonly_session("main")) == BASE
