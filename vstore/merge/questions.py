"""Asking the solver: each conflict once, whatever a user's solver answers, and what stays open is noted.

The solver sees ours and theirs; everybody else in `merge` sees `onto` and `incoming`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vstore.changes.metadata import ATTRIBUTES, MISSING, MetadataClash
from vstore.errors import MergeConflictError, SolverError, VStoreError
from vstore.merge.conflicts import (
    Conflict,
    ConflictType,
    Decision,
    Undecided,
    UseValue,
    VersionSelection,
    shifted,
)
from vstore.merge.solvers import Solver

_SHOWN_CONFLICTS = 5
_MOST_DETAILED = 100
"""Conflicts of chunks that are kept one by one, with their values: each holds on to the refs of its tile."""
Choice: TypeAlias = VersionSelection | UseValue | None
"""What was decided; None for an open conflict."""


class Questions:
    """The conflicts of one merge: `settled` by the solver, or `open`."""

    def __init__(self, solver: Solver, *, incoming_is_ours: bool) -> None:
        self._solver = solver
        self.incoming_is_ours = incoming_is_ours
        self._asked: dict[object, Choice] = {}
        self.settled: list[Conflict] = []
        self.open: list[Conflict] = []

    def is_incoming(self, choice: Choice) -> bool:
        """Tell whether a choice is for incoming's side; an open conflict leaves what onto has."""
        return choice is not None and (choice == VersionSelection.UseOurs) == self.incoming_is_ours

    def ask(self, key: object, conflict: Conflict, *, values_allowed: bool = False) -> Choice:
        """Ask the solver once about a conflict; None if it stays one, which is noted then."""
        if key in self._asked:
            return self._asked[key]
        decision = self._solve(conflict)
        if isinstance(decision, UseValue) and not values_allowed:
            raise SolverError(
                f"the solver gave a value for {conflict}, which needs a side: return 'ours' or 'theirs'. Nothing was "
                "changed."
            )
        if isinstance(decision, Undecided) or decision == VersionSelection.Fail:
            self.open.append(conflict)
            self._asked[key] = None
            return None
        self.settled.append(conflict)
        self._asked[key] = decision
        return decision

    def was_asked(self, key: object) -> bool:
        return key in self._asked

    def is_open(self, key: object) -> bool:
        """Tell whether a conflict was asked about and not decided."""
        return key in self._asked and self._asked[key] is None

    def reopen(self, key: object, conflict: Conflict) -> None:
        """Note that what was decided can't be done, or did not help."""
        if self._asked.get(key) is not None and conflict not in self.open:
            if conflict in self.settled:
                self.settled.remove(conflict)
            self.open.append(conflict)
        self._asked[key] = None

    def _solve(self, conflict: Conflict) -> Decision:
        """Return what the solver says, which may be one of a user's own."""
        try:
            decision = self._solver.solve(conflict)
        except VStoreError:
            raise
        except Exception as error:
            raise SolverError(
                f"the solver raised {type(error).__name__} for {conflict}: {error}. Nothing was changed."
            ) from error
        if isinstance(decision, (VersionSelection, UseValue, Undecided)):
            return decision
        raise SolverError(
            f"the solver returned {decision!r} for {conflict}, which is no decision. Nothing was changed."
        )

    # --- metadata --------------------------------------------------------------------------------------------

    def decide_metadata(self, path: str, clash: MetadataClash) -> Any:
        """Return the value that holds; onto's (`clash.one`) while it is open."""
        sides = (clash.one, clash.other)
        ours, theirs = reversed(sides) if self.incoming_is_ours else sides
        is_attribute = clash.field == ATTRIBUTES and clash.attribute is not None
        conflict = Conflict(
            ConflictType.ZarrMetadataDoubleUpdate,
            f"/{path}",
            clash.attribute if is_attribute else None,
            None if is_attribute else clash.field or clash.document,
            _values=(clash.base, ours, theirs),
        )
        key = metadata_key(path, clash.document, clash.field, clash.attribute)
        choice = self.ask(key, conflict, values_allowed=True)
        if isinstance(choice, UseValue):
            return _checked_json(choice.value, conflict)
        return clash.other if self.is_incoming(choice) else clash.one

    # --- chunks ----------------------------------------------------------------------------------------------

    def decide_chunks(
        self,
        path: str,
        chunks: npt.NDArray[np.int64],
        load: Callable[[int, tuple[int, ...]], Any],
        origin: Callable[[tuple[int, ...]], tuple[int, ...]],
    ) -> Iterator[tuple[slice, bool | UseValue]]:
        """Yield which of conflicting chunks (i64[n, d], by slices) incoming's side holds for, or what value.

        `load(which, index)` returns the cells that base (0), onto (1) or incoming (2) has, `origin(index)` where in
        the array they start.
        """
        order = (0, 2, 1) if self.incoming_is_ours else (0, 1, 2)
        indices = list(map(tuple, chunks.tolist()))
        groups = (
            [(slice(row, row + 1), (index,)) for row, index in enumerate(indices)]
            if self._solver.per_chunk
            else [(slice(0, len(indices)), tuple(indices))]
        )
        settled: list[tuple[int, ...]] = []
        undecided: list[Conflict] = []
        for part, found in groups:
            values = (lambda which, index=found[0]: load(order[which], index)) if len(found) == 1 else None
            conflict = Conflict(
                ConflictType.ChunkDoubleUpdate, f"/{path}", conflicted_chunks=found, _values=values
            )
            decision = self._solve(conflict)
            if isinstance(decision, Undecided) or decision == VersionSelection.Fail:
                cells = decision.cells if isinstance(decision, Undecided) else ()
                cells = shifted(cells, origin(found[0])) if cells else ()
                undecided.append(replace(conflict, conflicted_cells=cells))
                yield part, False
            else:
                settled += found
                yield part, decision if isinstance(decision, UseValue) else self.is_incoming(decision)
        if settled:
            _note_chunks(
                self.settled,
                [Conflict(ConflictType.ChunkDoubleUpdate, f"/{path}", conflicted_chunks=tuple(settled))],
            )
        if undecided:
            _note_chunks(self.open, undecided)

    def error(self) -> MergeConflictError:
        """Return the error that says what is open."""
        shown = "; ".join(map(str, self.open[:_SHOWN_CONFLICTS]))
        more = f"; and {len(self.open) - _SHOWN_CONFLICTS} more" if len(self.open) > _SHOWN_CONFLICTS else ""
        return MergeConflictError(
            f"both sides changed the same: {shown}{more}. Nothing was changed. Pass a solver ('ours', 'theirs', "
            "'cells', a dict of path patterns, or a function), or make the change anew.",
            conflicts=self.open,
        )


def _note_chunks(conflicts: list[Conflict], found: list[Conflict]) -> None:
    """Add conflicts of one array's chunks: each on its own while they are few and name cells, else as one."""
    if all(conflict.conflicted_cells for conflict in found) and len(conflicts) + len(found) <= _MOST_DETAILED:
        conflicts += found
        return
    last = conflicts[-1] if conflicts else None
    if last is not None and (last.conflict_type, last.path) == (found[0].conflict_type, found[0].path):
        found = [conflicts.pop(), *found]
    if len(found) == 1:
        conflicts += found
        return
    chunks = tuple(chunk for conflict in found for chunk in conflict.conflicted_chunks or ())
    # Values and cells are those of single chunks.
    conflicts.append(replace(found[0], conflicted_chunks=chunks, conflicted_cells=(), _values=None))


def metadata_key(path: str, document: str, field: str, attribute: str | None) -> tuple[object, ...]:
    """Return the key under which a clash of metadata is asked about."""
    return "metadata", path, document, field, attribute


def _checked_json(value: Any, conflict: Conflict) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        if value is not MISSING:
            raise SolverError(
                f"what the solver returned for {conflict} is no JSON value: {error}. Nothing was changed."
            ) from error
    return value
