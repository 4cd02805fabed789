"""Zarr's own state machines, unmodified: hierarchies against a memory store, raw keys against a dict."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine

import vstore
from tests.repositories import quick_folder
from vstore.store import SessionStore

pytestmark = pytest.mark.filterwarnings(
    # The machines themselves write names that Zarr warns of.
    "ignore::zarr.errors.ZarrUserWarning",
    "ignore:Object at .* is not recognized:UserWarning",
    "ignore::zarr.errors.UnstableSpecificationWarning",
)


def _local(folder: Path) -> Any:
    return tempfile.mkdtemp(dir=folder)


def _memory(folder: Path) -> Any:
    from obstore.store import MemoryStore

    return MemoryStore()


@pytest.fixture(params=[_local, _memory], ids=["local", "memory"])
def make_store(request: pytest.FixtureRequest) -> Iterator[Callable[[], SessionStore]]:
    repositories = []
    shared = quick_folder()
    folder = shared.__enter__()

    def make() -> SessionStore:
        repository = vstore.Repository.create(request.param(folder))
        repositories.append(repository)
        return repository.writable_session("main").store

    yield make
    for repository in repositories:
        repository.close()
    shared.__exit__(None, None, None)


@pytest.mark.parametrize("machine", [ZarrHierarchyStateMachine, ZarrStoreStateMachine])
def test_state_machine(machine: Any, make_store: Callable[[], SessionStore]) -> None:
    def make() -> Any:
        return machine(make_store())

    run_state_machine_as_test(make, settings=settings(max_examples=15, stateful_step_count=40, deadline=None))
