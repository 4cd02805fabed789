"""The chunk refs that a session wrote into one tile, not committed yet: 64 bytes each, and 2 to 6 for their index.

Rows lie in one bytearray; positions are found by bisection while they are few and by a table of 16-bit row numbers
once they are many (measured: 51 to 200 bytes a ref with 48-byte rows, 0.7 us a set). Refs that were moved out of memory
are in `spilled`, below these rows. Not thread-safe: the worktree's lock covers it.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from vstore.format.manifest import MAX_TILE_CHUNKS
from vstore.ids import DIGEST_SIZE, BytesLike

_ROW = struct.Struct("<32sQQIIB7x")
_ROW_SIZE = _ROW.size
_NO_DIGEST = bytes(DIGEST_SIZE)
_DENSE = 512
_EMPTY = 0xFFFF
_REBUILD_FACTOR = 8
"""Rebuilding a tile takes about an eighth, per row, of setting one."""

ROW_DTYPE = np.dtype(
    [
        ("digest", np.uint8, (DIGEST_SIZE,)),
        ("at", "<u8"),
        ("length", "<u8"),
        ("source", "<u4"),
        ("check", "<u4"),
        ("kind", np.uint8),
        ("pad", np.uint8, (7,)),
    ]
)


def unpack_rows(rows: npt.NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield rows of `ROW_DTYPE` as tuples (digest, at, length, source, check, kind)."""
    return _ROW.iter_unpack(rows.tobytes())


class PendingKind(IntEnum):
    """Where a pending chunk is. In memory only; the first four mean what `ChunkKind` means."""

    STORED = 0
    INLINE = 1
    VIRTUAL = 2
    DELETED = 3
    OWN = 4
    UNCHANGED = 5


_OWN = int(PendingKind.OWN)


class PendingRef(msgspec.Struct, frozen=True):
    """One pending chunk ref.

    OWN: `at` is the blob's slot in the session's writer. STORED: `source` is a pack number of the worktree, `at`
    the offset. INLINE: `at` is the offset in the tile's inline bytes. VIRTUAL: `source` and `check` number a
    location and a checksum (0: none) of the worktree. UNCHANGED: written, and equal to what the base holds.
    """

    kind: int
    at: int = 0
    length: int = 0
    source: int = 0
    check: int = 0
    digest: bytes = _NO_DIGEST


class SpilledRefs(Protocol):
    """Older pending refs of a tile, which lie in manifests of the session: see `vstore.worktree.spilling`."""

    @property
    def memory_bytes(self) -> int:
        """What is kept of them in memory."""


class PendingTile:
    """The pending refs of one tile by position: those in memory, over those that were `spilled`.

    All methods see only those in memory; `vstore.worktree.spilling` reads both.
    """

    __slots__ = ("_order", "_positions", "_rows", "_table", "changed", "inline", "spilled")

    def __init__(self) -> None:
        self._rows = bytearray()
        self._positions = array("H")
        self._order = array("H")
        self._table: array[int] | None = None
        self.inline = bytearray()
        self.changed = 0
        """How many refs differ from the base."""
        self.spilled: SpilledRefs | None = None

    def __len__(self) -> int:
        return len(self._rows) // _ROW_SIZE

    def copy(self) -> PendingTile:
        """Return a tile with the same refs, which can be changed alone."""
        other = PendingTile()
        other._rows, other.inline = bytearray(self._rows), bytearray(self.inline)
        other._positions, other._order = array("H", self._positions), array("H", self._order)
        other._table = None if self._table is None else array("H", self._table)
        other.changed = self.changed
        other.spilled = self.spilled
        return other

    @property
    def memory_bytes(self) -> int:
        table = 2 * MAX_TILE_CHUNKS if self._table is not None else 4 * len(self._positions)
        spilled = 0 if self.spilled is None else self.spilled.memory_bytes
        return len(self._rows) + len(self.inline) + table + spilled + 300

    def get(self, position: int) -> PendingRef | None:
        """Return the ref at `position`, or None if the session did not write there."""
        row = self._find(position)
        if row is None:
            return None
        digest, at, length, source, check, kind = _ROW.unpack_from(self._rows, row * _ROW_SIZE)
        return PendingRef(kind, at, length, source, check, digest)

    def set(self, position: int, ref: PendingRef) -> None:
        """Put `ref` at `position`."""
        packed = _ROW.pack(ref.digest, ref.at, ref.length, ref.source, ref.check, ref.kind)
        self._put(position, packed, ref.kind != PendingKind.UNCHANGED)

    def set_own(self, position: int, slot: int, length: int, digest: bytes) -> None:
        """Put a blob of the session's writer at `position`."""
        self._put(position, _ROW.pack(digest, slot, length, 0, 0, _OWN), True)

    def _put(self, position: int, packed: bytes, is_change: bool) -> None:
        row = self._find(position)
        if row is None:
            row = len(self._rows) // _ROW_SIZE
            self._rows += packed
            self._add_to_index(position, row)
        else:
            self.changed -= self._rows[row * _ROW_SIZE + 56] != PendingKind.UNCHANGED
            self._rows[row * _ROW_SIZE : (row + 1) * _ROW_SIZE] = packed
        self.changed += is_change

    def set_inline(self, position: int, data: BytesLike) -> None:
        """Put an inline chunk at `position`; the room of one that it replaces is used again if it fits."""
        old = self.get(position)
        if old is not None and old.kind == PendingKind.INLINE and old.length >= len(data):
            at = old.at
            self.inline[at : at + len(data)] = data
        else:
            at = len(self.inline)
            self.inline += data
        self.set(position, PendingRef(PendingKind.INLINE, at, len(data)))

    def read_inline(self, ref: PendingRef) -> bytes:
        return bytes(self.inline[ref.at : ref.at + ref.length])

    def put_many(self, positions: npt.NDArray[np.uint16], rows: npt.NDArray[Any]) -> None:
        """Do what `set_many` does, at a cost that goes with the rows, not with the tile, where they are few."""
        if _REBUILD_FACTOR * len(positions) >= len(self):
            if len(positions):
                self.set_many(positions, rows)
            return
        for position, row in zip(positions.tolist(), _ROW.iter_unpack(rows.tobytes()), strict=True):
            digest, at, length, source, check, kind = row
            self.set(position, PendingRef(kind, at, length, source, check, digest))

    def set_many(self, positions: npt.NDArray[np.uint16], rows: npt.NDArray[Any]) -> None:
        """Put rows of `ROW_DTYPE` at distinct positions."""
        kept = self.to_rows()
        if len(kept[0]):
            keep = ~np.isin(kept[0], positions)
            positions = np.concatenate((kept[0][keep], positions))
            rows = np.concatenate((kept[1][keep], rows))
        order = np.argsort(positions, kind="stable")
        self._rows = bytearray(rows[order].tobytes())
        self._table = None
        self._positions = array("H", positions[order].tobytes())
        self._order = array("H", np.arange(len(order), dtype=np.uint16).tobytes())
        self.changed = int(np.count_nonzero(rows["kind"] != PendingKind.UNCHANGED))
        self._densify()

    def keep(self, positions: npt.NDArray[np.uint16], rows: npt.NDArray[Any], inline: bytes = b"") -> None:
        """Have only these refs in memory: positions that are increasing, with their rows and inline bytes."""
        self._rows, self.inline = bytearray(), bytearray(inline)
        self._positions, self._order, self._table = array("H"), array("H"), None
        self.changed = 0
        if len(positions):
            self.set_many(positions, rows)

    def own_slots(self) -> npt.NDArray[np.uint64]:
        """Return the slots of the session's blobs that refs in memory point at, one for each ref."""
        rows = self.to_rows()[1]
        slots: npt.NDArray[np.uint64] = rows["at"][rows["kind"] == PendingKind.OWN]
        return slots

    def rows_at(self, positions: npt.NDArray[np.uint16]) -> tuple[npt.NDArray[np.intp], npt.NDArray[Any]]:
        """Return which of these positions the session wrote (indices into them), and copies of their rows."""
        if self._table is not None:
            table = np.frombuffer(self._table.tobytes(), dtype=np.uint16)
            found = table[positions]
            written = np.flatnonzero(found != _EMPTY)
            row_numbers = found[written]
        else:
            known = np.frombuffer(self._positions.tobytes(), dtype=np.uint16)
            if not len(known):
                return np.zeros(0, np.intp), np.zeros(0, ROW_DTYPE)
            at = np.minimum(np.searchsorted(known, positions), len(known) - 1)
            written = np.flatnonzero(known[at] == positions)
            row_numbers = np.frombuffer(self._order.tobytes(), dtype=np.uint16)[at[written]]
        # A view of the rows would keep the bytearray from growing: it must be gone when this returns.
        return written, np.frombuffer(self._rows, dtype=ROW_DTYPE)[row_numbers]

    def to_rows(self) -> tuple[npt.NDArray[np.uint16], npt.NDArray[Any]]:
        """Return positions, increasing, and copies of their rows."""
        rows = np.frombuffer(bytes(self._rows), dtype=ROW_DTYPE)
        if self._table is not None:
            table = np.frombuffer(self._table.tobytes(), dtype=np.uint16)
            positions = np.flatnonzero(table != _EMPTY).astype(np.uint16)
            return positions, rows[table[positions]]
        order = np.frombuffer(self._order.tobytes(), dtype=np.uint16)
        return np.frombuffer(self._positions.tobytes(), dtype=np.uint16), rows[order]

    def _find(self, position: int) -> int | None:
        if self._table is not None:
            row = self._table[position]
            return None if row == _EMPTY else row
        index = bisect_left(self._positions, position)
        if index < len(self._positions) and self._positions[index] == position:
            return self._order[index]
        return None

    def _add_to_index(self, position: int, row: int) -> None:
        if self._table is not None:
            self._table[position] = row
            return
        index = bisect_left(self._positions, position)
        self._positions.insert(index, position)
        self._order.insert(index, row)
        self._densify()

    def _densify(self) -> None:
        if len(self._positions) < _DENSE:
            return
        table = np.full(MAX_TILE_CHUNKS, _EMPTY, dtype=np.uint16)
        positions = np.frombuffer(self._positions.tobytes(), dtype=np.uint16)
        table[positions] = np.frombuffer(self._order.tobytes(), dtype=np.uint16)
        self._table = array("H", table.tobytes())
        self._positions, self._order = array("H"), array("H")
