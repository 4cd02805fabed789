"""Random histories of several writers and branches, against the model of `merge_model`.

A program is a list of steps, each an operation with a seed for its choices, so that a part of a program is one too:
a failing program is cut down before it is shown. After each step the hierarchy (keys, bytes, node ids) equals the
model's, or both say that there is a conflict.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import TypeAlias

import pytest

import vstore
from tests.repositories import HandClock, Place, array_document, quick_folder
from tests.stateful.merge_model import Clash, History, Index, Merge, Node, State, Unsure, inside, paths_of
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.worktree.listing import iter_keys

STEPS = 40
SEEDS = 20
DEEP_SEEDS = 1500
BRANCHES = ("main", "b1", "b2")
NAMES = ("a", "b", "d")
SOLVERS = (None, None, "fail", "ours", "theirs")
SHAPES: tuple[Index, ...] = ((3,), (4,), (2, 2), (3, 2))
MAX_DEPTH = 3
MAX_SESSIONS = 3
MAX_CUTS = 400
GROUP = {"zarr_format": 3, "node_type": "group"}

Step: TypeAlias = tuple[str, int]
Program: TypeAlias = list[Step]


def spell(node: Node) -> bytes:
    """Return a node's document, spelt as a merge spells it, so that equal values are equal bytes."""
    if not node.is_array:
        return json.dumps({**GROUP, "attributes": dict(node.attributes)}, indent=2).encode()
    document = json.loads(array_document(node.shape, dtype=node.dtype, attributes=dict(node.attributes)))
    return json.dumps(document, indent=2).encode()


def read_state(session: Session, known: State) -> dict[str, Node]:
    """Return what vstore holds as the model's; every key must belong to a node, every node must have its group."""
    keys = list(iter_keys(session.tree, ""))
    assert len(keys) == len(set(keys)), "a key is listed twice"
    paths = [key.removesuffix("zarr.json").rstrip("/") for key in keys if key.endswith("zarr.json")]
    ids = {path: session.get_node_id(path) for path in paths}
    assert len(set(ids.values())) == len(ids), "two nodes have one id"
    state: dict[str, Node] = {}
    for path, node in sorted(ids.items()):
        parent, _, name = path.rpartition("/")
        assert not path or parent in ids, f"{path} is an orphan"
        document = json.loads(session.tree.read(f"{path}/zarr.json" if path else "zarr.json") or b"")
        is_array = document["node_type"] == "array"
        shape = tuple(document.get("shape", ()))
        state[node] = Node(
            ids[parent] if path else None,
            name,
            is_array,
            tuple(document["attributes"].items()),
            document.get("data_type", ""),
            shape,
            {},
            known[node].born if node in known else shape,
        )
        assert not path or not state[ids[parent]].is_array, f"{path} lies in an array"
    for key in keys:
        if key.endswith("zarr.json"):
            continue
        path, _, index = key.partition("/c/")
        node = ids[path]
        assert state[node].is_array
        at = tuple(map(int, index.split("/")))
        assert inside(at, state[node].shape), f"{key} is outside the grid"
        data = session.tree.read(key)
        assert data is not None, f"{key} is listed but can't be read"
        chunks = {**state[node].chunks, at: data}
        state[node] = replace(state[node], chunks=chunks)
    return state


@dataclass
class Writer:
    """An open session and what it should hold."""

    session: Session
    branch: str
    base: str
    state: dict[str, Node]
    changed: bool = False


class World:
    """A repository and its model, changed step by step."""

    def __init__(self, place: Place) -> None:
        self.clock = HandClock()
        self.repository = place.create(clock=self.clock)
        self.history = History()
        self.heads: dict[str, str] = {}
        self.writers: list[Writer] = []
        self.random = Random()
        self.outcomes: dict[str, int] = {}
        with self.repository.writable_session("main") as session:
            self.history.add(session.snapshot_id, (), {})
            first = session.snapshot_id
            session.tree.set("zarr.json", spell(Node(None, "")))
            made = session.commit("root")
        root = self.repository.readonly_session("main").get_node_id("")
        self.history.add(made, (first,), {root: Node(None, "")})
        self.heads["main"] = self.start = made

    def close(self) -> None:
        for writer in self.writers:
            writer.session.close()
        self.repository.close()

    def run(self, step: Step) -> None:
        name, seed = step
        self.random = Random(seed)
        self.clock.time_us += 1_000_000
        getattr(self, name)()
        assert {b: self.repository.lookup_branch(b) for b in self.repository.list_branches()} == self.heads

    def count(self, what: str) -> None:
        self.outcomes[what] = self.outcomes.get(what, 0) + 1

    # --- checks ----------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Check every snapshot that was ever made."""
        for snapshot, version in self.history.versions.items():
            self.compare(self.repository.readonly_session(snapshot_id=snapshot), version.state)
        report = check(self.repository, data=True)
        assert report.is_clean, str(report)

    def compare(self, session: Session, state: State) -> None:
        found = read_state(session, state)
        assert paths_of(found) == paths_of(state)
        for path, node in paths_of(state).items():
            assert found[node] == state[node], f"/{path}"

    def land(self, branch: str, snapshot: str, parents: tuple[str, ...], expected: State | None) -> None:
        """Take over what an operation made of a branch; `expected` is None where the model does not know."""
        assert self.repository.lookup_branch(branch) == snapshot
        session = self.repository.readonly_session(branch)
        if snapshot in self.history.versions:
            # Nothing was made: the branch had all of it.
            assert expected is None or expected == self.history[snapshot].state
            assert snapshot in (self.heads[branch], *parents)
        else:
            known = {node: state for v in self.history.versions.values() for node, state in v.state.items()}
            state = read_state(session, known) if expected is None else expected
            self.history.add(snapshot, parents, state)
            assert self.repository.lookup_snapshot(snapshot).parent_ids == parents
        self.compare(session, self.history[snapshot].state)
        self.heads[branch] = snapshot
        report = check(self.repository)
        assert report.is_clean, str(report)

    def expect(
        self, merge: Callable[[], State], act: Callable[[], str], branch: str, parents: tuple[str, ...]
    ) -> str | None:
        """Run an operation whose result is a merge's; None if both say that there is a conflict."""
        expected: State | None = None
        try:
            expected = merge()
        except Clash:
            self.count("conflict")
            with pytest.raises(vstore.MergeConflictError) as raised:
                act()
            assert raised.value.conflicts
            assert all(str(conflict) for conflict in raised.value.conflicts)
            return None
        except Unsure:
            self.count("unsure")
            try:
                made = act()
            except vstore.MergeConflictError:
                return None
        else:
            self.count("merged")
            made = act()
        self.land(branch, made, parents, expected)
        return made

    # --- choosing --------------------------------------------------------------------------------------------

    def any_branch(self) -> str:
        return self.random.choice(sorted(self.heads))

    def any_snapshot(self) -> str:
        """Return a snapshot that has the root, as all but the very first one do."""
        return self.random.choice(list(self.history.versions)[1:])

    def value(self) -> bytes:
        """Few values, so that both sides write the same now and then; some are too long to lie in the metadata."""
        return bytes([self.random.randrange(4)]) * self.random.choice((1, 600))

    # --- writers ---------------------------------------------------------------------------------------------

    def begin(self) -> None:
        if len(self.writers) < MAX_SESSIONS:
            branch = self.any_branch()
            session = self.repository.writable_session(branch)
            state = dict(self.history[session.snapshot_id].state)
            self.writers.append(Writer(session, branch, session.snapshot_id, state))

    def writer(self) -> Writer:
        if not self.writers:
            self.begin()
        return self.random.choice(self.writers)

    def edit(self) -> None:
        writer = self.writer()
        for _ in range(self.random.randint(1, 3)):
            edits = (
                *(self.write_chunks,) * 4,
                *(self.add,) * 3,
                *(self.set_attribute,) * 3,
                *(self.move,) * 2,
                self.delete_chunk,
                self.resize,
                self.redefine,
                self.delete,
                self.recreate,
                self.shift,
            )
            self.random.choice(edits)(writer)
        self.compare(writer.session, writer.state)

    def pick(self, writer: Writer, *, array: bool) -> str | None:
        """Return some node but the root."""
        paths = paths_of(writer.state)
        nodes = [node for path, node in paths.items() if path and writer.state[node].is_array == array]
        return self.random.choice(nodes) if nodes else None

    def path(self, writer: Writer, node: str) -> str:
        return next(path for path, other in paths_of(writer.state).items() if other == node)

    def put(self, writer: Writer, node: str, state: Node) -> None:
        """Rewrite a node's document."""
        path = self.path(writer, node)
        if state.document != writer.state[node].document:
            writer.session.tree.set(f"{path}/zarr.json" if path else "zarr.json", spell(state))
            writer.changed = True
        writer.state[node] = state

    def make(self, writer: Writer, path: str, made: Node) -> None:
        tree = writer.session.tree
        tree.set(f"{path}/zarr.json", spell(made))
        for index, data in made.chunks.items():
            tree.set(f"{path}/c/{'/'.join(map(str, index))}", data)
        node = writer.session.get_node_id(path)
        # A node that was there when the session began goes on, with its tiles.
        before = self.history[writer.base].state.get(node)
        writer.state[node] = made if before is None else replace(made, born=before.born)
        writer.changed = True

    def new_node(self, parent: str, name: str, *, array: bool) -> Node:
        attributes = tuple((key, self.random.randrange(3)) for key in "pq" if self.random.random() < 0.5)
        if not array:
            return Node(parent, name, attributes=attributes)
        shape = self.random.choice(SHAPES)
        some = [self.some_index(shape) for _ in range(self.random.randrange(3))]
        chunks = {index: self.value() for index in some}
        return Node(parent, name, True, attributes, "uint8", shape, chunks, shape)

    def some_index(self, shape: Index) -> Index:
        return tuple(self.random.randrange(size) for size in shape)

    def free_place(self, writer: Writer) -> tuple[str, str] | None:
        """Return a group and a name that is free in it."""
        state = writer.state
        taken = {node.place for node in state.values()}
        places = [
            (node, name)
            for path, node in paths_of(state).items()
            if not state[node].is_array and len(path.split("/")) < MAX_DEPTH
            for name in NAMES
            if (node, name) not in taken
        ]
        return self.random.choice(places) if places else None

    def add(self, writer: Writer) -> None:
        place = self.free_place(writer)
        if place is not None:
            made = self.new_node(*place, array=self.random.random() < 0.6)
            path = f"{self.path(writer, place[0])}/{place[1]}".lstrip("/")
            self.make(writer, path, made)

    def write_chunks(self, writer: Writer) -> None:
        node = self.pick(writer, array=True)
        if node is None:
            return
        state = writer.state[node]
        if all(state.shape):
            index, data = self.some_index(state.shape), self.value()
            key = f"{self.path(writer, node)}/c/{'/'.join(map(str, index))}"
            writer.session.tree.set(key, data)
            writer.state[node] = replace(state, chunks={**state.chunks, index: data})
            writer.changed = True

    def delete_chunk(self, writer: Writer) -> None:
        node = self.pick(writer, array=True)
        if node is None or not writer.state[node].chunks:
            return
        state = writer.state[node]
        index = self.random.choice(sorted(state.chunks))
        writer.session.tree.delete(f"{self.path(writer, node)}/c/{'/'.join(map(str, index))}")
        chunks = {other: data for other, data in state.chunks.items() if other != index}
        writer.state[node] = replace(state, chunks=chunks)
        writer.changed = True

    def set_attribute(self, writer: Writer) -> None:
        node = self.random.choice(list(paths_of(writer.state).values()))
        attributes = dict(writer.state[node].attributes)
        key = self.random.choice("pqr")
        if self.random.random() < 0.2:
            attributes.pop(key, None)
        else:
            attributes[key] = self.random.randrange(3)
        self.put(writer, node, replace(writer.state[node], attributes=tuple(attributes.items())))

    def resize(self, writer: Writer) -> None:
        node = self.pick(writer, array=True)
        if node is not None:
            state = writer.state[node]
            shape = tuple(max(size + self.random.choice((-1, 0, 1, 2)), 1) for size in state.shape)
            chunks = {index: data for index, data in state.chunks.items() if inside(index, shape)}
            self.put(writer, node, replace(state, shape=shape, chunks=chunks))

    def redefine(self, writer: Writer) -> None:
        node = self.pick(writer, array=True)
        if node is not None:
            state = writer.state[node]
            self.put(writer, node, replace(state, dtype="int8" if state.dtype == "uint8" else "uint8"))

    def below(self, writer: Writer, node: str) -> set[str]:
        """Return a node and all below it."""
        found = {node}
        for other in paths_of(writer.state).values():
            if writer.state[other].parent in found:
                found.add(other)
        return found

    def delete(self, writer: Writer) -> None:
        node = self.pick(writer, array=self.random.random() < 0.5)
        if node is not None:
            writer.session.tree.delete_folder(self.path(writer, node))
            for gone in self.below(writer, node):
                del writer.state[gone]
            writer.changed = True

    def recreate(self, writer: Writer) -> None:
        node = self.pick(writer, array=self.random.random() < 0.7)
        if node is not None:
            old, path = writer.state[node], self.path(writer, node)
            writer.session.tree.delete_folder(path)
            for gone in self.below(writer, node):
                del writer.state[gone]
            array = old.is_array if self.random.random() < 0.8 else not old.is_array
            assert old.parent is not None
            self.make(writer, path, self.new_node(old.parent, old.name, array=array))

    def move(self, writer: Writer) -> None:
        node, place = self.pick(writer, array=self.random.random() < 0.5), self.free_place(writer)
        if node is None or place is None or place[0] in self.below(writer, node):
            return
        target = f"{self.path(writer, place[0])}/{place[1]}".lstrip("/")
        writer.session.move(f"/{self.path(writer, node)}", f"/{target}")
        writer.state[node] = replace(writer.state[node], parent=place[0], name=place[1])
        writer.changed = True

    def shift(self, writer: Writer) -> None:
        node = self.pick(writer, array=True)
        if node is not None:
            state = writer.state[node]
            offset = tuple(self.random.choice((-1, 0, 1)) for _ in state.shape)
            writer.session.shift_array(self.path(writer, node), offset)
            moved = {
                tuple(i + by for i, by in zip(index, offset, strict=True)): data
                for index, data in state.chunks.items()
            }
            chunks = {
                index: data for index, data in moved.items() if min(index) >= 0 and inside(index, state.shape)
            }
            writer.state[node] = replace(state, chunks=chunks)
            writer.changed = True

    def commit(self) -> None:
        writer = self.writer()
        self.writers.remove(writer)
        with writer.session as session:
            if not writer.changed:
                return
            solver = self.random.choice(SOLVERS)
            head = self.heads.get(writer.branch)
            if head == writer.base:
                self.expect(
                    lambda: writer.state,
                    lambda: session.commit("a commit", rebase_with=solver),
                    writer.branch,
                    (head,),
                )
            elif head is None or solver is None:
                with pytest.raises(vstore.ConflictError):
                    session.commit("a commit", rebase_with=solver)
                self.compare(session, writer.state)
            else:
                self.commit_rebased(writer, head, solver)

    def commit_rebased(self, writer: Writer, head: str, solver: str) -> None:
        prefer = {"fail": None, "ours": "incoming", "theirs": "onto"}[solver]
        merge = Merge(self.history[writer.base].state, self.history[head].state, writer.state, prefer)
        made = self.expect(
            merge.run,
            lambda: writer.session.commit("rebased", rebase_with=solver),
            writer.branch,
            (head,),
        )
        if made is None:
            # The session is as it was before.
            self.compare(writer.session, writer.state)

    def amend(self) -> None:
        branch = self.any_branch()
        head = self.heads[branch]
        parents = self.history[head].parents
        with self.repository.writable_session(branch) as session:
            writer = Writer(session, branch, head, dict(self.history[head].state))
            self.random.choice((self.write_chunks, self.set_attribute, self.add))(writer)
            self.land(branch, session.amend("amended"), parents, writer.state)

    # --- branches --------------------------------------------------------------------------------------------

    def create_branch(self) -> None:
        free = [branch for branch in BRANCHES if branch not in self.heads]
        if free:
            branch, snapshot = self.random.choice(free), self.any_snapshot()
            self.repository.create_branch(branch, snapshot)
            self.heads[branch] = snapshot

    def delete_branch(self) -> None:
        branch = self.any_branch()
        if branch != "main":
            self.repository.delete_branch(branch)
            del self.heads[branch]

    def reset_branch(self) -> None:
        branch, snapshot = self.any_branch(), self.any_snapshot()
        self.repository.reset_branch(branch, snapshot)
        self.heads[branch] = snapshot

    def merge(self) -> None:
        source = self.any_branch()
        self.merge_into(source, self.heads[source], self.any_branch())

    def cross(self) -> None:
        """Merge two branches into each other as they were before, so that they have two merge bases."""
        one, other = self.any_branch(), self.any_branch()
        heads = self.heads[one], self.heads[other]
        self.merge_into(heads[0], heads[0], other)
        self.merge_into(heads[1], heads[1], one)

    def merge_into(self, source: str, incoming: str, into: str) -> None:
        """Merge `source`, which names snapshot `incoming`, into a branch."""
        head, history = self.heads[into], self.history
        fast_forward, squash = self.random.random() < 0.6, self.random.random() < 0.2
        solver = self.random.choice(SOLVERS)
        prefer = {"ours": "onto", "theirs": "incoming"}.get(solver or "")

        def act() -> str:
            return self.repository.merge(
                source, into, fast_forward=fast_forward, squash=squash, solver=solver
            )

        def merged() -> State:
            base = history.base_state(head, incoming)
            return Merge(base, history[head].state, history[incoming].state, prefer).run()

        if incoming in history.ancestors(head):
            assert act() == head
        elif head in history.ancestors(incoming) and fast_forward and not squash:
            self.land(into, act(), (incoming,), history[incoming].state)
            assert self.heads[into] == incoming
        else:
            self.count("crossed" if len(history.bases(head, incoming)) > 1 else "one base")
            self.expect(merged, act, into, (head,) if squash else (head, incoming))

    def cherry_pick(self) -> None:
        self.apply_changes(self.repository.cherry_pick, backwards=False)

    def revert(self) -> None:
        self.apply_changes(self.repository.revert, backwards=True)

    def apply_changes(self, operation: Callable[..., str], *, backwards: bool) -> None:
        snapshot, branch = self.any_snapshot(), self.any_branch()
        parents = self.history[snapshot].parents
        number = self.random.randrange(len(parents))
        if not self.history[parents[number]].state:
            # The very first snapshot has no root group.
            return
        ends = [self.history[parents[number]].state, self.history[snapshot].state]
        base, incoming = reversed(ends) if backwards else ends
        head = self.heads[branch]
        solver = self.random.choice(SOLVERS)
        prefer = {"ours": "onto", "theirs": "incoming"}.get(solver or "")
        chosen = number + 1 if len(parents) > 1 else None
        self.expect(
            Merge(base, self.history[head].state, incoming, prefer).run,
            lambda: operation(snapshot, branch, solver=solver, parent=chosen),
            branch,
            (head,),
        )


OPERATIONS = (
    *("begin",) * 3,
    *("edit",) * 12,
    *("commit",) * 7,
    *("merge",) * 4,
    "cross",
    *("create_branch",) * 2,
    "delete_branch",
    "reset_branch",
    "cherry_pick",
    "revert",
    "amend",
)


def program(seed: int) -> Program:
    """Return steps that begin with some nodes on two branches."""
    random = Random(seed)
    first = [(name, random.randrange(2**32)) for name in ("edit", "edit", "commit", "create_branch")]
    return first + [(random.choice(OPERATIONS), random.randrange(2**32)) for _ in range(STEPS)]


def run(steps: Program) -> dict[str, int]:
    with quick_folder() as folder:
        world = World(Place.new("sqlite", folder))
        try:
            for step in steps:
                world.run(step)
            world.finish()
        finally:
            world.close()
    return world.outcomes


def failure_of(steps: Program) -> BaseException | None:
    try:
        run(steps)
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - whatever fails is cut down
        return error
    return None


def cut_down(steps: Program) -> Program:
    """Leave out ever smaller parts of a failing program, as long as it still fails."""
    size, cuts = len(steps) // 2, 0
    while size:
        start = 0
        while start < len(steps) and cuts < MAX_CUTS:
            rest = steps[:start] + steps[start + size :]
            cuts += 1
            if failure_of(rest) is None:
                start += size
            else:
                steps = rest
        size //= 2
    return steps


def check_seed(seed: int) -> dict[str, int]:
    steps = program(seed)
    error = failure_of(steps)
    if error is None:
        return {}
    shortest = cut_down(steps)
    raise AssertionError(f"program {seed} fails; run({shortest!r}) does too") from failure_of(shortest)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_histories_merge_as_in_the_model(seed: int) -> None:
    check_seed(seed)


@pytest.mark.deep
@pytest.mark.parametrize("batch", range(DEEP_SEEDS // 100))
def test_many_histories_merge_as_in_the_model(batch: int) -> None:
    for seed in range(SEEDS + batch * 100, SEEDS + (batch + 1) * 100):
        check_seed(seed)
