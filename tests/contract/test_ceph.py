"""The contracts over Ceph's gateway: the only server here that people run in production."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ceph import KEYS, ceph
from tests.contract.test_catalog import LogContract
from tests.contract.test_racing_creates import begin, check, in_processes, in_threads
from tests.servers import s3_store
from vstore.ids import new_nonce
from vstore.storage.base import Storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.storage_contract import StorageContract

pytestmark = [pytest.mark.server, pytest.mark.deep]


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with ceph() as url:
        yield url


def storage_in(gateway: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret_access_key"])
    return ObjectStorage(s3_store(gateway, new_nonce().hex(), **KEYS))


@pytest.fixture
def storage(gateway: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    return storage_in(gateway, monkeypatch)


class TestCephStorage(StorageContract):
    @pytest.fixture
    def storage(self, gateway: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        return storage_in(gateway, monkeypatch)


class TestLogInCeph(LogContract):
    @pytest.fixture
    def storage(self, gateway: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        return storage_in(gateway, monkeypatch)


def test_of_racers_one_wins(storage: Storage) -> None:
    begin(storage)
    for race, rounds in (("creates", 500), ("updates", 50)):
        check(storage, race, in_threads(storage, race, rounds))


def test_of_racing_processes_one_wins(storage: Storage) -> None:
    begin(storage)
    races = [(storage, "creates", 300), (storage, "updates", 30)]
    for (_, race, _), results in zip(races, in_processes(races), strict=True):
        check(storage, race, results)
