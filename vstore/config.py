"""Settings: what a repository remembers of how it is to be used. Few on purpose; none is needed for speed."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vstore.errors import InvalidInputError
from vstore.retention import RetentionPolicy

MAX_INLINE_THRESHOLD_BYTES = 4096


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
        found = {} if stored is None else json.loads(stored)
        retention = found.get("retention", {})
        if RetentionPolicy.from_fields(retention) != self.retention:
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
        found = json.loads(data)
        known: dict[str, Any] = {each.name: found[each.name] for each in fields(cls) if each.name in found}
        if "retention" in known:
            known["retention"] = RetentionPolicy.from_fields(known["retention"])
        return cls(**known)


def stored_retention(data: bytes | None) -> RetentionPolicy:
    """Return the policy in stored settings; raise `UnsupportedFormatError` if a newer vstore made a rule of it."""
    return RetentionPolicy.from_fields(
        {} if data is None else json.loads(data).get("retention", {}), strict=True
    )


def encode_metadata(metadata: Mapping[str, Any] | None) -> bytes:
    """Return user metadata as canonical JSON bytes; raise `InvalidInputError` for what JSON can't hold."""
    try:
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError(f"it is a {type(metadata).__name__}, not a dict")
        if any(not isinstance(key, str) for key in metadata or {}):
            raise TypeError("a key is not a str")
        return json.dumps(dict(metadata or {}), sort_keys=True, allow_nan=False).encode()
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
