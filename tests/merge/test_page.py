"""docs/merging.md has the matrix as it is, and its examples run and print what they say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.merge.cases import as_markdown, letters_as_markdown
from tests.pages import check_examples

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "merging.md").read_text()


@pytest.mark.parametrize("render", [as_markdown, letters_as_markdown])
def test_page_has_the_matrix(render: Callable[[], str]) -> None:
    assert f"\n{render()}\n" in PAGE, (
        "docs/merging.md does not have the matrix of tests/merge/cases.py. Print it with "
        "`python -m tests.merge.cases`, and put it there."
    )


def test_examples_run_and_print_what_their_comments_say(tmp_path: Path) -> None:
    check_examples("merging.md", tmp_path)
