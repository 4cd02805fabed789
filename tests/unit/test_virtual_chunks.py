"""Virtual chunks through the store: ranges of files that are not the repository's own."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import vstore
from tests.repositories import GROUP, KINDS, Place, array_document, contents, quick_folder, write
from vstore.changes.boxes import Box
from vstore.ops.fsck import check
from vstore.session import Session

CHUNK = 100
COUNT = 6


class Sources:
    """A folder with a file of numbers, and a repository that may read from it."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.folder = folder / "sources"
        self.folder.mkdir()
        self.file = self.folder / "numbers.bin"
        self.data = np.random.default_rng(0).bytes(CHUNK * COUNT + 7)
        self.file.write_bytes(self.data)
        self.prefix = self.folder.as_uri() + "/"
        self.repository = place.create(authorize_virtual_chunk_access=[self.prefix])
        self.session = self.repository.writable_session("main")
        write(self.session, {"a/zarr.json": array_document((CHUNK * COUNT,), (CHUNK,))})

    def set(self, count: int = COUNT, **changes: Any) -> None:
        """Point the first `count` chunks at the file, with some of the arguments changed."""
        arguments: dict[str, Any] = {
            "array_path": "a",
            "chunk_grid_shape": (count,),
            "locations": [self.file.as_uri()] * count,
            "offsets": np.arange(count) * CHUNK,
            "lengths": np.full(count, CHUNK),
        }
        self.session.store.set_virtual_refs_arr(**(arguments | changes))

    def chunk(self, number: int) -> bytes:
        return self.data[number * CHUNK : (number + 1) * CHUNK]

    def read(self, number: int = 0, session: Session | None = None, byte_range: Any = None) -> bytes | None:
        store = (session or self.session).store
        found = store.get_sync(f"a/c/{number}", prototype=default_buffer_prototype(), byte_range=byte_range)
        return None if found is None else found.to_bytes()


@pytest.fixture(params=KINDS)
def sources(request: pytest.FixtureRequest) -> Iterator[Sources]:
    with quick_folder() as folder:
        sources = Sources(Place.new(request.param, folder), folder)
        yield sources
        sources.repository.close()


@pytest.fixture
def local() -> Iterator[Sources]:
    """One kind is enough for what never reaches the storage."""
    with quick_folder() as folder:
        sources = Sources(Place.new("sqlite", folder), folder)
        yield sources
        sources.repository.close()


# --- what works ----------------------------------------------------------------------------------------------


def test_virtual_chunks_read_like_others(sources: Sources) -> None:
    sources.set()
    expected = {f"a/c/{n}": sources.chunk(n) for n in range(COUNT)}
    expected["a/zarr.json"] = array_document((CHUNK * COUNT,), (CHUNK,))
    assert contents(sources.session) == expected
    made = sources.session.commit("references")
    reopened = sources.place.open(authorize_virtual_chunk_access=[sources.prefix])
    session = reopened.readonly_session(snapshot_id=made)
    assert contents(session) == expected
    array = zarr.open_array(session.store, path="a", mode="r")
    np.testing.assert_array_equal(array[:], np.frombuffer(sources.data[: CHUNK * COUNT], "u1"))
    assert (session.totals("a").chunks, session.totals("a").bytes) == (COUNT, COUNT * CHUNK)
    assert check(sources.repository, data=True).is_clean
    packs = sources.repository.handle.storage.list("packs/")
    assert sum(info.size for info in packs) < 4000, "no chunk bytes are stored"


def test_ranges_of_virtual_chunks(sources: Sources) -> None:
    sources.set()
    whole = sources.chunk(2)
    assert sources.read(2, byte_range=RangeByteRequest(10, 20)) == whole[10:20]
    assert sources.read(2, byte_range=RangeByteRequest(90, 200)) == whole[90:]
    assert sources.read(2, byte_range=OffsetByteRequest(60)) == whole[60:]
    assert sources.read(2, byte_range=SuffixByteRequest(7)) == whole[-7:]


def test_an_empty_location_leaves_its_chunk_as_it_is(sources: Sources) -> None:
    write(sources.session, {"a/c/1": b"native", "a/c/2": b"other"})
    uri = sources.file.as_uri()
    sources.set(3, locations=[uri, "", uri])
    assert [sources.read(n) for n in range(4)] == [sources.chunk(0), b"native", sources.chunk(2), None]


def test_a_box_within_the_grid(local: Sources) -> None:
    write(local.session, {"b/zarr.json": array_document((4, 5), (1, 1))})
    box = (2, 3)
    numbers = np.arange(6).reshape(box)
    local.session.store.set_virtual_refs_arr(
        "b", box, np.full(box, local.file.as_uri()), numbers, np.ones(box, "u8"), arr_offset=(1, 2)
    )
    expected = {
        f"b/c/{1 + i}/{2 + j}": local.data[numbers[i, j] : numbers[i, j] + 1]
        for i in range(2)
        for j in range(3)
    }
    found = {key: value for key, value in contents(local.session).items() if key.startswith("b/c")}
    assert found == expected


def test_a_scalar_array(local: Sources) -> None:
    write(local.session, {"s/zarr.json": array_document(())})
    local.session.store.set_virtual_refs_arr(
        "s", (), [local.file.as_uri()], np.array([3]), np.array([1], dtype="u4")
    )
    assert contents(local.session)["s/c"] == local.data[3:4]


def test_an_array_at_the_root(local: Sources) -> None:
    write(local.session, {"zarr.json": array_document((3,))})
    local.session.store.set_virtual_refs_arr(
        "", (1,), [local.file.as_uri()], np.array([3]), np.array([1]), arr_offset=(2,)
    )
    assert contents(local.session)["c/2"] == local.data[3:4]


def test_many_references_over_many_tiles_and_files(sources: Sources) -> None:
    count = 50_000
    write(sources.session, {"b/zarr.json": array_document((count,), (1,))})
    others = [sources.folder / f"{n}.bin" for n in range(3)]
    for n, path in enumerate(others):
        path.write_bytes(bytes([n]) * 100)
    locations = np.array([path.as_uri() for path in others])[np.arange(count) % 3]
    sources.session.store.set_virtual_refs_arr(
        "b", (count,), locations, np.arange(count) % 100, np.ones(count, "i8")
    )
    sources.session.commit("references")
    session = sources.repository.readonly_session("main")
    assert session.totals("b").chunks == count
    for n in (0, 1, 16_383, 16_384, 33_333, count - 1):
        assert session.tree.read(f"b/c/{n}") == bytes([n % 3])


def test_a_native_chunk_replaces_a_virtual_one_and_back(sources: Sources) -> None:
    sources.set()
    write(sources.session, {"a/c/0": b"native", "a/c/1": b"n" * 1000})
    sources.session.commit("some of each")
    session = sources.repository.readonly_session("main")
    found = [sources.read(n, session) for n in range(3)]
    assert found == [b"native", b"n" * 1000, sources.chunk(2)]
    sources.session = sources.repository.writable_session("main")
    sources.set(2)
    sources.session.commit("virtual again")
    session = sources.repository.readonly_session("main")
    assert [sources.read(n, session) for n in range(3)] == [sources.chunk(n) for n in range(3)]


def test_virtual_chunks_are_deleted_and_dropped_like_others(sources: Sources) -> None:
    sources.set()
    sources.session.tree.delete("a/c/1")
    write(sources.session, {"a/zarr.json": array_document((CHUNK * 4,), (CHUNK,))})
    sources.session.commit("fewer")
    session = sources.repository.readonly_session("main")
    assert sorted(contents(session)) == ["a/c/0", "a/c/2", "a/c/3", "a/zarr.json"]
    sources.session = sources.repository.writable_session("main")
    sources.session.tree.delete_folder("a")
    assert contents(sources.session) == {}


def test_the_status_shows_virtual_chunks(sources: Sources) -> None:
    sources.session.commit("the array")
    sources.session = sources.repository.writable_session("main")
    sources.set(2)
    assert sources.session.status() == vstore.Diff(chunk_boxes={"/a": (Box((0,), (2,)),)})
    made = sources.session.commit("references")
    sources.session = sources.repository.writable_session("main")
    sources.set(2)
    assert not sources.session.has_uncommitted_changes
    assert sources.session.commit("the same") == made


def test_a_pickled_session_reads_virtual_chunks(sources: Sources) -> None:
    sources.set(checksum=2**60)
    copy = pickle.loads(pickle.dumps(sources.session))
    assert sources.read(1, copy) == sources.chunk(1)


def test_setting_references_changes_the_dask_token(local: Sources) -> None:
    before = local.session.store.__dask_tokenize__()
    local.set()
    assert local.session.store.__dask_tokenize__() != before


# --- what may be read ----------------------------------------------------------------------------------------


def reopened(sources: Sources, *prefixes: str) -> Session:
    sources.set()
    sources.session.commit("references")
    return sources.place.open(authorize_virtual_chunk_access=prefixes).readonly_session("main")


@pytest.mark.parametrize("prefix", [None, "file:///elsewhere/", "sibling"])
def test_a_source_that_was_not_authorised_is_not_read(local: Sources, prefix: str | None) -> None:
    if prefix == "sibling":
        prefix = local.folder.as_uri() + "-2/"
    session = reopened(local, *([prefix] if prefix else []))
    with pytest.raises(
        vstore.VirtualChunkUnauthorizedError, match="authorize_virtual_chunk_access"
    ) as caught:
        local.read(0, session)
    assert local.file.as_uri() in caught.value.message
    assert session.tree.size("a/c/0") == CHUNK


def test_the_whole_disk_may_be_authorised(local: Sources) -> None:
    assert local.read(0, reopened(local, "file:///")) == local.chunk(0)


@pytest.mark.parametrize("prefix", ["/data/", "file:///data", "s3://bucket/", "", "data/", b"file:///data/"])
def test_a_prefix_is_a_url_that_ends_in_a_slash(tmp_path: Path, prefix: Any) -> None:
    with pytest.raises(vstore.InvalidInputError):
        vstore.Repository.create(tmp_path / "r", authorize_virtual_chunk_access=[prefix])
    assert not vstore.Repository.exists(tmp_path / "r")


@pytest.mark.parametrize(
    "climb", ["../secret", "./../secret", "x/../../secret", "%2e%2e/secret", "%2E%2E%2Fsecret", "..%2fsecret"]
)
def test_a_location_can_not_climb_out_of_its_prefix(local: Sources, climb: str) -> None:
    secret = local.folder.parent / "secret"
    secret.write_bytes(b"s" * 1000)
    local.set(1, locations=[f"{local.prefix}{climb}"])
    with pytest.raises(vstore.VirtualChunkUnauthorizedError):
        local.read()


def test_a_location_that_only_looks_like_a_climb_is_read(local: Sources) -> None:
    odd = local.folder / "..numbers %2e"
    odd.write_bytes(b"o" * CHUNK)
    local.set(1, locations=[odd.as_uri()])
    assert local.read() == b"o" * CHUNK


def test_a_name_with_spaces_and_accents(local: Sources) -> None:
    path = local.folder / "größe in m.bin"
    path.write_bytes(b"g" * CHUNK)
    local.set(1, locations=[path.as_uri()])
    assert local.read() == b"g" * CHUNK


# --- sources that changed ------------------------------------------------------------------------------------


def modified_us(path: Path) -> int:
    return path.stat().st_mtime_ns // 1000


def etag(path: Path) -> str:
    """The etag that obstore gives a local file."""
    status = path.stat()
    return f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}"


def test_an_unchanged_source_matches_its_checksum(sources: Sources) -> None:
    sources.set(2, checksum=modified_us(sources.file))
    assert sources.read(1) == sources.chunk(1)
    sources.set(2, checksum=etag(sources.file))
    assert sources.read(1) == sources.chunk(1)
    sources.set(2, checksum=f'"{etag(sources.file)}"')
    sources.session.commit("references")
    assert sources.read(1, sources.repository.readonly_session("main")) == sources.chunk(1)


def test_the_etag_is_that_of_obstore(local: Sources) -> None:
    from obstore.store import LocalStore

    found = LocalStore(local.folder).head("numbers.bin")["e_tag"]
    assert found is not None
    local.set(1, checksum=found)
    assert local.read() == local.chunk(0)


@pytest.mark.parametrize("checksum", [modified_us, etag])
def test_a_source_that_was_modified_raises(sources: Sources, checksum: Any) -> None:
    sources.set(checksum=checksum(sources.file))
    sources.session.commit("references")
    later = sources.file.stat().st_mtime + 10
    os.utime(sources.file, (later, later))
    session = sources.repository.readonly_session("main")
    for byte_range in (None, RangeByteRequest(0, 1)):
        with pytest.raises(vstore.VirtualChunkModifiedError, match="again") as caught:
            sources.read(0, session, byte_range)
        assert sources.file.as_uri() in caught.value.message


def test_one_checksum_for_each_reference(sources: Sources) -> None:
    now = modified_us(sources.file)
    sources.set(3, checksum=[now, None, now - 10_000_000])
    assert [sources.read(n) for n in (0, 1)] == [sources.chunk(n) for n in (0, 1)]
    with pytest.raises(vstore.VirtualChunkModifiedError):
        sources.read(2)


def test_without_a_checksum_a_changed_source_is_read_as_it_is(local: Sources) -> None:
    local.set()
    local.file.write_bytes(local.data[::-1])
    assert local.read(0) == local.data[::-1][:CHUNK]


def test_a_source_that_is_too_short_raises(local: Sources) -> None:
    local.set()
    local.file.write_bytes(local.data[: CHUNK + 50])
    assert local.read(0) == local.chunk(0)
    for number in (1, 2):
        with pytest.raises(vstore.VirtualChunkError, match="150 bytes"):
            local.read(number)


def test_a_missing_source_raises(local: Sources) -> None:
    local.set()
    local.file.unlink()
    with pytest.raises(vstore.VirtualChunkError, match="does not exist"):
        local.read()
    local.folder.rmdir()
    with pytest.raises(vstore.VirtualChunkError):
        local.read()


def test_a_source_that_its_disk_does_not_give_raises(local: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    local.set()

    def pread(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as failing:
        failing.setattr(os, "pread", pread)
        with pytest.raises(vstore.VirtualChunkError, match="Check the disk"):
            local.read()
    local.read()


def test_a_source_that_is_a_folder_raises(local: Sources) -> None:
    (local.folder / "folder").mkdir()
    local.set(1, locations=[(local.folder / "folder").as_uri()])
    with pytest.raises(vstore.VirtualChunkError, match="folder"):
        local.read()


@pytest.mark.timeout(5)
def test_a_source_that_is_a_pipe_raises(local: Sources) -> None:
    os.mkfifo(local.folder / "pipe")
    local.set(1, locations=[(local.folder / "pipe").as_uri()])
    with pytest.raises(vstore.VirtualChunkError):
        local.read()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_source_that_may_not_be_read_raises(local: Sources) -> None:
    local.set()
    local.file.chmod(0)
    with pytest.raises(vstore.VirtualChunkError):
        local.read()


# --- wrong arguments -----------------------------------------------------------------------------------------

WRONG: list[dict[str, Any]] = [
    {"chunk_grid_shape": (2,)},
    {"chunk_grid_shape": (-1,)},
    {"chunk_grid_shape": (1, 1)},
    {"chunk_grid_shape": ()},
    {"chunk_grid_shape": (1.5,)},
    {"chunk_grid_shape": (2**40,)},
    {"offsets": np.array([0, 1])},
    {"offsets": np.array([-1])},
    {"offsets": np.array([0.5])},
    {"offsets": np.array([2**63], dtype="u8")},
    {"lengths": np.array([], dtype="i8")},
    {"lengths": np.array([0])},
    {"lengths": np.array([-5])},
    {"lengths": ["x"]},
    {"locations": []},
    {"locations": ["", ""]},
    {"locations": ["relative"]},
    {"locations": ["/absolute/path"]},
    {"locations": ["s3://bucket/key"]},
    {"locations": ["file://host/path"]},
    {"locations": ["file:///with\0zero"]},
    {"locations": ["file:///\ud800"]},
    {"locations": ["file:///" + "x" * 5000]},
    {"locations": [None]},
    {"locations": [5]},
    {"arr_offset": (COUNT,)},
    {"arr_offset": (-1,)},
    {"arr_offset": (0, 0)},
    {"arr_offset": (0.5,)},
    {"checksum": []},
    {"checksum": [1, 2]},
    {"checksum": b"etag"},
    {"checksum": 1.5},
    {"checksum": True},
    {"checksum": 2**70},
    {"checksum": "\ud800"},
    {"checksum": [True]},
    {"checksum": [1.5]},
]


@pytest.mark.parametrize("change", WRONG, ids=lambda change: ascii(change)[:60])
def test_wrong_arguments_are_refused_before_anything_is_changed(
    local: Sources, change: dict[str, Any]
) -> None:
    write(local.session, {"a/c/0": b"native"})
    before, mutations = contents(local.session), local.session.tree.mutations
    with pytest.raises(vstore.InvalidInputError):
        local.set(1, **change)
    assert contents(local.session) == before
    assert local.session.tree.mutations == mutations
    local.session.commit("still works")
    assert contents(local.place.open().readonly_session("main")) == before


def test_no_array_no_references(local: Sources) -> None:
    write(local.session, {"g/zarr.json": GROUP, "v": b"1"})
    for path in ("absent", "g", "v", "", "a/c"):
        with pytest.raises(vstore.NodeNotFoundError, match="no array"):
            local.set(array_path=path)


def test_no_references_through_a_readonly_store(local: Sources) -> None:
    local.session.commit("the array")
    with pytest.raises(ValueError, match="read-only"):
        local.set()


def test_numpy_integers_are_no_trouble(local: Sources) -> None:
    """What reads modification times gives numpy integers."""
    local.set(1, checksum=np.int64(modified_us(local.file)), chunk_grid_shape=(np.int64(1),))
    assert local.read() == local.chunk(0)


CHANGES = {
    "not a node": b"not json",
    "a group": GROUP,
    "another encoding": array_document((CHUNK * COUNT,), (CHUNK,), separator="."),
    "another rank": array_document((CHUNK * COUNT, 1), (CHUNK, 1)),
    "gone": None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_virtual_chunks_can_not_follow_is_refused_whole(local: Sources, change: str) -> None:
    local.set(3)
    write(local.session, {"a/c/4": b"native", "a/c/5": b"n" * 1000})
    before = contents(local.session)
    document = CHANGES[change]

    def attempt() -> None:
        if document is None:
            local.session.tree.delete("a/zarr.json")
        else:
            write(local.session, {"a/zarr.json": document})

    with pytest.raises(vstore.InvalidInputError, match="virtual chunk"):
        attempt()
    assert contents(local.session) == before
    local.session.commit("still works")
    assert contents(local.repository.readonly_session("main")) == before
