"""Which directories are read in random order, and how much to fetch ahead there. Pure policy.

A program that opens many uncached files below a directory in random order usually reads all of them, each
once: a training epoch. So the rest is fetched ahead of it, in the order of the catalogue, where the cache has
room for it; otherwise only the read URLs are. What was fetched and not read yet is bounded by what was read,
so a program that stops early costs little. Before the contents, and beyond that bound, the read URLs are
fetched: a file that is opened before its contents were fetched then costs one request, not two. Times are
seconds of any monotonic clock, sizes bytes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

# random opens after which read URLs are fetched, and after which contents are too: a user who looks at a few
# pictures opens fewer files
OPENS_FOR_URLS, OPENS_FOR_CONTENTS = 16, 32
# how many random opens one open in order cancels: by chance one in twenty of a shuffled epoch is in order,
# and nearly all of an ordered one are
_IN_ORDER_COSTS = 2
# how many bytes may be fetched and unread: this many times the bytes that were read, plus a constant
_AHEAD_PER_READ, _AHEAD_BYTES = 2, 64 << 20
# URLs fetched per opened file: a sample of a hundred files of a million costs at most 800
_URLS_PER_OPEN = 8
# and how many of these at once: beyond that one for each open, because in a large directory most will not be
# opened soon, and the requests of readers share a server with them
_FIRST_URLS = 1_024
# files whose URLs were fetched and whose contents are still to be: URLs expire, some after a minute
_MAX_URLS_AHEAD = 1_024
# an epoch in which nothing was opened for this long has stopped
IDLE_S = 5.0
# and one in which nothing was opened for this long is over: the next open begins another one
_OVER_S = 60.0
# the hits are judged once this many of the opens would have hit a prefetched file by chance
_ENOUGH_CHANCES = 8.0
# directories whose opens are counted at once: data sets with a directory a class have a thousand
_MAX_DIRECTORIES = 2_000
# files that are remembered as fetched and not read, over all epochs
_MAX_UNREAD = 200_000

_MIN_UNDER_WAY, _FIRST_UNDER_WAY = 1.0, 32.0
# after a failure without Retry-After nothing is requested for this long
_PAUSE_S = 0.5
# twice as many requests are kept if they bring this many times more a second, half as many if they bring at
# least this share; a round lasts at least this long, and another limit is tried this often, less often after
# trials that failed
_WORTH_MORE, _AS_GOOD = 1.2, 0.9
_ROUND_S, _TRY_S, _MOST_TRY_S = 0.1, 2.0, 10.0


class Below(NamedTuple):
    """What is below a directory: files, and their bytes as far as they are known."""

    files: int
    bytes: int


class Epoch(Generic[T]):
    """One pass over files below a directory, or over those that a program announced.

    Used under the caller's lock. `below` is None until it was counted, `fits` says whether the cache has room
    for it. `files` gives the files to fetch with their paths and sizes; None until they are found, and once
    there are no more. `coming` are those of them whose contents are still to be fetched.
    """

    def __init__(
        self, directory: str = "", opens: int = 0, read_bytes: int = 0, random_opens: int = 0
    ) -> None:
        self.directory = directory
        self.random_opens = random_opens  # less those in order; counted until contents are fetched
        self.below: Below | None = None
        self.fits = False
        self.files: Iterator[tuple[str, T, int]] | None = None
        self.coming: deque[tuple[str, T, int]] = deque()
        self.seen_at = 0.0
        self.opens = opens
        self.read_bytes = read_bytes
        self.unread_bytes = 0
        self.unread_files = 0
        self.urls = 0
        self._hits = 0
        self._chances = 0.0

    def opened(self, size: int, *, hit: bool, in_order: bool) -> None:
        """Note an open: whether the file was fetched ahead, and whether chance would have it so."""
        if self.random_opens < OPENS_FOR_CONTENTS:
            self.random_opens = _counted_with(self.random_opens, in_order=in_order)
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
    def wants_contents(self) -> bool:
        """Whether the contents of one more file should be fetched."""
        if not self.fits or self.is_missed or (self.files is None and not self.coming):
            return False
        if self.random_opens < OPENS_FOR_CONTENTS:
            return False
        return self.unread_bytes < self.read_bytes * _AHEAD_PER_READ + _AHEAD_BYTES

    @property
    def wants_urls(self) -> bool:
        """Whether the read URL of one more file should be fetched."""
        if self.files is None or self.is_missed or len(self.coming) >= _MAX_URLS_AHEAD:
            return False
        if self.random_opens < OPENS_FOR_URLS:
            return False
        return self.urls < min(self.opens * _URLS_PER_OPEN, self.opens + _FIRST_URLS)


class EpochTable(Generic[T]):
    """The directories in which files are opened; used under the caller's lock."""

    def __init__(self) -> None:
        # by directory, the latest last: opens in no order that no epoch explains, their bytes, and when the
        # last one was
        self._counts: OrderedDict[str, tuple[int, int, float]] = OrderedDict()
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
            epoch.opened(size, hit=hit, in_order=in_order)
            return None
        return self._counted(path, size, now, in_order=in_order)

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

    def wanting(self, now: float) -> tuple[Epoch[T], bool] | None:
        """An epoch to fetch for, that of the last open first, and whether contents; None for none."""
        for epoch in reversed(self._epochs.values()):
            if now - epoch.seen_at > IDLE_S:
                return None
            contents = epoch.wants_contents
            if contents or epoch.wants_urls:
                return epoch, contents
        return None

    def forget(self, epoch: Epoch[T]) -> None:
        """Wait no longer for what was fetched for an epoch to be read."""
        for path in [path for path, (of, _) in self.unread.items() if of is epoch]:
            del self.unread[path]
            self.forgotten += 1
        epoch.unread_bytes = epoch.unread_files = 0

    def _epoch_of(self, path: str, now: float) -> Epoch[T] | None:
        for directory in _above(path) if self._epochs else ():
            epoch = self._epochs.get(directory)
            if epoch is not None:
                if now - epoch.seen_at <= _OVER_S:
                    return epoch
                self._end(epoch)
        return None

    def _counted(self, path: str, size: int, now: float, *, in_order: bool) -> Epoch[T] | None:
        found = None
        for directory in _above(path):
            count, read_bytes, seen_at = self._counts.pop(directory, (0, 0, now))
            if now - seen_at > _OVER_S:
                count = read_bytes = 0
            count = _counted_with(count, in_order=in_order)
            read_bytes = read_bytes + size if count else 0
            self._counts[directory] = count, read_bytes, now
            if count >= OPENS_FOR_URLS and found is None:
                found = directory
        while len(self._counts) > _MAX_DIRECTORIES:
            self._counts.popitem(last=False)
        return None if found is None else self._begin(found, now)

    def _begin(self, directory: str, now: float) -> Epoch[T]:
        opens, read_bytes, _ = self._counts.pop(directory)
        # an epoch over more begins by what is opened outside of this one
        for above in _above(directory):
            count, bytes_above, seen_at = self._counts.get(above, (0, 0, now))
            self._counts[above] = max(0, count - opens), max(0, bytes_above - read_bytes), seen_at
        epoch = Epoch[T](directory, opens, read_bytes, opens)
        epoch.seen_at = now
        prefix = f"{directory}/" if directory else ""
        for other in [epoch for name, epoch in self._epochs.items() if name.startswith(prefix)]:
            epoch.opens += other.opens
            epoch.read_bytes += other.read_bytes
            epoch.random_opens += other.random_opens
            self._end(other)
        self._epochs[directory] = epoch
        while len(self._epochs) > _MAX_DIRECTORIES:
            self._end(next(iter(self._epochs.values())))
        return epoch

    def _end(self, epoch: Epoch[T]) -> None:
        del self._epochs[epoch.directory]
        self.forget(epoch)


def _counted_with(random_opens: int, *, in_order: bool) -> int:
    return max(0, random_opens - _IN_ORDER_COSTS) if in_order else random_opens + 1


def _above(path: str) -> Iterator[str]:
    """The directories that hold a path, the nearest first."""
    while path:
        path = path.rpartition("/")[0]
        yield path


class Pace:
    """How many requests may be under way: the fewest that reach the rate of the line and the server.

    Twice as many are tried after each round that brought more than the one before. Once that ends, half as
    many and twice as many are tried in turn, now and then, and kept where they bring as much, or more. So
    requests do not queue at a busy server, where those of readers would wait behind them.
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = min(_FIRST_UNDER_WAY, float(most))
        self._paused_until = 0.0
        self._is_starting = True
        self._rate = 0.0  # of the last full round with a limit that was kept
        # the limit to go back to while another is tried, None while none is; and when to try next, and what
        self._kept: float | None = None
        self._try_at, self._try_s = 0.0, _TRY_S
        self._factor = 0.5
        # of the round under way, which has as many answers as requests may be under way
        self._answers = 0
        self._since: float | None = None
        self._answered_at = 0.0
        self._was_full = False  # the limit kept a request from being sent
        self._is_settling = False  # answers of the limit before are still to come

    @property
    def limit(self) -> int:
        """How many requests may be under way, when there is no pause."""
        return int(self._limit)

    def allows(self, under_way: int, now: float) -> bool:
        """Whether one more request may begin."""
        if under_way >= int(self._limit):
            self._was_full = True
            return False
        if now < self._paused_until:
            return False
        if self._since is None or (not under_way and now - self._answered_at > _ROUND_S):
            self._begin_round(now)  # nothing was wanted for a while
        return True

    def succeeded(self, now: float) -> None:
        """An answer came."""
        self._answered_at = now
        if self._since is None:
            self._begin_round(now)
            return
        self._answers += 1
        took_s = now - self._since
        if self._answers < self._limit or (took_s < _ROUND_S and not self._is_starting):
            return
        rate, was_full = self._answers / max(took_s, 1e-3), self._was_full
        self._begin_round(now)
        if self._is_settling:
            self._is_settling = False
        elif was_full:
            self._weigh(rate, now)

    def failed(self, now: float, retry_after_s: float | None) -> None:
        """Note a failure, and for how long the server asked for a pause, if it did."""
        self._limit = max(_MIN_UNDER_WAY, self._limit / 2)
        self._is_starting, self._rate, self._kept, self._since = True, 0.0, None, None
        self._paused_until = max(self._paused_until, now + max(_PAUSE_S, retry_after_s or 0.0))

    def _begin_round(self, now: float) -> None:
        self._answers, self._since, self._was_full = 0, now, False

    def _weigh(self, rate: float, now: float) -> None:
        """Decide on the limit after a round in which it held requests back."""
        if self._is_starting:
            more, self._rate = rate > self._rate * _WORTH_MORE, rate
            self._is_starting = more and self._limit < self._most
            if more:
                self._limit = min(self._most, self._limit * 2)
            self._try_at, self._try_s = now + _TRY_S, _TRY_S
        elif self._kept is None:
            self._rate = rate
            if now >= self._try_at:
                self._try(self._factor)
        elif rate > self._rate * (_WORTH_MORE if self._factor > 1 else _AS_GOOD):
            self._rate, self._kept = max(rate, self._rate), None  # or it would fall a little with each half
            self._try_s = _TRY_S
            self._try(self._factor)
        else:
            self._limit, self._kept = self._kept, None
            self._factor, self._try_at, self._is_settling = 1 / self._factor, now + self._try_s, True
            self._try_s = min(_MOST_TRY_S, 2 * self._try_s)

    def _try(self, factor: float) -> None:
        limit = min(self._most, max(_MIN_UNDER_WAY, self._limit * factor))
        if limit == self._limit:
            self._factor = 1 / factor
            return
        self._kept, self._limit, self._is_settling = self._limit, limit, True
