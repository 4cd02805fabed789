"""Two worktrees compared by content, against a comparison of every key; and what is not read for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest

import vstore
from tests.repositories import GROUP, Place, array_document, commit, quick_folder, write
from vstore.blobs.reader import BlobReader
from vstore.session import Session
from vstore.worktree import Worktree
from vstore.worktree.compare import compare, diff_trees, iter_chunk_changes
from vstore.worktree.copying import copy_worktree
from vstore.worktree.listing import iter_keys

Index = tuple[int, ...]


@pytest.fixture
def repository() -> Iterator[vstore.Repository]:
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        yield repository


class Plain(NamedTuple):
    """A node read in full."""

    path: str
    documents: dict[str, bytes]
    chunks: dict[Index, bytes]


class State(NamedTuple):
    """A worktree read in full: nodes by id, and plain values."""

    nodes: dict[bytes, Plain]
    values: dict[str, bytes]

    @classmethod
    def of(cls, tree: Worktree) -> State:
        nodes = {}
        for path in tree.nodes.iter_nodes():
            node = tree.nodes.node(path)
            assert node is not None
            documents = {name: tree.read(f"{path}/{name}".lstrip("/")) for name in node.documents}
            chunks: dict[Index, bytes | None] = {}
            if node.array is not None:
                encoding = node.array.spec.encoding
                assert encoding is not None
                for indices, _ in node.array.iter_indices():
                    for index in map(tuple, indices.tolist()):
                        chunks[index] = tree.read(f"{path}/{encoding.encode(index)}")
            nodes[bytes(node.node_id)] = Plain(path, documents, chunks)  # type: ignore[arg-type]
        return cls(nodes, {key: tree.read(key) for key in tree.nodes.iter_values()})  # type: ignore[misc]


def check_comparison(before: Worktree, after: Worktree, old: State, new: State) -> None:
    """Compare two worktrees by `compare`, and what was read of them."""
    delta = compare(before, after)
    expected = {n for n in {*old.nodes, *new.nodes} if old.nodes.get(n) != new.nodes.get(n)}
    assert {*delta.before, *delta.after} == expected
    assert set(delta.before) == expected & set(old.nodes)
    assert set(delta.after) == expected & set(new.nodes)
    assert set(delta.created) == set(new.nodes) - set(old.nodes)
    assert set(delta.deleted) == set(old.nodes) - set(new.nodes)
    assert {n: state.path for n, state in delta.after.items()} == {n: new.nodes[n].path for n in delta.after}
    assert set(delta.values) == {
        k for k in {*old.values, *new.values} if old.values.get(k) != new.values.get(k)
    }
    assert delta.is_empty() == (old == new)
    for node_id in expected:
        one, other = old.nodes.get(node_id), new.nodes.get(node_id)
        chunks = [side.chunks if side is not None else {} for side in (one, other)]
        different = {i for i in {*chunks[0], *chunks[1]} if chunks[0].get(i) != chunks[1].get(i)}
        parts = list(iter_chunk_changes(before, delta.before.get(node_id), after, delta.after.get(node_id)))  # type: ignore[call-overload]
        found = [tuple(index) for part in parts for index in part.tolist()]
        assert len(found) == len(set(found))
        assert set(found) == different
    check_diff(before, after, old, new)


def check_diff(before: Worktree, after: Worktree, old: State, new: State) -> None:
    diff = diff_trees(before, after)
    created = {f"/{new.nodes[n].path}" for n in set(new.nodes) - set(old.nodes)}
    deleted = {f"/{old.nodes[n].path}" for n in set(old.nodes) - set(new.nodes)}
    both = set(old.nodes) & set(new.nodes)
    updated = {f"/{new.nodes[n].path}" for n in both if old.nodes[n].documents != new.nodes[n].documents}
    assert diff.new_groups | diff.new_arrays == created
    assert diff.deleted_groups | diff.deleted_arrays == deleted
    assert diff.updated_groups | diff.updated_arrays == updated
    moved = {(f"/{old.nodes[n].path}", f"/{new.nodes[n].path}") for n in both}
    moved = {(one, other) for one, other in moved if one != other}
    # A node that went along with a group is not named; all that is named did move, or stayed behind.
    assert {one for one, other in diff.moved_nodes if one != other} <= {one for one, _ in moved}
    # What is named explains all that moved.
    named = dict(diff.moved_nodes)
    for node in both:
        path, target = f"/{old.nodes[node].path}", f"/{new.nodes[node].path}"
        nearest = max((p for p in named if path == p or path.startswith(f"{p}/")), key=len, default=None)
        assert target == (path if nearest is None else named[nearest] + path[len(nearest) :])


def random_edits(session: Session, rng: np.random.Generator, count: int) -> None:
    """Write, delete, resize, recreate, move, shift: whatever is possible."""
    for _ in range(count):
        tree = session.tree_for_writing()
        paths = sorted(tree.nodes.iter_nodes())
        arrays = [p for p in paths if (node := tree.nodes.node(p)) is not None and node.array is not None]
        groups = [p for p in paths if p not in arrays]
        array = str(rng.choice(arrays)) if arrays else None
        name, choice = f"n{rng.integers(6)}", int(rng.integers(11))
        parent = str(rng.choice(groups)) if groups else ""
        target = f"{parent}/{name}".lstrip("/")
        is_free = target not in paths
        if choice == 0 and is_free:
            tree.set(f"{target}/zarr.json", GROUP)
        elif choice == 1 and is_free:
            tree.set(f"{target}/zarr.json", array_document((5, 4)))
        elif choice in (2, 3, 4) and array is not None:
            for _ in range(5):
                data = rng.bytes(1) * int(rng.choice([1, 3, 900]))
                tree.set(f"{array}/c/{rng.integers(3)}/{rng.integers(3)}", data)
        elif choice == 5 and array is not None:
            tree.delete(f"{array}/c/{rng.integers(3)}/{rng.integers(3)}")
        elif choice == 6 and array is not None:
            shape = (int(rng.integers(3, 6)), 4)
            tree.set(f"{array}/zarr.json", array_document(shape, attributes={"n": int(rng.integers(2))}))
        elif choice == 7:
            tree.set(f"{parent}/note{rng.integers(2)}".lstrip("/"), rng.bytes(1) * int(rng.choice([1, 5000])))
        elif choice == 8 and paths and rng.integers(2):
            tree.delete_folder(str(rng.choice(paths)) or "none")
        elif choice == 9 and paths:
            source = str(rng.choice(paths))
            try:
                session.move(source, target)
            except (vstore.InvalidInputError, vstore.AlreadyExistsError, vstore.NotFoundError):
                continue
        elif choice == 10 and array is not None:
            session.shift_array(array, rng.integers(-1, 2, 2).tolist())


@pytest.mark.parametrize("seed", range(12))
def test_a_comparison_finds_what_reading_everything_finds(repository: vstore.Repository, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start = {"zarr.json": GROUP, "n0/zarr.json": GROUP, "n1/zarr.json": array_document((5, 4))}
    base = State({}, {})
    snapshots = [(repository.readonly_session("main").tree, base)]
    for step in range(4):
        session = repository.writable_session("main")
        write(session, start if step == 0 else {})
        random_edits(session, rng, 12)
        middle = State.of(session.tree)
        check_comparison(session.tree.unedited(), session.tree, base, middle)
        # The same edits twice, and two edited worktrees on one base.
        kept = copy_worktree(session.tree)
        check_comparison(kept, session.tree, middle, middle)
        random_edits(session, rng, 6)
        end = State.of(session.tree)
        check_comparison(kept, session.tree, middle, end)
        check_comparison(session.tree, kept, end, middle)
        session.commit("edited", allow_empty=True)
        assert State.of(session.tree) == end
        for tree, state in snapshots:
            check_comparison(tree, session.tree, state, end)
            check_comparison(session.tree, tree, end, state)
        snapshots.append((session.tree, end))
        base = end


def test_an_edit_that_is_undone_is_no_difference(repository: vstore.Repository) -> None:
    values = {"zarr.json": GROUP, "a/zarr.json": array_document((9,)), "a/c/1": b"small", "note": b"x"}
    values |= {"a/c/2": b"large" * 300, "b/zarr.json": GROUP, "long": b"long" * 2000}
    commit(repository, values)
    session = repository.writable_session("main")
    tree = session.tree_for_writing()
    tree.delete_folder("")
    write(session, values)
    assert compare(tree.unedited(), tree).is_empty()
    session.shift_array("a", (1,))
    session.shift_array("a", (-1,))
    session.move("a", "b/a")
    session.move("b/a", "a")
    assert compare(tree.unedited(), tree).is_empty()
    tree.set("a/c/1", b"smalL")
    assert not compare(tree.unedited(), tree).is_empty()
    assert diff_trees(tree.unedited(), tree).updated_chunks == {"/a": [(1,)]}


def test_a_node_left_behind_by_its_group_is_named(repository: vstore.Repository) -> None:
    values = {"zarr.json": GROUP, "g/zarr.json": GROUP, "g/x/zarr.json": GROUP, "g/y/zarr.json": GROUP}
    commit(repository, values)
    session = repository.writable_session("main")
    session.move("g/x", "tmp")
    session.move("g", "h")
    write(session, {"g/zarr.json": GROUP})
    session.move("tmp", "g/x")
    assert session.status().moved_nodes == (("/g", "/h"), ("/g/x", "/g/x"))
    assert session.status().new_groups == {"/g"}


class Counted(BlobReader):
    """A reader that counts the pages and manifests that it is asked for."""

    asked = 0

    def page(self, ref):  # type: ignore[no-untyped-def]
        type(self).asked += 1
        return super().page(ref)

    def manifest(self, ref):  # type: ignore[no-untyped-def]
        type(self).asked += 1
        return super().manifest(ref)


def counted(session: Session) -> Worktree:
    """Return a session's snapshot as a worktree whose reads are counted."""
    tree = session.tree.unedited()
    blobs = Counted(tree.blobs.storage, tree.blobs._recover)
    return Worktree(blobs, tree.nodes.root, virtual=tree.contents.virtual)


def pages_read(before: Session, after: Session) -> tuple[int, int]:
    """Return how many nodes differ, and how many pages and manifests were asked for to find that out."""
    Counted.asked = 0
    delta = compare(counted(before), counted(after))
    return len({*delta.before, *delta.after}), Counted.asked


def test_what_both_have_is_not_read(repository: vstore.Repository) -> None:
    values = {"zarr.json": GROUP}
    for n in range(1500):
        values[f"group {n}/zarr.json"] = GROUP + b" " * n
    # An array of many tiles, each with a manifest and their pointers in a tree of their own.
    values["a/zarr.json"] = array_document((600, 600, 600))
    for n in range(0, 600, 2):
        values[f"a/c/{n}/{n}/{n}"] = b"%d" % n * 300
    commit(repository, values)
    first = repository.readonly_session("main")
    assert pages_read(first, repository.readonly_session("main")) == (0, 0)

    commit(repository, {"group 700/zarr.json": GROUP})
    second = repository.readonly_session("main")
    one_change = pages_read(first, second)
    assert one_change[0] == 1
    assert one_change[1] <= 12
    commit(repository, {"a/c/4/4/4": b"other" * 300})
    third = repository.readonly_session("main")
    one_chunk = pages_read(second, third)
    assert one_chunk[0] == 1
    assert one_chunk[1] <= 24
    Counted.asked = 0
    assert len(list(iter_keys(counted(third), ""))) == len(values)
    assert Counted.asked > 10 * max(one_change[1], one_chunk[1]), "there is much that was not read"
