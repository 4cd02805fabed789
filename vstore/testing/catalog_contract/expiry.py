"""Expired snapshots, and what holds one."""

from __future__ import annotations

from vstore.catalog.base import (
    AddSnapshot,
    Applied,
    BranchesAre,
    Catalog,
    CloseSession,
    DropRef,
    DropSnapshots,
    NotHeld,
    OpenSession,
    Retained,
    SessionIs,
    SetRef,
)
from vstore.format.record import (
    Operation,
    SessionEntry,
)
from vstore.ids import (
    SessionId,
)
from vstore.testing.catalog_contract.making import (
    BRANCH,
    MAIN,
    ROOT,
    TAG,
    TIME_US,
    CatalogTests,
    Reopen,
    apply,
    entry_of,
    expired_of,
    lease_of,
    pack_of,
    refuse,
    transaction_of,
)


class ExpiryTests(CatalogTests):
    """What stays of a snapshot that expires, and what keeps it from expiring."""

    def test_what_is_dropped_leaves_its_place_in_history(self, catalog: Catalog, reopen: Reopen) -> None:
        # Alone in its operation, among several, and never there.
        alone, kept = entry_of("alone", ROOT.id), entry_of("kept", ROOT.id)
        several = [entry_of(f"snapshot {number}", alone.id, kept.id) for number in range(4)]
        apply(catalog, AddSnapshot(alone), SetRef(TAG, "v1", alone.id))
        apply(catalog, AddSnapshot(kept))
        added = apply(catalog, *map(AddSnapshot, several))
        before = self._log(catalog)
        gone = [ROOT, alone, *several[:2]]
        absent = entry_of("absent")
        done = apply(catalog, DropSnapshots((*(entry.id for entry in gone), absent.id)))
        assert done.changes == ()
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert sorted(view.iter_snapshots()) == sorted([kept, *several[2:]])
                assert sorted(view.iter_expired()) == sorted(map(expired_of, gone))
                assert [view.snapshot(entry.id) for entry in gone] == [None] * 4
                assert [view.expired(entry.id) for entry in gone] == list(map(expired_of, gone))
                for other in (kept.id, several[3].id, absent.id):
                    assert view.expired(other) is None
                assert view.snapshot(kept.id) == kept
                assert view.find_transaction(added.transaction, 0) == added
            # Operations are kept as they were.
            assert self._log(handle) == [done, *before]
        assert refuse(catalog, Retained((kept.id, alone.id))) == [[alone.id]]

    @staticmethod
    def _log(catalog: Catalog) -> list[Operation]:
        with catalog.reading() as view:
            return list(view.iter_operations())

    def test_expired_snapshots_are_found_by_prefix(self, catalog: Catalog) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(40)]
        for entry in entries[:20]:
            apply(catalog, AddSnapshot(entry))
        apply(catalog, *map(AddSnapshot, entries[20:]))
        apply(catalog, DropSnapshots(tuple(entry.id for entry in entries[10:30])))
        ids = sorted([ROOT.id, *(entry.id for entry in entries)])
        with catalog.reading() as view:
            for snapshot in ids:
                text = snapshot.hex()
                for length in (1, 2, 8, 64):
                    expected = [other for other in ids if other.hex().startswith(text[:length])]
                    assert view.find_snapshots(text[:length], 99) == expected
                    assert view.find_snapshots(text[:length], 1) == expected[:1]
            assert view.find_snapshots("", 99) == ids
            assert view.find_snapshots("", 7) == ids[:7]

    def test_dropping_again_changes_nothing_and_adding_again_retains(
        self, catalog: Catalog, reopen: Reopen
    ) -> None:
        new, other = entry_of("new", ROOT.id), entry_of("other", ROOT.id)
        apply(catalog, AddSnapshot(new))
        apply(catalog, AddSnapshot(other))
        for _ in range(2):
            apply(catalog, DropSnapshots((new.id, other.id)))
            with catalog.reading() as view:
                assert list(view.iter_snapshots()) == [ROOT]
                assert sorted(view.iter_expired()) == sorted([expired_of(new), expired_of(other)])
        moved = new._replace(ref=new.ref._replace(pack=pack_of(1)))
        apply(catalog, AddSnapshot(moved))
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert (view.snapshot(new.id), view.snapshot(other.id)) == (moved, None)
                assert view.find_snapshots(new.id.hex()[:8], 9) == [new.id]
                assert view.find_snapshots("", 9) == sorted([ROOT.id, new.id, other.id])
        apply(catalog, DropSnapshots((new.id,)))
        with reopen().reading() as view:
            assert (view.snapshot(new.id), view.expired(new.id)) == (None, expired_of(new))
            assert [entry.id for entry in view.iter_snapshots()] == [ROOT.id]
        assert catalog.check() == []

    def test_check_finds_a_ref_to_an_expired_snapshot(self, catalog: Catalog) -> None:
        apply(catalog, DropSnapshots((ROOT.id,)))
        (found,) = catalog.check()
        assert f"branch 'main' points at snapshot {ROOT.id.hex()}, which is not retained" in found

    def test_what_a_ref_holds_is_held(self, catalog: Catalog) -> None:
        one, other = entry_of("one"), entry_of("other")
        apply(catalog, AddSnapshot(one), AddSnapshot(other))
        apply(catalog, SetRef(TAG, "v1", one.id), SetRef(BRANCH, "dev", one.id), SetRef(TAG, "v2", ROOT.id))
        unwanted = frozenset([ROOT.id, one.id, other.id])
        assert refuse(catalog, NotHeld(unwanted, TIME_US)) == [sorted([ROOT.id, one.id])]
        besides = frozenset([(TAG, "v1"), (BRANCH, MAIN), (TAG, "v2")])
        assert refuse(catalog, NotHeld(unwanted, TIME_US, besides)) == [[one.id]]
        apply(catalog, given=[NotHeld(unwanted, TIME_US, besides | {(BRANCH, "dev")})])
        apply(catalog, given=[NotHeld(frozenset([other.id]), TIME_US), NotHeld(frozenset(), TIME_US)])
        apply(catalog, DropRef(TAG, "v1", retire=True), DropRef(BRANCH, "dev"))
        apply(catalog, given=[NotHeld(frozenset([one.id]), TIME_US)])

    def test_a_lease_holds_until_it_ends(self, catalog: Catalog, reopen: Reopen) -> None:
        one, other = entry_of("one"), entry_of("other")
        apply(catalog, AddSnapshot(one), AddSnapshot(other))
        lease = lease_of("reader", one.id)
        writer = SessionEntry(SessionId(b"session id of 16"), 0, TIME_US, TIME_US + 99)
        apply(catalog, OpenSession(lease), OpenSession(writer))
        with reopen().reading() as view:
            assert view.session(lease.session) == lease
            assert sorted(view.iter_sessions()) == sorted([lease, writer])
        unwanted = frozenset([one.id, other.id])
        assert refuse(catalog, NotHeld(unwanted, TIME_US + 9)) == [[one.id]]
        apply(catalog, given=[NotHeld(unwanted, TIME_US + 10)])
        apply(catalog, OpenSession(lease._replace(expires_us=TIME_US + 20)), given=[SessionIs(lease)])
        assert refuse(catalog, NotHeld(unwanted, TIME_US + 19), SessionIs(lease)) == [
            [one.id],
            lease._replace(expires_us=TIME_US + 20),
        ]
        apply(catalog, CloseSession(lease.session))
        apply(catalog, given=[NotHeld(unwanted, TIME_US)])
        assert refuse(catalog, SessionIs(lease)) == [None]

    def test_branches_are_compared_by_name_and_glob(self, catalog: Catalog) -> None:
        new = entry_of("new")
        apply(catalog, AddSnapshot(new), *(SetRef(BRANCH, name, new.id) for name in ("r/2", "r/1", "dev")))
        apply(catalog, SetRef(TAG, "r/3", new.id))
        found = (("main", ROOT.id), ("r/1", new.id), ("r/2", new.id))
        wanted = ("main", "r/*", "r/1", "none")
        assert refuse(catalog, BranchesAre(wanted, found[:2]), BranchesAre(wanted, ())) == [found] * 2
        apply(catalog, given=[BranchesAre(wanted, found), BranchesAre((), ()), BranchesAre(("none",), ())])

    def test_thousands_expire_at_once(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [entry_of(f"snapshot {number}", ROOT.id) for number in range(3000)]
        apply(catalog, *map(AddSnapshot, entries[:2500]))
        for entry in entries[2500:2600]:
            apply(catalog, AddSnapshot(entry))
        apply(catalog, *map(AddSnapshot, entries[2600:]))
        gone, kept = entries[1:2900], [ROOT, entries[0], *entries[2900:]]
        drop = transaction_of(
            [DropSnapshots(tuple(entry.id for entry in gone))],
            [NotHeld(frozenset(entry.id for entry in gone), TIME_US)],
        )
        done = catalog.update(drop)
        assert isinstance(done, Applied)
        assert catalog.update(drop) == done
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert sorted(view.iter_snapshots()) == sorted(kept)
                assert sorted(view.iter_expired()) == sorted(map(expired_of, gone))
                assert view.find_snapshots("", 9999) == sorted(entry.id for entry in (ROOT, *entries))
                for entry in gone[::97]:
                    assert (view.snapshot(entry.id), view.expired(entry.id)) == (None, expired_of(entry))
                assert next(view.iter_operations()) == done.operation
        assert catalog.check() == []

    def test_a_history_that_expires_as_it_grows(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [ROOT]
        for number in range(240):
            entry = entry_of(f"snapshot {number}", entries[-1].id)
            apply(catalog, AddSnapshot(entry), SetRef(BRANCH, MAIN, entry.id))
            entries.append(entry)
            if number % 20 == 19:
                old = tuple(entry.id for entry in entries[number - 19 : number + 1])
                apply(catalog, DropSnapshots(old), given=[NotHeld(frozenset(old), TIME_US)])
        gone = entries[:240]
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert list(view.iter_snapshots()) == entries[240:]
                assert sorted(view.iter_expired()) == sorted(map(expired_of, gone))
                assert [view.expired(entry.id) for entry in gone] == list(map(expired_of, gone))
                assert view.sequence == 240 + 12
        assert catalog.check() == []
