"""gc deletes what nothing names, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import vstore
from tests.repositories import GROUP, KINDS, Place, array_document, commit, contents, write
from tests.unit.ops.repositories import FUTURE, expire, marks, packs, snapshot_id
from vstore.blobs.cache import CACHE
from vstore.keys.objects import STAGING_PREFIX, pack_name
from vstore.ops.fsck import check
from vstore.storage.base import PackPolicy

BASE = {"zarr.json": GROUP, "a/zarr.json": array_document((8000,), (1000,))}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place.new(request.param, tmp_path)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        commit(repository, BASE)
        yield repository


def garbage(repository: vstore.Repository) -> str:
    """Leave a snapshot behind that nothing holds, and return its id."""
    session = repository.writable_session("main")
    write(session, {"a/c/7": b"lost" * 500})
    lost = session.flush("nobody's")
    expire(repository, lost)
    return lost


def test_a_repository_without_garbage_keeps_everything(repository: vstore.Repository) -> None:
    before = packs(repository)
    report = repository.garbage_collect(FUTURE)
    assert packs(repository) == before
    assert (report.garbage_packs, report.deleted_packs, report.condemned_packs) == (0, 0, 0)
    assert report.live_packs == len(before)


def test_what_nothing_names_is_deleted_in_one_call(repository: vstore.Repository) -> None:
    before = packs(repository)
    lost = garbage(repository)
    kept = contents(repository.readonly_session("main"))
    assert len(packs(repository).keys() - before.keys()) >= 1
    planned = repository.garbage_collect(FUTURE, dry_run=True)
    assert packs(repository).keys() > before.keys()
    report = repository.garbage_collect(FUTURE)
    assert (report.garbage_packs, report.garbage_bytes) == (planned.garbage_packs, planned.garbage_bytes)
    assert (report.deleted_packs, report.deleted_bytes) == (planned.garbage_packs, planned.garbage_bytes)
    assert report.is_complete
    assert marks(repository) == set()
    assert contents(repository.readonly_session("main")) == kept
    damage = check(repository, data=True)
    assert damage.damages == []
    # On the log catalog, gc itself may have spilled pages into a pack that the last round came too early for.
    repository.garbage_collect(FUTURE)
    assert check(repository).unreferenced_packs == 0
    with pytest.raises(vstore.SnapshotExpiredError, match=lost):
        repository.readonly_session(snapshot_id=lost)


def test_a_reader_of_swept_data_is_told_that_it_expired(place: Place, repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/c/7": b"lost" * 500})
    lost = session.flush("nobody's")
    with place.open() as other:
        reader = other.readonly_session(snapshot_id=lost)
        expire(repository, lost)
        repository.garbage_collect(FUTURE)
        # What it has mapped it could go on reading.
        other.close()
        with pytest.raises(vstore.SnapshotExpiredError, match=lost):
            contents(reader)


def test_young_garbage_waits(repository: vstore.Repository) -> None:
    garbage(repository)
    before = packs(repository)
    report = repository.garbage_collect()
    assert packs(repository) == before
    assert report.waiting_packs >= 1
    assert marks(repository) == set()
    assert "too young" in str(report)


def test_sessions_that_sealed_packs_are_left_alone(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository.handle.storage, "pack_policy", PackPolicy(4000, 1000, None))
    session = repository.writable_session("main")
    write(session, {f"a/c/{n}": bytes([n]) * 1000 for n in range(8)})
    session.tree.writer.flush()
    report = repository.garbage_collect(FUTURE)
    assert report.held_packs >= 1
    assert report.deleted_packs == 0
    assert "work in progress" in str(report)
    session.commit("all of it")
    assert contents(repository.readonly_session("main"))["a/c/3"] == b"\3" * 1000
    assert check(repository, data=True).damages == []


def test_what_a_dead_writer_staged_is_deleted(tmp_path: Path) -> None:
    with vstore.Repository.create(tmp_path / "repository") as repository:
        staged = tmp_path / "repository" / "staging" / ("ab" * 16)
        staged.parent.mkdir(exist_ok=True)
        staged.write_bytes(b"half a pack")
        assert repository.garbage_collect(FUTURE).waiting_packs == 1
        hour_ago = (datetime.now(UTC) - timedelta(hours=1)).timestamp()
        os.utime(staged, (hour_ago, hour_ago))
        session = repository.writable_session("main")
        write(session, {"value": b"v" * 2_000_000})
        assert len(packs(repository, STAGING_PREFIX)) == 2
        repository.garbage_collect(FUTURE)
        assert staged.name not in {name.rpartition("/")[2] for name in packs(repository, STAGING_PREFIX)}
        session.commit("the living")
        assert contents(repository.readonly_session("main")) == {"value": b"v" * 2_000_000}


def test_damaged_metadata_stops_gc(place: Place, repository: vstore.Repository) -> None:
    garbage(repository)
    head = repository.lookup_branch("main")
    with repository.handle.catalog.reading() as view:
        entry = view.snapshot(snapshot_id(head))
    assert entry is not None
    with place.open() as other:
        other.handle.storage.delete([pack_name(entry.ref.pack)])
        before = packs(other)
        with pytest.raises(vstore.CorruptionError, match="nothing was deleted"):
            other.garbage_collect(FUTURE)
        assert packs(other) == before


def test_a_read_only_repository_is_not_collected(repository: vstore.Repository) -> None:
    garbage(repository)
    repository.set_status("read_only")
    assert repository.garbage_collect(FUTURE, dry_run=True).garbage_packs >= 1
    with pytest.raises(vstore.ReadOnlyError):
        repository.garbage_collect(FUTURE)


def test_a_naive_time_is_refused(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.InvalidInputError):
        repository.garbage_collect(datetime(2100, 1, 1))  # noqa: DTZ001


def test_a_blob_that_lies_in_two_packs_is_kept_in_both(place: Place, repository: vstore.Repository) -> None:
    """Each branch needs its own, although the bytes are the same."""
    repository.create_branch("dev", repository.lookup_branch("main"))
    alike = {"i/zarr.json": array_document((40 * 64,), (64,))}
    commit(repository, alike)
    repository.reset_branch("dev", repository.lookup_branch("main"))
    chunks = {f"i/c/{number}": os.urandom(64) for number in range(40)}
    first, last = [], []
    for branch in ("main", "dev"):
        for values, made in ((chunks, first), ({"own": branch.encode()}, last)):
            session = repository.writable_session(branch)
            write(session, values)
            made.append(session.commit("a step"))
    expire(repository, *first)
    before = [contents(repository.readonly_session(snapshot_id=name)) for name in last]
    repository.garbage_collect(FUTURE)
    with place.open() as other:
        assert [contents(other.readonly_session(snapshot_id=name)) for name in last] == before


def test_a_storage_that_fails_while_marking_is_no_damage(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    garbage(repository)
    CACHE.clear()

    def read(name: str, offset: int, length: int) -> memoryview:
        raise vstore.StorageError("injected")

    before = packs(repository)
    with monkeypatch.context() as patched:
        patched.setattr(repository.handle.storage, "read", read)
        with pytest.raises(vstore.StorageError, match="injected"):
            repository.garbage_collect(FUTURE)
    assert packs(repository) == before
