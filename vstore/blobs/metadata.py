"""The metadata of one commit, on its way to the end of the commit's last pack.

Its blobs name each other by place, so that each gets its place before it is written. Below: `packing`; `writer` begins
and finishes batches, `worktree.encode` and `tree` fill them.
"""

from __future__ import annotations

from vstore.blobs.packing import NO_SLOT, OpenPack
from vstore.blobs.reader import remember_page
from vstore.format.envelope import BlobKind
from vstore.format.page import Page
from vstore.format.refs import BlobRef
from vstore.ids import blake3_digest


class MetadataBatch:
    """Metadata blobs of one commit at the end of a pack, with their places already known.

    Where packs are staged files they are written as they come, at most `hold_bytes` of them being in memory; elsewhere
    all are (None), as is the pack.
    """

    def __init__(self, pack: OpenPack, hold_bytes: int | None = None) -> None:
        self.pack = pack
        self.start = pack.end
        self._hold_bytes = hold_bytes
        self._held_from = pack.end
        self.blobs: list[bytes] = []
        """Those that are not written yet: the last ones."""

    def add(self, kind: BlobKind, data: bytes) -> BlobRef:
        """Append a blob and return its ref."""
        digest = blake3_digest(data)
        offset = self.pack.place(NO_SLOT, kind, digest, len(data))
        self.blobs.append(data)
        if self._hold_bytes is not None and self.pack.end - self._held_from > self._hold_bytes:
            self.pack.write(self._held_from, self.blobs)
            self._held_from, self.blobs = self.pack.end, []
        return BlobRef(digest, self.pack.pack, offset, len(data))

    def add_page(self, data: bytes, page: Page) -> BlobRef:
        """Append a page: what `vstore.tree` asks of a page sink. The next commit of this process starts from it."""
        ref = self.add(BlobKind.PAGE, data)
        remember_page(ref.digest, page)
        return ref

    @property
    def length(self) -> int:
        """The bytes from the first metadata blob to the end of the last."""
        return self.pack.end - self.start

    def drop(self) -> None:
        """Take the blobs back: the commit did not come about."""
        self.pack.drop_from(self.start)
        self.blobs = []
