"""New catalogs and their refs."""

from __future__ import annotations

import pytest

from vstore.catalog.base import (
    ABSENT,
    CONFIG,
    AddSnapshot,
    Catalog,
    DropRef,
    NameUnused,
    RefIs,
    Refused,
    SetRef,
)
from vstore.format.record import (
    OperationKind,
    RefChange,
)
from vstore.testing.catalog_contract.making import (
    BRANCH,
    IDENTITY,
    MAIN,
    ROOT,
    TAG,
    CatalogTests,
    Reopen,
    apply,
    entry_of,
    refuse,
    transaction_of,
)


class RefTests(CatalogTests):
    """What branches and tags hold, and what a refusal says of it."""

    # A new catalog

    def test_a_new_catalog_holds_its_first_transaction(self, catalog: Catalog, reopen: Reopen) -> None:
        for handle in (catalog, reopen()):
            assert handle.identity == IDENTITY
            with handle.reading() as view:
                assert (view.sequence, view.epoch, view.identity) == (0, 0, IDENTITY)
                assert view.ref(BRANCH, MAIN) == ROOT.id
                assert view.snapshot(ROOT.id) == ROOT
                (operation,) = view.iter_operations()
            assert operation.sequence == 0
            assert operation.kind == OperationKind.CREATE_REPOSITORY
            assert operation.changes == (RefChange(BRANCH, MAIN, None, ROOT.id),)

    def test_what_was_seen_is_confirmed(self, catalog: Catalog, reopen: Reopen) -> None:
        assert catalog.confirm()
        handle = reopen()
        assert handle.confirm()
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        assert handle.confirm()
        with handle.reading() as view:
            assert view.ref(TAG, "v1") == ROOT.id

    def test_a_new_catalog_holds_nothing_else(self, catalog: Catalog) -> None:
        with catalog.reading() as view:
            assert list(view.iter_refs(TAG)) == []
            assert view.value(CONFIG) is None
            assert view.pack_states(None) == []
            assert list(view.iter_sessions()) == []
            assert view.snapshot(entry_of("other").id) is None
            assert view.ref(BRANCH, "other") is None
        assert catalog.check() == []

    # Refs

    def test_refs_are_listed_by_kind_and_sorted(self, catalog: Catalog) -> None:
        names = ["zoo", "a/b", "a", "Z", "é", "\U0001f600", "a-b", "10", "9"]
        for name in names:
            apply(catalog, SetRef(TAG, name, ROOT.id), given=[RefIs(TAG, name, ABSENT)])
        with catalog.reading() as view:
            assert list(view.iter_refs(TAG)) == [(name, ROOT.id) for name in sorted(names)]
            assert list(view.iter_refs(BRANCH)) == [(MAIN, ROOT.id)]
            assert view.ref(BRANCH, "zoo") is None

    @pytest.mark.parametrize("name", ["", "\ud800", "x" * 1000, "\0", "mai", "main2"])
    def test_any_text_may_be_asked_for(self, catalog: Catalog, name: str) -> None:
        with catalog.reading() as view:
            assert view.ref(BRANCH, name) is None
            assert not view.is_retired(BRANCH, name)
            assert view.value(name) is None

    def test_several_refs_change_at_once_or_not_at_all(self, catalog: Catalog) -> None:
        new = entry_of("new", ROOT.id)
        updates = (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id), SetRef(TAG, "v1", new.id))
        held = RefIs(BRANCH, MAIN, ROOT.id)
        refused = catalog.update(transaction_of(updates, (held, RefIs(TAG, "v1", ROOT.id))))
        assert isinstance(refused, Refused)
        assert [tuple(refusal) for refusal in refused.refusals] == [(RefIs(TAG, "v1", ROOT.id), None)]
        with catalog.reading() as view:
            assert (view.sequence, view.ref(BRANCH, MAIN), view.snapshot(new.id)) == (0, ROOT.id, None)
        operation = apply(catalog, *updates, given=(held, RefIs(TAG, "v1", ABSENT)))
        assert operation.changes == (
            RefChange(BRANCH, MAIN, ROOT.id, new.id),
            RefChange(TAG, "v1", None, new.id),
        )
        with catalog.reading() as view:
            assert (view.ref(BRANCH, MAIN), view.ref(TAG, "v1")) == (new.id, new.id)
            assert view.snapshot(new.id) == new

    def test_a_refusal_says_what_each_ref_holds(self, catalog: Catalog) -> None:
        other = entry_of("other").id
        assert refuse(
            catalog, RefIs(BRANCH, MAIN, other), RefIs(BRANCH, MAIN, ABSENT), RefIs(TAG, "v1", other)
        ) == [ROOT.id, ROOT.id, None]

    def test_a_deleted_ref_is_absent(self, catalog: Catalog) -> None:
        apply(catalog, SetRef(BRANCH, "dev", ROOT.id))
        operation = apply(catalog, DropRef(BRANCH, "dev"), given=[RefIs(BRANCH, "dev", ROOT.id)])
        assert operation.changes == (RefChange(BRANCH, "dev", ROOT.id, None),)
        with catalog.reading() as view:
            assert view.ref(BRANCH, "dev") is None
            assert not view.is_retired(BRANCH, "dev")
            assert list(view.iter_refs(BRANCH)) == [(MAIN, ROOT.id)]
        apply(catalog, SetRef(BRANCH, "dev", ROOT.id), given=[RefIs(BRANCH, "dev", ABSENT)])

    def test_dropping_an_absent_ref_changes_nothing(self, catalog: Catalog) -> None:
        assert apply(catalog, DropRef(TAG, "v1", retire=True)).changes == ()
        with catalog.reading() as view:
            assert not view.is_retired(TAG, "v1")

    def test_a_retired_name_stays_used_until_it_is_set_again(self, catalog: Catalog) -> None:
        apply(catalog, SetRef(TAG, "v1", ROOT.id), given=[NameUnused(TAG, "v1")])
        apply(catalog, DropRef(TAG, "v1", retire=True))
        with catalog.reading() as view:
            assert view.ref(TAG, "v1") is None
            assert view.is_retired(TAG, "v1")
            assert not view.is_retired(BRANCH, "v1")
            assert list(view.iter_refs(TAG)) == []
        assert refuse(catalog, NameUnused(TAG, "v1")) == ["v1"]
        apply(catalog, SetRef(TAG, "v1", ROOT.id), given=[RefIs(TAG, "v1", ABSENT)])
        with catalog.reading() as view:
            assert view.ref(TAG, "v1") == ROOT.id
            assert not view.is_retired(TAG, "v1")
