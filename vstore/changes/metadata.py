"""Metadata documents compared and merged field by field: what changed, and what two sides made of one document.

A document is a JSON object. Attributes (`zarr.json`'s "attributes", all of `.zattrs`) count by key, a shape by
dimension, everything else by top-level field. What is not JSON is compared whole. Pure: bytes in, values out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from vstore.keys.zarr import ZARR_JSON, ZATTRS


class _Missing(Enum):
    """Stands for the value of an attribute, a field or a document that is not there."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing.MISSING
"""Stands for the value of an attribute, a field or a document that is not there; `None` is JSON's null."""
Missing: TypeAlias = Literal[_Missing.MISSING]
JsonOrMissing: TypeAlias = Any
"""A JSON value, or `MISSING`."""

ATTRIBUTES: Final = "attributes"
_SHAPE = "shape"
_CACHED = "consolidated_metadata"
"""Repeats what is below; where both sides changed it, it is left out and Zarr reads the nodes themselves."""


@dataclass(frozen=True, slots=True)
class MetadataChange:
    """One attribute (`attribute` is its key) or field (`attribute` is None) that differs."""

    document: str
    field: str
    attribute: str | None
    before: JsonOrMissing
    after: JsonOrMissing


@dataclass(frozen=True, slots=True)
class MetadataClash:
    """An attribute or field that both sides changed in different ways."""

    document: str
    field: str
    attribute: str | None
    base: JsonOrMissing
    one: JsonOrMissing
    other: JsonOrMissing


Decide: TypeAlias = Callable[[MetadataClash], JsonOrMissing]
"""Says which value holds: a JSON value, or `MISSING` for none."""
Documents: TypeAlias = Mapping[str, bytes]


def diff_documents(before: Documents, after: Documents) -> list[MetadataChange]:
    """Return what differs between the documents of a node, by document, field and key, in sorted order."""
    changes: list[MetadataChange] = []
    for document in sorted({*before, *after}):
        if before.get(document) == after.get(document):
            continue
        old, new = _fields(document, before.get(document)), _fields(document, after.get(document))
        for field in sorted({*old, *new}):
            one, other = old.get(field, MISSING), new.get(field, MISSING)
            if _same(one, other):
                continue
            if field == ATTRIBUTES and _is_mapping(one) and _is_mapping(other):
                one, other = _as_mapping(one), _as_mapping(other)
                for key in sorted({*one, *other}):
                    if not _same(one.get(key, MISSING), other.get(key, MISSING)):
                        pair = one.get(key, MISSING), other.get(key, MISSING)
                        changes.append(MetadataChange(document, field, key, *pair))
            else:
                changes.append(MetadataChange(document, field, None, one, other))
    return changes


def merge_documents(base: Documents, one: Documents, other: Documents, decide: Decide) -> dict[str, bytes]:
    """Return the three-way merge of a node's documents; `decide` is asked for all that both changed differently.

    Where the result equals a side's document, that side's very bytes are returned.
    """
    merged: dict[str, bytes] = {}
    for document in sorted({*base, *one, *other}):
        data = _merge_document(document, base.get(document), one.get(document), other.get(document), decide)
        if data is not None:
            merged[document] = data
    return merged


def _merge_document(
    document: str, base: bytes | None, one: bytes | None, other: bytes | None, decide: Decide
) -> bytes | None:
    if one == other or other == base:
        return one
    if one == base:
        return other
    parts = _fields(document, base), _fields(document, one), _fields(document, other)
    if one is None or other is None or any(_WHOLE in part for part in parts):
        # Deleted on one side, or not JSON: nothing to merge in it.
        clash = MetadataClash(document, "", None, *(_text(data) for data in (base, one, other)))
        return _encode_choice(decide(clash), (base, one, other))
    fields = _merge_fields(document, *parts, decide)
    for data, part in ((one, parts[1]), (other, parts[2])):
        if _same(fields, part):
            return data
    return json.dumps(_as_document(document, fields), indent=2).encode()


def _merge_fields(
    document: str, base: dict[str, Any], one: dict[str, Any], other: dict[str, Any], decide: Decide
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    # In the order of the documents, so that the result looks like them.
    for field in {**base, **one, **other}:
        sides = base.get(field, MISSING), one.get(field, MISSING), other.get(field, MISSING)
        value = _merge_field(document, field, sides, decide)
        if value is not MISSING:
            merged[field] = value
    return merged


def _merge_field(document: str, field: str, values: tuple[Any, Any, Any], decide: Decide) -> JsonOrMissing:
    base, one, other = values
    easy = _merge_value(base, one, other)
    if easy is not _CLASH:
        return easy
    if field == ATTRIBUTES and all(map(_is_mapping, (base, one, other))):
        sides = _as_mapping(base), _as_mapping(one), _as_mapping(other)
        return _merge_attributes(document, *sides, decide)
    if field == _SHAPE:
        shape = _merge_shape(base, one, other)
        if shape is not None:
            return shape
    if field == _CACHED:
        return MISSING
    return decide(MetadataClash(document, field, None, base, one, other))


def _merge_attributes(
    document: str, base: dict[str, Any], one: dict[str, Any], other: dict[str, Any], decide: Decide
) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in {**base, **one, **other}:
        values = [part.get(key, MISSING) for part in (base, one, other)]
        value = _merge_value(*values)
        if value is _CLASH:
            value = decide(MetadataClash(document, ATTRIBUTES, key, *values))
        if value is not MISSING:
            merged[key] = value
    return merged


def _merge_shape(base: Any, one: Any, other: Any) -> list[int] | None:
    """Return a shape merged dimension by dimension, or None where both sides changed one differently."""
    if not all(isinstance(shape, list) for shape in (base, one, other)):
        return None
    if not len(base) == len(one) == len(other):
        return None
    merged = [_merge_value(*sizes) for sizes in zip(base, one, other, strict=True)]
    return None if _CLASH in merged else merged


_CLASH: Final = object()
_WHOLE: Final = ""
"""The field name of a document that is no JSON object: no JSON document of a node has a field of this name."""


def _merge_value(base: Any, one: Any, other: Any) -> Any:
    if _same(one, other) or _same(other, base):
        return one
    return other if _same(one, base) else _CLASH


def _fields(document: str, data: bytes | None) -> dict[str, Any]:
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {_WHOLE: _text(data)}
    if not isinstance(value, dict):
        return {_WHOLE: value}
    return {ATTRIBUTES: value} if document == ZATTRS else value


def _as_document(document: str, fields: dict[str, Any]) -> Any:
    return fields.get(ATTRIBUTES, {}) if document == ZATTRS else fields


def _text(data: bytes | None) -> JsonOrMissing:
    return MISSING if data is None else data.decode(errors="backslashreplace")


def _encode_choice(choice: JsonOrMissing, candidates: tuple[bytes | None, ...]) -> bytes | None:
    for data in candidates:
        if _same(choice, _text(data)):
            return data
    if choice is MISSING:
        return None
    return choice.encode() if isinstance(choice, str) else json.dumps(choice, indent=2).encode()


def _same(one: Any, other: Any) -> bool:
    """Tell whether two JSON values are the same; 1, 1.0 and true are not, as a dtype may hang on it."""
    if one is MISSING or other is MISSING:
        return one is other
    return one is other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _is_mapping(value: Any) -> bool:
    return value is MISSING or isinstance(value, dict)


def _as_mapping(value: Any) -> dict[str, Any]:
    return {} if value is MISSING else value


def attributes_of(documents: Documents) -> dict[str, Any]:
    """Return a node's attributes, by key."""
    for document in (ZARR_JSON, ZATTRS):
        if document in documents:
            return _as_mapping(_fields(document, documents[document]).get(ATTRIBUTES, MISSING))
    return {}
