"""When storage has reported every sample, and which look-ups are answered from memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lightlyfs.catalog.entries import DirectoryEntry, Facts, SampleEntry, make_row
from lightlyfs.catalog.known import RecentLookups
from lightlyfs.catalog.sample_catalog import Census
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.tree import sample_ino

NAMES = [f"{directory}/{number:02}.jpg" for directory in ("a", "b/c", "b") for number in range(20)]


def ident(number: int) -> str:
    return f"{number:024x}"


def list_all(store: CatalogStore, names: list[str], hint: int = 5) -> None:
    with store.listing() as writer:
        writer.add([make_row(ident(i), name, hint, 7, 7) for i, name in enumerate(names)])
        writer.commit({})


def report(store: CatalogStore, number: int, etag: str = "e1") -> None:
    store.record_facts({sample_ino(bytes.fromhex(ident(number))): Facts(5, etag)})


@pytest.fixture
def store(tmp_path: Path) -> CatalogStore:
    made = CatalogStore(tmp_path / "catalog.db")
    list_all(made, NAMES)
    return made


def test_it_is_settled_once_the_last_sample_is_reported(store: CatalogStore) -> None:
    census = Census(store, "none")
    # in an order that has nothing to do with that of the table
    for number in sorted(range(len(NAMES)), key=lambda i: i * 37 % 60):
        census.look()
        assert not census.settled
        report(store, number)
    census.look()
    assert census.settled


def test_a_sample_without_an_object_or_to_be_confirmed_is_not_settled(store: CatalogStore) -> None:
    census = Census(store, "none")
    for number in range(len(NAMES)):
        report(store, number)
    report(store, 3, "none")
    census.look()
    assert not census.settled
    report(store, 3)
    census.look()
    assert census.settled

    store.forget_facts()
    census.start_over()
    assert not census.settled
    census.look()
    assert not census.settled


def test_what_changes_during_a_look_is_not_missed(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    census = Census(store, "none")
    look = store.first_unsettled

    def changing(*args: Any) -> Any:
        found = look(*args)
        census.start_over()
        return found

    for number in range(len(NAMES)):
        report(store, number)
    monkeypatch.setattr(store, "first_unsettled", changing)
    census.look()
    assert not census.settled


def test_a_refresh_keeps_what_no_listing_speaks_against(store: CatalogStore) -> None:
    """A size that was reported stands until its record moves, but is not verified."""
    for number in range(len(NAMES)):
        report(store, number)
    store.forget_facts()
    entry = store.lookup("a/00.jpg")
    assert entry is not None
    assert not isinstance(entry, DirectoryEntry)
    assert (entry.verified, entry.stands) == (0, 1)

    list_all(store, NAMES, hint=6)
    entry = store.lookup("a/00.jpg")
    assert not isinstance(entry, DirectoryEntry)
    assert entry is not None
    assert (entry.verified, entry.stands) == (0, 0)


def counting(store: CatalogStore, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    calls = []
    ask = store.lookup_with_next
    monkeypatch.setattr(store, "lookup_with_next", lambda *args: calls.append(args) or ask(*args))
    return lambda: len(calls)


def test_names_in_order_cost_few_queries(store: CatalogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentLookups(store)
    asked = counting(store, monkeypatch)
    for name in sorted(NAMES):
        assert recent.lookup(name) == store.lookup(name)
    before = asked()
    for name in NAMES:
        recent.lookup(name)
    assert asked() == before  # all are kept now
    # `store.lookup` is a query of the test's own
    assert before - len(NAMES) <= 3 * 6


def test_names_at_random_have_nothing_read_ahead(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = RecentLookups(store)
    counts = []
    ask = store.lookup_with_next
    monkeypatch.setattr(store, "lookup_with_next", lambda p, n: counts.append(n) or ask(p, n))
    for number in (17, 3, 11, 5, 19, 1):
        recent.lookup(f"a/{number:02}.jpg")
    assert set(counts) == {1}


def test_what_was_kept_counts_no_more_once_the_store_changed(store: CatalogStore) -> None:
    recent = RecentLookups(store)
    assert recent.lookup("a/00.jpg") is not None
    assert recent.lookup("nothing") is None
    list_all(store, ["nothing"])
    recent.outdate()
    assert recent.lookup("a/00.jpg") is None
    assert recent.lookup("nothing") is not None


@contextmanager
def changing_meanwhile(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> Iterator[None]:
    """`change(entry)` is called after each query for an entry, before its answer is taken."""
    ask = store.lookup_with_next

    def late(path: str, count: int) -> Any:
        answer = ask(path, count)
        change(answer[0])
        return answer

    with monkeypatch.context() as patched:
        patched.setattr(store, "lookup_with_next", late)
        yield


def test_a_change_during_a_query_outdates_its_answer(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = RecentLookups(store)

    def change(_: Any) -> None:
        list_all(store, ["else"])
        recent.outdate()

    with changing_meanwhile(store, monkeypatch, change):
        assert recent.lookup("a/00.jpg") is not None
    assert recent.lookup("a/00.jpg") is None


def test_a_store_that_fails_keeps_nothing(store: CatalogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentLookups(store)
    ask = store.lookup_with_next

    def fail(*_: Any) -> Any:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(store, "lookup_with_next", fail)
    with pytest.raises(sqlite3.OperationalError):
        recent.lookup("a/00.jpg")
    monkeypatch.setattr(store, "lookup_with_next", ask)
    assert recent.lookup("a/00.jpg") is not None


def test_facts_that_the_store_took_count_without_another_query(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = RecentLookups(store)
    asked = counting(store, monkeypatch)
    entry = recent.lookup("a/00.jpg")
    assert isinstance(entry, SampleEntry)
    facts = {entry.ino: Facts(9, "e", of=(entry.mtime, entry.size_hint))}
    store.record_facts(facts)
    recent.written(facts)
    before = asked()
    found = recent.lookup("a/00.jpg")
    assert recent.sample(entry.ino) == found
    assert asked() == before
    assert found == store.lookup("a/00.jpg")
    assert isinstance(found, SampleEntry)
    assert (found.size, found.etag) == (9, "e")


def test_a_row_that_was_read_before_facts_came_is_not_kept_after_them(
    store: CatalogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    recent = RecentLookups(store)

    def change(entry: Any) -> None:
        facts = {entry.ino: Facts(9, "e", of=(entry.mtime, entry.size_hint))}
        store.record_facts(facts)
        recent.written(facts)

    with changing_meanwhile(store, monkeypatch, change):
        recent.lookup("a/00.jpg")
    found = recent.lookup("a/00.jpg")
    assert isinstance(found, SampleEntry)
    assert found.size == 9
    assert recent.sample(found.ino) == found


def test_facts_of_another_version_change_nothing_that_is_kept(store: CatalogStore) -> None:
    recent = RecentLookups(store)
    entry = recent.lookup("a/00.jpg")
    assert isinstance(entry, SampleEntry)
    recent.written({entry.ino: Facts(9, "e", of=(entry.mtime + 1, entry.size_hint))})
    assert recent.lookup("a/00.jpg") == entry == store.lookup("a/00.jpg")


def test_samples_behind_a_path_are_kept(store: CatalogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    recent = RecentLookups(store)
    asked = counting(store, monkeypatch)
    behind = recent.samples_after("a/03.jpg", 5)
    assert [path for path, _ in behind] == [f"a/{number:02}.jpg" for number in range(4, 9)]
    assert [recent.lookup(path) for path, _ in behind] == [entry for _, entry in behind]
    assert asked() == 0


def test_another_process_is_heard_where_that_is_asked_for(store: CatalogStore) -> None:
    recent = RecentLookups(store)
    entry = recent.lookup("a/00.jpg")
    assert isinstance(entry, SampleEntry)
    store.record_facts({entry.ino: Facts(9, "e")})
    assert recent.sample(entry.ino) == entry
    found = recent.sample(entry.ino, reread=True)
    assert found is not None
    assert found.size == 9
