"""The table of trust in `semantics.md` names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SEMANTICS = (TESTS.parent / "lightlyfs/docs/semantics.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+/test_\w+)`", SEMANTICS.partition("## Trust")[2].partition("\n## ")[0])


def test_the_table_names_tests() -> None:
    assert len(NAMED) > 15


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_table_names_exists(name: str) -> None:
    assert (TESTS / f"{name}.py").is_file()
