"""Bytes made to harm: a decoder refuses them quickly and in little memory, however they were made.

Digests don't help here: whoever can write a repository can give any bytes a matching digest.
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import zstd

from tests.format.decoders import ENVELOPES, MESSAGES, read
from vstore.errors import FormatError
from vstore.format.envelope import (
    MAX_SECTION_BYTES,
    BlobKind,
    Section,
    decode_envelope,
    encode_envelope,
)
from vstore.format.manifest import decode_manifest
from vstore.format.node import decode_node, decode_pointer, decode_value
from vstore.format.pack import Trailer, decode_footer
from vstore.format.page import decode_child, decode_page, decode_page_names
from vstore.format.snapshot import decode_snapshot
from vstore.ids import PackId

MIB = 1024 * 1024
KINDS = {
    decode_manifest: BlobKind.MANIFEST,
    decode_page: BlobKind.PAGE,
    decode_page_names: BlobKind.PAGE,
    decode_snapshot: BlobKind.SNAPSHOT,
}
SECTIONS = {BlobKind.MANIFEST: 3, BlobKind.PAGE: 2, BlobKind.SNAPSHOT: 1, BlobKind.FOOTER: 2}


@contextlib.contextmanager
def bounded(memory_bytes: int, time_s: float = 1.0) -> Iterator[None]:
    """Check that the block takes no more than this, and raises `FormatError`."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(FormatError) as caught:
            yield
        taken_s, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    assert peak <= memory_bytes
    assert taken_s <= time_s


def envelope(kind: BlobKind, *sections: tuple[int, int, bytes]) -> bytes:
    """Return an envelope of sections (compression, claimed raw size, stored bytes)."""
    table = b"".join(
        bytes([code]) + len(stored).to_bytes(4, "little") + raw.to_bytes(4, "little")
        for code, raw, stored in sections
    )
    return bytes([kind, 1, len(sections), 0]) + table + b"".join(stored for _, _, stored in sections)


def decode_any_footer(data: bytes) -> Any:
    """Decode a footer by a trailer that agrees with it."""
    return decode_footer(data, Trailer(PackId(bytes(16)), 16, len(data), 1, crc32c(data)))


WHOLE = [*KINDS, decode_any_footer]


def kind_of(decode: Callable[[bytes], Any]) -> BlobKind:
    return KINDS.get(decode, BlobKind.FOOTER)


# --- compression ---------------------------------------------------------------------------------------------


def rle_frame(stated_size: int, blocks: int) -> bytes:
    """Return a zstd frame that states a size and holds `blocks` times 128 KiB of zeros."""
    block = (1 << 1 | 128 * 1024 << 3).to_bytes(3, "little") + b"\0"
    last = (1 | 1 << 1 | 128 * 1024 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\xe0" + stated_size.to_bytes(8, "little") + block * (blocks - 1) + last


def test_frames_of_the_next_tests_are_valid():
    frame = rle_frame(256 * 1024, 2)
    assert zstd.decompress(frame) == bytes(256 * 1024)


@pytest.mark.parametrize("decode", WHOLE)
@pytest.mark.parametrize(
    ("raw", "frame"),
    [
        (1000, rle_frame(1000, 100_000)),
        (1000, rle_frame(2**63, 2)),
        (MAX_SECTION_BYTES, rle_frame(MAX_SECTION_BYTES, 1)),
        (MAX_SECTION_BYTES, rle_frame(MAX_SECTION_BYTES, 1)[:13]),
        (MAX_SECTION_BYTES, b"\x28\xb5\x2f\xfd\xa0" + MAX_SECTION_BYTES.to_bytes(4, "little")),
        (2**32 - 1, rle_frame(2**32 - 1, 1)),
        (2**32 - 1, rle_frame(2**32 - 1, 32_768)),
    ],
    ids=["more than stated", "2**63", "lies", "cut", "header only", "4 GiB lies", "4 GiB"],
)
def test_frames_that_lie_cost_nothing(decode, raw, frame):
    kind = kind_of(decode)
    data = envelope(kind, (1, raw, frame), *[(0, 0, b"")] * (SECTIONS[kind] - 1))
    with bounded(len(data) + 200_000):
        decode(data)


@pytest.mark.parametrize("decode", WHOLE)
def test_the_largest_section_costs_its_size(decode):
    """2 kB that are truly 64 MiB: no more than a few times the section's limit."""
    kind = kind_of(decode)
    frame = rle_frame(MAX_SECTION_BYTES, MAX_SECTION_BYTES // (128 * 1024))
    data = envelope(kind, (1, MAX_SECTION_BYTES, frame), *[(0, 0, b"")] * (SECTIONS[kind] - 1))
    assert len(data) < 3000
    with bounded(MAX_SECTION_BYTES + MIB):
        decode(data)


# --- messages ------------------------------------------------------------------------------------------------


def message_of(name: str, section: int | None = None) -> Any:
    data = read(name)
    if section is not None:
        data = decode_envelope(data, BlobKind(data[0]), 1).section(section)
    return msgspec.msgpack.decode(data)


def in_envelope(kind: BlobKind, index: int, name: str) -> Callable[[bytes], bytes]:
    """Return how to put a message into the place of section `index` of a golden file."""
    found = decode_envelope(read(name), kind, 1) if name else None

    def wrap(message: bytes) -> bytes:
        if found is None:
            return encode_envelope(kind, 1, (Section(message, 1), Section(bytes(32))))
        parts = [Section(found.section(i)) for i in range(len(found))]
        parts[index] = Section(message, 1)
        return encode_envelope(kind, 1, tuple(parts))

    return wrap


FOOTER = {"n": 1, "kind": [0, 1, 0, b""], "offset": [0, 16, 0, b""], "length": [0, 0, 0, b""]}
Place = tuple[Callable[[bytes], Any], Callable[[bytes], bytes], Any]
PLACES: dict[str, Place] = {
    "manifest": (
        decode_manifest,
        in_envelope(BlobKind.MANIFEST, 0, "manifest-mixed.bin"),
        message_of("manifest-mixed.bin", 0),
    ),
    "page names": (
        decode_page,
        in_envelope(BlobKind.PAGE, 0, "page-leaf.bin"),
        message_of("page-leaf.bin", 0),
    ),
    "page values": (
        decode_page,
        in_envelope(BlobKind.PAGE, 1, "page-leaf.bin"),
        message_of("page-leaf.bin", 1),
    ),
    "snapshot": (
        decode_snapshot,
        in_envelope(BlobKind.SNAPSHOT, 0, "snapshot.bin"),
        message_of("snapshot.bin", 0),
    ),
    "footer": (decode_any_footer, in_envelope(BlobKind.FOOTER, 0, ""), FOOTER),
    "node": (decode_node, bytes, message_of("node-array.bin")),
    "pointer": (decode_pointer, bytes, message_of("pointer.bin")),
    "value": (decode_value, bytes, message_of("value-long.bin")),
    "child": (decode_child, bytes, message_of("child.bin")),
}


def encode(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize("name", PLACES)
def test_the_base_of_the_next_tests_is_good(name):
    decode, wrap, message = PLACES[name]
    decode(wrap(encode(message)))


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize(
    "message",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x05",
        b"\x91" * 200_000 + b"\0",
        b"\x81\xa0" * 200_000 + b"\0",
        b"\x95" * 200_000,
    ],
    ids=["list", "map", "bytes", "text", "extension", "nested lists", "nested maps", "wide nested lists"],
)
def test_counts_and_nesting_that_lie_cost_nothing(name, message):
    decode, wrap, _ = PLACES[name]
    data = wrap(message)
    with bounded(len(message) + MIB):
        decode(data)


def paths_of(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each part of a message."""
    yield ()
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        for path in paths_of(below):
            yield (key, *path)


def with_part(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """Return a message with the part at `path` replaced, or appended where `path` ends in None."""
    if not path:
        return part
    if path[0] is None:
        return {**value, "zz": part} if isinstance(value, dict) else [*value, part]
    if isinstance(value, dict):
        return {**value, path[0]: with_part(value[path[0]], path[1:], part)}
    return [*value[: path[0]], with_part(value[path[0]], path[1:], part), *value[path[0] + 1 :]]


MANY = 2**20
BOMBS = {
    "empty lists": b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY,
    "empty maps": b"\xdd" + MANY.to_bytes(4, "big") + b"\x80" * MANY,
    "texts": b"\xdd" + MANY.to_bytes(4, "big") + b"\xa1a" * MANY,
    "keys": b"\xdf"
    + MANY.to_bytes(4, "big")
    + b"".join(b"\xa4%04x\xc4\0" % (i % 65_536) for i in range(MANY)),
}


def check_bomb(decode: Callable[[bytes], Any], data: bytes, raw_size: int) -> None:
    """Decode: it may succeed, but it costs no more than a few times the raw size."""
    tracemalloc.start()
    with contextlib.suppress(FormatError):
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * raw_size + MIB


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("bomb", BOMBS)
def test_no_part_of_a_message_grows_when_it_is_decoded(name, bomb):
    """A message of millions of small things would make gigabytes of objects."""
    decode, wrap, message = PLACES[name]
    marker = b"@marker@"
    places = [*paths_of(message), (None,)]
    places += [(*path, None) for path in places if path and isinstance(path[-1], str | int)]
    for path in places:
        try:
            marked = encode(with_part(message, path, marker))
        except (TypeError, AttributeError):
            continue  # `path` ends in None below something that is neither a list nor a map
        raw = marked.replace(b"\xc4\x08" + marker, BOMBS[bomb])
        check_bomb(decode, wrap(raw), len(raw))


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2**31, 2**32, 2**63, 2**64 - 1, -(2**63)])
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 5), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", PLACES)
@given(data=st.data())
def test_any_part_may_be_anything(name, data):
    decode, wrap, message = PLACES[name]
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(paths_of(message))))
        message = with_part(message, path, data.draw(junk))
    with contextlib.suppress(FormatError):
        decode(wrap(encode(message)))


RECORDS = ["entry.bin", "operation.bin", "pack-relocated.bin", "session.bin", "lease.bin", "expired.bin"]


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
def test_any_part_of_a_record_may_be_anything(name, data):
    message = message_of(name)
    path = data.draw(st.sampled_from(list(paths_of(message))))
    with contextlib.suppress(FormatError):
        MESSAGES[name](encode(with_part(message, path, data.draw(junk))))


@pytest.mark.parametrize("decode", [*WHOLE, *dict.fromkeys(MESSAGES.values())])
@given(data=st.binary(max_size=200))
def test_any_bytes(decode, data):
    with contextlib.suppress(FormatError):
        decode(data)


@pytest.mark.parametrize("name", ENVELOPES)
@given(data=st.data())
def test_any_splice(name, data):
    """Parts of two files, end to end."""
    left, right = read(name), read(data.draw(st.sampled_from(list(ENVELOPES))))
    cut = data.draw(st.integers(0, len(left)))
    spliced = left[:cut] + right[data.draw(st.integers(0, len(right))) :]
    with contextlib.suppress(FormatError):
        ENVELOPES[name](spliced)


# --- what is known of a section before it is decompressed ------------------------------------------------------


def zeros(size: int) -> tuple[int, int, bytes]:
    return (1, size, rle_frame(size, size // (128 * 1024)))


def test_digests_of_a_footer_are_never_compressed():
    """A million blobs in 2 kB."""
    count = MAX_SECTION_BYTES // 64
    message = encode(
        {"n": count, "kind": [0, 1, 0, b""], "offset": [1, 16, 1, b""], "length": [0, 1, 0, b""]}
    )
    data = envelope(BlobKind.FOOTER, (0, len(message), message), zeros(32 * count))
    with bounded(100_000):
        decode_footer(data, Trailer(PackId(bytes(16)), 2**40, len(data), count, crc32c(data)))


def test_digests_of_a_manifest_are_never_compressed():
    message = message_of("manifest-one.bin", 0) | {"n": 4096, "pos": [1, 0, 1, b""]}
    packed = encode(message)
    data = envelope(BlobKind.MANIFEST, (0, len(packed), packed), zeros(32 * 4096), (0, 0, b""))
    with bounded(1_000_000):
        decode_manifest(data)


def test_inline_bytes_are_bounded_by_the_inline_chunks():
    parts = decode_envelope(read("manifest-mixed.bin"), BlobKind.MANIFEST, 1)
    columns, digests = bytes(parts.section(0)), bytes(parts.section(1))
    data = envelope(
        BlobKind.MANIFEST,
        (0, len(columns), columns),
        (0, len(digests), digests),
        zeros(MAX_SECTION_BYTES),
    )
    with bounded(200_000):
        decode_manifest(data)


@pytest.mark.parametrize("what", ["entry", "operation", "session"])
def test_messages_of_the_catalog_that_expand(what):
    from vstore.catalog.state import decode_entry, decode_operation

    bomb = b"\xdd" + MANY.to_bytes(4, "big") + b"\x90" * MANY
    decode = {"entry": decode_entry, "operation": decode_operation, "session": MESSAGES["session.bin"]}[what]
    for data in (bomb, b"\x97\x00\xc4\x10" + bytes(16) + b"\x02\x01\xa0" + bomb + b"\x80"):
        with bounded(2 * MIB):
            decode(data)
    with bounded(2 * MIB):
        decode(b"\x97\x00\xc4\x10" + bytes(16) + b"\x02\x01\xa0\x90\x81\xa1a" + bomb)
