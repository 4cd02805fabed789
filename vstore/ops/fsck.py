"""fsck: verifies catalog -> snapshots -> pages -> manifests -> pack footers, and with `data` every blob's digest.

It names each damage and what it affects, changes nothing, and goes on after a damage to find them all. The
invariants that tests check after every crash are these checks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.changes.tiling import join_indices
from vstore.errors import FormatError, ObjectNotFoundError, StorageError, VStoreError
from vstore.format.pack import HEADER_SIZE, Footer, check_table, decode_header
from vstore.format.record import PackMark, SnapshotEntry
from vstore.format.refs import BlobRef, check_table_size
from vstore.handle import Handle
from vstore.ids import Digest, PackId, blake3_digest
from vstore.keys.objects import PACK_PREFIX, pack_name, parse_pack_name
from vstore.reachability import NeededBlob, NeededChunks, Unreadable, Walk

if TYPE_CHECKING:
    from vstore.repository import Repository

_SHOWN = 3


class Damage(NamedTuple):
    """Something wrong: `place` is a pack's object name or "catalog", `affects` what can't be read because of it."""

    place: str
    problem: str
    affects: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}; affects {self.affects}"


@dataclass(slots=True)
class FsckReport:
    """What was checked and what was found. `unreferenced_packs` are no damage: gc removes them."""

    damages: list[Damage] = field(default_factory=list)
    snapshots: int = 0
    packs: int = 0
    blobs: int = 0
    bytes: int = 0
    unreferenced_packs: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages

    def __str__(self) -> str:
        found = "no damage" if self.is_clean else f"{len(self.damages)} damages"
        lines = [
            f"{self.snapshots} snapshots, {self.packs} packs, {self.blobs} blobs of {self.bytes} bytes: {found}",
            *map(str, self.damages),
        ]
        return "\n".join(lines)


def check(
    repository: Repository, *, data: bool = False, progress: Callable[[int, int, str], None] | None = None
) -> FsckReport:
    """Verify a repository and return what was found; with `data`, read every blob and check its digest.

    Needs memory for the digests of all referenced blobs. `progress` is called with (done, total, label).
    """
    # What this process wrote or read before is right in memory, whatever the storage made of it since.
    CACHE.clear()
    return _Fsck(repository.handle, data, progress or _silent).run()


def _silent(done: int, total: int, label: str) -> None:
    pass


class _Wanted(NamedTuple):
    """Blobs that something needs in one pack."""

    digests: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    describe: Callable[[int], str]


class _Fsck:
    def __init__(self, handle: Handle, data: bool, progress: Callable[[int, int, str], None]) -> None:
        self._handle = handle
        self._blobs: BlobReader = handle.blobs_for(None)
        self._data = data
        self._progress = progress
        self._wanted: dict[PackId, list[_Wanted]] = defaultdict(list)
        self._report = FsckReport()
        self._named: set[bytes] = set()

    def run(self) -> FsckReport:
        self._check_catalog()
        try:
            with self._handle.catalog.reading() as view:
                entries = list(view.iter_snapshots())
                moved = {s.pack: s.target for s in view.pack_states(None) if s.mark == PackMark.RELOCATED}
                pages = list(view.iter_pages())
        except VStoreError as error:
            self._damage("catalog", str(error), "the whole repository")
            return self._report
        for ref in pages:
            self._want_blob(ref, "a page of the catalog")
        self._check_snapshots(entries)
        self._check_packs({pack: target for pack, target in moved.items() if target is not None})
        return self._report

    def _damage(self, place: str, problem: str, affects: str) -> None:
        self._report.damages.append(Damage(place, problem, affects))

    def _check_catalog(self) -> None:
        for problem in self._handle.catalog.check():
            self._damage("catalog", problem, "refs and history")

    # --- trees -----------------------------------------------------------------------------------------------

    def _check_snapshots(self, entries: list[SnapshotEntry]) -> None:
        walk = Walk(self._blobs)
        for number, entry in enumerate(entries):
            self._progress(number, len(entries), "snapshots")
            self._report.snapshots += 1
            for found in walk.snapshot(entry):
                self._take(found, entry)

    def _take(self, found: NeededBlob | NeededChunks | Unreadable, entry: SnapshotEntry) -> None:
        where = f"snapshot {entry.id.hex()[:12]}"
        if isinstance(found, Unreadable):
            self._named.add(found.blob.ref.digest)
            self._damage(pack_name(found.blob.ref.pack), str(found.error), f"{found.blob.what}, {where}")
        elif isinstance(found, NeededBlob):
            self._want_blob(found.ref, f"{found.what}, {where}")
        else:
            for pack, rows in found.by_pack():
                wanted = _Wanted(
                    found.digests[rows],
                    found.offsets[rows],
                    found.lengths[rows],
                    _chunk_describer(found, rows, where),
                )
                self._wanted[pack].append(wanted)

    def _want_blob(self, ref: BlobRef, what: str) -> None:
        wanted = _Wanted(
            np.frombuffer(ref.digest, dtype=np.uint8).reshape(1, -1),
            np.array([ref.offset], dtype=np.uint64),
            np.array([ref.length], dtype=np.uint64),
            lambda row: what,
        )
        self._wanted[ref.pack].append(wanted)

    # --- packs -----------------------------------------------------------------------------------------------

    def _check_packs(self, moved: dict[PackId, PackId]) -> None:
        present = {
            pack for info in self._handle.storage.list(PACK_PREFIX) if (pack := parse_pack_name(info.name))
        }
        self._report.packs = len(present)
        needed = {self._place(pack, present, moved) for pack in self._wanted}
        self._report.unreferenced_packs = len(present - needed)
        for number, (pack, wanted) in enumerate(self._wanted.items()):
            self._progress(number, len(self._wanted), "packs")
            self._check_pack(pack, self._place(pack, present, moved), wanted)

    def _place(self, pack: PackId, present: set[PackId], moved: dict[PackId, PackId]) -> PackId:
        """Return the pack that has the blobs of `pack` now."""
        return pack if pack in present else moved.get(pack, pack)

    def _check_pack(self, pack: PackId, place: PackId, wanted: list[_Wanted]) -> None:
        name = pack_name(place)
        try:
            decode_header(self._handle.storage.read(name, 0, HEADER_SIZE))
            footer = self._blobs.read_footer(place)[1]
        except (FormatError, StorageError) as error:
            missing = isinstance(error, ObjectNotFoundError)
            self._damage(name, "is missing" if missing else str(error), _describe_all(wanted))
            if self._data and not missing:
                self._check_without_footer(name, wanted)
            return
        bad = self._bad_blobs(name, footer) if self._data else {}
        rows = {footer.digests[row].tobytes(): row for row in range(len(footer))}
        for group in wanted:
            for row in range(len(group.offsets)):
                self._check_wanted(name, group, row, footer, rows, bad, relocated=place != pack)

    def _check_wanted(
        self,
        name: str,
        group: _Wanted,
        row: int,
        footer: Footer,
        rows: dict[bytes, int],
        bad: dict[bytes, str],
        *,
        relocated: bool,
    ) -> None:
        digest = group.digests[row].tobytes()
        length = int(group.lengths[row])
        self._report.blobs += 1
        self._report.bytes += length
        if digest in self._named:
            return
        found = rows.get(digest)
        if found is None or int(footer.lengths[found]) != length:
            self._damage(name, f"has no blob {digest.hex()} of {length} bytes", group.describe(row))
        elif not relocated and not self._is_at(footer, digest, int(group.offsets[row])):
            problem = f"does not have blob {digest.hex()} at {int(group.offsets[row])}"
            self._damage(name, problem, group.describe(row))
        elif digest in bad:
            self._damage(name, bad[digest], group.describe(row))

    def _is_at(self, footer: Footer, digest: bytes, offset: int) -> bool:
        """Tell whether the footer has this blob at `offset`; a pack may hold a blob twice."""
        row = int(np.searchsorted(footer.offsets, np.uint64(offset)))
        return (
            row < len(footer)
            and int(footer.offsets[row]) == offset
            and footer.digests[row].tobytes() == digest
        )

    def _bad_blobs(self, name: str, footer: Footer) -> dict[bytes, str]:
        """Return what is wrong with the blobs of a pack, by digest."""
        bad: dict[bytes, str] = {}
        for row in range(len(footer)):
            digest = footer.digests[row].tobytes()
            problem = self._blob_problem(
                name, Digest(digest), int(footer.offsets[row]), int(footer.lengths[row])
            )
            if problem is not None:
                bad[digest] = problem
        return bad

    def _blob_problem(self, name: str, digest: Digest, offset: int, length: int) -> str | None:
        try:
            stored = self._handle.storage.read(name, offset, length + check_table_size(length))
        except (FormatError, StorageError) as error:
            return str(error)
        if blake3_digest(stored[:length]) != digest:
            return f"blob {digest.hex()} at {offset} does not match its digest"
        if bytes(stored[length:]) != check_table(stored[:length]):
            return f"the checksums of blob {digest.hex()} at {offset} do not match it"
        return None

    def _check_without_footer(self, name: str, wanted: list[_Wanted]) -> None:
        for group in wanted:
            for row in range(len(group.offsets)):
                digest = Digest(group.digests[row].tobytes())
                problem = self._blob_problem(name, digest, int(group.offsets[row]), int(group.lengths[row]))
                if problem is not None:
                    self._damage(name, problem, group.describe(row))


def _chunk_describer(chunks: NeededChunks, rows: npt.NDArray[np.intp], where: str) -> Callable[[int], str]:
    def describe(row: int) -> str:
        index = join_indices(chunks.tile, chunks.positions[rows[row : row + 1]], chunks.extents)[0].tolist()
        return f"chunk {tuple(index)} of array {chunks.path!r}, {where}"

    return describe


def _describe_all(wanted: list[_Wanted]) -> str:
    def each() -> Iterator[str]:
        for group in wanted:
            yield from (group.describe(row) for row in range(len(group.offsets)))

    total = sum(len(group.offsets) for group in wanted)
    shown = [text for text, _ in zip(each(), range(_SHOWN), strict=False)]
    return "; ".join(shown) + (f"; and {total - _SHOWN} more" if total > _SHOWN else "")
