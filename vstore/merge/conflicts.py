"""Conflicts as values: what two sides changed in ways that can't both hold, and what may be decided about it.

Nothing here depends on which side is "ours", but the names: for a rebase ours are the session's changes and theirs the
branch's; for merge, cherry-pick and revert ours is the branch that gets the changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, Final, TypeAlias

from vstore.changes.boxes import Box
from vstore.changes.metadata import MISSING


class ConflictType(StrEnum):
    """What kind of conflict it is. The names are icechunk's where the concept is the same. Append only."""

    NewNodeConflictsWithExistingNode = "new-node-conflicts-with-existing-node"
    """Two nodes, or a node and other keys, would be at one path."""
    NewNodeInInvalidGroup = "new-node-in-invalid-group"
    """A node would have no parent group: it was deleted, or is an array now."""
    ZarrMetadataDoubleUpdate = "zarr-metadata-double-update"
    """One attribute, field or dimension of a shape was changed in two ways."""
    ZarrMetadataUpdateOfDeletedArray = "zarr-metadata-update-of-deleted-array"
    ZarrMetadataUpdateOfDeletedGroup = "zarr-metadata-update-of-deleted-group"
    ChunkDoubleUpdate = "chunk-double-update"
    """Chunks got different bytes on both sides."""
    ChunksUpdatedInDeletedArray = "chunks-updated-in-deleted-array"
    ChunksUpdatedInUpdatedArray = "chunks-updated-in-updated-array"
    """One side wrote chunks, the other changed what chunks mean (dtype, codecs, chunk grid) or cut them off."""
    DeleteOfUpdatedArray = "delete-of-updated-array"
    DeleteOfUpdatedGroup = "delete-of-updated-group"
    MoveOperationCannotBeRebased = "move-operation-cannot-be-rebased"
    """A node was moved to two places, into something that was moved into it, or was deleted."""
    ValueDoubleUpdate = "value-double-update"
    """A key that belongs to no node was changed in two ways."""


class VersionSelection(Enum):
    """Which side holds."""

    Fail = "fail"
    UseOurs = "ours"
    UseTheirs = "theirs"


@dataclass(frozen=True, slots=True)
class UseValue:
    """A value instead of either side's: an array of the chunk's shape, a JSON value, or a plain value's bytes."""

    value: Any


CLASHED: Final = object()
"""In a `UseValue`: chunk bytes that equal no others. Merge bases that are themselves merged hold them, no commit."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """No decision, and which cells of the chunk stand against one."""

    cells: tuple[Box, ...] = ()


def shifted(boxes: tuple[Box, ...], origin: tuple[int, ...]) -> tuple[Box, ...]:
    """Return boxes of cells of a chunk as cells of its array."""
    return tuple(
        Box(
            tuple(i + o for i, o in zip(box.start, origin, strict=True)),
            tuple(i + o for i, o in zip(box.stop, origin, strict=True)),
        )
        for box in boxes
    )


Decision: TypeAlias = VersionSelection | UseValue | Undecided
_Values: TypeAlias = tuple[Any, Any, Any] | Callable[[int], Any] | None


@dataclass(frozen=True, slots=True)
class Conflict:
    """One thing that both sides changed in different ways.

    `path` is absolute. `attribute` or `field` name what of the metadata; `conflicted_chunks` the chunks;
    `conflicted_cells` what the `cells` solver could not put together, in cells of the array.
    """

    conflict_type: ConflictType
    path: str
    attribute: str | None = None
    field: str | None = None
    conflicted_chunks: tuple[tuple[int, ...], ...] | None = None
    conflicted_cells: tuple[Box, ...] = ()
    _values: _Values = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def chunk(self) -> tuple[int, ...]:
        """The index of the chunk, where a solver is asked for one chunk."""
        if self.conflicted_chunks is None or len(self.conflicted_chunks) != 1:
            raise ValueError(f"this conflict is not about one chunk: {self}")
        return self.conflicted_chunks[0]

    @property
    def base(self) -> Any:
        """What both sides started from: a JSON value, or the chunk's cells; `MISSING` for nothing."""
        return self._value(0)

    @property
    def ours(self) -> Any:
        """Our side's value."""
        return self._value(1)

    @property
    def theirs(self) -> Any:
        """Their side's value."""
        return self._value(2)

    def _value(self, which: int) -> Any:
        if callable(self._values):
            return self._values(which)
        return MISSING if self._values is None else self._values[which]

    def __str__(self) -> str:
        text = f"{self.conflict_type.replace('-', ' ')}: {self.path}"
        if self.attribute is not None:
            text += f", attribute {self.attribute!r}"
        elif self.field:
            text += f", {self.field}"
        if self.conflicted_chunks:
            shown = ", ".join(map(str, self.conflicted_chunks[:5]))
            text += f", chunks {shown}" + (", ..." if len(self.conflicted_chunks) > 5 else "")
        if self.conflicted_cells:
            text += f", cells {', '.join(map(str, self.conflicted_cells[:5]))}"
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        # Values that are read when asked for stay behind.
        values = None if callable(self._values) else self._values
        return (
            Conflict,
            (
                self.conflict_type,
                self.path,
                self.attribute,
                self.field,
                self.conflicted_chunks,
                self.conflicted_cells,
                values,
            ),
        )
