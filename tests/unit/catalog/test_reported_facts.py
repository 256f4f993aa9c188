"""What storage reported of samples: it counts at once, waits for the disk, and is published to others."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from contentkit import sample_id

from lightlyfs import database
from lightlyfs.catalog.entries import Facts, SampleEntry, make_row
from lightlyfs.catalog.known import Publisher, Reported
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.tree import sample_ino

ENTRY = SampleEntry("x.jpg", 7, b"i" * 12, None, 5, 100, None, None, False, False)
FACTS = Facts(9, "e1")


class Store:
    """Notes what is written to it, unless it is full."""

    def __init__(self) -> None:
        self.written: list[tuple[dict[int, Facts], bool]] = []
        self.published: list[dict[int, Facts]] = []
        self.full = False
        self.in_doubt: list[int] = []
        self.during = lambda: None

    def record_facts(self, facts: dict[int, Facts], *, resized: bool) -> list[int]:
        if self.full:
            raise sqlite3.OperationalError("database or disk is full")
        self.written.append((facts, resized))
        self.during()
        return self.in_doubt

    def publish_facts(self, facts: dict[int, Facts]) -> list[int]:
        self.published.append(facts)
        return self.in_doubt


class Bench:
    """What is reported, over a store."""

    def __init__(self) -> None:
        self.store = Store()
        self.told: list[Any] = []
        self.reported = Reported(self.store, self.told.append)  # type: ignore[arg-type]

    def shown(self, entry: SampleEntry = ENTRY) -> int | None:
        return self.reported.apply(entry).published_size


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_facts_count_at_once_and_until_they_are_written(bench: Bench) -> None:
    assert not bench.reported
    assert bench.shown() == 5
    bench.reported.put(7, FACTS, ENTRY)
    assert bench.reported
    assert bench.shown() == 9
    assert bench.shown(ENTRY._replace(ino=8)) == 5
    bench.reported.write()
    assert bench.store.written == [({7: FACTS._replace(of=(100, 5))}, False)]
    assert bench.told == [{7: FACTS._replace(of=(100, 5))}]
    assert not bench.reported
    bench.reported.write()
    assert len(bench.store.written) == 1


def test_facts_count_for_the_sample_that_was_asked_about_alone(bench: Bench) -> None:
    bench.reported.put(7, FACTS, ENTRY)
    assert bench.shown(ENTRY._replace(mtime=101)) == 5
    assert bench.shown(ENTRY._replace(size_hint=6)) == 6
    found = bench.reported.apply(ENTRY)
    assert (found.etag, found.verified, found.stands) == ("e1", True, True)
    bench.reported.doubt()
    found = bench.reported.apply(ENTRY)
    assert (found.size, found.verified, found.stands) == (9, False, False)


def test_others_are_told_of_a_size_that_moved_once_it_is_written(bench: Bench) -> None:
    bench.reported.put(7, FACTS, ENTRY, resized=True)
    bench.reported.put(8, FACTS, ENTRY)
    bench.store.full = True
    bench.reported.write()
    bench.store.full = False
    bench.reported.write()
    bench.reported.put(9, FACTS, ENTRY)
    bench.reported.write()
    assert [resized for _, resized in bench.store.written] == [True, False]


def test_a_full_disk_is_said_once_and_loses_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    bench.reported._failures._clock = lambda: now[0]
    bench.store.full = True
    bench.reported.put(7, FACTS, ENTRY)
    for _ in range(3):
        bench.reported.write()
    assert len(caplog.records) == 1
    assert bench.shown() == 9
    assert bench.told == []
    bench.store.full = False
    now[0] += 100
    bench.reported.write()
    assert len(bench.store.written) == 1
    bench.store.full = True
    bench.reported.put(7, FACTS, ENTRY)
    bench.reported.write()
    assert len(caplog.records) == 2


def test_what_is_reported_during_a_write_is_kept_for_the_next(bench: Bench) -> None:
    bench.reported.put(7, FACTS, ENTRY)
    bench.store.during = lambda: bench.reported.put(7, FACTS._replace(size=10), ENTRY)
    bench.reported.write()
    assert bench.shown() == 10
    bench.store.during = lambda: None
    bench.reported.write()
    assert [facts[7].size for facts, _ in bench.store.written] == [9, 10]


def test_facts_of_a_sample_that_is_not_listed_yet_count_once_a_listing_has_it(bench: Bench) -> None:
    bench.reported.put(7, FACTS, None)
    assert bench.reported
    assert bench.shown(ENTRY._replace(size_hint=None)) == 9
    assert bench.shown() == 5  # another size is listed
    bench.reported.write()
    assert bench.store.written == []
    bench.reported.note_listing(lambda ino: None)
    assert bench.shown(ENTRY._replace(size_hint=None)) == 9
    bench.reported.note_listing(lambda ino: ENTRY._replace(ino=ino, size_hint=9))
    bench.reported.write()
    assert bench.store.written == [({7: FACTS._replace(of=(100, 9))}, False)]
    assert not bench.reported


def test_facts_that_a_listing_speaks_against_are_dropped(bench: Bench) -> None:
    bench.reported.put(7, FACTS, None)
    bench.reported.note_listing(lambda ino: ENTRY)
    assert not bench.reported


def test_later_facts_of_a_listed_sample_stand_against_earlier_ones(bench: Bench) -> None:
    bench.reported.put(7, FACTS, None)
    bench.reported.put(7, FACTS._replace(size=10), ENTRY._replace(size_hint=9))
    bench.reported.note_listing(lambda ino: ENTRY._replace(size_hint=9))
    bench.reported.write()
    assert bench.store.written[0][0][7].size == 10


def test_earlier_facts_do_not_come_back_once_later_ones_are_written(bench: Bench) -> None:
    """The sample was asked about before the first listing had it, and replaced after that."""
    listed = ENTRY._replace(size_hint=FACTS.size)
    bench.reported.put(7, FACTS, None)
    bench.reported.put(7, Facts(12, "e2"), listed)
    bench.reported.write()
    written = listed._replace(size=12, etag="e2")
    assert bench.shown(written) == 12
    bench.reported.note_listing(lambda ino: written)
    assert bench.shown(written) == 12
    assert not bench.reported


def test_the_latest_facts_of_a_sample_that_no_listing_holds_any_more_count(bench: Bench) -> None:
    bench.reported.put(7, FACTS, ENTRY)
    bench.reported.put(7, Facts(5, "e2"), None)
    assert bench.reported.apply(ENTRY).etag == "e2"


def test_what_is_published_is_what_others_wait_for_and_stays_to_be_written(bench: Bench) -> None:
    for ino in (7, 8):
        bench.reported.put(ino, FACTS, ENTRY)
    bench.reported.publish([9])
    bench.reported.publish([8, 9])
    assert bench.store.published == [{8: FACTS._replace(of=(100, 5))}]
    bench.reported.write()
    assert bench.store.written[0][0].keys() == {7, 8}


def test_what_others_have_told_otherwise_since_is_asked_for_again(bench: Bench) -> None:
    known = ENTRY._replace(etag="e0")
    bench.reported.put(7, FACTS, known)
    assert bench.reported.apply(known).verified
    bench.store.in_doubt = [7]

    bench.reported.publish([7])

    assert bench.store.published == [{7: FACTS._replace(of=(100, 5), before="e0")}]
    assert not bench.reported.apply(known).verified

    bench.reported.put(7, FACTS, known)
    bench.reported.write()

    (told,) = bench.told
    assert not told[7].certain
    assert not bench.reported


def test_a_read_is_repeated_where_facts_move_into_the_store_meanwhile(bench: Bench) -> None:
    bench.reported.put(7, FACTS, ENTRY)
    reads: list[int] = []

    def read() -> int:
        if not reads:
            bench.reported.write()
        reads.append(len(reads))
        return reads[-1]

    assert bench.reported.consistent(read) == 1
    assert bench.reported.consistent(read) == 2


@pytest.mark.parametrize("listed", [ENTRY, None])
def test_while_the_disk_is_full_a_bounded_number_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, listed: SampleEntry | None
) -> None:
    monkeypatch.setattr("lightlyfs.catalog.known._MAX_WAITING", 3)
    for ino in range(5):
        bench.reported.put(ino, FACTS._replace(size=5), listed)
    kept = [ino for ino in range(5) if bench.reported.apply(ENTRY._replace(ino=ino)).etag]
    assert kept == [2, 3, 4]


# for other processes


INO = sample_ino(bytes.fromhex(sample_id(1)))


def publisher(
    directory: Path, now: list[float], monkeypatch: pytest.MonkeyPatch
) -> tuple[Publisher, Any, Any]:
    """A publisher, the connections it made, and a store that another process has open."""
    monkeypatch.setattr("lightlyfs.catalog.known.time.monotonic", lambda: now[0])
    store = CatalogStore(directory / "catalog.db")
    with store.listing() as writer:
        writer.add([make_row(sample_id(1), "x.jpg", 5, 7, 7)])
        writer.commit({})
    made: list[sqlite3.Connection] = []

    def connect() -> sqlite3.Connection:
        made.append(database.open_file(directory / "catalog.db", 0))
        return made[-1]

    return Publisher(connect), made, store


def said(etag: str = "e1") -> dict[int, Facts]:
    return {INO: Facts(9, etag)}


def test_what_is_published_is_seen_and_a_busy_catalogue_is_let_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    subject, made, store = publisher(tmp_path, now, monkeypatch)
    subject.publish(said(), 0)
    assert store.sample(INO).size == 9
    subject.publish(said(), 0)
    assert len(made) == 1

    store._writer.execute("BEGIN IMMEDIATE")
    subject.publish(said("e2"), 0)
    store._writer.execute("COMMIT")
    now[0] += 9.9
    subject.publish(said("e2"), 0)
    assert store.sample(INO).etag == "e1"
    now[0] += 0.2
    subject.publish(said("e2"), 0)
    assert store.sample(INO).etag == "e2"

    subject.renew()
    subject.renew()
    subject.publish(said("e3"), 0)
    assert len(made) == 2
    subject.close()
    subject.close()
    subject.publish(said("e4"), 0)
    assert store.sample(INO).etag == "e3"
    store.close()


def test_a_catalogue_that_cannot_be_opened_is_let_alone(tmp_path: Path) -> None:
    calls: list[None] = []

    def connect() -> sqlite3.Connection:
        calls.append(None)
        return sqlite3.connect(tmp_path / "deleted" / "catalog.db")

    subject = Publisher(connect)
    subject.publish(said(), 0)
    subject.publish(said(), 0)
    assert len(calls) == 1


def test_only_another_version_is_news_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject, _, store = publisher(tmp_path, [100.0], monkeypatch)
    store.news()
    subject.publish(said(), 0)
    news = store.news()
    assert news is not None
    assert not news.changed
    subject.publish(said("e2"), 0)
    news = store.news()
    assert news is not None
    assert news.changed
    assert not news.resized
    subject.close()
    store.close()
