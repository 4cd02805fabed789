"""Where a log catalog keeps the pages that its records have no room for: packs of their own, one for each batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vstore.blobs.reader import BlobReader
from vstore.format.page import Page, PageNames
from vstore.format.refs import BlobRef
from vstore.storage.base import Storage

if TYPE_CHECKING:
    from vstore.blobs.metadata import MetadataBatch


class PackSpill:
    """Reads and writes a catalog's pages. Pickles if its storage does."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._blobs = BlobReader(storage)

    def page(self, ref: BlobRef) -> Page:
        """Return a page."""
        return self._blobs.page(ref)

    def names(self, ref: BlobRef) -> PageNames:
        """Return only the keys and tags of a page."""
        return self._blobs.names(ref)

    def expect(self, refs: Iterable[BlobRef]) -> None:
        """Begin to fetch pages that will be read soon."""
        self._blobs.expect(refs)

    @contextmanager
    def write_pages(self) -> Iterator[MetadataBatch]:
        """Yield a sink for pages; they are durable when the block ends, and nothing is written if it raises."""
        from vstore.blobs.writer import BlobWriter

        writer = BlobWriter(self._storage)
        try:
            batch = writer.begin_metadata()
            yield batch
            if batch.length:
                writer.finish(batch)
        finally:
            writer.close()

    def __reduce__(self) -> tuple[type[PackSpill], tuple[Storage]]:
        return PackSpill, (self._storage,)
