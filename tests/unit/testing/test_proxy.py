"""The proxy does to a request what its rules say, to no other one, and logs all of them."""

from __future__ import annotations

import gc
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from vstore.testing import proxy as p
from vstore.testing.proxy import FaultProxy, NetworkFault

BODY = bytes(range(200))


class Server(ThreadingHTTPServer):
    """Keeps what is put to it, in the order in which it came."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects = {"/base/a": BODY}
        self.seen: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.seen.append(f"{self.command} {self.path}")
        body = self.server.objects.get(self.path)
        self.send_response(404 if body is None else 200)
        body = body or b""
        if self.path == "/base/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 64):
                part = body[start : start + 64]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/base/unsized":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        self.server.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(f"{self.command} {self.path}")
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def server(running: Server) -> Server:
    running.objects = {f"/base/{name}": BODY for name in ("a", "chunked", "unsized")}
    running.seen.clear()
    return running


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(f"http://127.0.0.1:{server.server_port}/base") as proxy:
        assert proxy.url.endswith("/base")
        yield proxy


class Client:
    """One connection, made anew after it broke."""

    def __init__(self, proxy: FaultProxy, timeout_s: float = 30) -> None:
        parts = urlsplit(proxy.url)
        self.path = parts.path
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)

    def ask(self, method: str, name: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        try:
            self.connection.request(method, f"{self.path}/{name}", body, headers)
            with self.connection.getresponse() as response:
                return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            raise


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[Client]:
    client = Client(proxy)
    yield client
    client.connection.close()


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait for what another thread does; fail if it never does."""
    deadline_s = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline_s, "the proxy has not seen in 60 s what was sent to it"
        time.sleep(0.001)


BROKEN = (ConnectionError, http.client.HTTPException)


def test_without_rules_it_only_hands_on(server: Server, proxy: FaultProxy, client: Client) -> None:
    assert client.ask("GET", "a") == (200, BODY)
    assert client.ask("GET", "chunked") == (200, BODY)
    assert client.ask("GET", "unsized") == (200, BODY)
    assert client.ask("HEAD", "a") == (200, b"")
    assert client.ask("GET", "none?x=1", Range="bytes=0-9") == (404, b"")
    assert client.ask("PUT", "b%20c", b"new", **{"If-None-Match": "*"}) == (200, b"")
    assert server.objects["/base/b%20c"] == b"new"
    put = proxy.exchanges[-1]
    assert (put.method, put.path, put.conditions, put.size) == ("PUT", "/base/b c", {"if-none-match": "*"}, 3)
    assert put.raw == b""
    missing = proxy.exchanges[-2]
    assert (missing.path, missing.query, missing.range) == ("/base/none", "x=1", "bytes=0-9")
    assert [(each.status, each.server_status, each.reply_size) for each in proxy.exchanges[:2]] == [
        (200, 200, 200),
        (200, 200, 200),
    ]


@pytest.mark.parametrize("fault", [p.DROP_BEFORE, p.DROP_AFTER])
def test_a_dropped_request_has_no_reply(
    server: Server, proxy: FaultProxy, client: Client, fault: NetworkFault
) -> None:
    proxy.inject(fault, "PUT", "/b$")
    with pytest.raises(BROKEN):
        client.ask("PUT", "b", b"new")
    assert ("/base/b" in server.objects) == fault.applied
    assert proxy.exchanges[0].status is None
    assert proxy.exchanges[0].server_status == (200 if fault.applied else None)
    assert client.ask("PUT", "b", b"again") == (200, b"")


@pytest.mark.parametrize("applied", [False, True])
def test_it_answers_itself(server: Server, proxy: FaultProxy, client: Client, applied: bool) -> None:
    proxy.inject(p.answer(409, applied=applied))
    status, body = client.ask("PUT", "b", b"new")
    assert status == 409
    assert b"ConditionalRequestConflict" in body
    assert ("/base/b" in server.objects) == applied
    assert (proxy.exchanges[0].status, proxy.exchanges[0].fault) == (409, p.answer(409, applied=applied))
    # Over the same connection.
    assert client.ask("GET", "a") == (200, BODY)


@pytest.mark.parametrize("applied", [False, True])
def test_it_stalls_until_the_client_leaves(server: Server, proxy: FaultProxy, applied: bool) -> None:
    proxy.inject(p.stall(applied=applied))
    client = Client(proxy, timeout_s=0.1)
    with pytest.raises(TimeoutError):
        client.ask("PUT", "b", b"new")
    assert ("/base/b" in server.objects) == applied


def test_it_stalls_up_to_a_limit(proxy: FaultProxy, client: Client) -> None:
    proxy.inject(p.stall(0.01, applied=True))
    with pytest.raises(BROKEN):
        client.ask("GET", "a")


def test_it_cuts_and_corrupts_replies(proxy: FaultProxy, client: Client) -> None:
    proxy.inject(p.TRUNCATE)
    with pytest.raises(http.client.IncompleteRead) as caught:
        client.ask("GET", "a")
    assert caught.value.partial == BODY[:100]
    client.connection.close()
    proxy.inject(p.CORRUPT, "GET", "a$")
    assert client.ask("HEAD", "a") == (200, b"")
    status, body = client.ask("GET", "a")
    assert status == 200
    assert [place for place in range(200) if body[place] != BODY[place]] == [100]
    proxy.inject(p.TRUNCATE, "PUT")
    client.connection.request("PUT", f"{client.path}/b", b"new")
    # This client makes do with half a head.
    assert "Content-Length" not in client.connection.getresponse().headers


def test_a_rule_is_for_its_method_path_and_number(proxy: FaultProxy, client: Client) -> None:
    proxy.inject(p.answer(500, applied=False), "GET", "/a$", nth=1)
    proxy.inject(p.answer(503, applied=False), "HEAD", nth=None)
    assert [client.ask("GET", name)[0] for name in ("a", "none", "a", "a")] == [200, 404, 500, 200]
    assert [client.ask("HEAD", "a")[0] for _ in range(3)] == [503, 503, 503]
    proxy.reset()
    assert client.ask("HEAD", "a")[0] == 200
    assert len(proxy.exchanges) == 1
    proxy.choose(lambda exchange: p.answer(429, applied=False) if exchange.size > 2 else None)
    assert [client.ask("PUT", "b", body)[0] for body in (b"12", b"123")] == [200, 429]


def test_a_held_request_is_overtaken(server: Server, proxy: FaultProxy, client: Client) -> None:
    proxy.inject(p.hold(2), "PUT", "held")
    held = Client(proxy)
    thread = threading.Thread(target=held.ask, args=("PUT", "held", b"held"))
    thread.start()
    wait_until(lambda: proxy.exchanges)
    for name in ("1", "2"):
        client.ask("PUT", name, b"x")
    thread.join()
    held.connection.close()
    assert server.seen == ["PUT /base/1", "PUT /base/2", "PUT /base/held"]


@pytest.mark.parametrize("drops", [False, True])
def test_a_held_request_lands_although_its_client_has_left(
    server: Server, proxy: FaultProxy, client: Client, drops: bool
) -> None:
    proxy.inject(p.hold(1000, drops=drops), "PUT", "late")
    leaving = Client(proxy, timeout_s=30 if drops else 0.1)
    with pytest.raises(BROKEN if drops else TimeoutError):
        leaving.ask("PUT", "late", b"late")
    client.ask("PUT", "1", b"x")
    assert "/base/late" not in server.objects
    assert proxy.release() == 1
    assert server.objects["/base/late"] == b"late"
    assert proxy.release() == 0


def test_a_delayed_request_arrives(server: Server, proxy: FaultProxy, client: Client) -> None:
    proxy.inject(p.delay(0.01))
    assert client.ask("PUT", "b", b"new")[0] == 200
    assert server.objects["/base/b"] == b"new"


def test_it_ends_with_requests_under_way(server: Server) -> None:
    with FaultProxy(f"http://127.0.0.1:{server.server_port}/base") as proxy:
        proxy.inject(p.stall(applied=False), "GET")
        proxy.inject(p.hold(1000), "PUT")
        clients = [Client(proxy), Client(proxy), Client(proxy)]
        for client, method in zip(clients[:2], ("GET", "PUT"), strict=True):
            client.connection.request(method, "/base/b", b"body")
        clients[2].connection.connect()
        wait_until(lambda: len(proxy.exchanges) == 2)
    for client in clients:
        client.connection.close()
    assert server.seen == []


def test_it_leaves_no_connection_open_when_it_ends(server: Server) -> None:
    server.objects["/base/large"] = bytes(8 << 20)
    for _ in range(5):
        with FaultProxy(f"http://127.0.0.1:{server.server_port}/base") as proxy:
            idle, greedy = Client(proxy), Client(proxy)
            greedy.connection.request("GET", "/base/large")
            wait_until(lambda: proxy.exchanges and proxy.exchanges[0].status)
            idle.connection.connect()
        idle.connection.close()
        greedy.connection.close()
    # Python complains of what is open still when it collects that; so a complaint is this test's, not some other's.
    gc.collect()
