"""What must be true of a repository after its writer was cut off, and what the writers start from."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

from tests.crash.disks import make_image, mounted
from tests.crash.powered import OPERATIONS, LaterClock, look, make_base, picture
from tests.repositories import Place, commit, contents, quick_folder
from tests.unit.ops.repositories import FUTURE
from vstore.ops.fsck import check

TELLING = ("fsync", "fdatasync", "link", "rename", "mkdir", "unlink")
"""System calls that make something durable, or visible."""
WRITER = "import sys; from tests.crash.powered import main; main(*sys.argv[2:])"


def place_on(disk: Path, kind: str, operation: str) -> Place:
    below = "not/there/yet/repository" if operation == "create" else "repository"
    return Place(kind, disk / below)


def verify(place: Place, said: list[str], operation: str) -> None:
    """Look at what is there after the writer of an operation had `said` that much, and go on from there."""
    pictures = pictures_of(place.kind, operation)
    found = look(place)
    assert found in pictures[len(said) : len(said) + 2], "acknowledged work is lost, or work is half done"
    if found is None:
        place.create().close()
    if operation == "convert":
        # It is the one operation that has to be gone on with, as its page says.
        with place.open() as repository:
            repository.convert_catalog("sqlite" if place.kind == "log" else "log")
    with place.open(clock=LaterClock()) as repository:
        history = {info.id for info in repository.ancestry(branch="main")}
        assert {text for text in said if len(text) == 64} <= history
        for session in repository.list_sessions():
            # Its packs are its own until someone says that it will not come back.
            repository.abandon_session(session)
        assert check(repository, data=True).damages == []
        before = picture(repository)
        commit(repository, {"after": b"cut" * 1000}, "after the cut")
        assert contents(repository.readonly_session("main"))["after"] == b"cut" * 1000
        for _ in range(2):
            assert repository.garbage_collect(FUTURE).failures == []
        report = check(repository, data=True)
        assert report.damages == []
        assert report.unreferenced_packs == 0
        after = picture(repository)
        assert {**after["branches"], "main": None} == {**before["branches"], "main": None}
        assert after["tags"] == before["tags"]
    names = {path.name for path in place.location.rglob("*") if path.is_file()}
    assert not [name for name in names if "new-" in name], "gc left a half-made catalog"
    assert not list(place.location.glob("staging/*"))


_kept = ExitStack()
"""Folders of originals, until the process ends."""


@cache
def base_image(kind: str | None, filesystem: str) -> Path:
    """Return a disk with a repository to begin with, or an empty one."""
    folder = _kept.enter_context(quick_folder())
    make_image(folder / "disk", filesystem)
    with mounted(folder / "disk", folder / "point", filesystem) as disk:
        if kind is not None:
            make_base(place_on(disk, kind, ""))
    return folder / "disk"


@cache
def pictures_of(kind: str, operation: str) -> list[dict[str, Any] | None]:
    """Return what is seen before the operation and after each of its steps."""
    with quick_folder() as folder:
        place = place_on(folder, kind, operation)
        if operation != "create":
            make_base(place)
        found = [look(place)]
        OPERATIONS[operation](place, lambda text: found.append(look(place)))
        return found
