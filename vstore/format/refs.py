"""Where things are: the blob ref, and msgpack helpers shared by the formats that hold refs.

A blob ref says what a blob is (its digest) and where it was last seen (pack, offset, length). It is written as the
msgpack array [digest, pack id, offset, length].
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import msgspec

from vstore.errors import CorruptionError, VStoreError
from vstore.ids import DIGEST_SIZE, PACK_ID_SIZE, BytesLike, Digest, PackId

MAX_BLOB_BYTES = 2**40
MAX_FREE_MESSAGE_BYTES = 256 * 1024
"""A message of no stated shape is not longer: each of its bytes may become an object. None that is written is."""
CHECK_BLOCK_BYTES = 64 * 1024
"""Blobs larger than this are followed by one crc32c (u32, little-endian) for each block of this size."""

MessageShape: TypeAlias = msgspec.msgpack.Decoder[Any]
"""What a message must look like; made once by `message_shape`."""
WireRef: TypeAlias = tuple[bytes, bytes, int, int]
"""A blob ref in a message's shape."""

_ENCODER = msgspec.msgpack.Encoder()


class BlobRef(NamedTuple):
    """What a blob is, and where it was last seen; `offset` is its first byte in the pack."""

    digest: Digest
    pack: PackId
    offset: int
    length: int


def check_table_size(length: int) -> int:
    """Return the size of the checksum table that follows a blob of `length` bytes in its pack."""
    return 4 * -(-length // CHECK_BLOCK_BYTES) if length > CHECK_BLOCK_BYTES else 0


def pack_message(value: Any) -> bytes:
    """Return `value` as msgpack."""
    return _ENCODER.encode(value)


def message_shape(shape: Any) -> MessageShape:
    """Return the shape of messages of the type `shape`, in msgspec's terms.

    A shape without bounds on its lists and maps, or with `Any` in it, lets a message of 2 kB make gigabytes of
    objects: zstd expands it 32,000 times, and each of its bytes may be an object.
    """
    return msgspec.msgpack.Decoder(shape)


_ANY = message_shape(Any)


def unpack_message(data: BytesLike, what: str, shape: MessageShape = _ANY) -> Any:
    """Return the msgpack value in `data`, which must have this shape."""
    if shape is _ANY and len(data) > MAX_FREE_MESSAGE_BYTES:
        raise CorruptionError(
            f"the {what} has {len(data)} bytes; at most {MAX_FREE_MESSAGE_BYTES} are allowed"
        )
    try:
        return shape.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise CorruptionError(f"the {what} is not valid msgpack: {error}") from None


def from_wire(value: Any) -> BlobRef:
    """Return the blob ref that a decoded msgpack array spells."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise CorruptionError("a blob ref is not an array of four")
    digest, pack, offset, length = value
    if not (
        isinstance(digest, bytes)
        and len(digest) == DIGEST_SIZE
        and isinstance(pack, bytes)
        and len(pack) == PACK_ID_SIZE
    ):
        raise CorruptionError("a blob ref has a malformed digest or pack id")
    return BlobRef(Digest(digest), PackId(pack), to_size(offset, "offset"), to_size(length, "length"))


def to_size(value: Any, what: str, limit: int = MAX_BLOB_BYTES * 1024) -> int:
    """Return `value` if it is an int from 0 to `limit`."""
    if type(value) is not int or not 0 <= value <= limit:
        # What is not a number is not shown: it may be deeply nested, or megabytes long.
        found = value if type(value) is int else f"of type {type(value).__name__}"
        raise CorruptionError(f"the {what} {found} is not a number from 0 to {limit}")
    return value


def expect(condition: bool, message: str) -> None:
    """Raise `CorruptionError` unless `condition`."""
    if not condition:
        raise CorruptionError(message)


def guard(error: Exception, what: str) -> VStoreError:
    """Return the error that stands for an unexpected failure while decoding `what`."""
    return error if isinstance(error, VStoreError) else CorruptionError(f"the {what} is malformed: {error!r}")
