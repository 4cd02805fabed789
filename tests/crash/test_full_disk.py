"""A disk that is really full, at any place of a commit: nothing is lost, reading goes on, freeing space is enough."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vstore
from tests.crash.disks import memory_disk
from tests.crash.powered import make_base, picture
from tests.repositories import LOCAL_KINDS, Place, contents, quick_folder, write
from tests.unit.ops.repositories import FUTURE
from vstore.errors import OutOfSpaceError
from vstore.ops.fsck import check

PAGE = 4096
LARGE = {"large": bytes(range(256)) * 120}


@pytest.fixture
def disk() -> Iterator[Path]:
    """In memory, where a page is full when it is full: other systems keep reserves."""
    with quick_folder() as folder, memory_disk(folder / "disk", "2m") as disk:
        yield disk


def fill(disk: Path, pages_left: int) -> Path:
    """Fill the disk but for some pages."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            pass
        file.truncate(max(0, file.tell() // PAGE - pages_left) * PAGE)
    return ballast


def works_or_says_why(act: Callable[[], object]) -> bool:
    """Tell whether `act` worked; if not, it must be for lack of space, and say what to do."""
    try:
        act()
    except OutOfSpaceError as error:
        found = error.message
    else:
        return True
    assert "Free some" in found
    return False


def read_all(repository: vstore.Repository) -> dict[str, bytes]:
    return contents(repository.readonly_session("main"))


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_commit_on_a_full_disk_can_be_done_again(kind: str, disk: Path) -> None:
    place = Place(kind, disk / "repository")
    make_base(place)
    failed = 0
    with place.open() as repository:
        write_anything(repository, 0)
        for pages in range(28):
            before = read_all(repository)
            session = repository.writable_session("main")
            write(session, LARGE | {"number": b"%d" % pages * 1000})
            ballast = fill(disk, pages)
            if not works_or_says_why(lambda session=session: session.commit("on a full disk")):
                failed += 1
                assert read_all(repository) == before
                with Place(kind, place.location).open() as other:
                    assert read_all(other) == before
                assert session.tree.read("large") == LARGE["large"]
                ballast.unlink()
                session.commit("again")
            ballast.unlink(missing_ok=True)
            assert read_all(repository) == before | LARGE | {"number": b"%d" % pages * 1000}
            session = repository.writable_session("main")
            session.tree_for_writing().delete("large")
            session.commit("smaller")
            for _ in range(2):
                repository.garbage_collect(FUTURE)
        assert failed >= 5
        assert failed < 28, "no commit went through"
        assert check(repository, data=True).damages == []


def write_anything(repository: vstore.Repository, number: int) -> None:
    session = repository.writable_session("main")
    write(session, {"any": b"%d" % number * 1000})
    session.commit("anything")


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_full_disk_is_read(kind: str, is_closed: bool, disk: Path) -> None:
    """By those who have it open, and by those who come then: SQLite makes a file beside the database even to read."""
    place = Place(kind, disk / "repository")
    make_base(place)
    with place.open() as repository:
        write_anything(repository, 1)
        seen = picture(repository)
        if is_closed:
            repository.close()
        fill(disk, 0)
        assert picture(repository) == seen
        with place.open() as other:
            assert picture(other) == seen
        with pytest.raises(OutOfSpaceError):
            write_anything(repository, 2)
        assert picture(repository) == seen


def test_what_a_crashed_writer_left_on_a_full_disk_is_read(disk: Path) -> None:
    """Its last commits are in the write-ahead log only, and there is no room for the index of that."""
    place = Place("sqlite", disk / "repository")
    make_base(place)
    copy = Place("sqlite", disk / "copy")
    with place.open() as repository:
        write_anything(repository, 1)
        seen = picture(repository)
        shutil.copytree(place.location, copy.location, ignore=shutil.ignore_patterns("catalog*"))
        # Not by this process, which would drop SQLite's locks.
        files = [place.location / f"catalog.sqlite{suffix}" for suffix in ("", "-wal")]
        subprocess.run(["cp", *files, copy.location], check=True)
    ballast = fill(disk, 0)
    with copy.open() as other:
        assert picture(other) == seen
        assert picture(other) == seen
        with pytest.raises(OutOfSpaceError):
            write_anything(other, 2)
        ballast.unlink()
        write_anything(other, 2)
        assert read_all(other)["any"] == b"2" * 1000
        assert check(other, data=True).damages == []


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_creating_on_a_full_disk(kind: str, disk: Path) -> None:
    for pages in range(0, 60, 6):
        place = Place(kind, disk / str(pages) / "repository")
        ballast = fill(disk, pages)
        works_or_says_why(lambda place=place: place.create().close())
        ballast.unlink()
        with vstore.Repository.open_or_create(
            place.location, catalog="log" if kind == "log" else None
        ) as repository:
            write_anything(repository, 1)
            assert check(repository, data=True).damages == []
        shutil.rmtree(place.location.parent)
