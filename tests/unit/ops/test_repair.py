"""Repair puts back what a copy has, and nothing else; it never makes anything worse, wherever it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import vstore
from tests.repositories import KINDS, Place, array_document, commit, contents, quick_folder
from tests.unit.ops.damage import (
    copy_of,
    flip,
    footer_of,
    make_arrays,
    make_even,
    overwrite,
    pack_of,
    read_pack,
    row_of_length,
    stored,
)
from tests.unit.ops.repositories import FUTURE, packs
from vstore.catalog.base import Applied, MarkPacks, Transaction
from vstore.errors import StorageError
from vstore.format.envelope import BlobKind
from vstore.format.pack import Footer, encode_ending
from vstore.format.record import OperationKind, PackMark, PackState
from vstore.ids import PackId, new_transaction_id
from vstore.keys.objects import STAGING_PREFIX, pack_name, parse_pack_name
from vstore.storage.base import Storage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage, SimulatedCrash


class Pair:
    """A repository and its copy."""

    def __init__(self, place: Place, folder: Path, make: Callable[[vstore.Repository], list[str]]) -> None:
        with place.create() as repository:
            self.made = make(repository)
        self.copy = copy_of(place, folder).open()
        self.repository = place.open()
        self.before = all_bytes(self.repository)
        self.contents = [contents(self.repository.readonly_session(snapshot_id=each)) for each in self.made]

    @property
    def storage(self) -> Storage:
        return self.repository.handle.storage

    def pack(self, number: int) -> PackId:
        return pack_of(self.repository, self.made[number])

    def assert_whole(self) -> None:
        """Everything reads as it did, by this object and by a new one."""
        assert self.repository.fsck(data=True).damages == []
        for snapshot, expected in zip(self.made, self.contents, strict=True):
            assert contents(self.repository.readonly_session(snapshot_id=snapshot)) == expected


def all_bytes(repository: vstore.Repository) -> dict[str, bytes]:
    storage = repository.handle.storage
    return {name: storage.read_whole(name, size) for name, size in packs(repository).items()}


@pytest.fixture(params=KINDS)
def pair(request: pytest.FixtureRequest) -> Pair:
    folder = request.getfixturevalue("folder")
    return Pair(Place.new(request.param, folder), folder, make_arrays)


@pytest.fixture
def folder():  # type: ignore[no-untyped-def]
    with quick_folder() as made:
        yield made


@pytest.fixture
def local_pair(folder: Path) -> Pair:
    return Pair(Place.new("sqlite", folder), folder, make_arrays)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def flipped_end(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def zeros(data: bytes) -> bytes:
    return bytes(len(data))


HARMS = [cut, flipped_end, zeros, lambda data: b"", lambda data: b"x" + data[1:], lambda data: data + b"more"]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("number", [0, 3])
def test_a_damaged_pack_is_put_back_byte_for_byte(
    pair: Pair, harm: Callable[[bytes], bytes], number: int
) -> None:
    pack = pair.pack(number)
    overwrite(pair.storage, pack, harm(read_pack(pair.storage, pack)))
    assert not pair.repository.fsck().is_clean
    report = pair.repository.fsck(repair_from=pair.copy)
    assert report.damages == []
    assert [repaired.place for repaired in report.repaired] == [pack_name(pack)]
    assert report.not_repaired == []
    assert all_bytes(pair.repository) == pair.before
    assert list(pair.storage.list(STAGING_PREFIX)) == []
    pair.assert_whole()


def test_missing_packs_are_put_back(pair: Pair) -> None:
    """All of them: what is below a missing page shows only when that is back."""
    pair.storage.delete(list(pair.before))
    report = pair.repository.fsck(repair_from=pair.copy)
    assert report.damages == []
    assert all_bytes(pair.repository) == pair.before
    pair.assert_whole()


def test_a_bit_in_a_chunk_is_repaired_if_all_is_read(pair: Pair) -> None:
    pack = pair.pack(0)
    footer = footer_of(pair.repository, pack)
    flip(pair.storage, pack, int(footer.offsets[row_of_length(footer, 200_000)]) + 9)
    assert pair.repository.fsck(repair_from=pair.copy).repaired == []
    report = pair.repository.fsck(data=True, repair_from=pair.copy)
    (repaired,) = report.repaired
    assert (repaired.blobs, repaired.bytes, repaired.left) == (1, 200_000, 0)
    assert all_bytes(pair.repository) == pair.before


def test_checksums_need_no_copy_of_the_blob(pair: Pair) -> None:
    pack = pair.pack(0)
    footer = footer_of(pair.repository, pack)
    flip(pair.storage, pack, int(footer.offsets[row_of_length(footer, 200_000)]) + 200_000)
    (repaired,) = pair.repository.fsck(data=True, repair_from=pair.copy).repaired
    assert repaired.blobs == 0
    assert all_bytes(pair.repository) == pair.before


def test_a_damaged_page_hides_damage_that_is_repaired_too(pair: Pair) -> None:
    newest = footer_of(pair.repository, pair.pack(-1))
    flip(pair.storage, pair.pack(-1), int(newest.offsets[newest.kinds.tolist().index(BlobKind.PAGE)]) + 20)
    pair.storage.delete([pack_name(pair.pack(number)) for number in (0, 1, 2)])
    assert pair.repository.fsck(repair_from=pair.copy).damages == []
    assert all_bytes(pair.repository) == pair.before


def test_the_copy_may_be_given_by_its_location(local_pair: Pair) -> None:
    local_pair.storage.delete([pack_name(local_pair.pack(1))])
    location = local_pair.copy.handle.storage.url
    assert local_pair.repository.fsck(repair_from=location).damages == []
    assert all_bytes(local_pair.repository) == local_pair.before


def test_an_intact_repository_is_left_alone(pair: Pair) -> None:
    report = pair.repository.fsck(data=True, repair_from=pair.copy)
    assert (report.damages, report.repaired, report.not_repaired) == ([], [], [])


def test_another_repository_is_refused(local_pair: Pair, folder: Path) -> None:
    other = vstore.Repository.create(folder / "other")
    local_pair.storage.delete([pack_name(local_pair.pack(1))])
    before = packs(local_pair.repository)
    with pytest.raises(vstore.InvalidInputError, match="not a copy"):
        local_pair.repository.fsck(repair_from=other)
    with pytest.raises(vstore.InvalidInputError, match="itself"):
        local_pair.repository.fsck(repair_from=local_pair.repository)
    assert packs(local_pair.repository) == before


def test_open_readers_see_the_repair(pair: Pair) -> None:
    session = pair.repository.readonly_session("main")
    assert contents(session) == pair.contents[-1]
    pack = pair.pack(0)
    overwrite(pair.storage, pack, zeros(read_pack(pair.storage, pack)))
    pair.repository.fsck(repair_from=pair.copy)
    assert contents(session) == pair.contents[-1]


# --- where the copy is damaged, or another --------------------------------------------------------------------


def test_what_the_copy_lacks_too_is_left_and_said(pair: Pair) -> None:
    pack = pair.pack(0)
    footer = footer_of(pair.repository, pack)
    at = int(footer.offsets[row_of_length(footer, 200_000)])
    for repository in (pair.repository, pair.copy):
        flip(repository.handle.storage, pack, at)
    before = all_bytes(pair.repository)
    report = pair.repository.fsck(data=True, repair_from=pair.copy)
    assert len(report.damages) == 1
    assert report.repaired == []
    assert [text.split(":")[0] for text in report.not_repaired] == [pack_name(pack)]
    assert all_bytes(pair.repository) == before


def test_two_half_damaged_packs_make_a_whole_one(pair: Pair) -> None:
    pack = pair.pack(0)
    footer = footer_of(pair.repository, pack)
    large = int(footer.offsets[row_of_length(footer, 200_000)])
    small = int(footer.offsets[row_of_length(footer, 800)])
    flip(pair.storage, pack, large)
    flip(pair.copy.handle.storage, pack, small)
    assert pair.repository.fsck(data=True, repair_from=pair.copy).damages == []
    assert all_bytes(pair.repository) == pair.before


def test_part_of_a_missing_pack_is_better_than_nothing(pair: Pair) -> None:
    pack = pair.pack(0)
    footer = footer_of(pair.repository, pack)
    flip(pair.copy.handle.storage, pack, int(footer.offsets[row_of_length(footer, 200_000)]))
    pair.storage.delete([pack_name(pack)])
    report = pair.repository.fsck(data=True, repair_from=pair.copy)
    assert report.repaired[0].left == 1
    (damage,) = report.damages
    assert damage.arrays[0].path == "b"
    session = pair.repository.readonly_session("main")
    assert session.tree.read("a/c/3/1") == stored(10)
    with pytest.raises(vstore.CorruptionError):
        session.tree.read("b/c/4")
    # A better copy finishes the work.
    flip(pair.copy.handle.storage, pack, int(footer.offsets[row_of_length(footer, 200_000)]))
    assert pair.repository.fsck(data=True, repair_from=pair.copy).damages == []
    pair.assert_whole()


def test_a_copy_that_holds_less_takes_nothing_away(pair: Pair) -> None:
    """It may have been repaired in part itself."""
    pack, storage = pair.pack(0), pair.copy.handle.storage
    footer = footer_of(pair.repository, pack)
    keep = footer.lengths != 200_000
    less = Footer(footer.kinds[keep], footer.digests[keep], footer.offsets[keep], footer.lengths[keep])
    end = int(footer.offsets[-1] + footer.lengths[-1])
    data = bytearray(read_pack(storage, pack)[:end])
    at = int(footer.offsets[row_of_length(footer, 200_000)])
    data[at : at + 200_000] = bytes(200_000)
    overwrite(storage, pack, bytes(data) + encode_ending(pack, less, end))
    flip(pair.storage, pack, int(footer.offsets[row_of_length(footer, 800)]))
    assert pair.repository.fsck(data=True, repair_from=pair.copy).damages == []
    assert all_bytes(pair.repository) == pair.before


def test_equal_blobs_of_other_packs_of_this_repository_are_a_source(folder: Path) -> None:
    def make(repository: vstore.Repository) -> list[str]:
        first = {"a/zarr.json": array_document((4,)), "a/c/0": stored(1, 5000)}
        second = {"b/zarr.json": array_document((4,)), "b/c/2": stored(1, 5000)}
        return [commit(repository, first), commit(repository, second)]

    pair = Pair(Place.new("sqlite", folder), folder, make)
    at = 0
    for repository in (pair.repository, pair.copy):
        footer = footer_of(repository, pair.pack(0))
        at = int(footer.offsets[row_of_length(footer, 5000)])
        flip(repository.handle.storage, pair.pack(0), at)
    pair.copy.handle.storage.delete([pack_name(pair.pack(1))])
    assert not pair.repository.fsck(data=True).is_clean
    report = pair.repository.fsck(data=True, repair_from=pair.copy)
    assert report.damages == []
    assert all_bytes(pair.repository) == pair.before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compact_the_copy", [False, True])
def test_packs_may_differ_after_compaction(folder: Path, kind: str, compact_the_copy: bool) -> None:
    """Blobs are found by their digests, whatever pack they are in, on either side."""
    pair = Pair(Place.new(kind, folder), folder, make_even)
    compacted = pair.copy if compact_the_copy else pair.repository
    compacted.compact()
    for _ in range(3):
        compacted.garbage_collect(FUTURE)
    pair.storage.delete(list(packs(pair.repository)))
    assert not pair.repository.fsck().is_clean
    report = pair.repository.fsck(data=True, repair_from=pair.copy)
    assert report.damages == []
    assert report.not_repaired == []
    pair.assert_whole()


@pytest.mark.parametrize("harm", HARMS)
def test_a_file_without_footer_is_rebuilt_from_refs(folder: Path, harm: Callable[[bytes], bytes]) -> None:
    pair = Pair(Place.new("sqlite", folder), folder, make_even)
    pair.copy.compact()
    for _ in range(3):
        pair.copy.garbage_collect(FUTURE)
    pack = pair.pack(2)
    overwrite(pair.storage, pack, harm(read_pack(pair.storage, pack)))
    assert pair.repository.fsck(data=True, repair_from=pair.copy).damages == []
    pair.assert_whole()


# --- stops and failures --------------------------------------------------------------------------------------


def faulty(repository: vstore.Repository, plan: FaultPlan) -> vstore.Repository:
    storage = FaultyStorage(repository.handle.storage, plan)
    return vstore.Repository(msgspec.structs.replace(repository.handle, storage=storage))


def sabotage(pair: Pair) -> None:
    pair.storage.delete([pack_name(pair.pack(1))])
    footer = footer_of(pair.repository, pair.pack(0))
    flip(pair.storage, pair.pack(0), int(footer.offsets[row_of_length(footer, 200_000)]))


@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.NOT_APPLIED, Fault.APPLIED])
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
def test_a_stop_anywhere_leaves_the_damage_or_the_repair(folder: Path, kind: str, fault: Fault) -> None:
    pair = Pair(Place.new(kind, folder), folder, make_arrays)
    sabotage(pair)
    damaged = all_bytes(pair.repository)
    counting = FaultPlan()
    faulty(pair.repository, counting).fsck(data=True, repair_from=pair.copy)
    writes = [number for number, each in enumerate(counting.requests) if each.method in ("write", "seal")]
    assert len(writes) >= 4
    for number in writes:
        for name, data in damaged.items():
            pair.storage.write(name, data)
        pair.storage.delete([name for name in packs(pair.repository) if name not in damaged])
        pair.storage.close()
        plan = FaultPlan().inject(number, fault)
        try:
            report = faulty(pair.repository, plan).fsck(data=True, repair_from=pair.copy)
            assert report.not_repaired or report.damages == []
        except (SimulatedCrash, StorageError):
            pass
        for name, data in all_bytes(pair.repository).items():
            assert data in (damaged.get(name), pair.before[name])
        assert pair.repository.fsck(data=True, repair_from=pair.copy).damages == []
        assert all_bytes(pair.repository) == pair.before


def test_what_is_out_of_reach_is_not_repaired(local_pair: Pair) -> None:
    """A failure to read says nothing of the bytes."""

    class Refusing(FaultyStorage):
        def read_tail(self, name: str, length: int):  # type: ignore[no-untyped-def]
            raise StorageError(f"injected: {name} can't be read now")

    storage = Refusing(local_pair.storage)
    repository = vstore.Repository(msgspec.structs.replace(local_pair.repository.handle, storage=storage))
    report = repository.fsck(repair_from=local_pair.copy)
    assert len(report.damages) == len(local_pair.before)
    assert report.repaired == []
    assert all("out of reach" in text for text in report.not_repaired)
    assert all_bytes(local_pair.repository) == local_pair.before


def test_what_is_being_deleted_is_not_put_back(local_pair: Pair) -> None:
    """Deleting is final: a late delete could take away what was put back."""
    pack = local_pair.pack(1)
    local_pair.storage.delete([pack_name(pack)])
    catalog = local_pair.repository.handle.catalog
    with catalog.reading() as view:
        since, epoch = view.sequence, view.epoch
    marks = MarkPacks((PackState(pack, PackMark.DELETING, epoch, None),))
    transaction = Transaction(new_transaction_id(), since, OperationKind.COLLECT, 0, "", (), (marks,))
    assert isinstance(catalog.update(transaction), Applied)
    report = local_pair.repository.fsck(repair_from=local_pair.copy)
    assert report.repaired == []
    assert "being deleted" in report.not_repaired[0]
    assert pack_name(pack) not in packs(local_pair.repository)


def test_where_nothing_can_be_written_nothing_is_repaired(local_pair: Pair) -> None:
    class ReadOnly(FaultyStorage):
        def replace_damaged_pack(self, pack: PackId):  # type: ignore[no-untyped-def]
            raise vstore.ReadOnlyError("injected: nothing can be written")

    repository = vstore.Repository(
        msgspec.structs.replace(local_pair.repository.handle, storage=ReadOnly(local_pair.storage))
    )
    assert repository.fsck(data=True, repair_from=local_pair.copy).is_clean
    local_pair.storage.delete([pack_name(local_pair.pack(1))])
    with pytest.raises(vstore.ReadOnlyError):
        repository.fsck(repair_from=local_pair.copy)


def test_the_report_says_what_was_done(local_pair: Pair) -> None:
    sabotage(local_pair)
    text = str(local_pair.repository.fsck(data=True, repair_from=local_pair.copy))
    assert "no damage" in text
    for number in (0, 1):
        assert f"{pack_name(local_pair.pack(number))}: put back" in text


def test_a_repaired_pack_is_not_taken_for_garbage(pair: Pair) -> None:
    pair.storage.delete(list(pair.before))
    pair.repository.fsck(repair_from=pair.copy)
    for _ in range(3):
        pair.repository.garbage_collect(FUTURE)
    assert set(packs(pair.repository)) >= {pack_name(pair.pack(number)) for number in range(5)}
    pair.assert_whole()
    assert all(parse_pack_name(name) for name in packs(pair.repository))
