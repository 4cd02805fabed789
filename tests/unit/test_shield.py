"""Shielded work that fails leaves nothing behind."""

from __future__ import annotations

import gc
import weakref

import pytest

from vstore.shield import run_shielded


class File:
    """Stands for a file that is closed when nobody holds it any more."""


def test_what_failed_work_held_is_let_go_at_once() -> None:
    held: list[weakref.ref[File]] = []

    def work() -> None:
        file = File()
        held.append(weakref.ref(file))
        raise ValueError("full")

    def fail() -> None:
        with pytest.raises(ValueError, match="full"):
            run_shielded(work)

    gc.collect()
    gc.disable()
    try:
        fail()
        # The thread that did it goes on to the next work.
        run_shielded(lambda: None)
        assert held[0]() is None
    finally:
        gc.enable()
