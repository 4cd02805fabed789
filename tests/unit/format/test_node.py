from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format.strategies import children, contents, names, nodes, paths, pointers
from vstore.errors import CorruptionError, InvalidInputError
from vstore.format.manifest import MAX_TILE_CHUNKS
from vstore.format.node import (
    MAX_DIMENSIONS,
    MAX_DOCUMENTS,
    MAX_LAYERS,
    Node,
    NodeTag,
    Tiles,
    decode_node,
    decode_pointer,
    decode_value,
    encode_node,
    encode_pointer,
    encode_value,
    measure_node,
    measure_pointer,
    node_key,
    path_of,
    subtree_bounds,
    tile_key,
    tile_of,
    value_key,
)
from vstore.format.page import Totals
from vstore.format.refs import pack_message
from vstore.ids import NodeId

ID = NodeId(b"12345678")

# --- keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "key"),
    [("", b"n"), ("a", b"n\0a"), ("a/b", b"n\0a\0b"), ("\u00e4/b c", b"n\0\xc3\xa4\0b c")],
)
def test_node_keys(path, key):
    assert node_key(path) == key
    assert value_key(path) == b"v" + key[1:]
    assert path_of(key) == path


@given(names)
def test_keys_spell_any_path(path):
    assert path_of(node_key(path)) == path
    assert path_of(value_key(path)) == path


@given(names, names)
def test_different_paths_have_different_keys(left, right):
    assert (node_key(left) == node_key(right)) == (left == right)


@pytest.mark.parametrize("path", ["a\0b", "\0", "\ud800"])
def test_paths_that_can_not_be_keys(path):
    with pytest.raises(InvalidInputError):
        node_key(path)
    with pytest.raises(InvalidInputError):
        value_key(path)


def test_a_key_that_is_not_utf8():
    with pytest.raises(CorruptionError):
        path_of(b"n\0\xff")


@given(paths, paths)
def test_a_subtree_is_one_run_of_keys(above, other):
    start, stop = subtree_bounds(node_key(above))
    is_below = other != above and (not above or other.startswith(above + "/"))
    assert (start <= node_key(other) < stop) == is_below


@pytest.mark.parametrize(
    ("path", "is_below"),
    [("a", False), ("a/\x01", True), ("a\x01", False), ("a\x01b", False), ("a-b", False)],
)
def test_edges_of_a_subtree(path, is_below):
    start, stop = subtree_bounds(node_key("a"))
    assert (start <= node_key(path) < stop) == is_below


@given(st.lists(paths, unique=True))
def test_keys_sort_like_paths_by_their_parts(found):
    assert sorted(found, key=node_key) == sorted(
        found, key=lambda path: [p.encode() for p in path.split("/") if p]
    )


coordinates = st.integers(0, 2**64 - 1) | st.integers(0, 600)


@given(st.lists(coordinates, max_size=6).map(tuple))
def test_tile_keys_spell_any_tile(tile):
    assert tile_of(tile_key(tile)) == tile


@given(st.integers(0, 4).flatmap(lambda n: st.tuples(*[st.tuples(*[coordinates] * n)] * 2)))
def test_tile_keys_sort_like_numbers(tiles):
    left, right = tiles
    assert (tile_key(left) < tile_key(right)) == (left < right)


def test_bytes_of_tile_keys():
    assert tile_key(()) == b""
    assert tile_key((0, 1, 255, 256)) == b"\0" + b"\1\1" + b"\1\xff" + b"\2\1\0"


@pytest.mark.parametrize("key", [b"\1", b"\2\1", b"\x09" + b"\1" * 9, b"\1\0", b"\2\0\1", b"\0\xff"])
def test_malformed_tile_keys_are_refused(key):
    with pytest.raises(CorruptionError):
        tile_of(key)


# --- entries -------------------------------------------------------------------------------------------------


@given(paths, nodes)
def test_node(path, node):
    entry = encode_node(path, node)
    assert path_of(entry.key) == path
    assert entry.tag == (NodeTag.GROUP if node.tiles is None else NodeTag.ARRAY)
    found = decode_node(entry.value)
    assert found == node
    assert measure_node(entry) == (Totals() if node.tiles is None else node.tiles.totals)


@given(names, contents)
def test_value(key, content):
    entry = encode_value(key, content)
    assert (path_of(entry.key), entry.tag) == (key, NodeTag.VALUE)
    assert decode_value(entry.value) == content
    assert measure_node(entry) == Totals()


@given(st.binary(max_size=8), pointers)
def test_pointer(key, pointer):
    entry = encode_pointer(key, pointer)
    assert (entry.key, entry.tag) == (key, 0)
    assert decode_pointer(entry.value) == pointer
    assert measure_pointer(entry) == pointer.totals


@given(children, st.lists(pointers, max_size=3))
def test_totals_of_an_array(root, few):
    assert Tiles((1,), {}, root).totals == root.totals
    tiles = Tiles((1,), {tile_key((i,)): pointer for i, pointer in enumerate(few)})
    assert tiles.totals == sum((pointer.totals for pointer in few), Totals())


def test_tiles_are_written_in_order():
    pointer = decode_pointer(pack_message(POINTER))
    forward = Tiles((1,), {b"\0": pointer, b"\1\1": pointer})
    backward = Tiles((1,), {b"\1\1": pointer, b"\0": pointer})
    assert encode_node("", Node(ID, {}, forward)) == encode_node("", Node(ID, {}, backward))


# --- what is refused, and what is not ------------------------------------------------------------------------

REF = [bytes(32), bytes(16), 16, 100]
POINTER: list[Any] = [[[*REF, 5], [b"manifest", 1]], 6, 600, True]
ARRAY: list[Any] = [[2, 3], [[b"\0\0", POINTER], [b"\0\1\1", POINTER]], None]
NODE: list[Any] = [ID, {"zarr.json": b"{}", "long": REF}, ARRAY]
VALUE: list[Any] = [b"content"]
ANYTHING = [None, True, 7, -1, 2**63, 1.5, "text", b"bytes", [], [[]], {}, {"a": 1}, {1: b""}]


def changed(base: list[Any], index: int, value: Any) -> list[Any]:
    return [*base[:index], value, *base[index + 1 :]]


def test_the_base_of_the_next_tests_is_good():
    assert decode_node(pack_message(NODE)).tiles.totals == Totals(12, 1200, True)
    assert decode_value(pack_message(VALUE)) == b"content"
    assert decode_pointer(pack_message(POINTER)).layers[1] == (b"manifest", 1)


def test_fields_of_later_versions_are_ignored():
    later = [*NODE[:2], [*ARRAY[:1], [[b"\0\0", [*POINTER, {"more": 1}]], ARRAY[1][1]], None, 8], "more"]
    assert decode_node(pack_message(later)) == decode_node(pack_message(NODE))
    assert decode_value(pack_message([*VALUE, [1]])) == b"content"
    assert decode_pointer(pack_message([*POINTER, None])) == decode_pointer(pack_message(POINTER))


def legal(base: list[Any], index: int, value: Any) -> bool:
    if base is NODE:
        return (index, value) in [(1, {}), (2, None)]
    if base is ARRAY:
        return (index, value) in [(1, []), (2, None)]
    if base is POINTER:
        is_size = type(value) is int and value >= 0
        return (index == 1 and value == 7) or (index == 2 and is_size) or (index == 3 and value is True)
    return value == b"bytes"


@pytest.mark.parametrize("value", ANYTHING, ids=repr)
@pytest.mark.parametrize(
    ("base", "wrap", "decode"),
    [
        (NODE, lambda fields: fields, decode_node),
        (ARRAY, lambda fields: [*NODE[:2], fields], decode_node),
        (POINTER, lambda fields: fields, decode_pointer),
        (VALUE, lambda fields: fields, decode_value),
    ],
    ids=["node", "array", "pointer", "value"],
)
def test_wrong_types_are_refused(base, wrap, decode, value):
    for index in range(len(base)):
        data = pack_message(wrap(changed(base, index, value)))
        if legal(base, index, value) and not (base is ARRAY and index == 1 and value is None):
            decode(data)
        else:
            with pytest.raises(CorruptionError):
                decode(data)
    with pytest.raises(CorruptionError):
        decode(pack_message(base[:-1]))
    with pytest.raises(CorruptionError):
        decode(pack_message(value))


ROOT = pack_message([REF, 1, 2, 3, True])


@pytest.mark.parametrize(
    "node",
    [
        changed(NODE, 0, b"1234567"),
        changed(NODE, 1, {"a": REF[:3]}),
        changed(NODE, 1, {"a": [bytes(31), *REF[1:]]}),
        changed(NODE, 1, {str(i): b"" for i in range(MAX_DOCUMENTS + 1)}),
        changed(NODE, 2, changed(ARRAY, 0, [2])),
        changed(NODE, 2, changed(ARRAY, 0, [2, 0])),
        changed(NODE, 2, changed(ARRAY, 0, [2, -1])),
        changed(NODE, 2, changed(ARRAY, 0, [2, MAX_TILE_CHUNKS])),
        changed(NODE, 2, [[1] * (MAX_DIMENSIONS + 1), [], None]),
        changed(NODE, 2, [[1], None, None]),
        changed(NODE, 2, [[1], [], ROOT]),
        changed(NODE, 2, [[1], None, ROOT[:-1]]),
        changed(NODE, 2, [[1], [[b"\0", POINTER], [b"\0", POINTER]], None]),
        changed(NODE, 2, [[1], [[b"\1\1", POINTER], [b"\0", POINTER]], None]),
        changed(NODE, 2, [[1], [[b"\1\0", POINTER]], None]),
        changed(NODE, 2, [[1], [[b"\0"]], None]),
        changed(NODE, 2, [[1], [[b"\0", POINTER, 0]], None]),
    ],
    ids=repr,
)
def test_broken_rules_of_a_node_are_refused(node):
    with pytest.raises(CorruptionError):
        decode_node(pack_message(node))


def test_an_array_with_a_tree_of_tiles():
    assert decode_node(pack_message(changed(NODE, 2, [[1], None, ROOT]))).tiles.root.entries == 1


@pytest.mark.parametrize(
    "layers",
    [
        [[*REF]],
        [[*REF, 5, 5]],
        [[*REF, MAX_TILE_CHUNKS + 1]],
        [[*REF, -1]],
        [[REF[0], b"short", 16, 100, 5]],
        [[b"manifest"]],
        [[b"manifest", MAX_TILE_CHUNKS + 1]],
        [[5, b"manifest"]],
        [[REF, 5]],
        [[b"m", 1]] * (MAX_LAYERS + 1),
    ],
    ids=repr,
)
def test_broken_rules_of_a_layer_are_refused(layers):
    with pytest.raises(CorruptionError):
        decode_pointer(pack_message(changed(POINTER, 0, layers)))


def test_tags_never_change():
    assert {tag.name: tag.value for tag in NodeTag} == {"GROUP": 1, "ARRAY": 2, "VALUE": 3}


@given(st.binary(max_size=8), pointers)
def test_measuring_a_pointer_is_decoding_it(key, pointer):
    entry = encode_pointer(key, pointer)
    assert measure_pointer(entry) == decode_pointer(entry.value).totals


@given(paths, nodes)
def test_measuring_a_node_is_decoding_it(path, node):
    tiles = decode_node(encode_node(path, node).value).tiles
    assert measure_node(encode_node(path, node)) == (Totals() if tiles is None else tiles.totals)
