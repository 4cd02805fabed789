from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vstore.errors import InvalidInputError
from vstore.keys.refs import MAX_REF_NAME_BYTES, check_ref_name


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "a",
        "v1.2.3",
        "experiment/2026-11",
        "feature/a/b_c",
        "\u00e4pfel",
        "1",
        "1234567",
        "x12345678",
        "a@b",
        "a-",
        "x" * MAX_REF_NAME_BYTES,
        "DEADBEEF",
        "a" * 65,
        "deadbeef/1",
    ],
)
def test_good_names(name):
    assert check_ref_name(name) == name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (None, "it is a NoneType, not a str"),
        (b"main", "it is a bytes, not a str"),
        ("", "it is empty"),
        ("x" * (MAX_REF_NAME_BYTES + 1), "longer than 200 bytes"),
        ("\u00e4" * 101, "longer than 200 bytes"),
        ("\ud800", "not valid Unicode"),
        ("a b", "it holds ' '"),
        ("a\tb", "it holds"),
        ("a\nb", "it holds"),
        ("a\0b", "it holds"),
        ("a\x7fb", "it holds"),
        ("a~1", "it holds '~'"),
        ("a^", "it holds"),
        ("a:b", "it holds"),
        ("a?b", "it holds"),
        ("a*", "it holds"),
        ("a[0]", "it holds"),
        ("a\\b", "it holds"),
        ("a|b", "it holds"),
        ("a#b", "it holds"),
        ("50%", "it holds"),
        ('a"b', "it holds"),
        ("a'b", "it holds"),
        ("a<b", "it holds"),
        ("a>b", "it holds"),
        ("a..b", "not allowed"),
        ("a@{1}", "not allowed"),
        ("@", "not allowed"),
        ("-a", "starts with '-'"),
        ("/a", "starts or ends with '/'"),
        ("a/", "starts or ends with '/'"),
        ("a//b", "'//'"),
        (".a", "a part starts with '.'"),
        ("a/.b", "a part starts with '.'"),
        ("a.", "ends with '.'"),
        ("a./b", "ends with '.'"),
        ("a.lock", "'.lock'"),
        ("a.lock/b", "'.lock'"),
        ("deadbeef", "looks like a snapshot id"),
        ("0" * 64, "looks like a snapshot id"),
    ],
)
def test_bad_names_are_refused_with_the_reason(name, reason):
    with pytest.raises(InvalidInputError, match="can't name a branch or tag") as caught:
        check_ref_name(name)
    assert reason in str(caught.value)


@given(st.text(max_size=30))
def test_good_names_are_safe_in_paths_and_shells(name):
    try:
        check_ref_name(name)
    except InvalidInputError:
        return
    assert name.encode()
    assert not set(name) & set(" \t\n\0~^:?*[\\|#%\"'<>")
    assert ".." not in name
    assert not name.startswith(("-", "/", "."))
    assert not name.endswith(("/", "."))
