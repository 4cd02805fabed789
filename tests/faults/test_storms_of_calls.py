"""Several users of one repository call all that changes it, through a storage that fails at random, in one thread.

A call whose outcome is unknown is asked for again later, when others have gone on. The operations log then tells
whether each call was done once if it returned, and never if its error said so. What is switched on and off again
under one name, with doubts that are given up, is looked at after each call. All is decided by the seed.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

import vstore
from tests.crash.faulty import open_faulty
from tests.faults.site import far_future
from tests.repositories import KINDS, Place, quick_folder, write
from vstore.blobs.cache import CACHE
from vstore.catalog import log_patience
from vstore.keys.objects import LOG_PREFIX
from vstore.ops.fsck import check
from vstore.storage.base import PackPolicy
from vstore.testing.faults import Fault, FaultPlan

USERS = 3
FAULTS = (Fault.NOT_APPLIED, Fault.LOST, Fault.APPLIED, Fault.LATE, Fault.CORRUPT, Fault.TRUNCATE)
REFUSED = (vstore.StorageError, vstore.FormatError)
"""What says that nothing was done; all other errors are to be explained by the call."""
MAX_TRIES = 100


class RandomPlan(FaultPlan):
    """Requests fail with a probability, alone and in outages; what is late lands at any time."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self.chance = chance
        self.share = self.record_share = 0.0
        self._lost = 0

    def _count(self, method: str, name: str) -> Fault | None:
        super()._count(method, name)
        self.requests.clear()
        if self.chance.random() < self.share:
            self.land()
        if self._lost:
            self._lost -= 1
            return Fault.NOT_APPLIED
        is_record = method == "update" or (method == "create" and name.startswith(LOG_PREFIX))
        if self.chance.random() >= (max(self.share, self.record_share) if is_record else self.share):
            return None
        if self.chance.random() < (0.7 if is_record else 0.1):
            # After a record, what would have told its fate.
            self._lost = 5 if is_record else self.chance.choice((5, 20, 60))
        fault = self.chance.choice(FAULTS)
        # A transaction of SQLite never lands late: nothing is on its way.
        return Fault.LOST if fault is Fault.LATE and method == "update" else fault


class Call(NamedTuple):
    """`kind` is what it is in the operations log, `name` what is made or moved, `act` may be called again.

    With `holds`, which tells whether all is as asked for, the call may be given up on, and is not counted.
    """

    kind: str
    name: str
    act: Callable[[], object]
    allowed: tuple[type[vstore.VStoreError], ...] = ()
    holds: Callable[[vstore.Repository], bool] | None = None


class User:
    """Makes calls one after the other, in a handle of its own, and notes what it was told."""

    def __init__(self, place: Place, name: str, plan: RandomPlan) -> None:
        self.name = name
        self.chance = plan.chance
        opened = open_faulty(place, plan)
        self.repository = vstore.Repository(msgspec.structs.replace(opened.handle, author=name))
        # In some sessions packs come before the commit.
        self.repository.handle.storage.pack_policy = PackPolicy(20_000, 4_000, None)
        self.repository.handle.catalog.check_writable()
        self._first = self.repository.lookup_branch("main")
        self.repository.create_branch(name, self._first)
        self.told: list[tuple[Call, str]] = []
        self._number = 0
        self._calls = self._iter_calls()
        self._call: Call | None = None
        self._tries = 0
        self._witness = place.open()
        self._sessions: list[vstore.Session] = []
        self._branches: list[str] = []
        self._tags: list[str] = []
        self._patterns: list[str] = []
        self._commits: list[str] = []

    def go_on(self) -> None:
        """Make a call, or ask again for the one that is in doubt."""
        if self._call is None:
            with contextlib.suppress(*REFUSED):
                self._call = next(self._calls)
            if self._call is None:
                # A generator that has raised is at its end.
                self._calls = self._iter_calls()
                return
        self._tries += 1
        assert self._tries < MAX_TRIES, f"{self._call} stays in doubt"
        try:
            self._call.act()
        except vstore.CommitOutcomeUnknownError:
            if self._call.holds is not None and self.chance.random() < 0.5:
                self._note("given up")
        except self._call.allowed:
            self._look()
            self._note("refused")
        except REFUSED:
            self._note("refused")
        else:
            self._look()
            self._note("done")

    def close(self) -> None:
        for session in self._sessions:
            session.close()
        self._witness.close()
        self.repository.close()

    def _look(self) -> None:
        assert self._call is not None
        if self._call.holds is not None:
            assert self._call.holds(self._witness), f"{self._call} was not done, nor was it in vain"

    def _note(self, what: str) -> None:
        assert self._call is not None
        self.told.append((self._call, what))
        self._call, self._tries = None, 0

    def _is_done(self, call: Call) -> bool:
        return self.told[-1] == (call, "done")

    def _iter_calls(self) -> Iterator[Call]:
        while True:
            self._number += 1
            name = f"{self.name}-{self._number}"
            yield from self.chance.choice(
                (
                    self._commit,
                    self._commit,
                    self._commit_here,
                    self._amend,
                    self._branch,
                    self._tag,
                    self._value,
                    self._protect,
                    self._merge,
                    self._switch_protection,
                    self._switch_branch,
                )
            )(name)

    def _session(self, branch: str, name: str) -> vstore.Session:
        session = self.repository.writable_session(branch)
        self._sessions.append(session)
        if self.chance.random() < 0.3:
            with contextlib.suppress(*REFUSED):
                write(session, {f"discarded/{part}": f"{name} {part}".encode() * 900 for part in range(4)})
            with contextlib.suppress(*REFUSED):
                session.discard_changes()
        write(
            session, {f"{name}/{part}": name.encode() * 900 for part in range(self.chance.choice((1, 1, 4)))}
        )
        return session

    def _commit(self, name: str) -> Iterator[Call]:
        """Onto what others commit to; then perhaps the commit is reverted."""
        session = self._session("main", name)
        call = Call("commit", name, lambda: session.commit(name, rebase_with="fail"))
        yield call
        if self._is_done(call) and self.chance.random() < 0.3:
            made = session.snapshot_id
            yield Call(
                "revert",
                f"{name} reverted",
                lambda: self.repository.revert(made, "main", message=f"{name} reverted"),
            )

    def _commit_here(self, name: str) -> Iterator[Call]:
        """To a branch that nobody else moves; then it is reset, or the commit is picked or undone."""
        before = self.repository.lookup_branch(self.name)
        session = self._session(self.name, name)
        call = Call("commit", name, lambda: session.commit(name))
        yield call
        if not self._is_done(call):
            return
        made, what = session.snapshot_id, self.chance.choice(("reset", "pick", "undo"))
        if what == "reset":
            # With and without saying what is expected.
            expected = self.chance.choice((None, made))
            yield Call(
                "reset-branch",
                self.name,
                lambda: self.repository.reset_branch(self.name, before, from_snapshot_id=expected),
            )
        elif what == "pick":
            again = f"{name} picked"
            yield Call("cherry-pick", again, lambda: self.repository.cherry_pick(made, message=again))
        else:
            newest = next(each for each in self.repository.ops_log() if each.changes)
            if newest.changes[0][1] == self.name:
                # Others may come first.
                conflict = (vstore.ConflictError,)
                yield Call(
                    "undo", self.name, lambda: self.repository.undo(expected=newest.sequence), conflict
                )

    def _amend(self, name: str) -> Iterator[Call]:
        session = self._session(self.name, name)
        root = not self.repository.lookup_snapshot(session.snapshot_id).parent_ids
        yield Call(
            "commit" if root else "amend", name, lambda: (session.commit if root else session.amend)(name)
        )

    def _branch(self, name: str) -> Iterator[Call]:
        head = self.repository.lookup_branch("main")
        call = Call("create-branch", name, lambda: self.repository.create_branch(name, head))
        yield call
        if self._is_done(call):
            yield Call("delete-branch", name, lambda: self.repository.delete_branch(name))

    def _tag(self, name: str) -> Iterator[Call]:
        head = self.repository.lookup_branch("main")
        call = Call("create-tag", name, lambda: self.repository.create_tag(name, head))
        yield call
        if self._is_done(call):
            yield Call("delete-tag", name, lambda: self.repository.delete_tag(name))

    def _value(self, name: str) -> Iterator[Call]:
        yield Call("set-metadata", name, lambda: self.repository.update_metadata({name: 1, "last": name}))

    def _protect(self, name: str) -> Iterator[Call]:
        call = Call("protect-branch", name, lambda: self.repository.protect_branch(name))
        yield call
        if self._is_done(call):
            yield Call("unprotect-branch", name, lambda: self.repository.unprotect_branch(name))

    def _switch_protection(self, _: str) -> Iterator[Call]:
        pattern = f"{self.name}-switched"
        for is_on in self.chance.choices((True, False), k=4):
            yield Call(
                "protect-branch" if is_on else "unprotect-branch",
                pattern,
                partial(
                    self.repository.protect_branch if is_on else self.repository.unprotect_branch, pattern
                ),
                () if is_on else (vstore.InvalidInputError,),
                partial(_is_protected, pattern, is_on),
            )

    def _switch_branch(self, _: str) -> Iterator[Call]:
        branch = f"{self.name}-switch"
        for is_on in self.chance.choices((True, False), k=4):
            yield Call(
                "create-branch" if is_on else "delete-branch",
                branch,
                partial(self.repository.create_branch, branch, self._first)
                if is_on
                else partial(self.repository.delete_branch, branch),
                (vstore.RefExistsError if is_on else vstore.RefNotFoundError,),
                partial(_is_branch, branch, is_on),
            )

    def _merge(self, name: str) -> Iterator[Call]:
        head = self.repository.lookup_branch("main")
        call = Call("create-branch", name, lambda: self.repository.create_branch(name, head))
        yield call
        if not self._is_done(call):
            return
        session = self._session(name, f"{name} beside")
        call = Call("commit", f"{name} beside", lambda: session.commit(f"{name} beside"))
        yield call
        if self._is_done(call):
            squash, merged = self.chance.random() < 0.5, f"{name} merged"
            yield Call(
                "merge",
                merged,
                lambda: self.repository.merge(name, message=merged, squash=squash, fast_forward=False),
            )


def _is_protected(pattern: str, is_on: bool, repository: vstore.Repository) -> bool:
    return (pattern in repository.list_protected_branches()) == is_on


def _is_branch(branch: str, is_on: bool, repository: vstore.Repository) -> bool:
    return (branch in repository.list_branches()) == is_on


def tidy_up(repository: vstore.Repository, chance: random.Random) -> None:
    with contextlib.suppress(*REFUSED):
        if chance.random() < 0.5:
            # With a grace: what a session holds without being registered is not to go.
            repository.garbage_collect()
        else:
            repository.compact()


def storm(place: Place, seed: int, steps: int, share: float, record_share: float = 0.0) -> Counter[str]:
    """Run a storm and judge it; return how often users were told what."""
    CACHE.clear()
    chance = random.Random(seed)
    plan = RandomPlan(chance)
    users = [User(place, name, plan) for name in "abc"[:USERS]]
    janitor = open_faulty(place, plan)
    plan.share, plan.record_share = share, record_share
    for _ in range(steps):
        chance.choice(users).go_on()
        if chance.random() < 0.03:
            tidy_up(janitor, chance)
    plan.share = plan.record_share = 0
    plan._lost = 0
    plan.land()
    for user in users:
        if user._call is not None:
            user.go_on()
    plan.land()
    for user in users:
        user.close()
    with place.open() as repository:
        judge(repository, users)
    return Counter(what for user in users for _, what in user.told)


def judge(repository: vstore.Repository, users: list[User]) -> None:
    operations = list(repository.ops_log())[::-1]
    held: dict[tuple[str, str], str | None] = {}
    done: Counter[tuple[str, str, str]] = Counter()
    with repository.handle.catalog.reading() as view:
        messages = {entry.id.hex(): (entry.info or ("",))[0] for entry in view.iter_snapshots()}
    for operation in operations:
        for kind, name, before, after in operation.changes:
            assert held.get((kind, name)) == before, f"{operation} passes over what {name} held"
            held[kind, name] = after
            makes = operation.kind in ("commit", "amend", "merge", "cherry-pick", "revert")
            done[operation.author, operation.kind, messages[str(after)] if makes else name] += 1
        if "branch" in operation.kind and not operation.changes:
            done[operation.author, operation.kind, operation.details["pattern"]] += 1
        if operation.kind == "set-metadata":
            done[operation.author, operation.kind, ""] += 1
    for user in users:
        told = Counter(
            (user.name, call.kind, "" if call.kind == "set-metadata" else call.name)
            for call, what in user.told
            if what == "done" and call.holds is None
        )
        told[user.name, "create-branch", user.name] += 1
        switched = {(user.name, call.kind, call.name) for call, _ in user.told if call.holds is not None}
        found = Counter(
            {key: count for key, count in done.items() if key[0] == user.name and key not in switched}
        )
        assert found == told, f"more than was told: {found - told}; less: {told - found}"
    assert check(repository, data=True).damages == []
    # All sessions were closed, so that none is left registered.
    assert repository.list_sessions() == []
    for _ in range(2):
        repository.garbage_collect(far_future())
    assert repository.garbage_collect(far_future(), dry_run=True).garbage_packs == 0
    assert check(repository, data=True).damages == []


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_a_storm(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    # The fewer tries a call makes, the more are in doubt.
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 1)
    place = Place.new(kind, folder)
    place.create().close()
    told = storm(place, 0, 300, 0.15)
    assert min(told["done"], told["refused"]) > 3


@pytest.mark.parametrize("seed", [2, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_a_storm_of_doubts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int
) -> None:
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 1)
    place = Place.new(kind, folder)
    place.create().close()
    assert storm(place, seed, 300, 0.01, 0.3)["done"] > 3


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(1000, 1100))
@pytest.mark.parametrize("kind", KINDS)
def test_calls_in_many_storms(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int) -> None:
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 1 + seed % 4)
    place = Place.new(kind, folder)
    place.create().close()
    chance = random.Random(seed)
    storm(place, seed, 400, chance.choice((0.01, 0.03, 0.08, 0.15)), chance.choice((0.0, 0.3)))
