"""Names at scale and under attack: the fast way is the right way, and nothing is quadratic or deep."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import pytest
from contentkit import sample_id
from hypothesis import example, given
from hypothesis import strategies as st

from lightlyfs.catalog.entries import Changes, DirectoryEntry, Facts, SampleEntry, make_row
from lightlyfs.catalog.names import split_name, split_path
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.tree import ROOT_INO, directory_ino, directory_inos

HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(["", "/", ".", "..", "%2F", "\0", "\n", "\ud800", "a", ".lightlyfs", "x" * 64, "é"]),
        st.text(max_size=3),
    ),
    max_size=6,
).map("".join)


@given(HOSTILE)
@example(".lightlyfs/x")
@example("a/..")
@example("..\n/.\n")
@example("a/" + "b" * 2000 + "/c")
@example("é" * 63)
def test_the_fast_split_is_the_split(name: str) -> None:
    *directories, last = split_name(name)

    assert split_path(name) == ("/".join(directories), last)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1)))
def test_the_numbers_of_directories_on_a_way_are_those_of_their_paths(components: list[str]) -> None:
    paths = ["/".join(components[:depth]) for depth in range(1, len(components) + 1)]

    assert directory_inos(components) == [directory_ino(path) for path in paths]


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    return CatalogStore(tmp_path / "catalog.db")


def fill(store: CatalogStore, names: Iterable[tuple[str, str]], page: int = 1000) -> Changes:
    rows = [make_row(sample, name, 1, 5, 1) for sample, name in names]
    with store.listing() as writer:
        for at in range(0, len(rows), page):
            writer.add(rows[at : at + page])
        assert writer.count() == len({row.id for row in rows})
        return writer.commit({"dataset": "x"})


def test_ten_thousand_samples_of_one_name_all_get_their_own(store: CatalogStore) -> None:
    fill(store, ((sample_id(n), "a/x.jpg") for n in range(10_000)))

    directories, samples = store.list_directory("a")
    assert directories == []
    assert len({entry.name for entry in samples}) == 10_000
    assert store.lookup("a/x.jpg").sample_id == sample_id(0)  # type: ignore[union-attr]
    assert {entry.file_name_raw for entry in samples if entry.name != "x.jpg"} == {b"a/x.jpg"}


def test_a_name_of_ten_thousand_parts_is_a_path_that_can_be_opened(store: CatalogStore) -> None:
    deep = "ab/" * 10_000 + "x.jpg"
    fill(store, [(sample_id(0), deep), (sample_id(1), "ab/y.jpg")])

    path = "/".join(split_name(deep))
    sample = store.lookup(path)
    assert isinstance(sample, SampleEntry)
    assert sample.file_name_raw == deep.encode()
    found = store.by_ino(sample.ino)
    assert found is not None
    assert found[0] == path
    directory = store.lookup(path.rpartition("/")[0])
    assert isinstance(directory, DirectoryEntry)
    assert directory.mtime == 5
    assert fill(store, [(sample_id(1), "ab/y.jpg")]).gone == 1
    assert store.totals().directories == 2


def test_a_sample_handed_over_twice_counts_as_it_was_the_last_time(store: CatalogStore) -> None:
    fill(store, [(sample_id(0), "old/deep/x.jpg"), (sample_id(0), "new/x.jpg")], page=1)

    assert isinstance(store.lookup("new/x.jpg"), SampleEntry)
    assert store.lookup("old/deep/x.jpg") is None
    assert store.lookup("old") is None  # a directory only because of what is no longer so
    assert [entry.name for entry in store.list_directory("")[0]] == ["new"]


def test_the_paths_that_a_listing_changed_are_named_with_all_directories_above(store: CatalogStore) -> None:
    fill(store, [(sample_id(0), "a/b/x.jpg"), (sample_id(1), "c/y.jpg")])
    changes = fill(store, [(sample_id(0), "a/d/x.jpg"), (sample_id(1), "c/y.jpg")])

    assert (changes.added, changes.changed, changes.gone) == (0, 1, 0)
    assert set(changes.paths or ()) == {"", "a", "a/b", "a/b/x.jpg", "a/d", "a/d/x.jpg"}


def test_an_unchanged_listing_writes_no_row(store: CatalogStore, tmp_path: Path) -> None:
    names = [(sample_id(n), f"d{n % 7}/{n}.jpg") for n in range(500)]
    fill(store, names)
    watch = sqlite3.connect(tmp_path / "catalog.db")
    watch.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    assert not fill(store, names)

    assert (tmp_path / "catalog.db-wal").stat().st_size < 50_000
    watch.close()


def test_a_path_that_is_no_utf8_or_lies_below_a_file_is_not_there(store: CatalogStore) -> None:
    fill(store, [(sample_id(0), "a.jpg")])

    assert store.lookup("\ud800") is None
    assert store.lookup("\ud800/x") is None
    assert store.lookup("a.jpg/x") is None
    assert store.list_directory("\udcff") == ([], [])
    assert store.lookup("") == DirectoryEntry("", ROOT_INO, 5)


def test_a_catalogue_that_is_garbage_or_a_link_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"garbage " * 1000)
    store = CatalogStore(path)
    fill(store, [(sample_id(0), "a.jpg")])
    assert store.totals().samples == 1
    store.close()
    target = tmp_path / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    before = target.read_bytes()

    again = CatalogStore(path)
    fill(again, [(sample_id(0), "b.jpg")])
    again.close()

    assert target.read_bytes() == before
    assert path.stat().st_mode & 0o077 == 0


def test_a_write_that_fails_leaves_the_store_usable(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, [(sample_id(0), "a.jpg")])
    with pytest.raises(OverflowError):
        store.record_facts({1: Facts(1 << 80, "too large for a row")})
    store.set_meta({"k": "v"})
    assert store.get_meta("k") == "v"
