"""Stops a process at each step that it takes on a disk: links, renames, removals, syncs, and SQLite's own commits.

`Steps` counts them, in all of the process, and at one of them raises `SimulatedCrash`, before or after it; from then on
every further step crashes as well, so that nothing that handles errors does anything to the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from vstore.catalog.sqlite.connection import Connection
from vstore.ids import PackId
from vstore.storage.local import LocalStorage
from vstore.storage.staged import StagedPack
from vstore.testing.faults import Fault, FaultPlan, SimulatedCrash

NAMES = ("link", "rename", "unlink", "fsync", "mkdir")


class Steps:
    """Counts steps in `plan`, and stops at one of them."""

    def __init__(self, number: int | None = None, fault: Fault = Fault.CRASH_AFTER) -> None:
        self.plan = FaultPlan()
        if number is not None:
            self.plan.inject(number, fault)

    @property
    def count(self) -> int:
        return len(self.plan.requests)

    @contextmanager
    def watching(self) -> Iterator[None]:
        rows = Connection.rows

        def watched_rows(connection: Connection, statement: str, *parameters: object) -> list[Any]:
            if statement != "COMMIT":
                return rows(connection, statement, *parameters)
            return self.plan.run("COMMIT", connection.path, lambda: rows(connection, statement))

        stage = LocalStorage._stage

        def watched_stage(storage: LocalStorage, *packs: PackId) -> StagedPack:
            sink = stage(storage, *packs)
            # So that its file is neither locked nor removed after the crash.
            self.plan.watch(sink)  # type: ignore[arg-type]
            if self.plan.crashed:
                sink.abandon()
                raise SimulatedCrash("a pack was begun after the crash")
            return sink

        with (
            patch.object(Connection, "rows", watched_rows),
            patch.object(LocalStorage, "_stage", watched_stage),
        ):
            yield from self._watch_system(list(NAMES))

    def _watch_system(self, names: list[str]) -> Iterator[None]:
        if not names:
            yield
            return
        name = names.pop()
        with patch.object(os, name, self._watched(name, getattr(os, name))):
            yield from self._watch_system(names)

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            return self.plan.run(name, str(arguments[-1]), lambda: call(*arguments, **options))

        return watched
