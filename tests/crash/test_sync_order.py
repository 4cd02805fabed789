"""The order of system calls, as strace saw them: nothing is named before it is durable, or used before it is named.

For a pack: last write < fsync of the file < rename < fsync of its folder < the catalog's write. For a record of the
log: write < fsync < link < fsync of the folder. For SQLite: writes to the log < fdatasync, before anything follows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.crash.powered import make_base
from tests.repositories import LOCAL_KINDS, Place, quick_folder

ROOT = Path(__file__).parents[2]
WRITER = "import sys; from tests.crash.powered import main; main(*sys.argv[1:])"
TRACED = "openat,mkdir,write,pwrite64,pwritev,pwritev2,fsync,fdatasync,rename,link,unlink,unlinkat,ftruncate"
WRITES = ("write", "pwrite64", "pwritev", "pwritev2", "ftruncate")
SYNCS = ("fsync", "fdatasync")

_LINE = re.compile(r"(\d+) +\d+\.\d+ (\w+)\((.*)\) += (-?\d+)\b.*")
_UNFINISHED = re.compile(r"(\d+) +\d+\.\d+ (\w+)\((.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) +\d+\.\d+ <\.\.\. (\w+) resumed>(.*)\) += (-?\d+)\b.*")
_FD = re.compile(r"(?:\d+|AT_FDCWD)<([^>]*)>")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Call:
    """A call that succeeded; `path` is below the folder, `target` the new name of what was renamed or linked."""

    at: int
    name: str
    path: str
    target: str = ""


class Trace:
    """The calls of one operation on a folder, in the order in which they ended."""

    def __init__(self, text: str, folder: Path) -> None:
        self.calls: list[Call] = []
        started: dict[str, tuple[int, str]] = {}
        for at, line in enumerate(text.splitlines()):
            if match := _UNFINISHED.fullmatch(line):
                started[match[1]] = at, match[3]
                continue
            if match := _RESUMED.fullmatch(line):
                arguments = started.pop(match[1])[1] + match[3]
            elif match := _LINE.fullmatch(line):
                arguments = match[3]
            else:
                continue
            if int(match[4]) >= 0:
                self._add(at, match[2], arguments, os.path.realpath(folder))

    def _add(self, at: int, name: str, arguments: str, folder: str) -> None:
        if name in (*WRITES, *SYNCS):
            paths = _FD.findall(arguments)[:1]
        else:
            paths = _STRING.findall(arguments)
            if name == "unlinkat":
                name, paths = "unlink", [os.path.join(*_FD.findall(arguments)[:1], *paths)]
        if paths and (paths[0] == folder or paths[0].startswith(f"{folder}/")):
            names = [os.path.relpath(path.removesuffix("(deleted)"), folder) for path in paths]
            self.calls.append(Call(at, name, names[0], names[1] if len(names) > 1 else ""))

    def of(self, *names: str, path: str = "", below: str = "", target: str = "") -> list[Call]:
        """Return the calls of these names on one path, below one folder, or that made a name below one."""
        return [
            call
            for call in self.calls
            if call.name in names
            and (not path or call.path == path)
            and call.path.startswith(below)
            and call.target.startswith(target)
        ]

    def last_before(self, at: int, *names: str, path: str) -> int:
        found = [call.at for call in self.of(*names, path=path) if call.at < at]
        return found[-1] if found else -1

    def first_after(self, at: int, *names: str, path: str = "", below: str = "") -> int:
        found = [call.at for call in self.of(*names, path=path, below=below) if call.at > at]
        return found[0] if found else sys.maxsize

    # What must hold

    def check_published(self, call: Call) -> int:
        """Check that a renamed or linked file was durable before, and its name at once after; return when."""
        source, target = call.path, call.target
        written = self.last_before(call.at, *WRITES, path=source)
        synced = self.last_before(call.at, *SYNCS, path=source)
        assert -1 < written < synced < call.at, f"{target} was named before its bytes were durable"
        named = self.first_after(call.at, *SYNCS, path=os.path.dirname(target) or ".")
        assert named < sys.maxsize, f"the folder of {target} was never synced"
        assert not self.of(*WRITES, path=target), f"{target} was written after it had its name"
        return named

    def check_folders(self) -> None:
        """Check that the name of each new folder was durable before anything in it got a name there to stay."""
        for made in self.of("mkdir"):
            if made.path.endswith("staging") or made.path.endswith("probe"):
                continue
            synced = self.first_after(made.at, *SYNCS, path=os.path.dirname(made.path) or ".")
            uses = [
                call.at for call in self.of("rename", "link", target=f"{made.path}/") if call.at > made.at
            ]
            assert synced < min(uses, default=sys.maxsize), (
                f"{made.path} was used before its name was durable"
            )

    def catalog_writes(self, kind: str) -> list[int]:
        """Return when the catalog began to change: an SQLite transaction, or a record that gets its number."""
        if kind == "log":
            return [call.at for call in self.of("link") if "/log/" in f"/{call.target}"]
        writes = self.of("pwrite64", "write")
        return [call.at for call in writes if call.path.endswith("catalog.sqlite-wal")]


@cache
def require_strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    done = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"strace is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


def trace(kind: str, operation: str, folder: Path) -> Trace:
    require_strace()
    place = Place(kind, folder / ("new/place/repository" if operation == "create" else "repository"))
    if operation != "create":
        make_base(place)
    output = folder.parent / f"{folder.name}.strace"
    options = ["-f", "-ttt", "-y", "-s", "4096", "-e", f"trace={TRACED}", "-o", str(output)]
    command = ["strace", *options, sys.executable, "-c", WRITER, str(place.location), kind, operation]
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run(
            command, input=b"go\n", stdout=subprocess.DEVNULL, cwd=ROOT, env=environment, check=True
        )
        return Trace(output.read_text(errors="replace"), folder)
    finally:
        output.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("operation", ["create", "several packs", "compact"])
def test_everything_is_durable_before_what_names_it(kind: str, operation: str, folder: Path) -> None:
    found = trace(kind, operation, folder)
    packs = [call for call in found.of("rename") if "packs/" in call.target]
    assert len(packs) >= {"create": 2, "several packs": 4, "compact": 1}[operation]
    records = [call for call in found.of("link") if "/log/" in f"/{call.target}"]
    assert bool(records) == (kind == "log")
    writes = found.catalog_writes(kind)
    for call in packs:
        durable = found.check_published(call)
        following = [at for at in writes if at > call.at]
        assert following or operation == "create"
        assert all(at > durable for at in following), f"the catalog changed before {call.target} was durable"
    for call in records:
        assert found.check_published(call) < found.first_after(call.at, "link", "rename")
    if kind == "sqlite":
        check_transactions(found)
        check_checkpoints(found)
    found.check_folders()
    if operation == "create":
        place = "new/place/repository"
        (made,) = [c for c in found.of("link") if c.target.endswith(("catalog.sqlite", "log/" + "0" * 20))]
        named = found.first_after(
            made.at, *SYNCS, path="new/place/repository/log" if kind == "log" else place
        )
        assert named < found.first_after(made.at, "rename", "link"), "it was used before its name was durable"
        for parent in ("new", "new/place", place):
            assert found.of("mkdir", path=parent)
            synced = found.first_after(0, *SYNCS, path=os.path.dirname(parent) or ".")
            assert synced < made.at


def check_transactions(found: Trace) -> None:
    """Each run of writes to SQLite's log ends in a sync before any other file changes."""
    (log,) = {call.path for call in found.of("pwrite64", "write") if call.path.endswith("catalog.sqlite-wal")}
    pending = False
    for call in found.calls:
        if call.path == log:
            pending = call.name in WRITES or (pending and call.name not in SYNCS)
        elif call.name in ("rename", "link", "unlink", "pwrite64") and not call.path.endswith("-shm"):
            assert not pending, f"{call} came between a transaction and its sync"
    assert not pending


def check_checkpoints(found: Trace) -> None:
    """The database file is written only from a durable log, which is removed only when that is durable."""
    for removed in found.of("unlink"):
        if removed.path.endswith("catalog.sqlite-wal"):
            database = removed.path.removesuffix("-wal")
            written = found.last_before(removed.at, *WRITES, path=database)
            assert written < found.last_before(removed.at, *SYNCS, path=database) or written == -1


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_packs_are_deleted_after_the_catalog_says_so_durably(kind: str, folder: Path) -> None:
    found = trace(kind, "expire and collect", folder)
    removed = [call for call in found.of("unlink") if "packs/" in call.path]
    assert removed
    if kind == "log":
        saved = [found.check_published(c) for c in found.of("link") if "/log/" in f"/{c.target}"]
    else:
        (log,) = {c.path for c in found.of("pwrite64") if c.path.endswith("catalog.sqlite-wal")}
        saved = [call.at for call in found.of(*SYNCS, path=log)]
    writes = found.catalog_writes(kind)
    first, last = removed[0].at, removed[-1].at
    # Condemned, then deleting: two updates before the first file goes, durable and none under way.
    assert len([at for at in saved if at < first]) >= 2
    assert max(at for at in writes if at < first) < max(at for at in saved if at < first)
    # Forgotten only when the folders show, durably, that it is gone.
    synced = [call.at for call in found.of(*SYNCS) if "packs/" in call.path and call.at > last]
    assert synced
    assert min(at for at in writes if at > first) > max(at for at in synced)


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_small_commit_syncs_each_thing_once(kind: str, folder: Path) -> None:
    """Three times with SQLite: the pack, its folder, the log. Four times with records: the last two are its file's."""
    found = trace(kind, "commits", folder)
    pack = [call for call in found.of("rename") if "packs/" in call.target][-1]
    started = found.of("openat", path=pack.path)[0].at
    if kind == "sqlite":
        ended = found.first_after(pack.at, *SYNCS, path="repository/catalog.sqlite-wal")
        catalog = ["repository/catalog.sqlite-wal"]
    else:
        (record,) = [c for c in found.of("link") if c.at > pack.at]
        ended = found.first_after(record.at, *SYNCS, path="repository/log")
        catalog = [record.path, "repository/log"]
    synced = [call.path for call in found.of(*SYNCS) if started < call.at <= ended]
    # The folder of folders only when it gets a new one.
    assert [path for path in synced if path != "repository/packs"] == [
        pack.path,
        os.path.dirname(pack.target),
        *catalog,
    ]
