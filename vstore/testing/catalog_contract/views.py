"""Views and handles."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from vstore.catalog.base import (
    AddSnapshot,
    Catalog,
    SetRef,
)
from vstore.testing.catalog_contract.making import (
    BRANCH,
    IDENTITY,
    MAIN,
    RACERS,
    ROOT,
    TAG,
    CatalogTests,
    Reopen,
    apply,
    commit_on,
    entry_of,
)


class ViewTests(CatalogTests):
    """What a view shows while others write, and what becomes of handles."""

    # Views

    def test_a_view_stays_as_it_is(self, catalog: Catalog, reopen: Reopen) -> None:
        with catalog.reading() as view:
            new = commit_on(catalog, MAIN, "new").changes[0].after
            apply(reopen(), SetRef(TAG, "v1", ROOT.id))
            assert (view.sequence, view.ref(BRANCH, MAIN), view.ref(TAG, "v1")) == (0, ROOT.id, None)
            assert len(list(view.iter_operations())) == 1
            with catalog.reading() as inner:
                assert (inner.sequence, inner.ref(BRANCH, MAIN), inner.ref(TAG, "v1")) == (2, new, ROOT.id)

    def test_each_handle_sees_the_newest_state(self, catalog: Catalog, reopen: Reopen) -> None:
        handles = [catalog, reopen(), reopen()]
        for number in range(30):
            operation = apply(handles[number % 3], SetRef(TAG, f"v{number}", ROOT.id))
            for handle in handles:
                with handle.reading() as view:
                    assert view.sequence == operation.sequence == number + 1
                    assert view.ref(TAG, f"v{number}") == ROOT.id

    def test_a_view_may_be_used_by_several_threads(self, catalog: Catalog) -> None:
        entries = [entry_of(f"snapshot {number}") for number in range(200)]
        for start in range(0, 200, 20):
            apply(catalog, *map(AddSnapshot, entries[start : start + 20]))
        with catalog.reading() as view, ThreadPoolExecutor(RACERS) as pool:
            assert list(pool.map(view.snapshot, [entry.id for entry in entries])) == entries
            assert list(pool.map(lambda _: len(list(view.iter_operations())), range(20))) == [11] * 20

    def test_no_handle_goes_backwards(self, catalog: Catalog) -> None:
        def look(_: int) -> bool:
            seen = []
            for _ in range(50):
                with catalog.reading() as view:
                    seen.append((view.sequence, len(list(view.iter_refs(TAG)))))
            return seen == sorted(seen) and all(sequence == tags for sequence, tags in seen)

        with ThreadPoolExecutor(RACERS) as pool:
            looking = [pool.submit(look, number) for number in range(RACERS - 1)]
            for number in range(40):
                apply(catalog, SetRef(TAG, f"v{number}", ROOT.id))
            assert all(future.result() for future in looking)

    # Handles

    def test_it_can_be_written(self, catalog: Catalog, reopen: Reopen) -> None:
        for handle in (catalog, reopen()):
            handle.check_writable()
            handle.check_writable()

    def test_it_may_be_used_after_close(self, catalog: Catalog) -> None:
        catalog.close()
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        with catalog.reading() as view:
            catalog.close()
            assert view.ref(TAG, "v1") == ROOT.id
        catalog.close()
        catalog.close()
        assert catalog.check() == []

    def test_it_pickles(self, catalog: Catalog) -> None:
        if not self.can_pickle:
            pytest.skip("no other process can reach it")
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        copy: Catalog = pickle.loads(pickle.dumps(catalog))
        with copy.reading() as view:
            assert (view.sequence, view.ref(TAG, "v1"), copy.identity) == (1, ROOT.id, IDENTITY)
        apply(copy, SetRef(TAG, "v2", ROOT.id))
        with catalog.reading() as view:
            assert view.ref(TAG, "v2") == ROOT.id
        copy.close()
