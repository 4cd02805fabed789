"""The storage contract over object store servers, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import servers
from vstore.ids import new_nonce
from vstore.storage.base import Storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.storage_contract import StorageContract

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    with servers.ministack() as url:
        yield url


class TestMinistack(StorageContract):
    @pytest.fixture
    def storage(self, ministack: str) -> Storage:
        return ObjectStorage(servers.s3_store(ministack, new_nonce().hex()))


@pytest.fixture(scope="module")
def azurite() -> Iterator[str]:
    with servers.azurite() as url:
        yield url


class TestAzurite(StorageContract):
    @pytest.fixture
    def storage(self, azurite: str) -> Storage:
        return ObjectStorage(servers.azure_store(azurite, new_nonce().hex()))
