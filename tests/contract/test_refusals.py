"""Stores that can't hold a repository are refused by name, before anything is written that stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import HTTPStore

from tests import servers
from tests.xml_server import Answer, XmlServer, xml_server
from vstore import Repository
from vstore.errors import BucketNotFoundError, ReadOnlyError, RepositoryNotFoundError, UnsafeStorageError
from vstore.keys.objects import REPO
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions

RCLONE_KEYS = {"access_key_id": "accesskey", "secret_access_key": "secretkey"}
SERVERS = {"s3rver": {"access_key_id": "S3RVER", "secret_access_key": "S3RVER"}, "rclone": RCLONE_KEYS}


@pytest.fixture(params=list(SERVERS))
def ignorant_store(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Give a store of a server that takes conditions and does not keep them."""
    with getattr(servers, request.param)() as url:
        yield servers.s3_store(url, "some/where", **SERVERS[request.param])


@pytest.mark.server
def test_servers_that_ignore_conditions_are_refused(ignorant_store: Any) -> None:
    with pytest.raises(UnsafeStorageError, match=r"does not keep its promise|with all of it"):
        Repository.create(ignorant_store)
    assert [meta["path"] for page in obstore.list(ignorant_store) for meta in page] == []
    assert not Repository.exists(ignorant_store)
    with pytest.raises(RepositoryNotFoundError):
        Repository.open(ignorant_store)


@pytest.fixture(params=[False, True], ids=["s3", "google"])
def server(request: pytest.FixtureRequest) -> Iterator[XmlServer]:
    with xml_server(google=request.param) as server:
        yield server


@pytest.mark.parametrize(
    ("conditions", "complaint"),
    [("ignored", "does not keep its promise"), ("refused", "has no conditional writes")],
)
def test_a_repository_is_not_made_where_conditions_do_not_hold(
    server: XmlServer, conditions: str, complaint: str
) -> None:
    server.conditions = conditions
    with pytest.raises(UnsafeStorageError, match=complaint):
        Repository.create(server.store("a"))
    assert server.objects == {}


def test_a_store_that_forgets_what_it_acknowledged_is_refused(server: XmlServer) -> None:
    server.script("GET", *[Answer(404)] * 99)
    with pytest.raises(UnsafeStorageError, match="the first winner's bytes were not kept"):
        Repository.create(server.store("a"))
    assert server.objects == {}


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
def test_a_repository_is_not_written_to_where_conditions_do_not_hold(
    server: XmlServer, conditions: str
) -> None:
    # As when it was copied there, or the service was exchanged behind its address.
    repo = Repository.create(server.store("a"))
    head = repo.lookup_branch("main")
    before = dict(server.objects)
    server.conditions = conditions
    calls: list[Callable[[Repository], object]] = [
        lambda opened: opened.writable_session("main"),
        lambda opened: opened.create_branch("other", head),
        lambda opened: opened.create_tag("v1", head),
        lambda opened: opened.set_metadata({"a": 1}),
        lambda opened: opened.garbage_collect(datetime.now(UTC)),
        lambda opened: opened.compact(),
    ]
    for call in calls:
        opened = Repository.open(server.store("a"))
        assert opened.list_branches() == {"main"}
        with pytest.raises(UnsafeStorageError):
            call(opened)
        assert server.objects == before


@pytest.fixture
def website(tmp_path: Path) -> Iterator[str]:
    Repository.create(tmp_path / "repo", catalog="log").close()
    for path in [tmp_path, *tmp_path.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    with servers.nginx(tmp_path) as url:
        yield url


@pytest.mark.server
def test_a_repository_on_a_web_server_can_only_be_read(website: str) -> None:
    for location in (f"{website}/repo", HTTPStore(f"{website}/repo", client_options={"allow_http": True})):
        repo = Repository.open(location)
        assert repo.list_branches() == {"main"}
        head = repo.lookup_branch("main")
        for call in (
            lambda repo=repo: repo.writable_session("main"),
            lambda repo=repo, head=head: repo.create_tag("v1", head),
            lambda repo=repo: repo.garbage_collect(datetime.now(UTC)),
        ):
            with pytest.raises(ReadOnlyError, match="can only be read"):
                call()
    with pytest.raises(ReadOnlyError, match="can only be read"):
        Repository.create(f"{website}/other")


@pytest.mark.server
def test_a_server_that_ignores_ranges_is_named_when_a_repository_is_there() -> None:
    # A whole object for a range: what obstore says of it alone would tell nobody anything.
    with servers.rclone() as url:
        storage = ObjectStorage(
            servers.s3_store(url, **RCLONE_KEYS), options=RequestOptions(first_wait_s=0.001)
        )
        storage.create(REPO, bytes(100))
        with pytest.raises(UnsafeStorageError, match="header Range is honoured"):
            storage.read(REPO, 10, 10)


def test_a_bucket_that_is_not_there_is_named(server: XmlServer) -> None:
    server.script("PUT", *[Answer(404, "NoSuchBucket")] * 9)
    with pytest.raises(BucketNotFoundError, match="there is no bucket 'bucket'"):
        Repository.create(server.store("a"))
