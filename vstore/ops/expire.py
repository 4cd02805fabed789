"""expire: lets snapshots go by the rules of retention; gc then deletes what only they needed.

A plan is made on one state of the catalog. Each of its steps is one transaction of bounded size that holds only if
nothing moved that matters: no ref or lease holds what goes (so that a branch, a tag or a lease that was made meanwhile
wins), protected branches are where they were, and the rules are the same. A refused step leads to a new plan.

A crash between two steps leaves fewer snapshots, and the same decision about the rest. Therefore a branch or tag that
is to go outlives what it reaches: it goes with its own snapshot, at the end. Above: `Repository.expire_snapshots`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    PROTECTED,
    Applied,
    BranchesAre,
    CatalogView,
    CloseSession,
    DropRef,
    DropSnapshots,
    NotHeld,
    Outcome,
    RefIs,
    SessionIs,
    Update,
    ValueIs,
)
from vstore.catalog.conditions import matching_branches
from vstore.clock import from_datetime, to_datetime
from vstore.config import stored_retention
from vstore.errors import ConflictError, CorruptionError, InvalidInputError
from vstore.format.record import Operation, OperationKind, RefKind, SessionEntry
from vstore.handle import Handle, protected_patterns, require_online
from vstore.history import look_up
from vstore.ids import SnapshotId, jitter
from vstore.ops.marks import freed_bytes
from vstore.refs import MAIN, iter_operations
from vstore.retention import Decision, Departure, Graph, Holders, RetentionPolicy, Rules, decide

_STEP_CHANGES = 1000
"""Snapshots and refs that one transaction drops: it takes a local catalog some 50 ms, during which nobody commits."""
_TRIES = 20
_FOLLOWED = 1000
"""So many new snapshots of protected branches are looked at before a plan is made anew."""
_FIRST_WAIT_S = 0.01
_LONGEST_WAIT_S = 0.5
_DEAD_LEASE_US = 7 * 24 * 3600 * 1_000_000
"""A lease that ended so long ago is struck from the catalog: its reader will not renew it any more."""
_DEAD_LEASES_AT_ONCE = 256
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpireRequest:
    """What `Repository.expire_snapshots` was asked for."""

    older_than: datetime | None = None
    delete_branches: bool = False
    delete_tags: bool = False
    policy: RetentionPolicy | None = None

    def __post_init__(self) -> None:
        if self.policy is not None and not isinstance(self.policy, RetentionPolicy):
            raise InvalidInputError(f"policy is {self.policy!r}; give a vstore.RetentionPolicy")
        if self.older_than is not None:
            from_datetime(self.older_than)


@dataclass(frozen=True, slots=True)
class HeldSnapshot:
    """A snapshot that the rules would let go, and what keeps it: a branch, a tag, a lease, a protected branch."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class ExpireReport:
    """What expired, or in a dry run would: snapshots, oldest first, and the branches and tags that held them.

    `held` are those that the rules would let go, oldest first; `retained` is how many snapshots are left. In a dry run
    `freed_bytes` are those of the packs that gc could delete then (None otherwise: a dry run of gc tells).
    """

    dry_run: bool
    snapshots: tuple[str, ...]
    branches: tuple[str, ...]
    tags: tuple[str, ...]
    held: tuple[HeldSnapshot, ...]
    retained: int
    freed_bytes: int | None = None

    def __str__(self) -> str:
        verb = "would expire" if self.dry_run else "expired"
        lines = [f"{len(self.snapshots)} snapshots {verb}, {self.retained} are retained"]
        for noun, names in (("branches", self.branches), ("tags", self.tags)):
            if names:
                shown = "would be deleted" if self.dry_run else "were deleted"
                lines.append(f"{noun} that {shown} with them: {', '.join(map(repr, names))}")
        lines += [f"{held.id[:12]} is kept: {held.why}" for held in self.held[:_SHOWN]]
        if len(self.held) > _SHOWN:
            lines.append(f"{len(self.held) - _SHOWN} more are kept against the rules")
        if self.freed_bytes is not None:
            lines.append(f"garbage collection could then free {self.freed_bytes} bytes")
        elif self.snapshots:
            lines.append("garbage_collect(dry_run=True) tells how many bytes that makes free")
        return "\n".join(lines)


class _Plan(NamedTuple):
    """A decision, and under what it holds: `rules` are as they were, and `safe` is what protected branches hold."""

    decision: Decision
    holders: Holders
    graph: Graph
    now_us: int
    rules: tuple[ValueIs, ...]
    safe: BranchesAre
    dead_leases: tuple[SessionEntry, ...]


class _Step(NamedTuple):
    """What one transaction drops."""

    snapshots: tuple[SnapshotId, ...]
    refs: tuple[RefIs, ...]


def expire(handle: Handle, request: ExpireRequest, *, dry_run: bool = False) -> ExpireReport:
    """Let snapshots go; `Repository.expire_snapshots` documents it."""
    if dry_run:
        planned = _plan(handle, request)
        report = _report(planned, planned.decision, dry_run=True)
        return replace(report, freed_bytes=freed_bytes(handle, planned.decision.expired))
    handle.catalog.check_writable()
    with handle.catalog.reading() as view:
        require_online(view)
    return _Run(handle, request).run()


def _report(planned: _Plan, done: Decision, *, dry_run: bool) -> ExpireReport:
    return ExpireReport(
        dry_run,
        tuple(snapshot.hex() for snapshot in done.expired),
        done.branches,
        done.tags,
        tuple(HeldSnapshot(snapshot.hex(), why) for snapshot, why in planned.decision.held),
        planned.graph.retained - len(planned.decision.expired),
    )


# --- planning ------------------------------------------------------------------------------------------------


def _plan(handle: Handle, request: ExpireRequest) -> _Plan:
    now_us = handle.clock.now_us()
    handle.catalog.confirm()
    with handle.catalog.reading() as view:
        since = view.sequence
        policy = request.policy or stored_retention(view.value(CONFIG))
        rules = Rules(
            policy,
            now_us,
            None if request.older_than is None else from_datetime(request.older_than),
            request.delete_branches,
            request.delete_tags or not policy.keep_tagged,
        )
        if request.delete_branches and rules.cutoff_us is None:
            raise InvalidInputError(
                "a branch expires by the age of its head: with delete_expired_branches give older_than, or have a "
                "policy with keep_within"
            )
        holders, safe = _holders(view, now_us)
        unchanged = (_unchanged(view, PROTECTED), _unchanged(view, CONFIG))
        sessions = [entry for entry in view.iter_sessions() if entry.snapshot is not None]
        graph = Graph(view.iter_snapshots(), view.iter_expired())
    _require_heads(graph, holders)
    # Without a view: the log may be long, and only those operations matter that the view had.
    operations = map(_departure, iter_operations(handle, since + 1))
    return _Plan(
        decide(graph, holders, operations, rules),
        holders,
        graph,
        now_us,
        unchanged,
        safe,
        tuple(entry for entry in sessions if entry.expires_us + _DEAD_LEASE_US <= now_us),
    )


def _require_heads(graph: Graph, holders: Holders) -> None:
    """Raise if the head of a branch or tag is not retained: what it reaches would look as if nothing reached it."""
    for noun, held in (("branch", holders.branches), ("tag", holders.tags)):
        for name, head in held.items():
            if graph.rows.get(head, graph.retained) >= graph.retained:
                raise CorruptionError(
                    f"{noun} {name!r} points at snapshot {head.hex()}, which is not retained, so that nothing tells "
                    "what it reaches, and nothing expired. repo.fsck() names all that is damaged."
                )


def _holders(view: CatalogView, now_us: int) -> tuple[Holders, BranchesAre]:
    """Return what holds snapshots, and what protected branches hold."""
    branches = dict(view.iter_refs(RefKind.BRANCH))
    patterns = tuple(protected_patterns(view.value(PROTECTED)))
    safe = matching_branches(view, patterns)
    protected = frozenset(name for name, _ in safe)
    leases = {
        entry.snapshot: f"lease {entry.session.hex()} holds it until {to_datetime(entry.expires_us).isoformat()}"
        for entry in sorted(view.iter_sessions(), key=lambda entry: entry.expires_us)
        if entry.snapshot is not None and entry.expires_us > now_us
    }
    holders = Holders(
        branches,
        dict(view.iter_refs(RefKind.TAG)),
        protected,
        frozenset(branches) - protected - {MAIN},
        leases,
    )
    return holders, BranchesAre(patterns, safe)


def _unchanged(view: CatalogView, name: str) -> ValueIs:
    value = view.value(name)
    return ValueIs(name, ABSENT if value is None else value)


def _departure(operation: Operation) -> Departure:
    befores = tuple(change.before for change in operation.changes if change.before is not None)
    return Departure(operation.time_us, befores)


# --- acting --------------------------------------------------------------------------------------------------


class _Run:
    """The steps of a plan, and of those that replace it."""

    def __init__(self, handle: Handle, request: ExpireRequest) -> None:
        self._handle = handle
        self._request = request
        self._snapshots: list[SnapshotId] = []
        self._refs: list[RefIs] = []

    def run(self) -> ExpireReport:
        planned = _plan(self._handle, self._request)
        refused = 0
        while not self._execute(planned):
            refused += 1
            if refused == _TRIES:
                raise ConflictError(
                    f"the repository's branches and settings kept moving: {len(self._snapshots)} snapshots expired, "
                    "others did not yet. Call expire_snapshots again."
                )
            self._wait(refused)
            planned = _plan(self._handle, self._request)
        self._strike_dead_leases(planned)
        names = {kind: tuple(sorted(ref.name for ref in self._refs if ref.kind == kind)) for kind in RefKind}
        done = Decision(tuple(self._snapshots), names[RefKind.BRANCH], names[RefKind.TAG], ())
        return _report(planned, done, dry_run=False)

    def _wait(self, refused: int) -> None:
        self._handle.clock.sleep(jitter(min(_FIRST_WAIT_S * 2**refused, _LONGEST_WAIT_S)))

    def _execute(self, planned: _Plan) -> bool:
        """Take the steps of a plan; return False at the first that does not hold any more."""
        safe = planned.safe
        for step in _steps(planned):
            for refused in range(_TRIES):
                outcome = self._take(planned, step, safe)
                if isinstance(outcome, Applied):
                    break
                if any(not isinstance(refusal.precondition, BranchesAre) for refusal in outcome.refusals):
                    return False
                # Protected branches move with each commit to them, which is no reason to look at all history anew.
                moved = self._follow(planned, safe)
                if moved is None:
                    return False
                safe = moved
                self._wait(refused)
            else:
                return False
            self._snapshots += step.snapshots
            self._refs += step.refs
        return True

    def _take(self, planned: _Plan, step: _Step, safe: BranchesAre) -> Outcome:
        besides = frozenset((ref.kind, ref.name) for ref in step.refs)
        free = NotHeld(frozenset(step.snapshots), planned.now_us, besides)
        updates: list[Update] = [
            DropRef(ref.kind, ref.name, retire=ref.kind == RefKind.TAG) for ref in step.refs
        ]
        if step.snapshots:
            updates.append(DropSnapshots(step.snapshots))
        return self._handle.update_online(
            OperationKind.EXPIRE,
            (*planned.rules, safe, free, *step.refs),
            tuple(updates),
            {"snapshots": len(step.snapshots)},
        )

    def _follow(self, planned: _Plan, safe: BranchesAre) -> BranchesAre | None:
        """Return what protected branches hold now, or None if they may reach something that was to go."""
        going = set(planned.decision.expired)
        with self._handle.catalog.reading() as view:
            held = matching_branches(view, safe.patterns)
            pending = [head for name, head in held if (name, head) not in safe.held]
            # Nothing goes that was reached by them when the plan was made.
            known = {head for _, head in (*planned.safe.held, *safe.held)}
            for _ in range(_FOLLOWED):
                if not pending:
                    return BranchesAre(safe.patterns, held)
                snapshot = pending.pop()
                if snapshot in going:
                    return None
                entry = None if snapshot in known else look_up(view, snapshot)
                known.add(snapshot)
                pending += () if entry is None else entry.parents
        return None

    def _strike_dead_leases(self, planned: _Plan) -> None:
        """Remove leases that ended long ago. One that was renewed just now stays: the next run looks again."""
        dead = planned.dead_leases[:_DEAD_LEASES_AT_ONCE]
        if dead:
            self._handle.update_online(
                OperationKind.CLOSE_SESSION,
                tuple(map(SessionIs, dead)),
                tuple(CloseSession(entry.session) for entry in dead),
                {},
            )


def _steps(planned: _Plan) -> Iterator[_Step]:
    """Yield what goes in each transaction: what no ref holds first, then snapshots with the refs that hold them."""
    decision, holders = planned.decision, planned.holders
    holding: dict[SnapshotId, list[RefIs]] = defaultdict(list)
    for kind, names, held in (
        (RefKind.BRANCH, decision.branches, holders.branches),
        (RefKind.TAG, decision.tags, holders.tags),
    ):
        for name in names:
            holding[held[name]].append(RefIs(kind, name, held[name]))
    loose = [snapshot for snapshot in decision.expired if snapshot not in holding]
    for start in range(0, len(loose), _STEP_CHANGES):
        yield _Step(tuple(loose[start : start + _STEP_CHANGES]), ())
    snapshots: list[SnapshotId] = []
    refs: list[RefIs] = []
    for snapshot, held_by in holding.items():
        *earlier, last = (
            held_by[start : start + _STEP_CHANGES] for start in range(0, len(held_by), _STEP_CHANGES)
        )
        for some in earlier:
            yield _Step((), tuple(some))
        if snapshots and len(snapshots) + len(refs) + len(last) >= _STEP_CHANGES:
            yield _Step(tuple(snapshots), tuple(refs))
            snapshots, refs = [], []
        snapshots.append(snapshot)
        refs += last
    if snapshots:
        yield _Step(tuple(snapshots), tuple(refs))
