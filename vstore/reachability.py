"""Everything that a root needs: the one enumerator behind gc, compact, fsck and accounting.

Roots are retained snapshots and the catalog's own pages. Pages and manifests that snapshots share are visited once.
Chunk refs come as columns, a manifest at a time, so that ten million of them take seconds. Whoever leaves out a kind
of reference here makes gc delete what is needed: tests/unit/test_reachability.py drops each kind once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.blobs.reader import BlobReader
from vstore.errors import FormatError, StorageError
from vstore.format.columns import U64
from vstore.format.envelope import BlobKind
from vstore.format.manifest import ChunkKind, Manifest, decode_manifest
from vstore.format.node import (
    Content,
    Node,
    NodeTag,
    TilePointer,
    Tiles,
    check_tile_key,
    decode_node,
    decode_pointer,
    decode_value,
    path_of,
    tile_of,
)
from vstore.format.page import Page
from vstore.format.record import SnapshotEntry
from vstore.format.refs import BlobRef
from vstore.ids import Digest, PackId
from vstore.tree import Place

_SNAPSHOTS_AHEAD = 16


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
        if len(self.sources) and (self.sources == self.sources[0]).all():
            yield self.packs[int(self.sources[0])], np.arange(len(self.sources))
            return
        order = np.argsort(self.sources, kind="stable")
        starts = np.flatnonzero(np.diff(self.sources[order], prepend=np.uint32(2**32 - 1)))
        for rows in np.split(order, starts[1:]) if len(order) else ():
            yield self.packs[int(self.sources[rows[0]])], rows


class Unreadable(NamedTuple):
    """A blob that is needed but can't be read, with the error that says why."""

    blob: NeededBlob
    error: FormatError | StorageError


Found: TypeAlias = NeededBlob | NeededChunks | Unreadable
LeafVisitor: TypeAlias = Callable[[Page, NeededBlob], Iterable[Iterator[Found]]]
"""Given a leaf and what it is: visits of what its entries need."""


class TilePlace(NamedTuple):
    """A tile of the array at `path`."""

    path: str
    tile: tuple[int, ...]
    extents: tuple[int, ...]


class Walk:
    """Visits what snapshots need, each metadata blob once, however many snapshots share it.

    A blob that lies in several packs is named once for each of them: whoever points at one needs that one. `spine`
    holds the digests of the metadata blobs above what was yielded last, the snapshot's first. A visitor may be
    overridden, as may `enters` (whether what is below a blob is visited; asked each time it is met) and `met_again`.
    """

    def __init__(self, blobs: BlobReader) -> None:
        self.blobs = blobs
        self.spine: list[Digest] = []
        self._seen: set[Digest] = set()
        self._named: set[bytes] = set()

    def iter_snapshots(self, entries: Sequence[SnapshotEntry]) -> Iterator[SnapshotEntry]:
        """Yield snapshots to be visited, while the metadata of the next ones are on their way from an object store."""
        ahead = iter(entries)
        for number, entry in enumerate(entries):
            for coming in islice(ahead, 1 if number else _SNAPSHOTS_AHEAD):
                if coming.ref.digest not in self._seen:
                    self.blobs.prefetch(coming.ref, coming.stretch_offset, coming.stretch_length)
            yield entry

    def snapshot(self, entry: SnapshotEntry) -> Iterator[Found]:
        """Yield all that a snapshot needs, but for what was yielded before."""

        def below() -> Iterable[Iterator[Found]]:
            root = self.blobs.snapshot(entry.ref).root
            return self.hierarchy(entry, root.ref) if root is not None else ()

        yield from self._metadata(
            NeededBlob(BlobKind.SNAPSHOT, entry.ref, f"snapshot {entry.id.hex()}"), below
        )

    def catalog_page(self, ref: BlobRef) -> Iterator[Found]:
        """Yield a page of the catalog itself, of those that `CatalogView.iter_pages` gives."""
        yield from self._named_once(NeededBlob(BlobKind.PAGE, ref, "a page of the catalog"))

    def enters(self, ref: BlobRef) -> bool:
        """Tell whether to visit what is below a metadata blob, which was just met."""
        if ref.digest in self._seen:
            return False
        self._seen.add(ref.digest)
        return True

    def met_again(self, digest: Digest) -> None:
        """Hear of a metadata blob that is not entered again; `spine` is what it was met below."""

    def _expect(self, refs: Iterable[BlobRef]) -> None:
        """Have an object store asked at once for what is about to be visited."""
        self.blobs.expect(ref for ref in refs if ref.digest not in self._seen)

    def expect_manifests(self, pointers: Iterable[TilePointer]) -> None:
        """Have an object store asked at once for the manifests of tiles; who does not read them overrides this."""
        self._expect(_manifests(pointers))

    def _named_once(self, needed: NeededBlob) -> Iterator[NeededBlob]:
        place = needed.ref.digest + needed.ref.pack
        if place not in self._named:
            self._named.add(place)
            yield needed

    def _metadata(
        self, needed: NeededBlob, below: Callable[[], Iterable[Iterator[Found]]]
    ) -> Iterator[Found]:
        """Yield a metadata blob and, the first time, all that is below it, which `below` finds by reading it."""
        yield from self._named_once(needed)
        digest = needed.ref.digest
        if not self.enters(needed.ref):
            self.met_again(digest)
            return
        self.spine.append(digest)
        try:
            visits = below()
        except (FormatError, StorageError) as error:
            yield Unreadable(needed, error)
            visits = ()
        for visit in visits:
            yield from visit
        self.spine.pop()

    # --- visitors: each yields one kind of what is needed ----------------------------------------------------

    def hierarchy(self, entry: SnapshotEntry, root: BlobRef) -> Iterable[Iterator[Found]]:
        """Visit the tree of a snapshot's nodes."""
        yield self.page(Place(root), f"the hierarchy of snapshot {entry.id.hex()}", self.leaf)

    def page(self, place: Place, what: str, visit_leaf: LeafVisitor) -> Iterator[Found]:
        """Visit a page of a tree, and those below it; `what` says what the tree holds."""
        needed = NeededBlob(BlobKind.PAGE, place.ref, f"a page of {what}")

        def below() -> Iterable[Iterator[Found]]:
            page = place.open(self.blobs)
            if page.level == 0:
                return visit_leaf(page, needed)
            children = [place.below(page, index) for index in range(len(page.keys))]
            self._expect(child.ref for child in children)
            return (self.page(child, what, visit_leaf) for child in children)

        yield from self._metadata(needed, below)

    def leaf(self, page: Page, holder: NeededBlob) -> Iterable[Iterator[Found]]:
        """Visit a page of nodes and plain values."""
        # Decoded to the end before anything is visited: a damaged page yields nothing but its damage.
        contents = [
            decode_value(value) if tag == NodeTag.VALUE else decode_node(value)
            for tag, value in zip(page.tags, page.values, strict=True)
        ]
        names = list(map(path_of, page.keys))
        few = (node.tiles for node in contents if isinstance(node, Node) and node.tiles is not None)
        self.expect_manifests(pointer for tiles in few for pointer in tiles.few.values())
        return (
            self.node(name, content, holder) if isinstance(content, Node) else self.value(name, content)
            for name, content in zip(names, contents, strict=True)
        )

    def value(self, name: str, content: Content) -> Iterator[Found]:
        """Visit a plain value."""
        if isinstance(content, BlobRef):
            yield NeededBlob(BlobKind.CHUNK, content, f"value {name!r}")

    def node(self, path: str, node: Node, holder: NeededBlob) -> Iterator[Found]:
        """Visit a node: its documents, and of an array its chunks."""
        for name, content in node.documents.items():
            yield from self.document(path, name, content)
        if node.tiles is not None and node.tiles.root is not None:
            yield from self.tile_tree(path, node.tiles, node.tiles.root.ref)
        elif node.tiles is not None:
            for key, pointer in node.tiles.few.items():
                yield from self.tile(path, tile_of(key), node.tiles.extents, pointer, holder)

    def document(self, path: str, name: str, content: Content) -> Iterator[Found]:
        """Visit a metadata document."""
        if isinstance(content, BlobRef):
            yield NeededBlob(BlobKind.DOCUMENT, content, f"document {name} of {path!r}")

    def tile_tree(self, path: str, tiles: Tiles, root: BlobRef) -> Iterator[Found]:
        """Visit the tree of an array's tile pointers."""

        def leaf(page: Page, holder: NeededBlob) -> Iterable[Iterator[Found]]:
            indices = [check_tile_key(key, tiles.extents) for key in page.keys]
            pointers = list(map(decode_pointer, page.values))
            self.expect_manifests(pointers)
            return (
                self.tile(path, tile, tiles.extents, pointer, holder)
                for tile, pointer in zip(indices, pointers, strict=True)
            )

        yield from self.page(Place(root), f"array {path!r}", leaf)

    def tile(
        self,
        path: str,
        tile: tuple[int, ...],
        extents: tuple[int, ...],
        pointer: TilePointer,
        holder: NeededBlob,
    ) -> Iterator[Found]:
        """Visit the layers of a tile; `holder` is the page that points at them."""
        place = TilePlace(path, tile, extents)
        for layer in pointer.layers:
            if isinstance(layer.manifest, BlobRef):
                yield from self.manifest(place, layer.manifest)
            else:
                yield from self.inline_manifest(place, layer.manifest, holder)

    def manifest(self, place: TilePlace, ref: BlobRef) -> Iterator[Found]:
        """Visit a manifest that is a blob."""
        needed = NeededBlob(BlobKind.MANIFEST, ref, f"a manifest of array {place.path!r}")
        yield from self._metadata(needed, lambda: (self.chunks(place, self.blobs.manifest(ref)),))

    def inline_manifest(self, place: TilePlace, data: bytes, holder: NeededBlob) -> Iterator[Found]:
        """Visit a manifest that is part of the page that points at it."""
        try:
            manifest = decode_manifest(data)
        except FormatError as error:
            yield Unreadable(holder, error)
            return
        yield from self.chunks(place, manifest)

    def chunks(self, place: TilePlace, manifest: Manifest) -> Iterator[NeededChunks]:
        """Visit the stored chunks of a manifest."""
        if not manifest.packs:
            return
        rows: slice | npt.NDArray[np.intp] = slice(None)
        if (manifest.kinds != ChunkKind.STORED).any():
            rows = np.flatnonzero(manifest.kinds == ChunkKind.STORED)
        yield NeededChunks(
            place.path,
            place.tile,
            place.extents,
            manifest.packs,
            manifest.sources[rows],
            manifest.digests[rows],
            manifest.offsets[rows],
            manifest.lengths[rows],
            manifest.positions[rows],
        )


def _manifests(pointers: Iterable[TilePointer]) -> Iterator[BlobRef]:
    """Yield the manifests that are blobs of their own."""
    for pointer in pointers:
        yield from (layer.manifest for layer in pointer.layers if isinstance(layer.manifest, BlobRef))
