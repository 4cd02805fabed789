"""The history of a repository: its snapshots as users see them, one by one, as a walk, as a picture, and compared.

Below: `history` finds and walks snapshots, `graph` draws them, `comparison` tells what differs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from vstore.clock import to_datetime
from vstore.config import load_object
from vstore.format.record import RefKind, SnapshotEntry
from vstore.history import AncestryWalk, find_snapshot, require_entry, resolve
from vstore.ids import SnapshotId
from vstore.keys.zarr import normalize_prefix
from vstore.refs import MAIN
from vstore.repository.opened import Opened
from vstore.twins import async_twin

# What only some methods need is imported by them, as in `session`.
if TYPE_CHECKING:
    from vstore.changes.diff import Diff
    from vstore.graph import AncestryGraph, Commit

_BATCH = 256


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What ancestry and look-ups tell of a snapshot. `written_at` is in UTC; ids are hex text."""

    id: str
    parent_ids: tuple[str, ...]
    written_at: datetime
    message: str
    metadata: dict[str, Any]

    @property
    def parent_id(self) -> str | None:
        """The first parent, or None for the first snapshot."""
        return self.parent_ids[0] if self.parent_ids else None


class Snapshots(Opened):
    """What a `Repository` tells of its history."""

    def ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> Iterator[SnapshotInfo]:
        """Yield a snapshot and its ancestors, newest first, as a stream: give exactly one argument."""
        with self._handle.catalog.reading() as view:
            start = resolve(view, branch, tag, snapshot_id)
        return map(self._info, self._walk(AncestryWalk(start)))

    def _walk(self, walk: AncestryWalk) -> Iterator[SnapshotEntry]:
        while True:
            # A batch at a time: no view is held open while the caller looks at the results.
            with self._handle.catalog.reading() as view:
                entries = walk.take(view, _BATCH)
            if not entries:
                return
            yield from entries

    def ancestry_graph(
        self,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        plain: bool = False,
    ) -> AncestryGraph:
        """Return a picture of history as text, newest first, as `git log --graph` draws it.

        Of all branches and tags, or of what one argument names. `str()` of the result is the text, iterating streams
        its lines, and its `print()` has colours unless `plain`.
        """
        from vstore.graph import AncestryGraph

        labels: dict[SnapshotId, list[str]] = defaultdict(list)
        with self._handle.catalog.reading() as view:
            for kind, prefix in ((RefKind.BRANCH, ""), (RefKind.TAG, "tag: ")):
                for name, snapshot in view.iter_refs(kind):
                    labels[snapshot].append(prefix + name)
            if branch is tag is snapshot_id is None:
                starts = [require_entry(view, snapshot) for snapshot in labels]
            else:
                starts = [resolve(view, branch, tag, snapshot_id)]
        return AncestryGraph(lambda: self._iter_commits(AncestryWalk(*starts)), labels, plain=plain)

    def _iter_commits(self, walk: AncestryWalk) -> Iterator[Commit]:
        from vstore.graph import Commit

        for entry in self._walk(walk):
            yield Commit(entry.id, walk.retained_parents(entry), self._info(entry).message)

    def log(
        self,
        path: str | None = None,
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
    ) -> Iterator[SnapshotInfo]:
        """Yield the snapshots, newest first, that changed the node at `path` or what is below it; None: all.

        By content, and also while the node had another path. A merge is listed if its result differs from every
        parent. Give exactly one of the other arguments; without any, branch "main" is meant.
        """
        if branch is tag is snapshot_id is None:
            branch = MAIN
        if path is None:
            yield from self.ancestry(branch=branch, tag=tag, snapshot_id=snapshot_id)
            return
        with self._handle.catalog.reading() as view:
            start = resolve(view, branch, tag, snapshot_id)
        from vstore.comparison import PathHistory

        history = PathHistory(self._handle, start, normalize_prefix(path))
        walk = AncestryWalk(start)
        for entry in self._walk(walk):
            with self._handle.catalog.reading() as view:
                found = [view.snapshot(parent) for parent in walk.retained_parents(entry)]
            if history.changed_by(entry, [parent for parent in found if parent is not None]):
                yield self._info(entry)

    def diff(
        self,
        *,
        from_branch: str | None = None,
        from_tag: str | None = None,
        from_snapshot_id: str | None = None,
        to_branch: str | None = None,
        to_tag: str | None = None,
        to_snapshot_id: str | None = None,
        values: bool = False,
    ) -> Diff:
        """Return what differs between any two snapshots, related or not, by content; give one `from_` and one `to_`.

        The cost follows the difference. With `values`, the changed chunks are read and their cells compared too, one
        chunk at a time.
        """
        from vstore.comparison import diff, snapshot_tree

        with self._handle.catalog.reading() as view:
            older = resolve(view, from_branch, from_tag, from_snapshot_id)
            newer = resolve(view, to_branch, to_tag, to_snapshot_id)
        handle = self._handle
        return diff(snapshot_tree(handle, older), snapshot_tree(handle, newer), values=values)

    def lookup_snapshot(self, snapshot_id: str) -> SnapshotInfo:
        """Return what is known of a snapshot; its id may be abbreviated to 8 or more hex digits."""
        with self._handle.catalog.reading() as view:
            return self._info(find_snapshot(view, snapshot_id))

    def _info(self, entry: SnapshotEntry) -> SnapshotInfo:
        if entry.info is None:
            snapshot = self._handle.blobs_for(entry.id).snapshot(entry.ref)
            message, metadata = snapshot.message, snapshot.metadata
        else:
            message, metadata = entry.info
        parents = tuple(parent.hex() for parent in entry.parents)
        return SnapshotInfo(
            entry.id.hex(),
            parents,
            to_datetime(entry.time_us),
            message,
            load_object(metadata, "a snapshot's metadata"),
        )

    diff_async = async_twin(diff)
    lookup_snapshot_async = async_twin(lookup_snapshot)
