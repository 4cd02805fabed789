"""Threads for chunks: results in order, the first error, forked children, no threads at all."""

from __future__ import annotations

import pytest

from tests.unit.storage.children import run_in_child
from vstore.zarr_pipeline.workers import CODING, Workers


def test_a_forked_child_has_threads_of_its_own() -> None:
    assert CODING.map(len, ["a", "bc", ""]) == [1, 2, 0]

    def child() -> None:
        assert CODING.map(len, ["abc", "d"]) == [3, 1]

    run_in_child(child)


def test_the_first_error_of_several_threads_is_raised_when_all_are_done() -> None:
    workers = Workers(3, "test")
    done: list[int] = []

    def work(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        done.append(number)
        return number

    with pytest.raises(ValueError, match="two"):
        workers.map(work, range(50))
    assert 2 not in done
    assert workers.map(work, [5, 6]) == [5, 6]


def test_work_is_done_where_no_thread_is_to_be_had() -> None:
    workers = Workers(3, "test")
    assert workers.map(str, range(5)) == list("01234")
    assert workers._pool is not None
    workers._pool.shutdown()
    assert workers.map(str, range(5)) == list("01234")
