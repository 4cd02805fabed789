"""What differs between two states of a hierarchy: the value that `repo.diff` and `session.status` return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vstore.changes.boxes import Box, expand

_SHOWN_BOXES = 10


@dataclass(frozen=True, slots=True)
class ValueChange:
    """How an array's cells changed, over the part that both states have.

    `cells` counts them; `max_abs_difference` is None where differences have no size (strings, records);
    `bounding_box` is in cells, half-open, and None if no cell changed. NaN equals NaN here.
    """

    cells: int
    max_abs_difference: float | None
    bounding_box: Box | None


@dataclass(frozen=True, slots=True)
class Diff:
    """Changed nodes by path, and changed chunks by array.

    Paths are absolute ("/group/array") and those of the newer state; of a deleted node, of the older. A node is
    `updated` if its metadata changed: `updated_attributes` and `updated_fields` say how, as (old, new) by path and key,
    with `MISSING` for what is not there. `moved_nodes` are (from, to), of a moved group its own path only.
    `chunk_boxes` are the chunks that were written or deleted, by content; `changed_values` are keys that belong to no
    node. `values` is None unless it was asked for.
    """

    new_groups: frozenset[str] = frozenset()
    new_arrays: frozenset[str] = frozenset()
    deleted_groups: frozenset[str] = frozenset()
    deleted_arrays: frozenset[str] = frozenset()
    updated_groups: frozenset[str] = frozenset()
    updated_arrays: frozenset[str] = frozenset()
    moved_nodes: tuple[tuple[str, str], ...] = ()
    updated_attributes: Mapping[str, Mapping[str, tuple[Any, Any]]] = field(default_factory=dict)
    updated_fields: Mapping[str, Mapping[str, tuple[Any, Any]]] = field(default_factory=dict)
    chunk_boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    changed_values: frozenset[str] = frozenset()
    values: Mapping[str, ValueChange] | None = None

    def is_empty(self) -> bool:
        """Tell whether nothing changed."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def updated_chunks(self) -> dict[str, list[tuple[int, ...]]]:
        """Every changed chunk's index, sorted, by array; as long as there are changed chunks."""
        return {path: expand(boxes) for path, boxes in self.chunk_boxes.items()}

    def __str__(self) -> str:
        lines = [f"Moved: {old} -> {new}" for old, new in self.moved_nodes]
        for title in ("new", "deleted", "updated"):
            for noun in ("groups", "arrays"):
                names = sorted(getattr(self, f"{title}_{noun}"))
                if names:
                    lines.append(f"{title.capitalize()} {noun}: {', '.join(names)}")
        for path in sorted({*self.updated_attributes, *self.updated_fields}):
            for kind, found in (("", self.updated_fields), ("attribute ", self.updated_attributes)):
                for key, (old, new) in found.get(path, {}).items():
                    lines.append(f"{path}: {kind}{key}: {old!r} -> {new!r}")
        for path, boxes in sorted(self.chunk_boxes.items()):
            shown = ", ".join(map(str, boxes[:_SHOWN_BOXES]))
            more = f" and {len(boxes) - _SHOWN_BOXES} more" if len(boxes) > _SHOWN_BOXES else ""
            lines.append(f"Chunks of {path}: {shown}{more}")
        for path, change in sorted((self.values or {}).items()):
            size = "" if change.max_abs_difference is None else f", by at most {change.max_abs_difference:g}"
            lines.append(f"Cells of {path}: {change.cells} changed{size}, within {change.bounding_box}")
        if self.changed_values:
            lines.append(f"Other keys: {', '.join(sorted(self.changed_values))}")
        return "\n".join(lines) or "No changes"
