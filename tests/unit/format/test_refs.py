from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.format.strategies import blob_refs
from vstore.errors import CorruptionError, MissingBlobError
from vstore.format.refs import (
    check_table_size,
    expect,
    from_wire,
    guard,
    message_shape,
    pack_message,
    to_size,
    unpack_message,
)

DIGEST, PACK = bytes(range(32)), bytes(range(16))


@given(blob_refs)
def test_blob_ref_through_a_message(ref):
    assert from_wire(unpack_message(pack_message(tuple(ref)), "ref")) == ref


def test_bytes_of_a_blob_ref():
    data = pack_message((DIGEST, PACK, 16, 1000))
    assert data == b"\x94\xc4\x20" + DIGEST + b"\xc4\x10" + PACK + b"\x10\xcd\x03\xe8"


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        "text",
        b"four",
        [],
        [DIGEST, PACK, 0],
        [DIGEST, PACK, 0, 0, 0],
        {DIGEST: 1, PACK: 2, 0: 3, 1: 4},
        [DIGEST[:-1], PACK, 0, 0],
        [DIGEST, PACK + b"x", 0, 0],
        ["d" * 32, PACK, 0, 0],
        [DIGEST, None, 0, 0],
        [DIGEST, PACK, -1, 0],
        [DIGEST, PACK, 0, -1],
        [DIGEST, PACK, 2**50 + 1, 0],
        [DIGEST, PACK, 0.0, 0],
        [DIGEST, PACK, True, 0],
        [DIGEST, PACK, 0, None],
    ],
)
def test_malformed_blob_refs_are_refused(value):
    with pytest.raises(CorruptionError):
        from_wire(value)


@pytest.mark.parametrize(
    ("length", "size"),
    [(0, 0), (1, 0), (65_536, 0), (65_537, 8), (131_072, 8), (131_073, 12), (2**40, 4 * 2**24)],
)
def test_check_table_size(length, size):
    assert check_table_size(length) == size


def test_sizes_have_a_limit():
    assert to_size(0, "x") == 0
    assert to_size(5, "x", 5) == 5
    with pytest.raises(CorruptionError, match="the x 6 is not a number from 0 to 5"):
        to_size(6, "x", 5)
    with pytest.raises(CorruptionError, match="the x of type str is not a number"):
        to_size("5", "x", 5)


def test_complaints_about_sizes_are_short():
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, bytes(10**6), {"a" * 10**6: 1}):
        with pytest.raises(CorruptionError) as caught:
            to_size(value, "offset")
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x92\x01",
        b"\x01\x01",
        b"\xa1\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 100_000 + b"\0",
        b"\x81\xa0" * 100_000 + b"\0",
        b"\x81\x80\0",
    ],
)
def test_malformed_messages_are_refused(data):
    with pytest.raises(CorruptionError, match="the thing is not valid msgpack"):
        unpack_message(data, "thing")


def test_a_message_must_have_its_shape():
    shape = message_shape(tuple[int, bytes])
    assert unpack_message(b"\x92\x01\xc4\x00", "thing", shape) == (1, b"")
    for data in (b"\x92\xc3\xc4\x00", b"\x92\x01\xa0", b"\x91\x01", b"\x80"):
        with pytest.raises(CorruptionError):
            unpack_message(data, "thing", shape)


def test_fields_that_a_shape_does_not_know_are_ignored_unbuilt():
    class Known(msgspec.Struct):
        a: int

    shape = message_shape(Known)
    assert unpack_message(pack_message({"b": [1, {"c": None}], "a": 5}), "thing", shape).a == 5
    with pytest.raises(CorruptionError):
        unpack_message(b"\x82\xa1a\x05\xa1b" + b"\x91" * 100_000 + b"\0", "thing", shape)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_message_or_refused(data):
    with contextlib.suppress(CorruptionError):
        unpack_message(data, "thing")


def test_expect():
    expect(True, "never")
    with pytest.raises(CorruptionError, match="why"):
        expect(False, "why")


def test_guard_keeps_our_own_errors():
    ours = MissingBlobError("gone")
    assert guard(ours, "page") is ours
    wrapped = guard(ValueError("bad"), "page")
    assert type(wrapped) is CorruptionError
    assert str(wrapped) == "the page is malformed: ValueError('bad')"
