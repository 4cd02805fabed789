"""convert_catalog: everything is carried over, and whoever holds the old catalog fails cleanly."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import vstore
from tests.repositories import LOCAL_KINDS, HandClock, Place, commit, contents, quick_folder, write
from tests.unit.ops.repositories import FUTURE
from tests.unit.transfer.houses import contents_of, furnish, require_converted, require_sound, state_of
from vstore.catalog import location
from vstore.catalog.base import STATUS, SetValue, Transaction
from vstore.catalog.handover import closing_status
from vstore.catalog.location import find_catalog
from vstore.catalog.log import LogCatalog
from vstore.catalog.sqlite import SqliteCatalog
from vstore.format.log_record import Tombstone, encode_tombstone
from vstore.format.record import OperationKind
from vstore.ids import new_transaction_id
from vstore.keys.objects import LATEST, SQLITE_FILE, log_name
from vstore.storage.local import LocalStorage
from vstore.transfer.convert import sole_change_of

OTHER = {"sqlite": "log", "log": "sqlite"}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("commits", [0, 60])
def test_everything_is_carried_over_there_and_back(kind: str, commits: int, folder: Path) -> None:
    place = Place.new(kind, folder)
    with furnish(place, commits) as repository:
        held = contents_of(repository)
        for wanted in (OTHER[kind], kind, OTHER[kind]):
            before = state_of(repository)
            repository.convert_catalog(wanted)
            assert find_catalog(LocalStorage(place.location)) == wanted
            require_converted(before, state_of(repository))
            with place.open() as reader:
                require_converted(before, state_of(reader))
                require_sound(reader)
                assert contents_of(reader) == held
                assert reader.status == "online"
        commit(repository, {"after": b"a"})
        repository.garbage_collect(FUTURE)
        require_sound(repository)


def test_a_small_state_and_nothing_left_of_sqlite(folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        repository.convert_catalog("log")
        left = os.listdir(folder / "repository")
        assert not [name for name in left if name.startswith(SQLITE_FILE)]
        # Number 0 jumps to the record, and nothing is between.
        assert sorted(os.listdir(folder / "repository" / "log")) == [log_name(n)[4:] for n in (0, 1)]


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_converting_to_what_is_there_does_nothing(kind: str, folder: Path) -> None:
    with furnish(Place.new(kind, folder), 3) as repository:
        before = state_of(repository)
        repository.convert_catalog(kind)
        assert state_of(repository) == before


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_old_handles_fail_cleanly(kind: str, folder: Path) -> None:
    place = Place.new(kind, folder)
    with place.create() as repository:
        commit(repository, {"v": b"1"})
        old, fresh = place.open(), place.open()
        pickled = pickle.dumps(old)
        session = old.writable_session("main")
        write(session, {"v": b"lost?"})
        reading = old.readonly_session("main")
        assert contents(reading) == {"v": b"1"}
        repository.convert_catalog(OTHER[kind])
        for act in (
            lambda: session.commit("too late"),
            lambda: old.create_tag("t", old.lookup_branch("main")),
            lambda: old.readonly_session("main"),
            lambda: old.set_status("online"),
            lambda: old.garbage_collect(FUTURE),
            lambda: pickle.loads(pickled).lookup_branch("main"),
            lambda: fresh.writable_session("main"),
        ):
            with pytest.raises((vstore.RepositoryNotFoundError, vstore.ReadOnlyError), match="again"):
                act()
        assert contents(reading) == {"v": b"1"}
        commit(repository, {"v": b"2"})
        with place.open() as reader:
            assert contents(reader.readonly_session("main")) == {"v": b"2"}
        old.close()
        fresh.close()


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_old_handles_go_on_when_their_kind_is_back(kind: str, folder: Path) -> None:
    place = Place.new(kind, folder)
    with place.create() as repository, place.open() as old:
        commit(old, {"v": b"1"})
        session = old.writable_session("main")
        write(session, {"v": b"3"})
        repository.convert_catalog(OTHER[kind])
        commit(repository, {"v": b"2"})
        repository.convert_catalog(kind)
        assert contents(old.readonly_session("main")) == {"v": b"2"}
        with pytest.raises(vstore.ConflictError):
            session.commit("late")
        assert session.commit("on top", rebase_with="ours")
        assert contents(repository.readonly_session("main")) == {"v": b"3"}


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_status_of_the_user_is_kept(kind: str, folder: Path) -> None:
    place = Place.new(kind, folder)
    with place.create() as repository:
        repository.set_status("read_only", reason="an audit " * 400)
        repository.convert_catalog(OTHER[kind])
        with place.open() as reader, pytest.raises(vstore.ReadOnlyError, match="an audit"):
            reader.writable_session("main")


def close_for(repository: vstore.Repository, kind: str) -> None:
    """Do the first step of a conversion."""
    catalog = repository.handle.catalog
    details = {"convert_catalog": kind, "status": None}
    update = SetValue(STATUS, closing_status(kind))  # type: ignore[arg-type]
    catalog.update(
        Transaction(new_transaction_id(), 0, OperationKind.SET_STATUS, 1, "", (), (update,), details)
    )


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("wanted", LOCAL_KINDS)
def test_an_interrupted_conversion_says_what_to_do_and_goes_either_way(
    kind: str, wanted: str, folder: Path
) -> None:
    place = Place.new(kind, folder)
    with place.create() as repository:
        commit(repository, {"v": b"1"})
        close_for(repository, OTHER[kind])
    with place.open() as again:
        assert again.status == "read_only"
        assert contents(again.readonly_session("main")) == {"v": b"1"}
        for act in (
            lambda: again.writable_session("main"),
            lambda: again.set_status("online"),
            lambda: again.copy_to(folder / "copy"),
        ):
            with pytest.raises(vstore.VStoreError, match="convert_catalog"):
                act()
        again.convert_catalog(wanted)
        commit(again, {"v": b"2"})
    with place.open() as reader:
        assert find_catalog(LocalStorage(place.location)) == wanted
        assert contents(reader.readonly_session("main")) == {"v": b"2"}
        require_sound(reader)


def test_sqlite_counts_until_the_record_behind_the_jump_is_there(folder: Path) -> None:
    place = Place.new("sqlite", folder)
    storage = LocalStorage(place.location)
    with place.create() as repository:
        commit(repository, {"v": b"1"})
        close_for(repository, "log")
    storage.create(log_name(0), encode_tombstone(Tombstone(0, 2)))
    with place.open() as again:
        assert find_catalog(storage) == "sqlite"
        again.convert_catalog("sqlite")
        commit(again, {"v": b"2"})
        again.convert_catalog("log")
        require_sound(again)
        assert contents(again.readonly_session("main")) == {"v": b"2"}


def test_numbers_that_an_old_handle_took_in_a_closed_log_are_passed_over(folder: Path) -> None:
    place = Place.new("log", folder)
    with place.create() as repository, place.open() as old:
        commit(old, {"v": b"1"})
        repository.convert_catalog("sqlite")
        # Settling a doubtful try takes a number, also when it is refused.
        for _ in range(3):
            noop = Transaction(new_transaction_id(), 0, OperationKind.NO_OPERATION, 1, "", (), ())
            old.handle.catalog.update(noop)
        with place.open() as reader:
            assert find_catalog(LocalStorage(place.location)) == "sqlite"
            assert contents(reader.readonly_session("main")) == {"v": b"1"}
        repository.convert_catalog("log")
        commit(repository, {"v": b"2"})
        assert contents(old.readonly_session("main")) == {"v": b"2"}
        require_sound(repository)


def test_a_log_that_was_left_does_not_take_the_place_of_a_lost_file(folder: Path) -> None:
    place = Place.new("log", folder)
    with place.create() as repository:
        commit(repository, {"v": b"1"})
        repository.convert_catalog("sqlite")
        commit(repository, {"v": b"2"})
    for name in os.listdir(place.location):
        if name.startswith(SQLITE_FILE):
            os.unlink(place.location / name)
    with pytest.raises(vstore.CorruptionError, match="rebuild_catalog"):
        place.open()
    with pytest.raises(vstore.AlreadyExistsError):
        place.create()


def test_one_conversion_at_a_time(folder: Path) -> None:
    with (
        Place.new("sqlite", folder).create() as repository,
        sole_change_of(repository.handle.storage),
        pytest.raises(vstore.StorageError, match="somebody else"),
    ):
        repository.convert_catalog("log")


def test_what_is_refused(folder: Path) -> None:
    with Place.new("memory", folder).create() as repository:
        repository.convert_catalog("log")
        with pytest.raises(vstore.InvalidInputError, match="no directory"):
            repository.convert_catalog("sqlite")
        with pytest.raises(vstore.InvalidInputError, match="'git'"):
            repository.convert_catalog("git")


def share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all file systems shared ones."""
    monkeypatch.setattr(location, "is_local_filesystem", lambda path: False)
    monkeypatch.setattr(SqliteCatalog.__init__, "__kwdefaults__", {"can_lock": lambda path: False})


def test_sqlite_on_a_shared_file_system_becomes_a_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place.new("sqlite", folder)
    with furnish(place, 20) as repository:
        before, held = state_of(repository), contents_of(repository)
    share(monkeypatch)
    with place.open() as repository:
        with pytest.raises(vstore.UnsafeStorageError):
            repository.writable_session("main")
        repository.convert_catalog("log")
        require_converted(before, state_of(repository))
        commit(repository, {"v": b"1"})
        with pytest.raises(vstore.UnsafeStorageError):
            repository.convert_catalog("sqlite")
        assert repository.status == "online"
    with place.open() as reader:
        require_sound(reader)
        assert held.items() <= contents_of(reader).items()
    assert SQLITE_FILE not in os.listdir(place.location)


@pytest.mark.parametrize("is_written", [False, True])
def test_sqlite_that_could_not_be_closed_stays_until_the_log_took_over_just_its_state(
    is_written: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before SQLite is removed: the log counts, but not if somebody has written to SQLite."""
    place = Place.new("sqlite", folder)
    with place.create() as repository:
        commit(repository, {"v": b"1"})
    with monkeypatch.context() as patch:
        share(patch)
        patch.setattr("vstore.catalog.sqlite.importing.remove_catalog", lambda directory: None)
        with place.open() as shared:
            shared.convert_catalog("log")
            for number in range(40):
                commit(shared, {"v": b"%d" % number})
    if is_written:
        catalog = SqliteCatalog(str(place.location))
        catalog.update(Transaction(new_transaction_id(), 0, OperationKind.NO_OPERATION, 1, "", (), ()))
        catalog.close()
        with pytest.raises(vstore.CorruptionError, match="two catalogs"):
            place.open()
        return
    with place.open() as again:
        assert contents(again.readonly_session("main")) == {"v": b"39"}
        again.convert_catalog("log")
        assert SQLITE_FILE not in os.listdir(place.location)


@pytest.mark.parametrize("error", [vstore.OutOfSpaceError("no space"), MemoryError(), KeyboardInterrupt()])
def test_a_failure_before_anything_is_in_place_opens_the_old_catalog_again(
    error: BaseException, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.new("sqlite", folder)
    with place.create() as repository:
        for number in range(80):
            commit(repository, {"v": b"%d" % number})

        def full(*arguments: object) -> None:
            raise error

        monkeypatch.setattr("vstore.transfer.convert.stage", full)
        with pytest.raises(type(error)):
            repository.convert_catalog("log")
        commit(repository, {"v": b"more"})
        assert repository.status == "online"


def test_a_jump_far_beyond_makes_no_operations(folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        repository.handle.storage.create(log_name(0), encode_tombstone(Tombstone(0, 5000)))
        with pytest.raises(vstore.StorageError, match="far beyond"):
            repository.convert_catalog("log")
        commit(repository, {"v": b"1"})
    with Place.new("log", folder / "log").create() as repository:
        repository.handle.storage.create(log_name(1), encode_tombstone(Tombstone(1, 10**9)))
        with pytest.raises(vstore.StorageError, match="Copy the repository to it again"):
            repository.convert_catalog("log")


def test_sqlite_that_can_not_be_closed_and_a_jump_far_beyond(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place.new("sqlite", folder)
    place.create().close()
    share(monkeypatch)
    with place.open() as repository:
        repository.handle.storage.create(log_name(0), encode_tombstone(Tombstone(0, 5000)))
        with pytest.raises(vstore.StorageError, match="far beyond"):
            repository.convert_catalog("log")


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_hint_that_lies_is_not_believed(kind: str, folder: Path) -> None:
    place = Place.new("log", folder)
    with place.create() as repository:
        commit(repository, {"mine": b"1"})
        repository.backup(folder / "other", catalog="log")
    with vstore.Repository.open(folder / "other") as other:
        for _ in range(3):
            commit(other, {"theirs": b"2"})
        hint = other.handle.storage.read_whole(LATEST, 1 << 20)
    storage = LocalStorage(place.location)
    if kind == "log":
        # What an update has left out is found behind the record that is there, not behind the one that is not.
        storage.create(log_name(2), encode_tombstone(Tombstone(2, 60)))
    storage.write(LATEST, hint)
    with place.open() as repository:
        repository.convert_catalog(kind)
        assert contents(repository.readonly_session("main")) == {"mine": b"1"}
        commit(repository, {"more": b"1"})
        require_sound(repository)


def test_the_clock_is_kept(folder: Path) -> None:
    clock = HandClock()
    with Place.new("sqlite", folder).create(clock=clock) as repository:
        repository.convert_catalog("log")
        catalog = repository.handle.catalog
        assert isinstance(catalog, LogCatalog)
        assert catalog._clock is clock
