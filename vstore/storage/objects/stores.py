"""obstore's stores: making them from URLs, anew with other settings, or without their secrets; and those in memory.

Neighbours: `vstore.storage.location` asks for stores, `vstore.storage.objects.storage` uses them.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vstore.errors import InvalidInputError
from vstore.storage.objects.causes import Place
from vstore.storage.objects.providers import BlockingProvider
from vstore.storage.objects.requests import PanicError, panics_caught
from vstore.storage.objects.secrets import (
    CLIENT_OPTIONS,
    Redactor,
    public_settings,
    secret_values,
    without_secrets,
)

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

    settings = _settings_of(url, options)
    try:
        with panics_caught():
            return from_url(url, **settings)
    except (BaseError, ValueError, TypeError, PanicError) as error:
        hints = "".join(
            f" {name!r} is called {_OTHER_NAMES[name]} here."
            for name in sorted(options)
            if name in _OTHER_NAMES
        )
        raise InvalidInputError(
            f"{without_secrets(url)} can't be opened with the options {sorted(options)}: "
            f"{_redactor(settings)(str(error))}.{hints} See obstore.store.from_url for the options of each service."
        ) from None


def _settings_of(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return obstore's arguments: what is None was not given, and options of the client may stand among the others."""
    given = {name: value for name, value in options.items() if value is not None}
    for name in CLIENT_OPTIONS & given.keys():
        given["client_options"] = {name: given.pop(name)} | (given.get("client_options") or {})
    if any(not each.lower().startswith(("http://", "https://")) for each in _endpoints(given)):
        # obstore would panic at the first request.
        raise InvalidInputError(
            f"{without_secrets(url)} can't be opened: its endpoint is no URL. Write http:// or https:// before it."
        )
    return given


def _endpoints(config: Mapping[str, Any]) -> list[str]:
    """Return the addresses of the service among settings."""
    names = [
        name for name in config if re.fullmatch(r"(aws_|azure_|azure_storage_)?endpoint(_url)?", name.lower())
    ]
    return [str(config[name]) for name in names]


_OTHER_NAMES = {
    # s3fs, adlfs and gcsfs; icechunk
    "key": "access_key_id",
    "secret": "secret_access_key",
    "anon": "skip_signature=True",
    "client_kwargs": "endpoint and region, each an option",
    "connection_string": "account_name with account_key or sas_key",
    "session_token": "token",
    "get_credentials": "credential_provider",
    "requester_pays": "request_payer=True",
    "anonymous": "skip_signature=True",
    "force_path_style": "virtual_hosted_style_request=False, which is the default",
    "account": "account_name",
    "service_account_file": "service_account",
}


def _redactor(options: Mapping[str, Any]) -> Redactor:
    config = {**(options.get("config") or {}), **options}
    client = config.pop("client_options", None) or {}
    return Redactor(secret_values({key: value for key, value in config.items() if key != "config"}, client))


def blocking_provider_of(store: Any) -> BlockingProvider | None:
    """Return the store's credential provider as it can be used in blocking calls, if it has one."""
    provider = getattr(store, "credential_provider", None) if is_remote(store) else None
    return None if provider is None else BlockingProvider(provider)


def rebuilt(store: Any, timeout_s: float | None, provider: BlockingProvider | None) -> Any:
    """Return a store like `store` whose own retries are off; `timeout_s`, if given, is the time of a whole request.

    `provider` takes the place of its own.

    What obstore does not reach over a network, and what only looks like its stores, is returned as it is.
    """
    if not is_remote(store):
        return store
    arguments, settings = _arguments_of(store)
    settings = {**settings, "retry_config": {"max_retries": 0}}
    if timeout_s is not None:
        timeout = f"{max(1, round(timeout_s * 1000))}ms"
        options = {**(settings.get("client_options") or {}), "timeout": timeout}
        if _may_be_plain_http(store):
            # What the environment says of it does not count any more where there are options.
            options.setdefault("allow_http", True)
        settings["client_options"] = options
    if provider is not None:
        settings["credential_provider"] = provider
    made = type(store).__new__(type(store), *arguments, **settings)
    vars(made).update(vars(store))
    return made


def _may_be_plain_http(store: Any) -> bool:
    """Tell whether a store's endpoint is an http:// one, or is not told: whoever gave that has given leave."""
    config: Mapping[str, Any] = getattr(store, "config", None) or {}
    endpoints = [str(value) for key, value in config.items() if "endpoint" in str(key)]
    return not endpoints or any(each.startswith("http://") for each in endpoints)


def is_remote(store: object) -> bool:
    """Tell whether `store` is one of obstore's that are reached over a network."""
    return any(is_a(store, name) for name in _REMOTE)


def is_own_timeout(store: object) -> bool:
    """Tell whether the user gave a timeout for whole requests."""
    return is_remote(store) and "timeout" in (getattr(store, "client_options", None) or {})


def retry_config_of(store: object) -> Mapping[str, Any] | None:
    """Return obstore's settings for its own retries, if the user gave some."""
    found: Mapping[str, Any] | None = getattr(store, "retry_config", None) if is_remote(store) else None
    return found


def lists_in_order(store: object) -> bool:
    """Tell whether listings are in the order of names, as far as is known; directory buckets of S3 are not."""
    config = getattr(store, "config", None) if is_remote(store) else None
    express = str((config or {}).get("s3_express", "")).lower() in ("true", "1", "yes", "on", "y")
    return not express and not is_a(store, "LocalStore") and not is_a(store, "HTTPStore")


def secrets_of(store: object) -> list[Any]:
    """Return the values in the settings of `store` that must not be shown."""
    if not is_remote(store):
        return []
    return secret_values(getattr(store, "config", None) or {}, getattr(store, "client_options", None) or {})


def without_credentials(store: Any) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """Return what `restored` makes a store of that has no secrets of `store`, and the names of what is missing."""
    arguments, settings = _arguments_of(store)
    config, client, hidden = public_settings(
        settings.get("config") or {}, settings.get("client_options") or {}
    )
    if settings.get("credential_provider") is not None:
        hidden.append("credential_provider")
    if arguments and without_secrets(arguments[0]) != arguments[0]:
        hidden.append("the user or query of the URL")
        arguments = (without_secrets(arguments[0]),)
    kept = {"config": config, "client_options": client, "prefix": settings.get("prefix")}
    parts = (_class_name(store), arguments, {name: value for name, value in kept.items() if value})
    return parts, tuple(hidden)


def restored(parts: tuple[Any, ...], left_out: tuple[str, ...]) -> Any:
    """Return the store that `without_credentials` took apart; it looks for credentials where obstore does."""
    from obstore import store as stores
    from obstore.exceptions import BaseError

    name, arguments, settings = parts
    try:
        return getattr(stores, name)(*arguments, **settings)
    except (BaseError, ValueError) as error:
        raise InvalidInputError(
            f"an object store can't be opened from its pickle: {Redactor()(str(error))}. {remedy(left_out)}"
        ) from None


def remedy(left_out: tuple[str, ...]) -> str:
    """Return what to do about the settings that a pickle left out."""
    return (
        f"The pickle that this storage came by left out {', '.join(left_out)}: set them in the environment of this "
        "process, or open the repository with the storage option pickle_credentials=True to have them in pickles."
    )


def can_leave_credentials(store: object) -> bool:
    """Tell whether `without_credentials` knows all that `store` holds: it is obstore's own, not a class made of it."""
    from obstore import store as stores

    return any(type(store) is getattr(stores, name) for name in _REMOTE)


def _arguments_of(store: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    arguments, settings = store.__getnewargs_ex__()
    return tuple(arguments), dict(settings)


def _class_name(store: object) -> str:
    return next(name for name in _REMOTE if is_a(store, name))


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


def place_of(store: object) -> Place:
    """Return what `store` asks, for messages; all of it is empty for what is not reached over a network."""
    if not is_remote(store):
        return Place()
    config: Mapping[str, Any] = getattr(store, "config", None) or {}
    endpoint = str(getattr(store, "url", "")) or next(iter(_endpoints(config)), "")
    bucket = config.get("bucket") or config.get("container_name") or ""
    is_unsigned = str(config.get("skip_signature", "")).lower() in ("true", "1")
    return Place(
        _SERVICES[_class_name(store)], str(bucket), endpoint and without_secrets(endpoint), is_unsigned
    )


def is_a(value: object, name: str) -> bool:
    """Tell whether `value` is obstore's store of that class name."""
    from obstore import store as stores

    return isinstance(value, getattr(stores, name))


_SERVICES = {"S3Store": "S3", "GCSStore": "Google", "AzureStore": "Azure", "HTTPStore": "HTTP"}
_REMOTE = tuple(_SERVICES)
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
