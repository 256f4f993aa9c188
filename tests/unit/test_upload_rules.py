"""Which names become samples."""

from __future__ import annotations

import re

import pytest

from lightlyfs.name_rules import is_scratch, looks_temporary, parse_patterns, parse_upload

IMAGES = parse_upload("images")
ALL = parse_upload("all")


@pytest.mark.parametrize(
    "path",
    ["a.jpg", "A.JPEG", "deep/er/x.PnG", "clip.mp4", "new.png", "sediments/zillions/a.tif", "a.b.webp"],
)
def test_an_image_or_video_counts(path: str) -> None:
    assert IMAGES.counts(path)


@pytest.mark.parametrize(
    "path",
    [
        *(".a.jpg", "a.jpg~", ".git/a.jpg", "x/.cache/y/a.jpg", ".Trash-0/files/a.jpg", "#recycle/a.jpg"),
        *("@eaDir/a.jpg", "__MACOSX/a.jpg", "lost+found/a.jpg", "$RECYCLE.BIN/a.jpg", "d.tmp/a.jpg"),
        *("a.jpg_original", "a.jpg_exiftool_tmp", "a.jpg.bak", "a.jpg.orig", "a.jpg.part", "a.jpg.aria2"),
        *("sedAb12Cd", "zi0aBc1d", "k.png.AbCdEg", "tmpab12cd34", "x.new", "4913", "._a.jpg", "#a.jpg#"),
        *("x.jpg.incomplete", "x.lock", "db.sqlite-wal", "db.sqlite-journal", "0.0.partial"),
    ],
)
def test_what_programs_write_on_the_way_counts_by_no_choice(path: str) -> None:
    assert is_scratch(path)
    assert not IMAGES.counts(path)
    assert not ALL.counts(path)


@pytest.mark.parametrize("path", ["notes.txt", "labels.npy", "a", "x.tar.gz", "jpg", "a.jpgx", ".jpg"])
def test_what_is_no_image_does_not_count_by_default(path: str) -> None:
    assert not IMAGES.counts(path)


@pytest.mark.parametrize("path", ["notes.txt", "a", "x.tar.sqlite", "sediments", "template", "v1.older"])
def test_all_counts_what_is_not_scratch(path: str) -> None:
    assert ALL.counts(path)


@pytest.mark.parametrize(
    ("text", "path", "counts"),
    [
        ("none", "a.jpg", False),
        ("*.json", "d/a.json", True),
        ("*.json", "a.jpg", False),
        ("images,*.json", "a.jpg", True),
        ("images,!raw/*", "raw/a.jpg", False),
        ("!raw/*", "raw/a.jpg", False),
        ("!raw/*", "a.jpg", True),
        ("all,!*.txt,notes.txt", "notes.txt", True),
        ("all,!*.txt,notes.txt", "other.txt", False),
        ("/raw/*.bin", "raw/x.bin", True),
        ("*.tmp", "a.tmp", False),
    ],
)
def test_the_last_pattern_that_matches_counts(text: str, path: str, counts: bool) -> None:
    assert parse_upload(text).counts(path) is counts


@pytest.mark.parametrize("text", ["", "*.jpg,", "!", "none,*.jpg"])
def test_a_choice_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_upload(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("image", "images"),
        ("IMAGES", "images"),
        ("imgs", "images"),
        ("nonee", "none"),
        ("All", "all"),
        ("jpg", "*.jpg"),
        ("images,.MP4", "*.MP4"),
        ("*.jpg,!raw/", "raw/*"),
        ("all,!image", "images"),
        ("./cars/*", "cars/*"),
    ],
)
def test_a_pattern_that_was_meant_otherwise_is_refused_with_what_was_meant(text: str, meant: str) -> None:
    for parse in (parse_upload, parse_patterns):
        with pytest.raises(ValueError, match=f"^expected {re.escape(meant)} instead of "):
            parse(text.replace("!", "") if parse is parse_patterns else text)


@pytest.mark.parametrize(
    "text", ["README", "ball", "images", "all", "Makefile", "image?", "jpg*", "a/jpg", "x.jpg"]
)
def test_a_name_without_a_sign_of_a_pattern_is_one_of_a_file(text: str) -> None:
    assert parse_patterns(text) == (text,)
    assert parse_upload(text).text == text


@pytest.mark.parametrize(
    "path",
    [
        "pngout.png",
        "tmpab12.jpg",
        "d/tmpab12cd34.jpg",
        "b.tmp.jpg",
        "b_tmp.jpg",
        "temp-b.jpg",
        "b.jpg.new.jpg",
    ],
)
def test_an_image_with_the_name_of_a_temporary_file_is_one(path: str) -> None:
    assert looks_temporary(path, lambda _: False)


@pytest.mark.parametrize(
    ("path", "temporary"),
    [
        ("b-small.jpg", True),
        ("b.x.jpg", True),
        ("b.jpg.x.jpg", True),
        ("b-2.jpg", False),
        ("c-small.jpg", False),
    ],
)
def test_a_name_that_adds_to_one_that_is_there_looks_temporary(path: str, temporary: bool) -> None:
    assert looks_temporary(f"d/{path}", {"d/b.jpg"}.__contains__) is temporary


@pytest.mark.parametrize("path", ["new.png", "tmp.jpg", "old.jpg", "frame_0001.jpg", "template.jpg"])
def test_a_plain_name_does_not_look_temporary(path: str) -> None:
    assert not looks_temporary(path, lambda _: False)
