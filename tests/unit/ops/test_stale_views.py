"""Views of a log catalog whose pages gc deleted: they say so, and an update looks again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import vstore
from tests.repositories import GROUP, Place, commit
from tests.unit.ops.repositories import FUTURE, snapshot_id
from vstore.blobs.cache import CACHE
from vstore.catalog.base import Applied, Retained, SetRef, Transaction
from vstore.catalog.log import LogCatalog, StaleStateError
from vstore.format.record import OperationKind, RefKind
from vstore.ids import new_transaction_id
from vstore.keys.objects import pack_name

COMMITS = 60


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.new("memory", tmp_path)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        for number in range(COMMITS):
            commit(repository, {"zarr.json": GROUP, "n": str(number).encode()}, f"{number} " + "m" * 100)
        yield repository


def move_on(place: Place) -> None:
    """Let every page of the present state be replaced and deleted."""
    with place.open() as other:
        for number in range(COMMITS):
            other.create_tag(f"{number}-{'t' * 150}", other.lookup_branch("main"))
            commit(other, {"n": str(number).encode() * 2}, "moves on " + "m" * 100)
        for _ in range(3):
            other.garbage_collect(FUTURE)
    CACHE.clear()


def test_old_views_say_that_they_are_old(place: Place, repository: vstore.Repository) -> None:
    with ExitStack() as stack:
        views = []
        for number in range(20):
            commit(repository, {"n": str(number).encode() * 3}, "more " + "m" * 100)
            views.append(stack.enter_context(repository.handle.catalog.reading()))
        move_on(place)
        told = 0
        for number, view in enumerate(views):
            CACHE.clear()
            # What newer states share with an old one is still there.
            try:
                assert len(list(view.iter_snapshots())) == COMMITS + 2 + number
            except StaleStateError as error:
                assert "try again" in str(error)
                told += 1
    assert told > 0
    with repository.handle.catalog.reading() as view:
        assert len(list(view.iter_snapshots())) == 2 * COMMITS + 21


def test_an_update_looks_again(
    place: Place, repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, moves = LogCatalog._resolve, iter([move_on])
    catalog = repository.handle.catalog
    first = snapshot_id(list(repository.ancestry(branch="main"))[-1].id)
    with catalog.reading() as view:
        since = view.sequence

    def resolve_and_wait(self: LogCatalog) -> object:
        found = resolve(self)
        if self is catalog:
            for act in moves:
                act(place)
        return found

    monkeypatch.setattr(LogCatalog, "_resolve", resolve_and_wait)
    transaction = Transaction(
        new_transaction_id(),
        since,
        OperationKind.CREATE_BRANCH,
        0,
        "",
        (Retained((first,)),),
        (SetRef(RefKind.BRANCH, "dev", first),),
    )
    assert isinstance(catalog.update(transaction), Applied)
    assert repository.lookup_branch("dev") == first.hex()
    assert next(moves, None) is None


def test_a_page_that_is_lost_is_still_damage(place: Place, repository: vstore.Repository) -> None:
    with repository.handle.catalog.reading() as view:
        names = {pack_name(ref.pack) for ref in view.iter_pages()}
    repository.handle.storage.delete(sorted(names))
    CACHE.clear()
    with (
        repository.handle.catalog.reading() as view,
        pytest.raises(vstore.MissingBlobError),
    ):
        list(view.iter_snapshots())
