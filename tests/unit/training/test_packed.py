"""Paths in little memory."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightlyfs.training.images import PackedPaths

PATHS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(st.lists(PATHS, min_size=1, max_size=3).map(tuple), max_size=300))
def test_they_come_out_as_they_went_in(items: list[tuple[str, ...]]) -> None:
    packed = pickle.loads(pickle.dumps(PackedPaths(items)))
    assert list(packed) == items
    assert [packed[number] for number in range(len(packed))] == items
    assert [packed[number - len(items)] for number in range(len(packed))] == items
    with pytest.raises(IndexError):
        packed[len(items)]


def test_names_that_are_not_utf_8_are_kept() -> None:
    assert list(PackedPaths([("a\udcff.jpg",)])) == [("a\udcff.jpg",)]


def test_a_million_paths_travel_in_a_few_megabytes() -> None:
    items = [(f"train/{number // 1000:04}/img_{number:07}.jpg",) for number in range(100_000)]
    assert len(pickle.dumps(PackedPaths(items))) < 400_000


def test_the_digest_is_of_the_items_and_their_order() -> None:
    digests = {
        PackedPaths(items).digest
        for items in ([("a",), ("b",)], [("b",), ("a",)], [("a", "b")], [("a",)], [("ab",)], [])
    }
    assert len(digests) == 6
    assert PackedPaths([("a",)]).digest == PackedPaths(iter([("a",)])).digest
