"""One plural rule for all that is printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import lightlyfs
from lightlyfs.errors import counted

CLI = Path(lightlyfs.__file__).parent / "cli"


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (1, ("file",), "1 file"),
        (0, ("file",), "0 files"),
        (3_000, ("directory",), "3,000 directories"),
        (2, ("file is", "files are"), "2 files are"),
    ],
)
def test_a_number_and_its_noun(number: int, words: tuple[str, ...], said: str) -> None:
    assert counted(number, *words) == said


def test_no_command_puts_a_plural_behind_a_number() -> None:
    plural = re.compile(r"\{[^{}]+\} (local )?(files|samples|directories|datasets|mounts|images)\b(?!/s)")
    found = [
        f"{path.name}: {line.strip()}"
        for path in CLI.glob("*.py")
        for line in path.read_text().splitlines()
        if plural.search(line) and " of {" not in line
    ]
    assert found == []
