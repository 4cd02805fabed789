"""Reads blobs and checks them against their digests, all of them or a sample that can be drawn again.

Packs are read from front to back, some megabytes in a request. Which blobs are in a sample depends on their digests
and the seed alone. Neighbours: `examination` says which packs are needed, `findings` takes what is bad.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.errors import FormatError, InvalidInputError, StorageError
from vstore.format.columns import U64
from vstore.format.pack import check_table
from vstore.format.refs import CHECK_BLOCK_BYTES, BlobRef, check_table_size
from vstore.ids import PackId, blake3_digest
from vstore.keys.objects import pack_name
from vstore.ops.findings import Findings, Problem
from vstore.ops.live import digest_prefixes
from vstore.ops.pack_index import BlobColumns, PackIndex
from vstore.storage.base import Storage

READ_BYTES = 8 * 1024 * 1024
_GAP_BYTES = 256 * 1024

Choose: TypeAlias = Callable[[BlobColumns], BlobColumns]
"""Returns those of some blobs that are to be read."""


def everything(blobs: BlobColumns) -> BlobColumns:
    """Choose all."""
    return blobs


def sampler(sample: float, seed: int, indexes: Iterable[PackIndex]) -> Choose:
    """Return a choice of a share of all blobs (`sample` a float up to 1.0), or of so many of them (an int)."""
    if isinstance(sample, bool) or not isinstance(sample, int | float):
        raise InvalidInputError(
            f"{sample!r} is no sample: give a share from 0.0 to 1.0, or a number of blobs"
        )
    if isinstance(sample, float):
        if not 0 < sample <= 1:
            raise InvalidInputError(f"a sample's share is more than 0.0 and at most 1.0, not {sample!r}")
        limit = np.uint64(min(int(sample * 2**64), 2**64 - 1))
    else:
        if sample < 1:
            raise InvalidInputError(f"a sample has at least one blob, not {sample!r}")
        limit = _nth_smallest(sample, seed, indexes)
    return lambda blobs: blobs.take(_ranks(digest_prefixes(blobs.digests), seed) <= limit)


def _nth_smallest(count: int, seed: int, indexes: Iterable[PackIndex]) -> np.uint64:
    smallest: U64 = np.zeros(0, np.uint64)
    for index in indexes:
        smallest = np.concatenate((smallest, _ranks(index.prefixes, seed)))
        if len(smallest) > count:
            smallest = np.partition(smallest, count - 1)[:count]
    return np.uint64(smallest.max()) if len(smallest) else np.uint64(0)


def _ranks(prefixes: U64, seed: int) -> U64:
    """Return numbers that look random, from digests and a seed (the mixing of splitmix64, S. Vigna 2015)."""
    mixed = prefixes ^ np.uint64(seed * 0x9E37_79B9_7F4A_7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    return mixed ^ (mixed >> np.uint64(31))


class Scrub:
    """Checks blobs of packs; `blobs` and `bytes` count what was read."""

    def __init__(self, storage: Storage, findings: Findings) -> None:
        self._storage = storage
        self._findings = findings
        self.blobs = 0
        self.bytes = 0

    def check(self, pack: PackId, blobs: BlobColumns) -> None:
        """Check blobs of a pack, which are in the order of their places."""
        if len(blobs) == 0:
            return
        read = iter_stored(self._storage, pack, blobs)
        problems = np.fromiter(
            (_CODES[self._problem(stored, ref)] for ref, stored in read), np.int16, len(blobs)
        )
        self.blobs += len(blobs)
        self.bytes += int(blobs.lengths.sum())
        for problem in (Problem.DIGEST, Problem.CHECKSUMS, Problem.UNREADABLE):
            rows = np.flatnonzero(problems == problem)
            if len(rows):
                self._findings.of(pack).add(blobs.take(rows), problem)

    def _problem(self, stored: memoryview | None, ref: BlobRef) -> Problem | None:
        problem = blob_problem(stored, ref)
        if problem is None or self._storage.is_local:
            return problem
        # Perhaps it was damaged on its way.
        return blob_problem(_read_alone(self._storage, ref), ref)


_CODES: dict[Problem | None, int] = {None: -1, **{problem: int(problem) for problem in Problem}}


def _stretches(blobs: BlobColumns) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows that are worth one request."""
    ends = blobs.offsets + blobs.lengths
    near = blobs.offsets[1:] <= ends[:-1] + np.uint64(_GAP_BYTES)
    breaks: npt.NDArray[np.intp] = np.flatnonzero(~near) + 1
    bounds = [0, *breaks.tolist(), len(blobs)]
    for start, stop in itertools.pairwise(bounds):
        first = start
        while first < stop:
            limit = blobs.offsets[first] + np.uint64(READ_BYTES)
            last = max(first + 1, first + int(np.searchsorted(ends[first:stop], limit, side="right")))
            yield first, last
            first = last


def iter_stored(
    storage: Storage, pack: PackId, blobs: BlobColumns
) -> Iterator[tuple[BlobRef, memoryview | None]]:
    """Yield each of `blobs`, in the order of places, with its bytes and what follows them; None if it can't be read."""
    name = pack_name(pack)
    for first, last in _stretches(blobs):
        refs = [blobs.ref(pack, row) for row in range(first, last)]
        start, stop = refs[0].offset, max(map(_end, refs))
        try:
            data = storage.read(name, start, stop - start)
        except (FormatError, StorageError):
            # The file may be cut: what comes before that is read blob by blob.
            yield from ((ref, _read_alone(storage, ref)) for ref in refs)
            continue
        for ref in refs:
            yield ref, data[ref.offset - start :]


def _end(ref: BlobRef) -> int:
    return ref.offset + ref.length + check_table_size(ref.length)


def _read_alone(storage: Storage, ref: BlobRef) -> memoryview | None:
    try:
        return storage.read(pack_name(ref.pack), ref.offset, _end(ref) - ref.offset)
    except (FormatError, StorageError):
        return None


def blob_problem(stored: memoryview | None, ref: BlobRef) -> Problem | None:
    """Tell what is wrong with a blob whose bytes, and the checksums behind them, `stored` starts with."""
    if stored is None:
        return Problem.UNREADABLE
    data = stored[: ref.length]
    if blake3_digest(data) != ref.digest:
        return Problem.DIGEST
    if ref.length > CHECK_BLOCK_BYTES:
        table = stored[ref.length : ref.length + check_table_size(ref.length)]
        if bytes(table) != check_table(data):
            return Problem.CHECKSUMS
    return None


def iter_intact(storage: Storage, pack: PackId, blobs: BlobColumns) -> Iterator[tuple[int, memoryview]]:
    """Yield the rows of the blobs whose bytes match their digests, with the bytes; checksums don't matter."""
    for row, (ref, stored) in enumerate(iter_stored(storage, pack, blobs)):
        if blob_problem(stored, ref) is not None and not storage.is_local:
            stored = _read_alone(storage, ref)
        if stored is not None and blake3_digest(stored[: ref.length]) == ref.digest:
            yield row, stored[: ref.length]
