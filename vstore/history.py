"""Which snapshot a user means, and how snapshots descend from each other. Reads the catalog only.

Of an expired snapshot the catalog keeps how it descends, so that walks pass through it to what is retained beyond;
where its content is what was asked for, `SnapshotExpiredError` names it.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import TypeVar

from vstore.catalog.base import CatalogView
from vstore.clock import to_datetime
from vstore.errors import (
    CorruptionError,
    InvalidInputError,
    RefNotFoundError,
    SnapshotExpiredError,
    SnapshotNotFoundError,
)
from vstore.format.record import HistoryEntry, RefKind, SnapshotEntry
from vstore.ids import SNAPSHOT_PREFIX_DIGITS, SnapshotId, is_snapshot_text

EntryT = TypeVar("EntryT", SnapshotEntry, HistoryEntry)

_SHOWN_NAMES = 5
# Colours of `merge_bases`: reached from either side; from a common ancestor.
_ONE, _OTHER, _STALE = 1, 2, 4
_COMMON = _ONE | _OTHER


def require_branch(view: CatalogView, name: str) -> SnapshotId:
    """Return a branch's snapshot, or raise `RefNotFoundError` naming the branches there are."""
    return _require_ref(view, RefKind.BRANCH, name, "branch")


def require_tag(view: CatalogView, name: str) -> SnapshotId:
    """Return a tag's snapshot, or raise `RefNotFoundError` naming the tags there are."""
    return _require_ref(view, RefKind.TAG, name, "tag")


def _require_ref(view: CatalogView, kind: RefKind, name: str, noun: str) -> SnapshotId:
    if not isinstance(name, str):
        raise InvalidInputError(f"{name!r} is not the name of a {noun}: give text.")
    found = view.ref(kind, name)
    if found is not None:
        return found
    names = [other for other, _ in view.iter_refs(kind)]
    shown = ", ".join(map(repr, names[:_SHOWN_NAMES])) + (", ..." if len(names) > _SHOWN_NAMES else "")
    raise RefNotFoundError(f"there is no {noun} {name!r}; there is {shown or 'none'}.")


def require_entry(view: CatalogView, snapshot: SnapshotId) -> SnapshotEntry:
    """Return a retained snapshot's entry, or raise `SnapshotExpiredError` or `SnapshotNotFoundError`."""
    return require_retained(require_known(view, snapshot))


def require_known(view: CatalogView, snapshot: SnapshotId) -> HistoryEntry:
    """Return what history knows of a snapshot, retained or expired, or raise `SnapshotNotFoundError`."""
    entry = look_up(view, snapshot)
    if entry is None:
        raise SnapshotNotFoundError(
            f"there is no snapshot {snapshot.hex()} in this repository. ancestry() lists a branch's snapshots."
        )
    return entry


def look_up(view: CatalogView, snapshot: SnapshotId) -> HistoryEntry | None:
    """Return what history knows of a snapshot, retained or expired."""
    return view.snapshot(snapshot) or view.expired(snapshot)


def _older(view: CatalogView, entry: HistoryEntry, ancestor: SnapshotId) -> HistoryEntry | None:
    """Look up a parent of `entry`, or an ancestor that it names.

    A snapshot is later than its parents. Where entries say otherwise they may go round in circles.
    """
    found = look_up(view, ancestor)
    if found is not None:
        _check_older(entry, ancestor, found.time_us)
    return found


def _check_older(entry: HistoryEntry, ancestor: SnapshotId, time_us: int) -> None:
    if time_us >= entry.time_us:
        raise CorruptionError(
            f"snapshot {ancestor.hex()} is not older than {entry.id.hex()}, which the catalog says comes from it. "
            "repo.fsck() names all that is damaged."
        )


def require_retained(entry: HistoryEntry) -> SnapshotEntry:
    """Return the entry of a snapshot whose content is needed, or raise `SnapshotExpiredError`."""
    if isinstance(entry, SnapshotEntry):
        return entry
    raise SnapshotExpiredError(
        f"snapshot {entry.id.hex()} of {to_datetime(entry.time_us).isoformat()} has expired: its place in history is "
        "known, its content is not kept. ancestry() lists the snapshots that are."
    )


def find_snapshot(view: CatalogView, text: str) -> SnapshotEntry:
    """Return the retained snapshot that an id, or an abbreviation of at least 8 digits, names.

    An abbreviation must be unique among expired ones too: it does not come to mean something else.
    """
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


def resolve(view: CatalogView, branch: str | None, tag: str | None, snapshot_id: str | None) -> SnapshotEntry:
    """Return the snapshot that exactly one of a branch, a tag and a snapshot id names."""
    given = [argument for argument in (branch, tag, snapshot_id) if argument is not None]
    if len(given) != 1:
        raise InvalidInputError("give exactly one of branch, tag and snapshot_id")
    if branch is not None:
        return require_entry(view, require_branch(view, branch))
    if tag is not None:
        return require_entry(view, require_tag(view, tag))
    assert snapshot_id is not None
    return find_snapshot(view, snapshot_id)


class AncestryWalk:
    """Visits snapshots and all their retained ancestors, newest first: a snapshot comes before its parents.

    It passes through expired ones without returning them.

    It asks for a view anew for each batch, so that none is held open while a user looks at the results.
    """

    def __init__(self, *starts: SnapshotEntry) -> None:
        unique = {start.id: start for start in starts}
        self._seen = set(unique)
        self._beyond: dict[SnapshotId, tuple[SnapshotId, ...]] = {}
        self._pending = [_ranked(start) for start in unique.values()]
        heapify(self._pending)

    def take(self, view: CatalogView, count: int) -> list[SnapshotEntry]:
        """Return up to `count` more entries; none when all were returned."""
        entries: list[SnapshotEntry] = []
        while self._pending and len(entries) < count:
            entry = heappop(self._pending)[2]
            entries.append(entry)
            for parent in entry.parents:
                if parent not in self._seen and parent not in self._beyond:
                    self._meet(view, parent)
        return entries

    def _meet(self, view: CatalogView, parent: SnapshotId) -> None:
        """Put a parent in line, or if it is gone, the nearest retained snapshots beyond it."""
        beyond: list[SnapshotId] = []
        met, pending = {parent}, [parent]
        while pending:
            found = look_up(view, pending.pop())
            if isinstance(found, SnapshotEntry):
                beyond.append(found.id)
                if found.id not in self._seen:
                    self._seen.add(found.id)
                    heappush(self._pending, _ranked(found))
            elif found is not None:
                pending += [other for other in reversed(found.parents) if other not in met]
                met.update(found.parents)
        if beyond != [parent]:
            self._beyond[parent] = tuple(beyond)

    def retained_parents(self, entry: SnapshotEntry) -> tuple[SnapshotId, ...]:
        """Return the nearest ancestors of a returned entry that this walk returns too: its parents, as a rule."""
        found = [other for parent in entry.parents for other in self._beyond.get(parent, (parent,))]
        return tuple(dict.fromkeys(found))


def _ranked(entry: EntryT) -> tuple[int, SnapshotId, EntryT]:
    # By time alone: a snapshot is later than all its parents, while `depth` counts first parents only.
    return -entry.time_us, entry.id, entry


def merge_bases(view: CatalogView, one: SnapshotEntry, other: SnapshotEntry) -> list[HistoryEntry]:
    """Return the best common ancestors: those of which none is an ancestor of another; newest first, then by id.

    They may have expired: what lies further back would be a wrong base.

    One as a rule, several after criss-cross merges, none for unrelated histories. Costs what happened since. The
    painting of git's `paint_down_to_common`; as a snapshot is later than its parents, each has its last colour when
    it is reached, and nothing is left to be removed afterwards.
    """
    paint = {one.id: _ONE}
    paint[other.id] = paint.get(other.id, 0) | _OTHER
    times = {one.id: one.time_us, other.id: other.time_us}
    pending: list[tuple[int, SnapshotId, HistoryEntry]] = [
        _ranked(entry) for entry in {one.id: one, other.id: other}.values()
    ]
    heapify(pending)
    bases: list[HistoryEntry] = []
    undecided = len(pending)
    while undecided:
        entry = heappop(pending)[2]
        colour = paint[entry.id]
        undecided -= colour < _STALE
        if colour == _COMMON:
            bases.append(entry)
            colour |= _STALE
        for parent in entry.parents:
            before = paint.get(parent)
            if before is None:
                found = _older(view, entry, parent)
                if found is None:
                    continue
                heappush(pending, _ranked(found))
                times[parent] = found.time_us
                undecided += 1
            else:
                _check_older(entry, parent, times[parent])
            paint[parent] = (before or 0) | colour
            undecided -= (before or 0) < _STALE <= colour
    return bases


def is_ancestor(view: CatalogView, ancestor: SnapshotEntry, descendant: SnapshotEntry) -> bool:
    """Tell whether `descendant` is `ancestor` or comes from it, through any parents."""
    # By the jumps of first parents it is quickly found, if it is there.
    nearest = _first_where(view, descendant, lambda entry: entry.time_us <= ancestor.time_us)
    if nearest is not None and nearest.id == ancestor.id:
        return True
    seen = {descendant.id}
    pending: list[HistoryEntry] = [descendant]
    while pending:
        entry = pending.pop()
        if entry.id == ancestor.id:
            return True
        for parent in entry.parents if entry.time_us > ancestor.time_us else ():
            found = None if parent in seen else look_up(view, parent)
            seen.add(parent)
            if found is not None:
                pending.append(found)
    return False


def find_as_of(view: CatalogView, head: SnapshotId, time_us: int) -> SnapshotEntry | None:
    """Return the newest snapshot at or before `time_us` along first parents from `head`, in O(log n) look-ups.

    Raises `SnapshotExpiredError` if that one has expired: an older one would be a wrong answer.
    """
    found = _first_where(view, require_entry(view, head), lambda entry: entry.time_us <= time_us)
    return None if found is None else require_retained(found)


def _first_where(
    view: CatalogView, entry: HistoryEntry, holds: Callable[[HistoryEntry], bool]
) -> HistoryEntry | None:
    """Return the nearest first-parent ancestor for which `holds`, which must hold for all its ancestors too."""
    while not holds(entry):
        jump = None if entry.jump is None else _older(view, entry, entry.jump)
        if jump is not None and not holds(jump):
            entry = jump
            continue
        parent = _older(view, entry, entry.parents[0]) if entry.parents else None
        if parent is None:
            return None
        entry = parent
    return entry


def jump_target(view: CatalogView, parent: HistoryEntry | None) -> SnapshotId | None:
    """Return the jump pointer of a child of `parent` (see `SnapshotEntry`)."""
    if parent is None:
        return None
    over = None if parent.jump is None else look_up(view, parent.jump)
    if over is None:
        return parent.id
    beyond = None if over.jump is None else look_up(view, over.jump)
    if beyond is not None and parent.depth - over.depth == over.depth - beyond.depth:
        return beyond.id
    return parent.id
