"""Prefetches the read URLs of a directory whose files are opened in random order.

`ahead.epochs` decides when and how many. This module looks up the samples and sends the requests to the API,
in a thread pool of its own, so that waiting readers are never queued behind them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, NamedTuple, TypeVar

from lightlyfs.ahead.epochs import Epoch, EpochTable, Pace
from lightlyfs.errors import LightlyFsError, RequestError

log = logging.getLogger(__name__)

T = TypeVar("T")

# files looked up at once; as many wait in memory for each of a thousand directories
_PAGE = 32


class UrlsAheadStats(NamedTuple):
    """URLs prefetched since the mount began, and the requests now running."""

    got: int
    under_way: int
    limit: int


class UrlsAhead(Generic[T]):
    """Follows the opens of files; any thread may call `opened`, which neither waits nor raises.

    `after(path, count)` gives the files behind a path in its directory, from the local disk. `ask(file)`
    gets and keeps the URL of a file, or returns False if it has none; it raises LightlyFsError after one
    attempt. `room()` returns how many more URLs can be kept.
    """

    def __init__(
        self,
        after: Callable[[str, int], Sequence[tuple[str, T]]],
        ask: Callable[[T], bool],
        room: Callable[[], int],
        executor: Executor,
        *,
        clock: Callable[[], float],
        max_under_way: int,
    ) -> None:
        self._after = after
        self._ask = ask
        self._room = room
        self._executor = executor
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._epochs: EpochTable[T] = EpochTable()
        self._pace = Pace(max_under_way)
        self._workers = 0
        self._got = 0
        self._looking_up = threading.Lock()  # held by the one worker that looks up files; taken first

    def stats(self) -> UrlsAheadStats:
        """Return the number of URLs prefetched since the mount began, and of the requests now running."""
        with self._lock:
            return UrlsAheadStats(self._got, self._workers, self._pace.limit)

    def opened(self, path: str, in_order: bool) -> None:
        """Note the open of a file that had to be fetched, or that the prefetcher expected."""
        now = self._clock()
        with self._lock:
            self._epochs.opened(path, now, in_order=in_order)
            if self._epochs.wanting(now) is None or not self._pace.allows(self._workers, now):
                return
            self._workers += 1
        try:
            self._executor.submit(self._work)
        except RuntimeError:  # the mount is being taken down
            with self._lock:
                self._workers -= 1

    def _work(self) -> None:
        """Get URLs until there is nothing to do, or too many do so."""
        try:
            while self._room() > 0 and (found := self._next()) is not None:
                self._get(*found)
        except Exception:
            # no caller waits for it, and readers request their URLs themselves
            log.exception("read URLs cannot be prefetched")
        finally:
            with self._lock:
                self._workers -= 1

    def _next(self) -> tuple[Epoch[T], T] | None:
        with self._looking_up:
            while True:
                now = self._clock()
                with self._lock:
                    epoch = self._epochs.wanting(now)
                    if epoch is None or not self._pace.allows(self._workers - 1, now):
                        return None
                    if epoch.files:
                        return epoch, epoch.files.popleft()
                found = self._after(epoch.cursor, _PAGE)
                with self._lock:
                    epoch.files.extend(file for _, file in found)
                    epoch.cursor = found[-1][0] if found else epoch.cursor
                    epoch.at_end = not found

    def _get(self, epoch: Epoch[T], file: T) -> None:
        try:
            got = self._ask(file)
        except LightlyFsError as error:
            # not logged: an open of the file reports the error
            retry_after_s = error.retry_after_s if isinstance(error, RequestError) else None
            with self._lock:
                epoch.asked += 1
                self._pace.failed(self._clock(), retry_after_s)
            return
        if got:
            with self._lock:
                self._got += 1
                epoch.asked += 1
                self._pace.succeeded()
