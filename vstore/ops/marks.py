"""What is live: the packs that roots name, found once for each page, manifest and snapshot.

Roots are the retained snapshots, which refs and leases point at, and the catalog's own pages. `gc` asks which packs
are named, `compact` which blobs. Marks only grow: what expires meanwhile counts as live until the next run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import islice
from typing import NamedTuple, TypeAlias

from vstore.catalog.base import CatalogView
from vstore.errors import CorruptionError, StorageError
from vstore.format.record import OperationKind, PackMark, PackState, SnapshotEntry, relocations
from vstore.format.refs import BlobRef
from vstore.handle import Handle
from vstore.ids import PackId, SnapshotId, pack_prefix
from vstore.keys.objects import PACK_PREFIX, parse_pack_name
from vstore.reachability import NeededBlob, NeededChunks, Unreadable, Walk

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with (done, total, what), for a progress bar."""
_OPERATIONS_LOOKED_AT = 1000


def silent(done: int, total: int, what: str) -> None:
    """Show no progress."""


class Roots(NamedTuple):
    """One state of the catalog, as far as deleting needs it; taken in one view."""

    sequence: int
    epoch: int
    entries: tuple[SnapshotEntry, ...]
    pages: tuple[BlobRef, ...]
    states: tuple[PackState, ...]
    session_prefixes: frozenset[bytes]
    """What the packs of registered sessions start with."""

    moved: dict[PackId, PackId]
    """The pack that has the blobs of a replaced one."""

    compacted_us: int
    """When something was last compacted, as far as its operation is near; asked only where packs are being replaced."""


def take_roots(view: CatalogView) -> Roots:
    """Return the roots in `view`."""
    states = tuple(view.pack_states(None))
    return Roots(
        view.sequence,
        view.epoch,
        tuple(view.iter_snapshots()),
        tuple(view.iter_pages()),
        states,
        frozenset(pack_prefix(entry.session) for entry in view.iter_sessions()),
        relocations(states),
        _last_compacted(view) if any(s.mark == PackMark.REPLACING for s in states) else 0,
    )


def _last_compacted(view: CatalogView) -> int:
    """Return the time of the newest operation of compact; 0 if it is long past."""
    for operation in islice(view.iter_operations(), _OPERATIONS_LOOKED_AT):
        if operation.kind == OperationKind.COMPACT:
            return operation.time_us
    return 0


class Marks:
    """The packs that everything marked so far names, in `named`; `visit` is shown each thing that is found."""

    def __init__(
        self, handle: Handle, visit: Callable[[NeededBlob | NeededChunks], None] = lambda found: None
    ) -> None:
        self._handle = handle
        self._walk = Walk(handle.blobs_for(None))
        self._visit = visit
        self.named: set[PackId] = set()

    def mark(self, roots: Roots, progress: Progress = silent) -> None:
        """Mark what `roots` need, but for what was marked before.

        Raises `CorruptionError` if something that is needed is missing or damaged, `StorageError` if it can't be had:
        what it names is not known then.
        """
        self.named.update(ref.pack for ref in roots.pages)
        for number, entry in enumerate(self._walk.iter_snapshots(roots.entries)):
            progress(number, len(roots.entries), "snapshots marked")
            for found in self._walk.snapshot(entry):
                self._take(found, entry)

    def _take(self, found: NeededBlob | NeededChunks | Unreadable, entry: SnapshotEntry) -> None:
        if isinstance(found, Unreadable):
            if isinstance(found.error, StorageError):
                # It says nothing of what is stored: another run may read it.
                raise found.error
            if self._is_retained(entry):
                raise CorruptionError(
                    f"{found.blob.what} of snapshot {entry.id.hex()[:12]} can't be read, so that nothing tells what it "
                    f"needs, and nothing was deleted: {found.error}. repo.fsck() names all that is damaged."
                )
            # It expired meanwhile. What it shares with others was taken note of, but not all of it was seen.
            self._walk = Walk(self._handle.blobs_for(None))
            return
        if isinstance(found, NeededBlob):
            self.named.add(found.ref.pack)
        else:
            self.named.update(found.packs)
        self._visit(found)

    def _is_retained(self, entry: SnapshotEntry) -> bool:
        with self._handle.catalog.reading() as view:
            return view.snapshot(entry.id) is not None


def freed_bytes(handle: Handle, expired: Collection[SnapshotId]) -> int:
    """Return the bytes of the packs that only these retained snapshots need: what gc would delete without them."""
    with handle.catalog.reading() as view:
        roots = take_roots(view)
    marks = Marks(handle)
    gone = frozenset(expired)
    marks.mark(roots._replace(entries=tuple(entry for entry in roots.entries if entry.id not in gone)))
    kept = final_packs(marks.named, roots.moved)
    marks.mark(roots)
    freed = final_packs(marks.named, roots.moved) - kept
    return sum(
        info.size
        for info in handle.storage.list(PACK_PREFIX)
        if (pack := parse_pack_name(info.name)) is not None and pack in freed
    )


def final_packs(packs: Iterable[PackId], moved: dict[PackId, PackId]) -> set[PackId]:
    """Return where the blobs of packs are now."""
    finals: dict[PackId, PackId] = {}
    found = set()
    for pack in packs:
        way: list[PackId] = []
        while pack not in finals and pack in moved:
            if len(way) >= len(moved):
                raise CorruptionError(
                    f"the catalog says that pack {pack.hex()} was replaced by packs that it replaced itself, so that "
                    "nothing tells what is in use, and nothing was deleted. repo.fsck() names all that is damaged."
                )
            way.append(pack)
            pack = moved[pack]
        final = finals.get(pack, pack)
        finals.update(dict.fromkeys(way, final))
        found.add(final)
    return found
