"""Which number a transaction may have although nobody said so."""

from __future__ import annotations

from vstore.catalog import log_unsettled
from vstore.catalog.log_unsettled import Unsettled
from vstore.ids import TransactionId

ONE, OTHER = (TransactionId(bytes([number]) * 16) for number in (1, 2))


def test_the_highest_number_counts() -> None:
    unsettled = Unsettled()
    unsettled.note(ONE, 7)
    unsettled.note(ONE, 5)
    assert ONE in unsettled
    assert unsettled.number(ONE) == 7
    assert OTHER not in unsettled


def test_it_is_settled_when_the_number_is_taken() -> None:
    unsettled = Unsettled()
    unsettled.note(ONE, 7)
    unsettled.settle(ONE, 6)
    assert ONE in unsettled
    unsettled.settle(ONE, 7)
    assert ONE not in unsettled
    unsettled.settle(OTHER, 7)


def test_a_try_that_did_not_land_leaves_an_earlier_one_in_doubt() -> None:
    unsettled = Unsettled()
    unsettled.note(ONE, 7)
    before = unsettled.number(ONE)
    unsettled.note(ONE, 9)
    unsettled.restore(ONE, before)
    assert unsettled.number(ONE) == 7
    unsettled.note(OTHER, 9)
    unsettled.restore(OTHER, None)
    assert OTHER not in unsettled


def test_only_the_newest_are_remembered() -> None:
    unsettled = Unsettled()
    ids = [TransactionId(number.to_bytes(16)) for number in range(log_unsettled._MAX_UNSETTLED + 2)]
    for number, transaction in enumerate(ids):
        unsettled.note(transaction, number)
    assert [transaction in unsettled for transaction in (*ids[:3], ids[-1])] == [False, False, True, True]
