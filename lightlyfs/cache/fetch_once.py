"""Makes the processes that share a cache fetch each block once.

Within a process `transfers` does this. Between processes, the fetching process holds a lock on the blocks; a
process that waited for the lock looks for the blocks in the cache before it fetches any. The wait for a stuck
or stopped holder is short: then both processes fetch, which costs a second transfer and nothing else.

A separate thread publishes fetched blocks and releases their locks, because with four processes one
transaction per file would cost more than the fetch. The same thread keeps the cache up to date with what
other processes delete.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial

from lightlyfs.blocks import SMALL_FILE_BYTES, ContentId, block_count
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.locks import SharedLocks

log = logging.getLogger(__name__)

# time for a few megabytes over a slow line; a call on the mount may take 60 s
_PATIENCE_S = 5.0
# what a question to storage may bring along
_HEAD_BLOCKS = block_count(SMALL_FILE_BYTES)
# between two transactions; delays a caller that waits for a block by at most this long
_PAUSE_S = 0.02
# how soon files that another process deleted are let go of
_KEEP_UP_EVERY_S = 1.0

Release = Callable[[], None]


def _no_release() -> None:
    """Release nothing: no other process was kept out."""


class FetchOnce:
    """Keeps other processes from fetching the same; any thread may call. `start` and `close` once.

    `publish_facts(sample_ids)` lets them see what storage reported of samples.
    """

    def __init__(
        self,
        cache: BlockCache,
        locks: SharedLocks,
        *,
        publish_facts: Callable[[Collection[str]], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._cache = cache
        self._locks = locks
        self._publish_facts = publish_facts
        self._cancelled = cancelled
        self._thread = threading.Thread(target=self._run, name="lightlyfs-sharing", daemon=True)
        self._closing = threading.Event()
        self._changed = threading.Condition()
        # guarded by _changed
        self._ended: list[tuple[Release, str | None]] = []
        self._keep_up_at: float | None = None
        self._is_running = False
        cache.on_use = self.keep_up_soon

    @classmethod
    def alone(cls, cache: BlockCache) -> FetchOnce:
        """For a cache that no other process uses."""
        locks = SharedLocks.unshared()
        return cls(cache, locks, publish_facts=lambda _: None, cancelled=lambda: False)

    def start(self) -> None:
        """Start the thread that publishes; without it, each fetching thread publishes its own blocks."""
        self._is_running = True
        self._thread.start()

    def keep_up_soon(self) -> None:
        """Have the cache keep up within a moment: something was used, or written, here or elsewhere."""
        with self._changed:
            if self._keep_up_at is None:
                self._keep_up_at = time.monotonic() + _KEEP_UP_EVERY_S
                self._changed.notify_all()

    def close(self) -> None:
        """Publish what is left, and let go of everything."""
        self._closing.set()
        with self._changed:
            self._is_running = False
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    @contextmanager
    def blocks(self, content: ContentId, first: int, last: int) -> Iterator[None]:
        """Fetch blocks of a content in the block, those that are missing by then."""
        release = self._locks.take_blocks(content.sample_id, first, last, _PATIENCE_S, self._cancelled)
        try:
            self._cache.catch_up(content)
            yield
        finally:
            self._end(release, None)

    @contextmanager
    def head(self, sample_id: str) -> Iterator[bool]:
        """Ask storage about a sample in the block; gives whether another process may have asked just now."""
        release = self._locks.take_blocks(sample_id, 0, _HEAD_BLOCKS - 1, _PATIENCE_S, self._cancelled)
        try:
            yield self._locks.has_company()
        finally:
            self._end(release, sample_id)

    def try_blocks(self, sample_id: str) -> Release | None:
        """Take the blocks of a small file, without waiting, until what is returned is called.

        None where another process fetches some of them.
        """
        if not self._locks.has_company():
            return _no_release
        release = self._locks.try_blocks(sample_id, 0, _HEAD_BLOCKS - 1)
        return None if release is None else partial(self._end, release, sample_id)

    def has_company(self) -> bool:
        """Whether another process uses the cache, as of a moment ago."""
        return self._locks.has_company()

    def _end(self, release: Release, sample_id: str | None) -> None:
        if not self._locks.has_company():
            release()
            return
        with self._changed:
            self._ended.append((release, sample_id))
            left_to_thread = self._is_running
            self._changed.notify_all()
        if not left_to_thread:
            self._publish()

    def _run(self) -> None:
        while self._is_running:
            due = self._wait()
            try:
                self._publish()
                if due:
                    self._cache.keep_up()
            except Exception:
                log.exception("what was fetched cannot be published")
            # not the condition, which would wake the thread for each file that ends meanwhile
            self._closing.wait(_PAUSE_S)
        self._publish()

    def _wait(self) -> bool:
        """Wait for something to publish, or for the cache to keep up; return whether it is the latter."""
        with self._changed:
            while not self._ended and self._is_running:
                now = time.monotonic()
                if self._keep_up_at is not None and now >= self._keep_up_at:
                    break
                self._changed.wait(None if self._keep_up_at is None else self._keep_up_at - now)
            due = self._keep_up_at is not None and time.monotonic() >= self._keep_up_at
            if due:
                self._keep_up_at = None
        return due

    def _publish(self) -> None:
        with self._changed:
            ended, self._ended = self._ended, []
        if not ended:
            return
        try:
            self._cache.publish()
            self._publish_facts([sample_id for _, sample_id in ended if sample_id is not None])
        finally:
            for release, _ in ended:
                release()
