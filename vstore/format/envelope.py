"""The envelope around every metadata blob: what kind it is, which version, and up to four compressed sections.

    0   1  kind              BlobKind
    1   1  version           format version of that kind
    2   1  section count n   1 to 4
    3   1  zero
    4   9n per section: compression u8, stored size u32, raw size u32 (little-endian)
    ..     the sections' stored bytes, end to end, and nothing after them

Sections let a reader decode only what it needs (names without documents) and keep what does not compress
(digests) outside zstd. Above: all other formats.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import msgspec

from vstore.errors import CorruptionError, InternalError, UnsupportedFormatError
from vstore.ids import BytesLike


class BlobKind(IntEnum):
    """What a blob is. Persisted: never renumber."""

    CHUNK = 1
    DOCUMENT = 2
    MANIFEST = 3
    PAGE = 4
    SNAPSHOT = 5
    FOOTER = 6
    RECORD = 7


class Compression(IntEnum):
    """How a section is stored. Persisted: never renumber."""

    NONE = 0
    ZSTD = 1


MAX_SECTION_BYTES = 64 * 1024 * 1024
"""No section is larger when decoded; a footer of 1.5 million blobs and the largest legal manifest fit."""
MAX_SECTIONS = 4

_HEAD = struct.Struct("<BBBB")
_SECTION = struct.Struct("<BII")
_WORTH_COMPRESSING_BYTES = (
    256  # measured on manifests and pages: shorter sections hardly ever shrink, at 17 us each
)
_MAX_ZSTD_RATIO = 32_768  # a zstd block of at least 4 bytes holds at most 128 KiB


class Section(msgspec.Struct, frozen=True):
    """Raw bytes to put into an envelope; `level` 0 stores them as they are, else zstd at that level."""

    data: BytesLike
    level: int = 0


def encode_envelope(kind: BlobKind, version: int, sections: tuple[Section, ...]) -> bytes:
    """Return the envelope of `sections`."""
    heads, bodies = [], []
    for section in sections:
        if len(section.data) > MAX_SECTION_BYTES:
            raise InternalError(
                f"a {kind.name} section of {len(section.data)} bytes exceeds the format's limit"
            )
        compression, body = _compress(section)
        heads.append(_SECTION.pack(compression, len(body), len(section.data)))
        bodies.append(body)
    return b"".join((_HEAD.pack(kind, version, len(sections), 0), *heads, *bodies))


def _compress(section: Section) -> tuple[Compression, BytesLike]:
    if section.level and len(section.data) >= _WORTH_COMPRESSING_BYTES:
        from numcodecs import zstd

        body = zstd.compress(section.data, section.level)
        if len(body) < len(section.data):
            return Compression.ZSTD, body
    return Compression.NONE, section.data


class Envelope:
    """A decoded envelope; its sections are decompressed when asked for."""

    __slots__ = ("_sections", "kind", "version")

    def __init__(self, kind: BlobKind, version: int, sections: list[tuple[int, int, memoryview]]) -> None:
        self.kind = kind
        self.version = version
        self._sections = sections

    def __len__(self) -> int:
        return len(self._sections)

    def section(self, index: int, limit: int = MAX_SECTION_BYTES) -> memoryview:
        """Return the raw bytes of a section, of which there may be at most `limit`."""
        compression, raw_size, body = self._sections[index]
        if raw_size > limit:
            raise CorruptionError(
                f"section {index} of a {self.kind.name} has {raw_size} bytes; what is known of it allows {limit}"
            )
        if compression == Compression.NONE:
            return body
        return _decompress(body, raw_size)

    def plain_section(self, index: int) -> memoryview:
        """Return a section that is never compressed, so that it can't be larger than what was read."""
        compression, _, body = self._sections[index]
        if compression != Compression.NONE:
            raise CorruptionError(f"section {index} of a {self.kind.name} is compressed, which it never is")
        return body


def _decompress(body: memoryview, raw_size: int) -> memoryview:
    from numcodecs import zstd

    if _frame_content_size(body) != raw_size or raw_size > len(body) * _MAX_ZSTD_RATIO:
        raise CorruptionError(f"a section's zstd frame does not hold the {raw_size} bytes it should")
    out = bytearray(raw_size)
    try:
        zstd.decompress(body, out)
    except (RuntimeError, ValueError) as error:
        raise CorruptionError(f"a section does not decompress to its {raw_size} bytes: {error}") from None
    return memoryview(out)


def _frame_content_size(body: memoryview) -> int | None:
    """Return the decoded size that a zstd frame's header states (RFC 8878, section 3.1.1.1)."""
    if bytes(body[:4]) != b"\x28\xb5\x2f\xfd" or len(body) < 6:
        return None
    descriptor = body[4]
    single_segment = descriptor >> 5 & 1
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    position = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    field = bytes(body[position : position + size])
    if not size or len(field) != size:
        return None
    return int.from_bytes(field, "little") + (256 if size == 2 else 0)


def decode_envelope(data: BytesLike, kind: BlobKind, newest_version: int) -> Envelope:
    """Return the envelope in `data`, which must be of this kind and of a version that this code reads."""
    view = memoryview(data)
    if len(view) < _HEAD.size:
        raise CorruptionError(f"a {kind.name} of {len(view)} bytes is shorter than its head")
    found_kind, version, count, zero = _HEAD.unpack_from(view)
    if found_kind != kind or zero != 0 or not 1 <= count <= MAX_SECTIONS or version == 0:
        raise CorruptionError(f"these bytes do not start like a {kind.name}: {bytes(view[:4]).hex()}")
    if version > newest_version:
        raise UnsupportedFormatError(
            f"this {kind.name} has format version {version}; this vstore reads up to {newest_version}. "
            "Upgrade vstore to read it."
        )
    return Envelope(BlobKind(found_kind), version, _split_sections(view, count, kind))


def _split_sections(view: memoryview, count: int, kind: BlobKind) -> list[tuple[int, int, memoryview]]:
    position = _HEAD.size + count * _SECTION.size
    if len(view) < position:
        raise CorruptionError(f"a {kind.name} is cut inside its section table")
    sections = []
    for index in range(count):
        compression, stored, raw = _SECTION.unpack_from(view, _HEAD.size + index * _SECTION.size)
        if raw > MAX_SECTION_BYTES or (compression == Compression.NONE and stored != raw):
            raise CorruptionError(f"a {kind.name} has a section of an impossible size")
        if compression not in (Compression.NONE, Compression.ZSTD):
            raise CorruptionError(f"a {kind.name} has a section of unknown compression {compression}")
        sections.append((compression, raw, view[position : position + stored]))
        position += stored
    if position != len(view):
        raise CorruptionError(f"a {kind.name} is {len(view)} bytes long; its sections make {position}")
    return sections
