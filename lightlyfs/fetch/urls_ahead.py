"""Getting the read URLs of a directory that is read in no order before its files are opened.

When and how many is decided in `epochs`; here the samples are looked up and the API is asked, in a pool of
its own, so that readers who wait never stand behind it.
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
    """URLs got ahead since the mount began, and requests for some under way now."""

    got: int
    under_way: int
    limit: int


class UrlsAhead(Generic[T]):
    """Follows the opens of files; any thread may call `opened`, which neither waits nor raises.

    `after(path, count)` gives the files behind a path in its directory, from the local disk. `ask(file)`
    gets the URL of one and keeps it, False where there is none to get; it raises LightlyFsError after one
    try. `room()` says how many more URLs can be kept.
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
        """URLs got ahead since the mount began, and requests for some under way now."""
        with self._lock:
            return UrlsAheadStats(self._got, self._workers, self._pace.limit)

    def opened(self, path: str, in_order: bool) -> None:
        """A file was opened that had to be fetched, or that was expected by whoever follows readers."""
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
            # nobody waits for it, and readers ask for themselves
            log.exception("read URLs cannot be got ahead")
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
            # not logged: whoever opens the file is told
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
