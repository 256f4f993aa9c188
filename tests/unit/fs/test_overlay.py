"""Renamed samples, until a listing shows the same."""

from __future__ import annotations

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.fs.namespace import LISTING_LAGS_S, RenamedSamples

ID = "c" * 24
ENTRY = SampleEntry("x.jpg", 7, bytes.fromhex(ID), None, 5, 0, 5, "e", True, True)


class Listed:
    """A catalogue that shows the one sample somewhere, or not at all."""

    def __init__(self, path: str | None) -> None:
        self.path = path

    def by_id(self, _: str) -> tuple[str, SampleEntry] | None:
        return None if self.path is None else (self.path, ENTRY)


def prune(renamed: RenamedSamples, path: str | None) -> None:
    renamed.prune(Listed(path))  # type: ignore[arg-type]


def test_there_and_back_again() -> None:
    renamed = RenamedSamples()
    renamed.note("a/x.jpg", "b/x.jpg", ENTRY)
    renamed.note_directory("a", "b")
    assert renamed.is_gone("a")
    assert renamed.is_gone("a/deep")
    assert renamed.directories_within("") == {"b"}

    renamed.note("b/x.jpg", "a/x.jpg", ENTRY)
    renamed.note_directory("b", "a")

    assert not renamed.is_gone("a")
    assert not renamed.is_hidden("a/x.jpg", ENTRY.ino)
    assert renamed.at("b/x.jpg") is None
    assert renamed.directories_within("") == {"a"}
    prune(renamed, "a/x.jpg")
    assert renamed.at("a/x.jpg") is None
    assert not renamed.has_directory("a")


def test_a_listing_that_lags_changes_nothing_and_one_that_agrees_settles() -> None:
    renamed = RenamedSamples()
    renamed.note("a/x.jpg", "b/y.jpg", ENTRY)
    renamed.note_directory("a", "b")

    prune(renamed, "a/x.jpg")
    assert renamed.at("b/y.jpg") is not None
    assert renamed.is_hidden("a/x.jpg", ENTRY.ino)
    assert renamed.is_gone("a")

    prune(renamed, "b/y.jpg")
    assert renamed.at("b/y.jpg") is None
    assert not renamed.is_gone("a")


def test_a_sample_that_others_renamed_again_is_where_the_first_listing_says() -> None:
    renamed = RenamedSamples()
    renamed.note("a.jpg", "b.jpg", ENTRY)

    prune(renamed, "c.jpg")

    assert renamed.at("b.jpg") is None


def test_a_sample_that_others_renamed_back_is_there_once_no_listing_can_lag() -> None:
    now = [0.0]
    renamed = RenamedSamples(lambda: now[0])
    renamed.note("a.jpg", "b.jpg", ENTRY)

    prune(renamed, "a.jpg")
    assert renamed.at("b.jpg") is not None

    now[0] += LISTING_LAGS_S + 1
    prune(renamed, "a.jpg")
    assert renamed.at("b.jpg") is None
    assert not renamed.is_hidden("a.jpg", ENTRY.ino)


def test_a_directory_of_local_files_alone_can_be_used_again_under_its_old_name() -> None:
    renamed = RenamedSamples()

    renamed.note_directory("a", "b")

    assert not renamed.is_gone("a")


def test_a_name_that_several_samples_left_shows_none_of_them() -> None:
    """`mv 2 3; mv 1 2; mv 2 4`: the listing still has the first of them at 2."""
    renamed = RenamedSamples()
    other = ENTRY._replace(ino=8, id=bytes.fromhex("d" * 24))
    renamed.note("2.jpg", "3.jpg", ENTRY)
    renamed.note("1.jpg", "2.jpg", other)
    renamed.note("2.jpg", "4.jpg", other)

    assert renamed.is_hidden("2.jpg", ENTRY.ino)
    assert renamed.is_hidden("2.jpg", other.ino)
    renamed.note("3.jpg", "2.jpg", ENTRY)
    assert not renamed.is_hidden("2.jpg", ENTRY.ino)
    assert renamed.is_hidden("2.jpg", other.ino)


def test_a_changed_sample_is_shown_as_it_is_now() -> None:
    renamed = RenamedSamples()
    renamed.note("a.jpg", "b.jpg", ENTRY)

    renamed.note_written("b.jpg", ENTRY._replace(size=9))
    renamed.note_written("a.jpg", ENTRY._replace(size=9))

    assert renamed.at("b.jpg") == ENTRY._replace(size=9)
    assert renamed.at("a.jpg") is None


def test_a_directory_takes_the_name_of_one_whose_samples_are_elsewhere() -> None:
    """What the listing has below the old one does not come back."""
    renamed = RenamedSamples()
    renamed.note("a/deep/x.jpg", "b/deep/x.jpg", ENTRY)
    renamed.note_directory("a", "b")

    renamed.note_directory("c", "a")

    assert renamed.is_gone("a/deep")
    assert renamed.directories_within("") == {"b"}
