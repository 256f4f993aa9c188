"""Which names the kernel is to give back: those that were looked up longest ago, some at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from lightlyfs.kernel.kept_names import KeptNames, node_ids


def test_the_names_that_were_looked_up_longest_ago_are_taken() -> None:
    names = KeptNames(16)
    for number in range(18):
        names.note(f"d/{number}")
    names.note("d/0")
    names.note("d/18")
    assert names.take_surplus() == ["d/1", "d/2", "d/3"]
    assert len(names) == 16


def test_all_that_came_while_some_were_given_back_are_taken_at_once() -> None:
    names = KeptNames(10)
    for number in range(100):
        names.note(str(number))
    assert len(names.take_surplus()) == 90
    assert len(names) == 10


def test_a_million_are_taken_in_parts() -> None:
    names = KeptNames(100_000)
    for number in range(150_000):
        names.note(str(number))
    assert names.take_surplus() == [str(number) for number in range(16_384)]


def test_no_program_is_asked_for_a_dataset_without_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    assert node_ids("/", []) == {}


def test_directories_that_are_on_no_fuse_connection_have_no_number(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert node_ids(str(tmp_path), ["here", "not here", os.fsdecode(b"\xff\n")]) == {}


@pytest.mark.parametrize("program", [None, "", "/no/such/program", "/bin/true"])
def test_a_program_that_does_not_answer_is_an_error_of_the_system(
    monkeypatch: pytest.MonkeyPatch, program: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the program
        node_ids("/", ["tmp"])
