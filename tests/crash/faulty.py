"""Repositories whose requests go through a `FaultPlan`: of the storage, and where that is SQLite's, of the catalog."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import vstore
from tests.repositories import HandClock, Place
from vstore.blobs.spill import PackSpill
from vstore.blobs.virtual import VirtualReader
from vstore.catalog.base import Catalog, CatalogView, Identity, Outcome, Transaction
from vstore.catalog.location import open_catalog
from vstore.catalog.log import LogCatalog
from vstore.config import RepositoryConfig
from vstore.errors import CommitOutcomeUnknownError, OutcomeUnknownError, StorageError
from vstore.handle import Handle
from vstore.ids import TransactionId
from vstore.storage.location import open_storage
from vstore.testing.faults import FaultPlan, FaultyStorage
from vstore.testing.interleave import InterleavedCatalog, Interleaving


class FaultyCatalog:
    """A `Catalog` that keeps its state elsewhere than in the storage; each view and update is a request."""

    def __init__(self, inner: Catalog, plan: FaultPlan) -> None:
        self.inner = inner
        self.plan = plan
        self._in_doubt: set[TransactionId] = set()

    @property
    def identity(self) -> Identity:
        return self.inner.identity

    def reading(self) -> AbstractContextManager[CatalogView]:
        return self.plan.run("reading", "catalog", self.inner.reading)

    def recall(self) -> CatalogView | None:
        return self.inner.recall()

    def confirm(self) -> bool:
        return self.inner.confirm()

    def check_writable(self) -> None:
        self.inner.check_writable()

    def update(self, transaction: Transaction) -> Outcome:
        asked = transaction.transaction
        try:
            outcome = self.plan.run(
                "update", transaction.kind.name, lambda: self.inner.update(transaction), makes=True
            )
        except StorageError as error:
            if isinstance(error, OutcomeUnknownError):
                self._in_doubt.add(asked)
            if asked not in self._in_doubt:
                raise
            raise CommitOutcomeUnknownError(error.message, transaction_id=asked.hex()) from error
        self._in_doubt.discard(asked)
        return outcome

    def check(self) -> list[str]:
        return self.inner.check()

    def tidy(self) -> None:
        self.plan.run("tidy", "catalog", self.inner.tidy)

    def sweep(self) -> None:
        self.inner.sweep()

    def close(self) -> None:
        self.inner.close()


def open_faulty(
    place: Place, plan: FaultPlan, storage_type: type[FaultyStorage] = FaultyStorage
) -> vstore.Repository:
    """Open the repository at `place` with all its requests in `plan`. Waits between tries take no time."""
    bare = open_storage(place.location)
    storage = storage_type(bare, plan)
    clock = HandClock()
    catalog: Any
    if place.kind == "sqlite":
        catalog = FaultyCatalog(open_catalog(bare, PackSpill(bare)), plan)
    else:
        catalog = LogCatalog.open(storage, PackSpill(storage), clock=clock)
    return vstore.Repository(Handle(storage, catalog, VirtualReader(), RepositoryConfig(), "ada", clock))


def open_interleaved(place: Place, schedule: Interleaving) -> vstore.Repository:
    """Open the repository at `place` with its requests under a schedule. Waits between tries take no time."""
    bare = open_storage(place.location)
    storage = schedule.storage(bare)
    clock = HandClock()
    catalog: Any
    if place.kind == "sqlite":
        catalog = InterleavedCatalog(open_catalog(bare, PackSpill(bare)), schedule)
    else:
        catalog = LogCatalog.open(storage, PackSpill(storage), clock=clock)
    return vstore.Repository(Handle(storage, catalog, VirtualReader(), RepositoryConfig(), "ada", clock))
