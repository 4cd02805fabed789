"""Listings that break off, lie or never end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
from obstore import exceptions as obstore_errors
from obstore.store import LocalStore, S3Store

from tests.xml_server import Answer, XmlServer, listed_object, listing, xml_server
from vstore.errors import StorageError
from vstore.ids import PackId
from vstore.keys.objects import log_name, pack_name
from vstore.storage.objects import ObjectStorage
from vstore.storage.objects.options import RequestOptions
from vstore.storage.objects.stores import lists_in_order

QUICK = RequestOptions(first_wait_s=0.001, max_tries=4)
NAMES = [log_name(number) for number in range(4500)]


@pytest.fixture(params=[False, True], ids=["s3", "google"])
def server(request: pytest.FixtureRequest) -> Iterator[XmlServer]:
    with xml_server(google=request.param) as server:
        server.objects = {f"a/b/{name}": b"record" for name in NAMES}
        server.objects |= {"a/b/repo": b"", "a/c/log/1": b"", "repo": b"", log_name(7): b""}
        yield server


@pytest.fixture
def storage(server: XmlServer) -> ObjectStorage:
    return ObjectStorage(server.store("a"), "b", options=QUICK)


def names(storage: ObjectStorage, prefix: str = "log/") -> list[str]:
    return [info.name for info in storage.list(prefix)]


BREAKS = [
    Answer(503),
    Answer(drops=True),
    Answer(cut=1000),
    Answer(short=20_000),  # whole by its length, but no document
]


@pytest.mark.parametrize("trouble", BREAKS, ids=lambda answer: str(answer)[:60])
@pytest.mark.parametrize("honours_start", [True, False])
def test_a_listing_is_taken_up_behind_the_last_name(
    server: XmlServer, storage: ObjectStorage, trouble: Answer, honours_start: bool
) -> None:
    server.honours_start = honours_start
    server.script("LIST", trouble, Answer(), Answer(), trouble, Answer(), trouble)
    assert names(storage) == NAMES
    if honours_start:
        # Five pages, and each broken one.
        assert server.counts() == {"LIST": 8}
        first = [request.path for request in server.requests if "continuation-token" not in request.path]
        assert sum("start-after" in path for path in first) == 2


def test_a_listing_that_goes_on_failing_ends(server: XmlServer, storage: ObjectStorage) -> None:
    server.script("LIST", Answer(), *[Answer(503)] * 20)
    listing = storage.list("log/")
    assert [info.name for info in islice(listing, 1000)] == NAMES[:1000]
    with pytest.raises(StorageError):
        next(listing)
    assert server.counts() == {"LIST": 5}


def test_listings_are_lazy(server: XmlServer, storage: ObjectStorage) -> None:
    listing = storage.list("log/")
    assert server.counts() == {}
    assert [info.name for info in islice(listing, 1000)] == NAMES[:1000]
    assert server.counts() == {"LIST": 1}
    next(listing)
    assert server.counts() == {"LIST": 2}


def test_names_outside_of_the_folder_are_left_out(server: XmlServer, storage: ObjectStorage) -> None:
    pack = pack_name(PackId(bytes(16)))
    hostile = [
        # obstore takes its own prefix "a" off where it finds it, so "b/log/..." would be the same lie as "a/b/log/...".
        log_name(1),  # ours, but not below the prefix
        "a/" + log_name(3),
        "a/b/repo",  # below the prefix, but not in the folder
        "a/b/" + pack,
        "a/c/" + log_name(4),
        "a/b" + log_name(5),
        "/a/b/" + log_name(6),
        "a/b/log/%2e%2e/" + log_name(6),
        "a/b/log/../" + log_name(8)[4:],
        "a/b/a/b/" + log_name(9),
        "a/b/log/x" + "0" * 20,
    ]
    good = f"a/b/{NAMES[5]}"
    for name in hostile:
        page = listing("".join(listed_object(each, 6) for each in (name, good)))
        server.script("LIST", Answer(200, body=page))
        if ".." in name:
            # obstore itself refuses such names, and with them the page.
            with pytest.raises(StorageError, match="vstore did not write it"):
                names(storage)
            assert server.counts() == {"LIST": 1}
        elif name.startswith("/"):
            assert names(storage) == [NAMES[6], NAMES[5]], "the leading slash is obstore's to strip"
        else:
            assert names(storage) == [NAMES[5]], name


def test_names_that_come_twice_are_given_once(server: XmlServer, storage: ObjectStorage) -> None:
    page = listing("".join(listed_object(f"a/b/{name}", 6) for name in (NAMES[0], NAMES[0], NAMES[1])))
    server.script("LIST", Answer(200, body=page))
    assert names(storage) == NAMES[:2]


class Pages:
    """A store whose listing gives what a test says, and breaks where it says None."""

    def __init__(self, *streams: list[list[str] | None]) -> None:
        self.streams = list(streams)
        self.offsets: list[str | None] = []

    def list(self, prefix: str | None, *, offset: str | None, chunk_size: int) -> Iterator[Any]:
        self.offsets.append(offset)
        for page in self.streams.pop(0):
            if page is None:
                raise obstore_errors.GenericError("it broke")
            yield [{"path": name, "size": 1, "last_modified": WHEN} for name in page]


WHEN = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C, D, E = NAMES[:5]


def over(store: Pages) -> ObjectStorage:
    return ObjectStorage(store, url="test://", options=QUICK)  # type: ignore[arg-type]


def test_no_name_is_lost_where_listings_have_no_order() -> None:
    # Known to be so before it broke.
    store = Pages([[A, C], [B], None], [[D, E]])
    with pytest.raises(StorageError, match="it broke"):
        names(over(store))
    assert store.offsets == [None]
    assert names(over(Pages([[A, C], [B], [E, D]]))) == [A, C, B, E, D]
    # Found out after it was taken up.
    for rest in ([[E, D]], [[E], [D]], [[A, E], [B, D]]):
        store = Pages([[A, C], None], rest)
        with pytest.raises(StorageError, match="can't be taken up"):
            names(over(store))
        assert store.offsets == [None, C]
    # In order, from the start again.
    assert names(over(Pages([[A, C], None], [None], [[A, B, C, D], [E]]))) == [A, C, D, E]


def test_where_order_is_known_to_lack_nothing_is_taken_up(tmp_path: Any) -> None:
    assert not lists_in_order(LocalStore(tmp_path))
    assert not lists_in_order(S3Store("bucket--use1-az4--x-s3", s3_express=True))
    assert lists_in_order(S3Store("bucket"))
    assert lists_in_order(S3Store("bucket", s3_express=False))
    storage = over(Pages([None], [[A], None], [[B]]))
    storage._in_order = False
    with pytest.raises(StorageError, match="it broke"):
        names(storage)
