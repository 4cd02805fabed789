"""Digests and ids: what names a blob, a pack, a snapshot, a node, a session, a transaction.

All are plain `bytes` underneath (`NewType`s, so that mypy tells them apart at no cost); text forms are lower-case
hex and belong to the public surface only. This is the only module that draws randomness.
"""

from __future__ import annotations

import os
import random
import re
from typing import NewType, TypeAlias

from blake3 import blake3

from vstore.errors import InvalidInputError

BytesLike: TypeAlias = bytes | bytearray | memoryview

Digest = NewType("Digest", bytes)
"""blake3 of a blob's stored bytes, 32 bytes."""
SnapshotId = NewType("SnapshotId", bytes)
"""The digest of a snapshot blob."""
PackId = NewType("PackId", bytes)
"""16 bytes, never used twice: 8 of the session that wrote the pack, so that gc knows whose it is, and 8 random ones."""
NodeId = NewType("NodeId", bytes)
"""8 random bytes; survives moves of the node."""
SessionId = NewType("SessionId", bytes)
"""16 random bytes."""
TransactionId = NewType("TransactionId", bytes)
"""16 random bytes, new for every intended catalog update, kept over its retries."""
RepositoryId = NewType("RepositoryId", bytes)
"""16 random bytes, kept by copies of the repository."""

DIGEST_SIZE = 32
PACK_ID_SIZE = 16
NODE_ID_SIZE = 8
SNAPSHOT_PREFIX_DIGITS = 8
"""The fewest hex digits that may stand for a snapshot id."""

_SNAPSHOT_TEXT = re.compile(r"[0-9a-f]{8,64}")


def blake3_digest(data: BytesLike) -> Digest:
    """Return the blake3 digest of `data`."""
    return Digest(blake3(data).digest())


def new_pack_id(session: SessionId | None = None) -> PackId:
    """Return a pack id; those of one session start with its `pack_prefix`."""
    prefix = b"" if session is None else pack_prefix(session)
    return PackId(prefix + os.urandom(PACK_ID_SIZE - len(prefix)))


def pack_prefix(session: SessionId) -> bytes:
    """Return what the ids of a session's packs start with."""
    return session[: PACK_ID_SIZE // 2]


def new_node_id() -> NodeId:
    return NodeId(os.urandom(NODE_ID_SIZE))


def new_session_id() -> SessionId:
    return SessionId(os.urandom(16))


def new_transaction_id() -> TransactionId:
    return TransactionId(os.urandom(16))


def new_repository_id() -> RepositoryId:
    return RepositoryId(os.urandom(16))


def new_nonce() -> bytes:
    return os.urandom(16)


def jitter(bound: float) -> float:
    """Return a random duration between half of `bound` and `bound`, for waits between tries."""
    return random.uniform(bound / 2, bound)


def is_snapshot_text(text: str) -> bool:
    """Tell whether `text` could be a snapshot id or an abbreviation of one."""
    return _SNAPSHOT_TEXT.fullmatch(text) is not None


def parse_snapshot_id(text: str) -> SnapshotId:
    """Return the id that 64 hex digits spell; abbreviations are refused."""
    if not isinstance(text, str) or len(text) != 2 * DIGEST_SIZE or not is_snapshot_text(text):
        raise InvalidInputError(
            f"{text!r} is not a full snapshot id: expected 64 lower-case hex digits. "
            "lookup_snapshot() turns an abbreviation into a full id."
        )
    return SnapshotId(bytes.fromhex(text))
