"""Of racing creates exactly one succeeds, and its bytes are stored: what the log catalog rests on.

In threads and in spawned processes, over each kind of storage: 50 rounds for each, with --deep 2,000. And the same
through log catalogs, whose writers all want to make the next step.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from obstore.store import MemoryStore

from tests import servers
from tests.xml_server import xml_server
from vstore.blobs.spill import PackSpill
from vstore.catalog.base import ABSENT, CONFIG, Applied, Refused, SetValue, ValueIs
from vstore.catalog.log import LogCatalog
from vstore.errors import ObjectExistsError
from vstore.ids import PackId, new_nonce
from vstore.keys.objects import pack_name
from vstore.storage.base import Storage
from vstore.storage.local import LocalStorage
from vstore.storage.objects import ObjectStorage
from vstore.testing.catalog_contract import IDENTITY, first_transaction, transaction_of

RACERS = 8
WAIT_S = 120

Result = tuple[bool, bytes]


def name_of(round_number: int) -> str:
    return pack_name(PackId(round_number.to_bytes(16, "big")))


def race_creates(storage: Storage, rounds: int, wait: Callable[[], object]) -> list[Result]:
    """Return for each round whether this racer's create succeeded, and the bytes that it gave."""
    results: list[Result] = []
    for number in range(rounds):
        body = new_nonce()
        wait()
        try:
            storage.create(name_of(number), body)
        except ObjectExistsError:
            results.append((False, body))
        else:
            results.append((True, body))
    return results


def race_updates(storage: Storage, rounds: int, wait: Callable[[], object]) -> list[Result]:
    """Do the same with updates of the log in `storage`, each of which expects what the round began with."""
    catalog = LogCatalog.open(storage, PackSpill(storage))
    results: list[Result] = []
    for _ in range(rounds):
        body = new_nonce()
        wait()
        with catalog.reading() as view:
            found = view.value(CONFIG)
        wait()
        expected = ValueIs(CONFIG, ABSENT if found is None else found)
        outcome = catalog.update(transaction_of([SetValue(CONFIG, body)], [expected]))
        assert isinstance(outcome, Applied | Refused)
        results.append((isinstance(outcome, Applied), body))
    catalog.close()
    return results


RACES = {"creates": race_creates, "updates": race_updates}


def check(storage: Storage, race: str, results: list[list[Result]]) -> None:
    if race == "updates":
        catalog = LogCatalog.open(storage, PackSpill(storage))
    for number, round_results in enumerate(zip(*results, strict=True)):
        winners = [body for won, body in round_results if won]
        assert len(winners) == 1, f"{len(winners)} of {RACERS} won round {number}"
        if race == "creates":
            assert storage.read_whole(name_of(number), 100) == winners[0]
    if race == "updates":
        with catalog.reading() as view:
            assert view.value(CONFIG) == winners[0]
            # One to start with, one for each round, and a no-op for what was refused while it was in doubt.
            assert view.sequence >= len(results[0])
        catalog.close()


def in_threads(storage: Storage, race: str, rounds: int) -> list[list[Result]]:
    barrier = Barrier(RACERS)
    with ThreadPoolExecutor(RACERS) as pool:
        racing = [
            pool.submit(RACES[race], storage, rounds, lambda: barrier.wait(WAIT_S)) for _ in range(RACERS)
        ]
        return [each.result() for each in racing]


def run_in_process(races: list[tuple[Storage, str, int]], barrier: Any, results: Any) -> None:
    found = []
    try:
        for storage, race, rounds in races:
            found.append(RACES[race](storage, rounds, lambda: barrier.wait(WAIT_S)))
    except Exception as error:  # noqa: BLE001
        barrier.abort()
        results.put(repr(error))
    else:
        results.put(found)


def in_processes(races: list[tuple[Storage, str, int]]) -> list[list[list[Result]]]:
    """Return for each race what its racers found; one set of processes does them all in turn."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(RACERS), context.Queue()
    processes = [
        context.Process(target=run_in_process, args=(races, barrier, results), daemon=True)
        for _ in range(RACERS)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=1800) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert not [each for each in found if isinstance(each, str)]
    return [list(of_one) for of_one in zip(*found, strict=True)]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    return 2000 if request.config.getoption("--deep") else 50


@pytest.fixture(params=["memory", "directory", "ministack", "azurite", "google"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Storage]:
    if request.param == "memory":
        yield ObjectStorage(MemoryStore())
    elif request.param == "directory":
        with_files = LocalStorage(tmp_path)
        yield with_files
        with_files.close()
    elif request.param == "ministack":
        with servers.ministack() as url:
            yield ObjectStorage(servers.s3_store(url))
    elif request.param == "azurite":
        with servers.azurite() as url:
            yield ObjectStorage(servers.azure_store(url))
    else:
        with xml_server(google=True) as server:
            yield ObjectStorage(server.store())


def begin(storage: Storage) -> None:
    LogCatalog.create(storage, IDENTITY, first_transaction(), PackSpill(storage)).close()


@pytest.mark.server
def test_of_racing_threads_one_wins(storage: Storage, rounds: int) -> None:
    if storage.url.startswith("az:"):
        rounds //= 5  # Azurite takes 2 ms for each request
    begin(storage)
    for race, many in (("creates", rounds), ("updates", rounds // 5)):
        check(storage, race, in_threads(storage, race, many))


@pytest.mark.server
def test_of_racing_processes_one_wins(tmp_path: Path, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    servers.set_s3_environment(monkeypatch)
    with servers.ministack() as url:
        storages: list[Storage] = [LocalStorage(tmp_path), ObjectStorage(servers.s3_store(url))]
        races: list[tuple[Storage, str, int]] = []
        for storage in storages:
            begin(storage)
            races += [(storage, "creates", rounds), (storage, "updates", rounds // 5)]
        for (storage, race, _), results in zip(races, in_processes(races), strict=True):
            check(storage, race, results)
        for storage in storages:
            storage.close()
