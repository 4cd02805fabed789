"""Small numbers for the names that many pending refs share: packs, locations and checksums.

One set of dictionaries belongs to a worktree; refs of two worktrees can be compared once they use the same one
(`rows.translate`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from vstore.format.manifest import Checksum
from vstore.ids import PackId

K = TypeVar("K", bound=Hashable)


class Numbering(Generic[K]):
    """Small numbers for names that many pending refs share."""

    def __init__(self) -> None:
        self._numbers: dict[K, int] = {}
        self.names: list[K] = []

    def number(self, name: K) -> int:
        """Return the number of `name`, a new one if need be."""
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.names)
            self.names.append(name)
        return number

    def numbers(self, names: Sequence[K]) -> npt.NDArray[np.uint32]:
        """Return the numbers u32[n] of `names`; for none, one that no ref uses, so that it can be indexed."""
        return np.array([self.number(name) for name in names] or [0], dtype=np.uint32)


class Dictionaries:
    """What pending refs name by number: packs of other sessions, locations and checksums of virtual chunks."""

    def __init__(self) -> None:
        self.packs: Numbering[PackId] = Numbering()
        self.locations: Numbering[str] = Numbering()
        self.checksums: Numbering[Checksum] = Numbering()

    def checksum_number(self, checksum: Checksum | None) -> int:
        """Return 0 for no checksum, else 1 and up."""
        return 0 if checksum is None else 1 + self.checksums.number(checksum)

    def checksum(self, number: int) -> Checksum | None:
        return self.checksums.names[number - 1] if number else None
