"""The storage contract over object store servers, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import servers
from tests.xml_server import xml_server
from vstore.ids import new_nonce
from vstore.storage.base import Storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.storage_contract import StorageContract

pytestmark = pytest.mark.server


class TestMinistack(StorageContract):
    @pytest.fixture
    def storage(self, ministack: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        servers.set_s3_environment(monkeypatch)
        return ObjectStorage(servers.s3_store(ministack, new_nonce().hex()))


class TestAzurite(StorageContract):
    @pytest.fixture
    def storage(self, azurite: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        servers.set_azure_environment(monkeypatch)
        return ObjectStorage(servers.azure_store(azurite, new_nonce().hex()))


class TestGoogleDialect(StorageContract):
    """obstore's code for Google Cloud Storage, against our own reading of its XML API."""

    @pytest.fixture
    def storage(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
        with xml_server(google=True) as server:
            store = server.store("some/where")
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", store.config["service_account_key"])
            yield ObjectStorage(store, "else")


@pytest.mark.deep
class TestS3Dialect(StorageContract):
    """The same server as an S3 one, so that what is asked of it elsewhere is known to be answered well."""

    @pytest.fixture
    def storage(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
        servers.set_s3_environment(monkeypatch)
        with xml_server(page=7) as server:
            yield ObjectStorage(server.store("some/where"), "else")
