"""How a storage makes its requests: the few settings that are vstore's own and not obstore's.

They hold for one object in memory and are never stored in a repository. Above: `location` takes them out of a user's
`storage_options`; below: nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any

from vstore.errors import InvalidInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOptions:
    """Settings of an `ObjectStorage`.

    `max_requests`: how many are under way at once, over all threads and event loops.
    `max_tries`: how often a request that may be repeated is sent. Creates are always sent once.
    `attempt_timeout_s`: how long one try may take that moves up to 4 MiB; larger ones get more in proportion. While
    the service has never answered, all tries of a small request together; while it is quick, the first try of one has
    a third.
    `total_timeout_s`: no try begins later than so long after the first.
    `first_wait_s`, `longest_wait_s`: the waits between tries double from the one to the other.
    `storage_class`: that of packs, by the service's name for it; all else is small and kept in the default class.
    `pickle_credentials`: whether pickles carry the credentials.
    """

    max_requests: int = 64
    max_tries: int = 10
    attempt_timeout_s: float = 30.0
    total_timeout_s: float = 120.0
    first_wait_s: float = 0.1
    longest_wait_s: float = 10.0
    storage_class: str | None = None
    pickle_credentials: bool = False

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_tries"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidInputError(f"{name} is {value!r}; give an int of at least 1")
        for name in ("attempt_timeout_s", "total_timeout_s", "first_wait_s", "longest_wait_s"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise InvalidInputError(f"{name} is {value!r}; give a number of seconds above 0")
        if not isinstance(self.storage_class, str | None) or self.storage_class == "":
            raise InvalidInputError(
                "storage_class is not a name; give one of the service's, such as STANDARD_IA"
            )
        if type(self.pickle_credentials) is not bool:
            raise InvalidInputError("pickle_credentials is not a bool; give True or False")

    @classmethod
    def of(cls, settings: Mapping[str, Any], retry_config: Mapping[str, Any] | None) -> RequestOptions:
        """Return the options of a user: `settings` by their names, before what obstore's `retry_config` says."""
        return cls(**{**_of_retry_config(retry_config or {}), **settings})


OWN_SETTINGS = frozenset(each.name for each in fields(RequestOptions)) - {"first_wait_s", "longest_wait_s"}
"""Keys of `storage_options` that are vstore's; the waits come by obstore's own name for them, `retry_config`."""


def _of_retry_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what obstore's setting for its own retries, which are never on, means for ours."""
    backoff = config.get("backoff") or {}
    found = {
        "total_timeout_s": _seconds(config.get("retry_timeout")),
        "first_wait_s": _seconds(backoff.get("init_backoff")),
        "longest_wait_s": _seconds(backoff.get("max_backoff")),
    }
    if isinstance(config.get("max_retries"), int):
        found["max_tries"] = config["max_retries"] + 1
    return {name: value for name, value in found.items() if value is not None}


def _seconds(duration: Any) -> float | None:
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else None
    return seconds if seconds and seconds > 0 else None
