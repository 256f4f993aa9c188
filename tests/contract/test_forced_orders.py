"""Things that two threads do at once, in the one order in which they could harm each other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import cachetools
import pytest
from catalogkit import FakeRemote, Impatient, Record, World
from contentkit import sample_id

from lightlyfs import control
from lightlyfs.catalog import known
from lightlyfs.fetch.prefetcher import Prefetcher
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.staging import local_files
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFiles
from lightlyfs.staging.spool import Spool


class Watched(cachetools.LRUCache[Any, Any]):
    """A cache that notes whether two threads were ever in it at once."""

    overlaps = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inside = 0

    def _pass(self) -> None:
        self._inside += 1
        Watched.overlaps += self._inside > 1
        time.sleep(0.0005)
        self._inside -= 1

    def __getitem__(self, key: Any) -> Any:
        self._pass()
        return super().__getitem__(key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._pass()
        super().__setitem__(key, value)


def in_threads(work: Callable[[], object], count: int = 4) -> None:
    """Do the same in several threads, from one moment on."""
    together = threading.Barrier(count)
    failures: list[BaseException] = []

    def run() -> None:
        together.wait()
        try:
            for _ in range(20):
                work()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_cache_that_moves_its_entries_is_used_by_one_thread_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watched, "overlaps", 0)
    monkeypatch.setattr(known, "LRUCache", Watched)
    monkeypatch.setattr(local_files, "LRUCache", Watched)
    world = World(tmp_path, FakeRemote({sample_id(n): Record(f"d/{n}.jpg") for n in range(9)}))
    world.catalog.refresh()
    journal = Journal(tmp_path / "journal.db")
    local = LocalFiles(Spool(tmp_path / "files"), journal, name_of=str, counts=lambda path: True)

    def look() -> None:
        world.catalog._recent.outdate()
        world.catalog.lookup("d/1.jpg", Impatient())
        local.touch_parent("d/1.jpg")
        local.directory_time_ns("d")

    in_threads(look)

    assert Watched.overlaps == 0


def test_what_is_written_between_two_reports_is_told_to_other_processes(tmp_path: Path) -> None:
    """The facts, and that others have to hear of them, come in one step."""
    world = World(tmp_path, FakeRemote({sample_id(0): Record("a.jpg", hint=5)}))
    world.catalog.refresh()
    other = World(tmp_path, world.remote)
    other.catalog.hear_others()
    reported = world.catalog._reported
    put = reported.put

    def put_and_write(*args: Any, **kwargs: Any) -> None:
        put(*args, **kwargs)
        reported.write()  # as the thread does that writes them down

    reported.put = put_and_write  # type: ignore[method-assign]
    moved = other.catalog.sizes_moved
    world.catalog.record_facts(sample_id(0), 7, '"e"')
    other.catalog.hear_others()

    assert other.catalog.sizes_moved > moved


def test_facts_that_others_are_to_hear_of_are_so_whoever_writes_first(tmp_path: Path) -> None:
    """A write with nothing to write does not lose that something was resized."""
    world = World(tmp_path, FakeRemote({sample_id(0): Record("a.jpg", hint=5)}))
    world.catalog.refresh()
    other = World(tmp_path, world.remote)
    other.catalog.hear_others()
    moved = other.catalog.sizes_moved
    world.catalog.record_facts(sample_id(1), 7, '"e"')  # which is not listed yet
    world.catalog.flush_facts()
    world.catalog.record_facts(sample_id(0), 5, '"e"')
    world.catalog.flush_facts()
    other.catalog.hear_others()

    assert other.catalog.sizes_moved > moved


class Emptied(list[Any]):
    """A list that another thread empties right after it was found to have something in it."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__([("a/1.jpg", 1)])
        self._lock = lock

    def __bool__(self) -> bool:
        found = len(self) > 0
        if self._lock.acquire(blocking=False):
            self.clear()
            self._lock.release()
        return found


def test_what_comes_next_is_read_while_no_other_thread_takes_it() -> None:
    started: list[int] = []

    def start(number: int) -> Future[None]:
        started.append(number)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    prefetcher: Prefetcher[int] = Prefetcher(
        lambda path, count: [(f"a/{number}.jpg", number) for number in range(2, 2 + abs(count))],
        start,
        max_under_way=4,
    )
    sequence = prefetcher._table.opened("a/0.jpg", 0.0)
    sequence.upcoming = Emptied(prefetcher._lock)  # type: ignore[assignment]
    prefetcher._extend(sequence, "a/0.jpg", 4)

    assert len(sequence.upcoming) > 0


class Started:
    """The parts of a dataset, with nothing in them."""

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset

    def drain(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is held."""


def test_a_dataset_that_cannot_be_reached_keeps_no_other_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread starts each dataset, and those that ask for it meanwhile wait for that one."""
    gate = threading.Event()
    starts: list[str] = []

    def start(dataset: str, *_: object) -> Started:
        starts.append(dataset)
        if dataset == "slow" and not gate.wait(10):
            raise TimeoutError("the other dataset waits for this one")
        return Started(dataset)

    monkeypatch.setattr(fsspec_parts, "_start", start)
    running = fsspec_parts._Running()
    found: list[Any] = []
    waiting = [threading.Thread(target=lambda: found.append(running.get("slow", {}, None))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    while "slow" not in starts:
        time.sleep(0.001)

    assert running.get("quick", {}, None).dataset == "quick"  # type: ignore[attr-defined]
    gate.set()
    for thread in waiting:
        thread.join(10)
    assert starts.count("slow") == 1
    assert len({id(one) for one in found}) == 1


def test_a_start_that_fails_is_told_to_each_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError("no network")]

    def start(dataset: str, *_: object) -> Started:
        if failures:
            raise failures.pop()
        return Started(dataset)

    monkeypatch.setattr(fsspec_parts, "_start", start)
    running = fsspec_parts._Running()
    with pytest.raises(OSError, match="no network"):
        running.get("one", {}, None)
    assert running.get("one", {}, None).dataset == "one"  # type: ignore[attr-defined]


def test_a_socket_is_ones_own_without_a_moment_in_which_the_umask_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask is that of all threads: a folder that another one makes meanwhile could not be entered."""

    def refuse(mask: int) -> int:
        raise AssertionError("the umask of all threads was changed")

    monkeypatch.setattr(os, "umask", refuse)
    server = control.ControlServer(tmp_path / "s.sock", {})
    server.start()
    try:
        assert (tmp_path / "s.sock").stat().st_mode & 0o777 == 0o600
    finally:
        server.close()
