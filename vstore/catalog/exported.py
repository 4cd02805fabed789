"""One state of a catalog, in the form in which a new catalog takes it: the same keys and values, whatever holds them.

`Exported` is a view with some values replaced and some operations added on top. It lives as long as its view, and holds
no more of the state in memory than the view does. Below: `state`; above: `log_import` and `sqlite.importing` write it,
`vstore.transfer` decides what is exported where.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence

from vstore.catalog.base import Identity
from vstore.catalog.state import Space, StateView, encode_operation, operation_key, text_key
from vstore.format.record import Operation, OperationKind, SnapshotEntry
from vstore.ids import SnapshotId, new_transaction_id

ADDING = frozenset(
    {
        OperationKind.CREATE_REPOSITORY,
        OperationKind.COMMIT,
        OperationKind.AMEND,
        OperationKind.MERGE,
        OperationKind.CHERRY_PICK,
        OperationKind.REVERT,
    }
)
"""Operations that point one ref at a snapshot which they add."""


class Exported:
    """The state in `view`, but for `values` (None: not set) in place of its own and `more` operations after its newest.

    `epoch` is the view's if that is not lower.
    """

    def __init__(
        self,
        view: StateView,
        *,
        values: Mapping[str, bytes | None] | None = None,
        more: Sequence[Operation] = (),
        epoch: int = 0,
    ) -> None:
        self._view = view
        self._values = {text_key(name): value for name, value in (values or {}).items()}
        self._more = tuple(more)
        self.identity: Identity = view.identity
        self.sequence = view.sequence + len(self._more)
        self.epoch = max(view.epoch, epoch)

    def iter_space(self, space: Space) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and values of a space, sorted."""
        stored = self._view.iter_space(space)
        if space == Space.OPERATION:
            yield from stored
            for operation in self._more:
                yield operation_key(operation.sequence), encode_operation(operation)
        elif space == Space.VALUE and self._values:
            kept = ((key, value) for key, value in stored if key not in self._values)
            own = sorted((key, value) for key, value in self._values.items() if value is not None)
            yield from heapq.merge(kept, own)
        else:
            yield from stored

    def iter_operations(self, before: int | None = None) -> Iterator[Operation]:
        """Yield the operations numbered below `before` (None: all), newest first."""
        for operation in reversed(self._more):
            if before is None or operation.sequence < before:
                yield operation
        yield from self._view.iter_operations(before)

    def snapshot(self, snapshot: SnapshotId) -> SnapshotEntry | None:
        """Return the entry of a retained snapshot, or None."""
        return self._view.snapshot(snapshot)


def fillers(first: int, last: int, time_us: int, author: str) -> tuple[Operation, ...]:
    """Return operations numbered `first` to `last` that change nothing: they take numbers which must be taken."""
    kind = OperationKind.NO_OPERATION
    return tuple(
        Operation(sequence, new_transaction_id(), kind, time_us, author, (), {})
        for sequence in range(first, last + 1)
    )
