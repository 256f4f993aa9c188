"""The attributes of files and directories that the mount shows, and those the API cannot store.

`SetTimes` keeps times that a program set, and inode numbers. A time is valid for one version of a sample:
once its content changes, the server's time is shown. The ctime is when the time was set, or when this machine
uploaded the version: backup programs use it to find files that were written and whose mtime was set back. A
file keeps its inode number for the life of the mount when it becomes a sample, or when it replaces the bytes
of one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.local_files import LocalFile
from lightlyfs.staging.record import SetTime

log = logging.getLogger(__name__)

UNKNOWN_SIZE = -1


class Exact(NamedTuple):
    """What only local files have: their own permission bits, times in nanoseconds, link count."""

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


_MAX_INODES = 100_000


class SetTimes:
    """The remembered times; any thread may call. Without a journal (a read-only mount) there are none."""

    def __init__(self, journal: Journal | None) -> None:
        self._journal = journal
        self._times = journal.times() if journal else {}
        self._inodes: dict[bytes, int] = {}

    def keep_ino(self, sample_id: str, ino: int) -> None:
        """Show a sample under the inode number that its file had before."""
        self._inodes[bytes.fromhex(sample_id)] = ino
        if len(self._inodes) > _MAX_INODES:
            self._inodes.pop(next(iter(self._inodes)), None)

    def numbered(self, attr: Attr, sample_id: bytes) -> Attr:
        """Return the attributes of a sample with its inode number and ctime on this mount."""
        if self._times:
            known = self._times.get(sample_id.hex())
            if known is not None and known.mtime == attr.mtime:
                attr = attr._replace(ctime_ns=known.ctime_ns)
        if not self._inodes:
            return attr
        ino = self._inodes.get(sample_id)
        return attr if ino is None else attr._replace(ino=ino)

    def ino_of(self, entry: SampleEntry) -> int:
        """Return the inode number of a sample on this mount."""
        return int(self._inodes.get(entry.id, entry.ino))

    def put(self, sample_id: str, size: int | None, etag: str | None, mtime: int) -> None:
        """Remember a time, in seconds, for a sample of this size and, where it is known, this version."""
        version = f"{size} {etag or ''}"
        known = SetTime(mtime, version, time.time_ns())
        self._times[sample_id] = known
        if self._journal is not None:
            self._journal.put_time(sample_id, known)

    def apply(self, entry: SampleEntry) -> SampleEntry:
        """Return the entry with the time that was set on it, if that still counts."""
        if not self._times:
            return entry
        known = self._times.get(entry.sample_id)
        if known is None:
            return entry
        size, _, etag = known.version.partition(" ")
        if size != str(entry.published_size) or (etag and entry.etag and etag != entry.etag):
            return entry
        return entry._replace(mtime=known.mtime)

    def prune(self, by_id: Callable[[str], tuple[str, SampleEntry] | None]) -> None:
        """Forget the times of samples that are gone or have another version; `by_id` looks a sample up."""
        dead = []
        for sample_id, known in list(self._times.items()):
            found = by_id(sample_id)
            size, _, etag = known.version.partition(" ")
            entry = None if found is None else found[1]
            if entry is None or (entry.etag and etag and entry.etag != etag) or _differs(size, entry):
                dead.append(sample_id)
        for sample_id in dead:
            self._times.pop(sample_id, None)
        if dead and self._journal is not None:
            try:
                self._journal.remove_times(dead)
            except OSError as error:
                log.warning("times of samples that changed are kept: %s", error)


def _differs(size: str, entry: SampleEntry) -> bool:
    return entry.published_size is not None and size != str(entry.published_size)
