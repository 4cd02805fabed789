"""The servers behind the proxies, one of each kind for each test process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.site import Site, azurite_site, ministack_site


@pytest.fixture(scope="session")
def ministack() -> Iterator[Site]:
    with ministack_site() as site:
        yield site


@pytest.fixture(scope="session")
def azurite() -> Iterator[Site]:
    with azurite_site() as site:
        yield site
