from __future__ import annotations

from vstore.blobs.ahead import MAX_BYTES, MAX_GAP_BYTES, MAX_STRETCH_BYTES, in_windows, plan_stretches
from vstore.format.refs import BlobRef
from vstore.ids import Digest, PackId

ONE, OTHER = PackId(bytes(16)), PackId(b"\1" * 16)


def test_windows_begin_with_a_single_item() -> None:
    windows = list(in_windows(range(200)))
    assert [len(window) for window in windows] == [1, 4, 16, 64, 64, 51]
    assert [item for window in windows for item in window] == list(range(200))


def ref(pack: PackId, offset: int, length: int) -> BlobRef:
    return BlobRef(Digest(bytes(32)), pack, offset, length)


def test_neighbours_in_a_pack_share_a_stretch() -> None:
    refs = [ref(ONE, 100, 50), ref(OTHER, 0, 10), ref(ONE, 0, 80), ref(ONE, 150, 50)]
    assert list(plan_stretches(refs)) == [(ONE, 0, 200), (OTHER, 0, 10)]


def test_what_lies_far_apart_does_not() -> None:
    near, far = 100 + MAX_GAP_BYTES, 101 + MAX_GAP_BYTES
    assert len(list(plan_stretches([ref(ONE, 0, 100), ref(ONE, near, 1)]))) == 1
    assert len(list(plan_stretches([ref(ONE, 0, 100), ref(ONE, far, 1)]))) == 2
    half = MAX_STRETCH_BYTES // 2
    stretches = list(plan_stretches(ref(ONE, number * half, half) for number in range(5)))
    assert stretches == [(ONE, 0, 2 * half), (ONE, 2 * half, 4 * half), (ONE, 4 * half, 5 * half)]


def test_only_so_much_is_fetched_ahead() -> None:
    size = MAX_BYTES // 4
    refs = [ref(ONE, number * (size + MAX_GAP_BYTES + 1), size) for number in range(9)]
    assert len(list(plan_stretches(refs))) == 4
    assert len(list(plan_stretches(refs, 3 * size))) == 3
    assert list(plan_stretches([ref(ONE, 0, MAX_BYTES + 1)])) == []
    assert list(plan_stretches([])) == []
