from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.errors import InvalidInputError
from vstore.keys.objects import (
    LAST_SEQUENCE,
    LATEST,
    REPO,
    check_object_name,
    log_name,
    pack_name,
    parse_pack_name,
    probe_name,
    staging_name,
)

ids = st.binary(min_size=16, max_size=16)
ZERO = "0" * 32


@given(ids)
def test_pack_names(pack):
    name = pack_name(pack)
    assert name == f"packs/{pack.hex()[:2]}/{pack.hex()}"
    assert parse_pack_name(name) == pack
    assert check_object_name(name) == name


@given(ids)
def test_other_names(found):
    assert check_object_name(staging_name(found)) == f"staging/{found.hex()}"
    assert check_object_name(probe_name(found)) == f"probe/{found.hex()}"
    assert parse_pack_name(staging_name(found)) is None


@given(st.lists(st.integers(0, LAST_SEQUENCE), min_size=2))
def test_log_names_sort_like_their_numbers(sequences):
    names = [log_name(sequence) for sequence in sequences]
    assert [int(name.removeprefix("log/")) for name in sorted(names)] == sorted(sequences)
    for name in names:
        check_object_name(name)


def test_bytes_of_names():
    assert log_name(0) == "log/00000000000000000000"
    assert log_name(LAST_SEQUENCE) == "log/99999999999999999999"
    assert (REPO, LATEST) == ("repo", "latest")
    assert pack_name(bytes(range(16))) == "packs/00/000102030405060708090a0b0c0d0e0f"


@pytest.mark.parametrize("sequence", [-1, LAST_SEQUENCE + 1])
def test_sequences_out_of_range(sequence):
    with pytest.raises(InvalidInputError):
        log_name(sequence)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        ".",
        "..",
        "../repo",
        "repo/",
        "/repo",
        "repo\n",
        "Repo",
        "other",
        "packs",
        "packs/",
        f"packs/{ZERO}",
        f"packs/01/{ZERO}",
        f"packs/00/{ZERO}0",
        f"packs/00/{ZERO[1:]}",
        f"packs/00/{ZERO}/more",
        f"packs/00/{ZERO}.tmp",
        f"packs/00/../00/{ZERO}",
        f"packs/0A/0A{ZERO[2:]}",
        f"packs//00/{ZERO}",
        f" packs/00/{ZERO}",
        f"packs\\00\\{ZERO}",
        "log/1",
        "log/0000000000000000000\u0661",
        "log/000000000000000000000",
        f"staging/{ZERO}x",
        "catalog.sqlite",
        "catalog.sqlite-wal",
    ],
)
def test_names_that_vstore_does_not_write_are_refused(name):
    assert parse_pack_name(name) is None
    with pytest.raises(InvalidInputError):
        check_object_name(name)


@given(st.text())
def test_any_text_is_a_name_or_refused(name):
    with contextlib.suppress(InvalidInputError):
        assert check_object_name(name) == name
