from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.errors import CorruptionError
from vstore.format.columns import ColumnCode, decode_column, encode_column

U64 = 2**64
numbers = st.integers(0, U64 - 1)
columns = (
    st.lists(numbers, max_size=60)
    | st.lists(st.integers(0, 300), max_size=60)
    | st.builds(lambda a, b, n: [(a + b * i) % U64 for i in range(n)], numbers, numbers, st.integers(0, 40))
)


def decode(code: int, a: int, b: int, planes: bytes, count: int) -> list[int]:
    """Return a column's values by the formulas of docs/format.md."""

    def number(index: int, total: int) -> int:
        return sum(planes[plane * total + index] << 8 * plane for plane in range(b))

    if code == 0:
        return [a] * count
    if code == 1:
        return [(a + b * i) % U64 for i in range(count)]
    if code == 2:
        return [(a + number(i, count)) % U64 for i in range(count)]
    values = [a]
    for i in range(count - 1):
        zigzag = number(i, count - 1)
        values.append((values[-1] + (zigzag // 2 if zigzag % 2 == 0 else -(zigzag // 2) - 1)) % U64)
    return values[:count]


@given(columns)
def test_encode_then_decode(values):
    encoded = encode_column(np.array(values, np.uint64))
    assert decode_column(encoded, len(values)).tolist() == values
    assert decode(*encoded, len(values)) == values


@given(st.data(), st.sampled_from(ColumnCode), numbers, st.integers(0, 30))
def test_decode_follows_the_formulas(data, code, a, count):
    if code in (ColumnCode.CONSTANT, ColumnCode.RUN):
        b, size = data.draw(st.integers(-(2**63), 2**63 - 1)), 0
    else:
        b = data.draw(st.integers(1, 8))
        size = b * (count if code == ColumnCode.OFFSET else max(count - 1, 0))
    planes = data.draw(st.binary(min_size=size, max_size=size))
    found = decode_column((code, a, b, planes), count)
    assert found.dtype == np.uint64
    assert found.tolist() == decode(code, a, b, planes, count)


@pytest.mark.parametrize(
    ("values", "encoded"),
    [
        ([], (0, 0, 0, b"")),
        ([7], (0, 7, 0, b"")),
        ([7, 7, 7], (0, 7, 0, b"")),
        ([5, 8, 11], (1, 5, 3, b"")),
        ([11, 8, 5], (1, 11, -3, b"")),
        ([U64 - 1, 0], (1, U64 - 1, 1, b"")),
        ([10, 13, 10, 12], (2, 10, 1, b"\0\3\0\2")),
        ([1000, 1000 + 0x201, 1000], (2, 1000, 2, b"\0\1\0" + b"\0\2\0")),
        ([1000, 1100, 1099, 1199, 1198, 1298], (3, 1000, 1, bytes([200, 1, 200, 1, 200]))),
    ],
)
def test_encodings(values, encoded):
    assert encode_column(np.array(values, np.uint64)) == encoded


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64])
def test_encodes_any_integer_type(dtype):
    assert encode_column(np.array([9, 3, 4], dtype)) == (2, 3, 1, bytes([6, 0, 1]))


@pytest.mark.parametrize("largest", [255, 256, 65_535, 65_536, 2**32, 2**56 - 1, 2**56, U64 - 1])
def test_numbers_are_as_narrow_as_the_largest_needs(largest):
    code, _, width, planes = encode_column(np.array([0, largest, 0, largest, 0], np.uint64))
    expected = (largest.bit_length() + 7) // 8
    # Steps of more than 2**63 are small ones the other way round, modulo 2**64.
    if largest == U64 - 1:
        assert (code, width) == (ColumnCode.DELTA, 1)
    else:
        assert (code, width) == (ColumnCode.OFFSET, expected)
        assert len(planes) == 5 * expected


@pytest.mark.parametrize(
    "column",
    [
        None,
        {},
        "abcd",
        [],
        [0, 0, 0],
        [0, 0, 0, b"", 0],
        [None, 0, 0, b""],
        [0, 1.0, 0, b""],
        [0, 0, None, b""],
        [0, 0, 0, "text"],
        [4, 0, 0, b""],
        [-1, 0, 0, b""],
        [0, -1, 0, b""],
        [0, U64, 0, b""],
        [1, 0, 2**63, b""],
        [1, 0, -(2**63) - 1, b""],
        [2, 0, 0, b""],
        [2, 0, 9, bytes(27)],
        [2, 0, -1, b""],
        [2, 0, 1, bytes(2)],
        [2, 0, 1, bytes(4)],
        [3, 0, 1, bytes(1)],
        [3, 0, 1, bytes(3)],
        [3, 0, 2**62, b""],
    ],
)
def test_malformed_columns_are_refused(column):
    with pytest.raises(CorruptionError):
        decode_column(column, 3)


def test_codes_never_change():
    assert {code.name: code.value for code in ColumnCode} == {
        "CONSTANT": 0,
        "RUN": 1,
        "OFFSET": 2,
        "DELTA": 3,
    }
