"""Much of everything."""

from __future__ import annotations

import pytest

from vstore.catalog.base import (
    ABSENT,
    AddSnapshot,
    Catalog,
    DropRef,
    MarkPacks,
    RefIs,
    RescuePacks,
    Retained,
    SetRef,
    Update,
)
from vstore.format.record import (
    PackMark,
    PackState,
)
from vstore.ids import (
    SnapshotId,
)
from vstore.testing.catalog_contract.making import (
    BRANCH,
    MAIN,
    ROOT,
    TAG,
    CatalogTests,
    Reopen,
    apply,
    entry_of,
    pack_of,
)


class SizeTests(CatalogTests):
    """What was written long ago or at once is all there."""

    @pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.deep)])
    def test_a_long_history(self, catalog: Catalog, reopen: Reopen, count: int) -> None:
        parent = ROOT
        entries = [ROOT]
        for number in range(count):
            parent = entry_of(f"snapshot {number}", parent.id)
            updates: list[Update] = [AddSnapshot(parent), SetRef(BRANCH, MAIN, parent.id)]
            if number % 3 == 0:
                updates += [SetRef(TAG, f"v{number}", parent.id), SetRef(BRANCH, f"old{number}", parent.id)]
            if number % 9 == 8:
                updates += [DropRef(BRANCH, f"old{number - 2}"), DropRef(TAG, f"v{number - 2}", retire=True)]
            assert (
                len(apply(catalog, *updates, given=[Retained((entries[-1].id,))]).changes) == len(updates) - 1
            )
            entries.append(parent)
        dropped = {number - 2 for number in range(8, count, 9)}
        kept = [number for number in range(0, count, 3) if number not in dropped]
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert {entry.id: entry for entry in view.iter_snapshots()} == {e.id: e for e in entries}
                assert [view.snapshot(entry.id) for entry in entries] == entries
                assert dict(view.iter_refs(TAG)) == {f"v{n}": entries[n + 1].id for n in kept}
                branches = {f"old{n}": entries[n + 1].id for n in kept}
                assert dict(view.iter_refs(BRANCH)) == branches | {MAIN: parent.id}
                assert [n for n in range(count) if view.is_retired(TAG, f"v{n}")] == sorted(dropped)
                assert view.find_snapshots("", count + 9) == sorted(entry.id for entry in entries)
                numbers = [operation.sequence for operation in view.iter_operations()]
                assert numbers == list(range(count, -1, -1))
                assert len(set(view.iter_pages())) == len(list(view.iter_pages()))
        assert catalog.check() == []

    def test_what_was_written_long_ago_can_be_changed(self, catalog: Catalog, reopen: Reopen) -> None:
        expected: dict[str, SnapshotId] = {}
        entries = []
        for number in range(150):
            entry = entry_of(f"snapshot {number}")
            apply(
                catalog,
                AddSnapshot(entry),
                SetRef(TAG, f"v{number:03}-{'x' * 60}", entry.id),
                MarkPacks((PackState(pack_of(number), PackMark.CONDEMNED, 0, None),)),
            )
            entries.append(entry)
            expected[f"v{number:03}-{'x' * 60}"] = entry.id
        names = sorted(expected)
        for old, new in ((3, 9), (0, 1), (70, 2)):
            apply(catalog, SetRef(TAG, names[old], entries[new].id))
            expected[names[old]] = entries[new].id
        for gone in (5, 1, 99):
            apply(catalog, DropRef(TAG, names[gone]))
            del expected[names[gone]]
        apply(
            catalog, DropRef(TAG, names[7], retire=True), RescuePacks(frozenset(map(pack_of, range(4, 150))))
        )
        del expected[names[7]]
        for handle in (catalog, reopen()):
            with handle.reading() as view:
                assert list(view.iter_refs(TAG)) == sorted(expected.items())
                assert {name: view.ref(TAG, name) for name in names} == {n: expected.get(n) for n in names}
                assert [name for name in names if view.is_retired(TAG, name)] == [names[7]]
                assert [state.pack for state in view.pack_states(None)] == list(map(pack_of, range(4)))
                assert view.pack_states(frozenset([pack_of(2), pack_of(77)])) == [
                    PackState(pack_of(2), PackMark.CONDEMNED, 0, None)
                ]
        apply(catalog, SetRef(TAG, names[5], ROOT.id), given=[RefIs(TAG, names[5], ABSENT)])
        with reopen().reading() as view:
            assert view.ref(TAG, names[5]) == ROOT.id

    def test_one_large_transaction(self, catalog: Catalog, reopen: Reopen) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(2000)]
        updates: list[Update] = [AddSnapshot(entry) for entry in entries]
        updates += [SetRef(TAG, f"v{number}", entry.id) for number, entry in enumerate(entries)]
        operation = apply(catalog, *updates)
        assert len(operation.changes) == 2000
        with reopen().reading() as view:
            assert next(view.iter_operations()) == operation
            assert view.find_transaction(operation.transaction, 0) == operation
            assert dict(view.iter_refs(TAG)) == {f"v{n}": entry.id for n, entry in enumerate(entries)}
            assert sorted(view.iter_snapshots()) == sorted([ROOT, *entries])
