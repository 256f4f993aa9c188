"""What the parts need of the mount they serve, and of the processes that use it."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Protocol

from cachetools import TTLCache

# a cached file that is kept open costs 1 KB of memory, and saves a tenth of a millisecond when it is read
_DESCRIPTORS = 8_192


class Kernel(Protocol):
    """What the parts need of the mount they serve; a no-op where there is none."""

    @property
    def forgets_at_once(self) -> bool:
        """Whether `forget` makes the kernel forget, rather than leave that to its time-outs."""
        ...

    def interrupted(self) -> bool:
        """Whether the caller of the callback under way was interrupted."""
        ...

    def caller_name(self) -> str:
        """The program that the callback under way serves."""
        ...

    def caller_process(self) -> int:
        """The thread group that the callback under way serves."""
        ...

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Drop what the kernel knows of paths; whether that is done already."""
        ...


class NoKernel:
    """The file system without a mount, as tests and libraries use it."""

    forgets_at_once = False

    def interrupted(self) -> bool:
        """Nobody interrupts."""
        return False

    def caller_name(self) -> str:
        """No program known."""
        return ""

    def caller_process(self) -> int:
        """Always the same one."""
        return 0

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Nothing is kept, so nothing has to be forgotten."""
        return True


class Processes:
    """The processes of threads, remembered for a moment: one program opens and closes many files."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock; short, for numbers are given out again
        self._known: TTLCache[int, int] = TTLCache(256, ttl=1.0)

    def __call__(self, thread: int) -> int:
        """The thread group of a thread; the number itself where it is gone."""
        with self._lock:
            known: int | None = self._known.get(thread)
            if known is None:
                known = self._known[thread] = _thread_group(thread)
        return known


def _thread_group(thread: int) -> int:
    try:
        for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return thread


def open_files_limit() -> int:
    """How many cached files this process can keep open, after raising its limit of descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        soft = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    # half of them: connections and the catalogue need some, too
    return _DESCRIPTORS // 2 if soft == resource.RLIM_INFINITY else min(soft, _DESCRIPTORS) // 2


def program_of(pid: int) -> str:
    """The name of a process as the kernel keeps it, at most 15 bytes; "" where it is gone.

    To be asked for the thread group: threads have names of their own.
    """
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""
