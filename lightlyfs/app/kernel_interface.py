"""The mount as the parts see it: its protocol, its absence, and the descriptors it may use."""

from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from lightlyfs.fs.handles import Callers, ProcessWatch
from lightlyfs.fs.namespace import Part
from lightlyfs.settings import Settings

# a cached file that is kept open costs 1 KB of memory, and saves a tenth of a millisecond when it is read
_DESCRIPTORS = 8_192
# in a host program's process: with connections and databases below 256, of the 1,024 that `select` takes
_OF_GUEST = 48
# below this limit, a connection for each parallel download would leave too few descriptors for files
_FEW = 1_024


class Kernel(Callers, Protocol):
    """What the parts need of the mount they serve; a no-op where there is none."""

    @property
    def mountpoint(self) -> Path | None:
        """Where it is mounted; None where there is no mount."""
        ...

    @property
    def part(self) -> Part:
        """What of the dataset is mounted."""
        ...

    @property
    def forgets_at_once(self) -> bool:
        """Whether `forget` makes the kernel forget, rather than leave that to its time-outs."""
        ...

    def interrupted(self) -> bool:
        """Return whether the caller of the callback under way was interrupted."""
        ...

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Drop what the kernel knows of paths; whether that is done already."""
        ...


class NoKernel:
    """The file system without a mount, as tests and libraries use it."""

    mountpoint: Path | None = None
    part = Part()
    forgets_at_once = False

    def interrupted(self) -> bool:
        """Return that no call is interrupted."""
        return False

    def caller_name(self) -> str:
        """Return that no program is known."""
        return ""

    def caller_process(self) -> int:
        """Return the one process there is."""
        return 0

    def was_killed(self, process: int) -> bool | None:
        """Return that no caller is a process of its own."""
        return False

    def watch(self, process: int) -> ProcessWatch | None:
        """Return that no caller is a process of its own."""
        return None

    def caller_unlinks(self) -> bool | None:
        """Return that it is not known."""
        return None

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Return that it is done: nothing is kept."""
        return True


def open_files_limit(kernel: Kernel) -> int:
    """Return how many cached files to keep open; a mount first raises the limit of its process."""
    if isinstance(kernel, NoKernel):
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return _OF_GUEST if soft == resource.RLIM_INFINITY else min(soft // 8, _OF_GUEST)
    limit = _raised_limit()
    # connections and the catalogue need some, too
    return limit // (2 if limit >= _FEW else 8)


def fit_descriptors(settings: Settings) -> Settings:
    """Return fewer parallel downloads if this process may have few descriptors; each download takes three."""
    limit = _raised_limit()
    return settings if limit >= _FEW else replace(settings, jobs=max(1, min(settings.jobs, limit // 16)))


def _raised_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _DESCRIPTORS:
        soft = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_DESCRIPTORS, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return _DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _DESCRIPTORS)
