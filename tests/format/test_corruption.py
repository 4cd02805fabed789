"""Every byte flipped, every length cut: nothing but FormatError comes out of a decoder, and no pack passes.

What notices damage: a pack's header, footer and trailer by their own checksums, everything between them by blob
digests and checksum tables. An envelope has no checksum of its own, since its digest is checked before it is decoded;
its head and section table are nevertheless checked in full, and so is every cut. A flip inside a section may decode
to another value; a flip inside a message may do so too. The log catalog's objects are in test_log_record.py.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.format.decoders import ENVELOPES, MESSAGES, PACKS, flips, open_pack, read, verify_pack
from vstore.errors import FormatError

MEMORY_LIMIT_BYTES = 4 * 1024 * 1024
DECODERS = {**ENVELOPES, **MESSAGES}


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MEMORY_LIMIT_BYTES


def is_refused(decode: Callable[[bytes], Any], data: bytes) -> bool:
    try:
        decode(data)
    except FormatError:
        return True
    return False


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("name", DECODERS)
def test_flips_raise_nothing_but_format_errors(name):
    data, decode = read(name), DECODERS[name]
    assert not is_refused(decode, data)
    refused = sum(is_refused(decode, damaged) for _, damaged in flips(data))
    assert refused > 0


@pytest.mark.parametrize("name", ENVELOPES)
def test_flips_in_the_head_of_an_envelope_are_refused(name):
    data, decode = read(name), ENVELOPES[name]
    head = range(4 + 9 * data[2])
    assert [position for position, damaged in flips(data, head) if not is_refused(decode, damaged)] == []


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("name", DECODERS)
def test_cuts_and_additions_are_refused(name):
    data, decode = read(name), DECODERS[name]
    assert [length for length in range(len(data)) if not is_refused(decode, data[:length])] == []
    assert is_refused(decode, data + b"\0")
    assert is_refused(decode, b"\0" + data)


@pytest.mark.parametrize("name", ENVELOPES)
def test_bytes_of_another_kind_are_refused(name):
    for other, decode in ENVELOPES.items():
        if other.split("-")[0].removesuffix(".bin") != name.split("-")[0].removesuffix(".bin"):
            assert is_refused(decode, read(name))


def flipped_positions(name: str, data: bytes) -> range:
    """Return every byte, but only some of those of a large blob."""
    return range(len(data)) if len(data) < 10_000 else range(0, len(data), 97)


@pytest.mark.parametrize("name", PACKS)
def test_every_flip_in_a_pack_is_noticed(name):
    data = read(name)
    verify_pack(data)
    passed = [
        position
        for position, damaged in flips(data, flipped_positions(name, data))
        if not is_refused(verify_pack, damaged)
    ]
    assert passed == []


def test_every_flip_behind_the_large_blob_is_noticed():
    data = read("pack-large.bin")
    _, footer = open_pack(data)
    end = range(int(footer.offsets[0] + footer.lengths[0]), len(data))
    assert len(end) > 100
    passed = [position for position, damaged in flips(data, end) if not is_refused(verify_pack, damaged)]
    assert passed == []


@pytest.mark.parametrize("name", PACKS)
def test_every_cut_of_a_pack_is_noticed(name):
    data = read(name)
    lengths = [*range(0, len(data), 1 if len(data) < 10_000 else 97), len(data) - 1, len(data) - 64]
    assert [length for length in lengths if not is_refused(open_pack, data[:length])] == []
