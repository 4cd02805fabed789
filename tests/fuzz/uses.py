"""A small repository with something of everything in it, and everything that can be done with one that is not trusted.

A use of a crafted repository succeeds or raises an error of vstore's own; it stays within bounds, and outside the
repository's folder nothing changes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

import vstore
import vstore.clock
from tests.repositories import GROUP, array_document, write
from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.errors import InternalError, VStoreError
from vstore.format.refs import BlobRef
from vstore.worktree.listing import iter_folder, iter_keys, size_below

FAR = vstore.clock.to_datetime(4_000_000_000_000_000)
MOST_KEYS = 200
MOST_READS = 5_000
"""Of metadata blobs by one use: the repository has about fifty."""


def build(folder: Path, catalog: str) -> None:
    """Make the repository: three commits, two branches, a tag, a lease, arrays with a tile tree and with few tiles."""
    repository = vstore.Repository.create(folder, catalog=catalog)
    session = repository.writable_session("main")
    write(
        session,
        {
            "zarr.json": GROUP,
            "few/zarr.json": array_document((40,)),
            **{f"few/c/{i}": hashlib.sha256(bytes([i])).digest()[: i % 30 + 1] for i in range(40)},
            "many/zarr.json": array_document((10**6, 3)),
            **{f"many/c/{i}/1": bytes(600) + bytes([i % 250]) for i in range(0, 10**6, 99_991)},
            "scalar/zarr.json": array_document(()),
            "scalar/c": b"1",
            "notes.txt": b"a plain value",
        },
    )
    first = session.commit("the first", metadata={"by": "hand"})
    repository.create_tag("v1", first)
    repository.create_branch("side", first)
    for branch in ("main", "side"):
        session = repository.writable_session(branch)
        write(session, {f"few/c/{i}": branch.encode() for i in range(3)} | {f"{branch}/zarr.json": GROUP})
        if branch == "main":
            session.store.set_virtual_refs_arr(
                "few", (1,), ["file:///nowhere/a.nc"], np.array([10]), np.array([20]), arr_offset=(9,)
            )
        session.commit(f"on {branch}")
    repository.set_metadata({"title": "small"})
    repository.save_config()
    repository.protect_branch("release")
    repository.close()


def read_all(repository: vstore.Repository) -> None:
    tree = repository.readonly_session("main").tree
    for key in islice(iter_keys(tree, ""), MOST_KEYS):
        tree.read(key)


def list_folders(repository: vstore.Repository) -> None:
    tree = repository.readonly_session("main").tree
    for folder in ("", "few", "few/c", "many/c", "scalar"):
        list(islice(iter_folder(tree, folder), MOST_KEYS))
    size_below(tree, "")


def look_around(repository: vstore.Repository) -> None:
    for names in (repository.list_branches(), repository.list_tags(), repository.list_protected_branches()):
        assert isinstance(names, set)
    list(islice(repository.ancestry(branch="main"), 50))
    list(islice(repository.ops_log(), 50))
    assert isinstance(repository.metadata, dict)
    assert isinstance(repository.status, str)
    repository.list_leases()
    repository.list_sessions()
    str(repository.ancestry_graph())


def go_back(repository: vstore.Repository) -> None:
    repository.readonly_session("main", as_of=FAR)
    repository.readonly_session("main", as_of=vstore.clock.to_datetime(1_000_000))


def compare(repository: vstore.Repository) -> None:
    repository.diff(from_tag="v1", to_branch="main")
    list(islice(repository.log("few", branch="main"), 10))


def merge(repository: vstore.Repository) -> None:
    repository.merge("side", into="main", message="merged")


def edit(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(
        session, {"few/c/5": b"5", "many/c/0/1": b"x", "many/c/999999/2": b"y" * 700, "new/zarr.json": GROUP}
    )
    session.commit("an edit")


def delete_group(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    session.tree_for_writing().delete_folder("many")
    session.commit("less")


USES: dict[str, Callable[[vstore.Repository], object]] = {
    "read": read_all,
    "list": list_folders,
    "look": look_around,
    "as of": go_back,
    "compare": compare,
    "merge": merge,
    "edit": edit,
    "delete": delete_group,
    "gc dry": lambda r: r.garbage_collect(FAR, dry_run=True),
    "gc": lambda r: r.garbage_collect(FAR),
    "expire": lambda r: r.expire_snapshots(FAR, dry_run=True),
    "compact": lambda r: r.compact(dry_run=True),
    "rewrite": lambda r: r.rewrite_manifests("rewritten", branch="main"),
    "fsck": lambda r: r.fsck(data=True),
    "stats": lambda r: r.storage_stats(),
    "undo": lambda r: r.undo(),
}


def use(folder: Path, name: str) -> VStoreError | None:
    """Open the repository and use it; return the error of vstore's own, if that is what came of it."""
    CACHE.clear()
    before = outside(folder)
    error = None
    try:
        repository = vstore.Repository.open(folder, author="me")
        try:
            with counted_reads():
                USES[name](repository)
        finally:
            repository.close()
    except VStoreError as caught:
        error = caught
    assert not isinstance(error, InternalError), error
    assert error is None or len(str(error)) < 3000
    assert outside(folder) == before
    return error


def outside(folder: Path) -> dict[str, bytes]:
    """Return all files beside the repository."""
    return {
        str(path): path.read_bytes()
        for path in folder.parent.rglob("*")
        if path.is_file() and not path.is_relative_to(folder)
    }


class TooManyReads(Exception):
    """More metadata was read than a repository of this size can need."""


@contextmanager
def counted_reads(replaced: dict[bytes, bytes] | None = None, most: int = MOST_READS) -> Iterator[list[int]]:
    """Count reads of metadata, and fail when they are too many; some blobs may be `replaced`, by their digests."""
    real = BlobReader.metadata
    count = [0]

    def metadata(reader: BlobReader, ref: BlobRef, what: str, **options: Any) -> memoryview:
        count[0] += 1
        if count[0] > most:
            raise TooManyReads
        if replaced and ref.digest in replaced:
            return memoryview(replaced[ref.digest])
        return real(reader, ref, what, **options)

    BlobReader.metadata = metadata  # type: ignore[method-assign]
    try:
        yield count
    finally:
        BlobReader.metadata = real  # type: ignore[method-assign]


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def packs_in(folder: Path) -> set[str]:
    return {path.name for path in (folder / "packs").rglob("*") if path.is_file()}
