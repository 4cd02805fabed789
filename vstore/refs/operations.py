"""The operations log: who did what when, as the catalog has it and as users see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any

from vstore.catalog.base import CatalogView
from vstore.clock import to_datetime
from vstore.format.record import Operation
from vstore.handle import Handle

_BATCH = 256


@dataclass(frozen=True, slots=True)
class OperationInfo:
    """One entry of the operations log: who did what when, and the refs before and after.

    `changes` has the kind and the name of each ref, and the ids that it held before and after, None for no such ref.
    `details` says more where there is more: what was undone or restored, which pattern was protected.
    """

    sequence: int
    kind: str
    written_at: datetime
    author: str
    changes: tuple[tuple[str, str, str | None, str | None], ...]
    details: dict[str, Any] = field(default_factory=dict, hash=False)


def iter_operations(handle: Handle, before: int | None = None) -> Iterator[Operation]:
    """Yield the operations numbered below `before` (None: all), newest first, with no view held open between."""
    while before is None or before > 0:
        with handle.catalog.reading() as view:
            operations = list(islice(view.iter_operations(before), _BATCH))
        yield from operations
        before = operations[-1].sequence if operations else 0


def newest(view: CatalogView) -> Operation:
    """Return the newest operation; number 0 made branch main, so there is always one."""
    return next(view.iter_operations())


def operation_info(operation: Operation) -> OperationInfo:
    """Return what users see of an operation."""
    changes = tuple(
        (
            change.kind.name.lower(),
            change.name,
            None if change.before is None else change.before.hex(),
            None if change.after is None else change.after.hex(),
        )
        for change in operation.changes
    )
    return OperationInfo(
        operation.sequence,
        kind_name(operation),
        to_datetime(operation.time_us),
        operation.author,
        changes,
        operation.details,
    )


def kind_name(operation: Operation) -> str:
    """Return what an operation is called in the log."""
    return operation.kind.name.lower().replace("_", "-")
