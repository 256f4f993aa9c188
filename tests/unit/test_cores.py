"""Which core a mount stays on, and when it moves."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from lightlyfs.cores import Moment, OneCore, ThreadPool, fast_cores, with_our_threads

START = Moment(100.0, {0: 50.0, 1: 70.0, 2: 10.0, 3: 0.0}, 5.0)


def later(own: float, *by_core: float) -> Moment:
    """One second after the start, with what was used in it."""
    used = {core: START.by_core[core] + seconds for core, seconds in enumerate(by_core)}
    return Moment(101.0, used, START.own + own)


def test_a_mount_stays_where_it_has_the_core_for_itself() -> None:
    assert OneCore(range(4), 1, START).better(later(0.95, 0.0, 1.0, 0.0, 0.0)) is None


def test_it_moves_to_the_quietest_core_that_it_may_use() -> None:
    crowded = later(0.5, 0.3, 1.0, 0.2, 0.0)
    assert OneCore(range(4), 1, START).better(crowded) == 3
    assert OneCore([0, 1, 2], 1, START).better(crowded) == 2
    assert OneCore([1], 1, START).better(crowded) is None


def test_it_stays_where_all_cores_are_as_busy() -> None:
    assert OneCore(range(4), 1, START).better(later(0.5, 1.0, 1.0, 1.0, 0.9)) is None


def test_an_idle_mount_stays_beside_a_busy_program() -> None:
    assert OneCore(range(4), 1, START).better(later(0.05, 0.0, 1.0, 0.0, 0.0)) is None


def test_each_look_counts_from_the_last_one() -> None:
    one = OneCore(range(2), 0, Moment(0.0, {0: 0.0, 1: 0.0}, 0.0))
    assert one.better(Moment(1.0, {0: 1.0, 1: 0.0}, 0.4)) == 1
    assert one.core == 1
    assert one.better(Moment(2.0, {0: 1.6, 1: 0.4}, 0.8)) is None


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_slow_cores_are_left_out(tmp_path: Path, name: str) -> None:
    for core, speed in enumerate([5_000, 5_200, 3_900, 3_900]):
        path = tmp_path / f"cpu{core}" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"{speed}\n")
    assert fast_cores([0, 1, 2, 3], tmp_path) == [0, 1]
    assert fast_cores([2, 3], tmp_path) == [2, 3]


def test_cores_of_which_nothing_is_told_count_as_fast(tmp_path: Path) -> None:
    assert fast_cores({1, 0, 3}, tmp_path) == [0, 1, 3]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine gives us one core")
def test_a_program_shares_a_core_with_our_threads_for_a_while() -> None:
    end = threading.Event()
    ours, other = (threading.Thread(target=end.wait, name=name) for name in ("lightlyfs-any", "any"))
    allowed = os.sched_getaffinity(0)
    ours.start()
    other.start()
    try:
        assert ours.native_id is not None
        assert other.native_id is not None
        with suppress(ZeroDivisionError), with_our_threads():
            mine = os.sched_getaffinity(0)
            assert len(mine) == 1
            assert os.sched_getaffinity(ours.native_id) == mine
            assert os.sched_getaffinity(other.native_id) == allowed
            raise ZeroDivisionError
        assert os.sched_getaffinity(0) == os.sched_getaffinity(ours.native_id) == allowed
    finally:
        end.set()
        ours.join()
        other.join()


def no_threads(patch: pytest.MonkeyPatch) -> None:
    """Have the system give no more threads, as at the limit of a user or of a container."""

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    patch.setattr(threading.Thread, "start", refuse)


def test_a_pool_does_with_one_thread_what_was_meant_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPool(8) as pool:
        pool.start()
        begin, done = threading.Event(), []
        pool.submit(begin.wait)
        no_threads(monkeypatch)
        waiting = [pool.submit(done.append, number) for number in range(20)]
        begin.set()
        for job in waiting:
            job.result(timeout=10)
    assert done == list(range(20))


def test_what_a_pool_without_a_thread_refuses_is_not_done_later(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    with ThreadPool(8) as pool:
        with monkeypatch.context() as patch:
            no_threads(patch)
            with pytest.raises(RuntimeError):
                pool.submit(done.append, 1)
        pool.submit(done.append, 2).result(timeout=10)
    assert done == [2]
