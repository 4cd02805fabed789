"""Where compact put the blobs of packs that are gone: what the catalog said, and the footers of the new packs.

A reader meets relocations only when a pack is gone. From then on the answer is at hand, so that it costs one look at
the catalog for each replaced pack and one footer for each new one, and not more with each chunk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from vstore.format.pack import Footer
from vstore.ids import Digest, PackId
from vstore.locks import ForkSafeLock

MAX_MOVED_PACKS = 65_536
_PREFIX = np.dtype("<u8")


class Relocations:
    """The targets of replaced packs that a reader has met. Thread-safe."""

    def __init__(self) -> None:
        self._targets: OrderedDict[PackId, PackId] = OrderedDict()
        self._lock = ForkSafeLock(threading.Lock)

    def get(self, pack: PackId) -> PackId | None:
        # Nearly always empty: asked on the path of every read.
        return self._targets.get(pack) if self._targets else None

    def note(self, targets: Mapping[PackId, PackId]) -> None:
        with self._lock:
            self._targets.update(targets)
            while len(self._targets) > MAX_MOVED_PACKS:
                self._targets.popitem(last=False)


class IndexedFooter:
    """A footer in which blobs are found by digest."""

    def __init__(self, footer: Footer) -> None:
        self.footer = footer
        prefixes = np.ascontiguousarray(footer.digests[:, : _PREFIX.itemsize]).view(_PREFIX).reshape(-1)
        self._order = np.argsort(prefixes, kind="stable")
        self._prefixes = prefixes[self._order]

    @property
    def memory_bytes(self) -> int:
        return 80 * len(self.footer) + 400

    def find(self, digest: Digest) -> int | None:
        """Return the row of a blob, or None."""
        prefix = np.frombuffer(digest, dtype=_PREFIX, count=1)[0]
        at = int(np.searchsorted(self._prefixes, prefix))
        while at < len(self._prefixes) and self._prefixes[at] == prefix:
            row = int(self._order[at])
            if self.footer.digests[row].tobytes() == digest:
                return row
            at += 1
        return None

    def find_many(self, digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Return the rows of blobs with the digests u8[n, 32]; -1 for those that are not here."""
        rows = np.full(len(digests), -1, dtype=np.int64)
        if not len(self._prefixes) or not len(digests):
            return rows
        wanted = np.ascontiguousarray(digests[:, : _PREFIX.itemsize]).view(_PREFIX).reshape(-1)
        at = np.minimum(np.searchsorted(self._prefixes, wanted), len(self._prefixes) - 1)
        candidates = self._order[at]
        same = (self.footer.digests[candidates] == digests).all(axis=1)
        rows[same] = candidates[same]
        for row in np.flatnonzero(~same).tolist():
            # Absent, or another digest begins with the same eight bytes.
            found = self.find(Digest(digests[row].tobytes()))
            if found is not None:
                rows[row] = found
        return rows
