"""How many requests an object store gets: exact numbers, which are what a slow and metered service costs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import zarr
from msgspec.structs import replace
from obstore.store import MemoryStore

import vstore
from tests.repositories import GROUP, array_document, commit, write
from vstore.blobs.cache import CACHE, set_cache_bytes
from vstore.catalog.state import encode_identity
from vstore.format.log_record import LogRecord, decode_log_object, encode_record
from vstore.format.refs import BlobRef
from vstore.history import require_entry
from vstore.ids import new_nonce
from vstore.keys.objects import LATEST, log_name
from vstore.ops.census import Census, History
from vstore.storage.objects import ObjectStorage
from vstore.testing.latency import LatencyStore
from vstore.worktree.contents import StoredChunk
from vstore.zarr_pipeline import enable

FUSED = "zarr.core.codec_pipeline.FusedCodecPipeline"
CHUNK = 1024
LATENCY_S = 0.01
"""Enough for requests to overlap as they do in earnest; no test looks at a clock."""


class Remote:
    """An object store that notes its requests."""

    def __init__(self, distance_s: float = 0) -> None:
        self.latency = LatencyStore(MemoryStore(), 0)
        self.distance_s = distance_s
        self.names: list[tuple[str, str]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.bytes_read = 0
        self.meeting: threading.Barrier | None = None
        self.late = 0
        self.storage = _NotingStorage(self.latency)
        self.storage.remote = self

    @property
    def requests(self) -> Counter[str]:
        return self.latency.requests

    def reset(self) -> None:
        self.latency.reset()
        self.names.clear()
        self.ranges.clear()
        self.bytes_read = 0
        self.late = 0

    def another(self) -> vstore.Repository:
        """Open the repository as another process would, from its distance."""
        CACHE.clear()
        self.latency.latency_s = self.distance_s
        self.reset()
        return vstore.Repository.open(self.storage)


class _NotingStorage(ObjectStorage):
    remote: Remote

    def read(self, name: str, offset: int, length: int) -> memoryview:
        self._note("read", name)
        self.remote.ranges.append((name, offset, length))
        # By who waits for it, and not by the threads that fetch what is needed soon.
        self.remote.late += not threading.current_thread().name.startswith("vstore-read")
        self.remote.bytes_read += length
        return super().read(name, offset, length)

    def read_whole(self, name: str, limit: int) -> bytes:
        self._note("read_whole", name)
        return super().read_whole(name, limit)

    def _note(self, method: str, name: str) -> None:
        self.remote.names.append((method, name))
        if self.remote.meeting is not None and name != LATEST:
            self.remote.meeting.wait(30)


@pytest.fixture
def remote() -> Iterator[Remote]:
    CACHE.clear()
    yield Remote()
    CACHE.clear()


@pytest.fixture
def distant() -> Iterator[Remote]:
    CACHE.clear()
    yield Remote(LATENCY_S)
    CACHE.clear()


@contextmanager
def pipeline(name: str) -> Iterator[None]:
    if name == "own":
        with enable():
            yield
    elif name == "fused":
        if not hasattr(zarr.core.codec_pipeline, "FusedCodecPipeline"):
            pytest.skip("this zarr has no such pipeline")
        with zarr.config.set({"codec_pipeline.path": FUSED}):
            yield
    else:
        yield


def values_of(count: int, items: int = CHUNK) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 2**30, (count, items), dtype="i4")


def fill(repository: vstore.Repository, name: str, values: np.ndarray[Any, Any]) -> str:
    """Write an array with a chunk for each row and commit it."""
    session = repository.writable_session("main")
    array = zarr.create_array(
        session.store,
        name=name,
        shape=values.shape,
        chunks=(1, values.shape[1]),
        dtype="i4",
        compressors=None,
        overwrite=True,
    )
    array[:] = values
    return session.commit(name)


def opened(repository: vstore.Repository, name: str = "a") -> Any:
    return zarr.open_array(repository.readonly_session("main").store, path=name, mode="r")


# --- opening -------------------------------------------------------------------------------------------------


def test_opening_is_the_hint_and_then_a_probe_together_with_the_metadata(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    values = values_of(20)
    fill(repository, "a", values)
    again = remote.another()
    assert remote.requests == {"get": 1}
    assert remote.names == [("read_whole", LATEST)]
    # Each waits for the other: they are under way at once, or this fails.
    remote.meeting = threading.Barrier(2)
    session = again.readonly_session("main")
    remote.meeting = None
    assert remote.requests == {"get": 2, "get_range": 1}
    array = zarr.open_array(session.store, path="a", mode="r")
    assert remote.requests.total() == 3, "the documents came along"
    np.testing.assert_array_equal(array[7], values[7])
    # Of four requests two are under way together: three round trips.
    assert remote.requests.total() == 4


def test_a_writable_session_is_opened_likewise(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    commit(repository, {"zarr.json": GROUP, "a/zarr.json": array_document((10,))})
    again = remote.another()
    again.handle.catalog.check_writable()
    # A writer makes sure of the hint, once.
    assert again.handle.catalog.confirm()
    remote.meeting = threading.Barrier(2)
    again.writable_session("main")


def test_a_session_sees_what_others_committed_since_the_repository_was_opened(remote: Remote) -> None:
    """L4 and freshness: what was seen when opening only says what to fetch ahead."""
    one = vstore.Repository.create(remote.storage)
    other = remote.another()
    for number in range(3):
        fill(one, "a", values_of(number + 1))
        CACHE.clear()
        assert opened(other).shape == (number + 1, CHUNK)


def test_unpickling_a_session_asks_for_nothing(remote: Remote) -> None:
    """Dask unpickles where an error belongs to no task, and would leave it waiting."""
    repository = vstore.Repository.create(remote.storage)
    commit(repository, {"zarr.json": GROUP})
    session = repository.readonly_session("main")
    function, arguments = session.__reduce__()
    remote.reset()
    CACHE.clear()
    again = function(*arguments)
    assert remote.requests.total() == 0
    assert again.tree.read("zarr.json") == GROUP
    assert again == session


def test_settings_are_the_newest_although_the_hint_is_old(remote: Remote) -> None:
    """Opening reads them from the hint; whoever works with them, works with those in the log's newest record."""
    one = vstore.Repository.create(remote.storage)
    hint = remote.storage.read_whole(LATEST, 2**20)
    changed = vstore.RepositoryConfig(inline_chunk_threshold_bytes=7)
    with vstore.Repository.open(remote.storage, config=changed) as opened_with:
        opened_with.save_config()
    commit(one, {"zarr.json": GROUP})
    uses = (
        lambda repository: repository.config,
        lambda repository: repository.handle.config,
        lambda repository: repository.readonly_session("main")._handle.config,
        lambda repository: repository.writable_session("main")._handle.config,
    )
    for use in uses:
        remote.storage.write(LATEST, hint)
        assert use(remote.another()) == changed


def test_a_newer_format_beyond_the_hint_is_refused_by_the_first_session(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    head = repository.handle.catalog.recall()
    assert head is not None
    record = decode_log_object(remote.storage.read_whole(log_name(0), 2**20))
    assert isinstance(record, LogRecord)
    newer = encode_identity(head.identity._replace(required_features=("not-yet",)))
    remote.storage.create(
        log_name(1), encode_record(replace(record, sequence=1, nonce=new_nonce(), identity=newer))
    )
    again = remote.another()
    with pytest.raises(vstore.UnsupportedFormatError, match="not-yet"):
        again.readonly_session("main")
    with pytest.raises(vstore.UnsupportedFormatError, match="not-yet"):
        again.list_branches()


def test_a_warm_handle_looks_once_for_each_session(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    fill(repository, "a", values_of(10))
    opened(repository)[3]
    remote.reset()
    opened(repository)[3]
    assert remote.requests == {"get": 1}


def test_listing_takes_no_request_once_the_head_is_open(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    for number in range(10):
        fill(repository, f"array-{number}", values_of(3))
    again = remote.another()
    group = zarr.open_group(again.readonly_session("main").store, mode="r")
    remote.reset()
    assert len(list(group.members())) == 10
    assert remote.requests.total() == 0


def test_opening_all_arrays_takes_no_more_than_listing_them(remote: Remote) -> None:
    """Names and documents are in the same pages: what was fetched for one is at hand for the other."""
    session = vstore.Repository.create(remote.storage).writable_session("main")
    write(
        session, {"zarr.json": GROUP} | {f"a{n:04d}/zarr.json": array_document((n + 1,)) for n in range(500)}
    )
    session.commit("more than a page")
    group = zarr.open_group(remote.another().readonly_session("main").store, mode="r")
    remote.reset()
    assert len(list(group.members())) == 500
    assert remote.requests.total() == 0


def test_pages_of_many_commits_are_fetched_once_each(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    documents = {f"a{n:04d}/zarr.json": array_document((n + 1,)) for n in range(0, 500, 2)}
    commit(repository, {"zarr.json": GROUP} | documents)
    for number in range(1, 500, 25):
        commit(repository, {f"a{number:04d}/zarr.json": array_document((number + 1,))})
    group = zarr.open_group(remote.another().readonly_session("main").store, mode="r")
    assert len(list(group.members())) == 260
    assert len(remote.ranges) == len(set(remote.ranges)) > 5


def test_metadata_that_is_expected_is_fetched_at_once(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    entries = []
    for number in range(4):
        commit(repository, {f"v{number}": b"x" * 100})
        with repository.handle.catalog.reading() as view:
            entries.append(require_entry(view, bytes.fromhex(repository.lookup_branch("main"))))
    blobs = remote.another().handle.blobs_for(None)
    refs = [entry.ref for entry in entries]
    # Each waits for the others: they are under way at once, or this fails.
    remote.meeting = threading.Barrier(4)
    blobs.expect(refs)
    found = [blobs.snapshot(ref) for ref in refs]
    remote.meeting = None
    assert len({snapshot.root for snapshot in found}) == 4
    remote.reset()
    blobs.expect(refs)
    assert remote.requests.total() == 0, "they are at hand"


def of_many_tiles(remote: Remote) -> tuple[vstore.Repository, str]:
    """Make an array of 64 tiles, 40 of them written, each by a commit of its own; also return the first of these."""
    repository = vstore.Repository.create(remote.storage)
    session = repository.writable_session("main")
    shape = (2048, 2048)
    array = zarr.create_array(
        session.store, name="a", shape=shape, chunks=(2, 2), dtype="i4", compressors=None
    )
    session.commit("make")
    extents = session.tree.nodes.node("a").array.extents  # type: ignore[union-attr]
    assert (1024 // extents[0]) * (1024 // extents[1]) == 64
    snapshots = []
    for number in range(40):
        session = repository.writable_session("main")
        array = zarr.open_array(session.store, path="a")
        row, column = 2 * extents[0] * (number // 8), 2 * extents[1] * (number % 8)
        # More than what lies in the page itself.
        array[row : row + 40, column : column + 40] = number + 1
        snapshots.append(session.commit(f"tile {number}"))
    return repository, snapshots[0]


def test_manifests_of_many_tiles_are_fetched_before_they_are_needed(remote: Remote) -> None:
    _, first = of_many_tiles(remote)

    async def count_keys(store: Any) -> int:
        return len([key async for key in store.list_prefix("a/c")])

    session = remote.another().readonly_session("main")
    remote.reset()
    assert asyncio.run(count_keys(session.store)) == 40 * 400
    assert len(remote.ranges) == len(set(remote.ranges)) >= 39
    assert remote.late <= 4, "a page or two, and the first manifest"
    session = remote.another().readonly_session("main")
    remote.reset()
    (boxes,) = session.diff(snapshot_id=first).chunk_boxes.values()
    assert len(boxes) > 0
    assert len(remote.ranges) >= 39
    assert remote.late <= 8


def test_accounting_reads_manifests_once_and_ahead(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    for number in range(8):
        fill(repository, f"a{number}", values_of(400, 200) + number)
    again = remote.another()
    again.storage_stats()
    assert len(remote.ranges) == 9, "the metadata of each commit"
    assert remote.late == 0


def test_a_census_expects_no_manifests_as_it_reads_none(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = vstore.Repository.create(remote.storage)
    for number in range(4):
        fill(repository, f"a{number}", values_of(100, 200) + number)
    repository = remote.another()
    blobs = repository.handle.blobs_for(None)
    expected: set[BlobRef] = set()
    monkeypatch.setattr(blobs, "expect", expected.update)
    with repository.handle.catalog.reading() as view:
        census = Census(blobs, History(view))
    census.run(lambda *_: None)
    manifests = {tile.manifest for tile in census.tiles.values()}
    assert len(manifests) == 4
    assert not manifests & expected


@pytest.fixture
def small_cache() -> Iterator[None]:
    before = CACHE.limit_bytes
    set_cache_bytes(400_000)
    yield
    set_cache_bytes(before)


@pytest.mark.usefixtures("small_cache")
def test_no_more_metadata_is_expected_than_a_small_cache_keeps(
    remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = vstore.Repository.create(remote.storage)
    snapshots = [commit(repository, {"v": bytes([number]) * 30_000}) for number in range(9)]
    with repository.handle.catalog.reading() as view:
        entries = [require_entry(view, bytes.fromhex(snapshot)) for snapshot in snapshots]
    blobs = remote.another().handle.blobs_for(None)
    remote.reset()
    begun: list[int] = []
    assert blobs.remote is not None
    monkeypatch.setattr(blobs.remote.fetcher, "begin", lambda pack, start, stop: begun.append(stop - start))
    blobs.expect(entry.ref._replace(length=20_000) for entry in entries)
    assert begun == [20_000, 20_000]


def test_a_history_that_has_left_the_record_comes_in_few_requests(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    for number in range(120):
        commit(repository, {"v": b"%d" % number})
    again = remote.another()
    with again.handle.catalog.reading() as view:
        assert len(list(view.iter_pages())) > 5, "nothing was spilled"
    again = remote.another()
    assert len(list(again.ancestry(branch="main"))) == 121
    assert remote.late <= 4, "a root, and the pages of the first look-ups"


# --- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["default", "fused", "own"])
@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.deep)])
def test_small_chunks_go_up_in_packs(remote: Remote, name: str, count: int) -> None:
    repository = vstore.Repository.create(remote.storage)
    repository.writable_session("main")
    remote.reset()
    with pipeline(name):
        fill(repository, "a", values_of(count))
    packs = -(-count * 4 * CHUNK // (32 * 2**20))
    # Packs, the log's record and the hint; a session that seals a pack before it commits is registered first.
    registration = 2 if packs > 1 else 0
    assert remote.requests["put"] == packs + 2 + registration
    assert remote.requests["list"] == remote.requests["head"] == 0
    assert remote.requests["get"] + remote.requests["get_range"] <= 4 + 2 * registration


def test_chunks_lie_in_packs_as_readers_want_them_whichever_came_first(remote: Remote) -> None:
    session = vstore.Repository.create(remote.storage).writable_session("main")
    write(session, {f"{name}/zarr.json": array_document((4, 50), chunks=(1, 1)) for name in "ab"})
    keys = [f"{name}/c/{row}/{column}" for column in range(50) for row in range(4) for name in "ab"]
    write(session, {key: key.encode() * 100 for key in reversed(keys)})
    session.commit("backwards, and column by column")
    tree = remote.another().readonly_session("main").tree
    found = [tree.find(key) for key in sorted(keys, key=_numbers)]
    places = [source.ref for source in found if isinstance(source, StoredChunk)]
    assert len(places) == len(keys)
    assert len({ref.pack for ref in places}) == 1
    assert [ref.offset for ref in places] == sorted(ref.offset for ref in places)


def _numbers(key: str) -> tuple[str, int, int]:
    name, _, row, column = key.split("/")
    return name, int(row), int(column)


def test_a_small_commit_by_a_warm_handle(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    fill(repository, "a", values_of(100))
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a")[5] = 1
    remote.reset()
    session.commit("small")
    assert remote.requests == {"put": 3, "get": 2}


def test_a_small_commit_by_a_cold_handle(remote: Remote) -> None:
    fill(vstore.Repository.create(remote.storage), "a", values_of(100))
    repository = remote.another()
    repository.handle.catalog.check_writable()  # tries out the storage, once for each handle
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="a")[5] = 1
    remote.reset()
    session.commit("small")
    # One more: the record that only the hint has named so far is looked at.
    assert remote.requests["put"] == 3
    assert remote.requests["get"] <= 3
    assert remote.requests["get_range"] == remote.requests["list"] == remote.requests["head"] == 0


def test_writing_over_an_array_waits_for_no_request_per_chunk(remote: Remote) -> None:
    fill(vstore.Repository.create(remote.storage), "a", values_of(1000))
    repository = remote.another()
    session = repository.writable_session("main")
    array = zarr.open_array(session.store, path="a")
    remote.reset()
    array[:] = values_of(1000) + 1
    assert remote.requests.total() == 0


# --- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "most"), [("default", 14), ("fused", 14), ("own", 2)])
def test_a_whole_array_comes_in_few_requests_and_once(distant: Remote, name: str, most: int) -> None:
    values = values_of(1000)
    fill(vstore.Repository.create(distant.storage), "a", values)
    with pipeline(name):
        array = opened(distant.another())
        distant.reset()
        np.testing.assert_array_equal(array[:], values)
        assert distant.requests.keys() == {"get_range"}
        assert distant.requests["get_range"] <= most
        assert distant.bytes_read < 1.1 * values.nbytes
        distant.reset()
        np.testing.assert_array_equal(array[:], values)
        assert distant.requests.total() == 0


def test_reading_and_writing_go_on_side_by_side(distant: Remote) -> None:
    values = values_of(300, 16 * 1024)
    fill(vstore.Repository.create(distant.storage), "a", values)
    with enable():
        array = opened(distant.another())
        distant.reset()
        np.testing.assert_array_equal(array[:], values)
    assert distant.latency.most_at_once >= 2  # more on a machine with nothing else to do


def test_many_threads_with_vstores_pipeline_have_as_many_requests_under_way(remote: Remote) -> None:
    """An event loop's own threads are a few for each processor: with them, more readers than that would queue."""
    values = values_of(1000)
    fill(vstore.Repository.create(remote.storage), "a", values)
    count = min((os.cpu_count() or 1) + 8, 30)
    with enable():
        array = opened(remote.another())
        array[999]  # and the manifest
        # Each waits for all others: they are under way at once, or this fails.
        remote.meeting = threading.Barrier(count)
        with ThreadPoolExecutor(count) as pool:
            found = list(pool.map(lambda number: array[30 * number], range(count)))
        remote.meeting = None
    for number, row in enumerate(found):
        np.testing.assert_array_equal(row, values[30 * number])


def test_single_chunks_here_and_there_cost_a_request_and_their_bytes_each(remote: Remote) -> None:
    values = values_of(2000)
    fill(vstore.Repository.create(remote.storage), "a", values)
    array = opened(remote.another())
    array[1999]  # and the manifest
    remote.reset()
    for number in range(40):
        row = number * 7919 % 1999
        np.testing.assert_array_equal(array[row], values[row])
    assert remote.requests == {"get_range": 40}
    assert remote.bytes_read == 40 * 4 * CHUNK


def test_sessions_share_what_was_read(remote: Remote) -> None:
    values = values_of(50)
    repository = vstore.Repository.create(remote.storage)
    fill(repository, "a", values)
    reader = remote.another()
    opened(reader)[:]
    other = vstore.Repository.open(remote.storage)
    remote.reset()
    for each in (reader, other):
        np.testing.assert_array_equal(opened(each)[:], values)
    assert remote.requests.keys() == {"get"}, "only the probes"


def test_equal_chunks_are_fetched_once_wherever_they_are(remote: Remote) -> None:
    values = values_of(10)
    repository = vstore.Repository.create(remote.storage)
    fill(repository, "a", values)
    fill(repository, "b", values)
    reader = remote.another()
    opened(reader)[:]
    array = opened(reader, "b")
    array.shape  # noqa: B018
    remote.reset()
    np.testing.assert_array_equal(array[:], values)
    assert remote.bytes_read < values.nbytes / 2, "a manifest at most"


def test_many_variables_of_many_commits_are_looked_up_at_once(distant: Remote) -> None:
    repository = vstore.Repository.create(distant.storage)
    names = [f"v{number}" for number in range(30)]
    for name in names:
        fill(repository, name, values_of(2) + len(name) * 1000 + int(name[1:]))
    session = distant.another().readonly_session("main")
    distant.reset()

    async def read() -> list[Any]:
        from zarr.core.buffer import default_buffer_prototype

        prototype = default_buffer_prototype()
        keys = [f"{name}/c/0/0" for name in names]
        return await asyncio.gather(*(session.store.get(key, prototype) for key in keys))

    assert all(found is not None for found in asyncio.run(read()))
    # A manifest and a chunk for each, and a few pages.
    assert distant.requests["get_range"] <= 66
    assert distant.latency.most_at_once >= 4  # more on a machine with nothing else to do


def test_concurrent_look_ups_fetch_a_manifest_once(distant: Remote) -> None:
    repository = vstore.Repository.create(distant.storage)
    fill(repository, "a", values_of(100))
    write_other = repository.writable_session("main")
    write(write_other, {"b": b"x" * 3000})
    write_other.commit("so that the manifest is in an older pack")
    array = opened(distant.another())
    distant.reset()
    array[:]
    assert len(distant.ranges) == len(set(distant.ranges)) > 1


def test_ranges_of_a_shard_take_one_request_once_its_index_is_known(remote: Remote) -> None:
    values = np.random.default_rng(0).integers(0, 2**60, (1000, 1000))
    session = vstore.Repository.create(remote.storage).writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=values.shape, shards=(1000, 1000), chunks=(10, 1000), dtype="i8"
    )
    array[:] = values
    session.commit("one shard of 8 MB")
    reader = opened(remote.another())
    counts = []
    for row in (100, 500, 700, 300):
        remote.reset()
        np.testing.assert_array_equal(reader[row], values[row])
        counts.append(remote.requests["get_range"])
    # The index first, with the checksums.
    assert counts == [2, 1, 1, 1]


# --- the rest ------------------------------------------------------------------------------------------------


def test_no_operation_but_collecting_lists(remote: Remote) -> None:
    repository = vstore.Repository.create(remote.storage)
    first = fill(repository, "a", values_of(10))
    fill(repository, "b", values_of(10))
    again = remote.another()
    again.readonly_session("main").diff(snapshot_id=first)
    list(again.ancestry(branch="main"))
    again.create_tag("v1", first)
    assert remote.requests["list"] == 0
    remote.reset()
    again.garbage_collect()
    assert 0 < remote.requests["list"] < 10


def test_maintenance_reads_many_commits_at_once(distant: Remote) -> None:
    repository = vstore.Repository.create(distant.storage)
    for number in range(20):
        fill(repository, f"v{number}", values_of(2))
    for act in (lambda r: r.garbage_collect(), lambda r: r.fsck(), lambda r: r.compact(dry_run=True)):
        again = distant.another()
        act(again)
        assert distant.latency.most_at_once >= 4
