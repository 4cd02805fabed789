"""What changed: the value that `session.status()` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

_SHOWN_CHUNKS = 10


@dataclass(frozen=True, slots=True)
class Diff:
    """Changed nodes by path, and the chunk indices that were written or deleted, by array.

    Paths are absolute ("/group/array"). `updated_groups` and `updated_arrays` changed in their metadata;
    `changed_values` are keys that belong to no node.
    """

    new_groups: frozenset[str] = frozenset()
    new_arrays: frozenset[str] = frozenset()
    deleted_groups: frozenset[str] = frozenset()
    deleted_arrays: frozenset[str] = frozenset()
    updated_groups: frozenset[str] = frozenset()
    updated_arrays: frozenset[str] = frozenset()
    updated_chunks: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    changed_values: frozenset[str] = frozenset()

    def is_empty(self) -> bool:
        """Tell whether nothing changed."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)

    def __str__(self) -> str:
        lines = []
        for title in ("new", "deleted", "updated"):
            for noun in ("groups", "arrays"):
                names = sorted(getattr(self, f"{title}_{noun}"))
                if names:
                    lines.append(f"{title.capitalize()} {noun}: {', '.join(names)}")
        for path, indices in sorted(self.updated_chunks.items()):
            shown = ", ".join(map(str, indices[:_SHOWN_CHUNKS]))
            more = f" and {len(indices) - _SHOWN_CHUNKS} more" if len(indices) > _SHOWN_CHUNKS else ""
            lines.append(f"Chunks of {path}: {shown}{more}")
        if self.changed_values:
            lines.append(f"Other keys: {', '.join(sorted(self.changed_values))}")
        return "\n".join(lines) or "No changes"
