"""One fetch per block, also among the processes that share a cache.

Within a process `transfers` sees to that. Between processes whoever fetches holds a lock on the blocks, and
whoever waited for it looks for what came meanwhile before fetching anything. A holder that is stuck or
stopped is not waited for long: then both fetch, which costs a transfer and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightlyfs.content.cache import BlockCache
from lightlyfs.content.identity import ContentId
from lightlyfs.content.ranges import SMALL_FILE_BYTES, block_count
from lightlyfs.locks import SharedLocks

# a few megabytes over a slow line; a call on the mount may take 60 s
_PATIENCE_S = 5.0
# what a question to storage may bring along
_HEAD_BLOCKS = block_count(SMALL_FILE_BYTES)


class FetchOnce:
    """Keeps other processes from fetching the same; any thread may call.

    `publish_facts(sample_id)` lets them see what storage reported of a sample.
    """

    def __init__(
        self,
        cache: BlockCache,
        locks: SharedLocks,
        *,
        publish_facts: Callable[[str], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._cache = cache
        self._locks = locks
        self._publish_facts = publish_facts
        self._cancelled = cancelled

    @classmethod
    def alone(cls, cache: BlockCache) -> FetchOnce:
        """For a cache that no other process uses."""
        locks = SharedLocks.of_nobody_else()
        return cls(cache, locks, publish_facts=lambda _: None, cancelled=lambda: False)

    @contextmanager
    def blocks(self, content: ContentId, first: int, last: int) -> Iterator[None]:
        """Fetch blocks of a content in the block, those that are missing by then."""
        with self._locks.blocks(content.sample_id, first, last, _PATIENCE_S, self._cancelled):
            self._cache.catch_up(content)
            try:
                yield
            finally:
                self._cache.publish()

    @contextmanager
    def head(self, sample_id: str) -> Iterator[bool]:
        """Ask storage about a sample in the block; gives whether another process may have asked just now."""
        with self._locks.blocks(sample_id, 0, _HEAD_BLOCKS - 1, _PATIENCE_S, self._cancelled):
            try:
                yield self._locks.has_company()
            finally:
                self._cache.publish()
                if self._locks.has_company():
                    self._publish_facts(sample_id)
