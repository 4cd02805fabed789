"""A Ceph of one monitor, one disk in a file and one gateway: the only server here that people run in production.

It needs the system's packages ceph-mon, ceph-osd, radosgw and ceph-common, and starts in about 15 seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from obstore.exceptions import GenericError
from obstore.store import S3Store

from tests.servers import BUCKET, find, s3_store, wait_for

KEYS = {"access_key_id": "accesskey", "secret_access_key": "secretkey"}


@contextmanager
def ceph() -> Iterator[str]:
    """Run it; yield the gateway's URL. `BUCKET` is there, for `KEYS`."""
    if shutil.which("radosgw") is None:
        pytest.skip("Ceph is not installed")
    commands = {
        name: find(name)
        for name in ("ceph-mon", "ceph-osd", "radosgw", "ceph", "monmaptool", "radosgw-admin")
    }
    with tempfile.TemporaryDirectory(prefix="vstore-ceph-") as name, ExitStack() as stack:
        folder = Path(name)
        for part in ("run", "osd"):
            (folder / part).mkdir()
        monitor, gateway = _free_port(), _free_port()
        identity = str(uuid.uuid4())
        configuration = folder / "ceph.conf"
        configuration.write_text(_configuration(folder, identity, monitor, gateway))
        options = ["-c", os.fspath(configuration)]

        def run(command: str, *arguments: str) -> None:
            subprocess.run([commands[command], *arguments], check=True, capture_output=True, timeout=60)

        def start(command: str, *arguments: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [commands[command], *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait, 30)
            stack.callback(process.kill)
            return process

        address = f"[v1:127.0.0.1:{monitor}/0]"
        run("monmaptool", "--create", "--fsid", identity, "--addv", "a", address, f"{folder}/monmap")
        run("ceph-mon", *options, "-i", "a", "--mkfs", "--monmap", f"{folder}/monmap")
        wait_for(monitor, start("ceph-mon", *options, "-i", "a", "-f"))
        disk = str(uuid.uuid4())
        run("ceph-osd", *options, "-i", "0", "--mkfs", "--osd-uuid", disk, "--no-mon-config")
        fsid = (folder / "osd" / "fsid").read_text().strip()
        for number in range(40):
            # While the monitor settles it answers that the cluster is another.
            try:
                run("ceph", *options, "osd", "new", fsid)
                break
            except subprocess.CalledProcessError:
                if number == 39:
                    raise
                time.sleep(0.5)
        run("ceph", *options, "osd", "crush", "add", "osd.0", "1.0", "host=h", "root=default")
        start("ceph-osd", *options, "-i", "0", "-f")
        wait_for(gateway, start("radosgw", *options, "-n", "client.rgw.a", "-f"))
        keys = ["--access-key", KEYS["access_key_id"], "--secret-key", KEYS["secret_access_key"]]
        user = ["user", "create", "--uid=u", "--display-name=u", *keys]
        run("radosgw-admin", *options, "-n", "client.rgw.a", *user)
        url = f"http://127.0.0.1:{gateway}"
        _make_bucket(url)
        yield url


def _make_bucket(url: str) -> None:
    # obstore makes no buckets. But in virtual-hosted style the path is the object alone, and here it is the bucket's.
    store = S3Store(
        "none",
        endpoint=url,
        virtual_hosted_style_request=True,
        region="us-east-1",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
        **KEYS,
    )
    with contextlib.suppress(GenericError):  # a bucket has no ETag
        store.put(BUCKET, b"")
    s3_store(url, **KEYS).put("made", b"")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _configuration(folder: Path, identity: str, monitor: int, gateway: int) -> str:
    return f"""
[global]
fsid = {identity}
mon_initial_members = a
mon_host = [v1:127.0.0.1:{monitor}/0]
ms_bind_msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_autoscale_mode = off
mon_max_pg_per_osd = 1000
osd_class_update_on_start = false
osd_crush_update_on_start = false
admin_socket = {folder}/run/$name.$pid.asok
pid_file = {folder}/run/$name.pid
log_file = {folder}/run/$name.log
run_dir = {folder}/run
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = bluestore
bluestore_block_size = 4294967296
[client.rgw.a]
rgw_frontends = beast endpoint=127.0.0.1:{gateway} tcp_nodelay=1
"""
