"""An HTTP proxy that goes wrong on demand: what a network and a server can do to the requests of an object store.

`FaultProxy` stands before a real server, in a thread of its own. Its rules say which request meets which fault; every
request is logged as an `Exchange`, for counting. Each request is handed to the server on a connection of its own, once
it came in whole; so a fault is always about one request. `faults` does the same below a `Storage`, without a server.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

T = TypeVar("T")

_MAX_HEAD_BYTES = 64 * 1024
_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "content-length"}
)
_CODES = {
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}


class FaultKind(Enum):
    """What happens to a request."""

    DROP = "the connection is closed without a reply"
    ANSWER = "the proxy answers with a status of its own"
    STALL = "no reply comes, and at last the connection is closed"
    TRUNCATE = "the connection is closed amid the reply"
    CORRUPT = "a bit in the middle of the reply's body is flipped"
    DELAY = "it is handed on after a while"
    HOLD = "it is handed on after others that came later"


class NetworkFault(NamedTuple):
    """A kind with its details; the functions and constants below make them.

    `applied`: the server gets the request all the same. `seconds` bounds a stall (None: as long as the client waits)
    or is the delay. A held request waits until the server has answered `overtaken_by` others, or for
    `FaultProxy.release`; it is handed on even if the client has gone, and with `drops` the client is cut off at once.
    """

    kind: FaultKind
    applied: bool = False
    status: int = 0
    seconds: float | None = None
    overtaken_by: int = 0
    drops: bool = False

    def __str__(self) -> str:
        details = [f"{name}={value}" for name, value in self._asdict().items() if name != "kind" and value]
        return " ".join([self.kind.name.lower(), *details])


DROP_BEFORE = NetworkFault(FaultKind.DROP)
DROP_AFTER = NetworkFault(FaultKind.DROP, applied=True)
TRUNCATE = NetworkFault(FaultKind.TRUNCATE, applied=True)
CORRUPT = NetworkFault(FaultKind.CORRUPT, applied=True)


def answer(status: int, *, applied: bool) -> NetworkFault:
    return NetworkFault(FaultKind.ANSWER, applied, status)


def stall(limit_s: float | None = None, *, applied: bool) -> NetworkFault:
    return NetworkFault(FaultKind.STALL, applied, seconds=limit_s)


def delay(seconds: float) -> NetworkFault:
    return NetworkFault(FaultKind.DELAY, applied=True, seconds=seconds)


def hold(overtaken_by: int = 1, *, drops: bool = False) -> NetworkFault:
    return NetworkFault(FaultKind.HOLD, applied=True, overtaken_by=overtaken_by, drops=drops)


@dataclass(slots=True)
class Exchange:
    """A request and what became of it. `path` is decoded; `conditions` are the headers `if-*`, in lower case.

    `size` counts the request's body, `reply_size` what was sent back of the reply's. `status` is what the client was
    told (None: nothing), `server_status` what the server said (None: it never saw the request, or not yet).
    """

    method: str
    path: str
    query: str
    range: str | None
    conditions: dict[str, str]
    size: int
    fault: NetworkFault | None = None
    status: int | None = None
    server_status: int | None = None
    reply_size: int = 0
    raw: bytes = field(default=b"", repr=False)
    """The request as it is handed on, until that is done."""


Choose = Callable[[Exchange], NetworkFault | None]
"""Decides, in the order in which requests come, what each of them meets. Called in the proxy's thread."""


class _Rule:
    def __init__(self, fault: NetworkFault, method: str | None, path: str, nth: int | None) -> None:
        self._fault, self._method, self._path, self._nth = fault, method, re.compile(path), nth
        self._seen = 0

    def __call__(self, exchange: Exchange) -> NetworkFault | None:
        if self._method not in (None, exchange.method) or self._path.search(exchange.path) is None:
            return None
        number, self._seen = self._seen, self._seen + 1
        return self._fault if self._nth in (None, number) else None


class FaultProxy:
    """A proxy before the server at `upstream`, while the context is open; clients use its `url` instead.

    May be used from any thread. `exchanges` are in the order in which requests came.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._path = parts.path
        self.url = ""
        self.exchanges: list[Exchange] = []
        self._choices: list[Choose] = []
        self._held: dict[asyncio.Event, int] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultProxy:
        self._loop = asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vstore-proxy", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_MAX_HEAD_BYTES))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._path}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._call(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def inject(
        self, fault: NetworkFault, method: str | None = None, path: str = "", *, nth: int | None = 0
    ) -> None:
        """Let a request meet `fault`: the `nth` from now, from 0 (None: each), of `method` whose path `path` matches.

        `path` is a regular expression that may match anywhere. Of several rules the first one added wins; each counts
        for itself.
        """
        self.choose(_Rule(fault, method, path, nth))

    def choose(self, choice: Choose) -> None:
        """Let `choice` decide about requests for which no earlier rule has a fault."""
        self._choices.append(choice)

    def clear(self) -> None:
        """Forget the rules: from now on all goes well, but for what is held or stalled already."""
        self._choices.clear()

    def reset(self) -> None:
        """Let all go that is held, then forget rules and exchanges."""
        self.release()
        self.clear()
        self.exchanges.clear()

    def release(self) -> int:
        """Hand on what is held, and return how many requests that were once the server has answered them."""
        return self._call(self._release())

    def _call(self, act: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(act, self._loop).result()

    async def _stop(self) -> None:
        # Connections may be on their way in; asyncio's tasks for these lose the socket if they are cancelled, or if the
        # server is closed.
        for listener in self._server.sockets:
            self._loop.remove_reader(listener)
        while ending := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in self._tasks | self._late:
                task.cancel()
            self._abort()
            await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
        # Of tasks that were cancelled before their first step.
        self._abort()
        self._server.close()
        await asyncio.sleep(0)

    def _abort(self) -> None:
        for writer in self._writers:
            # Closing would wait for clients that don't read their reply.
            writer.transport.abort()

    async def _release(self) -> int:
        held = set(self._held)
        for event in held:
            event.set()
        while self._late:
            await asyncio.wait(self._late)
        return len(held)

    # --- connections -------------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Not left to asyncio: of a task that it cancels before the first step, Python 3.11 leaves the connection open.
        self._writers.add(writer)
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._handle(await _receive(reader), reader, writer):
                pass
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._writers.discard(writer)

    async def _handle(
        self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Do what a request's fault says; return whether the connection stays open."""
        self.exchanges.append(exchange)
        fault = exchange.fault = next(filter(None, (choice(exchange) for choice in self._choices)), None)
        kind = None if fault is None else fault.kind
        if fault is not None and kind is FaultKind.HOLD:
            # Not by this connection's task, which ends if the client goes away.
            late = self._loop.create_task(
                self._hand_on_late(exchange, fault, None if fault.drops else writer)
            )
            self._late.add(late)
            late.add_done_callback(self._late.discard)
            if not fault.drops:
                await _either(late, reader.read(1))
            return False
        if fault is not None and kind is FaultKind.DELAY:
            await asyncio.sleep(fault.seconds or 0)
        reply = await self._hand_on(exchange) if fault is None or fault.applied else _Reply(0, b"", b"")
        if fault is not None and kind is FaultKind.STALL:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1), fault.seconds)
        if fault is not None and kind is FaultKind.ANSWER:
            reply = _answer(fault.status)
        if kind in (FaultKind.DROP, FaultKind.STALL):
            return False
        await _send(exchange, reply, writer, kind)
        return kind is not FaultKind.TRUNCATE

    async def _hand_on_late(
        self, exchange: Exchange, fault: NetworkFault, writer: asyncio.StreamWriter | None
    ) -> None:
        event = asyncio.Event()
        self._held[event] = fault.overtaken_by
        try:
            await event.wait()
        finally:
            del self._held[event]
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reply = await self._hand_on(exchange)
            if writer is not None:
                await _send(exchange, reply, writer, fault.kind)

    async def _hand_on(self, exchange: Exchange) -> _Reply:
        reader, writer = await asyncio.open_connection(*self._address, limit=_MAX_HEAD_BYTES)
        try:
            writer.write(exchange.raw)
            await writer.drain()
            reply = await _read_reply(reader, exchange.method)
        finally:
            writer.close()
        exchange.server_status, exchange.raw = reply.status, b""
        for event in self._held:
            self._held[event] -= 1
            if self._held[event] <= 0:
                event.set()
        return reply


async def _either(task: asyncio.Task[None], other: Coroutine[Any, Any, object]) -> None:
    """Wait until `task` or `other` has ended; the task goes on."""
    ending = asyncio.ensure_future(other)
    try:
        await asyncio.wait((task, ending), return_when=asyncio.FIRST_COMPLETED)
    finally:
        ending.cancel()


# --- HTTP/1.1, as much of it as object stores use ------------------------------------------------------------------


class _Reply(NamedTuple):
    status: int
    head: bytes
    body: bytes


class _Head(NamedTuple):
    first: str
    headers: list[tuple[str, str]]

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def encode(self, *more: tuple[str, str]) -> bytes:
        kept = [(key, value) for key, value in self.headers if key.lower() not in _HOP_BY_HOP]
        lines = [self.first, *(f"{key}: {value}" for key, value in (*kept, *more)), "", ""]
        return "\r\n".join(lines).encode("latin-1")


async def _receive(reader: asyncio.StreamReader) -> Exchange:
    head = await _read_head(reader)
    method, target, _ = head.first.split(" ", 2)
    body = await _read_body(reader, head, until_close=False)
    conditions = {key.lower(): value for key, value in head.headers if key.lower().startswith("if-")}
    path, _, query = target.partition("?")
    exchange = Exchange(method, unquote(path), query, head.get("range"), conditions, len(body))
    size = (("Content-Length", str(len(body))),) if body or method not in ("GET", "HEAD", "DELETE") else ()
    exchange.raw = head.encode(*size, ("Connection", "close")) + body
    return exchange


async def _read_reply(reader: asyncio.StreamReader, method: str) -> _Reply:
    head = await _read_head(reader)
    status = int(head.first.split(" ", 2)[1])
    if method == "HEAD" or status in (204, 304):
        size = head.get("content-length")
        more = () if size is None else (("Content-Length", size),)
        return _Reply(status, head.encode(*more), b"")
    body = await _read_body(reader, head, until_close=True)
    return _Reply(status, head.encode(("Content-Length", str(len(body)))), body)


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines[1:] if line)
    return _Head(lines[0], [(key, value.strip()) for key, _, value in pairs])


async def _read_body(reader: asyncio.StreamReader, head: _Head, *, until_close: bool) -> bytes:
    if "chunked" in (head.get("transfer-encoding") or "").lower():
        body = bytearray()
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return bytes(body)
    length = head.get("content-length")
    if length is not None:
        return await reader.readexactly(int(length))
    return await reader.read() if until_close else b""


def _answer(status: int) -> _Reply:
    body = f"<?xml version='1.0'?><Error><Code>{_CODES.get(status, 'Fault')}</Code></Error>".encode()
    head = _Head(f"HTTP/1.1 {status} Fault", [("Content-Type", "application/xml")])
    return _Reply(status, head.encode(("Content-Length", str(len(body)))), body)


async def _send(
    exchange: Exchange, reply: _Reply, writer: asyncio.StreamWriter, kind: FaultKind | None
) -> None:
    head, body = reply.head, b"" if exchange.method == "HEAD" else reply.body
    if kind is FaultKind.CORRUPT and body:
        middle = len(body) // 2
        body = body[:middle] + bytes((body[middle] ^ 1,)) + body[middle + 1 :]
    if kind is FaultKind.TRUNCATE:
        # Of a reply without a body, half of the head.
        head, body = (head, body[: len(body) // 2]) if body else (head[: len(head) // 2], b"")
    # Before the client knows, who may look at once.
    exchange.status, exchange.reply_size = reply.status, len(body)
    writer.write(head + body)
    await writer.drain()
