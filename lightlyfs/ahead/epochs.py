"""Which directories are read in random order, and how many read URLs to prefetch there. Pure policy.

A program that opens many uncached files of a directory in random order usually reads all of them. So each
URL is needed once in any case. Contents are not prefetched: the order is unknown, and the cache might evict
them before their turn. Times are seconds of any monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")

# a user who looks at a few pictures opens fewer files
_OPENS_TO_START = 16
# what one open that was in order takes back: by chance one in twenty of a shuffled epoch is, and nearly
# all of an ordered one are
_IN_ORDER_COSTS = 2
# URLs prefetched per opened file: a sample of a hundred files of a million costs at most 800
_AHEAD_PER_OPEN = 8
# an epoch in which nothing was opened for this long has stopped
IDLE_S = 3.0
# a directory in which nothing was opened for this long begins a new epoch with the next open; an epoch over
# a thousand directories comes back to each within seconds
_OVER_S = 60.0
# directories whose opens are counted at once: data sets with a directory a class have a thousand
_MAX_DIRECTORIES = 2_000

_MIN_UNDER_WAY = 1.0
# after a failure that names no time of its own nothing is asked for this long
_PAUSE_S = 0.5


class Epoch(Generic[T]):
    """One pass through a directory.

    `files` are those whose URLs are prefetched next; more follow behind `cursor` unless `at_end`.
    """

    def __init__(self, directory: str, cursor: str) -> None:
        self.directory = directory
        self.seen_at = 0.0
        self.opens = 0
        self.asked = 0
        self.files: deque[T] = deque()
        self.cursor = cursor
        self.at_end = False

    @property
    def wants_urls(self) -> bool:
        """Whether more URLs should be prefetched."""
        return (
            self.opens >= _OPENS_TO_START
            and self.asked < self.opens * _AHEAD_PER_OPEN
            and not (self.at_end and not self.files)
        )


class EpochTable(Generic[T]):
    """The directories in which files are opened; used under the caller's lock."""

    def __init__(self) -> None:
        # both by directory, the latest last
        self._epochs: OrderedDict[str, Epoch[T]] = OrderedDict()
        self._wanting: OrderedDict[str, Epoch[T]] = OrderedDict()
        self._seen_at = 0.0

    def __len__(self) -> int:
        return len(self._epochs)

    def opened(self, path: str, now: float, *, in_order: bool) -> None:
        """A file was opened that had to be fetched, or one that a reader in order was expected to open."""
        directory, slash, _ = path.rpartition("/")
        epoch = self._epochs.pop(directory, None)
        if epoch is None or now - epoch.seen_at > _OVER_S:
            epoch = Epoch(directory, directory + slash)
        epoch.seen_at = self._seen_at = now
        epoch.opens = max(0, epoch.opens - _IN_ORDER_COSTS) if in_order else epoch.opens + 1
        self._epochs[directory] = epoch
        if epoch.wants_urls:
            self._wanting[directory] = epoch
        if len(self._epochs) > _MAX_DIRECTORIES:
            self._wanting.pop(self._epochs.popitem(last=False)[0], None)

    def wanting(self, now: float) -> Epoch[T] | None:
        """An epoch to get URLs for; None where there is nothing to do."""
        if now - self._seen_at > IDLE_S:
            return None
        while self._wanting:
            epoch = self._wanting[next(reversed(self._wanting))]
            if epoch.wants_urls:
                return epoch
            del self._wanting[epoch.directory]
        return None


class Pace:
    """How many requests may be under way: one more with each round of successes, half after a failure."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = max(_MIN_UNDER_WAY, most / 2)
        self._paused_until = 0.0

    @property
    def limit(self) -> int:
        """How many requests may be under way, when there is no pause."""
        return int(self._limit)

    def allows(self, under_way: int, now: float) -> bool:
        """Whether one more request may begin."""
        return under_way < int(self._limit) and now >= self._paused_until

    def succeeded(self) -> None:
        """An answer came."""
        self._limit = min(self._most, self._limit + 1 / self._limit)

    def failed(self, now: float, retry_after_s: float | None) -> None:
        """The server was in trouble, and perhaps said for how long."""
        self._limit = max(_MIN_UNDER_WAY, self._limit / 2)
        self._paused_until = max(self._paused_until, now + max(_PAUSE_S, retry_after_s or 0.0))
