"""What is said when a place can't be reached, is another one than was meant, or lets nobody in.

Against real sockets, but for what obstore says of names and certificates, which is kept here as it says it.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from obstore import exceptions as obstore_errors
from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

import vstore
from tests.xml_server import Answer, XmlServer, xml_server
from vstore.errors import (
    AccessDeniedError,
    BucketNotFoundError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    OutOfSpaceError,
    StorageError,
    UnreachableError,
    WrongEndpointError,
)
from vstore.keys.objects import LATEST, REPO
from vstore.storage.location import open_storage
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.causes import Place, find_cause
from vstore.storage.objects.client import ATTEMPT_BYTES, Client
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.requests import is_worth_repeating
from vstore.storage.objects.stores import place_of

QUICK = RequestOptions(first_wait_s=0.001, longest_wait_s=0.002)
IMPATIENT = RequestOptions(first_wait_s=0.001, attempt_timeout_s=0.3)
PAGE = b"<!DOCTYPE html>\n<html><head><title>Web Console</title></head><body>Log in</body></html>"


@contextmanager
def listening(act: Callable[[socket.socket], object]) -> Iterator[tuple[str, list[int]]]:
    """Let `act` answer each connection to a port; yield its host and port, and a list with an entry for each."""
    connections: list[int] = []
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            held: list[socket.socket] = []
            while True:
                connection, _ = server.accept()
                if ended.is_set():
                    connection.close()
                    break
                connections.append(1)
                held.append(connection)
                with suppress(OSError):
                    act(connection)
            for connection in held:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}", connections
        finally:
            ended.set()
            socket.create_connection(server.getsockname()).close()
            thread.join()


def silence(connection: socket.socket) -> None:
    """Say nothing for as long as the server runs."""


def reset(connection: socket.socket) -> None:
    connection.recv(10000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def close(connection: socket.socket) -> None:
    connection.recv(10000)
    # Not more than that: what has not been read yet would make a reset of it.
    connection.shutdown(socket.SHUT_WR)


def banner(connection: socket.socket) -> None:
    connection.recv(10000)
    connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
    connection.shutdown(socket.SHUT_WR)


def alert(connection: socket.socket) -> None:
    """Answer the beginning of TLS in plain words, as web servers do."""
    connection.recv(10000)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    connection.shutdown(socket.SHUT_WR)


def storage_at(endpoint: str, requests: RequestOptions = QUICK, **options: Any) -> ObjectStorage:
    store = S3Store(
        "bucket",
        endpoint=endpoint,
        region="us-east-1",
        access_key_id="the-key",
        secret_access_key="the-secret",
        client_options={"allow_http": True} | options,
    )
    return ObjectStorage(store, options=requests)


def asks(storage: ObjectStorage) -> list[Callable[[], object]]:
    return [
        lambda: storage.read(REPO, 0, 1),
        lambda: storage.read_whole(REPO, 10),
        lambda: storage.size(REPO),
        lambda: list(storage.list("")),
        lambda: storage.write(LATEST, b"hint"),
        lambda: storage.delete([REPO]),
    ]


@pytest.mark.parametrize(
    ("act", "scheme", "expected", "words"),
    [
        (silence, "http", UnreachableError, "did not answer in time.*attempt_timeout_s"),
        (
            reset,
            "http",
            UnreachableError,
            "closed the connection without an answer.*expects TLS, write https://",
        ),
        (close, "http", UnreachableError, "closed the connection without an answer"),
        (banner, "http", WrongEndpointError, "does not speak HTTP"),
        (
            alert,
            "https",
            WrongEndpointError,
            "does not speak TLS. If it is meant to be plain, write http://127",
        ),
        (silence, "https", UnreachableError, "did not answer in time"),
    ],
)
def test_what_happened_to_a_connection_is_said(
    act: Callable[[socket.socket], object], scheme: str, expected: type[StorageError], words: str
) -> None:
    with listening(act) as (address, _):
        storage = storage_at(f"{scheme}://{address}", IMPATIENT if act is silence else QUICK)
        for ask in asks(storage)[: 1 if act is silence else None]:
            with pytest.raises(expected, match=words) as caught:
                ask()
            assert type(caught.value) is expected
            assert f"{scheme}://{address}" in caught.value.message
            assert re.match(r"could not [a-z ]+ (\S+ of )?s3://bucket: ", caught.value.message)


def test_a_port_where_nothing_listens_is_named() -> None:
    with socket.socket() as held:
        # Bound, but it does not listen: nobody else can come to do so meanwhile.
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UnreachableError, match=rf"nothing listens at {address} \(Connection refused\)"):
            storage_at(address).size(REPO)
        with pytest.raises(UnreachableError, match=r"\(127.0.0.1:\d+: Connection refused\)"):
            storage_at("http://192.0.2.1", proxy_url=address).size(REPO)
        with pytest.raises(UnreachableError, match=r"the proxy on the way to https://192\.0\.2\.1"):
            storage_at("https://192.0.2.1", proxy_url=address).size(REPO)
        for location in (f"{address}/folder", f"{address}/"):
            with pytest.raises(UnreachableError, match="nothing listens"):
                vstore.open(location)


class Recorded:
    """A clock that nobody waits by."""

    def now_us(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return 0.0

    def sleep(self, duration_s: float) -> None:
        pass


def test_who_never_answered_is_asked_twice_in_the_time_of_one_try() -> None:
    store = S3Store("bucket", endpoint="http://127.0.0.1:9", region="r", client_options={"allow_http": True})
    given: list[str] = []

    def silent(store: Any) -> None:
        given.append(store.client_options["timeout"])
        raise obstore_errors.GenericError(chain("source: TimedOut", "Timeout"))

    def slow(store: Any) -> int:
        if not given:
            silent(store)
        given.append(store.client_options["timeout"])
        return 7

    def client() -> Client:
        given.clear()
        return Client(store, RequestOptions(), clock=Recorded())

    with pytest.raises(UnreachableError, match="did not answer in time"):
        client().run(silent, "look")
    assert given == ["10000ms", "20000ms"]
    # What may not be repeated, and what takes its time, has as much as ever.
    for options in ({"creates": True}, {"repeats": False}):
        with pytest.raises(StorageError):
            client().run(silent, "look", **options)
        assert given == ["30000ms"]
    with pytest.raises(StorageError):
        client().run(silent, "look", size=8 * ATTEMPT_BYTES)
    assert given == ["240000ms", "240000ms"]
    # A slow service is slow to begin with; once it has answered it has the usual time, as often as may be.
    known = client()
    assert [known.run(slow, "look") for _ in range(2)] == [7, 7]
    assert given == ["10000ms", "20000ms", "30000ms"]
    given.clear()
    with pytest.raises(UnreachableError):
        known.run(silent, "look")
    assert given == ["30000ms"] * 10


@pytest.fixture(params=[False, True], ids=["s3", "google"])
def server(request: pytest.FixtureRequest) -> Iterator[XmlServer]:
    with xml_server(google=request.param) as server:
        yield server


@pytest.fixture
def s3() -> Iterator[XmlServer]:
    with xml_server() as server:
        yield server


def server_storage(server: XmlServer) -> ObjectStorage:
    return ObjectStorage(server.store("in"), options=QUICK)


def always(server: XmlServer, answer: Answer) -> None:
    for method in ("GET", "HEAD", "PUT", "LIST", "POST", "DELETE"):
        server.script(method, *[answer] * 99)


def operations(server: XmlServer) -> list[Callable[[], object]]:
    """Return what users begin with."""
    return [
        lambda: vstore.Repository.exists(server.store("in")),
        lambda: vstore.open(server.store("in")),
        lambda: vstore.Repository.create(server.store("in")),
        lambda: vstore.Repository.open_or_create(server.store("in")),
        lambda: vstore.rebuild_catalog(server.store("in")),
    ]


def xml(code: str, more: str = "") -> bytes:
    return f"<?xml version='1.0'?>\n<Error><Code>{code}</Code><Message>m</Message>{more}</Error>".encode()


REFUSALS = [
    (
        404,
        xml("NoSuchBucket"),
        BucketNotFoundError,
        "there is no bucket 'bucket' at http://127.*create it with",
    ),
    (400, xml("InvalidBucketName"), BucketNotFoundError, "the bucket 'bucket' has a name that none can have"),
    (301, xml("PermanentRedirect"), WrongEndpointError, "in another region.*AWS_REGION"),
    (
        400,
        xml("AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
        WrongEndpointError,
        "in another region, eu-west-1",
    ),
    (
        403,
        xml("RequestTimeTooSkewed", "<ServerTime>2026-11-26T10:00:00Z</ServerTime>"),
        AccessDeniedError,
        "this machine's clock differs.*Set the clock; it was 2026-11-26T10:00:00Z there",
    ),
    (400, xml("ExpiredToken"), AccessDeniedError, "the credentials have expired.*credential_provider"),
    (400, xml("InvalidToken"), AccessDeniedError, "the credentials are not accepted"),
    (403, xml("InvalidAccessKeyId"), AccessDeniedError, "the credentials are not accepted"),
    (403, xml("SignatureDoesNotMatch"), AccessDeniedError, "the credentials are not accepted"),
    (401, xml("AuthenticationFailed"), AccessDeniedError, "the credentials are not accepted"),
    (403, xml("AccessDenied"), AccessDeniedError, "access is denied .*read, list and, for changes, write"),
    (
        400,
        xml("UserProjectMissing"),
        AccessDeniedError,
        "readers of the bucket 'bucket' pay.*x-goog-user-project",
    ),
    (403, xml("InvalidObjectState"), StorageError, "moved to an archive"),
    (403, xml("QuotaExceeded"), OutOfSpaceError, "the storage or quota is full"),
    (404, PAGE, WrongEndpointError, r"a web page \('Web Console'\) with status 404.*check the endpoint"),
    (400, PAGE, WrongEndpointError, r"a web page \('Web Console'\) with status 400"),
    (405, b"", WrongEndpointError, "does not know the request"),
    (403, PAGE, AccessDeniedError, "a web page .*whether a proxy or a firewall"),
    (400, b"Client sent an HTTP request to an HTTPS server.\n", WrongEndpointError, "Write https://127"),
    (
        200,
        PAGE,
        WrongEndpointError,
        "answers also for files that are not there.*no object store: check the endpoint",
    ),
    (200, PAGE * 1000, WrongEndpointError, "answers also for files that are not there"),
]


@pytest.mark.parametrize(("status", "body", "expected", "words"), REFUSALS)
def test_each_operation_gives_one_answer(
    s3: XmlServer, status: int, body: bytes, expected: type[StorageError], words: str
) -> None:
    for operation in operations(s3):
        always(s3, Answer(status, body=body))
        with pytest.raises(expected, match=words) as caught:
            operation()
        assert type(caught.value) is expected
        assert sum(s3.counts().values()) <= 12, "it was repeated"


# Requests made by an open repository differ from the first ones in nothing but what was asked before.
OFTEN_LATER = {xml("NoSuchBucket"), xml("ExpiredToken"), xml("AccessDenied"), PAGE}


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        pytest.param(*each, marks=() if each[1] in OFTEN_LATER else pytest.mark.deep)
        for each in REFUSALS
        if each[0] != 200
    ],
)
def test_an_open_repository_gives_the_same_answer(
    s3: XmlServer, status: int, body: bytes, expected: type[StorageError], words: str
) -> None:
    """As when credentials expire, or a network begins to want a log-in."""
    made = vstore.Repository.create(s3.store("in"))
    head = made.lookup_branch("main")
    writer = made.writable_session("main")
    before = dict(s3.objects)
    calls: list[Callable[[], object]] = [
        lambda: made.readonly_session("main"),
        lambda: made.create_tag("v1", head),
        lambda: made.writable_session("main"),
        lambda: writer.commit("nothing", allow_empty=True),
        lambda: made.garbage_collect(datetime.now(UTC)),
    ]
    for call in calls:
        always(s3, Answer(status, body=body))
        with pytest.raises(expected, match=words) as caught:
            call()
        assert type(caught.value) is expected
        assert s3.objects == before
    for method in list(s3.scripts):
        s3.script(method)
    assert writer.commit("nothing", allow_empty=True) == made.lookup_branch("main")


def test_credentials_that_only_read_are_told_apart(server: XmlServer) -> None:
    vstore.Repository.create(server.store("in"))
    repo = vstore.open(server.store("in"))
    for method in ("PUT", "POST", "DELETE"):
        server.script(method, *[Answer(403, body=xml("AccessDenied"))] * 99)
    assert repo.readonly_session("main").read_only
    with pytest.raises(AccessDeniedError, match="Reading works with these credentials, changing does not"):
        repo.writable_session("main")
    storage = server_storage(server)
    with pytest.raises(AccessDeniedError) as caught:
        storage.write(LATEST, b"")
    assert "Reading works" not in caught.value.message
    assert storage.size(LATEST)
    with pytest.raises(AccessDeniedError, match="Reading works"):
        storage.delete([LATEST])


def test_why_is_asked_only_where_it_was_not_said(server: XmlServer) -> None:
    storage = server_storage(server)
    # Nothing is known of the place yet.
    assert storage.size(REPO) is None
    assert server.counts() == {"HEAD": 1, "GET": 1}
    server.requests.clear()
    assert storage.size(REPO) is None
    assert server.counts() == {"HEAD": 1}
    server.script("HEAD", Answer(400))
    server.script("GET", Answer(400, body=xml("ExpiredToken")))
    with pytest.raises(AccessDeniedError, match="have expired"):
        storage.size(REPO)
    # Some proxies let only GET through.
    storage.create(REPO, b"12345")
    server.script("HEAD", Answer(403))
    assert storage.size(REPO) == 5
    web = ObjectStorage(HTTPStore(server.url, client_options={"allow_http": True}), options=QUICK)
    server.script("HEAD", Answer(404))
    assert web.size(REPO) is None
    assert server.counts() == {"HEAD": 1}


def test_a_create_that_a_service_refused_was_not_made(server: XmlServer) -> None:
    storage = server_storage(server)
    for body, expected in (
        (xml("ExpiredToken"), AccessDeniedError),
        (xml("InvalidBucketName"), BucketNotFoundError),
        # Who sends pages may be in between.
        (PAGE, OutcomeUnknownError),
        (xml("InternalError"), OutcomeUnknownError),
    ):
        server.script("PUT", Answer(400, body=body))
        with pytest.raises(expected) as caught:
            storage.create(REPO, b"")
        assert type(caught.value) is expected
    with listening(close) as (address, _), pytest.raises(OutcomeUnknownError, match="closed the connection"):
        storage_at(f"http://{address}").create(REPO, b"")


# --- as obstore says it ----------------------------------------------------------------------------------------


def chain(source: str, kind: str = "Connect", url: str = "https://host.example:9000/bucket/repo") -> str:
    return (
        f"Generic S3 error: Error performing GET {url} in 1.45342ms - HTTP error: error sending request\n\n"
        f'Debug source:\nGeneric {{\n    store: "S3",\n    source: RetryError(\n        RetryErrorImpl {{\n'
        f"            inner: Http(\n                HttpError {{\n                    kind: {kind},\n"
        f"                    source: reqwest::Error {{ {source} }}"
    )


DNS = (
    'hyper_util::client::legacy::Error(Connect, ConnectError("dns error", Custom { kind: Uncategorized, error: '
    '"failed to lookup address information: Name or service not known", }, ), )'
)
CERTIFICATE = "Custom {\n kind: InvalidData,\n error: InvalidCertificate(\n %s\n ),\n }"
S3 = Place("S3", "bucket", "https://host.example:9000")


@pytest.mark.parametrize(
    ("text", "expected", "words", "lasts"),
    [
        (chain(DNS), UnreachableError, "https://host.example:9000 is not known .failed to lookup", False),
        (
            chain(DNS, url="https://s3.eu-west-9.amazonaws.com/bucket/repo"),
            UnreachableError,
            "Check the region",
            False,
        ),
        (
            chain(DNS, url="https://nobody.blob.core.windows.net/bucket/repo"),
            UnreachableError,
            "Check account_name",
            False,
        ),
        (
            chain(CERTIFICATE % "UnknownIssuer,"),
            UnreachableError,
            "not trusted .UnknownIssuer.*root_certif",
            True,
        ),
        (
            chain(CERTIFICATE % "Other(\n OtherError(\n CaUsedAsEndEntity,\n),\n),"),
            UnreachableError,
            "not trusted .CaUsedAsEndEntity",
            True,
        ),
        (
            chain(CERTIFICATE % "NotValidForNameContext {\n expected: DnsName(\n"),
            UnreachableError,
            "It is for another host",
            True,
        ),
        (chain(CERTIFICATE % "ExpiredContext {\n"), UnreachableError, "clock.*renewed", True),
        (chain("AlertReceived(\n HandshakeFailure,\n)"), UnreachableError, "TLS.*HandshakeFailure", True),
        (
            chain('ConnectError("tcp connect error", 127.0.0.1:1, Custom { kind: TimedOut }', "Timeout"),
            UnreachableError,
            "no connection to .* came about in time.*firewall",
            False,
        ),
        (
            chain('"tcp connect error", Os { code: 101, message: "Network is unreachable", }'),
            UnreachableError,
            "can't be reached .Network is unreachable",
            False,
        ),
        (
            chain("source: TooManyRedirects", "Unknown").replace("reqwest", "kind: Redirect"),
            WrongEndpointError,
            "",
            True,
        ),
    ],
)
def test_what_obstore_says_of_a_connection(
    text: str, expected: type[StorageError], words: str, lasts: bool
) -> None:
    cause = find_cause(text, S3)
    assert cause is not None
    assert cause.error is expected
    assert re.search(words, f"{cause.finding}. {cause.remedy}")
    assert cause.lasts is lasts
    assert is_worth_repeating(obstore_errors.GenericError(text), S3) is not lasts


@pytest.mark.parametrize(
    ("service", "url"),
    [
        ("Azure", "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2019-08-01"),
        (
            "Google",
            "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token?audience=x",
        ),
        ("S3", "http://169.254.170.2/v2/credentials/id"),
    ],
)
def test_credentials_that_nobody_gave_are_asked_for(service: str, url: str) -> None:
    place = Place(service, "bucket", "")
    cause = find_cause(chain(DNS, url=url), place)
    assert cause is not None
    assert cause.error is AccessDeniedError
    assert "no credentials were given" in cause.finding
    assert not cause.lasts
    token = chain(DNS, url="https://login.example.com/token").replace(
        "RetryError(", "TokenRequest { source: "
    )
    cause = find_cause(token, place)
    assert cause is not None
    assert cause.finding.startswith("https://login.example.com gave no token")


@pytest.mark.parametrize(
    "provided",
    [
        None,
        {"access_key_id": "the-key", "secret_access_key": "the-secret"},
        {"aws_access_key_id": "the-key", "aws_secret_access_key": "the-secret", "expires_at": None},
        {"access_key_id": "the-key", "secret_access_key": "the-secret", "expires_at": "2030-01-01"},
    ],
)
def test_a_provider_that_returns_something_else_is_told_what(s3: XmlServer, provided: Any) -> None:
    store = S3Store(
        "bucket", endpoint=s3.url, client_options={"allow_http": True}, credential_provider=lambda: provided
    )
    storage = ObjectStorage(store, options=QUICK)
    for ask in (lambda: storage.size(REPO), lambda: storage.create(REPO, b"")):
        with pytest.raises(AccessDeniedError, match=r"gave no credentials \(.*It must return .*expires_at"):
            ask()


def test_nothing_is_said_of_what_is_not_known() -> None:
    for text in ("", "it broke", "HTTP error: request or response body error", "status code: 500 X: <html>"):
        assert find_cause(text, S3) is None
    # A web server may have pages for what it does not have.
    page = "Server returned non-2xx status code: 404 Not Found: <html><title>x</title></html>"
    assert find_cause(page, Place("HTTP", "", "http://host")) is None
    assert find_cause(page, S3) is not None
    with pytest.raises(ObjectNotFoundError):
        ObjectStorage(MemoryStore()).read(REPO, 0, 1)


def test_other_programs_names_are_translated() -> None:
    for given, words in (
        (
            {"key": "the-key", "secret": "the-secret"},
            "'key' is called access_key_id here. 'secret' is called",
        ),
        ({"anonymous": True}, "'anonymous' is called skip_signature=True here"),
    ):
        with pytest.raises(vstore.InvalidInputError, match=re.escape(words)) as caught:
            vstore.open("s3://bucket/folder", storage_options=given)
        assert "the-" not in caught.value.message
    # What icechunk has among the rest, and what is None.
    options = {"endpoint": "http://127.0.0.1:9", "region": "r", "allow_http": True, "token": None}
    storage = open_storage("s3://bucket/folder", options={**options, "client_options": {"user_agent": "me"}})
    assert isinstance(storage, ObjectStorage)
    assert storage._store.client_options == {"allow_http": "true", "user_agent": "me"}
    assert "token" not in storage._store.config


@pytest.mark.parametrize("name", ["endpoint", "endpoint_url", "AWS_ENDPOINT_URL"])
def test_an_endpoint_must_be_a_url(name: str) -> None:
    with pytest.raises(vstore.InvalidInputError, match=r"its endpoint is no URL\. Write http://"):
        vstore.open("s3://bucket/folder", storage_options={name: "localhost:9000"})


def test_a_panic_of_obstore_is_an_error() -> None:
    # As pyo3 names its own, which nobody can import.
    panic_exception = type("PanicException", (BaseException,), {})

    for said, creates, expected in (
        ("request valid: InvalidUri(InvalidFormat)", False, vstore.InvalidInputError),
        ("request valid: InvalidUri(InvalidFormat)", True, vstore.InvalidInputError),
        ("index out of bounds", False, StorageError),
        ("index out of bounds", True, OutcomeUnknownError),
    ):

        def panic(store: object, said: str = said) -> None:
            raise panic_exception(said)

        with pytest.raises(expected) as caught:
            Client(MemoryStore(), QUICK).run(panic, "do it", creates=creates)
        assert type(caught.value) is expected


BAD_REQUEST = (
    "Generic S3 error: Error performing GET http://host/b/latest in 1ms - Server returned non-2xx status code: 400 "
    "Bad Request"
)
UNKNOWN_ALGORITHM = "<Error><Code>UnsupportedAlgorithm</Code><Message>Encountered it.</Message></Error>"


@pytest.mark.parametrize("body", ["", UNKNOWN_ALGORITHM])
def test_a_service_that_wants_credentials_and_does_not_say_so(body: str) -> None:
    text = f"{BAD_REQUEST}: {body}" if body else BAD_REQUEST
    cause = find_cause(text, Place("S3", "b", "http://host", is_unsigned=True))
    assert cause is not None
    assert (cause.error, cause.lasts, cause.refuses) == (AccessDeniedError, True, True)
    assert "without credentials" in cause.finding
    assert "give credentials" in cause.remedy
    assert find_cause(text, Place("S3", "b", "http://host")) is None


def test_a_bad_request_with_a_reason_is_not_put_down_to_missing_credentials() -> None:
    text = f"{BAD_REQUEST}: <Error><Code>RequestTimeout</Code></Error>"
    assert find_cause(text, Place("S3", "b", "http://host", is_unsigned=True)) is None


def test_places_show_no_secret() -> None:
    client_options = {"allow_http": True}
    s3 = S3Store(
        "b", endpoint="http://user:pass@host:9000/x?sig=1", client_options=client_options, region="r"
    )
    azure = AzureStore("c", account_name="me", account_key="AAAA")
    assert place_of(s3) == Place("S3", "b", "http://host:9000/x")
    assert place_of(azure) == Place("Azure", "c", "")
    assert place_of(azure).bucket_words == "the container 'c'"
    assert place_of(GCSStore("b", skip_signature=True)) == Place("Google", "b", "", is_unsigned=True)
    assert not place_of(GCSStore("b", skip_signature=False)).is_unsigned
    assert place_of(HTTPStore("https://host/a?token=1")) == Place("HTTP", "", "https://host/a")
    assert place_of(MemoryStore()) == Place()
