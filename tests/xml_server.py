"""An object store in a thread of the test: as much of S3's API, or of Google's XML API, as vstore needs.

It is our reading of these services and no evidence of theirs; what it is for are answers that a good server does not
give. `XmlServer.script` says what the next requests of a method are answered, `requests` logs them all.
"""

from __future__ import annotations

import http.server
import re
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from obstore.store import GCSStore, S3Store

BUCKET = "bucket"
_STARTED = datetime.now(UTC)


@dataclass(frozen=True)
class Answer:
    """What a request is answered: as it should be, or by an error, or by less than that.

    `applied` if an error comes after the request was done. `cut` sends so many bytes of the body and hangs up, `short`
    says that there are no more. `stalls` says nothing for as long as the server runs.
    """

    status: int = 0
    code: str = "InternalError"
    applied: bool = False
    drops: bool = False
    stalls: bool = False
    cut: int | None = None
    short: int | None = None
    body: bytes | None = None


@dataclass(frozen=True)
class Logged:
    method: str
    path: str
    headers: Message


class XmlServer:
    """`google` speaks Google's dialect. `conditions` are kept, "ignored" or "refused". `page` names make a page."""

    def __init__(self, *, google: bool = False, conditions: str = "kept", page: int = 1000) -> None:
        self.google = google
        self.conditions = conditions
        self.page = page
        self.honours_start = True
        self.objects: dict[str, bytes] = {}
        self.requests: list[Logged] = []
        self.scripts: dict[str, deque[Answer]] = {}
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.url = ""

    def script(self, method: str, *answers: Answer) -> None:
        """Answer the next requests of `method` ("LIST" for a page) like this; `requests` begins anew."""
        self.scripts[method] = deque(answers)
        self.requests.clear()

    def counts(self) -> Counter[str]:
        return Counter(request.method for request in self.requests)

    def store(self, prefix: str | None = None, **settings: Any) -> Any:
        """Return obstore's store for this server."""
        client_options = {"allow_http": True} | settings.pop("client_options", {})
        if self.google:
            key = (
                f'{{"gcs_base_url": "{self.url}", "disable_oauth": true, "client_email": "", '
                '"private_key": "", "private_key_id": ""}'
            )
            return GCSStore(
                BUCKET, prefix=prefix, service_account_key=key, client_options=client_options, **settings
            )
        settings = {"access_key_id": "id", "secret_access_key": "key", "region": "us-east-1"} | settings
        return S3Store(BUCKET, prefix=prefix, endpoint=self.url, client_options=client_options, **settings)


@contextmanager
def xml_server(**settings: Any) -> Iterator[XmlServer]:
    """Run one."""
    state = XmlServer(**settings)
    handler = type("Handler", (_Handler,), {"state": state})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        state.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one segment, or each reply would wait for an acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    state: XmlServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        key = unquote(parts.path).partition(f"/{BUCKET}")[2].lstrip("/")
        method = "LIST" if self.command == "GET" and not key else self.command
        with self.state.lock:
            self.state.requests.append(Logged(method, self.path, self.headers))
            script = self.state.scripts.get(method)
            answer = script.popleft() if script else Answer()
            reply = None
            if answer.applied or not (answer.status or answer.drops or answer.stalls):
                reply = getattr(self, f"answer_{method.lower()}")(key, query, data)
        if answer.stalls:
            self.state.ended.wait(60)
        if answer.stalls or answer.drops:
            self.hang_up()
            return
        status, headers, body = reply or (0, {}, b"")
        if answer.status:
            status, headers, body = answer.status, self.about(b""), _error(answer.code)
        if answer.body is not None:
            body = answer.body
        if answer.short is not None:
            body = body[: answer.short]
        self.send(status, headers, body, answer.cut)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

    def send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def answer_put(self, key: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, str], bytes]:
        google = self.state.google
        condition = self.headers.get("x-goog-if-generation-match" if google else "If-None-Match")
        if condition is not None and self.state.conditions == "refused":
            return 501, {}, _error("NotImplemented")
        if condition is not None and self.state.conditions == "kept":
            assert condition == ("0" if google else "*")
            if key in self.state.objects:
                return 412, {}, _error("PreconditionFailed")
        self.state.objects[key] = data
        return 200, self.about(data), b""

    def answer_get(self, key: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, str], bytes]:
        body = self.state.objects.get(key)
        if body is None:
            return 404, {}, _error("NoSuchKey")
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found is None:
            return 200, self.about(body), body
        size = len(body)
        first = int(found[1]) if found[1] else max(0, size - int(found[2]))
        last = min(int(found[2]), size - 1) if found[1] and found[2] else size - 1
        if first >= size or last < first:
            return 416, {}, _error("InvalidRange")
        headers = self.about(body) | {"Content-Range": f"bytes {first}-{last}/{size}"}
        return 206, headers, body[first : last + 1]

    def answer_head(self, key: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, str], bytes]:
        body = self.state.objects.get(key)
        if body is None:
            return 404, {}, b""
        return 200, self.about(body) | {"Content-Length": str(len(body))}, b""

    def answer_delete(
        self, key: str, query: dict[str, str], data: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        found = self.state.objects.pop(key, None)
        return (404, {}, _error("NoSuchKey")) if found is None and self.state.google else (204, {}, b"")

    def answer_post(self, key: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, str], bytes]:
        assert "delete" in query
        names = re.findall(r"<Key>([^<]*)</Key>", data.decode())
        for name in names:
            self.state.objects.pop(name, None)
        deleted = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
        return 200, {}, f'<?xml version="1.0"?><DeleteResult>{deleted}</DeleteResult>'.encode()

    def answer_list(self, key: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, str], bytes]:
        after = query.get("continuation-token", "")
        if not after and self.state.honours_start:
            after = query.get("start-after", "")
        prefix = query.get("prefix", "")
        names = sorted(name for name in self.state.objects if name.startswith(prefix) and name > after)
        page = names[: self.state.page]
        more = len(names) > len(page)
        listed = "".join(listed_object(name, len(self.state.objects[name])) for name in page)
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        return 200, {}, listing(listed + token, more=more)

    def about(self, body: bytes) -> dict[str, str]:
        return {
            "ETag": '"tag"',
            "Last-Modified": format_datetime(_STARTED, usegmt=True),
            "x-goog-generation": "1",
        }


def listed_object(name: str, size: int) -> str:
    """Return an object's entry in a listing."""
    return (
        f"<Contents><Key>{escape(name)}</Key><LastModified>{_STARTED:%Y-%m-%dT%H:%M:%SZ}</LastModified>"
        f'<ETag>"tag"</ETag><Size>{size}</Size></Contents>'
    )


def listing(listed: str, *, more: bool = False) -> bytes:
    """Return a page of a listing."""
    truncated = f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
    return f'<?xml version="1.0"?><ListBucketResult>{listed}{truncated}</ListBucketResult>'.encode()


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as told</Message></Error>'.encode()
