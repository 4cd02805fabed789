"""The operations log, and transactions that are sent again."""

from __future__ import annotations

import pytest

from vstore.catalog.base import (
    CONFIG,
    AddSnapshot,
    Applied,
    Catalog,
    DropRef,
    RefIs,
    Refused,
    SetRef,
    SetValue,
)
from vstore.errors import InvalidInputError
from vstore.format.record import (
    Operation,
    OperationKind,
)
from vstore.ids import (
    new_transaction_id,
)
from vstore.testing.catalog_contract.making import (
    AUTHOR,
    BRANCH,
    IMPOSSIBLE,
    MAIN,
    ROOT,
    TAG,
    TIME_US,
    CatalogTests,
    Reopen,
    apply,
    entry_of,
    transaction_of,
)


class OperationTests(CatalogTests):
    """What is remembered of a transaction, which is applied at most once."""

    # The operations log

    def test_operations_are_listed_newest_first(self, catalog: Catalog, reopen: Reopen) -> None:
        done = [apply(catalog, SetRef(TAG, f"v{number}", ROOT.id)) for number in range(300)]
        with reopen().reading() as view:
            listed = list(view.iter_operations())
            assert listed[:-1] == done[::-1]
            assert [operation.sequence for operation in listed] == list(range(300, -1, -1))
            # Lazily: several at once, and not to the end.
            first, second = view.iter_operations(), view.iter_operations()
            assert (next(first), next(second), next(first)) == (done[-1], done[-1], done[-2])

    def test_an_operation_says_who_what_and_when(self, catalog: Catalog) -> None:
        details = {"text": "é\0", "number": -1.5, "large": 2**62, "list": [1, None, {"deep": True}], "": {}}
        wanted = transaction_of((), kind=OperationKind.SET_STATUS, details=details)
        outcome = catalog.update(wanted)
        assert outcome == Applied(
            Operation(1, wanted.transaction, OperationKind.SET_STATUS, TIME_US, AUTHOR, (), details)
        )
        with catalog.reading() as view:
            assert Applied(next(view.iter_operations())) == outcome

    def test_a_transaction_is_found_after_since(self, catalog: Catalog, reopen: Reopen) -> None:
        done = [apply(catalog, SetValue(CONFIG, b"{}")) for _ in range(400)]
        with reopen().reading() as view:
            for operation in (done[0], done[100], done[143], done[144], done[370], done[-1]):
                for since in (0, operation.sequence - 1):
                    assert view.find_transaction(operation.transaction, since) == operation
                for since in (operation.sequence, view.sequence):
                    assert view.find_transaction(operation.transaction, since) is None
            assert view.find_transaction(new_transaction_id(), 0) is None

    # Once

    def test_a_transaction_is_applied_at_most_once(self, catalog: Catalog, reopen: Reopen) -> None:
        new = entry_of("new")
        wanted = transaction_of(
            (AddSnapshot(new), SetRef(BRANCH, MAIN, new.id)),
            (RefIs(BRANCH, MAIN, ROOT.id),),
            details={"a": (1, 2)},
        )
        outcome = catalog.update(wanted)
        assert isinstance(outcome, Applied)
        assert catalog.update(wanted) == outcome
        apply(catalog, SetRef(BRANCH, MAIN, ROOT.id), DropRef(TAG, "v1"))
        for handle in (catalog, reopen()):
            assert handle.update(wanted) == outcome
            with handle.reading() as view:
                assert (view.sequence, view.ref(BRANCH, MAIN)) == (2, ROOT.id)

    def test_a_refused_transaction_may_be_tried_again(self, catalog: Catalog) -> None:
        wanted = transaction_of([SetRef(TAG, "v2", ROOT.id)], [RefIs(TAG, "v1", ROOT.id)])
        assert isinstance(catalog.update(wanted), Refused)
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
        assert isinstance(catalog.update(wanted), Applied)

    @pytest.mark.parametrize("name", IMPOSSIBLE)
    def test_impossible_transactions_are_told_apart_from_refused_ones(
        self, catalog: Catalog, name: str
    ) -> None:
        with pytest.raises(InvalidInputError):
            catalog.update(IMPOSSIBLE[name])
        with catalog.reading() as view:
            assert view.sequence == 0
        apply(catalog, SetRef(TAG, "v1", ROOT.id))
