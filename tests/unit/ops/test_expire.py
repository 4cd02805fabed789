"""expire_snapshots on every kind of storage and catalog: what goes, what wins a race, and what is taken up again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

import vstore
from tests.repositories import HandClock, Place, commit, contents, drop, write
from tests.unit.ops.repositories import FUTURE
from vstore.catalog.base import Applied, OpenSession, Refused, Transaction
from vstore.clock import to_datetime
from vstore.format.record import OperationKind, RefKind, SessionEntry
from vstore.ids import SnapshotId, new_session_id, new_transaction_id
from vstore.ops import expire as expire_module
from vstore.ops.fsck import check
from vstore.retention import RetentionPolicy

HOUR_S = 3600
DAY_S = 24 * HOUR_S
KEEP_ONE = RetentionPolicy(keep_last=1)
Act = Callable[[vstore.Repository], object]


@pytest.fixture
def repository(place: Place, clock: HandClock) -> Iterator[vstore.Repository]:
    with place.create(clock=clock, author="ada") as repository:
        yield repository
        assert check(repository, data=True).damages == []


@pytest.fixture
def made(repository: vstore.Repository, clock: HandClock) -> list[str]:
    """The snapshots of branch main, oldest first, an hour apart; the newest was made just now."""
    made = [repository.lookup_branch("main")]
    for number in range(7):
        clock.sleep(HOUR_S)
        made.append(commit(repository, {"x": b"%d" % number}))
    return made


def at(clock: HandClock, **ago: float) -> datetime:
    return to_datetime(clock.now_us()) - timedelta(**ago)


def retained(repository: vstore.Repository) -> set[str]:
    with repository.handle.catalog.reading() as view:
        return {entry.id.hex() for entry in view.iter_snapshots()}


def newest(repository: vstore.Repository) -> vstore.OperationInfo:
    return next(repository.ops_log())


def just_before_update(repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, *acts: Act) -> None:
    """Let somebody else do each of `acts`, one before each of the next updates."""
    catalog = repository.handle.catalog
    really, left = catalog.update, list(acts)

    def update(transaction: Transaction) -> Any:
        if left and transaction.kind == OperationKind.EXPIRE:
            act = left.pop(0)
            monkeypatch.setattr(catalog, "update", really)
            act(repository)
            monkeypatch.setattr(catalog, "update", update)
        return really(transaction)

    monkeypatch.setattr(catalog, "update", update)


# --- what goes -----------------------------------------------------------------------------------------------


def test_what_is_older_expires_and_the_rest_stays(
    place: Place, repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    cutoff = at(clock, hours=2)
    planned = repository.expire_snapshots(cutoff, dry_run=True)
    assert retained(repository) == set(made)
    assert newest(repository).kind == "commit"
    report = repository.expire_snapshots(cutoff)
    assert report == replace(planned, dry_run=False, freed_bytes=None)
    assert report.snapshots == tuple(made[:5])
    assert (report.retained, report.branches, report.tags, report.held) == (3, (), (), ())
    assert newest(repository).kind == "expire"
    assert (newest(repository).details, newest(repository).author) == ({"snapshots": 5}, "ada")
    with place.open(clock=clock) as opened:
        assert retained(opened) == set(made[5:])
        assert [info.id for info in opened.ancestry(branch="main")] == made[:4:-1]
        assert contents(opened.readonly_session("main")) == {"x": b"6"}
        for gone in made[:5]:
            with pytest.raises(vstore.SnapshotExpiredError, match=gone):
                opened.readonly_session(snapshot_id=gone)
        with pytest.raises(vstore.SnapshotExpiredError, match=made[3]):
            opened.readonly_session("main", as_of=at(clock, hours=4))
        assert contents(opened.readonly_session("main", as_of=at(clock, hours=2))) == {"x": b"4"}
        # Again there is nothing to be done, and nothing is written.
        before = newest(opened)
        assert opened.expire_snapshots(cutoff).snapshots == ()
        assert newest(opened) == before


def test_without_rules_nothing_that_refs_reach_expires(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    clock.sleep(10_000 * DAY_S)
    report = repository.expire_snapshots(delete_expired_tags=True)
    assert (report.snapshots, report.retained) == ((), 8)
    assert retained(repository) == set(made)


def test_a_cutoff_in_the_future_leaves_the_heads(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.create_branch("dev", made[2])
    repository.create_tag("v1", made[3])
    report = repository.expire_snapshots(at(clock, days=-5000))
    assert retained(repository) == {made[2], made[3], made[7]}
    assert [(held.id, held.why) for held in report.held] == [
        (made[2], "branch 'dev' holds it"),
        (made[3], "tag 'v1' holds it"),
        (made[7], "branch 'main' holds it"),
    ]
    commit(repository, {"y": b"1"})
    with repository.writable_session("dev") as session:
        write(session, {"y": b"1"})
        session.commit("on dev")


@pytest.mark.parametrize("naive", [datetime(2024, 1, 1), "2024-01-01", 1_700_000_000])  # noqa: DTZ001
def test_a_naive_cutoff_is_refused(repository: vstore.Repository, naive: Any) -> None:
    with pytest.raises(vstore.InvalidInputError, match="time zone"):
        repository.expire_snapshots(naive)


def test_a_policy_is_saved_with_the_settings_and_holds_for_everybody(
    place: Place, repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    policy = RetentionPolicy(keep_last=2, hourly=4)
    config = replace(repository.config, retention=policy)
    with place.open(config=config, clock=clock) as opened:
        # Not before it is saved: a handle's own settings are no promise of the repository.
        assert opened.expire_snapshots(dry_run=True).snapshots == ()
        opened.save_config()
    with place.open(clock=clock) as opened:
        assert opened.config.retention == policy
    assert repository.config.retention == RetentionPolicy()
    # What the policy keeps stays, whatever the cutoff.
    assert repository.expire_snapshots(at(clock, days=-1), dry_run=True).snapshots == tuple(made[:4])
    assert repository.expire_snapshots(policy=KEEP_ONE, dry_run=True).snapshots == tuple(made[:7])
    assert repository.expire_snapshots().snapshots == tuple(made[:4])


def test_rules_of_a_newer_vstore_are_not_passed_over(
    place: Place, repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = b'{"inline_chunk_threshold_bytes": 512, "retention": {"keep_last": 1, "per_decade": 3}}'
    with monkeypatch.context() as patch:
        patch.setattr(vstore.RepositoryConfig, "to_json", lambda self, stored=None: newer)
        repository.save_config()
    with place.open() as opened:
        assert opened.config.retention == KEEP_ONE
        for dry_run in (True, False):
            with pytest.raises(vstore.UnsupportedFormatError, match="per_decade"):
                opened.expire_snapshots(dry_run=dry_run)
        opened.save_config()
        with pytest.raises(vstore.UnsupportedFormatError, match="per_decade"):
            opened.expire_snapshots()
    assert retained(repository) == set(made)


def test_a_policy_is_a_policy(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.InvalidInputError, match="RetentionPolicy"):
        repository.expire_snapshots(policy={"keep_last": 1})  # type: ignore[arg-type]


def test_all_that_a_protected_branch_reaches_stays(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.create_branch("release/1", made[3])
    repository.protect_branch("release/*")
    report = repository.expire_snapshots(at(clock), delete_expired_branches=True)
    assert report.snapshots == tuple(made[4:7])
    assert {held.why for held in report.held} == {
        "branch 'release/1' holds it",
        "protected branch 'release/1' reaches it",
    }
    repository.unprotect_branch("release/*")
    report = repository.expire_snapshots(at(clock), delete_expired_branches=True)
    assert (report.snapshots, report.branches) == (tuple(made[:4]), ("release/1",))


def test_expired_branches_and_tags_go_with_their_snapshots_on_request(
    place: Place, repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.create_branch("old", made[1])
    with repository.writable_session("old") as session:
        write(session, {"old": b"1"})
        session.commit("on old")
    repository.create_branch("older", made[2])
    repository.create_branch("same", made[2])
    for tag, target in (("v1", made[1]), ("v2", made[2]), ("v3", made[6])):
        repository.create_tag(tag, target)
    young = repository.lookup_branch("old")
    cutoff = at(clock, hours=3.5)
    assert repository.expire_snapshots(cutoff, dry_run=True).snapshots == (made[0], made[3])
    report = repository.expire_snapshots(cutoff, delete_expired_branches=True, delete_expired_tags=True)
    assert (report.branches, report.tags) == (("older", "same"), ("v1", "v2"))
    assert report.snapshots == (made[0], made[3], made[2], made[1])
    assert repository.list_branches() == {"main", "old"}
    assert repository.list_tags() == {"v3"}
    assert retained(repository) == {*made[4:], young}
    with pytest.raises(vstore.RefExistsError, match="force=True"):
        repository.create_tag("v1", made[6])
    changes = {(kind, name, before, after) for kind, name, before, after in newest(repository).changes}
    assert changes == {
        ("branch", "older", made[2], None),
        ("branch", "same", made[2], None),
        ("tag", "v1", made[1], None),
        ("tag", "v2", made[2], None),
    }
    for call in (repository.undo, lambda: repository.restore(report_before(repository))):
        with pytest.raises(vstore.SnapshotExpiredError, match="has expired"):
            call()
    with place.open(clock=clock) as opened:
        assert retained(opened) == retained(repository)


def report_before(repository: vstore.Repository) -> int:
    """Return the number of the newest operation that was no expiry."""
    return next(entry.sequence for entry in repository.ops_log() if entry.kind != "expire")


def test_a_branch_goes_by_age_alone(repository: vstore.Repository, made: list[str], clock: HandClock) -> None:
    repository.create_branch("old", made[1])
    for policy in (None, KEEP_ONE):
        with pytest.raises(vstore.InvalidInputError, match="keep_within"):
            repository.expire_snapshots(delete_expired_branches=True, policy=policy)
    policy = RetentionPolicy(keep_last=1, keep_within=timedelta(hours=2))
    assert repository.expire_snapshots(delete_expired_branches=True, policy=policy).branches == ("old",)
    assert retained(repository) == set(made[5:])


def test_tags_go_where_the_policy_says_that_they_do_not_keep(
    repository: vstore.Repository, made: list[str]
) -> None:
    repository.create_tag("v1", made[2])
    repository.create_tag("v2", made[7])
    policy = RetentionPolicy(keep_last=2, keep_tagged=False)
    report = repository.expire_snapshots(policy=policy)
    assert (report.tags, repository.list_tags()) == (("v1",), {"v2"})
    assert retained(repository) == set(made[6:])


def test_many_refs_on_one_snapshot(
    repository: vstore.Repository, made: list[str], clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_STEP_CHANGES", 3)
    for number in range(8):
        repository.create_tag(f"v{number}", made[1])
    repository.create_branch("old", made[1])
    repository.create_branch("other", made[2])
    count = newest(repository).sequence
    report = repository.expire_snapshots(
        at(clock, hours=1), delete_expired_branches=True, delete_expired_tags=True
    )
    assert (len(report.tags), report.branches) == (8, ("old", "other"))
    assert set(report.snapshots) == set(made[:6])
    assert retained(repository) == set(made[6:])
    steps = [entry for entry in repository.ops_log() if entry.sequence > count]
    assert all(len(step.changes) + step.details["snapshots"] <= 4 for step in steps)
    assert len(steps) == 6


def test_what_no_ref_reaches_goes_in_time(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    with repository.writable_session("main") as session:
        write(session, {"z": b"aside"})
        flushed = session.flush("aside")
    repository.reset_branch("main", made[3])
    clock.sleep(30 * DAY_S - 1)
    assert repository.expire_snapshots().snapshots == ()
    # No age or count makes it go sooner.
    assert repository.expire_snapshots(at(clock), policy=RetentionPolicy(keep_last=9)).snapshots == ()
    repository.undo()
    repository.undo()
    clock.sleep(29 * DAY_S)
    # The flushed one was never reached; the others were left a moment ago, after the reset was undone and done again.
    assert repository.expire_snapshots().snapshots == (flushed,)
    clock.sleep(2 * DAY_S)
    assert repository.expire_snapshots(policy=RetentionPolicy(unreachable_after=None)).snapshots == ()
    assert repository.expire_snapshots().snapshots == tuple(made[4:])
    assert retained(repository) == set(made[:4])


def test_a_clock_that_steps_back_makes_nothing_go_early(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    now_us = clock.time_us
    clock.time_us = now_us - 400 * DAY_S * 1_000_000
    repository.reset_branch("main", made[3])
    clock.time_us = now_us
    commit(repository, {"y": b"1"})
    assert repository.expire_snapshots().snapshots == ()
    clock.time_us = 0
    policy = RetentionPolicy(keep_within=timedelta(0))
    assert repository.expire_snapshots(policy=policy).snapshots == ()
    clock.time_us = now_us + 30 * DAY_S * 1_000_000
    assert repository.expire_snapshots().snapshots == tuple(made[4:])


def test_nothing_expires_where_a_ref_is_damaged(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.create_branch("dev", made[3])
    drop(repository, made[3])
    for dry_run in (True, False):
        with pytest.raises(vstore.CorruptionError, match=f"branch 'dev' points at snapshot {made[3]}"):
            repository.expire_snapshots(at(clock), dry_run=dry_run)
    assert retained(repository) == {*made} - {made[3]}
    repository.delete_branch("dev")


def test_a_read_only_repository_plans_but_does_not_act(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.set_status("read_only")
    assert repository.expire_snapshots(at(clock), dry_run=True).snapshots == tuple(made[:7])
    with pytest.raises(vstore.ReadOnlyError):
        repository.expire_snapshots(at(clock))
    assert retained(repository) == set(made)
    repository.set_status("online")


def test_the_report_says_it_in_words(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.create_tag("v1", made[2])
    repository.create_branch("dev", made[1])
    planned = repository.expire_snapshots(at(clock, hours=1), delete_expired_branches=True, dry_run=True)
    assert str(planned).splitlines() == [
        "5 snapshots would expire, 3 are retained",
        "branches that would be deleted with them: 'dev'",
        f"{made[2][:12]} is kept: tag 'v1' holds it",
        f"garbage collection could then free {planned.freed_bytes} bytes",
    ]
    done = replace(planned, freed_bytes=None)
    assert str(done).endswith("garbage_collect(dry_run=True) tells how many bytes that makes free")
    for number in range(30):
        repository.create_tag(f"v2.{number}", made[number % 6])
    report = repository.expire_snapshots(at(clock, hours=1))
    assert str(report).splitlines()[0] == "0 snapshots expired, 8 are retained"
    many = replace(report, held=report.held * 5)
    assert str(many).splitlines()[-1] == "10 more are kept against the rules"


def test_the_async_twin(repository: vstore.Repository, made: list[str], clock: HandClock) -> None:
    report = asyncio.run(repository.expire_snapshots_async(at(clock), dry_run=True))
    assert report == repository.expire_snapshots(at(clock), dry_run=True)


# --- work in flight ------------------------------------------------------------------------------------------


def test_a_commit_onto_what_expired_fails_cleanly(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    session = repository.writable_session("main")
    write(session, {"x": b"mine"})
    flushing = repository.writable_session("main")
    write(flushing, {"x": b"mine"})
    commit(repository, {"y": b"1"})
    repository.expire_snapshots(at(clock, days=-1))
    before = newest(repository)
    with pytest.raises(vstore.ConflictError):
        session.commit("late")
    with pytest.raises(vstore.SnapshotExpiredError, match=made[7]):
        flushing.flush("late")
    assert newest(repository) == before
    # What it wrote itself can still be put onto the new head.
    assert repository.lookup_branch("main") != session.commit("late", rebase_with="fail")
    assert contents(repository.readonly_session("main")) == {"x": b"mine", "y": b"1"}


def test_a_commit_overtaken_by_expiry_fails_cleanly(
    repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with repository.writable_session("main") as session:
        write(session, {"z": b"z" * 9000})
        catalog, really = repository.handle.catalog, repository.handle.catalog.update

        def update(transaction: Transaction) -> Any:
            monkeypatch.setattr(catalog, "update", really)
            repository.reset_branch("main", made[0])
            repository.expire_snapshots(policy=RetentionPolicy(unreachable_after=timedelta(0)))
            return really(transaction)

        monkeypatch.setattr(catalog, "update", update)
        with pytest.raises(vstore.SnapshotExpiredError, match=made[7]):
            session.flush("late")
        assert retained(repository) == {made[0]}


def test_a_head_whose_parent_expired_is_amended_and_built_on(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    session = repository.writable_session("main")
    write(session, {"y": b"amended"})
    repository.expire_snapshots(policy=KEEP_ONE)
    amended = session.amend("amended")
    assert repository.lookup_snapshot(amended).parent_ids == (made[6],)
    assert contents(repository.readonly_session("main")) == {"x": b"6", "y": b"amended"}
    head = commit(repository, {"z": b"1"})
    assert [info.id for info in repository.ancestry(branch="main")] == [head, amended]
    # The amended one is kept as what no ref reaches, and its place in history is that of its parent's child.
    assert retained(repository) == {made[7], amended, head}
    with repository.handle.catalog.reading() as view:
        entry = view.snapshot(SnapshotId(bytes.fromhex(amended)))
    assert entry is not None
    assert (entry.depth, entry.time_us > clock.time_us - 1) == (7, True)


# --- races ---------------------------------------------------------------------------------------------------


RACES: dict[str, Callable[[vstore.Repository, str], object]] = {
    "a tag": lambda repository, snapshot: repository.create_tag("v1", snapshot),
    "a branch": lambda repository, snapshot: repository.create_branch("dev", snapshot),
    "a reset": lambda repository, snapshot: repository.reset_branch("other", snapshot),
    "a lease": lambda repository, snapshot: repository.readonly_session(
        snapshot_id=snapshot, lease=timedelta(days=1)
    ),
}


@pytest.mark.parametrize("race", RACES)
def test_what_comes_to_hold_a_snapshot_meanwhile_wins(
    repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch, race: str
) -> None:
    repository.create_branch("other", made[7])
    just_before_update(repository, monkeypatch, lambda it: RACES[race](it, made[3]))
    report = repository.expire_snapshots(policy=KEEP_ONE)
    assert retained(repository) == {made[3], made[7]}
    assert report.snapshots == (*made[:3], *made[4:7])
    assert contents(repository.readonly_session(snapshot_id=made[3])) == {"x": b"2"}
    if race == "a lease":
        (held,) = report.held
        (lease,) = repository.list_leases()
        assert held.id == made[3]
        assert held.why == f"lease {lease.id} holds it until {lease.expires_at.isoformat()}"


@pytest.mark.parametrize("race", RACES)
def test_what_comes_to_hold_a_snapshot_too_late_is_told(
    repository: vstore.Repository, made: list[str], race: str
) -> None:
    repository.create_branch("other", made[7])
    repository.expire_snapshots(policy=KEEP_ONE)
    before = newest(repository)
    with pytest.raises(vstore.SnapshotExpiredError, match=made[3]):
        RACES[race](repository, made[3])
    assert newest(repository) == before


@pytest.mark.parametrize("race", RACES)
def test_it_wins_in_the_other_order_too(
    repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch, race: str
) -> None:
    """The snapshot expires between the look at it and the transaction that would hold it."""
    repository.create_branch("other", made[7])
    catalog, really = repository.handle.catalog, repository.handle.catalog.update

    def update(transaction: Transaction) -> Any:
        monkeypatch.setattr(catalog, "update", really)
        repository.expire_snapshots(policy=KEEP_ONE)
        return really(transaction)

    monkeypatch.setattr(catalog, "update", update)
    with pytest.raises(vstore.SnapshotExpiredError, match=made[3]):
        RACES[race](repository, made[3])
    assert retained(repository) == {made[7]}
    assert repository.list_leases() == []


def test_a_ref_that_moves_while_it_is_to_be_deleted_stays(
    repository: vstore.Repository, made: list[str], clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.create_branch("dev", made[2])
    session = repository.writable_session("dev")
    write(session, {"dev": b"1"})
    # The first step drops what no ref holds, the second the branch with its head.
    just_before_update(repository, monkeypatch, lambda it: None, lambda it: session.commit("on dev"))
    report = repository.expire_snapshots(at(clock, hours=1), delete_expired_branches=True)
    assert report.branches == ()
    assert repository.list_branches() == {"main", "dev"}
    assert set(report.snapshots) == set(made[:6])
    assert retained(repository) == {*made[6:], session.snapshot_id}


def test_rules_and_protection_that_change_meanwhile_hold(
    place: Place,
    repository: vstore.Repository,
    made: list[str],
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save(it: vstore.Repository) -> None:
        with place.open(config=vstore.RepositoryConfig(retention=RetentionPolicy(keep_last=6))) as opened:
            opened.save_config()

    just_before_update(repository, monkeypatch, save, lambda it: it.protect_branch("main"))
    report = repository.expire_snapshots(at(clock))
    assert (report.snapshots, report.retained) == ((), 8)
    assert {held.why for held in report.held} == {"protected branch 'main' reaches it"}
    assert retained(repository) == set(made)


@pytest.mark.parametrize(
    "act",
    [
        lambda repository: repository.merge("dev", "stable"),
        lambda repository: repository.create_branch("release/1", repository.lookup_branch("dev")),
    ],
    ids=["a branch moves", "a branch is made"],
)
def test_what_a_protected_branch_comes_to_reach_meanwhile_stays(
    repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    """Its head alone would be held anyway; it is about what lies behind it."""
    repository.create_branch("stable", made[1])
    repository.create_branch("dev", made[4])
    repository.protect_branch("stable")
    repository.protect_branch("release/*")
    just_before_update(repository, monkeypatch, act)
    report = repository.expire_snapshots(policy=KEEP_ONE)
    assert report.snapshots == (made[5], made[6])
    assert retained(repository) == {*made[:5], made[7]}


def test_commits_to_a_protected_branch_do_not_keep_others_from_expiring(
    repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_STEP_CHANGES", 2)
    repository.create_branch("safe", made[0])
    repository.protect_branch("safe")
    session = repository.writable_session("safe")
    plans: list[object] = []
    really = expire_module._plan
    monkeypatch.setattr(expire_module, "_plan", lambda *args: (plans.append(args), really(*args))[1])

    def commit_to_safe(it: vstore.Repository) -> None:
        with it.writable_session("safe") as session:
            write(session, {"s": b"%d" % len(plans) + session.snapshot_id.encode()})
            session.commit("busy")

    session.close()
    just_before_update(repository, monkeypatch, *[commit_to_safe] * 12)
    report = repository.expire_snapshots(policy=KEEP_ONE)
    assert set(report.snapshots) == set(made[1:7])
    assert len(plans) == 1


def test_it_gives_up_when_settings_never_stand_still(
    repository: vstore.Repository, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_STEP_CHANGES", 4)
    numbers = iter(range(1000))
    acts: list[Act] = [lambda it: it.protect_branch(f"b{next(numbers)}")] * 100
    just_before_update(repository, monkeypatch, lambda it: None, *acts)
    with pytest.raises(vstore.ConflictError, match="4 snapshots expired"):
        repository.expire_snapshots(policy=KEEP_ONE)
    assert next(numbers) == 20
    assert retained(repository) == set(made[4:])


def test_two_at_once_expire_the_same(
    place: Place, repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    repository.create_branch("dev", made[3])
    errors: list[BaseException] = []

    def run(clean: bool) -> None:
        try:
            with place.open(clock=clock) as other:
                for _ in range(2):
                    other.expire_snapshots(at(clock), delete_expired_branches=clean)
        except BaseException as error:  # noqa: BLE001 - shown by the test, not by the thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert retained(repository) == {made[7]}
    assert repository.list_branches() == {"main"}


def test_one_overtaken_by_another_goes_on(
    repository: vstore.Repository, made: list[str], clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expire_module, "_STEP_CHANGES", 2)
    repository.create_tag("v1", made[1])

    def other(it: vstore.Repository) -> None:
        it.expire_snapshots(at(clock, hours=1), delete_expired_tags=True)

    just_before_update(repository, monkeypatch, lambda it: None, other)
    repository.expire_snapshots(at(clock, hours=1), delete_expired_tags=True)
    assert retained(repository) == set(made[6:])
    assert repository.list_tags() == set()


# --- leases --------------------------------------------------------------------------------------------------


def test_a_lease_keeps_its_snapshot_until_it_ends(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    reader = repository.readonly_session(snapshot_id=made[3], lease=timedelta(hours=2))
    assert repository.expire_snapshots(policy=KEEP_ONE).held[0].id == made[3]
    assert contents(reader) == {"x": b"2"}
    clock.sleep(2 * HOUR_S - 0.000_001)
    assert made[3] in retained(repository)
    assert repository.expire_snapshots(policy=KEEP_ONE).snapshots == ()
    clock.sleep(0.000_002)
    assert repository.expire_snapshots(policy=KEEP_ONE).snapshots == (made[3],)
    with pytest.raises(vstore.SnapshotExpiredError, match=made[3]):
        reader.renew_lease(timedelta(hours=1))


def test_leases_that_ended_long_ago_are_struck(
    repository: vstore.Repository, made: list[str], clock: HandClock
) -> None:
    for _ in range(3):
        repository.readonly_session("main", lease=timedelta(days=1))
    clock.sleep(4 * DAY_S)
    repository.readonly_session("main", lease=timedelta(days=1))
    writer = SessionEntry(new_session_id(), 0, 0, 1)
    handle = repository.handle
    opening = Transaction(
        new_transaction_id(), 0, OperationKind.OPEN_SESSION, 0, "", (), (OpenSession(writer),)
    )
    assert isinstance(handle.catalog.update(opening), Applied)
    clock.sleep(4 * DAY_S)
    repository.expire_snapshots()
    assert len(repository.list_leases()) == 1
    # Writers are not struck: what they wrote may still be committed.
    assert next(session.id for session in repository.list_sessions()) == writer.session.hex()
    assert newest(repository).kind == "close-session"
    before = newest(repository)
    repository.expire_snapshots()
    assert newest(repository) == before


def test_a_lease_renewed_at_the_last_moment_is_not_struck(
    repository: vstore.Repository, made: list[str], clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = repository.readonly_session("main", lease=timedelta(days=1))
    clock.sleep(9 * DAY_S)
    really = expire_module._Run._strike_dead_leases

    def late(*arguments: Any) -> None:
        reader.renew_lease(timedelta(days=1))
        really(*arguments)

    monkeypatch.setattr(expire_module._Run, "_strike_dead_leases", late)
    repository.expire_snapshots()
    assert [lease.expires_at for lease in repository.list_leases()] == [at(clock, days=-1)]


def test_refusals_name_the_kind(repository: vstore.Repository, made: list[str]) -> None:
    """A step is refused, and not applied, where a ref holds what it drops."""
    handle = repository.handle
    run = expire_module._Run(handle, expire_module.ExpireRequest(policy=KEEP_ONE))
    planned = expire_module._plan(handle, expire_module.ExpireRequest(policy=KEEP_ONE))
    repository.create_tag("v1", made[2])
    (step,) = expire_module._steps(planned)
    outcome = run._take(planned, step, planned.safe)
    assert isinstance(outcome, Refused)
    assert [refusal.found for refusal in outcome.refusals] == [[SnapshotId(bytes.fromhex(made[2]))]]
    assert planned.holders.branches == {"main": SnapshotId(bytes.fromhex(made[7]))}
    assert RefKind.TAG not in {ref.kind for ref in step.refs}
    assert retained(repository) == set(made)


def test_a_dry_run_says_how_many_bytes_gc_could_free(repository: vstore.Repository) -> None:
    for number in range(3):
        session = repository.writable_session("main")
        write(session, {"value": bytes([number]) * 5000})
        session.commit(f"value {number}")
    policy = vstore.RetentionPolicy(keep_last=1, unreachable_after=None)
    planned = repository.expire_snapshots(policy=policy, dry_run=True)
    assert planned.freed_bytes is not None
    assert planned.freed_bytes > 10_000
    assert f"free {planned.freed_bytes} bytes" in str(planned)
    before = repository.garbage_collect(FUTURE, dry_run=True).garbage_bytes
    assert repository.expire_snapshots(policy=policy).freed_bytes is None
    assert repository.garbage_collect(FUTURE, dry_run=True).garbage_bytes - before == planned.freed_bytes
