"""One thread does for all what several want; a thread that must not wait is told so."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from vstore.blobs.once import Once, RequestNeededError, check_may_wait, without_waiting
from vstore.clock import SYSTEM_CLOCK


def test_one_thread_makes_what_several_want() -> None:
    once, made = Once(), []
    begun, go_on = threading.Event(), threading.Event()

    def make() -> str:
        made.append(threading.get_ident())
        begun.set()
        assert go_on.wait(30)
        return "made"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(once.run, "key", make)
        assert begun.wait(30)
        together = threading.Barrier(4)

        def join() -> str:
            together.wait(30)
            return once.run("key", make)

        others = [pool.submit(join) for _ in range(3)]
        together.wait(30)
        assert once.run("another", lambda: "at once") == "at once"
        SYSTEM_CLOCK.sleep(0.05)
        assert len(made) == 1
        go_on.set()
        assert [future.result(30) for future in (first, *others)] == ["made"] * 4
    # Afterwards it is made anew: what is to be kept is the cache's business.
    assert once.run("key", lambda: "again") == "again"


def test_an_error_is_that_of_the_thread_that_met_it() -> None:
    once = Once()
    begun, go_on = threading.Event(), threading.Event()

    def fail() -> str:
        begun.set()
        assert go_on.wait(30)
        raise ValueError("mine")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(once.run, "key", fail)
        assert begun.wait(30)
        second = pool.submit(once.run, "key", lambda: "made after all")
        go_on.set()
        with pytest.raises(ValueError, match="mine"):
            first.result(30)
        assert second.result(30) == "made after all"


def test_a_forked_child_waits_for_nobody() -> None:
    once = Once()
    begun, go_on = threading.Event(), threading.Event()

    def make() -> None:
        begun.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(once.run, "key", make)
        assert begun.wait(30)
        child = os.fork()
        if not child:
            os._exit(0 if once.run("key", lambda: 7) == 7 else 1)
        go_on.set()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_thread_that_must_not_wait_is_told_so() -> None:
    check_may_wait()
    with without_waiting():
        with pytest.raises(RequestNeededError):
            check_may_wait()
        with pytest.raises(RequestNeededError):
            Once().run("key", lambda: 1)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(check_may_wait).result()
    check_may_wait()
