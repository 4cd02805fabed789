"""The leaf entries of the two page trees: nodes by path, and tile pointers by tile.

Keys of the node tree: "n" and, for each part of a node's path, a zero byte and the part ("n" alone is the root), so
that a subtree is one contiguous run; "v" and the parts of a key likewise for plain values, which belong to no node.

A node's value is the msgpack array [node id, documents, array]: documents maps a document's name to its bytes, or to
a blob ref where they are long; array is nil, or [extents, tiles, root]: the extents of its tiles, the tile pointers
([key, pointer] pairs) while they are few, else nil and the root (a `Child`) of their page tree. A plain value's value
is [content]: bytes, or a blob ref.

A tile pointer is [layers, chunks, bytes, exact]: its manifests, newest first, each [digest, pack, offset, length, n]
or, for one of few bytes, [manifest bytes, n]; n is the manifest's ref count. Tile keys are the tile's coordinates,
each as one byte that counts its big-endian bytes, then those bytes: in byte order they sort like the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec

from vstore.errors import InvalidInputError
from vstore.format.manifest import MAX_TILE_CHUNKS
from vstore.format.page import MAX_ENTRIES, Child, Entry, Totals, decode_child, encode_child, sum_totals
from vstore.format.refs import (
    BlobRef,
    WireRef,
    expect,
    from_wire,
    message_shape,
    pack_message,
    to_size,
    unpack_message,
)
from vstore.ids import NODE_ID_SIZE, BytesLike, NodeId

Content: TypeAlias = bytes | BlobRef
"""A document's or plain value's bytes, or where they are."""

MAX_CONTENT_INLINE_BYTES = 4096
"""Longer documents and values are blobs of their own, so that they don't bloat the page of their neighbours."""
MAX_CONTENT_READ_BYTES = 64 * 1024
"""What readers take inside an entry, of contents and of manifests."""
MAX_LAYERS = 64
MAX_LAYER_INLINE_BYTES = 192
"""A manifest of about one ref: inlining larger ones was measured to cost more, as pages drag them along."""
MAX_DIMENSIONS = 64
MAX_DOCUMENTS = 16

_WireContent: TypeAlias = bytes | WireRef
_WireLayer: TypeAlias = Annotated[list[bytes | int], msgspec.Meta(max_length=5)]


class _WirePointer(msgspec.Struct, array_like=True):
    layers: Annotated[list[_WireLayer], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)]
    chunks: int
    bytes: int
    exact: bool


class _WirePointerTotals(msgspec.Struct, array_like=True):
    """A `_WirePointer` without its layers: what is read of each entry of a page that is written anew."""

    layers: msgspec.Raw
    chunks: int
    bytes: int
    exact: bool


class _WireTiles(msgspec.Struct, array_like=True):
    extents: Annotated[list[int], msgspec.Meta(max_length=MAX_DIMENSIONS)]
    few: Annotated[list[tuple[bytes, _WirePointer]], msgspec.Meta(max_length=MAX_ENTRIES)] | None
    root: bytes | None


class _WireNode(msgspec.Struct, array_like=True):
    node_id: bytes
    documents: Annotated[dict[str, _WireContent], msgspec.Meta(max_length=MAX_DOCUMENTS)]
    array: _WireTiles | None


class _WireTilesTotals(msgspec.Struct, array_like=True):
    extents: msgspec.Raw
    few: Annotated[list[tuple[msgspec.Raw, _WirePointerTotals]], msgspec.Meta(max_length=MAX_ENTRIES)] | None
    root: bytes | None


class _WireNodeTotals(msgspec.Struct, array_like=True):
    node_id: msgspec.Raw
    documents: msgspec.Raw
    array: _WireTilesTotals | None


class _WireValue(msgspec.Struct, array_like=True):
    content: _WireContent


# Array-like structs ignore the fields that a newer vstore appends.
_POINTER = message_shape(_WirePointer)
_POINTER_TOTALS = message_shape(_WirePointerTotals)
_NODE = message_shape(_WireNode)
_NODE_TOTALS = message_shape(_WireNodeTotals)
_VALUE = message_shape(_WireValue)


class NodeTag(IntEnum):
    """What a leaf entry of the node tree is. Persisted: never renumber."""

    GROUP = 1
    ARRAY = 2
    VALUE = 3


class Layer(NamedTuple):
    """One manifest of a tile: where it is, or its bytes, and how many refs it holds."""

    manifest: BlobRef | bytes
    ref_count: int


class TilePointer(NamedTuple):
    """The manifests of one tile, newest first, and what they stand for together."""

    layers: tuple[Layer, ...]
    totals: Totals


class Tiles(msgspec.Struct, frozen=True):
    """An array's manifests: `few` of them listed here by tile key, or the `root` of their page tree."""

    extents: tuple[int, ...]
    few: Mapping[bytes, TilePointer] = msgspec.field(default_factory=dict)
    root: Child | None = None

    @property
    def totals(self) -> Totals:
        if self.root is not None:
            return self.root.totals
        return sum_totals(pointer.totals for pointer in self.few.values())


class Node(msgspec.Struct, frozen=True):
    """A group (`tiles` is None) or an array, with its metadata documents by name."""

    node_id: NodeId
    documents: Mapping[str, Content]
    tiles: Tiles | None = None


# --- keys ----------------------------------------------------------------------------------------------------


_KEY_STARTS = (b"n\0", b"v\0", b"n", b"v")


def node_key(path: str) -> bytes:
    """Return the node tree's key of the node at `path`."""
    return b"n" + _parts(path)


def value_key(key: str) -> bytes:
    """Return the node tree's key of a plain value."""
    return b"v" + _parts(key)


def _parts(path: str) -> bytes:
    if "\0" in path:
        raise InvalidInputError(f"{path!r} holds a zero character, which no key may. Use another name.")
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{path!r} is not valid Unicode. Use another name.") from None
    return b"\0" + encoded.replace(b"/", b"\0") if encoded else b""


def path_of(key: bytes) -> str:
    """Return the path or key that a node tree's key stands for."""
    expect(key[:2] in _KEY_STARTS, "a node tree's key is malformed")
    try:
        return key[2:].replace(b"\0", b"/").decode()
    except UnicodeDecodeError:
        expect(False, "a node's path is not UTF-8")
        raise


def subtree_bounds(key: bytes) -> tuple[bytes, bytes]:
    """Return [start, stop) of what is below `key`, itself not included."""
    return key + b"\0", key + b"\1"


def tile_key(tile: tuple[int, ...]) -> bytes:
    """Return the tile tree's key of the tile at these tile coordinates."""
    parts = []
    for coordinate in tile:
        size = (coordinate.bit_length() + 7) // 8
        parts.append(bytes((size,)) + coordinate.to_bytes(size, "big"))
    return b"".join(parts)


def tile_of(key: bytes) -> tuple[int, ...]:
    """Return the tile coordinates that a tile tree's key stands for."""
    coordinates = []
    position = 0
    while position < len(key):
        size = key[position]
        part = key[position + 1 : position + 1 + size]
        expect(len(part) == size <= 8 and part[:1] != b"\0", "a tile's key is malformed")
        coordinates.append(int.from_bytes(part, "big"))
        position += 1 + size
    return tuple(coordinates)


def check_tile_key(key: bytes, extents: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tile coordinates of a key of an array that has tiles of these extents."""
    tile = tile_of(key)
    expect(len(tile) == len(extents), "a tile has a wrong number of dimensions")
    return tile


# --- nodes ---------------------------------------------------------------------------------------------------


def encode_node(path: str, node: Node) -> Entry:
    """Return the leaf entry of a node."""
    documents = {name: _content_to_wire(content) for name, content in node.documents.items()}
    array = None
    if node.tiles is not None:
        few = None
        if node.tiles.root is None:
            few = [(key, _pointer_to_wire(pointer)) for key, pointer in sorted(node.tiles.few.items())]
        root = None if node.tiles.root is None else encode_child(node.tiles.root)
        array = (node.tiles.extents, few, root)
    tag = NodeTag.GROUP if node.tiles is None else NodeTag.ARRAY
    return Entry(node_key(path), tag, pack_message((node.node_id, documents, array)))


def decode_node(value: BytesLike) -> Node:
    """Return the node that a leaf entry's value spells."""
    fields: _WireNode = unpack_message(value, "node", _NODE)
    expect(len(fields.node_id) == NODE_ID_SIZE, "a node's id is malformed")
    contents = {name: _content_from_wire(content) for name, content in fields.documents.items()}
    return Node(
        NodeId(fields.node_id), contents, None if fields.array is None else _tiles_from_wire(fields.array)
    )


def encode_value(key: str, content: Content) -> Entry:
    """Return the leaf entry of a plain value."""
    return Entry(value_key(key), NodeTag.VALUE, pack_message((_content_to_wire(content),)))


def decode_value(value: BytesLike) -> Content:
    """Return the content that a plain value's entry spells."""
    fields: _WireValue = unpack_message(value, "plain value", _VALUE)
    return _content_from_wire(fields.content)


def measure_node(entry: Entry) -> Totals:
    """Return what a node tree's entry adds to the totals: an array's chunks."""
    if entry.tag != NodeTag.ARRAY:
        return Totals()
    array = unpack_message(entry.value, "node", _NODE_TOTALS).array
    if array is None:
        return Totals()
    if array.root is not None:
        return decode_child(array.root).totals
    return sum_totals(_totals_from_wire(pointer) for _, pointer in array.few or ())


def _content_to_wire(content: Content) -> Any:
    return tuple(content) if isinstance(content, BlobRef) else content


def _content_from_wire(content: _WireContent) -> Content:
    if not isinstance(content, bytes):
        return from_wire(content)
    expect(len(content) <= MAX_CONTENT_READ_BYTES, "a document or value inside a page is too long for that")
    return content


def _tiles_from_wire(array: _WireTiles) -> Tiles:
    extents = tuple(array.extents)
    for extent in extents:
        expect(to_size(extent, "tile extent", MAX_TILE_CHUNKS) > 0, "an array's tile extent is zero")
    expect(math.prod(extents) <= MAX_TILE_CHUNKS, "an array's tiles are larger than the format allows")
    expect((array.few is None) != (array.root is None), "an array has neither or both of tile list and tree")
    if array.root is not None:
        return Tiles(extents, {}, decode_child(array.root))
    few = array.few or []
    for key, _ in few:
        check_tile_key(key, extents)
    expect(all(a[0] < b[0] for a, b in itertools.pairwise(few)), "an array's tiles are not increasing")
    return Tiles(extents, {key: _pointer_from_wire(pointer) for key, pointer in few})


# --- tile pointers -------------------------------------------------------------------------------------------


def encode_pointer(key: bytes, pointer: TilePointer) -> Entry:
    """Return the leaf entry of a tile pointer."""
    return Entry(key, 0, pack_message(_pointer_to_wire(pointer)))


def decode_pointer(value: BytesLike) -> TilePointer:
    """Return the tile pointer that a leaf entry's value spells."""
    return _pointer_from_wire(unpack_message(value, "tile pointer", _POINTER))


def measure_pointer(entry: Entry) -> Totals:
    """Return what a tile tree's entry adds to the totals."""
    return _totals_from_wire(unpack_message(entry.value, "tile pointer", _POINTER_TOTALS))


def _pointer_to_wire(pointer: TilePointer) -> Any:
    layers = [
        (*layer.manifest, layer.ref_count) if isinstance(layer.manifest, BlobRef) else tuple(layer)
        for layer in pointer.layers
    ]
    # Differences to what other pointers say.
    return (layers, *_checked_totals(*pointer.totals))


def _pointer_from_wire(fields: _WirePointer) -> TilePointer:
    return TilePointer(tuple(map(_layer_from_wire, fields.layers)), _totals_from_wire(fields))


def _totals_from_wire(fields: _WirePointer | _WirePointerTotals) -> Totals:
    return _checked_totals(fields.chunks, fields.bytes, fields.exact)


def _checked_totals(chunks: int, size: int, exact: bool) -> Totals:
    return Totals(to_size(chunks, "chunk count", 2**40), to_size(size, "byte count", 2**63), exact)


def _layer_from_wire(layer: list[Any]) -> Layer:
    expect(len(layer) in (2, 5), "a tile pointer's layer is malformed")
    count = to_size(layer[-1], "ref count", MAX_TILE_CHUNKS)
    if len(layer) == 2:
        expect(isinstance(layer[0], bytes), "an inline manifest is malformed")
        expect(len(layer[0]) <= MAX_CONTENT_READ_BYTES, "a manifest inside a page is too long for that")
        return Layer(layer[0], count)
    return Layer(from_wire(layer[:4]), count)
