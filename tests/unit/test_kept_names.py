"""Which names the kernel is to give back: those that were looked up longest ago, some at a time."""

from __future__ import annotations

from lightlyfs.kernel.kept_names import KeptNames


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
