"""copy_to and backup: the copy is the same repository, whole or not there, and what is there already is used."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

import vstore
from tests.repositories import GROUP, KINDS, HandClock, Place, commit, contents, drop, quick_folder, write
from tests.unit.ops.repositories import FUTURE
from tests.unit.transfer.houses import contents_of, furnish, require_sound, state_of
from vstore.blobs.packing import NO_SLOT, OpenPack
from vstore.catalog.location import find_catalog
from vstore.catalog.log import StaleStateError
from vstore.format.envelope import BlobKind
from vstore.format.log_record import Tombstone, encode_identity_object, encode_tombstone
from vstore.format.refs import CHECK_BLOCK_BYTES, check_table_size
from vstore.ids import PackId, blake3_digest, new_pack_id
from vstore.keys.objects import LATEST, PACK_PREFIX, REPO, SQLITE_FILE, log_name, pack_name, parse_pack_name
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.pack import ObjectPack
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage
from vstore.transfer import packs
from vstore.transfer.plan import MovedOnError, Needs


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as made:
        yield made


def other_place(kind: str, folder: Path) -> Place:
    (folder / "there").mkdir()
    return Place.new(kind, folder / "there")


def sizes(storage: Storage) -> dict[PackId, int]:
    found = {parse_pack_name(info.name): info.size for info in storage.list(PACK_PREFIX)}
    return {pack: size for pack, size in found.items() if pack is not None}


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("here", KINDS)
def test_a_copy_is_the_same_repository(here: str, there: str, folder: Path) -> None:
    place = other_place(there, folder)
    catalog = None if there == "memory" else there
    with furnish(Place.new(here, folder), 30) as repository:
        planned = repository.copy_to(place.location, catalog=catalog, dry_run=True)
        assert not vstore.Repository.exists(place.location)
        report = repository.copy_to(place.location, catalog=catalog)
        assert (planned.copied_packs, planned.copied_bytes) == (report.copied_packs, report.copied_bytes)
        assert report.copied_packs == report.packs > 0
        with place.open() as copy:
            assert copy.id == repository.id == report.repository_id
            assert state_of(copy) == state_of(repository)
            assert contents_of(copy) == contents_of(repository)
            require_sound(copy)
            assert list(copy.ops_log()) == list(repository.ops_log())
            # Whatever is needed, and nothing else.
            needed = sizes(copy.handle.storage)
            assert sum(needed.values()) >= report.bytes
            assert needed.items() & sizes(repository.handle.storage).items()
            # A copy goes on by itself.
            commit(copy, {"own": b"1"})
            copy.garbage_collect(FUTURE)
            copy.compact()
            require_sound(copy)


@pytest.mark.parametrize("there", KINDS)
def test_a_copy_is_brought_up_to_date(there: str, folder: Path) -> None:
    place = other_place(there, folder)
    with furnish(Place.new("sqlite", folder)) as repository:
        repository.copy_to(place.location, catalog=None if there == "memory" else there)
        again = repository.copy_to(place.location)
        assert (again.is_current, again.copied_packs) == (True, 0)
        with place.open() as reader:
            session = reader.readonly_session("main")
            before = contents(session)
            for number in range(20):
                commit(repository, {"v": b"%d" % number * 300})
            repository.create_tag("v2", repository.lookup_branch("main"))
            planned = repository.copy_to(place.location, dry_run=True)
            report = repository.copy_to(place.location)
            assert planned.copied_packs == report.copied_packs == 20
            assert not report.is_current
            # Open handles of the copy follow.
            assert contents(session) == before
            assert contents(reader.readonly_session("main")) == contents(repository.readonly_session("main"))
            mine, theirs = state_of(repository), state_of(reader)
            assert {**theirs, "epoch": 0} == {**mine, "epoch": 0}
            require_sound(reader)


@pytest.mark.parametrize("there", KINDS)
def test_housekeeping_of_a_copy_is_no_obstacle(there: str, folder: Path) -> None:
    place = other_place(there, folder)
    with furnish(Place.new("sqlite", folder)) as repository:
        repository.copy_to(place.location, catalog=None if there == "memory" else there)
        for _ in range(2):
            with place.open() as copy:
                for act in (copy.compact, lambda: copy.garbage_collect(FUTURE), copy.compact):
                    act()
                copy.readonly_session("main", lease=timedelta(days=1)).close()
            assert repository.copy_to(place.location).is_current
            commit(repository, {"v": os.urandom(2000)})
            report = repository.copy_to(place.location)
            # What the copy has compacted does not come again.
            assert (report.is_current, report.copied_packs) == (False, 1)
            with place.open() as copy:
                require_sound(copy)
                copy.garbage_collect(FUTURE)
                require_sound(copy)
                assert contents_of(copy) == contents_of(repository)


@pytest.mark.parametrize("there", KINDS)
def test_what_was_moved_there_and_then_here_is_found(there: str, folder: Path) -> None:
    """The source's relocations lead to a pack that the copy has moved on, and whose name it has deleted."""
    place = other_place(there, folder)
    with Place.new("sqlite", folder).create() as repository:
        for number in range(3):
            commit(repository, {f"v{number}": os.urandom(700)})
        repository.compact()
        repository.garbage_collect(FUTURE)
        with repository.handle.catalog.reading() as view:
            targets = {state.target for state in view.pack_states(None)}
        commit(repository, {"as much": os.urandom(4000)})
        repository.copy_to(place.location, catalog=None if there == "memory" else there)
        with place.open() as copy:
            copy.compact()
            copy.garbage_collect(FUTURE)
            assert not targets & sizes(copy.handle.storage).keys()
        for number in range(3):
            commit(repository, {"more": bytes([number]) * 700})
            if number == 2:
                repository.compact()
                repository.garbage_collect(FUTURE)
            assert repository.copy_to(place.location).copied_packs == 1
            with place.open() as copy:
                require_sound(copy)
                assert contents_of(copy) == contents_of(repository)
                copy.garbage_collect(FUTURE)
                copy.compact()
                require_sound(copy)


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        lambda copy: commit(copy, {"own": b"1"}),
        lambda copy: copy.create_branch("own", copy.lookup_branch("main")),
        lambda copy: copy.set_metadata({"own": 1}),
    ],
    ids=["commit", "branch", "metadata"],
)
def test_what_was_written_to_a_copy_is_not_lost(there: str, change: Callable[..., Any], folder: Path) -> None:
    place = other_place(there, folder)
    with Place.new("log", folder).create() as repository:
        commit(repository, {"v": b"1"})
        repository.copy_to(place.location, catalog=None if there == "memory" else there)
        with place.open() as copy:
            change(copy)
            before = state_of(copy)
        for number in range(5):
            for dry_run in (True, False):
                with pytest.raises(vstore.ConflictError, match="written to since"):
                    repository.copy_to(place.location, dry_run=dry_run)
            commit(repository, {"v": b"%d" % number})
        with place.open() as copy:
            assert state_of(copy) == before


def test_there_and_back(folder: Path) -> None:
    """From a disk to an object store and back to a third place, and changes back to the first."""
    place, bucket, third = Place.new("sqlite", folder), MemoryStore(), folder / "third"
    with furnish(place) as repository:
        before = state_of(repository)
        repository.copy_to(bucket)
        with vstore.Repository.open(bucket) as remote:
            remote.copy_to(third)
            commit(remote, {"away": b"1"})
            remote.copy_to(place.location)
            remote.copy_to(third)
        assert contents(repository.readonly_session("main"))["away"] == b"1"
        with vstore.Repository.open(third) as last:
            assert find_catalog(LocalStorage(third)) == "sqlite"
            assert contents_of(last) == contents_of(repository)
            require_sound(last)
        assert list(before["spaces"]) == list(state_of(repository)["spaces"])


def test_a_backup_mends_its_original(folder: Path) -> None:
    place = Place.new("sqlite", folder)
    with furnish(place) as repository:
        repository.backup(folder / "backup")
        lost = max(sizes(repository.handle.storage).items(), key=lambda item: item[1])[0]
        (place.location / pack_name(lost)).unlink()
        assert not repository.fsck().is_clean
        assert repository.fsck(repair_from=folder / "backup").is_clean


# --- refusals --------------------------------------------------------------------------------------------------


def test_other_places_are_left_alone(folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        with other_place("sqlite", folder).create() as another:
            before = state_of(another)
            with pytest.raises(vstore.RepositoryExistsError, match=another.id):
                repository.backup(folder / "there" / "repository")
            assert state_of(another) == before
        (folder / "full").mkdir()
        (folder / "full" / "data.nc").write_bytes(b"x")
        with pytest.raises(vstore.AlreadyExistsError, match=r"data\.nc"):
            repository.backup(folder / "full")
        store = MemoryStore()
        ObjectStorage(store).create(
            REPO, encode_identity_object(b"\x94\xc4\x10" + bytes(16) + b"\x01\x90\x00")
        )
        with pytest.raises(vstore.RepositoryExistsError):
            repository.copy_to(store)
        packs_only = ObjectStorage(MemoryStore())
        sink = packs_only.open_pack(PackId(bytes(16)))
        sink.write(0, [b"x"])
        sink.seal(1)
        with pytest.raises(vstore.AlreadyExistsError, match="packs/"):
            repository.copy_to(packs_only)
        for location in (
            folder / "repository",
            f"file://{folder}/repository",
            folder / "repository" / "copy",
        ):
            with pytest.raises(vstore.InvalidInputError, match="another place"):
                repository.copy_to(location)
        with pytest.raises(vstore.InvalidInputError, match="copy_to"):
            repository.backup("memory://house")
        with pytest.raises(vstore.InvalidInputError, match="'git'"):
            repository.copy_to(folder / "x", catalog="git")
        with pytest.raises(vstore.InvalidInputError, match="no directory"):
            repository.copy_to(MemoryStore(), catalog="sqlite")
        repository.backup(folder / "x", catalog="log")
        with pytest.raises(vstore.InvalidInputError, match="convert_catalog"):
            repository.backup(folder / "x", catalog="sqlite")


def test_a_file_and_a_place_that_can_not_be_written(folder: Path) -> None:
    class ReadOnly(FaultyStorage):
        def create(self, name: str, data: bytes) -> None:
            raise vstore.ReadOnlyError("can only be read")

    with Place.new("sqlite", folder).create() as repository:
        (folder / "file").write_bytes(b"")
        with pytest.raises(vstore.VStoreError):
            repository.backup(folder / "file")
        with pytest.raises(vstore.ReadOnlyError):
            repository.copy_to(ReadOnly(ObjectStorage(MemoryStore())))


def test_no_space_leaves_what_the_next_call_goes_on_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of several at once, an error stops the others where they are.
    monkeypatch.setattr(packs, "PACKS_AT_ONCE", 1)
    place = Place.new("memory", folder)

    class Full(FaultyStorage):
        left = 2

        def open_pack(self, pack: PackId) -> Any:
            if not self.left:
                raise vstore.OutOfSpaceError("no space left")
            self.left -= 1
            return super().open_pack(pack)

    with Place.new("sqlite", folder).create() as repository:
        for number in range(6):
            commit(repository, {"v": bytes([number]) * 2000})
        target = ObjectStorage(place.location)
        with pytest.raises(vstore.OutOfSpaceError):
            repository.copy_to(Full(target))
        assert not vstore.Repository.exists(place.location)
        with pytest.raises(vstore.RepositoryNotFoundError, match="not finished"):
            place.open()
        report = repository.copy_to(place.location)
        assert report.copied_packs == report.packs - 2
        with place.open() as copy:
            require_sound(copy)


# --- bytes -----------------------------------------------------------------------------------------------------


def test_packs_are_copied_as_they_are_and_large_ones_in_pieces(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packs, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(packs, "MEMORY_BYTES", 5000)
    place = Place.new("memory", folder)
    with Place.new("sqlite", folder).create() as repository:
        for size in (10, 999, 70_000, 200_000):
            commit(repository, {"zarr.json": GROUP, "v": os.urandom(size)})
        report = repository.copy_to(place.location, verify=True)
        target = ObjectStorage(place.location)
        source = repository.handle.storage
        for pack, size in sizes(source).items():
            assert target.read(pack_name(pack), 0, size) == source.read(pack_name(pack), 0, size)
        assert report.bytes == sum(sizes(source).values())


def test_several_at_once_within_the_bound(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packs of 10 kB take 20 while they are read back, so that two are under way and never more if 45 are the bound."""
    monkeypatch.setattr(packs, "MEMORY_BYTES", 45_000)
    together, met = threading.Barrier(2, timeout=20), threading.Event()
    most = [0]
    take = packs._Room.take

    @contextmanager
    def watched(room: Any, size: int) -> Iterator[None]:
        with take(room, size):
            most[0] = max(most[0], room._taken)
            if size > 20_000 and not met.is_set():
                together.wait()
                met.set()
            yield

    monkeypatch.setattr(packs._Room, "take", watched)
    with Place.new("sqlite", folder).create() as repository:
        for _ in range(12):
            commit(repository, {"v": os.urandom(10_000)})
        repository.copy_to(MemoryStore())
        assert 40_000 < most[0] <= 45_000


@pytest.mark.parametrize("there", KINDS)
@pytest.mark.parametrize("has_catalog", [False, True])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_pack_at_the_target_is_put_anew(
    there: str, has_catalog: bool, damage: str, folder: Path
) -> None:
    place = other_place(there, folder)
    with Place.new("sqlite", folder).create() as repository:
        for number in range(3):
            commit(repository, {"v": bytes([number]) * 5000})
        repository.copy_to(place.location, catalog=None if there == "memory" else there)
        target = place.open()
        storage = target.handle.storage
        pack, size = max(sizes(storage).items(), key=lambda item: item[1])
        data = bytearray(storage.read(pack_name(pack), 0, size))
        if damage == "cut":
            del data[size // 2 :]
        else:
            data[100] ^= 1
        target.close()
        sink = storage.replace_damaged_pack(pack)
        sink.write(0, [bytes(data)])
        sink.seal(len(data))
        assert not target.fsck(data=True).is_clean
        if has_catalog:
            commit(repository, {"more": b"1"})
        report = repository.copy_to(place.location, verify=True)
        assert report.copied_packs == 1 + has_catalog
        target.close()
        assert target.fsck(data=True).is_clean
        target.close()


def test_a_damaged_source_is_not_copied(folder: Path) -> None:
    place = Place.new("sqlite", folder)
    with place.create() as repository:
        commit(repository, {"v": b"x" * 5000})
        pack, _ = max(sizes(repository.handle.storage).items(), key=lambda item: item[1])
        path = place.location / pack_name(pack)
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(data)
        with pytest.raises(vstore.CorruptionError, match="digest"):
            repository.copy_to(folder / "there", verify=True)
        other = min(sizes(repository.handle.storage).items(), key=lambda item: item[1])[0]
        path.write_bytes((place.location / pack_name(other)).read_bytes())
        with pytest.raises(vstore.CorruptionError, match="says that it is pack"):
            repository.copy_to(folder / "there")
        path.write_bytes(data[:-10])
        with pytest.raises(vstore.FormatError):
            repository.copy_to(folder / "there")
        path.unlink()
        with pytest.raises(vstore.FormatError):
            repository.copy_to(folder / "there")
        assert not vstore.Repository.exists(folder / "there")


@pytest.mark.parametrize("fault", [Fault.LOST, Fault.APPLIED, Fault.LATE, Fault.NOT_APPLIED])
def test_a_lost_reply_of_an_upload_is_settled_by_writing_it_again(fault: Fault, folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"v": b"1" * 3000})
        bare = ObjectStorage(MemoryStore())
        faulty = FaultyStorage(bare)
        repository.copy_to(faulty)
        seals = [n for n, request in enumerate(faulty.plan.requests) if request.method == "seal"]
        assert len(seals) == 2
        for number in seals:
            bare = ObjectStorage(MemoryStore())
            faulty = FaultyStorage(bare, FaultPlan().inject(number, fault))
            try:
                repository.copy_to(faulty)
            except vstore.StorageError:
                assert fault is Fault.NOT_APPLIED
                assert repository.copy_to(bare).copied_packs >= 1
            faulty.plan.land()
            with vstore.Repository.open(bare) as copy:
                require_sound(copy)
                assert contents_of(copy) == contents_of(repository)


# --- beside others ---------------------------------------------------------------------------------------------


class Meddling:
    """Does something to the source whenever the copy says what it has done."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act
        self.calls = 0
        self.is_busy = False

    def __call__(self, done: int, total: int, what: str) -> None:
        if not self.is_busy:
            self.is_busy = True
            try:
                self.act(self.calls)
            finally:
                self.is_busy = False
            self.calls += 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("there", KINDS)
def test_writers_expiry_compact_and_gc_at_the_source(kind: str, there: str, folder: Path) -> None:
    """Everything that was there when the copy began expires, moves, and is deleted while it is copied."""
    place, other = Place.new(kind, folder), other_place(there, folder)
    with place.create() as repository, place.open() as busy:
        for number in range(12):
            commit(repository, {"v": os.urandom(3000), f"kept {number}": os.urandom(600)})

        def act(call: int) -> None:
            if call in (3, 15, 30, 45):
                commit(busy, {"v": os.urandom(3000)})
                held = busy.lookup_branch("main")
                drop(busy, *[info.id for info in busy.ancestry(branch="main") if info.id != held][:8])
                if call in (15, 45):
                    busy.compact()
                busy.garbage_collect(FUTURE)

        meddling = Meddling(act)
        report = repository.copy_to(
            other.location, catalog=None if there == "memory" else there, progress=meddling
        )
        assert meddling.calls > 15
        with other.open() as copy:
            require_sound(copy)
            with copy.handle.catalog.reading() as view:
                assert view.sequence == report.sequence
            assert contents(copy.readonly_session("main")).keys() == {
                "v",
                *(f"kept {number}" for number in range(12)),
            }
        repository.copy_to(other.location)
        with other.open() as copy:
            assert contents_of(copy) == contents_of(repository)


def test_threads_that_write_expire_compact_and_collect(folder: Path) -> None:
    """Backups, one after another, while others are at work: each is whole."""
    place = Place.new("sqlite", folder)
    stop = threading.Event()
    errors: list[BaseException] = []

    def at_work(act: Callable[[vstore.Repository], object]) -> None:
        with place.open() as repository:
            while not stop.is_set():
                try:
                    act(repository)
                except (vstore.ConflictError, vstore.NotFoundError, vstore.FormatError, vstore.StorageError):
                    # What others do to a writer is tested elsewhere.
                    continue
                except Exception as error:  # noqa: BLE001
                    errors.append(error)
                    return

    def clear_up(repository: vstore.Repository) -> None:
        held = repository.lookup_branch("main")
        old = [info.id for info in repository.ancestry(branch="main") if info.id != held][3:]
        drop(repository, *old)
        repository.compact()
        repository.garbage_collect(FUTURE)

    with place.create() as repository:
        commit(repository, {f"kept {number}": os.urandom(2000) for number in range(20)})
        threads = [
            threading.Thread(target=at_work, args=(act,))
            for act in (
                lambda busy: commit(busy, {"v": os.urandom(2000)}),
                lambda busy: commit(busy, {"w": os.urandom(2000)}),
                clear_up,
            )
        ]
        for thread in threads:
            thread.start()
        try:
            for _ in range(4):
                report = repository.backup(folder / "backup")
                with vstore.Repository.open(folder / "backup") as copy:
                    require_sound(copy)
                    contents_of(copy)
                    assert next(copy.ops_log()).sequence >= report.sequence
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors
        repository.backup(folder / "backup")
        with vstore.Repository.open(folder / "backup") as copy:
            assert contents_of(copy) == contents_of(repository)


@pytest.mark.parametrize("there", KINDS)
def test_what_is_committed_after_nearly_all_was_copied_is_there_whole(there: str, folder: Path) -> None:
    place = other_place(there, folder)
    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"v": os.urandom(3000)})
        late: list[str] = []

        def act(done: int, total: int, what: str) -> None:
            if what.startswith("bytes") and done == total and not late:
                late.append("")
                late[0] = commit(repository, {"late": os.urandom(3000)})

        report = repository.copy_to(
            place.location, catalog=None if there == "memory" else there, progress=act
        )
        assert report.copied_packs == report.packs == 3
        with place.open() as copy:
            assert copy.lookup_branch("main") == late[0]
            require_sound(copy)


def test_gives_up_when_the_source_never_stands_still(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*arguments: object) -> None:
        raise MovedOnError("gone")

    with Place.new("sqlite", folder).create() as repository:
        monkeypatch.setattr(Needs, "named_by", gone)
        with pytest.raises(vstore.StorageError, match="10 tries"):
            repository.backup(folder / "there")
        assert not vstore.Repository.exists(folder / "there")


@pytest.mark.parametrize("there", KINDS)
def test_a_commit_to_the_copy_while_it_is_brought_up_to_date_wins(there: str, folder: Path) -> None:
    place = other_place(there, folder)
    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"v": b"1"})
        repository.copy_to(place.location, catalog=None if there == "memory" else there)
        commit(repository, {"v": b"2"})
        with place.open() as copy:
            done: list[str] = []

            def act(call: int) -> None:
                if not done:
                    done.append(commit(copy, {"own": b"1"}))

            with pytest.raises((vstore.RepositoryExistsError, vstore.ConflictError)):
                repository.copy_to(place.location, progress=Meddling(act))
            assert copy.lookup_branch("main") == done[0]
            require_sound(copy)


async def test_twins(folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"v": b"1"})
        await repository.backup_async(folder / "one")
        await repository.copy_to_async(folder / "two")
        await repository.convert_catalog_async("log")
        for name in ("one", "two"):
            with vstore.Repository.open(folder / name) as copy:
                assert copy.id == repository.id


def test_an_interrupted_update_can_be_taken_back_without_the_source(folder: Path) -> None:
    with Place.new("log", folder).create() as repository:
        first = commit(repository, {"v": b"1"})
        repository.handle.storage.create(log_name(2), encode_tombstone(Tombstone(2, 60)))
        with repository.writable_session("main") as session:
            write(session, {"v": b"2"})
            with pytest.raises(vstore.StorageError, match="convert_catalog"):
                session.commit("not now")
            repository.convert_catalog("log")
            session.commit("now")
        assert [info.id for info in repository.ancestry(branch="main")][1] == first
        require_sound(repository)


# --- what misleads, and what does not answer -------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["another repository", "another copy"])
def test_a_hint_that_lies_is_not_copied(whose: str, folder: Path) -> None:
    source, other, target = (
        Place.new("memory", folder),
        Place.new("memory", folder),
        ObjectStorage(MemoryStore()),
    )
    with source.create() as repository:
        commit(repository, {"mine": b"1"})
        if whose == "another copy":
            repository.copy_to(other.location)
        else:
            other.create().close()
    with other.open() as another:
        for _ in range(3):
            commit(another, {"theirs": b"2"})
    hint = ObjectStorage(other.location).read_whole(LATEST, 1 << 20)
    ObjectStorage(source.location).write(LATEST, hint)
    with source.open() as repository:
        repository.copy_to(target)
    with vstore.Repository.open(target) as copy:
        assert contents(copy.readonly_session("main")) == {"mine": b"1"}
        require_sound(copy)


def test_a_hint_that_lies_at_the_target(folder: Path) -> None:
    target, other = MemoryStore(), MemoryStore()
    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"mine": b"1"})
        repository.copy_to(target)
        repository.copy_to(other)
        commit(repository, {"mine": b"2"})
        with vstore.Repository.open(other) as another:
            for _ in range(3):
                commit(another, {"theirs": b"2"})
        ObjectStorage(target).write(LATEST, ObjectStorage(other).read_whole(LATEST, 1 << 20))
        repository.copy_to(target)
        with vstore.Repository.open(target) as copy:
            assert contents(copy.readonly_session("main")) == {"mine": b"2"}
            require_sound(copy)


def test_a_jump_far_beyond_makes_no_operations(folder: Path) -> None:
    target = MemoryStore()
    with Place.new("sqlite", folder).create() as repository:
        repository.copy_to(target)
        commit(repository, {"v": b"1"})
        ObjectStorage(target).create(log_name(1), encode_tombstone(Tombstone(1, 5000)))
        with pytest.raises(vstore.StorageError, match="far beyond"):
            repository.copy_to(target)


def test_a_lost_request_to_claim_the_place_is_made_again(folder: Path) -> None:
    with Place.new("sqlite", folder).create(clock=HandClock()) as repository:

        class Deaf(FaultyStorage):
            left = 1

            def create(self, name: str, data: bytes) -> None:
                if name == REPO and self.left:
                    self.left -= 1
                    raise vstore.OutcomeUnknownError("lost")
                super().create(name, data)

        bare = ObjectStorage(MemoryStore())
        repository.copy_to(Deaf(bare))
        with vstore.Repository.open(bare) as copy:
            require_sound(copy)
        deaf = Deaf(ObjectStorage(MemoryStore()))
        deaf.left = 1000
        with pytest.raises(vstore.OutcomeUnknownError):
            repository.copy_to(deaf)
        assert deaf.left > 900


def test_a_dry_run_looks_again_when_the_source_moved_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named_by, left = Needs.named_by, [MovedOnError("gone"), StaleStateError("old")]

    def gone(*arguments: Any) -> Any:
        if left:
            raise left.pop()
        return named_by(*arguments)

    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"v": b"1" * 3000})
        monkeypatch.setattr(Needs, "named_by", gone)
        assert repository.backup(folder / "there", dry_run=True).copied_packs == 2


def test_a_current_copy_with_its_own_housekeeping_says_what_is_needed(folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        commit(repository, {"v": b"1" * 3000})
        first = repository.backup(folder / "there")
        with vstore.Repository.open(folder / "there") as copy:
            copy.readonly_session("main", lease=timedelta(days=1)).close()
        again = repository.backup(folder / "there")
        assert again.is_current
        assert (again.packs, again.bytes) == (first.packs, first.bytes)
        assert again.packs


def test_a_copy_is_not_locked_while_packs_come(folder: Path) -> None:
    with Place.new("sqlite", folder).create() as repository:
        repository.backup(folder / "there")
        commit(repository, {"v": os.urandom(3000)})
        calls: list[str] = []

        def act(done: int, total: int, what: str) -> None:
            if not what.startswith("bytes"):
                return
            with contextlib.closing(sqlite3.connect(folder / "there" / SQLITE_FILE, timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
            calls.append(what)
            if len(calls) < 4:
                commit(repository, {"late": os.urandom(3000)})

        assert repository.backup(folder / "there", progress=act).copied_packs == 4
        assert len(calls) >= 4


def test_a_pack_that_is_damaged_on_its_way_is_read_three_times() -> None:
    place = Place.new("memory", Path())
    with place.create() as repository:
        commit(repository, {"v": os.urandom(5000)})
        source = repository.handle.storage
        pack, size = max(sizes(source).items(), key=lambda item: item[1])
        for fault in (Fault.CORRUPT, Fault.TRUNCATE):
            for damaged in range(4):
                plan = FaultPlan()
                for number in range(damaged):
                    plan.inject(number, fault)
                target = ObjectStorage(MemoryStore())
                copier = packs.PackCopier(
                    FaultyStorage(source, plan), target, lambda pack, size, copied: None
                )
                if damaged < 3:
                    copier.copy([(pack, size)], {})
                    copied = target.read(pack_name(pack), 0, size)
                    assert copied == source.read(pack_name(pack), 0, size)
                else:
                    with pytest.raises(vstore.CorruptionError, match="so that it was not copied"):
                        copier.copy([(pack, size)], {})
                    assert sizes(target) == {}
                assert len(plan.requests) == min(damaged + 1, 3)


def test_large_blobs_are_read_back_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "_CHECKED_BLOCKS", 1)
    longest = 0
    read = ObjectPack.read

    def watched(sink: ObjectPack, offset: int, length: int) -> memoryview:
        nonlocal longest
        longest = max(longest, length)
        return read(sink, offset, length)

    monkeypatch.setattr(ObjectPack, "read", watched)
    sizes_of_blobs = [CHECK_BLOCK_BYTES, CHECK_BLOCK_BYTES + 1, 3 * CHECK_BLOCK_BYTES, 500_000]
    source = ObjectStorage(MemoryStore())
    pack = OpenPack(source.open_pack(new_pack_id()), 0)
    places = []
    for length in sizes_of_blobs:
        data = os.urandom(length)
        offset = pack.place(NO_SLOT, BlobKind.CHUNK, blake3_digest(data), length)
        pack.write(offset, (data,))
        places.append((offset, length))
    pack.seal()
    size = source.size(pack_name(pack.pack))
    assert size is not None

    def copy(flipped: int | None) -> None:
        class Flipping(FaultyStorage):
            def read(self, name: str, offset: int, length: int) -> memoryview:
                data = bytearray(source.read(name, offset, length))
                if flipped is not None:
                    data[flipped - offset] ^= 1
                return memoryview(bytes(data))

        copier = packs.PackCopier(
            Flipping(source, FaultPlan()), ObjectStorage(MemoryStore()), lambda pack, size, copied: None
        )
        copier.copy([(pack.pack, size)], {})

    longest = 0
    copy(None)
    assert longest == CHECK_BLOCK_BYTES
    for offset, length in places:
        for place in (offset, offset + length // 2, offset + length - 1):
            with pytest.raises(vstore.CorruptionError, match="digest"):
                copy(place)
        if length > CHECK_BLOCK_BYTES:
            # The first and the last checksum.
            for place in (offset + length, offset + length + check_table_size(length) - 1):
                with pytest.raises(vstore.CorruptionError, match="checksums"):
                    copy(place)
