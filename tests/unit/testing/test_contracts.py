"""The shipped contracts: what a user of them sees when a test fails."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

GROUPS = [
    module.name
    for contract in ("vstore.testing.catalog_contract", "vstore.testing.storage_contract")
    for module in pkgutil.iter_modules(importlib.import_module(contract).__path__, f"{contract}.")
]


@pytest.mark.parametrize("name", GROUPS)
def test_a_failed_assertion_says_what_was_compared(name: str) -> None:
    """Pytest does that only for modules that were registered with it before their import."""
    assert "@pytest_ar" in vars(importlib.import_module(name))
