"""Pending refs that were moved out of memory behave like those that were not."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.core.sync import sync

import vstore
from tests.repositories import KINDS, Place, array_document, commit, contents, quick_folder, write
from vstore.blobs.slots import WriterState
from vstore.blobs.writer import BlobWriter
from vstore.format.envelope import BlobKind
from vstore.ids import blake3_digest, new_pack_id
from vstore.ops.fsck import check
from vstore.session import Session
from vstore.storage.base import PackPolicy
from vstore.storage.local import LocalStorage
from vstore.storage.objects.storage import ObjectStorage
from vstore.worktree import encode, spilling
from vstore.worktree.batch.reading import plan_reads
from vstore.worktree.batch.writing import set_many
from vstore.worktree.contents import StoredChunk
from vstore.worktree.frozen import FrozenBlobs
from vstore.worktree.spilling import make_room, spill, spilled_of

COUNT = 400
SMALL_PACKS = PackPolicy(target_bytes=6000, buffer_bytes=2000, direct_bytes=None)


@pytest.fixture(autouse=True)
def tiny_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spill at each edit, and seal packs after a few chunks, so that chunks of the session can be spilled too."""
    monkeypatch.setattr(spilling, "MAX_PENDING_BYTES", 1)
    monkeypatch.setitem(spill.__kwdefaults__, "fewest_refs", 1)
    monkeypatch.setattr(spilling, "_EDIT_BYTES", 1)
    for storage in (LocalStorage, ObjectStorage):
        monkeypatch.setattr(storage, "pack_policy", SMALL_PACKS)


@pytest.fixture(params=KINDS)
def repository(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder:
        repository = Place.new(request.param, folder).create()
        yield repository
        repository.close()


def value(n: int, salt: int = 0) -> bytes:
    """Return a chunk: every other one is long enough to be a blob."""
    return f"{salt}:{n} ".encode() * (1 if n % 2 else 200)


def key(n: int, path: str = "a") -> str:
    return f"{path}/c/{n}"


DOCUMENT = array_document((COUNT,))


def fill(session: Session, numbers: range, salt: int = 0, path: str = "a") -> dict[str, bytes]:
    values = {key(n, path): value(n, salt) for n in numbers}
    write(session, values)
    return values


def spilled_layers(session: Session, path: str = "a") -> int:
    node = session.tree.nodes.drafts[path]
    assert node is not None
    assert node.array is not None
    tiles = [spilled_of(tile) for tile in node.array.pending.values()]
    return sum(len(tile.layers) for tile in tiles if tile is not None)


def in_memory(session: Session, path: str = "a") -> int:
    node = session.tree.nodes.drafts[path]
    assert node is not None
    assert node.array is not None
    return sum(map(len, node.array.pending.values()))


def settle(session: Session) -> None:
    """Seal what there is and spill all of it."""
    session.tree.writer.flush()
    with session.tree.writer.slots.lock:
        pack, session.tree.writer._open = session.tree.writer._open, None
    if pack is not None:
        session.tree.writer._sealer.seal(pack)
    spill(session.tree)
    assert not in_memory(session)


def test_chunks_of_sealed_packs_leave_the_memory(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    fill(session, range(COUNT))
    assert spilled_layers(session) > 0
    # What waits for its pack stays: a pack has about ten.
    assert in_memory(session) < 60
    settle(session)
    assert in_memory(session) == 0


def test_all_that_reads_sees_spilled_refs(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    expected = fill(session, range(COUNT))
    settle(session)
    expected |= fill(session, range(0, COUNT, 7), salt=1)
    for n in range(0, COUNT, 11):
        session.tree_for_writing().delete(key(n))
        del expected[key(n)]
    found = contents(session)
    assert found.pop("a/zarr.json") == DOCUMENT
    assert found == expected
    assert session.totals("a").chunks == len(expected)
    assert session.totals("a").bytes == sum(map(len, expected.values()))
    assert sum(box.size for box in session.status().chunk_boxes["/a"]) == len(expected)
    assert session.has_uncommitted_changes
    session.commit("x")
    reader = repository.readonly_session("main")
    assert contents(reader) == expected | {"a/zarr.json": DOCUMENT}
    assert check(repository, data=True).is_clean


def test_a_single_manifest_is_committed_as_it_is(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    expected = fill(session, range(COUNT))
    settle(session)
    spilled_once(session)
    made: list[Any] = []
    monkeypatch.setattr(encode, "encode_manifest", made.append)
    monkeypatch.setattr(spilling, "decode_manifest", made.append)
    session.commit("x")
    assert made == []
    monkeypatch.undo()
    assert contents(repository.readonly_session("main")) == expected | {"a/zarr.json": DOCUMENT}
    assert check(repository, data=True).is_clean


def spilled_once(session: Session) -> None:
    """Make one layer of all that was spilled."""
    node = session.tree.nodes.drafts["a"]
    assert node is not None
    assert node.array is not None
    for tile in node.array.pending.values():
        spilling.unspill(tile, session.tree.dictionaries)
    spill(session.tree)
    assert spilled_layers(session) == 1


def test_chunks_equal_to_the_base_stay_known(repository: vstore.Repository) -> None:
    commit(repository, {"a/zarr.json": DOCUMENT, **{key(n): value(n) for n in range(COUNT)}})
    head = repository.lookup_branch("main")
    session = repository.writable_session("main")
    fill(session, range(COUNT), salt=1)
    fill(session, range(COUNT))
    settle(session)
    assert not session.has_uncommitted_changes
    assert session.commit("nothing new") == head


def test_chunks_that_equalled_the_base_can_change(repository: vstore.Repository) -> None:
    commit(repository, {"a/zarr.json": DOCUMENT, **{key(n): value(n) for n in range(COUNT)}})
    session = repository.writable_session("main")
    fill(session, range(COUNT))
    settle(session)
    changed = fill(session, range(0, COUNT, 2), salt=1)
    settle(session)
    expected = {"a/zarr.json": DOCUMENT, **{key(n): value(n) for n in range(COUNT)}, **changed}
    assert contents(session) == expected
    session.commit("x")
    assert contents(repository.readonly_session("main")) == expected


def test_a_cleared_array_shows_what_was_written_again(repository: vstore.Repository) -> None:
    commit(repository, {"a/zarr.json": DOCUMENT, **{key(n): value(n) for n in range(COUNT)}})
    session = repository.writable_session("main")
    session.tree_for_writing().delete_folder("a")
    write(session, {"a/zarr.json": DOCUMENT})
    expected = fill(session, range(0, COUNT, 3))
    settle(session)
    assert contents(session) == expected | {"a/zarr.json": DOCUMENT}
    session.commit("x")
    assert contents(repository.readonly_session("main")) == expected | {"a/zarr.json": DOCUMENT}
    assert check(repository, data=True).is_clean


@pytest.mark.parametrize("over_base", [False, True])
def test_shrinking_growing_and_clearing(repository: vstore.Repository, over_base: bool) -> None:
    first = {"a/zarr.json": array_document((40_000,))}
    if over_base:
        commit(repository, {**first, **{key(n): value(n, 9) for n in range(0, 40_000, 500)}})
    session = repository.writable_session("main")
    write(session, first)
    expected = {k: v for k, v in contents(session).items() if "/c/" in k}
    for start in (0, 16_300, 32_700):
        expected |= fill(session, range(start, start + 150))
    settle(session)
    write(session, {"a/zarr.json": array_document((16_400,))})
    write(session, {"a/zarr.json": array_document((40_000,))})
    expected = {k: v for k, v in expected.items() if int(k.rpartition("/")[2]) < 16_400}
    settle(session)
    assert {k: v for k, v in contents(session).items() if "/c/" in k} == expected
    session.commit("x")
    assert {k: v for k, v in contents(repository.readonly_session("main")).items() if "/c/" in k} == expected
    session = repository.writable_session("main")
    fill(session, range(COUNT))
    settle(session)
    session.tree_for_writing().delete_folder("a/c")
    assert contents(session).keys() == {"a/zarr.json"}
    session.commit("y")
    assert contents(repository.readonly_session("main")).keys() == {"a/zarr.json"}
    assert check(repository, data=True).is_clean


def rebased(session: Session, repository: vstore.Repository) -> None:
    commit(repository, {"b/zarr.json": DOCUMENT, key(0, "b"): b"theirs"})
    session.rebase()


def moved(session: Session, repository: vstore.Repository) -> None:
    session.move("a", "b")
    session.move("b", "a")


def shifted(session: Session, repository: vstore.Repository) -> None:
    session.shift_array("a", (5,))
    settle(session)
    session.shift_array("a", (-5,))


def failed(session: Session, repository: vstore.Repository) -> None:
    commit(repository, {"b/zarr.json": DOCUMENT})
    with pytest.raises(vstore.ConflictError):
        session.commit("too late")
    session.rebase("fail")


@pytest.mark.parametrize("change", [rebased, moved, shifted, failed])
def test_changes_of_the_whole(
    repository: vstore.Repository, change: Callable[[Session, vstore.Repository], None]
) -> None:
    commit(repository, {"a/zarr.json": DOCUMENT, **{key(n): value(n, 3) for n in range(0, COUNT - 5, 2)}})
    session = repository.writable_session("main")
    fill(session, range(0, COUNT - 5, 3), salt=1)
    settle(session)
    expected = {k: v for k, v in contents(session).items() if k.startswith("a/")}
    change(session, repository)
    assert {k: v for k, v in contents(session).items() if k.startswith("a/")} == expected
    settle(session) if session.tree.nodes.drafts.get("a") else None
    session.commit("x")
    found = contents(repository.readonly_session("main"))
    assert {k: v for k, v in found.items() if k.startswith("a/")} == expected
    assert check(repository, data=True).is_clean


def test_a_clash_with_spilled_chunks_is_found(repository: vstore.Repository) -> None:
    commit(repository, {"a/zarr.json": DOCUMENT})
    session = repository.writable_session("main")
    fill(session, range(50))
    settle(session)
    commit(repository, {key(7): b"theirs", key(8): value(8)})
    with pytest.raises(vstore.RebaseFailedError) as caught:
        session.rebase()
    assert "7" in str(caught.value.conflicts)
    session.rebase("ours")
    assert session.tree.read(key(7)) == value(7)


def test_a_pickled_session_reads_spilled_refs(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    expected = fill(session, range(COUNT))
    assert spilled_layers(session)
    copy = pickle.loads(pickle.dumps(session))
    assert contents(copy) == expected | {"a/zarr.json": DOCUMENT}


def test_a_pack_that_is_sealed_while_a_copy_looks_for_it_is_found(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = repository.handle.storage
    state = WriterState(array("Q", [0]), array("Q", [0]), [new_pack_id()], {})
    looks: list[str] = []

    def read(name: str, offset: int, length: int) -> memoryview:
        looks.append(name)
        if len(looks) < 3:
            raise vstore.errors.ObjectNotFoundError(f"{name} is not there")
        return memoryview(b"sealed")

    monkeypatch.setattr(storage, "read", read)
    assert FrozenBlobs(storage, state).read(0, 6) == b"sealed"
    assert [name.partition("/")[0] for name in looks] == ["packs", "staging", "packs"]


def test_discarded_changes_are_gone(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    fill(session, range(COUNT))
    session.discard_changes()
    assert contents(session) == {}
    write(session, {"a/zarr.json": DOCUMENT})
    assert contents(session) == {"a/zarr.json": DOCUMENT}
    assert session.commit("x")
    assert check(repository, data=True).is_clean


def test_packs_that_only_a_spilled_manifest_names_are_named_by_the_commit(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vstore.commit as commits

    named: list[frozenset[Any]] = []
    prepare = commits.prepare

    def spying(*args: Any) -> Any:
        prepared = prepare(*args)
        named.append(prepared.packs)
        return prepared

    monkeypatch.setattr("vstore.commit.prepare", spying)
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    fill(session, range(COUNT))
    settle(session)
    spilled_once(session)
    sources = [session.tree.find(key(n)) for n in range(0, COUNT, 2)]
    holding = {source.ref.pack for source in sources if isinstance(source, StoredChunk)}
    assert len(holding) > 3
    session.commit("x")
    assert holding <= named[0]


def test_chunks_whose_pack_may_still_move_are_not_spilled() -> None:
    """While the outcome of a seal is in doubt, its blobs go to a pack of another name."""
    with quick_folder() as folder:
        storage = LocalStorage(str(folder))
        writer = BlobWriter(storage)
        data = b"m" * 3000
        slots = np.array([writer.put(data, blake3_digest(data), BlobKind.MANIFEST)], np.uint64)
        assert not writer.slots.are_sealed(slots).any()
        writer.flush()
        pack = writer._open
        assert pack is not None
        assert not writer.slots.are_sealed(slots).any()
        moved = writer._sealer.move_to_new_pack(pack)
        assert not writer.slots.are_sealed(slots).any()
        writer._open = None
        writer._sealer.seal(moved)
        assert writer.slots.are_sealed(slots).all()
        assert writer.read(int(slots[0]), 3000) == data
        writer.close()


def test_edits_during_a_spill_are_kept(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread writes while a tile is being encoded is not lost with it."""
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    monkeypatch.setattr(spilling, "MAX_PENDING_BYTES", 2**40)
    session.tree.room_until = 2**60
    expected = fill(session, range(1, 100, 2))
    put = spilling._put

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(spilling, "_put", put)
        found = put(*args)
        session.tree.set(key(51), b"new")
        return found

    monkeypatch.setattr(spilling, "_put", interrupted)
    spill(session.tree)
    assert in_memory(session) == len(expected)
    spill(session.tree)
    assert in_memory(session) == 0
    assert contents(session) == expected | {"a/zarr.json": DOCUMENT, key(51): b"new"}


def test_looking_for_room_is_rare(repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be spilled, not every edit looks at all tiles again."""
    looks = []

    def counted(tree: Any) -> None:
        looks.append(1)
        make_room(tree)

    monkeypatch.setattr("vstore.worktree.spilling.make_room", counted)
    monkeypatch.setattr(spilling, "MAX_PENDING_BYTES", 1_000_000)
    monkeypatch.setattr(spilling, "_EDIT_BYTES", 2048)
    monkeypatch.setitem(spill.__kwdefaults__, "fewest_refs", 10**6)
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": array_document((4_000,))})
    for n in range(4_000):
        write(session, {key(n): b"x" * 400})
    assert 10 < len(looks) < 120


def test_many_virtual_refs_lie_in_manifests_at_once(repository: vstore.Repository, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1000))
    session = repository.writable_session("main")
    write(session, {"v/zarr.json": array_document((300, 300))})
    offsets = np.arange(90_000)
    session.store.set_virtual_refs_arr(
        "v", (300, 300), [source.as_uri()] * 90_000, offsets, np.ones(90_000, int), checksum="tag"
    )
    assert in_memory(session, "v") == 0
    assert spilled_layers(session, "v") > 3
    session.store.set_virtual_refs_arr("v", (2, 2), ["", source.as_uri()] * 2, np.arange(4), np.full(4, 7))
    session.tree_for_writing().delete("v/c/0/0")
    session.commit("x")
    tree = repository.readonly_session("main").tree
    found: Any = tree.find("v/c/299/17")
    assert (found.offset, found.length, found.checksum) == (299 * 300 + 17, 1, "tag")
    found = tree.find("v/c/1/1")
    assert (found.offset, found.length, found.checksum) == (3, 7, None)
    assert tree.find("v/c/0/0") is None
    assert repository.readonly_session("main").totals("v").chunks == 89_999
    assert check(repository).is_clean


def test_a_listing_streams(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/zarr.json": DOCUMENT})
    expected = fill(session, range(COUNT))
    settle(session)

    async def keys() -> list[str]:
        return [found async for found in session.store.list_prefix("a/c/")]

    assert sorted(sync(keys())) == sorted(expected)


def test_batches_see_spilled_refs(repository: vstore.Repository) -> None:
    """Many keys at once give what each gives alone."""
    commit(repository, {"a/zarr.json": DOCUMENT, **{key(n): value(n, 3) for n in range(0, COUNT, 4)}})
    session = repository.writable_session("main")
    fill(session, range(0, COUNT, 3), salt=1)
    fill(session, range(0, 8, 4), salt=3)
    for n in range(0, COUNT, 10):
        session.tree_for_writing().delete(key(n))
    settle(session)
    fill(session, range(5, 60, 5), salt=2)
    keys = [key(n) for n in range(COUNT)]
    expected = [session.tree.read(one) for one in keys]

    def read() -> list[bytes | None]:
        found = {row: data for task in plan_reads(session.tree, keys) for row, data in task}
        return [None if found[row] is None else bytes(found[row]) for row in range(COUNT)]

    assert read() == expected
    set_many(session.tree_for_writing(), keys[:50], [None] * 25 + [b"new"] * 25)
    assert read() == [None] * 25 + [b"new"] * 25 + expected[50:]
