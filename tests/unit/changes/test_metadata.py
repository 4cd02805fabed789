"""Metadata documents compared and merged: each rule, and what holds for all documents."""

from __future__ import annotations

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from vstore.changes.metadata import (
    MISSING,
    JsonOrMissing,
    MetadataChange,
    MetadataClash,
    attributes_of,
    diff_documents,
    merge_documents,
)

V3, ATTRS, ARRAY = "zarr.json", ".zattrs", ".zarray"


def text(value: Any) -> bytes:
    return json.dumps(value).encode()


class Asked:
    """Decides all clashes alike, and remembers them."""

    def __init__(self, choose: Any = MISSING) -> None:
        self.clashes: list[MetadataClash] = []
        self._choose = choose

    def __call__(self, clash: MetadataClash) -> JsonOrMissing:
        self.clashes.append(clash)
        return self._choose(clash) if callable(self._choose) else self._choose


def refuse(clash: MetadataClash) -> JsonOrMissing:
    raise AssertionError(f"nothing was to be decided: {clash}")


def merge_one(document: str, base: Any, one: Any, other: Any, decide: Any = refuse) -> Any:
    """Merge one document, given as JSON values; `MISSING` for none."""
    sides = [{} if value is MISSING else {document: text(value)} for value in (base, one, other)]
    merged = merge_documents(*sides, decide)
    assert set(merged) <= {document}
    return json.loads(merged[document]) if document in merged else MISSING


# --- differences ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({"attributes": {"a": 1}}, {"attributes": {"a": 2}}, [("attributes", "a", 1, 2)]),
        ({"attributes": {"a": 1}}, {"attributes": {}}, [("attributes", "a", 1, MISSING)]),
        ({"attributes": {}}, {"attributes": {"a": None}}, [("attributes", "a", MISSING, None)]),
        ({"attributes": {"a": 1}}, {}, [("attributes", "a", 1, MISSING)]),
        ({}, {"attributes": {"a": 1}}, [("attributes", "a", MISSING, 1)]),
        ({}, {"attributes": {}}, []),
        ({"attributes": {"a": 1}}, {"attributes": [1]}, [("attributes", None, {"a": 1}, [1])]),
        (
            {"attributes": {"a": {"b": 1}}},
            {"attributes": {"a": {"b": 2}}},
            [("attributes", "a", {"b": 1}, {"b": 2})],
        ),
        ({"shape": [1, 2]}, {"shape": [1, 3]}, [("shape", None, [1, 2], [1, 3])]),
        ({"fill_value": 0}, {"fill_value": 0.0}, [("fill_value", None, 0, 0.0)]),
        ({"fill_value": 1}, {"fill_value": True}, [("fill_value", None, 1, True)]),
        ({"fill_value": 0.0}, {"fill_value": -0.0}, [("fill_value", None, 0.0, -0.0)]),
        (
            {"z": 1, "b": 1},
            {"a": 1, "z": 2},
            [("a", None, MISSING, 1), ("b", None, 1, MISSING), ("z", None, 1, 2)],
        ),
        ({"a": {"x": 1, "y": 2}, "b": 3}, {"b": 3, "a": {"y": 2, "x": 1}}, []),
    ],
)
def test_what_differs(before: Any, after: Any, changes: list[tuple[Any, ...]]) -> None:
    found = diff_documents({V3: text(before)}, {V3: text(after)})
    assert found == [MetadataChange(V3, *change) for change in changes]
    # 1 == True == 1.0 in Python: compare how they are written, too.
    assert repr(found) == repr([MetadataChange(V3, *change) for change in changes])
    back = diff_documents({V3: text(after)}, {V3: text(before)})
    assert [(c.after, c.before) for c in back] == [(c.before, c.after) for c in found]


def test_not_a_number_equals_itself() -> None:
    assert diff_documents({V3: b'{"fill_value": NaN}'}, {V3: b'{"fill_value":NaN}'}) == []


def test_documents_are_compared_in_order() -> None:
    before = {".zarray": text({"shape": [1]}), ".zattrs": text({"b": 1, "a": 1})}
    after = {".zarray": text({"shape": [2]}), ".zattrs": text({"a": 2, "b": 2})}
    assert diff_documents(before, after) == [
        MetadataChange(".zarray", "shape", None, [1], [2]),
        MetadataChange(".zattrs", "attributes", "a", 1, 2),
        MetadataChange(".zattrs", "attributes", "b", 1, 2),
    ]


def test_a_document_that_comes_or_goes() -> None:
    document = {V3: text({"attributes": {"a": 1}, "shape": [1]})}
    assert diff_documents({}, document) == [
        MetadataChange(V3, "attributes", "a", MISSING, 1),
        MetadataChange(V3, "shape", None, MISSING, [1]),
    ]
    assert diff_documents(document, document) == []
    assert len(diff_documents(document, {})) == 2


@pytest.mark.parametrize("data", [b"\xff\xfe\xff", b"{", b"[1]", b"1", b"", b"[" * 100_000])
def test_what_is_no_json_object_is_compared_whole(data: bytes) -> None:
    change = diff_documents({V3: data}, {V3: data + b" x"})
    assert [(c.document, c.field, c.attribute) for c in change] == [(V3, "", None)]
    assert diff_documents({V3: data}, {V3: data}) == []


# --- merging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "one", "other", "merged"),
    [
        # Attributes by key.
        ({"a": 1}, {"a": 1, "b": 2}, {"a": 1, "c": 3}, {"a": 1, "b": 2, "c": 3}),
        ({"a": 1, "b": 2}, {"b": 2}, {"a": 1}, {}),
        ({"a": 1, "b": 2}, {"a": 5, "b": 2}, {"a": 1, "b": 6}, {"a": 5, "b": 6}),
        (
            {"a": 1, "z": 0},
            {"a": 2, "z": 0, "b": 1},
            {"a": 2, "z": 0, "c": 1},
            {"a": 2, "z": 0, "b": 1, "c": 1},
        ),
        ({"a": 1, "b": 1}, {"b": 1, "x": 1}, {"b": 2}, {"b": 2, "x": 1}),
        (MISSING, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1, "b": 2}, MISSING, {"a": 1, "b": 2, "c": 3}, {"c": 3}),
    ],
)
def test_attributes_merge_by_key(base: Any, one: Any, other: Any, merged: Any) -> None:
    def whole(value: Any) -> Any:
        return {"shape": [1]} if value is MISSING else {"shape": [1], "attributes": value}

    for sides in ((one, other), (other, one)):
        assert merge_one(V3, whole(base), *map(whole, sides)) == whole(merged)
        if MISSING not in (base, one, other):
            # In v2, the whole document is attributes.
            assert merge_one(ATTRS, base, *sides) == merged


@pytest.mark.parametrize(
    ("base", "one", "other", "merged"),
    [
        ([4, 4], [8, 4], [4, 9], [8, 9]),
        ([4, 4], [2, 4], [4, 9], [2, 9]),
        ([4, 4, 4], [5, 6, 4], [5, 4, 7], [5, 6, 7]),
        ([4], [8], [8], [8]),
    ],
)
@pytest.mark.parametrize("document", [V3, ARRAY])
def test_a_shape_merges_by_dimension(document: str, base: Any, one: Any, other: Any, merged: Any) -> None:
    for sides in ((one, other), (other, one)):
        shapes = [{"shape": shape} for shape in (base, *sides)]
        assert merge_one(document, *shapes) == {"shape": merged}


@pytest.mark.parametrize(
    ("base", "one", "other"),
    [([4], [5], [6]), ([4, 4], [5, 5], [5, 6]), ([4], [5], [4, 4]), ([4], 5, [6]), (MISSING, [5], [6])],
)
def test_a_shape_that_clashes_is_decided_as_one(base: Any, one: Any, other: Any) -> None:
    asked = Asked([7])
    sides = [{} if shape is MISSING else {"shape": shape} for shape in (base, one, other)]
    assert merge_one(V3, *sides, asked) == {"shape": [7]}
    assert asked.clashes == [MetadataClash(V3, "shape", None, base, one, other)]


def test_other_fields_merge_whole() -> None:
    base = {"codecs": [1], "fill_value": 0, "x": 1}
    merged = merge_one(V3, base, base | {"codecs": [2]}, base | {"fill_value": 1.5, "y": None})
    assert merged == {"codecs": [2], "fill_value": 1.5, "x": 1, "y": None}
    asked = Asked("chosen")
    assert merge_one(V3, {"x": {"p": 1}}, {"x": {"p": 2}}, {"x": {"q": 1}}, asked) == {"x": "chosen"}
    assert asked.clashes == [MetadataClash(V3, "x", None, {"p": 1}, {"p": 2}, {"q": 1})]


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), (None, MISSING), (False, 0)])
def test_values_that_python_takes_for_equal_clash(one: Any, other: Any) -> None:
    sides = [{"fill_value": value} if value is not MISSING else {} for value in (one, other)]
    asked = Asked("chosen")
    merge_one(V3, {"fill_value": 9}, *sides, asked)
    assert [(repr(c.one), repr(c.other)) for c in asked.clashes] == [(repr(one), repr(other))]


def test_a_clash_of_attributes_names_the_key() -> None:
    asked = Asked(lambda clash: clash.one)
    base, one, other = ({"attributes": {"a": n, "same": 0}} for n in (1, 2, 3))
    assert merge_one(V3, base, one, other, asked) == one
    assert asked.clashes == [MetadataClash(V3, "attributes", "a", 1, 2, 3)]
    assert merge_one(V3, base, one, other, Asked(MISSING)) == {"attributes": {"same": 0}}
    assert merge_one(V3, base, {"attributes": {"same": 0}}, other, Asked(lambda clash: clash.one)) == {
        "attributes": {"same": 0}
    }


def test_attributes_that_are_no_object_clash_whole() -> None:
    asked = Asked({"b": 1})
    assert merge_one(V3, {"attributes": {"a": 1}}, {"attributes": [1]}, {"attributes": {"b": 1}}, asked) == {
        "attributes": {"b": 1}
    }
    assert asked.clashes == [MetadataClash(V3, "attributes", None, {"a": 1}, [1], {"b": 1})]


def test_consolidated_metadata_is_left_out_where_both_changed_it() -> None:
    base, one, other = ({"consolidated_metadata": {"n": n}, "a": 1} for n in range(3))
    assert merge_one(V3, base, one, other) == {"a": 1}
    assert merge_one(V3, base, one, base | {"a": 2}) == {"consolidated_metadata": {"n": 1}, "a": 2}


def test_documents_merge_one_by_one() -> None:
    base = {ARRAY: text({"shape": [4]}), ATTRS: text({"a": 1})}
    one = {ARRAY: text({"shape": [8]}), ATTRS: text({"a": 1})}
    other = {ARRAY: text({"shape": [4]}), ATTRS: text({"a": 2}), ".zgroup": b"{}"}
    assert merge_documents(base, one, other, refuse) == {
        ARRAY: one[ARRAY],
        ATTRS: other[ATTRS],
        ".zgroup": b"{}",
    }
    assert merge_documents(base, {}, base, refuse) == {}
    assert merge_documents({}, one, {}, refuse) == one


def test_a_document_deleted_on_one_side_and_changed_on_the_other_is_decided_whole() -> None:
    base, changed = {V3: b'{"a": 1}'}, {V3: b'{"a":   2}'}
    for sides in ((changed, {}), ({}, changed)):
        asked = Asked(lambda clash: clash.one)
        assert merge_documents(base, *sides, asked) == sides[0]
        assert [(c.document, c.field, c.base) for c in asked.clashes] == [(V3, "", '{"a": 1}')]
        assert merge_documents(base, *sides, Asked(MISSING)) == {}
        assert merge_documents(base, *sides, Asked('{"a": 1}')) == base


@pytest.mark.parametrize("strange", [b"[1]", b"no json", b"\xff\xff", b"17"])
def test_what_is_no_json_object_is_decided_whole(strange: bytes) -> None:
    base, one, other = {V3: b"{}"}, {V3: strange}, {V3: b'{"a": 1}'}
    assert merge_documents(base, one, base, refuse) == one
    assert merge_documents(base, one, other, Asked(lambda clash: clash.one)) == one
    assert merge_documents(base, one, other, Asked(lambda clash: clash.other)) == other
    assert merge_documents(base, one, other, Asked(MISSING)) == {}
    assert json.loads(merge_documents(base, one, other, Asked({"b": 1}))[V3]) == {"b": 1}
    assert merge_documents(base, one, other, Asked("new text"))[V3] == b"new text"


def test_a_result_that_equals_a_side_has_its_very_bytes() -> None:
    base = {V3: b'{"attributes": {"a": 1, "b": 1}, "x": 1}'}
    one = {V3: b'{  "x": 1, "attributes": {"b": 2, "a": 1} }'}
    other = {V3: b'{"attributes": {"a": 1,"b": 2}, "x": 1, "y": 2}'}
    assert merge_documents(base, one, other, refuse) == other
    assert merge_documents(base, other, one, refuse) == other


def test_the_result_keeps_the_order_of_the_documents() -> None:
    base = {V3: text({"z": 1, "a": 1, "m": 1})}
    one, other = {V3: text({"z": 1, "a": 2, "m": 1})}, {V3: text({"z": 1, "a": 1, "m": 1, "b": 3})}
    assert list(json.loads(merge_documents(base, one, other, refuse)[V3])) == ["z", "a", "m", "b"]


# --- for all documents ---------------------------------------------------------------------------------------

values = st.sampled_from([0, 1, 1.0, True, False, None, "x", [1], [1, 2], {"k": 1}, {"k": 2}, {}])
fields = st.dictionaries(
    st.sampled_from(["shape", "fill_value", "x", "consolidated_metadata"]), values, max_size=3
)
attributes = st.dictionaries(st.sampled_from("abc"), values, max_size=3)
objects = st.builds(
    lambda rest, found: rest if found is None else rest | {"attributes": found},
    fields,
    st.none() | attributes | values,
)
spaces = st.sampled_from([None, 1, 2])
documents = st.dictionaries(
    st.sampled_from([V3, ATTRS]),
    st.builds(lambda value, indent: json.dumps(value, indent=indent).encode(), objects, spaces)
    | st.sampled_from([b"[1]", b"no json", b"\xff", b""]),
    max_size=2,
)


def as_values(found: dict[str, bytes]) -> dict[str, str]:
    """Return documents in a form in which order of keys and white space make no difference."""
    result = {}
    for name, data in found.items():
        try:
            result[name] = json.dumps(json.loads(data), sort_keys=True)
        except ValueError:
            result[name] = repr(data)
    return result


def mirrored(clash: MetadataClash) -> JsonOrMissing:
    """Decide the same whichever side is called one."""
    found = [value for value in (clash.one, clash.other) if value is not MISSING]
    return max(found, key=lambda value: json.dumps(value, sort_keys=True), default=MISSING)


@given(documents, documents, documents)
def test_merging_is_symmetric(base: Any, one: Any, other: Any) -> None:
    assert as_values(merge_documents(base, one, other, mirrored)) == as_values(
        merge_documents(base, other, one, mirrored)
    )


@given(documents, documents)
def test_equal_sides_merge_to_themselves(base: Any, side: Any) -> None:
    assert merge_documents(base, side, side, refuse) == side


@given(documents, documents)
def test_a_side_that_changed_nothing_gives_way_byte_by_byte(base: Any, side: Any) -> None:
    assert merge_documents(base, base, side, refuse) == side
    assert merge_documents(base, side, base, refuse) == side


@given(documents, documents, documents)
def test_what_only_one_side_changed_is_in_the_result(base: Any, one: Any, other: Any) -> None:
    """Stated by differences: the result differs from the base by what either side does, where they do not meet."""
    asked = Asked(lambda clash: clash.one)
    merged = merge_documents(base, one, other, asked)
    whole = {clash.document for clash in asked.clashes if clash.field == ""}
    changed = [
        {(c.document, c.field, c.attribute): repr(c.after) for c in diff_documents(base, side)}
        for side in (one, other, merged)
    ]
    if any("" in {key[1] for key in side} for side in changed):
        return
    for mine, others in ((changed[0], changed[1]), (changed[1], changed[0])):
        for key, after in mine.items():
            meets = any(other_key[:2] == key[:2] for other_key in others)
            if not meets and key[0] not in whole and key[1] != "consolidated_metadata":
                assert changed[2].get(key) == after


@given(documents, documents)
def test_there_is_a_difference_unless_the_values_are_the_same(before: Any, after: Any) -> None:
    def without_empty_attributes(found: dict[str, bytes]) -> dict[str, str]:
        # {"attributes": {}} and {} hold the same attributes, and no document holds the same as an empty one.
        values = {}
        for name, data in as_values(found).items():
            value = json.loads(data) if data[:1] == "{" else data
            if isinstance(value, dict) and name == V3 and value.get("attributes") == {}:
                del value["attributes"]
            if value != {}:
                values[name] = json.dumps(value, sort_keys=True)
        return values

    is_same = without_empty_attributes(before) == without_empty_attributes(after)
    assert (diff_documents(before, after) == []) == is_same


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({V3: text({"attributes": {"a": 1}})}, {"a": 1}),
        ({ARRAY: b"{}", ATTRS: text({"a": 1})}, {"a": 1}),
        ({V3: text({"attributes": {}}), ATTRS: text({"a": 1})}, {}),
        ({V3: text({})}, {}),
        ({ARRAY: b"{}"}, {}),
        ({}, {}),
        ({V3: b"no json"}, {}),
    ],
)
def test_the_attributes_of_a_node(found: dict[str, bytes], expected: dict[str, Any]) -> None:
    assert attributes_of(found) == expected
