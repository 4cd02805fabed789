"""Everything that a root needs: the one enumerator behind gc, compact, fsck and accounting.

Roots are retained snapshots and the catalog's own pages. Pages and manifests that snapshots share are visited once.
Chunk refs come as columns, a manifest at a time, so that ten million of them take seconds. Whoever leaves out a kind
of reference here makes gc delete what is needed: tests/unit/test_reachability.py drops each kind once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.reader import BlobReader
from vstore.errors import FormatError, StorageError
from vstore.format.columns import U64
from vstore.format.envelope import BlobKind
from vstore.format.manifest import ChunkKind, Manifest
from vstore.format.node import (
    Layer,
    Node,
    NodeTag,
    Tiles,
    decode_node,
    decode_pointer,
    decode_value,
    path_of,
    tile_of,
)
from vstore.format.page import Child, Page, decode_child
from vstore.format.record import SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import Digest, PackId
from vstore.worktree.arrays import read_layer


class NeededBlob(NamedTuple):
    """A blob that is needed; `what` says what it holds, for messages."""

    kind: BlobKind
    ref: BlobRef
    what: str


class NeededChunks(NamedTuple):
    """The stored chunks of one manifest, of the array at `path` and its tile `tile`.

    `packs` are those that the manifest names, `sources` u32[n] indices into them; `digests` u8[n, 32], `offsets` and
    `lengths` u64[n], `positions` u16[n] in the tile.
    """

    path: str
    tile: tuple[int, ...]
    extents: tuple[int, ...]
    packs: tuple[PackId, ...]
    sources: npt.NDArray[np.uint32]
    digests: npt.NDArray[np.uint8]
    offsets: U64
    lengths: U64
    positions: npt.NDArray[np.uint16]

    def by_pack(self) -> Iterator[tuple[PackId, npt.NDArray[np.intp]]]:
        """Yield each pack with the rows of the chunks in it."""
        order = np.argsort(self.sources, kind="stable")
        starts = np.flatnonzero(np.diff(self.sources[order], prepend=np.uint32(2**32 - 1)))
        for rows in np.split(order, starts[1:]) if len(order) else ():
            yield self.packs[int(self.sources[rows[0]])], rows


class Unreadable(NamedTuple):
    """A blob that is needed but can't be read, with the error that says why."""

    blob: NeededBlob
    error: FormatError | StorageError


class Walk:
    """Visits what snapshots need, each metadata blob once, however many snapshots share it.

    One that lies in several packs is named once for each of them: who points at one pack needs that one.
    """

    def __init__(self, blobs: BlobReader) -> None:
        self._blobs = blobs
        self._seen: set[Digest] = set()
        self._named: set[bytes] = set()

    def snapshot(self, entry: SnapshotEntry) -> Iterator[NeededBlob | NeededChunks | Unreadable]:
        """Yield all that a snapshot needs, but for what was yielded before."""
        needed = NeededBlob(BlobKind.SNAPSHOT, entry.ref, f"snapshot {entry.id.hex()}")
        yield from self._named_once(needed)
        if not self._is_new(needed.ref):
            return
        try:
            root = self._blobs.snapshot(entry.ref).root
        except (FormatError, StorageError) as error:
            yield Unreadable(needed, error)
            return
        yield from self._pages(root, f"the hierarchy of snapshot {entry.id.hex()}", self._leaf)

    def _is_new(self, ref: BlobRef) -> bool:
        if ref.digest in self._seen:
            return False
        self._seen.add(ref.digest)
        return True

    def _named_once(self, needed: NeededBlob) -> Iterator[NeededBlob]:
        place = needed.ref.digest + needed.ref.pack
        if place not in self._named:
            self._named.add(place)
            yield needed

    def _pages(
        self,
        root: Child | None,
        what: str,
        visit_leaf: Callable[[Page], Iterator[NeededBlob | NeededChunks | Unreadable]],
    ) -> Iterator[NeededBlob | NeededChunks | Unreadable]:
        pending = [] if root is None else [root.ref]
        while pending:
            ref = pending.pop()
            needed = NeededBlob(BlobKind.PAGE, ref, f"a page of {what}")
            yield from self._named_once(needed)
            if not self._is_new(ref):
                continue
            try:
                page = self._blobs.page(ref)
                below = [decode_child(value).ref for value in page.values] if page.level else []
                found = [] if page.level else list(visit_leaf(page))
            except (FormatError, StorageError) as error:
                yield Unreadable(needed, error)
                continue
            pending += reversed(below)
            yield from found

    def _leaf(self, page: Page) -> Iterator[NeededBlob | NeededChunks | Unreadable]:
        for key, tag, value in zip(page.keys, page.tags, page.values, strict=True):
            name = path_of(key)
            if tag == NodeTag.VALUE:
                content = decode_value(value)
                if isinstance(content, BlobRef):
                    yield NeededBlob(BlobKind.CHUNK, content, f"value {name!r}")
            else:
                yield from self._node(name, decode_node(value))

    def _node(self, path: str, node: Node) -> Iterator[NeededBlob | NeededChunks | Unreadable]:
        for name, content in node.documents.items():
            if isinstance(content, BlobRef):
                yield NeededBlob(BlobKind.DOCUMENT, content, f"document {name} of {path!r}")
        if node.tiles is not None:
            yield from self._tiles(path, node.tiles)

    def _tiles(self, path: str, tiles: Tiles) -> Iterator[NeededBlob | NeededChunks | Unreadable]:
        for key, pointer in tiles.few.items():
            for layer in pointer.layers:
                yield from self._layer(path, tile_of(key), tiles.extents, layer)

        def leaf(page: Page) -> Iterator[NeededBlob | NeededChunks | Unreadable]:
            for key, value in zip(page.keys, page.values, strict=True):
                for layer in decode_pointer(value).layers:
                    yield from self._layer(path, tile_of(key), tiles.extents, layer)

        yield from self._pages(tiles.root, f"array {path!r}", leaf)

    def _layer(
        self, path: str, tile: tuple[int, ...], extents: tuple[int, ...], layer: Layer
    ) -> Iterator[NeededBlob | NeededChunks | Unreadable]:

        needed = None
        if isinstance(layer.manifest, BlobRef):
            needed = NeededBlob(BlobKind.MANIFEST, layer.manifest, f"a manifest of array {path!r}")
            yield from self._named_once(needed)
            if not self._is_new(layer.manifest):
                return
        try:
            manifest = read_layer(self._blobs, layer)
        except (FormatError, StorageError) as error:
            if needed is None:
                raise
            yield Unreadable(needed, error)
            return
        yield from _chunks(path, tile, extents, manifest)


def _chunks(
    path: str, tile: tuple[int, ...], extents: tuple[int, ...], manifest: Manifest
) -> Iterator[NeededChunks]:
    if not manifest.packs:
        return
    rows: slice | npt.NDArray[np.intp] = slice(None)
    if (manifest.kinds != ChunkKind.STORED).any():
        rows = np.flatnonzero(manifest.kinds == ChunkKind.STORED)
    yield NeededChunks(
        path,
        tile,
        extents,
        manifest.packs,
        manifest.sources[rows],
        manifest.digests[rows],
        manifest.offsets[rows],
        manifest.lengths[rows],
        manifest.positions[rows],
    )
