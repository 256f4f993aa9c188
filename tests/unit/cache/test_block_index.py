"""The records of blocks: what is counted, in which order contents were used, what waits for a disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightlyfs import database
from lightlyfs.cache.block_index import BlockIndex


class Index:
    """An index that the test opens, closes, crashes, and whose disk it may fill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.open: list[BlockIndex] = []

    def begin(self, *, alone: bool = True) -> BlockIndex:
        self.open.append(BlockIndex(self.path, alone=alone))
        return self.open[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Index]:
    bench = Index(tmp_path / "blocks.db")
    yield bench
    for index in bench.open:
        for db in (index._reader, index._db):
            db.close()


class Full:
    """A connection to a disk that takes nothing."""

    in_transaction = False
    patience_ms = 0

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def execute(self, query: str, *more: object) -> sqlite3.Cursor:
        if query == "BEGIN IMMEDIATE":
            raise sqlite3.OperationalError("database or disk is full")
        return self.db.execute(query, *more)

    def close(self) -> None:
        self.db.close()


def test_blocks_are_found_before_and_after_they_are_written(bench: Index) -> None:
    index = bench.begin()
    index.add("a", 0, 11, 100)
    index.add("a", 2, 13, 50)
    assert index.blocks("a") == {0: 11, 2: 13}
    assert index.blocks("b") == {}
    assert index.bytes == 150
    index.write()
    assert index.blocks("a") == {0: 11, 2: 13}
    assert index.keys() == {"a"}
    assert index.bytes == 150
    index.add("b", 0, 14, 1)
    assert index.blocks("b") == {0: 14}


def test_a_block_that_was_recorded_again_counts_once(bench: Index) -> None:
    index = bench.begin()
    index.add("a", 0, 1, 100)
    index.add("a", 0, 2, 70)
    index.write()
    assert index.blocks("a") == {0: 2}
    assert index.bytes == 70
    index.add("a", 0, 3, 30)
    index.write()
    assert index.blocks("a") == {0: 3}
    assert index.bytes == 30


def test_one_block_or_all_of_a_content_are_forgotten_written_or_not(bench: Index) -> None:
    index = bench.begin()
    for written in (True, False):
        for block in range(3):
            index.add("a", block, block, 10)
        if written:
            index.write()
        index.forget("a", 1)
        assert index.blocks("a") == {0: 0, 2: 2}
        assert index.bytes == 20
        index.forget("a", 7)
        index.remove("a")
        assert index.blocks("a") == {}
        assert index.bytes == 0
        assert index.oldest(()) == []


def test_a_content_that_is_removed_before_it_was_written_leaves_no_record(bench: Index) -> None:
    index = bench.begin()
    index.add("a", 0, 1, 10)
    index.add("b", 0, 1, 10)
    index.remove("a")
    assert index.oldest(()) == ["b"]
    index.forget("b", 0)
    assert index.oldest(()) == ["b"]
    assert index.bytes == 0


def test_a_batch_of_64_records_is_written_by_itself(bench: Index) -> None:
    index, other = bench.begin(), bench.begin(alone=False)
    for block in range(63):
        index.add("a", block, 1, 10)
    index.add("a", 0, 1, 10)
    assert other.blocks("a") == {}
    index.add("a", 63, 1, 10)
    assert len(other.blocks("a")) == 64
    other.write()
    assert other.bytes == 640


def test_a_batch_of_1024_uses_is_written_by_itself(bench: Index) -> None:
    index, other = bench.begin(), bench.begin(alone=False)
    index.note_use([f"k{number:04}" for number in range(1023)])
    assert other.oldest(()) == []
    index.note_use(["k1023"])
    assert len(other.oldest(())) == 100  # as many as it gives at once


def test_the_order_of_use_is_that_of_the_last_uses_over_a_remount(bench: Index) -> None:
    index = bench.begin()
    for key in "abcd":
        index.add(key, 0, 1, 10)
    index.note_use(["b", "a"])
    assert index.oldest(()) == ["c", "d", "b", "a"]
    index.close()
    index = bench.begin()
    index.note_use(["c"])
    index.add("e", 0, 1, 10)
    assert index.oldest(()) == ["d", "b", "a", "c", "e"]
    assert index.oldest({"d", "c"}) == ["b", "a", "e"]


def test_enough_of_the_oldest_are_named_beside_those_left_out(bench: Index) -> None:
    index = bench.begin()
    keys = [f"k{number:03}" for number in range(300)]
    index.note_use(keys)
    assert index.oldest(()) == keys[:100]
    assert index.oldest(keys[:150]) == keys[150:250]


def test_pins_outlive_a_mount_and_go_with_their_content(bench: Index) -> None:
    index = bench.begin()
    for key in "abc":
        index.add(key, 0, 1, 10)
    index.set_pinned(["a", "b"], pinned=True)
    index.set_pinned(["b"], pinned=True)
    index.close()
    index = bench.begin()
    assert index.pinned() == {"a", "b"}
    assert (index.is_pinned("a"), index.is_pinned("c")) == (True, False)
    assert index.oldest(()) == ["c"]
    index.set_pinned(["b", "c"], pinned=False)
    assert index.pinned() == {"a"}
    index.remove("a")
    assert not index.is_pinned("a")


def test_what_was_found_absent_is_found_once_it_is_here(bench: Index) -> None:
    index, other = bench.begin(), bench.begin(alone=False)
    assert index.blocks("a") == index.blocks("a") == {}
    index.add("a", 0, 5, 10)
    assert index.blocks("a") == {0: 5}
    assert index.blocks("b") == index.blocks("b") == {}
    other.add("b", 0, 6, 10)
    assert index.blocks("b") == {}
    other.write()
    assert index.blocks("b") == {0: 6}


def test_what_is_absent_is_asked_of_the_disk_once_and_forgotten_in_the_end(
    bench: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.cache.block_index._MAX_ABSENT", 2)
    index = bench.begin()
    asked: list[str] = []
    index._reader.set_trace_callback(asked.append)

    def asks(key: str) -> bool:
        asked.clear()
        assert index.blocks(key) == {}
        return any("FROM block" in query for query in asked)

    assert [asks(key) for key in "aaba"] == [True, True, True, False]
    # the first look of all only learns as of when it is
    assert [asks(key) for key in "cab"] == [True, True, True]


def test_records_wait_while_the_disk_is_full_and_come_behind_earlier_ones(bench: Index) -> None:
    index = bench.begin()
    index.add("a", 0, 1, 10)
    index.add("b", 0, 1, 10)
    real, index._db = index._db, Full(index._db)  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError):
        index.write()
    index.add("a", 0, 2, 20)
    index.add("a", 1, 3, 5)
    assert index.blocks("a") == {0: 2, 1: 3}
    with pytest.raises(sqlite3.OperationalError):
        index.write()
    index._db = real
    index.write()
    assert index.blocks("a") == {0: 2, 1: 3}
    assert index.bytes == 35
    assert index.oldest(()) == ["b", "a"]


def test_a_batch_that_another_process_keeps_from_being_written_waits_and_nobody_with_it(bench: Index) -> None:
    index = bench.begin()
    other = sqlite3.connect(bench.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for block in range(100):
        index.add("a", block, 1, 10)
    assert len(index.blocks("a")) == 100
    assert other.execute("SELECT count(*) FROM block").fetchone() == (0,)
    other.execute("COMMIT")
    index.add("a", 100, 1, 10)
    assert other.execute("SELECT count(*) FROM block").fetchone() == (101,)
    assert index.bytes == 1010
    other.close()


@pytest.mark.parametrize(("more", "kept"), [(0, True), (1, False)])
def test_while_the_disk_is_full_a_bounded_number_of_records_waits(
    bench: Index, monkeypatch: pytest.MonkeyPatch, more: int, kept: bool
) -> None:
    monkeypatch.setattr("lightlyfs.cache.block_index._BATCH", 1000)
    monkeypatch.setattr("lightlyfs.cache.block_index._MAX_WAITING", 10)
    index = bench.begin()
    index._db = Full(index._db)  # type: ignore[assignment]
    for block in range(10 + more):
        index.add("a", block, 1, 10)
    with pytest.raises(sqlite3.OperationalError):
        index.write()
    assert bool(index.blocks("a")) == kept
    assert index.bytes == (100 if kept else 0)


def test_an_index_that_was_not_closed_says_so(bench: Index) -> None:
    """Records that were written are there; the next owner deletes the files of those that were not."""
    first = bench.begin()
    assert not first.was_closed  # it is new: files beside it belong to no record
    first.add("a", 0, 1, 10)
    first.close()
    crashed = bench.begin()
    assert crashed.was_closed
    crashed.add("b", 0, 1, 10)
    crashed.write()
    crashed.add("c", 0, 1, 10)
    second = bench.begin()
    assert not second.was_closed
    assert second.keys() == {"a", "b"}
    second.close()
    assert bench.begin().was_closed


def test_an_index_that_one_of_two_left_open_was_not_closed(bench: Index) -> None:
    bench.begin()
    other = bench.begin(alone=False)
    assert other.was_closed
    other.close()
    assert not bench.begin().was_closed


def test_a_process_that_holds_the_index_is_let_alone_for_a_while(
    bench: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("lightlyfs.cache.block_index.time.monotonic", lambda: now[0])
    index, other = bench.begin(), bench.begin(alone=False)
    database.set_patience(index._db, 0)
    other._db.execute("BEGIN IMMEDIATE")
    index.add("a", 0, 1, 10)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        index.write()
    other._db.execute("COMMIT")
    now[0] += 9.9
    with pytest.raises(sqlite3.OperationalError, match="does not end"):
        index.write()
    assert index.blocks("a") == {0: 1}
    now[0] += 0.2
    index.write()
    assert other.blocks("a") == {0: 1}


def test_a_deleted_index_is_begun_again_without_records(bench: Index) -> None:
    index = bench.begin()
    index.add("a", 0, 1, 10)
    index.write()
    index.add("b", 0, 1, 10)
    assert index.blocks("c") == index.blocks("c") == {}
    assert not index.is_deleted()
    bench.path.unlink()
    assert index.is_deleted()
    index.begin_again()
    assert not index.is_deleted()
    assert index.blocks("a") == index.blocks("b") == {}
    assert index.bytes == 0
    index.add("c", 0, 1, 10)
    assert index.blocks("c") == {0: 1}
    index.close()
    again = bench.begin()
    assert not again.was_closed
    assert again.keys() == {"c"}


def test_an_index_that_all_have_closed_was_closed(bench: Index) -> None:
    for count in (1, 2, 3):
        together = [bench.begin(alone=number == 0) for number in range(count)]
        for index in together:
            index.close()
        again = bench.begin()
        assert again.was_closed
        again.close()


def test_what_is_recorded_during_a_write_that_fails_comes_behind_it(bench: Index) -> None:
    index = bench.begin()

    class Busy(Full):
        """Another thread records something while the disk refuses."""

        def execute(self, query: str, *more: object) -> sqlite3.Cursor:
            if query == "BEGIN IMMEDIATE":
                index.add("a", 0, 2, 10)
                index.add("c", 0, 3, 5)
                assert index.blocks("a") == {0: 2}
                assert index.blocks("b") == {0: 1}
            return super().execute(query, *more)

    index.add("a", 0, 1, 10)
    index.add("b", 0, 1, 10)
    real, index._db = index._db, Busy(index._db)  # type: ignore[assignment]
    with pytest.raises(sqlite3.OperationalError):
        index.write()
    assert (index.blocks("a"), index.blocks("b"), index.blocks("c")) == ({0: 2}, {0: 1}, {0: 3})
    assert index.bytes == 25
    index._db = real
    index.write()
    assert index.keys() == {"a", "b", "c"}
    assert index.oldest(()) == ["b", "a", "c"]
    assert index.bytes == 25
