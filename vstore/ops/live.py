"""Which blobs are live, pack by pack, and in which order readers want them: what compact copies.

A blob is known here by the first eight bytes of its digest: sixteen bytes a live blob for millions of them. Two blobs
of one pack that share those bytes would both be kept, which is safe.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.format.columns import U64
from vstore.ids import PackId
from vstore.reachability import NeededBlob, NeededChunks

_COMPRESS_ROWS = 4096
_PREFIX = np.dtype("<u8")


def digest_prefixes(digests: npt.NDArray[np.uint8]) -> U64:
    """Return the first eight bytes of digests u8[n, 32] as numbers."""
    return np.ascontiguousarray(digests[:, : _PREFIX.itemsize]).view(_PREFIX).reshape(-1).astype(np.uint64)


class LiveRows(NamedTuple):
    """Live blobs of one pack: `prefixes` u64[n], distinct and increasing, and when each was first asked for."""

    prefixes: U64
    order: U64

    def find(self, digests: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.bool_], U64]:
        """Return which digests u8[n, 32] are live, and the order of each (meaningless where it is not)."""
        if len(self.prefixes) == 0:
            return np.zeros(len(digests), dtype=bool), np.zeros(len(digests), dtype=np.uint64)
        wanted = digest_prefixes(digests)
        rows = np.minimum(np.searchsorted(self.prefixes, wanted), len(self.prefixes) - 1)
        return self.prefixes[rows] == wanted, self.order[rows]


NO_ROWS = LiveRows(np.zeros(0, np.uint64), np.zeros(0, np.uint64))


class LiveBlobs:
    """Collects what a walk finds; pass `visit` to `Marks`. Packs are those that refs name."""

    def __init__(self) -> None:
        self._parts: dict[PackId, list[LiveRows]] = {}
        self._loose: dict[PackId, int] = {}
        self._next = 0

    def visit(self, found: NeededBlob | NeededChunks) -> None:
        """Take what a walk found."""
        if isinstance(found, NeededBlob):
            digest = np.frombuffer(found.ref.digest, dtype=np.uint8).reshape(1, -1)
            self._add(found.ref.pack, digest, np.zeros(1, dtype=np.intp))
            self._next += 1
            return
        for pack, rows in found.by_pack():
            self._add(pack, found.digests, rows)
        self._next += len(found.positions)

    def _add(self, pack: PackId, digests: npt.NDArray[np.uint8], rows: npt.NDArray[np.intp]) -> None:
        part = LiveRows(digest_prefixes(digests[rows]), rows.astype(np.uint64) + np.uint64(self._next))
        self._parts.setdefault(pack, []).append(part)
        loose = self._loose.get(pack, 0) + len(rows)
        settled = len(self._parts[pack][0].prefixes)
        if loose > max(_COMPRESS_ROWS, 2 * settled):
            self._parts[pack] = [_distinct(self._parts[pack])]
            loose = 0
        self._loose[pack] = loose

    def rows(self, pack: PackId) -> LiveRows:
        """Return the live blobs of which refs say that they are in `pack`."""
        parts = self._parts.get(pack)
        if not parts:
            return NO_ROWS
        merged = _distinct(parts)
        self._parts[pack], self._loose[pack] = [merged], 0
        return merged


def join_rows(parts: list[LiveRows]) -> LiveRows:
    """Return the rows of several packs whose blobs lie in one now."""
    return _distinct(parts) if parts else NO_ROWS


def _distinct(parts: list[LiveRows]) -> LiveRows:
    prefixes = np.concatenate([part.prefixes for part in parts])
    order = np.concatenate([part.order for part in parts])
    by_order = np.argsort(order, kind="stable")
    # Of equal prefixes the first in order is kept.
    found, first = np.unique(prefixes[by_order], return_index=True)
    return LiveRows(found, order[by_order][first])
