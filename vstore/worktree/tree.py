"""The worktree: a snapshot seen through a session's edits, as a map from Zarr keys to bytes.

Every key is a document of a node, a chunk of an array, or a plain value (`routes`). Reads take no lock but for a
moment; edits hold the one lock while they change the tables, never while they move chunk bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from vstore.blobs.once import RequestNeededError, without_waiting
from vstore.blobs.reader import BlobReader
from vstore.blobs.virtual import VirtualReader
from vstore.changes.dictionaries import Dictionaries
from vstore.changes.pending import PendingKind, PendingRef
from vstore.errors import InternalError, InvalidInputError, NodeNotFoundError, SessionStateError
from vstore.format.manifest import MAX_INLINE_BYTES, ChunkKind
from vstore.format.node import MAX_CONTENT_INLINE_BYTES
from vstore.format.page import Child
from vstore.format.refs import BlobRef
from vstore.ids import BytesLike, Digest, blake3_digest
from vstore.keys.zarr import split_document_key
from vstore.locks import ForkSafeLock
from vstore.worktree.arrays import ArrayState
from vstore.worktree.chunk_keys import ChunkKeys, Place, find_place
from vstore.worktree.contents import (
    ChunkSource,
    Content,
    ContentReader,
    OwnBlob,
    OwnBlobs,
    source_length,
)
from vstore.worktree.nodes import NodeState, NodeTable
from vstore.worktree.routes import Chunk, Document, Route, Value, route_in_array

if TYPE_CHECKING:
    from vstore.blobs.writer import BlobWriter


Known: TypeAlias = dict[str, ChunkKeys]

_OTHER = (Document, Value)
_UNCHANGED = PendingRef(PendingKind.UNCHANGED)
_NOT_STORED = -1


class Worktree:
    """A snapshot and what a session changed. `writer` is None where nothing may be written.

    `own` reads the session's own blobs where there is no writer.
    """

    def __init__(
        self,
        blobs: BlobReader,
        root: Child | None,
        *,
        virtual: VirtualReader,
        own: OwnBlobs | None = None,
        writer: BlobWriter | None = None,
        inline_bytes: int = 512,
    ) -> None:
        self.blobs = blobs
        self.own = own if writer is None else writer
        self._writer = writer
        self.contents = ContentReader(blobs, own if writer is None else writer.slots, virtual)
        self.lock = ForkSafeLock()
        self.nodes = NodeTable(blobs, self.contents, root, self.lock)
        self.dictionaries = Dictionaries()
        self.mutations = 0
        self.spilling = ForkSafeLock(threading.Lock)
        """Held by the thread that moves pending refs out of memory."""
        self.room_until = 0
        """After how many edits to look whether pending refs take too much memory."""
        self.closed: str | None = None
        """Why nothing may be edited any more, or just now."""
        self.inline_bytes = min(inline_bytes, MAX_INLINE_BYTES)

    @property
    def writer(self) -> BlobWriter:
        if self._writer is None:
            raise InternalError("a worktree without a writer was written to")
        return self._writer

    def begin_edit(self) -> None:
        """Count an edit, or raise if there may be none. The caller holds the lock."""
        if self.closed is not None:
            raise SessionStateError(self.closed)
        self.writer.check_usable()
        self.mutations += 1

    # --- routing ---------------------------------------------------------------------------------------------

    def route(self, key: str) -> Route:
        """Return what `key` names."""
        document = split_document_key(key)
        if document is not None:
            return Document(*document)
        why = None
        for owner in self.nodes.iter_owners(key):
            route = route_in_array(key, owner)
            if isinstance(route, Chunk):
                return route
            why = why or route
        return Value(key, why)

    def place(self, key: str) -> Place | Document | Value:
        """Return what `key` names, and of a chunk where it is: what `route` does, quickly for known arrays."""
        known = self.nodes.arrays
        place = find_place(known, key)
        if place is not None:
            return place
        route = self.route(key)
        if not isinstance(route, Chunk):
            return route
        if self.blobs.storage.is_local and route.path not in known:
            # On an object store it could take a request to see that no node lies below the array.
            self.nodes.remember_array(known, ChunkKeys(route.node, route.array))
        return (route.node, route.array, *route.array.locate(route.at))

    # --- reading ---------------------------------------------------------------------------------------------

    def get(self, key: str) -> BytesLike | None:
        """Return all bytes of `key`, or None. What is returned may show a mapped file; it can't be written to."""
        found = self.get_soon(key)
        return found() if callable(found) else found

    def get_soon(self, key: str) -> BytesLike | Callable[[], BytesLike] | None:
        """Do what `get` does, or return what will, where that takes longer than handing it to another thread."""
        place = self.place(key)
        if not isinstance(place, _OTHER):
            _, array, tile, position = place
            if not self._may_be_edited(array):
                found = array.base_row(tile, position)
                if found is None:
                    return None
                layer, row = found
                if self.contents.takes_long(layer, row):
                    return partial(self.contents.read_row, layer, row, key)
                return self.contents.read_row(layer, row, key)
        source = self._source(place, key)
        return None if source is None else self.contents.read(source, None, f"key {key!r}")

    def find(self, key: str) -> ChunkSource | BlobRef | None:
        """Return where the bytes of `key` are, or None."""
        return self._source(self.place(key), key)

    def find_at_once(self, key: str) -> ChunkSource | BlobRef | None:
        """Do what `find` does, or raise `RequestNeededError` if an object store would have to be waited for."""
        if not self.lock.acquire(blocking=False):
            # A commit may be at work, or a thread that is just adding a ref.
            raise RequestNeededError
        try:
            with without_waiting():
                return self.find(key)
        finally:
            self.lock.release()

    def _may_be_edited(self, array: ArrayState) -> bool:
        # Edits are counted before anything is changed; where none was, there is nothing to hold the lock for.
        return self.mutations > 0 or array.is_edited

    def _source(self, route: Place | Document | Value, key: str) -> ChunkSource | BlobRef | None:
        if not isinstance(route, _OTHER):
            _, array, tile, position = route
            if not self._may_be_edited(array):
                return array.find_base(tile, position)
            with self.lock:
                pending = array.pending_chunk(tile, position, self.dictionaries)
                held = self._held(pending.source)
            return array.resolve(tile, position, pending) if held is None else held
        content = self._content(route, key)
        if isinstance(content, OwnBlob):
            with self.lock:
                # Again, as it may have been overwritten.
                content = self._content(route, key)
                held = self._held(content)
            return content if held is None else held
        return content

    def _content(self, route: Document | Value, key: str) -> Content | None:
        if isinstance(route, Document):
            node = self.nodes.node(route.path)
            if node is not None and route.name in node.documents:
                return node.documents[route.name]
        return self.nodes.value(key)

    def _held(self, source: ChunkSource | BlobRef | None) -> bytes | None:
        """Return bytes that wait in memory: they would be dropped as soon as their key is overwritten.

        The caller holds the lock.
        """
        if self._writer is None or not isinstance(source, OwnBlob):
            return None
        return self._writer.slots.held(source.slot)

    def size(self, key: str) -> int | None:
        """Return the length in bytes of `key`, or None; reads no data."""
        source = self.find(key)
        if source is None:
            return None
        return source.length if isinstance(source, BlobRef) else source_length(source)

    def read(self, key: str) -> bytes | None:
        """Return all bytes of `key`, or None."""
        source = self.find(key)
        return None if source is None else bytes(self.contents.read(source, None, f"key {key!r}"))

    def read_content(self, content: Content, what: str) -> bytes:
        return self.contents.read_content(content, what)

    def documents(self, node: NodeState) -> dict[str, bytes]:
        """Return the bytes of a node's documents by name."""
        return {
            name: self.read_content(content, f"document {name} of {node.path!r}")
            for name, content in node.documents.items()
        }

    def unedited(self) -> Worktree:
        """Return the base snapshot as a worktree without edits, into which nothing can be written."""
        return Worktree(self.blobs, self.nodes.root, virtual=self.contents.virtual)

    # --- writing ---------------------------------------------------------------------------------------------

    def set(self, key: str, data: BytesLike) -> None:
        """Store `data` under `key`."""
        known = self.nodes.arrays
        route = self.place(key)
        if not isinstance(route, _OTHER):
            self._set_chunk(known, route, key, data)
        elif isinstance(route, Document):
            with self.lock:
                self.begin_edit()
                base = self.nodes.base_node(route.path)
                before = None if base is None else base.documents.get(route.name)
                self._put_document(route, self._to_content(data, before))
        elif route.why is not None:
            raise InvalidInputError(f"{key!r} can't be stored: {route.why}.")
        else:
            content = self._to_content(data, self.nodes.base_value(key))
            with self.lock:
                self.begin_edit()
                self.put_value(key, content)

    def _put_document(self, document: Document, content: Content | None) -> None:
        # A process that only reads needs no reshaping.
        from vstore.worktree.reshape import put_documents

        put_documents(self, document.path, {document.name: content})

    def _set_chunk(self, known: Known, place: Place, key: str, data: BytesLike) -> None:
        length = len(data)
        if length == 0:
            raise InvalidInputError(
                f"{key!r} can't be stored with no bytes: no codec makes an empty chunk. Delete the key to make the "
                "chunk read as fill value."
            )
        node, array, tile_key, position = place
        digest, slot = None, _NOT_STORED
        if length <= self.inline_bytes:
            is_same = self._known_base(array, tile_key, position) == data
        else:
            # Before any lock is taken: this is where the time goes.
            digest = blake3_digest(data)
            is_same = self._base_digest(array, tile_key, position) == digest
            if not is_same:
                slot = self.writer.put(data, digest, order=(node.path, tile_key, position))
        with self.lock:
            is_current = self._begin_chunk_edit(known, place)
            if is_current:
                tile = array.tile_for_edit(tile_key)
                if is_same:
                    tile.set(position, _UNCHANGED)
                elif digest is None:
                    tile.set_inline(position, data)
                else:
                    tile.set_own(position, slot, length, digest)
        if not is_current:
            # Another thread deleted or replaced the array meanwhile: what the key names now may be something else.
            if slot != _NOT_STORED:
                self.writer.release(slot)
            self.set(key, data)

    def _base_digest(self, array: ArrayState, tile_key: bytes, position: int) -> Digest | None:
        """Return the digest of the stored chunk that the base holds, if that is known without a request."""
        if not self._base_is_known(array, tile_key):
            return None
        found = array.base_row(tile_key, position)
        if found is None or found[0].kinds[found[1]] != ChunkKind.STORED:
            return None
        return found[0].digest(found[1])

    def _known_base(self, array: ArrayState, tile_key: bytes, position: int) -> ChunkSource | None:
        """Return what the base holds at a chunk, if that is known without asking an object store."""
        return array.find_base(tile_key, position) if self._base_is_known(array, tile_key) else None

    def _base_is_known(self, array: ArrayState, tile_key: bytes) -> bool:
        if array.base is None:
            return False
        return self.blobs.storage.is_local or array.base_tile_is_cached(tile_key)

    def _begin_chunk_edit(self, known: Known, place: Place) -> bool:
        """Count the edit, keep the array among the drafts, and let go of what the session had at the chunk.

        `known` was `nodes.arrays` before the place was looked up. False if the place is not what its key names any
        more. The caller holds the lock.
        """
        node, array, tile_key, position = place
        nodes = self.nodes
        if nodes.arrays is not known:
            # Some node changed since: perhaps this one.
            now = nodes.node(node.path)
            if now is None or now.array is not array or not array.holds(tile_key, position):
                return False
            node = now
        self.begin_edit()
        if nodes.drafts.get(node.path) is not node:
            nodes.drafts[node.path] = node
        pending = array.pending.get(tile_key)
        old = None if pending is None else pending.get(position)
        if old is not None:
            self.release(old)
        return True

    def begin_chunk_edits(self, path: str, array: ArrayState) -> None:
        """Count an edit of many chunks and keep the array among the drafts; raise if it is not at `path` any more.

        The caller holds the lock.
        """
        node = self.nodes.node(path)
        if node is None or node.array is not array:
            raise NodeNotFoundError(f"the array at {path!r} was deleted or replaced while it was written to")
        self.begin_edit()
        self.nodes.drafts[path] = node

    def release(self, ref: PendingRef) -> None:
        """Let go of a pending ref's bytes."""
        if ref.kind == PendingKind.OWN:
            self.writer.release(ref.at)

    def _to_content(self, data: BytesLike, base: Content | None) -> Content:
        """Store the bytes of a document or value, unless they are what the base holds under the same key."""
        if len(data) <= MAX_CONTENT_INLINE_BYTES:
            return bytes(data)
        digest = blake3_digest(data)
        if isinstance(base, BlobRef) and base.digest == digest:
            return base
        return OwnBlob(self.writer.put(data, digest), len(data), digest)

    def put_value(self, key: str, content: Content | None) -> None:
        """Set or delete a plain value. The caller holds the lock."""
        old = self.nodes.values.get(key)
        if isinstance(old, OwnBlob) and old != content:
            self.writer.release(old.slot)
        if content is None and self.nodes.base_value(key) is None:
            self.nodes.values.pop(key, None)
        else:
            self.nodes.values[key] = content

    # --- deleting --------------------------------------------------------------------------------------------

    def delete(self, key: str) -> None:
        """Delete `key`; nothing happens if it is absent or lies outside an array's grid."""
        known = self.nodes.arrays
        route = self.place(key)
        with self.lock:
            if not isinstance(route, _OTHER):
                self.delete_chunk(known, route)
            elif isinstance(route, Document):
                node = self.nodes.node(route.path)
                if self.find(key) is not None:
                    self.begin_edit()
                    if node is None or route.name not in node.documents:
                        self.put_value(key, None)
                    else:
                        self._put_document(route, None)
            elif self.nodes.value(key) is not None:
                self.begin_edit()
                self.put_value(key, None)

    def delete_chunk(self, known: Known, place: Place) -> None:
        """Delete a chunk, if there is one; `known` as for `_begin_chunk_edit`. The caller holds the lock."""
        _, array, tile_key, position = place
        pending = array.pending_chunk(tile_key, position, self.dictionaries)
        source = array.resolve(tile_key, position, pending)
        if source is not None and self._begin_chunk_edit(known, place):
            array.tile_for_edit(tile_key).set(position, PendingRef(PendingKind.DELETED))

    def delete_folder(self, folder: str) -> None:
        """Delete everything below `folder`, and the node at it."""
        from vstore.worktree.clearing import clear

        with self.lock:
            self.begin_edit()
            clear(self, folder)

    # --- listing ---------------------------------------------------------------------------------------------

    def values_below(self, folder: str) -> Iterator[str]:
        """Yield plain values below `folder`, quickly if there are none."""
        prefix = f"{folder}/" if folder else ""
        with self.lock:
            edited = any(key.startswith(prefix) for key in self.nodes.values)
        if not edited and not self.nodes.has_base_values(prefix):
            return iter(())
        return self.nodes.iter_values(prefix)
