"""Retention: the rules by which snapshots expire, and what they come to for a history. Pure; no clock is read here.

Two kinds of snapshots, two kinds of rules. What a branch or tag reaches goes by the counts and ages of a
`RetentionPolicy`; what none reaches any more stays for `unreachable_after` from when the last one left it, which the
operations log tells. Whatever the rules say, heads of branches, tags, leases and protected branches hold what they
need. Above: `config` keeps a policy, `ops.expire` acts on a `Decision`.

**Clocks.** Counts look at snapshots, never at the time of day. For ages the present is what the caller's clock says
and never later: a clock that steps back only makes things younger. The time of an operation is taken as the latest
that any operation up to it bears, so that one which was recorded while a clock stood far back does not look old.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

from vstore.clock import to_datetime
from vstore.errors import InvalidInputError, UnsupportedFormatError
from vstore.ids import SnapshotId

_MICROSECOND = timedelta(microseconds=1)
_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US
_IN_JSON = "_us"
"""Ends the names of durations in JSON, which are whole microseconds there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """Which snapshots a repository keeps; `Repository.expire_snapshots` lets the others go.

    A snapshot that a branch or tag reaches is kept if any rule keeps it: `keep_last`, the newest so many of each
    branch, as `ancestry` lists them; `keep_within`, those of at most this age; `hourly`, `daily`, `weekly`, `monthly`
    and `yearly`, of each branch the last one of each of so many newest hours, days (of UTC), weeks (from Monday),
    months or years that have any. Without such a rule all of them are kept.

    `keep_tagged`: tags keep their snapshots; if not, a tag is deleted with its snapshot when no rule keeps that.
    `unreachable_after`: snapshots that no branch or tag has reached for so long expire; None is never.
    """

    keep_last: int | None = None
    keep_within: timedelta | None = None
    hourly: int | None = None
    daily: int | None = None
    weekly: int | None = None
    monthly: int | None = None
    yearly: int | None = None
    keep_tagged: bool = True
    unreachable_after: timedelta | None = timedelta(days=30)

    def __post_init__(self) -> None:
        for name in ("keep_last", *_PERIODS):
            count = getattr(self, name)
            if count is not None and (type(count) is not int or count < 1):
                raise InvalidInputError(f"{name} is {count!r}; give how many to keep, at least 1, or None")
        for name in ("keep_within", "unreachable_after"):
            age = getattr(self, name)
            if age is not None and (not isinstance(age, timedelta) or age < timedelta(0)):
                raise InvalidInputError(f"{name} is {age!r}; give a timedelta that is not negative, or None")
        if type(self.keep_tagged) is not bool:
            raise InvalidInputError(f"keep_tagged is {self.keep_tagged!r}; give True or False")

    @property
    def has_rules(self) -> bool:
        """Whether any rule is about snapshots that branches and tags reach; without one they are all kept."""
        return any(getattr(self, name) is not None for name in ("keep_last", "keep_within", *_PERIODS))

    def to_fields(self) -> dict[str, Any]:
        """Return what JSON keeps of the policy: the fields that are not as by default."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value != each.default:
                found |= (
                    {each.name + _IN_JSON: value // _MICROSECOND}
                    if isinstance(value, timedelta)
                    else {each.name: value}
                )
        return found

    @classmethod
    def from_fields(cls, stored: Mapping[str, Any], *, strict: bool = False) -> RetentionPolicy:
        """Return the policy that JSON keeps. Rules of a newer vstore are passed over, or `strict`, refused.

        Nothing may expire by rules that are known only in part.
        """
        names = {each.name for each in fields(cls)}
        known: dict[str, Any] = {}
        for name, value in stored.items():
            if name in names:
                known[name] = value
            elif name.removesuffix(_IN_JSON) in names and type(value) is int:
                known[name.removesuffix(_IN_JSON)] = timedelta(microseconds=value)
            elif strict:
                raise UnsupportedFormatError(
                    f"this repository's retention has the rule {name!r}, which this vstore does not know, so that it "
                    "can't tell what to keep. Upgrade vstore."
                )
        return cls(**known)


def _month(time_us: int) -> int:
    moment = to_datetime(time_us)
    return moment.year * 12 + moment.month


_PERIODS: dict[str, Callable[[int], int]] = {
    "hourly": lambda time_us: time_us // _HOUR_US,
    "daily": lambda time_us: time_us // _DAY_US,
    # The first of January 1970 was a Thursday.
    "weekly": lambda time_us: (time_us // _DAY_US + 3) // 7,
    "monthly": _month,
    "yearly": lambda time_us: to_datetime(time_us).year,
}
"""The rules that keep the last snapshot of each period, and the number of the period that a time lies in."""


# --- what the rules look at ----------------------------------------------------------------------------------


class Entry(Protocol):
    """What must be known of a snapshot."""

    @property
    def id(self) -> SnapshotId: ...
    @property
    def parents(self) -> tuple[SnapshotId, ...]: ...
    @property
    def time_us(self) -> int: ...


class Graph:
    """A repository's whole history, retained and expired, by rows. About 300 bytes a snapshot."""

    def __init__(self, retained: Iterable[Entry], expired: Iterable[Entry] = ()) -> None:
        self.ids: list[SnapshotId] = []
        self.times = array("q")
        self.rows: dict[SnapshotId, int] = {}
        named: list[tuple[SnapshotId, ...]] = []
        for entries in (retained, expired):
            for entry in entries:
                if entry.id not in self.rows:
                    self.rows[entry.id] = len(self.ids)
                    self.ids.append(entry.id)
                    self.times.append(entry.time_us)
                    named.append(entry.parents)
            if entries is retained:
                self.retained = len(self.ids)
                """How many are retained; theirs are the first rows."""
        rows = self.rows
        self.parents = [tuple(rows[parent] for parent in parents if parent in rows) for parents in named]

    def rows_of(self, snapshots: Iterable[SnapshotId]) -> list[int]:
        """Return the rows of those that are known."""
        return [self.rows[snapshot] for snapshot in snapshots if snapshot in self.rows]

    def spread(self, starts: Iterable[int], seen: bytearray) -> Iterator[int]:
        """Yield all ancestors of `starts`, themselves too, that are not in `seen`, and put them there."""
        pending = [row for row in starts if not seen[row]]
        while pending:
            row = pending.pop()
            if not seen[row]:
                seen[row] = 1
                yield row
                pending += [parent for parent in self.parents[row] if not seen[parent]]

    def newest_first(self, start: int) -> Iterator[int]:
        """Yield the retained ones of a snapshot and its ancestors in the order of `ancestry`."""
        seen = {start}
        pending = [(-self.times[start], self.ids[start], start)]
        while pending:
            row = heappop(pending)[2]
            if row < self.retained:
                yield row
            for parent in self.parents[row]:
                if parent not in seen:
                    seen.add(parent)
                    heappush(pending, (-self.times[parent], self.ids[parent], parent))


class Departure(NamedTuple):
    """An operation, and what the refs that it changed held before it."""

    time_us: int
    snapshots: tuple[SnapshotId, ...]


@dataclass(frozen=True, slots=True)
class Holders:
    """What holds snapshots whatever their age.

    `protected` names branches that keep all that they reach, `deletable` those that may go with their snapshots.
    `leases` says for a snapshot which lease holds it.
    """

    branches: Mapping[str, SnapshotId]
    tags: Mapping[str, SnapshotId]
    protected: frozenset[str] = frozenset()
    deletable: frozenset[str] = frozenset()
    leases: Mapping[SnapshotId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy at a moment. With `older_than_us`, what is older expires too, unless the policy keeps it.

    `delete_branches` and `delete_tags`: those go whose snapshot nothing else keeps; a branch only if its head is older
    than `cutoff_us`.
    """

    policy: RetentionPolicy
    now_us: int
    older_than_us: int | None = None
    delete_branches: bool = False
    delete_tags: bool = False

    @property
    def are_about_refs(self) -> bool:
        """Whether anything that refs reach may expire."""
        return self.older_than_us is not None or self.policy.has_rules

    @property
    def cutoff_us(self) -> int | None:
        """The time before which a snapshot is old; None if no rule is about age."""
        limits = [] if self.older_than_us is None else [self.older_than_us]
        if self.policy.keep_within is not None:
            limits.append(self.now_us - self.policy.keep_within // _MICROSECOND)
        return min(limits, default=None)


class Held(NamedTuple):
    """A snapshot that the rules would let go, and what keeps it."""

    snapshot: SnapshotId
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What expires, the refs that are deleted with it, and what is held against the rules; snapshots oldest first."""

    expired: tuple[SnapshotId, ...]
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    held: tuple[Held, ...]


# --- deciding ------------------------------------------------------------------------------------------------


def decide(graph: Graph, holders: Holders, operations: Iterable[Departure], rules: Rules) -> Decision:
    """Return what expires. `operations`, newest first, are read only if there are snapshots that no ref reaches.

    If a part of it has expired already, the rest is what this returns for the same moment: work that was interrupted
    is taken up by deciding again.
    """
    reached = bytearray(len(graph.ids))
    heads = graph.rows_of([*holders.branches.values(), *holders.tags.values()])
    for _ in graph.spread(heads, reached):
        pass
    adrift = [row for row in range(graph.retained) if not reached[row]]
    going = _long_unreachable(graph, adrift, operations, rules)
    branches: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    if rules.are_about_refs:
        kept, branches = _kept_by_rules(graph, holders, reached, rules)
        going |= {row for row in range(graph.retained) if reached[row] and not kept[row]}
    held: dict[int, str] = {}
    for row, why in _holding(graph, holders, frozenset(branches), rules):
        if row in going:
            held.setdefault(row, why)
    going -= held.keys()
    if rules.delete_tags and rules.are_about_refs:
        tags = tuple(name for name, head in sorted(holders.tags.items()) if graph.rows.get(head) in going)

    def age(row: int) -> tuple[int, SnapshotId]:
        return graph.times[row], graph.ids[row]

    return Decision(
        tuple(graph.ids[row] for row in sorted(going, key=age)),
        branches,
        tags,
        tuple(Held(graph.ids[row], held[row]) for row in sorted(held, key=age)),
    )


def _kept_by_rules(
    graph: Graph, holders: Holders, reached: bytearray, rules: Rules
) -> tuple[bytearray, tuple[str, ...]]:
    """Return which rows the rules keep, and the branches that go: nothing but themselves keeps their heads."""
    kept = bytearray(len(graph.ids))
    cutoff_us = rules.cutoff_us
    if cutoff_us is not None:
        for row in range(graph.retained):
            kept[row] = reached[row] and graph.times[row] >= cutoff_us
    doubtful = dict(sorted(_deletable(graph, holders, rules)))
    for name, head in holders.branches.items():
        if name not in doubtful and head in graph.rows:
            _keep_of_branch(graph, graph.rows[head], rules.policy, kept)
    lasting = {row for row, _ in _holding(graph, holders, frozenset(doubtful), rules)}
    # What a branch keeps that stays after all may be the head of another.
    while staying := [name for name, row in doubtful.items() if kept[row] or row in lasting]:
        for name in staying:
            _keep_of_branch(graph, doubtful.pop(name), rules.policy, kept)
    return kept, tuple(doubtful)


def _deletable(graph: Graph, holders: Holders, rules: Rules) -> Iterator[tuple[str, int]]:
    cutoff_us = rules.cutoff_us
    if not rules.delete_branches or cutoff_us is None:
        return
    for name in holders.deletable - holders.protected:
        row = graph.rows.get(holders.branches[name])
        if row is not None and graph.times[row] < cutoff_us:
            yield name, row


def _keep_of_branch(graph: Graph, head: int, policy: RetentionPolicy, kept: bytearray) -> None:
    """Mark what the rules that count keep of a branch."""
    last = policy.keep_last or 0
    left = {name: count for name in _PERIODS if (count := getattr(policy, name))}
    newest = dict.fromkeys(left, -1)
    for row in graph.newest_first(head) if last or left else ():
        if last:
            last -= 1
            kept[row] = 1
        for name in list(left):
            period = _PERIODS[name](graph.times[row])
            if period != newest[name]:
                newest[name] = period
                kept[row] = 1
                left[name] -= 1
                if not left[name]:
                    del left[name]
        if not last and not left:
            return


def _holding(
    graph: Graph, holders: Holders, deleted: frozenset[str], rules: Rules
) -> Iterator[tuple[int, str]]:
    """Yield the rows that may not go, and what holds them."""
    for name, head in holders.branches.items():
        if name not in deleted and head in graph.rows:
            yield graph.rows[head], f"branch {name!r} holds it"
    if not rules.delete_tags:
        for name, head in holders.tags.items():
            if head in graph.rows:
                yield graph.rows[head], f"tag {name!r} holds it"
    for snapshot, lease in holders.leases.items():
        if snapshot in graph.rows:
            yield graph.rows[snapshot], lease
    seen = bytearray(len(graph.ids))
    for name in sorted(holders.protected):
        for row in graph.spread(graph.rows_of([holders.branches[name]]), seen):
            yield row, f"protected branch {name!r} reaches it"


def _long_unreachable(
    graph: Graph, adrift: list[int], operations: Iterable[Departure], rules: Rules
) -> set[int]:
    """Return those of the unreachable rows that no ref has reached for long enough."""
    after = rules.policy.unreachable_after
    if after is None or not adrift:
        return set()
    limit_us = rules.now_us - after // _MICROSECOND
    left = _left_us(graph, adrift, operations)
    return {row for row in adrift if left[row] <= limit_us}


def _left_us(graph: Graph, adrift: list[int], operations: Iterable[Departure]) -> dict[int, int]:
    """Return when the last ref left each row; for one that no ref ever reached, when it was made.

    All ancestors of what a ref held before an operation were reached until then. A snapshot without a ref bears the
    time of the operation that made it.
    """
    times = array("q")
    departed: dict[int, int] = {}
    made: dict[int, int] = {}
    by_time: dict[int, list[int]] = {}
    for row in adrift:
        by_time.setdefault(graph.times[row], []).append(row)
    seen = bytearray(len(graph.ids))
    for number, (time_us, befores) in enumerate(operations):
        times.append(time_us)
        for row in graph.spread(graph.rows_of(befores), seen):
            departed[row] = number
        for row in by_time.pop(time_us, ()):
            made[row] = number
    latest = 0
    for number in reversed(range(len(times))):
        latest = times[number] = max(latest, times[number])
    left = {}
    for row in adrift:
        number = departed.get(row, made.get(row, -1))
        left[row] = max(graph.times[row], times[number] if number >= 0 else 0)
    return left
