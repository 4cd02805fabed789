"""Where compact put the blobs of packs that are gone: what the catalog said, and the footers of the new packs.

A reader meets relocations only when a pack is gone. From then on the answer is at hand, so that it costs one look at
the catalog for each replaced pack and one footer for each new one, and not more with each chunk.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from vstore.format.pack import Footer
from vstore.ids import Digest, PackId

MAX_MOVED_PACKS = 65_536
_PREFIX = np.dtype("<u8")


class Relocations:
    """The targets of replaced packs that a reader has met. Thread-safe."""

    def __init__(self) -> None:
        self._targets: OrderedDict[PackId, PackId] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, pack: PackId) -> PackId | None:
        # Nearly always empty: asked on the path of every read.
        return self._targets.get(pack) if self._targets else None

    def note(self, pack: PackId, target: PackId) -> None:
        with self._lock:
            self._targets[pack] = target
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
