"""Names, listing and deleting."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vstore.clock import SYSTEM_CLOCK
from vstore.errors import (
    InvalidInputError,
    ObjectNotFoundError,
)
from vstore.ids import new_pack_id
from vstore.keys.objects import (
    REPO,
    log_name,
    pack_name,
)
from vstore.storage.base import Storage
from vstore.testing.storage_contract.making import (
    BODY,
    StorageTests,
    all_reads,
    make_object,
)

HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "/",
    "/etc/passwd",
    "../repo",
    "repo/",
    "repo\n",
    "repo\0",
    "log/../repo",
    "log/1",
    "packs/ab",
    "packs/ab/" + "cd" * 16,
    "packs/../packs/" + "ab" * 16,
    "packs/AB/" + "AB" * 16,
    "packs\\ab\\" + "ab" * 16,
    "staging/" + "g" * 32,
    "catalog.sqlite",
    "https://example.com/repo",
    "r%65po",
]


class NameTests(StorageTests):
    """Which names there may be, what lies in a folder, and what is deleted."""

    # Names

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_hostile_names_are_refused(self, storage: Storage, name: str) -> None:
        calls: list[Callable[[], object]] = [
            *all_reads(storage, name),
            lambda: storage.size(name),
            lambda: storage.create(name, b""),
            lambda: storage.write(name, b""),
            lambda: storage.delete([REPO, name]),
            lambda: storage.is_held(name),
        ]
        storage.create(REPO, b"")
        for call in calls:
            with pytest.raises(InvalidInputError):
                call()
        assert storage.size(REPO) == 0, "delete() must check all names before it deletes any"

    @pytest.mark.parametrize(
        "prefix", ["packs", "/", "../", "packs/../", "/packs/", "packs//", "PACKS/", "*"]
    )
    def test_hostile_prefixes_are_refused(self, storage: Storage, prefix: str) -> None:
        with pytest.raises(InvalidInputError):
            list(storage.list(prefix))

    # Listing and deleting

    def test_list_gives_what_lies_in_the_folder(self, storage: Storage) -> None:
        packs = {make_object(storage, "pack", BODY[:i]): i for i in range(1, 20)}
        records = {log_name(i): 6 for i in range(10)}
        for name in records:
            storage.create(name, b"record")
        storage.create(REPO, b"repo")
        some = next(iter(packs))
        assert {info.name: info.size for info in storage.list("packs/")} == packs
        assert {info.name: info.size for info in storage.list("log/")} == records
        assert some in {info.name for info in storage.list(some[:9])}
        assert {info.name for info in storage.list("")} == {*packs, *records, REPO}
        assert list(storage.list("probe/")) == []
        assert list(storage.list("never/made/")) == []

    def test_list_tells_when_objects_were_made(self, storage: Storage) -> None:
        storage.create(REPO, b"repo")
        (info,) = storage.list("")
        assert abs(info.modified_us - SYSTEM_CLOCK.now_us()) < 3600 * 1_000_000

    def test_a_listing_may_be_left_and_survives_deletes(self, storage: Storage) -> None:
        names = [make_object(storage, "create", b"record", number=i) for i in range(50)]
        listing = storage.list("log/")
        next(listing)
        storage.delete(names)
        assert {info.name for info in listing} <= set(names)
        assert list(storage.list("log/")) == []

    def test_delete_passes_over_absent_names(self, storage: Storage) -> None:
        kept = make_object(storage, "pack", BODY)
        names = [make_object(storage, "create", b"record", number=i) for i in range(0, 600, 3)]
        absent = [log_name(i) for i in range(0, 600, 2) if i % 3] + [pack_name(new_pack_id()), REPO]
        storage.delete([*absent[:100], *names, *absent[100:]])
        storage.delete(names)
        storage.delete([])
        assert list(storage.list("log/")) == []
        assert storage.size(kept) == len(BODY)

    def test_a_deleted_pack_is_gone_though_it_was_read(self, storage: Storage) -> None:
        name = make_object(storage, "pack", BODY)
        view = storage.read(name, 0, len(BODY))
        storage.delete([name])
        with pytest.raises(ObjectNotFoundError):
            storage.read(name, 0, 1)
        assert view == BODY, "bytes read before must stay valid"
