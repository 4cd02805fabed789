"""Repositories with damage, and copies of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import vstore
from tests.repositories import GROUP, Place, array_document, commit
from vstore.format.pack import Footer
from vstore.ids import PackId
from vstore.keys.objects import pack_name
from vstore.storage.base import Storage


def stored(number: int, size: int = 800) -> bytes:
    """Return a chunk that is too long to be inline."""
    return (number.to_bytes(4, "little") * size)[:size]


def make_arrays(repository: vstore.Repository) -> list[str]:
    """Commit two arrays, and some changes of one."""
    first = {"zarr.json": GROUP, "a/zarr.json": array_document((40, 3)), "b/zarr.json": array_document((9,))}
    first |= {f"a/c/{i}/{j}": stored(3 * i + j) for i in range(20) for j in range(3)}
    first |= {"b/c/4": stored(1000, 200_000), "value": stored(2000, 6000)}
    made = [commit(repository, first, "first")]
    made += [commit(repository, {f"a/c/{30 + i}/1": stored(3000 + i)}, f"change {i}") for i in range(4)]
    return made


def read_pack(storage: Storage, pack: PackId) -> bytes:
    name = pack_name(pack)
    return storage.read_whole(name, storage.size(name) or 0)


def overwrite(storage: Storage, pack: PackId, data: bytes) -> None:
    """Put other bytes in a pack's place, as a broken disk would."""
    storage.write(pack_name(pack), data)
    storage.close()


def flip(storage: Storage, pack: PackId, at: int) -> None:
    """Flip a bit of a pack."""
    data = bytearray(read_pack(storage, pack))
    data[at] ^= 4
    overwrite(storage, pack, bytes(data))


def pack_of(repository: vstore.Repository, snapshot: str) -> PackId:
    """Return the pack with a commit's metadata."""
    with repository.handle.catalog.reading() as view:
        entry = view.snapshot(bytes.fromhex(snapshot))  # type: ignore[arg-type]
    assert entry is not None
    return entry.ref.pack


def footer_of(repository: vstore.Repository, pack: PackId) -> Footer:
    return repository.handle.blobs_for(None).read_footer(pack)[1]


def row_of_length(footer: Footer, length: int) -> int:
    """Return the first row of a blob of this length."""
    return footer.lengths.tolist().index(length)


def copy_of(place: Place, folder: Path) -> Place:
    """Copy a repository, which must not be open for writing, to another place of its kind."""
    if place.kind != "memory":
        target = Place(place.kind, folder / "copy")
        shutil.copytree(place.location, target.location)
        return target
    from obstore.store import MemoryStore

    copied = MemoryStore()
    for batch in place.location.list():
        for meta in batch:
            copied.put(meta["path"], place.location.get(meta["path"]).bytes())
    return Place(place.kind, copied)


def make_even(repository: vstore.Repository) -> list[str]:
    """Commit packs of about equal size, which compact merges; "b/c/4" has 900 bytes."""
    first = {"zarr.json": GROUP, "a/zarr.json": array_document((100,)), "b/zarr.json": array_document((9,))}
    made = []
    for number in range(5):
        chunks = {f"a/c/{20 * number + i}": stored(20 * number + i) for i in range(20)}
        extra = {"b/c/4": stored(1000, 900)} if number == 2 else {}
        made.append(commit(repository, (first if number == 0 else {}) | chunks | extra, f"part {number}"))
    return made
