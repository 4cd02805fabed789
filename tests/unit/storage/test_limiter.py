from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from vstore.storage.objects.limiter import Limiter

FOREVER_S = 60.0


def run_to_the_end(act: Callable[[], object]) -> None:
    """Run `act` in a thread and fail if it hangs."""
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def queued(limiter: Limiter, count: int) -> None:
    """Wait until so many wait."""
    for _ in range(20_000):
        if len(limiter._waiters) == count:
            return
        threading.Event().wait(0.001)
    pytest.fail(f"{len(limiter._waiters)} wait, not {count}")


def all_left(limiter: Limiter, limit: int) -> bool:
    return limiter._free == limit and not limiter._waiters


def test_threads_and_tasks_of_several_loops_share_one_limit() -> None:
    limiter = Limiter(3, FOREVER_S)
    lock = threading.Lock()
    inside = most = entered = 0

    def enter() -> None:
        nonlocal inside, most, entered
        with lock:
            inside += 1
            entered += 1
            most = max(most, inside)

    def leave() -> None:
        nonlocal inside
        with lock:
            inside -= 1

    async def task() -> None:
        for _ in range(20):
            async with limiter:
                enter()
                await asyncio.sleep(0)
                leave()

    async def tasks() -> None:
        await asyncio.gather(*(task() for _ in range(10)))

    def thread() -> None:
        for _ in range(50):
            with limiter:
                enter()
                threading.Event().wait(0.0001)
                leave()

    with ThreadPoolExecutor(10) as pool:
        running = [pool.submit(thread) for _ in range(6)]
        running += [pool.submit(lambda: asyncio.run(tasks())) for _ in range(3)]
        for each in running:
            each.result()
    assert (most, inside, entered) == (3, 0, 6 * 50 + 3 * 200)
    assert all_left(limiter, 3)


def test_first_come_first_served() -> None:
    limiter = Limiter(1, FOREVER_S)
    order: list[int] = []

    def wait(number: int) -> None:
        with limiter:
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(5)]
    with limiter:
        for number, thread in enumerate(threads, 1):
            thread.start()
            queued(limiter, number)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]
    assert all_left(limiter, 1)


def test_a_task_that_is_cancelled_while_it_waits_holds_nothing() -> None:
    async def run() -> None:
        limiter = Limiter(1, FOREVER_S)

        async def wait() -> None:
            async with limiter:
                pass

        async with limiter:
            waiting = [asyncio.create_task(wait()) for _ in range(4)]
            await asyncio.sleep(0)
            assert len(limiter._waiters) == 4
            waiting[1].cancel()
            await asyncio.sleep(0)
            assert len(limiter._waiters) == 3
        # Two have a place by now, of which they do not know yet, when they are cancelled.
        waiting[0].cancel()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in done[:2]] == [asyncio.CancelledError] * 2
        assert done[2:] == [None, None]
        assert all_left(limiter, 1)

    run_to_the_end(lambda: asyncio.run(run()))


def test_errors_inside_leave_nothing_behind() -> None:
    limiter = Limiter(1, FOREVER_S)

    async def fail() -> None:
        async with limiter:
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"), limiter:
        raise ValueError("inside")
    with pytest.raises(ValueError, match="inside"):
        asyncio.run(fail())
    assert all_left(limiter, 1)


def test_waiters_of_a_loop_that_is_gone_are_passed_over() -> None:
    limiter = Limiter(1, FOREVER_S)
    loop = asyncio.new_event_loop()

    async def wait() -> None:
        async with limiter:
            pass

    with limiter:
        waiting = wait()
        task = loop.create_task(waiting)
        loop.run_until_complete(asyncio.sleep(0))
        assert len(limiter._waiters) == 1
        loop.close()
    assert all_left(limiter, 1)
    # The task dies with its loop, which Python reports; let it do so here.
    loop.set_exception_handler(lambda *_: None)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    waiting.close()
    run_to_the_end(lambda: limiter.__enter__())


def test_a_blocking_call_on_a_loop_does_not_wait_for_tasks_of_that_loop() -> None:
    async def run() -> None:
        limiter = Limiter(1, FOREVER_S)
        async with limiter:
            with limiter:
                pass
        assert all_left(limiter, 1)

    run_to_the_end(lambda: asyncio.run(run()))


def test_nobody_waits_for_ever_for_those_who_never_leave() -> None:
    # As when a loop is blocked until a thread is done, which waits for a task of that loop.
    limiter = Limiter(1, 0.01)

    async def task() -> None:
        async with limiter:
            pass

    def run() -> None:
        with limiter:
            pass
        asyncio.run(task())

    with limiter:
        run_to_the_end(run)
    assert all_left(limiter, 1)
