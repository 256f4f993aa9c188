"""Prefetches files for programs: the next ones of a reader in order, the rest of an epoch, what is announced.

`readahead.in_order` and `readahead.epochs` decide which files and how many. This module looks them up and
starts the fetches, which the network loop carries; one that ends starts the next one, so that no thread waits
for any. It lowers its limit when the server fails, so that waiting readers always come first. What a program
announces is fetched first, in its order; as it may come slowly, a thread of its own looks up the next files.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from lightlyfs.errors import Cancelled
from lightlyfs.readahead.epochs import Below, Epoch, EpochTable, Pace
from lightlyfs.readahead.in_order import (
    BROWSED_WINDOW,
    MAX_SEQUENCES,
    MAX_STEP,
    MAX_WINDOW,
    FileSequence,
    SequenceTable,
    StepFinder,
)

log = logging.getLogger(__name__)
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Without `is_on` it follows no reader, and only notifies `epochs`."""
        self._after = after
        self._room = room
        self._epochs = epochs
        self._is_on = is_on
        self._clock = clock
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
        is_fetched = path in self._fetched_ahead  # then no order has to be found
        with self._lock:
            expected = path in self._table.expected
            sequence = self._table.opened(path, self._clock(), most)
            if sequence.leap > 1:
                self._table.drop(sequence)
                sequence = self._table.follow(sequence.leap)
            look_around = self._steps.is_looking and not (expected or is_fetched)
            go_on = expected or (self._table.is_guessing and not is_fetched)
        if look_around:
            self._look_around(sequence, path)
        elif go_on:
            self._go_on(sequence, path)
        if sequence.step != 1:
            # the first files of several readers may look like the order of one: each continues from there
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
            self._begin(sequence, file)

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

    def _begin(self, sequence: FileSequence[T], file: T) -> None:
        started = self._clock()
        future = self._start(file)
        if future is None:
            with self._lock:
                self._under_way -= 1
            return
        with self._lock:
            self._started += 1
        future.add_done_callback(lambda future: self._ended(sequence, started, future))

    def _ended(self, sequence: FileSequence[T], started: float, future: Future[Any]) -> None:
        failed = future.cancelled() or future.exception() is not None
        with self._lock:
            if not failed:
                sequence.fetched(self._clock() - started)
            self._under_way -= 1
            # additive increase, multiplicative decrease: a server in trouble is asked for less
            self._limit = (
                max(_MIN_UNDER_WAY, self._limit // 2) if failed else min(self._max_under_way, self._limit + 1)
            )


# how often a waiting announcement checks again: a pause that the server asked for may be over
_LOOK_S = 0.25
# files of an order that are looked up before they may be fetched; further ones once half of them are under
# way, so that the thread wakes up once in so many files
_LOOKED_UP_AHEAD = 64
# an order without end, of files that are all here, must not be looked through without end: after the first
# files, so many in each `_LOOK_S`
_PASSED_FREELY, _PASSED_AT_ONCE = 20_000, 1_000

# called with whether the fetch succeeded (None: another process does it), and after how many seconds to try
# again if it failed
Ended = Callable[[bool | None, float | None], None]


class Begin(Protocol[T_contra]):
    """Begins to fetch something of a file; False where there is nothing to fetch.

    `ended` is called once, perhaps before this returns; only where this returns True.
    """

    def __call__(self, file: T_contra, ended: Ended, /) -> bool:
        """Begin."""
        ...


class Files(Protocol[T_co]):
    """Where files are looked up, on the local disk, and kept."""

    def room_bytes(self) -> int:
        """Return how many bytes an epoch may have in all to be prefetched."""
        ...

    def count_below(self, directory: str, most_bytes: int) -> tuple[int, int]:
        """Count files below a directory, and their bytes; may end once there are more than `most_bytes`."""
        ...

    def walk(self, directory: str) -> Iterator[tuple[str, T_co, int]]:
        """Yield the files below a directory, with their paths and sizes (0: unknown)."""
        ...


class EpochStats(NamedTuple):
    """Counters since the mount began: files and bytes fetched ahead, and of these read and given up unread;
    what runs now.
    """

    files: int
    bytes: int
    files_read: int
    unread: int
    urls: int
    under_way: int
    limit: int


class Announcement:
    """Files that a program says it will read, in its order; `close` ends the fetching, as `with` does."""

    def __init__(self, fetcher: EpochFetcher[Any], limit_bytes: int) -> None:
        self._fetcher = fetcher
        self.epoch: Epoch[Any] = Epoch()
        self.limit_bytes = limit_bytes
        # changed under the fetcher's lock
        self.is_closed = False
        self.fetched = 0
        self.missed_bytes = 0  # of files that were read, and not fetched ahead, since one of it was read

    @property
    def wants_more(self) -> bool:
        """Whether one more of its files should be fetched."""
        has_more = bool(self.epoch.coming) and not self.is_closed
        return has_more and self.epoch.unread_bytes < self.limit_bytes

    def close(self) -> None:
        """Stop fetching; idempotent."""
        self._fetcher.close(self)

    def __enter__(self) -> Announcement:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EpochFetcher(Generic[T]):
    """Follows the opens of files; any thread may call `opened`, which neither waits nor raises.

    `content(file, ended)` fetches a file into the cache, `url(file, ended)` its read URL alone. Without
    `guesses` only what is announced is fetched.
    """

    def __init__(
        self,
        files: Files[T],
        content: Begin[T],
        url: Begin[T],
        executor: Executor,
        *,
        guesses: bool,
        clock: Callable[[], float],
        max_under_way: int,
    ) -> None:
        self._files = files
        self._content = content
        self._url = url
        self._executor = executor
        self._guesses = guesses
        self._clock = clock
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # what an announcement waits for
        # guarded by _lock
        self._table: EpochTable[T] = EpochTable()
        self._pace = Pace(max_under_way)
        self._files_fetched = self._bytes_fetched = self._files_read = self._urls_fetched = 0
        self._announced: dict[Announcement, None] = {}  # what is not fetched to its end, in turn
        self._under_way = 0
        self._is_closed = False
        self._is_going = False  # a thread is in `_go_on`, or about to be
        self._goes_again = False
        self._goes_later = False  # a thread waits for the end of a pause

    def stats(self) -> EpochStats:
        """Return what was fetched ahead since the mount began, and how many requests run now."""
        with self._lock:
            return EpochStats(
                self._files_fetched,
                self._bytes_fetched,
                self._files_read,
                self._table.forgotten,
                self._urls_fetched,
                self._under_way,
                self._pace.limit,
            )

    @property
    def unread(self) -> Container[str]:
        """The paths of files that were fetched ahead and not opened since."""
        return self._table.unread

    def opened(self, path: str, size: int, *, in_order: bool) -> None:
        """Note the open of a file that had to be fetched, or that was fetched ahead."""
        now = self._clock()
        with self._lock:
            fetched_for, _ = self._table.unread.get(path, (None, 0))
            self._files_read += fetched_for is not None
            if self._announced:
                self._note_announced_locked(fetched_for, size)
            begun = self._table.opened(path, size, now, in_order=in_order, guess=self._guesses)
            if begun is None and not self._may_go_locked(now):
                return
            if begun is None:
                self._is_going = True
        self._submit((lambda: self._begin(begun)) if begun is not None else self._go_on)

    def announce(self, files: Iterable[tuple[str, T, int] | None], limit_bytes: int) -> Announcement:
        """Fetch files in this order, at most `limit_bytes` ahead of the reader, until it is closed.

        None stands for one that need not be fetched.
        """
        announcement = Announcement(self, limit_bytes)
        with self._lock:
            self._announced[announcement] = None
        thread = threading.Thread(
            target=self._follow, args=(files, announcement), name="lightlyfs-announced", daemon=True
        )
        thread.start()
        return announcement

    def _follow(self, files: Iterable[tuple[str, T, int] | None], announcement: Announcement) -> None:
        """Look up an order some files ahead of the fetches, until all of it is under way."""
        coming = announcement.epoch.coming
        passed = 0
        try:
            for file in files:
                if file is None:
                    passed += 1
                    if not self._may_pass(announcement, passed):
                        break
                    continue
                passed = 0
                with self._lock:
                    coming.append(file)
                few = _LOOKED_UP_AHEAD // 2 if len(coming) >= _LOOKED_UP_AHEAD else _LOOKED_UP_AHEAD
                if not self._wait_for_few(announcement, few):
                    break
        except Cancelled:
            self.close(announcement)  # the mount is ending, or the program dropped the order
        except Exception:
            # the program reads what it needs itself
            log.exception("what was announced cannot be fetched")
        finally:
            self._wait_for_few(announcement, 0)
            with self._lock:
                self._announced.pop(announcement, None)

    def _may_pass(self, announcement: Announcement, passed: int) -> bool:
        """Return whether to look further, after so many files of which none need be fetched; may wait."""
        with self._changed:
            if not passed % _PASSED_AT_ONCE and passed > _PASSED_FREELY and not announcement.is_closed:
                self._changed.wait(_LOOK_S)
            return not (announcement.is_closed or self._is_closed)

    def _wait_for_few(self, announcement: Announcement, few: int) -> bool:
        """Have an order fetched until so few of its files are not under way; False once it is closed."""
        while True:
            self._go_on_unless_going()
            with self._changed:
                if announcement.is_closed or self._is_closed:
                    return False
                if len(announcement.epoch.coming) <= few:
                    return True
                self._changed.wait(_LOOK_S)

    def _take_announced_locked(self) -> tuple[Announcement, tuple[str, T, int]] | None:
        """Return the next file that was announced, of each program in turn."""
        for announcement in () if self._is_closed else self._announced:
            if announcement.wants_more:
                self._announced[announcement] = self._announced.pop(announcement)
                coming = announcement.epoch.coming
                found = coming.popleft()
                if len(coming) in (0, _LOOKED_UP_AHEAD // 2):
                    self._changed.notify_all()
                return announcement, found
        return None

    def _note_announced_locked(self, fetched_for: Epoch[T] | None, size: int) -> None:
        """Give up what a program passed over: it would keep an order from being fetched any further."""
        for announcement in self._announced:
            if announcement.epoch is fetched_for:
                announcement.missed_bytes = 0
            elif fetched_for is None:
                announcement.missed_bytes += size
                waits = announcement.epoch.unread_bytes >= announcement.limit_bytes
                if waits and announcement.missed_bytes >= announcement.limit_bytes:
                    announcement.missed_bytes = 0
                    self._table.forget(announcement.epoch)

    def shut_down(self) -> None:
        """End every announcement, as the mount ends."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self, announcement: Announcement) -> None:
        """Stop fetching what was announced."""
        with self._changed:
            announcement.is_closed = True
            announcement.epoch.coming.clear()
            self._table.forget(announcement.epoch)
            self._changed.notify_all()

    def _submit(self, job: Callable[[], None]) -> None:
        try:
            self._executor.submit(job)
        except RuntimeError:  # the mount is being taken down
            with self._lock:
                self._is_going = False

    def _may_go_locked(self, now: float) -> bool:
        return not self._is_going and self._pace.allows(self._under_way, now) and self._is_wanting_locked(now)

    def _is_wanting_locked(self, now: float) -> bool:
        announced = any(announcement.wants_more for announcement in self._announced)
        return announced or self._table.wanting(now) is not None

    def _begin(self, epoch: Epoch[T]) -> None:
        """Find out what is below the directory of an epoch, and go on."""
        try:
            room = self._files.room_bytes()
            below = Below(*self._files.count_below(epoch.directory, room))
            files = self._files.walk(epoch.directory)
        except Exception:
            log.exception("what is below a directory cannot be counted")
            return
        with self._lock:
            epoch.below, epoch.fits = below, below.bytes <= room
            epoch.files = files
        self._go_on_unless_going()

    def _go_on_unless_going(self) -> None:
        with self._lock:
            if self._is_going:
                self._goes_again = True
                return
            self._is_going = True
        self._go_on()

    def _go_on(self) -> None:
        """Start fetches until there is nothing to do, or too many are under way."""
        while True:
            try:
                while self._start_one():
                    pass
            except Exception:
                # no caller waits for it, and readers fetch what they need themselves
                log.exception("files cannot be fetched ahead")
            with self._lock:
                if not self._goes_again:
                    self._is_going = False
                    return
                self._goes_again = False

    def _start_one(self) -> bool:
        """Start the next fetch; False where there is none to start now."""
        with self._lock:
            now = self._clock()
            if not self._pace.allows(self._under_way, now):
                return False
            announced = self._take_announced_locked()
            wanting = None if announced is not None else self._table.wanting(now)
        if announced is not None:
            announcement, file = announced
            self._start_content(announcement.epoch, file, announcement)
        elif wanting is None:
            return False
        else:
            self._start_guessed(*wanting)
        return True

    def _start_guessed(self, epoch: Epoch[T], contents: bool) -> None:
        """Start to fetch the next file of an epoch, or its URL alone."""
        with self._lock:
            files = epoch.files
            found = epoch.coming.popleft() if contents and epoch.coming else None
            epoch.urls -= found is not None
        if found is None:
            found = None if files is None else next(files, None)
            if found is None:
                with self._lock:
                    epoch.files = None
                return
        if contents:
            self._start_content(epoch, found, None)
            return
        with self._lock:
            self._under_way += 1
            if epoch.fits:
                epoch.coming.append(found)
        if not self._url(found[1], self._ended_url(epoch)):
            with self._lock:
                self._under_way -= 1

    def _start_content(
        self, epoch: Epoch[T], found: tuple[str, T, int], announcement: Announcement | None
    ) -> None:
        path, file, size = found
        with self._lock:
            self._under_way += 1
            self._table.started(epoch, path, size)
        if not self._content(file, self._ended_content(path, size, announcement)):
            with self._lock:
                self._under_way -= 1
                self._table.dropped(path)

    def _ended_content(self, path: str, size: int, announcement: Announcement | None) -> Ended:
        def ended(came: bool | None, retry_after_s: float | None) -> None:
            with self._lock:
                if came:
                    self._files_fetched += 1
                    self._bytes_fetched += size
                    if announcement is not None:
                        announcement.fetched += 1
                else:
                    self._table.dropped(path)
            self._ended(came, retry_after_s)

        return ended

    def _ended_url(self, epoch: Epoch[T]) -> Ended:
        def ended(came: bool | None, retry_after_s: float | None) -> None:
            with self._lock:
                epoch.urls += 1
                self._urls_fetched += bool(came)
            self._ended(came, retry_after_s)

        return ended

    def _ended(self, came: bool | None, retry_after_s: float | None) -> None:
        with self._lock:
            self._under_way -= 1
            if came:
                self._pace.succeeded(self._clock())
            elif came is False:
                self._pace.failed(self._clock(), retry_after_s)
                if self._announced and not self._goes_later:
                    self._goes_later = True
                    threading.Thread(target=self._go_on_later, name="lightlyfs-later", daemon=True).start()
        self._go_on_unless_going()

    def _go_on_later(self) -> None:
        """Go on after a pause, where no request is left whose end would do so."""
        while True:
            self._go_on_unless_going()
            with self._changed:
                self._changed.wait(_LOOK_S)
                waits = any(announcement.wants_more for announcement in self._announced)
                if self._is_closed or self._under_way or not waits:
                    self._goes_later = False
                    return
