"""What fsck notices must not depend on what its process has in memory."""

from __future__ import annotations

from pathlib import Path

from tests.repositories import GROUP, Place, quick_folder, write
from vstore.ops.fsck import check


def test_metadata_that_this_process_wrote_is_read_from_storage() -> None:
    """A commit keeps its pages in the cache: that they are right there says nothing of the pack."""
    with quick_folder() as folder, Place.new("sqlite", folder).create() as repository:
        with repository.writable_session("main") as session:
            write(session, {"zarr.json": GROUP, "value": b"x"})
            session.commit("a group")
        with repository.handle.catalog.reading() as view:
            newest = max(view.iter_snapshots(), key=lambda entry: entry.time_us)
        (pack,) = Path(folder).rglob(f"*{newest.ref.pack.hex()}*")
        data = bytearray(pack.read_bytes())
        # The page of the hierarchy is the first of the commit's metadata blobs.
        data[newest.stretch_offset + newest.stretch_length // 8] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)
        assert not check(repository).is_clean
