"""A state on its way from one catalog to another is the same there, and is never in memory as a whole."""

from __future__ import annotations

from typing import Any

import pytest
from obstore.store import MemoryStore

from tests.repositories import quick_folder
from vstore.blobs.spill import PackSpill
from vstore.catalog.base import AddSnapshot, DropSnapshots, SetRef
from vstore.catalog.exported import Exported
from vstore.catalog.log import LogCatalog
from vstore.catalog.log_import import build_record, publish_record
from vstore.catalog.sqlite import SqliteCatalog, connection, view
from vstore.catalog.sqlite.connection import Connection
from vstore.catalog.sqlite.importing import NewFile
from vstore.catalog.state import Space
from vstore.clock import SYSTEM_CLOCK
from vstore.format.record import RefKind
from vstore.storage.objects import ObjectStorage
from vstore.testing.catalog_contract import (
    IDENTITY,
    MAIN,
    apply,
    commit_on,
    entry_of,
    first_transaction,
)

ROWS = 16


def state_of(catalog: Any) -> dict[Space, list[tuple[bytes, bytes]]]:
    with catalog.reading() as found:
        return {space: list(found.iter_space(space)) for space in Space}


def test_a_large_state_goes_from_kind_to_kind_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    most, total = [0], [0]

    def counted(self: Connection, act: Any, run: Any = Connection._run) -> Any:
        rows = run(self, act)
        if isinstance(rows, list):
            most[0] = max(most[0], len(rows))
            total[0] += len(rows)
        return rows

    with quick_folder() as folder:
        (folder / "first").mkdir()
        (folder / "last").mkdir()
        source = SqliteCatalog.create(str(folder / "first"), IDENTITY, first_transaction())
        entries = [commit_on(source, MAIN, f"commit {number}") for number in range(5 * ROWS)]
        # Several in one operation are in rows of their own, and so are those that expired.
        several = [entry_of(f"many {number}") for number in range(3 * ROWS)]
        apply(source, *(AddSnapshot(entry) for entry in several), SetRef(RefKind.BRANCH, MAIN, several[0].id))
        apply(source, DropSnapshots(tuple(entry.id for entry in several[1:9])))
        expected = state_of(source)
        source.close()

        monkeypatch.setattr(connection, "ROWS_AT_ONCE", ROWS)
        monkeypatch.setattr(view, "ROWS_AT_ONCE", ROWS)
        monkeypatch.setattr(Connection, "_run", counted)
        source = SqliteCatalog.open(str(folder / "first"))
        assert state_of(source) == expected
        with source.reading() as found:
            for space in Space:
                total[0] = 0
                assert next(found.iter_space(space), None) == next(iter(expected[space]), None)
                assert total[0] <= 2 * ROWS
        storage = ObjectStorage(MemoryStore())
        with source.reading() as found:
            record = build_record(Exported(found), PackSpill(storage))
        publish_record(storage, record, -1, SYSTEM_CLOCK)
        source.close()
        log = LogCatalog.open(storage, PackSpill(storage))
        assert state_of(log) == expected
        with log.reading() as found:
            NewFile(str(folder / "last"), Exported(found)).publish()
        log.close()
        last = SqliteCatalog.open(str(folder / "last"))
        assert state_of(last) == expected
        assert last.check() == []
        last.close()
        assert len(entries) > 4 * ROWS
        assert 2 < most[0] <= ROWS
