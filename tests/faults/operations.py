"""What is done to a repository while the network fails: one operation each, which may be asked for again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import vstore
from tests.faults.site import EDITS, Site, far_future
from tests.repositories import array_document, commit, write
from vstore.session import Session
from vstore.storage.base import PackPolicy

Act = Callable[[], object]
FOREIGN = {"foreign": b"f" * 2000}
MANY = {
    "b/zarr.json": array_document((12_000,), (1000,)),
    **{f"b/c/{n}": bytes([n]) * 1000 for n in range(12)},
}


@dataclass(frozen=True)
class Operation:
    """`prepare` gets the repository ready and returns what is to be tried, and tried again after an error.

    With `is_repeatable` a second run may add operations to the log that the first one added too: it goes on where that
    one stopped. `refusal` is what it always raises, if nothing else goes wrong.
    """

    prepare: Callable[[vstore.Repository, Site, str], Act]
    original: str = "plain"
    is_repeatable: bool = False
    refusal: type[vstore.VStoreError] | None = None
    probes: bool = False
    """Whether the storage is tried out first, in some 15 requests."""


class Steps:
    """Acts of which those that are done are not done again."""

    def __init__(self, *steps: Act) -> None:
        self._steps = list(steps)
        self._result: object = None

    def __call__(self) -> object:
        while self._steps:
            self._result = self._steps[0]()
            del self._steps[0]
        return self._result


def _session(repository: vstore.Repository, edits: Mapping[str, bytes] = EDITS) -> Session:
    session = repository.writable_session("main")
    write(session, edits)
    return session


def _commit(repository: vstore.Repository, site: Site, folder: str) -> Act:
    session = _session(repository)
    return lambda: session.commit("the change")


def _commit_at_once(repository: vstore.Repository, site: Site, folder: str) -> Act:
    """By a handle that has not written yet, so that the storage is tried out."""
    session: list[Session] = []

    def start() -> None:
        session[:] = [repository.writable_session("main")]
        write(session[0], EDITS)

    return Steps(start, lambda: session[0].commit("the change"))


def _amend(repository: vstore.Repository, site: Site, folder: str) -> Act:
    session = _session(repository)
    return lambda: session.amend("the change")


def _flush(repository: vstore.Repository, site: Site, folder: str) -> Act:
    session = _session(repository)
    return lambda: session.flush("the change")


def _commit_many(repository: vstore.Repository, site: Site, folder: str) -> Act:
    """With packs that are sealed before the commit, so that the session registers."""
    storage = repository.handle.storage
    storage.pack_policy = PackPolicy(target_bytes=5000, buffer_bytes=3000, direct_bytes=None)
    session = repository.writable_session("main")
    return Steps(lambda: write(session, MANY), lambda: session.commit("the change"))


def _rebase(repository: vstore.Repository, site: Site, folder: str) -> Act:
    session = _session(repository)
    with site.open(folder) as other:
        commit(other, FOREIGN, "by somebody else")
    return lambda: session.commit("the change", rebase_with="fail")


def _conflict(repository: vstore.Repository, site: Site, folder: str) -> Act:
    session = _session(repository)
    with site.open(folder) as other:
        commit(other, FOREIGN, "by somebody else")
    return lambda: session.commit("the change")


def _create_branch(repository: vstore.Repository, site: Site, folder: str) -> Act:
    head = repository.lookup_branch("main")
    return lambda: repository.create_branch("new", head)


def _reset_branch(repository: vstore.Repository, site: Site, folder: str) -> Act:
    head = repository.lookup_branch("main")
    parent = repository.lookup_snapshot(head).parent_ids[0]
    return lambda: repository.reset_branch("main", parent, from_snapshot_id=head)


def _create_tag(repository: vstore.Repository, site: Site, folder: str) -> Act:
    head = repository.lookup_branch("main")
    return lambda: repository.create_tag("v2", head)


def _save_config(repository: vstore.Repository, site: Site, folder: str) -> Act:
    handle = repository.handle
    changed = vstore.Repository(handle.with_config(vstore.RepositoryConfig(inline_chunk_threshold_bytes=100)))
    return changed.save_config


def _unprotect(repository: vstore.Repository, site: Site, folder: str) -> Act:
    with site.open(folder) as other:
        other.protect_branch("release")
    return lambda: repository.unprotect_branch("release")


def _lease(repository: vstore.Repository, site: Site, folder: str) -> Act:
    session = repository.readonly_session("main")
    return lambda: session.renew_lease(timedelta(days=1))


def _end_lease(repository: vstore.Repository, site: Site, folder: str) -> Act:
    lease = repository.readonly_session("main", lease=timedelta(days=1)).lease
    assert lease is not None
    return lambda: repository.abandon_session(lease)


OPERATIONS = {
    "commit": Operation(_commit),
    "commit at once": Operation(_commit_at_once, probes=True),
    "commit many packs": Operation(_commit_many),
    "amend": Operation(_amend),
    "flush": Operation(_flush),
    "commit on top": Operation(_rebase),
    "commit refused": Operation(_conflict, refusal=vstore.ConflictError),
    "create branch": Operation(_create_branch),
    "delete branch": Operation(lambda repository, *_: lambda: repository.delete_branch("old")),
    "reset branch": Operation(_reset_branch),
    "create tag": Operation(_create_tag),
    "delete tag": Operation(lambda repository, *_: lambda: repository.delete_tag("v1")),
    "protect": Operation(lambda repository, *_: lambda: repository.protect_branch("main")),
    "save config": Operation(_save_config),
    "set metadata": Operation(lambda repository, *_: lambda: repository.set_metadata({"a": 1})),
    "update metadata": Operation(lambda repository, *_: lambda: repository.update_metadata({"b": 2})),
    "undo": Operation(lambda repository, *_: lambda: repository.undo()),
    "restore": Operation(lambda repository, *_: lambda: repository.restore(1)),
    "unprotect": Operation(_unprotect),
    "set status": Operation(lambda repository, *_: lambda: repository.set_status("online", reason="as ever")),
    "merge": Operation(lambda repository, *_: lambda: repository.merge("side")),
    "cherry-pick": Operation(lambda repository, *_: lambda: repository.cherry_pick("side")),
    "merge squashed": Operation(lambda repository, *_: lambda: repository.merge("side", squash=True)),
    "fast-forward": Operation(lambda repository, *_: lambda: repository.merge("main", into="old")),
    "revert": Operation(lambda repository, *_: lambda: repository.revert("main")),
    "lease": Operation(_lease),
    "end lease": Operation(_end_lease),
    "expire": Operation(
        lambda repository, *_: lambda: repository.expire_snapshots(far_future()),
        "garbage",
        is_repeatable=True,
    ),
    "collect": Operation(
        lambda repository, *_: lambda: repository.garbage_collect(far_future()), "garbage", is_repeatable=True
    ),
    "compact": Operation(lambda repository, *_: lambda: repository.compact(), "garbage", is_repeatable=True),
}
