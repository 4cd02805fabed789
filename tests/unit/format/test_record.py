from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format.strategies import blob_refs, digests, names, pack_ids, sizes
from vstore.errors import CorruptionError
from vstore.format.record import (
    ExpiredEntry,
    Operation,
    OperationKind,
    PackMark,
    PackState,
    RefChange,
    RefKind,
    SessionEntry,
    SnapshotEntry,
    digest_of,
    entry_from_wire,
    entry_to_wire,
    expired_from_wire,
    expired_to_wire,
    operation_from_wire,
    operation_to_wire,
    pack_state_from_wire,
    session_from_wire,
    session_to_wire,
)
from vstore.format.refs import pack_message, unpack_message
from vstore.ids import SessionId, SnapshotId, TransactionId

times = st.integers(0, 253_402_300_799_999_999)
snapshot_ids = digests.map(SnapshotId)
ids = st.binary(min_size=16, max_size=16)

entries = st.builds(
    SnapshotEntry,
    blob_refs,
    st.lists(snapshot_ids, max_size=3).map(tuple),
    times,
    st.integers(0, 2**48),
    st.none() | snapshot_ids,
    sizes,
    sizes,
    st.none() | st.tuples(names, st.binary(max_size=20)),
)
changes = st.builds(
    RefChange, st.sampled_from(RefKind), names, st.none() | snapshot_ids, st.none() | snapshot_ids
)
operations = st.builds(
    Operation,
    st.integers(0, 2**63),
    ids.map(TransactionId),
    st.sampled_from(OperationKind),
    times,
    names,
    st.lists(changes, max_size=3).map(tuple),
    st.dictionaries(names, st.none() | names | st.integers(-100, 100), max_size=3),
)
pack_states = st.builds(PackState, pack_ids, st.sampled_from(PackMark), times, st.none() | pack_ids)
sessions = st.builds(SessionEntry, ids.map(SessionId), times, times, times, st.none() | snapshot_ids)
expired_entries = st.builds(
    ExpiredEntry,
    snapshot_ids,
    st.lists(snapshot_ids, max_size=3).map(tuple),
    times,
    st.integers(0, 2**48),
    st.none() | snapshot_ids,
)


def sent(wire: Any) -> Any:
    return unpack_message(pack_message(wire), "record")


@given(entries)
def test_snapshot_entry(entry):
    assert entry_from_wire(sent(entry_to_wire(entry))) == entry
    assert entry.id == entry.ref.digest


@given(operations)
def test_operation(operation):
    assert operation_from_wire(sent(operation_to_wire(operation))) == operation


@given(pack_states)
def test_pack_state(state):
    assert pack_state_from_wire(sent(state)) == state


@given(sessions)
def test_session(session):
    assert session_from_wire(sent(session_to_wire(session))) == session


def test_only_a_lease_has_a_fifth_field():
    # A session's registration is written as it was before there were leases.
    session = SessionEntry(SessionId(ID16), 7, 8, 9)
    assert len(session_to_wire(session)) == 4
    assert session_to_wire(session._replace(snapshot=SnapshotId(ID32))) == (*session_to_wire(session), ID32)


@given(expired_entries)
def test_expired_entry(entry):
    assert expired_from_wire(entry.id, sent(expired_to_wire(entry))) == entry


def test_digest_of():
    assert digest_of(bytes(32)) == bytes(32)
    for value in (bytes(31), "d" * 32, None, 5):
        with pytest.raises(CorruptionError):
            digest_of(value)


# --- what is refused -----------------------------------------------------------------------------------------

ID32, ID16 = bytes(32), bytes(16)
CHANGE = [1, "main", None, ID32]
RECORDS: dict[str, tuple[Any, list[Any]]] = {
    "entry": (entry_from_wire, [[ID32, ID16, 0, 0], [ID32], 5, 1, ID32, 0, 10, ["message", b"{}"]]),
    "operation": (operation_from_wire, [5, ID16, 2, 7, "ada", [CHANGE], {"a": 1}]),
    "pack state": (pack_state_from_wire, [ID16, 4, 7, ID16]),
    "session": (session_from_wire, [ID16, 7, 8, 9]),
    "lease": (session_from_wire, [ID16, 7, 8, 9, ID32]),
    "expired": (lambda value: expired_from_wire(SnapshotId(ID32), value), [[ID32], 5, 1, ID32]),
}
OPTIONAL = {("entry", 4), ("entry", 7), ("pack state", 3), ("lease", 4), ("expired", 3)}
LEGAL = {
    ("entry", 1, "[]"),
    ("expired", 0, "[]"),
    ("operation", 4, "'text'"),
    ("operation", 5, "[]"),
    ("operation", 6, "{}"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_wrong_types_are_refused(name):
    decode, good = RECORDS[name]
    decode(good)
    for index in range(len(good)):
        for value in (None, True, -1, 2**64 - 1, 1.5, "text", b"bytes", [], [1], {}, [None] * 8):
            if (value is None and (name, index) in OPTIONAL) or (name, index, repr(value)) in LEGAL:
                decode([*good[:index], value, *good[index + 1 :]])
                continue
            if (name, index, value) == ("operation", 0, 2**64 - 1):
                continue
            with pytest.raises(CorruptionError):
                decode([*good[:index], value, *good[index + 1 :]])
    # A lease without its last field is a session.
    for value in (None, 1, "text", b"bytes", {}, good[:-1] if name != "lease" else good[:-2]):
        with pytest.raises(CorruptionError):
            decode(value)


@pytest.mark.parametrize("name", RECORDS)
def test_fields_of_later_versions_are_ignored(name):
    decode, good = RECORDS[name]
    later = [None, {"more": 1}] if name == "session" else [{"more": 1}]
    assert decode([*good, *later]) == decode(good)


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("entry", 1, [bytes(31)]),
        ("entry", 2, 253_402_300_800_000_000),
        ("entry", 3, 2**48 + 1),
        ("entry", 4, bytes(16)),
        ("entry", 5, 2**50 + 1),
        ("entry", 7, ["message"]),
        ("entry", 7, [b"message", b"{}"]),
        ("entry", 7, ["message", "{}"]),
        ("operation", 1, bytes(15)),
        ("operation", 2, 0),
        ("operation", 2, max(OperationKind) + 1),
        ("operation", 5, [CHANGE[:3]]),
        ("operation", 5, [[3, *CHANGE[1:]]]),
        ("operation", 5, [[1, b"main", None, None]]),
        ("operation", 5, [[1, "main", bytes(31), None]]),
        ("pack state", 0, bytes(17)),
        ("pack state", 1, 0),
        ("pack state", 1, max(PackMark) + 1),
        ("pack state", 3, bytes(15)),
        ("session", 0, bytes(32)),
        ("lease", 4, bytes(16)),
        ("expired", 0, [bytes(31)]),
        ("expired", 1, 253_402_300_800_000_000),
        ("expired", 2, 2**48 + 1),
        ("expired", 3, bytes(16)),
    ],
)
def test_broken_rules_are_refused(name, index, value):
    decode, good = RECORDS[name]
    with pytest.raises(CorruptionError):
        decode([*good[:index], value, *good[index + 1 :]])


def test_complaints_are_short():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(CorruptionError) as caught:
        pack_state_from_wire([ID16, nested, 7, None])
    assert len(str(caught.value)) < 200


def test_numbers_never_change():
    assert {kind.name: kind.value for kind in RefKind} == {"BRANCH": 1, "TAG": 2}
    assert {mark.name: mark.value for mark in PackMark} == {
        "CONDEMNED": 1,
        "DELETING": 2,
        "REPLACING": 3,
        "RELOCATED": 4,
    }
    first = {
        "CREATE_REPOSITORY": 1,
        "COMMIT": 2,
        "AMEND": 3,
        "FLUSH": 4,
        "CREATE_BRANCH": 5,
        "DELETE_BRANCH": 6,
        "RESET_BRANCH": 7,
        "CREATE_TAG": 8,
        "DELETE_TAG": 9,
        "SET_CONFIG": 10,
        "SET_METADATA": 11,
        "SET_STATUS": 12,
        "OPEN_SESSION": 13,
        "CLOSE_SESSION": 14,
        "NO_OPERATION": 15,
    }
    found = {kind.name: kind.value for kind in OperationKind}
    assert {name: found.get(name) for name in first} == first
    assert sorted(found.values()) == list(range(1, len(found) + 1))
