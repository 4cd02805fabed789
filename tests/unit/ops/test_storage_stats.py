"""Every byte is accounted for as a plain count over all snapshots says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vstore
from tests.repositories import GROUP, KINDS, Place, array_document, commit, quick_folder, write
from tests.unit.ops.damage import flip, footer_of, make_arrays, pack_of, row_of_length, stored
from tests.unit.ops.repositories import expire, packs
from tests.unit.ops.synthetic import make_synthetic
from vstore.format.envelope import BlobKind
from vstore.format.record import RefKind, SnapshotEntry
from vstore.ops import ref_sums
from vstore.ops.storage_stats import StorageStats
from vstore.reachability import NeededBlob, NeededChunks, Walk

Needs = dict[tuple[bytes, int], tuple[int, bool]]


def needs_of(repository: vstore.Repository, entry: SnapshotEntry) -> Needs:
    """Return what one snapshot needs: place to length, and whether it is metadata."""
    found: Needs = {}
    for each in Walk(repository.handle.blobs_for(None)).snapshot(entry):
        if isinstance(each, NeededBlob):
            found[each.ref.pack, each.ref.offset] = each.ref.length, each.kind != BlobKind.CHUNK
        elif isinstance(each, NeededChunks):
            for pack, rows in each.by_pack():
                for row in rows.tolist():
                    found[pack, int(each.offsets[row])] = int(each.lengths[row]), False
    return found


def size(needs: Needs) -> int:
    return sum(length for length, _ in needs.values())


def without(needs: Needs, *others: Needs) -> Needs:
    return {key: value for key, value in needs.items() if not any(key in other for other in others)}


class Count:
    """The same figures, counted plainly."""

    def __init__(self, repository: vstore.Repository) -> None:
        with repository.handle.catalog.reading() as view:
            self.entries = sorted(view.iter_snapshots(), key=lambda entry: entry.time_us)
            self.refs = [(kind, name, id_) for kind in RefKind for name, id_ in view.iter_refs(kind)]
            expired = {entry.id: entry.parents for entry in view.iter_expired()}
        self.needs = {entry.id: needs_of(repository, entry) for entry in self.entries}
        self.parents = {entry.id: entry.parents for entry in self.entries} | expired

    def reached(self, snapshot: bytes) -> set[bytes]:
        pending, seen = [snapshot], set()
        while pending:
            one = pending.pop()
            if one not in seen:
                seen.add(one)
                pending += self.parents.get(one, ())  # type: ignore[arg-type]
        return {one for one in seen if one in self.needs}

    def of(self, snapshots: set[bytes]) -> Needs:
        joined: Needs = {}
        for snapshot in snapshots:
            joined |= self.needs[snapshot]  # type: ignore[index]
        return joined

    def check(self, stats: StorageStats) -> None:
        everything = self.of(set(self.needs))
        assert stats.native_bytes == size({k: v for k, v in everything.items() if not v[1]})
        assert stats.metadata_bytes == size({k: v for k, v in everything.items() if v[1]})
        older: Needs = {}
        for entry in self.entries:
            found = stats.snapshots[entry.id.hex()]
            others = self.of(set(self.needs) - {entry.id})
            assert found.new_bytes == size(without(self.needs[entry.id], older))
            assert found.exclusive_bytes == size(without(self.needs[entry.id], others))
            older |= self.needs[entry.id]
        reached = {(kind, name): self.reached(snapshot) for kind, name, snapshot in self.refs}
        for kind, name, _ in self.refs:
            found = (stats.branches if kind == RefKind.BRANCH else stats.tags)[name]
            mine = self.of(reached[kind, name])
            others = set(self.needs) - reached[kind, name]
            for other in reached.keys() - {(kind, name)}:
                others |= reached[other]
            assert found.stored_bytes == size(mine)
            assert found.exclusive_bytes == size(without(mine, self.of(others)))
        loose = set(self.needs).difference(*reached.values())
        assert stats.unreferenced_bytes == size(
            without(self.of(loose), self.of(set().union(*reached.values())))
        )


def make_branches(repository: vstore.Repository) -> None:
    """Commit branches, tags, merges, moves and what no ref reaches; blobs are shared in every way."""
    made = make_arrays(repository)
    repository.create_tag("old", made[1])
    repository.create_branch("dev", made[2])
    for branch, number in (("dev", 1), ("main", 2), ("dev", 3)):
        with repository.writable_session(branch) as session:
            write(session, {f"a/c/{number}/0": stored(9000 + number), f"note{number}": b"n" * 5000})
            session.commit(f"{number} on {branch}")
    repository.create_tag("middle", repository.lookup_branch("dev"))
    with repository.writable_session("dev") as session:
        session.move("a", "moved")
        session.shift_array("moved", (1, 0))
        session.commit("moved")
    repository.merge("dev", "main", solver="theirs")
    with repository.writable_session("main") as session:
        write(session, {"loose": b"l" * 7000})
        session.flush("loose")
    # Equal chunks: of one session, and of two.
    same = {"same/zarr.json": array_document((6,))} | {f"same/c/{i}": stored(1, 3000) for i in range(4)}
    commit(repository, same)
    repository.create_branch("other", made[0])
    with repository.writable_session("other") as session:
        write(session, same)
        session.commit("the same on other")


@pytest.fixture(params=KINDS)
def repository(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder, Place.new(request.param, folder).create() as made:
        yield made


@pytest.mark.parametrize("part_rows", [2_000_000, 7])
def test_every_byte_is_counted_once(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(ref_sums, "PART_ROWS", part_rows)
    make_branches(repository)
    count = Count(repository)
    stats = repository.storage_stats()
    count.check(stats)
    assert stats.pack_bytes == sum(packs(repository).values())
    assert stats.unreadable == 0
    assert stats.non_virtual_bytes() == stats.native_bytes + stats.inlined_bytes
    assert [each.new_bytes for each in stats.largest] == sorted(
        (each.new_bytes for each in stats.snapshots.values()), reverse=True
    )[:10]
    assert len(repository.storage_stats(top=2).largest) == 2


def test_what_lies_below_unchanged_pages_is_shared(local: vstore.Repository) -> None:
    """Though no ref tells the snapshots apart, and the page is met, not visited, by the later ones."""
    # Enough nodes for several pages; the array's is one that no later commit touches.
    nodes = {f"node{number:03}/zarr.json": GROUP for number in range(500)}
    chunks = {f"node200z/c/{i}": stored(i, 900) for i in range(9)}
    commit(local, nodes | {"node200z/zarr.json": array_document((9,))} | chunks)
    for number in range(3):
        commit(local, {"zarr.json": GROUP, "value": str(number).encode()})
    Count(local).check(local.storage_stats())


def test_expired_snapshots_count_no_more(local: vstore.Repository) -> None:
    make_branches(local)
    head = local.lookup_branch("main")
    gone = [info.id for info in local.ancestry(branch="main") if info.id != head][1:4]
    held = {local.lookup_branch(name) for name in local.list_branches()}
    held |= {local.lookup_tag(name) for name in local.list_tags()}
    expire(local, *(snapshot for snapshot in gone if snapshot not in held))
    Count(local).check(local.storage_stats())


def test_arrays(repository: vstore.Repository) -> None:
    first = {"zarr.json": GROUP, "a/zarr.json": array_document((9,)), "b/zarr.json": array_document((9,))}
    first |= {f"a/c/{i}": stored(i) for i in range(4)} | {"a/c/4": stored(1), "b/c/1": stored(1)}
    first |= {f"b/c/{i}": b"i" * 100 for i in range(2, 5)}
    commit(repository, first)
    commit(repository, {"a/c/0": stored(50), "b/c/2": b"j" * 60})
    stats = repository.storage_stats()
    # Of "b" the chunk that it shares with "a" counts for it too.
    assert stats.arrays["a"][:3] == ("a", 5 * 800, 0)
    assert stats.arrays["b"].native_bytes == 800
    assert stats.native_bytes == 5 * 800
    # Versions: five chunks of "a", one of them twice, and one of "b".
    assert stats.versions_bytes == 7 * 800
    assert stats.dedup_share == pytest.approx(2 / 7)
    assert stats.inlined_bytes >= 360
    assert 0 < stats.inlined_share < 1
    head = stats.branches["main"]
    assert (head.live_bytes, head.is_exact) == (6 * 800 + 2 * 100 + 60, True)
    assert stats.snapshots[repository.lookup_branch("main")].live_bytes == head.live_bytes


def test_virtual_chunks_are_counted_by_their_ranges(local: vstore.Repository, tmp_path: Path) -> None:
    write_to = local.writable_session("main")
    write(write_to, {"v/zarr.json": array_document((8,)), "w/zarr.json": array_document((8,))})
    url = tmp_path.as_uri() + "/file"
    lengths = np.full(4, 100, np.uint64)
    for array in ("v", "w"):
        write_to.store.set_virtual_refs_arr(
            array, (4,), [url] * 4, np.arange(4, dtype=np.uint64) * 100, lengths
        )
    write_to.store.set_virtual_refs_arr(
        "w", (1,), [url + "2"], np.zeros(1, np.uint64), lengths[:1], arr_offset=(5,)
    )
    write_to.commit("virtual")
    stats = local.storage_stats()
    assert stats.virtual_bytes == 500
    assert [stats.arrays[path].virtual_bytes for path in ("v", "w")] == [400, 500]
    assert stats.total_bytes() == 500
    assert stats.native_bytes == 0
    Count(local).check(stats)


def test_damaged_metadata_is_said(local: vstore.Repository) -> None:
    made = make_arrays(local)
    pack = pack_of(local, made[-1])
    footer = footer_of(local, pack)
    flip(local.handle.storage, pack, int(footer.offsets[footer.kinds.tolist().index(BlobKind.PAGE)]) + 9)
    from vstore.blobs.cache import CACHE

    CACHE.clear()
    stats = local.storage_stats()
    assert stats.unreadable == 1
    assert "1 metadata blobs can't be read, so that these figures are too low" in str(stats)


def test_no_chunk_is_read(local: vstore.Repository) -> None:
    made = make_arrays(local)
    expected = local.storage_stats()
    pack = pack_of(local, made[0])
    footer = footer_of(local, pack)
    flip(local.handle.storage, pack, int(footer.offsets[row_of_length(footer, 200_000)]))
    assert local.storage_stats() == expected
    assert "bytes of chunks in packs" in str(expected)
    assert "branch 'main'" in str(expected)


def test_many_refs_are_more_bits_than_a_word(local: vstore.Repository) -> None:
    for number in range(70):
        snapshot = commit(local, {"a/zarr.json": array_document((100,)), f"a/c/{number}": stored(number)})
        local.create_tag(f"tag{number:02}", snapshot)
    stats = local.storage_stats()
    assert len(stats.tags) == 70
    Count(local).check(stats)


async def test_the_async_twin(local: vstore.Repository) -> None:
    assert (await local.storage_stats_async()).native_bytes == 0


def test_a_million_refs(local: vstore.Repository) -> None:
    make_synthetic(local, 2**20)
    stats = local.storage_stats()
    assert stats.native_bytes == 2**20 * 4096
    assert stats.branches["main"].stored_bytes == stats.native_bytes + stats.metadata_bytes
