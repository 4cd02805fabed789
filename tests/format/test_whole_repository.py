"""A whole repository, written through zarr, read by the independent reader and by vstore: the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

import vstore
from tests.format.independent_reader import read_snapshot
from vstore.keys.objects import pack_name
from vstore.keys.zarr import join_key
from vstore.worktree.listing import iter_keys


def make_history(repository: vstore.Repository) -> list[str]:
    """Commit arrays of all kinds, edits, a resize and a deletion; return the snapshots."""
    rng = np.random.default_rng(0)
    made = []
    session = repository.writable_session("main")
    group = zarr.open_group(session.store, mode="a", zarr_format=3)
    group.attrs["note"] = "x" * 6000
    many = group.create_array("g/many", shape=(90_000,), chunks=(1,), dtype="i2", compressors=None)
    many[:400] = np.arange(400)
    many[80_000:80_010] = 7
    large = group.create_array("large", shape=(4, 90_000), chunks=(1, 90_000), dtype="u1", compressors=None)
    large[:3] = rng.integers(0, 256, (3, 90_000))
    zarr.create_array(session.store, name="v2", shape=(6, 6), chunks=(2, 3), dtype="f4", zarr_format=2)[:] = (
        1.5
    )
    session.tree.set("loose/key", rng.bytes(9000))
    made.append(session.commit("first"))
    for step in range(6):
        session = repository.writable_session("main")
        group = zarr.open_group(session.store, mode="a", zarr_format=3)
        group["g/many"][step * 3] = 1000 + step  # type: ignore[index]
        group["large"][step % 4, :50] = step  # type: ignore[index]
        made.append(session.commit(f"edit {step}"))
    session = repository.writable_session("main")
    group = zarr.open_group(session.store, mode="a", zarr_format=3)
    group["g/many"].resize((30_000,))  # type: ignore[union-attr]
    del group["large"]
    made.append(session.commit("smaller"))
    return made


def test_two_readers_agree_on_every_snapshot(tmp_path: Path) -> None:
    repository = vstore.Repository.create(tmp_path / "repository")
    for snapshot in make_history(repository):
        session = repository.readonly_session(snapshot_id=snapshot)
        with repository.handle.catalog.reading() as view:
            entry = view.snapshot(bytes.fromhex(snapshot))  # type: ignore[arg-type]
        assert entry is not None
        found = read_snapshot(
            lambda pack: (tmp_path / "repository" / pack_name(pack)).read_bytes(), entry.ref
        )
        theirs = {}
        for key, data in found.items():
            if isinstance(key, tuple):
                state = session.tree.nodes.node(key[0])
                assert state is not None
                assert state.array is not None
                assert state.array.spec.encoding is not None
                key = join_key(key[0], state.array.spec.encoding.encode(key[1]))
            theirs[key] = data
        assert theirs == {key: session.tree.read(key) for key in iter_keys(session.tree, "")}
