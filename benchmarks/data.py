"""Numbers that don't compress, the same in every process, so that what was written can be checked by whoever reads it.

numpy is imported when it is first needed: the start of a process is itself a workload.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Values = npt.NDArray[np.float32]

ITEM_BYTES = 4
_BLOCK = 1 << 20


class WrongDataError(AssertionError):
    """A system returned other data than was written."""


def values(seed: int, count: int) -> Values:
    """Return `count` numbers between 0.5 and 1.5: never the fill value, never NaN."""
    import numpy as np

    result = np.empty(count, np.float32)
    for start in range(0, count, _BLOCK):
        part = result[start : start + _BLOCK]
        part[:] = _block(seed, start // _BLOCK, len(part))
    return result


def check(found: Values, seed: int, what: str) -> None:
    """Raise `WrongDataError` unless `found` equals `values(seed, len(found))`, without holding a second copy."""
    import numpy as np

    if found.dtype != np.float32:
        raise WrongDataError(f"{what}: the dtype is {found.dtype}, not float32")
    for start in range(0, len(found), _BLOCK):
        part = found[start : start + _BLOCK]
        if not np.array_equal(part, _block(seed, start // _BLOCK, len(part))):
            raise WrongDataError(f"{what}: the numbers from index {start} on are not those that were written")


def check_equal(found: Values, expected: Values, what: str) -> None:
    """Raise `WrongDataError` unless the two are equal."""
    import numpy as np

    if not np.array_equal(found, expected):
        raise WrongDataError(f"{what} is not what was written")


def expect(condition: bool, what: str) -> None:
    """Raise `WrongDataError` saying `what`, unless `condition`."""
    if not condition:
        raise WrongDataError(what)


def _block(seed: int, number: int, count: int) -> Values:
    import numpy as np

    generator = np.random.Generator(np.random.SFC64([seed, number]))
    block = generator.random(count, dtype=np.float32)
    block += np.float32(0.5)
    return block
