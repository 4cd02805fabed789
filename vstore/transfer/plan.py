"""Which packs one state of a catalog needs: those that its snapshots name, followed through relocations.

Above: `replicate`. `vstore.ops.marks` asks the same for gc; but what is to be copied must be found whole.
"""

from __future__ import annotations

from vstore.errors import CorruptionError, StorageError
from vstore.format.record import SnapshotEntry
from vstore.handle import Handle
from vstore.ids import PackId
from vstore.ops.marks import Progress, Roots, final_packs
from vstore.reachability import NeededBlob, Unreadable, Walk


class MovedOnError(StorageError):
    """The source has moved on: something that a state needed was deleted since. A newer state does not need it."""


class Needs:
    """The packs that all states given so far name, each metadata blob looked at once."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._walk = Walk(handle.blobs_for(None))
        self._named: set[PackId] = set()

    def packs_of(self, roots: Roots, progress: Progress) -> set[PackId]:
        """Return the packs that hold what `roots` need, and maybe what states before needed.

        Raises `MovedOnError` if a snapshot has expired and is gone, `CorruptionError` if metadata is damaged.
        """
        for number, entry in enumerate(roots.entries):
            progress(number, len(roots.entries), "snapshots looked at")
            for found in self._walk.snapshot(entry):
                if isinstance(found, Unreadable):
                    self._raise(found, entry)
                elif isinstance(found, NeededBlob):
                    self._named.add(found.ref.pack)
                else:
                    self._named.update(found.packs)
        return final_packs(self._named, roots.moved)

    def _raise(self, found: Unreadable, entry: SnapshotEntry) -> None:
        if isinstance(found.error, StorageError):
            # It says nothing of what is stored: another try may read it.
            raise found.error
        with self._handle.catalog.reading() as view:
            has_expired = view.snapshot(entry.id) is None
        if has_expired:
            raise MovedOnError(
                f"{found.blob.what} was deleted while it was to be copied: {found.error}"
            ) from found.error
        raise CorruptionError(
            f"{found.blob.what} can't be read, so that nothing tells what it needs, and the copy would not be whole: "
            f"{found.error} repo.fsck() names all that is damaged."
        ) from found.error
