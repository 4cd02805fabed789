from __future__ import annotations

import contextlib
import errno
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.unit.storage.children import fork, run_in_child
from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    ForkedProcessError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    OutOfSpaceError,
    StorageError,
    UnsafeStorageError,
)
from vstore.ids import PackId, new_pack_id
from vstore.keys.objects import LATEST, REPO, log_name, pack_name, probe_name, staging_name
from vstore.storage import files, local, maps, mounts, staged
from vstore.storage.local import LocalStorage
from vstore.storage.maps import KeptPacks

NOBODY = 65534
BODY = bytes(range(256)) * 256


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[LocalStorage]:
    storage = LocalStorage(tmp_path, mapped=True)
    yield storage
    storage.close()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A directory that every user can reach, as pytest's are not."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="vstore-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def make_pack(storage: LocalStorage, body: bytes = BODY) -> str:
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [body])
    sink.seal(len(body))
    return pack_name(sink.pack)


def files_in(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# Durability


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """What is synced, linked, renamed and removed, in order; temporary names as "staging/*"."""
    recorded: list[str] = []

    def short(path: Any) -> str:
        name = os.path.relpath(
            os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path, tmp_path
        )
        return "staging/*" if name.startswith("staging/") else name

    def folder(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    def record(function: str, text: Callable[..., str]) -> None:
        real = getattr(os, function)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = real(*args, **kwargs)
            recorded.append(f"{function} {text(*args, **kwargs)}")
            return result

        monkeypatch.setattr(os, function, call)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("needs /proc to name descriptors")
    monkeypatch.setattr(files, "sync_file", lambda fd: os.fsync(fd))
    for module in (local, staged):
        monkeypatch.setattr(module, "sync_file", lambda fd: os.fsync(fd))
    record("fsync", short)
    record("mkdir", lambda path, *_, **__: short(path))
    record(
        "unlink",
        lambda path, dir_fd=None: short(path if dir_fd is None else os.path.join(folder(dir_fd), path)),
    )
    record("link", lambda source, target: f"{short(source)} {short(target)}")
    record("rename", lambda source, target: f"{short(source)} {short(target)}")
    return recorded


def test_a_create_is_durable_before_it_returns(storage: LocalStorage, calls: list[str]) -> None:
    name = log_name(0)
    storage.create(name, b"record")
    ending = [f"link staging/* {name}", "unlink staging/*", "fsync log"]
    assert calls == ["mkdir staging", "fsync staging/*", "mkdir log", "fsync .", *ending]
    calls.clear()
    storage.create(log_name(1), b"record")
    assert calls == ["fsync staging/*", *(call.replace(name, log_name(1)) for call in ending)]


def test_a_folder_that_another_process_made_is_synced_too(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "staging").mkdir()
    calls.clear()
    LocalStorage(tmp_path).create(log_name(0), b"record")
    assert calls[:2] == ["fsync staging/*", "fsync ."]


def test_a_pack_is_durable_before_seal_returns(storage: LocalStorage, calls: list[str]) -> None:
    pack = PackId(bytes.fromhex("ab" * 16))
    name = pack_name(pack)
    sink = storage.open_pack(pack)
    sink.write(0, [BODY])
    assert calls == ["mkdir staging"]
    calls.clear()
    sink.seal(len(BODY))
    folders = ["mkdir packs", "fsync .", "mkdir packs/ab", "fsync packs"]
    ending = [f"rename staging/* {name}", "fsync packs/ab"]
    assert calls == ["fsync staging/*", *folders, *ending]
    calls.clear()
    sink = storage.open_pack(PackId(bytes.fromhex("ab" * 15 + "cd")))
    sink.seal(0)
    assert calls == ["fsync staging/*", f"rename staging/* {pack_name(sink.pack)}", "fsync packs/ab"]


def test_a_write_is_durable_before_it_returns(storage: LocalStorage, calls: list[str]) -> None:
    storage.write(LATEST, b"hint")
    assert calls == ["mkdir staging", "fsync staging/*", "rename staging/* latest", "fsync ."]


def test_deletes_sync_each_folder_once(storage: LocalStorage, calls: list[str]) -> None:
    for i in range(3):
        storage.create(log_name(i), b"record")
    storage.create(REPO, b"repo")
    calls.clear()
    storage.delete([log_name(0), log_name(1), REPO, log_name(2), log_name(7)])
    assert sorted(calls) == sorted(
        ["fsync .", "fsync log", "unlink repo", *(f"unlink {log_name(i)}" for i in range(3))]
    )
    assert calls[-1].startswith("fsync")


def test_the_root_is_made_durably(tmp_path: Path, calls: list[str]) -> None:
    device = tmp_path.stat().st_dev
    above = [f"fsync {os.path.relpath(p, tmp_path)}" for p in tmp_path.parents if p.stat().st_dev == device]
    LocalStorage(tmp_path / "a" / "b").make_root()
    assert calls == [*above, "mkdir a", "fsync .", "mkdir a/b", "fsync a"]
    calls.clear()
    # The user, or another process just now, may have made it and not synced its name.
    LocalStorage(tmp_path / "a" / "b").make_root()
    assert calls == ["fsync a", "fsync .", *above]


@pytest.mark.parametrize(("code", "expected"), [(errno.EACCES, None), (errno.EIO, StorageError)])
def test_folders_above_that_can_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[StorageError] | None
) -> None:
    """One that may not even be opened is not ours to sync; a disk that fails is."""
    fail(monkeypatch, "fsync", code)
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        LocalStorage(tmp_path).make_root()


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((InvalidInputError, StorageError), match="file"):
            LocalStorage(path).make_root()


# Failures of the system


def fail(monkeypatch: pytest.MonkeyPatch, function: str, code: int, *, at: int = 0, times: int = 1) -> None:
    """Let calls number `at` and following of a function of os fail."""
    real = getattr(os, function)
    count = iter(range(10**6))

    def call(*args: Any, **kwargs: Any) -> Any:
        if at <= next(count) < at + times:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, function, call)


@pytest.mark.parametrize(
    ("function", "code", "at", "expected", "made"),
    [
        ("fsync", errno.EIO, 0, StorageError, False),
        ("fsync", errno.ENOSPC, 0, OutOfSpaceError, False),
        ("pwrite", errno.EDQUOT, 0, OutOfSpaceError, False),
        ("pwrite", errno.EIO, 0, StorageError, False),
        ("link", errno.EEXIST, 0, ObjectExistsError, False),
        ("link", errno.EPERM, 0, UnsafeStorageError, False),
        ("link", errno.EOPNOTSUPP, 0, UnsafeStorageError, False),
        ("link", errno.EXDEV, 0, UnsafeStorageError, False),
        ("link", errno.ENOSPC, 0, OutOfSpaceError, False),
        ("link", errno.EACCES, 0, AccessDeniedError, False),
        ("link", errno.EIO, 0, OutcomeUnknownError, False),
        ("link", errno.ESTALE, 0, OutcomeUnknownError, False),
        ("link", errno.ENOENT, 0, OutcomeUnknownError, False),
        ("fsync", errno.EIO, 1, OutcomeUnknownError, True),
        ("unlink", errno.EIO, 0, None, True),
    ],
)
def test_creates_on_a_failing_disk(
    storage: LocalStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    code: int,
    at: int,
    expected: type[StorageError] | None,
    made: bool,
) -> None:
    storage.create(log_name(0), b"makes the folders")
    fail(monkeypatch, function, code, at=at)
    with pytest.raises(expected) if expected else contextlib.nullcontext() as caught:
        storage.create(log_name(1), b"record")
    if expected:
        assert type(caught.value) is expected
        assert str(tmp_path) in caught.value.message
    assert (tmp_path / log_name(1)).exists() == made
    assert all(name.startswith(("log/", "staging/")) for name in files_in(tmp_path))
    assert list(storage.list("staging/")) == [] or function == "unlink"


def fail_closes(monkeypatch: pytest.MonkeyPatch, is_kind: Callable[[int], bool], code: int) -> None:
    """Let closes of files, or of folders, say that they failed."""
    real = os.close

    def close(fd: int) -> None:
        fails = is_kind(os.fstat(fd).st_mode)
        real(fd)
        if fails:
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "close", close)


@pytest.mark.parametrize(("code", "expected"), [(errno.EIO, StorageError), (errno.EDQUOT, OutOfSpaceError)])
@pytest.mark.parametrize("durable", [True, False])
def test_a_file_whose_close_fails_was_not_written(
    storage: LocalStorage,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    expected: type[StorageError],
    durable: bool,
) -> None:
    """Network file systems may tell only then that they have no room."""
    storage.write(LATEST, b"old")
    with monkeypatch.context() as failing:
        fail_closes(failing, stat.S_ISREG, code)
        with pytest.raises(expected, match="could not write"):
            storage.create(log_name(0), b"record")
        with pytest.raises(expected, match="could not write"):
            storage.write(LATEST, b"new", durable=durable)
    assert list(storage.list("staging/")) == []
    assert storage.size(log_name(0)) is None
    assert storage.read_whole(LATEST, 100) == b"old"
    storage.create(log_name(0), b"record")


def test_what_was_synced_or_only_read_may_fail_to_close(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as failing:
        fail_closes(failing, stat.S_ISDIR, errno.EIO)
        storage.create(log_name(0), b"record")
        storage.delete([log_name(0)])
    pack = new_pack_id()
    sink = storage.open_pack(pack)
    sink.write(0, [BODY])
    with monkeypatch.context() as failing:
        fail_closes(failing, lambda mode: True, errno.EIO)
        sink.seal(len(BODY))
        del sink
        assert storage.read(pack_name(pack), 0, len(BODY)) == BODY


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_what_a_create_left_in_doubt_is_synced_before_it_is_read_back(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """Whoever reads back the own record takes it for durable, which it is not while its folder can't be synced."""
    storage.create(log_name(0), b"makes the folders")
    with monkeypatch.context() as failing:
        fail(failing, "fsync", code, at=1, times=3)
        with pytest.raises(OutcomeUnknownError):
            storage.create(log_name(1), b"record")
        for _ in range(2):
            with pytest.raises(StorageError, match="sync the folder"):
                storage.read_whole(log_name(1), 10)
        assert storage.read_whole(log_name(1), 10) == b"record"
    synced: list[str] = []
    monkeypatch.setattr(local, "sync_directory", synced.append)
    assert storage.read_whole(log_name(1), 10) == b"record"
    assert synced == [], "once is enough"


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENOENT, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("landed", [True, False])
def test_a_lost_reply_of_link_is_found_out_by_reading_back(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, code: int, landed: bool
) -> None:
    """NFS repeats a request whose reply was lost, and reports what the repeat met."""
    real = os.link

    def link(source: str, target: str) -> None:
        if landed or code == errno.EEXIST:
            real(source, target)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    synced: list[str] = []
    sync = local.sync_directory
    monkeypatch.setattr(local, "sync_directory", lambda path: (synced.append(path), sync(path)))
    with pytest.raises((ObjectExistsError, OutcomeUnknownError)):
        storage.create(log_name(0), b"mine")
    if landed or code == errno.EEXIST:
        assert storage.read_whole(log_name(0), 10) == b"mine"
    else:
        with pytest.raises(ObjectNotFoundError):
            storage.read_whole(log_name(0), 10)
    if code != errno.EEXIST:
        assert synced, "what may have landed unheard was never synced"


@pytest.mark.parametrize(("function", "at"), [("fsync", 0), ("rename", 0), ("pwrite", 0)])
def test_a_failed_write_leaves_the_old_bytes(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, at: int
) -> None:
    storage.write(LATEST, b"old")
    fail(monkeypatch, function, errno.EIO, at=at)
    with pytest.raises(StorageError):
        storage.write(LATEST, b"new")
    assert storage.read_whole(LATEST, 3) == b"old"
    assert files_in(tmp_path) == ["latest"]


@pytest.mark.parametrize(
    ("function", "code", "at", "expected", "where"),
    [
        ("fsync", errno.EIO, 0, StorageError, "staging"),
        ("fsync", errno.ENOSPC, 0, OutOfSpaceError, "staging"),
        ("mkdir", errno.EACCES, 0, AccessDeniedError, "staging"),
        ("fsync", errno.EIO, 1, StorageError, "staging"),
        ("rename", errno.ENOSPC, 0, OutOfSpaceError, "staging"),
        ("rename", errno.EROFS, 0, AccessDeniedError, "staging"),
        ("rename", errno.EIO, 0, OutcomeUnknownError, "staging"),
        ("rename", errno.ENOENT, 0, OutcomeUnknownError, "staging"),
        ("fsync", errno.EIO, 3, OutcomeUnknownError, "packs"),
    ],
)
def test_seals_on_a_failing_disk(
    storage: LocalStorage,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    code: int,
    at: int,
    expected: type[StorageError],
    where: str,
) -> None:
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [BODY])
    fail(monkeypatch, function, code, at=at)
    with pytest.raises(expected) as caught:
        sink.seal(len(BODY))
    assert type(caught.value) is expected
    (left,) = files_in(tmp_path)
    assert left.startswith(where)
    assert sink.read(0, len(BODY)) == BODY, "the caller writes it to a new pack"
    with pytest.raises(Exception, match="sealed or discarded"):
        sink.write(0, [b"more"])
    sink.discard()
    if expected is OutcomeUnknownError:
        assert files_in(tmp_path) == [left], "left to gc"
    else:
        assert files_in(tmp_path) == []


def test_a_failed_sync_in_the_background_is_final(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "SYNC_BYTES", 1000)
    fail(monkeypatch, "fdatasync", errno.EIO)
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [BODY])
    assert sink._syncing is not None
    sink._syncing.exception(timeout=60)
    for call in (lambda: sink.write(0, [BODY]), lambda: sink.write(0, [b""]), lambda: sink.seal(len(BODY))):
        with pytest.raises(StorageError, match="could not sync"):
            call()
    assert sink.read(0, 10) == BODY[:10]
    sink.discard()


def test_seal_waits_for_the_sync_in_the_background(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "SYNC_BYTES", 1000)
    go = threading.Event()

    def fdatasync(fd: int) -> None:
        go.wait(60)
        raise OSError(errno.EIO, "late failure")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [BODY])
    threading.Timer(0.05, go.set).start()
    with pytest.raises(StorageError, match="late failure"):
        sink.seal(len(BODY))
    assert storage.size(pack_name(sink.pack)) is None


def test_the_sync_in_the_background_starts_every_so_many_bytes(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "SYNC_BYTES", 100_000)
    syncs: list[int] = []
    monkeypatch.setattr(os, "fdatasync", syncs.append)
    sink = storage.open_pack(new_pack_id())
    for i in range(100):
        sink.write(i * 10_000, [bytes(10_000)])
        if sink._syncing is not None:
            sink._syncing.result(60)
    assert len(syncs) == 10
    sink.seal(10**6)


def test_short_writes_are_continued(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        return real(fd, memoryview(data)[:7], offset)

    def pwritev(fd: int, buffers: list[Any], offset: int) -> int:
        joined = b"".join(buffers)
        assert len(buffers) <= 1024
        return real(fd, joined[: max(1, len(joined) // 3)], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pwritev", pwritev)
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [BODY[:1000]])
    parts = [BODY[i : i + i % 5] for i in range(1000, 4000)]
    sink.write(1000, parts)
    monkeypatch.delattr(os, "pwritev")
    sink.write(1000 + len(b"".join(parts)), [BODY[:50], BODY[50:99]])
    assert bytes(sink.read(0, 1000)) == BODY[:1000]
    assert bytes(sink.read(1000, len(b"".join(parts)))) == b"".join(parts)
    assert bytes(sink.read(1000 + len(b"".join(parts)), 99)) == BODY[:99]


def test_short_reads_are_continued(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make_pack(storage)
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 1000), offset))
    assert LocalStorage(storage.root, mapped=False).read(name, 5, 50_000) == BODY[5:50_005]


def test_a_pack_id_is_used_once(storage: LocalStorage) -> None:
    sink = storage.open_pack(new_pack_id())
    with pytest.raises(ObjectExistsError, match="never be used twice"):
        storage.open_pack(sink.pack)
    sink.write(0, [BODY])
    sink.seal(5)


def test_a_locked_or_lockless_file_is_refused(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    for code, expected in [(errno.EWOULDBLOCK, StorageError), (errno.ENOLCK, UnsafeStorageError)]:

        def flock(fd: int, operation: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(expected) as caught:
            storage.open_pack(new_pack_id())
        assert type(caught.value) is expected
        assert list(storage.list("")) == []


def test_systems_without_locks_only_read(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    name = make_pack(storage)
    monkeypatch.setattr(files, "fcntl", None)
    for call in (
        lambda: storage.open_pack(new_pack_id()),
        lambda: storage.create(REPO, b""),
        lambda: storage.write(LATEST, b""),
        lambda: storage.delete([REPO]),
        lambda: storage.make_root(),
    ):
        with pytest.raises(UnsafeStorageError, match="needs Linux or macOS"):
            call()
    assert storage.read(name, 0, 5) == BODY[:5]
    assert storage.read_whole(name, len(BODY)) == BODY
    assert not storage.is_held(staging_name(new_pack_id()))
    monkeypatch.delattr(os, "pread")
    monkeypatch.setattr(maps, "is_local_filesystem", lambda path: False)
    assert LocalStorage(storage.root).read(name, 0, 5) == BODY[:5]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 1 MiB."""
    point = tmp_path / "disk"
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "vstore-test", os.fspath(point)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs the command mount")
    if done.returncode:
        pytest.skip(f"needs leave to mount a tmpfs: {done.stderr.strip()}")
    yield point
    subprocess.run(["umount", "-l", os.fspath(point)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    storage = LocalStorage(small_disk)
    name = make_pack(storage)
    sink = storage.open_pack(new_pack_id())
    with pytest.raises(OutOfSpaceError, match=r"Free some space.*try again"):
        sink.write(0, [bytes(2**21)])
    with pytest.raises(OutOfSpaceError):
        storage.create(log_name(0), bytes(2**20))
    with pytest.raises(OutOfSpaceError):
        storage.write(LATEST, bytes(2**20))
    assert storage.size(log_name(0)) is None
    assert storage.size(LATEST) is None
    assert storage.read(name, 0, len(BODY)) == BODY
    storage.delete([name])
    sink.discard()
    assert files_in(small_disk) == []
    assert storage.read_whole(make_pack(storage), len(BODY)) == BODY


def test_a_failed_write_may_be_tried_again(small_disk: Path) -> None:
    storage = LocalStorage(small_disk)
    (small_disk / "something").write_bytes(bytes(2**19))
    sink = storage.open_pack(new_pack_id())
    body = bytes(range(256)) * 3000
    with pytest.raises(OutOfSpaceError):
        sink.write(0, [body[:10], body[10:]])
    (small_disk / "something").unlink()
    sink.write(0, [body[:10], body[10:]])
    sink.seal(len(body))
    assert storage.read_whole(pack_name(sink.pack), len(body)) == body


def test_permissions(open_folder: Path) -> None:
    storage = LocalStorage(open_folder)
    name = make_pack(storage)
    os.chmod(open_folder / name, 0o600)
    storage.create(REPO, b"repo")

    def child() -> None:
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        for call in (
            lambda: storage.create(log_name(0), b""),
            lambda: storage.write(LATEST, b""),
            lambda: storage.delete([REPO]),
            lambda: storage.open_pack(new_pack_id()),
        ):
            with pytest.raises(AccessDeniedError, match=r"permission|read-only") as caught:
                call()
            assert str(open_folder) in caught.value.message
        if os.geteuid() == NOBODY:
            with pytest.raises(AccessDeniedError):
                storage.read(name, 0, 1)
            with pytest.raises(AccessDeniedError):
                LocalStorage(open_folder / "a").make_root()
            with pytest.raises(AccessDeniedError):
                storage.open_pack(new_pack_id())
        assert storage.read_whole(REPO, 4) == b"repo"
        assert storage.size(name) == len(BODY)
        assert len(list(storage.list(""))) == 2

    folders = [] if os.geteuid() == 0 else [open_folder / "staging", open_folder]
    for folder in folders:
        folder.chmod(0o555)
    try:
        run_in_child(child)
    finally:
        for folder in reversed(folders):
            folder.chmod(0o755)


def test_a_missing_root_is_told(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "gone")
    for call in (
        lambda: storage.create(REPO, b""),
        lambda: storage.create(log_name(0), b""),
        lambda: storage.write(LATEST, b""),
        lambda: storage.open_pack(new_pack_id()),
    ):
        with pytest.raises(ObjectNotFoundError, match="moved or removed"):
            call()
    assert storage.size(REPO) is None
    assert list(storage.list("")) == []
    storage.delete([REPO])
    assert not (tmp_path / "gone").exists()


def test_a_directory_that_was_emptied_is_used_again(storage: LocalStorage, tmp_path: Path) -> None:
    import shutil

    make_pack(storage)
    storage.create(log_name(0), b"record")
    for path in tmp_path.iterdir():
        shutil.rmtree(path)
    storage.write(LATEST, b"makes the staging folder anew")
    storage.create(log_name(0), b"record")
    assert storage.read_whole(make_pack(storage), len(BODY)) == BODY


# Reading


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_cut_under_its_reader_is_corruption_and_kills_nobody(tmp_path: Path, mapped: bool) -> None:
    storage = LocalStorage(tmp_path, mapped=mapped)
    name = make_pack(storage)
    assert storage.read(name, 50_000, 100) == BODY[50_000:50_100]
    os.truncate(tmp_path / name, 20_000)

    def child() -> None:
        with pytest.raises(CorruptionError, match=r"up to 50100 were wanted, it holds 20000") as caught:
            bytes(storage.read(name, 50_000, 100))
        assert name in caught.value.message
        with pytest.raises(CorruptionError):
            bytes(storage.read(name, 0, len(BODY)))
        assert storage.read(name, 100, 100) == BODY[100:200]
        assert storage.read(name, 19_900, 100) == BODY[19_900:20_000]

    run_in_child(child)  # a fault would end the child by SIGBUS


def test_a_network_file_system_is_not_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mmap

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("mapped")

    monkeypatch.setattr(mounts, "_mount_table", lambda: [mounts.Mount("/", "nfs4")])
    monkeypatch.setattr(mmap, "mmap", refuse)
    storage = LocalStorage(tmp_path)
    name = make_pack(storage)
    assert storage.read(name, 0, len(BODY)) == BODY
    monkeypatch.setattr(mounts, "_mount_table", lambda: [mounts.Mount("/", "ext4")])
    with pytest.raises(AssertionError, match="mapped"):
        LocalStorage(tmp_path).read(name, 0, 1)


@pytest.mark.parametrize("times", [1, 2])
def test_a_stale_file_is_opened_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """NFS says so of a file that another machine removed or replaced while it was open here."""
    storage = LocalStorage(tmp_path, mapped=False)
    name = make_pack(storage)
    storage.write(LATEST, b"hint")
    with monkeypatch.context() as stale:
        fail(stale, "pread", errno.ESTALE, times=times)
        assert storage.read(name, 5, 10) == BODY[5:15]
        fail(stale, "fstat", errno.ESTALE, times=times)
        assert storage.read_whole(LATEST, 10) == b"hint"
    with monkeypatch.context() as stale:
        fail(stale, "fstat", errno.ESTALE, times=100)
        with pytest.raises(StorageError):
            storage.read_whole(LATEST, 10)


def test_a_disk_that_can_not_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path, mapped=False)
    name = make_pack(storage)
    assert storage.read(name, 0, 1) == BODY[:1]
    fail(monkeypatch, "pread", errno.EIO, times=100)
    with pytest.raises(StorageError, match="Check the disk"):
        storage.read(name, 0, 1)


def test_a_file_that_grew_is_read_to_its_end(storage: LocalStorage, tmp_path: Path) -> None:
    name = make_pack(storage, b"short")
    assert storage.read(name, 0, 5) == b"short"
    with open(tmp_path / name, "ab") as file:
        file.write(b"er")
    assert storage.read(name, 0, 7) == b"shorter"


def test_a_pack_deleted_by_another_process_is_read_on(storage: LocalStorage, tmp_path: Path) -> None:
    name = make_pack(storage)
    view = storage.read(name, 0, 100)
    (tmp_path / name).unlink()
    assert view == BODY[:100]
    assert storage.read(name, 60_000, 100) == BODY[60_000:60_100]
    storage.close()
    with pytest.raises(ObjectNotFoundError):
        storage.read(name, 0, 1)


def test_open_packs_are_bounded_and_views_outlive_them(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_packs", KeptPacks(storage.root, mapped=True, limit=4))
    names = [make_pack(storage, bytes([i]) * 10_000) for i in range(20)]
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    views = [storage.read(names[0], 0, 10_000)]
    busy = storage._packs.get(names[0])
    for name in names[1:]:
        views.append(storage.read(name, 0, 10_000))
        storage.read(names[0], 0, 1)
        assert len(storage._packs) <= 4
    assert storage._packs.get(names[0]) is busy, "what is read often stays open"
    del busy
    assert all(view == bytes([i]) * 10_000 for i, view in enumerate(views))
    del views
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 4
    storage.close()
    assert len(storage._packs) == 0


def test_threads_share_the_open_packs(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_packs", KeptPacks(storage.root, mapped=True, limit=3))
    names = [make_pack(storage, bytes([i]) * 5000) for i in range(10)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def read(k: int) -> bool:
        if k % 97 == 0:
            storage.close()
        return storage.read(names[k % 10], k % 100, 4000) == bytes([k % 10]) * 4000

    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(5000)))
    finally:
        sys.setswitchinterval(interval)
    assert len(storage._packs) <= 3 + 8


def test_a_discard_does_not_confuse_a_reader(storage: LocalStorage) -> None:
    # An early close could let the reader's pread hit another file that got the same number.
    for _ in range(50):
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [b"a" * 100_000])
        wrong: list[bytes] = []

        def read(sink: Any = sink, wrong: list[bytes] = wrong) -> None:
            with contextlib.suppress(Exception):
                while True:
                    data = bytes(sink.read(0, 100_000))
                    if data != b"a" * 100_000:
                        wrong.append(data)

        reader = threading.Thread(target=read)
        reader.start()
        sink.discard()
        others = [storage.open_pack(new_pack_id()) for _ in range(5)]
        for other in others:
            other.write(0, [b"b" * 100_000])
        reader.join()
        assert not wrong
        for other in others:
            other.discard()


# Names and places


def test_listing_leaves_out_what_is_not_ours(storage: LocalStorage, tmp_path: Path) -> None:
    name = make_pack(storage)
    storage.create(log_name(0), b"record")
    for path in (
        "log/1",
        "log/x" + "0" * 19,
        "packs/readme",
        "packs/ab/x/y",
        ".hidden/repo",
        "catalog.sqlite",
        "lo.g/x",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / log_name(5)).mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / probe_name(bytes(16))).parent.mkdir()
    (tmp_path / probe_name(bytes(16))).symlink_to("nowhere")
    assert sorted(info.name for info in storage.list("")) == sorted([name, log_name(0)])
    assert [info.name for info in storage.list("log/")] == [log_name(0)]


def test_packs_may_be_a_link_to_another_directory(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "packs").symlink_to(tmp_path / "elsewhere")
    storage = LocalStorage(tmp_path / "repo")
    name = make_pack(storage)
    assert storage.read(name, 0, 5) == BODY[:5]
    assert [info.name for info in storage.list("packs/")] == [name]
    assert (tmp_path / "elsewhere" / name.removeprefix("packs/")).exists()


def test_files_are_made_with_the_users_mask(storage: LocalStorage, tmp_path: Path) -> None:
    mask = os.umask(0o002)
    try:
        storage.create(REPO, b"")
        name = make_pack(storage)
    finally:
        os.umask(mask)
    assert (tmp_path / REPO).stat().st_mode & 0o777 == 0o664
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("root", ["repo", "./repo", "", "/a\0b"])
def test_roots_are_absolute(root: str) -> None:
    with pytest.raises(InvalidInputError, match="absolute"):
        LocalStorage(root)


def test_the_url_and_the_pickle(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "a b")
    assert storage.url == (tmp_path / "a b").as_uri()
    assert pickle.loads(pickle.dumps(storage)).root == storage.root
    assert repr(storage) == f"LocalStorage({str(tmp_path / 'a b')!r})"


# Processes


def test_a_forked_child_reads_and_creates(storage: LocalStorage) -> None:
    name = make_pack(storage)
    storage.read(name, 0, 1)

    def child() -> None:
        assert storage.read(name, 0, len(BODY)) == BODY
        storage.create(log_name(0), b"by the child")
        assert storage.read_whole(make_pack(storage), len(BODY)) == BODY

    run_in_child(child)
    assert storage.read_whole(log_name(0), 20) == b"by the child"
    assert storage.read(name, 0, len(BODY)) == BODY


def test_a_forked_child_can_not_write_its_parents_pack(
    storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged, "SYNC_BYTES", 1000)
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [BODY])
    name = staging_name(sink.pack)

    def child() -> None:
        assert sink.read(0, len(BODY)) == BODY
        for call in (lambda: sink.write(0, [b"child"]), lambda: sink.seal(5)):
            with pytest.raises(ForkedProcessError, match="Open the repository again in the child"):
                call()
        sink.discard()
        assert (tmp_path / name).exists()
        assert storage.is_held(name)

    run_in_child(child)
    assert storage.is_held(name), "the child must not release the lock"
    assert sink.read(0, len(BODY)) == BODY
    sink.write(len(BODY), [b"more"])
    sink.seal(len(BODY) + 4)
    assert storage.read_whole(pack_name(sink.pack), 10**6) == BODY + b"more"


def test_forking_while_other_threads_read_and_write(storage: LocalStorage) -> None:
    name = make_pack(storage)
    stop = threading.Event()

    def work() -> None:
        sink = storage.open_pack(new_pack_id())
        while not stop.is_set():
            sink.write(0, [BODY])
            storage.read(name, 0, 10)
            storage.close()
            storage.write(LATEST, b"hint")
        sink.discard()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        assert storage.read(name, 0, len(BODY)) == BODY
        assert storage.read_whole(make_pack(storage), len(BODY)) == BODY
        storage.write(LATEST, b"hint")

    try:
        for _ in range(20):
            run_in_child(child)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_crash_releases_the_lock_and_leaves_the_staged_file(storage: LocalStorage) -> None:
    pack = new_pack_id()
    ready, tell = os.pipe()
    end, wait = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(wait)
        sink = storage.open_pack(pack)
        sink.write(0, [BODY])
        os.write(tell, b"x")
        os.read(end, 1)
        os._exit(0)
    os.close(end)
    os.read(ready, 1)
    assert storage.is_held(staging_name(pack))
    os.close(wait)
    os.waitpid(pid, 0)
    assert not storage.is_held(staging_name(pack))
    assert [info.name for info in storage.list("")] == [staging_name(pack)]
    assert storage.read(staging_name(pack), 0, len(BODY)) == BODY
    storage.delete([staging_name(pack)])
    os.close(ready)
    os.close(tell)


def test_creates_race_between_processes(storage: LocalStorage) -> None:
    rounds = 50
    for k in range(4):
        pid = fork()
        if pid == 0:
            status = 1
            try:
                won = 0
                for i in range(rounds):
                    with contextlib.suppress(ObjectExistsError):
                        storage.create(log_name(i), b"%d" % k)
                        won += 1
                storage.create(probe_name(bytes([k]) * 16), b"%d" % won)
                status = 0
            finally:
                os._exit(status)
    for _ in range(4):
        assert os.wait()[1] == 0
    assert sum(int(storage.read_whole(info.name, 10)) for info in storage.list("probe/")) == rounds


def test_one_sync_covers_the_folders_that_others_made(tmp_path, monkeypatch):
    synced: list[str] = []
    real = files.sync_directory
    monkeypatch.setattr(
        files, "sync_directory", lambda path: (synced.append(os.path.normpath(path)), real(path))[1]
    )
    os.makedirs(tmp_path / "packs" / "aa")
    os.makedirs(tmp_path / "packs" / "bb")
    folders = files.Folders(str(tmp_path))
    folders.ensure("packs/aa")
    assert synced == [str(tmp_path), str(tmp_path / "packs")]
    folders.ensure("packs/bb")
    assert len(synced) == 2
    # One that is made now needs a sync of its own, and so does all after `forget`.
    folders.ensure("packs/cc")
    assert synced[2:] == [str(tmp_path / "packs")]
    folders.forget()
    folders.ensure("packs/bb")
    assert len(synced) == 5


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_drive_itself_is_synced_where_the_system_can_do_that(
    monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """By the name that Python gives it on macOS; file systems that do not know it get a plain sync."""
    calls: list[object] = []

    def control(fd: int, command: int) -> None:
        calls.append(command)
        if is_refused:
            raise OSError(errno.ENOTSUP, "not here")

    monkeypatch.setattr(files.fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(files.fcntl, "fcntl", control)
    monkeypatch.setattr(files.os, "fsync", lambda fd: calls.append("fsync"))
    files.sync_file(0)
    assert calls == ([51, "fsync"] if is_refused else [51])
