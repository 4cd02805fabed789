"""Which request meets which fault: all that can be, or a sample that is always the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple, TypeVar

from vstore.testing.proxy import (
    CORRUPT,
    DROP_AFTER,
    DROP_BEFORE,
    TRUNCATE,
    Exchange,
    FaultKind,
    NetworkFault,
    answer,
    delay,
    hold,
    stall,
)

T = TypeVar("T")

STATUSES = (409, 412, 429, 500, 503)
FAULTS = (
    DROP_BEFORE,
    DROP_AFTER,
    *(answer(status, applied=applied) for status in STATUSES for applied in (False, True)),
    stall(applied=False),
    stall(applied=True),
    TRUNCATE,
    CORRUPT,
    hold(1),
    hold(1000, drops=True),
    delay(0.001),
)
PASSING = (FaultKind.DELAY, FaultKind.CORRUPT)
"""Not the beginning of an outage."""


class Case(NamedTuple):
    """Request `number` meets `fault`. With `outage` all that follow are dropped; see `trial.try_fault`."""

    number: int
    fault: NetworkFault
    outage: bool = False
    lands_first: bool = True

    @property
    def is_quick(self) -> bool:
        return is_quick(self.fault)


def is_quick(fault: NetworkFault) -> bool:
    """Tell whether no client has to lose its patience for it."""
    return fault.kind is not FaultKind.STALL and (fault.kind is not FaultKind.HOLD or fault.drops)


def iter_cases(requests: Sequence[Exchange]) -> Iterator[Case]:
    """Yield every case for an operation."""
    for number, fault, outage in product(range(len(requests)), FAULTS, (False, True)):
        if outage and fault.kind in PASSING:
            continue
        yield Case(number, fault, outage)
        if fault.kind is FaultKind.HOLD:
            yield Case(number, fault, outage, lands_first=False)


def sample_pairs(requests: Sequence[Exchange], count: int, seed: str) -> list[tuple[Case, Case]]:
    """Return so many pairs of quick cases without an outage, the second of a later request or one that is new.

    After a fault there are more requests than without: the second may be one of those.
    """
    chance = random.Random(seed)
    quick = [fault for fault in FAULTS if is_quick(fault)]
    pairs = []
    for _ in range(count):
        first = chance.randrange(len(requests))
        second = first + chance.randint(1, 6)
        one, other = (Case(number, chance.choice(quick)) for number in (first, second))
        pairs.append((one._replace(lands_first=chance.random() < 0.5), other))
    return pairs


def sample(items: Sequence[T], count: int, seed: str) -> list[T]:
    """Return so many of the items, always the same for the same `seed`."""
    return random.Random(seed).sample(items, min(count, len(items)))
