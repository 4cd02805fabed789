"""Many blobs read at once: those that lie close together in a pack come in one read.

`BlobColumns` says where blobs are, as columns; `plan_runs` cuts them into runs of neighbours, bounded in bytes;
`iter_run` reads one run and yields each blob, checked against its digest. Runs are independent of each other, so that
callers may read several at once. Below: `reader`, which takes over when a run can't be had whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.cache import keep_blob
from vstore.blobs.reader import BlobReader
from vstore.errors import CorruptionError, ObjectNotFoundError
from vstore.format.columns import U64
from vstore.format.refs import BlobRef
from vstore.ids import DIGEST_SIZE, Digest, PackId, blake3_digest

RUN_BYTES = 8 * 1024 * 1024
"""A run holds no more, but for a single larger blob: what one read has in memory at once."""
REMOTE_GAP_BYTES = 256 * 1024
"""Bytes between two blobs that are cheaper fetched than a second request: 3 ms of a line of 100 MB/s."""
LOCAL_GAP_BYTES = 4 * 1024
"""Checksum tables and a stray blob; a map costs nothing for what is not touched, a read on a network disk does."""


@dataclass(frozen=True, slots=True)
class BlobColumns:
    """Where n blobs are: `sources` u32[n] number `packs`; offsets and lengths u64[n], digests u8[n, 32].

    `trusted` bool[n] are those whose bytes need no check: this process checked them before, on a local disk.
    """

    packs: Sequence[PackId]
    sources: npt.NDArray[np.uint32]
    offsets: U64
    lengths: U64
    digests: npt.NDArray[np.uint8]
    trusted: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, refs: Sequence[BlobRef]) -> BlobColumns:
        """Return columns of `refs`, none of them trusted."""
        packs = list(dict.fromkeys(ref.pack for ref in refs))
        numbers = {pack: number for number, pack in enumerate(packs)}
        digests = np.frombuffer(b"".join(ref.digest for ref in refs), dtype=np.uint8)
        return cls(
            packs,
            np.array([numbers[ref.pack] for ref in refs], dtype=np.uint32),
            np.array([ref.offset for ref in refs], dtype=np.uint64),
            np.array([ref.length for ref in refs], dtype=np.uint64),
            digests.reshape(-1, DIGEST_SIZE),
            np.zeros(len(refs), dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.offsets)

    def ref(self, row: int) -> BlobRef:
        """Return one blob's ref."""
        digest = Digest(self.digests[row].tobytes())
        pack = self.packs[int(self.sources[row])]
        return BlobRef(digest, pack, int(self.offsets[row]), int(self.lengths[row]))


class Run(NamedTuple):
    """A stretch [start, stop) of one pack, and the rows of the blobs in it, by offset."""

    pack: PackId
    start: int
    stop: int
    rows: npt.NDArray[np.intp]


def plan_runs(blobs: BlobColumns, *, gap_bytes: int, run_bytes: int = RUN_BYTES) -> list[Run]:
    """Return runs that hold every blob once: neighbours in a pack at most `gap_bytes` apart share one.

    No run reaches further than `run_bytes` from its start, but to end the blob that begins there.
    """
    if not len(blobs):
        return []
    order = np.lexsort((blobs.offsets, blobs.sources))
    sources = blobs.sources[order]
    starts = blobs.offsets[order].astype(np.int64)
    ends = starts + blobs.lengths[order].astype(np.int64)
    new = np.ones(len(order), dtype=bool)
    new[1:] = (sources[1:] != sources[:-1]) | (starts[1:] - ends[:-1] > gap_bytes)
    stretch = np.cumsum(new) - 1
    # A stretch of neighbours that is too long is cut at multiples of the limit from its start.
    part = (ends - 1 - starts[new][stretch]) // run_bytes
    new[1:] |= part[1:] != part[:-1]
    firsts = np.flatnonzero(new)
    stops = np.maximum.reduceat(ends, firsts).tolist()
    bounds = [*firsts.tolist(), len(order)]
    return [
        Run(blobs.packs[int(sources[first])], int(starts[first]), stop, order[first:last])
        for first, last, stop in zip(bounds[:-1], bounds[1:], stops, strict=True)
    ]


def iter_run(
    reader: BlobReader, run: Run, blobs: BlobColumns, what: Callable[[int], str]
) -> Iterator[tuple[int, memoryview]]:
    """Read one run and yield (row, bytes) of its blobs; `what(row)` is a phrase for error messages.

    What is missing or damaged is asked for alone: the reader finds what was moved, or raises and names it.
    """
    try:
        data = reader.stretch(run.pack, run.start, run.stop)
    except (ObjectNotFoundError, CorruptionError):
        for row in run.rows.tolist():
            yield row, reader.whole(blobs.ref(row), what(row), verify=not blobs.trusted[row])
        return
    is_remote = reader.remote is not None
    digests = blobs.digests[run.rows].tobytes()
    starts = (blobs.offsets[run.rows].astype(np.int64) - run.start).tolist()
    columns: Any = zip(
        run.rows.tolist(),
        starts,
        blobs.lengths[run.rows].tolist(),
        blobs.trusted[run.rows].tolist(),
        range(0, len(digests), DIGEST_SIZE),
        strict=True,
    )
    for row, start, length, is_trusted, at in columns:
        blob = data[start : start + length]
        digest = digests[at : at + DIGEST_SIZE]
        if is_trusted or blake3_digest(blob) == digest:
            if is_remote:
                keep_blob(digest, blob)
            yield row, blob
        else:
            yield row, reader.whole(blobs.ref(row), what(row))
