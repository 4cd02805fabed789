"""The catalog contract over the log in object store servers, where they are installed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import servers
from tests.contract.test_catalog import LogContract
from tests.xml_server import xml_server
from vstore.ids import new_nonce
from vstore.storage.base import Storage
from vstore.storage.objects import ObjectStorage

pytestmark = pytest.mark.server


class TestLogInMinistack(LogContract):
    @pytest.fixture
    def storage(self, ministack: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        servers.set_s3_environment(monkeypatch)
        return ObjectStorage(servers.s3_store(ministack, new_nonce().hex()))


@pytest.mark.deep  # Azurite takes 2 ms for each request
class TestLogInAzurite(LogContract):
    @pytest.fixture
    def storage(self, azurite: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
        servers.set_azure_environment(monkeypatch)
        return ObjectStorage(servers.azure_store(azurite, new_nonce().hex()))


class TestLogInGoogleDialect(LogContract):
    @pytest.fixture
    def storage(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
        with xml_server(google=True) as server:
            store = server.store()
            monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", store.config["service_account_key"])
            yield ObjectStorage(store)
