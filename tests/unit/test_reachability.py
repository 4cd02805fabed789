"""The enumerator yields every kind of reference; without any one of them it yields less, and gc would delete that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

import vstore
from tests.repositories import (
    GROUP,
    LOCAL_KINDS,
    Place,
    array_document,
    contents,
    quick_folder,
    write,
)
from tests.unit.ops.repositories import FUTURE, expire, packs
from vstore.blobs.cache import CACHE
from vstore.catalog import log_state
from vstore.format.envelope import BlobKind
from vstore.format.pack import Footer
from vstore.ids import PackId
from vstore.keys.objects import parse_pack_name
from vstore.reachability import Found, LeafVisitor, NeededBlob, NeededChunks, Walk
from vstore.tree import Place as PagePlace

Place_ = tuple[PackId, bytes, int]

LONG_GROUP = (
    b'{"zarr_format": 3, "node_type": "group", "attributes": {"note": "' + bytes(b"n" * 5000) + b'"}}'
)


def stored(number: int) -> bytes:
    """Return a chunk that is too long to be inline."""
    return number.to_bytes(4, "little") * 200


def make_history(repository: vstore.Repository) -> None:
    """Commit every kind of reference; nothing that is written becomes garbage."""

    def commit(values: dict[str, bytes], branch: str = "main") -> str:
        with repository.writable_session(branch) as session:
            write(session, values)
            return session.commit(f"{len(values)} keys")

    first: dict[str, bytes] = {"zarr.json": GROUP, "long/zarr.json": LONG_GROUP}
    # Enough nodes for a tree of several pages.
    first |= {f"group{number:03}/zarr.json": GROUP for number in range(200)}
    first |= {"value/short": b"s", "value/long": b"v" * 5000}
    first |= {"small/zarr.json": array_document((8,)), "small/c/0": stored(0)}
    first |= {"large/zarr.json": array_document((100_000,)), "moved/zarr.json": array_document((50,))}
    first |= {f"large/c/{index}": stored(index) for index in range(5, 100_000, 15_000)}
    first |= {f"moved/c/{index}": stored(200_000 + index) for index in range(40)}
    first |= {"inline/zarr.json": array_document((9,)), "inline/c/3": b"i"}
    base = commit(first)
    # Layers on layers: of the large array's first tile, and of an array with manifests in its node.
    commit({f"large/c/{index}": stored(300_000 + index) for index in range(6, 30)})
    commit({"large/c/40000": stored(400_000)})
    commit({"small/c/1": stored(1)})
    commit({f"moved/c/{index}": stored(500_000 + index) for index in range(3)})
    repository.create_branch("side", base)
    commit({"side/zarr.json": array_document((4,)), "side/c/0": stored(600_000)}, "side")
    with repository.writable_session("side") as session:
        session.move("moved", "elsewhere")
        session.shift_array("elsewhere", (2,))
        session.commit("a move and a shift")
    repository.merge("side", "main", solver="theirs")
    commit(
        {"layers/zarr.json": array_document((90,))}
        | {f"layers/c/{i}": stored(700_000 + i) for i in range(80)}
    )
    commit({"layers/c/5": stored(800_000)})


def footers(repository: vstore.Repository) -> dict[PackId, Footer]:
    blobs = repository.handle.blobs_for(None)
    names = map(parse_pack_name, packs(repository))
    return {pack: blobs.read_footer(pack)[1] for pack in names if pack is not None}


def written(repository: vstore.Repository) -> set[Place_]:
    """Return all blobs of all packs."""
    return {
        (pack, footer.digests[row].tobytes(), int(footer.offsets[row]))
        for pack, footer in footers(repository).items()
        for row in range(len(footer))
    }


def iter_places(found: Found) -> Iterator[Place_]:
    if isinstance(found, NeededBlob):
        yield found.ref.pack, found.ref.digest, found.ref.offset
    elif isinstance(found, NeededChunks):
        for pack, rows in found.by_pack():
            for row in rows.tolist():
                yield pack, found.digests[row].tobytes(), int(found.offsets[row])
    else:
        raise found.error


def enumerated(
    repository: vstore.Repository, walk_type: type[Walk] = Walk, *, branch: str | None = None
) -> set[Place_]:
    """Return what all snapshots need, or only a branch's head, and the catalog."""
    CACHE.clear()
    walk = walk_type(repository.handle.blobs_for(None))
    with repository.handle.catalog.reading() as view:
        entries, pages = list(view.iter_snapshots()), list(view.iter_pages())
    if branch is not None:
        head = repository.lookup_branch(branch)
        entries = [entry for entry in entries if entry.id.hex() == head]
    visits = [*map(walk.catalog_page, pages), *map(walk.snapshot, entries)]
    return {place for visit in visits for found in visit for place in iter_places(found)}


@pytest.fixture(scope="module", params=LOCAL_KINDS)
def history(request: pytest.FixtureRequest) -> Iterator[vstore.Repository]:
    with quick_folder() as folder, pytest.MonkeyPatch.context() as patch:
        # So that a few commits make pages of the log catalog.
        patch.setattr(log_state, "INLINE_BYTES", 500)
        with Place.new(request.param, folder).create() as repository:
            make_history(repository)
            yield repository


def test_everything_that_was_written_is_enumerated(history: vstore.Repository) -> None:
    found = enumerated(history)
    with history.handle.catalog.reading() as view:
        pages = {(ref.pack, ref.digest, ref.offset) for ref in view.iter_pages()}
        of_catalog = {
            (pack, footer.digests[row].tobytes(), int(footer.offsets[row]))
            for pack, footer in footers(history).items()
            if BlobKind.SNAPSHOT not in footer.kinds
            for row in range(len(footer))
        }
    assert found - pages == written(history) - of_catalog
    assert pages <= found
    assert bool(pages) == bool(of_catalog)


def test_the_history_has_every_kind(history: vstore.Repository) -> None:
    """Else the tests below could not fail."""
    kinds = {kind for footer in footers(history).values() for kind in footer.kinds.tolist()}
    assert kinds == {BlobKind.CHUNK, BlobKind.MANIFEST, BlobKind.PAGE, BlobKind.SNAPSHOT}


class NoChildren(Walk):
    def page(self, place: PagePlace, what: str, visit_leaf: LeafVisitor) -> Iterator[Found]:
        page = self.blobs.page(place.ref)
        if page.level:
            yield NeededBlob(BlobKind.PAGE, place.ref, what)
        else:
            yield from super().page(place, what, visit_leaf)


class OnlyFirstChild(Walk):
    def page(self, place: PagePlace, what: str, visit_leaf: LeafVisitor) -> Iterator[Found]:
        page = self.blobs.page(place.ref)
        if page.level:
            yield NeededBlob(BlobKind.PAGE, place.ref, what)
            yield from self.page(place.below(page, 0), what, visit_leaf)
        else:
            yield from super().page(place, what, visit_leaf)


class OnlyNewestLayer(Walk):
    def tile(self, path: Any, tile: Any, extents: Any, pointer: Any, holder: Any) -> Iterator[Found]:
        return super().tile(path, tile, extents, pointer._replace(layers=pointer.layers[:1]), holder)


class OnlyOnePack(Walk):
    def chunks(self, place: Any, manifest: Any) -> Iterator[NeededChunks]:
        for found in super().chunks(place, manifest):
            rows = np.flatnonzero(found.sources == found.sources[0])
            yield found._replace(
                **{
                    name: getattr(found, name)[rows]
                    for name in ("sources", "digests", "offsets", "lengths", "positions")
                }
            )


@pytest.mark.parametrize("worse", [NoChildren, OnlyFirstChild, OnlyNewestLayer, OnlyOnePack])
def test_a_walk_that_looks_less_far_finds_less(history: vstore.Repository, worse: type[Walk]) -> None:
    # Of the head alone: what it shares with older snapshots, they would name too.
    found = enumerated(history, worse, branch="main")
    assert found < enumerated(history, branch="main")


def nothing(*_: object) -> Iterable[Any]:
    return iter(())


VISITORS = {
    "hierarchy",
    "page",
    "leaf",
    "value",
    "node",
    "document",
    "tile_tree",
    "tile",
    "manifest",
    "inline_manifest",
    "chunks",
}


@pytest.mark.parametrize("visitor", sorted(VISITORS))
def test_without_any_one_visitor_less_is_found(history: vstore.Repository, visitor: str) -> None:
    whole = enumerated(history, branch="main")
    without: type[Walk] = type("Without", (Walk,), {visitor: nothing})
    assert enumerated(history, without, branch="main") < whole


def test_without_pages_of_the_catalog_less_is_found(history: vstore.Repository) -> None:
    whole = enumerated(history)
    without: type[Walk] = type("Without", (Walk,), {"catalog_page": nothing})
    with history.handle.catalog.reading() as view:
        has_pages = bool(list(view.iter_pages()))
    assert (enumerated(history, without) < whole) == has_pages


def test_every_visitor_is_dropped_once_above() -> None:
    own = {name for name in vars(Walk) if not name.startswith("_")}
    assert own - VISITORS == {
        "snapshot",
        "catalog_page",
        "enters",
        "met_again",
        "iter_snapshots",
        "expect_manifests",
    }


def test_what_snapshots_share_is_visited_once(history: vstore.Repository) -> None:
    walk = Walk(history.handle.blobs_for(None))
    with history.handle.catalog.reading() as view:
        entries = list(view.iter_snapshots())
    named = [
        place
        for entry in entries
        for found in walk.snapshot(entry)
        if isinstance(found, NeededBlob) and found.kind in (BlobKind.PAGE, BlobKind.MANIFEST)
        for place in iter_places(found)
    ]
    assert len(named) == len(set(named))
    assert walk.spine == []
    again = [found for entry in entries for found in walk.snapshot(entry)]
    assert again == []


def test_a_whole_page_of_arrays_is_not_held_at_once(history: vstore.Repository) -> None:
    """Chunks come a manifest at a time: of ten million in one page's arrays not all are in memory."""
    alive = 0
    most = 0

    class Counting(Walk):
        def chunks(self, place: Any, manifest: Any) -> Iterator[NeededChunks]:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            yield from super().chunks(place, manifest)
            alive -= 1

    assert enumerated(history, Counting) == enumerated(history)
    assert most == 1


@pytest.mark.parametrize("borrower_is_newer", [False, True])
def test_equal_metadata_in_two_packs_is_named_twice(
    local: vstore.Repository, borrower_is_newer: bool
) -> None:
    """Its second pack may be named by nothing else: gc would have deleted what a branch reads."""
    local.create_branch("other", local.lookup_branch("main"))

    def commit_value(branch: str) -> str:
        with local.writable_session(branch) as session:
            # Values only: a node's id would tell the pages apart.
            write(session, {"value": b"x"})
            return session.commit(f"on {branch}")

    if borrower_is_newer:
        commit_value("main")
    lender = commit_value("other")
    with local.writable_session("other") as session:
        session.commit("the same again", allow_empty=True)
    if not borrower_is_newer:
        commit_value("main")
    roots = []
    with local.handle.catalog.reading() as view:
        for entry in view.iter_snapshots():
            root = local.handle.blobs_for(None).snapshot(entry.ref).root
            roots += [root.ref] if root is not None else []
    assert len({ref.digest for ref in roots}) == 1
    assert len({ref.pack for ref in roots}) == 2
    expire(local, lender)
    for _ in range(3):
        local.garbage_collect(FUTURE)
    for branch in ("main", "other"):
        CACHE.clear()
        assert contents(local.readonly_session(branch)) == {"value": b"x"}
    assert local.fsck(data=True).is_clean
