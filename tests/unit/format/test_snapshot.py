from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given

from tests.unit.format.strategies import snapshots
from vstore.errors import CorruptionError, UnsupportedFormatError
from vstore.format.envelope import BlobKind, Section, encode_envelope
from vstore.format.refs import pack_message
from vstore.format.snapshot import MAX_PARENTS, Snapshot, decode_snapshot, encode_snapshot

REF = [bytes(32), bytes(16), 16, 100]
GOOD: dict[str, Any] = {
    "parents": [bytes(32)],
    "time": 5,
    "message": "why",
    "metadata": b'{"a": 1}',
    "root": pack_message([REF, 1, 2, 3, True]),
}


@given(snapshots)
def test_encode_then_decode(snapshot):
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


def snapshot_bytes(sections: int = 1, **changes: Any) -> bytes:
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not ...}
    return encode_envelope(BlobKind.SNAPSHOT, 1, (Section(pack_message(fields)), Section(b""))[:sections])


def test_the_base_of_the_next_tests_is_good():
    found = decode_snapshot(snapshot_bytes())
    assert (found.parents, found.time_us, found.message, found.metadata) == (
        (bytes(32),),
        5,
        "why",
        b'{"a": 1}',
    )
    assert found.root.entries == 1


def test_an_empty_hierarchy_has_no_root():
    assert decode_snapshot(snapshot_bytes(root=None)).root is None
    assert decode_snapshot(snapshot_bytes(root=...)).root is None


def test_fields_of_later_versions_are_ignored():
    assert decode_snapshot(snapshot_bytes(signature=[b"x"])) == decode_snapshot(snapshot_bytes())


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("value", [..., None, True, -1, 2**63, 1.5, "text", b"bytes", [1], {}], ids=repr)
def test_wrong_types_are_refused(name, value):
    if (name, value) in [("message", "text"), ("root", None), ("root", ...)]:
        return
    with pytest.raises(CorruptionError):
        decode_snapshot(snapshot_bytes(**{name: value}))


@pytest.mark.parametrize(
    "changes",
    [
        {"parents": [bytes(31)]},
        {"parents": [bytes(32)] * (MAX_PARENTS + 1)},
        {"time": 253_402_300_800_000_000},
        {"metadata": b""},
        {"metadata": b"[]"},
        {"metadata": b"{"},
        {"metadata": b'{"a": 1} x'},
        {"metadata": '{"a": 1}'.encode("utf-16")},
        {"metadata": b'{"a": "\xff"}'},
        {"metadata": b'{"a":' * 100_000},
        {"metadata": b'{"a": ' + b"9" * 10_000 + b"}"},
        {"root": pack_message([REF, 1, 2, 3])},
        {"root": pack_message([REF[:3], 1, 2, 3, True])},
        {"sections": 2},
    ],
    ids=lambda changes: repr(changes)[:50],
)
def test_broken_rules_are_refused(changes):
    with pytest.raises(CorruptionError):
        decode_snapshot(snapshot_bytes(**changes))


def test_most_parents():
    assert len(decode_snapshot(snapshot_bytes(parents=[bytes(32)] * MAX_PARENTS)).parents) == MAX_PARENTS


def test_newer_version():
    data = bytearray(encode_snapshot(Snapshot((), 0, "", b"{}", None)))
    data[1] = 2
    with pytest.raises(UnsupportedFormatError):
        decode_snapshot(data)
