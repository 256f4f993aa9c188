"""Detects readers that open the files of a directory in order, and their next files. Pure, keyed by paths.

A sequence is one reader of a directory in forward order, or several that share its files (such as the workers
of a data loader). It is recognised when expected files are opened; only then are files prefetched for it. A
reader in random order is never expected, so nothing is fetched for it. `StepFinder` detects readers of every
k-th file and readers in backward order.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from collections.abc import Sequence as Entries
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")

# files opened in order before the next ones are fetched: one expected file may be chance
STREAK_TO_START = 2
FIRST_WINDOW = 4
# the window of each reader in order doubles up to this size
DOUBLED_WINDOW = 32
# and then up to this many times the fetches that the reader's rate keeps under way (Little's law): a narrow
# window holds that rate down, and files arrive in batches. A wider one hides no more, and is wasted if the
# reader stops
_TIMES_ON_THE_WAY = 4
# opens from which the rate of a reader is taken
_OPENS_OF_RATE = 64
# of a person who looks at one picture after another, and may stop at any
BROWSED_WINDOW = 2
# so that a round trip of 80 ms and one more for the URL do not bound a reader to 200 files a second
MAX_WINDOW = 128
# a reader that was not recognised yet is expected at the next two files only, and few such are remembered,
# so that a shuffled reader hardly ever meets an expectation; a recognised one may leap, for workers share it
_GUESSED_AHEAD = 2
_FOLLOWED_AHEAD = 16
_MAX_GUESSES = 16
# after this many unexpected opens only some of them count as the start of an order; in a shuffled directory
# of 500 files one open in twenty is expected by chance
_MANY_STRANGERS = 128
_STRANGERS_PER_EXPECTED = 8
_GUESS_EVERY = 4
# readers that are followed at once, over all directories; a data loader has some ten workers
MAX_SEQUENCES = 64
# files that were passed over and may still come, when several workers go through one directory
_MAX_PASSED = 16
# equal leaps over files after which those are no longer counted on; with others on the way they differ
_LEAPS_TO_STEP = 8
# opens of other files after which a reader that did not come back is no longer followed
_MAX_PAUSE = 32


class FileSequence(Generic[T]):
    """One reader's way through a directory: the files that are expected of it, in order.

    It takes every `step`-th file, backward where that is negative.
    """

    def __init__(self) -> None:
        self.step = 1
        self.leaps: list[int] = []  # how far it went with each of the last opens
        self.upcoming: deque[tuple[str, T]] = deque()
        self.passed: deque[str] = deque()
        self.streak = 0
        self.window = 0
        self.started = 0  # how many of the upcoming are being fetched, or have been
        self.exhausted = False
        self.seen_at = 0  # counted in opens, of any file
        # when its files were opened, and how long a fetch for it takes where nothing is in the way
        self.opens: deque[float] = deque(maxlen=_OPENS_OF_RATE)
        self.shortest_s = 0.0  # 0: none has ended

    @property
    def is_followed(self) -> bool:
        """Whether this is a reader in order, and not a guess."""
        return self.streak >= STREAK_TO_START

    @property
    def leap(self) -> int:
        """The step of a reader whose skipped files no other reader opens; else 1."""
        steady = len(self.leaps) == _LEAPS_TO_STEP and len(set(self.leaps)) == 1
        return self.leaps[0] if steady else 1

    @property
    def on_the_way(self) -> int:
        """How many fetches are under way at the reader's rate if none of them queues."""
        took_s = self.opens[-1] - self.opens[0] if self.opens else 0.0
        return round((len(self.opens) - 1) * self.shortest_s / took_s) if took_s > 0 else 0

    def fetched(self, seconds: float) -> None:
        """Note how long a fetch for this reader took."""
        self.shortest_s = min(self.shortest_s or seconds, seconds)

    def widen(self, most: int) -> None:
        """Set the window after one more open in order; at most to as many files as the reader has opened."""
        doubled = max(FIRST_WINDOW, 2 * self.window)
        useful = min(_TIMES_ON_THE_WAY * self.on_the_way, self.streak)
        self.window = min(most, doubled, max(DOUBLED_WINDOW, useful))

    @property
    def wants_more(self) -> bool:
        """Whether the names that come after the last upcoming one should be looked up."""
        wanted = max(self.window, _FOLLOWED_AHEAD) if self.is_followed else _GUESSED_AHEAD
        return not self.exhausted and len(self.upcoming) < wanted

    @property
    def next(self) -> T | None:
        """The next file to fetch within the window; None where there is none."""
        if not self.is_followed or self.started >= min(self.window, len(self.upcoming)):
            return None
        return self.upcoming[self.started][1]


class SequenceTable(Generic[T]):
    """All sequences, and which of them expects which path; used under the caller's lock."""

    def __init__(self) -> None:
        # by path; any thread may look
        self.expected: dict[str, FileSequence[T]] = {}
        # by identity, the latest last
        self._guesses: OrderedDict[int, FileSequence[T]] = OrderedDict()
        self._followed: OrderedDict[int, FileSequence[T]] = OrderedDict()
        self._opens = 0
        self._strangers = 0  # unexpected opens of late, fewer with each expected one

    @property
    def is_guessing(self) -> bool:
        """Whether to look up the files behind an unexpected open.

        Each lookup costs a twentieth of the time of a cold open; an epoch in random order needs few.
        """
        return self._strangers < _MANY_STRANGERS or self._opens % _GUESS_EVERY == 0

    def __len__(self) -> int:
        return len(self._guesses) + len(self._followed)

    @property
    def followed(self) -> int:
        """How many readers in order there are."""
        return len(self._followed)

    def opened(self, path: str, now: float, most: int = MAX_WINDOW) -> FileSequence[T]:
        """A file was opened `now`, in seconds: the sequence that expected it, one file further, or a new one.

        At most `most` files are to be fetched ahead of its reader.
        """
        self._opens += 1
        sequence = self.expected.pop(path, None)
        if sequence is not None and self._opens - sequence.seen_at > _MAX_PAUSE:
            self._forget(sequence)
            sequence = None
        if sequence is None:
            self._strangers = min(self._strangers + 1, 2 * _MANY_STRANGERS)
            sequence = FileSequence()
        else:
            self._strangers = max(0, self._strangers - _STRANGERS_PER_EXPECTED)
            self._advance(sequence, path)
            sequence.streak += 1
            if sequence.is_followed:
                sequence.widen(most)
        sequence.seen_at = self._opens
        sequence.opens.append(now)
        self._keep(sequence)
        self._expect(sequence)
        return sequence

    def follow(self, step: int) -> FileSequence[T]:
        """A reader turned out to take this step: a sequence that goes on from the file it has just opened."""
        sequence: FileSequence[T] = FileSequence()
        sequence.step, sequence.seen_at = step, self._opens
        sequence.streak, sequence.window = STREAK_TO_START, FIRST_WINDOW
        self._keep(sequence)
        return sequence

    def guess(self) -> FileSequence[T]:
        """A sequence that begins with the file just opened."""
        sequence: FileSequence[T] = FileSequence()
        sequence.seen_at = self._opens
        self._keep(sequence)
        return sequence

    def drop(self, sequence: FileSequence[T]) -> None:
        """Stop following a reader."""
        self._forget(sequence)

    def extend(self, sequence: FileSequence[T], entries: Entries[tuple[str, T]]) -> None:
        """These come after the upcoming ones; none means that the directory ends."""
        sequence.exhausted = not entries
        sequence.upcoming.extend(entries)
        self._expect(sequence)

    def _keep(self, sequence: FileSequence[T]) -> None:
        """Remember a sequence as the latest, and let go of the oldest ones."""
        for table in (self._guesses, self._followed):
            table.pop(id(sequence), None)
        table, most = (
            (self._followed, MAX_SEQUENCES) if sequence.is_followed else (self._guesses, _MAX_GUESSES)
        )
        table[id(sequence)] = sequence
        while len(table) > most:
            self._forget(table.popitem(last=False)[1])

    def _expect(self, sequence: FileSequence[T]) -> None:
        ahead = _FOLLOWED_AHEAD if sequence.is_followed else _GUESSED_AHEAD
        for path, _ in islice(sequence.upcoming, ahead):
            self.expected.setdefault(path, sequence)

    def _advance(self, sequence: FileSequence[T], path: str) -> None:
        if all(path != upcoming for upcoming, _ in sequence.upcoming):
            sequence.leaps.clear()
            return  # it was passed over before, by another worker
        leap = 0
        while sequence.upcoming:
            passed, _ = sequence.upcoming.popleft()
            leap += 1
            sequence.started = max(0, sequence.started - 1)
            if passed == path:
                break
            sequence.passed.append(passed)
        sequence.leaps = [*sequence.leaps[1 - _LEAPS_TO_STEP :], leap]
        while len(sequence.passed) > _MAX_PASSED:
            self._drop(sequence, sequence.passed.popleft())

    def _forget(self, sequence: FileSequence[T]) -> None:
        for table in (self._guesses, self._followed):
            table.pop(id(sequence), None)
        for path in (*sequence.passed, *(path for path, _ in sequence.upcoming)):
            self._drop(sequence, path)

    def _drop(self, sequence: FileSequence[T], path: str) -> None:
        if self.expected.get(path) is sequence:
            del self.expected[path]


# the distances that are found: as many machines, or workers, may share a data set in turn
MAX_STEP = 32
# equal distances after which a step is believed
_EQUAL_STEPS = 3
# opens that are remembered: readers of one directory take turns
_MAX_RECENT = 16
# after this many opens without order they are no longer examined, and after this many more they are again
_PATIENCE = 128
_PAUSE = 1024


class _Open:
    """A file that was opened, the distances to those behind it, and how often each step led here."""

    def __init__(self, path: str, behind: Iterable[str]) -> None:
        self.path = path
        self.distances = {name: distance for distance, name in enumerate(behind, 1)}
        self.times: dict[int, int] = {}


class StepFinder:
    """Looks for steps in unexpected opens; used under the caller's lock."""

    def __init__(self) -> None:
        self._recent: deque[_Open] = deque(maxlen=_MAX_RECENT)
        self._fruitless = 0

    @property
    def is_looking(self) -> bool:
        """Whether the next open should be told with the `MAX_STEP` names behind it."""
        return self._fruitless < _PATIENCE

    def opened(self, path: str, behind: Iterable[str]) -> int | None:
        """The step that this open continues, negative when it goes backward; None where there is none."""
        self._fruitless += 1
        if not self.is_looking:
            self._recent.clear()
            if self._fruitless >= _PATIENCE + _PAUSE:
                self._fruitless = 0
            return None
        mine = _Open(path, behind)
        found = None
        for other in self._recent:
            step = other.distances.get(path) or -mine.distances.get(other.path, 0)
            if not step:
                continue
            mine.times[step] = max(mine.times.get(step, 0), other.times.get(step, 0) + 1)
            if mine.times[step] >= _EQUAL_STEPS:
                found = step
        self._recent.append(mine)
        if found is not None:
            self._fruitless = 0
        return found
