"""Settings: what a repository remembers of how it is to be used. Few on purpose; none is needed for speed."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vstore.errors import CorruptionError, InvalidInputError
from vstore.retention import RetentionPolicy

MAX_INLINE_THRESHOLD_BYTES = 4096
MAX_METADATA_BYTES = 4 * 1024 * 1024
"""Of a snapshot (a repository: `catalog.base.MAX_VALUE_BYTES`): JSON text makes objects of twenty times its size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """Settings of one repository.

    `inline_chunk_threshold_bytes`: chunks of at most so many bytes are kept in the manifest itself (0 to 4096).
    `retention`: which snapshots `Repository.expire_snapshots` keeps, once the settings were saved.
    """

    inline_chunk_threshold_bytes: int = 512
    retention: RetentionPolicy = field(default_factory=RetentionPolicy)

    def __post_init__(self) -> None:
        if not isinstance(self.retention, RetentionPolicy):
            raise InvalidInputError(f"retention is {self.retention!r}; give a vstore.RetentionPolicy")
        threshold = self.inline_chunk_threshold_bytes
        if type(threshold) is not int or not 0 <= threshold <= MAX_INLINE_THRESHOLD_BYTES:
            raise InvalidInputError(
                f"inline_chunk_threshold_bytes is {threshold!r}; give an int from 0 to {MAX_INLINE_THRESHOLD_BYTES}"
            )

    def to_json(self, stored: bytes | None = None) -> bytes:
        """Return the settings as JSON bytes, with what only a newer vstore knows of those that are stored."""
        found = load_object(stored, "the repository's settings")
        retention = found.get("retention", {})
        if _policy_of(retention) != self.retention:
            retention = self.retention.to_fields()
        known = {each.name for each in fields(self)}
        found = {name: value for name, value in found.items() if name not in known}
        found["inline_chunk_threshold_bytes"] = self.inline_chunk_threshold_bytes
        if retention:
            found["retention"] = retention
        return json.dumps(found, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RepositoryConfig:
        """Return stored settings; those that a newer version added are passed over."""
        found = load_object(data, "the repository's settings")
        known: dict[str, Any] = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        if "retention" in known:
            known["retention"] = _policy_of(known["retention"])
        try:
            return cls(**known)
        except InvalidInputError as error:
            raise CorruptionError(f"the repository's settings can't be used: {error.message}") from None


def stored_retention(data: bytes | None) -> RetentionPolicy:
    """Return the policy in stored settings; raise `UnsupportedFormatError` if a newer vstore made a rule of it."""
    found = load_object(data, "the repository's settings")
    return _policy_of(found.get("retention", {}), strict=True)


def _policy_of(stored: Any, *, strict: bool = False) -> RetentionPolicy:
    if not isinstance(stored, dict):
        raise CorruptionError("the repository's retention policy is no JSON object")
    try:
        return RetentionPolicy.from_fields(stored, strict=strict)
    except (InvalidInputError, OverflowError) as error:
        raise CorruptionError(f"the repository's retention policy can't be used: {error}") from None


def load_json(data: bytes, what: str) -> Any:
    """Return a JSON value that the catalog or a snapshot holds; `CorruptionError` for anything else."""
    if len(data) > MAX_METADATA_BYTES:
        raise CorruptionError(f"{what}: {len(data)} bytes, of which there may be {MAX_METADATA_BYTES}")
    try:
        return json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise CorruptionError(
            f"{what} can't be read: {error}. repo.fsck() names all that is damaged."
        ) from None


def load_object(data: bytes | None, what: str) -> dict[str, Any]:
    """Return a JSON object that the catalog or a snapshot holds; an empty one for None."""
    found = {} if data is None else load_json(data, what)
    if not isinstance(found, dict):
        raise CorruptionError(f"{what}: a {type(found).__name__} where a JSON object belongs")
    return found


def encode_metadata(metadata: Mapping[str, Any] | None, *, limit_bytes: int = MAX_METADATA_BYTES) -> bytes:
    """Return user metadata as canonical JSON bytes; raise `InvalidInputError` for what JSON can't hold."""
    if metadata is None:
        return b"{}"
    try:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"it is a {type(metadata).__name__}, not a dict")
        if any(not isinstance(key, str) for key in metadata):
            raise TypeError("a key is not a str")
        encoded = json.dumps(dict(metadata), sort_keys=True, allow_nan=False).encode()
        if len(encoded) > limit_bytes:
            raise ValueError(f"it has {len(encoded)} bytes; {limit_bytes} are allowed")
        return encoded
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"the metadata can't be stored as JSON: {error}. Give a dict of JSON values."
        ) from None


def default_author() -> str:
    """Return the name of the user that runs this process, for the operations log."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return ""
