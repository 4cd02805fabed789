"""Entries of snapshots."""

from __future__ import annotations

import pytest

from vstore.catalog.base import (
    AddSnapshot,
    Catalog,
    Retained,
)
from vstore.errors import InvalidInputError
from vstore.testing.catalog_contract.making import (
    ROOT,
    CatalogTests,
    Reopen,
    apply,
    entry_of,
    pack_of,
    refuse,
)


class SnapshotTests(CatalogTests):
    """How snapshots are added and found."""

    def test_several_snapshots_may_be_added_at_once(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [entry_of(f"snapshot {number}", ROOT.id) for number in range(5)]
        apply(catalog, *map(AddSnapshot, entries))
        alone = entry_of("alone")._replace(info=None, jump=None)
        apply(catalog, AddSnapshot(alone))
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert [view.snapshot(entry.id) for entry in entries] == entries
                assert view.snapshot(alone.id) == alone
                assert sorted(view.iter_snapshots()) == sorted([ROOT, alone, *entries])

    def test_a_snapshot_may_be_added_again(self, catalog: Catalog) -> None:
        new = entry_of("new")
        moved = new._replace(ref=new.ref._replace(pack=pack_of(1)))
        apply(catalog, AddSnapshot(new), AddSnapshot(entry_of("other")))
        apply(catalog, AddSnapshot(new))
        apply(catalog, AddSnapshot(moved))
        with catalog.reading() as view:
            assert view.snapshot(new.id) in (new, moved)
            assert [entry.id for entry in view.iter_snapshots()].count(new.id) == 1
            assert view.find_snapshots(new.id.hex()[:8], 9) == [new.id]
        assert catalog.check() == []

    def test_snapshots_are_found_by_prefix(self, catalog: Catalog) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(40)]
        for entry in entries[:20]:
            apply(catalog, AddSnapshot(entry))
        apply(catalog, *map(AddSnapshot, entries[20:]))
        ids = sorted([ROOT.id, *(entry.id for entry in entries)])
        with catalog.reading() as view:
            for snapshot in ids:
                text = snapshot.hex()
                for length in (1, 2, 3, 8, 63, 64):
                    expected = [other for other in ids if other.hex().startswith(text[:length])]
                    assert view.find_snapshots(text[:length], 99) == expected
                    assert view.find_snapshots(text[:length], 1) == expected[:1]
            assert view.find_snapshots("", 99) == ids
            assert view.find_snapshots("", 7) == ids[:7]
            assert view.find_snapshots("f" * 64, 9) == []
            assert view.find_snapshots("0" * 64, 9) == []

    @pytest.mark.parametrize("prefix", ["x", "AB", "0" * 65, " 1", "-1", "é"])
    def test_a_prefix_is_of_hex_digits(self, catalog: Catalog, prefix: str) -> None:
        with catalog.reading() as view, pytest.raises(InvalidInputError):
            view.find_snapshots(prefix, 2)

    def test_snapshots_must_be_retained(self, catalog: Catalog) -> None:
        absent = [entry_of("one").id, entry_of("two").id]
        assert refuse(catalog, Retained((absent[0], ROOT.id, absent[1]))) == [absent]
        apply(catalog, given=[Retained((ROOT.id,)), Retained(())])
