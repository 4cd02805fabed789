"""The page: a sorted run of a page tree's entries, each a key, a tag and a value.

An envelope of kind PAGE with two sections: names ([level, count, key lengths, key bytes, tags]) and values
([value lengths, value bytes]), so that a listing decodes only names. Level 0 is a leaf, whose values belong to
who uses the tree (`node`, tile pointers). A page of level k holds one entry for each page of level k-1 below it:
the key is that page's first key (at most a lower bound for the tree's very first page), the tag is 0, the value a
`Child`. Keys are unique and strictly increasing in byte order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from vstore.errors import CorruptionError, FormatError
from vstore.format.columns import EncodedColumn, decode_column, encode_column, encode_few, is_few
from vstore.format.envelope import BlobKind, Envelope, Section, decode_envelope, encode_envelope
from vstore.format.refs import (
    BlobRef,
    WireRef,
    expect,
    from_wire,
    guard,
    message_shape,
    pack_message,
    to_size,
    unpack_message,
)
from vstore.ids import BytesLike

PAGE_VERSION = 1
MAX_LEVEL = 12
MAX_ENTRIES = 65_536
_LEVEL_ZSTD = 3
_NAMES = message_shape(tuple[int, int, EncodedColumn, bytes, bytes])
_VALUES = message_shape(tuple[EncodedColumn, bytes])
_CHILD = message_shape(tuple[WireRef, int, int, int, bool])
_SIZES = message_shape(tuple[msgspec.Raw, int, int, int, bool])


_MAX_TOTAL = 2**63


class Totals(NamedTuple):
    """What a tree, page or tile stands for: live chunk refs and their bytes.

    `exact` is False where a replaced ref could not be subtracted, so that the numbers are upper bounds.
    """

    chunks: int = 0
    bytes: int = 0
    exact: bool = True

    def __add__(self, other: object) -> Totals:
        if not isinstance(other, Totals):
            return NotImplemented
        return Totals(self.chunks + other.chunks, self.bytes + other.bytes, self.exact and other.exact)


class Child(NamedTuple):
    """An entry of an inner page: where the page below is, how many leaf entries it holds, and their totals."""

    ref: BlobRef
    entries: int
    totals: Totals


class Entry(NamedTuple):
    """An entry of a leaf."""

    key: bytes
    tag: int
    value: bytes


class PageNames(msgspec.Struct, frozen=True):
    """The first section of a page: enough to search and to list."""

    level: int
    keys: list[bytes]
    tags: bytes


class Page(msgspec.Struct, frozen=True):
    """A whole page; `values[i]` belongs to `keys[i]`."""

    level: int
    keys: list[bytes]
    tags: bytes
    values: list[bytes]


def encode_page(level: int, entries: list[Entry]) -> bytes:
    """Return the page of `entries`, which are sorted by key."""
    keys = [entry.key for entry in entries]
    names = (
        level,
        len(entries),
        _encode_lengths(keys),
        b"".join(keys),
        bytes([entry.tag for entry in entries]),
    )
    values = [entry.value for entry in entries]
    body = (_encode_lengths(values), b"".join(values))
    return encode_envelope(
        BlobKind.PAGE,
        PAGE_VERSION,
        (Section(pack_message(names), _LEVEL_ZSTD), Section(pack_message(body), _LEVEL_ZSTD)),
    )


def _encode_lengths(pieces: list[bytes]) -> EncodedColumn:
    if is_few(pieces):
        return encode_few(list(map(len, pieces)))
    return encode_column(np.fromiter(map(len, pieces), np.uint64, len(pieces)))


def decode_page(data: BytesLike) -> Page:
    """Return the page in `data`."""
    try:
        envelope = _open(data)
        names = _decode_names(envelope)
        lengths, body = unpack_message(envelope.section(1), "page values", _VALUES)
        return Page(names.level, names.keys, names.tags, _split(lengths, body, len(names.keys)))
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise guard(error, "page") from None


def decode_page_names(data: BytesLike) -> PageNames:
    """Return only keys and tags of the page in `data`."""
    try:
        return _decode_names(_open(data))
    except FormatError:
        raise
    except (ValueError, TypeError, OverflowError) as error:
        raise guard(error, "page") from None


def encode_child(child: Child) -> bytes:
    """Return an inner page's value."""
    chunks, size, exact = child.totals
    if not 0 <= max(child.entries, chunks, size) <= _MAX_TOTAL or min(child.entries, chunks, size) < 0:
        # Sums of what other pages say.
        raise CorruptionError(
            f"the totals {child.totals} of a page can't be: those of pages below it are damaged"
        )
    return pack_message((tuple(child.ref), child.entries, chunks, size, exact))


def decode_child(value: BytesLike) -> Child:
    """Return what an inner page's value says."""
    ref, entries, chunks, size, exact = unpack_message(value, "page entry", _CHILD)
    totals = Totals(
        to_size(chunks, "chunk count", _MAX_TOTAL), to_size(size, "byte count", _MAX_TOTAL), exact
    )
    return Child(from_wire(ref), to_size(entries, "entry count", _MAX_TOTAL), totals)


def sum_totals(totals: Iterable[Totals]) -> Totals:
    """Return the sum of many totals."""
    chunks = size = 0
    exact = True
    for more_chunks, more_size, is_exact in totals:
        chunks += more_chunks
        size += more_size
        exact = exact and is_exact
    return Totals(chunks, size, exact)


def sum_children(values: Sequence[BytesLike]) -> tuple[int, Totals]:
    """Return the leaf entries and the totals of all of an inner page's values together."""
    entries = chunks = size = 0
    exact = True
    for value in values:
        _, more_entries, more_chunks, more_size, is_exact = unpack_message(value, "page entry", _SIZES)
        entries += more_entries
        chunks += more_chunks
        size += more_size
        exact = exact and is_exact
    return entries, Totals(chunks, size, exact)


def _open(data: BytesLike) -> Envelope:
    envelope = decode_envelope(data, BlobKind.PAGE, PAGE_VERSION)
    expect(len(envelope) == 2, "a page has two sections")
    return envelope


def _decode_names(envelope: Envelope) -> PageNames:
    level, count, lengths, body, tags = unpack_message(envelope.section(0), "page names", _NAMES)
    to_size(level, "page level", MAX_LEVEL)
    to_size(count, "entry count", MAX_ENTRIES)
    expect(level == 0 or count > 0, "an inner page is empty")
    expect(len(tags) == count, "a page's tags do not match its keys")
    keys = _split(lengths, body, count)
    expect(all(a < b for a, b in itertools.pairwise(keys)), "a page's keys are not increasing")
    return PageNames(level, keys, tags)


def _split(lengths: EncodedColumn, body: bytes, count: int) -> list[bytes]:
    """Cut `body` into `count` pieces of the lengths in an encoded column."""
    sizes = decode_column(lengths, count)
    expect(bool((sizes <= np.uint64(len(body))).all()), "a page's entry is longer than the page")
    ends = np.cumsum(sizes, dtype=np.uint64).tolist()
    expect((ends[-1] if ends else 0) == len(body), "a page's entries do not fill it")
    starts = [0, *ends[:-1]] if ends else []
    return [body[start:end] for start, end in zip(starts, ends, strict=True)]
