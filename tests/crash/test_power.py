"""Power cuts: the disk is copied after each system call of a writer, and the copy is what a cut leaves.

Whatever was acknowledged before a cut is there, bit for bit; what was under way is wholly there or wholly not; nothing
is damaged, a commit goes at once, and gc leaves nothing that is not needed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.crash.disks import copy_image, digest_of, mounted, write_some_back
from tests.crash.powered import OPERATIONS
from tests.crash.stepping import Call, stepped
from tests.crash.verdict import TELLING, WRITER, base_image, pictures_of, place_on, verify
from tests.repositories import LOCAL_KINDS, quick_folder

SHORT = ("create", "commits", "spilled manifests", "refs", "expire and collect", "compact")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory: what a loop device syncs there costs nothing."""
    with quick_folder() as folder:
        yield folder


class PowerCuts:
    """A disk with a repository on which one operation is done, and what is there after each of its steps."""

    def __init__(self, folder: Path, kind: str, operation: str, filesystem: str = "ext4") -> None:
        self.folder = folder
        self.kind = kind
        self.operation = operation
        self.filesystem = filesystem
        self.image = folder / "disk"
        self.copy = folder / "copy"
        self.pictures = pictures_of(kind, operation)
        self.seen: dict[tuple[bytes, int], str] = {}
        self.cuts = 0
        copy_image(base_image(None if operation == "create" else kind, filesystem), self.image)

    def run(self, *, sample: bool = False, write_back: int | None = None) -> None:
        """Do the operation with a cut after each step, or after a sample of them.

        `write_back` is a seed: before each cut the system writes some dirty pages, as it may.
        """
        chance = None if write_back is None else random.Random(write_back)

        def cut(call: Call) -> bool:
            if call.result is not None and (not sample or self._is_chosen(call)):
                if chance is not None:
                    write_some_back(self.folder / "live", chance)
                self._cut(call)
            return True

        said = self._do(cut)
        assert len(said) == len(self.pictures) - 1

    def _is_chosen(self, call: Call) -> bool:
        """Choose a tenth of the operation's steps, the same each time; more of those that make something durable."""
        number = blake3(f"{self.kind} {self.operation} {call.number}".encode()).digest(1)[0]
        return number < (256 // 5 if call.name in TELLING else 256 // 20)

    def _do(self, visit: Any) -> list[str]:
        with mounted(self.image, self.folder / "live", self.filesystem) as disk:
            place = place_on(disk, self.kind, self.operation)
            with stepped(WRITER, disk, str(place.location), self.kind, self.operation) as child:
                said = child.run(visit)
                assert child.process.returncode == 0
        assert said[0] == "ready"
        return said[1:]

    def _cut(self, call: Call) -> None:
        copy_image(self.image, self.copy)
        state = digest_of(self.copy), len(call.said)
        if state in self.seen:
            return
        self.seen[state] = str(call)
        self.cuts += 1
        try:
            with mounted(self.copy, self.folder / "after", self.filesystem) as disk:
                verify(place_on(disk, self.kind, self.operation), call.said[1:], self.operation)
        except BaseException as error:
            error.add_note(f"with the power cut {call}, when it had said {call.said}")
            raise


@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("operation", SHORT)
def test_a_power_cut_leaves_the_old_state_or_the_new_one(kind: str, operation: str, folder: Path) -> None:
    cuts = PowerCuts(folder, kind, operation)
    cuts.run(sample=True)
    assert cuts.cuts >= 3


@pytest.mark.deep
@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("filesystem", ["ext4", "xfs", "btrfs"])
def test_a_power_cut_after_any_step(kind: str, operation: str, filesystem: str, folder: Path) -> None:
    # The steps of many tags are those of one, many times.
    PowerCuts(folder, kind, operation, filesystem).run(sample=operation == "many tags")


@pytest.mark.deep
@pytest.mark.parametrize("kind", LOCAL_KINDS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_power_cut_after_some_pages_were_written(kind: str, operation: str, folder: Path) -> None:
    for seed in range(3):
        cuts = PowerCuts(folder, kind, operation)
        cuts.run(write_back=seed, sample=operation == "many tags")
