"""Places of chunk keys, looked up quickly, against routing every key anew."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import pytest

import vstore
from tests.repositories import GROUP, Place, array_document, array_document_2, commit, quick_folder, write
from vstore.session import Session
from vstore.worktree import Worktree
from vstore.worktree.chunk_keys import find_place
from vstore.worktree.routes import Chunk, Route

ARRAYS = {
    "one": array_document((20,)),
    "deep/er/two": array_document((7, 200)),
    "dots": array_document((7, 9), separator="."),
    "plain": array_document((7, 9), encoding="v2", separator="."),
    "slashes": array_document((3, 4, 5), encoding="v2"),
    "point": array_document(()),
}
NUMBERS = ("0", "1", "6", "8", "19", "20", "199", "200", str(10**17), str(10**18), "9" * 5000)
ARABIC_ONE = "\N{ARABIC-INDIC DIGIT ONE}"
TEXTS = (
    "",
    "00",
    "01",
    "+1",
    "-1",
    "-0",
    " 1",
    "1 ",
    "1_0",
    "\N{ARABIC-INDIC DIGIT ONE}",
    "1.0",
    "x",
    "zarr.json",
    "c",
)


@pytest.fixture
def repository() -> Iterator[vstore.Repository]:
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        documents = {f"{path}/zarr.json": document for path, document in ARRAYS.items()}
        documents["older/.zarray"] = array_document_2((7, 9))
        commit(repository, {"zarr.json": GROUP, **documents})
        yield repository


def routed(tree: Worktree, key: str) -> object:
    """Return what `place` should, by routing alone."""
    route: Route = tree.route(key)
    return (route.array, *route.array.locate(route.at)) if isinstance(route, Chunk) else route


def placed(tree: Worktree, key: str) -> object:
    place = tree.place(key)
    return place[1:] if type(place) is tuple else place


def keys_below(path: str, ndim: int) -> Iterator[str]:
    parts = (*NUMBERS, *TEXTS)
    for separator, head in itertools.product("/.", ("", "c/", "c.", "c", "c/c/", "C/")):
        for index in itertools.product(parts, repeat=min(ndim, 1)):
            yield f"{path}/{head}{separator.join((*index, *'01'[: max(ndim - 1, 0)]))}"
            yield f"{path}/{head}{separator.join((*'01'[: max(ndim - 1, 0)], *index))}"


@pytest.mark.parametrize("path", [*ARRAYS, "older"])
def test_a_known_array_places_every_key_as_routing_does(repository: vstore.Repository, path: str) -> None:
    tree = repository.readonly_session("main").tree
    array = tree.nodes.node(path).array  # type: ignore[union-attr]
    assert array is not None
    assert array.spec.encoding is not None
    first = f"{path}/{array.spec.encoding.encode((0,) * array.spec.ndim)}"
    tree.place(first)
    assert path in tree.nodes.arrays
    assert (find_place(tree.nodes.arrays, first) is None) == (path == "point")
    for ndim in range(4):
        for key in keys_below(path, ndim):
            assert placed(tree, key) == routed(tree, key), key


def test_an_array_at_the_root_is_known(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    session.tree_for_writing().delete_folder("")
    write(session, {"zarr.json": array_document((5, 5)), "c/1/2": b"x"})
    session.commit("only an array")
    tree = repository.readonly_session("main").tree
    assert tree.get("c/1/2") == b"x"
    assert find_place(tree.nodes.arrays, "c/1/2") is not None
    for key in keys_below("", 2):
        assert placed(tree, key) == routed(tree, key), key
        assert placed(tree, key[1:]) == routed(tree, key[1:]), key


def test_chunks_of_a_known_array_are_not_routed(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repository.writable_session("main")
    write(session, {f"deep/er/two/c/3/{n}": bytes([n]) * 600 for n in range(50)})
    session.commit("chunks")
    reader, writer = repository.readonly_session("main"), repository.writable_session("main")
    calls = []
    route = Worktree.route
    monkeypatch.setattr(Worktree, "route", lambda tree, key: calls.append(key) or route(tree, key))
    for n in range(50):
        assert bytes(reader.tree.get(f"deep/er/two/c/3/{n}") or b"") == bytes([n]) * 600
    assert len(calls) == 1
    calls.clear()
    for n in range(50):
        writer.tree_for_writing().set(f"deep/er/two/c/4/{n}", bytes([n]) * 600)
    # The first chunk makes the array a draft, of which all is learnt once more.
    assert len(calls) == 2


EDITS: dict[str, Callable[[Session], object]] = {
    "shrink": lambda s: s.tree.set("one/zarr.json", array_document((3,))),
    "other encoding": lambda s: s.tree.set("one/zarr.json", array_document((20,), separator=".")),
    "recreate": lambda s: (s.tree.delete_folder("one"), s.tree.set("one/zarr.json", array_document((20,)))),
    "delete": lambda s: s.tree.delete_folder("one"),
    "delete all": lambda s: s.tree.delete_folder(""),
    "delete the document": lambda s: s.tree.delete("one/zarr.json"),
    "move": lambda s: s.move("one", "elsewhere"),
    "make a group": lambda s: s.tree.set("one/zarr.json", GROUP),
    "an array inside": lambda s: s.tree.set("one/c/zarr.json", array_document((9, 9), encoding="v2")),
    "a group inside": lambda s: s.tree.set("one/c/zarr.json", GROUP),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("is_written", [False, True])
def test_an_edit_changes_what_keys_mean_at_once(
    repository: vstore.Repository, edit: Callable[[Session], object], is_written: bool
) -> None:
    session = repository.writable_session("main")
    tree = session.tree_for_writing()
    if is_written:
        tree.set("one/c/5", b"x" * 600)
    before = tree.place("one/c/5")
    assert type(before) is tuple
    edit(session)
    for key in ("one/c/1", "one/c/5", "one/c/5/5", "one/c.5", "elsewhere/c/5", "one/5"):
        assert placed(tree, key) == routed(tree, key), key
        assert placed(tree, key) == routed(tree, key), key


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_a_route_found_before_an_edit_is_not_remembered(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, edit: Callable[[Session], object]
) -> None:
    session = repository.writable_session("main")
    tree = session.tree_for_writing()
    route = tree.route

    def route_then_edit(key: str) -> Route:
        found = route(key)
        monkeypatch.undo()
        edit(session)
        return found

    monkeypatch.setattr(tree, "route", route_then_edit)
    tree.place("one/c/5")
    for key in ("one/c/1", "one/c/5", "one/c/5/5", "one/c.5", "elsewhere/c/5"):
        assert placed(tree, key) == routed(tree, key), key


@pytest.mark.parametrize("is_committed", [False, True])
def test_the_nearest_of_two_arrays_keeps_its_chunks(
    repository: vstore.Repository, is_committed: bool
) -> None:
    session = repository.writable_session("main")
    # Made in this order it is not refused that keys of both are alike.
    write(
        session,
        {"outer/c/zarr.json": array_document((5,), encoding="v2"), "outer/zarr.json": array_document((9,))},
    )
    if is_committed:
        session.commit("both")
        session = repository.writable_session("main")
    tree = session.tree
    for key in ("outer/c/7", "outer/c/3"):
        assert placed(tree, key) == routed(tree, key), key
    assert tree.place("outer/c/3")[0].path == "outer/c"  # type: ignore[union-attr]


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("size", [5, 600, 100_000])
def test_an_edit_between_look_up_and_write_is_seen(
    repository: vstore.Repository,
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[Session], object],
    size: int,
) -> None:
    raced, ordered = repository.writable_session("main"), repository.writable_session("main")
    for session in (raced, ordered):
        session.tree.set("one/c/4", b"x" * 600)
    tree, place = raced.tree, raced.tree.place

    def place_then_edit(key: str) -> object:
        found = place(key)
        monkeypatch.undo()
        edit(raced)
        return found

    monkeypatch.setattr(tree, "place", place_then_edit)
    edit(ordered)
    outcomes = []
    for session in (raced, ordered):
        try:
            session.tree.set("one/c/5", b"y" * size)
            outcomes.append("set")
        except vstore.InvalidInputError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]
    assert raced.status() == ordered.status()
    for key in ("one/c/4", "one/c/5", "elsewhere/c/4"):
        assert raced.tree.read(key) == ordered.tree.read(key), key


def test_a_worktree_is_let_go_without_looking_for_cycles(repository: vstore.Repository) -> None:
    """It holds files: of its packs, and of the one being written."""
    gc.collect()
    gc.disable()
    try:
        session = repository.writable_session("main")
        session.tree.set("one/c/5", b"x" * 600)
        tree, writer = weakref.ref(session.tree.nodes), weakref.ref(session.tree.writer)
        session.discard_changes()
        assert tree() is None
        assert writer() is None
    finally:
        gc.enable()


def test_threads_that_write_while_the_array_grows_and_shrinks_lose_nothing(
    repository: vstore.Repository,
) -> None:
    session = repository.writable_session("main")
    tree = session.tree_for_writing()
    stop = threading.Event()

    def resize() -> None:
        for size in itertools.cycle((20, 30, 40)):
            if stop.is_set():
                return
            tree.set("one/zarr.json", array_document((size,)))

    def use(index: int) -> None:
        for n in range(150):
            tree.set(f"one/c/{index}", bytes([n]) * 700)
            assert tree.get(f"one/c/{index}") == bytes([n]) * 700

    with ThreadPoolExecutor(4) as pool:
        resizing = pool.submit(resize)
        users = [pool.submit(use, index) for index in (3, 7, 19)]
        wait(users)
        stop.set()
        for future in (resizing, *users):
            future.result()
