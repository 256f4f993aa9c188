"""Prefetches the next files for a program that reads a directory in order.

`readahead.in_order` decides which files are next. This module looks them up and starts the fetches. It limits
how many run at once, and lowers the limit when the server fails, so that waiting readers always come first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from concurrent.futures import Future
from typing import Any, Generic, NamedTuple, TypeVar

from lightlyfs.fetch.epoch_fetcher import EpochFetcher
from lightlyfs.readahead.in_order import (
    BROWSED_WINDOW,
    MAX_SEQUENCES,
    MAX_STEP,
    MAX_WINDOW,
    FileSequence,
    SequenceTable,
    StepFinder,
)

T = TypeVar("T")

_MIN_UNDER_WAY = 2
_GUESS_COUNT = 4
# names looked up at once for a reader of every k-th file: half a millisecond's work
_MOST_LOOKED_UP = 512


class PrefetchStats(NamedTuple):
    """Counters since the mount began, and what is under way now."""

    started: int
    under_way: int
    limit: int


class Prefetcher(Generic[T]):
    """Follows readers by the files they open; any thread may call.

    `after(path, count)` gives the files that come behind a path in its directory (before it, the nearest
    first, where `count` is negative), from memory or the local disk. `start(file)` begins a fetch and returns
    its future, or None where there is nothing to fetch. `room(file)` says how many such files may be ahead of
    their readers in all. `epochs` follows readers without any order.
    """

    def __init__(
        self,
        after: Callable[[str, int], Sequence[tuple[str, T]]],
        start: Callable[[T], Future[Any] | None],
        *,
        max_under_way: int,
        room: Callable[[T], int] = lambda _: MAX_WINDOW * MAX_SEQUENCES,
        epochs: EpochFetcher[T] | None = None,
        is_on: bool = True,
    ) -> None:
        """Without `is_on` it follows no reader, and only notifies `epochs`."""
        self._after = after
        self._room = room
        self._epochs = epochs
        self._is_on = is_on
        self._fetched_ahead: Container[str] = () if epochs is None else epochs.unread
        self._start = start
        self._max_under_way = max(_MIN_UNDER_WAY, max_under_way)
        self._lock = threading.Lock()
        # guarded by _lock
        self._table: SequenceTable[T] = SequenceTable()
        self._steps = StepFinder()
        self._limit = self._max_under_way
        self._under_way = 0
        self._started = 0

    def stats(self) -> PrefetchStats:
        """Counters since the mount began, and what is under way now."""
        with self._lock:
            return PrefetchStats(self._started, self._under_way, self._limit)

    def expects(self, path: str) -> bool:
        """Whether a reader is expected to open this path; costs two lookups."""
        return path in self._table.expected or path in self._fetched_ahead

    def opened(self, path: str, size: int = 0, *, browsed: bool = False) -> None:
        """Note the open of a file that was fetched or expected, and prefetch the files behind it.

        Where a person browses, that is two files and never the rest of a directory.
        """
        expected = self._is_on and self._follow(path, BROWSED_WINDOW if browsed else MAX_WINDOW)
        if self._epochs is not None and (not browsed or path in self._fetched_ahead):
            self._epochs.opened(path, size, in_order=expected)

    def _follow(self, path: str, most: int) -> bool:
        """Fetch what comes next; returns whether the file was expected."""
        with self._lock:
            expected = path in self._table.expected
            sequence = self._table.opened(path, most)
            if sequence.leap > 1:
                self._table.drop(sequence)
                sequence = self._table.follow(sequence.leap)
            look_around = self._steps.is_looking and not expected
            go_on = expected or self._table.is_guessing
        if look_around:
            self._look_around(sequence, path)
        elif go_on:
            self._go_on(sequence, path)
        if sequence.step != 1:
            # the files at which several readers begin may look like the way of one: each goes on from there
            with self._lock:
                sequence = self._table.guess()
            self._go_on(sequence, path)
        return expected

    def _look_around(self, sequence: FileSequence[T], path: str) -> None:
        """After an unexpected open, guess the next files, and check whether it continues a step."""
        behind = self._after(path, MAX_STEP)
        with self._lock:
            self._table.extend(sequence, behind[:_GUESS_COUNT])
            step = self._steps.opened(path, [name for name, _ in behind])
            follower = None if step is None else self._table.follow(step)
        if follower is not None:
            self._go_on(follower, path)

    def _go_on(self, sequence: FileSequence[T], path: str) -> None:
        """Look up what comes next where that is wanted, and fetch what is within the window."""
        if sequence.wants_more:
            self._extend(sequence, path, MAX_WINDOW if sequence.is_followed else _GUESS_COUNT)
        while (file := self._take(sequence)) is not None:
            self._begin(file)

    def _extend(self, sequence: FileSequence[T], path: str, count: int) -> None:
        """Look up the files that come after the last upcoming one, which is `path` where there is none."""
        with self._lock:
            last = sequence.upcoming[-1][0] if sequence.upcoming else path
        stride = abs(sequence.step)
        count = min(count * stride, max(stride, _MOST_LOOKED_UP))
        behind = self._after(last, count if sequence.step > 0 else -count)
        with self._lock:
            self._table.extend(sequence, behind[stride - 1 :: stride])

    def _take(self, sequence: FileSequence[T]) -> T | None:
        with self._lock:
            file = sequence.next
            if file is None or self._under_way >= self._limit:
                return None
            if sequence.started >= self._room(file) // max(1, self._table.followed):
                return None
            sequence.started += 1
            self._under_way += 1
            return file

    def _begin(self, file: T) -> None:
        future = self._start(file)
        if future is None:
            with self._lock:
                self._under_way -= 1
            return
        with self._lock:
            self._started += 1
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[Any]) -> None:
        failed = future.cancelled() or future.exception() is not None
        with self._lock:
            self._under_way -= 1
            # additive increase, multiplicative decrease: a server in trouble is asked for less
            self._limit = (
                max(_MIN_UNDER_WAY, self._limit // 2) if failed else min(self._max_under_way, self._limit + 1)
            )
