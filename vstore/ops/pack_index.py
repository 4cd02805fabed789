"""What packs hold, by their footers, in 24 bytes a blob: ten million refs are compared with them in seconds.

A blob is known here by its place, its length and the first eight bytes of its digest. A ref that agrees with the
footer in these is taken for right (two digests that differ agree in them once in 2**64); what disagrees is damage.
Above: `examination` compares refs with packs, `scrub` reads the blobs themselves.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.blobs.reader import BlobReader
from vstore.errors import FormatError, StorageError, UnsafeStorageError
from vstore.format.columns import U64
from vstore.format.envelope import BlobKind
from vstore.format.pack import HEADER_SIZE, Footer, decode_header
from vstore.format.refs import BlobRef
from vstore.ids import DIGEST_SIZE, Digest, PackId
from vstore.keys.objects import pack_name
from vstore.ops.live import digest_prefixes
from vstore.reachability import NeededChunks
from vstore.storage.base import read_twice

INDEX_BYTES = 256 * 1024 * 1024
"""Indexes beyond this are forgotten and read again: ten million blobs are at hand."""
_BLOB_BYTES = 24
_PACK_BYTES = 500
_FIBONACCI = np.uint64(0x9E37_79B9_7F4A_7C15)

Mask: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class BlobColumns:
    """Blobs of one pack: `digests` u8[n, 32], `offsets` and `lengths` u64[n], `kinds` (`BlobKind`) u8[n]."""

    digests: npt.NDArray[np.uint8]
    offsets: U64
    lengths: U64
    kinds: npt.NDArray[np.uint8]

    def take(self, rows: Mask | npt.NDArray[np.intp]) -> BlobColumns:
        """Return some of the rows."""
        return BlobColumns(self.digests[rows], self.offsets[rows], self.lengths[rows], self.kinds[rows])

    def __len__(self) -> int:
        return len(self.offsets)

    def ref(self, pack: PackId, row: int) -> BlobRef:
        """Return one row as a ref."""
        digest = Digest(self.digests[row].tobytes())
        return BlobRef(digest, pack, int(self.offsets[row]), int(self.lengths[row]))

    def keys(self) -> U64:
        """Return numbers u64[n] that differ where place or digest do."""
        return (self.offsets * _FIBONACCI) ^ digest_prefixes(self.digests)


NO_BLOBS = BlobColumns(
    np.zeros((0, DIGEST_SIZE), np.uint8),
    np.zeros(0, np.uint64),
    np.zeros(0, np.uint64),
    np.zeros(0, np.uint8),
)


def columns_of(ref: BlobRef, kind: BlobKind) -> BlobColumns:
    """Return one blob as columns."""
    return BlobColumns(
        np.frombuffer(ref.digest, dtype=np.uint8).reshape(1, -1),
        np.array([ref.offset], np.uint64),
        np.array([ref.length], np.uint64),
        np.array([kind], np.uint8),
    )


def chunk_columns(chunks: NeededChunks, rows: npt.NDArray[np.intp]) -> BlobColumns:
    """Return some chunks of a manifest, which are in one pack."""
    kinds = np.full(len(rows), BlobKind.CHUNK, np.uint8)
    return BlobColumns(chunks.digests[rows], chunks.offsets[rows], chunks.lengths[rows], kinds)


def footer_columns(footer: Footer) -> BlobColumns:
    """Return what a footer lists."""
    return BlobColumns(footer.digests, footer.offsets, footer.lengths, footer.kinds)


def join_columns(parts: Sequence[BlobColumns]) -> BlobColumns:
    """Return all rows of `parts`, each place and digest once, in the order of places."""
    if not parts:
        return NO_BLOBS
    joined = concatenate(parts)
    first = np.unique(joined.keys(), return_index=True)[1]
    return joined.take(first[np.argsort(joined.offsets[first], kind="stable")])


def concatenate(parts: Sequence[BlobColumns]) -> BlobColumns:
    """Return the rows of `parts`, one after the other."""
    return BlobColumns(
        np.concatenate([part.digests for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.kinds for part in parts]),
    )


class PackIndex:
    """A pack's blobs: `offsets`, increasing, `lengths` and `prefixes` of digests, u64[n] each."""

    __slots__ = ("_order", "lengths", "offsets", "prefixes")

    def __init__(self, footer: Footer) -> None:
        self.offsets = footer.offsets
        self.lengths = footer.lengths
        self.prefixes = digest_prefixes(footer.digests)
        self._order: npt.NDArray[np.intp] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def has_there(self, blobs: BlobColumns) -> Mask:
        """Tell which of `blobs` the pack has, at just the place that is given."""
        if len(self) == 0:
            return np.zeros(len(blobs.offsets), dtype=bool)
        rows = np.minimum(np.searchsorted(self.offsets, blobs.offsets), len(self) - 1)
        found: Mask = self.offsets[rows] == blobs.offsets
        found &= self.lengths[rows] == blobs.lengths
        found &= self.prefixes[rows] == digest_prefixes(blobs.digests)
        return found

    def has(self, blobs: BlobColumns) -> Mask:
        """Tell which of `blobs` the pack has anywhere."""
        return self.locate(blobs)[0]

    def locate(self, blobs: BlobColumns) -> tuple[Mask, U64]:
        """Tell which of `blobs` the pack has anywhere, and where (for the others anything)."""
        if len(self) == 0:
            return np.zeros(len(blobs), dtype=bool), blobs.offsets
        if self._order is None:
            self._order = np.argsort(self.prefixes, kind="stable")
        wanted = digest_prefixes(blobs.digests)
        at = np.searchsorted(self.prefixes, wanted, sorter=self._order)
        rows = self._order[np.minimum(at, len(self) - 1)]
        found: Mask = self.prefixes[rows] == wanted
        found &= self.lengths[rows] == blobs.lengths
        return found, self.offsets[rows]


class PackIndexes:
    """The indexes of packs, read when they are first asked for; at most `limit_bytes` of them are kept."""

    def __init__(self, blobs: BlobReader, limit_bytes: int = INDEX_BYTES) -> None:
        self._blobs = blobs
        self._limit = limit_bytes
        self._size = 0
        self._kept: OrderedDict[PackId, PackIndex] = OrderedDict()
        self._troubles: dict[PackId, FormatError | StorageError] = {}

    def get(self, pack: PackId) -> PackIndex | FormatError | StorageError:
        """Return a pack's index, or why its header or footer can't be read."""
        found = self._kept.get(pack)
        if found is not None:
            self._kept.move_to_end(pack)
            return found
        trouble = self._troubles.get(pack)
        if trouble is not None:
            return trouble
        return self._keep(pack, self._read(pack))

    def read_ahead(self, packs: Set[PackId]) -> None:
        """Read the indexes of packs that will be asked for, some at a time where each takes a round trip.

        As many as leave room for others.
        """
        remote = self._blobs.remote
        wanted = sorted(packs)
        if remote is None:
            return
        for pack, index in zip(wanted, remote.fetcher.iter_map(self._read, wanted), strict=False):
            self._keep(pack, index)
            if self._size > self._limit // 2:
                return

    def _read(self, pack: PackId) -> PackIndex | FormatError | StorageError:
        try:
            return PackIndex(read_checked_footer(self._blobs, pack))
        except UnsafeStorageError:
            # No trouble of this pack: the server reads none rightly.
            raise
        except (FormatError, StorageError) as error:
            return error

    def _keep(
        self, pack: PackId, index: PackIndex | FormatError | StorageError
    ) -> PackIndex | FormatError | StorageError:
        if not isinstance(index, PackIndex):
            self._troubles[pack] = index
            return index
        self._kept[pack] = index
        self._size += _weight(index)
        while self._size > self._limit and len(self._kept) > 1:
            self._size -= _weight(self._kept.popitem(last=False)[1])
        return index


def _weight(index: PackIndex) -> int:
    # With the order by digest that it may get.
    return _PACK_BYTES + (_BLOB_BYTES + 8) * len(index)


def read_checked_footer(blobs: BlobReader, pack: PackId) -> Footer:
    """Return a pack's footer; the header is checked too."""
    footer = blobs.read_footer(pack)[1]
    storage, name = blobs.storage, pack_name(pack)
    try:
        read_twice(storage, lambda: decode_header(storage.read(name, 0, HEADER_SIZE)))
    except FormatError as error:
        raise type(error)(f"{name} of {storage.url}: {error.message}") from None
    return footer
