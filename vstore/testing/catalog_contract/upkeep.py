"""Values, marks of packs, the epoch, and sessions."""

from __future__ import annotations

from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    METADATA,
    AdvanceEpoch,
    Catalog,
    CloseSession,
    EpochIs,
    MarkPacks,
    OpenSession,
    PacksMarked,
    PacksUsable,
    RescuePacks,
    SessionOpen,
    SetRef,
    SetValue,
    UnmarkPacks,
    ValueIs,
)
from vstore.format.record import (
    PackMark,
    PackState,
    SessionEntry,
)
from vstore.ids import (
    SessionId,
)
from vstore.testing.catalog_contract.making import (
    ROOT,
    TAG,
    TIME_US,
    CatalogTests,
    Reopen,
    apply,
    pack_of,
    refuse,
)


class UpkeepTests(CatalogTests):
    """What settings, a collector and writers keep in a catalog."""

    # Values

    def test_values_change_by_comparison(self, catalog: Catalog, reopen: Reopen) -> None:
        apply(catalog, SetValue(METADATA, b'{"a": 1}'), given=[ValueIs(METADATA, ABSENT)])
        assert refuse(catalog, ValueIs(METADATA, b"{}"), ValueIs(METADATA, ABSENT)) == [b'{"a": 1}'] * 2
        assert refuse(catalog, ValueIs(CONFIG, b"{}")) == [None]
        apply(catalog, SetValue(METADATA, b"{}"), given=[ValueIs(METADATA, b'{"a": 1}')])
        with reopen().reading() as view:
            assert view.value(METADATA) == b"{}"
            assert view.value(CONFIG) is None

    def test_a_value_may_be_large(self, catalog: Catalog, reopen: Reopen) -> None:
        value = bytes(range(256)) * 4096
        apply(catalog, SetValue(CONFIG, value))
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        with reopen().reading() as view:
            assert view.value(CONFIG) == value

    # Packs and the epoch

    def test_pack_marks(self, catalog: Catalog, reopen: Reopen) -> None:
        states = [
            PackState(pack_of(1), PackMark.CONDEMNED, 1, None),
            PackState(pack_of(1), PackMark.REPLACING, 0, None),
            PackState(pack_of(2), PackMark.CONDEMNED, 0, None),
            PackState(pack_of(2), PackMark.RELOCATED, 0, pack_of(9)),
            PackState(pack_of(3), PackMark.DELETING, 1, None),
        ]
        apply(catalog, AdvanceEpoch(), MarkPacks(tuple(states)), given=[EpochIs(0)])
        assert refuse(catalog, EpochIs(0)) == [1]
        with reopen().reading() as view:
            assert view.epoch == 1
            assert view.pack_states(None) == sorted(states)
            assert view.pack_states(frozenset([pack_of(2), pack_of(7)])) == states[2:4]
            assert view.pack_states(frozenset()) == []

    def test_packs_that_are_deleted_or_replaced_are_not_usable(self, catalog: Catalog) -> None:
        states = tuple(
            PackState(pack_of(mark), mark, 0, pack_of(9) if mark is PackMark.RELOCATED else None)
            for mark in PackMark
        )
        apply(catalog, MarkPacks(states))
        packs = frozenset(map(pack_of, range(8)))
        assert refuse(catalog, PacksUsable(packs)) == [[states[1], states[3]]]
        usable = {pack_of(PackMark.CONDEMNED), pack_of(PackMark.REPLACING), pack_of(7)}
        apply(catalog, given=[PacksUsable(frozenset(usable)), PacksUsable(frozenset())])

    def test_rescue_strikes_what_is_only_intended(self, catalog: Catalog) -> None:
        states = [PackState(pack_of(number), mark, 0, None) for number in (1, 2) for mark in PackMark]
        apply(catalog, MarkPacks(tuple(states)))
        apply(catalog, RescuePacks(frozenset([pack_of(1), pack_of(5)])))
        kept = [
            s for s in states if s.pack == pack_of(2) or s.mark in (PackMark.DELETING, PackMark.RELOCATED)
        ]
        with catalog.reading() as view:
            assert view.pack_states(None) == kept

    def test_marks_are_compared_replaced_and_removed(self, catalog: Catalog) -> None:
        old = PackState(pack_of(1), PackMark.CONDEMNED, 0, None)
        new = PackState(pack_of(1), PackMark.CONDEMNED, 1, None)
        apply(catalog, AdvanceEpoch(), MarkPacks((old,)))
        assert refuse(catalog, PacksMarked((old, new))) == [[new]]
        apply(catalog, MarkPacks((new,)), given=[PacksMarked((old,))])
        with catalog.reading() as view:
            assert view.pack_states(None) == [new]
        apply(
            catalog,
            UnmarkPacks(frozenset([(pack_of(1), PackMark.CONDEMNED), (pack_of(2), PackMark.DELETING)])),
        )
        with catalog.reading() as view:
            assert view.pack_states(None) == []
        assert catalog.check() == []

    # Sessions

    def test_sessions_are_registered_until_they_are_closed(self, catalog: Catalog, reopen: Reopen) -> None:
        session = SessionId(b"session id of 16")
        entry = SessionEntry(session, 0, TIME_US, TIME_US + 1)
        assert refuse(catalog, SessionOpen(session)) == [session]
        apply(catalog, OpenSession(entry))
        apply(catalog, OpenSession(entry._replace(expires_us=TIME_US + 2)), given=[SessionOpen(session)])
        with reopen().reading() as view:
            assert view.session(session) == entry._replace(expires_us=TIME_US + 2)
            assert list(view.iter_sessions()) == [entry._replace(expires_us=TIME_US + 2)]
            assert view.session(SessionId(bytes(16))) is None
        apply(catalog, CloseSession(session))
        apply(catalog, CloseSession(session))
        with catalog.reading() as view:
            assert view.session(session) is None
            assert list(view.iter_sessions()) == []
