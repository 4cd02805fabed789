"""A catalog that was lost is made anew from the packs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vstore
from tests.repositories import KINDS, Place, array_document, commit, contents, quick_folder, write
from tests.unit.ops.damage import (
    flip,
    footer_of,
    make_arrays,
    make_even,
    overwrite,
    pack_of,
    read_pack,
    stored,
)
from tests.unit.ops.repositories import FUTURE, expire, packs
from vstore.blobs.cache import CACHE
from vstore.format.envelope import BlobKind
from vstore.format.record import ExpiredEntry, SnapshotEntry
from vstore.keys.objects import LATEST, LOG_PREFIX, REPO, SQLITE_FILE, pack_name
from vstore.ops.rebuild import RebuildReport, rebuild_catalog


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, folder: Path) -> Place:
    return Place.new(request.param, folder)


def lose_catalog(place: Place, repository: vstore.Repository, *, keep_identity: bool = False) -> None:
    repository.close()
    storage = repository.handle.storage
    names = [info.name for info in storage.list(LOG_PREFIX)] + [LATEST] + ([] if keep_identity else [REPO])
    storage.delete(names)
    for path in Path(str(place.location)).glob(f"{SQLITE_FILE}*"):
        os.unlink(path)
    CACHE.clear()


def rebuild(place: Place, *arguments: Any, **options: Any) -> RebuildReport:
    return rebuild_catalog(place.location, *arguments, **options)


def entries(repository: vstore.Repository) -> dict[str, SnapshotEntry]:
    with repository.handle.catalog.reading() as view:
        return {entry.id.hex(): entry for entry in view.iter_snapshots()}


def skeletons(repository: vstore.Repository) -> dict[str, ExpiredEntry]:
    with repository.handle.catalog.reading() as view:
        return {entry.id.hex(): entry for entry in view.iter_expired()}


def test_a_catalog_is_made_as_it_was(place: Place) -> None:
    """Depths, jumps and stretches too."""
    repository = place.create()
    made = make_arrays(repository)
    repository.create_branch("dev", made[1])
    with repository.writable_session("dev") as session:
        write(session, {"c/zarr.json": array_document((2,)), "c/c/1": stored(77), "long": b"x" * 5000})
        dev = session.commit("m" * 3000)
    merged = repository.merge("dev", "main")
    before, identity = entries(repository), repository.id
    lose_catalog(place, repository)

    listed = rebuild(place)
    assert [head.id for head in listed.heads] == [merged]
    assert listed.heads[0].parent_ids == (made[-1], dev)
    assert listed.snapshots == len(before)
    assert listed.repository_id is None
    assert "No catalog was made" in str(listed)
    assert not vstore.Repository.exists(place.location)

    report = rebuild(place, {"main": merged, "dev": dev[:10]}, {"v1": made[0]}, repository_id=identity)
    assert (report.branches, report.tags) == ({"main": merged, "dev": dev}, {"v1": made[0]})
    assert report.repository_id == identity
    again = place.open()
    assert again.id == identity
    assert entries(again) == before
    assert (again.list_branches(), again.list_tags()) == ({"main", "dev"}, {"v1"})
    assert again.fsck(data=True).damages == []
    assert again.fsck().unreferenced_packs <= 1
    assert contents(again.readonly_session("dev"))["c/c/1"] == stored(77)
    assert next(again.ancestry(branch="main")).id == merged
    commit(again, {"new": b"x"})
    assert again.fsck(data=True).damages == []


def test_after_compaction_blobs_are_where_they_were_moved(place: Place) -> None:
    repository = place.create()
    made = make_even(repository)
    expected = [contents(repository.readonly_session(snapshot_id=each)) for each in made]
    repository.compact()
    for _ in range(3):
        repository.garbage_collect(FUTURE)
    lose_catalog(place, repository)
    report = rebuild(place, {"main": made[-1]})
    assert report.incomplete == []
    assert report.moved_packs > 0
    again = place.open()
    assert again.fsck(data=True).damages == []
    found = [contents(again.readonly_session(snapshot_id=each)) for each in made]
    assert found == expected
    for _ in range(3):
        again.garbage_collect(FUTURE)
    assert again.fsck(data=True).damages == []


def test_compacted_away_expired_snapshots_do_not_mislead(place: Place) -> None:
    """Of an expired snapshot the blob may be left, though what it needs is gone."""
    repository = place.create()
    made = make_even(repository)
    with repository.writable_session("main") as session:
        session.tree_for_writing().set("a/zarr.json", array_document((100,)))
        for index in range(30):
            session.tree_for_writing().delete(f"a/c/{index}")
        made.append(session.commit("without the first"))
    expire(repository, *made[:5])
    repository.compact()
    for _ in range(3):
        repository.garbage_collect(FUTURE)
    expected = contents(repository.readonly_session("main"))
    lose_catalog(place, repository)
    report = rebuild(place)
    assert made[5] in [head.id for head in report.heads]
    rebuild(place, {"main": made[5]})
    again = place.open()
    assert contents(again.readonly_session("main")) == expected
    assert again.fsck(data=True).damages == []


def test_copies_of_dead_blobs_do_not_mislead(folder: Path) -> None:
    """A pack that is there may have more of what an expired snapshot needed than the one that heads read."""
    place = Place.new("sqlite", folder)
    repository = place.create()
    arrays = {f"{name}/zarr.json": array_document((100,)) for name in ("a", "b", "big")}
    made = [commit(repository, arrays | {f"a/c/{i}": stored(i) for i in range(36)})]
    copies = {f"b/c/{i}": stored(i) for i in range(30)}
    # So many that the manifest is written anew, and names the first pack in the second.
    more = {f"a/c/{i}": stored(i) for i in range(60, 90)}
    made.append(commit(repository, copies | more | {"big/c/0": stored(9, 300_000)}))
    with repository.writable_session("main") as session:
        for index in range(30):
            session.tree_for_writing().delete(f"a/c/{index}")
        session.commit("without the first")
    for number in range(4):
        commit(repository, {f"b/c/{40 + 10 * number + i}": stored(1000 * number + i) for i in range(10)})
    first, second = (pack_name(pack_of(repository, each)) for each in made)
    expire(repository, *made)
    repository.compact()
    for _ in range(3):
        repository.garbage_collect(FUTURE)
    assert first not in packs(repository)
    assert second in packs(repository)
    expected, head = contents(repository.readonly_session("main")), repository.lookup_branch("main")
    lose_catalog(place, repository)
    rebuild(place, {"main": head})
    again = place.open()
    assert contents(again.readonly_session("main")) == expected
    assert again.fsck(data=True).damages == []


def test_incomplete_snapshots_are_listed_and_keep_their_place_in_history(place: Place) -> None:
    repository = place.create()
    made = make_arrays(repository)
    pack = pack_of(repository, made[2])
    footer = footer_of(repository, pack)
    # Only its own page: the later snapshots don't need that.
    row = footer.kinds.tolist().index(BlobKind.PAGE)
    flip(repository.handle.storage, pack, int(footer.offsets[row]) + 10)
    before = entries(repository)
    lose_catalog(place, repository)
    report = rebuild(place)
    assert [head.id for head in report.heads] == [made[-1]]
    assert [each.id for each in report.incomplete] == [made[2]]
    with pytest.raises(vstore.SnapshotNotFoundError, match="no complete"):
        rebuild(place, {"main": made[2]})
    rebuild(place, {"main": made[-1]})
    again = place.open()
    assert set(entries(again)) == set(before) - {made[2]}
    assert set(skeletons(again)) == {made[2]}
    assert made[0] in [info.id for info in again.ancestry(branch="main")]
    assert again.fsck(data=True).damages == []


def test_packs_that_cannot_be_read_are_named(place: Place) -> None:
    repository = place.create()
    made = make_arrays(repository)
    pack = pack_of(repository, made[-1])
    overwrite(repository.handle.storage, pack, read_pack(repository.handle.storage, pack)[:-20])
    lose_catalog(place, repository)
    report = rebuild(place)
    assert report.unreadable_packs == [pack_name(pack)]
    assert [head.id for head in report.heads] == [made[-2]]
    assert pack_name(pack) in str(report)


def test_never_committed_snapshots_are_heads_too(local: vstore.Repository) -> None:
    """Nothing tells them apart: the user decides, and may name any other snapshot."""
    place = Place("sqlite", Path(local.handle.storage.url.removeprefix("file://")))
    made = make_arrays(local)
    with local.writable_session("main") as session:
        write(session, {"b/c/1": b"loose"})
        loose = session.flush("loose")
    expire(local, loose)
    lose_catalog(place, local)
    (head,) = rebuild(place).heads
    assert (head.id, head.parent_ids) == (loose, (made[-1],))
    assert rebuild(place, {"main": made[-1]}).branches == {"main": made[-1]}


def test_a_catalog_that_is_there_is_not_touched(place: Place) -> None:
    repository = place.create()
    made = make_arrays(repository)
    before = entries(repository)
    for arguments in ((), ({"main": made[0]},)):
        with pytest.raises(vstore.RepositoryExistsError):
            rebuild(place, *arguments)
    assert entries(place.open()) == before


@pytest.mark.parametrize("kind", ["log", "memory"])
def test_parts_of_a_log_are_not_built_upon(folder: Path, kind: str) -> None:
    """A number of the log has one record for ever."""
    place = Place.new(kind, folder)
    repository = place.create()
    make_arrays(repository)
    storage = repository.handle.storage
    first = min(info.name for info in storage.list(LOG_PREFIX))
    storage.delete([first, LATEST])
    with pytest.raises(vstore.RepositoryExistsError, match="part of one"):
        rebuild(place)


def test_a_damaged_sqlite_catalog_is_not_replaced(folder: Path) -> None:
    place = Place.new("sqlite", folder)
    repository = place.create()
    make_arrays(repository)
    repository.close()
    path = Path(place.location) / SQLITE_FILE
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(vstore.RepositoryExistsError, match="elsewhere"):
        rebuild(place)
    assert path.read_bytes().startswith(b"not a database")


@pytest.mark.parametrize("kind", ["log", "memory"])
def test_the_identity_that_is_left_is_kept(folder: Path, kind: str) -> None:
    place = Place.new(kind, folder)
    repository = place.create()
    made = make_arrays(repository)
    identity = repository.id
    lose_catalog(place, repository, keep_identity=True)
    with pytest.raises(vstore.InvalidInputError, match="says that this is"):
        rebuild(place, {"main": made[0]}, repository_id="ab" * 16)
    assert rebuild(place, {"main": made[0]}).repository_id == identity


@pytest.mark.parametrize("identity", ["", "abc", "zz" * 16, "ab" * 15, 7])
def test_ids_that_are_none_are_refused(folder: Path, identity: Any) -> None:
    place = Place.new("sqlite", folder)
    repository = place.create()
    made = make_arrays(repository)
    lose_catalog(place, repository)
    with pytest.raises(vstore.InvalidInputError, match="32 hex digits"):
        rebuild(place, {"main": made[0]}, repository_id=identity)


def test_names_and_snapshots_are_checked_before_anything_is_made(place: Place) -> None:
    repository = place.create()
    made = make_arrays(repository)
    lose_catalog(place, repository)
    before = packs(repository)
    with pytest.raises(vstore.InvalidInputError, match="main"):
        rebuild(place, {"dev": made[0]})
    with pytest.raises(vstore.InvalidInputError):
        rebuild(place, {"main": made[0], "bad..name": made[0]})
    with pytest.raises(vstore.InvalidInputError, match="hex digits"):
        rebuild(place, {"main": "main"})
    with pytest.raises(vstore.SnapshotNotFoundError, match="list the heads"):
        rebuild(place, {"main": "0" * 64})
    assert not vstore.Repository.exists(place.location)
    assert packs(repository) == before
    # A new id, where none is given.
    repository_id = rebuild(place, {"main": made[0]}).repository_id
    assert repository_id is not None
    assert repository_id != repository.id


def test_an_empty_place_has_no_heads(folder: Path) -> None:
    assert rebuild_catalog(folder / "nothing").heads == []


@pytest.mark.parametrize("kind", ["sqlite", "log"])
def test_many_snapshots_in_one_catalog_update(folder: Path, kind: str) -> None:
    """The log's first record has room for few entries: the others go to pages."""
    place = Place.new(kind, folder)
    repository = place.create()
    made = [commit(repository, {"value": str(number).encode()}, f"commit {number}") for number in range(150)]
    before = entries(repository)
    lose_catalog(place, repository)
    rebuild(place, {"main": made[-1]}, catalog=kind)
    again = place.open()
    assert entries(again) == before
    assert sum(1 for _ in again.ancestry(branch="main")) == 151
    assert again.fsck(data=True).damages == []
