"""Fetches the rest of a directory whose files are opened in random order: contents, or only their read URLs.

`readahead.epochs` decides when and how much. This module looks the files up and starts the fetches, which the
network loop carries; one that ends starts the next one, so that no thread waits for any. What a program
announces needs no decision: it is fetched in its order, by a thread of its own, as the order may come slowly.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from lightlyfs.errors import Cancelled
from lightlyfs.readahead.epochs import Below, Epoch, EpochTable, Pace

log = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)

# an announcement that waits looks again so often: a pause that the server asked for may be over
_LOOK_S = 0.25

# called with whether what was started came (None: it was left to another process), and in how many seconds to
# ask again where it did not
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
        """Return how many bytes an epoch may have in all to be fetched ahead."""
        ...

    def count_below(self, directory: str, most_bytes: int) -> tuple[int, int]:
        """Count files below a directory, and their bytes; may end once those are more than so many."""
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

    def close(self) -> None:
        """Fetch no more of it; idempotent."""
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
        self._stats = EpochStats(0, 0, 0, 0, 0, 0, 0)
        self._under_way = 0
        self._is_closed = False
        self._is_going = False  # a thread is in `_go_on`, or about to be
        self._goes_again = False

    def stats(self) -> EpochStats:
        """Return what was fetched ahead since the mount began, and how many requests run now."""
        with self._lock:
            return self._stats._replace(
                unread=self._table.forgotten, under_way=self._under_way, limit=self._pace.limit
            )

    @property
    def unread(self) -> Container[str]:
        """The paths of files that were fetched ahead and not opened since."""
        return self._table.unread

    def opened(self, path: str, size: int, *, in_order: bool) -> None:
        """Note the open of a file that had to be fetched, or that was fetched ahead."""
        now = self._clock()
        with self._lock:
            if path in self._table.unread:
                self._stats = self._stats._replace(files_read=self._stats.files_read + 1)
                self._changed.notify_all()
            begun = self._table.opened(path, size, now, in_order=in_order, guess=self._guesses)
            if begun is None and not self._may_go_locked(now):
                return
            if begun is None:
                self._is_going = True
        self._submit((lambda: self._begin(begun)) if begun is not None else self._go_on)

    def announce(self, files: Iterable[tuple[str, T, int]], limit_bytes: int) -> Announcement:
        """Fetch files in this order, at most so many bytes ahead of who reads them, until that is closed."""
        announcement = Announcement(self, limit_bytes)
        thread = threading.Thread(
            target=self._follow, args=(files, announcement), name="lightlyfs-announced", daemon=True
        )
        thread.start()
        return announcement

    def _follow(self, files: Iterable[tuple[str, T, int]], announcement: Announcement) -> None:
        epoch = announcement.epoch
        try:
            for path, file, size in files:
                if not self._await_turn(announcement):
                    break
                with self._lock:
                    self._under_way += 1
                    self._table.started(epoch, path, size)
                if not self._content(file, self._ended_content(path, size, announcement)):
                    with self._lock:
                        self._under_way -= 1
                        self._table.dropped(path)
        except Cancelled:
            pass  # the mount ends
        except Exception:
            # the program reads what it needs itself
            log.exception("what was announced cannot be fetched")

    def _await_turn(self, announcement: Announcement) -> bool:
        """Wait until one more file may be fetched; False once the announcement is closed."""
        epoch = announcement.epoch
        with self._changed:
            while not (announcement.is_closed or self._is_closed):
                if epoch.unread_bytes < announcement.limit_bytes and self._pace.allows(
                    self._under_way, self._clock()
                ):
                    return True
                self._changed.wait(_LOOK_S)
        return False

    def shut_down(self) -> None:
        """End every announcement, as the mount ends."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def close(self, announcement: Announcement) -> None:
        """Fetch no more of what was announced."""
        with self._changed:
            announcement.is_closed = True
            self._table.forget(announcement.epoch)
            self._changed.notify_all()

    def _submit(self, job: Callable[[], None]) -> None:
        try:
            self._executor.submit(job)
        except RuntimeError:  # the mount is being taken down
            with self._lock:
                self._is_going = False

    def _may_go_locked(self, now: float) -> bool:
        return (
            not self._is_going
            and self._pace.allows(self._under_way, now)
            and self._table.wanting(now) is not None
        )

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
            epoch = self._table.wanting(now)
            if epoch is None or epoch.files is None or not self._pace.allows(self._under_way, now):
                return False
            files, fits = epoch.files, epoch.fits
        found = next(files, None)
        if found is None:
            with self._lock:
                epoch.files = None
            return True
        path, file, size = found
        with self._lock:
            self._under_way += 1
            if fits:
                self._table.started(epoch, path, size)
        ended = self._ended_content(path, size, None) if fits else self._ended_url(epoch)
        if not (self._content if fits else self._url)(file, ended):
            with self._lock:
                self._under_way -= 1
                if fits:
                    self._table.dropped(path)
        return True

    def _ended_content(self, path: str, size: int, announcement: Announcement | None) -> Ended:
        def ended(came: bool | None, retry_after_s: float | None) -> None:
            with self._lock:
                if came:
                    files, total = self._stats.files + 1, self._stats.bytes + size
                    self._stats = self._stats._replace(files=files, bytes=total)
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
                self._stats = self._stats._replace(urls=self._stats.urls + bool(came))
            self._ended(came, retry_after_s)

        return ended

    def _ended(self, came: bool | None, retry_after_s: float | None) -> None:
        with self._lock:
            self._under_way -= 1
            if came:
                self._pace.succeeded(self._clock())
            elif came is False:
                self._pace.failed(self._clock(), retry_after_s)
            self._changed.notify_all()
            if self._is_going:
                self._goes_again = True
                return
            self._is_going = True
        self._go_on()
