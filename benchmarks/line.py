"""A long line to an object store: a proxy that hands on every reply a while later, and counts what goes through.

    python -m benchmarks.line --upstream 127.0.0.1:4566 --latency-ms 50

Prints the port it listens on, and ends when its input does. Bytes are handed on as they come, replies through a delay
line, so that latency is added once to each reply and a long one still comes at full speed. Nothing but the heads of
requests is looked at. `GET /-/traffic` is answered by the proxy itself, at once, with what it counted so far.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
from collections import Counter, deque
from urllib.parse import parse_qs

TRAFFIC = "/-/traffic"
_MAX_HEAD_BYTES = 64 * 1024
_WAITING_BYTES = 16 * 1024 * 1024
"""What one connection's delay line and buffers hold, at most; then the server waits."""


class Traffic:
    """What went through so far; `at_once` is the most requests that waited for a reply since it was last asked."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.sent_bytes = 0
        self.received_bytes = 0
        self.under_way = 0
        self.at_once = 0

    def begin(self, kind: str) -> None:
        self.requests[kind] += 1
        self.under_way += 1
        self.at_once = max(self.at_once, self.under_way)

    def report(self) -> bytes:
        """Return all counts as JSON, and begin to look for the most at once anew."""
        counts = {
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "at_once": self.at_once,
        }
        self.at_once = self.under_way
        return json.dumps(counts | {"requests": dict(self.requests)}).encode()


def kind_of(method: str, target: str) -> str:
    """Return what S3 is asked for: get, head, put, list, delete, or part of an upload in parts."""
    path, _, query = target.partition("?")
    words = parse_qs(query, keep_blank_values=True)
    if "uploadId" in words or "uploads" in words:
        return "part"
    if "delete" in words:
        return "delete"
    if method == "GET" and ("list-type" in words or "/" not in path.strip("/")):
        return "list"
    return method.lower()


class RequestHeads:
    """Finds the heads of the requests in a stream of bytes; bodies must say how long they are."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._body_left = 0

    def feed(self, data: bytes) -> list[tuple[str, str]]:
        """Return method and target of each request whose head ends in `data`."""
        found = []
        view = memoryview(data)
        while view:
            if self._body_left:
                taken = min(self._body_left, len(view))
                self._body_left -= taken
                view = view[taken:]
                continue
            before = len(self._head)
            self._head += view
            end = self._head.find(b"\r\n\r\n", max(0, before - 3))
            if end < 0:
                if len(self._head) > _MAX_HEAD_BYTES:
                    raise ValueError("the head of a request is too long")
                break
            view = view[end + 4 - before :]
            first, *lines = bytes(self._head[:end]).decode("latin-1").split("\r\n")
            self._head.clear()
            method, target, _ = first.split(" ", 2)
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            if "transfer-encoding" in headers:
                raise ValueError("a request's body does not say how long it is")
            self._body_left = int(headers.get("content-length", 0))
            found.append((method, target))
        return found


class _End(asyncio.Protocol):
    """One end of a connection, which stops the other from reading while it can't write."""

    other: _End | None = None
    transport: asyncio.Transport
    is_full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(_WAITING_BYTES)

    def pause_writing(self) -> None:
        self.is_full = True
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_full = False
        if self.other is not None:
            self.other.resume()

    def resume(self) -> None:
        self.transport.resume_reading()


class _Client(_End):
    """The end at which requests come."""

    def __init__(self, upstream: tuple[str, int], latency_s: float, traffic: Traffic) -> None:
        self._upstream = upstream
        self._latency_s = latency_s
        self._traffic = traffic
        self._heads = RequestHeads()
        self._early = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self.unanswered = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        task = asyncio.get_running_loop().create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            server = _Server(self, self._latency_s, self._traffic)
            await loop.create_connection(lambda: server, *self._upstream)
        except OSError:
            self.transport.abort()
            return
        self.other = server
        server.transport.write(self._early)
        self._early = bytearray()

    def data_received(self, data: bytes) -> None:
        try:
            heads = self._heads.feed(data)
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            self.transport.abort()
            return
        if heads and heads[0][1] == TRAFFIC:
            body = self._traffic.report()
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            return
        for head in heads:
            self._traffic.begin(kind_of(*head))
        self.unanswered += len(heads)
        self._traffic.sent_bytes += len(data)
        if self.other is None:
            self._early += data
        else:
            self.other.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._traffic.under_way -= self.unanswered
        self.unanswered = 0
        if self.other is not None:
            self.other.transport.abort()

    def answer(self, data: bytes) -> None:
        """Hand on a part of a reply, which waited for as long as the line takes."""
        if self.unanswered:
            # The first bytes of a reply: requests come one after another on a connection.
            self._traffic.under_way -= self.unanswered
            self.unanswered = 0
        self._traffic.received_bytes += len(data)
        self.transport.write(data)


class _Server(_End):
    """The end at which replies come, and wait."""

    def __init__(self, client: _Client, latency_s: float, traffic: Traffic) -> None:
        self.other = self._client = client
        self._latency_s = latency_s
        self._line: deque[tuple[float, bytes]] = deque()
        self._line_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        if not self._line:
            self._loop.call_later(self._latency_s, self._deliver)
        self._line.append((self._loop.time() + self._latency_s, data))
        self._line_bytes += len(data)
        if self._line_bytes > _WAITING_BYTES:
            self.transport.pause_reading()

    def _deliver(self) -> None:
        now = self._loop.time()
        while self._line and self._line[0][0] <= now:
            data = self._line.popleft()[1]
            self._line_bytes -= len(data)
            if data:
                self._client.answer(data)
            else:
                self._client.transport.close()
        if self._line:
            self._loop.call_at(self._line[0][0], self._deliver)
        self.resume()

    def resume(self) -> None:
        if (
            self._line_bytes <= _WAITING_BYTES
            and not self._client.is_full
            and not self.transport.is_closing()
        ):
            self.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        # After what is on its way: no bytes, which mean the end.
        self.data_received(b"")


async def _serve(upstream: tuple[str, int], latency_s: float) -> None:
    traffic = Traffic()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: _Client(upstream, latency_s, traffic), "127.0.0.1", 0, backlog=512
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    threading.Thread(
        target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)), daemon=True
    ).start()
    await ended.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--latency-ms", type=float, default=50)
    options = parser.parse_args()
    host, _, port = options.upstream.rpartition(":")
    asyncio.run(_serve((host, int(port)), options.latency_ms / 1000))


if __name__ == "__main__":
    main()
