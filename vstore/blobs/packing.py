"""One pack while it is being written: room is reserved, bytes are written, footer and trailer close it.

`writer` decides what goes into which pack; this module keeps a single pack right. Not thread-safe but for `write`
and `read` on ranges that were reserved.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from vstore.errors import CorruptionError, OutOfSpaceError, StorageError
from vstore.format.envelope import BlobKind
from vstore.format.pack import (
    HEADER_SIZE,
    MAX_PACK_BLOBS,
    PACK_HEADER,
    Footer,
    check_table,
    encode_ending,
)
from vstore.format.refs import CHECK_BLOCK_BYTES, check_table_size
from vstore.ids import DIGEST_SIZE, BytesLike, Digest, PackId, blake3_digest
from vstore.storage.base import PackSink

NO_SLOT = 2**64 - 1
"""The slot of blobs that nobody looks up by slot: metadata."""


class Packed(NamedTuple):
    """A blob in a pack that is being written."""

    slot: int
    kind: BlobKind
    digest: Digest
    offset: int
    length: int


class OpenPack:
    """A pack that is not sealed yet. `number` is its place among its session's packs."""

    def __init__(self, sink: PackSink, number: int) -> None:
        self.sink = sink
        self.number = number
        self.end = HEADER_SIZE
        self._slots = array("Q")
        self._kinds = bytearray()
        self._digests = bytearray()
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._failed: set[int] = set()
        self._has_header = False
        self.writes = 0
        """Writes of data under way, as the writer counts them: it is sealed when there are none."""
        self.is_doubtful = False
        """Whether its name may have been put, or its file lost bytes: its blobs must go to another pack."""

    @property
    def pack(self) -> PackId:
        return self.sink.pack

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def is_full_of_blobs(self) -> bool:
        return len(self) >= MAX_PACK_BLOBS - 65_536

    def place(self, slot: int, kind: BlobKind, digest: Digest, length: int) -> int:
        """Reserve room for a blob and its checksum table, and return its offset."""
        return self.place_all((slot,), (kind,), (digest,), (length,))[0]

    def place_all(
        self,
        slots: Collection[int],
        kinds: Collection[BlobKind],
        digests: Collection[Digest],
        lengths: Collection[int],
    ) -> list[int]:
        """Reserve room for blobs side by side, and return their offsets."""
        rooms: Iterable[int] = lengths
        if max(lengths, default=0) > CHECK_BLOCK_BYTES:
            rooms = [length + check_table_size(length) for length in lengths]
        offsets = list(accumulate(rooms, initial=self.end))
        self.end = offsets.pop()
        self._slots.extend(slots)
        self._kinds.extend(kinds)
        self._digests += b"".join(digests)
        self._offsets.extend(offsets)
        self._lengths.extend(lengths)
        return offsets

    def forget(self, offsets: Sequence[int]) -> None:
        """Leave out blobs that were placed together and whose write failed.

        Their room is used again if nothing was placed behind them, so that a full disk is not filled with what failed.
        """
        if offsets and self._offsets[-1] == offsets[-1]:
            self.drop_from(offsets[0])
        else:
            self._failed.update(offsets)

    def write(self, offset: int, blobs: Sequence[BytesLike]) -> None:
        """Write blobs, with their checksum tables, into the room reserved for them from `offset`."""
        buffers: list[BytesLike] = []
        for blob in blobs:
            buffers.append(blob)
            if len(blob) > CHECK_BLOCK_BYTES:
                buffers.append(check_table(blob))
        try:
            self.sink.write(offset, buffers)
        except OutOfSpaceError:
            raise
        except StorageError:
            self.is_doubtful = True
            raise

    def read(self, offset: int, length: int) -> memoryview:
        return self.sink.read(offset, length)

    def seal(self, metadata: Sequence[bytes] = ()) -> None:
        """Write `metadata` blobs, placed last, with footer and trailer, and make the pack durable."""
        start = self.end - sum(len(blob) + check_table_size(len(blob)) for blob in metadata)
        ending = encode_ending(self.pack, self._footer(), self.end)
        if not self._has_header:
            self.sink.write(0, (PACK_HEADER,))
            self._has_header = True
        self.write(start, metadata)
        self.sink.write(self.end, (ending,))
        self.is_doubtful = True
        self.sink.seal(self.end + len(ending))

    def drop_from(self, offset: int) -> None:
        """Take back the room of all blobs from `offset` on: metadata of a commit that did not come about."""
        while len(self._offsets) and self._offsets[-1] >= offset:
            for column in (self._slots, self._kinds, self._offsets, self._lengths):
                column.pop()
            del self._digests[-DIGEST_SIZE:]
        self.end = offset

    def iter_blobs(self) -> Iterator[Packed]:
        """Yield what was placed here and not forgotten."""
        for row, offset in enumerate(self._offsets):
            if offset not in self._failed:
                digest = Digest(bytes(self._digests[row * DIGEST_SIZE : (row + 1) * DIGEST_SIZE]))
                yield Packed(self._slots[row], BlobKind(self._kinds[row]), digest, offset, self._lengths[row])

    def read_verified(self, blob: Packed) -> memoryview:
        """Return a blob written here before; after a failed sync the file may not hold what was written."""
        data = self.read(blob.offset, blob.length)
        if blake3_digest(data) != blob.digest:
            raise CorruptionError(
                f"the storage did not keep blob {blob.digest.hex()} of a session that is not committed yet. "
                "Nothing committed is affected; run the writes again in a new session."
            )
        return data

    def discard(self) -> None:
        self.sink.discard()

    def _footer(self) -> Footer:
        offsets = np.frombuffer(self._offsets.tobytes(), dtype=np.uint64)
        kept = np.isin(offsets, np.array([*self._failed], dtype=np.uint64), invert=True)
        digests = np.frombuffer(bytes(self._digests), dtype=np.uint8).reshape(-1, DIGEST_SIZE)
        return Footer(
            np.frombuffer(bytes(self._kinds), dtype=np.uint8)[kept],
            digests[kept],
            offsets[kept],
            np.frombuffer(self._lengths.tobytes(), dtype=np.uint64)[kept],
        )
