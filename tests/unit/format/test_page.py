from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format.strategies import children, totals
from vstore.errors import CorruptionError
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.page import (
    MAX_ENTRIES,
    MAX_LEVEL,
    Entry,
    Totals,
    decode_child,
    decode_page,
    decode_page_names,
    encode_child,
    encode_page,
)
from vstore.format.refs import pack_message

entries = st.dictionaries(
    st.binary(max_size=12), st.tuples(st.integers(0, 255), st.binary(max_size=80)), min_size=1, max_size=30
).map(lambda found: [Entry(key, *rest) for key, rest in sorted(found.items())])


@given(st.integers(0, MAX_LEVEL), entries)
def test_encode_then_decode(level, written):
    data = encode_page(level, written)
    page, names = decode_page(data), decode_page_names(data)
    assert page.level == names.level == level
    assert page.keys == names.keys == [entry.key for entry in written]
    assert page.tags == names.tags == bytes(entry.tag for entry in written)
    assert page.values == [entry.value for entry in written]


def test_empty_leaf():
    page = decode_page(encode_page(0, []))
    assert (page.level, page.keys, page.tags, page.values) == (0, [], b"", [])


def test_names_do_not_need_the_values():
    data = bytearray(encode_page(0, [Entry(b"key", 2, b"v" * 400)]))
    data[-1] ^= 0xFF
    assert decode_page_names(data).keys == [b"key"]
    with pytest.raises(CorruptionError):
        decode_page(data)


def test_listing_decodes_few_bytes():
    documents = [Entry(b"n\0" + bytes([i]), 1, bytes([i]) * 500) for i in range(30)]
    envelope = decode_envelope(encode_page(0, documents), BlobKind.PAGE, 1)
    assert len(envelope.section(0)) < 200
    assert len(envelope.section(1)) > 15_000


@given(children)
def test_child(child):
    assert decode_child(encode_child(child)) == child


@given(totals, totals)
def test_totals_add(left, right):
    both = left + right
    assert (both.chunks, both.bytes) == (left.chunks + right.chunks, left.bytes + right.bytes)
    assert both.exact == (left.exact and right.exact)
    assert left + Totals() == left
    assert sum([left, right], Totals()) == both


def test_totals_add_to_nothing_else():
    with pytest.raises(TypeError):
        Totals() + (1, 2, True)


# --- what is refused -----------------------------------------------------------------------------------------

NAMES = [0, 2, [0, 1, 0, b""], b"ab", b"\1\2"]
VALUES = [[1, 1, 1, b""], b"xyz"]


def page_bytes(names: Any = NAMES, values: Any = VALUES, sections: int = 2) -> bytes:
    parts = (Section(pack_message(names)), Section(pack_message(values)), Section(b""))
    return encode_envelope(BlobKind.PAGE, 1, parts[:sections])


def changed(base: list[Any], index: int, value: Any) -> list[Any]:
    return [*base[:index], value, *base[index + 1 :]]


def test_the_base_of_the_next_tests_is_good():
    page = decode_page(page_bytes())
    assert (page.level, page.keys, page.tags, page.values) == (0, [b"a", b"b"], b"\1\2", [b"x", b"yz"])


ANYTHING = [None, True, -1, 2**63, 1.5, "text", b"byte", [], {}, [0, 0, 0], [9, 0, 0, b""], [2, 0, 8, b""]]


@pytest.mark.parametrize("value", ANYTHING, ids=repr)
def test_wrong_types_are_refused(value):
    for index in range(5):
        with pytest.raises(CorruptionError):
            decode_page(page_bytes(names=changed(NAMES, index, value)))
    for index in range(2):
        with pytest.raises(CorruptionError):
            decode_page(page_bytes(values=changed(VALUES, index, value)))
    with pytest.raises(CorruptionError):
        decode_page(page_bytes(names=value))
    with pytest.raises(CorruptionError):
        decode_page(page_bytes(values=value))


@pytest.mark.parametrize(
    "parts",
    [
        {"names": NAMES[:4]},
        {"names": [*NAMES, 0]},
        {"names": changed(NAMES, 0, MAX_LEVEL + 1)},
        {"names": [0, MAX_ENTRIES + 1, [0, 0, 0, b""], b"", b""]},
        {"names": [0, 2**63 - 1, [0, 0, 0, b""], b"", b""]},
        {"names": [1, 0, [0, 0, 0, b""], b"", b""], "values": [[0, 0, 0, b""], b""]},
        {"names": changed(NAMES, 2, [0, 2, 0, b""])},
        {"names": changed(NAMES, 2, [0, 0, 0, b""])},
        {"names": changed(NAMES, 2, [1, 3, -2, b""])},
        {"names": changed(NAMES, 2, [1, 2**63, 2**63 - 1, b""])},
        {"names": changed(NAMES, 2, [1, 2**64 - 1, 3, b""])},
        {"names": changed(NAMES, 3, b"ba")},
        {"names": changed(NAMES, 3, b"aa")},
        {"names": changed(NAMES, 3, b"abc")},
        {"names": changed(NAMES, 4, b"\1")},
        {"names": changed(NAMES, 4, b"\1\2\3")},
        {"values": [*VALUES, 0]},
        {"values": changed(VALUES, 1, b"xy")},
        {"values": changed(VALUES, 1, b"xyzz")},
        {"sections": 1},
        {"sections": 3},
    ],
    ids=repr,
)
def test_broken_rules_are_refused(parts):
    with pytest.raises(CorruptionError):
        decode_page(page_bytes(**parts))


REF = [bytes(32), bytes(16), 16, 100]
CHILD = [REF, 1, 2, 3, True]


@pytest.mark.parametrize("index", range(5))
def test_wrong_types_in_a_child_are_refused(index):
    assert decode_child(pack_message(CHILD)).totals == Totals(2, 3, True)
    for value in (
        None,
        -1,
        2**63 + 1,
        1.5,
        "text",
        b"bytes",
        [],
        {},
        REF[:3],
        7 if index in (0, 4) else True,
    ):
        if (index, value) == (4, True):
            continue
        with pytest.raises(CorruptionError):
            decode_child(pack_message(changed(CHILD, index, value)))


@pytest.mark.parametrize("message", [[], CHILD[:4], [*CHILD, 0], REF, None, 1, {}])
def test_a_child_has_five_fields(message):
    with pytest.raises(CorruptionError):
        decode_child(pack_message(message))
