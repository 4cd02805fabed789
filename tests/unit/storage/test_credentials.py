"""Where credentials come from, and that they go nowhere: not into pickles, messages or tracebacks."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

from tests.xml_server import Answer, XmlServer, xml_server
from vstore import Repository
from vstore.errors import AccessDeniedError, InvalidInputError, StorageError
from vstore.keys.objects import REPO
from vstore.storage.location import open_storage
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.secrets import Redactor, public_settings
from vstore.testing.latency import LatencyStore

SECRET = "SECRETSECRET"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
ONCE = RequestOptions(max_tries=1)


class Provider:
    """Gives new credentials each time; picklable."""

    def __init__(self, lifetime_s: float = 3600) -> None:
        self.calls = 0
        self.lifetime_s = lifetime_s

    def __call__(self) -> Any:
        self.calls += 1
        return {
            "access_key_id": f"id{self.calls}",
            "secret_access_key": SECRET,
            "token": f"token{self.calls}",
            "expires_at": datetime.now(UTC) + timedelta(seconds=self.lifetime_s),
        }


class AsyncProvider(Provider):
    """The same by a coroutine, which must always run on one loop."""

    def __init__(self, lifetime_s: float = 3600) -> None:
        super().__init__(lifetime_s)
        self.loops: set[int] = set()

    async def answer(self) -> Any:
        self.loops.add(id(asyncio.get_running_loop()))
        await asyncio.sleep(0)
        return super().__call__()

    def __call__(self) -> Any:
        return self.answer()


STORES: list[tuple[Any, dict[str, str]]] = [
    (S3Store("bucket", prefix="a", access_key_id="AKID", secret_access_key=SECRET, token=SECRET), {}),
    (
        S3Store("bucket", server_side_encryption="sse-c", sse_customer_key_base64=SECRET),
        {"AWS_SSE_CUSTOMER_KEY_BASE64": "A" * 43 + "="},
    ),
    (S3Store("bucket", credential_provider=Provider()), {}),
    (S3Store("bucket", client_options={"default_headers": {"Authorization": f"Bearer {SECRET}"}}), {}),
    (S3Store("bucket", client_options={"proxy_url": f"http://user:{SECRET}@proxy:1"}), {}),
    (S3Store("bucket", client_options={"proxy_url": f"user:{SECRET}@proxy:1"}), {}),
    (S3Store("bucket", endpoint=f"https://user:{SECRET}@host"), {}),
    (GCSStore("bucket", bearer_token=SECRET), {}),
    (
        GCSStore(
            "bucket",
            service_account_key=json.dumps(
                {
                    "client_email": "",
                    "private_key": SECRET,
                    "private_key_id": "",
                    "disable_oauth": True,
                    "gcs_base_url": "http://127.0.0.1:9",
                }
            ),
        ),
        {"GOOGLE_SKIP_SIGNATURE": "true"},
    ),
    (AzureStore("container", account_name="me", account_key=KEY), {}),
    (AzureStore("container", account_name="me", sas_key=f"sv=1&sig={SECRET}"), {}),
    (AzureStore("container", account_name="me", token=SECRET), {}),
    (HTTPStore(f"https://host/a?signature={SECRET}"), {}),
    (HTTPStore(f"https://user:{SECRET}@host/a"), {}),
    (HTTPStore("https://host/a", client_options={"default_headers": {"X-Api-Key": SECRET}}), {}),
]


@pytest.mark.parametrize(("store", "environment"), STORES)
def test_pickles_and_representations_hold_no_secret(
    store: Any, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    storage = ObjectStorage(store, "b")
    pickled = pickle.dumps(storage)
    for text in (pickled, repr(storage).encode(), storage.url.encode()):
        assert SECRET.encode() not in text
        assert KEY.encode() not in text
    again = pickle.loads(pickled)
    assert again.url == storage.url
    assert type(again._store) is type(store)
    assert again._left_out
    assert pickle.dumps(again) == pickled
    assert pickle.dumps(storage) == pickled


def test_what_is_no_secret_survives_a_pickle() -> None:
    options = {
        "config": {"region": "eu-west-1", "virtual_hosted_style_request": True},
        "endpoint": "http://bucket.host:1234",
        "request_payer": True,
        "skip_signature": True,
        "server_side_encryption": "aws:kms",
        "sse_kms_key_id": "arn:aws:kms:eu-west-1:1:key/1",
        "checksum_algorithm": "SHA256",
        "client_options": {
            "allow_http": True,
            "timeout": "9s",
            "proxy_url": "http://proxy:8080",
            "default_headers": {"x-amz-storage-class": "STANDARD_IA"},
        },
        "max_requests": 7,
        "max_tries": 3,
    }
    storage = open_storage("s3://bucket/a", options=options)
    again = pickle.loads(pickle.dumps(storage))
    assert isinstance(storage, ObjectStorage)
    assert again._store.config == storage._store.config
    assert again._store.client_options == storage._store.client_options
    assert again._store.prefix == "a"
    assert again._options == storage._options
    assert (again.url, again._left_out) == (storage.url, ())


def test_unknown_settings_count_as_secret() -> None:
    settings, client, hidden = public_settings(
        {"bucket": "b", "a_new_setting": SECRET},
        {"timeout": "3s", "new_option": SECRET, "default_headers": {"X-New": SECRET, "x-amz-acl": "private"}},
    )
    assert settings == {"bucket": "b"}
    assert client == {"timeout": "3s", "default_headers": {"x-amz-acl": "private"}}
    assert hidden == ["a_new_setting", "new_option", "the header X-New"]


def test_credentials_are_pickled_if_the_user_asks() -> None:
    options = {"pickle_credentials": True}
    given = S3Store("bucket", access_key_id="AKID", secret_access_key=SECRET, credential_provider=Provider())
    by_url = {"access_key_id": "AKID", "secret_access_key": SECRET, "credential_provider": Provider()}
    for storage in (
        open_storage(given, options=options),
        open_storage("s3://bucket", options={**by_url, **options}),
    ):
        again = pickle.loads(pickle.loads(pickle.dumps(pickle.dumps(storage))))
        assert again._store.config["secret_access_key"] == SECRET
        assert isinstance(again._store.credential_provider, Provider)
        assert again._options.pickle_credentials
        assert SECRET.encode() in pickle.dumps(again)


def test_what_vstore_does_not_know_is_pickled_only_if_the_user_asks() -> None:
    class Own(S3Store):
        pass

    for store in (LatencyStore(MemoryStore()), Own("bucket", secret_access_key=SECRET, access_key_id="AKID")):
        with pytest.raises(InvalidInputError, match="pickle_credentials=True"):
            pickle.dumps(ObjectStorage(store))  # type: ignore[arg-type]


def test_a_worker_takes_credentials_from_its_environment() -> None:
    with xml_server() as server:
        repo = Repository.create(
            "s3://bucket/repo",
            storage_options={
                "endpoint": server.url,
                "access_key_id": "AKID-OF-PARENT",
                "secret_access_key": SECRET,
                "client_options": {"allow_http": True},
                "region": "us-east-1",
            },
        )
        pickled = pickle.dumps([repo, repo.readonly_session("main"), repo.readonly_session("main").store])
        assert SECRET.encode() not in pickled
        assert all(SECRET.encode() not in body for body in server.objects.values())
        code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[0].list_branches())"
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "AKID-OF-WORKER",
            "AWS_SECRET_ACCESS_KEY": "worker",
        }
        server.script("GET")
        done = subprocess.run(
            [sys.executable, "-c", code], input=pickled, env=environment, capture_output=True
        )
        assert done.returncode == 0, done.stderr.decode()
        assert "main" in done.stdout.decode()
        signers = {request.headers["Authorization"].split("/")[0] for request in server.requests}
        assert signers == {"AWS4-HMAC-SHA256 Credential=AKID-OF-WORKER"}


def test_a_copy_without_credentials_tells_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    with xml_server() as server:
        storage = ObjectStorage(server.store(), options=RequestOptions(first_wait_s=0.001))
        again = pickle.loads(pickle.dumps(storage))
        server.script("GET", Answer(403))
        with pytest.raises(AccessDeniedError, match="left out access_key_id, secret_access_key: set them"):
            again.read(REPO, 0, 1)
        server.script("GET", Answer(403))
        with pytest.raises(AccessDeniedError) as caught:
            storage.read(REPO, 0, 1)
        assert "left out" not in caught.value.message


def test_a_copy_that_can_not_be_made_tells_what_it_lacks() -> None:
    store = S3Store("bucket", server_side_encryption="sse-c", sse_customer_key_base64=SECRET)
    pickled = pickle.dumps(ObjectStorage(store))
    with pytest.raises(InvalidInputError, match="left out sse_customer_key_base64: set them"):
        pickle.loads(pickled)


# What is shown of errors


@pytest.fixture
def server() -> Iterator[XmlServer]:
    with xml_server() as server:
        yield server


def test_errors_do_not_repeat_what_servers_say_of_the_request(server: XmlServer) -> None:
    # S3 answers a wrong signature with the headers that it saw, the session token among them.
    storage = ObjectStorage(
        server.store(token="TOKENTOKEN", secret_access_key=SECRET, prefix="p"), options=ONCE
    )
    body = (
        "<?xml version='1.0'?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature does not match"
        "</Message><CanonicalRequest>x-amz-security-token:TOKEN-OF-A-ROLE</CanonicalRequest></Error>"
    )
    for status, text in ((403, body), (500, body), (500, f"plain words about {SECRET}"), (400, "TOKENTOKEN")):
        for method, call in (
            ("GET", lambda: storage.read(REPO, 0, 1)),
            ("PUT", lambda: storage.create(REPO, b"")),
            ("LIST", lambda: list(storage.list(""))),
        ):
            server.script(method, Answer(status, body=text.encode()))
            with pytest.raises(StorageError) as caught:
                call()
            shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            for secret in (SECRET, "TOKENTOKEN", "TOKEN-OF-A-ROLE"):
                assert secret not in shown
            if text is body:
                assert "SignatureDoesNotMatch: The signature does not match" in caught.value.message
                # Not even where no traceback shows it.
                assert caught.value.__context__ is None
                assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nDebug: b", "a"),
        ("GET http://u:p@h/a?sig=s in 3ms", "GET http://h/a in 3ms"),
        ("403: <?xml?><Error><Code>X</Code><Message>m</Message><K>s</K></Error>", "403: X, m"),
        ("503: <html><body>s</body></html>", "503"),
        (f"token {SECRET} was refused. ", "token *** was refused"),
        ("", ""),
    ],
)
def test_texts_are_redacted(text: str, shown: str) -> None:
    redact = Redactor([f"Bearer {SECRET}", "ent"])
    assert redact(text) == shown
    assert redact.is_fit(shown)


def test_options_that_obstore_refuses_are_not_repeated() -> None:
    for options in (
        {"account_name": "me", "account_key": SECRET},
        {"config": {"account_name": "me", "account_key": SECRET}},
        {
            "client_options": {
                "proxy_url": f"http://u:{SECRET}@[",
                "default_headers": {"Authorization": SECRET},
            }
        },
    ):
        url = f"az://container/a?sig={SECRET}"
        with pytest.raises(InvalidInputError) as caught:
            open_storage(url, options={**options, "no_such_option": SECRET})
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_locations_that_are_refused_are_not_repeated_whole() -> None:
    for location in (f"https:user:{SECRET}@host/a", f"s3:///a?sig={SECRET}", f"https://user:{SECRET}@host/a"):
        with pytest.raises(InvalidInputError) as caught:
            open_storage(location)
        assert SECRET not in caught.value.message


def test_without_credentials_the_user_is_told_so() -> None:
    storage = ObjectStorage(MemoryStore())

    def fail(store: object) -> None:
        raise obstore_errors.GenericError(
            "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1ms - Server returned "
            "non-2xx status code: 403 Forbidden: "
        )

    for creates in (False, True):
        with pytest.raises(AccessDeniedError, match="no credentials were given, none are in the environment"):
            storage._client.run(fail, "do it", creates=creates)


# Providers


@pytest.mark.parametrize("kind", [Provider, AsyncProvider])
def test_a_provider_signs_requests_in_threads_and_on_a_loop(server: XmlServer, kind: type[Provider]) -> None:
    provider = kind()
    store = S3Store(
        "bucket", endpoint=server.url, client_options={"allow_http": True}, credential_provider=provider
    )
    storage = ObjectStorage(store)
    storage.create(REPO, b"repo")

    async def read() -> bytes:
        # A blocking call on a running loop.
        return bytes(await asyncio.to_thread(storage.read, REPO, 0, 4)) + bytes(storage.read(REPO, 0, 4))

    assert asyncio.run(read()) == b"reporepo"
    assert provider.calls == 1
    assert {request.headers["x-amz-security-token"] for request in server.requests} == {"token1"}


def test_stores_for_other_sizes_share_what_a_provider_said(server: XmlServer) -> None:
    for lifetime_s, calls in ((3600, 1), (300, 2)):
        provider = Provider(lifetime_s=lifetime_s)
        store = S3Store(
            "bucket", endpoint=server.url, client_options={"allow_http": True}, credential_provider=provider
        )
        storage = ObjectStorage(store)
        # Looks are made by the store for services that have not answered yet, creates never.
        assert storage.size(REPO) is None
        storage.create(REPO, b"repo")
        assert provider.calls == calls
        server.objects.clear()


@pytest.mark.parametrize("kind", [Provider, AsyncProvider])
def test_credentials_that_expire_are_asked_for_again(server: XmlServer, kind: type[Provider]) -> None:
    provider = kind(lifetime_s=0.01)
    store = S3Store(
        "bucket", endpoint=server.url, client_options={"allow_http": True}, credential_provider=provider
    )
    storage = ObjectStorage(store)
    storage.create(REPO, b"repo")
    for _ in range(50):
        storage.read(REPO, 0, 4)
        if provider.calls >= 3:
            break
        threading.Event().wait(0.1)  # obstore does not ask more often
    tokens = {request.headers["x-amz-security-token"] for request in server.requests}
    assert {"token1", "token2", "token3"} <= tokens
    if isinstance(provider, AsyncProvider):
        assert len(provider.loops) == 1


def test_a_provider_that_fails_is_named(server: XmlServer) -> None:
    def provider() -> Any:
        raise ValueError("the vault is closed")

    store = S3Store(
        "bucket", endpoint=server.url, client_options={"allow_http": True}, credential_provider=provider
    )
    for call in (
        lambda: ObjectStorage(store).read(REPO, 0, 1),
        lambda: ObjectStorage(store).create(REPO, b""),
    ):
        with pytest.raises(AccessDeniedError, match="the vault is closed"):
            call()
    assert server.requests == []


def test_obstores_options_reach_the_server(server: XmlServer) -> None:
    def headers(prefix: str = "repo", **options: Any) -> Any:
        client = {"allow_http": True, **options.pop("client_options", {})}
        location = f"s3://bucket/{prefix}"
        storage = open_storage(
            location, options={"endpoint": server.url, "client_options": client, **options}
        )
        server.script("PUT")
        storage.create(REPO, b"x")
        server.objects.clear()
        (request,) = server.requests
        return request

    keys = {"access_key_id": "AKID", "secret_access_key": "key"}
    assert "Authorization" not in headers(skip_signature=True).headers
    assert headers(request_payer=True, **keys).headers["x-amz-request-payer"] == "requester"
    assert (
        headers(server_side_encryption="AES256", **keys).headers["x-amz-server-side-encryption"] == "AES256"
    )
    assert headers(checksum_algorithm="SHA256", **keys).headers["x-amz-checksum-sha256"]
    assert headers(unsigned_payload=True, **keys).headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert "/eu-west-3/s3/" in headers(region="eu-west-3", **keys).headers["Authorization"]
    assert headers(config={"aws_session_token": "tok"}, **keys).headers["x-amz-security-token"] == "tok"
    own = {"default_headers": {"X-Own": "1"}, "user_agent": "me/1"}
    sent = headers(client_options=own, **keys).headers
    assert (sent["X-Own"], sent["User-Agent"]) == ("1", "me/1")
    assert headers(prefix="a/b", **keys).path == "/bucket/a/b/repo"
    # In virtual-hosted style the endpoint names the bucket, and the path does not.
    assert headers(virtual_hosted_style_request=True, **keys).path == "/repo/repo"
    # By way of a proxy, which is asked for the whole URL.
    proxied = headers(client_options={"proxy_url": server.url}, endpoint="http://storage.invalid", **keys)
    assert proxied.path == "http://storage.invalid/bucket/repo/repo"
