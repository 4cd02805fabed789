"""The commit protocol: outcomes that are unknown, registration, interrupts."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

import vstore
from vstore import commit as commit_module
from vstore.ops.fsck import check
from vstore.repository.creation import ROOT_MESSAGE
from vstore.storage.base import PackPolicy


@pytest.fixture(params=["sqlite", "log"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> vstore.Repository:
    return vstore.Repository.create(tmp_path / "repository", catalog=request.param)


def messages(repository: vstore.Repository) -> list[str]:
    return [info.message for info in repository.ancestry(branch="main")]


def lose_reply(monkeypatch: pytest.MonkeyPatch, *, applied: bool) -> None:
    publish = commit_module.publish

    def lossy(*args: Any) -> Any:
        if applied:
            publish(*args)
        raise vstore.CommitOutcomeUnknownError("the reply is lost")

    monkeypatch.setattr(commit_module, "publish", lossy)


@pytest.mark.parametrize("applied", [False, True])
def test_committing_again_settles_an_unknown_outcome(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, applied: bool
) -> None:
    session = repository.writable_session("main")
    session.tree.set("key", b"value")
    with monkeypatch.context() as patch:
        lose_reply(patch, applied=applied)
        with pytest.raises(vstore.CommitOutcomeUnknownError):
            session.commit("once")
    assert session.commit("once") == repository.lookup_branch("main")
    assert messages(repository) == ["once", ROOT_MESSAGE]


def test_what_was_written_after_a_commit_that_landed_unseen_is_not_dropped(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = repository.writable_session("main")
    session.tree.set("key", b"value")
    with monkeypatch.context() as patch:
        lose_reply(patch, applied=True)
        with pytest.raises(vstore.CommitOutcomeUnknownError):
            session.commit("first")
    session.tree.set("key", b"later")
    with pytest.raises(vstore.SessionStateError, match="landed as"):
        session.commit("second")
    kept = session.flush("kept")
    assert repository.readonly_session(snapshot_id=kept).tree.read("key") == b"later"
    assert repository.readonly_session("main").tree.read("key") == b"value"


def open_sessions(repository: vstore.Repository) -> int:
    with repository.handle.catalog.reading() as view:
        return len(list(view.iter_sessions()))


@pytest.mark.parametrize("ending", ["commit", "flush", "close", "unchanged"])
def test_a_session_that_seals_packs_early_is_registered_until_it_ends(
    repository: vstore.Repository, ending: str
) -> None:
    first = repository.writable_session("main")
    first.tree.set("kept", b"k" * 5000)
    first.commit("base")
    repository.handle.storage.pack_policy = PackPolicy(20_000, 2_000, 1_000)
    session = repository.writable_session("main")
    for number in range(20):
        session.tree.set(f"key{number}", bytes([number]) * 5000)
    session.tree.writer.flush()
    assert open_sessions(repository) == 1
    if ending == "unchanged":
        for number in range(20):
            session.tree.delete(f"key{number}")
        assert session.commit("nothing new") == first.snapshot_id
    elif ending == "close":
        session.close()
    else:
        getattr(session, ending)("done")
    assert open_sessions(repository) == 0
    assert check(repository, data=True).is_clean


def test_an_interrupt_does_not_cut_a_commit(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    import _thread

    publish = commit_module.publish
    interrupted = threading.Event()

    def slow(*args: Any) -> Any:
        _thread.interrupt_main()
        interrupted.wait(0.3)
        return publish(*args)

    session = repository.writable_session("main")
    session.tree.set("key", b"value")
    # The tests may run where interrupts are ignored, as in the background of a shell.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(commit_module, "publish", slow)
            with pytest.raises(KeyboardInterrupt):
                session.commit("through")
    finally:
        signal.signal(signal.SIGINT, before)
    assert messages(repository)[0] == "through"
    assert session.read_only
    assert session.snapshot_id == repository.lookup_branch("main")


def test_what_another_thread_writes_during_a_commit_is_refused(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = commit_module.publish
    session = repository.writable_session("main")
    session.tree.set("key", b"value")
    store = session.store

    def meanwhile(*args: Any) -> Any:
        with pytest.raises(vstore.SessionStateError, match="being committed"):
            store.session.tree_for_writing().set("late", b"late")
        return publish(*args)

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "publish", meanwhile)
        session.commit("done")
    with pytest.raises(vstore.ReadOnlyError):
        store.session.tree_for_writing().set("late", b"late")
    assert repository.readonly_session("main").tree.read("late") is None
