"""Refs, history, settings and the operations log of a repository, on every kind of storage and catalog."""

from __future__ import annotations

import asyncio
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

import vstore
from tests.repositories import (
    LOCAL_KINDS,
    START_US,
    HandClock,
    Place,
    commit,
    contents,
    quick_folder,
    write,
)
from vstore.catalog.base import AddSnapshot, Transaction
from vstore.clock import to_datetime
from vstore.config import RepositoryConfig
from vstore.format.record import OperationKind, SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import Digest, PackId, new_transaction_id

SECOND_US = 1_000_000
UNKNOWN = "ab" * 32


@pytest.fixture
def repository(place: Place, clock: HandClock) -> Iterator[vstore.Repository]:
    with place.create(clock=clock, author="ada") as repository:
        yield repository


def head(repository: vstore.Repository, branch: str = "main") -> str:
    return repository.lookup_branch(branch)


# --- creating and opening ------------------------------------------------------------------------------------


def test_a_new_repository_has_branch_main_with_an_empty_snapshot(repository: vstore.Repository) -> None:
    assert repository.list_branches() == {"main"}
    assert repository.list_tags() == set()
    (first,) = repository.ancestry(branch="main")
    assert (first.message, first.parent_ids, first.parent_id) == ("Repository initialized", (), None)
    assert first.written_at == to_datetime(START_US)
    assert contents(repository.readonly_session("main")) == {}


def test_create_refuses_a_place_that_holds_a_repository(place: Place) -> None:
    with place.create() as repository:
        made = commit(repository, {"x": b"1"})
        with pytest.raises(vstore.RepositoryExistsError):
            place.create()
        assert head(repository) == made


def test_open_refuses_a_place_without_a_repository(place: Place) -> None:
    assert not vstore.Repository.exists(place.location)
    with pytest.raises(vstore.RepositoryNotFoundError, match="create"):
        place.open()
    assert not vstore.Repository.exists(place.location)


def test_open_finds_what_was_made(place: Place) -> None:
    with place.create() as repository:
        made = commit(repository, {"x": b"1"})
        identity = repository.id
    assert vstore.Repository.exists(place.location)
    for opened in (
        place.open(),
        vstore.open(place.location),
        vstore.Repository.open_or_create(place.location),
    ):
        with opened:
            assert (opened.id, head(opened)) == (identity, made)
            assert contents(opened.readonly_session("main")) == {"x": b"1"}


def test_open_or_create_creates_where_there_is_none(place: Place) -> None:
    options = {"catalog": "log"} if place.kind == "log" else {}
    with (
        vstore.Repository.open_or_create(place.location, **options) as made,
        vstore.Repository.open_or_create(place.location, **options) as opened,
    ):
        assert opened.id == made.id


def test_of_racing_creators_all_get_the_same_repository(place: Place) -> None:
    options = {"catalog": "log"} if place.kind == "log" else {}
    together = threading.Barrier(4)
    found: list[Any] = []

    def run() -> None:
        together.wait()
        try:
            with vstore.Repository.open_or_create(place.location, **options) as repository:
                found.append(repository.id)
        except vstore.VStoreError as error:
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with place.open() as repository:
        assert found == [repository.id] * 4


def test_two_repositories_have_different_ids(tmp_path: Path) -> None:
    with vstore.Repository.create(tmp_path / "a") as one, vstore.Repository.create(tmp_path / "b") as other:
        assert one.id != other.id


def test_an_unknown_kind_of_catalog_is_refused_and_nothing_is_made(tmp_path: Path) -> None:
    with pytest.raises(vstore.InvalidInputError, match="sqlite"):
        vstore.Repository.create(tmp_path / "r", catalog="oracle")
    assert not vstore.Repository.exists(tmp_path / "r")


def test_an_object_store_takes_no_sqlite_catalog() -> None:
    from obstore.store import MemoryStore

    with pytest.raises(vstore.InvalidInputError, match="log"):
        vstore.Repository.create(MemoryStore(), catalog="sqlite")


def test_a_repository_may_be_used_again_after_close(repository: vstore.Repository) -> None:
    made = commit(repository, {"x": b"1"})
    reader = repository.readonly_session("main")
    repository.close()
    repository.close()
    assert head(repository) == made
    assert contents(reader) == {"x": b"1"}
    assert commit(repository, {"x": b"2"}) != made


def test_a_with_block_closes_the_repository(tmp_path: Path) -> None:
    with vstore.Repository.create(tmp_path / "r") as repository:
        commit(repository, {"x": b"1"})
    # The last connection's close removes SQLite's write-ahead log.
    assert not (tmp_path / "r" / "catalog.sqlite-wal").exists()


def test_the_repr_says_where_it_is(repository: vstore.Repository) -> None:
    assert repository.handle.storage.url in repr(repository)


# --- branches ------------------------------------------------------------------------------------------------


def test_a_branch_starts_where_it_was_made_and_moves_alone(repository: vstore.Repository) -> None:
    start = commit(repository, {"x": b"1"})
    repository.create_branch("other", start)
    assert repository.list_branches() == {"main", "other"}
    moved = commit(repository, {"x": b"2"})
    assert (head(repository), head(repository, "other")) == (moved, start)
    assert contents(repository.readonly_session("other")) == {"x": b"1"}


def test_a_branch_can_be_made_from_an_abbreviated_id(repository: vstore.Repository) -> None:
    repository.create_branch("other", head(repository)[:8])
    assert head(repository, "other") == head(repository)


def test_a_branch_name_is_taken_only_once(repository: vstore.Repository) -> None:
    first = head(repository)
    commit(repository, {"x": b"1"})
    repository.create_branch("other", first)
    with pytest.raises(vstore.RefExistsError, match="other"):
        repository.create_branch("other", head(repository))
    assert head(repository, "other") == first


def test_a_branch_needs_a_snapshot_that_is_there(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.SnapshotNotFoundError):
        repository.create_branch("other", UNKNOWN)
    assert repository.list_branches() == {"main"}


@pytest.mark.parametrize("lookup", ["lookup_branch", "delete_branch", "writable_session", "readonly_session"])
def test_an_absent_branch_is_named_with_those_there_are(repository: vstore.Repository, lookup: str) -> None:
    with pytest.raises(vstore.RefNotFoundError, match=r"'absent'.*'main'") as caught:
        getattr(repository, lookup)("absent")
    assert isinstance(caught.value, KeyError)


def test_a_deleted_branch_leaves_its_snapshots_and_its_name(repository: vstore.Repository) -> None:
    repository.create_branch("other", head(repository))
    session = repository.writable_session("other")
    write(session, {"x": b"1"})
    made = session.commit("on other")
    repository.delete_branch("other")
    assert repository.list_branches() == {"main"}
    assert contents(repository.readonly_session(snapshot_id=made)) == {"x": b"1"}
    repository.create_branch("other", made)
    assert head(repository, "other") == made


def test_branch_main_can_not_be_deleted(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.SessionStateError, match="reset_branch"):
        repository.delete_branch("main")
    assert repository.list_branches() == {"main"}


def test_a_branch_and_a_tag_may_have_one_name(repository: vstore.Repository) -> None:
    first = head(repository)
    repository.create_tag("main", first)
    commit(repository, {"x": b"1"})
    assert repository.lookup_tag("main") == first != head(repository)


@pytest.mark.parametrize("name", ["a/b", "2026-11", "feature/x.y_z-1", "größe", "a@b", "x" * 200])
def test_names_that_git_allows_are_allowed(repository: vstore.Repository, name: str) -> None:
    repository.create_branch(name, head(repository))
    repository.create_tag(name, head(repository))
    assert repository.list_branches() == {"main", name}
    assert repository.list_tags() == {name}


# --- reset ---------------------------------------------------------------------------------------------------


def test_reset_moves_a_branch_back_and_forth(repository: vstore.Repository) -> None:
    first, second = commit(repository, {"x": b"1"}), commit(repository, {"x": b"2"})
    repository.reset_branch("main", first[:12])
    assert contents(repository.readonly_session("main")) == {"x": b"1"}
    repository.reset_branch("main", second)
    assert head(repository) == second


def test_reset_takes_any_snapshot_also_one_of_another_branch(repository: vstore.Repository) -> None:
    repository.create_branch("other", head(repository))
    session = repository.writable_session("other")
    write(session, {"x": b"other"})
    made = session.commit("on other")
    commit(repository, {"x": b"main"})
    repository.reset_branch("main", made)
    assert contents(repository.readonly_session("main")) == {"x": b"other"}


def test_reset_from_what_the_branch_holds(repository: vstore.Repository) -> None:
    first, second = commit(repository, {"x": b"1"}), commit(repository, {"x": b"2"})
    repository.reset_branch("main", first, from_snapshot_id=second)
    assert head(repository) == first


def test_reset_from_something_else_is_a_conflict_that_says_what_was_found(
    repository: vstore.Repository,
) -> None:
    first, second = commit(repository, {"x": b"1"}), commit(repository, {"x": b"2"})
    with pytest.raises(vstore.ConflictError) as caught:
        repository.reset_branch("main", first, from_snapshot_id=first)
    assert (caught.value.expected_parent, caught.value.actual_parent) == (first, second)
    assert head(repository) == second


def test_reset_expects_full_ids_only(repository: vstore.Repository) -> None:
    first = head(repository)
    second = commit(repository, {"x": b"1"})
    with pytest.raises(vstore.InvalidInputError, match="full"):
        repository.reset_branch("main", first, from_snapshot_id=second[:12])
    assert head(repository) == second


def test_reset_needs_a_branch_and_a_snapshot_that_are_there(repository: vstore.Repository) -> None:
    first = head(repository)
    with pytest.raises(vstore.RefNotFoundError):
        repository.reset_branch("absent", first)
    with pytest.raises(vstore.SnapshotNotFoundError):
        repository.reset_branch("main", UNKNOWN)
    assert repository.list_branches() == {"main"}
    assert head(repository) == first


# --- tags ----------------------------------------------------------------------------------------------------


def test_a_tag_stays_where_it_is(repository: vstore.Repository) -> None:
    first = commit(repository, {"x": b"1"})
    repository.create_tag("v1", first[:8])
    commit(repository, {"x": b"2"})
    assert repository.list_tags() == {"v1"}
    assert repository.lookup_tag("v1") == first
    assert contents(repository.readonly_session(tag="v1")) == {"x": b"1"}


@pytest.mark.parametrize("force", [False, True])
def test_a_tag_is_never_moved(repository: vstore.Repository, force: bool) -> None:
    first = head(repository)
    repository.create_tag("v1", first)
    second = commit(repository, {"x": b"1"})
    with pytest.raises(vstore.RefExistsError, match="v1"):
        repository.create_tag("v1", second, force=force)
    assert repository.lookup_tag("v1") == first


def test_an_absent_tag_is_not_found(repository: vstore.Repository) -> None:
    for call in (
        repository.lookup_tag,
        repository.delete_tag,
        lambda tag: repository.readonly_session(tag=tag),
    ):
        with pytest.raises(vstore.RefNotFoundError, match="v1"):
            call("v1")
    with pytest.raises(vstore.SnapshotNotFoundError):
        repository.create_tag("v1", UNKNOWN)


def test_the_name_of_a_deleted_tag_stays_taken(place: Place, repository: vstore.Repository) -> None:
    repository.create_tag("v1", head(repository))
    repository.delete_tag("v1")
    assert repository.list_tags() == set()
    with pytest.raises(vstore.RefNotFoundError):
        repository.lookup_tag("v1")
    for again in (repository, place.open()):
        with pytest.raises(vstore.RefExistsError, match="force=True"):
            again.create_tag("v1", head(repository))


def test_force_makes_a_deleted_tag_anew(repository: vstore.Repository) -> None:
    repository.create_tag("v1", head(repository))
    repository.delete_tag("v1")
    second = commit(repository, {"x": b"1"})
    repository.create_tag("v1", second, force=True)
    assert repository.lookup_tag("v1") == second
    repository.delete_tag("v1")
    with pytest.raises(vstore.RefExistsError):
        repository.create_tag("v1", second)


# --- history -------------------------------------------------------------------------------------------------


def test_ancestry_goes_from_the_newest_to_the_first(repository: vstore.Repository) -> None:
    made = [head(repository), *(commit(repository, {"x": b"%d" % n}, f"number {n}") for n in range(3))]
    found = list(repository.ancestry(branch="main"))
    assert [info.id for info in found] == made[::-1]
    assert [info.parent_id for info in found] == [*made[-2::-1], None]
    assert [info.message for info in found] == ["number 2", "number 1", "number 0", "Repository initialized"]


def test_ancestry_starts_at_a_tag_or_a_snapshot(repository: vstore.Repository) -> None:
    first = commit(repository, {"x": b"1"})
    repository.create_tag("v1", first)
    commit(repository, {"x": b"2"})
    for start in ({"tag": "v1"}, {"snapshot_id": first}, {"snapshot_id": first[:10]}):
        assert next(repository.ancestry(**start)).id == first
        assert len(list(repository.ancestry(**start))) == 2


@pytest.mark.parametrize("start", [{}, {"branch": "main", "tag": "v1"}])
def test_ancestry_takes_exactly_one_start(repository: vstore.Repository, start: dict[str, str]) -> None:
    with pytest.raises(vstore.InvalidInputError, match="exactly one"):
        list(repository.ancestry(**start))


def test_ancestry_is_not_disturbed_by_what_happens_meanwhile(repository: vstore.Repository) -> None:
    made = commit(repository, {"x": b"1"})
    walk = repository.ancestry(branch="main")
    assert next(walk).id == made
    commit(repository, {"x": b"2"})
    repository.close()
    assert [info.message for info in walk] == ["Repository initialized"]


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_a_history_of_300_commits(kind: str) -> None:
    clock = HandClock()
    made = []
    with quick_folder() as folder:
        place = Place.new(kind, folder)
        repository = place.create(clock=clock)
        for number in range(300):
            clock.time_us += SECOND_US
            made.append(commit(repository, {"x": b"%d" % number}))
        repository.close()
        repository = place.open(clock=clock)
        assert [info.id for info in repository.ancestry(branch="main")][:-1] == made[::-1]
        for number in range(0, 300, 7):
            moment = to_datetime(START_US + (number + 1) * SECOND_US + 5)
            session = repository.readonly_session("main", as_of=moment)
            assert session.snapshot_id == made[number]
            assert contents(session) == {"x": b"%d" % number}


def test_commits_get_later_times_even_if_the_clock_goes_back(
    repository: vstore.Repository, clock: HandClock
) -> None:
    commit(repository, {"x": b"1"})
    clock.time_us -= 3600 * SECOND_US
    commit(repository, {"x": b"2"})
    commit(repository, {"x": b"3"})
    times = [info.written_at for info in repository.ancestry(branch="main")]
    first = to_datetime(START_US)
    assert times == [first + timedelta(microseconds=n) for n in (3, 2, 1, 0)]


def test_what_is_known_of_a_snapshot(repository: vstore.Repository, clock: HandClock) -> None:
    parent = head(repository)
    clock.time_us += SECOND_US
    session = repository.writable_session("main")
    write(session, {"x": b"1"})
    made = session.commit("größer", {"run": 7, "tags": ["a", None]})
    info = repository.lookup_snapshot(made)
    moment = to_datetime(START_US + SECOND_US)
    metadata = {"run": 7, "tags": ["a", None]}
    assert info == vstore.SnapshotInfo(made, (parent,), moment, "größer", metadata)
    assert info.written_at.tzinfo is UTC


def test_long_messages_and_metadata_are_kept_whole(place: Place, repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"x": b"1"})
    message, metadata = "m" * 5000, {"notes": "n" * 5000}
    made = session.commit(message, metadata)
    for reader in (repository, place.open()):
        info = reader.lookup_snapshot(made)
        assert (info.message, info.metadata) == (message, metadata)
        assert next(reader.ancestry(branch="main")) == info


@pytest.mark.parametrize("digits", [8, 9, 31, 63, 64])
def test_a_snapshot_is_found_by_a_prefix(repository: vstore.Repository, digits: int) -> None:
    made = commit(repository, {"x": b"1"})
    assert repository.lookup_snapshot(made[:digits]).id == made
    assert repository.readonly_session(snapshot_id=made[:digits]).snapshot_id == made


@pytest.mark.parametrize("text", ["", "abc", "abcdef1", "ABCDEF12", "xyzxyzxyz", "a" * 65, 12345678, None])
def test_what_is_no_snapshot_id_is_refused(repository: vstore.Repository, text: Any) -> None:
    with pytest.raises(vstore.InvalidInputError):
        repository.lookup_snapshot(text)


@pytest.mark.parametrize("text", [UNKNOWN, UNKNOWN[:8]])
def test_an_unknown_snapshot_is_not_found(repository: vstore.Repository, text: str) -> None:
    with pytest.raises(vstore.SnapshotNotFoundError, match=text):
        repository.lookup_snapshot(text)


def add_snapshots(repository: vstore.Repository, *ids: str) -> None:
    """Put snapshots into the catalog whose ids no digest would give."""
    catalog = repository.handle.catalog
    refs = [BlobRef(Digest(bytes.fromhex(text)), PackId(bytes(16)), 16, 1) for text in ids]
    entries = [SnapshotEntry(ref, (), 0, 0, None, 0, 0, ("made up", b"{}")) for ref in refs]
    with catalog.reading() as view:
        since = view.sequence
    updates = tuple(map(AddSnapshot, entries))
    catalog.update(Transaction(new_transaction_id(), since, OperationKind.FLUSH, 0, "", (), updates))


def test_an_ambiguous_prefix_is_refused_with_both_ids(repository: vstore.Repository) -> None:
    one, other = "ab" * 31 + "01", "ab" * 31 + "02"
    add_snapshots(repository, one, other)
    for text in ("ab" * 4, "ab" * 31):
        with pytest.raises(vstore.InvalidInputError, match="ambiguous") as caught:
            repository.lookup_snapshot(text)
        assert one in caught.value.message
        assert other in caught.value.message
    assert repository.lookup_snapshot(one[:-1] + "1").id == one
    with pytest.raises(vstore.InvalidInputError, match="ambiguous"):
        repository.create_branch("other", "ab" * 4)


# --- reading a version ---------------------------------------------------------------------------------------


def test_a_readonly_session_stays_on_its_snapshot(repository: vstore.Repository) -> None:
    made = commit(repository, {"x": b"1"})
    session = repository.readonly_session("main")
    commit(repository, {"x": b"2"})
    assert (session.snapshot_id, contents(session)) == (made, {"x": b"1"})
    assert (session.read_only, session.branch) == (True, None)


@pytest.mark.parametrize(
    "which", [{}, {"branch": "main", "tag": "v1"}, {"tag": "v1", "snapshot_id": UNKNOWN}]
)
def test_a_readonly_session_takes_exactly_one_version(
    repository: vstore.Repository, which: dict[str, str]
) -> None:
    with pytest.raises(vstore.InvalidInputError, match="exactly one"):
        repository.readonly_session(**which)


@pytest.fixture
def timeline(repository: vstore.Repository, clock: HandClock) -> list[str]:
    """The first snapshot, and one each at 10 and 20 seconds after it."""
    made = [head(repository)]
    for number in (1, 2):
        clock.time_us = START_US + 10 * number * SECOND_US
        made.append(commit(repository, {"x": b"%d" % number}))
    return made


@pytest.mark.parametrize(
    ("offset_us", "expected"),
    [
        (0, 0),
        (1, 0),
        (10 * SECOND_US - 1, 0),
        (10 * SECOND_US, 1),
        (15 * SECOND_US, 1),
        (20 * SECOND_US - 1, 1),
        (20 * SECOND_US, 2),
        (10**9 * SECOND_US, 2),
    ],
)
def test_as_of_a_time(
    repository: vstore.Repository, timeline: list[str], offset_us: int, expected: int
) -> None:
    moment = to_datetime(START_US + offset_us)
    for zone in (UTC, timezone(timedelta(hours=-9))):
        session = repository.readonly_session("main", as_of=moment.astimezone(zone))
        assert session.snapshot_id == timeline[expected]


def test_as_of_before_the_first_snapshot(repository: vstore.Repository, timeline: list[str]) -> None:
    with pytest.raises(vstore.SnapshotNotFoundError, match="at or before"):
        repository.readonly_session("main", as_of=to_datetime(START_US - 1))


def test_as_of_goes_with_a_tag_but_not_with_a_snapshot(
    repository: vstore.Repository, timeline: list[str]
) -> None:
    repository.create_tag("v1", timeline[1])
    late = to_datetime(START_US + 10**6 * SECOND_US)
    assert repository.readonly_session(tag="v1", as_of=late).snapshot_id == timeline[1]
    with pytest.raises(vstore.InvalidInputError, match="as_of"):
        repository.readonly_session(snapshot_id=timeline[1], as_of=late)


def test_as_of_needs_a_time_zone(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.InvalidInputError, match="time zone"):
        repository.readonly_session("main", as_of=datetime(2026, 1, 1))  # noqa: DTZ001


def test_as_of_follows_the_present_head(
    repository: vstore.Repository, clock: HandClock, timeline: list[str]
) -> None:
    repository.reset_branch("main", timeline[1])
    clock.time_us = START_US + 30 * SECOND_US
    other = commit(repository, {"x": b"other"})

    def at(seconds: int) -> str:
        moment = to_datetime(START_US + seconds * SECOND_US)
        return repository.readonly_session("main", as_of=moment).snapshot_id

    assert [at(0), at(10), at(20), at(29), at(30)] == [
        timeline[0],
        timeline[1],
        timeline[1],
        timeline[1],
        other,
    ]


# --- transactions --------------------------------------------------------------------------------------------


def test_a_transaction_commits_when_its_block_ends(repository: vstore.Repository) -> None:
    with repository.transaction("main", message="all at once", metadata={"a": 1}) as store:
        write(store.session, {"x": b"1"})
        assert contents(repository.readonly_session("main")) == {}
    info = repository.lookup_snapshot(head(repository))
    assert (info.message, info.metadata) == ("all at once", {"a": 1})
    assert contents(repository.readonly_session("main")) == {"x": b"1"}
    with pytest.raises(vstore.ReadOnlyError):
        write(store.session, {"x": b"2"})


def test_a_transaction_that_raises_commits_nothing(repository: vstore.Repository) -> None:
    before = head(repository)
    sessions = []

    def write_and_fail() -> None:
        with repository.transaction("main", message="never") as store:
            sessions.append(store.session)
            write(store.session, {"x": b"1"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert head(repository) == before
    with pytest.raises(vstore.ReadOnlyError):
        write(sessions[0], {"x": b"2"})


def test_a_transaction_without_writes_raises(repository: vstore.Repository) -> None:
    before = head(repository)
    with (
        pytest.raises(vstore.NothingToCommitError),
        repository.transaction("main", message="nothing"),
    ):
        pass
    assert head(repository) == before


def test_a_transaction_overtaken_by_another_is_a_conflict(repository: vstore.Repository) -> None:
    def be_overtaken() -> None:
        with repository.transaction("main", message="late") as store:
            write(store.session, {"x": b"late"})
            commit(repository, {"x": b"early"})

    with pytest.raises(vstore.ConflictError):
        be_overtaken()
    assert contents(repository.readonly_session("main")) == {"x": b"early"}


# --- settings ------------------------------------------------------------------------------------------------


def test_the_config_given_at_creation_is_kept(place: Place) -> None:
    config = RepositoryConfig(inline_chunk_threshold_bytes=100)
    place.create(config=config).close()
    assert place.open().config == config


def test_a_config_given_at_opening_holds_until_it_is_saved(place: Place) -> None:
    place.create().close()
    config = RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = place.open(config=config)
    assert repository.config == config
    assert place.open().config == RepositoryConfig()
    repository.save_config()
    assert place.open().config == config


@pytest.mark.parametrize("threshold", [-1, 4097, 1.5, True, "512", None])
def test_a_threshold_out_of_range_is_refused(threshold: Any) -> None:
    with pytest.raises(vstore.InvalidInputError, match="0 to 4096"):
        RepositoryConfig(inline_chunk_threshold_bytes=threshold)


def test_settings_that_a_newer_version_added_are_passed_over() -> None:
    assert RepositoryConfig.from_json(b'{"inline_chunk_threshold_bytes": 7, "later": 1}') == RepositoryConfig(
        inline_chunk_threshold_bytes=7
    )


def test_repository_metadata_is_replaced_and_merged(place: Place, repository: vstore.Repository) -> None:
    assert repository.metadata == {}
    repository.set_metadata({"a": 1, "b": {"c": [1, 2]}})
    assert repository.update_metadata({"a": 2, "d": None}) == {"a": 2, "b": {"c": [1, 2]}, "d": None}
    assert place.open().metadata == {"a": 2, "b": {"c": [1, 2]}, "d": None}
    repository.set_metadata({})
    assert repository.metadata == {}


@pytest.mark.parametrize("name", ["set_metadata", "update_metadata"])
def test_metadata_beyond_its_limit_is_refused_in_words_of_the_caller(
    repository: vstore.Repository, name: str
) -> None:
    text = "a" * 600_000
    repository.set_metadata({"a": text})
    with pytest.raises(vstore.InvalidInputError, match=r"metadata can't be stored .* 1048576 are allowed"):
        getattr(repository, name)({"b": text, "c": text})
    with pytest.raises(vstore.InvalidInputError, match=r"metadata can't be stored .* 1048576 are allowed"):
        repository.update_metadata({"b": text})
    assert repository.metadata == {"a": text}


def test_no_metadata_update_is_lost_among_racing_ones(repository: vstore.Repository, place: Place) -> None:
    def run(name: str) -> None:
        with place.open() as other:
            for number in range(5):
                other.update_metadata({f"{name}{number}": number})

    threads = [threading.Thread(target=run, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert repository.metadata == {f"{name}{number}": number for name in "abc" for number in range(5)}


UNSTORABLE = [{"a": {1, 2}}, {"a": float("nan")}, {1: "a"}, ["a"], {"a": b"bytes"}]


@pytest.mark.parametrize("metadata", UNSTORABLE, ids=repr)
def test_metadata_that_json_can_not_hold_is_refused(repository: vstore.Repository, metadata: Any) -> None:
    session = repository.writable_session("main")
    write(session, {"x": b"1"})
    calls: list[Callable[[Any], object]] = [
        repository.set_metadata,
        repository.update_metadata,
        repository.set_default_commit_metadata,
        lambda wrong: session.commit("a commit", wrong),
        lambda wrong: session.flush("a flush", wrong),
    ]
    for call in calls:
        with pytest.raises(vstore.InvalidInputError, match="JSON"):
            call(metadata)
    assert repository.metadata == repository.default_commit_metadata() == {}
    session.commit("still works")


def test_metadata_of_more_than_a_mebibyte_is_refused(repository: vstore.Repository) -> None:
    repository.set_metadata({"a": 1})
    with pytest.raises(vstore.InvalidInputError, match="bytes"):
        repository.set_metadata({"a": "x" * 1024 * 1024})
    assert repository.metadata == {"a": 1}


def test_default_commit_metadata_lies_under_that_of_the_commit(repository: vstore.Repository) -> None:
    early = repository.writable_session("main")
    repository.set_default_commit_metadata({"who": "ada", "run": 1})
    assert repository.default_commit_metadata() == {"who": "ada", "run": 1}
    write(early, {"x": b"0"})
    assert repository.lookup_snapshot(early.commit("opened before")).metadata == {}
    late = repository.writable_session("main")
    write(late, {"x": b"1"})
    made = late.commit("opened after", {"run": 2, "more": 3})
    assert repository.lookup_snapshot(made).metadata == {"who": "ada", "run": 2, "more": 3}


def test_default_commit_metadata_is_not_stored(place: Place) -> None:
    place.create().set_default_commit_metadata({"who": "ada"})
    assert place.open().default_commit_metadata() == {}


def test_a_read_only_repository_refuses_every_change(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"x": b"1"})
    before = head(repository)
    repository.create_tag("v1", before)
    repository.set_status("read_only", reason="moving house")
    assert repository.status == "read_only"
    calls: list[Callable[[], object]] = [
        lambda: repository.writable_session("main"),
        lambda: session.commit("in an open session"),
        lambda: session.flush("in an open session"),
        lambda: repository.create_branch("other", before),
        lambda: repository.reset_branch("main", before),
        lambda: repository.create_tag("v2", before),
        lambda: repository.delete_tag("v1"),
        lambda: repository.set_metadata({"a": 1}),
        repository.save_config,
    ]
    for call in calls:
        with pytest.raises(vstore.ReadOnlyError, match="moving house"):
            call()
    assert head(repository) == before
    assert contents(repository.readonly_session("main")) == {}
    repository.set_status("online")
    assert repository.status == "online"
    assert session.commit("after all") == head(repository)
    assert contents(repository.readonly_session("main")) == {"x": b"1"}


def test_a_read_only_status_stops_the_commit_of_a_session_in_another_handle(place: Place) -> None:
    session = place.create().writable_session("main")
    write(session, {"x": b"1"})
    with place.open() as other:
        other.set_status("read_only")
        with pytest.raises(vstore.ReadOnlyError, match="set_status"):
            session.commit("too late")
        other.set_status("online")
    session.commit("now")


def test_there_are_two_statuses(repository: vstore.Repository) -> None:
    assert repository.status == "online"
    with pytest.raises(vstore.InvalidInputError, match="online"):
        repository.set_status("closed")


# --- operations log ------------------------------------------------------------------------------------------


def test_the_operations_log_says_who_did_what_when(repository: vstore.Repository, clock: HandClock) -> None:
    first = head(repository)
    clock.time_us += SECOND_US
    second = commit(repository, {"x": b"1"})
    session = repository.writable_session("main")
    write(session, {"x": b"2"})
    third = session.amend("amended")
    repository.create_branch("other", first)
    repository.reset_branch("other", third)
    repository.delete_branch("other")
    repository.create_tag("v1", first)
    repository.delete_tag("v1")
    repository.create_tag("v1", third, force=True)
    repository.set_metadata({"a": 1})
    repository.save_config()
    repository.set_status("online")
    log = list(repository.ops_log())
    assert [entry.sequence for entry in log] == list(range(len(log)))[::-1]
    assert {entry.author for entry in log} == {"ada"}
    assert {entry.written_at for entry in log[:-1]} == {to_datetime(START_US + SECOND_US)}
    assert [(entry.kind, entry.changes) for entry in reversed(log)] == [
        ("create-repository", (("branch", "main", None, first),)),
        ("commit", (("branch", "main", first, second),)),
        ("amend", (("branch", "main", second, third),)),
        ("create-branch", (("branch", "other", None, first),)),
        ("reset-branch", (("branch", "other", first, third),)),
        ("delete-branch", (("branch", "other", third, None),)),
        ("create-tag", (("tag", "v1", None, first),)),
        ("delete-tag", (("tag", "v1", first, None),)),
        ("create-tag", (("tag", "v1", None, third),)),
        ("set-metadata", ()),
        ("set-config", ()),
        ("set-status", ()),
    ]


def test_a_refused_change_leaves_no_operation(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.RefExistsError):
        repository.create_branch("main", head(repository))
    assert len(list(repository.ops_log())) == 1


def test_the_operations_log_may_be_read_while_others_commit(repository: vstore.Repository) -> None:
    commit(repository, {"x": b"1"})
    log = repository.ops_log()
    assert next(log).kind == "commit"
    commit(repository, {"x": b"2"})
    repository.close()
    assert [entry.kind for entry in log] == ["create-repository"]


# --- async twins ---------------------------------------------------------------------------------------------


def test_async_twins_do_what_their_models_do(repository: vstore.Repository) -> None:
    async def run() -> None:
        first = await repository.lookup_branch_async("main")
        session = await repository.writable_session_async("main")
        write(session, {"x": b"1"})
        assert (await session.status_async()).changed_values == {"x"}
        second = await session.commit_async("a commit", {"a": 1})
        assert (await repository.lookup_snapshot_async(second)).metadata == {"a": 1}
        await repository.create_branch_async("other", first)
        await repository.reset_branch_async("other", second)
        await repository.create_tag_async("v1", first)
        assert await repository.list_branches_async() == {"main", "other"}
        assert await repository.list_tags_async() == {"v1"}
        assert await repository.lookup_tag_async("v1") == first
        assert contents(await repository.readonly_session_async(tag="v1")) == {}
        await repository.delete_tag_async("v1")
        await repository.delete_branch_async("other")
        await repository.set_metadata_async({"a": 1})
        assert await repository.update_metadata_async({"b": 2}) == {"a": 1, "b": 2}
        await repository.save_config_async()
        session = await repository.writable_session_async("main")
        write(session, {"x": b"2"})
        await session.discard_changes_async()
        write(session, {"x": b"3"})
        third = await session.amend_async("amended")
        session = await repository.writable_session_async("main")
        write(session, {"x": b"4"})
        assert await session.flush_async("aside") != third
        await repository.set_status_async("read_only")

    asyncio.run(run())
    assert repository.status == "read_only"
    assert contents(repository.readonly_session("main")) == {"x": b"3"}


def test_a_twin_raises_what_its_model_raises(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.RefNotFoundError):
        asyncio.run(repository.lookup_branch_async("absent"))


def test_a_twin_leaves_the_event_loop_free(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    really = vstore.Repository._list

    def slow(self: vstore.Repository, kind: Any) -> set[str]:
        entered.set()
        assert go_on.wait(10)
        return really(self, kind)

    monkeypatch.setattr(vstore.Repository, "_list", slow)

    async def run() -> set[str]:
        listing = asyncio.create_task(repository.list_branches_async())
        assert await asyncio.to_thread(entered.wait, 10)
        # Only a loop that is free comes here while the listing waits.
        go_on.set()
        return await listing

    assert asyncio.run(run()) == {"main"}


# --- pickling ------------------------------------------------------------------------------------------------


def test_a_pickled_repository_reaches_the_same_place(repository: vstore.Repository) -> None:
    commit(repository, {"x": b"1"})
    repository.set_default_commit_metadata({"who": "ada"})
    with pickle.loads(pickle.dumps(repository)) as copy:
        assert copy.id == repository.id
        assert copy.config == repository.config
        made = commit(copy, {"x": b"2"})
        assert copy.lookup_snapshot(made).metadata == {"who": "ada"}
    assert contents(repository.readonly_session("main")) == {"x": b"2"}


IN_ANOTHER_PROCESS = """
import pickle, sys
with open(sys.argv[1], "rb") as file, pickle.load(file) as repository:
    with repository.transaction("main", message="from the child") as store:
        store.session.tree.set("y", b"2")
    print(repository.lookup_branch("main"))
"""


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_pickled_repository_works_in_another_process(kind: str, tmp_path: Path) -> None:
    with Place.new(kind, tmp_path).create() as repository:
        commit(repository, {"x": b"1"})
        (tmp_path / "pickle").write_bytes(pickle.dumps(repository))
        command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(tmp_path / "pickle")]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert head(repository) == done.stdout.strip()
        assert contents(repository.readonly_session("main")) == {"x": b"1", "y": b"2"}


@pytest.mark.parametrize("catalog", ["sqlite", "log"])
def test_what_is_left_of_a_repository_is_not_built_over(tmp_path: Path, catalog: str) -> None:
    """A new one would take the packs for garbage."""
    folder = tmp_path / "repository"
    with vstore.Repository.create(folder, catalog=catalog) as repository:
        commit(repository, {"a": bytes(range(256)) * 100})
    for path in folder.glob("catalog.sqlite*" if catalog == "sqlite" else "log/*0"):
        path.unlink()
    for make in (vstore.Repository.create, vstore.Repository.open_or_create):
        with pytest.raises(
            (vstore.RepositoryExistsError, vstore.RepositoryNotFoundError), match="rebuild_catalog"
        ):
            make(folder)
    assert not (folder / "catalog.sqlite").exists()


@pytest.mark.parametrize("catalog", ["sqlite", "log"])
def test_not_even_a_small_one(tmp_path: Path, catalog: str) -> None:
    """Its packs are as small as the first one, and its log may lack no more than its beginning."""
    folder = tmp_path / "repository"
    with vstore.Repository.create(folder, catalog=catalog) as repository:
        repository.writable_session("main").commit("nothing", allow_empty=True)
    gone = [*folder.glob("catalog.sqlite*"), *folder.glob("latest"), *folder.glob("log/*0")]
    for path in gone:
        path.unlink()
    with pytest.raises(vstore.RepositoryExistsError, match="rebuild_catalog"):
        vstore.Repository.create(folder, catalog=catalog)
    if catalog == "log":
        shutil.rmtree(folder / "packs")
        with pytest.raises(vstore.RepositoryExistsError, match="rebuild_catalog"):
            vstore.Repository.create(folder, catalog=catalog)


def test_a_small_pack_that_is_damaged_is_not_built_over(tmp_path: Path) -> None:
    vstore.Repository.create(tmp_path / "one").close()
    for path in (tmp_path / "one").glob("catalog.sqlite*"):
        path.unlink()
    (pack,) = (path for path in (tmp_path / "one" / "packs").rglob("*") if path.is_file())
    pack.chmod(0o644)
    pack.write_bytes(pack.read_bytes()[:-1])
    with pytest.raises(vstore.RepositoryExistsError, match="rebuild_catalog"):
        vstore.Repository.create(tmp_path / "one")


def test_an_interrupted_create_is_no_obstacle(tmp_path: Path) -> None:
    with vstore.Repository.create(tmp_path / "one") as repository:
        packs = [path for path in (tmp_path / "one" / "packs").rglob("*") if path.is_file()]
        assert len(packs) == 1
    for path in (tmp_path / "one").glob("catalog.sqlite*"):
        path.unlink()
    with vstore.Repository.create(tmp_path / "one") as repository:
        assert repository.list_branches() == {"main"}
