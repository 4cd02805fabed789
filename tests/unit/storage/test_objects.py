from __future__ import annotations

import gc
import http.server
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from obstore import exceptions as obstore_errors
from obstore.store import HTTPStore, MemoryStore, S3Store

from tests.unit.storage.children import run_in_child
from vstore.errors import (
    AccessDeniedError,
    CorruptionError,
    ForkedProcessError,
    InvalidInputError,
    ObjectExistsError,
    ObjectNotFoundError,
    OutcomeUnknownError,
    ReadOnlyError,
    StorageError,
    UnsafeStorageError,
)
from vstore.ids import new_pack_id
from vstore.keys.objects import LATEST, REPO, log_name, pack_name
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions

URL_WITH_SECRETS = (
    "Error performing PUT http://user:SECRET@host/a?sig=SECRET in 3ms - server error\n\nDebug: SECRET"
)


class FakeStore:
    """Does what a MemoryStore does until it is told to fail: the answers of servers that are not here."""

    def __init__(self) -> None:
        self.real = MemoryStore()
        self.failures: dict[str, list[Exception]] = {}
        self.applied_first = False
        self.calls: list[tuple[str, Any]] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args))
            if self.failures.get(name):
                error = self.failures[name].pop(0)
                if self.applied_first:
                    method(*args, **kwargs)
                raise error
            return method(*args, **kwargs)

        return call


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def storage(store: FakeStore) -> ObjectStorage:
    options = RequestOptions(first_wait_s=0.0001)
    return ObjectStorage(store, url="s3://bucket/a", options=options)  # type: ignore[arg-type]


# Errors


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (obstore_errors.AlreadyExistsError("it exists"), ObjectExistsError),
        (obstore_errors.PreconditionError("precondition"), ObjectExistsError),
        (obstore_errors.PermissionDeniedError("403"), AccessDeniedError),
        (obstore_errors.UnauthenticatedError("401"), AccessDeniedError),
        (obstore_errors.NotSupportedError("no conditional put"), UnsafeStorageError),
        (NotImplementedError("put_opts"), UnsafeStorageError),
        (FileNotFoundError("no such bucket"), ObjectNotFoundError),
        (obstore_errors.GenericError("500"), OutcomeUnknownError),
        (obstore_errors.JoinError("panicked"), OutcomeUnknownError),
        (TimeoutError("timed out"), OutcomeUnknownError),
    ],
)
def test_errors_of_creates(
    store: FakeStore, storage: ObjectStorage, failure: Exception, expected: type[StorageError]
) -> None:
    store.failures["put"] = [failure]
    with pytest.raises(expected) as caught:
        storage.create(REPO, b"")
    assert type(caught.value) is expected
    assert "repo of s3://bucket/a" in caught.value.message
    assert caught.value.__cause__ is failure


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (obstore_errors.PermissionDeniedError("403"), AccessDeniedError),
        (obstore_errors.GenericError("500"), StorageError),
        (OSError("network"), StorageError),
    ],
)
def test_errors_of_everything_else(
    store: FakeStore, storage: ObjectStorage, failure: Exception, expected: type[StorageError]
) -> None:
    for method, call in [
        ("put", lambda: storage.write(LATEST, b"")),
        ("get_range", lambda: storage.read(REPO, 0, 1)),
        ("get", lambda: storage.read_whole(REPO, 1)),
        ("get", lambda: storage.read_tail(REPO, 1)),
        ("head", lambda: storage.size(REPO)),
        ("list", lambda: list(storage.list("log/"))),
        ("delete", lambda: storage.delete([REPO])),
    ]:
        store.failures[method] = [failure] * 10
        with pytest.raises(expected) as caught:
            call()
        assert type(caught.value) is expected, method
        store.failures.clear()


def test_secrets_of_urls_are_not_shown(store: FakeStore, storage: ObjectStorage) -> None:
    store.failures["put"] = [obstore_errors.GenericError(URL_WITH_SECRETS)]
    with pytest.raises(OutcomeUnknownError) as caught:
        storage.create(REPO, b"")
    assert "SECRET" not in caught.value.message
    assert "http://host/a in 3ms - server error." in caught.value.message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_create_that_met_its_own_success_is_told_apart_by_reading(
    store: FakeStore, storage: ObjectStorage
) -> None:
    # What a proxy that repeats requests does when the first reply is lost.
    store.applied_first = True
    store.failures["put"] = [obstore_errors.AlreadyExistsError("412")]
    with pytest.raises(ObjectExistsError, match="Read it back"):
        storage.create(REPO, b"mine")
    assert storage.read_whole(REPO, 4) == b"mine"


@pytest.mark.parametrize(
    "text", ["Requested range was invalid", "Server returned non-2xx status code: 416 Range Not Satisfiable"]
)
def test_a_range_error_is_corruption_only_if_the_object_is_short(
    store: FakeStore, storage: ObjectStorage, text: str
) -> None:
    storage.create(REPO, b"12345")
    store.failures["get_range"] = [obstore_errors.GenericError(text), obstore_errors.GenericError(text)]
    with pytest.raises(CorruptionError, match="it holds 5"):
        storage.read(REPO, 3, 3)
    with pytest.raises(StorageError) as caught:
        storage.read(REPO, 3, 2)
    assert type(caught.value) is StorageError


@pytest.mark.parametrize(
    "failure",
    [obstore_errors.NotSupportedError("suffix"), obstore_errors.GenericError("416 of an empty object")],
)
def test_the_tail_without_suffix_ranges(store: FakeStore, storage: ObjectStorage, failure: Exception) -> None:
    storage.create(REPO, b"12345")
    store.failures["get"] = [failure]
    tail, size = storage.read_tail(REPO, 2)
    assert (bytes(tail), size) == (b"45", 5)


# Packs


def test_a_failed_upload_is_never_retried_under_its_name(store: FakeStore, storage: ObjectStorage) -> None:
    for failure, expected in [
        (obstore_errors.GenericError("timeout"), OutcomeUnknownError),
        (obstore_errors.AlreadyExistsError("412"), OutcomeUnknownError),
        (obstore_errors.PermissionDeniedError("403"), AccessDeniedError),
    ]:
        sink = storage.open_pack(new_pack_id())
        sink.write(0, [b"pack"])
        store.failures["put"] = [failure]
        with pytest.raises(expected):
            sink.seal(4)
        with pytest.raises(Exception, match="sealed"):
            sink.seal(4)
        assert bytes(sink.read(0, 4)) == b"pack", "the caller writes it to a new pack"
        sink.discard()


def test_a_pack_is_one_request(store: FakeStore, storage: ObjectStorage) -> None:
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [bytes(9_000_000)])
    sink.write(9_000_000, [bytes(9_000_000)])
    assert store.calls == []
    sink.seal(18_000_000)
    assert [name for name, _ in store.calls] == ["put"]
    assert storage.size(pack_name(sink.pack)) == 18_000_000


def test_deletes_go_in_batches(store: FakeStore, storage: ObjectStorage) -> None:
    storage.delete([log_name(i) for i in range(600)])
    assert [len(args[0]) for name, args in store.calls if name == "delete"] == [256, 256, 88]


def test_deletes_go_on_behind_absent_names(store: FakeStore, storage: ObjectStorage) -> None:
    for i in range(5):
        storage.create(log_name(i), b"")
    store.failures["delete"] = [FileNotFoundError("first of the batch"), FileNotFoundError("the second name")]
    storage.delete([log_name(i) for i in range(5)])
    assert [info.name for info in storage.list("log/")] == [log_name(0)]  # failed without being absent


def test_listing_leaves_out_what_is_not_ours() -> None:
    store = MemoryStore()
    for path in (
        "a/log/1",
        "a/log/" + "0" * 20,
        "a/log/" + "0" * 20 + "#1",
        "a/other",
        "a/packs/ab/cd",
        "ab/repo",
    ):
        store.put(path, b"")
    assert [info.name for info in ObjectStorage(store, "a").list("")] == [log_name(0)]
    assert [info.name for info in ObjectStorage(store, "/a/").list("log/")] == [log_name(0)]


# HTTP


@pytest.fixture
def http_root(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=os.fspath(tmp_path))

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", tmp_path
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_is_read_only(http_root: tuple[str, Path]) -> None:
    url, root = http_root
    (root / "repo").write_bytes(b"12345")
    store = HTTPStore(url, client_options={"allow_http": True}, retry_config={"max_retries": 0})
    storage = ObjectStorage(store)
    assert storage.url == url
    assert storage.read_whole(REPO, 5) == b"12345"
    assert storage.size(REPO) == 5
    assert storage.size(LATEST) is None
    with pytest.raises(CorruptionError):
        storage.read_whole(REPO, 4)
    for call in (
        lambda: storage.create(LATEST, b""),
        lambda: storage.write(LATEST, b""),
        lambda: storage.delete([REPO]),
        lambda: storage.open_pack(new_pack_id()),
    ):
        with pytest.raises(ReadOnlyError, match=url):
            call()
    with pytest.raises(StorageError):
        list(storage.list("log/"))


def test_a_server_that_is_not_there() -> None:
    store = S3Store(
        "bucket",
        endpoint="http://127.0.0.1:9",
        access_key_id="id",
        secret_access_key="SECRET",
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )
    storage = ObjectStorage(store)
    with pytest.raises(OutcomeUnknownError, match="s3://bucket") as caught:
        storage.create(REPO, b"")
    assert "SECRET" not in caught.value.message
    with pytest.raises(StorageError):
        storage.read(REPO, 0, 1)


# Pickles and processes


def test_a_memory_store_stays_in_its_process() -> None:
    storage = ObjectStorage(MemoryStore(), url="memory://mine")
    pickled = pickle.dumps(storage)
    storage.create(REPO, b"x")
    assert pickle.loads(pickled).read_whole(REPO, 1) == b"x"
    code = f"import pickle; pickle.loads({pickled!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InvalidInputError: memory://mine is in the memory of another process" in done.stderr


def test_a_pickle_does_not_keep_a_memory_store() -> None:
    storage = ObjectStorage(MemoryStore())
    pickled = pickle.dumps(storage)
    del storage
    gc.collect()
    with pytest.raises(InvalidInputError, match="was dropped"):
        pickle.loads(pickled)


def test_a_forked_child_is_told_instead_of_hanging() -> None:
    storage = ObjectStorage(MemoryStore())
    storage.create(REPO, b"x")
    sink = storage.open_pack(new_pack_id())
    sink.write(0, [b"pack"])

    def child() -> None:
        calls = [
            lambda: storage.read(REPO, 0, 1),
            lambda: storage.create(LATEST, b""),
            lambda: storage.size(REPO),
            lambda: list(storage.list("log/")),
            lambda: ObjectStorage(MemoryStore()).size(REPO),
            lambda: storage.open_pack(new_pack_id()),
            lambda: sink.write(4, [b"more"]),
            lambda: sink.read(0, 1),
            lambda: sink.seal(4),
        ]
        for call in calls:
            with pytest.raises(ForkedProcessError, match="spawn or forkserver"):
                call()
        sink.discard()

    run_in_child(child)
    sink.seal(4)
    assert storage.read_whole(pack_name(sink.pack), 4) == b"pack"


def test_a_child_forked_before_the_first_request_works() -> None:
    code = """
import os
from obstore.store import MemoryStore
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions
storage = ObjectStorage(MemoryStore())
pid = os.fork()
storage.create("repo", b"x")
assert storage.read_whole("repo", 1) == b"x"
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_the_storages_imports_no_obstore() -> None:
    code = (
        "import sys, vstore.storage.location, vstore.storage.objects, vstore.storage.objects.stores;"
        "assert not {'obstore', 'numpy', 'asyncio'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
