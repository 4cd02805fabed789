"""Columns of unsigned 64-bit integers, each in the shortest of four encodings.

A column is the list [code, a, b, planes]:

    CONSTANT    every value is a
    RUN         value i is a + b * i                                (b may be negative)
    OFFSET      value i is a + the unsigned number i in planes      (b bytes each)
    DELTA       value 0 is a; value i is value i-1 + zigzag(number i-1 in planes)   (b bytes each)

`planes` holds n (OFFSET) or n-1 (DELTA) numbers of b bytes as b byte planes, least significant first, which is
what makes them compress. Measured on manifests: 2 to 7 bytes a virtual ref. All arithmetic is modulo 2**64.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sized
from enum import IntEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.errors import CorruptionError

U64: TypeAlias = npt.NDArray[np.uint64]
EncodedColumn: TypeAlias = tuple[int, int, int, bytes]


class ColumnCode(IntEnum):
    """How a column is encoded. Persisted: never renumber."""

    CONSTANT = 0
    RUN = 1
    OFFSET = 2
    DELTA = 3


_ONE = np.uint64(1)
_MASK = 2**64 - 1
_FEW = 32
_SIGN_SHIFT = np.int64(63)
_CONSTANT = ColumnCode.CONSTANT


def encode_column(values: npt.NDArray[Any]) -> EncodedColumn:
    """Return `values` (any unsigned or non-negative integers) as the encoded column of fewest bytes."""
    column = np.ascontiguousarray(values, dtype=np.uint64)
    if len(column) == 0:
        return (ColumnCode.CONSTANT, 0, 0, b"")
    if is_few(column):
        return encode_few(column.tolist())
    first = int(column[0])
    steps = np.diff(column).view(np.int64)
    step = int(steps[0])
    if (steps == step).all():
        return (ColumnCode.RUN, first, step, b"") if step else (ColumnCode.CONSTANT, first, 0, b"")
    minimum = column.min()
    above = column - minimum
    zigzag = ((steps << np.int64(1)) ^ (steps >> _SIGN_SHIFT)).view(np.uint64)
    # The mean magnitude predicts the compressed size better than the widest value does.
    if float(zigzag.mean()) < float(above.mean()):
        width = _width(int(zigzag.max()))
        return (ColumnCode.DELTA, first, width, _to_planes(zigzag, width))
    width = _width(int(above.max()))
    return (ColumnCode.OFFSET, int(minimum), width, _to_planes(above, width))


def is_few(values: Sized) -> bool:
    """Tell whether values are so few that numpy's calls cost more than the work."""
    return len(values) <= _FEW


def encode_few(values: list[int]) -> EncodedColumn:
    """Do what `encode_column` does, with the same result, for a list of few values."""
    first = values[0] if values else 0
    if values.count(first) == len(values):
        return (_CONSTANT, first, 0, b"")
    steps = [_wrapped(after - before) for before, after in itertools.pairwise(values)]
    step = steps[0]
    if steps.count(step) == len(steps):
        return (ColumnCode.RUN, first, step, b"")
    minimum = min(values)
    above = [value - minimum for value in values]
    zigzag = [(step << 1) & _MASK if step >= 0 else ((-step << 1) - 1) & _MASK for step in steps]
    if sum(map(float, zigzag)) / len(zigzag) < sum(map(float, above)) / len(above):
        width = _width(max(zigzag))
        return (ColumnCode.DELTA, first, width, _planes_of(zigzag, width))
    width = _width(max(above))
    return (ColumnCode.OFFSET, minimum, width, _planes_of(above, width))


def _wrapped(step: int) -> int:
    """Return a difference modulo 2**64 as a signed number."""
    return ((step + (1 << 63)) & _MASK) - (1 << 63)


def _planes_of(values: list[int], width: int) -> bytes:
    whole = struct.pack(f"<{len(values)}Q", *values)
    return b"".join(whole[plane::8] for plane in range(width))


def decode_column(encoded: object, count: int) -> U64:
    """Return the `count` values of an encoded column; `count` is bounded by the caller."""
    code, a, b, planes = _check(encoded)
    if code == ColumnCode.CONSTANT:
        return np.full(count, a, dtype=np.uint64)
    if code == ColumnCode.RUN:
        step = np.uint64(b & 0xFFFF_FFFF_FFFF_FFFF)
        return np.uint64(a) + step * np.arange(count, dtype=np.uint64)
    if code == ColumnCode.OFFSET:
        return np.uint64(a) + _from_planes(planes, b, count)
    if code == ColumnCode.DELTA:
        zigzag = _from_planes(planes, b, max(count - 1, 0))
        steps = (zigzag >> _ONE) ^ (np.uint64(0) - (zigzag & _ONE))
        out = np.empty(count, dtype=np.uint64)
        out[:1] = a
        out[1:] = steps
        return np.cumsum(out, dtype=np.uint64)
    raise CorruptionError(f"unknown column code {code}")


def _check(encoded: object) -> tuple[int, int, int, bytes]:
    if not isinstance(encoded, (list, tuple)) or len(encoded) != 4:
        raise CorruptionError("a column is not a list of four")
    code, a, b, planes = encoded
    if not (
        isinstance(code, int) and isinstance(a, int) and isinstance(b, int) and isinstance(planes, bytes)
    ):
        raise CorruptionError("a column has fields of a wrong type")
    if not 0 <= a < 2**64 or not -(2**63) <= b < 2**63:
        raise CorruptionError("a column has a field out of range")
    return code, a, b, planes


def _width(largest: int) -> int:
    return max(1, (largest.bit_length() + 7) // 8)


def _to_planes(values: U64, width: int) -> bytes:
    as_bytes = values.astype("<u8", copy=False).view(np.uint8).reshape(len(values), 8)
    return as_bytes[:, :width].T.tobytes()


def _from_planes(planes: bytes, width: int, count: int) -> U64:
    if not 1 <= width <= 8 or len(planes) != width * count:
        raise CorruptionError(f"a column of {count} values does not fill its {len(planes)} bytes")
    out = np.zeros((count, 8), dtype=np.uint8)
    out[:, :width] = np.frombuffer(planes, dtype=np.uint8).reshape(width, count).T
    return out.view("<u8").reshape(count).astype(np.uint64, copy=False)
