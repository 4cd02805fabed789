"""Replies of an object store that are damaged on their way: what is stored is whole, so it is read again.

No operation fails for it, reports damage, or makes anything of what it was sent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from obstore.store import MemoryStore

import vstore
from tests.repositories import HandClock, Place, commit, quick_folder
from tests.unit.ops.repositories import FUTURE
from tests.unit.transfer.houses import contents_of, furnish
from vstore.blobs.cache import CACHE
from vstore.blobs.spill import PackSpill
from vstore.blobs.virtual import VirtualReader
from vstore.catalog.log import LogCatalog
from vstore.config import RepositoryConfig
from vstore.handle import Handle
from vstore.storage.location import open_storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage


@cache
def stored() -> dict[str, bytes]:
    """Return the objects of a repository that has something of everything."""
    with quick_folder() as folder:
        place = Place.new("memory", folder)
        with furnish(place, 4) as repository:
            # Small packs that compact would join.
            for number in range(3):
                commit(repository, {f"small/{number}": bytes([number]) * 700})
        storage = open_storage(place.location)
        return {info.name: bytes(storage.read(info.name, 0, info.size)) for info in storage.list("")}


def opened(plan: FaultPlan) -> vstore.Repository:
    store = MemoryStore()
    for name, data in stored().items():
        store.put(name, data)
    storage, clock = FaultyStorage(ObjectStorage(store), plan), HandClock()
    catalog = LogCatalog.open(storage, PackSpill(storage), clock=clock)
    return vstore.Repository(Handle(storage, catalog, VirtualReader(), RepositoryConfig(), "ada", clock))


def find_no_damage(repository: vstore.Repository) -> None:
    report = repository.fsck(data=True)
    assert report.is_clean, str(report)


def compact(repository: vstore.Repository) -> None:
    assert repository.compact().replaced_packs


def merge(repository: vstore.Repository) -> None:
    commit(repository, {"a/c/2": b"2" * 1000})
    repository.merge("dev", into="main")


OPERATIONS: dict[str, Callable[[vstore.Repository], Any]] = {
    "read": contents_of,
    "commit": lambda repository: commit(repository, {"new": bytes(1000), "a/c/0": b"9" * 1000}),
    "merge": merge,
    "diff": lambda repository: repository.diff(from_tag="v1", to_branch="main"),
    "expire": lambda repository: repository.expire_snapshots(FUTURE),
    "gc": lambda repository: repository.garbage_collect(FUTURE),
    "compact": compact,
    "rewrite": lambda repository: repository.rewrite_manifests("rewritten", branch="main"),
    "fsck": find_no_damage,
    "stats": lambda repository: repository.storage_stats(),
    "undo": lambda repository: repository.undo(),
}


def damage_replies(operation: str, first: int, step: int) -> None:
    for number in itertools.count(first, step):
        for fault in (Fault.CORRUPT, Fault.TRUNCATE):
            plan = FaultPlan()
            with opened(plan) as repository:
                CACHE.clear()
                plan.reset()
                plan.inject(number, fault)
                try:
                    OPERATIONS[operation](repository)
                except BaseException as error:
                    error.add_note(f"request {number} of {plan.requests}, {fault}")
                    raise
                made = len(plan.requests)
                plan.disarm()
                CACHE.clear()
                find_no_damage(repository)
        if number >= made:
            break
    assert number >= 3, "the plan does not see the requests"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_some_replies_are_damaged_on_their_way(operation: str) -> None:
    damage_replies(operation, len(operation), 23)


@pytest.mark.deep
@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_reply_is_damaged_on_its_way(operation: str) -> None:
    damage_replies(operation, 0, 1)
