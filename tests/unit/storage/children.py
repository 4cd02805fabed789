"""Running parts of a test in a forked child."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable


def fork() -> int:
    with warnings.catch_warnings():
        # The tests' processes have threads, as users' have.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def run_in_child(body: Callable[[], object]) -> None:
    """Run `body` in a forked child; fail if it raises, or dies by a signal."""
    pid = fork()
    if pid == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, f"the child ended with {code} (negative: by a signal)"
