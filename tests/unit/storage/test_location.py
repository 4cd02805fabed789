from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, MemoryStore, S3Store

from vstore.errors import InvalidInputError
from vstore.keys.objects import REPO
from vstore.storage.local import LocalStorage
from vstore.storage.location import open_storage
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import FaultyStorage


def root_of(location: Any) -> str:
    storage = open_storage(location)
    assert isinstance(storage, LocalStorage)
    return storage.root


def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert root_of("repo") == str(tmp_path / "repo")
    assert root_of(Path("a") / "repo") == str(tmp_path / "a" / "repo")
    assert root_of("/data/repo/") == "/data/repo"
    assert root_of("~/repo") == "/home/somebody/repo"
    assert root_of(Path("~/repo")) == "/home/somebody/repo"
    assert root_of(".") == str(tmp_path)
    assert root_of("a b#c?d%20") == str(tmp_path / "a b#c?d%20")
    assert root_of("weird:name") == str(tmp_path / "weird:name")


def test_symbolic_links_and_parents_are_left_to_the_system(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    storage = open_storage(tmp_path / "link" / ".." / "repo", create=True)
    storage.create(REPO, b"here")
    assert (tmp_path / "real" / "repo" / "repo").read_bytes() == b"here"
    assert root_of(tmp_path / "link") == str(tmp_path / "link")


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("file:///data/repo", "/data/repo"),
        ("file://localhost/data/repo", "/data/repo"),
        ("FILE:///data/a%20b", "/data/a b"),
        ("file:///data/a?b#c", "/data/a?b#c"),
    ],
)
def test_file_urls(url: str, root: str) -> None:
    assert root_of(url) == root
    assert root_of(LocalStorage(root).url) == root


def test_create_makes_the_directory_and_no_other_call_does(tmp_path: Path) -> None:
    open_storage(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    open_storage(tmp_path / "a" / "b", create=True).create(REPO, b"")
    open_storage(tmp_path / "a" / "b", create=True)
    assert (tmp_path / "a" / "b" / "repo").exists()


@pytest.mark.parametrize(
    ("url", "options", "kind", "shown"),
    [
        ("s3://bucket/a/b", {"region": "eu-west-1"}, S3Store, "s3://bucket/a/b"),
        ("s3://bucket", {}, S3Store, "s3://bucket"),
        ("s3a://bucket/a", {}, S3Store, "s3a://bucket/a"),
        ("gs://bucket/a", {"skip_signature": True}, GCSStore, "gs://bucket/a"),
        ("az://container/a", {"account_name": "me"}, AzureStore, "az://container/a"),
        (
            "abfs://container@me.dfs.core.windows.net/a",
            {},
            AzureStore,
            "abfs://container@me.dfs.core.windows.net/a",
        ),
        ("https://example.com/a/b?signature=SECRET", {}, HTTPStore, "https://example.com/a/b"),
        ("http://example.com/a", {}, HTTPStore, "http://example.com/a"),
    ],
)
def test_object_store_urls(url: str, options: dict[str, Any], kind: type, shown: str) -> None:
    storage = open_storage(url, options=options)
    assert isinstance(storage, ObjectStorage)
    assert isinstance(storage._store, kind)
    assert storage.url == shown
    assert "SECRET" not in repr(storage)
    assert not storage.is_local


def test_vstore_takes_its_own_options_for_urls_and_stores() -> None:
    own = {"max_requests": 3, "pickle_credentials": True, "storage_class": "STANDARD_IA", "max_tries": 4}
    store = S3Store("bucket", retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=7)})
    for storage in (open_storage("s3://bucket", options=own), open_storage(store, options=own)):
        assert isinstance(storage, ObjectStorage)
        assert isinstance(storage._store, S3Store)
        options = storage._options
        assert (options.max_requests, options.pickle_credentials) == (3, True)
        assert (options.storage_class, options.max_tries) == ("STANDARD_IA", 4)
    assert options.total_timeout_s == 7
    plain = open_storage(store)
    assert isinstance(plain, ObjectStorage)
    assert plain._options.max_tries == 2
    waits = {"backoff": {"init_backoff": timedelta(seconds=1), "max_backoff": timedelta(seconds=2)}}
    slow = open_storage("s3://bucket", options={"retry_config": waits})
    assert isinstance(slow, ObjectStorage)
    assert (slow._options.first_wait_s, slow._options.longest_wait_s) == (1, 2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_requests": 0}, "max_requests is 0"),
        ({"max_tries": 1.5}, "max_tries is 1.5"),
        ({"attempt_timeout_s": -1}, "attempt_timeout_s is -1"),
        ({"total_timeout_s": float("inf")}, "total_timeout_s is inf"),
        ({"storage_class": 3}, "storage_class"),
        ({"pickle_credentials": "yes"}, "pickle_credentials"),
        ({"region": "eu-west-1"}, r"\['region'\] can't be set for a S3Store"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        open_storage(S3Store("bucket"), options=options)


def test_options_reach_the_store() -> None:
    def provider() -> Any:
        return {"access_key_id": "id", "secret_access_key": "SECRET", "expires_at": None}

    storage = open_storage(
        "s3://bucket/a",
        options={
            "config": {"region": "eu-west-1"},
            "endpoint": "http://localhost:1",
            "client_options": {"allow_http": True},
            "retry_config": {"max_retries": 1},
            "credential_provider": provider,
        },
    )
    assert isinstance(storage, ObjectStorage)
    store = storage._store
    assert isinstance(store, S3Store)
    assert store.config["region"] == "eu-west-1"
    assert store.retry_config is None
    assert storage._options.max_tries == 2
    assert store.client_options == {"allow_http": "true"}
    assert store.credential_provider is provider


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("s3://bucket", {"no_such_setting": "SECRET"}),
        ("s3://bucket", {"secret_access_key": ["SECRET"]}),
        ("s3://bucket", {"client_options": {"no_such_option": "SECRET"}}),
        ("az://container", {}),
        ("https://user:SECRET@", {}),
        ("https://user:SECRET@example.com/a", {}),
    ],
)
def test_bad_options_are_refused_without_showing_them(url: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        open_storage(url, options=options)
    assert "SECRET" not in caught.value.message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "location",
    [
        *(
            "",
            "  ",
            "ftp://host/a",
            "hdfs://a",
            "://a",
            "simplecache::s3://bucket/a",
            "s3:/bucket/a",
            "S3:bucket/a",
        ),
        *("s3://", "s3:///a", "gs:///a", "http://", 5, None, object(), b"bytes", ["list"]),
    ],
)
def test_what_is_no_location_is_told_what_is(location: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"Accepted are .* memory://"):
        open_storage(location)


@pytest.mark.parametrize(
    "location", ["memory://", "memory:///a", "file://host/a", "a\0b", "~nobody-of-this-name/a"]
)
def test_other_refusals(location: str) -> None:
    with pytest.raises(InvalidInputError):
        open_storage(location)


@pytest.mark.parametrize("location", ["/data", "file:///data", "memory://a", MemoryStore()])
def test_options_are_refused_where_they_have_no_meaning(location: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"options|already"):
        open_storage(location, options={"region": "x"})


def test_memory_urls_name_one_store_per_process() -> None:
    name = os.urandom(8).hex()
    one = open_storage(f"memory://{name}/folder")
    one.create(REPO, b"one")
    assert open_storage(f"memory://{name}/folder/").read_whole(REPO, 3) == b"one"
    assert open_storage(f"memory://{name}").size(REPO) is None
    assert open_storage(f"memory://{name}x/folder").size(REPO) is None
    assert one.url == f"memory://{name}/folder"


def test_obstore_stores_are_taken_as_they_are(tmp_path: Path) -> None:
    store = MemoryStore()
    open_storage(store).create(REPO, b"")
    assert [meta["path"] for batch in store.list() for meta in batch] == [REPO]
    assert open_storage(S3Store("bucket", prefix="a/b")).url == "s3://bucket/a/b"


def test_an_obstore_local_store_becomes_our_own(tmp_path: Path) -> None:
    storage = open_storage(LocalStore(tmp_path))
    assert isinstance(storage, LocalStorage)
    assert storage.root == str(tmp_path.resolve())
    with pytest.raises(InvalidInputError, match="whole disk"):
        open_storage(LocalStore())


def test_a_storage_is_a_location(tmp_path: Path) -> None:
    for storage in (LocalStorage(tmp_path), FaultyStorage(LocalStorage(tmp_path))):
        assert open_storage(storage) is storage
