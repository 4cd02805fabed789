from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore import ids
from vstore.errors import InvalidInputError
from vstore.ids import blake3_digest, is_snapshot_text, jitter, parse_snapshot_id


def test_digest_is_blake3():
    # The first test vector of the BLAKE3 authors, and "abc".
    assert blake3_digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert blake3_digest(b"abc").hex() == "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"


@given(st.binary())
def test_digest_of_any_buffer(data):
    assert blake3_digest(data) == blake3_digest(bytearray(data)) == blake3_digest(memoryview(data))
    assert len(blake3_digest(data)) == ids.DIGEST_SIZE


@pytest.mark.parametrize(
    ("new", "size"),
    [
        (ids.new_pack_id, ids.PACK_ID_SIZE),
        (ids.new_node_id, ids.NODE_ID_SIZE),
        (ids.new_session_id, 16),
        (ids.new_transaction_id, 16),
        (ids.new_repository_id, 16),
        (ids.new_nonce, 16),
    ],
)
def test_new_ids_are_random(new, size):
    found = {new() for _ in range(1000)}
    assert len(found) == 1000
    assert {len(value) for value in found} == {size}
    # All values occur in each byte's place, more or less: none is fixed.
    assert all(len({value[i] for value in found}) > 150 for i in range(size))


def test_sizes_never_change():
    assert (ids.DIGEST_SIZE, ids.PACK_ID_SIZE, ids.NODE_ID_SIZE) == (32, 16, 8)


def test_jitter():
    drawn = [jitter(2.0) for _ in range(500)]
    assert 1.0 <= min(drawn) < 1.2
    assert 1.8 < max(drawn) <= 2.0
    assert jitter(0) == 0


@given(st.binary(min_size=32, max_size=32))
def test_snapshot_id_as_text(digest):
    assert is_snapshot_text(digest.hex())
    assert parse_snapshot_id(digest.hex()) == digest


@given(st.text(st.sampled_from("0123456789abcdefABCDEFg \n"), max_size=66))
def test_what_may_stand_for_a_snapshot(text):
    assert is_snapshot_text(text) == bool(re.match(r"\A[0-9a-f]{8,64}\Z", text))


@pytest.mark.parametrize(
    "text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 63 + "\n", "\u0661" * 64, None, 5]
)
def test_only_full_ids_are_parsed(text):
    with pytest.raises(InvalidInputError, match="64 lower-case hex digits"):
        parse_snapshot_id(text)
