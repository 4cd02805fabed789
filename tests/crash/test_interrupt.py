"""Ctrl-C at each request of a commit: afterwards the session is committed, or can be committed again."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from tests.crash.trial import SCENARIOS, Trial, count_requests
from tests.repositories import KINDS
from vstore.testing.faults import FaultPlan

T = TypeVar("T")


class InterruptingPlan(FaultPlan):
    """Sends the process a SIGINT before or after request `number`."""

    def __init__(self, number: int, *, after: bool) -> None:
        super().__init__()
        self.number = number
        self.after = after
        self.was_raised = threading.Event()

    def run(self, method: str, name: str, act: Callable[[], T], **options: Any) -> T:
        is_due = len(self.requests) == self.number and not self.was_raised.is_set()
        if is_due and not self.after:
            self.interrupt()
        try:
            return super().run(method, name, act, **options)
        finally:
            if is_due and self.after:
                self.interrupt()

    def interrupt(self) -> None:
        main = threading.main_thread()
        # Again and again: a thread that is just about to wait for a lock sleeps through a signal.
        for _ in range(1000):
            signal.pthread_kill(main.ident or 0, signal.SIGINT)
            if threading.current_thread() is main or self.was_raised.wait(0.01):
                return
        pytest.fail("the main thread does not see the interrupt")

    def handle(self, number: int, frame: object) -> None:
        if not self.was_raised.is_set():
            self.was_raised.set()
            raise KeyboardInterrupt


@pytest.fixture
def interrupts() -> Iterator[Callable[[InterruptingPlan], None]]:
    """Give a function that sets which plan hears of SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda plan: signal.signal(signal.SIGINT, plan.handle) and None
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_ctrl_c_at_each_request(
    kind: str, after: bool, interrupts: Callable[[InterruptingPlan], None]
) -> None:
    scenario = SCENARIOS["small"]
    for number in range(count_requests(kind, scenario)):
        plan = InterruptingPlan(-1, after=after)
        with Trial(kind, scenario, make_plan=lambda plan=plan: plan) as trial:
            interrupts(plan)
            plan.number = number
            trial.run_to_the_end(KeyboardInterrupt)
            assert plan.was_raised.is_set()
