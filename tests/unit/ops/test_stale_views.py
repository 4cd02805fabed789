"""Views of a log catalog whose pages gc deleted: they say so, and an update looks again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vstore
from tests.repositories import GROUP, Place, commit
from tests.unit.ops.repositories import FUTURE, snapshot_id
from vstore.blobs.cache import CACHE
from vstore.blobs.spill import PackSpill
from vstore.catalog.base import Applied, Retained, SetRef, Transaction
from vstore.catalog.log import LogCatalog, StaleStateError
from vstore.format.page import Page
from vstore.format.record import OperationKind, RefKind
from vstore.format.refs import BlobRef
from vstore.ids import PackId, new_transaction_id
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
    """Let pages of the present state be replaced."""
    with place.open() as other:
        for number in range(COMMITS):
            commit(other, {"n": str(number).encode() * 2}, "moves on " + "m" * 100)
        other.garbage_collect(FUTURE)
    CACHE.clear()


def lose_pages(monkeypatch: pytest.MonkeyPatch, lost: set[PackId]) -> None:
    """Let pages be gone. Which ones gc deletes depends on which of them newer states still share."""
    page = PackSpill.page

    def missing(self: PackSpill, ref: BlobRef) -> Page:
        if ref.pack in lost:
            raise vstore.MissingBlobError("injected")
        return page(self, ref)

    monkeypatch.setattr(PackSpill, "page", missing)


def test_an_old_view_says_that_it_is_old(
    place: Place, repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with repository.handle.catalog.reading() as view:
        old = {ref.pack for ref in view.iter_pages()}
        move_on(place)
        lose_pages(monkeypatch, old)
        with pytest.raises(StaleStateError, match="try again"):
            list(view.iter_snapshots())


def test_an_update_looks_again(
    place: Place, repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, moves = LogCatalog._resolve, iter([move_on])
    catalog = repository.handle.catalog
    first = snapshot_id(list(repository.ancestry(branch="main"))[-1].id)
    with catalog.reading() as view:
        since, old = view.sequence, {ref.pack for ref in view.iter_pages()}

    def resolve_and_wait(self: LogCatalog) -> object:
        found = resolve(self)
        if self is catalog:
            for act in moves:
                act(place)
                with place.open() as other, other.handle.catalog.reading() as view:
                    lose_pages(monkeypatch, old - {ref.pack for ref in view.iter_pages()})
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


def test_pages_in_many_packs_are_written_anew_into_one(place: Place, repository: vstore.Repository) -> None:
    for number in range(4 * COMMITS):
        repository.create_tag(f"v{number}", repository.lookup_branch("main"))

    def state() -> list[object]:
        CACHE.clear()
        with repository.handle.catalog.reading() as view:
            refs = [*view.iter_refs(RefKind.BRANCH), *view.iter_refs(RefKind.TAG)]
            return [refs, sorted(view.iter_snapshots()), [*view.iter_operations()][-5 * COMMITS :]]

    def page_packs() -> set[PackId]:
        with repository.handle.catalog.reading() as view:
            return {ref.pack for ref in view.iter_pages()}

    before = state()
    assert len(page_packs()) > 4
    repository.handle.catalog.tidy()
    assert len(page_packs()) == 1
    assert state() == before
    sequence = next(repository.ops_log()).sequence
    repository.handle.catalog.tidy()
    assert next(repository.ops_log()).sequence == sequence, "it was tidy"
    assert repository.handle.catalog.check() == []
