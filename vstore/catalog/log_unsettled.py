"""Transactions that a log was asked for without a clear answer: the highest number that each may have, or come to have.

Until that number is surely another's, a transaction must not be refused, as it may be applied yet.
"""

from __future__ import annotations

import contextlib

from vstore.ids import TransactionId

_MAX_UNSETTLED = 1024


class Unsettled:
    """The newest of them; older ones are forgotten. Several threads may be at it."""

    def __init__(self) -> None:
        self._numbers: dict[TransactionId, int] = {}

    def __contains__(self, transaction: TransactionId) -> bool:
        return transaction in self._numbers

    def number(self, transaction: TransactionId) -> int | None:
        """Return the highest number that a transaction may have, or None if all is known."""
        return self._numbers.get(transaction)

    def note(self, transaction: TransactionId, sequence: int) -> None:
        """Take note before a number is asked for, so that an interrupt leaves the truth."""
        self._numbers[transaction] = max(sequence, self._numbers.get(transaction, -1))
        while len(self._numbers) > _MAX_UNSETTLED:
            # Another thread may be at it too.
            with contextlib.suppress(RuntimeError, StopIteration):
                self._numbers.pop(next(iter(self._numbers)), None)

    def restore(self, transaction: TransactionId, before: int | None) -> None:
        """Take back a note, to what the number was `before`: that try surely did not land, but an earlier may have."""
        if before is None:
            self.forget(transaction)
        else:
            self._numbers[transaction] = before

    def settle(self, transaction: TransactionId, newest: int) -> None:
        """Forget a lost reply if the number that it was for is at most the `newest`, whose log lacks the transaction.

        It is another's then, so that no try can land any more.
        """
        number = self._numbers.get(transaction)
        if number is not None and number <= newest:
            self.forget(transaction)

    def forget(self, transaction: TransactionId) -> None:
        """Take note that the outcome is known."""
        self._numbers.pop(transaction, None)
