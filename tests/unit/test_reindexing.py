"""Chunks that change places: shifts and other renumberings, against numpy and against dicts."""

from __future__ import annotations

import itertools
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

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

Index = tuple[int, ...]
Chunks = dict[Index, bytes]

BIG = 70_000
SOURCE_BYTES = bytes(range(256)) * 4


def key_of(index: Index) -> str:
    return "/".join(("a/c", *map(str, index)))


def chunks_of(session: Session, path: str = "a") -> Chunks:
    """Return the chunks of an array with the default encoding, by index."""
    found = {}
    for key, value in contents(session).items():
        head, _, tail = key.partition(f"{path}/c/")
        if not head and tail:
            found[tuple(map(int, tail.split("/")))] = value
    return found


def put_chunks(session: Session, chunks: Chunks) -> None:
    write(session, {key_of(index): data for index, data in chunks.items()})


def some_bytes(rng: np.random.Generator, size: int | None = None) -> bytes:
    """Return bytes that lie inline, in a pack with others, or (rarely) in one at once."""
    chosen = int(rng.choice([3, 40, 600, 3000])) if size is None else size
    return rng.bytes(chosen)


def shifted(chunks: Chunks, offset: Index, grid: Index) -> Chunks:
    moved = {tuple(i + o for i, o in zip(index, offset, strict=True)): data for index, data in chunks.items()}
    return {i: data for i, data in moved.items() if all(0 <= x < n for x, n in zip(i, grid, strict=True))}


def rolled(data: npt.NDArray[Any], cells: Index, fill: Any) -> npt.NDArray[Any]:
    """Return what np.roll does, with fill where it would wrap around."""
    result = np.full_like(data, fill)
    source = tuple(slice(max(-c, 0), max(n - max(c, 0), 0)) for c, n in zip(cells, data.shape, strict=True))
    target = tuple(slice(max(c, 0), max(n + min(c, 0), 0)) for c, n in zip(cells, data.shape, strict=True))
    result[target] = data[source]
    return result


# --- against numpy -------------------------------------------------------------------------------------------

FORMATS: dict[str, dict[str, Any]] = {
    "v3": {"zarr_format": 3},
    "v2": {"zarr_format": 2},
    "sharded": {"zarr_format": 3, "shards": True},
    "plain": {"zarr_format": 3, "compressors": None},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("shape", "chunks", "offsets"),
    [
        ((40,), (4,), [(1,), (-3,), (0,), (9,), (10,), (-10,), (10**6,)]),
        ((12, 20), (4, 4), [(1, 0), (0, -2), (-1, 3), (3, 5), (-2, -4), (2, -(2**70))]),
        ((8, 8, 8), (4, 2, 4), [(1, 0, 0), (0, -1, 1), (-1, 3, -1)]),
    ],
)
def test_a_shift_is_numpys_roll_with_fill(
    local: vstore.Repository, name: str, shape: Index, chunks: Index, offsets: list[Index]
) -> None:
    options = dict(FORMATS[name])
    unit = chunks
    if options.pop("shards", False):
        options["shards"] = chunks
        unit, chunks = chunks, tuple(2 for _ in chunks)
    data = np.arange(1, 1 + np.prod(shape), dtype="i4").reshape(shape)
    session = local.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=shape, chunks=chunks, dtype="i4", fill_value=-7, **options
    )
    array[...] = data
    session.commit("written")
    for offset in offsets:
        session = local.writable_session("main")
        session.shift_array("/a/", offset)
        expected = rolled(data, tuple(o * u for o, u in zip(offset, unit, strict=True)), -7)
        found = zarr.open_array(session.store, path="a", mode="r")
        np.testing.assert_array_equal(found[...], expected)
    session.commit("shifted", allow_empty=True)
    found = zarr.open_array(local.readonly_session("main").store, path="a", mode="r")
    np.testing.assert_array_equal(found[...], expected)
    assert check(local, data=True).is_clean


@pytest.mark.parametrize(
    "kwargs", [{"chunks": (4,)}, {"chunks": (2,), "shards": (4,)}, {"chunks": (4,), "zarr_format": 2}]
)
def test_an_edge_chunk_moves_whole(local: vstore.Repository, kwargs: dict[str, Any]) -> None:
    """What it holds beyond the array's edge is fill value, as zarr writes it, and shows when it moves inwards."""
    session = local.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(10,), dtype="u1", fill_value=255, **kwargs)
    array[...] = np.arange(10)
    session.shift_array("a", (-1,))
    assert array[...].tolist() == [4, 5, 6, 7, 8, 9, 255, 255, 255, 255]
    session.shift_array("a", (1,))
    assert array[...].tolist() == [255] * 4 + [4, 5, 6, 7, 8, 9]
    array.resize((12,))
    assert array[8:].tolist() == [8, 9, 255, 255]


def test_an_append_after_a_shift_goes_on_where_it_is_free(repository: vstore.Repository) -> None:
    """A window that slides over time: shift out the oldest, write the newest."""
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(8, 3), chunks=(2, 3), dtype="i4", fill_value=-1)
    model = np.full((8, 3), -1)
    for step in range(12):
        session.shift_array("a", (-1, 0))
        array[6:] = step
        model = rolled(model, (-2, 0), -1)
        model[6:] = step
        np.testing.assert_array_equal(array[...], model)
        if step % 3 == 2:
            session.commit(f"step {step}")
            assert check(repository, data=True).is_clean
            CACHE.clear()
            session = repository.writable_session("main")
            array = zarr.open_array(session.store, path="a", mode="r+")
            np.testing.assert_array_equal(array[...], model)


# --- chunks of every kind, tiles of every sort ---------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_pending_and_committed_chunks_move_alike(place: Place, tmp_path: Path, seed: int) -> None:
    """Chunks in the base, written over, deleted, equal to the base's, inline, stored, virtual: all at once."""
    (tmp_path / "source").write_bytes(SOURCE_BYTES)
    access = [tmp_path.as_uri() + "/"]
    rng = np.random.default_rng(seed)
    grid = (7, 5)

    def edit(session: Session, model: Chunks) -> None:
        for index in itertools.product(*map(range, grid)):
            choice = rng.integers(6)
            if choice == 0:
                model.pop(index, None)
                session.tree.delete(key_of(index))
            elif choice == 1:
                offset = int(rng.integers(500))
                session.store.set_virtual_refs_arr(
                    "a",
                    (1, 1),
                    [(tmp_path / "source").as_uri()],
                    np.array([offset]),
                    np.array([9]),
                    arr_offset=index,
                )
                model[index] = SOURCE_BYTES[offset : offset + 9]
            elif choice == 2 and index in model:
                put_chunks(session, {index: model[index]})
            elif choice in (3, 4):
                model[index] = some_bytes(rng, BIG if index == (3, 3) else None)
                put_chunks(session, {index: model[index]})

    with place.create(authorize_virtual_chunk_access=access) as repository:
        model: Chunks = {}
        session = repository.writable_session("main")
        write(session, {"a/zarr.json": array_document(grid)})
        for _ in range(3):
            edit(session, model)
            session.commit("edited")
            session = repository.writable_session("main")
            edit(session, model)
            assert chunks_of(session) == model
            for offset in [(1, -1), (-2, 0), (0, 1)]:
                session.shift_array("a", offset)
                model = shifted(model, offset, grid)
                assert chunks_of(session) == model
                assert session.totals("a") == (len(model), sum(map(len, model.values())), True)
            edit(session, model)
            assert chunks_of(session) == model
        session.commit("last")
        with place.open(authorize_virtual_chunk_access=access) as reopened:
            assert chunks_of(reopened.readonly_session("main")) == model
            assert check(reopened, data=True).is_clean


@pytest.mark.parametrize("is_committed", [False, True])
@pytest.mark.parametrize(
    ("grid", "offset"),
    [
        ((50_000,), (16_384,)),
        ((50_000,), (-20_000,)),
        ((300, 300), (7, -130)),
        ((300, 300), (-120, 200)),
        ((40, 40, 40), (-1, 20, 5)),
    ],
)
def test_chunks_cross_tiles(local: vstore.Repository, grid: Index, offset: Index, is_committed: bool) -> None:
    rng = np.random.default_rng(0)
    indices = {tuple(rng.integers(0, grid).tolist()) for _ in range(300)} | {tuple(n - 1 for n in grid)}
    indices |= {(0,) * len(grid)}
    model = {index: b"%d" % n for n, index in enumerate(sorted(indices))}
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document(grid)})
    put_chunks(session, model)
    if is_committed:
        session.commit("written")
        session = local.writable_session("main")
        half = dict(itertools.islice(((i, data + b"again") for i, data in model.items()), 0, None, 2))
        put_chunks(session, half)
        model |= half
    array = session.tree.nodes.node("a").array  # type: ignore[union-attr]
    assert any(n > e for n, e in zip(grid, array.extents, strict=True)), "there is more than one tile"
    session.shift_array("a", offset)
    expected = shifted(model, offset, grid)
    assert expected
    assert chunks_of(session) == expected
    session.commit("shifted")
    CACHE.clear()
    assert chunks_of(local.readonly_session("main")) == expected
    assert check(local, data=True).is_clean


def test_a_shift_after_shrinking_brings_nothing_back(local: vstore.Repository) -> None:
    commit(local, {"a/zarr.json": array_document((10,))} | {key_of((n,)): b"%d" % n for n in range(10)})
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document((4,))})
    write(session, {"a/zarr.json": array_document((8,)), key_of((7,)): b"new"})
    session.shift_array("a", (-2,))
    assert chunks_of(session) == {(0,): b"2", (1,): b"3", (5,): b"new"}
    session.shift_array("a", (2,))
    expected = {(2,): b"2", (3,): b"3", (7,): b"new"}
    assert chunks_of(session) == expected
    session.commit("shifted")
    assert chunks_of(local.readonly_session("main")) == expected


def test_there_and_back_is_no_change_but_for_what_fell_off(local: vstore.Repository) -> None:
    values = {"a/zarr.json": array_document((10,))} | {key_of((n,)): b"%d" % n * 300 for n in range(1, 9)}
    head = commit(local, values)
    session = local.writable_session("main")
    session.shift_array("a", (1,))
    session.shift_array("a", (-1,))
    session.shift_array("a", (0,))
    assert session.status().is_empty()
    assert session.commit("nothing") == head
    session = local.writable_session("main")
    session.shift_array("a", (2,))
    session.shift_array("a", (-2,))
    assert session.status().updated_chunks == {"/a": [(8,)]}


def test_a_shift_goes_with_a_move_and_a_discard(repository: vstore.Repository) -> None:
    commit(
        repository, {"a/zarr.json": array_document((4,))} | {key_of((n,)): b"%d" % n * 300 for n in range(4)}
    )
    session = repository.writable_session("main")
    session.shift_array("a", (1,))
    session.move("a", "b")
    session.shift_array("b", (1,))
    assert chunks_of(session, "b") == {(2,): b"0" * 300, (3,): b"1" * 300}
    session.discard_changes()
    assert chunks_of(session) == {(n,): b"%d" % n * 300 for n in range(4)}
    session.move("a", "b")
    session.shift_array("b", (-3,))
    session.commit("moved and shifted")
    assert chunks_of(repository.readonly_session("main"), "b") == {(0,): b"3" * 300}
    assert check(repository, data=True).is_clean


def test_a_shift_stores_no_chunk_again(local: vstore.Repository) -> None:
    commit(
        local, {"a/zarr.json": array_document((50,))} | {key_of((n,)): bytes([n]) * 5000 for n in range(50)}
    )

    def packs() -> int:
        return sum(info.size for info in local.handle.storage.list("packs/"))

    before = packs()
    session = local.writable_session("main")
    session.shift_array("a", (3,))
    session.commit("shifted")
    assert packs() - before < 50 * 100
    assert check(local, data=True).is_clean


@pytest.mark.parametrize(
    ("document", "spell"),
    [
        (array_document((6,), encoding="v2", separator="."), "a/{}"),
        (array_document((6,), separator="."), "a/c.{}"),
        (array_document_2((6,)), "a/{}"),
    ],
)
def test_keys_follow_the_arrays_own_spelling(local: vstore.Repository, document: bytes, spell: str) -> None:
    session = local.writable_session("main")
    name = "a/zarr.json" if b'"zarr_format": 3' in document else "a/.zarray"
    write(session, {name: document} | {spell.format(n): b"%d" % n for n in range(6)})
    session.shift_array("a", (4,))
    found = contents(session)
    del found[name]
    assert found == {spell.format(4): b"0", spell.format(5): b"1"}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_arrays_of_hardly_any_chunks(local: vstore.Repository, shape: Index) -> None:
    session = local.writable_session("main")
    write(
        session, {"a/zarr.json": array_document(shape, (1,) * len(shape))} | ({} if shape else {"a/c": b"x"})
    )
    before = contents(session)
    session.shift_array("a", (0,) * len(shape))
    session.reindex_array("a", lambda index: index)
    assert contents(session) == before
    session.reindex_array("a", lambda index: None)
    assert list(contents(session)) == ["a/zarr.json"]
    session.commit("shifted")
    assert check(local, data=True).is_clean


def test_many_chunks_move_as_columns(tmp_path: Path) -> None:
    """A shift of 100,000 chunks needs a few hundred bytes for each, not a Python object."""
    count = 100_000
    (tmp_path / "source").write_bytes(SOURCE_BYTES)
    access = [tmp_path.as_uri() + "/"]
    repository = Place.new("sqlite", tmp_path).create(authorize_virtual_chunk_access=access)
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((count,))})
    numbers = np.arange(count)
    session.store.set_virtual_refs_arr(
        "a", (count,), [(tmp_path / "source").as_uri()] * count, numbers % 1000, np.ones(count, "u4")
    )
    session.commit("references")
    session = repository.writable_session("main")
    assert session.totals("a").chunks == count
    calls = 0

    def count_call(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count_call)
    try:
        session.shift_array("a", (10,))
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert calls < count / 5, "calls follow the number of tiles, not of chunks"
    assert peak < 1000 * count
    assert session.totals("a").chunks == count - 10
    assert session.tree.read(key_of((10 + 7,))) == SOURCE_BYTES[7:8]
    assert session.tree.read(key_of((count - 1,))) == SOURCE_BYTES[(count - 11) % 1000 :][:1]
    assert session.tree.read(key_of((9,))) is None
    session.commit("shifted")
    CACHE.clear()
    reader = repository.readonly_session("main")
    assert reader.totals("a").chunks == count - 10
    assert reader.tree.read(key_of((99_999,))) == SOURCE_BYTES[(count - 11) % 1000 :][:1]
    assert check(repository).is_clean


# --- any renumbering -----------------------------------------------------------------------------------------


def start_chunks(grid: Index, seed: int) -> Chunks:
    rng = np.random.default_rng(seed)
    every = itertools.product(*map(range, grid))
    return {index: some_bytes(rng) for index in every if rng.integers(4)}


grids = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@given(st.data(), grids, st.integers(0, 100))
def test_any_renumbering_is_what_a_dict_does(data: st.DataObject, grid: Index, seed: int) -> None:
    places = list(itertools.product(*map(range, grid)))
    model = start_chunks(grid, seed)
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        session = repository.writable_session("main")
        write(session, {"a/zarr.json": array_document(grid)})
        put_chunks(session, model)
        if data.draw(st.booleans(), label="commit first"):
            session.commit("start")
            session = repository.writable_session("main")
        for _ in range(data.draw(st.integers(1, 3), label="steps")):
            order = dict(zip(places, data.draw(st.permutations(places)), strict=True))
            dropped = data.draw(st.sets(st.sampled_from(places)))
            inverse = {target: source for source, target in order.items()}
            session.reindex_array(
                "a",
                lambda index: None if index in dropped else order[index],  # noqa: B023
                data.draw(st.sampled_from([None, inverse.get])),
            )
            model = {order[index]: chunk for index, chunk in model.items() if index not in dropped}
            assert chunks_of(session) == model
            extra = data.draw(st.sampled_from(places))
            put_chunks(session, {extra: b"new"})
            model[extra] = b"new"
            assert chunks_of(session) == model
        session.commit("renumbered")
        CACHE.clear()
        assert chunks_of(repository.readonly_session("main")) == model
        assert check(repository, data=True).is_clean


def test_only_chunks_that_are_there_are_asked_for(local: vstore.Repository) -> None:
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document((9, 9))})
    put_chunks(session, {(1, 2): b"x", (8, 8): b"y"})
    asked: list[Index] = []

    def forward(index: Index) -> list[np.int64]:
        asked.append(index)
        return [np.int64(i) for i in reversed(index)]

    session.reindex_array("a", forward, lambda index: index[::-1])
    assert sorted(asked) == [(1, 2), (8, 8)]
    assert all(type(i) is int for index in asked for i in index)
    assert chunks_of(session) == {(2, 1): b"x", (8, 8): b"y"}


def test_a_place_that_nothing_moves_to_is_empty_afterwards(repository: vstore.Repository) -> None:
    """Even where only `forward` is given: no stale chunk stays behind."""
    commit(repository, {"a/zarr.json": array_document((4,))} | {key_of((n,)): b"%d" % n for n in range(4)})
    session = repository.writable_session("main")
    session.reindex_array("a", lambda index: (3,) if index == (0,) else None)
    assert chunks_of(session) == {(3,): b"0"}
    session.commit("renumbered")
    assert chunks_of(repository.readonly_session("main")) == {(3,): b"0"}


# --- what is refused -----------------------------------------------------------------------------------------


def raising(index: Index) -> Index:
    raise LookupError("from the caller's function")


REFUSED: dict[str, tuple[Callable[[Index], Any], Callable[[Index], Any] | None, str]] = {
    "the same index for all": (lambda i: (0, 0), None, "two chunks of '/a' would get the same index"),
    "a duplicate": (lambda i: (0, 0) if i == (1, 1) else i, None, "two chunks"),
    "one too many": (lambda i: (i[0] + 1, i[1]), None, r"chunk \(2, 0\) is outside the chunk grid \(2, 3\)"),
    "negative": (lambda i: (i[0], i[1] - 1), None, r"chunk \(0, -1\) is outside the chunk grid"),
    "very large": (lambda i: (i[0], 10**30), None, "outside the chunk grid"),
    "very small": (lambda i: (i[0], -(10**30)), None, "outside the chunk grid"),
    "too few dimensions": (lambda i: (i[0],), None, "give 2 ints"),
    "too many dimensions": (lambda i: (*i, 0), None, "give 2 ints"),
    "no dimensions": (lambda i: (), None, "give 2 ints"),
    "an int": (lambda i: 1, None, "give 2 ints"),
    "text": (lambda i: "00", None, "give 2 ints"),
    "floats": (lambda i: (0.0, 1.0), None, "give 2 ints"),
    "halves": (lambda i: (i[0], i[1] / 2), None, "give 2 ints"),
    "infinity": (lambda i: (float("inf"), 0), None, "give 2 ints"),
    "not a number": (lambda i: (float("nan"), 0), None, "give 2 ints"),
    "pairs": (lambda i: ((0, 1), (1, 0)), None, "give 2 ints"),
    "False": (lambda i: False, None, "give 2 ints"),
    "backward does not undo": (lambda i: i, lambda i: (i[0], 0), "one does not undo the other"),
    "backward drops": (lambda i: i, lambda i: None, "one does not undo the other"),
    "backward is no index": (lambda i: i, lambda i: 5, "give 2 ints"),
    "backward is far away": (lambda i: i, lambda i: (10**30, 0), "one does not undo the other"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_renumberings_that_are_refused_change_nothing(local: vstore.Repository, name: str) -> None:
    forward, backward, text = REFUSED[name]
    grid = (2, 3)
    model = {index: b"%d%d" % index * 400 for index in itertools.product(*map(range, grid))}
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document(grid)})
    put_chunks(session, model)
    session.commit("start")
    session = local.writable_session("main")
    put_chunks(session, {(0, 0): b"pending" * 100})
    model[0, 0] = b"pending" * 100
    edits = session.tree.mutations
    with pytest.raises(vstore.InvalidInputError, match=text):
        session.reindex_array("a", forward, backward)
    assert session.tree.mutations == edits
    assert chunks_of(session) == model


def test_an_error_of_the_callers_function_comes_out_and_changes_nothing(local: vstore.Repository) -> None:
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document((2,)), "a/c/0": b"x"})
    with pytest.raises(LookupError, match="the caller's function"):
        session.reindex_array("a", raising)
    with pytest.raises(LookupError, match="the caller's function"):
        session.reindex_array("a", lambda index: index, raising)
    assert chunks_of(session) == {(0,): b"x"}


@pytest.mark.parametrize(
    "offset", [5, None, "1", (1,), (1, 2, 3), (), (1.0, 2.0), (0.5, 0), ("1", "2"), (None, 1)]
)
def test_offsets_that_are_refused(local: vstore.Repository, offset: Any) -> None:
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document((2, 2)), "a/c/0/0": b"x"})
    with pytest.raises(vstore.InvalidInputError, match="give 2 ints"):
        session.shift_array("a", offset)
    assert chunks_of(session) == {(0, 0): b"x"}


@pytest.mark.parametrize("far", [2**62, 2**63 - 1, 2**63, 2**64, 10**30])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_beyond_all_numbers_drops_everything(local: vstore.Repository, far: int, sign: int) -> None:
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document((2, 2)), "a/c/0/0": b"x", "a/c/1/1": b"y"})
    session.shift_array("a", (0, sign * far))
    assert chunks_of(session) == {}


def with_grid(grid: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**json.loads(array_document((6,))), "chunk_grid": grid, **changes}).encode()


IRREGULAR = {
    "rectilinear": with_grid(
        {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[1, 2, 3]]}}
    ),
    "rectilinear, all alike": with_grid(
        {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [2]}}
    ),
    "an unknown grid": with_grid({"name": "honeycomb", "configuration": {}}),
    "an unknown encoding": with_grid(
        json.loads(array_document((6,)))["chunk_grid"], chunk_key_encoding={"name": "words"}
    ),
}

ACTS: list[Callable[[Session, str], None]] = [
    lambda session, path: session.shift_array(path, (1,)),
    lambda session, path: session.shift_array(path, (0,)),
    lambda session, path: session.reindex_array(path, lambda index: index),
]


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", IRREGULAR)
def test_grids_that_are_not_regular_are_refused(
    local: vstore.Repository, name: str, act: Callable[[Session, str], None]
) -> None:
    values = {"a/zarr.json": IRREGULAR[name], "a/c/0": b"x"}
    session = local.writable_session("main")
    write(session, values)
    with pytest.raises(vstore.InvalidInputError, match="'/a' can't change places"):
        act(session, "a")
    assert contents(session) == values


@pytest.mark.parametrize("act", ACTS)
def test_what_is_no_array_is_refused(local: vstore.Repository, act: Callable[[Session, str], None]) -> None:
    session = local.writable_session("main")
    values = {"zarr.json": GROUP, "g/zarr.json": GROUP, "g/a/zarr.json": array_document((2,)), "note": b"x"}
    write(session, values)
    for path in ("g", "/g/", "", "/"):
        with pytest.raises(vstore.InvalidInputError, match="is a group"):
            act(session, path)
    for path in ("none", "note", "g/none", "g/a/c/0"):
        with pytest.raises(vstore.NodeNotFoundError, match="there is no array"):
            act(session, path)
    session.move("g/a", "a")
    with pytest.raises(vstore.NodeNotFoundError, match="there is no array at '/g/a'"):
        act(session, "g/a")
    assert contents(session).keys() == {"zarr.json", "g/zarr.json", "a/zarr.json", "note"}


@pytest.mark.parametrize("act", ACTS)
def test_a_session_that_may_not_write_moves_no_chunks(
    local: vstore.Repository, act: Callable[[Session, str], None]
) -> None:
    commit(local, {"a/zarr.json": array_document((2,)), "a/c/0": b"x"})
    sessions = [
        local.readonly_session("main"),
        local.writable_session("main"),
        local.writable_session("main"),
    ]
    sessions[1].close()
    write(sessions[2], {"a/c/1": b"y"})
    sessions[2].commit("committed")
    for session in sessions:
        with pytest.raises(vstore.ReadOnlyError):
            act(session, "a")


def test_an_index_given_twice_is_found_in_whatever_tile(
    local: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles are looked at one after the other, and what was put before may be out of memory by then."""
    monkeypatch.setattr("vstore.worktree.reindexing._TILES_AT_ONCE", 1)
    monkeypatch.setattr("vstore.worktree.spilling.MAX_PENDING_BYTES", 1)
    monkeypatch.setattr("vstore.worktree.spilling.FEWEST_REFS", 1)
    session = local.writable_session("main")
    write(session, {"a/zarr.json": array_document((40_000,))})
    write(session, {key_of((n,)): b"%d" % n for n in (0, 7, 16_390, 33_000)})
    before = contents(session)
    with pytest.raises(vstore.InvalidInputError, match="same index"):
        session.reindex_array("a", lambda index: (7,) if index[0] > 33_000 - 1 else index)
    assert contents(session) == before
    session.reindex_array("a", lambda index: (39_999 - index[0],))
    assert contents(session) == {
        "a/zarr.json": before["a/zarr.json"],
        **{key_of((39_999 - n,)): b"%d" % n for n in (0, 7, 16_390, 33_000)},
    }
