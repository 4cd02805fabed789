"""What is asked for again after its outcome was unknown is found out first, and done once."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

import vstore
from tests.crash.faulty import open_faulty
from tests.repositories import HandClock, Place, commit, contents, write
from vstore.catalog import log_patience
from vstore.catalog.base import Transaction
from vstore.clock import to_datetime
from vstore.format.record import OperationKind
from vstore.handle import Doubts
from vstore.ids import new_transaction_id
from vstore.keys.objects import LOG_PREFIX, log_name
from vstore.ops.fsck import check
from vstore.storage.base import PackPolicy
from vstore.storage.objects import ObjectStorage
from vstore.testing.faults import Fault, FaultPlan, FaultyStorage

Ask = Callable[[vstore.Repository], Callable[[], object]]


def _reset(repository: vstore.Repository) -> Callable[[], object]:
    head = repository.lookup_branch("main")
    parent = repository.lookup_snapshot(head).parent_ids[0]
    return lambda: repository.reset_branch("main", parent, from_snapshot_id=head)


def _create_branch(repository: vstore.Repository) -> Callable[[], object]:
    head = repository.lookup_branch("main")
    return lambda: repository.create_branch("new", head)


def _create_tag(repository: vstore.Repository) -> Callable[[], object]:
    head = repository.lookup_branch("main")
    return lambda: repository.create_tag("new", head)


def _lease(repository: vstore.Repository) -> Callable[[], object]:
    session = repository.readonly_session("main")
    return lambda: session.renew_lease(timedelta(days=1))


def _commit(repository: vstore.Repository) -> Callable[[], object]:
    session = repository.writable_session("main")
    session.tree_for_writing().set("mine", b"m")
    return lambda: session.commit("in doubt", rebase_with="fail")


def _amend(repository: vstore.Repository) -> Callable[[], object]:
    session = repository.writable_session("main")
    session.tree_for_writing().set("mine", b"m")
    return lambda: session.amend("in doubt")


def _abandon(repository: vstore.Repository) -> Callable[[], object]:
    lease = repository.readonly_session("main", lease=timedelta(days=1)).lease
    assert lease is not None
    return lambda: repository.abandon_session(lease)


ASKED: dict[str, Ask] = {
    "create branch": _create_branch,
    "delete branch": lambda repository: lambda: repository.delete_branch("old"),
    "reset branch": _reset,
    "create tag": _create_tag,
    "delete tag": lambda repository: lambda: repository.delete_tag("v1"),
    "protect": lambda repository: lambda: repository.protect_branch("old"),
    "unprotect": lambda repository: lambda: repository.unprotect_branch("release"),
    "save config": lambda repository: repository.save_config,
    "set metadata": lambda repository: lambda: repository.set_metadata({"a": 1}),
    "update metadata": lambda repository: lambda: repository.update_metadata({"b": 2}),
    "set status": lambda repository: lambda: repository.set_status("read_only"),
    "undo": lambda repository: repository.undo,
    "restore": lambda repository: lambda: repository.restore(1),
    "merge": lambda repository: lambda: repository.merge("side"),
    "fast-forward": lambda repository: lambda: repository.merge("main", into="old"),
    "cherry-pick": lambda repository: lambda: repository.cherry_pick("side"),
    "revert": lambda repository: lambda: repository.revert("main"),
    "lease": _lease,
    "abandon": _abandon,
    "commit": _commit,
    "amend": _amend,
}


class RecordInDoubt(FaultPlan):
    """The first log record meets a fault, and nothing goes through after it, until `mend`.

    After that the request fails before which there were `passing` others.
    """

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.fault = fault
        self.is_broken = self.is_mended = False
        self.passing: int | None = None

    def mend(self) -> None:
        self.is_mended = True

    def _count(self, method: str, name: str) -> Fault | None:
        super()._count(method, name)
        if self.is_mended and self.passing is not None:
            self.passing -= 1
            return Fault.NOT_APPLIED if self.passing == -1 else None
        if self.is_mended:
            return None
        if self.is_broken:
            return Fault.NOT_APPLIED
        self.is_broken = method == "create" and name.startswith(LOG_PREFIX)
        return self.fault if self.is_broken else None


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Place:
    monkeypatch.setattr(log_patience, "MAX_TROUBLES", 1)
    place = Place.new("memory", tmp_path)
    with place.create() as repository:
        first = commit(repository, {"a": b"1"})
        repository.create_branch("old", first)
        repository.create_tag("v1", first)
        repository.protect_branch("release")
        repository.create_branch("side", first)
        with repository.transaction("side", message="beside") as store:
            store.session.tree_for_writing().set("side", b"s")
        commit(repository, {"a": b"2"})
    return place


def kinds(place: Place) -> list[str]:
    with place.open() as repository:
        return [entry.kind for entry in repository.ops_log() if entry.kind != "no-operation"]


@pytest.mark.parametrize("lands", ["before", "at once", "between", "never"])
@pytest.mark.parametrize("name", ASKED)
def test_asking_again_settles_what_was_in_doubt(place: Place, name: str, lands: str) -> None:
    """It landed, or lands when it is asked for again, or only then, or never: it is done once, without an error."""
    plan = RecordInDoubt({"at once": Fault.APPLIED, "never": Fault.LOST}.get(lands, Fault.LATE))
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.catalog.check_writable()
        ask = ASKED[name](repository)
        before = kinds(place)
        plan.is_mended = False
        with pytest.raises(vstore.CommitOutcomeUnknownError):
            ask()
        plan.mend()
        if lands == "before":
            assert plan.land() == 1
        assert len(kinds(place)) - len(before) == (lands in ("at once", "before"))
        ask()
        plan.land()
        assert len(kinds(place)) == len(before) + 1
        assert check(repository).damages == []


def test_what_did_not_last_is_done_anew(place: Place) -> None:
    """Somebody undid it before it was asked for again."""
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository, place.open() as other:
        repository.handle.catalog.check_writable()
        ask = _create_branch(repository)
        plan.is_mended = False
        with pytest.raises(vstore.CommitOutcomeUnknownError):
            ask()
        plan.mend()
        other.delete_branch("new")
        ask()
        assert "new" in other.list_branches()
        # Not in doubt any more: this one is refused like any other.
        with pytest.raises(vstore.RefExistsError):
            ask()


MOVED_ON: dict[str, tuple[Ask, Callable[[vstore.Repository], object]]] = {
    "create branch": (_create_branch, lambda other: _commit_to(other, "new")),
    "create tag": (_create_tag, lambda other: other.delete_tag("new")),
    "delete branch": (
        lambda repository: lambda: repository.delete_branch("old"),
        lambda other: other.create_branch("old", other.lookup_branch("main")),
    ),
    "delete tag": (
        lambda repository: lambda: repository.delete_tag("v1"),
        lambda other: other.create_tag("v1", other.lookup_branch("main"), force=True),
    ),
    "reset branch": (_reset, lambda other: _commit_to(other, "main")),
    "reset whatever there is": (
        lambda repository: lambda: repository.reset_branch("main", repository.lookup_tag("v1")),
        lambda other: _commit_to(other, "main"),
    ),
    "undo": (lambda repository: repository.undo, lambda other: _commit_to(other, "main")),
    "restore": (
        lambda repository: lambda: repository.restore(1),
        lambda other: _commit_to(other, "main"),
    ),
    "fast-forward": (
        lambda repository: lambda: repository.merge("main", into="old"),
        lambda other: _commit_to(other, "old"),
    ),
    "protect": (
        lambda repository: lambda: repository.protect_branch("old"),
        lambda other: other.unprotect_branch("old"),
    ),
    "set metadata": (
        lambda repository: lambda: repository.set_metadata({"a": 1}),
        lambda other: other.set_metadata({"a": 2}),
    ),
    "update metadata": (
        lambda repository: lambda: repository.update_metadata({"a": 1}),
        lambda other: other.update_metadata({"a": 2}),
    ),
}


def _commit_to(repository: vstore.Repository, branch: str) -> None:
    with repository.transaction(branch, message="somebody else's") as store:
        store.session.tree_for_writing().set("theirs", b"t")


def seen(place: Place) -> tuple[object, ...]:
    with place.open() as repository:
        refs = repository.list_branches(), repository.list_tags(), repository.lookup_branch("main")
        return *refs, repository.metadata, repository.list_protected_branches(), kinds(place)


@pytest.mark.parametrize("name", MOVED_ON)
def test_what_others_went_on_from_is_not_done_twice(place: Place, name: str) -> None:
    """It landed unheard; by the time it is asked for again, somebody else has changed the same."""
    ask_of, go_on = MOVED_ON[name]
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository, place.open() as other:
        ask = ask_of(repository)
        in_doubt(place, plan, repository, ask)
        go_on(other)
        theirs = seen(place)
        ask()
        assert seen(place) == theirs


Step = Callable[[], object]


def _main(repository: vstore.Repository) -> str:
    return repository.lookup_branch("main")


def _moves(repository: vstore.Repository) -> tuple[Step, Step]:
    first, head = repository.lookup_tag("v1"), _main(repository)
    return (
        lambda: repository.reset_branch("main", first),
        lambda: repository.reset_branch("main", head),
    )


def _picks(repository: vstore.Repository) -> tuple[Step, Step]:
    side = repository.lookup_branch("side")
    return (
        lambda: repository.cherry_pick(side, branch="main"),
        lambda: repository.revert(_main(repository), branch="main"),
    )


OWN_WORK: dict[str, Callable[[vstore.Repository], tuple[Step, Step]]] = {
    "protect": lambda own: (lambda: own.protect_branch("old"), lambda: own.unprotect_branch("old")),
    "unprotect": lambda own: (lambda: own.unprotect_branch("release"), lambda: own.protect_branch("release")),
    "set metadata": lambda own: (
        lambda: own.set_metadata({"a": 1}),
        lambda: own.set_metadata({"a": 2}),
    ),
    "update metadata": lambda own: (
        lambda: own.update_metadata({"a": 1}),
        lambda: own.set_metadata({"a": 2}),
    ),
    "set status": lambda own: (lambda: own.set_status("read_only"), lambda: own.set_status("online")),
    "create branch": lambda own: (
        lambda: own.create_branch("new", own.lookup_tag("v1")),
        lambda: own.delete_branch("new"),
    ),
    "delete branch": lambda own: (
        lambda: own.delete_branch("old"),
        lambda: own.create_branch("old", own.lookup_tag("v1")),
    ),
    "delete tag": lambda own: (
        lambda: own.delete_tag("v1"),
        lambda: own.create_tag("v1", _main(own), force=True),
    ),
    "reset branch": _moves,
    "cherry-pick": _picks,
    "undo a commit": lambda own: (own.undo, lambda: _commit_to(own, "main")),
    "undo a commit elsewhere": lambda own: (own.undo, lambda: _commit_to(own, "side")),
    "restore": lambda own: (
        lambda: own.restore(5),
        lambda: own.create_branch("new", own.lookup_branch("side")),
    ),
}
"""What is asked for, and what the same user then does to the same."""


def held(repository: vstore.Repository) -> tuple[object, ...]:
    """Return what a change can change, by what branches hold and not by the ids of commits."""
    branches = {name: contents(repository.readonly_session(name)) for name in repository.list_branches()}
    return (
        branches,
        repository.list_tags(),
        repository.metadata,
        repository.list_protected_branches(),
        repository.status,
    )


@pytest.mark.parametrize(
    ("name", "is_heard"),
    # A commit that was not heard of is another session's.
    [(name, heard) for name in OWN_WORK for heard in (True, False) if heard or "commit" not in name],
)
def test_what_the_same_user_changed_since_is_changed_anew(place: Place, name: str, is_heard: bool) -> None:
    """It landed unheard, he went on all the same, heard or not, and then wants it again: he gets it."""
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository, place.open() as other:
        ask, go_on = OWN_WORK[name](repository)
        in_doubt(place, plan, repository, ask)
        if is_heard:
            go_on()
        else:
            in_doubt(place, plan, repository, go_on)
        between, before = held(other), len(kinds(place))
        ask()
        assert held(other) != between
        assert len(kinds(place)) == before + 1


def test_a_commit_found_to_have_landed_overtakes_only_what_came_before_it(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        first = repository.lookup_tag("v1")
        session = repository.writable_session("main")
        session.tree_for_writing().set("mine", b"m")
        in_doubt(place, plan, repository, lambda: repository.create_tag("new", first))
        in_doubt(place, plan, repository, lambda: session.commit("mine"))
        in_doubt(place, plan, repository, lambda: repository.reset_branch("main", first))
        before = kinds(place)
        assert repository.lookup_snapshot(session.commit("mine")).message == "mine"
        repository.reset_branch("main", first)
        repository.create_tag("new", first)
        assert kinds(place) == before

        session = repository.writable_session("main")
        session.tree_for_writing().set("mine", b"m")
        in_doubt(place, plan, repository, lambda: repository.reset_branch("main", first))
        session.commit("mine")
        repository.reset_branch("main", first)
        assert repository.lookup_branch("main") == first


@pytest.mark.parametrize("is_heard", [True, False])
@pytest.mark.parametrize("name", ["cherry_pick", "revert"])
def test_what_was_committed_on_top_of_a_pick_does_not_repeat_it(
    place: Place, name: str, is_heard: bool
) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        picked = repository.lookup_branch("main" if name == "revert" else "side")
        in_doubt(place, plan, repository, lambda: getattr(repository, name)(picked, branch="main"))
        made = repository.lookup_branch("main")
        with repository.writable_session("main") as session:
            session.tree_for_writing().set("mine", b"m")
            if is_heard:
                session.commit("on top of it")
            else:
                in_doubt(place, plan, repository, lambda: session.commit("on top of it"))
        committed = repository.lookup_branch("main")
        assert committed != made
        assert getattr(repository, name)(picked, branch="main") == made
        assert repository.lookup_branch("main") == committed


def test_a_commit_of_a_dropped_session_that_was_not_heard_of_counts(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        first = repository.lookup_tag("v1")
        in_doubt(place, plan, repository, lambda: repository.reset_branch("main", first))
        with repository.writable_session("main") as session:
            session.tree_for_writing().set("mine", b"m")
            in_doubt(place, plan, repository, lambda: session.commit("mine"))
        repository.reset_branch("main", first)
        assert repository.lookup_branch("main") == first


def test_a_pattern_protected_since_says_nothing_of_another(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        in_doubt(place, plan, repository, lambda: repository.unprotect_branch("release"))
        repository.protect_branch("old")
        repository.unprotect_branch("release")
        assert repository.list_protected_branches() == {"old"}


def _write_packs(session: vstore.Session, value: int) -> None:
    """Write so much that packs come before the commit, which registers the session."""
    write(session, {f"{number}": bytes([value, number]) * 2500 for number in range(10)})
    session.tree.writer.flush()


@pytest.mark.parametrize("lands", [Fault.APPLIED, Fault.LATE])
def test_a_session_is_registered_again_after_its_changes_were_discarded(place: Place, lands: Fault) -> None:
    plan = RecordInDoubt(lands)
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.storage.pack_policy = PackPolicy(20_000, 2_000, 1_000)
        session = repository.writable_session("main")
        in_doubt(place, plan, repository, session._draft.registration.begin)
        session.discard_changes()
        _write_packs(session, 2)
        plan.land()
        assert len(repository.list_sessions()) == 1
        session.commit("mine")
        assert repository.list_sessions() == []


def test_a_registration_is_ended_although_an_earlier_end_was_in_doubt(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.storage.pack_policy = PackPolicy(20_000, 2_000, 1_000)
        session = repository.writable_session("main")
        _write_packs(session, 1)
        in_doubt(place, plan, repository, session.discard_changes)
        _write_packs(session, 2)
        assert len(repository.list_sessions()) == 1
        session.close()
        assert repository.list_sessions() == []


def test_a_registration_whose_end_was_in_doubt_is_not_believed(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.storage.pack_policy = PackPolicy(20_000, 2_000, 1_000)
        session = repository.writable_session("main")
        _write_packs(session, 1)
        in_doubt(place, plan, repository, session.discard_changes)
        # Too little to be registered for: an end that was heard of would be no other.
        session.tree_for_writing().set("mine", b"m")
        session.commit("mine")


@pytest.mark.parametrize("fault", [Fault.APPLIED, Fault.NOT_APPLIED])
def test_a_commit_of_nothing_new_is_over_although_the_registration_may_not_be(
    place: Place, fault: Fault
) -> None:
    plan = RecordInDoubt(fault)
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.storage.pack_policy = PackPolicy(20_000, 2_000, 1_000)
        session = repository.writable_session("main")
        _write_packs(session, 1)
        head = session.commit("one")
        session = repository.writable_session("main")
        _write_packs(session, 2)
        _write_packs(session, 1)
        repository.handle.catalog.check_writable()
        plan.is_mended = plan.is_broken = False
        assert session.commit("the same again") == head
        assert plan.is_broken
        plan.mend()
        # What was written from now on would not be protected.
        assert session.read_only
        session.close()
        assert repository.list_sessions() == []


def test_a_registration_that_a_commit_did_not_know_of_is_ended_by_closing(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        session = repository.writable_session("main")
        in_doubt(place, plan, repository, session._draft.registration.begin)
        session.tree_for_writing().set("mine", b"m")
        session.commit("mine")
        session.close()
        assert repository.list_sessions() == []


def test_closing_again_ends_a_registration_that_closing_could_not_end(place: Place) -> None:
    plan = RecordInDoubt(Fault.LOST)
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.storage.pack_policy = PackPolicy(20_000, 2_000, 1_000)
        session = repository.writable_session("main")
        _write_packs(session, 1)
        plan.is_mended = plan.is_broken = False
        session.close()
        plan.mend()
        assert len(repository.list_sessions()) == 1
        session.close()
        assert repository.list_sessions() == []


def test_a_renewal_in_doubt_does_not_hide_that_the_lease_was_ended(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    hour = timedelta(hours=1)
    with open_faulty(place, plan) as repository, place.open() as other:
        session = repository.readonly_session("main")
        lease = session.renew_lease(hour)
        in_doubt(place, plan, repository, lambda: session.renew_lease(hour))
        other.abandon_session(lease)
        with pytest.raises(vstore.SessionStateError, match="ended by somebody else"):
            session.renew_lease(hour)
        assert other.list_sessions() == []


@pytest.mark.parametrize("is_held", [True, False])
def test_a_lease_in_doubt_lasts_from_when_it_is_asked_for_again(place: Place, is_held: bool) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    hour = timedelta(hours=1)
    with open_faulty(place, plan) as repository:
        clock = repository.handle.clock
        session = repository.readonly_session("main")
        if is_held:
            session.renew_lease(hour)
        in_doubt(place, plan, repository, lambda: session.renew_lease(hour))
        clock.sleep(50 * 60)
        lease = session.renew_lease(hour)
        assert lease.expires_at == to_datetime(clock.now_us()) + hour
        assert repository.list_leases() == [lease]


@pytest.mark.parametrize(
    "ask",
    [
        lambda repository, odd: repository.restore(odd),
        lambda repository, odd: repository.create_branch("new", odd),
        lambda repository, odd: repository.create_tag("new", odd),
        lambda repository, odd: repository.reset_branch("main", odd),
        lambda repository, odd: repository.cherry_pick(odd),
        lambda repository, odd: repository.revert(odd),
        lambda repository, odd: repository.merge(odd),
    ],
)
@pytest.mark.parametrize("odd", [[1], {1: 2}])
def test_what_can_not_be_asked_for_is_said_to_be_wrong(place: Place, ask: Any, odd: object) -> None:
    with place.open() as repository, pytest.raises(vstore.InvalidInputError):
        ask(repository, odd)


def test_a_doubt_about_operation_1_is_none_about_true(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        in_doubt(place, plan, repository, lambda: repository.restore(1))
        with pytest.raises(vstore.InvalidInputError):
            repository.restore(True)


def test_two_who_ask_for_the_same_value_get_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's try falls into doubt just when this one has begun."""
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        check_writable = repository.handle.catalog.check_writable
        others: list[object] = []

        def fall_into_doubt() -> None:
            check_writable()
            if not others:
                others.append("another thread")
                in_doubt(place, plan, repository, lambda: repository.update_metadata({"a": 1}))

        monkeypatch.setattr(repository.handle.catalog, "check_writable", fall_into_doubt)
        assert repository.update_metadata({"a": 1}) == {"a": 1}


def in_doubt(
    place: Place, plan: RecordInDoubt, repository: vstore.Repository, ask: Callable[[], object]
) -> None:
    """Ask for something that lands, and whose outcome is unknown."""
    repository.handle.catalog.check_writable()
    plan.is_mended = plan.is_broken = False
    with pytest.raises(vstore.CommitOutcomeUnknownError):
        ask()
    plan.mend()


@pytest.mark.parametrize("name", ASKED)
def test_what_fails_while_a_doubt_is_settled_leaves_it(place: Place, name: str) -> None:
    """It landed: no error may say that it did not, and it is done once, whichever request fails."""
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        ask = ASKED[name](repository)
        before = kinds(place)
        in_doubt(place, plan, repository, ask)
        for passing in range(40):
            plan.passing = passing
            with contextlib.suppress(vstore.CommitOutcomeUnknownError):
                ask()
                break
        assert plan.passing is not None
        assert plan.passing >= 0, "it went through although a request failed: too few were tried"
        assert len(kinds(place)) == len(before) + 1


def test_a_merge_in_doubt_takes_in_what_came_since(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository, place.open() as other:
        in_doubt(place, plan, repository, lambda: repository.merge("side"))
        with other.transaction("side", message="more") as store:
            store.session.tree_for_writing().set("more", b"m")
        merged = repository.merge("side")
        assert repository.lookup_branch("main") == merged
        assert repository.readonly_session("main").tree.read("more") == b"m"


def test_what_was_found_once_is_not_denied_when_it_can_not_be_looked_for_again(place: Place) -> None:
    """The catalog has answered that it landed, but what became of it can't be seen; then it does not answer."""
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        ask, catalog = _create_branch(repository), repository.handle.catalog
        before = kinds(place)
        in_doubt(place, plan, repository, ask)
        for method in ("reading", "update"):

            def fail(*_: object) -> None:
                raise vstore.StorageError("injected")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(catalog, method, fail)
                with pytest.raises(vstore.CommitOutcomeUnknownError):
                    ask()
        ask()
        assert len(kinds(place)) == len(before) + 1


@pytest.mark.parametrize("name", ["cherry_pick", "revert"])
def test_what_the_branch_has_lost_is_done_anew(place: Place, name: str) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository, place.open() as other:
        head = other.lookup_branch("main")
        picked = head if name == "revert" else other.lookup_branch("side")
        in_doubt(place, plan, repository, lambda: getattr(repository, name)(picked, branch="main"))
        other.reset_branch("main", head)
        made = getattr(repository, name)(picked, branch="main")
        assert repository.lookup_branch("main") == made != head


def test_a_name_that_moved_on_means_something_else(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository, place.open() as other:
        in_doubt(place, plan, repository, lambda: repository.cherry_pick("side", branch="main"))
        with other.transaction("side", message="more") as store:
            store.session.tree_for_writing().set("more", b"m")
        repository.cherry_pick("side", branch="main")
        assert repository.readonly_session("main").tree.read("more") == b"m"


def test_equal_texts_for_different_things_are_not_taken_for_each_other(place: Place) -> None:
    plan = RecordInDoubt(Fault.APPLIED)
    plan.mend()
    with open_faulty(place, plan) as repository:
        metadata = {"availability": "read_only", "reason": None}
        in_doubt(place, plan, repository, lambda: repository.set_metadata(metadata))
        repository.set_status("read_only")
        assert repository.status == "read_only"


@pytest.mark.parametrize("lands", ["before", "at once", "between", "never"])
def test_a_transaction_in_doubt_can_be_asked_for_when_it_is_over(place: Place, lands: str) -> None:
    plan = RecordInDoubt({"at once": Fault.APPLIED, "never": Fault.LOST}.get(lands, Fault.LATE))
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.catalog.check_writable()
        stores = []

        def change() -> None:
            with repository.transaction("main", message="in doubt") as store:
                stores.append(store)
                store.session.tree_for_writing().set("a", b"3")
                plan.is_mended = False

        with pytest.raises(vstore.CommitOutcomeUnknownError):
            change()
        (store,) = stores
        plan.mend()
        if lands == "before":
            plan.land()
        if lands in ("before", "at once"):
            assert store.session.commit("in doubt") == repository.lookup_branch("main")
            assert store.session.tree.read("a") == b"3"
        else:
            with pytest.raises(vstore.ReadOnlyError):
                store.session.commit("in doubt")
        plan.land()
        messages = [info.message for info in repository.ancestry(branch="main")]
        assert messages.count("in doubt") == (lands in ("before", "at once"))
        assert check(repository, data=True).damages == []


def test_doubts_are_bounded_and_do_not_travel() -> None:
    doubts = Doubts()
    transaction = Transaction(new_transaction_id(), 0, OperationKind.COMMIT, 0, "", (), ())
    for number in range(200):
        doubts.note(number, transaction)
    assert [number for number in range(200) if doubts.get(number)] == list(range(200 - 64, 200))
    assert pickle.loads(pickle.dumps(doubts)).get(199) is None


def test_a_lease_or_registration_in_doubt_is_ended_by_closing(place: Place) -> None:
    plan = RecordInDoubt(Fault.LATE)
    plan.mend()
    with open_faulty(place, plan) as repository:
        repository.handle.catalog.check_writable()
        session = repository.readonly_session("main")
        plan.is_mended = False
        with pytest.raises(vstore.CommitOutcomeUnknownError):
            session.renew_lease(timedelta(days=1))
        plan.mend()
        session.close()
        plan.land()
        assert repository.list_sessions() == []

        writer = repository.writable_session("main")
        plan.is_broken = plan.is_mended = False
        with pytest.raises(vstore.CommitOutcomeUnknownError):
            writer._draft.registration.begin()
        plan.mend()
        writer.close()
        plan.land()
        assert repository.list_sessions() == []


def test_who_can_not_find_out_whether_he_made_the_repository_deletes_nothing() -> None:
    """The storage refuses to go on after a record whose reply was lost: its snapshot may be needed."""
    plan = FaultPlan()
    storage = FaultyStorage(ObjectStorage(MemoryStore()), plan)
    inner_create, made = storage.create, []

    def create(name: str, data: bytes) -> None:
        if name == log_name(0):
            made.append(name)
            if len(made) > 1:
                raise vstore.UnsafeStorageError("injected: no more conditional writes")
            plan.inject(len(plan.requests), Fault.LATE)
        inner_create(name, data)

    storage.create = create  # type: ignore[method-assign]
    with pytest.raises(vstore.CommitOutcomeUnknownError):
        vstore.Repository.create(storage, clock=HandClock())
    assert plan.land() == 1
    with vstore.Repository.open(storage.inner) as repository:
        assert check(repository, data=True).damages == []
