"""A static web server in this process, with the habits, good and bad, that servers and CDNs have."""

from __future__ import annotations

import gzip
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

PAGE = b"<!doctype html><html><body>Welcome</body></html>"
FOLDER = "repository"


class Seen(NamedTuple):
    """A request that came."""

    method: str
    path: str
    query: str
    range: str | None
    authorization: str | None


class Answer(NamedTuple):
    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})


@dataclass
class Site:
    """What is served: the files below `root`. The other fields are its habits, and may be changed while it runs."""

    root: Path
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    absent: Callable[[str], Answer] = lambda path: Answer(404, b"no such file")
    """The answer to a request for what is not there."""
    has_ranges: bool = True
    compresses: bool = False
    moved_to: str | None = None
    """Where requests are sent to instead."""
    required_query: str | None = None
    cuts: bool = False
    """Bodies are cut, though their length is given as it would be."""
    cache: dict[tuple[str, str], Answer] | None = None
    """A CDN's memory: what was answered once is answered again, for the names that `is_cached` allows."""
    is_cached: Callable[[str], bool] = lambda path: True
    answers_heads: bool = True
    unknown_methods: int = 405
    """The status of the answer to all but GET and HEAD."""

    @property
    def place(self) -> str:
        return f"{self.url}/{FOLDER}"

    def names(self, method: str | None = None) -> list[str]:
        """Return the names that were asked for, in order."""
        return [each.path.removeprefix(f"/{FOLDER}/") for each in self.seen if method in (None, each.method)]

    def answer(self, method: str, path: str, query: str, wanted: str | None) -> Answer:
        if method not in ("GET", "HEAD"):
            return Answer(self.unknown_methods, b"<html>not allowed</html>")
        if self.moved_to is not None:
            return Answer(302, b"", {"Location": self.moved_to + path})
        if self.required_query is not None and query != self.required_query:
            return Answer(403, b"a token is needed")
        if not self.answers_heads and method == "HEAD":
            return Answer(405, b"")
        if self.cache is not None and self.is_cached(path):
            key = path, wanted or ""
            if key not in self.cache:
                self.cache[key] = self.read(path, wanted)
            return self.cache[key]
        return self.read(path, wanted)

    def read(self, path: str, wanted: str | None) -> Answer:
        file = self.root / unquote(path).lstrip("/")
        if not file.is_file():
            return self.absent(path)
        data = file.read_bytes()
        if self.compresses:
            return Answer(200, gzip.compress(data), {"Content-Encoding": "gzip"})
        if wanted is None or not self.has_ranges:
            return Answer(200, data)
        start, stop = parse_range(wanted, len(data))
        if start >= len(data):
            return Answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        return Answer(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})


def parse_range(text: str, size: int) -> tuple[int, int]:
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    assert found is not None, text
    first, last = found[1], found[2]
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


@contextmanager
def serving(root: Path) -> Iterator[Site]:
    """Serve the files below `root`."""
    site = Site(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            wanted = self.headers.get("Range")
            site.seen.append(
                Seen(self.command, parts.path, parts.query, wanted, self.headers.get("Authorization"))
            )
            found = site.answer(self.command, parts.path, parts.query, wanted)
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Last-Modified", "Wed, 01 Jan 2025 00:00:00 GMT")
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(found.body[: len(found.body) // 2] if site.cuts else found.body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_PROPFIND = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()
