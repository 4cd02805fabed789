"""Moving nodes: what reads where afterwards, what a move costs, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import vstore
from tests.repositories import (
    GROUP,
    Place,
    array_document,
    array_document_2,
    commit,
    contents,
    quick_folder,
    write,
)
from vstore.blobs.cache import CACHE
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.storage.base import PackPolicy
from vstore.testing.faults import FaultPlan, FaultyStorage

Values = dict[str, bytes]

INLINE, STORED, LARGE = b"small", b"medium" * 200, b"large" * 20_000
"""Chunks that lie in a manifest, in a pack with others, and in one that is written at once."""
SOURCE_BYTES = bytes(range(256)) * 4


TREE: Values = {
    "zarr.json": GROUP,
    "g/zarr.json": GROUP,
    "g/a/zarr.json": array_document((6,), attributes={"title": "a"}),
    "g/a/c/0": INLINE,
    "g/a/c/1": STORED,
    "g/a/c/2": LARGE,
    "g/sub/zarr.json": GROUP,
    "g/sub/b/zarr.json": array_document((2, 2), encoding="v2", separator="."),
    "g/sub/b/0.1": STORED + b"b",
    "g/sub/old/.zarray": array_document_2((2, 2)),
    "g/sub/old/.zattrs": b'{"format": 2}',
    "g/sub/old/1.1": INLINE,
    "g/scalar/zarr.json": array_document(()),
    "g/scalar/c": INLINE,
    "g/note": b"a plain value",
    "g/sub/long note": b"a long plain value " * 1000,
    "gg/zarr.json": GROUP,
    "other/zarr.json": GROUP,
    "other/note": b"stays",
}


def renamed(values: Mapping[str, bytes], source: str, target: str) -> Values:
    """Return keys and values after a move."""
    found = {}
    for key, value in values.items():
        inside = key.startswith(f"{source}/")
        found[target + key[len(source) :] if inside else key] = value
    return found


def ids_below(session: Session, folder: str) -> dict[str, str]:
    """Return the ids of the nodes at and below a folder, by their paths relative to it."""
    paths = [folder, *session.tree.nodes.iter_nodes(f"{folder}/")]
    return {path[len(folder) :]: session.get_node_id(path) for path in paths}


# --- what moves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("g", "h"),
        ("g/a", "a"),
        ("g/a", "other/a"),
        ("g/sub", "g/under"),
        ("g/sub/b", "g/b"),
        ("g/sub/old", "other/new"),
        ("g/scalar", "scalar"),
        ("g", "other/note 2"),
        ("/g/a/", "/other/a/"),
    ],
)
def test_everything_below_a_node_goes_along(
    repository: vstore.Repository, place: Place, source: str, target: str
) -> None:
    old = commit(repository, TREE)
    session = repository.writable_session("main")
    expected = renamed(TREE, source.strip("/"), target.strip("/"))
    ids = ids_below(session, source.strip("/"))
    session.move(source, target)
    assert contents(session) == expected
    assert ids_below(session, target.strip("/")) == ids
    assert session.status().moved_nodes == ((f"/{source.strip('/')}", f"/{target.strip('/')}"),)
    assert session.totals(target) == repository.readonly_session("main").totals(source)
    made = session.commit("moved")
    assert contents(session) == expected
    with place.open() as reopened:
        assert contents(reopened.readonly_session("main")) == expected
        assert contents(reopened.readonly_session(snapshot_id=old)) == TREE
        assert ids_below(reopened.readonly_session(snapshot_id=made), target.strip("/")) == ids
        assert check(reopened, data=True).is_clean


class TinyPacks(FaultyStorage):
    """Seals a pack every few chunks."""

    def __init__(self, inner: Any, plan: FaultPlan) -> None:
        super().__init__(inner, plan)
        self.pack_policy = PackPolicy(target_bytes=12_000, buffer_bytes=5000, direct_bytes=None)


def with_storage(repository: vstore.Repository, storage: FaultyStorage) -> vstore.Repository:
    """Return the same repository behind another storage."""
    return vstore.Repository(replace(repository.handle, storage=storage))


def test_chunks_move_wherever_their_bytes_are(place: Place, tmp_path: Path) -> None:
    """In the base, in packs sealed by the session, waiting in memory, inline, and in somebody else's file."""
    (tmp_path / "source").write_bytes(SOURCE_BYTES)
    uri = (tmp_path / "source").as_uri()

    def point(session: Session, path: str, chunk: int) -> bytes:
        offset = chunk * 10
        session.store.set_virtual_refs_arr(
            path, (1,), [uri], np.array([offset]), np.array([10]), arr_offset=(chunk,)
        )
        return SOURCE_BYTES[offset : offset + 10]

    with place.create(authorize_virtual_chunk_access=[tmp_path.as_uri() + "/"]) as repository:
        base: Values = {"g/zarr.json": GROUP, "g/a/zarr.json": array_document((40,))}
        base |= {"g/a/c/0": INLINE, "g/a/c/1": STORED}
        session = repository.writable_session("main")
        write(session, base)
        base["g/a/c/2"] = point(session, "g/a", 2)
        session.commit("base")

        tiny = with_storage(repository, TinyPacks(repository.handle.storage, FaultPlan()))
        session = tiny.writable_session("main")
        early = {f"g/a/c/{n}": bytes([n]) * 2000 for n in range(10, 25)} | {"g/a/c/1": INLINE + b"2"}
        write(session, early)
        early["g/a/c/3"] = point(session, "g/a", 3)
        assert len(session.tree.writer.slots.pack_ids) > 1, "packs were sealed before the move"
        session.move("g", "h")
        expected = renamed(base | early, "g", "h")
        assert contents(session) == expected
        late = {f"h/a/c/{n}": bytes([n]) * 2000 for n in range(20, 30)} | {"h/a/c/3": INLINE + b"3"}
        write(session, late)
        late["h/a/c/4"] = point(session, "h/a", 4)
        session.tree.delete("h/a/c/0")
        del expected["h/a/c/0"]
        session.move("h/a", "b")
        expected = renamed(expected | late, "h/a", "b")
        assert contents(session) == expected
        session.commit("moved")
        CACHE.clear()
        assert contents(repository.readonly_session("main")) == expected
        assert check(repository, data=True).is_clean


def test_edits_before_and_after_moves_meet(repository: vstore.Repository) -> None:
    commit(repository, TREE)
    session = repository.writable_session("main")
    model = dict(TREE)
    for key, value in {"g/a/c/3": LARGE + b"x", "g/a/c/0": STORED, "g/note": b"changed"}.items():
        model[key] = value
        write(session, {key: value})
    session.tree.delete("g/a/c/1")
    del model["g/a/c/1"]
    session.move("g/a", "g/sub/a")
    model = renamed(model, "g/a", "g/sub/a")
    session.move("g", "h")
    model = renamed(model, "g", "h")
    new = {"h/sub/a/c/1": STORED + b"again", "h/sub/a/zarr.json": array_document((3,)), "h/note": b"2"}
    write(session, new)
    del model["h/sub/a/c/3"]
    model |= new
    assert contents(session) == model
    session.commit("moved")
    assert contents(repository.readonly_session("main")) == model
    assert check(repository, data=True).is_clean


def test_there_and_back_is_no_change(repository: vstore.Repository) -> None:
    head = commit(repository, TREE)
    session = repository.writable_session("main")
    for path, target in [
        ("g", "h"),
        ("h", "other/g"),
        ("other/g/a", "a"),
        ("a", "other/g/a"),
        ("other/g", "g"),
    ]:
        session.move(path, target)
    assert contents(session) == TREE
    assert session.status().is_empty()
    assert not session.has_uncommitted_changes
    assert session.commit("nothing") == head


def test_two_nodes_swap_by_way_of_a_third_name(repository: vstore.Repository) -> None:
    commit(repository, TREE | {"b/zarr.json": array_document((3,)), "b/c/0": STORED + b"of b"})
    session = repository.writable_session("main")
    before = contents(session)
    ids = session.get_node_id("g/a"), session.get_node_id("b")
    for source, target in [("g/a", "tmp"), ("b", "g/a"), ("tmp", "b")]:
        session.move(source, target)
    expected = {key: value for key, value in before.items() if not key.startswith(("g/a/", "b/"))}
    expected |= {"g/a" + key[1:]: value for key, value in before.items() if key.startswith("b/")}
    expected |= {"b" + key[3:]: value for key, value in before.items() if key.startswith("g/a/")}
    assert contents(session) == expected
    assert session.status().moved_nodes == (("/b", "/g/a"), ("/g/a", "/b"))
    session.commit("swapped")
    assert (session.get_node_id("b"), session.get_node_id("g/a")) == ids
    assert contents(repository.readonly_session("main")) == expected
    assert check(repository, data=True).is_clean


@pytest.mark.parametrize("path", ["g", "g/a", "g/sub/old"])
def test_what_is_made_where_a_node_was_is_another_node(repository: vstore.Repository, path: str) -> None:
    commit(repository, TREE)
    session = repository.writable_session("main")
    node = session.get_node_id(path)
    session.move(path, "elsewhere")
    documents = {k: v for k, v in TREE.items() if k.rpartition("/")[0] == path and "zarr" in k}
    write(session, documents)
    assert session.get_node_id("elsewhere") == node
    assert session.get_node_id(path) != node
    expected = renamed(TREE, path, "elsewhere") | documents
    assert contents(session) == expected, "no chunk of the old node shows in the new one"
    status = session.status()
    assert status.moved_nodes == ((f"/{path}", "/elsewhere"),)
    assert {f"/{path}"} == set(status.new_arrays | status.new_groups)
    session.commit("made anew")
    assert contents(repository.readonly_session("main")) == expected


def test_a_node_made_in_the_session_moves(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, TREE)
    session.move("g", "h")
    expected = renamed(TREE, "g", "h")
    assert contents(session) == expected
    session.commit("moved")
    assert contents(repository.readonly_session("main")) == expected
    assert check(repository, data=True).is_clean


def test_a_deleted_node_leaves_room_for_a_move(repository: vstore.Repository) -> None:
    commit(repository, TREE)
    session = repository.writable_session("main")
    session.tree.delete_folder("other")
    session.move("g", "other")
    kept = {key: value for key, value in TREE.items() if not key.startswith("other/")}
    assert contents(session) == renamed(kept, "g", "other")
    session.move("gg", "g")
    session.tree.delete_folder("other")
    expected = {"zarr.json": GROUP, "g/zarr.json": GROUP}
    assert contents(session) == expected
    session.commit("moved and deleted")
    assert contents(repository.readonly_session("main")) == expected
    assert check(repository, data=True).is_clean


def test_a_chunk_of_an_emptied_array_is_not_seen_again_after_a_move(repository: vstore.Repository) -> None:
    commit(repository, TREE)
    session = repository.writable_session("main")
    session.tree.delete_folder("g/a/c")
    write(session, {"g/a/zarr.json": array_document((1,))})
    session.move("g/a", "a")
    write(session, {"a/zarr.json": array_document((6,)), "a/c/5": STORED})
    session.commit("moved")
    found = {key for key in contents(repository.readonly_session("main")) if key.startswith("a/")}
    assert found == {"a/zarr.json", "a/c/5"}


def test_discarding_undoes_a_move(repository: vstore.Repository) -> None:
    commit(repository, TREE)
    session = repository.writable_session("main")
    session.move("g", "h")
    write(session, {"h/a/c/0": STORED, "g/zarr.json": GROUP})
    session.discard_changes()
    assert contents(session) == TREE
    session.move("g", "h")
    assert contents(session) == renamed(TREE, "g", "h")


def test_a_pickled_session_shows_the_move(repository: vstore.Repository) -> None:
    commit(repository, TREE)
    session = repository.writable_session("main")
    write(session, {"g/a/c/3": LARGE + b"pending"})
    session.move("g/a", "g/sub/a")
    session.move("g", "h")
    expected = contents(session)
    copy = pickle.loads(pickle.dumps(session))
    assert contents(copy) == expected
    assert ids_below(copy, "h") == ids_below(session, "h")
    assert copy.status() == session.status()
    with pytest.raises(vstore.ReadOnlyError, match="copy of a session"):
        copy.move("h", "g")


paths = ("a", "b", "a/x", "a/y", "b/x", "a/x/x", "b/x/y")


@given(st.lists(st.tuples(st.sampled_from(paths), st.sampled_from(paths)), max_size=12), st.booleans())
def test_any_moves_are_what_renaming_keys_is(moves: list[tuple[str, str]], is_committed: bool) -> None:
    start = {"zarr.json": GROUP, "a/zarr.json": GROUP, "a/x/zarr.json": GROUP, "a/x/note": b"a/x"}
    start |= {"b/zarr.json": GROUP, "b/x/zarr.json": array_document((2,)), "b/x/c/1": b"b/x", "a/note": b"a"}
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        session = repository.writable_session("main")
        write(session, start)
        if is_committed:
            session.commit("start")
            session = repository.writable_session("main")
        model, groups = dict(start), {"", "a", "a/x", "b"}
        nodes = groups | {"b/x"}
        for source, target in moves:
            parent = target.rpartition("/")[0]
            is_allowed = source in nodes and target not in nodes and parent in groups
            if is_allowed and not target.startswith(f"{source}/"):
                session.move(source, target)
                model = renamed(model, source, target)
                nodes, groups = (
                    {
                        target + n[len(source) :] if n == source or n.startswith(f"{source}/") else n
                        for n in names
                    }
                    for names in (nodes, groups)
                )
            else:
                with pytest.raises(
                    (vstore.InvalidInputError, vstore.NotFoundError, vstore.AlreadyExistsError)
                ):
                    session.move(source, target)
            assert contents(session) == model
        assert session.has_uncommitted_changes == (model != start or not is_committed)
        session.commit("moved", allow_empty=True)
        assert contents(repository.readonly_session("main")) == model
        assert check(repository, data=True).is_clean


# --- what it costs -------------------------------------------------------------------------------------------


def test_a_move_of_many_arrays_touches_no_chunk(place: Place) -> None:
    count = 2000
    with place.create() as repository:
        values = {"g/zarr.json": GROUP}
        for n in range(count):
            values |= {f"g/{n}/zarr.json": array_document((1,)), f"g/{n}/c/0": b"%d" % n * 300}
        commit(repository, values)
        big = max(repository.handle.storage.list("packs/"), key=lambda info: info.size)
        assert big.size > count * 300
        CACHE.clear()
        plan = FaultPlan()
        counted = with_storage(repository, FaultyStorage(repository.handle.storage, plan))
        session = counted.writable_session("main")
        session.move("g", "h")
        assert {request.method for request in plan.requests} <= {"read", "read_tail"}
        made = session.commit("moved")
        writes = [request for request in plan.requests if request.method in ("write", "create", "seal")]
        assert 1 <= len({request.name for request in writes}) <= 2, "one pack of metadata"
        packs = {info.name: info.size for info in repository.handle.storage.list("packs/")}
        new = [size for name, size in packs.items() if name in {request.name for request in writes}]
        # A node's entry is its path, its document and its tile pointer.
        assert sum(new) < count * 400 < big.size
        reader = repository.readonly_session(snapshot_id=made)
        assert contents(reader) == renamed(values, "g", "h")


def test_a_moved_array_keeps_its_tiles(local: vstore.Repository) -> None:
    def tiles(session: Session, path: str) -> object:
        node = session.tree.nodes.node(path)
        assert node is not None
        assert node.array is not None
        return node.array.base

    commit(local, {"a/zarr.json": array_document((9,))} | {f"a/c/{n}": STORED for n in range(9)})
    session = local.writable_session("main")
    before = tiles(session, "a")
    session.move("a", "b")
    session.commit("moved")
    assert tiles(session, "b") == before


# --- reading it ----------------------------------------------------------------------------------------------


def test_zarr_and_xarray_read_what_was_moved(repository: vstore.Repository) -> None:
    xarray = pytest.importorskip("xarray")
    data = np.arange(60.0).reshape(6, 10)
    dataset = xarray.Dataset(
        {"wind": (("y", "x"), data)}, {"x": np.arange(10), "y": np.arange(6)}, {"made": "by a test"}
    )
    session = repository.writable_session("main")
    zarr.create_group(session.store)
    dataset.chunk({"x": 5, "y": 3}).to_zarr(session.store, group="model/run", consolidated=False)
    session.commit("written")
    session = repository.writable_session("main")
    wind = zarr.open_array(session.store, path="model/run/wind", mode="r+")
    wind[0, 0] = 100.0
    session.move("model/run", "archive")
    with pytest.raises(FileNotFoundError):
        zarr.open_array(session.store, path="model/run/wind", mode="r")
    expected = dataset.copy(deep=True)
    expected["wind"][0, 0] = 100.0
    for reader in (session, repository.readonly_session(snapshot_id=session.commit("moved"))):
        with xarray.open_zarr(reader.store, group="archive", consolidated=False) as found:
            assert found.chunks == {"y": (3, 3), "x": (5, 5)}
            xarray.testing.assert_identical(found.load(), expected)
        root = zarr.open_group(reader.store, mode="r")
        assert sorted(name for name, _ in root.members()) == ["archive", "model"]
        assert sorted(root["archive"].keys()) == ["wind", "x", "y"]  # type: ignore[union-attr]


def test_dask_reads_and_names_what_was_moved_anew(repository: vstore.Repository) -> None:
    dask_array = pytest.importorskip("dask.array")
    data = np.arange(100).reshape(10, 10)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", data=data, chunks=(4, 4))
    before = session.store.__dask_tokenize__()
    session.move("a", "b")
    assert session.store.__dask_tokenize__() != before
    found = dask_array.from_zarr(zarr.open_array(session.store, path="b", mode="r"))
    np.testing.assert_array_equal(found.compute(scheduler="threads"), data)


def test_an_array_that_was_open_does_not_write_elsewhere_after_a_move(repository: vstore.Repository) -> None:
    """An open zarr array knows its path only: what it writes after a move belongs to no array, and shows as that."""
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="a", data=np.arange(8, dtype="u1"), chunks=(4,))
    session.move("a", "b")
    array[:4] = 99
    moved = zarr.open_array(session.store, path="b", mode="r")
    np.testing.assert_array_equal(moved[:], np.arange(8))
    assert session.tree.nodes.node("a") is None


# --- what is refused -----------------------------------------------------------------------------------------

INVALID, EXISTS, MISSING = vstore.InvalidInputError, vstore.NodeExistsError, vstore.NodeNotFoundError


@pytest.mark.parametrize(
    ("source", "target", "error", "text"),
    [
        ("", "h", INVALID, "the root can't be moved"),
        ("/", "h", INVALID, "the root can't be moved"),
        ("g", "", INVALID, "no path that a node can have"),
        ("g", "/", INVALID, "no path that a node can have"),
        ("g", "g", INVALID, "into itself"),
        ("g/a", "/g/a/", INVALID, "into itself"),
        ("g", "g/sub/g", INVALID, "into itself"),
        ("g", "g/none/g", INVALID, "into itself"),
        ("gg", "g/a/gg", INVALID, "'/g/a' is an array"),
        ("gg", "g/a/c/0", INVALID, "'/g/a' is an array"),
        ("gg", "g/a/c/0/x", INVALID, "'/g/a' is an array"),
        ("gg", "g", EXISTS, "something at '/g'"),
        ("gg", "g/a", EXISTS, "something at '/g/a'"),
        ("g/a", "gg", EXISTS, "something at '/gg'"),
        ("gg", "values", EXISTS, "something at '/values'"),
        ("gg", "none/gg", MISSING, "no group '/none'"),
        ("gg", "values/below", MISSING, "no group '/values'"),
        ("none", "h", MISSING, "no group or array at '/none'"),
        ("g/note", "h", MISSING, "no group or array at '/g/note'"),
        ("g/a/c/0", "h", MISSING, "no group or array at '/g/a/c/0'"),
        ("values", "h", MISSING, "no group or array at '/values'"),
        ("g//a", "h", MISSING, "no group or array at"),
        ("gg", "g//x", INVALID, "no path that a node can have"),
        ("gg", "g/../x", INVALID, "no path that a node can have"),
        ("gg", "..", INVALID, "no path that a node can have"),
        ("gg", "./x", INVALID, "no path that a node can have"),
        ("gg", "g/.", INVALID, "no path that a node can have"),
        ("gg", "zarr.json", INVALID, "no path that a node can have"),
        ("gg", "g/.zarray", INVALID, "no path that a node can have"),
        ("gg", "g/.zgroup", INVALID, "no path that a node can have"),
        ("gg", "x\0y", INVALID, "zero character"),
        ("gg", "g/\ud800", INVALID, "not valid Unicode"),
    ],
)
@pytest.mark.parametrize("is_hidden", [False, True])
def test_moves_that_are_refused(
    local: vstore.Repository, source: str, target: str, error: type[Exception], text: str, is_hidden: bool
) -> None:
    values = TREE | {"values/below": b"no node"}
    head = commit(local, values)
    session = local.writable_session("main")
    if is_hidden:
        # The same state, but seen through edits only.
        session.tree_for_writing().delete_folder("")
        write(session, values)
    edits = session.tree.mutations
    with pytest.raises(error, match=text):
        session.move(source, target)
    assert session.tree.mutations == edits
    assert contents(session) == values
    assert session.status().is_empty()
    assert not is_hidden or session.commit("nothing") == head


def test_an_array_at_the_root_takes_no_nodes(local: vstore.Repository) -> None:
    session = local.writable_session("main")
    write(session, {"g/zarr.json": GROUP, "zarr.json": array_document((2,))})
    with pytest.raises(vstore.InvalidInputError, match="'/' is an array"):
        session.move("g", "h")


def test_nothing_moves_below_an_array_that_was_moved_there(local: vstore.Repository) -> None:
    commit(local, TREE)
    session = local.writable_session("main")
    session.move("g/a", "h")
    with pytest.raises(vstore.InvalidInputError, match="'/h' is an array"):
        session.move("gg", "h/x")
    with pytest.raises(vstore.NodeNotFoundError, match="no group '/g/a'"):
        session.move("gg", "g/a/x")


@pytest.mark.parametrize("end", ["read-only", "committed", "closed", "discarded"])
def test_a_session_that_may_not_write_may_not_move(local: vstore.Repository, end: str) -> None:
    commit(local, TREE)
    session = local.writable_session("main")
    session.move("g", "h")
    endings: dict[str, Callable[[], object]] = {
        "read-only": lambda: None,
        "committed": lambda: session.commit("moved"),
        "closed": session.close,
        "discarded": session.discard_changes,
    }
    endings[end]()
    if end == "read-only":
        session = local.readonly_session("main")
    elif end == "discarded":
        session.close()
    before = contents(session)
    with pytest.raises(vstore.ReadOnlyError):
        session.move("other", "x")
    assert contents(session) == before


def test_ids_of_what_is_not_there(local: vstore.Repository) -> None:
    commit(local, TREE)
    session = local.writable_session("main")
    root = session.get_node_id("/")
    assert root == session.get_node_id("")
    session.move("g", "h")
    for path in ("g", "g/a", "none", "h/note", "h/a/c/0"):
        with pytest.raises(vstore.NodeNotFoundError):
            session.get_node_id(path)
    assert session.get_node_id("/") == root
