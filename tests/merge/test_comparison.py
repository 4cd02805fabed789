"""What repo.diff and session.status tell, down to cells, what it costs, and the history of one path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import zarr

import vstore
from tests.repositories import GROUP, Place, array_document, array_document_2, quick_folder, write
from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.changes.boxes import Box
from vstore.changes.diff import Diff, ValueChange

START = {
    "zarr.json": GROUP,
    "g/zarr.json": GROUP,
    "g/a/zarr.json": array_document((4, 4), attributes={"unit": "m", "scale": 1}),
    "g/a/c/0/0": b"0",
    "b/zarr.json": array_document((6,)),
}


@pytest.fixture
def repository() -> Iterator[vstore.Repository]:
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        save(repository, START)
        yield repository


def save(
    repository: vstore.Repository,
    values: Mapping[str, bytes | None],
    branch: str = "main",
    moves: tuple[tuple[str, str], ...] = (),
) -> str:
    """Move nodes, set keys or delete those with None (folders end in a slash), and commit."""
    with repository.writable_session(branch) as session:
        for source, target in moves:
            session.move(source, target)
        for key, value in values.items():
            if value is not None:
                write(session, {key: value})
            elif key.endswith("/"):
                session.tree_for_writing().delete_folder(key.rstrip("/"))
            else:
                session.tree_for_writing().delete(key)
        return session.commit(f"commit of {', '.join([*values, *(old for old, _ in moves)])}")


def head(repository: vstore.Repository, branch: str = "main") -> str:
    return repository.lookup_branch(branch)


def diff(repository: vstore.Repository, older: str, newer: str, *, values: bool = False) -> Diff:
    return repository.diff(from_snapshot_id=older, to_snapshot_id=newer, values=values)


# --- nodes ---------------------------------------------------------------------------------------------------


def test_equal_snapshots_do_not_differ(repository: vstore.Repository) -> None:
    first = head(repository)
    save(repository, {"b/c/0": b"x"})
    back = save(repository, {"b/c/0": None})
    assert back != first
    found = diff(repository, first, back)
    assert found.is_empty()
    assert str(found) == "No changes"
    assert found.values is None
    assert diff(repository, first, first, values=True).values == {}


def test_a_diff_forwards_and_backwards(repository: vstore.Repository) -> None:
    old = head(repository)
    new = save(
        repository,
        {
            "h/zarr.json": GROUP,
            "h/c/zarr.json": array_document((2,)),
            "h/c/c/1": b"1",
            "b/": None,
            "note": b"text",
        },
    )
    found = diff(repository, old, new)
    assert found.new_groups == {"/h"}
    assert found.new_arrays == {"/h/c"}
    assert found.deleted_groups == frozenset()
    assert found.deleted_arrays == {"/b"}
    assert found.updated_chunks == {"/h/c": [(1,)]}
    assert found.changed_values == {"note"}
    back = diff(repository, new, old)
    assert back.deleted_groups == {"/h"}
    assert back.deleted_arrays == {"/h/c"}
    assert back.new_arrays == {"/b"}
    assert back.changed_values == {"note"}
    assert back.updated_chunks == {}


def test_snapshots_of_two_branches_differ_by_both_sides(repository: vstore.Repository) -> None:
    repository.create_branch("dev", head(repository))
    save(repository, {"b/c/0": b"main", "b/c/2": b"same"})
    save(repository, {"b/c/1": b"dev", "b/c/2": b"same"}, "dev")
    repository.create_tag("t", head(repository, "dev"))
    ends: list[dict[str, Any]] = [
        {"to_branch": "dev"},
        {"to_tag": "t"},
        {"to_snapshot_id": head(repository, "dev")[:12]},
    ]
    for other in ends:
        found = repository.diff(from_branch="main", **other)
        assert found.updated_chunks == {"/b": [(0,), (1,)]}
        assert found.chunk_boxes == {"/b": (Box((0,), (2,)),)}
        assert not found.updated_arrays


def test_unrelated_hierarchies_differ_in_everything(repository: vstore.Repository) -> None:
    first = list(repository.ancestry(branch="main"))[-1].id
    repository.create_branch("other", first)
    save(repository, START, "other")
    # The same keys and bytes, but other nodes.
    found = repository.diff(from_branch="main", to_branch="other")
    assert found.new_arrays == found.deleted_arrays == {"/g/a", "/b"}
    assert found.new_groups == found.deleted_groups == {"/", "/g"}


def test_a_session_shows_the_same_as_the_commit_it_becomes(repository: vstore.Repository) -> None:
    old = head(repository)
    with repository.writable_session("main") as session:
        session.move("/g", "/k")
        write(session, {"k/a/c/1/1": b"1", "k/new/zarr.json": GROUP, "b/zarr.json": array_document((3,))})
        session.tree_for_writing().delete("k/a/c/0/0")
        shown = session.status()
        assert session.status(values=True).values is not None
        new = session.commit("changes")
    assert diff(repository, old, new) == shown
    assert shown.moved_nodes == (("/g", "/k"),)
    assert shown.updated_chunks == {"/k/a": [(0, 0), (1, 1)]}


def test_each_of_both_ends_is_named_once(repository: vstore.Repository) -> None:
    both: dict[str, Any] = {"from_branch": "main", "from_tag": "t", "to_branch": "main"}
    for wrong in ({}, {"from_branch": "main"}, both):
        with pytest.raises(vstore.InvalidInputError, match="exactly one"):
            repository.diff(**wrong)
    with pytest.raises(vstore.RefNotFoundError):
        repository.diff(from_branch="main", to_branch="nobody")


def test_a_moved_group_is_one_move(repository: vstore.Repository) -> None:
    old = head(repository)
    new = save(repository, {"k/a/c/1/1": b"1"}, moves=(("/g", "/k"),))
    found = diff(repository, old, new)
    assert found.moved_nodes == (("/g", "/k"),)
    assert found.chunk_boxes == {"/k/a": (Box((1, 1), (2, 2)),)}
    assert not found.new_groups | found.new_arrays | found.deleted_groups | found.deleted_arrays
    assert not found.updated_groups | found.updated_arrays
    assert diff(repository, new, old).moved_nodes == (("/k", "/g"),)


def test_a_node_moved_out_of_a_moved_group(repository: vstore.Repository) -> None:
    old = head(repository)
    new = save(repository, {}, moves=(("/g", "/k"), ("/k/a", "/a")))
    assert diff(repository, old, new).moved_nodes == (("/g", "/k"), ("/g/a", "/a"))
    # The array is back where it was, while its group is not.
    again = save(repository, {"g/zarr.json": GROUP})
    back = save(repository, {}, moves=(("/a", "/g/a"),))
    assert diff(repository, again, back).moved_nodes == (("/a", "/g/a"),)
    found = diff(repository, old, back)
    assert found.new_groups == {"/g"}
    assert ("/g", "/k") in found.moved_nodes


def test_nodes_that_changed_places(repository: vstore.Repository) -> None:
    old = head(repository)
    new = save(repository, {}, moves=(("/g/a", "/t"), ("/b", "/g/a"), ("/t", "/b")))
    assert diff(repository, old, new).moved_nodes == (("/b", "/g/a"), ("/g/a", "/b"))


# --- metadata ------------------------------------------------------------------------------------------------


def test_attributes_differ_by_key(repository: vstore.Repository) -> None:
    old = head(repository)
    changed = {"unit": None, "offset": [1, {"x": 2}]}
    new = save(repository, {"g/a/zarr.json": array_document((4, 4), attributes=changed)})
    found = diff(repository, old, new)
    assert found.updated_arrays == {"/g/a"}
    assert found.updated_attributes == {
        "/g/a": {
            "unit": ("m", None),
            "scale": (1, vstore.MISSING),
            "offset": (vstore.MISSING, [1, {"x": 2}]),
        }
    }
    assert found.updated_fields == {}
    text = str(found)
    assert "/g/a: attribute unit: 'm' -> None" in text
    assert "/g/a: attribute scale: 1 -> MISSING" in text


def test_numbers_of_another_type_are_a_change(repository: vstore.Repository) -> None:
    old = head(repository)
    for value in (1.0, True):
        same = {"unit": "m", "scale": value}
        new = save(repository, {"g/a/zarr.json": array_document((4, 4), attributes=same)})
        assert diff(repository, old, new).updated_attributes == {"/g/a": {"scale": (1, value)}}


def test_fields_differ_as_a_whole(repository: vstore.Repository) -> None:
    old = head(repository)
    new = save(repository, {"b/zarr.json": array_document((8,), dtype="int8")})
    found = diff(repository, old, new)
    assert found.updated_fields == {"/b": {"shape": ([6], [8]), "data_type": ("uint8", "int8")}}
    assert found.updated_attributes == {}


def test_a_document_spelt_otherwise_is_updated_without_a_change(repository: vstore.Repository) -> None:
    old = head(repository)
    new = save(repository, {"b/zarr.json": array_document((6,)) + b"\n"})
    found = diff(repository, old, new)
    assert found.updated_arrays == {"/b"}
    assert found.updated_fields == {}
    assert found.updated_attributes == {}


def test_attributes_of_v2_documents(repository: vstore.Repository) -> None:
    old = save(repository, {"v/.zarray": array_document_2((4,)), "v/.zattrs": b'{"x": 1}'})
    new = save(repository, {"v/.zattrs": b'{"x": 2, "y": 3}', "v/.zarray": array_document_2((5,))})
    found = diff(repository, old, new)
    assert found.updated_attributes == {"/v": {"x": (1, 2), "y": (vstore.MISSING, 3)}}
    assert found.updated_fields == {"/v": {"shape": ([4], [5])}}
    bare = save(repository, {"v/.zattrs": None})
    found = diff(repository, new, bare)
    assert found.updated_attributes == {"/v": {"x": (2, vstore.MISSING), "y": (3, vstore.MISSING)}}


# --- cells ---------------------------------------------------------------------------------------------------


def arrays(repository: vstore.Repository, **options: Any) -> tuple[str, str]:
    """Make array "x" of the values before, change it to those after, and return both snapshots."""
    before, after = options.pop("before"), options.pop("after")
    zarr_format = options.pop("zarr_format", 3)
    snapshots = []
    for number, values in enumerate((before, after)):
        with repository.writable_session("main") as session:
            if not number:
                made = zarr.create_array(
                    session.store,
                    name="x",
                    shape=values.shape,
                    dtype=values.dtype,
                    zarr_format=zarr_format,
                    **options,
                )
            else:
                made = zarr.open_array(session.store, path="x", mode="r+")
                if made.shape != values.shape:
                    made.resize(values.shape)
            made[...] = values
            snapshots.append(session.commit("values"))
    return snapshots[0], snapshots[1]


def change(repository: vstore.Repository, snapshots: tuple[str, str]) -> ValueChange:
    values = diff(repository, *snapshots, values=True).values
    assert values is not None
    assert set(values) == {"/x"}
    return values["/x"]


def test_cells_are_counted_and_measured(repository: vstore.Repository) -> None:
    before = np.arange(100, dtype="i4").reshape(10, 10)
    after = before.copy()
    after[2, 3] += 5
    after[7, 9] -= 11
    found = change(repository, arrays(repository, before=before, after=after, chunks=(3, 4)))
    assert found == ValueChange(2, 11.0, Box((2, 3), (8, 10)))


@pytest.mark.parametrize(
    ("dtype", "old", "new", "largest"),
    [
        ("u1", 0, 255, 255.0),
        ("u1", 255, 0, 255.0),
        ("i1", -128, 127, 255.0),
        ("bool", False, True, 1.0),
        ("f4", 1.5, -1.5, 3.0),
        ("c16", 1 + 1j, 4 + 5j, 5.0),
        ("i8", -(2**62), 2**62, 2.0**63),
        ("f8", np.nan, 1.0, None),
        ("f8", 1.0, np.inf, np.inf),
    ],
)
def test_the_largest_difference(
    repository: vstore.Repository, dtype: str, old: Any, new: Any, largest: float | None
) -> None:
    before, after = np.full(8, old, dtype), np.full(8, old, dtype)
    after[5] = new
    found = change(repository, arrays(repository, before=before, after=after, chunks=(4,)))
    assert found == ValueChange(1, largest, Box((5,), (6,)))


def test_nan_equals_nan(repository: vstore.Repository) -> None:
    before = np.array([np.nan, 1.0, np.nan, 2.0])
    found = change(repository, arrays(repository, before=before, after=before + [0, 0, 0, 1], chunks=(4,)))
    assert found == ValueChange(1, 1.0, Box((3,), (4,)))


def test_a_chunk_that_came_or_went_is_compared_with_the_fill_value(repository: vstore.Repository) -> None:
    before, after = np.full(6, 7, "i4"), np.full(6, 7, "i4")
    after[4] = 9
    ends = arrays(repository, before=before, after=after, chunks=(2,), fill_value=7)
    assert change(repository, ends) == ValueChange(1, 2.0, Box((4,), (5,)))
    assert change(repository, (ends[1], ends[0])) == ValueChange(1, 2.0, Box((4,), (5,)))


def test_chunks_of_other_bytes_and_the_same_cells(repository: vstore.Repository) -> None:
    old = save(repository, {"b/c/1": b"\0"})
    new = save(repository, {"b/c/1": None})
    found = diff(repository, old, new, values=True)
    assert found.chunk_boxes == {"/b": (Box((1,), (2,)),)}
    assert found.values == {"/b": ValueChange(0, None, None)}


def test_only_the_common_part_of_a_resized_array_is_compared(repository: vstore.Repository) -> None:
    before, after = np.arange(10, dtype="i4"), np.arange(7, dtype="i4")
    after[1] = 100
    ends = arrays(repository, before=before, after=after, chunks=(4,))
    assert change(repository, ends) == ValueChange(1, 99.0, Box((1,), (2,)))
    assert change(repository, (ends[1], ends[0])) == ValueChange(1, 99.0, Box((1,), (2,)))


def test_cells_of_another_dtype_are_not_compared(repository: vstore.Repository) -> None:
    old = save(repository, {"b/c/1": b"\1"})
    new = save(repository, {"b/zarr.json": array_document((6,), dtype="int8"), "b/c/1": b"\2"})
    found = diff(repository, old, new, values=True)
    assert found.updated_chunks == {"/b": [(1,)]}
    assert found.values == {}


def test_new_and_deleted_arrays_have_no_changed_cells(repository: vstore.Repository) -> None:
    old = save(repository, {"b/c/1": b"\1"})
    new = save(repository, {"b/": None, "n/zarr.json": array_document((2,)), "n/c/0": b"\1"})
    assert diff(repository, old, new, values=True).values == {}
    assert diff(repository, new, old, values=True).values == {}


@pytest.mark.parametrize(
    "options",
    [
        {"zarr_format": 2},
        {"zarr_format": 2, "order": "F"},
        {"shards": (4, 4)},
        {"compressors": None},
    ],
)
def test_cells_of_all_kinds_of_arrays(repository: vstore.Repository, options: dict[str, Any]) -> None:
    before = np.arange(48, dtype="i2").reshape(6, 8)
    after = before.copy()
    after[1, 5] += 3
    after[5, 2] += 4
    ends = arrays(repository, before=before, after=after, chunks=(2, 2), **options)
    assert change(repository, ends) == ValueChange(2, 4.0, Box((1, 2), (6, 6)))


def test_cells_of_strings_are_counted_but_not_measured(repository: vstore.Repository) -> None:
    before = np.array(["a", "bb", "ccc", "a"], dtype="U4")
    after = before.copy()
    after[2] = "other"
    # Of format 2: in format 3 zarr warns that strings of fixed length have no specification yet.
    ends = arrays(repository, before=before, after=after, chunks=(3,), zarr_format=2)
    assert change(repository, ends) == ValueChange(1, None, Box((2,), (3,)))


def test_cells_of_times(repository: vstore.Repository) -> None:
    before = np.array(["2020-01-01", "NaT", "2020-01-03"], dtype="M8[s]")
    after = before.copy()
    after[0] += np.timedelta64(1, "s")
    found = change(repository, arrays(repository, before=before, after=after, chunks=(3,)))
    assert found == ValueChange(1, None, Box((0,), (1,)))


def test_cells_of_a_moved_array(repository: vstore.Repository) -> None:
    old = save(repository, {"b/c/1": b"\1"})
    new = save(repository, {"k/c/1": b"\5"}, moves=(("/b", "/k"),))
    assert diff(repository, old, new, values=True).values == {"/k": ValueChange(1, 4.0, Box((1,), (2,)))}


def test_an_array_without_dimensions(repository: vstore.Repository) -> None:
    old = save(repository, {"s/zarr.json": array_document(()), "s/c": b"\1"})
    new = save(repository, {"s/c": b"\3"})
    found = diff(repository, old, new, values=True)
    assert found.updated_chunks == {"/s": [()]}
    assert found.values == {"/s": ValueChange(1, 2.0, Box((), ()))}


# --- cost ----------------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the metadata blobs that are read from now on."""
    found: list[int] = []
    inner = BlobReader.metadata

    def metadata(self: BlobReader, ref: Any, what: str, **options: Any) -> Any:
        found.append(ref.length)
        return inner(self, ref, what, **options)

    monkeypatch.setattr(BlobReader, "metadata", metadata)
    return found


WIDE = 2000


@pytest.fixture
def wide(repository: vstore.Repository) -> vstore.Repository:
    """A hierarchy of many nodes, and an array of many chunks."""
    with repository.writable_session("main") as session:
        tree = session.tree_for_writing()
        for number in range(WIDE):
            key = f"n{number:04}/zarr.json"
            tree.set(key, array_document((4,), attributes={"number": number, "text": "x" * 100}))
        tree.set("big/zarr.json", array_document((40_000,)))
        for number in range(0, 40_000, 3):
            tree.set(f"big/c/{number}", b"%07d" % number)
        session.commit("wide")
    return repository


def test_a_diff_costs_what_differs(wide: vstore.Repository, reads: list[int]) -> None:
    old = head(wide)
    new = save(
        wide,
        {"n1500/zarr.json": array_document((4,), attributes={"number": -1}), "big/c/20001": b"changed"},
    )
    CACHE.clear()
    reads.clear()
    found = diff(wide, old, new)
    assert found.updated_arrays == {"/n1500"}
    assert found.updated_chunks == {"/big": [(20_001,)]}
    # Two paths from the root, of the hierarchy and of the chunks.
    assert len(reads) < 20
    total = sum(reads)
    CACHE.clear()
    reads.clear()
    for number in range(0, WIDE, 20):
        wide.readonly_session("main").get_node_id(f"n{number:04}")
    assert sum(reads) > 2 * total, "the hierarchy is too small to tell"


def test_a_merge_costs_what_was_changed(wide: vstore.Repository, reads: list[int]) -> None:
    wide.create_branch("dev", head(wide))
    save(wide, {"n1000/c/0": b"main", "big/c/9": b"main"})
    save(wide, {"n1700/c/0": b"dev", "big/c/39990": b"dev"}, "dev")
    CACHE.clear()
    reads.clear()
    wide.merge("dev")
    assert len(reads) < 60
    before = wide.lookup_snapshot(head(wide)).parent_ids[0]
    assert diff(wide, before, head(wide)).updated_chunks == {"/n1700": [(0,)], "/big": [(39_990,)]}


def test_a_log_of_a_path_costs_what_lies_there(wide: vstore.Repository, reads: list[int]) -> None:
    for number in range(20):
        save(wide, {f"n{number:04}/c/0": b"x"})
    made = save(wide, {"n1700/c/0": b"x"})
    CACHE.clear()
    reads.clear()
    found = [info.id for info in wide.log("n1700")]
    assert found[0] == made
    assert len(found) == 2
    assert len(reads) < 25 * 8


# --- log -----------------------------------------------------------------------------------------------------


def log(repository: vstore.Repository, path: str | None, **of: str) -> list[str]:
    return [info.id for info in repository.log(path, **of)]


def test_a_log_without_a_path_is_the_ancestry(repository: vstore.Repository) -> None:
    save(repository, {"b/c/0": b"x"})
    assert log(repository, None) == [info.id for info in repository.ancestry(branch="main")]


def test_a_log_has_what_changed_a_node_or_what_is_below_it(repository: vstore.Repository) -> None:
    first = head(repository)
    chunk = save(repository, {"g/a/c/1/1": b"x"})
    attribute = save(repository, {"g/a/zarr.json": array_document((4, 4), attributes={"unit": "s"})})
    other = save(repository, {"b/c/0": b"x"})
    below = save(repository, {"g/new/zarr.json": GROUP})
    gone = save(repository, {"g/a/": None})
    assert log(repository, "g/a") == log(repository, "/g/a/") == [gone, attribute, chunk, first]
    assert log(repository, "g") == [gone, below, attribute, chunk, first]
    assert log(repository, "g/new") == [below]
    assert log(repository, "b") == [other, first]
    assert log(repository, "nothing") == []
    assert log(repository, "") == [gone, below, other, attribute, chunk, first]
    assert log(repository, "g/a", snapshot_id=other) == [attribute, chunk, first]


def test_a_log_leaves_out_what_changed_nothing(repository: vstore.Repository) -> None:
    first = head(repository)
    with repository.writable_session("main") as session:
        session.commit("nothing", allow_empty=True)
    same = save(repository, {"b/c/0": b"x", "g/a/c/0/0": b"0"})
    assert log(repository, "g/a") == [first]
    assert log(repository, "b") == [same, first]


def test_a_path_is_not_its_siblings_that_start_alike(repository: vstore.Repository) -> None:
    first = head(repository)
    for name in ("bb", "b-1", "b.c", "b0"):
        save(repository, {f"{name}/zarr.json": array_document((2,)), f"{name}/c/0": b"x"})
    assert log(repository, "b") == [first]
    assert len(log(repository, "bb")) == 1


def test_a_log_follows_moves(repository: vstore.Repository) -> None:
    first = head(repository)
    before = save(repository, {"g/a/c/1/1": b"x"})
    moved = save(repository, {}, moves=(("/g/a", "/h"),))
    replaced = save(repository, {"g/a/zarr.json": array_document((1,))})
    after = save(repository, {"h/c/2/2": b"x"})
    assert log(repository, "h") == [after, moved, before, first]
    # The path holds another node since; before the move it held the first one.
    assert log(repository, "g/a") == [replaced, moved, before, first]


def test_a_log_follows_a_node_that_went_along_with_its_group(repository: vstore.Repository) -> None:
    first = head(repository)
    before = save(repository, {"g/a/c/1/1": b"x"})
    moved = save(repository, {}, moves=(("/g", "/k"),))
    again = save(repository, {"k/a/c/1/2": b"x"}, moves=(("/k", "/l"),))
    assert log(repository, "l/a") == [again, moved, before, first]
    assert log(repository, "l") == [again, moved, before, first]


def test_a_log_follows_a_node_that_replaced_another(repository: vstore.Repository) -> None:
    first = head(repository)
    before = save(repository, {"b/c/1": b"x"})
    swapped = save(repository, {}, moves=(("/g/a", "/t"), ("/b", "/g/a"), ("/t", "/b")))
    assert log(repository, "g/a") == [swapped, before, first]


def test_a_merge_is_in_a_log_if_it_is_like_no_parent(repository: vstore.Repository) -> None:
    first = head(repository)
    repository.create_branch("dev", first)
    main = save(repository, {"b/c/0": b"main"})
    dev = save(repository, {"b/c/1": b"dev", "g/a/c/1/1": b"dev"}, "dev")
    merged = repository.merge("dev")
    assert set(log(repository, "b")) == {merged, main, dev, first}
    assert log(repository, "b")[0] == merged
    assert log(repository, "g/a") == [dev, first]


def test_a_log_follows_both_sides_of_a_merge_to_their_paths(repository: vstore.Repository) -> None:
    first = head(repository)
    repository.create_branch("dev", first)
    dev = save(repository, {"b/c/1": b"dev"}, "dev")
    moved = save(repository, {}, moves=(("/b", "/k"),))
    merged = repository.merge("dev")
    assert set(log(repository, "k")) == {merged, moved, dev, first}


def test_a_log_of_plain_values(repository: vstore.Repository) -> None:
    made = save(repository, {"notes/readme": b"1"})
    changed = save(repository, {"notes/readme": b"2"})
    save(repository, {"notes/readme2": b"1"})
    gone = save(repository, {"notes/readme": None})
    assert log(repository, "notes/readme") == [gone, changed, made]
    assert len(log(repository, "notes")) == 4


def test_a_log_of_an_unknown_branch(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.RefNotFoundError):
        log(repository, "b", branch="nobody")
    with pytest.raises(vstore.InvalidInputError):
        log(repository, "b", branch="main", tag="t")
