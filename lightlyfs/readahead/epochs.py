"""Which directories are read in random order, and how much to fetch ahead there. Pure policy.

A program that opens many uncached files below a directory in random order usually reads all of them, each
once: a training epoch. So the rest is fetched ahead of it, in the order of the catalogue, where the cache has
room for it; otherwise only the read URLs are. What was fetched and not read yet is bounded by what was read,
so a program that stops early costs little. Times are seconds of any monotonic clock, sizes bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

# a user who looks at a few pictures opens fewer files
OPENS_TO_START = 32
# what one open that was in order takes back: by chance one in twenty of a shuffled epoch is, and nearly
# all of an ordered one are
_IN_ORDER_COSTS = 2
# what may be fetched and not read: so many times what was read, and so much besides
_AHEAD_PER_READ, _AHEAD_BYTES = 2, 64 << 20
# URLs fetched per opened file: a sample of a hundred files of a million costs at most 800
_URLS_PER_OPEN = 8
# an epoch in which nothing was opened for this long has stopped
IDLE_S = 5.0
# and one in which nothing was opened for this long is over: the next open begins another one
_OVER_S = 60.0
# by chance so many of the opens would have met a file that was fetched ahead, before that is judged
_ENOUGH_CHANCES = 8.0
# directories whose opens are counted at once: data sets with a directory a class have a thousand
_MAX_DIRECTORIES = 2_000
# files that are remembered as fetched and not read, over all epochs
_MAX_UNREAD = 200_000

_MIN_UNDER_WAY, _FIRST_UNDER_WAY = 1.0, 16.0
# after a failure that names no time of its own nothing is asked for this long
_PAUSE_S = 0.5
# twice as many requests are worth it where they bring so many times more; and how fast that is forgotten
_WORTH_MORE, _FORGETTING = 1.2, 0.9


class Below(NamedTuple):
    """What is below a directory: files, and their bytes as far as they are known."""

    files: int
    bytes: int


class Epoch(Generic[T]):
    """One pass over files below a directory, or over those that a program announced.

    Used under the caller's lock. `below` is None until it was counted, `fits` says whether the cache has room
    for it. `files` gives the files to fetch with their paths and sizes; None until they are found, and once
    there are no more.
    """

    def __init__(self, directory: str = "", opens: int = 0) -> None:
        self.directory = directory
        self.below: Below | None = None
        self.fits = False
        self.files: Iterator[tuple[str, T, int]] | None = None
        self.seen_at = 0.0
        self.opens = opens
        self.read_bytes = 0
        self.unread_bytes = 0
        self.unread_files = 0
        self.urls = 0
        self._hits = 0
        self._chances = 0.0

    def opened(self, size: int, *, hit: bool) -> None:
        """Note an open: whether the file was fetched ahead, and whether chance would have it so."""
        if self.fits and self.below is not None:
            left = max(1, self.below.files - self.opens)
            self._chances += min(1.0, self.unread_files / left)
        self._hits += hit
        self.opens += 1
        self.read_bytes += size

    @property
    def is_missed(self) -> bool:
        """Whether what is read is not what was fetched ahead."""
        return self._chances >= _ENOUGH_CHANCES and self._hits < self._chances / 2

    @property
    def wants_more(self) -> bool:
        """Whether more should be fetched."""
        if self.files is None or self.is_missed:
            return False
        if not self.fits:
            return self.urls < self.opens * _URLS_PER_OPEN
        return self.unread_bytes < self.read_bytes * _AHEAD_PER_READ + _AHEAD_BYTES


class EpochTable(Generic[T]):
    """The directories in which files are opened; used under the caller's lock."""

    def __init__(self) -> None:
        # by directory, the latest last: opens in no order that no epoch explains, and when the last one was
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._epochs: OrderedDict[str, Epoch[T]] = OrderedDict()
        self.forgotten = 0  # files that were fetched ahead and never read
        # by path, of files that were fetched ahead and not opened since; any thread may look
        self.unread: dict[str, tuple[Epoch[T], int]] = {}

    def opened(
        self, path: str, size: int, now: float, *, in_order: bool, guess: bool = True
    ) -> Epoch[T] | None:
        """Note the open of a file that had to be fetched, or that was fetched ahead.

        With `guess` it returns an epoch that begins with it; its `below`, `fits` and `files` are still to be
        found out.
        """
        epoch, fetched = self.unread.pop(path, (None, 0))
        if epoch is not None:
            epoch.unread_bytes -= fetched
            epoch.unread_files -= 1
        hit = epoch is not None
        if not guess:
            return None
        epoch = epoch or self._epoch_of(path, now)
        if epoch is not None:
            epoch.seen_at = now
            if self._epochs.get(epoch.directory) is epoch:
                self._epochs.move_to_end(epoch.directory)
            epoch.opened(size, hit=hit)
            return None
        return self._counted(path, now, in_order=in_order)

    def started(self, epoch: Epoch[T], path: str, size: int) -> None:
        """Note that a file is being fetched ahead."""
        if path not in self.unread and len(self.unread) < _MAX_UNREAD:
            self.unread[path] = epoch, size
            epoch.unread_bytes += size
            epoch.unread_files += 1

    def dropped(self, path: str) -> int:
        """Note that a file which was to be fetched ahead is not here; its size, 0 where it was opened."""
        epoch, size = self.unread.pop(path, (None, 0))
        if epoch is not None:
            epoch.unread_bytes -= size
            epoch.unread_files -= 1
        return size

    def wanting(self, now: float) -> Epoch[T] | None:
        """An epoch to fetch for, that of the last open first; None where there is nothing to do."""
        for epoch in reversed(self._epochs.values()):
            if now - epoch.seen_at > IDLE_S:
                return None
            if epoch.wants_more:
                return epoch
        return None

    def forget(self, epoch: Epoch[T]) -> None:
        """Wait no longer for what was fetched for an epoch to be read."""
        for path in [path for path, (of, _) in self.unread.items() if of is epoch]:
            del self.unread[path]
            self.forgotten += 1

    def _epoch_of(self, path: str, now: float) -> Epoch[T] | None:
        for directory in _above(path) if self._epochs else ():
            epoch = self._epochs.get(directory)
            if epoch is not None:
                if now - epoch.seen_at <= _OVER_S:
                    return epoch
                self._end(epoch)
        return None

    def _counted(self, path: str, now: float, *, in_order: bool) -> Epoch[T] | None:
        found = None
        for directory in _above(path):
            count, seen_at = self._counts.pop(directory, (0, now))
            if now - seen_at > _OVER_S:
                count = 0
            count = max(0, count - _IN_ORDER_COSTS) if in_order else count + 1
            self._counts[directory] = count, now
            if count >= OPENS_TO_START and found is None:
                found = directory
        while len(self._counts) > _MAX_DIRECTORIES:
            self._counts.popitem(last=False)
        return None if found is None else self._begin(found, now)

    def _begin(self, directory: str, now: float) -> Epoch[T]:
        opens, _ = self._counts.pop(directory)
        prefix = f"{directory}/" if directory else ""
        for other in [epoch for name, epoch in self._epochs.items() if name.startswith(prefix)]:
            opens += other.opens
            self._end(other)
        epoch = self._epochs[directory] = Epoch[T](directory, opens)
        epoch.seen_at = now
        while len(self._epochs) > _MAX_DIRECTORIES:
            self._end(next(iter(self._epochs.values())))
        return epoch

    def _end(self, epoch: Epoch[T]) -> None:
        del self._epochs[epoch.directory]
        self.forget(epoch)


def _above(path: str) -> Iterator[str]:
    """The directories that hold a path, the nearest first."""
    while path:
        path = path.rpartition("/")[0]
        yield path


class Pace:
    """How many requests may be under way: more while that brings more a second, half after a failure."""

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = min(_FIRST_UNDER_WAY, float(most))
        self._paused_until = 0.0
        # of the round under way, which has as many answers as requests may be under way
        self._answers = 0
        self._since: float | None = None
        self._rate = 0.0

    @property
    def limit(self) -> int:
        """How many requests may be under way, when there is no pause."""
        return int(self._limit)

    def allows(self, under_way: int, now: float) -> bool:
        """Whether one more request may begin."""
        return under_way < int(self._limit) and now >= self._paused_until

    def succeeded(self, now: float) -> None:
        """An answer came."""
        if self._since is None:
            self._since = now
            return
        self._answers += 1
        if self._answers < self._limit:
            return
        rate = self._answers / max(now - self._since, 1e-3)
        if rate > self._rate * _WORTH_MORE:
            self._limit = min(self._most, self._limit * 2)
        # a line that was fast once may be slow now: what it brought counts for less with each round
        self._rate = max(rate, self._rate * _FORGETTING)
        self._answers, self._since = 0, now

    def failed(self, now: float, retry_after_s: float | None) -> None:
        """The server was in trouble, and perhaps said for how long."""
        self._limit = max(_MIN_UNDER_WAY, self._limit / 2)
        self._rate, self._answers, self._since = 0.0, 0, None
        self._paused_until = max(self._paused_until, now + max(_PAUSE_S, retry_after_s or 0.0))
