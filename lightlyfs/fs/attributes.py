"""Computes the attributes of files and directories that the mount shows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.staging.local_files import LocalFile

UNKNOWN_SIZE = -1


class Exact(NamedTuple):
    """What only files of this machine have of their own: permission bits, times in nanoseconds, links."""

    mode: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    links: int = 1


class Attr(NamedTuple):
    """What `stat` shows; `size` in bytes, `mtime` in whole seconds.

    Whole, because thumbnail caches compare seconds and nothing else matches every one of them. In
    listings the size may be UNKNOWN_SIZE: it has to be asked for; so has one that `is_guess`, before it is
    shown of a single file. `ctime_ns` is the time of the last change, 0
    where that is `mtime`. `exact` is set for files and directories of
    this machine, and beats the rest.
    """

    ino: int
    is_directory: bool
    size: int
    mtime: int
    is_link: bool = False
    exact: Exact | None = None
    ctime_ns: int = 0
    is_guess: bool = False


@dataclass(frozen=True)
class Ownership:
    """Owner and permissions of everything on the mount."""

    uid: int
    gid: int
    umask: int = 0o022
    read_only: bool = False

    @property
    def file_mode(self) -> int:
        """Permission bits of files."""
        return (0o444 if self.read_only else 0o666) & ~self.umask

    @property
    def directory_mode(self) -> int:
        """Permission bits of directories."""
        return (0o555 if self.read_only else 0o777) & ~self.umask


class DiskUsage(NamedTuple):
    """What `df` shows: bytes and files that are there, and bytes that are free."""

    bytes: int
    files: int
    free_bytes: int


def attr_of_directory(entry: DirectoryEntry) -> Attr:
    """Return the attributes of a directory."""
    return Attr(entry.ino, True, 0, entry.mtime)


def attr_of_local(file: LocalFile) -> Attr:
    """Return the attributes of a file of this machine."""
    record = file.record
    links = 0 if file.unlinked else 1
    exact = Exact(record.mode, record.atime_ns, file.mtime_ns, file.ctime_ns, links)
    return Attr(file.ino, False, file.size, file.mtime_ns // 1_000_000_000, exact=exact)


def attr_of_sample(entry: SampleEntry, *, trust_hint: bool = True) -> Attr:
    """Return the attributes of a sample; the size may be UNKNOWN_SIZE, or a guess (an untrusted hint)."""
    size = entry.published_size
    is_guess = not trust_hint and entry.size is None
    return Attr(entry.ino, False, UNKNOWN_SIZE if size is None else size, entry.mtime, is_guess=is_guess)
