"""Leases of readers and registrations of writers: taken, renewed, given back, listed and ended by others."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import vstore
from tests.repositories import HandClock, Place, commit, contents, drop, write
from vstore.clock import to_datetime
from vstore.leases import MAX_LEASE_DAYS
from vstore.session import Session

HOUR = timedelta(hours=1)


@pytest.fixture
def repository(place: Place, clock: HandClock) -> Iterator[vstore.Repository]:
    with place.create(clock=clock, author="ada") as repository:
        commit(repository, {"x": b"1"})
        yield repository


def newest(repository: vstore.Repository) -> vstore.OperationInfo:
    return next(repository.ops_log())


def registered_writer(repository: vstore.Repository) -> Session:
    """Return a writable session that has told the catalog of itself, as it does before it seals a pack."""
    session = repository.writable_session("main")
    write(session, {"y": b"y" * 5000})
    session._draft.registration.begin()
    return session


def test_a_lease_is_listed_while_its_session_is_open(
    place: Place, repository: vstore.Repository, clock: HandClock
) -> None:
    snapshot = repository.lookup_branch("main")
    assert repository.list_leases() == []
    with repository.readonly_session("main", lease=HOUR) as reader:
        lease = reader.lease
        assert lease is not None
        now = to_datetime(clock.now_us())
        assert (lease.snapshot_id, lease.opened_at, lease.expires_at) == (snapshot, now, now + HOUR)
        with place.open() as opened:
            assert opened.list_leases() == opened.list_sessions() == [lease]
        assert newest(repository).kind == "open-session"
        assert contents(reader) == {"x": b"1"}
    assert repository.list_leases() == []
    assert (reader.lease, newest(repository).kind) == (None, "close-session")
    before = newest(repository)
    reader.close()
    assert newest(repository) == before


def test_a_session_without_a_lease_writes_nothing(repository: vstore.Repository) -> None:
    before = newest(repository)
    with repository.readonly_session("main") as reader:
        assert reader.lease is None
    assert newest(repository) == before


def test_each_session_has_its_own_lease(repository: vstore.Repository, clock: HandClock) -> None:
    first = repository.readonly_session("main", lease=HOUR)
    clock.sleep(1)
    second = repository.readonly_session("main", lease=HOUR)
    assert repository.list_leases() == [first.lease, second.lease]
    first.close()
    assert repository.list_leases() == [second.lease]


def test_a_lease_is_renewed_and_never_gets_shorter(repository: vstore.Repository, clock: HandClock) -> None:
    with repository.readonly_session("main", lease=HOUR) as reader:
        taken = reader.lease
        assert taken is not None
        clock.sleep(1800)
        renewed = reader.renew_lease(HOUR)
        assert renewed.expires_at == taken.expires_at + HOUR / 2
        assert (renewed.id, renewed.opened_at) == (taken.id, taken.opened_at)
        assert repository.list_leases() == [renewed] == [reader.lease]
        assert reader.renew_lease(timedelta(seconds=1)) == renewed
        clock.time_us -= 10 * 3_600_000_000
        assert reader.renew_lease(HOUR) == renewed


def test_a_lease_may_be_taken_later(repository: vstore.Repository) -> None:
    with repository.readonly_session("main") as reader:
        lease = reader.renew_lease(HOUR)
        assert repository.list_leases() == [lease]
    assert repository.list_leases() == []


def test_a_lease_whose_time_is_over_is_renewed_while_the_snapshot_is_there(
    repository: vstore.Repository, clock: HandClock
) -> None:
    reader = repository.readonly_session("main", lease=HOUR)
    clock.sleep(7200)
    assert reader.renew_lease(HOUR).expires_at == to_datetime(clock.now_us()) + HOUR
    clock.sleep(7200)
    commit(repository, {"x": b"2"})
    drop(repository, reader.snapshot_id)
    before = newest(repository)
    with pytest.raises(vstore.SnapshotExpiredError, match=reader.snapshot_id):
        reader.renew_lease(HOUR)
    assert newest(repository) == before


@pytest.mark.parametrize(
    "duration",
    [timedelta(0), timedelta(seconds=-1), timedelta(days=MAX_LEASE_DAYS, microseconds=1), 3600, "1h", None],
)
def test_impossible_leases_are_refused(repository: vstore.Repository, duration: Any) -> None:
    before = newest(repository)
    with (
        repository.readonly_session("main") as reader,
        pytest.raises(vstore.InvalidInputError, match="lease"),
    ):
        reader.renew_lease(duration)
    if duration is not None:
        with pytest.raises(vstore.InvalidInputError, match="lease"):
            repository.readonly_session("main", lease=duration)
    assert newest(repository) == before


def test_leases_are_for_readers(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    with pytest.raises(vstore.SessionStateError, match="read-only"):
        session.renew_lease(HOUR)
    write(session, {"x": b"2"})
    made = session.commit("done")
    assert session.renew_lease(HOUR).snapshot_id == made


def test_a_copy_of_a_session_has_no_lease(place: Place, repository: vstore.Repository) -> None:
    if place.kind == "memory":
        pytest.skip("a memory store reaches only its own process")
    reader = repository.readonly_session("main", lease=HOUR)
    copy = pickle.loads(pickle.dumps(reader))
    assert (copy.lease, copy == reader) == (None, True)
    own = copy.renew_lease(HOUR)
    assert own.id != reader.lease.id  # type: ignore[union-attr]
    copy.close()
    assert repository.list_leases() == [reader.lease]


def test_a_branch_that_moves_on_before_the_lease_is_followed(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = repository.lookup_branch("main")
    really = Session.renew_lease

    def late(self: Session, duration: timedelta) -> Any:
        monkeypatch.setattr(Session, "renew_lease", really)
        commit(repository, {"x": b"2"})
        drop(repository, old)
        return really(self, duration)

    monkeypatch.setattr(Session, "renew_lease", late)
    reader = repository.readonly_session("main", lease=HOUR)
    assert reader.snapshot_id == repository.lookup_branch("main") != old
    assert repository.list_leases() == [reader.lease]


def test_no_lease_on_a_snapshot_that_expired_meanwhile(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = repository.lookup_branch("main")
    commit(repository, {"x": b"2"})
    really = Session.renew_lease

    def late(self: Session, duration: timedelta) -> Any:
        drop(repository, old)
        return really(self, duration)

    monkeypatch.setattr(Session, "renew_lease", late)
    with pytest.raises(vstore.SnapshotExpiredError, match=old):
        repository.readonly_session(snapshot_id=old, lease=HOUR)
    assert repository.list_leases() == []


def test_a_read_only_repository_gives_no_leases_and_takes_them_back_later(
    repository: vstore.Repository,
) -> None:
    reader = repository.readonly_session("main", lease=HOUR)
    repository.set_status("read_only")
    with pytest.raises(vstore.ReadOnlyError):
        repository.readonly_session("main", lease=HOUR)
    reader.close()
    repository.set_status("online")
    assert len(repository.list_leases()) == 1


# --- ended by others -----------------------------------------------------------------------------------------


def test_the_commit_of_an_abandoned_writer_fails_cleanly(
    place: Place, repository: vstore.Repository, clock: HandClock
) -> None:
    session = registered_writer(repository)
    (known,) = repository.list_sessions()
    assert (known.id, known.snapshot_id, repository.list_leases()) == (session.id, None, [])
    before = repository.lookup_branch("main")
    with place.open(clock=clock, author="eve") as opened:
        opened.abandon_session(session.id)
        assert (newest(opened).kind, newest(opened).author) == ("close-session", "eve")
    with pytest.raises(vstore.SessionStateError, match="abandoned"):
        session.commit("late")
    assert repository.lookup_branch("main") == before
    session.close()
    with repository.writable_session("main") as fresh:
        write(fresh, {"y": b"again"})
        fresh.commit("again")


def test_a_lease_of_a_crashed_reader_is_ended(repository: vstore.Repository) -> None:
    reader = repository.readonly_session("main", lease=HOUR)
    (lease,) = repository.list_leases()
    repository.abandon_session(lease)
    assert repository.list_leases() == []
    # The reader, which lives after all, goes on, and hears of it.
    assert contents(reader) == {"x": b"1"}
    with pytest.raises(vstore.SessionStateError, match="ended by somebody else"):
        reader.renew_lease(HOUR)
    assert repository.list_leases() == []
    reader.close()


def test_only_what_is_registered_is_abandoned(repository: vstore.Repository) -> None:
    session = registered_writer(repository)
    before = newest(repository)
    with pytest.raises(vstore.NotFoundError, match="list_sessions"):
        repository.abandon_session("ab" * 16)
    for wrong in ("", "ab" * 15, "xy" * 16, session.id[:8], None, 5):
        with pytest.raises(vstore.InvalidInputError, match="list_sessions"):
            repository.abandon_session(wrong)  # type: ignore[arg-type]
    assert newest(repository) == before
    repository.abandon_session(session.id)
    with pytest.raises(vstore.NotFoundError):
        repository.abandon_session(session.id)


def test_closing_a_writer_of_a_repository_that_became_read_only_is_quiet(
    repository: vstore.Repository,
) -> None:
    session = registered_writer(repository)
    repository.set_status("read_only")
    session.close()
    repository.set_status("online")
    (left,) = repository.list_sessions()
    repository.abandon_session(left.id)


def test_the_async_twins(repository: vstore.Repository) -> None:
    async def act() -> None:
        reader = await repository.readonly_session_async("main", lease=HOUR)
        lease = await reader.renew_lease_async(2 * HOUR)
        assert await repository.list_leases_async() == await repository.list_sessions_async() == [lease]
        await repository.abandon_session_async(lease.id)

    asyncio.run(act())
    assert repository.list_leases() == []
