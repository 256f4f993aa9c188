"""Which lookups are answered from memory, and that none of them is out of date."""

from __future__ import annotations

import pytest

from lightlyfs.catalog.entries import DirectoryEntry, Entry, Facts, SampleEntry
from lightlyfs.catalog.known import RecentLookups


def entry(number: int, size: int | None = None) -> SampleEntry:
    return SampleEntry(f"{number:04}", number, b"i" * 12, None, 5, 1, size, None, False, False)


class Store:
    """A directory `d` of samples, and one at the root; notes what it is asked."""

    def __init__(self, count: int = 500) -> None:
        self.count = count
        self.asked: list[tuple[str, int]] = []
        self.size: int | None = None
        self.during = lambda: None

    def _entry(self, number: int) -> SampleEntry:
        return entry(number, self.size)

    def lookup_with_next(self, path: str, count: int) -> tuple[Entry | None, list[SampleEntry]]:
        self.asked.append((path, count))
        directory, _, name = path.rpartition("/")
        found: tuple[Entry | None, list[SampleEntry]] = None, []
        if path == "d":
            found = DirectoryEntry("d", 9_000, 1), []
        elif name.isdigit() and int(name) < self.count and directory in ("", "d"):
            number = int(name)
            last = min(self.count, number + 1 + count)
            found = self._entry(number), [self._entry(other) for other in range(number + 1, last)]
        self.during()
        return found

    def samples_at(self, paths: list[str]) -> list[tuple[str, SampleEntry]]:
        self.asked += [(path, 0) for path in paths]
        numbers = {path: path.rpartition("/")[2] for path in paths}
        found = [
            (path, self._entry(int(number)))
            for path, number in numbers.items()
            if number.isdigit() and int(number) < self.count
        ]
        self.during()
        return found[::-1]

    def sample(self, ino: int) -> SampleEntry | None:
        self.asked.append(("ino", ino))
        return self._entry(ino) if ino < self.count else None

    def samples_after(self, path: str, count: int) -> list[SampleEntry]:
        self.asked.append((path, count))
        first = int(path.rpartition("/")[2]) + 1
        return [self._entry(number) for number in range(first, min(self.count, first + count))]


@pytest.fixture
def store() -> Store:
    return Store()


def lookups(store: Store) -> RecentLookups:
    return RecentLookups(store)  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "d/"])
def test_a_caller_in_order_has_the_next_names_read_ahead(store: Store, prefix: str) -> None:
    """1 name with the first, then 2, 4 and so on up to 64 at once; what was read ahead is asked for once."""
    recent = lookups(store)
    for number in range(400):
        assert recent.lookup(f"{prefix}{number:04}") == entry(number)
    assert [count for _, count in store.asked] == [1, 2, 4, 8, 16, 32, *[64] * 6]
    assert [int(path[-4:]) for path, _ in store.asked] == [0, 1, 3, 7, 15, 31, 63, 127, 191, 255, 319, 383]


def test_names_out_of_order_are_read_one_at_a_time(store: Store) -> None:
    recent = lookups(store)
    for number in (5, 300, 7, 100):
        recent.lookup(f"d/{number:04}")
    assert [count for _, count in store.asked] == [1, 1, 1, 1]


def test_two_directories_are_followed_apart(store: Store) -> None:
    recent = lookups(store)
    for number in range(4):
        recent.lookup(f"d/{number:04}")
        recent.lookup(f"{number:04}")
    assert [count for path, count in store.asked if "/" in path] == [1, 2, 4]
    assert [count for path, count in store.asked if "/" not in path] == [1, 2, 4]


@pytest.mark.parametrize("path", ["d", "d/none", "d/0007"])
def test_an_answer_is_kept_until_the_store_changes(store: Store, path: str) -> None:
    recent = lookups(store)
    found = recent.lookup(path)
    assert recent.lookup(path) == found
    assert len(store.asked) == 1
    before = recent.state
    recent.outdate()
    assert recent.state != before
    assert recent.lookup(path) == found
    assert len(store.asked) == 2


def test_what_is_written_shows_without_a_query(store: Store) -> None:
    recent = lookups(store)
    recent.lookup("d/0007")
    before = recent.state
    recent.written({7: Facts(99, "e", (1, 5)), 8: Facts(5, "e", (1, 5))})
    assert recent.state != before
    found = recent.lookup("d/0007")
    assert isinstance(found, SampleEntry)
    assert (found.size, found.etag, found.verified) == (99, "e", True)
    assert recent.sample(7) == found
    assert len(store.asked) == 1


@pytest.mark.parametrize("change", ["written", "outdate"])
def test_what_changes_during_a_query_is_not_hidden_by_its_answer(store: Store, change: str) -> None:
    recent = lookups(store)

    def during() -> None:
        store.during = lambda: None
        store.size = 99
        if change == "written":
            recent.written({7: Facts(99, "e", (1, 5))})
        else:
            recent.outdate()

    store.during = during
    recent.lookup("d/0007")
    assert recent.lookup("d/0007") == entry(7, 99)


def test_a_sample_is_had_by_its_number_and_asked_for_again_where_that_is_wanted(store: Store) -> None:
    recent = lookups(store)
    assert recent.sample(7) == recent.sample(7) == entry(7)
    assert store.asked == [("ino", 7)]
    store.size = 99
    assert recent.sample(7, reread=True) == entry(7, 99)
    assert recent.sample(7) == entry(7, 99)
    assert recent.sample(999) is None
    assert recent.sample(999) is None
    assert len(store.asked) == 4


@pytest.mark.parametrize("directory", ["", "d/"])
def test_what_was_read_behind_a_path_is_looked_up_without_a_query(store: Store, directory: str) -> None:
    recent = lookups(store)
    found = recent.samples_after(f"{directory}0003", 2)
    assert found == [(f"{directory}0004", entry(4)), (f"{directory}0005", entry(5))]
    assert recent.lookup(f"{directory}0005") == entry(5)
    assert recent.sample(4) == entry(4)
    assert len(store.asked) == 1


def test_the_memory_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightlyfs.catalog.known._MAX_KEPT", 10)
    recent = lookups(store)
    for number in range(0, 500, 3):
        recent.lookup(f"d/{number:04}")
        assert len(recent._paths) <= 11
        assert len(recent._samples) <= 11
    assert recent.lookup("d/0498") == entry(498)
    assert store.asked[-1] == ("d/0498", 1)


def test_many_paths_are_asked_for_at_once_where_they_are_not_remembered(store: Store) -> None:
    recent = lookups(store)
    known = recent.lookup("d/0007")
    for path in ("d", "d/none"):
        recent.lookup(path)
    store.asked.clear()
    wanted = ["d/0009", "d", "d/0007", "d/none", "d/0900", "d/0003"]
    found = recent.samples_at(wanted)
    assert found == [("d/0009", entry(9)), ("d/0007", known), ("d/0003", entry(3))]
    assert [path for path, _ in store.asked] == ["d/0009", "d/0900", "d/0003"]
    store.asked.clear()
    assert recent.samples_at(["d/0009", "d/0003"]) == [found[0], found[2]]
    assert recent.lookup("d/0003") == entry(3)
    assert store.asked == []
    recent.outdate()
    recent.samples_at(["d/0009"])
    assert store.asked == [("d/0009", 0)]


def test_rows_that_lack_facts_written_meanwhile_are_not_remembered(store: Store) -> None:
    recent = lookups(store)
    store.during = lambda: recent.written({9: Facts(5, "e", certain=True)})
    recent.samples_at(["d/0009"])
    store.asked.clear()
    store.during = lambda: None
    recent.samples_at(["d/0009"])
    assert store.asked == [("d/0009", 0)]
