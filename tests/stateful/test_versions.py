"""A session's store against a dict, and every committed version against what the dict held then.

Keys are chosen so that documents, chunks of all encodings, and plain values meet in every order.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import vstore
from tests.repositories import quick_folder
from vstore.ops.fsck import check
from vstore.storage.base import PackPolicy
from vstore.storage.local import LocalStorage
from vstore.worktree import spilling
from vstore.worktree.listing import iter_keys, list_folder, size_below

PATHS = ["", "a", "g", "g/a", "g/b", "deep/er/x"]
GROUP_3 = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
GROUP_2 = b'{"zarr_format": 2}'
FUTURE = datetime(2100, 1, 1, tzinfo=UTC)


def array_3(shape: tuple[int, ...], encoding: str, separator: str, dtype: str) -> bytes:
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(shape)}},
            "chunk_key_encoding": {"name": encoding, "configuration": {"separator": separator}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
        }
    ).encode()


def array_2(shape: tuple[int, ...], separator: str) -> bytes:
    fields = {"zarr_format": 2, "shape": shape, "chunks": [1] * len(shape), "dtype": "<i4", "order": "C"}
    return json.dumps(
        {**fields, "dimension_separator": separator, "compressor": None, "filters": None}
    ).encode()


shapes = st.sampled_from([(), (3,), (5,), (2, 3), (4, 2)])
documents = st.one_of(
    st.tuples(st.just("zarr.json"), st.just(GROUP_3)),
    st.tuples(st.just(".zgroup"), st.just(GROUP_2)),
    st.tuples(st.just(".zattrs"), st.sampled_from([b"{}", b'{"a": 1}', b"not json"])),
    st.tuples(st.just("zarr.json"), st.just(b"not json")),
    st.tuples(
        st.just("zarr.json"),
        st.builds(
            array_3,
            shapes,
            st.sampled_from(["default", "v2"]),
            st.sampled_from(["/", "."]),
            st.sampled_from(["int32", "int8"]),
        ),
    ),
    st.tuples(st.just(".zarray"), st.builds(array_2, shapes, st.sampled_from(["/", "."]))),
)
index_parts = st.lists(st.integers(0, 5).map(str), min_size=1, max_size=2)
chunk_names = st.one_of(
    index_parts.map("/".join),
    index_parts.map(".".join),
    index_parts.map(lambda parts: "/".join(["c", *parts])),
    index_parts.map(lambda parts: ".".join(["c", *parts])),
    st.sampled_from(["c", "0", "x", "c/01", "foo/bar"]),
)
contents = st.builds(
    lambda seed, size: np.random.default_rng(seed).bytes(size),
    st.integers(0, 3),
    st.sampled_from([1, 40, 512, 513, 3000, 70_000]),
)


def join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


class Versions(RuleBasedStateMachine):
    """One branch, one session at a time; `model` is what the session should hold."""

    catalog: str | None = None
    committed = Bundle("committed")

    @initialize()
    def start(self) -> None:
        self.folder = quick_folder()
        self.location: Any = self.folder.__enter__() / "repository"
        self.repository = vstore.Repository.create(self.location, catalog=self.catalog)
        self.session = self.repository.writable_session("main")
        self.model: dict[str, bytes] = {}
        self.base: dict[str, bytes] = {}
        self.expired: set[str] = set()

    def teardown(self) -> None:
        if hasattr(self, "repository"):
            assert check(self.repository, data=True).damages == []
            # It may be writing behind still.
            self.session.close()
            self.repository.close()
            self.folder.__exit__(None, None, None)

    def set(self, key: str, value: bytes) -> None:
        try:
            self.session.tree.set(key, value)
        except vstore.InvalidInputError:
            # Under a valid array a key with a wrong rank or outside the grid is refused: nothing changes.
            return
        self.model[key] = value
        if key.rpartition("/")[2] in ("zarr.json", ".zarray"):
            self.drop_outside(key.rpartition("/")[0])

    def drop_outside(self, path: str) -> None:
        """A smaller grid drops the chunks outside it: take over what the store says, which must not be more."""
        now = set(iter_keys(self.session.tree, ""))
        assert now <= set(self.model)
        for key in set(self.model) - now:
            assert key.startswith(path)
            assert key.rpartition("/")[2] not in ("zarr.json", ".zarray", ".zgroup", ".zattrs")
            del self.model[key]

    @rule(path=st.sampled_from(PATHS), document=documents)
    def set_document(self, path: str, document: tuple[str, bytes]) -> None:
        self.set(join(path, document[0]), document[1])

    @rule(path=st.sampled_from(PATHS), name=chunk_names, value=contents)
    def set_chunk(self, path: str, name: str, value: bytes) -> None:
        self.set(join(path, name), value)

    @rule(path=st.sampled_from(PATHS), names=st.lists(chunk_names, max_size=6), value=contents)
    def set_chunks(self, path: str, names: list[str], value: bytes) -> None:
        for number, name in enumerate(names):
            self.set(join(path, name), value + bytes([number]))

    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([*sorted(self.model), "absent", "a/c/99"]))
        self.session.tree.delete(key)
        self.model.pop(key, None)

    @rule(folder=st.sampled_from([*PATHS, "a/c", "g/a/c", "a/1", "deep"]))
    def delete_folder(self, folder: str) -> None:
        self.session.tree.delete_folder(folder)
        prefix = f"{folder}/" if folder else ""
        self.model = {key: value for key, value in self.model.items() if not key.startswith(prefix)}

    @rule(target=committed, amend=st.booleans())
    def commit(self, amend: bool) -> Any:
        head = self.session.snapshot_id
        changed = self.model != self.base
        # The status compares by content; a node that was made anew under another id also counts.
        assert self.session.has_uncommitted_changes or not changed
        if self.session.tree.mutations == 0:
            self.session.commit("nothing", allow_empty=True)
        elif amend and self.repository.lookup_snapshot(head).parent_id is not None:
            self.session.amend("amended")
        else:
            made = self.session.commit("a commit")
            assert made != head or not changed
        version = (self.session.snapshot_id, dict(self.model))
        self.base = dict(self.model)
        self.session = self.repository.writable_session("main")
        return version

    @rule(target=committed)
    def flush(self) -> Any:
        version = (self.session.flush("kept aside"), dict(self.model))
        self.session = self.repository.writable_session("main")
        self.model = dict(self.base)
        return version

    @rule()
    def discard(self) -> None:
        self.session.discard_changes()
        self.model = dict(self.base)

    @rule()
    def reopen(self) -> None:
        self.repository.close()
        self.repository = vstore.Repository.open(self.location)
        self.session.close()
        self.session = self.repository.writable_session("main")
        self.model = dict(self.base)

    @rule(last=st.integers(1, 3), gc=st.booleans())
    def expire(self, last: int, gc: bool) -> None:
        policy = vstore.RetentionPolicy(keep_last=last, unreachable_after=timedelta(0))
        report = self.repository.expire_snapshots(policy=policy)
        kept = [info.id for info in self.repository.ancestry(branch="main")]
        assert not set(kept) & self.expired
        assert len(kept) == report.retained <= last
        self.expired.update(report.snapshots)
        if gc:
            # Whatever the session holds that is not committed yet stays.
            self.repository.garbage_collect(FUTURE)

    @rule(version=committed)
    def read_version(self, version: tuple[str, dict[str, bytes]]) -> None:
        if version[0] in self.expired:
            with pytest.raises(vstore.SnapshotExpiredError, match=version[0]):
                self.repository.readonly_session(snapshot_id=version[0])
            return
        tree = self.repository.readonly_session(snapshot_id=version[0]).tree
        self.compare(tree, version[1])

    @precondition(lambda self: hasattr(self, "session"))
    @invariant()
    def same_as_model(self) -> None:
        self.compare(self.session.tree, self.model)

    def compare(self, tree: Any, model: dict[str, bytes]) -> None:
        listed = list(iter_keys(tree, ""))
        assert sorted(listed) == sorted(model)
        for key, value in model.items():
            assert tree.read(key) == value, key
            assert tree.size(key) == len(value)
        for folder in [*PATHS, "a/c", "deep"]:
            prefix = f"{folder}/" if folder else ""
            below = {key: value for key, value in model.items() if key.startswith(prefix)}
            assert list_folder(tree, folder) == {key[len(prefix) :].partition("/")[0] for key in below}
            assert size_below(tree, folder) == sum(map(len, below.values()))
            assert sorted(iter_keys(tree, prefix)) == sorted(below)


class LogVersions(Versions):
    """The same with a log catalog."""

    catalog = "log"


def test_versions_with_the_sqlite_catalog() -> None:
    run_state_machine_as_test(Versions)


def test_versions_with_the_log_catalog() -> None:
    run_state_machine_as_test(LogVersions)


def test_versions_of_sessions_that_keep_nothing_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with pending refs that are spilled at each edit, and packs that are sealed after a chunk or two."""
    monkeypatch.setattr(spilling, "MAX_PENDING_BYTES", 1)
    monkeypatch.setattr(spilling, "_EDIT_BYTES", 1)
    monkeypatch.setitem(spilling.spill.__kwdefaults__, "fewest_refs", 1)
    monkeypatch.setattr(LocalStorage, "pack_policy", PackPolicy(3000, 1000, 64 * 1024))
    run_state_machine_as_test(Versions)
