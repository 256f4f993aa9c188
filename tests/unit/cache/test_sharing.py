"""Two users of one cache directory, as two processes are.

Each has open files, connections and memory of its own, so that locks and files stand between them as they do
between processes.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalogkit import FakeRemote, Impatient, Record, World
from contentkit import MIB, NOISE, Clock, Content, Storage, recorded_bytes, sample_id

from lightlyfs import database, locks
from lightlyfs.blocks import BLOCK_BYTES, ContentId, Span, block_count
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.cache.block_files import CacheConfig
from lightlyfs.cache.block_index import BlockIndex
from lightlyfs.catalog import store
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.fetch.urls import UrlStore
from lightlyfs.locks import SharedLocks
from lightlyfs.places import DatasetPlace

SMALL = ContentId(sample_id(1), "ev1", 100_000)
LARGE = ContentId(sample_id(2), "ev1", 3 * MIB + 5)
DATASET = "a" * 24


class Process:
    """One user of the directory."""

    def __init__(self, parent: Path, budget: int = 1 << 30) -> None:
        self.place = DatasetPlace(parent, DATASET)
        self.began_alone = self.place.alone
        self.cache = BlockCache(
            self.place.path, CacheConfig(budget, min_free_bytes=0), locks=self.place.locks
        )
        self.place.share()

    def holds(self, content: ContentId) -> bool:
        """Whether all of it is here, with the right bytes."""
        self.cache.catch_up(content)
        data = self.cache.read(content, 0, content.size)
        assert data in (None, NOISE[: content.size])
        return data is not None

    def fill(self, content: ContentId) -> None:
        for block in range(block_count(content.size)):
            self.write(content, block)
        self.cache.publish()

    def write(self, content: ContentId, block: int) -> None:
        end = min((block + 1) * BLOCK_BYTES, content.size)
        self.cache.write(content, block, NOISE[block * BLOCK_BYTES : end])

    def close(self) -> None:
        self.cache.close()
        self.place.close()


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Process, Process]]:
    first, second = Process(tmp_path), Process(tmp_path)
    yield first, second
    second.close()
    first.close()


# the directory


def test_the_first_begins_alone_and_the_others_join_once_it_shares(tmp_path: Path) -> None:
    first = DatasetPlace(tmp_path, DATASET)
    assert first.alone
    early = SharedLocks(first.path)
    with pytest.raises(TimeoutError):
        early.join(timeout_s=0)
    first.share()
    second = DatasetPlace(tmp_path, DATASET)
    assert not second.alone
    assert second.path == first.path
    assert first.locks.has_company()
    second.close()
    early.close()
    first.close()

    again = DatasetPlace(tmp_path, DATASET)
    assert again.alone
    again.close()


def test_nobody_comes_while_somebody_who_is_alone_keeps_others_out(tmp_path: Path) -> None:
    first = DatasetPlace(tmp_path, DATASET)
    first.share()
    late = SharedLocks(first.path)
    with first.locks.keeping_others_out() as alone:
        assert alone
        with pytest.raises(TimeoutError):
            late.join(timeout_s=0)
    late.join(timeout_s=0)
    with first.locks.keeping_others_out() as alone:
        assert not alone
    late.close()
    first.close()


def test_a_lock_that_another_holds_is_waited_for_and_then_passed_by(tmp_path: Path) -> None:
    first, second = SharedLocks(tmp_path), SharedLocks(tmp_path)
    waits: list[int] = []
    release = first.take_blocks(sample_id(1), 0, 3, 0, lambda: False)
    assert not second._wait_for(*_place_of(sample_id(1), 3), 0.0, lambda: False, lambda: waits.append(1))
    assert second._wait_for(*_place_of(sample_id(1), 4), 0.0)
    assert second._wait_for(*_place_of(sample_id(2), 0), 0.0)
    release()
    assert waits == [1]
    assert second._wait_for(*_place_of(sample_id(1), 3), 0.0)


def _place_of(sample: str, block: int) -> tuple[int, int]:
    return (1 << 41) + int(sample[-10:], 16) * (1 << 20) + block, 1


def test_names_are_held_by_one_at_a_time(tmp_path: Path) -> None:
    first, second = SharedLocks(tmp_path), SharedLocks(tmp_path)
    assert first.try_name("a")
    assert not second.try_name("a")
    assert second.try_name("b")
    first.release_name("a")
    assert second.try_name("a")


def test_a_lock_dies_with_who_held_it(tmp_path: Path) -> None:
    first, second = SharedLocks(tmp_path), SharedLocks(tmp_path)
    assert first.try_name("a")
    first.close()
    assert second.try_name("a")


# blocks


def test_what_one_wrote_the_other_reads(two: tuple[Process, Process]) -> None:
    first, second = two
    assert not second.holds(SMALL)  # remembered as absent
    first.fill(SMALL)
    assert second.holds(SMALL)
    assert second.cache.stats().bytes == first.cache.stats().bytes == SMALL.size


def test_blocks_that_come_to_an_open_file_are_seen(two: tuple[Process, Process]) -> None:
    first, second = two
    second.write(LARGE, 0)
    second.cache.publish()
    first.fill(LARGE)
    assert second.cache.missing(LARGE, Span(0, 3)) == [1, 2, 3]
    second.cache.catch_up(LARGE)
    assert second.cache.missing(LARGE, Span(0, 3)) == []
    assert second.holds(LARGE)


def test_what_another_deleted_is_read_on_and_let_go_of_soon(two: tuple[Process, Process]) -> None:
    first, second = two
    first.fill(LARGE)
    assert second.holds(LARGE)
    descriptor = second.cache._open[LARGE.key()].fd
    first.cache.drop(LARGE)
    assert second.cache.read(LARGE, 0, LARGE.size) == NOISE[: LARGE.size]
    second.cache.keep_up()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert not second.holds(LARGE)


def test_a_block_written_into_a_file_that_another_deleted_is_not_recorded(
    two: tuple[Process, Process],
) -> None:
    first, second = two
    first.write(LARGE, 0)
    first.cache.publish()
    assert second.cache.read(LARGE, 0, 10) == NOISE[:10]  # has the file open
    first.cache.drop(LARGE)
    first.write(LARGE, 3)
    first.cache.publish()
    second.write(LARGE, 1)
    second.cache.publish()
    assert recorded_bytes(first.cache) == 5
    # whoever waits for it has it all the same
    assert second.cache.read(LARGE, MIB, 10) == NOISE[MIB : MIB + 10]
    third = Process(first.place.path.parent)
    assert third.cache.missing(LARGE, Span(0, 3)) == [0, 1, 2]
    assert third.cache.stats().errors == 0
    third.close()


def test_a_damaged_block_is_forgotten_for_both_unless_the_file_was_deleted(
    two: tuple[Process, Process],
) -> None:
    first, second = two
    first.fill(SMALL)
    path = first.cache._files._path(SMALL.key())
    with open(path, "r+b") as file:
        file.write(b"damaged")
    assert not second.holds(SMALL)
    assert recorded_bytes(second.cache) == 0

    first.cache.drop(SMALL)
    first.fill(SMALL)
    old = second.cache._opened(SMALL.key(), create=False)
    assert old is not None
    first.cache.drop(SMALL)
    first.fill(SMALL)
    os.ftruncate(old.fd, 0)  # a disk that loses what nobody else sees
    assert second.cache.read(SMALL, 0, 10) is None
    assert recorded_bytes(second.cache) == SMALL.size
    assert second.holds(SMALL)


def test_the_budget_is_kept_together(tmp_path: Path) -> None:
    processes = [Process(tmp_path, budget=3 * MIB) for _ in range(3)]
    for number in range(60):
        processes[number % 3].fill(ContentId(sample_id(number), "ev1", 200_000))
    kept = processes[0].cache.stats().bytes
    assert 0 < kept <= 3 * MIB
    assert kept == recorded_bytes(processes[1].cache)
    for process in processes:
        process.cache.keep_up()
    assert sum(path.stat().st_size for path in processes[0].place.path.glob("blocks/*/*")) == kept
    for process in processes:
        process.close()


def test_files_of_a_crash_are_deleted_by_the_next_who_is_alone(tmp_path: Path) -> None:
    first = Process(tmp_path)
    second = Process(tmp_path)
    second.write(LARGE, 0)  # its record is lost in the crash
    second.place.locks.close()
    first.close()
    assert list(first.place.path.glob("blocks/*/*"))
    third = Process(tmp_path)
    assert third.began_alone
    assert not list(first.place.path.glob("blocks/*/*"))
    third.close()


def test_a_damaged_index_is_not_taken_from_those_who_use_it(tmp_path: Path) -> None:
    path = tmp_path / "blocks.db"
    path.write_bytes(b"nothing that SQLite knows" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        BlockIndex(path, alone=False)
    assert path.read_bytes().startswith(b"nothing")


def test_any_mix_of_two_users_keeps_bytes_count_and_budget(tmp_path: Path) -> None:
    chance = random.Random(11)
    processes = [Process(tmp_path, budget=6 * MIB) for _ in range(2)]
    contents = [
        ContentId(sample_id(n), "ev1", size) for n, size in enumerate((10, MIB, MIB + 1, 2 * MIB, 100_000))
    ]
    for _ in range(600):
        number = chance.randrange(2)
        process, content = processes[number], chance.choice(contents)
        block = chance.randrange(block_count(content.size))
        start, end = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, content.size)
        action = chance.random()
        if action < 0.4:
            process.write(content, block)
        elif action < 0.8:
            assert process.cache.read(content, start, end - start) in (None, NOISE[start:end])
        elif action < 0.85:
            process.cache.drop(content)
        elif action < 0.9:
            process.cache.catch_up(content)
        elif action < 0.95:
            process.cache.keep_up()
        else:
            process.close()
            processes[number] = Process(tmp_path, budget=6 * MIB)
        cache = processes[number].cache
        assert 0 <= recorded_bytes(cache) <= 6 * MIB
        assert cache.stats().bytes == recorded_bytes(cache)
        assert cache.stats().errors == 0
    for process in processes:
        process.close()


# a process that is stopped in the middle of what the others need


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited for is waited for shortly, so that tests of it are short."""
    monkeypatch.setattr(locks, "_MOMENT_S", 0.02)
    monkeypatch.setattr(database, "BUSY_S", 0.02)
    monkeypatch.setattr(store, "MOMENT_S", 0.02)


def test_a_lock_on_contents_that_is_not_let_go_of_is_passed_by(impatient: None, tmp_path: Path) -> None:
    first, stopped = Process(tmp_path), SharedLocks(tmp_path / DATASET)
    for number in range(64):
        assert stopped.try_name(f"content {number}")
    first.fill(SMALL)
    assert first.holds(SMALL)
    waits: list[float] = []
    first.place.locks._wait_for = lambda *_: waits.append(1) or False  # type: ignore[method-assign, func-returns-value]
    first.cache.drop(SMALL)  # under the lock that was passed by a moment ago
    assert waits == []
    assert recorded_bytes(first.cache) == 0


def test_an_index_in_the_hands_of_a_stopped_process_costs_its_records_alone(
    impatient: None, two: tuple[Process, Process]
) -> None:
    first, _ = two
    first.fill(LARGE)
    held = sqlite3.connect(first.place.path / "blocks.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    first.fill(SMALL)
    assert first.holds(SMALL)
    assert first.holds(LARGE)
    assert first.cache.stats().errors > 0
    held.execute("ROLLBACK")
    held.close()
    first.cache._index._busy_until = 0.0
    assert recorded_bytes(first.cache) == SMALL.size + LARGE.size


def test_an_index_that_stays_locked_is_logged_when_it_is_waited_for(
    impatient: None, two: tuple[Process, Process], caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = two
    held = sqlite3.connect(first.place.path / "blocks.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        first.fill(SMALL)
    assert first.cache.stats().errors > 3
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert [text.rpartition(": ")[2] for text in warnings] == ["database is locked"]
    held.execute("ROLLBACK")
    held.close()


def test_a_catalogue_in_the_hands_of_a_stopped_process_is_published_to_later(
    impatient: None, worlds: tuple[World, World], tmp_path: Path
) -> None:
    first, second = worlds
    held = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    first.catalog.record_facts(sample_id(1), 10, "e1")
    first.catalog.publish_facts([sample_id(1)])
    assert lookup(first).verified
    assert not lookup(second).verified
    held.execute("ROLLBACK")
    held.close()
    first.catalog.flush_facts()
    assert lookup(second).verified


def lookup(world: World) -> SampleEntry:
    found = world.catalog.by_id(sample_id(1))
    assert found is not None
    return found[1]


# fetches


def test_whoever_comes_second_fetches_nothing(tmp_path: Path) -> None:
    storage = Storage()
    storage.put(sample_id(1), NOISE[: 3 * MIB], "v1")
    place = DatasetPlace(tmp_path, DATASET)
    first = Content(place.path, storage=storage, locks=place.locks)
    place.share()
    other = DatasetPlace(tmp_path, DATASET)
    second = Content(other.path, storage=storage, locks=other.locks)
    found = first.identify(sample_id(1))
    assert first.read(found, 0, 3 * MIB) == NOISE[: 3 * MIB]
    asked = len(storage.requests)

    assert second.read(found, 0, 3 * MIB) == NOISE[: 3 * MIB]
    answer = second.reader.identify(sample_id(1), size_hint=None, for_reading=True, told=lambda _: found)

    assert answer.result(0) == found
    assert len(storage.requests) == asked


# the catalogue


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[tuple[World, World]]:
    """One catalogue in two processes."""
    remote = FakeRemote()
    remote.records = {sample_id(n): Record(f"{n}.jpg", 100, 10) for n in range(5)}
    first = World(tmp_path, remote)
    first.refresher.list_now()
    second = World(tmp_path, remote, clock=first.clock)
    yield first, second
    first.catalog.close()
    second.catalog.close()


def test_what_one_lists_the_other_has_and_tells(worlds: tuple[World, World]) -> None:
    first, second = worlds
    assert len(second.tree()) == 5
    second.catalog.hear_others()
    second.changes.clear()

    first.remote.records[sample_id(9)] = Record("9.jpg", 100, 10)
    first.remote.modified += 1
    first.refresher.list_now()
    generation = second.catalog.generation
    second.catalog.hear_others()

    assert [change.paths for change in second.changes] == [None]
    assert second.catalog.generation > generation
    assert "9.jpg" in second.tree()
    first.changes.clear()
    first.catalog.hear_others()
    assert first.changes == []


def test_facts_that_one_was_told_count_for_both(worlds: tuple[World, World]) -> None:
    first, second = worlds
    entry = second.catalog.by_id(sample_id(1))
    assert entry is not None
    before = second.catalog.told(entry[1])
    assert before is not None
    assert not before.verified
    first.catalog.record_facts(sample_id(1), 10, "e1")
    first.catalog.publish_facts([sample_id(1)])
    told = second.catalog.told(entry[1])
    assert told is not None
    assert told.verified
    assert told.etag == "e1"
    # but not for what has another time by now
    assert second.catalog.told(entry[1]._replace(mtime=101)) is None


def test_an_object_that_one_found_replaced_is_news_to_the_other(worlds: tuple[World, World]) -> None:
    first, second = worlds
    first.catalog.record_facts(sample_id(1), 10, "e1")
    first.catalog.flush_facts()
    second.catalog.hear_others()
    second.changes.clear()
    first.catalog.record_facts(sample_id(1), 10, "e2")
    first.catalog.flush_facts()
    second.catalog.hear_others()
    assert [change.paths for change in second.changes] == [None]


@pytest.mark.parametrize("publishes", [False, True])
def test_a_replaced_object_is_news_also_where_its_first_version_was_not_heard_of(
    worlds: tuple[World, World], publishes: bool
) -> None:
    first, second = worlds
    assert second.catalog.by_id(sample_id(1)) is not None
    second.catalog.lookup("1.jpg", Impatient())
    first.catalog.hear_others()
    first.catalog.record_facts(sample_id(1), 10, "e1")
    first.catalog.flush_facts()
    first.changes.clear()
    second.catalog.record_facts(sample_id(1), 10, "e2")
    if publishes:
        second.catalog.publish_facts([sample_id(1)])
    else:
        second.catalog.flush_facts()
    first.catalog.hear_others()
    assert [change.paths for change in first.changes] == [None]
    known = first.catalog.lookup("1.jpg", Impatient())
    assert isinstance(known, SampleEntry)
    assert known.etag == "e2"


@pytest.mark.parametrize("publishes", [False, True])
def test_what_storage_said_before_a_refresh_by_another_is_asked_again(
    worlds: tuple[World, World], publishes: bool
) -> None:
    first, second = worlds
    second.catalog.record_facts(sample_id(1), 10, "e1")
    first.catalog.refresh()
    if publishes:
        second.catalog.publish_facts([sample_id(1)])
    else:
        second.catalog.flush_facts()
    assert not lookup(first).verified
    second.catalog.hear_others()
    assert not lookup(second).verified
    second.catalog.flush_facts()
    assert not lookup(first).verified
    assert lookup(second).etag == "e1"

    second.catalog.record_facts(sample_id(1), 10, "e2")
    second.catalog.publish_facts([sample_id(1)])
    assert lookup(first).verified
    second.catalog.flush_facts()
    assert (lookup(first).verified, lookup(second).verified) == (True, True)
    first.catalog.record_facts(sample_id(2), 10, "e1")
    first.catalog.flush_facts()
    other = second.catalog.by_id(sample_id(2))
    assert other is not None
    assert other[1].verified


def test_a_size_that_one_found_shows_in_listings_of_the_other(worlds: tuple[World, World]) -> None:
    first, second = worlds
    second.catalog.hear_others()
    second.changes.clear()
    generation = second.catalog.generation
    first.catalog.record_facts(sample_id(1), 11, "e1")
    first.catalog.flush_facts()
    second.catalog.hear_others()
    assert second.catalog.generation > generation
    assert second.changes == []


def test_a_refresh_by_one_has_both_ask_storage_again(worlds: tuple[World, World]) -> None:
    first, second = worlds
    first.catalog.record_facts(sample_id(1), 10, "e1")
    first.catalog.flush_facts()
    second.catalog.hear_others()
    first.catalog.refresh()
    second.catalog.hear_others()
    found = second.catalog.by_id(sample_id(1))
    assert found is not None
    assert not found[1].verified


def test_the_check_of_one_counts_for_both(worlds: tuple[World, World]) -> None:
    first, second = worlds
    second.tree()  # what was there at the start is checked once
    for _ in range(5):
        first.clock.sleep(61)
        before = len(first.remote.asked)
        first.tree()
        between = len(first.remote.asked)
        second.tree()
        assert between > before
        assert len(first.remote.asked) == between


def test_a_listing_that_began_before_another_ended_is_compared_anew(tmp_path: Path) -> None:
    remote = FakeRemote()
    remote.records = {sample_id(n): Record(f"{n}.jpg", 100, 10) for n in range(5)}
    first, second = World(tmp_path, remote), World(tmp_path, remote)
    with second.store.listing() as late:
        late.add([remote._row(*item) for item in remote.records.items()])
        late._settle_names()
        first.refresher.list_now()
        del remote.records[sample_id(0)]
        with second.store.listing() as later:
            later.add([remote._row(*item) for item in remote.records.items()])
            changes = later.commit({})
        assert (changes.added, changes.changed, changes.gone) == (0, 0, 1)
    assert sorted(first.tree()) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]


def test_two_that_find_no_catalogue_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = store.create_schema

    def late(db: sqlite3.Connection) -> None:
        monkeypatch.setattr(store, "create_schema", create)
        CatalogStore(tmp_path / "catalog.db", alone=False).close()  # another process is first
        create(db)

    monkeypatch.setattr(store, "create_schema", late)
    made = CatalogStore(tmp_path / "catalog.db", alone=False)
    assert made.totals() == (0, 1, 0, 0)
    made.close()


def test_a_damaged_catalogue_is_not_taken_from_those_who_use_it(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(b"nothing that SQLite knows" * 100)
    with pytest.raises(sqlite3.DatabaseError):
        CatalogStore(path, alone=False)
    assert path.read_bytes().startswith(b"nothing")


# URLs


def test_urls_are_shared_by_those_of_one_credential_alone(tmp_path: Path) -> None:
    first = DatasetPlace(tmp_path, DATASET)
    clock = Clock()

    def urls(place: DatasetPlace, token: str) -> UrlStore:
        return UrlStore(
            place.path / "urls.db", token, wall_clock=clock, later=lambda job: job(), locks=place.locks
        )

    mine = urls(first, "mine")
    first.share()
    second = DatasetPlace(tmp_path, DATASET)
    mine_too, yours = urls(second, "mine"), urls(second, "yours")
    mine.put("a", "https://bucket.test/a", clock.now + 1000)
    mine.write()
    found = mine_too.get("a")
    assert found is not None
    assert found.url == "https://bucket.test/a"
    assert yours.get("a") is None
    for one in (mine, mine_too, yours):
        one.close()
    second.close()
    first.close()

    third = DatasetPlace(tmp_path, DATASET)
    urls(third, "yours").close()
    assert b"bucket.test" not in (third.path / "urls.db").read_bytes()
    third.close()
