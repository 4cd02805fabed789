"""Disks that fail: each system call of a commit fails once, or from then on until the commit has said so.

The commit fails with an error of its own kind or is not touched; nothing that was acknowledged is lost, also not by
a power cut right after; the session holds its changes and its next commit works. In a child, so that SQLite's own calls
fail too.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disks import copy_image, mounted
from tests.crash.powered import LaterClock, make_base
from tests.crash.stepping import ROOT, SYNCS, Call, stepped
from tests.crash.verdict import WRITER, base_image
from tests.repositories import LOCAL_KINDS, Place, commit, contents, quick_folder
from tests.unit.ops.repositories import FUTURE
from vstore.ops.fsck import check

WRITES = ("write", "pwrite64", "pwritev", "ftruncate")
NAMES = ("openat", "open", "mkdir", "link", "rename")

STORAGE = {"StorageError", "OutcomeUnknownError", "CommitOutcomeUnknownError"}
CASES = {
    "EIO from a sync": (errno.EIO, SYNCS, STORAGE),
    "EIO from a write": (errno.EIO, WRITES, STORAGE),
    "ENOSPC": (errno.ENOSPC, (*WRITES, *NAMES), {"OutOfSpaceError", *STORAGE}),
    "EDQUOT": (errno.EDQUOT, (*WRITES, *NAMES), {"OutOfSpaceError", *STORAGE}),
    "EROFS": (errno.EROFS, NAMES, {"AccessDeniedError", *STORAGE}),
    "EACCES": (errno.EACCES, NAMES, {"AccessDeniedError", *STORAGE}),
    "EMFILE": (errno.EMFILE, ("openat", "open"), STORAGE),
}


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_folder() as folder:
        yield folder


class FailingDisk:
    """A disk on which, in trial n of the writer, call n of the chosen ones fails."""

    def __init__(
        self, folder: Path, kind: str, case: str, *, lasting: bool, operation: str = "trials"
    ) -> None:
        self.folder = folder
        self.operation = operation
        self.kind = kind
        self.code, self.names, self.allowed = CASES[case]
        self.lasting = lasting
        self.failed: dict[int, list[str]] = {}
        self._dead: set[str] = set()
        self._trial = -1
        self._calls = 0
        self._acknowledged = 0

    def run(self, trials: int) -> list[str]:
        copy_image(base_image(self.kind, "ext4"), self.folder / "disk")
        with mounted(self.folder / "disk", self.folder / "live") as disk:
            place = Place(self.kind, disk / "repository")
            more = [str(trials), *(["closing"] if self.lasting else [])]
            with stepped(WRITER, disk, str(place.location), self.kind, self.operation, *more) as child:
                said = child.run(self._visit)
                assert child.process.returncode == 0, said[-3:]
            errors = {line.split()[1] for line in said if line.startswith("failed")}
            assert errors <= self.allowed
            (self._verify if self.operation == "trials" else self._verify_creations)(place, said)
        return said

    def _visit(self, call: Call) -> bool:
        trial = sum(line.startswith("trial") for line in call.said) - 1
        if trial != self._trial:
            self._trial, self._calls = trial, 0
        acknowledged = sum(line.startswith("ack") for line in call.said)
        if self.names == SYNCS and acknowledged > self._acknowledged:
            self._acknowledged = acknowledged
            self._cut(call.said)
        self._watch(call)
        if call.result is not None or trial < 0 or acknowledged > trial or call.name not in self.names:
            return True
        # Once a failure was reported, the disk works again.
        if not call.said[-1].startswith("trial") or self._takes_no_room(call):
            return True
        this, self._calls = self._calls, self._calls + 1
        if this == trial or (self.lasting and this > trial):
            call.fail_with = self.code
            if call.name in SYNCS and "staging/" in call.path:
                self._dead.add(call.path)
            self.failed.setdefault(trial, []).append(f"{call.name} {call.path}")
        return True

    def _takes_no_room(self, call: Call) -> bool:
        is_open = call.name in ("open", "openat") and (self.folder / "live" / call.path).exists()
        return is_open and self.code in (errno.ENOSPC, errno.EDQUOT)

    def _watch(self, call: Call) -> None:
        """A failed sync is final for its file: the system may have dropped what it did not write."""
        is_used = call.source in self._dead or (call.name in SYNCS and call.path in self._dead)
        assert call.result is not None or not is_used, f"{call}: its sync failed before"

    def _cut(self, said: list[str]) -> None:
        copy_image(self.folder / "disk", self.folder / "copy")
        acknowledged = [line.split()[1:] for line in said if line.startswith("ack")]
        with mounted(self.folder / "copy", self.folder / "after") as disk:
            if self.operation == "creations":
                places = [
                    Place(self.kind, disk / f"new {number}" / "repository") for number, _ in acknowledged
                ]
                found = [snapshot_of(place) for place in places[-3:]]
                assert found == [snapshot for _, snapshot in acknowledged[-3:]], f"failed were {self.failed}"
                return
            with Place(self.kind, disk / "repository").open() as repository:
                history = [info.id for info in repository.ancestry(branch="main")]
                lost = [number for number, snapshot in acknowledged if snapshot not in history]
                assert not lost, f"acknowledged, but not after a power cut; failed were {self.failed}"
                contents(repository.readonly_session("main"))

    def _verify(self, place: Place, said: list[str]) -> None:
        with place.open(clock=LaterClock()) as repository:
            messages = [info.message for info in repository.ancestry(branch="main")]
            wanted = [str(n) for n in range(sum(line.startswith("trial") for line in said))]
            assert [m for m in messages if m.isdigit()] == wanted[::-1], "a commit is lost, or there twice"
            for session in repository.list_sessions():
                repository.abandon_session(session)
            assert check(repository, data=True).damages == []
            for _ in range(2):
                assert repository.garbage_collect(FUTURE).failures == []
            report = check(repository, data=True)
            assert (report.damages, report.unreferenced_packs) == ([], 0)
        assert not list(place.location.glob("staging/*"))

    def _verify_creations(self, place: Place, said: list[str]) -> None:
        for line in said:
            if line.startswith("trial"):
                made = Place(self.kind, place.location.parent / f"new {line.split()[1]}" / "repository")
                with made.open(clock=LaterClock()) as repository:
                    commit(repository, {"value": b"v" * 1000})
                    for _ in range(2):
                        assert repository.garbage_collect(FUTURE).failures == []
                    report = check(repository, data=True)
                    assert (report.damages, report.unreferenced_packs) == ([], 0)
                assert not list(made.location.glob("*new-*"))


def snapshot_of(place: Place) -> str | None:
    if not place.location.exists():
        return None
    with place.open() as repository:
        return repository.lookup_branch("main")


def outcome_of(said: list[str], trial: int) -> list[str]:
    start = said.index(f"trial {trial}") + 1
    end = next(at for at in range(start, len(said)) if said[at].startswith("ack"))
    return said[start : end + 1]


def run(folder: Path, kind: str, case: str, *, lasting: bool, trials: int) -> None:
    disk = FailingDisk(folder, kind, case, lasting=lasting)
    said = disk.run(trials)
    assert disk.failed, "nothing failed"
    assert len(disk.failed) < trials, f"more calls than trials: {sorted(disk.failed)}"
    for trial, failed in disk.failed.items():
        # Of a folder or a record, another file or another sync can make it good.
        if case == "EIO from a sync" and (lasting or trial == 0 or "catalog.sqlite" in failed[0]):
            assert outcome_of(said, trial)[0].startswith("failed"), f"acknowledged although {failed} failed"


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "until it is said"])
def test_a_sync_that_fails(folder: Path, kind: str, lasting: bool) -> None:
    run(folder, kind, "EIO from a sync", lasting=lasting, trials=8)


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_a_full_disk_at_any_call(folder: Path, kind: str) -> None:
    run(folder, kind, "ENOSPC", lasting=False, trials=28)


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_creating_on_a_disk_whose_syncs_fail(folder: Path, kind: str) -> None:
    disk = FailingDisk(folder, kind, "EIO from a sync", lasting=False, operation="creations")
    disk.run(14)
    assert len(disk.failed) == 14


@pytest.mark.deep
@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("case", CASES)
def test_creating_on_a_disk_that_fails_in_any_way(folder: Path, kind: str, case: str) -> None:
    trials = 180
    disk = FailingDisk(folder, kind, case, lasting=False, operation="creations")
    disk.run(trials)
    assert 5 < len(disk.failed) < trials


@pytest.mark.deep
@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "until it is said"])
@pytest.mark.parametrize("case", CASES)
def test_a_disk_that_fails_in_any_way(folder: Path, kind: str, lasting: bool, case: str) -> None:
    run(folder, kind, case, lasting=lasting, trials=40)


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_syncs_that_fail_at_random(folder: Path, kind: str) -> None:
    """By libfiu, which fails functions of the C library: another opinion about how such failures reach us."""
    if shutil.which("fiu-run") is None:
        pytest.skip("needs fiu-run, of libfiu")
    place = Place(kind, folder / "repository")
    make_base(place)
    faults = [
        text
        for name in SYNCS
        for text in ("-c", f"enable_random name=posix/io/sync/{name},failinfo={errno.EIO},probability=0.05")
    ]
    command = [sys.executable, "-c", WRITER, "", str(place.location), kind, "trials", "40"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["fiu-run", "-x", *faults, *command],
        input="go\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    # Few trials are said to have failed, in some runs none: most failures are survived by another file.
    with place.open() as repository:
        messages = [info.message for info in repository.ancestry(branch="main")]
        assert [m for m in messages if m.isdigit()] == [str(n) for n in range(40)][::-1]
        assert check(repository, data=True).damages == []
