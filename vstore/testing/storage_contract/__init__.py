"""The tests that every storage must pass: the sentences of `vstore.storage.base`, one by one.

A test module subclasses `StorageContract` and overrides the fixture `storage`, which gives an empty storage that may be
written to.
"""

# ruff: noqa: E402
from __future__ import annotations

import pytest

_GROUPS = ("lifetime", "making", "names", "packs", "reading", "writing")
# So that a failure says what was compared: it must come before their imports.
pytest.register_assert_rewrite(*(f"{__name__}.{group}" for group in _GROUPS))

from vstore.testing.storage_contract.lifetime import LifetimeTests
from vstore.testing.storage_contract.names import NameTests
from vstore.testing.storage_contract.packs import PackTests
from vstore.testing.storage_contract.reading import ReadingTests
from vstore.testing.storage_contract.writing import WritingTests

__all__ = ["StorageContract"]


class StorageContract(LifetimeTests, ReadingTests, WritingTests, NameTests, PackTests):
    """Subclass and override `storage`."""
