"""How much of the disk the block cache may use, and what it deletes to stay below that.

Threads: any may call. Of all threads and processes that share the cache, one at a time makes room.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightlyfs.cache.block_index import BlockIndex
from lightlyfs.locks import SharedLocks

# what one process at a time does
_EVICTING = "evicting"
# how much is written between two looks at how full the disk is
_LOOK_EVERY_BYTES = 8 << 20
# of the budget, for blocks, whatever is beside them
_LEAST_SHARE = 0.25
# of all readers in order: more hides no latency, and is for nothing where a reader stops
_MOST_AHEAD_BYTES = 256 << 20


class Room:
    """The limit of one cache; `remove(key)` deletes a content and says whether it could."""

    def __init__(
        self,
        directory: Path,
        config: CacheConfig,
        index: BlockIndex,
        locks: SharedLocks,
        remove: Callable[[str], bool],
        *,
        statvfs: Callable[[Path], os.statvfs_result],
        beside: Callable[[], int],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._beside = beside
        self._directory = directory
        self._config = config
        self._index = index
        self._locks = locks
        self._remove = remove
        self._statvfs = statvfs
        self._on_error = on_error
        self._evicting = threading.Lock()  # held by the one thread that makes room
        self._lock = threading.Lock()
        # guarded by _lock
        self._look_in_bytes = _LOOK_EVERY_BYTES
        self.limit = config.budget_bytes
        self.evicted = 0
        self.look()

    def may_grow(self, length: int) -> bool:
        """Whether a block of this length may be written; looks at the disk now and then."""
        with self._lock:
            self._look_in_bytes -= length
            due = self._look_in_bytes < 0
            if due:
                self._look_in_bytes = _LOOK_EVERY_BYTES
        if due:
            self.look()
        return length <= self.limit

    @property
    def ahead_bytes(self) -> int:
        """How much may be fetched before it is asked for: more would displace what is still to be read."""
        return min(self.limit // 4, _MOST_AHEAD_BYTES)

    @property
    def epoch_bytes(self) -> int:
        """How much a pass over files may have in all for its rest to be fetched ahead of it."""
        return self.limit * 4 // 5

    def holds(self, size: int) -> bool:
        """Whether a content of this many bytes can be kept whole without displacing nearly all else."""
        return size <= self.limit // 2

    def is_disk_full(self) -> bool:
        """Whether the disk has no room for what one look allows; raises OSError."""
        disk = self._statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize < _LOOK_EVERY_BYTES

    @property
    def is_over(self) -> bool:
        """Whether more is kept than may be."""
        return self._index.bytes > self.limit

    def make(self, keep: str, in_use: list[str]) -> None:
        """Delete contents until a tenth of the limit is free; those in use last, and `keep` at the very last.

        Raises sqlite3.Error where the index fails.
        """
        if not self._evicting.acquire(blocking=False):
            return
        try:
            if self._locks.try_name(_EVICTING):
                try:
                    self._make(keep, in_use)
                finally:
                    self._locks.release_name(_EVICTING)
        finally:
            self._evicting.release()

    def _make(self, keep: str, in_use: list[str]) -> None:
        self._index.write()  # now the count is exact
        if not self.is_over:
            return
        target = self.limit * 9 // 10
        pinned = self._index.pinned()
        in_use = [key for key in in_use if key not in pinned]
        skip = {*in_use, keep}
        while self._index.bytes > target and (oldest := self._index.oldest(skip)):
            skip.update(self._delete_some(oldest, target))
        self._delete_some([key for key in in_use if key != keep], target)
        if self.is_over and keep not in pinned:
            self._remove(keep)  # one content larger than the limit starts over

    def _delete_some(self, keys: list[str], target: int) -> list[str]:
        """Delete contents while there are too many bytes; returns those that cannot be deleted."""
        failed = []
        for key in keys:
            if self._index.bytes <= target:
                break
            if self._index.is_pinned(key):
                continue  # since the list was made
            if self._remove(key):
                self.evicted += 1
            else:
                failed.append(key)
        return failed

    def look(self) -> None:
        """See how much of the disk is free, and set the limit by that."""
        try:
            disk = self._statvfs(self._directory)
        except OSError as error:
            self._on_error(error)
            return
        spare = (disk.f_bavail - disk.f_blocks * self._config.min_free_share) * disk.f_frsize
        budget = self._config.budget_bytes
        # what is beside the blocks counts, but a catalogue larger than the budget does not end all caching
        mine = max(budget - self._beside(), int(budget * _LEAST_SHARE))
        self.limit = max(0, min(mine, int(self._index.bytes + spare)))


# the disk must keep this share free
MIN_FREE_SHARE = 0.1


@dataclass(frozen=True)
class CacheConfig:
    """Limits of the block cache; `budget_bytes` counts the bytes of blocks, and of the files beside them.

    The cache shrinks below its budget rather than leave less than `min_free_share` of the disk free. Up to
    `max_open_files` contents are kept open; each can then be read without an open.
    """

    budget_bytes: int = 20 << 30
    min_free_share: float = MIN_FREE_SHARE
    max_open_files: int = 512


class CacheStats(NamedTuple):
    """Counters since the mount began, and what is kept now."""

    bytes: int
    budget_bytes: int
    hits: int
    misses: int
    errors: int
    evicted: int


def bytes_beside(directory: Path) -> int:
    """Return the bytes of the files directly in a directory: databases, their logs, the mount's own log."""
    found = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    found += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        pass  # some went meanwhile; the next look counts again
    return found


def default_budget(directory: Path) -> int:
    """20 GiB, or half of what is free where that is less, always leaving a tenth of the disk."""
    disk = os.statvfs(directory)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return max(0, min(20 << 30, free // 2, free - int(total * MIN_FREE_SHARE)))
