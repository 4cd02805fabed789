"""compact makes few packs of many; nothing that can be read changes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vstore
from tests.repositories import GROUP, KINDS, Place, array_document, commit, contents, write
from tests.unit.ops.repositories import FUTURE, expire, marks, packs
from vstore.format.record import PackMark
from vstore.ids import PackId
from vstore.ops.compact import Source, plan_groups
from vstore.ops.fsck import check

COUNT = 30
BASE = {"zarr.json": GROUP, "a/zarr.json": array_document((COUNT * 1000,), (1000,))}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place.new(request.param, tmp_path)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    """A repository with a long value and one commit for each chunk of an array."""
    with place.create() as repository:
        commit(repository, BASE | {"value": b"v" * 5000})
        for number in range(COUNT):
            commit(repository, {f"a/c/{number}": bytes([number]) * 1000}, f"chunk {number}")
        yield repository


def everything(repository: vstore.Repository) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (info.id, contents(repository.readonly_session(snapshot_id=info.id)))
        for info in repository.ancestry(branch="main")
    ]


def test_many_packs_become_few_and_all_history_stays(place: Place, repository: vstore.Repository) -> None:
    before = everything(repository)
    old = packs(repository)
    planned = repository.compact(dry_run=True)
    assert packs(repository) == old
    report = repository.compact()
    assert (report.replaced_packs, report.new_packs) == (planned.replaced_packs, planned.new_packs)
    assert report.new_packs == 1
    assert report.replaced_packs >= COUNT
    repository.garbage_collect(FUTURE)
    repository.garbage_collect(FUTURE)
    with place.open() as other:
        # The log catalog keeps its own pages in packs.
        assert len(packs(other)) <= (1 if place.kind == "sqlite" else 6)
        assert everything(other) == before
        damage = check(other, data=True)
        assert damage.damages == []
        assert damage.unreferenced_packs == 0


def test_an_open_reader_goes_on_reading(place: Place, repository: vstore.Repository) -> None:
    with place.open() as other:
        reader = other.readonly_session("main")
        assert reader.tree.read("a/c/0") == bytes(1000)
        repository.compact()
        repository.garbage_collect(FUTURE)
        other.close()
        assert contents(reader) == contents(repository.readonly_session("main"))


def test_dead_blobs_are_left_behind(repository: vstore.Repository) -> None:
    head = repository.lookup_branch("main")
    repository.reset_branch("main", list(repository.ancestry(branch="main"))[COUNT // 2].id)
    gone = [head, *(info.id for info in repository.ancestry(snapshot_id=head))][: COUNT // 2 + 1]
    kept = contents(repository.readonly_session("main"))
    expire(repository, *dict.fromkeys(gone[:-1]))
    repository.garbage_collect(FUTURE)
    report = repository.compact()
    repository.garbage_collect(FUTURE)
    assert report.new_bytes < report.replaced_bytes
    assert contents(repository.readonly_session("main")) == kept
    assert check(repository, data=True).damages == []


def test_compacting_again_folds_relocations(place: Place, repository: vstore.Repository) -> None:
    repository.compact()
    repository.garbage_collect(FUTURE)
    for number in range(COUNT):
        commit(repository, {f"a/c/{number}": bytes([number, 1]) * 500}, f"chunk {number} again")
    before = everything(repository)
    repository.compact()
    repository.garbage_collect(FUTURE)
    with repository.handle.catalog.reading() as view:
        states = [state for state in view.pack_states(None) if state.mark == PackMark.RELOCATED]
    present = set(packs(repository))
    from vstore.keys.objects import pack_name

    assert {pack_name(state.target) for state in states if state.target} <= present
    with place.open() as other:
        assert everything(other) == before
        assert check(other, data=True).damages == []


def test_relocations_end_with_what_names_them(repository: vstore.Repository) -> None:
    repository.compact()
    repository.garbage_collect(FUTURE)
    assert PackMark.RELOCATED in marks(repository)
    old = [info.id for info in repository.ancestry(branch="main")]
    session = repository.writable_session("main")
    session.tree_for_writing().delete_folder("")
    write(session, {"zarr.json": GROUP})
    session.commit("empty")
    expire(repository, *old)
    repository.garbage_collect(FUTURE)
    repository.garbage_collect(FUTURE)
    assert marks(repository) == set()
    assert contents(repository.readonly_session("main")) == {"zarr.json": GROUP}


def test_a_session_that_is_open_meanwhile_can_commit(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/c/0": b"new" * 400})
    repository.compact()
    repository.garbage_collect(FUTURE)
    session.commit("after compact")
    assert contents(repository.readonly_session("main"))["a/c/0"] == b"new" * 400
    assert check(repository, data=True).damages == []


def test_a_damaged_blob_stops_it(place: Place, repository: vstore.Repository) -> None:
    if place.kind == "memory":
        pytest.skip("its bytes are not at hand")
    for file in (Path(place.location) / "packs").glob("*/*"):
        data = bytearray(file.read_bytes())
        at = data.find(b"\7" * 900)
        if at >= 0:
            data[at] ^= 1
            file.write_bytes(data)
    with place.open() as other:
        before = packs(other)
        with pytest.raises(vstore.CorruptionError, match="nothing has changed"):
            other.compact()
        assert packs(other) == before


def test_a_read_only_repository_is_not_compacted(repository: vstore.Repository) -> None:
    repository.set_status("read_only")
    assert repository.compact(dry_run=True).replaced_packs > 0
    with pytest.raises(vstore.ReadOnlyError):
        repository.compact()


# --- the plan ------------------------------------------------------------------------------------------------


def source(number: int, size: int, live: int | None = None) -> Source:
    return Source(PackId(number.to_bytes(16, "big")), size, size if live is None else live)


def test_one_small_pack_is_left_alone() -> None:
    assert plan_groups([source(1, 10)], 1000) == []
    assert plan_groups([source(1, 10), source(2, 900)], 1000) == []


def test_small_packs_are_merged_and_full_ones_left_alone() -> None:
    small = [source(number, 10) for number in range(5)]
    assert plan_groups([*small, source(9, 900)], 1000) == [small]


def test_a_pack_is_merged_only_with_others_that_hold_a_part_of_it() -> None:
    small = [source(number, 10) for number in range(5)]
    assert plan_groups([*small, source(9, 201)], 1000) == [small]
    assert plan_groups([*small, source(9, 199)], 1000) == [[*small, source(9, 199)]]


def test_one_tiny_pack_holds_up_no_others() -> None:
    sources = [source(1, 1), *(source(number, 100) for number in range(2, 6))]
    assert plan_groups(sources, 1000) == [sources]


def test_mostly_dead_packs_are_rewritten_however_large() -> None:
    dead = source(1, 5000, 100)
    assert plan_groups([dead, source(2, 5000, 4000)], 1000) == [[dead]]


def test_a_group_fills_one_pack() -> None:
    groups = plan_groups([source(number, 200) for number in range(12)], 1000)
    assert [len(group) for group in groups] == [5, 5, 2]
