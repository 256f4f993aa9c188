"""What a listing changes of a catalogue, and what it says of that."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from contentkit import sample_id

from lightlyfs.catalog.entries import Changes, DirectoryEntry, Row, SampleEntry, make_row
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.tree import sample_ino


def row(number: int, name: str, mtime: int = 100, hint: int | None = 5) -> Row:
    return make_row(sample_id(number), name, hint, mtime, 7)


FIRST = [row(0, "x.jpg"), row(1, "a/x.jpg", 200), row(2, "a/b/x.jpg", 300), row(3, "c/x.jpg", 50)]


def take(store: CatalogStore, *pages: list[Row], meta: dict[str, str] | None = None) -> Changes:
    with store.listing() as writer:
        for page in pages:
            writer.add(page)
        return writer.commit(meta or {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    made = CatalogStore(tmp_path / "catalog.db")
    assert take(made, FIRST[:2], FIRST[2:]) == Changes(4, 0, 0, None)
    yield made
    made.close()


def times(store: CatalogStore, *paths: str) -> list[int]:
    found = [store.lookup(path) for path in paths]
    return [entry.mtime for entry in found if isinstance(entry, DirectoryEntry)]


def test_a_listing_goes_on_after_it_was_counted(store: CatalogStore) -> None:
    """What came twice was forgotten by then, and its directories with it."""
    with store.listing() as writer:
        writer.add([row(1, "old/a.jpg"), row(2, "b.jpg")])
        writer.add([row(1, "new/a.jpg")])
        assert writer.count() == 2
        writer.add([row(1, "old/a.jpg"), row(3, "old/c.jpg"), row(2, "b.jpg")])
        assert writer.count() == 3
        writer.commit({})

    assert [type(store.lookup(path)) for path in ("old/a.jpg", "old/c.jpg", "b.jpg")] == [SampleEntry] * 3
    assert isinstance(store.lookup("old"), DirectoryEntry)
    assert store.lookup("new") is None


def test_the_same_listing_changes_nothing(store: CatalogStore) -> None:
    changes = take(store, FIRST[::-1])
    assert changes == Changes(0, 0, 0, ("",))
    assert not changes


@pytest.mark.parametrize(
    ("listed", "changes"),
    [
        ([*FIRST, row(4, "a/y.jpg")], Changes(1, 0, 0, ("", "a", "a/y.jpg"))),
        (FIRST[:3], Changes(0, 0, 1, ("", "c", "c/x.jpg"))),
        ([*FIRST[:3], row(3, "c/x.jpg", 51)], Changes(0, 1, 0, ("", "c", "c/x.jpg"))),
        ([*FIRST[:3], row(3, "c/x.jpg", 50, 6)], Changes(0, 1, 0, ("", "c", "c/x.jpg"))),
        ([*FIRST[:3], row(3, "c/x.jpg", 50, None)], Changes(0, 1, 0, ("", "c", "c/x.jpg"))),
        ([*FIRST[1:], row(0, "a/b/y.jpg")], Changes(0, 1, 0, ("", "x.jpg", "a/b", "a", "a/b/y.jpg"))),
        ([*FIRST[1:], row(9, "x.jpg")], Changes(1, 0, 1, ("", "x.jpg"))),
    ],
    ids=["added", "gone", "time", "size", "no size", "moved", "another"],
)
def test_what_changed_is_counted_and_named_with_its_directories(
    store: CatalogStore, listed: list[Row], changes: Changes
) -> None:
    found = take(store, listed)
    assert found[:3] == changes[:3]
    assert found.paths is not None
    assert changes.paths is not None
    assert sorted(found.paths) == sorted(changes.paths)
    assert found
    assert store.totals().samples == len(listed)
    assert store.holds(listed)


@pytest.mark.parametrize(("most", "named"), [(3, True), (2, False)])
def test_many_changes_are_not_named_one_by_one(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch, most: int, named: bool
) -> None:
    monkeypatch.setattr("lightlyfs.catalog.listing_writer.MAX_REPORTED_PATHS", most)
    changes = take(store, [row(0, "x.jpg", 101), *FIRST[1:3], row(4, "new.jpg")])
    assert changes[:3] == (1, 1, 1)
    assert (changes.paths is not None) == named


def test_a_directory_has_the_time_of_the_newest_sample_below_it(store: CatalogStore) -> None:
    assert times(store, "", "a", "a/b", "c") == [300, 300, 300, 50]
    take(store, [FIRST[0], FIRST[1], row(2, "a/b/x.jpg", 10), row(3, "c/x.jpg", 60)])
    assert times(store, "", "a", "a/b", "c") == [200, 200, 10, 60]
    take(store, [row(0, "x.jpg", 400)])
    assert times(store, "") == [400]
    assert store.lookup("a") is None
    assert store.totals().directories == 1
    take(store, [])
    assert times(store, "") == [0]
    assert store.totals() == (0, 1, 0, 0)


def test_a_sample_that_comes_twice_counts_as_it_was_the_last_time(tmp_path: Path) -> None:
    store = CatalogStore(tmp_path / "catalog.db")
    with store.listing() as writer:
        writer.add([row(1, "old/deep/x.jpg", 900), row(2, "y.jpg")])
        writer.add([row(1, "new/x.jpg", 100), row(2, "y.jpg")])
        assert writer.count() == 2
        writer.commit({})
    found = store.by_ino(sample_ino(bytes.fromhex(sample_id(1))))
    assert found is not None
    assert found[0] == "new/x.jpg"
    assert store.lookup("old") is store.lookup("old/deep") is None
    assert store.directories_in("") == ["new"]
    store.close()


def test_a_listing_under_way_knows_the_directories_it_has_met(store: CatalogStore) -> None:
    with store.listing() as writer:
        assert not writer.has_directory("a")
        writer.add([row(1, "a/b/c/x.jpg")])
        assert [writer.has_directory(path) for path in ("a", "a/b", "a/b/c")] == [True] * 3
        assert [writer.has_directory(path) for path in ("b", "a/b/c/x.jpg", "\ud800")] == [False] * 3
    assert store.holds(FIRST)  # nothing was committed


def test_directories_are_met_however_few_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.catalog.listing_writer._MAX_KNOWN", 2)
    monkeypatch.setattr("lightlyfs.catalog.listing_writer._MAX_KNOWN_PATHS", 2)
    store = CatalogStore(tmp_path / "catalog.db")
    listed = [row(n, f"d{n % 5}/e{n % 3}/{n}.jpg", 100 + n) for n in range(30)]
    take(store, *[[one] for one in listed])
    assert store.holds(listed)
    assert store.directories_in("") == [f"d{n}" for n in range(5)]
    assert times(store, "", "d4", "d4/e2") == [129, 129, 129]
    assert store.totals().directories == 1 + 5 + 15
    store.close()


def test_values_are_stored_with_a_listing_and_replaced_by_the_next(store: CatalogStore) -> None:
    take(store, FIRST, meta={"a": "1", "b": "1"})
    take(store, FIRST, meta={"a": "2"})
    assert (store.get_meta("a"), store.get_meta("b"), store.get_meta("c")) == ("2", "1", None)


def test_a_catalogue_that_is_deleted_during_a_listing_does_not_get_it(
    store: CatalogStore, tmp_path: Path
) -> None:
    with store.listing() as writer:
        writer.add([row(9, "new.jpg")])
        for path in tmp_path.glob("catalog.db*"):
            path.unlink()
        with pytest.raises(sqlite3.OperationalError, match="deleted"):
            writer.commit({})
    assert take(store, [row(9, "new.jpg")]).gone == 4


def test_a_listing_of_another_process_meanwhile_is_compared_with(store: CatalogStore, tmp_path: Path) -> None:
    other = CatalogStore(tmp_path / "catalog.db", alone=False)
    with store.listing() as writer:
        writer.add([*FIRST, row(4, "new.jpg")])
        writer._settle_names()
        take(other, [*FIRST, row(4, "new.jpg"), row(5, "more.jpg")])
        writer._settle_names = lambda: None  # type: ignore[method-assign]  # it is done
        assert writer.commit({})[:3] == (0, 0, 1)
    assert store.totals().samples == other.totals().samples == 5
    other.close()
