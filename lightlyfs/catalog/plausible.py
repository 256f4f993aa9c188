"""Validates records of the API: impossible values become unknown or are clamped, invalid records are skipped.

One invalid record must not affect the others. Corrections are kept for `status`, up to a limit.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

MAX_BYTES = 1 << 53  # 9 petabytes; JSON has no larger whole numbers
# whole seconds that a time in nanoseconds can hold: the years 1678 to 2261
MIN_SECONDS, MAX_SECONDS = -9_223_372_036, 9_223_372_036
# numbers in between are times of our age (1973 to 2128) in seconds, sent in place of milliseconds
_FIRST_SECONDS, _LAST_SECONDS = 100_000_000, 5_000_000_000
_MAX_PROBLEMS = 1_000


class Problem(NamedTuple):
    """A sample that was not taken as it is, or cannot be read."""

    name: str
    reason: str


class Problems:
    """What is odd in the records of a dataset, and which images cannot be read; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock: odd records by name, images that cannot be read by sample id
        self._records: dict[str, Problem] = {}
        self._images: dict[str, Problem] = {}
        self._more: set[int] = set()

    def note(self, name: str, reason: str) -> None:
        """Remember that a record is odd."""
        self._note(self._records, name, Problem(name, reason))

    def note_unreadable(self, sample_id: str, name: str, reason: str) -> None:
        """Remember that the image of a sample cannot be read."""
        self._note(self._images, sample_id, Problem(name, reason))

    def note_read(self, sample_id: str) -> None:
        """Note that an image can be read; costs one look-up where that was never in doubt."""
        if sample_id in self._images:
            with self._lock:
                self._images.pop(sample_id, None)

    def _note(self, found: dict[str, Problem], key: str, problem: Problem) -> None:
        with self._lock:
            if key in found or len(self._records) + len(self._images) < _MAX_PROBLEMS:
                found[key] = problem
            elif len(self._more) < 1_000_000:
                self._more.add(hash(key))

    def count(self) -> int:
        """Return how many there are."""
        with self._lock:
            return len(self._records) + len(self._images) + len(self._more)

    def all(self) -> list[Problem]:
        """Return the first of them."""
        with self._lock:
            return [*self._records.values(), *self._images.values()]


def plausible_size(size: int | None) -> int | None:
    """Return a size in bytes, None for one that no file has."""
    return size if size is not None and 0 <= size <= MAX_BYTES else None


def plausible_seconds(milliseconds: int | None) -> int | None:
    """Return a time of the API in whole seconds, within what a file system shows; None for none."""
    if milliseconds is None:
        return None
    if _FIRST_SECONDS <= milliseconds < _LAST_SECONDS:
        return milliseconds
    return max(MIN_SECONDS, min(MAX_SECONDS, milliseconds // 1000))


def is_plausible_time(milliseconds: int | None) -> bool:
    """Whether a time of the API is one in milliseconds, as it should be."""
    seconds = plausible_seconds(milliseconds)
    return milliseconds is None or (seconds == milliseconds // 1000 and milliseconds >= 0)
