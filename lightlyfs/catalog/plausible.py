"""Records as they may be: what cannot be is unknown or clamped, and what is no record is named.

One odd record must cost itself and nothing else. What was put right is kept for `status`, up to a limit.
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
    """A record that was not taken as it is."""

    name: str
    reason: str


class Problems:
    """What was odd in the records of a dataset, each named once; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock
        self._found: dict[str, str] = {}
        self._more: set[int] = set()

    def note(self, name: str, reason: str) -> None:
        """Remember that a record was odd."""
        with self._lock:
            if name in self._found or len(self._found) < _MAX_PROBLEMS:
                self._found[name] = reason
            elif len(self._more) < 1_000_000:
                self._more.add(hash(name))

    def count(self) -> int:
        """Return how many records were odd."""
        with self._lock:
            return len(self._found) + len(self._more)

    def all(self) -> list[Problem]:
        """Return the first of them."""
        with self._lock:
            return [Problem(name, reason) for name, reason in self._found.items()]


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
