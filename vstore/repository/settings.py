"""The settings of a repository: its config, metadata and status, and the metadata that each commit gets.

Each but the last is a value of the catalog, replaced by compare-and-swap. Below: `refs` replaces values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vstore.catalog.base import CONFIG, MAX_VALUE_BYTES, METADATA, STATUS
from vstore.config import RepositoryConfig, encode_metadata, load_object
from vstore.errors import InvalidInputError
from vstore.format.record import OperationKind
from vstore.handle import require_not_moved
from vstore.refs import set_value
from vstore.repository.opened import Opened
from vstore.twins import async_twin


class Settings(Opened):
    """What a `Repository` is set to."""

    @property
    def config(self) -> RepositoryConfig:
        """The settings that this object works with."""
        self._look_for_config()
        return self._opened.config

    def save_config(self) -> None:
        """Persist this object's settings for everybody who opens the repository from now on."""
        encoded = self._handle.config.to_json
        set_value(self._handle, OperationKind.SET_CONFIG, CONFIG, encoded, request=(CONFIG, encoded(None)))

    @property
    def metadata(self) -> dict[str, Any]:
        """The repository's own JSON metadata."""
        with self._handle.catalog.reading() as view:
            value = view.value(METADATA)
        return load_object(value, "the repository's metadata")

    def set_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Replace the repository's metadata: a dict of JSON values, of at most 1 MiB as text."""
        encoded = encode_metadata(metadata, limit_bytes=MAX_VALUE_BYTES)
        set_value(self._handle, OperationKind.SET_METADATA, METADATA, lambda _: encoded, request=encoded)

    def update_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Merge keys into the repository's metadata, atomically, and return the result."""
        request = ("update", encode_metadata(metadata, limit_bytes=MAX_VALUE_BYTES))

        def merge(old: bytes | None) -> bytes:
            merged = {**load_object(old, "the repository's metadata"), **metadata}
            return encode_metadata(merged, limit_bytes=MAX_VALUE_BYTES)

        made = set_value(self._handle, OperationKind.SET_METADATA, METADATA, merge, request=request)
        return load_object(made, "the repository's metadata")

    @property
    def status(self) -> str:
        """The repository's status: "online" or "read_only"."""
        with self._handle.catalog.reading() as view:
            value = view.value(STATUS)
        return str(load_object(value, "the repository's status").get("availability", "online"))

    def set_status(self, availability: str, *, reason: str | None = None) -> None:
        """Make the repository "read_only" (all commits and changes are refused), or "online" again."""
        if availability not in ("online", "read_only"):
            raise InvalidInputError(f"a repository's status is 'online' or 'read_only', not {availability!r}")
        encoded = encode_metadata(
            {"availability": availability, "reason": reason}, limit_bytes=MAX_VALUE_BYTES
        )

        def change(old: bytes | None) -> bytes:
            require_not_moved(old)
            return encoded

        set_value(self._handle, OperationKind.SET_STATUS, STATUS, change, request=encoded)

    def set_default_commit_metadata(self, metadata: Mapping[str, Any]) -> None:
        """Set metadata that is merged under that of each commit of sessions opened from now on by this object."""
        encode_metadata(metadata)
        self._default_metadata = dict(metadata)

    def default_commit_metadata(self) -> dict[str, Any]:
        """Return what `set_default_commit_metadata` set."""
        return dict(self._default_metadata)

    save_config_async = async_twin(save_config)
    set_metadata_async = async_twin(set_metadata)
    update_metadata_async = async_twin(update_metadata)
    set_status_async = async_twin(set_status)
