"""The memory of a process: the limit of a mount, which share a part may take, and what malloc keeps.

A directory listed with the attributes of its files makes the kernel keep each name, and libfuse with it: some
300 bytes a file. Once the process takes a sixth of the target, listings come without attributes, so that only
names that a program looks up are kept; and of those, the ones looked up longest ago are given back once they
take a sixth. Buffers are sized by the target from the start.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

# what a mount takes before it has done anything, and as much again to work with
LEAST_TARGET_BYTES = 128 << 20
_MOST_BY_DEFAULT_BYTES = 1 << 30
# names are kept up to a sixth of the target; a mount that has done nothing is to keep some, too
_NAMES_PART, _LEAST_FOR_NAMES_BYTES = 6, 96 << 20
# of libfuse and of ours, for a name that was looked up
_BYTES_A_NAME = 400
# reading what the process takes costs 20 microseconds
_LOOK_EVERY_S = 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# of cgroup v2 and v1; "max", and numbers beyond all memory, stand for no limit
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class MemoryTarget:
    """How many bytes of memory this process should take; any thread may call."""

    def __init__(
        self,
        target_bytes: int,
        *,
        taken: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`taken()` returns how many bytes it takes now; by default its resident set."""
        self._target_bytes = target_bytes
        self._names_bytes = max(target_bytes // _NAMES_PART, _LEAST_FOR_NAMES_BYTES)
        self._taken = taken or resident_bytes
        self._clock = clock
        # single operations on these are atomic
        self._looked_at = float("-inf")
        self._has_room = True

    def share(self, part: int, most_bytes: int) -> int:
        """Return the target divided by `part`, at most `most_bytes`."""
        return min(most_bytes, self._target_bytes // part)

    @property
    def most_names(self) -> int:
        """How many names that were looked up the kernel may keep."""
        return self._target_bytes // _NAMES_PART // _BYTES_A_NAME

    @property
    def has_room_for_names(self) -> bool:
        """Whether the kernel may be made to keep more names, as of a moment ago."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_EVERY_S:
            self._looked_at = now
            self._has_room = self._taken() < self._names_bytes
        return self._has_room


# mallopt(3): how much may be free at the end of the heap, and from which size on a block is mapped by itself
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# the second is what glibc itself goes up to where large blocks are freed
_KEPT_FREE_BYTES, _MAPPED_BYTES = 32 << 20, 32 << 20


def keep_freed_memory() -> None:
    """Have malloc keep up to 32 MiB of what is freed, for a process that decodes one image after the other.

    Otherwise glibc returns each image to the kernel, which clears the pages of the next one: a quarter of the
    CPU time of decoding.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)
    except (OSError, AttributeError):
        pass  # another C library


def resident_bytes() -> int:
    """Return the resident set of this process, as proc(5) counts it in /proc/self/statm."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * _PAGE_BYTES


def default_target_bytes(limits: Iterable[str] = _CGROUP_LIMITS) -> int:
    """Return half of the memory that this process may have, at most 1 GiB."""
    found = [os.sysconf("SC_PHYS_PAGES") * _PAGE_BYTES]
    for path in limits:
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        found += [int(text)] if text.isdigit() else []
    return max(LEAST_TARGET_BYTES, min(_MOST_BY_DEFAULT_BYTES, min(found) // 2))
