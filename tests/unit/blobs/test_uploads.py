"""Packs that an object store does not take at once are put again, under other names, after longer and longer pauses."""

from __future__ import annotations

import pytest
from obstore.store import MemoryStore

import vstore
from tests.repositories import START_US, HandClock, commit
from vstore.blobs.uploads import LOCAL_TRIES, REMOTE_TRIES
from vstore.errors import OutcomeUnknownError
from vstore.ids import PackId
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.pack import ObjectPack


class BusyStorage(ObjectStorage):
    """Takes no packs for a while."""

    refusals = 0
    names: list[PackId]

    def open_pack(self, pack: PackId) -> ObjectPack:
        def upload(data: memoryview) -> None:
            self.names.append(pack)
            if self.refusals:
                self.refusals -= 1
                raise OutcomeUnknownError("503 SlowDown")
            self._upload(f"packs/{pack.hex()[:2]}/{pack.hex()}", data)

        return ObjectPack(pack, upload, lambda offset, length: memoryview(b""))


@pytest.fixture
def storage() -> BusyStorage:
    storage = BusyStorage(MemoryStore())
    storage.names = []
    return storage


def test_a_commit_waits_for_a_store_that_is_busy(storage: BusyStorage) -> None:
    clock = HandClock()
    repository = vstore.Repository.create(storage, clock=clock)
    storage.names.clear()
    storage.refusals = REMOTE_TRIES - 1
    commit(repository, {"a": b"1"})
    assert len(set(storage.names)) == len(storage.names) == REMOTE_TRIES
    assert 3 < (clock.time_us - START_US) / 1e6 < 7


def test_a_store_that_stays_busy_fails_the_commit_and_nothing_more(storage: BusyStorage) -> None:
    repository = vstore.Repository.create(storage, clock=HandClock())
    session = repository.writable_session("main")
    session.tree_for_writing().set("a", b"1" * 1000)
    storage.refusals = 1000
    with pytest.raises(vstore.StorageError, match="Nothing was committed") as caught:
        session.commit("busy")
    assert not isinstance(caught.value, OutcomeUnknownError)
    storage.refusals = 0
    session.commit("not busy")
    assert repository.readonly_session("main").tree.read("a") == b"1" * 1000


def test_creating_says_that_nothing_was_made(storage: BusyStorage) -> None:
    storage.refusals = 1000
    with pytest.raises(vstore.StorageError, match="No repository was made"):
        vstore.Repository.create(storage, clock=HandClock())
    storage.refusals = 0
    vstore.Repository.create(storage, clock=HandClock())


def test_a_local_disk_is_not_waited_for() -> None:
    assert LOCAL_TRIES < REMOTE_TRIES
