"""How files are shared out among workers."""

from __future__ import annotations

import random

import pytest

from lightlyfs.fsspec.driver import by_directory, by_tag

PATHS = [f"d/{directory}/{number}.jpg" for directory in "abc" for number in range(10)]


def test_a_partition_is_of_one_directory_and_in_order() -> None:
    assert by_directory(PATHS) == [PATHS[:10], PATHS[10:20], PATHS[20:]]


def test_the_order_of_the_paths_does_not_matter() -> None:
    shuffled = random.Random(1).sample(PATHS, len(PATHS))
    assert by_directory(shuffled, most=3) == by_directory(PATHS + PATHS[:5], most=3)


@pytest.mark.parametrize(("most", "sizes"), [(10, [10]), (9, [5, 5]), (4, [3, 3, 4]), (1, [1] * 10)])
def test_a_large_directory_is_cut_evenly(most: int, sizes: list[int]) -> None:
    found = by_directory(PATHS[:10], most=most)
    assert [len(part) for part in found] == sizes
    assert [path for part in found for path in part] == PATHS[:10]


def test_a_directory_between_the_files_of_another_does_not_tear_it() -> None:
    """In the order of whole paths `d/a/x` lies between `d/a.jpg` and `d/b.jpg`."""
    assert by_directory(["d/a.jpg", "d/a/x", "d/b.jpg"]) == [["d/a.jpg", "d/b.jpg"], ["d/a/x"]]


def test_what_several_tags_hold_is_in_the_first() -> None:
    assert by_tag({"one": PATHS[:3], "two": PATHS[2:5], "none": []}) == [PATHS[:3], PATHS[3:5]]


def test_a_partition_holds_something() -> None:
    assert by_directory([]) == []
    with pytest.raises(ValueError, match="at least one"):
        by_directory(PATHS, most=0)
