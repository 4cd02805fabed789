"""What of a store's settings may be shown or pickled. All that is not listed here counts as secret.

obstore keeps what a user gave it, credentials included, and shows it in pickles; its errors repeat what servers answer,
and S3 servers answer a wrong signature with the headers of the request. Above: `stores` and `requests`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

_PUBLIC_SETTINGS = frozenset(
    {
        # S3
        "bucket",
        "region",
        "default_region",
        "endpoint",
        "aws_endpoint_url_s3",
        "virtual_hosted_style_request",
        "request_payer",
        "skip_signature",
        "unsigned_payload",
        "checksum_algorithm",
        "conditional_put",
        "copy_if_not_exists",
        "disable_tagging",
        "disable_bulk_delete",
        "s3_express",
        "server_side_encryption",
        "sse_kms_key_id",
        "sse_bucket_key_enabled",
        "imdsv1_fallback",
        "metadata_endpoint",
        "role_arn",
        "role_session_name",
        "sts_endpoint",
        "web_identity_token_file",
        "container_authorization_token_file",
        # Google Cloud Storage; the files' names, not what they hold
        "base_url",
        "service_account",
        "application_credentials",
        # Azure
        "container_name",
        "account_name",
        "use_emulator",
        "use_fabric_endpoint",
        "authority_host",
        "tenant_id",
        "client_id",
        "msi_endpoint",
        "object_id",
        "msi_resource_id",
        "federated_token_file",
        "use_azure_cli",
        "fabric_token_service_url",
        "fabric_workload_host",
        "fabric_cluster_identifier",
    }
)
_PUBLIC_CLIENT_OPTIONS = frozenset(
    {
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "http1_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "http2_max_frame_size",
        "http2_only",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_url",
        "proxy_ca_certificate",
        "proxy_excludes",
        "root_certificate",
        "randomize_addresses",
        "read_timeout",
        "timeout",
        "user_agent",
    }
)
CLIENT_OPTIONS = _PUBLIC_CLIENT_OPTIONS | {"default_headers"}
"""Names of the settings of obstore's HTTP client."""
_PUBLIC_HEADERS = frozenset(
    {
        "content-type",
        "user-agent",
        "x-amz-storage-class",
        "x-amz-acl",
        "x-amz-request-payer",
        "x-amz-expected-bucket-owner",
        "x-goog-user-project",
        "x-goog-storage-class",
        "x-goog-request-reason",
        "x-ms-access-tier",
    }
)

_URL_SECRETS = re.compile(r"(?<=://)[^/@\s]*@|\?[^\s\"')]*")
_DOCUMENT = re.compile(r"<\?xml|<Error|<!doctype|<html", re.IGNORECASE)
_CODE_AND_MESSAGE = re.compile(r"<(?:Code|Message)>([^<]{1,300})<")
_SHOWN_CHARACTERS = 600
_SHORTEST_SECRET = 6
"""What is shorter is no secret worth the name, and would be found inside of words."""


def public_settings(
    config: Mapping[str, Any], client_options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return what of a store's settings and client options is no secret, and the names of the rest."""
    settings = {key: value for key, value in config.items() if key in _PUBLIC_SETTINGS and _is_public(value)}
    client = {
        key: value
        for key, value in client_options.items()
        if key in _PUBLIC_CLIENT_OPTIONS
        and _is_public(value)
        and not (key == "proxy_url" and "@" in str(value))
    }
    headers = client_options.get("default_headers") or {}
    shown = {name: value for name, value in headers.items() if name.lower() in _PUBLIC_HEADERS}
    if shown:
        client["default_headers"] = shown
    hidden = [key for key in config if key not in settings]
    hidden += [key for key in client_options if key not in client and key != "default_headers"]
    hidden += [f"the header {name}" for name in headers if name not in shown]
    return dict(sorted(settings.items())), dict(sorted(client.items())), sorted(hidden)


def without_secrets(url: str) -> str:
    """Return `url` without user, password, query and fragment."""
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    if user and ":" not in user and parts.scheme in ("abfs", "abfss"):
        host = parts.netloc  # here the container comes before the @
    return f"{parts.scheme}://{host}{parts.path}"


class Redactor:
    """Makes texts of obstore's errors fit to be shown: `secrets` are values that never are."""

    def __init__(self, secrets: Iterable[Any] = ()) -> None:
        self._secrets = sorted({text for value in secrets for text in _texts(value)}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return the first line, of a document only its code and message, without the secrets that it shows."""
        line = (text.splitlines() or [""])[0]
        document = _DOCUMENT.search(line)
        if document is not None:
            found = ", ".join(_CODE_AND_MESSAGE.findall(line[document.start() :]))
            line = line[: document.start()] + found
        return self.of_all(line)[:_SHOWN_CHARACTERS].rstrip(":. ")

    def of_all(self, text: str) -> str:
        """Return `text`, of which nothing but secrets is to be left out."""
        return self._hide(_URL_SECRETS.sub("", text))

    def is_fit(self, text: str) -> bool:
        """Tell whether `text` may be shown as it is."""
        return (
            self._hide(text) == text and _URL_SECRETS.search(text) is None and _DOCUMENT.search(text) is None
        )

    def _hide(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text


def secret_values(config: Mapping[str, Any], client_options: Mapping[str, Any]) -> list[Any]:
    """Return the values of a store's settings that must not be shown."""
    settings, client, _ = public_settings(config, client_options)
    headers = client_options.get("default_headers") or {}
    shown = client.get("default_headers") or {}
    return [
        *(value for key, value in config.items() if key not in settings),
        *(
            value
            for key, value in client_options.items()
            if key not in client and key not in ("default_headers", "proxy_url")
        ),
        *(value for name, value in headers.items() if name not in shown),
        *_passwords(str(client_options.get("proxy_url") or "")),
    ]


def _passwords(proxy_url: str) -> list[str]:
    """Return what of a proxy's address must not be shown, with or without a scheme before it."""
    user, at, _ = proxy_url.rpartition("@")
    return re.split("[:/]+", user.partition("://")[2] or user) if at else []


def _is_public(value: Any) -> bool:
    """Tell whether a value is free of the secrets that URLs may carry."""
    return not isinstance(value, str) or "://" not in value or _URL_SECRETS.search(value) is None


def _texts(value: Any) -> list[str]:
    text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    # Of "Bearer abc" the second word alone may be shown.
    return [part for part in (text, *text.split()) if len(part) >= _SHORTEST_SECRET]
