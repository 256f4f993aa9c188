"""Keeps threads that share the interpreter lock on one core: a mount's always, a program's while it reads.

Python runs one thread at a time, and the threads of a mount pass its lock on over twenty times a file. With
several cores, a thread that releases the lock for a short system call finds it taken when it returns, by a
thread that woke up on another core, and both cores spend their time on waking each other. On one core no
other thread runs during a short call: reading a cached file takes half as much CPU, a cold file two thirds.
A mount stays on its core until other processes need it; a program's threads are released after each read.

`ThreadPool` works where the number of threads is limited.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

# a mount that uses less of a core than this can stay where it is, and need not wake up each second
_BUSY = 0.2
_LOOK_EVERY_S, _LOOK_WHEN_IDLE_S = 1.0, 10.0
# the load of others at which a mount looks for another core, and how much lower their load must be there
_CROWDED, _WORTH_MOVING = 0.3, 0.2
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
# cores that are slower than the fastest by more than that are left out: laptops have two kinds
_AS_FAST = 0.85
# where Linux tells how fast a core is, in units that differ: ARM, and most others
_SPEEDS = ("cpu_capacity", "cpufreq/cpuinfo_max_freq")

# the cores that this process might use, and does not
_given_up: set[int] = set()
# a thread that uses all cores for a while must not be moved meanwhile, nor go back to a core that was left
_moving = threading.Lock()


class Moment(NamedTuple):
    """The CPU seconds used until a moment: by all processes on each core, and by this process."""

    at: float
    by_core: Mapping[int, float]
    own: float


class OneCore:
    """Which of some cores a process stays on; used by one thread."""

    def __init__(self, cores: Iterable[int], core: int, now: Moment) -> None:
        self._cores = sorted(cores)
        self._before = now
        self.core = core
        self.is_busy = False  # between the last two looks

    def better(self, now: Moment) -> int | None:
        """Return the core to move to; None to stay."""
        before, self._before = self._before, now
        seconds = max(now.at - before.at, 1e-3)
        own = (now.own - before.own) / seconds
        self.is_busy = own >= _BUSY
        used = {
            core: (now.by_core.get(core, 0.0) - before.by_core.get(core, 0.0)) / seconds
            for core in self._cores
        }
        others = used[self.core] - own
        if not self.is_busy or others < _CROWDED:
            return None
        quietest = min(self._cores, key=used.__getitem__)
        if quietest == self.core or used[quietest] > others - _WORTH_MOVING:
            return None
        self.core = quietest
        return quietest


def fast_cores(cores: Collection[int], told: Path = Path("/sys/devices/system/cpu")) -> list[int]:
    """Return the cores that are about as fast as the fastest one; all of them if no speeds are known."""
    for name in _SPEEDS:
        speeds = {}
        for core in cores:
            try:
                speeds[core] = int((told / f"cpu{core}" / name).read_text())
            except (OSError, ValueError):
                break
        else:
            least = max(speeds.values(), default=0) * _AS_FAST
            return sorted(core for core, speed in speeds.items() if speed >= least)
    return sorted(cores)


def stay_on_one_core() -> None:
    """Keep this process on one core, a fast one, of those that it may use; before any thread is started.

    A thread checks the choice each second while the process works. Does nothing where there is one core, or
    where the system does not report its load.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(allowed) < 2:
        return
    cores = fast_cores(allowed)
    try:
        # any core will do: the first check that finds it crowded moves on
        chosen = OneCore(cores, cores[os.getpid() % len(cores)], _now())
        os.sched_setaffinity(0, {chosen.core})
    except (OSError, ValueError) as error:
        log.debug("the mount uses all cores: %s", error)
        return
    _given_up.update(allowed)
    threading.Thread(target=_follow, args=(chosen,), name="lightlyfs-core", daemon=True).start()


@contextmanager
def all_cores() -> Iterator[None]:
    """Let the calling thread use all cores in the block; a process that it starts there keeps them."""
    if not _given_up:
        yield
        return
    with _moving:
        before = os.sched_getaffinity(0)
        _set(0, _given_up)
        try:
            yield
        finally:
            _set(0, before)


# the names of all our threads begin so
_OURS = "lightlyfs-"


@contextmanager
def with_our_threads() -> Iterator[None]:
    """Keep the calling thread, and the threads of this package, on the core that it is on, in the block.

    For a thread that waits in it for what the others fetch. Afterwards they may all run on every core that
    the calling thread was allowed to use.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(allowed) < 2:
        yield
        return
    core = _libc().sched_getcpu()
    _set_ours({core} & allowed or allowed)
    try:
        yield
    finally:
        _set_ours(allowed)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)  # each call takes some microseconds


def _set_ours(cores: set[int]) -> None:
    _set(0, cores)
    for thread in threading.enumerate():
        if thread.name.startswith(_OURS) and thread.native_id is not None:
            _set(thread.native_id, cores)


def _follow(chosen: OneCore) -> None:
    while True:
        time.sleep(_LOOK_EVERY_S if chosen.is_busy else _LOOK_WHEN_IDLE_S)
        try:
            if chosen.better(_now()) is not None:
                with _moving:
                    for thread in os.listdir("/proc/self/task"):
                        _set(int(thread), {chosen.core})
        except (OSError, ValueError) as error:
            log.debug("the mount stays on its core: %s", error)


def _set(thread: int, cores: Iterable[int]) -> None:
    try:
        os.sched_setaffinity(thread, cores)
    except OSError as error:  # the thread has ended, or the cores were taken away
        log.debug("thread %d stays on its cores: %s", thread, error)


def _now() -> Moment:
    """Read the load of each core from /proc/stat (proc(5)), and the CPU time of this process."""
    by_core = {}
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("cpu") and line[3:4].isdigit():
            name, user, nice, system, _idle, _iowait, *rest = line.split()
            ticks = int(user) + int(nice) + int(system) + sum(map(int, rest[:3]))  # interrupts, and stolen
            by_core[int(name[3:])] = ticks / _TICKS_A_SECOND
    return Moment(time.monotonic(), by_core, time.process_time())


class ThreadPool(ThreadPoolExecutor):
    """A pool that works with the threads it has if the system refuses more (`ulimit -u`, a container).

    `ThreadPoolExecutor.submit` raises RuntimeError then, but runs the refused work later all the same.
    """

    def start(self) -> None:
        """Start the first thread, before others use up the limit; RuntimeError if there is none."""
        self.submit(_nothing).result()

    def _adjust_thread_count(self) -> None:
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if self._threads:
                return
            # `submit` queued the work item, under the pool's lock, before it asked for this thread
            self._work_queue.get_nowait()
            raise


def _nothing() -> None:
    """Do nothing: the first work item, which starts a thread."""
