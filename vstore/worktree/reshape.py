"""Making, changing and dissolving nodes as their documents come and go.

Zarr writes keys in any order: chunks may come before the document that makes them chunks, and a document may change
what the keys below it mean. So when an array appears, plain values below it that spell chunk keys become its chunks;
when it disappears while they stay, they become plain values again. The caller holds the worktree's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vstore.changes.documents import ArraySpec, NodeSpec, parse_documents
from vstore.changes.pending import PendingKind, PendingRef
from vstore.changes.tiling import choose_extents
from vstore.errors import InvalidInputError
from vstore.format.node import Node
from vstore.ids import blake3_digest, new_node_id
from vstore.keys.zarr import DOCUMENT_NAMES, NotAChunk, join_key
from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import ChunkSource, Content, OwnBlob, StoredChunk, content_length
from vstore.worktree.nodes import NodeState

if TYPE_CHECKING:
    from vstore.blobs.virtual import VirtualRange
    from vstore.worktree.tree import Worktree


def put_documents(tree: Worktree, path: str, changes: dict[str, Content | None]) -> None:
    """Set (or, with None, delete) documents of `path`, and make of the path what its documents then say."""
    nodes = tree.nodes
    old = nodes.node(path)
    documents = _all_documents(tree, path, old)
    for name, content in changes.items():
        documents.pop(name, None)
        if content is not None:
            documents[name] = content
    spec = parse_documents({n: tree.read_content(c, join_key(path, n)) for n, c in documents.items()})
    # Before anything is changed, for it may be refused.
    released = [] if old is None or _keeps_chunks(old, spec) else _chunks_as_values(tree, old)
    is_new_array = old is None or old.array is None or not _keeps_chunks(old, spec)
    if spec is not None and spec.array is not None and is_new_array:
        refuse_shared_keys(tree, path, spec.array)
    tree.nodes.values.update(released)
    mine = {name: content for name, content in documents.items() if spec and name in spec.documents}
    for name in DOCUMENT_NAMES:
        loose = None if name in mine else documents.get(name)
        tree.put_value(join_key(path, name), loose)
    if spec is None:
        if old is not None:
            # Its documents are gone; its chunks' keys stay, as plain values.
            nodes.drafts[path] = None
    else:
        nodes.drafts[path] = _reshaped(tree, path, old, mine, spec)


def _all_documents(tree: Worktree, path: str, node: NodeState | None) -> dict[str, Content]:
    """Return the documents at `path`, whether they belong to a node or are plain values."""
    documents = {} if node is None else dict(node.documents)
    for name in DOCUMENT_NAMES:
        if name not in documents:
            content = tree.nodes.value(join_key(path, name))
            if content is not None:
                documents[name] = content
    return documents


def _reshaped(
    tree: Worktree, path: str, old: NodeState | None, documents: dict[str, Content], spec: NodeSpec
) -> NodeState:
    """Return the node at `path` with these documents, continuing `old` where it can."""
    if spec.array is None:
        if old is not None and old.array is None:
            return NodeState(path, old.node_id, documents, spec, None)
        base = _left_behind(tree, path)
        node_id = base.node_id if base is not None and base.tiles is None else new_node_id()
        return NodeState(path, node_id, documents, spec, None)
    if old is not None and old.array is not None and _spells_alike(old.array.spec, spec.array):
        tree.writer.release_many(old.array.take_spec(spec.array, tree.dictionaries))
        return NodeState(path, old.node_id, documents, spec, old.array)
    array = _new_array(tree, path, spec.array)
    state = NodeState(path, array.node_id, documents, spec, array)
    tree.nodes.drafts[path] = state
    _adopt_values(tree, state, array)
    return state


def refuse_shared_keys(tree: Worktree, path: str, spec: ArraySpec) -> None:
    """Raise `InvalidInputError` if chunks of a new array would be spelt like those of an array above it."""
    if spec.encoding is None:
        return
    key = join_key(path, spec.encoding.encode((0,) * spec.ndim))
    for outer in tree.nodes.iter_owners(path):
        if outer.array is None or outer.array.spec.encoding is None:
            continue
        if not isinstance(
            outer.array.spec.encoding.decode(key[len(outer.path) + 1 if outer.path else 0 :]), NotAChunk
        ):
            raise InvalidInputError(
                f"{path!r} can't be an array: its chunks would have the keys of array {outer.path!r}'s chunks. Put it "
                "elsewhere."
            )


def _new_array(tree: Worktree, path: str, spec: ArraySpec) -> ArrayState:
    """Return a state without chunks; it continues the base's array if chunks of both would mean the same."""
    base = _left_behind(tree, path)
    if base is not None and base.tiles is not None:
        before = _base_spec(tree, path, base)
        if before is not None and before.identity == spec.identity and _spells_alike(before, spec):
            array = ArrayState(tree.blobs, base.node_id, spec, base.tiles.extents, base.tiles, tree.lock)
            array.cleared = True
            return array
    grid = spec.grid if spec.grid is not None else (1,) * spec.ndim
    return ArrayState(tree.blobs, new_node_id(), spec, choose_extents(grid), None, tree.lock)


def _left_behind(tree: Worktree, path: str) -> Node | None:
    """Return the base's node at `path`, unless it lives on at another path."""
    base = tree.nodes.base_node(path)
    return None if base is None or base.node_id in tree.nodes.moved else base


def _base_spec(tree: Worktree, path: str, base: Node) -> ArraySpec | None:
    spec = parse_documents({n: tree.read_content(c, join_key(path, n)) for n, c in base.documents.items()})
    return None if spec is None else spec.array


def _spells_alike(one: ArraySpec, other: ArraySpec) -> bool:
    """Tell whether the same keys name the same chunk indices of both."""
    return one.ndim == other.ndim and one.encoding == other.encoding


def _keeps_chunks(old: NodeState, spec: NodeSpec | None) -> bool:
    """Tell whether the keys of a node's chunks still name its chunks after its documents say `spec`."""
    if old.array is None:
        return True
    return spec is not None and spec.array is not None and _spells_alike(old.array.spec, spec.array)


def _chunks_as_values(tree: Worktree, node: NodeState) -> list[tuple[str, Content]]:
    """Return an array's chunks as the plain values that they become without it."""
    array = node.array
    if array is None or array.spec.encoding is None:
        return []
    released = []
    for indices, _ in list(array.iter_indices()):
        for index in map(tuple, indices.tolist()):
            source = array.find(index, tree.dictionaries)
            if source is not None:
                key = join_key(node.path, array.spec.encoding.encode(index))
                released.append((key, _as_value(source, key)))
    return released


def _as_value(source: ChunkSource, key: str) -> Content:
    if isinstance(source, StoredChunk):
        return source.ref
    if _is_virtual(source):
        raise InvalidInputError(
            f"{key!r} is a virtual chunk and can't stay without its array. Delete the whole array instead of its "
            "document alone."
        )
    return source  # type: ignore[return-value]


def _is_virtual(source: ChunkSource | VirtualRange) -> bool:
    return hasattr(source, "location")


def _adopt_values(tree: Worktree, node: NodeState, array: ArrayState) -> None:
    """Turn plain values that spell chunk keys of a new array into its chunks; others stay what they are."""
    if array.spec.encoding is None:
        return
    for key in list(tree.values_below(node.path)):
        index = array.spec.encoding.decode(key[len(node.path) + 1 if node.path else 0 :])
        content = tree.nodes.value(key)
        if isinstance(index, NotAChunk) or content is None:
            continue
        if array.spec.contains(index) and content_length(content):
            _adopt_chunk(tree, array, index, content)
            tree.put_value(key, None)


def _adopt_chunk(tree: Worktree, array: ArrayState, index: tuple[int, ...], content: Content) -> None:
    """Make a plain value's content a chunk."""
    tile_key, position = array.locate(index)
    tile = array.tile_for_edit(tile_key)
    if isinstance(content, bytes) and len(content) <= tree.inline_bytes:
        tile.set_inline(position, content)
    elif isinstance(content, bytes):
        digest = blake3_digest(content)
        tile.set(position, _own(OwnBlob(tree.writer.put(content, digest), len(content), digest)))
    elif isinstance(content, OwnBlob):
        # The value lets go of the blob when it is deleted; the chunk holds on to it.
        tree.writer.retain(content.slot)
        tile.set(position, _own(content))
    else:
        pack = tree.dictionaries.packs.number(content.pack)
        ref = PendingRef(PendingKind.STORED, content.offset, content.length, pack, 0, content.digest)
        tile.set(position, ref)


def _own(blob: OwnBlob) -> PendingRef:
    return PendingRef(PendingKind.OWN, blob.slot, blob.length, digest=blob.digest)
