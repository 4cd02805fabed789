"""Solvers: what decides a conflict. Users name one by a word, by path patterns, by a function, or pass their own.

A solver is asked once for each conflict; for changed chunks once per array, or once per chunk if `per_chunk` is set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol, TypeAlias, cast

from vstore.errors import InvalidInputError, SolverError
from vstore.merge.conflicts import Conflict, ConflictType, Decision, Undecided, UseValue, VersionSelection

FAIL, OURS, THEIRS = VersionSelection.Fail, VersionSelection.UseOurs, VersionSelection.UseTheirs


class Solver(Protocol):
    """Decides conflicts. `solve` may not change anything; it may be asked about one conflict more than once."""

    @property
    def per_chunk(self) -> bool:
        """Whether each chunk is a conflict of its own, with its cells at hand."""

    def solve(self, conflict: Conflict) -> Decision:
        """Say what holds."""


SolverSpec: TypeAlias = Solver | str | Mapping[str, Any] | Callable[[Conflict], Any] | None
"""What a user may pass: a solver, "fail" (like None), "ours", "theirs", "cells", {path pattern: solver}, a function."""


def make_solver(spec: SolverSpec) -> Solver:
    """Return the solver that a user means; raise `InvalidInputError` if none."""
    if spec is None:
        return Always(FAIL)
    if isinstance(spec, str):
        if spec == "cells":
            from vstore.merge.cells import CellSolver

            return CellSolver()
        return Always(_selection(spec))
    if isinstance(spec, VersionSelection):
        return Always(spec)
    if isinstance(spec, Mapping) and all(isinstance(pattern, str) for pattern in spec):
        return ByPath({pattern: make_solver(rule) for pattern, rule in spec.items()})
    if not isinstance(spec, type) and hasattr(spec, "solve") and hasattr(spec, "per_chunk"):
        return cast(Solver, spec)
    if callable(spec):
        return Asking(spec)
    raise InvalidInputError(
        f"{spec!r} is no solver. Give 'fail', 'ours', 'theirs', 'cells', a dict of path patterns, or a function."
    )


def _selection(word: str) -> VersionSelection:
    try:
        return VersionSelection(word)
    except ValueError:
        raise InvalidInputError(f"{word!r} is no solver. Give 'fail', 'ours', 'theirs' or 'cells'.") from None


class Always:
    """Decides every conflict alike."""

    per_chunk: ClassVar[bool] = False

    def __init__(self, selection: VersionSelection) -> None:
        self._selection = selection

    def solve(self, conflict: Conflict) -> Decision:
        """Say the one thing that it says of all conflicts."""
        return self._selection


class ConflictDetector(Always):
    """Decides nothing, so that every conflict is reported."""

    def __init__(self) -> None:
        super().__init__(FAIL)


class BasicConflictSolver:
    """Decides chunks that both sides wrote, and deletions of what the other side changed; by icechunk's rules.

    A deletion holds unless `fail_on_delete_of_updated_array` (or `_group`) is set.
    """

    per_chunk: ClassVar[bool] = False

    def __init__(
        self,
        *,
        on_chunk_conflict: VersionSelection = OURS,
        fail_on_delete_of_updated_array: bool = False,
        fail_on_delete_of_updated_group: bool = False,
    ) -> None:
        self._on_chunk_conflict = on_chunk_conflict
        self._fail_on_delete = {
            ConflictType.DeleteOfUpdatedArray: fail_on_delete_of_updated_array,
            ConflictType.DeleteOfUpdatedGroup: fail_on_delete_of_updated_group,
        }

    def solve(self, conflict: Conflict) -> Decision:
        """Decide chunks and deletions; everything else stays a conflict."""
        if conflict.conflict_type == ConflictType.ChunkDoubleUpdate:
            return self._on_chunk_conflict
        if conflict.conflict_type in self._fail_on_delete:
            return FAIL if self._fail_on_delete[conflict.conflict_type] else OURS
        return FAIL


class ByPath:
    """Decides by the first pattern that matches the conflict's path: `*` stands for any characters, "/" too."""

    def __init__(self, rules: Mapping[str, Solver]) -> None:
        self._rules = [(f"/{pattern.lstrip('/')}", solver) for pattern, solver in rules.items()]

    @property
    def per_chunk(self) -> bool:
        return any(solver.per_chunk for _, solver in self._rules)

    def solve(self, conflict: Conflict) -> Decision:
        for pattern, solver in self._rules:
            if fnmatchcase(conflict.path, pattern):
                return solver.solve(conflict)
        return FAIL


class Asking:
    """Asks a function: it returns "ours", "theirs", "fail", a `VersionSelection`, a `UseValue`, or a chunk's cells."""

    per_chunk: ClassVar[bool] = True

    def __init__(self, function: Callable[[Conflict], Any]) -> None:
        self._function = function

    def solve(self, conflict: Conflict) -> Decision:
        try:
            answer = self._function(conflict)
        except Exception as error:
            raise SolverError(
                f"the solver raised {type(error).__name__} for {conflict}: {error}. Nothing was changed."
            ) from error
        if answer is None:
            return FAIL
        if isinstance(answer, str):
            return self._word(answer, conflict)
        if isinstance(answer, (VersionSelection, UseValue, Undecided)):
            return answer
        if hasattr(answer, "__array__") and conflict.conflict_type == ConflictType.ChunkDoubleUpdate:
            return UseValue(answer)
        raise SolverError(
            f"the solver returned {answer!r} for {conflict}. Return 'ours', 'theirs', 'fail' or vstore.UseValue(...)."
        )

    def _word(self, answer: str, conflict: Conflict) -> Decision:
        try:
            return VersionSelection(answer)
        except ValueError:
            raise SolverError(
                f"the solver returned {answer!r} for {conflict}. Return 'ours', 'theirs', 'fail' or "
                "vstore.UseValue(...)."
            ) from None
