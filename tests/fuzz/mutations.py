"""Ways to damage bytes so that the damage reaches the inner decoder: checksums and sizes are made right again."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator

from crc32c import crc32c
from hypothesis import strategies as st

from vstore.errors import FormatError
from vstore.format.envelope import BlobKind, Section, decode_envelope, encode_envelope
from vstore.format.pack import TRAILER_SIZE, decode_trailer

MIB = 1024 * 1024
PEAK_BYTES = 64 * MIB
"""Of memory for decoding an input of a few KiB that was not made to fill a section."""

INTERESTING = (0, 1, 0x7F, 0x80, 0xC0, 0xC4, 0xC6, 0xCB, 0xCF, 0xD3, 0xDD, 0xDF, 0xFF)
"""Bytes that mean something to msgpack, or are at an end."""


@contextlib.contextmanager
def refused_cheaply(*errors: type[Exception], peak_bytes: int = PEAK_BYTES) -> Iterator[None]:
    """Let the block succeed or raise a typed error, and check what memory it took."""
    tracemalloc.start()
    try:
        with contextlib.suppress(FormatError, *errors):
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < peak_bytes


@st.composite
def mutated(draw: st.DrawFn, data: bytes) -> bytes:
    """Return `data` with one to four edits: bytes flipped, set, cut, put in, repeated or moved; numbers changed."""
    out = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(out)))
        match draw(st.integers(0, 6)):
            case 0 if at < len(out):
                out[at] ^= 1 << draw(st.integers(0, 7))
            case 1 if at < len(out):
                out[at] = draw(st.sampled_from(INTERESTING))
            case 2:
                del out[at : at + draw(st.integers(1, 16))]
            case 3:
                out[at:at] = draw(st.binary(min_size=1, max_size=9))
            case 4:
                size = draw(st.integers(1, 40))
                out[at:at] = out[at : at + size] * draw(st.integers(1, 3))
            case 5:
                number = draw(st.sampled_from((0, 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)))
                order = draw(st.sampled_from(("big", "little")))
                size = draw(st.sampled_from((1, 2, 4, 8)))
                out[at : at + size] = (number % 256**size).to_bytes(size, order)
            case _:
                del out[at:]
    return bytes(out)


@st.composite
def mutated_envelope(draw: st.DrawFn, data: bytes) -> bytes:
    """Return an envelope whose sections were edited as they are when decompressed; now and then its head too."""
    kind = BlobKind(data[0])
    found = decode_envelope(data, kind, 1)
    raw = [bytes(found.section(index)) for index in range(len(found))]
    chosen = draw(st.integers(0, len(raw) - 1))
    raw[chosen] = draw(mutated(raw[chosen]))
    # What is never compressed stays so, or it would be refused for that alone.
    levels = [1 if data[4 + 9 * index] else 0 for index in range(len(raw))]
    envelope = encode_envelope(
        kind, 1, tuple(Section(body, level) for body, level in zip(raw, levels, strict=True))
    )
    if draw(st.integers(0, 9)) == 0:
        head = 4 + 9 * len(raw)
        envelope = draw(mutated(envelope[:head])) + envelope[head:]
    return envelope


@st.composite
def mutated_log_object(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a framed object of the log whose message was edited, with the crc32c that belongs to it."""
    body = draw(mutated_envelope(data[8:]))
    return data[:4] + crc32c(body).to_bytes(4, "little") + body


@st.composite
def mutated_ending(draw: st.DrawFn, pack: bytes) -> tuple[bytes, int]:
    """Return a pack whose footer or trailer was edited, with right checksums, and the size that storage claims."""
    trailer = decode_trailer(pack[-TRAILER_SIZE:], len(pack))
    footer = pack[trailer.footer_offset : -TRAILER_SIZE]
    head = bytearray(pack[-TRAILER_SIZE:-12])
    if draw(st.booleans()):
        footer = draw(mutated_envelope(footer))
        head[8:12] = len(footer).to_bytes(4, "little")
        head[16:20] = crc32c(footer).to_bytes(4, "little")
    else:
        at = draw(st.sampled_from((0, 8, 12, 16, 20, 24)))
        size = draw(st.sampled_from((1, 2, 4, 8)))
        number = draw(st.sampled_from((0, 1, 16, 2**16 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)))
        head[at : at + size] = (number % 256**size).to_bytes(size, "little")
    end = bytes(head) + crc32c(bytes(head)).to_bytes(4, "little") + b"VSTOREPE"
    whole = pack[: trailer.footer_offset] + footer + end
    claimed = draw(st.sampled_from((len(whole), len(whole) + 1, 0, 2**40, 2**63 - 1, 2**63, 2**64 - 1)))
    return whole, claimed


def claims_that_fit(whole: bytes) -> tuple[bytes, int]:
    """Return a pack with the size that its trailer asks for, which a lying storage may claim."""
    offset = int.from_bytes(whole[-TRAILER_SIZE:][:8], "little")
    size = int.from_bytes(whole[-TRAILER_SIZE:][8:12], "little")
    return whole, offset + size + TRAILER_SIZE


Decoder = Callable[[bytes], object]
