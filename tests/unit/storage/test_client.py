"""How requests are sent: which are repeated, what ends them, what comes of them. Against a server that errs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import pytest
from obstore import exceptions as obstore_errors

from tests.xml_server import Answer, XmlServer, xml_server
from vstore.clock import SYSTEM_CLOCK
from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    StorageError,
    UnsafeStorageError,
)
from vstore.ids import new_pack_id
from vstore.keys.objects import LATEST, REPO, log_name, pack_name
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.causes import Place
from vstore.storage.objects.client import ATTEMPT_BYTES, Client
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.requests import is_worth_repeating
from vstore.storage.objects.retry import Tries

QUICK = RequestOptions(first_wait_s=0.001, longest_wait_s=0.002, max_tries=4)
BODY = bytes(range(100))


@pytest.fixture(params=[False, True], ids=["s3", "google"])
def server(request: pytest.FixtureRequest) -> Iterator[XmlServer]:
    with xml_server(google=request.param) as server:
        yield server


@pytest.fixture
def storage(server: XmlServer) -> ObjectStorage:
    storage = ObjectStorage(server.store("in/here"), options=QUICK)
    storage.create(REPO, BODY)
    return storage


def reads(storage: ObjectStorage) -> list[tuple[str, Callable[[], object]]]:
    """Return what gives `BODY`, by the method that the server sees."""
    return [
        ("GET", lambda: bytes(storage.read(REPO, 0, 100))),
        ("GET", lambda: bytes(storage.read_tail(REPO, 200)[0])),
        ("GET", lambda: storage.read_whole(REPO, 100)),
    ]


TROUBLES = [
    Answer(500),
    Answer(502),
    Answer(503, "SlowDown"),
    Answer(504),
    Answer(429),
    Answer(408),
    Answer(409, "OperationAborted"),
    Answer(400, "RequestTimeout"),
    Answer(drops=True),
]


@pytest.mark.parametrize("trouble", [*TROUBLES, Answer(cut=50), Answer(cut=0)], ids=str)
def test_reads_are_repeated_until_they_succeed(
    server: XmlServer, storage: ObjectStorage, trouble: Answer
) -> None:
    for method, read in reads(storage):
        server.script(method, trouble, trouble)
        assert read() == BODY
        assert server.counts() == {method: 3}


@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_what_may_be_done_twice_is_repeated(
    server: XmlServer, storage: ObjectStorage, trouble: Answer
) -> None:
    deletes = "DELETE" if server.google else "POST"
    calls: list[tuple[str, Callable[[], object], object]] = [
        ("HEAD", lambda: storage.size(REPO), 100),
        ("PUT", lambda: storage.write(LATEST, b"hint"), None),
        ("LIST", lambda: [info.name for info in storage.list("")], [LATEST, REPO]),
        (deletes, lambda: storage.delete([LATEST]), None),
    ]
    for method, call, expected in calls:
        if method == "HEAD" and trouble.status == 400:
            continue  # its code would be in a body
        server.script(method, trouble)
        assert call() == expected
        assert server.counts() == {method: 2}
    assert server.objects == {"in/here/repo": BODY}


def test_an_overwrite_that_was_applied_without_reply_is_repeated(
    server: XmlServer, storage: ObjectStorage
) -> None:
    server.script("PUT", Answer(drops=True, applied=True), Answer(503, applied=True))
    storage.write(LATEST, b"hint")
    assert server.counts() == {"PUT": 3}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(401), AccessDeniedError),
        (Answer(403), AccessDeniedError),
        (Answer(404), ObjectNotFoundError),
        (Answer(400, "InvalidRequest"), StorageError),
        (Answer(411), StorageError),
        (Answer(501), StorageError),
    ],
    ids=str,
)
def test_refusals_are_not_repeated(
    server: XmlServer, storage: ObjectStorage, answer: Answer, expected: type[StorageError]
) -> None:
    for method, read in reads(storage):
        server.script(method, answer)
        with pytest.raises(expected) as caught:
            read()
        assert type(caught.value) is expected
        assert server.counts() == {method: 1}


def test_tries_come_to_an_end(server: XmlServer, storage: ObjectStorage) -> None:
    server.script("GET", *[Answer(503)] * 10)
    with pytest.raises(StorageError, match="503"):
        storage.read(REPO, 0, 1)
    assert server.counts() == {"GET": 4}


def test_a_service_that_never_answered_is_given_up_soon(server: XmlServer) -> None:
    storage = ObjectStorage(server.store(), options=RequestOptions(first_wait_s=0.001, max_tries=9))
    server.script("GET", *[Answer(drops=True)] * 10)
    with pytest.raises(StorageError):
        storage.read(REPO, 0, 1)
    assert server.counts() == {"GET": 3}
    server.script("GET", Answer(403), *[Answer(drops=True)] * 10)
    with pytest.raises(AccessDeniedError):
        storage.read(REPO, 0, 1)
    with pytest.raises(StorageError):
        storage.read(REPO, 0, 1)
    assert server.counts() == {"GET": 10}


# Creates


def creates(storage: ObjectStorage) -> list[Callable[[], object]]:
    def seal() -> None:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [BODY])
        sink.seal(100)

    return [lambda: storage.create(log_name(0), BODY), seal]


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize(
    "trouble", [{"status": s} for s in (500, 502, 503, 504, 429, 408, 409, 400)] + [{"drops": True}], ids=str
)
def test_creates_are_sent_once_and_leave_doubt(
    server: XmlServer, storage: ObjectStorage, trouble: dict[str, Any], applied: bool
) -> None:
    before = len(server.objects)
    for number, create in enumerate(creates(storage), 1):
        server.script("PUT", Answer(applied=applied, **trouble))
        with pytest.raises(OutcomeUnknownError):
            create()
        assert server.counts() == {"PUT": 1}
        assert len(server.objects) == before + applied * number


def test_a_conflict_is_no_proof_that_there_is_something(server: XmlServer, storage: ObjectStorage) -> None:
    server.script("PUT", Answer(409, "ConditionalRequestConflict"))
    with pytest.raises(OutcomeUnknownError):
        storage.create(log_name(0), b"record")
    assert storage.size(log_name(0)) is None
    storage.create(log_name(0), b"record")
    with pytest.raises(ObjectExistsError):
        storage.create(log_name(0), b"another")


def test_creates_that_were_refused_were_not_made(server: XmlServer, storage: ObjectStorage) -> None:
    for answer, expected in [(Answer(403), AccessDeniedError), (Answer(404), ObjectNotFoundError)]:
        for create in creates(storage):
            server.script("PUT", answer)
            with pytest.raises(expected) as caught:
                create()
            assert type(caught.value) is expected
            assert server.counts() == {"PUT": 1}


@pytest.mark.parametrize("retries", [0, 5])
def test_the_retries_of_the_store_that_was_handed_in_are_off(server: XmlServer, retries: int) -> None:
    config = {"max_retries": retries, "backoff": {"init_backoff": timedelta(milliseconds=1)}}
    storage = ObjectStorage(server.store(retry_config=config))
    server.script("PUT", Answer(500))
    with pytest.raises(OutcomeUnknownError):
        storage.create(REPO, b"")
    server.script("GET", *[Answer(500)] * 20)
    with pytest.raises(StorageError):
        storage.read(REPO, 0, 1)
    assert server.counts() == {"GET": retries + 1}


# Timeouts


def test_a_server_that_never_answers_does_not_hang(server: XmlServer, storage: ObjectStorage) -> None:
    def impatient(max_tries: int) -> ObjectStorage:
        options = RequestOptions(
            attempt_timeout_s=0.2, first_wait_s=0.001, longest_wait_s=0.1, max_tries=max_tries
        )
        made = ObjectStorage(server.store("in/here"), options=options)
        made._client._answered = True
        return made

    # On a busy machine a try may take too long without any stall: there are enough of them.
    for method, read in reads(impatient(500)):
        server.script(method, Answer(stalls=True))
        assert read() == BODY
        assert server.counts()[method] >= 2
    hasty = impatient(2)
    for method, read in reads(hasty):
        server.script(method, *[Answer(stalls=True)] * 9)
        with pytest.raises(StorageError):
            read()
    for create in creates(hasty):
        server.script("PUT", *[Answer(stalls=True, applied=True)] * 9)
        with pytest.raises(OutcomeUnknownError):
            create()


def test_larger_requests_have_more_time(server: XmlServer) -> None:
    client = Client(server.store(), RequestOptions(attempt_timeout_s=2))
    client._answered = True

    def timeout(size: int) -> Any:
        return client.run(lambda store: store.client_options["timeout"], "look", size=size)

    assert timeout(0) == timeout(ATTEMPT_BYTES) == "2000ms"
    assert timeout(ATTEMPT_BYTES + 1) == "4000ms"
    assert timeout(8 * ATTEMPT_BYTES) == "16000ms"
    assert timeout(1 << 60) == "512000ms"
    own = Client(server.store(client_options={"timeout": "7s"}), RequestOptions())
    stores = [own.run(lambda store: store, "look", size=size) for size in (0, 1 << 40)]
    assert stores[0] is stores[1]
    assert stores[0].client_options["timeout"] == "7s"


class Recorded:
    """A clock on which only sleeping takes time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []

    def now_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.waits.append(duration_s)
        self.now_s += duration_s


def test_waits_double_with_jitter_until_the_time_is_over() -> None:
    clock = Recorded()
    client = Client(None, RequestOptions(max_tries=1000, total_timeout_s=60), clock=clock)
    client._answered = True
    tries = 0

    def fail(store: object) -> None:
        nonlocal tries
        tries += 1
        clock.now_s += 0.5
        raise obstore_errors.GenericError("it broke")

    with pytest.raises(StorageError):
        client.run(fail, "do it")
    assert tries == len(clock.waits) + 1
    for number, wait_s in enumerate(clock.waits):
        bound = min(0.1 * 2**number, 10)
        assert bound / 2 <= wait_s <= bound
    assert 7 < tries < 16
    assert clock.now_s <= 60.5
    assert len({wait_s / min(0.1 * 2**n, 10) for n, wait_s in enumerate(clock.waits)}) > 3, "no jitter"


# Replies that lie


def test_a_body_that_is_short_is_asked_for_once_more(server: XmlServer, storage: ObjectStorage) -> None:
    for method, read in reads(storage)[:1]:
        server.script(method, Answer(short=50))
        assert read() == BODY
        assert server.counts() == {"GET": 2}
        server.script(method, *[Answer(short=50)] * 9)
        with pytest.raises(StorageError, match="50 bytes came where 100 were asked for, twice") as caught:
            read()
        assert not isinstance(caught.value, CorruptionError)
        assert server.counts() == {"GET": 2, "HEAD": 1}
    server.objects["in/here/repo"] = BODY[:60]
    server.script("GET")
    with pytest.raises(CorruptionError, match="it holds 60"):
        storage.read(REPO, 0, 100)


def test_a_server_that_ignores_ranges_is_named(server: XmlServer, storage: ObjectStorage) -> None:
    calls = [lambda: storage.read(REPO, 0, 10), lambda: storage.read_tail(REPO, 10)]
    for call in calls:
        server.script("GET", *[Answer(200, body=BODY)] * 9)
        with pytest.raises(UnsafeStorageError, match="header Range is honoured"):
            call()
    server.script("GET", Answer(200, body=BODY))
    with pytest.raises(UnsafeStorageError, match="header Range is honoured"):
        storage.read(REPO, 0, 10)
    assert server.counts() == {"GET": 1}


def test_reads_take_one_request(server: XmlServer, storage: ObjectStorage) -> None:
    for method, read in reads(storage):
        server.script(method)
        assert read() == BODY
        assert server.counts() == {method: 1}


def test_the_end_of_no_length_is_not_asked_for(server: XmlServer, storage: ObjectStorage) -> None:
    server.script("GET")
    tail, size = storage.read_tail(REPO, 0)
    assert (bytes(tail), size) == (b"", 100)
    assert server.counts() == {"HEAD": 1}


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("HTTP error: error sending request", True),
        ("Got invalid list response: ill-formed document", True),
        ("Server returned error response: <Error><Code>InternalError</Code></Error>", True),
        ("DeleteObjects request failed for key a: m (code: SlowDown)", True),
        ("DeleteObjects request failed for key a: m (code: AccessDenied)", False),
        ("Received non-partial response when range requested", False),
        ("Invalid range: Wanted range starting at 7", False),
        ("Requested 0..4, got 5..9", False),
        ("Server returned non-2xx status code: 505 HTTP Version Not Supported: ", False),
        ("Server returned non-2xx status code: 503 Service Unavailable: out of range", True),
    ],
)
def test_what_obstore_says_tells_whether_to_try_again(text: str, repeated: bool) -> None:
    assert is_worth_repeating(obstore_errors.GenericError(text)) is repeated


# The limit


@pytest.mark.parametrize("limit", [1, 5])
def test_no_more_requests_are_under_way_than_allowed(server: XmlServer, limit: int) -> None:
    storage = ObjectStorage(server.store(), options=RequestOptions(max_requests=limit))
    storage.create(REPO, BODY)
    lock = threading.Lock()
    under_way = most = 0
    client = storage._client
    original = client._store_for

    class Counting:
        def __init__(self, store: Any) -> None:
            self.store = store

        def get_range(self, *args: Any, **options: Any) -> Any:
            with self.counted():
                return self.store.get_range(*args, **options)

        def counted(self) -> Any:
            from contextlib import contextmanager

            @contextmanager
            def count() -> Iterator[None]:
                nonlocal under_way, most
                with lock:
                    under_way += 1
                    most = max(most, under_way)
                yield
                with lock:
                    under_way -= 1

            return count()

    client._store_for = lambda *given: Counting(original(*given))  # type: ignore[method-assign]

    with ThreadPoolExecutor(12) as pool:
        for task in [pool.submit(storage.read, REPO, 0, 100) for _ in range(60)]:
            task.result()
    assert most == limit


def test_packs_have_the_storage_class_and_nothing_else_has(server: XmlServer) -> None:
    storage = ObjectStorage(server.store(), options=RequestOptions(storage_class="COLD"))
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [BODY])
    sink.seal(100)
    storage.create(REPO, b"")
    storage.write(LATEST, b"")
    header = "x-goog-storage-class" if server.google else "x-amz-storage-class"
    classes = {
        unquote(request.path).rsplit("/", 1)[1]: request.headers.get(header) for request in server.requests
    }
    assert classes == {pack_name(sink.pack).rsplit("/", 1)[1]: "COLD", "repo": None, "latest": None}


@pytest.mark.parametrize(
    ("options", "first", "second"),
    [
        (RequestOptions(), True, False),
        (RequestOptions(max_tries=1), False, False),
        (RequestOptions(total_timeout_s=9), False, False),
    ],
)
def test_only_the_first_of_several_tries_begins_with_less_time(
    options: RequestOptions, first: bool, second: bool
) -> None:
    tries = Tries(options, SYSTEM_CLOCK, Place("memory://"))
    assert tries.may_begin_with(10) is first
    tries.next_wait_s(obstore_errors.GenericError("503"), answered=True)
    assert tries.may_begin_with(10) is second
