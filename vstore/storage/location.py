"""From what a user gives (a path, a URL, a store) to a storage.

Nothing is read or made here, unless `create` asks for the directory. Neighbours: `local` and `objects` are what
comes out; the repository above decides what to do with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from vstore.errors import InvalidInputError
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage

Location: TypeAlias = "str | os.PathLike[str] | Storage | Any"
"""A path, a URL, one of obstore's stores, or a storage."""

ACCEPTED = (
    "Accepted are a path, a URL (file://, s3://bucket/folder, gs://bucket/folder, az://container/folder, "
    "abfs://container@account.dfs.core.windows.net/folder, http://, https://, memory://name), or a store of "
    "obstore.store."
)

_OBJECT_SCHEMES = {"s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "http", "https"}
_SCHEMES = _OBJECT_SCHEMES | {"file", "memory"}
_URL = re.compile(r"([^/\\]*?)://")
_FORGOTTEN_SLASHES = re.compile(rf"({'|'.join(sorted(_SCHEMES))}):", re.IGNORECASE)


def open_storage(
    location: Location, *, options: Mapping[str, Any] | None = None, create: bool = False
) -> Storage:
    """Return the storage of a location.

    `options` are, for object stores, the settings of `vstore.storage.objects.options.RequestOptions`, and for URLs
    also the keyword arguments of `obstore.store.from_url`: `config`, `client_options`, `retry_config`,
    `credential_provider`, or single settings such as `region`. With `create` a directory is made if it is missing.
    """
    options = dict(options or {})
    if isinstance(location, str | os.PathLike):
        storage = _from_text(os.fspath(location), options)
    else:
        storage = _from_store(location, options)
    if create and isinstance(storage, LocalStorage):
        storage.make_root()
    return storage


def _from_text(text: str | bytes, options: dict[str, Any]) -> Storage:
    text = os.fsdecode(text)
    if not text.strip():
        raise InvalidInputError(f"an empty location can't be opened. {ACCEPTED}")
    url = _URL.match(text)
    if url is None:
        if _FORGOTTEN_SLASHES.match(text):
            raise InvalidInputError(f"{text!r} is a URL without its slashes. {ACCEPTED}")
        return _local(text, options)
    scheme = url[1].lower()
    if scheme == "file":
        return _local(_path_of_url(text), options)
    if scheme == "memory":
        return _memory(text, options)
    if scheme in _OBJECT_SCHEMES:
        return _remote(text, options)
    raise InvalidInputError(f"locations of the kind {url[0]!r} can't be opened. {ACCEPTED}")


def _local(path: str, options: dict[str, Any]) -> LocalStorage:
    if options:
        raise InvalidInputError(f"a directory takes no options, got {sorted(options)}.")
    if "\0" in path:
        raise InvalidInputError(f"{path!r} is not a path: it holds a zero byte.")
    try:
        # absolute() leaves symbolic links and ".." as they are, for the system to follow when it is used.
        return LocalStorage(Path(path).expanduser().absolute())
    except RuntimeError as error:
        raise InvalidInputError(f"{path!r} can't be opened: {error}") from None


def _path_of_url(url: str) -> str:
    host, path = url[len("file://") :].partition("/")[::2]
    if host not in ("", "localhost"):
        raise InvalidInputError(
            f"{url!r} names the host {host!r}. Local URLs have three slashes: file:///data/repo"
        )
    # Not split further: "?" and "#" may be part of a path.
    return "/" + unquote(path)


def _memory(url: str, options: dict[str, Any]) -> Storage:
    from vstore.storage.objects import ObjectStorage
    from vstore.storage.objects.stores import memory_store

    name, _, prefix = url[len("memory://") :].partition("/")
    if not name or options:
        raise InvalidInputError(
            f"{url!r} needs a name, as in memory://name, and takes no options. "
            "For a nameless one give an obstore.store.MemoryStore()."
        )
    return ObjectStorage(memory_store(name), prefix, url=url)


def _remote(url: str, options: dict[str, Any]) -> Storage:
    from vstore.storage.objects import ObjectStorage
    from vstore.storage.objects.options import RequestOptions
    from vstore.storage.objects.secrets import without_secrets
    from vstore.storage.objects.stores import store_from_url

    if not urlsplit(url).netloc:
        raise InvalidInputError(f"{without_secrets(url)!r} names no bucket or host. {ACCEPTED}")
    if url.lower().startswith(("http://", "https://")) and "@" in urlsplit(url).netloc:
        raise InvalidInputError(
            f"{without_secrets(url)} was given with a user or a password before its host, which would not be sent. "
            "Give them as a header: storage_options={'client_options': {'default_headers': {'authorization': "
            "'Basic ...'}}}."
        )
    if url.lower().startswith("http://"):
        # obstore asks for this leave; who writes http:// has given it.
        options["client_options"] = {"allow_http": True, **options.get("client_options", {})}
    own = RequestOptions.of(_take_own(options), options.pop("retry_config", None))
    return ObjectStorage(store_from_url(url, options), url=without_secrets(url), options=own)


def _take_own(options: dict[str, Any]) -> dict[str, Any]:
    """Take the settings that are vstore's out of `options`."""
    from vstore.storage.objects.options import OWN_SETTINGS

    return {name: options.pop(name) for name in OWN_SETTINGS & options.keys()}


def _from_store(value: Any, options: dict[str, Any]) -> Storage:
    if isinstance(value, Storage):
        if options:
            raise InvalidInputError(
                f"{value!r} is a storage already; its options were given when it was made."
            )
        return value
    from vstore.storage.objects import ObjectStorage
    from vstore.storage.objects.options import OWN_SETTINGS, RequestOptions
    from vstore.storage.objects.stores import is_obstore_store, local_store_path, retry_config_of

    if not is_obstore_store(value):
        raise InvalidInputError(f"a {type(value).__name__} is not a location. {ACCEPTED}")
    path = local_store_path(value)
    own = _take_own(options) if path is None else {}
    if options:
        raise InvalidInputError(
            f"{sorted(options)} can't be set for a {type(value).__name__}: obstore's options are given when a store is "
            f"made. Here only those of vstore are taken, for object stores: {sorted(OWN_SETTINGS)}."
        )
    if path is None:
        return ObjectStorage(value, options=RequestOptions.of(own, retry_config_of(value)))
    if not path:
        raise InvalidInputError(
            "a LocalStore without a prefix is the whole disk: give it the repository's directory."
        )
    # obstore's own local store never syncs: a power cut could leave a committed file empty.
    return LocalStorage(path)
