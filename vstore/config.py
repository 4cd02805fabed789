"""Settings: what a repository remembers of how it is to be used. Few on purpose; none is needed for speed."""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vstore.errors import InvalidInputError

MAX_INLINE_THRESHOLD_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """Settings of one repository.

    `inline_chunk_threshold_bytes`: chunks of at most so many bytes are kept in the manifest itself (0 to 4096).
    """

    inline_chunk_threshold_bytes: int = 512

    def __post_init__(self) -> None:
        threshold = self.inline_chunk_threshold_bytes
        if type(threshold) is not int or not 0 <= threshold <= MAX_INLINE_THRESHOLD_BYTES:
            raise InvalidInputError(
                f"inline_chunk_threshold_bytes is {threshold!r}; give an int from 0 to {MAX_INLINE_THRESHOLD_BYTES}"
            )

    def to_json(self) -> bytes:
        """Return the settings as JSON bytes."""
        return json.dumps(asdict(self), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: bytes) -> RepositoryConfig:
        """Return stored settings; those that a newer version added are passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in json.loads(data).items() if name in known})


def encode_metadata(metadata: Mapping[str, Any] | None) -> bytes:
    """Return user metadata as canonical JSON bytes; raise `InvalidInputError` for what JSON can't hold."""
    if metadata is None:
        return b"{}"
    try:
        if not isinstance(metadata, Mapping):
            raise TypeError(f"it is a {type(metadata).__name__}, not a dict")
        if any(not isinstance(key, str) for key in metadata):
            raise TypeError("a key is not a str")
        return json.dumps(dict(metadata), sort_keys=True, allow_nan=False).encode()
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
