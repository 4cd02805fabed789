"""Keys and bytes through the store: which key is what, what is listed, what is read, against a MemoryStore."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

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
from vstore.format.refs import CHECK_BLOCK_BYTES
from vstore.ids import blake3_digest
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage

T = TypeVar("T")
PROTOTYPE = default_buffer_prototype()


# The log catalog is the one in memory; which catalog it is makes no difference to keys.
@pytest.fixture(params=["sqlite", "memory"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with quick_folder() as folder:
        yield Place.new(request.param, folder)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        yield repository


@pytest.fixture
def session(repository: vstore.Repository) -> Session:
    return repository.writable_session("main")


@pytest.fixture
def twin(repository: vstore.Repository) -> Iterator[Twin]:
    twin = Twin(repository)
    yield twin
    twin.compare()
    twin.commit()
    twin.compare()
    assert check(repository, data=True).damages == []


def to_buffer(data: bytes) -> Buffer:
    return PROTOTYPE.buffer.from_bytes(data)


async def collect(items: AsyncIterator[T]) -> list[T]:
    return [item async for item in items]


def get(store: Store, key: str, byte_range: Any = None) -> bytes | None:
    found = sync(store.get(key, PROTOTYPE, byte_range))
    return None if found is None else found.to_bytes()


def list_dir(store: Store, folder: str) -> list[str]:
    return sorted(sync(collect(store.list_dir(folder))))


class Twin:
    """A session's store, and a MemoryStore that gets the same calls and says what the answers should be."""

    def __init__(self, repository: vstore.Repository) -> None:
        self.repository = repository
        self.session = repository.writable_session("main")
        self.model = MemoryStore()

    @property
    def stores(self) -> tuple[Store, Store]:
        return self.session.store, self.model

    @property
    def keys(self) -> set[str]:
        return set(self.model._store_dict)

    def set(self, key: str, data: bytes) -> None:
        for store in self.stores:
            sync(store.set(key, to_buffer(data)))

    def set_all(self, values: dict[str, bytes]) -> None:
        sync(self._set_all(values))

    async def _set_all(self, values: dict[str, bytes]) -> None:
        for store in self.stores:
            for key, data in values.items():
                await store.set(key, to_buffer(data))

    def delete(self, key: str) -> None:
        for store in self.stores:
            sync(store.delete(key))

    def delete_dir(self, folder: str) -> None:
        for store in self.stores:
            sync(store.delete_dir(folder))

    def commit(self) -> None:
        """Commit, if anything was written, and go on in a new session that has nothing cached."""
        self.session.commit("a commit", allow_empty=True)
        self.session = self.repository.writable_session("main")

    def compare(self) -> None:
        """Check that both stores give the same answers."""
        sync(self._compare())

    async def _compare(self) -> None:
        store, model = self.stores
        listed = await collect(store.list())
        assert sorted(listed) == sorted(self.keys)
        for key in listed:
            found, expected = await store.get(key, PROTOTYPE), await model.get(key, PROTOTYPE)
            assert found is not None, f"{key} is listed but not there"
            assert expected is not None
            assert found.to_bytes() == expected.to_bytes(), key
            assert await store.getsize(key) == len(expected), key
            assert await store.exists(key), key
        folders = {""} | {"/".join(parts[:n]) for parts in map(_parts, self.keys) for n in range(len(parts))}
        for folder in folders | {"absent", "a", "a/c", "a/c/1"}:
            await self._compare_folder(folder)
        for prefix in folders | {"a", "a/", "a/c/1", "absent", "zar", "g"}:
            expected_keys = sorted(key for key in self.keys if key.startswith(prefix))
            assert sorted(await collect(store.list_prefix(prefix))) == expected_keys, prefix

    async def _compare_folder(self, folder: str) -> None:
        store, model = self.stores
        below = [key for key in self.keys if key.startswith(f"{folder}/" if folder else "")]
        names = sorted(await collect(store.list_dir(folder)))
        assert names == sorted(await collect(model.list_dir(folder))), folder
        assert await store.is_empty(folder) == (not below), folder
        sizes = [await model.getsize(key) for key in below]
        assert await store.getsize_prefix(folder) == sum(sizes), folder


def _parts(key: str) -> list[str]:
    return key.split("/")


# --- chunk keys of every encoding ----------------------------------------------------------------------------

ENCODINGS = [("default", "/"), ("default", "."), ("v2", "."), ("v2", "/")]


@pytest.mark.parametrize(("name", "separator"), ENCODINGS)
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 1, 2, 1, 3)], ids=str)
def test_v3_arrays_with_every_encoding(twin: Twin, name: str, separator: str, shape: tuple[int, ...]) -> None:
    values = np.arange(int(np.prod(shape)), dtype="i4").reshape(shape) + 1
    for store in twin.stores:
        array = zarr.create_array(
            store,
            name="g/a",
            shape=shape,
            chunks=(1,) * len(shape),
            dtype="i4",
            chunk_key_encoding={"name": name, "separator": separator},
        )
        array[...] = values
    assert len(twin.keys) >= 1 + values.size
    twin.compare()
    twin.commit()
    np.testing.assert_array_equal(zarr.open_array(twin.session.store, path="g/a", mode="r")[...], values)


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 1, 2, 1, 3)], ids=str)
def test_v2_arrays_with_both_separators(twin: Twin, separator: str, shape: tuple[int, ...]) -> None:
    values = np.arange(int(np.prod(shape)), dtype="i4").reshape(shape) + 1
    for store in twin.stores:
        group = zarr.open_group(store, mode="w", zarr_format=2)
        array = group.create_array(
            "a",
            shape=shape,
            chunks=(1,) * len(shape),
            dtype="i4",
            chunk_key_encoding={"name": "v2", "separator": separator},
        )
        array[...] = values
        array.attrs["units"] = "m"
    twin.compare()
    twin.commit()
    np.testing.assert_array_equal(zarr.open_array(twin.session.store, path="a", mode="r")[...], values)


def test_an_array_at_the_root(twin: Twin) -> None:
    twin.set_all({"zarr.json": array_document((2, 3)), "c/0/0": b"x", "c/1/2": b"y"})


def test_arrays_that_are_neighbours_by_name(twin: Twin) -> None:
    for path in ("a", "a.b", "a-b", "ab", "a/b", "a0"):
        twin.set_all({f"{path}/zarr.json": array_document((2,)), f"{path}/c/0": path.encode()})
    twin.delete_dir("a")
    twin.compare()
    assert "ab/c/0" in twin.keys


def test_large_chunk_indices(twin: Twin) -> None:
    twin.set_all({"a/zarr.json": array_document((10**15, 3)), f"a/c/{10**15 - 1}/2": b"x", "a/c/0/0": b"y"})


def test_many_tiles(twin: Twin) -> None:
    """More tiles than a node lists itself."""
    twin.set("a/zarr.json", array_document((10**6, 10**6)))
    for n in range(40):
        twin.set(f"a/c/{n * 20_011 % 10**6}/{n * 7_919 % 10**6}", b"%d" % n)
    twin.compare()
    twin.commit()
    twin.delete(f"a/c/{20_011}/{7_919}")
    twin.set("a/c/5/5", b"new")


# --- what is no chunk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "separator", "keys"),
    [
        ("default", "/", ["c/0", "c/0/0/0"]),
        ("default", ".", ["c.0", "c.0.0.0"]),
        ("v2", "/", ["0", "0/0/0"]),
        ("v2", ".", ["0", "0.0.0"]),
    ],
)
def test_a_chunk_key_with_a_wrong_number_of_dimensions_is_refused(
    twin: Twin, name: str, separator: str, keys: list[str]
) -> None:
    twin.set("a/zarr.json", array_document((2, 2), encoding=name, separator=separator))
    for key in keys:
        with pytest.raises(vstore.InvalidInputError, match="should have 2 chunk indices"):
            sync(twin.session.store.set(f"a/{key}", to_buffer(b"x")))
        twin.delete(f"a/{key}")
        assert get(twin.session.store, f"a/{key}") is None


@pytest.mark.parametrize("key", ["c/2/0", "c/0/2", "c/99/99", f"c/{10**17}/0"])
def test_a_chunk_outside_the_grid_is_refused(twin: Twin, key: str) -> None:
    twin.set("a/zarr.json", array_document((3, 4), (2, 2)))
    with pytest.raises(vstore.InvalidInputError, match="outside the chunk grid"):
        sync(twin.session.store.set(f"a/{key}", to_buffer(b"x")))
    twin.delete(f"a/{key}")
    assert get(twin.session.store, f"a/{key}") is None


def test_a_chunk_of_an_array_without_chunks_is_refused(twin: Twin) -> None:
    twin.set("a/zarr.json", array_document((0, 4), (2, 2)))
    with pytest.raises(vstore.InvalidInputError, match="outside the chunk grid"):
        sync(twin.session.store.set("a/c/0/0", to_buffer(b"x")))


def test_a_chunk_of_no_bytes_is_refused(twin: Twin) -> None:
    twin.set_all({"a/zarr.json": array_document((3,)), "a/c/0": b"x"})
    with pytest.raises(vstore.InvalidInputError, match="no bytes"):
        sync(twin.session.store.set("a/c/0", to_buffer(b"")))
    assert get(twin.session.store, "a/c/0") == b"x"


def test_a_value_of_no_bytes_is_a_value(twin: Twin) -> None:
    twin.set_all({"empty": b"", "a/zarr.json": array_document((3,)), "a/empty": b""})


@pytest.mark.parametrize("index", ["01", "+1", "-1", "1.0", "1_0", "0x1", " 1", "²", "\u0661", "1" * 30])
def test_an_index_that_is_not_spelt_as_zarr_does_is_a_plain_value(twin: Twin, index: str) -> None:
    twin.set_all({"a/zarr.json": array_document((30,)), "a/c/1": b"chunk", f"a/c/{index}": b"value"})
    twin.compare()
    twin.delete("a/c/1")


def test_plain_values_anywhere(twin: Twin) -> None:
    values = {
        "README": b"r",
        "g/x/y/z": b"deep",
        "a/notes.txt": b"n",
        "a/c/x": b"1",
        "a/c/0/x": b"2",
        "c/0": b"3",
    }
    twin.set_all({"a/zarr.json": array_document((3,)), "a/c/0": b"chunk", **values})
    twin.compare()
    twin.commit()
    twin.set("README", b"r" * 100_000)
    twin.delete("a/notes.txt")
    twin.delete("absent")
    twin.delete("g/x")


@pytest.mark.parametrize("size", [0, 1, 4096, 4097, 70_000])
def test_plain_values_of_all_sizes(twin: Twin, size: int) -> None:
    twin.set("value", b"v" * size)
    twin.compare()
    twin.commit()
    twin.set("value", b"w" * size)


@pytest.mark.parametrize("name", ["zarr.json", ".zarray", ".zgroup", ".zattrs"])
@pytest.mark.parametrize(
    "document",
    [b"", b"not json", b"[]", b"3", b'{"zarr_format": 4, "node_type": "group"}', b"\xff\xfe", b"[" * 100_000],
    ids=lambda document: repr(document[:12]),
)
def test_a_document_that_makes_no_node_is_a_plain_value(twin: Twin, name: str, document: bytes) -> None:
    twin.set_all({f"a/{name}": document, "a/c/0": b"x"})
    twin.compare()
    twin.commit()
    assert twin.session.totals().chunks == 0


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-1]},
        {"shape": [1.5]},
        {"shape": ["3"]},
        {"shape": None},
        {"shape": [2**63]},
        {"shape": [1] * 65},
        {"chunk_grid": None},
        {"chunk_grid": {"name": "regular"}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 1]}}},
        {"chunk_grid": {"name": "rectilinear", "configuration": {"chunk_shapes": [[0, 3]]}}},
    ],
    ids=str,
)
def test_an_array_document_that_can_not_be_right_is_a_plain_value(twin: Twin, change: dict[str, Any]) -> None:
    document = json.loads(array_document((3,))) | change
    twin.set_all({"a/zarr.json": json.dumps(document).encode(), "a/c/0": b"x", "a/c/7/7": b"y"})
    twin.compare()
    twin.commit()
    assert twin.session.totals().chunks == 0


@pytest.mark.parametrize("depth", [500, 900, 990, 2000])
def test_a_deeply_nested_document_is_kept(twin: Twin, depth: int) -> None:
    document = json.loads(array_document((3,)))
    text = json.dumps(document)[:-1] + ', "codecs": ' + "[" * depth + "]" * depth + "}"
    twin.set_all({"a/zarr.json": text.encode(), "a/c/0": b"x"})


def test_an_unknown_chunk_grid_has_no_bounds(twin: Twin) -> None:
    document = json.loads(array_document((3, 3))) | {"chunk_grid": {"name": "hexagonal"}}
    twin.set_all({"a/zarr.json": json.dumps(document).encode(), "a/c/1000/5": b"x"})
    twin.compare()
    assert twin.session.totals().chunks == 1


def test_an_unknown_chunk_key_encoding_makes_plain_values(twin: Twin) -> None:
    document = json.loads(array_document((3, 3))) | {"chunk_key_encoding": {"name": "hilbert"}}
    twin.set_all({"a/zarr.json": json.dumps(document).encode(), "a/c/0/0": b"x", "a/hilbert7": b"y"})
    twin.compare()
    twin.commit()
    twin.delete_dir("a/c")


# --- documents and chunks in any order -----------------------------------------------------------------------


@pytest.mark.parametrize("commit_between", [False, True])
@pytest.mark.parametrize("size", [10, 1000, 70_000])
def test_chunks_before_their_document(twin: Twin, size: int, commit_between: bool) -> None:
    twin.set_all({f"a/c/{n}": bytes([n]) * size for n in range(4)} | {"a/c/x": b"value", "a/c/0/0": b"value"})
    twin.compare()
    assert twin.session.totals("a").chunks == 0
    if commit_between:
        twin.commit()
    twin.set("a/zarr.json", array_document((3 * size,), (size,)))
    twin.compare()
    assert twin.session.totals("a").chunks == 3, "adopted, but for what is outside the grid"
    np.testing.assert_array_equal(
        zarr.open_array(twin.session.store, path="a", mode="r")[:], np.repeat([0, 1, 2], size)
    )


@pytest.mark.parametrize("commit_between", [False, True])
@pytest.mark.parametrize("size", [10, 1000, 70_000])
def test_a_document_deleted_alone_leaves_its_chunks(twin: Twin, size: int, commit_between: bool) -> None:
    values = {f"a/c/{n}": bytes([n]) * size for n in range(3)}
    twin.set_all({"a/zarr.json": array_document((3,)), **values})
    if commit_between:
        twin.commit()
    twin.delete("a/zarr.json")
    twin.compare()
    assert twin.session.totals("a").chunks == 0
    if commit_between:
        twin.commit()
    twin.set("a/zarr.json", array_document((3,)))
    twin.compare()
    assert twin.session.totals("a").chunks == 3


def test_a_document_that_comes_back_gives_the_same_version(repository: vstore.Repository) -> None:
    values = {"a/zarr.json": array_document((3000,), (1000,)), "a/c/0": b"x" * 1000, "a/c/1": b"small"}
    made = commit(repository, values)
    session = repository.writable_session("main")
    session.tree.delete("a/zarr.json")
    write(session, {"a/zarr.json": values["a/zarr.json"]})
    assert session.status().is_empty()
    assert session.commit("back again") == made


V2_DOCUMENTS = {
    "a/.zarray": array_document_2((3,)),
    "a/.zattrs": b'{"units": "m"}',
    "a/0": b"chunk",
    ".zgroup": b'{"zarr_format": 2}',
    ".zattrs": b'{"title": "x"}',
}


@pytest.mark.parametrize(
    "order", [*itertools.permutations(V2_DOCUMENTS)][::7], ids=lambda order: " ".join(order)
)
def test_v2_documents_in_any_order(twin: Twin, order: tuple[str, ...]) -> None:
    for key in order:
        twin.set(key, V2_DOCUMENTS[key])
    twin.compare()
    group = zarr.open_group(twin.session.store, mode="r", zarr_format=2)
    assert dict(group.attrs) == {"title": "x"}
    assert dict(group["a"].attrs) == {"units": "m"}
    assert twin.session.totals("a").chunks == 1
    for key in order:
        twin.delete(key)
        twin.compare()


@pytest.mark.parametrize("commit_between", [False, True])
def test_a_v2_array_migrated_to_v3_keeps_its_chunks(twin: Twin, commit_between: bool) -> None:
    twin.set_all({"a/.zarray": array_document_2((2, 2)), "a/.zattrs": b"{}", "a/0.0": b"x", "a/1.1": b"y"})
    if commit_between:
        twin.commit()
    twin.set("a/zarr.json", array_document((2, 2), encoding="v2", separator="."))
    twin.compare()
    twin.delete("a/.zarray")
    twin.delete("a/.zattrs")
    twin.compare()
    assert twin.session.totals("a").chunks == 2
    twin.set("a/0.1", b"z")


def test_v2_and_v3_documents_with_different_encodings(twin: Twin) -> None:
    twin.set_all({"a/.zarray": array_document_2((2, 2)), "a/0.0": b"x"})
    twin.set_all({"a/zarr.json": array_document((2, 2)), "a/c/0/0": b"y"})
    twin.compare()
    twin.commit()
    twin.delete("a/zarr.json")
    twin.compare()
    twin.delete("a/.zarray")


def test_a_group_over_an_array_and_back(twin: Twin) -> None:
    twin.set_all({"a/zarr.json": array_document((2,)), "a/c/0": b"x"})
    twin.commit()
    twin.set("a/zarr.json", GROUP)
    twin.compare()
    assert twin.session.totals().chunks == 0
    twin.commit()
    twin.set("a/zarr.json", array_document((2,)))
    twin.compare()
    assert twin.session.totals().chunks == 1


@pytest.mark.parametrize("commit_between", [False, True])
@pytest.mark.parametrize("path", ["a/c", "a/c/1", "a/sub"])
def test_a_node_below_an_array(twin: Twin, path: str, commit_between: bool) -> None:
    twin.set_all({"a/zarr.json": array_document((3,)), "a/c/0": b"x", "a/c/1": b"y"})
    if commit_between:
        twin.commit()
    twin.set_all({f"{path}/zarr.json": array_document((3,)), f"{path}/c/0": b"inner"})
    twin.compare()
    twin.set("a/c/0", b"outer")
    twin.compare()
    twin.delete(f"{path}/zarr.json")
    twin.compare()


# --- deleting ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["fresh", "committed"])
def filled(request: pytest.FixtureRequest, twin: Twin) -> Twin:
    """A group with two arrays, one of them of several tiles, and plain values."""
    twin.set_all(
        {"zarr.json": GROUP, "g/zarr.json": GROUP, "g/notes": b"n", "README": b"r", "g/big": b"b" * 9000}
    )
    twin.set("g/a/zarr.json", array_document((3, 4)))
    twin.set_all({f"g/a/c/{i}/{j}": b"%d%d" % (i, j) for i in range(3) for j in range(4)})
    twin.set("a/zarr.json", array_document((100_000,), encoding="v2", separator="/"))
    twin.set_all({f"a/{n * 1009}": b"%d" % n * 200 for n in range(90)})
    if request.param == "committed":
        twin.commit()
    return twin


@pytest.mark.parametrize(
    "folder", ["", "g", "a", "g/a", "g/a/c", "g/a/c/1", "g/a/c/1/2", "a/0", "absent", "g/no"]
)
def test_delete_a_folder(filled: Twin, folder: str) -> None:
    filled.delete_dir(folder)
    filled.compare()


@pytest.mark.parametrize("folder", ["g/", "/g", "g/a/c/"])
def test_slashes_around_a_folder_do_not_matter(filled: Twin, folder: str) -> None:
    sync(filled.session.store.delete_dir(folder))
    sync(filled.model.delete_dir(folder.strip("/")))


def test_write_into_a_deleted_folder(filled: Twin) -> None:
    filled.delete_dir("g")
    filled.set("g/a/c/0/0", b"before its document")
    filled.compare()
    filled.set("g/a/zarr.json", array_document((3, 4)))
    filled.compare()
    filled.set("g/big", b"again")
    filled.compare()
    filled.delete_dir("g/a/c")


def test_clear(filled: Twin) -> None:
    sync(filled.session.store.clear())
    sync(filled.model.clear())
    filled.compare()
    assert sync(filled.session.store.is_empty(""))


def test_delete_single_keys(filled: Twin) -> None:
    for key in ("g/a/c/1/1", "a/1009", "README", "g/big", "g/zarr.json", "absent", "g/a/c/9/9", "g/a/c/0"):
        filled.delete(key)
        filled.compare()


def test_delete_every_chunk_one_by_one(filled: Twin) -> None:
    for i, j in itertools.product(range(3), range(4)):
        filled.delete(f"g/a/c/{i}/{j}")
    filled.compare()
    assert list_dir(filled.session.store, "g/a") == ["zarr.json"]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_recreate_an_array(filled: Twin, dtype: str) -> None:
    before = filled.session.tree.nodes.node("g/a").node_id
    filled.delete_dir("g/a")
    filled.set("g/a/zarr.json", array_document((3, 4), dtype=dtype))
    filled.compare()
    assert list_dir(filled.session.store, "g/a") == ["zarr.json"], "no stale chunk"
    filled.set_all({"g/a/c/1/1": b"11", "g/a/c/0/0": b"new"})
    filled.compare()
    filled.commit()
    assert filled.session.totals("g/a").chunks == 2
    after = filled.session.tree.nodes.node("g/a").node_id
    if before == after:
        assert dtype == "uint8"


def test_an_array_of_the_same_kind_keeps_its_node_id_and_another_does_not(
    repository: vstore.Repository,
) -> None:
    def node_id(session: Session) -> bytes:
        return session.tree.nodes.node("a").node_id

    commit(repository, {"a/zarr.json": array_document((3,)), "a/c/0": b"x"})
    first = node_id(repository.writable_session("main"))
    session = repository.writable_session("main")
    session.tree.delete_folder("a")
    write(session, {"a/zarr.json": array_document((5,))})
    assert node_id(session) == first, "another shape is no other kind"
    session.tree.delete_folder("a")
    write(session, {"a/zarr.json": array_document((3,), dtype="int8")})
    assert node_id(session) != first


# --- growing and shrinking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("commit_between", [False, True])
@pytest.mark.parametrize("small", [(2, 2), (0, 0), (1, 5), (2, 0)], ids=str)
def test_shrunk_and_grown_again_there_is_no_stale_data(
    twin: Twin, small: tuple[int, int], commit_between: bool
) -> None:
    twin.set("a/zarr.json", array_document((4, 5)))
    chunks = {(i, j): b"%d%d" % (i, j) for i in range(4) for j in range(5)}
    twin.set_all({f"a/c/{i}/{j}": data for (i, j), data in chunks.items()})
    if commit_between:
        twin.commit()
    twin.set("a/zarr.json", array_document(small))
    outside = [f"a/c/{i}/{j}" for i, j in chunks if i >= small[0] or j >= small[1]]
    for key in outside:
        sync(twin.model.delete(key))
    twin.compare()
    if commit_between:
        twin.commit()
    twin.set("a/zarr.json", array_document((6, 7)))
    twin.compare()
    twin.set_all({"a/c/3/3": b"33", "a/c/5/6": b"new"})
    twin.compare()


def test_zarr_resizes_and_appends(twin: Twin) -> None:
    for store in twin.stores:
        array = zarr.create_array(store, name="a", shape=(40, 30), chunks=(7, 7), dtype="i4", fill_value=-1)
        array[:] = np.arange(1200).reshape(40, 30)
    twin.commit()
    for shape in ((50, 20), (5, 5), (0, 30), (60, 8)):
        for store in twin.stores:
            zarr.open_array(store, path="a", mode="r+").resize(shape)
        twin.compare()
        _same_values(twin, "a")
    for store in twin.stores:
        zarr.open_array(store, path="a", mode="r+").append(np.arange(160).reshape(20, 8))
    _same_values(twin, "a")


def _same_values(twin: Twin, path: str) -> None:
    found, expected = (zarr.open_array(store, path=path, mode="r")[:] for store in twin.stores)
    np.testing.assert_array_equal(found, expected)


# --- sizes and ranges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "is_inline"), [(1, True), (511, True), (512, True), (513, False)])
def test_chunks_of_up_to_512_bytes_are_inline(
    repository: vstore.Repository, size: int, is_inline: bool
) -> None:
    data = np.random.default_rng(size).bytes(size)
    commit(repository, {"a/zarr.json": array_document((size,), (size,)), "a/c/0": data})
    session = repository.readonly_session("main")
    source = session.tree.find("a/c/0")
    assert isinstance(source, bytes) is is_inline
    assert get(session.store, "a/c/0") == data
    assert sync(session.store.getsize("a/c/0")) == size


BLOCK = CHECK_BLOCK_BYTES
SPANS = [
    RangeByteRequest(0, 1),
    RangeByteRequest(0, BLOCK),
    RangeByteRequest(BLOCK - 1, BLOCK + 1),
    RangeByteRequest(BLOCK, BLOCK + 1),
    RangeByteRequest(BLOCK - 1, 2 * BLOCK + 1),
    RangeByteRequest(5, 5),
    RangeByteRequest(BLOCK + 7, BLOCK + 7),
    RangeByteRequest(0, 10**9),
    RangeByteRequest(10**9, 10**9 + 5),
    RangeByteRequest(100, 10**9),
    OffsetByteRequest(0),
    OffsetByteRequest(1),
    OffsetByteRequest(BLOCK),
    OffsetByteRequest(3 * BLOCK - 1),
    OffsetByteRequest(10**9),
    SuffixByteRequest(1),
    SuffixByteRequest(4),
    SuffixByteRequest(BLOCK),
    SuffixByteRequest(BLOCK + 1),
    SuffixByteRequest(10**9),
]


def expected_range(data: bytes, span: Any) -> bytes:
    if isinstance(span, RangeByteRequest):
        return data[span.start : span.end]
    return data[span.offset :] if isinstance(span, OffsetByteRequest) else data[-span.suffix :]


@pytest.mark.parametrize("size", [1, 512, 513, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 3 * BLOCK + 5])
def test_ranges_of_chunks(repository: vstore.Repository, place: Place, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((size,), (size,)), "a/c/0": data, "value": data})
    readers = [session]
    session.commit("a commit")
    readers += [repository.readonly_session("main"), place.open().readonly_session("main")]
    for reader in readers:
        for when in ("before the whole was read", "after it was read and verified"):
            for key, span in itertools.product(("a/c/0", "value"), SPANS):
                assert get(reader.store, key, span) == expected_range(data, span), (when, key, span)
            assert get(reader.store, "a/c/0") == data


def test_ranges_of_uncommitted_chunks(session: Session) -> None:
    for size in (1, 512, 513, BLOCK + 1, 3 * BLOCK + 5):
        data = np.random.default_rng(size).bytes(size)
        write(session, {"a/zarr.json": array_document((size,), (size,)), "a/c/0": data, "value": data})
        for key, span in itertools.product(("a/c/0", "value"), SPANS):
            assert get(session.store, key, span) == expected_range(data, span), (size, key, span)


def test_several_ranges_at_once(session: Session) -> None:
    data = np.random.default_rng(0).bytes(3 * BLOCK)
    write(session, {"a/zarr.json": array_document((3 * BLOCK,), (3 * BLOCK,)), "a/c/0": data})
    requests = [("a/c/0", span) for span in SPANS] + [("absent", None), ("a/c/0", None)]
    found = sync(session.store.get_partial_values(PROTOTYPE, requests))
    plain = [None if buffer is None else buffer.to_bytes() for buffer in found]
    assert plain == [*(expected_range(data, span) for span in SPANS), None, data]


@pytest.mark.skipif(not hasattr(Store, "get_ranges"), reason="this Zarr has no get_ranges")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_get_ranges(repository: vstore.Repository) -> None:
    data = np.random.default_rng(0).bytes(3 * BLOCK)
    commit(repository, {"a/zarr.json": array_document((3 * BLOCK,), (3 * BLOCK,)), "a/c/0": data})
    store = repository.readonly_session("main").store

    async def ranges(key: str) -> dict[int, bytes]:
        batches = store.get_ranges(key, SPANS[:5], prototype=PROTOTYPE)
        return {index: buffer.to_bytes() async for batch in batches for index, buffer in batch}

    assert sync(ranges("a/c/0")) == {n: expected_range(data, span) for n, span in enumerate(SPANS[:5])}
    with pytest.raises(BaseExceptionGroup) as caught:
        sync(ranges("absent"))
    assert caught.group_contains(FileNotFoundError)


# --- what is read from storage -------------------------------------------------------------------------------


class _CountsReads:
    """Notes the reads of packs: name, offset, length."""

    reads: list[tuple[str, int, int]]

    def read(self, name: str, offset: int, length: int) -> memoryview:
        self.reads.append((name, offset, length))
        return super().read(name, offset, length)  # type: ignore[misc]


class CountingLocal(_CountsReads, LocalStorage):
    pass


class CountingObjects(_CountsReads, ObjectStorage):
    pass


@pytest.fixture(params=["mapped", "not mapped", "remote"])
def counted(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    """A repository whose `handle.storage.reads` lists what was read."""
    from obstore.store import MemoryStore as ObstoreMemory

    with quick_folder() as folder:
        storage: Any = CountingObjects(ObstoreMemory())
        if request.param != "remote":
            storage = CountingLocal(folder, mapped=request.param == "mapped")
        storage.reads = []
        with vstore.Repository.create(storage) as repository:
            yield repository


def test_a_partial_read_of_a_shard_reads_a_part_of_it(
    counted: vstore.Repository, request: pytest.FixtureRequest
) -> None:
    values = np.random.default_rng(0).integers(0, 2**60, (1000, 1000))
    session = counted.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=values.shape, shards=(1000, 1000), chunks=(10, 100), dtype="i8"
    )
    array[:] = values
    session.commit("one shard of 8 MB")
    reader = zarr.open_array(counted.readonly_session("main").store, path="a", mode="r")
    for number in range(2):
        reads = counted.handle.storage.reads
        reads.clear()
        np.testing.assert_array_equal(reader[500:510, 300:400], values[500:510, 300:400])
        size = sum(length for _, _, length in reads)
        if number and not counted.handle.storage.is_local:
            # What comes over a network is kept.
            assert size == 0
            break
        assert 0 < size < 400_000
        if request.node.callspec.params["counted"] == "mapped":
            # A map shows the whole shard at no cost.
            break
        # Once more when the whole shard was read and verified.
        np.testing.assert_array_equal(reader[:], values)


def test_listing_and_sizes_read_no_chunk(counted: vstore.Repository) -> None:
    chunks = {f"a/c/{n}": np.random.default_rng(n).bytes(5000) for n in range(100)}
    commit(counted, {"zarr.json": GROUP, "a/zarr.json": array_document((500_000,), (5000,)), **chunks})
    store = counted.readonly_session("main").store
    reads = counted.handle.storage.reads
    reads.clear()
    assert list_dir(store, "") == ["a", "zarr.json"]
    assert list_dir(store, "a") == ["c", "zarr.json"]
    assert len(list_dir(store, "a/c")) == 100
    assert sync(store.getsize("a/c/7")) == 5000
    assert sync(store.getsize_prefix("a/c")) == 500_000
    assert sync(store.exists("a/c/7"))
    assert not sync(store.exists("a/c/107"))
    assert len(sync(collect(store.list()))) == 102
    assert not sync(store.is_empty("a"))
    assert sum(length for _, _, length in reads) < 20_000


def test_listing_a_group_of_arrays_opens_none_of_their_manifests(counted: vstore.Repository) -> None:
    values: dict[str, bytes] = {"zarr.json": GROUP}
    for n in range(50):
        values[f"a{n}/zarr.json"] = array_document((1000,), (10,))
        values |= {f"a{n}/c/{k}": bytes([k]) * 10 for k in range(100)}
    commit(counted, values)
    from vstore.blobs.cache import CACHE

    CACHE.clear()
    store = counted.readonly_session("main").store
    reads = counted.handle.storage.reads
    reads.clear()
    assert len(list_dir(store, "")) == 51
    assert len(reads) <= 10


def test_deleting_an_array_reads_none_of_its_manifests(counted: vstore.Repository) -> None:
    chunks = {f"a/c/{n}": bytes([n % 256]) * 40 for n in range(5000)}
    commit(counted, {"a/zarr.json": array_document((10**9,), (1,)), **chunks})
    from vstore.blobs.cache import CACHE

    CACHE.clear()
    session = counted.writable_session("main")
    reads = counted.handle.storage.reads
    reads.clear()
    sync(session.store.delete_dir("a"))
    assert sum(length for _, _, length in reads) < 10_000
    session.commit("gone")
    assert contents(counted.readonly_session("main")) == {}


def test_a_folder_inside_a_large_array_is_listed_from_its_tiles(counted: vstore.Repository) -> None:
    """A row of a grid of 40 x 40 tiles: its 40 tiles are read, in committed arrays and in pending ones."""
    rows = (0, 300, 5000)
    chunks = {
        f"a/c/{row}/{column}": blake3_digest(b"%d %d" % (row, column))
        for row in rows
        for column in range(0, 5120, 8)
    }
    commit(counted, {"a/zarr.json": array_document((5120, 5120)), **chunks})
    from vstore.blobs.cache import CACHE

    expected = sorted(str(column) for column in range(0, 5120, 8))
    reader = counted.readonly_session("main").store
    CACHE.clear()
    reads = counted.handle.storage.reads
    reads.clear()
    assert sorted(list_dir(reader, "a/c/300")) == expected
    assert len(reads) < 55
    writer = counted.writable_session("main")
    write(writer, {"a/c/300/1": b"new", "a/c/7/5": b"new"})
    assert sorted(list_dir(writer.store, "a/c/300")) == sorted([*expected, "1"])
    assert list_dir(writer.store, "a/c/7") == ["5"]
    assert sorted(list_dir(writer.store, "a/c"), key=int) == ["0", "7", "300", "5000"]
    assert sorted(sync(collect(reader.list_prefix("a/c/300/12")))) == [
        f"a/c/300/{column}" for column in expected if column.startswith("12")
    ]
    CACHE.clear()
    reads.clear()
    assert not sync(reader.is_empty("a/c/300"))
    assert sync(reader.is_empty("a/c/301"))
    assert sync(reader.is_empty("a/c/100"))
    assert len(reads) < 90
    sync(writer.store.delete_dir("a/c/300"))
    assert sync(writer.store.is_empty("a/c/300"))
    assert sync(writer.store.getsize_prefix("a/c/7")) == 3


def test_a_large_child_is_passed_over_when_its_parent_is_listed(counted: vstore.Repository) -> None:
    """Below g/b are 3,000 groups in many pages; none but the first and the last of them is read."""
    values = {f"g/{name}/zarr.json": GROUP for name in ("a", "b", "b\x01", "c", "ba")}
    values |= {f"g/b/x{n}/zarr.json": GROUP for n in range(3000)}
    commit(counted, {**values, "g/b/value": b"v", "other/value": b"v"})
    from vstore.blobs.cache import CACHE

    CACHE.clear()
    session = counted.writable_session("main")
    reads = counted.handle.storage.reads
    reads.clear()
    assert list_dir(session.store, "g") == ["a", "b", "b\x01", "ba", "c"]
    assert len(reads) < 15
    session.tree_for_writing().delete_folder("g/b")
    session.tree_for_writing().delete_folder("g/c")
    write(session, {"g/d/e/zarr.json": GROUP})
    assert list_dir(session.store, "g") == ["a", "b\x01", "ba", "d"]
    assert list_dir(session.store, "") == ["g", "other"]


def test_a_thousand_nested_groups(counted: vstore.Repository) -> None:
    paths = ["/".join(f"g{n}" for n in range(depth)) for depth in range(1, 1001)]
    deepest = paths[-1]
    values = {f"{path}/zarr.json": GROUP for path in paths}
    values |= {"zarr.json": GROUP, f"{deepest}/a/zarr.json": array_document((3,)), f"{deepest}/a/c/1": b"x"}
    commit(counted, values)
    session = counted.writable_session("main")
    assert contents(session) == values
    assert list_dir(session.store, "") == ["g0", "zarr.json"]
    assert list_dir(session.store, deepest) == ["a", "zarr.json"]
    session.move("g0", "h")
    write(session, {f"h{deepest[2:]}/a/c/2": b"y"})
    session.commit("moved")
    session = counted.writable_session("main")
    assert session.tree.read(f"h{deepest[2:]}/a/c/1") == b"x"
    assert zarr.open_array(session.store, path=f"h{deepest[2:]}/a", mode="r").shape == (3,)
    sync(session.store.delete_dir("h"))
    assert contents(session) == {"zarr.json": GROUP}
    session.commit("deleted")
    assert contents(counted.readonly_session("main")) == {"zarr.json": GROUP}


# --- rectilinear grids ---------------------------------------------------------------------------------------


def test_an_array_of_unequal_chunks(twin: Twin) -> None:
    if "rectilinear_chunks" not in zarr.config.get("array"):
        pytest.skip("this Zarr has no rectilinear chunk grids")
    values = np.arange(60 * 10).reshape(60, 10)
    with zarr.config.set({"array.rectilinear_chunks": True}):
        for store in twin.stores:
            array = zarr.create_array(
                store, name="a", shape=(60, 10), chunks=[[10, 20, 30], [5, 5]], dtype="i8"
            )
            array[:] = values
        twin.compare()
        twin.commit()
        store = twin.session.store
        np.testing.assert_array_equal(zarr.open_array(store, path="a", mode="r")[:], values)
        assert sorted(list_dir(store, "a/c")) == ["0", "1", "2"]
        with pytest.raises(vstore.InvalidInputError, match="outside the chunk grid"):
            sync(store.set("a/c/3/0", to_buffer(b"x")))


RUNS = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[[2, 3], 4], 5]}}


def test_a_rectilinear_document_counts_its_chunks(twin: Twin) -> None:
    document = json.loads(array_document((10, 12))) | {"chunk_grid": RUNS}
    twin.set("a/zarr.json", json.dumps(document).encode())
    twin.set_all({"a/c/3/2": b"the last", "a/c/0/0": b"the first"})
    for key in ("a/c/4/0", "a/c/0/3"):
        with pytest.raises(vstore.InvalidInputError, match="outside"):
            sync(twin.session.store.set(key, to_buffer(b"x")))


# --- the store itself ----------------------------------------------------------------------------------------


def test_set_if_not_exists(twin: Twin) -> None:
    twin.set("present", b"1")
    for store in twin.stores:
        for key in ("present", "absent"):
            sync(store.set_if_not_exists(key, to_buffer(b"2")))
    twin.compare()
    assert get(twin.session.store, "present") == b"1"


@pytest.mark.parametrize("value", [b"bytes", 5, None, "text"])
def test_a_store_takes_buffers_only(session: Session, value: Any) -> None:
    with pytest.raises(TypeError, match="Buffer"):
        sync(session.store.set("x", value))
    assert get(session.store, "x") is None


def test_buffers_of_other_dtypes_and_layouts(session: Session) -> None:
    values = np.arange(20, dtype="<i4")
    sync(session.store.set("x", PROTOTYPE.buffer.from_array_like(values.view("u1"))))
    assert get(session.store, "x") == values.tobytes()


def test_a_buffer_may_change_after_set(session: Session) -> None:
    for size in (10, 1000, 200_000):
        write(session, {"a/zarr.json": array_document((size,), (size,))})
        data = bytearray(b"x" * size)
        sync(session.store.set("a/c/0", PROTOTYPE.buffer.from_bytes(memoryview(data))))
        data[:] = b"y" * size
        assert get(session.store, "a/c/0") == b"x" * size


def test_sizes_of_absent_keys(session: Session) -> None:
    for key in ("absent", "a/c/0", "zarr.json"):
        with pytest.raises(FileNotFoundError):
            sync(session.store.getsize(key))
    assert sync(session.store.getsize_prefix("absent")) == 0


@pytest.mark.parametrize("key", ["x\0y", "a/\0/zarr.json", "\ud800", "\0"], ids=ascii)
def test_keys_that_can_not_be_kept_are_refused(repository: vstore.Repository, key: str) -> None:
    session = repository.writable_session("main")
    write(session, {"x/y": b"1"})
    with pytest.raises(vstore.InvalidInputError):
        sync(session.store.set(key, to_buffer(b"2")))
    assert contents(session) == {"x/y": b"1"}
    session.commit("still works")


@pytest.mark.parametrize("key", ["größe/x", "a b/c", "..", "a/../b", "A", "x" * 3000, "\U0001f600", "%2e"])
def test_unusual_keys_are_kept(twin: Twin, key: str) -> None:
    twin.set_all({key: b"1", f"{key}/zarr.json": array_document((2,)), f"{key}/c/0": b"2"})


def test_the_store_says_what_it_can(session: Session) -> None:
    store = session.store
    assert (store.supports_writes, store.supports_deletes, store.supports_listing) == (True, True, True)
    assert store.supports_consolidated_metadata is False
    assert store.read_only is False
    assert store.with_read_only(True).read_only is True
    assert store.session is session


def test_a_read_only_store_on_a_writable_session(session: Session) -> None:
    write(session, {"x": b"1"})
    store = session.store.with_read_only(True)
    with pytest.raises(ValueError, match="read-only"):
        sync(store.set("x", to_buffer(b"2")))
    for call in (store.delete("x"), store.delete_dir(""), store.clear()):
        with pytest.raises(ValueError, match="read-only"):
            sync(call)
    assert get(store, "x") == b"1"
    sync(store.with_read_only(False).set("x", to_buffer(b"2")))
    assert get(store, "x") == b"2"


def test_a_writable_store_on_a_readonly_session_writes_nothing(repository: vstore.Repository) -> None:
    commit(repository, {"x": b"1"})
    store = repository.readonly_session("main").store.with_read_only(False)
    for call in (store.set("x", to_buffer(b"2")), store.delete("x"), store.delete_dir("")):
        with pytest.raises(vstore.ReadOnlyError, match="writable_session"):
            sync(call)
    assert get(store, "x") == b"1"


def test_a_path_inside_the_tmp_folder_is_no_key(tmp_path: Path) -> None:
    """Keys are never paths of the file system."""
    with vstore.Repository.create(tmp_path / "r") as repository:
        commit(repository, {"../outside": b"1", str(tmp_path / "absolute"): b"2"})
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r"]
        expected = {"../outside": b"1", str(tmp_path / "absolute"): b"2"}
        assert contents(repository.readonly_session("main")) == expected
