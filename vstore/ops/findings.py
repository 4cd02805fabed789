"""What is wrong, pack by pack, before it is known what that affects.

A pack may be wrong as a whole (it is missing, or its footer can't be read), and blobs in it may be. Bad blobs are
columns, so that a disk full of them is found in bounded memory. Neighbours: `examination` and `scrub` note findings,
`affected` finds out what needs them, `repair` mends them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.format.refs import BlobRef
from vstore.ids import Digest, PackId
from vstore.ops.pack_index import NO_BLOBS, BlobColumns, concatenate

_SETTLE_ROWS = 65_536


class Problem(IntEnum):
    """What is wrong with a blob."""

    ABSENT = 0
    """The pack's footer does not list it."""
    ELSEWHERE = 1
    """The footer lists it at another place than the ref says."""
    DIGEST = 2
    """Its bytes do not match its digest."""
    CHECKSUMS = 3
    """Its bytes do, but the checksums behind it don't match them."""
    UNREADABLE = 4
    """It can't be read or decoded."""


class BadBlobs(NamedTuple):
    """Blobs of one pack and what is wrong with each: `problems` u8[n]."""

    blobs: BlobColumns
    problems: npt.NDArray[np.uint8]


@dataclass(slots=True)
class PackFindings:
    """What is wrong with one pack; `whole` is what is wrong with all of it, "" if nothing is.

    One that `is_out_of_reach` could not be read for a reason that says nothing of its bytes.
    """

    whole: str = ""
    is_missing: bool = False
    is_out_of_reach: bool = False
    messages: dict[Digest, str] = field(default_factory=dict)
    _parts: list[BadBlobs] = field(default_factory=list)
    _loose: int = 0

    def add(self, blobs: BlobColumns, problem: Problem) -> None:
        """Note that blobs are bad; the first that is said of one holds."""
        if len(blobs) == 0:
            return
        self._parts.append(BadBlobs(blobs, np.full(len(blobs), problem, np.uint8)))
        self._loose += len(blobs)
        if self._loose > _SETTLE_ROWS + 2 * len(self._parts[0].problems):
            self.bad_blobs()

    def bad_blobs(self) -> BadBlobs:
        """Return all bad blobs, each once, in the order of their places."""
        if not self._parts:
            return BadBlobs(NO_BLOBS, np.zeros(0, np.uint8))
        if len(self._parts) > 1 or self._loose:
            blobs = concatenate([part.blobs for part in self._parts])
            problems = np.concatenate([part.problems for part in self._parts])
            first = np.unique(blobs.keys(), return_index=True)[1]
            first = first[np.argsort(blobs.offsets[first], kind="stable")]
            self._parts, self._loose = [BadBlobs(blobs.take(first), problems[first])], 0
        return self._parts[0]

    def describe(self, row: int) -> str:
        """Say what is wrong with a bad blob."""
        bad = self.bad_blobs()
        digest = Digest(bad.blobs.digests[row].tobytes())
        offset, length = int(bad.blobs.offsets[row]), int(bad.blobs.lengths[row])
        match Problem(int(bad.problems[row])):
            case Problem.ABSENT:
                return f"has no blob {digest.hex()} of {length} bytes"
            case Problem.ELSEWHERE:
                return f"does not have blob {digest.hex()} at {offset}"
            case Problem.DIGEST:
                return f"blob {digest.hex()} at {offset} does not match its digest"
            case Problem.CHECKSUMS:
                return f"the checksums of blob {digest.hex()} at {offset} do not match it"
            case Problem.UNREADABLE:
                said = self.messages.get(digest)
                return f"blob {digest.hex()} at {offset} can't be read" + (f": {said}" if said else "")


class Findings:
    """The findings of all packs."""

    def __init__(self) -> None:
        self._packs: dict[PackId, PackFindings] = {}

    def __len__(self) -> int:
        return len(self._packs)

    def __iter__(self) -> Iterator[tuple[PackId, PackFindings]]:
        return iter(sorted(self._packs.items()))

    def get(self, pack: PackId) -> PackFindings | None:
        return self._packs.get(pack)

    def of(self, pack: PackId) -> PackFindings:
        """Return the findings of a pack, to be added to."""
        return self._packs.setdefault(pack, PackFindings())

    def note_unreadable(self, ref: BlobRef, blobs: BlobColumns, message: str) -> None:
        """Note that a metadata blob can't be read or decoded."""
        found = self.of(ref.pack)
        found.messages[ref.digest] = message
        found.add(blobs, Problem.UNREADABLE)

    def include(self, other: Findings) -> None:
        """Add what is wrong by other findings, but for packs that are missing altogether."""
        for pack, found in other:
            mine = self.of(pack)
            if mine.is_missing:
                continue
            if found.whole and not mine.whole:
                mine.whole, mine.is_missing = found.whole, found.is_missing
                mine.is_out_of_reach = found.is_out_of_reach
            mine.messages = {**found.messages, **mine.messages}
            bad = found.bad_blobs()
            for problem in Problem:
                mine.add(bad.blobs.take(bad.problems == problem), problem)

    def drop(self, pack: PackId) -> None:
        """Forget what is wrong with a pack."""
        self._packs.pop(pack, None)

    def only(self, keep: Callable[[PackId], bool]) -> Findings:
        """Return the findings of some packs."""
        chosen = Findings()
        chosen._packs = {pack: found for pack, found in self._packs.items() if keep(pack)}
        return chosen
