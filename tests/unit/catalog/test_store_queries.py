"""What the catalogue answers: one path, one directory, what is behind a path, sums, and rows that hold."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from contentkit import sample_id

from lightlyfs.catalog.entries import DirectoryEntry, Facts, Row, SampleEntry, make_row
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.tree import ROOT_INO, directory_ino, sample_ino

NAMES = [
    f"{directory}{name}" for directory in ("", "a/", "a/b/", "c/") for name in ("x.jpg", "y.jpg", "é.jpg")
]


def ident(number: int) -> bytes:
    return bytes.fromhex(sample_id(number))


def rows(names: list[str] = NAMES) -> list[Row]:
    return [make_row(sample_id(n), name, 5 if n % 2 else None, 100 + n, 7) for n, name in enumerate(names)]


def list_all(store: CatalogStore, listed: list[Row]) -> None:
    with store.listing() as writer:
        writer.add(listed)
        writer.commit({})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CatalogStore]:
    made = CatalogStore(tmp_path / "catalog.db")
    list_all(made, random.Random(1).sample(rows(), len(NAMES)))
    yield made
    made.close()


def test_a_path_is_a_sample_a_directory_or_nothing(store: CatalogStore) -> None:
    for number, name in enumerate(NAMES):
        entry = store.lookup(name)
        assert isinstance(entry, SampleEntry)
        assert (entry.id, entry.mtime, entry.ino) == (ident(number), 100 + number, sample_ino(ident(number)))
    assert store.lookup("") == DirectoryEntry("", ROOT_INO, 111)
    assert store.lookup("a") == DirectoryEntry("a", directory_ino("a"), 108)
    assert store.lookup("a/b") == DirectoryEntry("b", directory_ino("a/b"), 108)
    for path in ("b", "a/x", "x.jpg/y", "a/b/c", "\ud800", "\ud800/x.jpg", "x.jp"):
        assert store.lookup(path) is None


def test_a_sample_comes_with_those_behind_it_in_its_directory(store: CatalogStore) -> None:
    entry, behind = store.lookup_with_next("a/x.jpg", 2)
    assert entry is not None
    assert [other.name for other in behind] == ["y.jpg", "é.jpg"]
    assert store.lookup_with_next("a/y.jpg", 5)[1][0].name == "é.jpg"
    assert store.lookup_with_next("a/x.jpg", 0)[1] == []
    assert store.lookup_with_next("a", 5) == (store.lookup("a"), [])


def test_a_directory_is_listed_in_byte_order_without_itself(store: CatalogStore) -> None:
    directories, samples = store.list_directory("")
    assert [entry.name for entry in directories] == ["a", "c"]
    assert [entry.name for entry in samples] == ["x.jpg", "y.jpg", "é.jpg"]
    directories, samples = store.list_directory("a")
    assert [(entry.name, entry.mtime) for entry in directories] == [("b", 108)]
    assert len(samples) == 3
    assert store.list_directory("none") == store.list_directory("\ud800") == ([], [])
    assert store.directories_in("") == ["a", "c"]
    assert store.directories_in("a") == ["b"]
    assert store.directories_in("c") == []


@pytest.mark.parametrize(
    ("path", "count", "names"),
    [
        ("a/x.jpg", 5, ["y.jpg", "é.jpg"]),
        ("a/x.jpg", 1, ["y.jpg"]),
        ("a/", 2, ["x.jpg", "y.jpg"]),
        ("a/é.jpg", -5, ["y.jpg", "x.jpg"]),
        ("a/é.jpg", -1, ["y.jpg"]),
        ("a/x.jpg", -1, []),
        ("x.jpg", 9, ["y.jpg", "é.jpg"]),
    ],
)
def test_samples_behind_a_path_and_before_it(
    store: CatalogStore, path: str, count: int, names: list[str]
) -> None:
    assert [entry.name for entry in store.samples_after(path, count)] == names


def test_sums_of_a_directory_count_what_is_known_best(store: CatalogStore) -> None:
    assert store.sums_in("a", 1_000) == (3, 5 + 5 + 1_000)  # samples 3 to 5
    store.record_facts({sample_ino(ident(4)): Facts(7, "e"), sample_ino(ident(3)): Facts(8, "e", (103, 5))})
    assert store.sums_in("a", 1_000) == (3, 7 + 8 + 5)
    assert store.sums_in("none", 1_000) == (0, 0)
    assert store.totals() == (12, 4, 5 * 6 + 7 + 3, 10)


def test_a_sample_is_found_by_its_number_with_its_path(store: CatalogStore) -> None:
    for number, name in enumerate(NAMES):
        found = store.by_ino(sample_ino(ident(number)))
        assert found is not None
        path, entry = found
        assert path == name
        assert store.sample(entry.ino) == entry
    assert store.by_ino(5) is store.sample(5) is None


def test_the_directories_that_hold_some_samples(store: CatalogStore) -> None:
    def inos(*paths: str) -> frozenset[int]:
        return frozenset(map(directory_ino, paths))

    assert store.directories_holding([]) == frozenset()
    assert store.directories_holding([ident(0)]) == inos("")
    assert store.directories_holding([ident(7)]) == inos("", "a", "a/b")
    assert store.directories_holding([ident(3), ident(10)]) == inos("", "a", "c")


def test_rows_hold_that_are_stored_as_they_are_listed(store: CatalogStore) -> None:
    listed = rows()
    assert store.holds([])
    assert store.holds(listed)
    for change in (
        {"id": ident(99)},
        {"directory": "c"},
        {"wanted": "z.jpg"},
        {"hint": 6},
        {"hint": None},
        {"mtime": 104},
        {"mtime": 102},
        {"file_name_raw": b"other"},
    ):
        assert not store.holds([*listed[:3], listed[3]._replace(**change)]), change  # type: ignore[arg-type]


def test_rows_hold_whose_path_is_spelled_apart_from_another(tmp_path: Path) -> None:
    store = CatalogStore(tmp_path / "catalog.db")
    listed = rows(["a/x.jpg", "a/x.jpg", "x.jpg", "x.jpg", "b//c"])
    list_all(store, listed)
    assert store.by_ino(sample_ino(ident(1))) != store.by_ino(sample_ino(ident(0)))
    assert store.holds(listed)
    assert not store.holds([listed[1]._replace(wanted="z.jpg")])
    assert not store.holds([listed[3]._replace(wanted="z.jpg")])
    assert not store.holds([listed[4]._replace(file_name_raw=b"b//d")])
    store.close()


def test_facts_count_while_neither_time_nor_size_moves(store: CatalogStore) -> None:
    ino = sample_ino(ident(3))
    store.record_facts({ino: Facts(9, "e1", (103, 6))})
    store.record_facts({ino: Facts(9, "e1", (104, 5))})
    assert store.sample(ino).size is None  # type: ignore[union-attr]
    store.record_facts({ino: Facts(9, "e1", (103, 5))})
    entry = store.sample(ino)
    assert entry is not None
    assert (entry.size, entry.etag, entry.verified, entry.stands) == (9, "e1", 1, 1)
    store.record_facts({ino: Facts(9, "e1", (103, 5), certain=False)})
    entry = store.sample(ino)
    assert entry is not None
    assert (entry.size, entry.verified, entry.stands) == (9, 0, 0)


def test_what_was_reported_outlives_a_listing_that_changes_nothing_of_it(store: CatalogStore) -> None:
    for number in (1, 3, 5, 7):
        store.record_facts({sample_ino(ident(number)): Facts(9, "e1")})
    listed = rows()
    listed[3] = listed[3]._replace(mtime=500)
    listed[5] = listed[5]._replace(hint=6)
    listed[7] = listed[7]._replace(directory="moved", wanted="new.jpg")
    list_all(store, listed)
    found = [store.sample(sample_ino(ident(number))) for number in (1, 3, 5, 7)]
    assert [(one.size, one.etag, one.verified) for one in found if one] == [
        (9, "e1", 1),
        (9, "e1", 0),
        (None, "e1", 0),
        (9, "e1", 1),
    ]
    assert store.totals().unverified == 10


def test_few_connections_are_kept_and_none_after_the_end(store: CatalogStore) -> None:
    readers = [store._reader() for _ in range(12)]
    lent = [reader.__enter__() for reader in readers]
    assert len(set(map(id, lent))) == 12
    for reader in readers:
        reader.__exit__(None, None, None)
    assert len(store._idle) == 8
    late = store._reader()
    db = late.__enter__()
    store.close()
    late.__exit__(None, None, None)
    assert store._idle == []
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")


def test_samples_at_many_paths_are_found_at_once_and_nothing_else(store: CatalogStore) -> None:
    absent = ["", "a", "a/b", "nothing.jpg", "a/nothing/x.jpg", "a/\udcff.jpg", "\udcff/x.jpg"]
    wanted = [*reversed(NAMES), *absent, NAMES[0]]
    found = store.samples_at(wanted)
    assert sorted(found) == sorted((name, store.lookup(name)) for name in [*NAMES, NAMES[0]])
    assert store.samples_at(absent) == store.samples_at([]) == []
