"""The rules of retention: each by examples, and all of them against a model that takes its time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.clock import from_datetime
from vstore.config import RepositoryConfig, stored_retention
from vstore.errors import InvalidInputError, UnsupportedFormatError
from vstore.ids import SnapshotId
from vstore.retention import Decision, Departure, Graph, Holders, RetentionPolicy, Rules, decide

DAY_US = 24 * 3600 * 1_000_000
START_US = from_datetime(datetime(2024, 1, 1, tzinfo=UTC))


def id_of(name: str) -> SnapshotId:
    return SnapshotId(name.encode().ljust(32, b"\0"))


def name_of(snapshot: SnapshotId) -> str:
    return snapshot.rstrip(b"\0").decode()


@dataclass(frozen=True)
class Version:
    id: SnapshotId
    parents: tuple[SnapshotId, ...]
    time_us: int


@dataclass
class World:
    """A history made by operations, of which each sets one ref or none, and what is seen of it."""

    versions: dict[str, Version] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    """By "branch name" or "tag name"."""
    operations: list[tuple[int, str, str | None, str | None]] = field(default_factory=list)
    """Oldest first: time, ref, what it held before and after."""
    protected: set[str] = field(default_factory=set)
    leases: set[str] = field(default_factory=set)

    def add(self, name: str, *parents: str, time_us: int, ref: str | None = "branch main") -> str:
        """Commit to a ref, or flush; a snapshot is later than its parents, as in a repository."""
        time_us = max([time_us, *(self.versions[parent].time_us + 1 for parent in parents)])
        self.versions[name] = Version(id_of(name), tuple(map(id_of, parents)), time_us)
        self.set(ref, name, time_us)
        return name

    def chain(
        self, prefix: str, times_us: Iterable[int], *, after: str | None = None, ref: str = "main"
    ) -> str:
        last = after
        for number, time_us in enumerate(times_us):
            parents = () if last is None else (last,)
            last = self.add(f"{prefix}{number}", *parents, time_us=time_us, ref=f"branch {ref}")
        assert last is not None
        return last

    def set(self, ref: str | None, name: str | None, time_us: int) -> None:
        if ref is None:
            self.operations.append((time_us, "", None, None))
            return
        self.operations.append((time_us, ref, self.refs.get(ref), name))
        if name is None:
            del self.refs[ref]
        else:
            self.refs[ref] = name

    def named(self, kind: str) -> dict[str, SnapshotId]:
        return {ref[len(kind) + 1 :]: id_of(name) for ref, name in self.refs.items() if ref.startswith(kind)}

    @property
    def holders(self) -> Holders:
        branches = self.named("branch")
        protected = frozenset(self.protected & branches.keys())
        deletable = frozenset(branches) - protected - {"main"}
        leases = {id_of(name): "a lease holds it" for name in self.leases}
        return Holders(branches, self.named("tag"), protected, deletable, leases)

    @property
    def departures(self) -> list[Departure]:
        return [
            Departure(time_us, () if before is None else (id_of(before),))
            for time_us, _, before, _ in reversed(self.operations)
        ]

    @property
    def graph(self) -> Graph:
        return Graph(
            [version for name, version in self.versions.items() if name not in self.expired],
            [version for name, version in self.versions.items() if name in self.expired],
        )

    def decide(self, policy: RetentionPolicy | None = None, now_us: int = START_US, **rules: Any) -> Decision:
        return decide(
            self.graph,
            self.holders,
            self.departures,
            Rules(RetentionPolicy() if policy is None else policy, now_us, **rules),
        )

    def expiring(self, *arguments: Any, **rules: Any) -> list[str]:
        return [name_of(snapshot) for snapshot in self.decide(*arguments, **rules).expired]

    def kept(self, *arguments: Any, **rules: Any) -> list[str]:
        gone = {*self.expiring(*arguments, **rules), *self.expired}
        return [name for name in self.versions if name not in gone]


def days(*numbers: float) -> list[int]:
    return [START_US + round(number * DAY_US) for number in numbers]


@pytest.fixture
def world() -> World:
    return World()


# --- rules about what refs reach -----------------------------------------------------------------------------


def test_without_rules_nothing_that_a_ref_reaches_expires(world: World) -> None:
    world.chain("a", days(*range(20)))
    assert world.expiring(now_us=days(10_000)[0]) == []
    assert world.expiring(now_us=days(10_000)[0], delete_branches=True, delete_tags=True) == []


def test_the_newest_of_each_branch_are_kept(world: World) -> None:
    world.chain("a", days(*range(6)))
    world.chain("b", days(1.5, 2.5), after="a1", ref="b")
    policy = RetentionPolicy(keep_last=2)
    assert world.kept(policy) == ["a4", "a5", "b0", "b1"]
    assert world.kept(RetentionPolicy(keep_last=3)) == ["a1", "a3", "a4", "a5", "b0", "b1"]
    assert world.expiring(policy) == ["a0", "a1", "a2", "a3"]


def test_what_has_expired_does_not_count(world: World) -> None:
    world.chain("a", days(*range(8)))
    world.expired = {"a2", "a5", "a6"}
    assert world.kept(RetentionPolicy(keep_last=3)) == ["a3", "a4", "a7"]
    assert world.kept(RetentionPolicy(daily=4)) == ["a1", "a3", "a4", "a7"]


def test_both_sides_of_a_merge_count_by_time(world: World) -> None:
    world.chain("a", days(0, 1, 4))
    world.chain("b", days(2, 3), after="a0", ref="b")
    world.set("branch b", None, days(5)[0])
    world.add("merge", "a2", "b1", time_us=days(6)[0])
    assert world.kept(RetentionPolicy(keep_last=3)) == ["a2", "b1", "merge"]
    assert world.kept(RetentionPolicy(keep_last=5)) == ["a1", "a2", "b0", "b1", "merge"]


def test_those_within_an_age_are_kept(world: World) -> None:
    world.chain("a", days(*range(10)))
    policy = RetentionPolicy(keep_within=timedelta(days=3))
    assert world.kept(policy, days(9)[0]) == ["a6", "a7", "a8", "a9"]
    assert world.kept(policy, days(9)[0] + 1) == ["a7", "a8", "a9"]
    assert world.kept(policy, days(100)[0]) == ["a9"]
    assert world.kept(RetentionPolicy(keep_within=timedelta(0)), days(9)[0]) == ["a9"]


def test_a_cutoff_is_exclusive_and_the_policy_keeps_what_it_keeps(world: World) -> None:
    world.chain("a", days(*range(10)))
    assert world.kept(older_than_us=days(7)[0]) == ["a7", "a8", "a9"]
    assert world.kept(older_than_us=days(7)[0] + 1) == ["a8", "a9"]
    assert world.kept(older_than_us=days(5000)[0]) == ["a9"]
    assert world.kept(RetentionPolicy(keep_last=4), older_than_us=days(8)[0]) == ["a6", "a7", "a8", "a9"]
    within = RetentionPolicy(keep_within=timedelta(days=5))
    assert world.kept(within, days(9)[0], older_than_us=days(8)[0]) == ["a4", "a5", "a6", "a7", "a8", "a9"]
    assert world.kept(within, days(9)[0], older_than_us=days(1)[0])[0] == "a1"


def moments(*texts: str) -> list[int]:
    return [from_datetime(datetime.fromisoformat(text).replace(tzinfo=UTC)) for text in texts]


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (RetentionPolicy(hourly=1), [9]),
        (RetentionPolicy(hourly=3), [6, 8, 9]),
        (RetentionPolicy(daily=2), [6, 9]),
        (RetentionPolicy(daily=3), [5, 6, 9]),
        (RetentionPolicy(weekly=2), [6, 9]),
        (RetentionPolicy(weekly=3), [4, 6, 9]),
        (RetentionPolicy(weekly=9), [1, 3, 4, 6, 9]),
        (RetentionPolicy(monthly=2), [6, 9]),
        (RetentionPolicy(monthly=3), [3, 6, 9]),
        (RetentionPolicy(yearly=1), [9]),
        (RetentionPolicy(yearly=2), [3, 9]),
        (RetentionPolicy(yearly=9), [0, 3, 9]),
        (RetentionPolicy(keep_last=2, daily=2, yearly=2), [3, 6, 8, 9]),
    ],
)
def test_the_last_of_each_period_is_kept(world: World, policy: RetentionPolicy, kept: list[int]) -> None:
    times = moments(
        "2022-12-31T23:59:59.999999",
        "2023-01-01T00:00",  # a Sunday
        "2023-12-30T12:00",
        "2023-12-31T23:59",  # a Sunday
        "2024-01-07T12:00",  # a Sunday
        "2024-01-30T12:00",  # a Tuesday
        "2024-01-31T23:59:59.999999",
        "2024-02-05T10:00",  # a Monday
        "2024-02-05T10:59",
        "2024-02-05T11:00",
    )
    world.chain("", times)
    for now_us in (times[-1], days(10_000)[0], 0):
        assert world.kept(policy, now_us) == [str(number) for number in kept]


def test_a_root_may_expire_and_a_head_never(world: World) -> None:
    world.chain("a", days(0))
    assert world.expiring(RetentionPolicy(keep_within=timedelta(0)), days(9)[0]) == []
    world.chain("b", days(1), after="a0")
    assert world.expiring(RetentionPolicy(keep_within=timedelta(0)), days(9)[0]) == ["a0"]


# --- what holds ----------------------------------------------------------------------------------------------


def test_heads_tags_leases_and_protected_branches_hold_what_they_need(world: World) -> None:
    world.chain("a", days(*range(8)))
    world.chain("p", days(3), after="a2", ref="release/1")
    world.protected = {"release/1"}
    world.set("tag v1", "a3", days(8)[0])
    world.leases = {"a4", "unknown"}
    decision = world.decide(RetentionPolicy(keep_last=1))
    assert [name_of(snapshot) for snapshot in decision.expired] == ["a5", "a6"]
    assert [(name_of(snapshot), why) for snapshot, why in decision.held] == [
        ("a0", "protected branch 'release/1' reaches it"),
        ("a1", "protected branch 'release/1' reaches it"),
        ("a2", "protected branch 'release/1' reaches it"),
        ("a3", "tag 'v1' holds it"),
        ("a4", "a lease holds it"),
    ]
    assert world.decide(RetentionPolicy(keep_last=8)).held == ()


def test_a_tag_goes_with_its_snapshot_if_tags_do_not_keep(world: World) -> None:
    world.chain("a", days(*range(5)))
    for name, target in (("old", "a1"), ("new", "a4"), ("kept", "a3")):
        world.set(f"tag {name}", target, days(6)[0])
    policy = RetentionPolicy(keep_last=2)
    assert world.decide(policy).tags == ()
    assert world.kept(policy) == ["a1", "a3", "a4"]
    decision = world.decide(policy, delete_tags=True)
    assert decision.tags == ("old",)
    assert [name_of(snapshot) for snapshot in decision.expired] == ["a0", "a1", "a2"]
    world.leases = {"a1"}
    assert world.decide(policy, delete_tags=True).tags == ()


def test_a_branch_goes_with_its_old_head_unless_something_else_keeps_that(world: World) -> None:
    world.chain("a", days(*range(10)))
    for name, after in (("merged", "a2"), ("at tag", "a3"), ("at lease", "a4"), ("kept", "a8")):
        world.set(f"branch {name}", after, days(10)[0])
    world.chain("o", days(3, 4), after="a1", ref="own")
    world.chain("n", days(3, 9), after="a1", ref="new")
    world.set("branch safe", "a5", days(10)[0])
    world.set("tag v1", "a3", days(10)[0])
    world.leases, world.protected = {"a4"}, {"safe"}
    rules = {"older_than_us": days(8)[0], "delete_branches": True}
    # The protected branch reaches the head of "merged" too.
    assert world.decide(**rules).branches == ("own",)
    assert world.kept(**rules) == ["a0", "a1", "a2", "a3", "a4", "a5", "a8", "a9", "n1"]
    world.protected.clear()
    assert world.decide(**rules).branches == ("merged", "own", "safe")
    assert world.decide(older_than_us=days(8)[0]).branches == ()
    # Counts say nothing of the age of a branch.
    assert world.decide(RetentionPolicy(keep_last=1), delete_branches=True).branches == ()


def test_a_branch_that_stays_keeps_by_its_rules_what_is_the_head_of_another(world: World) -> None:
    world.chain("a", days(*range(6)))
    world.set("branch first", "a1", days(7)[0])
    world.set("branch second", "a2", days(7)[0])
    world.set("tag v1", "a2", days(7)[0])
    rules = {"older_than_us": days(5)[0], "delete_branches": True}
    # The tag holds the head of "second", whose two newest are kept, and the older of these is the head of "first".
    assert world.decide(RetentionPolicy(keep_last=2), **rules).branches == ()
    assert world.kept(RetentionPolicy(keep_last=2), **rules) == ["a0", "a1", "a2", "a4", "a5"]
    world.set("tag v1", None, days(7)[0])
    assert world.decide(RetentionPolicy(keep_last=2), **rules).branches == ("first", "second")


def test_main_is_never_deleted(world: World) -> None:
    world.chain("a", days(0, 1))
    rules = {"older_than_us": days(100)[0], "delete_branches": True, "delete_tags": True}
    assert world.decide(**rules).branches == ()
    assert world.kept(**rules) == ["a1"]


# --- what no ref reaches -------------------------------------------------------------------------------------


def test_what_refs_left_stays_for_a_while(world: World) -> None:
    world.chain("a", days(*range(5)))
    world.set("branch main", "a2", days(40)[0])
    assert world.expiring(now_us=days(70)[0] - 1) == []
    assert world.expiring(now_us=days(70)[0]) == ["a3", "a4"]
    for policy in (
        RetentionPolicy(unreachable_after=None),
        RetentionPolicy(keep_last=9, unreachable_after=None),
    ):
        assert world.expiring(policy, days(10_000)[0]) == []
    soon = RetentionPolicy(unreachable_after=timedelta(0))
    assert world.expiring(soon, days(40)[0]) == ["a3", "a4"]
    # Neither rules nor a cutoff are about what no ref reaches.
    assert world.expiring(RetentionPolicy(keep_last=1), days(50)[0], older_than_us=days(60)[0]) == [
        "a0",
        "a1",
    ]
    world.leases = {"a4"}
    assert world.expiring(soon, days(40)[0]) == ["a3"]


def test_it_counts_from_when_the_last_ref_left(world: World) -> None:
    world.chain("a", days(*range(5)))
    world.set("branch b", "a3", days(5)[0])
    world.set("branch main", "a2", days(6)[0])
    world.set("tag v1", "a4", days(20)[0])
    world.set("tag v1", None, days(30)[0])
    world.set("branch b", None, days(35)[0])
    assert world.expiring(now_us=days(60)[0]) == ["a4"]
    assert world.expiring(now_us=days(65)[0] - 1) == ["a4"]
    assert world.expiring(now_us=days(65)[0]) == ["a3", "a4"]


def test_what_no_ref_ever_reached_counts_from_when_it_was_made(world: World) -> None:
    world.chain("a", days(0, 1))
    world.add("flushed", "a0", time_us=days(5)[0], ref=None)
    assert world.expiring(now_us=days(35)[0] - 1) == []
    assert world.expiring(now_us=days(35)[0]) == ["flushed"]


def test_an_expired_snapshot_between_does_not_hide_what_is_behind_it(world: World) -> None:
    world.chain("a", days(*range(6)))
    world.set("branch main", "a0", days(50)[0])
    world.expired = {"a3"}
    assert world.expiring(now_us=days(79)[0]) == []
    assert world.expiring(now_us=days(80)[0]) == ["a1", "a2", "a4", "a5"]


@pytest.mark.parametrize("stepped_us", [0, days(-400)[0]])
def test_a_clock_that_stepped_back_makes_nothing_look_old(world: World, stepped_us: int) -> None:
    world.chain("a", days(*range(4)))
    world.chain("b", days(41), after="a3")
    # With the clock far back the branch is reset, and something is flushed whose parent is old.
    world.set("branch main", "a3", stepped_us)
    world.add("flushed", "a0", time_us=stepped_us, ref=None)
    world.chain("c", days(42), after="a3")
    assert world.expiring(now_us=days(42)[0]) == []
    assert world.expiring(now_us=days(71)[0] - 1) == []
    assert world.expiring(now_us=days(71)[0]) == ["flushed", "b0"]
    # Nor does the clock of whoever expires, when it steps back; nor a snapshot from the future.
    world.add("future", "c0", time_us=days(5000)[0])
    for now_us in (0, stepped_us, days(41)[0]):
        assert (
            world.expiring(RetentionPolicy(keep_within=timedelta(days=30)), max(now_us, 0))
            == [
                "a0",
                "a1",
                "a2",
                "a3",
            ][: 4 if now_us == days(41)[0] else 0]
        )


# --- the model -----------------------------------------------------------------------------------------------


class Model:
    """The sentences of `RetentionPolicy` and docs/retention.md, one by one, at any cost."""

    def __init__(self, world: World, policy: RetentionPolicy, now_us: int, rules: dict[str, Any]) -> None:
        self.world = world
        self.policy = policy
        self.now_us = now_us
        self.older_than_us: int | None = rules.get("older_than_us")
        self.delete_branches: bool = rules.get("delete_branches", False)
        self.delete_tags: bool = rules.get("delete_tags", False)

    def ancestors(self, *names: str) -> set[str]:
        found: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in found:
                found.add(name)
                pending += map(name_of, self.world.versions[name].parents)
        return found

    def time_us(self, name: str) -> int:
        return self.world.versions[name].time_us

    def is_ruled(self) -> bool:
        policy = self.policy
        rules = [getattr(policy, name) for name in ("keep_last", "keep_within", *PERIODS)]
        return self.older_than_us is not None or any(rule is not None for rule in rules)

    def is_young(self, name: str) -> bool:
        if self.older_than_us is not None and self.time_us(name) >= self.older_than_us:
            return True
        within = self.policy.keep_within
        return within is not None and timedelta(microseconds=self.now_us - self.time_us(name)) <= within

    def counted(self, branch: str) -> set[str]:
        """What the rules that count keep of a branch."""
        reached = self.ancestors(self.world.refs[f"branch {branch}"]) - self.world.expired
        newest_first = sorted(reached, key=lambda name: (-self.time_us(name), id_of(name)))
        kept = set(newest_first[: self.policy.keep_last or 0])
        for name, form in PERIODS.items():
            last_of: dict[str, str] = {}
            for snapshot in newest_first:
                moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.time_us(snapshot))
                last_of.setdefault(moment.strftime(form), snapshot)
            kept |= set(list(last_of.values())[: getattr(self.policy, name) or 0])
        return kept

    def held(self, branches: set[str]) -> set[str]:
        world = self.world
        found = {world.refs[f"branch {name}"] for name in branches} | (world.leases & world.versions.keys())
        if not (self.delete_tags or not self.policy.keep_tagged):
            found |= set(map(name_of, world.named("tag").values()))
        for name in world.protected & branches:
            found |= self.ancestors(world.refs[f"branch {name}"])
        return found

    def left_us(self, name: str) -> int:
        """When the last ref left a snapshot, looking at all refs after each operation."""
        refs: dict[str, str] = {}
        latest, left = 0, None
        was_reached = False
        for time_us, ref, _, after in self.world.operations:
            latest = max(latest, time_us)
            if ref:
                refs = {other: held for other, held in refs.items() if other != ref}
                refs |= {} if after is None else {ref: after}
            is_reached = name in self.ancestors(*refs.values())
            if was_reached and not is_reached:
                left = latest
            elif left is None and not is_reached and time_us == self.time_us(name):
                # Made without a ref; of several at the same moment the last one.
                made = latest
            was_reached = is_reached
        return made if left is None else left

    def decide(self) -> tuple[set[str], set[str], set[str]]:
        """Return the snapshots, branches and tags that go."""
        world = self.world
        branches, tags = set(world.named("branch")), set(world.named("tag"))
        reached = self.ancestors(*world.refs.values())
        retained = world.versions.keys() - world.expired
        gone = set()
        if self.policy.unreachable_after is not None:
            after_us = self.policy.unreachable_after // timedelta(microseconds=1)
            gone = {
                name
                for name in retained - reached - self.held(branches)
                if self.left_us(name) + after_us <= self.now_us
            }
        if not self.is_ruled():
            return gone, set(), set()
        going: set[str] = set()
        if self.delete_branches and (self.older_than_us is not None or self.policy.keep_within is not None):
            going = {
                name
                for name in branches - world.protected - {"main"}
                if not self.is_young(world.refs[f"branch {name}"])
            }
        while True:
            staying = branches - going
            kept = set[str]().union(*map(self.counted, staying), self.held(staying))
            kept |= {name for name in reached if self.is_young(name)}
            after_all = {name for name in going if world.refs[f"branch {name}"] in kept}
            if not after_all:
                break
            going -= after_all
        gone |= (retained & reached) - kept
        lost = {name for name in tags if world.refs[f"tag {name}"] in gone}
        return gone, going, lost


PERIODS = {
    "hourly": "%Y-%m-%d %H",
    "daily": "%Y-%m-%d",
    "weekly": "%G-%V",
    "monthly": "%Y-%m",
    "yearly": "%Y",
}

counts = st.sampled_from([None, None, None, 1, 2, 3])
ages = st.none() | st.integers(0, 60).map(lambda number: timedelta(days=number / 2))
policies = st.builds(
    RetentionPolicy,
    keep_last=counts,
    keep_within=ages,
    **dict.fromkeys(PERIODS, counts),
    keep_tagged=st.just(True),
    unreachable_after=ages,
)
steps_us = st.sampled_from([0, 1, DAY_US // 96, DAY_US // 3, DAY_US, 11 * DAY_US, 200 * DAY_US, -30 * DAY_US])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Return a history that grew by commits, merges, flushes, resets and tags, on a clock that may step back."""
    world = World()
    now_us = START_US
    world.add("s0", time_us=now_us)
    for number in range(1, draw(st.integers(6, 16))):
        now_us = max(now_us + draw(steps_us), 0)
        branches, snapshots = sorted(world.named("branch")), sorted(world.versions)
        branch = draw(st.sampled_from(branches))
        head = world.refs[f"branch {branch}"]
        act = draw(
            st.sampled_from(["commit"] * 4 + ["merge", "flush", "reset", "create", "delete", "tag", "untag"])
        )
        if act == "commit":
            world.add(f"s{number}", head, time_us=now_us, ref=f"branch {branch}")
        elif act == "merge":
            other = draw(st.sampled_from(snapshots))
            world.add(f"s{number}", *dict.fromkeys([head, other]), time_us=now_us, ref=f"branch {branch}")
        elif act == "flush":
            world.add(f"s{number}", head, time_us=now_us, ref=None)
        elif act == "reset":
            world.set(f"branch {branch}", draw(st.sampled_from(snapshots)), now_us)
        elif act == "create":
            world.set(f"branch b{number}", draw(st.sampled_from(snapshots)), now_us)
        elif act == "tag":
            world.set(f"tag t{number}", draw(st.sampled_from(snapshots)), now_us)
        elif act == "delete" and branch != "main":
            world.set(f"branch {branch}", None, now_us)
        elif act == "untag" and world.named("tag"):
            world.set(f"tag {draw(st.sampled_from(sorted(world.named('tag'))))}", None, now_us)
    heads = set(world.refs.values())
    names = sorted(world.versions)
    world.protected = draw(st.sets(st.sampled_from(["b1", "b2", "b3", "main", "b5"]), max_size=1))
    world.leases = draw(st.sets(st.sampled_from(names), max_size=1))
    world.expired = draw(st.sets(st.sampled_from(names), max_size=3)) - heads
    return world


rules_of = st.fixed_dictionaries(
    {},
    optional={
        "older_than_us": st.integers(-5, 120).map(lambda day: days(day / 2)[0]),
        "delete_branches": st.booleans(),
        "delete_tags": st.booleans(),
    },
)
nows = st.integers(-2, 500).map(lambda day: days(day)[0])


@given(worlds(), st.lists(st.tuples(policies, nows, rules_of), min_size=5, max_size=10))
def test_any_decision_is_that_of_the_model(
    world: World, questions: list[tuple[RetentionPolicy, int, dict[str, Any]]]
) -> None:
    for policy, now_us, rules in questions:
        decision = world.decide(policy, now_us, **rules)
        snapshots, branches, tags = Model(world, policy, now_us, rules).decide()
        assert {name_of(snapshot) for snapshot in decision.expired} == snapshots
        assert (set(decision.branches), set(decision.tags)) == (branches, tags)


@given(worlds(), policies, nows, rules_of, st.data())
def test_work_that_was_interrupted_is_taken_up_by_deciding_again(
    world: World, policy: RetentionPolicy, now_us: int, rules: dict[str, Any], data: st.DataObject
) -> None:
    decision = world.decide(policy, now_us, **rules)
    heads = {
        *(world.named("branch")[name] for name in decision.branches),
        *(world.named("tag")[name] for name in decision.tags),
    }
    loose = [snapshot for snapshot in decision.expired if snapshot not in heads]
    done = data.draw(st.sets(st.sampled_from(loose))) if loose else set()
    partly = replace(world, expired=world.expired | set(map(name_of, done)))
    again = partly.decide(policy, now_us, **rules)
    assert set(again.expired) == set(decision.expired) - done
    assert (again.branches, again.tags) == (decision.branches, decision.tags)


@given(worlds(), policies, nows, rules_of, st.integers(0, 600))
def test_no_later_moment_keeps_more(
    world: World, policy: RetentionPolicy, now_us: int, rules: dict[str, Any], earlier: int
) -> None:
    """A clock that steps back makes less expire, or the same."""
    before = world.decide(policy, now_us - earlier * DAY_US, **rules)
    after = world.decide(policy, now_us, **rules)
    # Which branches go decides what their counts keep, so that it is compared without that.
    if not rules.get("delete_branches"):
        assert set(before.expired) <= set(after.expired)


# --- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep_last": 0},
        {"keep_last": True},
        {"keep_last": 2.0},
        {"daily": -1},
        {"yearly": "3"},
        {"keep_within": 7},
        {"keep_within": timedelta(days=-1)},
        {"unreachable_after": timedelta(microseconds=-1)},
        {"unreachable_after": "30 days"},
        {"keep_tagged": 1},
    ],
)
def test_impossible_rules_are_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidInputError, match=f"{name} is"):
        RetentionPolicy(**wrong)


def test_a_config_takes_a_policy_and_nothing_else() -> None:
    with pytest.raises(InvalidInputError, match="RetentionPolicy"):
        RepositoryConfig(retention={"daily": 3})  # type: ignore[arg-type]


def test_only_rules_about_refs_count_as_rules() -> None:
    assert not RetentionPolicy().has_rules
    assert not RetentionPolicy(keep_tagged=False, unreachable_after=None).has_rules
    assert RetentionPolicy(weekly=1).has_rules
    assert RetentionPolicy(keep_within=timedelta(0)).has_rules


@given(policies, st.booleans(), st.integers(0, 4096))
def test_settings_survive_json(policy: RetentionPolicy, keep_tagged: bool, threshold: int) -> None:
    policy = replace(policy, keep_tagged=keep_tagged)
    config = RepositoryConfig(inline_chunk_threshold_bytes=threshold, retention=policy)
    assert RepositoryConfig.from_json(config.to_json()) == config
    assert stored_retention(config.to_json()) == policy


def test_settings_without_rules_are_stored_as_they_were_before_there_were_any() -> None:
    assert RepositoryConfig().to_json() == b'{"inline_chunk_threshold_bytes": 512}'
    assert stored_retention(None) == stored_retention(RepositoryConfig().to_json()) == RetentionPolicy()


def test_what_a_newer_vstore_stored_is_kept_and_nothing_expires_by_half_of_its_rules() -> None:
    newer = b'{"colour": "red", "inline_chunk_threshold_bytes": 9, "retention": {"keep_last": 3, "per_decade": 1}}'
    config = RepositoryConfig.from_json(newer)
    assert config.retention == RetentionPolicy(keep_last=3)
    assert config.to_json(newer) == newer
    with pytest.raises(UnsupportedFormatError, match="'per_decade'"):
        stored_retention(newer)
    changed = replace(config, retention=RetentionPolicy(daily=2))
    assert RepositoryConfig.from_json(changed.to_json(newer)) == changed
    assert stored_retention(changed.to_json(newer)) == RetentionPolicy(daily=2)
    assert b"red" in changed.to_json(newer)
