"""Paths of a mount that shows a folder of a dataset, and paths in that dataset."""

from __future__ import annotations

import pytest

from lightlyfs.fs.namespace import Part
from lightlyfs.name_rules import ShownRules, parse_patterns


@pytest.mark.parametrize(
    ("shown", "inside"),
    [("", "a/b"), ("c", "a/b/c"), ("c/d", "a/b/c/d"), (".lightlyfs", None), (".lightlyfs/log", None)],
)
def test_a_path_of_the_mount_is_one_in_the_dataset_and_back(shown: str, inside: str | None) -> None:
    part = Part("a/b")

    assert part.inside(shown) == (shown if inside is None else inside)
    assert part.shown(part.inside(shown)) == shown
    assert Part().inside(shown) == Part().shown(shown) == shown


@pytest.mark.parametrize("path", ["", "a", "a/bc", "a/b2/c", "c"])
def test_what_lies_outside_is_not_shown(path: str) -> None:
    assert Part("a/b").shown(path) is None


@pytest.mark.parametrize(
    ("include", "exclude", "path", "shows"),
    [
        ("", "", "a/x.png", True),
        ("*.jpg", "", "a/x.jpg", True),
        ("*.jpg", "", "a/x.png", False),
        ("*.jpg,*.png", "", "a/x.png", True),
        ("images", "", "a/notes.txt", False),
        ("a/*", "", "a/b/x.png", True),
        ("a/*", "", "b/x.png", False),
        ("*.jpg", "raw/*", "raw/x.jpg", False),
        ("", "x.*", "a/x.jpg", False),
        ("", "/a/*", "a/x.jpg", False),
    ],
)
def test_a_sample_is_shown_where_an_include_and_no_exclude_matches(
    include: str, exclude: str, path: str, shows: bool
) -> None:
    rules = ShownRules(*(parse_patterns(text) if text else () for text in (include, exclude)))

    assert rules.shows(path) is shows
    assert rules.show_all is (include == exclude == "")


@pytest.mark.parametrize(
    ("exclude", "shows"),
    [("raw/*", False), ("raw/**", False), ("raw/*.jpg", True), ("*", True), ("*/", True)],
)
def test_a_directory_is_hidden_where_all_in_it_is_excluded_by_its_path(exclude: str, shows: bool) -> None:
    assert ShownRules(exclude=(exclude,)).shows_directory("raw") is shows


@pytest.mark.parametrize("text", ["", ",", "*.jpg,,"])
def test_an_empty_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected patterns"):
        parse_patterns(text)
