"""Makes a new catalog from the packs when the old one is lost: snapshots are blobs, and name all that they need.

The snapshots are found, it is told which are complete, and the heads are listed: those that are no one's parent.
Which of them were branches and tags nobody knows but the user, who names them; then the catalog is made. All complete
snapshots are retained, so that nothing that may be wanted is garbage. Nothing that is there is changed or deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.blobs.spill import PackSpill
from vstore.catalog.base import (
    ABSENT,
    FORMAT_VERSION,
    AddSnapshot,
    DropSnapshots,
    Identity,
    MarkPacks,
    RefIs,
    SetRef,
    Transaction,
    Update,
)
from vstore.catalog.location import create_catalog, find_catalog
from vstore.clock import SYSTEM_CLOCK, Clock, to_datetime
from vstore.commit import MAX_ENTRY_INFO_BYTES
from vstore.config import default_author
from vstore.errors import (
    FormatError,
    InvalidInputError,
    RepositoryExistsError,
    SnapshotNotFoundError,
    StorageError,
    VStoreError,
)
from vstore.format.envelope import BlobKind
from vstore.format.log_record import decode_identity_object
from vstore.format.pack import Footer
from vstore.format.record import OperationKind, PackMark, PackState, RefKind, SnapshotEntry
from vstore.format.refs import BlobRef, check_table_size
from vstore.format.snapshot import Snapshot, decode_snapshot
from vstore.ids import (
    SNAPSHOT_PREFIX_DIGITS,
    Digest,
    PackId,
    RepositoryId,
    SnapshotId,
    is_snapshot_text,
    new_repository_id,
    new_transaction_id,
)
from vstore.keys.objects import LOG_PREFIX, REPO, pack_name
from vstore.keys.refs import check_ref_name
from vstore.ops.affected import find_affected
from vstore.ops.examination import Examination, Scope, gather
from vstore.ops.marks import Progress, silent
from vstore.ops.pack_index import PackIndex
from vstore.ops.repair import AllPacks, list_packs
from vstore.refs import MAIN
from vstore.storage.base import Storage, read_twice
from vstore.storage.location import Location, open_storage

_SHOWN = 20
_MAX_ROUNDS = 64
_IDENTITY_BYTES = 64 * 1024
_METADATA = frozenset({BlobKind.DOCUMENT, BlobKind.MANIFEST, BlobKind.PAGE, BlobKind.SNAPSHOT})


class FoundSnapshot(NamedTuple):
    """A snapshot that is in a pack; `is_complete` if all that it needs is there."""

    id: str
    parent_ids: tuple[str, ...]
    written_at: datetime
    message: str
    is_complete: bool

    def __str__(self) -> str:
        text = f"{self.id} of {self.written_at.isoformat(timespec='seconds')}: {self.message!r}"
        return text if self.is_complete else f"{text} (incomplete)"


@dataclass(slots=True)
class RebuildReport:
    """What was found, and made of it.

    `heads` are the complete snapshots from which no other one descends, newest first: the heads of branches, and also
    what was amended or reset away, flushed, or never committed; of such a one `parent_ids` say what the branch held.
    Any complete snapshot may be named, not only these. `unreadable_packs` may hold more.
    `branches` and `tags` are what the new catalog has; without any, none was made.
    """

    heads: list[FoundSnapshot] = field(default_factory=list)
    snapshots: int = 0
    incomplete: list[FoundSnapshot] = field(default_factory=list)
    packs: int = 0
    unreadable_packs: list[str] = field(default_factory=list)
    moved_packs: int = 0
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    repository_id: str | None = None

    def __str__(self) -> str:
        lines = [
            f"{self.snapshots} snapshots in {self.packs} packs, {len(self.incomplete)} of them incomplete; heads:",
            *_shown(self.heads),
        ]
        if self.incomplete:
            lines += ["incomplete snapshots, which are not retained:", *_shown(self.incomplete)]
        if self.unreadable_packs:
            lines += ["packs that can't be read, and may hold more:", *_shown(self.unreadable_packs)]
        if self.repository_id is None:
            lines.append("No catalog was made: name the heads, for example branches={'main': id}.")
        else:
            refs = [f"branch {name!r}: {text}" for name, text in self.branches.items()]
            refs += [f"tag {name!r}: {text}" for name, text in self.tags.items()]
            lines += [f"A catalog was made, with repository id {self.repository_id}:", *_shown(refs)]
            lines.append(
                "Lost with the old one: all other branches and tags, the operations log, settings, protection and "
                "metadata of the repository, and what was known of expired snapshots."
            )
        return "\n".join(lines)


def _shown(items: Sequence[object]) -> list[str]:
    more = len(items) - _SHOWN
    return [f"  {item}" for item in items[:_SHOWN]] + ([f"  and {more:,} more"] if more > 0 else [])


def rebuild_catalog(
    location: Location,
    branches: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    repository_id: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    catalog: str | None = None,
    author: str | None = None,
    clock: Clock = SYSTEM_CLOCK,
    progress: Progress | None = None,
) -> RebuildReport:
    """Make a new catalog for the packs at `location`, whose catalog is lost, and return what was found.

    Call it first without `branches`: that changes nothing, and the report lists the heads, with time and message. Then
    name them: `branches={"main": id}`, where an id may be abbreviated to 8 or more hex digits; there must be a branch
    "main". `repository_id` is the id that copies of the repository have (default: what is left of the old catalog
    says, or a new one). Other options are those of `Repository.create`.

    Raises `RepositoryExistsError` if there is a catalog, or a part of one, even a damaged one: move it out of the way
    first. `SnapshotNotFoundError` if an id is none of a complete snapshot's.
    """
    storage = open_storage(location, options=storage_options)
    _refuse_catalog(storage)
    found = _look(storage, progress or silent)
    if not branches and not tags:
        return found.report
    named_branches = _named(found, branches or {}, "branch")
    named_tags = _named(found, tags or {}, "tag")
    if MAIN not in named_branches:
        raise InvalidInputError(f"a repository has a branch {MAIN!r}: say which snapshot it should hold.")
    identity = Identity(_repository_id(storage, repository_id), FORMAT_VERSION, (), clock.now_us())
    name = default_author() if author is None else author
    _create(storage, found, identity, (named_branches, named_tags), catalog, name, clock)
    report = found.report
    report.repository_id = identity.repository.hex()
    report.branches = {name: snapshot.hex() for name, snapshot in named_branches.items()}
    report.tags = {name: snapshot.hex() for name, snapshot in named_tags.items()}
    return report


def _refuse_catalog(storage: Storage) -> None:
    try:
        kind = find_catalog(storage)
        parts = (
            [] if kind else [info.name for info, _ in zip(storage.list(LOG_PREFIX), range(1), strict=False)]
        )
    except FormatError as error:
        raise RepositoryExistsError(f"{error.message}") from error
    if kind is not None or parts:
        what = "its `catalog.sqlite*` files" if kind == "sqlite" else "its `log/`, `latest` and `repo`"
        raise RepositoryExistsError(
            f"{storage.url} has a catalog, or a part of one. Open it with Repository.open; if it can't be opened, keep "
            f"{what} elsewhere and remove them from here, then call rebuild_catalog again."
        )


def _repository_id(storage: Storage, given: str | None) -> RepositoryId:
    """Return the repository's id: as the object `repo` of a lost log says, as given, or a new one."""
    known = None
    if storage.size(REPO) is not None:
        from vstore.catalog.state import decode_identity

        data = read_twice(storage, lambda: decode_identity_object(storage.read_whole(REPO, _IDENTITY_BYTES)))
        known = decode_identity(data).repository
    if given is None:
        return known or new_repository_id()
    try:
        wanted = RepositoryId(bytes.fromhex(given))
    except (TypeError, ValueError):
        wanted = RepositoryId(b"")
    if len(wanted) != 16:
        raise InvalidInputError(
            f"{given!r} is not a repository's id: give its 32 hex digits, as `repo.id` has them."
        )
    if known is not None and known != wanted:
        raise InvalidInputError(
            f"the object {REPO!r} in {storage.url} says that this is repository {known.hex()}, not {given}."
        )
    return wanted


# --- looking -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """The snapshots in the packs: entries for the catalog, parents before children, and which are complete."""

    entries: list[SnapshotEntry]
    complete: set[SnapshotId]
    moved: dict[PackId, PackId]
    report: RebuildReport


class _Located(NamedTuple):
    ref: BlobRef
    stretch_offset: int
    stretch_length: int


def _look(storage: Storage, progress: Progress) -> _Found:
    CACHE.clear()
    reader = BlobReader(storage)
    report = RebuildReport()
    located: dict[SnapshotId, _Located] = {}
    packs = list_packs(storage)
    report.packs = len(packs)
    for number, (pack, result) in enumerate(reader.iter_footers(packs)):
        progress(number, len(packs), "packs looked at")
        if isinstance(result, VStoreError):
            report.unreadable_packs.append(pack_name(pack))
            continue
        for found in _snapshots_in(pack, result[1]):
            located.setdefault(SnapshotId(found.ref.digest), found)
    decoded = _decode(reader, located)
    entries = _entries(located, decoded)
    moved, incomplete = _complete(storage, entries, packs, progress)
    complete = {entry.id for entry in entries if entry.id not in incomplete}
    _fill_report(report, decoded, complete)
    report.moved_packs = len(moved)
    return _Found(entries, complete, moved, report)


def _snapshots_in(pack: PackId, footer: Footer) -> Iterable[_Located]:
    """Yield the snapshots of a pack, each with the stretch of metadata that it is in."""
    is_metadata = np.isin(footer.kinds, sorted(_METADATA))
    for row in np.flatnonzero(footer.kinds == BlobKind.SNAPSHOT).tolist():
        breaks = np.flatnonzero(~is_metadata[:row])
        first = int(breaks[-1]) + 1 if len(breaks) else 0
        # A commit's snapshot is the last of its metadata.
        earlier = np.flatnonzero(footer.kinds[first:row] == BlobKind.SNAPSHOT)
        first += int(earlier[-1]) + 1 if len(earlier) else 0
        length = int(footer.lengths[row])
        ref = BlobRef(Digest(footer.digests[row].tobytes()), pack, int(footer.offsets[row]), length)
        start = int(footer.offsets[first])
        yield _Located(ref, start, ref.offset + length + check_table_size(length) - start)


def _decode(reader: BlobReader, located: Mapping[SnapshotId, _Located]) -> dict[SnapshotId, Snapshot]:
    decoded = {}
    for snapshot, found in located.items():
        try:
            decoded[snapshot] = decode_snapshot(reader.metadata(found.ref, "a snapshot"))
        except (FormatError, StorageError):
            # A damaged one is as good as absent: nothing tells what it would need.
            continue
    return decoded


def _entries(
    located: Mapping[SnapshotId, _Located], decoded: Mapping[SnapshotId, Snapshot]
) -> list[SnapshotEntry]:
    """Return the catalog's entries of snapshots, parents before children; depths and jumps as commits make them."""
    made: dict[SnapshotId, SnapshotEntry] = {}
    # A snapshot is later than its parents.
    for snapshot in sorted(decoded, key=lambda each: (decoded[each].time_us, each)):
        content, place = decoded[snapshot], located[snapshot]
        parent = made.get(content.parents[0]) if content.parents else None
        short = len(content.message.encode()) + len(content.metadata) <= MAX_ENTRY_INFO_BYTES
        made[snapshot] = SnapshotEntry(
            place.ref,
            content.parents,
            content.time_us,
            0 if parent is None else parent.depth + 1,
            _jump(made, parent),
            place.stretch_offset,
            place.stretch_length,
            (content.message, content.metadata) if short else None,
        )
    return list(made.values())


def _jump(made: Mapping[SnapshotId, SnapshotEntry], parent: SnapshotEntry | None) -> SnapshotId | None:
    """Return the jump pointer of a child of `parent`, as `history.jump_target` does."""
    if parent is None:
        return None
    over = None if parent.jump is None else made.get(parent.jump)
    if over is None:
        return parent.id
    beyond = None if over.jump is None else made.get(over.jump)
    if beyond is not None and parent.depth - over.depth == over.depth - beyond.depth:
        return beyond.id
    return parent.id


def _complete(
    storage: Storage, entries: list[SnapshotEntry], packs: list[PackId], progress: Progress
) -> tuple[dict[PackId, PackId], set[SnapshotId]]:
    """Return where the blobs of absent packs are, as compact left them, and which snapshots lack something."""
    moved: dict[PackId, PackId] = {}
    indexes = AllPacks(storage)
    for _ in range(_MAX_ROUNDS):
        examination = Examination(storage, Scope(entries, (), moved))
        examination.run(progress)
        absent = {pack for pack, found in examination.findings if found.is_missing}
        # Also those that were placed before: what a page below was hidden by may show that they are elsewhere.
        absent |= {old for old, new in moved.items() if examination.findings.get(new) is not None}
        placed = _place(storage, entries, moved, absent, indexes)
        if placed == moved:
            break
        moved = placed
    return moved, find_affected(storage, Scope(entries, (), moved), examination.findings)


def _place(
    storage: Storage,
    entries: list[SnapshotEntry],
    moved: dict[PackId, PackId],
    absent: set[PackId],
    indexes: AllPacks,
) -> dict[PackId, PackId]:
    """Return `moved` and, for each of `absent`, the pack that has most of what is needed of it.

    Compact moves all live blobs of a pack into one. What else seems needed, by expired snapshots of which the blob is
    still there, may be in none; so the heads are asked first.
    """
    placed = {old: new for old, new in moved.items() if old not in absent}
    if not absent:
        return placed
    parents = {parent for entry in entries for parent in entry.parents}
    heads = [entry for entry in entries if entry.id not in parents]
    for_heads, for_all = (gather(storage, Scope(some, (), moved), absent) for some in (heads, entries))
    for old in sorted(absent):
        best = (0, 0)
        for candidate in indexes.names:
            index = indexes.get(candidate)
            if candidate == old or not isinstance(index, PackIndex):
                continue
            score = (
                int(np.count_nonzero(index.has(for_heads[old].placed))),
                int(np.count_nonzero(index.has(for_all[old].placed))),
            )
            if score > best:
                best, placed[old] = score, candidate
    return placed


def _fill_report(
    report: RebuildReport, decoded: Mapping[SnapshotId, Snapshot], complete: set[SnapshotId]
) -> None:
    # Of complete snapshots, also through incomplete ones.
    ancestors: set[SnapshotId] = set()
    newest_first = sorted(decoded, key=lambda each: (-decoded[each].time_us, each))
    report.snapshots = len(decoded)
    for snapshot in newest_first:
        if snapshot in complete or snapshot in ancestors:
            ancestors.update(decoded[snapshot].parents)
        if snapshot not in complete or snapshot not in ancestors:
            described = _described(snapshot, decoded[snapshot], snapshot in complete)
            (report.heads if snapshot in complete else report.incomplete).append(described)


def _described(snapshot: SnapshotId, content: Snapshot, is_complete: bool) -> FoundSnapshot:
    parents = tuple(parent.hex() for parent in content.parents)
    return FoundSnapshot(snapshot.hex(), parents, to_datetime(content.time_us), content.message, is_complete)


# --- making --------------------------------------------------------------------------------------------------


def _named(found: _Found, names: Mapping[str, str], noun: str) -> dict[str, SnapshotId]:
    """Return the snapshots that the user names."""
    chosen = {}
    for name, text in names.items():
        check_ref_name(name)
        if not isinstance(text, str) or not is_snapshot_text(text):
            raise InvalidInputError(
                f"{text!r} is not a snapshot id, for {noun} {name!r}: give {SNAPSHOT_PREFIX_DIGITS} or more hex digits."
            )
        matches = [snapshot for snapshot in found.complete if snapshot.hex().startswith(text)]
        if len(matches) != 1:
            problem = "starts several ids" if matches else "is no complete snapshot's id"
            raise SnapshotNotFoundError(
                f"{text!r} {problem}, for {noun} {name!r}. Call rebuild_catalog without branches to list the heads."
            )
        chosen[name] = matches[0]
    return chosen


def _create(
    storage: Storage,
    found: _Found,
    identity: Identity,
    refs: tuple[dict[str, SnapshotId], dict[str, SnapshotId]],
    catalog: str | None,
    author: str,
    clock: Clock,
) -> None:
    branches, tags = refs
    skeletons = tuple(entry.id for entry in found.entries if entry.id not in found.complete)
    updates: list[Update] = [AddSnapshot(entry) for entry in found.entries]
    updates += [SetRef(RefKind.BRANCH, name, snapshot) for name, snapshot in branches.items()]
    updates += [SetRef(RefKind.TAG, name, snapshot) for name, snapshot in tags.items()]
    marks = tuple(PackState(old, PackMark.RELOCATED, 0, new) for old, new in sorted(found.moved.items()))
    updates += [MarkPacks(marks)] if marks else []
    details = {"rebuilt": True, "snapshots": len(found.complete)}
    first = Transaction(
        new_transaction_id(),
        0,
        OperationKind.CREATE_REPOSITORY,
        clock.now_us(),
        author,
        (RefIs(RefKind.BRANCH, MAIN, ABSENT),),
        tuple(updates),
        details,
    )
    made = create_catalog(storage, identity, first, PackSpill(storage), kind=catalog)
    if skeletons:
        # History keeps their places: what they are the parents of descends from what is before them.
        expire = Transaction(
            new_transaction_id(),
            0,
            OperationKind.EXPIRE,
            clock.now_us(),
            author,
            (),
            (DropSnapshots(skeletons),),
            {"incomplete": len(skeletons)},
        )
        made.update(expire)
    made.close()
