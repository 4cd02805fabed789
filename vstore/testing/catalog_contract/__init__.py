"""The tests that every catalog must pass: the sentences of `vstore.catalog.base`, one by one.

A test module subclasses `CatalogContract` and overrides the fixtures `catalog`, which gives a new catalog made with
`IDENTITY` and `first_transaction()`, and `reopen`, which opens another handle to it. The functions that make entries
and transactions serve other tests of catalogs too.
"""

# ruff: noqa: E402
from __future__ import annotations

import pytest

_GROUPS = ("expiry", "making", "operations", "races", "refs", "sizes", "snapshots", "upkeep", "views")
# So that a failure says what was compared: it must come before their imports.
pytest.register_assert_rewrite(*(f"{__name__}.{group}" for group in _GROUPS))

from vstore.testing.catalog_contract.expiry import ExpiryTests
from vstore.testing.catalog_contract.making import (
    AUTHOR,
    BRANCH,
    IDENTITY,
    IMPOSSIBLE,
    MAIN,
    RACERS,
    ROOT,
    TAG,
    TIME_US,
    Reopen,
    apply,
    check_history,
    commit_many,
    commit_on,
    entry_of,
    expired_of,
    first_transaction,
    lease_of,
    pack_of,
    refuse,
    transaction_of,
)
from vstore.testing.catalog_contract.operations import OperationTests
from vstore.testing.catalog_contract.races import RaceTests
from vstore.testing.catalog_contract.refs import RefTests
from vstore.testing.catalog_contract.sizes import SizeTests
from vstore.testing.catalog_contract.snapshots import SnapshotTests
from vstore.testing.catalog_contract.upkeep import UpkeepTests
from vstore.testing.catalog_contract.views import ViewTests

__all__ = [
    "AUTHOR",
    "BRANCH",
    "CatalogContract",
    "IDENTITY",
    "IMPOSSIBLE",
    "MAIN",
    "RACERS",
    "ROOT",
    "Reopen",
    "TAG",
    "TIME_US",
    "apply",
    "check_history",
    "commit_many",
    "commit_on",
    "entry_of",
    "expired_of",
    "first_transaction",
    "lease_of",
    "pack_of",
    "refuse",
    "transaction_of",
]


class CatalogContract(
    RefTests, SnapshotTests, ExpiryTests, UpkeepTests, OperationTests, ViewTests, RaceTests, SizeTests
):
    """Subclass and override `catalog` and `reopen`."""
