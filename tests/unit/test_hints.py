"""A hint of another repository, or of another copy of this one, never shows its data nor keeps anybody from his own."""

from __future__ import annotations

from typing import Any

import pytest
from obstore.store import MemoryStore

import vstore
from tests.faults.site import far_future
from tests.repositories import commit, contents
from vstore.blobs.cache import CACHE
from vstore.keys.objects import LATEST


def copied(store: Any) -> MemoryStore:
    copy = MemoryStore()
    for batch in store.list():
        for meta in batch:
            copy.put(meta["path"], store.get(meta["path"]).bytes())
    return copy


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    with vstore.Repository.create(store) as repository:
        commit(repository, {"mine": b"mine" * 500})
    return store


@pytest.fixture(params=["another repository", "another copy"])
def lying(request: pytest.FixtureRequest, store: MemoryStore) -> MemoryStore:
    other: Any = MemoryStore()
    if request.param == "another copy":
        other = copied(store)
    else:
        vstore.Repository.create(other).close()
    with vstore.Repository.open(other) as repository:
        for number in range(3):
            commit(repository, {"theirs": b"theirs %d" % number * 500})
    store.put(LATEST, other.get(LATEST).bytes())
    CACHE.clear()
    return store


def test_reading(lying: MemoryStore) -> None:
    with vstore.Repository.open(lying) as repository:
        assert contents(repository.readonly_session("main")) == {"mine": b"mine" * 500}
        assert [info.message for info in repository.ancestry(branch="main")] == [
            "a commit",
            "Repository initialized",
        ]
        report = repository.fsck(data=True)
        assert ["latest" in damage.problem for damage in report.damages] == [True]


def test_writing_replaces_it(lying: MemoryStore) -> None:
    with vstore.Repository.open(lying) as repository:
        commit(repository, {"more": b"more" * 500})
    CACHE.clear()
    with vstore.Repository.open(lying) as repository:
        assert contents(repository.readonly_session("main")) == {
            "mine": b"mine" * 500,
            "more": b"more" * 500,
        }
        assert repository.fsck(data=True).damages == []


def test_collecting_deletes_nothing_of_what_is_needed(lying: MemoryStore) -> None:
    with vstore.Repository.open(lying) as repository:
        for _ in range(3):
            repository.garbage_collect(far_future())
    with vstore.Repository.open(lying) as repository:
        assert contents(repository.readonly_session("main")) == {"mine": b"mine" * 500}
        # There was nothing to collect, and nothing was written.
        assert ["latest" in damage.problem for damage in repository.fsck(data=True).damages] == [True]


def test_a_missing_pack_is_still_missing(store: MemoryStore) -> None:
    with vstore.Repository.open(store) as repository:
        for info in repository.handle.storage.list("packs/"):
            store.delete(info.name)
        CACHE.clear()
        with pytest.raises(vstore.MissingBlobError):
            repository.readonly_session("main")
