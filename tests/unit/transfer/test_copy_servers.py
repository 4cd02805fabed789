"""Copies to servers and back, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vstore
from tests import servers
from tests.repositories import Place, commit, quick_folder
from tests.unit.transfer.houses import contents_of, furnish, require_sound, state_of
from vstore.ids import new_nonce

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", params=["ministack", "azurite"])
def store(request: pytest.FixtureRequest) -> Iterator[Callable[[], Any]]:
    start, make = {
        "ministack": (servers.ministack, servers.s3_store),
        "azurite": (servers.azurite, servers.azure_store),
    }[request.param]
    with start() as url:  # type: ignore[operator]
        yield lambda: make(url, new_nonce().hex())


def test_from_a_disk_to_a_server_to_another_place_on_it_and_back(store: Callable[[], Any]) -> None:
    first, second = store(), store()
    with quick_folder() as folder, furnish(Place.new("sqlite", folder), 20) as repository:
        assert not repository.copy_to(first).is_current
        assert repository.copy_to(first).is_current
        commit(repository, {"later": b"1" * 3000})
        assert repository.copy_to(first, verify=True).copied_packs == 1
        with vstore.Repository.open(first) as remote:
            remote.copy_to(second)
            require_sound(remote)
        with vstore.Repository.open(second) as remote:
            remote.copy_to(folder / "back")
        with vstore.Repository.open(folder / "back") as back:
            require_sound(back)
            assert contents_of(back) == contents_of(repository)
            assert {**state_of(back), "epoch": 0} == {**state_of(repository), "epoch": 0}


def test_from_a_web_server(tmp_path: Path) -> None:
    """What can only be read, and not be listed, is copied all the same."""
    with furnish(Place.new("log", tmp_path), 4) as repository, servers.nginx(tmp_path) as url:
        with vstore.Repository.open(f"{url}/repository") as served:
            report = served.copy_to(tmp_path / "copy")
            assert report.copied_packs == report.packs
            assert served.copy_to(tmp_path / "copy").is_current
            with pytest.raises(vstore.VStoreError):
                repository.copy_to(f"{url}/nothing")
        with vstore.Repository.open(tmp_path / "copy") as copy:
            require_sound(copy)
            assert contents_of(copy) == contents_of(repository)


@pytest.mark.deep
def test_a_pack_larger_than_the_bound_of_memory(store: Callable[[], Any]) -> None:
    """One blob of 300 MiB is one pack, and one request."""
    with quick_folder() as folder, Place.new("log", folder).create() as repository:
        commit(repository, {"large": bytes(300 * 1024 * 1024)})
        target = store()
        report = repository.copy_to(target, verify=True)
        assert report.bytes > 300 * 1024 * 1024
        with vstore.Repository.open(target) as copy:
            copy.copy_to(folder / "back", verify=True)
            assert copy.fsck().is_clean
