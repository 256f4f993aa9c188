"""What programs that index or search everything may fetch: not a dataset of terabytes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from lightlyfs.errors import NotPermitted
from lightlyfs.fs.probes import is_crawler

# enough to index the words of a few documents, and some pictures
BUDGET_BYTES = 64 << 20
_REFILL_S = 3600.0


class CrawlBudget:
    """Counts what crawlers have fetched, all of them together; it is refilled each hour.

    `program()` names the program of the call under way. What is in the cache costs nothing. Any thread may
    call.
    """

    def __init__(self, program: Callable[[], str], clock: Callable[[], float]) -> None:
        self._program = program
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._left = BUDGET_BYTES
        self._refilled_at = clock()

    def spend(self, size: int) -> None:
        """About to fetch so many bytes: NotPermitted where a crawler has had its share."""
        program = self._program()
        if not is_crawler(program):
            return
        with self._lock:
            if self._clock() - self._refilled_at >= _REFILL_S:
                self._left, self._refilled_at = BUDGET_BYTES, self._clock()
            if size > self._left:
                raise NotPermitted(
                    f"{program} has fetched its share of this hour; exclude the mount from what it indexes"
                )
            self._left -= size
