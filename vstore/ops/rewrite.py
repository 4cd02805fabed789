"""rewrite_manifests: a commit after which reading a branch's head needs no layers and no relocations.

The hierarchy is written anew from its root: each tile's layers become one manifest, and every ref names the pack where
its blob is now. No chunk is copied, and nothing that can be read changes. Tiles are merged one by one and their
manifests handed to the session's writer, so that memory is bounded by the number of nodes and tiles, not of chunks.
Below: `session`, whose commit this is; above: `repository`, and `compact`, which asks for it at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from vstore import tree
from vstore.blobs.metadata import MetadataBatch
from vstore.blobs.reader import BlobReader
from vstore.changes.layering import merge_manifests, select_rows
from vstore.commit import PacksMovedError
from vstore.errors import ConflictError, MissingBlobError
from vstore.format.envelope import BlobKind
from vstore.format.manifest import ChunkKind, Manifest, encode_manifest
from vstore.format.node import (
    MAX_LAYER_INLINE_BYTES,
    Content,
    Layer,
    Node,
    NodeTag,
    TilePointer,
    Tiles,
    decode_node,
    decode_pointer,
    decode_value,
    encode_node,
    encode_pointer,
    encode_value,
    path_of,
)
from vstore.format.page import Child, Entry, Totals
from vstore.format.record import RefKind, relocations
from vstore.format.refs import BlobRef
from vstore.handle import Handle
from vstore.history import require_branch, require_entry
from vstore.ids import Digest, PackId, SnapshotId, blake3_digest
from vstore.keys.objects import pack_name
from vstore.ops.marks import Progress, silent
from vstore.session import Session
from vstore.storage.base import require_writable
from vstore.tree.writing import Change, update
from vstore.worktree import Worktree
from vstore.worktree.arrays import read_layer
from vstore.worktree.encode import MAX_TILES_IN_NODE, NODE_POLICY, TILE_POLICY, EncodedTree

_TRIES = 3

T = TypeVar("T")


def rewrite_head(
    handle: Handle,
    branch: str,
    message: str,
    metadata: Mapping[str, Any] | None = None,
    *,
    progress: Progress = silent,
) -> str:
    """Commit the branch's head rewritten, and return the new head's id; the old one's if there is nothing to gain.

    Raises `ConflictError` if the branch kept moving; the error's remedy is to try again later.
    """
    require_writable(handle.storage)
    for tries_left in reversed(range(_TRIES)):
        try:
            return _rewrite(handle, branch, message, metadata, progress)
        except (ConflictError, PacksMovedError):
            # The head that was rewritten is not the head any more, or compact was here.
            if not tries_left:
                raise
    raise AssertionError("unreachable")


def _rewrite(
    handle: Handle, branch: str, message: str, metadata: Mapping[str, Any] | None, progress: Progress
) -> str:
    with handle.catalog.reading() as view:
        head, epoch = require_entry(view, require_branch(view, branch)), view.epoch
        moved = relocations(view.pack_states(None))
    with Session(handle, head, branch=branch, epoch=epoch) as session:
        rewriter = Rewriter(session.tree, moved)
        rewriter.read(progress)
        if not rewriter.gains:
            return session.snapshot_id
        return session.commit_encoded(rewriter.encode, message, metadata)


def rewrite_heads(handle: Handle, message: str, progress: Progress = silent) -> dict[str, str]:
    """Rewrite the head of every branch; return the new heads by branch."""
    with handle.catalog.reading() as view:
        heads = dict(view.iter_refs(RefKind.BRANCH))
    made: dict[SnapshotId, str] = {}
    found = {}
    for branch, head in heads.items():
        if head in made:
            continue
        made[head] = rewrite_head(handle, branch, message, progress=progress)
        if made[head] != head.hex():
            found[branch] = made[head]
    return found


class _Tile(NamedTuple):
    """A merged tile: its manifest's slot in the writer and length, or the manifest itself where it is small."""

    key: bytes
    manifest: bytes | tuple[int, Digest, int]
    ref_count: int
    totals: Totals


class Rewriter:
    """Reads a worktree without edits and encodes it anew. `gains` tells whether that makes a difference."""

    def __init__(self, worktree: Worktree, moved: Mapping[PackId, PackId]) -> None:
        self._tree = worktree
        self._blobs: BlobReader = worktree.blobs
        self._moved = moved
        self._entries: list[Entry] = []
        self._tiles: dict[bytes, list[_Tile]] = {}
        # The packs that refs were pointed at, and all that the new snapshot points at without its parent doing so.
        self._targets: set[PackId] = set()
        self._named: set[PackId] = set()
        self.gains = False

    def read(self, progress: Progress = silent) -> None:
        """Merge all tiles; their manifests wait in the writer."""
        root = self._tree.nodes.root
        for ref, _ in tree.iter_pages(self._blobs, root, lambda ref: False):
            self.gains |= ref.pack in self._moved
        self._entries = list(tree.iter_entries(self._blobs, root))
        for done, entry in enumerate(self._entries):
            progress(done, len(self._entries), "nodes rewritten")
            if entry.tag != NodeTag.VALUE:
                tiles = decode_node(entry.value).tiles
                if tiles is not None:
                    self._tiles[entry.key] = [
                        tile for key, pointer in self._pointers(tiles) for tile in self._merged(key, pointer)
                    ]

    def _pointers(self, tiles: Tiles) -> Iterator[tuple[bytes, TilePointer]]:
        yield from tiles.few.items()
        for ref, page in tree.iter_pages(self._blobs, tiles.root, lambda ref: False):
            self.gains |= ref.pack in self._moved
            if page.level == 0:
                yield from zip(page.keys, map(decode_pointer, page.values), strict=True)

    def _merged(self, key: bytes, pointer: TilePointer) -> Iterator[_Tile]:
        layers = [read_layer(self._blobs, layer) for layer in pointer.layers]
        self.gains |= len(layers) > 1 or any(
            isinstance(layer.manifest, BlobRef) and layer.manifest.pack in self._moved
            for layer in pointer.layers
        )
        manifest = self._relocated(merge_manifests(layers, drop_deleted=True))
        if not len(manifest):
            return
        totals = Totals(manifest.live_count, manifest.live_bytes)
        data = encode_manifest(manifest)
        if len(data) <= MAX_LAYER_INLINE_BYTES:
            yield _Tile(key, data, len(manifest), totals)
        else:
            digest = blake3_digest(data)
            slot = self._tree.writer.put(data, digest, BlobKind.MANIFEST)
            yield _Tile(key, (slot, digest, len(data)), len(manifest), totals)

    def _relocated(self, manifest: Manifest) -> Manifest:
        """Return the refs with the packs in which their blobs are now."""
        if not any(pack in self._moved for pack in manifest.packs):
            return manifest
        self.gains = True
        names: dict[PackId, int] = {}
        offsets, sources = manifest.offsets.copy(), manifest.sources.copy()
        stored = manifest.kinds == ChunkKind.STORED
        for number, pack in enumerate(manifest.packs):
            rows = np.flatnonzero(stored & (manifest.sources == number))
            target = self._moved.get(pack)
            if target is not None:
                offsets[rows] = self._places(target, manifest.digests[rows])
            sources[rows] = names.setdefault(pack if target is None else target, len(names))
        moved = msgspec.structs.replace(manifest, offsets=offsets, sources=sources, packs=tuple(names))
        # In the order in which a manifest is written.
        return select_rows(moved, np.ones(len(moved), dtype=bool))

    def _places(self, target: PackId, digests: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
        indexed = self._blobs.footer(target)
        found = indexed.find_many(digests)
        if (found < 0).any():
            lost = digests[int(np.flatnonzero(found < 0)[0])].tobytes()
            raise MissingBlobError(
                f"blob {lost.hex()} should be in {pack_name(target)}, which replaced its pack, but is not. "
                "repo.fsck() names all that is damaged."
            )
        self._targets.add(target)
        return indexed.footer.offsets[found]

    # --- encoding --------------------------------------------------------------------------------------------

    def encode(self, worktree: Worktree, batch: MetadataBatch) -> EncodedTree:
        """Write all pages anew; the writer has placed the manifests."""
        self._named = set(self._targets)
        changes = [Change(entry.key, self._encoded(entry, batch)) for entry in self._entries]
        root = update(self._blobs, batch, None, changes, NODE_POLICY)
        if batch.blobs:
            self._named.add(batch.pack.pack)
        return EncodedTree(root, True, frozenset(self._named))

    def _encoded(self, entry: Entry, batch: MetadataBatch) -> Entry:
        name = path_of(entry.key)
        if entry.tag == NodeTag.VALUE:
            return encode_value(name, self._content(decode_value(entry.value)))
        node = decode_node(entry.value)
        documents = {document: self._content(content) for document, content in node.documents.items()}
        tiles = None if node.tiles is None else self._encoded_tiles(node.tiles, self._tiles[entry.key], batch)
        return encode_node(name, Node(node.node_id, documents, tiles))

    def _content(self, content: Content) -> Content:
        target = None if isinstance(content, bytes) else self._moved.get(content.pack)
        if target is None or isinstance(content, bytes):
            return content
        self._named.add(target)
        return self._blobs.find(content, target)

    def _encoded_tiles(self, old: Tiles, merged: list[_Tile], batch: MetadataBatch) -> Tiles:
        pointers = {
            tile.key: TilePointer((Layer(self._manifest(tile), tile.ref_count),), tile.totals)
            for tile in merged
        }
        if len(pointers) <= MAX_TILES_IN_NODE:
            return Tiles(old.extents, pointers)
        changes = [Change(key, encode_pointer(key, pointer)) for key, pointer in sorted(pointers.items())]
        root: Child | None = update(self._blobs, batch, None, changes, TILE_POLICY)
        return Tiles(old.extents, {}, root)

    def _manifest(self, tile: _Tile) -> bytes | BlobRef:
        if isinstance(tile.manifest, bytes):
            return tile.manifest
        slot, digest, length = tile.manifest
        writer = self._tree.writer
        packs, offsets = writer.slots.locate(np.array([slot], dtype=np.uint64))
        pack = writer.slots.pack_ids[int(packs[0])]
        self._named.add(pack)
        return BlobRef(digest, pack, int(offsets[0]), length)
