"""The storage contract over object store servers, where they are installed.

.ci/run installs them and puts them on the path; there they may not be skipped. By hand: pip install ministack, and
npm install azurite.
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
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest
from obstore.store import AzureStore, S3Store

from vstore.ids import new_nonce
from vstore.storage.base import Storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.storage_contract import StorageContract

pytestmark = pytest.mark.server

AZURE_ACCOUNT = "devstoreaccount1"
# The key that Azure publishes for its emulators.
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def ministack() -> Iterator[str]:
    command = find("ministack")
    with server(lambda port: ([command], {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)})) as url:
        request(url + "/bucket")
        yield url


class TestMinistack(StorageContract):
    @pytest.fixture
    def storage(self, ministack: str) -> Storage:
        return s3_storage(ministack)


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = os.fspath(tmp_path_factory.mktemp("azurite"))
    command = [find("azurite-blob"), "--blobHost", "127.0.0.1", "-l", folder, "--silent"]
    command += ["--disableTelemetry", "--skipApiVersionCheck", "--blobPort"]
    with server(lambda port: ([*command, str(port)], {})) as url:
        make_container(f"{url}/{AZURE_ACCOUNT}", "container")
        yield f"{url}/{AZURE_ACCOUNT}"


class TestAzurite(StorageContract):
    @pytest.fixture
    def storage(self, azurite: str) -> Storage:
        store = AzureStore(
            "container",
            prefix=new_nonce().hex(),
            account_name=AZURE_ACCOUNT,
            account_key=AZURE_KEY,
            endpoint=azurite,
            client_options={"allow_http": True},
        )
        return ObjectStorage(store)


def s3_storage(url: str) -> ObjectStorage:
    store = S3Store(
        "bucket",
        prefix=new_nonce().hex(),
        endpoint=url,
        access_key_id="id",
        secret_access_key="key",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    return ObjectStorage(store)


def find(command: str) -> str:
    path = shutil.which(command, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
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
