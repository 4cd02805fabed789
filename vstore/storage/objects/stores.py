"""obstore's stores: making them from URLs, naming them without their secrets, and those in memory.

Neighbours: `vstore.storage.location` asks for stores, `vstore.storage.objects.storage` uses them.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vstore.errors import InvalidInputError
from vstore.storage.objects.requests import first_line

if TYPE_CHECKING:
    from obstore.store import ObjectStore


def is_obstore_store(value: object) -> bool:
    """Tell whether `value` is one of obstore's stores."""
    return any(is_a(value, name) for name in _SCHEMES)


def local_store_path(store: object) -> str | None:
    """Return the directory of an obstore LocalStore, "" if it has none, or None for any other store."""
    return str(getattr(store, "prefix", None) or "") if is_a(store, "LocalStore") else None


def store_from_url(url: str, options: Mapping[str, Any]) -> ObjectStore:
    """Make the store of a URL; `options` are the keyword arguments of `obstore.store.from_url`."""
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    try:
        return from_url(url, **options)
    except (BaseError, ValueError, TypeError) as error:
        raise InvalidInputError(
            f"{without_secrets(url)} can't be opened with the options {sorted(options)}: {first_line(error)}. See "
            "obstore.store.from_url for the options of each service."
        ) from None


def memory_store(name: str) -> ObjectStore:
    """Return this process's MemoryStore of that name, always the same."""
    from obstore.store import MemoryStore

    store: ObjectStore = _named_stores.setdefault(name, MemoryStore())
    return store


def lend_memory_store(store: ObjectStore, token: str) -> None:
    """Let `borrow_memory_store` find a MemoryStore, which can't be pickled, by `token` in this process."""
    _lent_stores[token] = store


def borrow_memory_store(token: str, url: str) -> ObjectStore:
    """Return the MemoryStore that was lent; `url` is what a refusal calls it."""
    store: ObjectStore | None = _lent_stores.get(token)
    if store is None:
        raise InvalidInputError(
            f"{url} is in the memory of another process, or was dropped. To share a repository between processes, "
            "put it in a directory or an object store."
        )
    return store


_named_stores: dict[str, Any] = {}
_lent_stores: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def describe(store: ObjectStore, prefix: str) -> str:
    """Return a URL for messages that shows no secret of `store`."""
    if is_a(store, "HTTPStore"):
        base = without_secrets(str(getattr(store, "url", ""))).rstrip("/")
    else:
        config: Mapping[str, Any] = getattr(store, "config", {})
        bucket = config.get("bucket") or config.get("container_name") or ""
        folder = getattr(store, "prefix", None)
        base = f"{_scheme_of(store)}://{bucket}" + (f"/{str(folder).strip('/')}" if folder else "")
    return f"{base.rstrip('/')}/{prefix}".rstrip("/") if prefix else base


def without_secrets(url: str) -> str:
    """Return `url` without user, password, query and fragment."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if user and ":" not in user and parts.scheme in ("abfs", "abfss"):
        host = parts.netloc  # here the container comes before the @
    return f"{parts.scheme}://{host}{parts.path}"


def is_a(value: object, name: str) -> bool:
    """Tell whether `value` is obstore's store of that class name."""
    from obstore import store as stores

    return isinstance(value, getattr(stores, name))


_SCHEMES = {
    "S3Store": "s3",
    "GCSStore": "gs",
    "AzureStore": "az",
    "HTTPStore": "https",
    "MemoryStore": "memory",
    "LocalStore": "file",
}


def _scheme_of(store: object) -> str:
    return next((scheme for name, scheme in _SCHEMES.items() if is_a(store, name)), type(store).__name__)
