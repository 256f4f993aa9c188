"""How much of the disk the block cache may take, and what it counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

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
    """How many bytes the files directly in a directory take: databases, their logs, the mount's own log."""
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
