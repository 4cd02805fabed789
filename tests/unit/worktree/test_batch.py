"""Many chunks in one call: the same as one by one, by fewer look-ups, reads and locks."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vstore
from tests.repositories import GROUP, Place, array_document, array_document_2, contents, quick_folder, write
from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.errors import CorruptionError, MissingBlobError
from vstore.ids import BytesLike
from vstore.session import Session
from vstore.worktree.batch import writing
from vstore.worktree.batch.keys import locate
from vstore.worktree.batch.reading import plan_reads
from vstore.worktree.batch.writing import set_many

CONFIG = vstore.RepositoryConfig(inline_chunk_threshold_bytes=8)
"""Chunks of up to 8 bytes lie in manifests."""


@pytest.fixture
def session(place: Place) -> Iterator[Session]:
    with place.create(config=CONFIG) as repository:
        session = repository.writable_session("main")
        write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((50, 3))})
        yield session


def keys_of(rows: range, columns: range = range(3)) -> list[str]:
    return [f"a/c/{row}/{column}" for row in rows for column in columns]


def read(session: Session, keys: list[str], **options: Any) -> list[bytes | None]:
    found: dict[int, bytes | None] = {}
    for task in plan_reads(session.tree, keys, **options):
        for row, data in task:
            assert row not in found
            found[row] = None if data is None else bytes(data)
    assert sorted(found) == list(range(len(keys)))
    return [found[row] for row in range(len(keys))]


def chunk(number: int, length: int = 20) -> bytes:
    return number.to_bytes(4, "little") + bytes(length - 4)


def reopened(session: Session, place: Place) -> Session:
    session.commit("chunks")
    return place.open().writable_session("main")


# --- reading -------------------------------------------------------------------------------------------------


def test_all_kinds_of_chunks_are_read(session: Session, place: Place) -> None:
    keys = keys_of(range(50))
    stored = {key: chunk(row, 600) for row, key in enumerate(keys[:60])}
    inline = {key: chunk(row, 8) for row, key in enumerate(keys[60:90])}
    write(session, stored | inline)
    expected = [*stored.values(), *inline.values(), *[None] * 60]
    assert read(session, keys) == expected
    session = reopened(session, place)
    for _ in range(2):
        assert read(session, keys) == expected
    write(session, {keys[0]: chunk(1000, 600), keys[61]: chunk(1001, 8), keys[100]: chunk(1002, 600)})
    write(session, {keys[1]: stored[keys[1]], keys[62]: inline[keys[62]]})
    for key in (keys[2], keys[63]):
        session.tree.delete(key)
    expected[0], expected[61], expected[100] = chunk(1000, 600), chunk(1001, 8), chunk(1002, 600)
    expected[2] = expected[63] = None
    assert read(session, keys) == expected
    assert read(session, keys[::-1]) == expected[::-1]
    assert read(session, [*keys, *keys]) == [*expected, *expected]


def test_chunks_of_several_layers_and_tombstones_are_read(session: Session, place: Place) -> None:
    keys = keys_of(range(50))
    expected: list[bytes | None] = [None] * len(keys)
    for number in range(4):
        for row in range(number, len(keys), 2**number):
            expected[row] = chunk(1000 * number + row)
        write(session, {key: data for key, data in zip(keys, expected, strict=True) if data is not None})
        for row in range(number, len(keys), 7):
            session.tree.delete(keys[row])
            expected[row] = None
        session = reopened(session, place)
        assert read(session, keys) == expected


def test_what_a_smaller_or_recreated_array_hides_is_absent(session: Session, place: Place) -> None:
    keys = keys_of(range(50))
    write(session, {key: chunk(row) for row, key in enumerate(keys)})
    session = reopened(session, place)
    write(session, {"a/zarr.json": array_document((20, 3))})
    write(session, {"a/zarr.json": array_document((50, 3)), keys[149]: chunk(7)})
    expected = [chunk(row) for row in range(60)] + [None] * 89 + [chunk(7)]
    assert read(session, keys) == expected
    session.tree.delete_folder("a")
    write(session, {"a/zarr.json": array_document((50, 3)), keys[3]: chunk(3), keys[4]: chunk(8)})
    assert read(session, keys) == [None, None, None, chunk(3), chunk(8), *[None] * 145]


def test_adopted_values_and_moved_chunks_are_read(session: Session, place: Place) -> None:
    write(session, {f"b/{number}": chunk(number, 9000 + number) for number in range(10)})
    session = reopened(session, place)
    write(session, {"b/.zarray": array_document_2((10,), "/")})
    assert read(session, [f"b/{number}" for number in range(10)]) == [chunk(n, 9000 + n) for n in range(10)]


def test_virtual_chunks_are_read(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(range(200)))
    folder = f"file://{tmp_path}/"
    with vstore.Repository.create(tmp_path / "r", authorize_virtual_chunk_access=[folder]) as repository:
        session = repository.writable_session("main")
        write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((10,), (20,))})
        write(session, {"a/zarr.json": array_document((200,), (20,))})
        offsets = np.arange(0, 200, 20, dtype=np.uint64)
        lengths = np.full(10, 20, np.uint64)
        session.store.set_virtual_refs_arr("a", (10,), [f"{folder}source"] * 10, offsets, lengths)
        keys = [f"a/c/{number}" for number in range(10)]
        expected = [bytes(range(20 * n, 20 * n + 20)) for n in range(10)]
        assert read(session, keys) == expected
        session.commit("virtual")
        session = repository.writable_session("main")
        write(session, {keys[4]: b"stored"})
        expected[4] = b"stored"
        assert read(session, keys) == expected
        os.remove(tmp_path / "source")
        with pytest.raises(vstore.VirtualChunkError):
            read(session, keys)


def test_neighbours_come_in_one_read_and_runs_are_bounded(
    session: Session, place: Place, monkeypatch: Any
) -> None:
    keys = keys_of(range(50))
    set_many(session.tree, keys, [chunk(row, 1000) for row in range(150)])
    session = reopened(session, place)
    plan_reads(session.tree, keys)  # reads pages and manifests
    requests: list[int] = []
    storage = session.tree.blobs.storage
    original = type(storage).read

    def counted(self: Any, name: str, offset: int, length: int) -> memoryview:
        requests.append(length)
        return original(self, name, offset, length)

    monkeypatch.setattr(type(storage), "read", counted)
    assert read(session, keys) == [chunk(row, 1000) for row in range(150)]
    assert requests == [150_000]
    requests.clear()
    if not storage.is_local:
        assert read(session, keys) == [chunk(row, 1000) for row in range(150)]
        assert requests == []  # they are kept
        CACHE.clear()
        plan_reads(session.tree, keys)
        requests.clear()
    assert read(session, keys, run_bytes=10_000) == [chunk(row, 1000) for row in range(150)]
    assert len(requests) == 15
    assert max(requests) <= 11_000


def test_a_digest_is_checked_once_on_a_local_disk(monkeypatch: Any) -> None:
    with quick_folder() as folder, Place.new("sqlite", folder).create(config=CONFIG) as repository:
        session = repository.writable_session("main")
        write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((50, 3))})
        keys = keys_of(range(50))
        set_many(session.tree, keys, [chunk(row, 1000) for row in range(150)])
        session.commit("chunks")
        session = repository.readonly_session("main")
        checked: list[int] = []
        from vstore.blobs import runs

        digest = runs.blake3_digest
        monkeypatch.setattr(runs, "blake3_digest", lambda data: checked.append(1) or digest(data))
        read(session, keys[:100])
        assert len(checked) == 100
        read(session, keys)
        assert len(checked) == 150
        # Single reads know it too.
        monkeypatch.setattr(BlobReader, "_verified", None)
        assert session.tree.read(keys[7]) == chunk(7, 1000)


# --- damage --------------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Iterator[tuple[Session, list[str], Path]]:
    """Ten chunks of 1,000 bytes in a pack, read by nobody yet."""
    with vstore.Repository.create(tmp_path / "r") as repository:
        session = repository.writable_session("main")
        write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((50, 3))})
        keys = keys_of(range(50))[:10]
        set_many(session.tree, keys, [chunk(row + 1, 1000) for row in range(10)])
        session.commit("chunks")
    pack = max((tmp_path / "r/packs").glob("*/*"), key=lambda path: path.stat().st_size)
    with vstore.Repository.open(tmp_path / "r") as repository:
        session = repository.readonly_session("main")
        session.tree.find(keys[0])
        yield session, keys, pack


def test_a_damaged_chunk_raises_with_its_name(packed: tuple[Session, list[str], Path]) -> None:
    session, keys, pack = packed
    data = bytearray(pack.read_bytes())
    data[data.index(chunk(8, 1000)) + 500] ^= 1
    pack.write_bytes(data)
    with pytest.raises(CorruptionError, match=f"key '{keys[7]}' is damaged"):
        read(session, keys)
    assert read(session, keys[:7]) == [chunk(row + 1, 1000) for row in range(7)]


def test_a_missing_pack_raises_with_a_chunks_name(packed: tuple[Session, list[str], Path]) -> None:
    session, keys, pack = packed
    session.tree.blobs.storage.close()
    pack.unlink()
    with pytest.raises(MissingBlobError, match="key 'a/c/0/0' is missing"):
        read(session, keys)


def test_a_pack_that_was_cut_raises_with_a_chunks_name(packed: tuple[Session, list[str], Path]) -> None:
    session, keys, pack = packed
    with pack.open("r+b") as file:
        file.truncate(pack.read_bytes().index(chunk(6, 1000)) + 3)
    with pytest.raises(CorruptionError, match=f"key '{keys[5]}'"):
        read(session, keys)


# --- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "odd",
    [
        "a/c/0",
        "a/c/0/0/0",
        "a/c/00/1",
        "a/c/+1/1",
        "a/c/1_0/1",
        "a/c/٣/1",
        "a/c/-1/1",
        "a/c/ 1/1",
        "a/c/50/1",
        "a/c/1/3",
        "a/c/99999999999999999999/1",
        "a/d/1/1",
        "b/c/1/1",
        "a/zarr.json",
        "a/c/3/1",
    ],
)
def test_batches_with_odd_keys_go_one_by_one(session: Session, odd: str) -> None:
    keys = [*keys_of(range(5)), odd]
    assert locate(session.tree, keys_of(range(5))) is not None
    assert locate(session.tree, keys) is None
    write(session, {"b/c/1/1": b"a value of its own", keys[4]: chunk(4)})
    assert read(session, keys) == [session.tree.read(key) for key in keys]


def test_an_array_below_another_keeps_its_own_chunks(session: Session) -> None:
    write(session, {"o/c/zarr.json": array_document((4, 2), encoding="v2", separator="/")})
    write(session, {"o/zarr.json": array_document((50, 3))})
    keys = [f"o/c/{row}/{column}" for row in (7, 0, 1, 2, 3, 4) for column in range(2)]
    values = [chunk(row) for row in range(12)]
    assert locate(session.tree, keys) is None
    set_many(session.tree, keys, values)
    assert read(session, keys) == values
    inner = session.tree.nodes.node("o/c")
    assert inner is not None
    assert inner.array is not None
    assert len(inner.array.pending[inner.array.locate((0, 0))[0]]) == 8


@pytest.mark.parametrize("separator", ["/", "."])
@pytest.mark.parametrize("encoding", ["default", "v2"])
def test_every_chunk_key_encoding_is_understood(session: Session, encoding: str, separator: str) -> None:
    write(session, {"x/zarr.json": array_document((4, 5, 6), encoding=encoding, separator=separator)})
    leading = f"c{separator}" if encoding == "default" else ""
    keys = [f"x/{leading}{separator.join(map(str, i))}" for i in np.ndindex(4, 5, 6)]
    located = locate(session.tree, keys)
    assert located is not None
    assert located.indices.tolist() == [list(i) for i in np.ndindex(4, 5, 6)]
    set_many(session.tree, keys, [chunk(row) for row in range(120)])
    assert [session.tree.read(key) for key in keys] == [chunk(row) for row in range(120)]


def test_an_array_at_the_root_is_understood(local: vstore.Repository) -> None:
    session = local.writable_session("main")
    write(session, {"zarr.json": array_document((30,))})
    keys = [f"c/{number}" for number in range(30)]
    assert locate(session.tree, keys) is not None
    set_many(session.tree, keys, [chunk(row) for row in range(30)])
    assert read(session, keys) == [chunk(row) for row in range(30)]


def test_many_tiles_are_sorted_out(local: vstore.Repository) -> None:
    session = local.writable_session("main")
    write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((1, 1))})
    write(session, {"a/zarr.json": array_document((40_000, 3))})
    rows = [39_999, 0, 16_384, 16_383, 20_000, 7, 32_768]
    keys = [f"a/c/{row}/{column}" for column in (2, 0) for row in rows]
    located = locate(session.tree, keys)
    assert located is not None
    assert len(located.parts) > 4
    set_many(session.tree, keys, [chunk(row) for row in range(14)])
    assert [session.tree.read(key) for key in keys] == [chunk(row) for row in range(14)]
    session.commit("far apart")
    assert read(local.readonly_session("main"), keys) == [chunk(row) for row in range(14)]


def test_manifests_of_many_tiles_are_fetched_at_once_where_that_helps() -> None:
    with quick_folder() as folder:
        place = Place.new("memory", folder)
        with place.create(config=CONFIG) as repository:
            session = repository.writable_session("main")
            write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((1, 1))})
            write(session, {"a/zarr.json": array_document((40_000, 1))})
            keys = [f"a/c/{row}/0" for row in range(0, 40_000, 5_000)]
            set_many(session.tree, keys, [chunk(row) for row in range(8)])
            session.commit("far apart")
        with place.open() as repository:
            session = repository.readonly_session("main")
            asked: list[bytes] = []

            def at_once(function: Any, parts: Any) -> None:
                for part in parts:
                    asked.append(part.key)
                    assert function(part) is not None

            tasks = plan_reads(session.tree, keys, at_once=at_once)
            assert len(asked) == len(set(asked)) == 3
            found = {row: data for task in tasks for row, data in task}
            assert [found[row] for row in range(8)] == [chunk(row) for row in range(8)]


# --- writing -------------------------------------------------------------------------------------------------


def test_what_equals_the_base_is_no_change(session: Session, place: Place) -> None:
    keys = keys_of(range(20))
    values: list[BytesLike | None] = [chunk(row, 8 if row % 2 else 600) for row in range(60)]
    set_many(session.tree, keys, values)
    session = reopened(session, place)
    snapshot = session.snapshot_id
    read(session, keys)
    set_many(session.tree, keys, values)
    assert session.status().is_empty
    assert session.commit("nothing new") == snapshot
    session = place.open().writable_session("main")
    values[10] = chunk(99, 600)
    read(session, keys)
    set_many(session.tree, keys, values)
    assert sum(tile.changed for tile in session.tree.nodes.node("a").array.pending.values()) == 1  # type: ignore[union-attr]
    assert read(session, keys) == values


def test_a_tile_that_is_not_cached_is_not_fetched_for_comparing_on_an_object_store(monkeypatch: Any) -> None:
    with quick_folder() as folder:
        place = Place.new("memory", folder)
        with place.create(config=CONFIG) as repository:
            session = repository.writable_session("main")
            write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((50, 3))})
            keys = keys_of(range(20))
            set_many(session.tree, keys, [chunk(row, 600) for row in range(60)])
            session.commit("chunks")
        with place.open() as repository:
            session = repository.writable_session("main")
            session.tree.route(keys[0])
            monkeypatch.setattr(BlobReader, "manifest", None)
            set_many(session.tree, keys, [chunk(row, 600) for row in range(60)])


def test_equal_bytes_are_stored_once(session: Session) -> None:
    keys = keys_of(range(20))
    data = os.urandom(5000)
    session.tree.set(keys[0], data)
    set_many(session.tree, keys, [data, *[os.urandom(5000)] * 59])
    tree = session.tree
    routes = [tree.route(key) for key in keys]
    slots = {route.array.find(route.at, tree.dictionaries).slot for route in routes}  # type: ignore[union-attr]
    assert len(slots) == 2


def test_values_may_be_reused_after_the_call(session: Session) -> None:
    keys = keys_of(range(20))
    for length in (8, 600, 5000):
        values = [bytearray(chunk(row, length)) for row in range(60)]
        set_many(session.tree, keys, values)
        for value in values:
            value[:] = bytes(length)
        assert read(session, keys) == [chunk(row, length) for row in range(60)]


def test_what_is_replaced_is_let_go_of(local: vstore.Repository) -> None:
    session = local.writable_session("main")
    write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((50, 3))})
    keys = keys_of(range(10))
    gone = [os.urandom(1000) for _ in keys]
    set_many(session.tree, keys, gone)
    set_many(session.tree, keys[:15], [None] * 15)
    set_many(session.tree, keys[15:], [b"inline"] * 15)
    session.commit("only little chunks")
    assert sum(pack.size for pack in local._handle.storage.list("packs/")) < 10_000


def test_an_empty_value_is_refused_by_its_name(session: Session) -> None:
    keys = keys_of(range(4))
    with pytest.raises(vstore.InvalidInputError, match="'a/c/2/1' can't be stored with no bytes"):
        set_many(session.tree, keys, [b"x"] * 7 + [b""] + [b"x"] * 4)


def test_deleting_what_is_absent_is_no_edit(session: Session, place: Place) -> None:
    session.commit("an array")
    session = place.open().writable_session("main")
    set_many(session.tree, keys_of(range(10)), [None] * 30)
    assert not session.has_uncommitted_changes
    session.tree.set("a/c/3/0", chunk(1))
    set_many(session.tree, keys_of(range(10)), [None] * 30)
    assert read(session, keys_of(range(10))) == [None] * 30


def test_large_sets_are_made_in_parts(local: vstore.Repository, monkeypatch: Any) -> None:
    session = local.writable_session("main")
    write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((50, 3))})
    puts: list[int] = []
    put_many = session.tree.writer.put_many

    def counted(blobs: Any, digests: Any) -> list[int]:
        puts.append(sum(map(len, blobs)))
        return put_many(blobs, digests)

    monkeypatch.setattr(session.tree.writer, "put_many", counted)
    monkeypatch.setattr(writing, "MAX_SET_BYTES", 20_000)
    keys = keys_of(range(50))
    set_many(session.tree, keys, [chunk(row, 1000) for row in range(150)])
    assert puts == [20_000] * 7 + [10_000]
    assert read(session, keys) == [chunk(row, 1000) for row in range(150)]


def test_a_closed_session_takes_nothing(session: Session) -> None:
    keys = keys_of(range(10))
    session.tree.closed = "it is being committed"
    for values in ([chunk(row) for row in range(30)], [b"inline"] * 30):
        with pytest.raises(vstore.SessionStateError, match="being committed"):
            set_many(session.tree, keys, values)
    session.tree.closed = None
    assert read(session, keys) == [None] * 30


def test_an_array_replaced_meanwhile_gets_the_chunks_of_the_new_one(
    session: Session, monkeypatch: Any
) -> None:
    keys = keys_of(range(10))
    tree = session.tree
    put_many = tree.writer.put_many

    def replaced(blobs: Any, digests: Any) -> list[int]:
        slots = put_many(blobs, digests)
        tree.delete_folder("a")
        write(session, {"a/zarr.json": array_document((50, 3), dtype="int16")})
        return slots

    monkeypatch.setattr(tree.writer, "put_many", replaced)
    set_many(tree, keys, [chunk(row) for row in range(30)])
    monkeypatch.undo()
    assert read(session, keys) == [chunk(row) for row in range(30)]
    session.commit("the new array's")


def test_chunks_outside_a_grid_that_shrank_meanwhile_are_refused(session: Session, monkeypatch: Any) -> None:
    keys = keys_of(range(10))
    tree = session.tree
    put_many = tree.writer.put_many

    def shrunk(blobs: Any, digests: Any) -> list[int]:
        write(session, {"a/zarr.json": array_document((4, 3))})
        return put_many(blobs, digests)

    monkeypatch.setattr(tree.writer, "put_many", shrunk)
    with pytest.raises(vstore.InvalidInputError, match="outside the chunk grid"):
        set_many(tree, keys, [chunk(row) for row in range(30)])
    monkeypatch.undo()
    assert read(session, keys[:12]) == [chunk(row) for row in range(12)]
    assert set(contents(session)) == {"zarr.json", "a/zarr.json", *keys[:12]}


def test_an_array_that_went_meanwhile_leaves_plain_values(session: Session, monkeypatch: Any) -> None:
    keys = keys_of(range(10))
    tree = session.tree
    put_many = tree.writer.put_many
    monkeypatch.setattr(
        tree.writer, "put_many", lambda blobs, digests: [put_many(blobs, digests), tree.delete_folder("a")][0]
    )
    set_many(tree, keys, [chunk(row) for row in range(30)])
    monkeypatch.undo()
    assert contents(session) == {"zarr.json": GROUP} | dict(zip(keys, map(chunk, range(30)), strict=True))


def test_threads_write_and_read_one_array(session: Session) -> None:
    def work(number: int) -> None:
        keys = keys_of(range(number * 12, number * 12 + 12))
        for turn in range(15):
            values = [chunk(number * 1000 + turn, (8, 600, 70_000)[turn % 3]) for _ in keys]
            set_many(session.tree, keys, values)
            assert read(session, keys) == values

    errors: list[BaseException] = []

    def caught(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=caught, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    expected = [chunk(number * 1000 + 14, 70_000) for number in range(4) for _ in range(36)]
    assert read(session, keys_of(range(48))) == expected


# --- the same as one by one ----------------------------------------------------------------------------------

_VALUE = st.one_of(
    st.none(),
    st.integers(0, 3).map(lambda number: chunk(number, 8)),
    st.integers(0, 3).map(lambda number: chunk(number, 30)),
)
_EDIT = st.dictionaries(st.tuples(st.integers(0, 11), st.integers(0, 2)), _VALUE, min_size=1, max_size=30)
_STEP = st.one_of(
    _EDIT.map(lambda edit: ("set", edit)),
    st.just(("commit", None)),
    st.integers(1, 12).map(lambda rows: ("resize", rows)),
    st.just(("recreate", None)),
)


@settings(max_examples=40)
@given(st.lists(_STEP, min_size=1, max_size=8))
def test_batches_do_what_single_calls_do(steps: list[Any]) -> None:
    with quick_folder() as folder:
        places = [Place.new("sqlite", folder / name) for name in ("single", "batch")]
        repositories = [place.create(config=CONFIG) for place in places]
        sessions = [repository.writable_session("main") for repository in repositories]
        for session in sessions:
            write(session, {"zarr.json": GROUP, "a/zarr.json": array_document((12, 3))})
        rows = 12
        for act, argument in steps:
            if act == "set":
                keys = [f"a/c/{i}/{j}" for i, j in argument if i < rows]
                values = [value for (i, _), value in argument.items() if i < rows]
                for key, value in zip(keys, values, strict=True):
                    sessions[0].tree.delete(key) if value is None else sessions[0].tree.set(key, value)
                set_many(sessions[1].tree, keys, values)
            elif act == "commit":
                for number, session in enumerate(sessions):
                    if session.has_uncommitted_changes:
                        session.commit("a step")
                    sessions[number] = repositories[number].writable_session("main")
            else:
                rows = argument if act == "resize" else rows
                for session in sessions:
                    if act == "recreate":
                        session.tree.delete_folder("a")
                    write(session, {"a/zarr.json": array_document((rows, 3))})
            assert contents(sessions[0]) == contents(sessions[1])
            assert sessions[0].has_uncommitted_changes == sessions[1].has_uncommitted_changes
            keys = keys_of(range(rows))
            assert read(sessions[1], keys) == [sessions[0].tree.read(key) for key in keys]
        for repository in repositories:
            repository.close()
