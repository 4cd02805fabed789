"""Which snapshot a user means, and how snapshots descend from each other. Reads the catalog only."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from vstore.catalog.base import CatalogView
from vstore.errors import InvalidInputError, RefNotFoundError, SnapshotNotFoundError
from vstore.format.record import RefKind, SnapshotEntry
from vstore.ids import SNAPSHOT_PREFIX_DIGITS, SnapshotId, is_snapshot_text

_SHOWN_NAMES = 5


def require_branch(view: CatalogView, name: str) -> SnapshotId:
    """Return a branch's snapshot, or raise `RefNotFoundError` naming the branches there are."""
    return _require_ref(view, RefKind.BRANCH, name, "branch")


def require_tag(view: CatalogView, name: str) -> SnapshotId:
    """Return a tag's snapshot, or raise `RefNotFoundError` naming the tags there are."""
    return _require_ref(view, RefKind.TAG, name, "tag")


def _require_ref(view: CatalogView, kind: RefKind, name: str, noun: str) -> SnapshotId:
    found = view.ref(kind, name)
    if found is not None:
        return found
    names = [other for other, _ in view.iter_refs(kind)]
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES])) + (", ..." if len(names) > _SHOWN_NAMES else "")
    raise RefNotFoundError(f"there is no {noun} {name!r}; there is {shown or 'none'}.")


def require_entry(view: CatalogView, snapshot: SnapshotId) -> SnapshotEntry:
    """Return a retained snapshot's entry, or raise `SnapshotNotFoundError`."""
    entry = view.snapshot(snapshot)
    if entry is None:
        raise SnapshotNotFoundError(
            f"there is no snapshot {snapshot.hex()}: it was never made here, or it has expired. "
            "ancestry() lists a branch's snapshots."
        )
    return entry


def find_snapshot(view: CatalogView, text: str) -> SnapshotEntry:
    """Return the retained snapshot that an id, or an abbreviation of at least 8 digits, names."""
    if not isinstance(text, str) or not is_snapshot_text(text):
        raise InvalidInputError(
            f"{text!r} is not a snapshot id: give its 64 lower-case hex digits, or the first "
            f"{SNAPSHOT_PREFIX_DIGITS} or more."
        )
    found = view.find_snapshots(text, 2)
    if not found:
        raise SnapshotNotFoundError(
            f"no snapshot's id starts with {text!r}. ancestry() lists a branch's snapshots."
        )
    if len(found) > 1:
        raise InvalidInputError(
            f"{text!r} is ambiguous: it starts {found[0].hex()} and {found[1].hex()}. Give more digits."
        )
    return require_entry(view, found[0])


class AncestryWalk:
    """Visits a snapshot and all its retained ancestors, newest first; parents of a merge come in by their depth.

    It asks for a view anew for each batch, so that none is held open while a user looks at the results.
    """

    def __init__(self, start: SnapshotEntry) -> None:
        self._seen = {start.id}
        self._pending = [_ranked(start)]

    def take(self, view: CatalogView, count: int) -> list[SnapshotEntry]:
        """Return up to `count` more entries; none when all were returned."""
        entries: list[SnapshotEntry] = []
        while self._pending and len(entries) < count:
            entry = heappop(self._pending)[3]
            entries.append(entry)
            for parent in entry.parents:
                found = None if parent in self._seen else view.snapshot(parent)
                self._seen.add(parent)
                if found is not None:
                    heappush(self._pending, _ranked(found))
        return entries


def _ranked(entry: SnapshotEntry) -> tuple[int, int, SnapshotId, SnapshotEntry]:
    return -entry.depth, -entry.time_us, entry.id, entry


def find_as_of(view: CatalogView, head: SnapshotId, time_us: int) -> SnapshotEntry | None:
    """Return the newest snapshot at or before `time_us` along first parents from `head`, in O(log n) look-ups."""
    return _first_where(view, require_entry(view, head), lambda entry: entry.time_us <= time_us)


def _first_where(
    view: CatalogView, entry: SnapshotEntry, holds: Callable[[SnapshotEntry], bool]
) -> SnapshotEntry | None:
    """Return the nearest first-parent ancestor for which `holds`, which must hold for all its ancestors too."""
    while not holds(entry):
        jump = None if entry.jump is None else view.snapshot(entry.jump)
        if jump is not None and not holds(jump):
            entry = jump
            continue
        parent = view.snapshot(entry.parents[0]) if entry.parents else None
        if parent is None:
            return None
        entry = parent
    return entry


def jump_target(view: CatalogView, parent: SnapshotEntry | None) -> SnapshotId | None:
    """Return the jump pointer of a child of `parent` (see `SnapshotEntry`)."""
    if parent is None:
        return None
    over = None if parent.jump is None else view.snapshot(parent.jump)
    if over is None:
        return parent.id
    beyond = None if over.jump is None else view.snapshot(over.jump)
    if beyond is not None and parent.depth - over.depth == over.depth - beyond.depth:
        return beyond.id
    return parent.id
