"""fsck finds every damage, names what it affects, and holds bounded memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vstore
from tests.repositories import GROUP, Place, commit, quick_folder, write
from tests.unit.ops.damage import (
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
from tests.unit.ops.repositories import FUTURE, expire, packs, snapshot_id
from vstore.catalog.base import AddSnapshot, Applied, Transaction
from vstore.changes.boxes import Box
from vstore.format.envelope import BlobKind
from vstore.format.record import OperationKind, SnapshotEntry
from vstore.ids import PackId, new_transaction_id
from vstore.keys.objects import pack_name, parse_pack_name
from vstore.ops import affected
from vstore.ops.fsck import Damage, FsckReport, _Fsck, check


def test_metadata_that_this_process_wrote_is_read_from_storage() -> None:
    """A commit keeps its pages in the cache: that they are right there says nothing of the pack."""
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        with repository.writable_session("main") as session:
            write(session, {"zarr.json": GROUP, "value": b"x"})
            session.commit("a group")
        with repository.handle.catalog.reading() as view:
            newest = max(view.iter_snapshots(), key=lambda entry: entry.time_us)
        (pack,) = Path(folder).rglob(f"*{newest.ref.pack.hex()}*")
        data = bytearray(pack.read_bytes())
        # The page of the hierarchy is the first of the commit's metadata blobs.
        data[newest.stretch_offset + newest.stretch_length // 8] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
        assert not check(repository).is_clean


def test_an_intact_repository_is_clean(repository: vstore.Repository) -> None:
    make_arrays(repository)
    repository.create_tag("tag", repository.lookup_branch("main"))
    report = repository.fsck(data=True)
    assert report.is_clean
    assert report.damages == []
    assert report.snapshots == 6
    assert report.packs == len(packs(repository))
    assert report.unreferenced_packs == 0
    footers = [footer_of(repository, pack) for pack in all_packs(repository)]
    assert report.read_blobs == sum(map(len, footers))
    assert report.read_bytes == sum(int(footer.lengths.sum()) for footer in footers)
    assert "no damage" in str(report)
    assert repository.fsck().read_blobs == 0


def all_packs(repository: vstore.Repository) -> list[PackId]:
    return [pack for name in packs(repository) if (pack := parse_pack_name(name)) is not None]


def test_a_flipped_bit_is_named_with_all_that_it_affects(repository: vstore.Repository) -> None:
    made = make_arrays(repository)
    pack = pack_of(repository, made[0])
    footer = footer_of(repository, pack)
    # Chunks are in the order in which they were written.
    row = footer.digests.tolist().index(list(vstore_digest(stored(3 * 7 + 2))))
    flip(repository.handle.storage, pack, int(footer.offsets[row]) + 100)
    assert repository.fsck().is_clean, "the quick check reads no chunks"
    (damage,) = repository.fsck(data=True).damages
    assert damage.place == pack_name(pack)
    assert damage.blob == footer.digests[row].tobytes().hex()
    assert "does not match its digest" in damage.problem
    (array,) = damage.arrays
    assert array.path == "a"
    assert array.boxes == (Box((7, 2), (8, 3)),)
    assert array.chunks == 1
    assert damage.snapshots == tuple(reversed(made))
    assert damage.snapshot_count == 5
    assert "chunk (7, 2) of array 'a'" in str(damage)
    assert all(snapshot[:12] in str(damage) for snapshot in made)


def vstore_digest(data: bytes) -> bytes:
    from vstore.ids import blake3_digest

    return blake3_digest(data)


def test_the_checksums_behind_a_large_blob_are_checked(repository: vstore.Repository) -> None:
    made = make_arrays(repository)
    pack = pack_of(repository, made[0])
    footer = footer_of(repository, pack)
    row = row_of_length(footer, 200_000)
    flip(repository.handle.storage, pack, int(footer.offsets[row]) + 200_000 + 3)
    (damage,) = repository.fsck(data=True).damages
    assert "checksums" in damage.problem
    assert damage.arrays[0].path == "b"


def test_a_missing_pack_affects_all_that_is_in_it(repository: vstore.Repository) -> None:
    made = make_arrays(repository)
    pack = pack_of(repository, made[2])
    repository.handle.storage.delete([pack_name(pack)])
    (damage,) = repository.fsck().damages
    assert (damage.place, damage.problem, damage.blob) == (pack_name(pack), "is missing", None)
    # Its snapshot is in it, and the chunk, which the later ones have too.
    assert damage.snapshot_count == 3
    assert set(damage.snapshots) == set(made[2:])
    assert f"snapshot {made[2]}" in damage.affects
    assert "(31, 1) of array 'a'" in damage.affects


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def end(data: bytes) -> bytes:
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def footer_bit(data: bytes) -> bytes:
    return data[:-90] + bytes([data[-90] ^ 1]) + data[-89:]


def start(data: bytes) -> bytes:
    return b"x" + data[1:]


@pytest.mark.parametrize("harm", [cut, end, footer_bit, start, lambda data: b"", lambda data: data[:30]])
@pytest.mark.parametrize("data", [False, True])
def test_a_damaged_file_is_named(
    repository: vstore.Repository, harm: Callable[[bytes], bytes], data: bool
) -> None:
    made = make_arrays(repository)
    pack, storage = pack_of(repository, made[0]), repository.handle.storage
    overwrite(storage, pack, harm(read_pack(storage, pack)))
    report = repository.fsck(data=data)
    whole = [damage for damage in report.damages if damage.blob is None]
    assert [damage.place for damage in whole] == [pack_name(pack)]
    assert {damage.place for damage in report.damages} == {pack_name(pack)}
    assert made[0] in whole[0].snapshots


def test_without_a_footer_blobs_are_read_by_their_refs(repository: vstore.Repository) -> None:
    made = make_arrays(repository)
    pack, storage = pack_of(repository, made[0]), repository.handle.storage
    footer = footer_of(repository, pack)
    row = row_of_length(footer, 200_000)
    overwrite(storage, pack, end(read_pack(storage, pack)))
    assert len(repository.fsck(data=True).damages) == 1
    flip(storage, pack, int(footer.offsets[row]) + 5)
    report = repository.fsck(data=True)
    assert [damage.blob for damage in report.damages] == [None, footer.digests[row].tobytes().hex()]


def test_a_damaged_page_hides_what_is_below_it_from_its_snapshots(repository: vstore.Repository) -> None:
    made = make_arrays(repository)
    pack = pack_of(repository, made[-1])
    footer = footer_of(repository, pack)
    row = footer.kinds.tolist().index(BlobKind.PAGE)
    flip(repository.handle.storage, pack, int(footer.offsets[row]) + 30)
    (damage,) = repository.fsck().damages
    assert damage.snapshots == (made[-1],)
    assert "a page of" in damage.affects
    assert damage.blob == footer.digests[row].tobytes().hex()


def test_lists_are_bounded(local: vstore.Repository) -> None:
    first = make_arrays(local)[0]
    for number in range(12):
        commit(local, {"value": str(number).encode()})
    pack, storage = pack_of(local, first), local.handle.storage
    footer = footer_of(local, pack)
    data = bytearray(read_pack(storage, pack))
    rows = np.flatnonzero(footer.lengths == 800)
    for row in rows.tolist():
        data[int(footer.offsets[row])] ^= 1
    overwrite(storage, pack, bytes(data))
    report = local.fsck(data=True)
    assert len(report.damages) == affected.SHOWN_BLOBS + 1
    last = report.damages[-1]
    assert f"and {len(rows) - affected.SHOWN_BLOBS - 1} more blobs are damaged" in last.problem
    assert last.arrays[0].chunks == len(rows) - affected.SHOWN_BLOBS
    assert (len(last.snapshots), last.snapshot_count) == (affected.SHOWN_SNAPSHOTS, 17)
    assert "and 9 more" in last.affects


def test_the_number_of_damages_is_bounded(local: vstore.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    from vstore.ops import fsck

    monkeypatch.setattr(fsck, "MAX_DAMAGES", 2)
    for snapshot in make_arrays(local):
        local.handle.storage.delete([pack_name(pack_of(local, snapshot))])
    report = local.fsck()
    assert (len(report.damages), report.more_damages) == (2, 3)
    assert "and 3 more damages" in str(report)
    assert not report.is_clean


def test_what_only_expired_snapshots_need_is_not_missed(repository: vstore.Repository) -> None:
    made = make_arrays(repository)
    repository.reset_branch("main", made[1])
    expire(repository, *made[2:])
    repository.handle.storage.delete([pack_name(pack_of_expired) for pack_of_expired in unneeded(repository)])
    assert repository.fsck(data=True).is_clean


def unneeded(repository: vstore.Repository) -> list[PackId]:
    report = repository.garbage_collect(FUTURE, dry_run=True)
    assert report is not None
    live = {entry.ref.pack for entry in entries(repository)}
    return [pack for pack in all_packs(repository) if pack not in live]


def entries(repository: vstore.Repository) -> list[SnapshotEntry]:
    with repository.handle.catalog.reading() as view:
        return list(view.iter_snapshots())


# --- relocated packs -----------------------------------------------------------------------------------------


def compacted(repository: vstore.Repository, *, collect: bool) -> PackId:
    """Compact; return the pack that has the blobs now."""
    old = pack_of(repository, make_even(repository)[2])
    before = set(packs(repository))
    repository.compact()
    (new,) = set(packs(repository)) - before
    if collect:
        for _ in range(3):
            repository.garbage_collect(FUTURE)
    assert (pack_name(old) in packs(repository)) != collect
    pack = parse_pack_name(new)
    assert pack is not None
    return pack


@pytest.mark.parametrize("collect", [False, True])
def test_compacted_packs_are_clean(repository: vstore.Repository, collect: bool) -> None:
    compacted(repository, collect=collect)
    report = repository.fsck(data=True)
    assert report.damages == []
    assert (report.unreferenced_packs == 0) == collect


@pytest.mark.parametrize("collect", [False, True])
def test_the_packs_that_blobs_were_moved_to_are_checked(repository: vstore.Repository, collect: bool) -> None:
    pack = compacted(repository, collect=collect)
    footer = footer_of(repository, pack)
    row = row_of_length(footer, 900)
    flip(repository.handle.storage, pack, int(footer.offsets[row]))
    (damage,) = repository.fsck(data=True).damages
    assert (damage.place, damage.blob) == (pack_name(pack), footer.digests[row].tobytes().hex())
    assert damage.arrays[0].path == "b"
    overwrite(repository.handle.storage, pack, end(read_pack(repository.handle.storage, pack)))
    assert pack_name(pack) in {damage.place for damage in repository.fsck().damages}
    repository.handle.storage.delete([pack_name(pack)])
    assert "is missing" in {damage.problem for damage in repository.fsck().damages}


def test_a_blob_that_was_not_moved_is_missed(repository: vstore.Repository) -> None:
    """Also while the old pack is there: gc will delete that."""
    from vstore.format.pack import PACK_HEADER, Footer, encode_ending

    pack = compacted(repository, collect=False)
    footer = footer_of(repository, pack)
    keep = footer.lengths != 900
    less = Footer(footer.kinds[keep], footer.digests[keep], footer.offsets[keep], footer.lengths[keep])
    data = read_pack(repository.handle.storage, pack)
    blobs = int(footer.offsets[-1] + footer.lengths[-1])
    body = PACK_HEADER + data[len(PACK_HEADER) : blobs]
    overwrite(repository.handle.storage, pack, body + encode_ending(pack, less, blobs))
    (damage,) = repository.fsck().damages
    assert damage.problem == f"has no blob {vstore_digest(stored(1000, 900)).hex()} of 900 bytes"


def test_a_collector_beside_fsck_is_no_damage(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = _Fsck._take_scope
    looks = []

    def take_then_compact(self: _Fsck) -> Any:
        taken = take(self)
        if not looks:
            compacted(repository, collect=True)
        looks.append(taken)
        return taken

    monkeypatch.setattr(_Fsck, "_take_scope", take_then_compact)
    assert repository.fsck(data=True).damages == []
    assert len(looks) > 1


# --- the catalog ---------------------------------------------------------------------------------------------


def test_an_entry_that_contradicts_its_snapshot_is_named(local: vstore.Repository) -> None:
    made = make_arrays(local)
    (entry,) = [entry for entry in entries(local) if entry.id == snapshot_id(made[2])]
    local.reset_branch("main", made[0])
    expire(local, *made[1:])
    with local.handle.catalog.reading() as view:
        since = view.sequence
    for changed in (
        entry._replace(time_us=entry.time_us + 1),
        entry._replace(parents=()),
        entry._replace(info=("x", b"{}")),
    ):
        transaction = Transaction(
            new_transaction_id(), since, OperationKind.RESTORE, 0, "", (), (AddSnapshot(changed),)
        )
        assert isinstance(local.handle.catalog.update(transaction), Applied)
        (damage,) = local.fsck().damages
        assert damage.place == "catalog"
        assert made[2] in damage.problem
        expire(local, made[2])
    assert local.fsck().is_clean


# --- samples -------------------------------------------------------------------------------------------------


def test_a_sample_can_be_drawn_again(repository: vstore.Repository) -> None:
    make_arrays(repository)
    total = repository.fsck(data=True).read_blobs
    assert repository.fsck(sample=1.0).read_blobs == total
    assert repository.fsck(sample=total + 5).read_blobs == total
    assert repository.fsck(sample=7).read_blobs == 7
    share = repository.fsck(sample=0.5).read_blobs
    assert 0 < share < total
    assert repository.fsck(sample=0.5).read_blobs == share


def test_a_seed_chooses_the_blobs(local: vstore.Repository) -> None:
    made = make_arrays(local)
    pack = pack_of(local, made[0])
    footer = footer_of(local, pack)
    row = row_of_length(footer, 200_000)
    flip(local.handle.storage, pack, int(footer.offsets[row]))
    found = [not local.fsck(sample=0.3, seed=seed).is_clean for seed in range(40)]
    assert 2 <= sum(found) <= 25
    assert found == [not local.fsck(sample=0.3, seed=seed).is_clean for seed in range(40)]


@pytest.mark.parametrize("sample", [0.0, -0.5, 1.5, 0, -3, True, "all", float("nan")])
def test_samples_that_are_none_are_refused(local: vstore.Repository, sample: Any) -> None:
    with pytest.raises(vstore.InvalidInputError):
        local.fsck(sample=sample)


def test_all_and_some_is_refused(local: vstore.Repository) -> None:
    with pytest.raises(vstore.InvalidInputError, match="not both"):
        local.fsck(data=True, sample=0.5)


# --- reports and progress ------------------------------------------------------------------------------------


def test_progress_is_reported(repository: vstore.Repository) -> None:
    make_arrays(repository)
    seen: set[str] = set()

    def progress(done: int, total: int, what: str) -> None:
        assert 0 <= done < total
        seen.add(what)

    repository.fsck(data=True, progress=progress)
    assert seen == {"snapshots", "packs read"}


async def test_the_async_twin(repository: vstore.Repository) -> None:
    assert (await repository.fsck_async()).is_clean


def test_a_damage_is_a_line() -> None:
    report = FsckReport(damages=[Damage("catalog", "is odd", "history")])
    assert str(report).endswith("1 damages\ncatalog: is odd; affects history")


# --- scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("refs", [2**20, pytest.param(10 * 2**20, marks=pytest.mark.deep)])
def test_millions_of_refs_are_compared_in_bounded_memory(refs: int) -> None:
    from tests.unit.ops.synthetic import make_synthetic

    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        lost = make_synthetic(repository, refs)
        tracemalloc.start()
        report = repository.fsck()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64 * 2**20 + 40 * refs
        assert report.blobs > refs
        (damage,) = report.damages
        assert damage.blob == lost.digest.hex()
        assert damage.arrays[0].path == "large"
        assert damage.arrays[0].chunks == 1
