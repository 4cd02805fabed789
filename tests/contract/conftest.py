"""Servers that the contracts are tried on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    with servers.ministack() as url:
        yield url


@pytest.fixture(scope="module")
def azurite() -> Iterator[str]:
    with servers.azurite() as url:
        yield url
