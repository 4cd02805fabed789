"""An S3 server that is far away: `ministack` on this machine, behind the proxy of `line`, each in its own process."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.line import TRAFFIC
from benchmarks.processes import ROOT

BUCKET = "benchmarks"
REGION = "us-east-1"
KEY_ID, SECRET = "benchmarks", "benchmarks"
_LINE = "BENCHMARKS_LINE"
_SERVER = "BENCHMARKS_SERVER"
"""Where workers find the two: URLs, in their environment."""
_START_S = 30


def why_missing() -> str | None:
    """Return why there is no server to be had, or None."""
    return None if _command() else "ministack is not installed"


def _command() -> str | None:
    return shutil.which(
        "ministack", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    )


@contextmanager
def distant_server(latency_s: float) -> Iterator[None]:
    """Run the server and the line to it; processes that are started meanwhile find both."""
    with _ministack() as address, _line(address, latency_s) as port:
        os.environ[_SERVER] = f"http://{address}"
        os.environ[_LINE] = f"http://127.0.0.1:{port}"
        # Their libraries look for it elsewhere else, and wait.
        os.environ |= {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}
        try:
            yield
        finally:
            del os.environ[_SERVER], os.environ[_LINE]


@contextmanager
def _ministack() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [_command() or "ministack"],
        env={**os.environ, "BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"127.0.0.1:{port}"
        _wait_for(port, process)
        make = urllib.request.Request(
            f"http://{address}/{BUCKET}", method="PUT", headers={"Content-Length": "0"}
        )
        urllib.request.urlopen(make, timeout=_START_S).close()
        yield address
    finally:
        process.terminate()
        process.wait(_START_S)


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _START_S
    while time.monotonic() < give_up and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"ministack does not listen on port {port}")


@contextmanager
def _line(upstream: str, latency_s: float) -> Iterator[int]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.line",
            "--upstream",
            upstream,
            "--latency-ms",
            str(latency_s * 1000),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.communicate(timeout=_START_S)


def line_url() -> str:
    """Return the URL of the server at the end of the line."""
    return os.environ[_LINE]


def traffic() -> dict[str, Any]:
    """Return what went through the line so far: "requests" by kind, "sent_bytes", "received_bytes", "at_once"."""
    with urllib.request.urlopen(line_url() + TRAFFIC, timeout=_START_S) as reply:
        found: dict[str, Any] = json.load(reply)
    return found


def s3_store(prefix: str, url: str | None = None) -> Any:
    """Return an obstore store on that part of the bucket."""
    from obstore.store import S3Store

    return S3Store(
        BUCKET,
        prefix=prefix,
        endpoint=url or line_url(),
        access_key_id=KEY_ID,
        secret_access_key=SECRET,
        region=REGION,
        client_options={"allow_http": True},
    )


def objects_below(prefix: str) -> dict[str, int]:
    """Return names and sizes of all objects, asked of the server itself."""
    pages = s3_store(prefix, os.environ[_SERVER]).list()
    return {meta["path"]: meta["size"] for page in pages for meta in page}


def remove_below(prefix: str) -> None:
    """Delete all objects, by the server itself."""
    names = list(objects_below(prefix))
    if names:
        s3_store(prefix, os.environ[_SERVER]).delete(names)
