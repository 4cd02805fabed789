"""What a repository object holds: the parts of the open repository, and how far their settings can be relied on.

On an object store opening looks at a hint only, which may tell of old settings; they are looked for anew before they
matter. All parts of `Repository` are built on this class. Below: `handle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vstore.catalog.base import CONFIG, CatalogView
from vstore.config import RepositoryConfig
from vstore.handle import Handle
from vstore.storage.base import reads_only


class Opened:
    """The parts that a `Repository` works with, and what it adds to each commit's metadata."""

    def __init__(
        self,
        handle: Handle,
        default_metadata: Mapping[str, Any] | None = None,
        *,
        is_config_recalled: bool = False,
    ) -> None:
        self._opened = handle
        self._default_metadata = dict(default_metadata or {})
        self._is_config_recalled = is_config_recalled

    @property
    def _handle(self) -> Handle:
        """The parts, with settings that are looked for if only a hint has told them; `_opened` asks for nothing."""
        if not reads_only(self._opened.storage):
            self._look_for_config()
        return self._opened

    @_handle.setter
    def _handle(self, handle: Handle) -> None:
        self._opened = handle

    def _look_for_config(self) -> None:
        """See to it that the settings at hand are the newest."""
        if self._is_config_recalled:
            with self._opened.catalog.reading() as view:
                self._settle_config(view)

    def _settle_config(self, view: CatalogView) -> None:
        if self._is_config_recalled:
            self._opened = self._opened.with_config(decoded_config(view.value(CONFIG)))
            self._is_config_recalled = False


def decoded_config(stored: bytes | None) -> RepositoryConfig:
    """Return the settings in the catalog's value `CONFIG`."""
    return RepositoryConfig() if stored is None else RepositoryConfig.from_json(stored)
