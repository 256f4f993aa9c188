"""The attributes of files and directories as the mount shows them. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry

UNKNOWN_SIZE = -1


class Attr(NamedTuple):
    """What `stat` shows; `size` in bytes, `mtime` in whole seconds.

    Whole, because thumbnail caches compare seconds and nothing else matches every one of them. In
    listings the size may be UNKNOWN_SIZE: it has to be asked for.
    """

    ino: int
    is_directory: bool
    size: int
    mtime: int
    is_link: bool = False


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
    """The attributes of a directory."""
    return Attr(entry.ino, True, 0, entry.mtime)


def attr_of_sample(entry: SampleEntry) -> Attr:
    """The attributes of a sample; its size may be UNKNOWN_SIZE."""
    size = entry.published_size
    return Attr(entry.ino, False, UNKNOWN_SIZE if size is None else size, entry.mtime)
