"""Two writers, branches, tags, expiry, gc and compact in any order, against a dict of what each snapshot holds."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vstore
from tests.repositories import GROUP, Place, array_document, contents, quick_folder
from tests.unit.ops.repositories import FUTURE, expire
from vstore.ops.fsck import check
from vstore.session import Session

CHUNKS = 12
ARRAY = {"zarr.json": GROUP, "a/zarr.json": array_document((CHUNKS * 600,), (600,))}

writers = st.integers(0, 1)
chunks = st.integers(0, CHUNKS - 1)
fillings = st.integers(0, 255)


class Collecting(RuleBasedStateMachine):
    """`snapshots` is what each snapshot must hold as long as it is retained, `refs` where branches and tags are.

    Each of two writers has a session of its own, on a branch; `edits` is what it should show.
    """

    kind = "memory"

    @initialize()
    def start(self) -> None:
        self.folder = quick_folder()
        self.place = Place.new(self.kind, self.folder.__enter__())
        self.repository = self.place.create()
        first = self.repository.lookup_branch("main")
        self.snapshots: dict[str, dict[str, bytes]] = {first: {}}
        self.branches = {"main": first}
        self.tags: dict[str, str] = {}
        self.sessions: list[Session | None] = [None, None]
        self.bases = ["", ""]
        self.edits: list[dict[str, bytes]] = [{}, {}]
        self.number = 0

    def teardown(self) -> None:
        if not hasattr(self, "repository"):
            return
        try:
            for session in self.sessions:
                if session is not None:
                    session.close()
            for _ in range(2):
                self.repository.garbage_collect(FUTURE)
            self.repository.close()
            self.verify()
        finally:
            self.folder.__exit__(None, None, None)

    def verify(self) -> None:
        with self.place.open() as reader:
            for snapshot, held in self.snapshots.items():
                assert contents(reader.readonly_session(snapshot_id=snapshot)) == held
            assert {name: reader.lookup_branch(name) for name in reader.list_branches()} == self.branches
            found = check(reader, data=True)
            assert found.damages == []
            assert found.unreferenced_packs == 0

    # --- writers ---------------------------------------------------------------------------------------------

    def session(self, writer: int) -> Session:
        found = self.sessions[writer]
        if found is None:
            branch = sorted(self.branches)[writer % len(self.branches)]
            found = self.sessions[writer] = self.repository.writable_session(branch)
            self.bases[writer] = self.branches[branch]
            self.edits[writer] = dict(self.snapshots[self.bases[writer]])
            self.set(writer, ARRAY)
        return found

    def set(self, writer: int, values: dict[str, bytes]) -> None:
        session = self.session(writer)
        for key, value in values.items():
            session.tree_for_writing().set(key, value)
        self.edits[writer] |= values

    @rule(writer=writers, chunk=chunks, filling=fillings)
    def set_chunk(self, writer: int, chunk: int, filling: int) -> None:
        self.set(writer, {f"a/c/{chunk}": bytes([filling]) * 600})

    @rule(writer=writers, filling=fillings)
    def set_value(self, writer: int, filling: int) -> None:
        self.set(writer, {f"value {filling % 3}": bytes([filling]) * 3000})

    @rule(writer=writers, chunk=chunks)
    def delete_chunk(self, writer: int, chunk: int) -> None:
        self.session(writer).tree_for_writing().delete(f"a/c/{chunk}")
        self.edits[writer].pop(f"a/c/{chunk}", None)

    @rule(writer=writers)
    def shift(self, writer: int) -> None:
        self.session(writer).shift_array("a", (1,))
        shown = self.edits[writer]
        moved = {f"a/c/{n + 1}": shown[f"a/c/{n}"] for n in range(CHUNKS - 1) if f"a/c/{n}" in shown}
        self.edits[writer] = {key: value for key, value in shown.items() if "/c/" not in key} | moved

    @rule(writer=writers, method=st.sampled_from(["commit", "commit", "commit", "flush", "amend"]))
    def finish(self, writer: int, method: str) -> None:
        session = self.session(writer)
        branch = session.branch
        assert branch is not None
        self.number += 1
        try:
            made = getattr(session, method)(f"{method} {self.number}")
        except vstore.ConflictError:
            assert self.branches.get(branch) != self.bases[writer]
        except vstore.SnapshotExpiredError:
            # An amend needs the parents of its base as well.
            assert method == "amend" or self.bases[writer] not in self.snapshots
        except vstore.SessionStateError:
            # The first snapshot can't be amended.
            assert method == "amend"
            return
        else:
            self.snapshots[made] = self.edits[writer]
            if method != "flush":
                self.branches[branch] = made
        session.close()
        self.sessions[writer] = None

    # --- refs ------------------------------------------------------------------------------------------------

    def pick(self, data: Any) -> str:
        # In the order in which they were made: ids differ from run to run.
        return [*self.snapshots][data.draw(st.integers(0, len(self.snapshots) - 1))]

    @rule(data=st.data(), name=st.sampled_from(["dev", "more"]))
    def branch(self, data: Any, name: str) -> None:
        snapshot = self.pick(data)
        if name in self.branches:
            self.repository.reset_branch(name, snapshot)
        else:
            self.repository.create_branch(name, snapshot)
        self.branches[name] = snapshot

    @rule(data=st.data())
    def tag(self, data: Any) -> None:
        self.number += 1
        name = f"v{self.number}"
        self.tags[name] = self.pick(data)
        self.repository.create_tag(name, self.tags[name])

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def delete_tag(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        self.repository.delete_tag(name)
        del self.tags[name]

    @precondition(lambda self: len(self.branches) > 1)
    @rule(data=st.data())
    def merge(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(set(self.branches) - {"main"})))
        try:
            made = self.repository.merge(name, "main", solver="theirs")
        except (vstore.MergeConflictError, vstore.UnrelatedHistoriesError, vstore.SnapshotExpiredError):
            return
        self.branches["main"] = made
        self.snapshots.setdefault(made, contents(self.repository.readonly_session(snapshot_id=made)))

    # --- deleting --------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.snapshots) > 1)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        held = {*self.branches.values(), *self.tags.values()}
        free = [snapshot for snapshot in self.snapshots if snapshot not in held]
        if free:
            numbers = data.draw(st.lists(st.integers(0, len(free) - 1), unique=True, min_size=1))
            gone = [free[number] for number in numbers]
            expire(self.repository, *gone)
            for snapshot in gone:
                del self.snapshots[snapshot]

    @rule()
    def collect(self) -> None:
        assert self.repository.garbage_collect(FUTURE).failures == []

    @rule(rewrite=st.booleans())
    def compact(self, rewrite: bool) -> None:
        report = self.repository.compact(rewrite_heads=rewrite)
        assert report.skipped == 0
        for branch, made in report.rewritten_heads.items():
            self.snapshots[made] = self.snapshots[self.branches[branch]]
            self.branches[branch] = made
        for branch in self.branches:
            # Branches that shared a head need not do so any more.
            self.branches[branch] = self.repository.lookup_branch(branch)


def fewer() -> settings:
    """Half as many examples as others: each ends with gc and a look at every byte."""
    return settings(max_examples=settings().max_examples // 2)


def test_collecting_in_memory() -> None:
    run_state_machine_as_test(Collecting, settings=fewer())


def test_collecting_on_sqlite() -> None:
    class OnSqlite(Collecting):
        kind = "sqlite"

    run_state_machine_as_test(OnSqlite, settings=fewer())
