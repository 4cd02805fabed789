"""Where the bytes of documents, values and chunks are, and how they are read: one reader for a worktree.

Bytes are at hand, in a sealed pack (`BlobRef`), in this session's writer (`OwnBlob`), or in somebody else's file
(`VirtualRange`).
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import msgspec

from vstore.blobs.reader import BlobReader, ByteSpan
from vstore.blobs.virtual import VirtualRange, VirtualReader
from vstore.blobs.waiting import run_waiting
from vstore.changes.layering import IndexedLayer
from vstore.errors import CorruptionError, ObjectNotFoundError
from vstore.format.manifest import ChunkKind
from vstore.format.refs import BlobRef
from vstore.ids import BytesLike, Digest, blake3_digest
from vstore.keys.objects import pack_name

HASH_ELSEWHERE_BYTES = 512 * 1024
"""Hashing this much takes as long as handing it to another thread, 70 us; a hash lets go of the interpreter's lock."""

_STORED = int(ChunkKind.STORED)


class OwnBlob(msgspec.Struct, frozen=True):
    """A blob of this session: its slot in the session's writer."""

    slot: int
    length: int
    digest: Digest


class OwnBlobs(Protocol):
    """Where a session's own blobs are read from: its writer, or a frozen copy of it in another process."""

    def read(self, slot: int, length: int) -> memoryview:
        """Return a blob's bytes."""


Content: TypeAlias = bytes | BlobRef | OwnBlob
"""The bytes of a document or plain value."""


class StoredChunk(msgspec.Struct, frozen=True):
    """A chunk in a pack; in row `row` of `layer`, if it is one of the base's."""

    ref: BlobRef
    layer: IndexedLayer | None = None
    row: int = 0

    @property
    def is_verified(self) -> bool:
        """Whether this process checked the chunk's digest before."""
        return self.layer is not None and bool(self.layer.verified[self.row])

    def mark_verified(self) -> None:
        if self.layer is not None:
            self.layer.verified[self.row] = 1

    @property
    def reach(self) -> int:
        """The end of the last chunk that the layer has in the same pack: what may be read next lies before it."""
        return 0 if self.layer is None else self.layer.reach(self.row)


ChunkSource: TypeAlias = bytes | StoredChunk | OwnBlob | VirtualRange
"""Where one chunk's bytes are."""


def content_length(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.length


def source_length(source: ChunkSource) -> int:
    if isinstance(source, bytes):
        return len(source)
    return source.ref.length if isinstance(source, StoredChunk) else source.length


def base_source(layer: IndexedLayer, row: int) -> ChunkSource:
    """Return where the bytes of a chunk in a layer are."""
    manifest = layer.manifest
    kind, offset, length = layer.kinds[row], layer.offsets[row], layer.lengths[row]
    if kind == ChunkKind.STORED:
        return StoredChunk(BlobRef(layer.digest(row), layer.pack(row), offset, length), layer, row)
    if kind == ChunkKind.INLINE:
        return manifest.inline[offset : offset + length]
    check = int(manifest.checks[row])
    checksum = manifest.checksums[check - 1] if check else None
    return VirtualRange(manifest.locations[layer.sources[row]], offset, length, checksum)


class ContentReader:
    """Reads whatever a worktree points to. `what` is a phrase for error messages, such as "chunk a/c/0"."""

    def __init__(self, blobs: BlobReader, own: OwnBlobs | None, virtual: VirtualReader) -> None:
        self.blobs = blobs
        self.own = own
        self.virtual = virtual
        self._storage = blobs.storage
        self._is_local = blobs.storage.is_local

    def read_content(self, content: Content, what: str) -> bytes:
        """Return the bytes of a document or value."""
        if isinstance(content, bytes):
            return content
        if isinstance(content, OwnBlob):
            return bytes(self._read_own(content))
        return bytes(self.blobs.metadata(content, what))

    def read(self, source: ChunkSource | BlobRef, span: ByteSpan | None, what: str) -> BytesLike:
        """Return a source's bytes, or a span of them (within its length)."""
        if isinstance(source, BlobRef):
            source = StoredChunk(source)
        if isinstance(source, StoredChunk):
            return self._read_stored(source, span, what)
        data = self._read_unstored(source)
        return data if span is None else memoryview(data)[span.start : span.stop]

    def read_row(self, layer: IndexedLayer, row: int, key: str) -> BytesLike:
        """Return the bytes of the chunk `key`, which is in this row of a layer: the shortest way on a local disk."""
        if self._is_local and layer.kinds[row] == _STORED:
            try:
                data = self._storage.read(pack_name(layer.pack(row)), layer.offsets[row], layer.lengths[row])
                if layer.verified[row]:
                    return data
                if blake3_digest(data) == layer.digest(row):
                    layer.verified[row] = 1
                    return data
            except (ObjectNotFoundError, CorruptionError):
                pass
            # The pack is gone or damaged: `read` finds the blob elsewhere, or says what is wrong.
        return self.read(base_source(layer, row), None, f"key {key!r}")

    def takes_long(self, layer: IndexedLayer, row: int) -> bool:
        """Tell whether `read_row` has to hash so much that another thread should do it, where there is one to go on."""
        return (
            layer.lengths[row] >= HASH_ELSEWHERE_BYTES
            and not layer.verified[row]
            and layer.kinds[row] == _STORED
            and self._is_local
        )

    async def read_async(self, source: ChunkSource | BlobRef, span: ByteSpan | None, what: str) -> BytesLike:
        """Do what `read` does, without blocking the event loop for long."""
        if isinstance(source, BlobRef):
            source = StoredChunk(source)
        if self._is_local or isinstance(source, bytes):
            return self.read(source, span, what)
        if not isinstance(source, StoredChunk):
            # It may have to wait, for a pack of this session or for somebody else's file.
            return await run_waiting(self.read, source, span, what)
        if span is not None:
            return await self.blobs.span_async(source.ref, span, what)
        data = await self.blobs.whole_async(source.ref, what, source.reach)
        source.mark_verified()
        return data

    def _read_stored(self, source: StoredChunk, span: ByteSpan | None, what: str) -> BytesLike:
        # What lies on a local disk is trusted once it was verified; what comes over a network is not.
        is_trusted = self._is_local and source.is_verified
        if span is not None:
            return self.blobs.span(source.ref, span, what, verify=not is_trusted)
        reach = 0 if self._is_local else source.reach
        data = self.blobs.whole(source.ref, what, verify=not is_trusted, reach=reach)
        source.mark_verified()
        return data

    def _read_unstored(self, source: bytes | OwnBlob | VirtualRange) -> BytesLike:
        if isinstance(source, bytes):
            return source
        if isinstance(source, OwnBlob):
            return self._read_own(source)
        return self.virtual.read(source)

    def _read_own(self, blob: OwnBlob) -> memoryview:
        assert self.own is not None, "only a session with a writer has own blobs"
        return self.own.read(blob.slot, blob.length)
