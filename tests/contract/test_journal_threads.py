"""What many threads write into the journal at the same moment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightlyfs import database
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import Record, State

THREADS = 8


def record(number: int, **values: object) -> Record:
    return Record(f"{number:032x}", f"{number}.jpg", "", State.PENDING).changed(**values)


def test_what_waits_for_one_commit_goes_into_the_next_one_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "journal.db")
    commits: list[int] = []
    all_wait, begun = threading.Event(), threading.Event()
    together = Journal._commit_together

    def slow(self: Journal, batch: list[object]) -> None:
        commits.append(len(batch))
        begun.set()
        assert all_wait.wait(5)
        together(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "_commit_together", slow)
    with ThreadPoolExecutor(THREADS) as threads:
        first = threads.submit(journal.put, record(0))
        assert begun.wait(5)
        others = [threads.submit(journal.put, record(number)) for number in range(1, THREADS)]
        while len(journal._waiting) < THREADS - 1:
            pass
        all_wait.set()
        for done in (first, *others):
            done.result(5)

    assert commits == [1, THREADS - 1]
    assert len(journal.records()) == THREADS


def test_one_that_cannot_be_written_costs_the_others_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    errors: list[OSError] = []

    def put(number: int) -> None:
        try:
            journal.put(record(number, error=object() if number % 3 == 0 else ""))
        except OSError as error:
            errors.append(error)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(put, range(60)))
    journal.close()

    again = Journal(tmp_path / "journal.db")
    assert {int(r.key, 16) for r in again.records()} == {n for n in range(60) if n % 3}
    assert len(errors) == 20


def test_a_full_disk_is_told_to_each_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.db")

    def full(*_: object) -> None:
        raise database.sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Journal, "_commit_together", full)
    with ThreadPoolExecutor(THREADS) as threads:
        done = [threads.submit(journal.put, record(number)) for number in range(THREADS)]
        found = {type(one.exception(5)) for one in done} | {one.exception().errno for one in done}  # type: ignore[union-attr]

    assert found == {OSError, 28}


def test_a_single_change_that_fails_leaves_no_transaction_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    journal.put(record(0))
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(OSError, match="full") as caught:
        journal.put(record(1, error="x" * 100_000))

    assert caught.value.errno == 28
    assert not journal._db.in_transaction
    journal.put(record(0, size=5))
    assert [(one.key, one.size) for one in journal.records()] == [(record(0).key, 5)]
