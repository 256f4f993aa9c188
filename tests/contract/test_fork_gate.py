"""Forks and databases: no thread is inside SQLite when a process is copied; the copy begins without."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lightlyfs import database, forks
from lightlyfs.forks import FORK_GATE

WAIT_S = 10.0


def in_child(job: object) -> int:
    """Run a job in a forked child; 0 where it returned."""
    assert callable(job)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_fork_waits_for_a_transaction_which_may_go_on_working(tmp_path: Path) -> None:
    db = database.connect(tmp_path / "db")
    db.execute("CREATE TABLE t (x)")
    inside, forking, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with database.transaction(db):
            inside.set()
            assert forking.wait(WAIT_S)
            db.execute("INSERT INTO t VALUES (1)")
            with FORK_GATE:  # entered again while a fork waits for it to end
                ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(WAIT_S)
    gate = FORK_GATE
    waiting = threading.Timer(0.05, forking.set)
    waiting.start()
    assert in_child(lambda: None) == 0
    assert ended.is_set()
    thread.join()
    waiting.join()
    assert not gate.entered()
    db.close()


def test_work_on_a_database_waits_for_a_fork(tmp_path: Path) -> None:
    gate = forks._ForkGate()
    gate.before_fork()
    entered = threading.Event()

    def enter() -> None:
        with gate:
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.05)
    gate.after_in_parent()
    assert entered.wait(WAIT_S)
    thread.join()


def test_a_child_has_none_of_the_locks_on_files_of_its_parent(tmp_path: Path) -> None:
    """It would read without a lock of its own, and the parent would reset the log below it."""
    db = database.connect(tmp_path / "db")
    db.execute("CREATE TABLE t (x)")

    def child() -> None:
        with pytest.raises(sqlite3.ProgrammingError):
            db.execute("SELECT 1")
        own = database.connect(tmp_path / "db")
        own.execute("INSERT INTO t VALUES (1)")
        file = f":{(tmp_path / 'db').stat().st_ino} "
        held = [line.split()[4] for line in Path("/proc/locks").read_text().splitlines() if file in line]
        assert str(os.getpid()) in held
        own.close()

    assert in_child(child) == 0
    assert db.execute("SELECT x FROM t").fetchall() == [(1,)]
    assert in_child(child) == 0
    db.close()


def test_a_lock_that_is_not_to_be_had_keeps_no_fork_waiting() -> None:
    lock = database.Lock()
    with lock:
        taken: list[bool] = []
        thread = threading.Thread(target=lambda: taken.append(lock.acquire(blocking=False)))
        thread.start()
        thread.join()
        assert taken == [False]
    assert not FORK_GATE.entered()
    assert in_child(lambda: None) == 0


# SQLite in a thread of this process would be outside of the gate
_RIVAL = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
db.execute("COMMIT")
"""


class Held:
    """A database that another process writes to until `end`, and a thread that waits for that with a lock."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.db = database.connect(path, timeout_s=WAIT_S)
        self.db.execute("CREATE TABLE t (x)")
        self.lock = database.Lock()
        command = [sys.executable, "-c", _RIVAL, path]
        self._rival = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._rival.stdout is not None
        assert self._rival.stdout.readline()
        self.waits = threading.Event()
        pause = time.sleep

        def sleep(seconds: float) -> None:
            self.waits.set()
            pause(seconds)

        monkeypatch.setattr(database.time, "sleep", sleep)
        self._thread = threading.Thread(target=self._write)
        self._thread.start()
        assert self.waits.wait(WAIT_S)

    def _write(self) -> None:
        with self.lock, database.transaction(self.db):
            self.db.execute("INSERT INTO t VALUES (1)")

    def end(self) -> None:
        """End the transaction of the other process, and then that of the thread, which has not given up."""
        self._rival.communicate(timeout=WAIT_S)
        self._thread.join()
        with FORK_GATE:
            assert self.db.execute("SELECT x FROM t").fetchall() == [(1,)]
            self.db.close()
        assert not FORK_GATE.entered()


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    return Held(tmp_path / "db", monkeypatch)


def test_a_fork_does_not_wait_for_the_transaction_of_another_process(held: Held, tmp_path: Path) -> None:
    def child() -> None:
        own = database.connect(tmp_path / "db")
        assert own.execute("SELECT count(*) FROM t").fetchone() == (0,)
        own.close()

    assert in_child(child) == 0
    held.end()


def test_a_fork_does_not_wait_for_those_that_wait_for_such_a_transaction(
    held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, queued = FORK_GATE.outside, threading.Event()

    @contextmanager
    def noted() -> Iterator[None]:
        with outside():
            queued.set()
            yield

    def enter() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(FORK_GATE, "outside", noted)
            with held.lock:
                pass

    thread = threading.Thread(target=enter)
    thread.start()
    assert queued.wait(WAIT_S)
    assert in_child(lambda: None) == 0
    held.end()
    thread.join()


def test_who_waits_for_another_process_comes_back_though_a_fork_waits(held: Held) -> None:
    """The fork waits for a thread inside, which waits for the lock of the one outside."""
    inside, forked = threading.Event(), threading.Event()

    def work() -> None:
        with FORK_GATE:
            inside.set()
            with held.lock:
                pass

    def end_once_the_fork_waits() -> None:
        while not FORK_GATE._shut:
            assert not forked.wait(0.01)
        held.end()

    threads = [threading.Thread(target=target) for target in (work, end_once_the_fork_waits)]
    threads[0].start()
    assert inside.wait(WAIT_S)
    threads[1].start()
    assert in_child(lambda: None) == 0
    forked.set()
    for thread in threads:
        thread.join()
