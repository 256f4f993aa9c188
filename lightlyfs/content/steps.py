"""Which step a reader takes through a directory: every k-th file, or backward. Pure policy, keyed by paths.

A step shows in four opens at equal distances, with opens by others between them; less happens by chance.
Distances are found in the names behind each open, which cost a look-up, so where no step shows for long few
are taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

# the distances that are found: as many machines, or workers, may share a data set in turn
MAX_STEP = 32
# equal distances after which a step is believed
_EQUAL_STEPS = 3
# opens that are remembered: readers of one directory take turns
_MAX_RECENT = 16
# opens in no order after which they are looked at no longer, and after how many more they are again
_PATIENCE = 128
_PAUSE = 1024


class _Open:
    """A file that was opened, the distances to those behind it, and how often each step led here."""

    def __init__(self, path: str, behind: Iterable[str]) -> None:
        self.path = path
        self.distances = {name: distance for distance, name in enumerate(behind, 1)}
        self.times: dict[int, int] = {}


class StepFinder:
    """Looks at opens that nobody expected; used under the caller's lock."""

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
