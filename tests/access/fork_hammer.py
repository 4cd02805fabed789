"""A process whose threads read and commit while it forks; each child must be able to read and commit.

Run as `python -m tests.access.fork_hammer folder catalog forks`; the exit status says whether all went well.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

import vstore
from vstore.blobs.cache import CACHE

CHILD_S = 30
PARENT_S = 280
SIZE = 4000


def make(folder: Path, catalog: str) -> vstore.Repository:
    repository = vstore.Repository.create(folder, catalog=catalog)
    with repository.transaction("main", message="base") as store:
        array = zarr.create_array(store, name="a", shape=SIZE, chunks=100, dtype="i4", compressors=None)
        array[:] = np.arange(SIZE)
    return repository


def read_forever(repository: vstore.Repository, stop: threading.Event) -> None:
    while not stop.is_set():
        CACHE.clear()
        session = repository.readonly_session("main")
        check(session)


def check(session: vstore.Session) -> None:
    array = zarr.open_array(session.store, path="a", mode="r")
    np.testing.assert_array_equal(array[:], np.arange(SIZE))


def commit_forever(repository: vstore.Repository, stop: threading.Event) -> None:
    """Commit packs of several sizes to a branch of this thread's own."""
    branch = f"thread-{threading.get_ident()}"
    repository.create_branch(branch, repository.lookup_branch("main"))
    number = 0
    while not stop.is_set():
        number += 1
        with repository.writable_session(branch) as session:
            write(session, f"by {branch}", number, size=1000 if number % 3 else 3_000_000)
            if number % 5 == 0:
                session.status()
                continue
            session.commit(f"commit {number}")


def write(session: vstore.Session, key: str, number: int, size: int) -> None:
    session.tree_for_writing().set(key, number.to_bytes(8, "big") * (size // 8))


def share_forever(shared: vstore.Session, stop: threading.Event) -> None:
    """Write to one session from several threads."""
    number = 0
    while not stop.is_set():
        number += 1
        write(shared, f"shared {threading.get_ident()}", number, size=70_000)
        shared.tree.read(f"shared {threading.get_ident()}")


def child(repository: vstore.Repository, shared: vstore.Session, number: int) -> None:
    check(repository.readonly_session("main"))
    # What it held is read, and can't be changed.
    check(shared)
    assert shared.tree.read("before") == b"x" * 100_000
    with pytest.raises(vstore.ForkedProcessError, match="child"):
        write(shared, "no", 1, 8)
    for tries in range(2):
        with repository.writable_session("main") as session:
            write(session, f"child {number} {tries}", number, size=5_000 if tries else 2_000_000)
            session.commit("by a child", rebase_with="ours")
    with vstore.open(repository.handle.storage.root) as again:  # type: ignore[attr-defined]
        assert again.readonly_session("main").tree.read(f"child {number} 1") is not None
    shared.close()
    repository.close()


def run_child(body: Callable[[], None], *, finalizes: bool) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    signal.alarm(CHILD_S)
    try:
        body()
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    if not finalizes:
        os._exit(0)
    # The whole way: atexit, finalizers, `__del__`, threads' joining.
    sys.exit(0)


def main(folder: Path, catalog: str, forks: int) -> int:
    # Also of a thread that waits for a lock: shows where, then ends the process.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(PARENT_S)
    stop = threading.Event()
    failed: list[str] = []

    def guarded(target: Callable[..., None], *args: object) -> threading.Thread:
        def run() -> None:
            try:
                target(*args, stop)
            except BaseException:  # noqa: BLE001
                failed.append(traceback.format_exc())
                stop.set()

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    sys.setswitchinterval(1e-4)
    repository = make(folder, catalog)
    shared = repository.writable_session("main")
    shared.tree_for_writing().set("before", b"x" * 100_000)
    threads = [
        *(guarded(read_forever, repository) for _ in range(2)),
        *(guarded(commit_forever, repository) for _ in range(2)),
        *(guarded(share_forever, shared) for _ in range(2)),
    ]
    codes = []
    try:
        for number in range(forks):
            pid = run_child(
                lambda number=number: child(repository, shared, number),  # type: ignore[misc]
                finalizes=number % 2 == 0,
            )
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            if codes[-1] or failed:
                break
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for each in failed:
        print(each, file=sys.stderr)
    assert not failed
    assert codes == [0] * forks, codes
    shared.close()
    reader = repository.readonly_session("main")
    for number in range(forks):
        assert reader.tree.read(f"child {number} 0") is not None
    report = repository.fsck(data=True)
    assert report.is_clean, str(report)
    repository.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
