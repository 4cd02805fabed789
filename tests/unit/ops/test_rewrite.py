"""rewrite_manifests: the head reads the same, from few packs, without layers or relocations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import vstore
from tests.crash.faulty import open_faulty
from tests.repositories import GROUP, KINDS, Place, array_document, commit, contents, write
from tests.unit.ops.repositories import FUTURE, marks
from vstore.format.node import NodeTag, decode_node
from vstore.format.record import PackMark
from vstore.keys.objects import PACK_PREFIX
from vstore.ops import rewrite
from vstore.ops.fsck import check
from vstore.testing.faults import FaultPlan
from vstore.tree import iter_entries

COUNT = 20
BASE = {
    "zarr.json": GROUP,
    "a/zarr.json": array_document((COUNT * 1000,), (1000,)),
    "small/zarr.json": array_document((10,), (1,)),
    "g/zarr.json": GROUP,
    "g/none/zarr.json": array_document((1000,), (1000,)),
    "value": b"v" * 5000,
    "g/many/zarr.json": array_document((20_000 * 7,), (1,)),
    **{f"g/many/c/{number * 10_000}": b"m" for number in range(14)},
}


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place.new(request.param, tmp_path)


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create() as repository:
        commit(repository, BASE)
        for number in range(COUNT):
            commit(repository, {f"a/c/{number}": bytes([number]) * 1000, f"small/c/{number % 10}": b"s"})
        yield repository


def layers(repository: vstore.Repository) -> int:
    """Return the height of the highest stack of a tile in a node."""
    tree = repository.readonly_session("main").tree
    nodes = [e for e in iter_entries(tree.blobs, tree.nodes.root) if e.tag != NodeTag.VALUE]
    tiles = [node.tiles for node in (decode_node(entry.value) for entry in nodes) if node.tiles is not None]
    return max(len(pointer.layers) for tile in tiles for pointer in tile.few.values())


def requests_to_read(place: Place) -> list[str]:
    """Return the packs that reading the head in a fresh process asks for."""
    plan = FaultPlan()
    place.open().close()
    with open_faulty(place, plan) as repository:
        contents(repository.readonly_session("main"))
    return [request.name for request in plan.requests if request.name.startswith(PACK_PREFIX)]


def test_the_head_reads_the_same_with_one_layer(place: Place, repository: vstore.Repository) -> None:
    before, old = contents(repository.readonly_session("main")), repository.lookup_branch("main")
    assert layers(repository) > 1
    new = repository.rewrite_manifests("flat", branch="main", metadata={"by": "me"})
    info = repository.lookup_snapshot(new)
    assert (info.message, info.metadata, info.parent_id) == ("flat", {"by": "me"}, old)
    assert layers(repository) == 1
    with place.open() as other:
        assert contents(other.readonly_session("main")) == before
        assert check(other, data=True).damages == []
    assert repository.diff(from_snapshot_id=old, to_snapshot_id=new).is_empty()
    assert (
        repository.readonly_session("main").totals() == repository.readonly_session(snapshot_id=old).totals()
    )


def test_nothing_is_committed_where_nothing_is_gained(repository: vstore.Repository) -> None:
    new = repository.rewrite_manifests("flat", branch="main")
    assert repository.rewrite_manifests("again", branch="main") == new
    assert repository.lookup_branch("main") == new


def test_after_compact_no_relocation_is_needed(place: Place, repository: vstore.Repository) -> None:
    before = contents(repository.readonly_session("main"))
    report = repository.compact(rewrite_heads=True)
    assert report.rewritten_heads == {"main": repository.lookup_branch("main")}
    repository.garbage_collect(FUTURE)
    assert PackMark.RELOCATED in marks(repository)
    asked = set(requests_to_read(place))
    present = {info.name for info in repository.handle.storage.list(PACK_PREFIX)}
    assert asked <= present, "it asked for a pack that is gone"
    with place.open() as other:
        assert contents(other.readonly_session("main")) == before
        assert check(other, data=True).damages == []
    assert repository.compact(rewrite_heads=True).rewritten_heads == {}


def test_a_session_goes_on_after_a_rewritten_head(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"a/c/3": b"three" * 200})
    repository.compact(rewrite_heads=True)
    repository.garbage_collect(FUTURE)
    session.commit("mine", rebase_with="fail")
    assert contents(repository.readonly_session("main"))["a/c/3"] == b"three" * 200
    assert check(repository, data=True).damages == []


def test_a_branch_that_moves_meanwhile_is_rewritten_anew(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, moves = rewrite.Rewriter.read, iter([b"1" * 1000, b"2" * 1000])

    def read_and_move(self: rewrite.Rewriter, *arguments: object) -> None:
        read(self)
        for data in moves:
            commit(repository, {"a/c/0": data})
            break

    monkeypatch.setattr(rewrite.Rewriter, "read", read_and_move)
    new = repository.rewrite_manifests("flat", branch="main")
    assert repository.lookup_branch("main") == new
    assert contents(repository.readonly_session("main"))["a/c/0"] == b"2" * 1000
    assert layers(repository) == 1


def test_a_branch_that_never_stands_still_is_a_conflict(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, number = rewrite.Rewriter.read, iter(range(100))

    def read_and_move(self: rewrite.Rewriter, *arguments: object) -> None:
        read(self)
        commit(repository, {"a/c/0": bytes([1 + next(number)]) * 1000})

    monkeypatch.setattr(rewrite.Rewriter, "read", read_and_move)
    with pytest.raises(vstore.ConflictError):
        repository.rewrite_manifests("flat", branch="main")
