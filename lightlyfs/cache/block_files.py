"""What the block cache holds: its files on disk, the room that they may take, and a few blocks in memory.

Nothing here follows a symbolic link: a planted link would make lightlyfs read or write its target.

Threads: any may call. Of all threads and processes that share the cache, one at a time makes room.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightlyfs.blocks import BLOCK_BYTES
from lightlyfs.cache.block_index import BlockIndex
from lightlyfs.locks import SharedLocks

log = logging.getLogger(__name__)

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class CachedFile:
    """An open cache file; closed when the last reader lets go of it."""

    def __init__(self, fd: int, checksums: dict[int, int], *, found: os.stat_result) -> None:
        self.fd = fd
        self._number = found.st_ino
        # written under the cache's lock; a look at one block needs none
        self.checksums = checksums
        self.proven: set[int] = set()
        # when the file was last changed, as far as what is proven goes
        self._proven_at = found.st_ctime_ns
        self.dropped = False  # deleted from the cache: what is written to it now is lost

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; raises OSError."""
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`; raises OSError, and a part may be written then."""
        # of a file in which nothing is proven what others change meanwhile is verified all the same
        as_proven = not self.proven or os.fstat(self.fd).st_ctime_ns == self._proven_at
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written
        if as_proven:
            self._proven_at = os.fstat(self.fd).st_ctime_ns

    @property
    def state(self) -> tuple[int, int]:
        """A value that no changed file, and no other file, has; of when its blocks were verified."""
        return self._number, self._proven_at

    def was_changed(self) -> bool:
        """Whether another process changed the file since the last call; if so, no block counts as verified.

        Call it after a read: the ctime of a file changes before its bytes do.
        """
        changed_at = os.fstat(self.fd).st_ctime_ns
        if changed_at == self._proven_at:
            return False
        self.proven = set()
        self._proven_at = changed_at
        return True


class BlockFiles:
    """One file per content below a directory; any thread may call."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if it is missing; a link in its place is deleted."""
        self.directory = directory
        self._prefix = f"{directory}/"
        self.make()

    def make(self) -> None:
        """Make the directory if it is missing; a link in its place is deleted."""
        if self.directory.is_symlink():
            self.directory.unlink()
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def open(self, key: str, checksums: dict[int, int], *, create: bool) -> CachedFile | None:
        """Return the file of a content, or None where there is none; raises OSError."""
        path = self._path(key)
        flags = _OPEN | os.O_CREAT if create else _OPEN
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if not create:
                return None
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        except OSError:
            if os.path.islink(path):
                os.unlink(path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            else:
                raise
            if not create:
                return None
            fd = os.open(path, flags, 0o600)
        found = os.fstat(fd)
        file = CachedFile(fd, checksums, found=found)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"not a regular file: {key}")
        return file

    def link(self, key: str, source: Path) -> None:
        """Make a file that is elsewhere on this disk that of a content as well; raises OSError."""
        path = self._path(key)
        try:
            os.link(source, path, follow_symlinks=False)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            os.link(source, path, follow_symlinks=False)

    def delete(self, key: str) -> None:
        """Delete the file of a content, if there is one; raises OSError."""
        try:
            os.unlink(self._path(key))
        except FileNotFoundError:
            pass

    def tidy(self, known: set[str]) -> set[str]:
        """Delete all but the files of `known`; returns those of `known` that have no file."""
        lost = set(known)
        for file in self._entries():
            if file.name in known and file.is_file(follow_symlinks=False):
                lost.discard(file.name)
            else:
                _delete(file)
        return lost

    def by_age(self) -> list[str]:
        """Return the contents that have a file, the one written longest ago first; raises OSError."""
        found = [(file.stat(follow_symlinks=False).st_mtime_ns, file.name) for file in self._entries()]
        return [name for _, name in sorted(found)]

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.directory) as directories:
            for directory in directories:
                if directory.is_dir(follow_symlinks=False):
                    with os.scandir(directory.path) as files:
                        yield from files
                else:
                    _delete(directory)

    def _path(self, key: str) -> str:
        # a string, for this is asked for each file that is read; the last digits of an id count up, so they
        # spread contents over 256 directories
        return f"{self._prefix}{key[22:24]}/{key}"


class ClosedFiles:
    """Remembers which blocks of closed files were verified: they count while the file is not changed.

    So opening one again takes neither a query nor a checksum. Any thread may call.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        # guarded by _lock: by key, the state of a file and the checksums of its blocks, the latest last
        self._known: dict[str, tuple[tuple[int, int], tuple[tuple[int, int], ...]]] = {}

    def put(self, key: str, file: CachedFile) -> None:
        """Remember a file that is about to be closed, where all that it has is verified."""
        checksums = tuple(file.checksums.items())
        with self._lock:
            self._known.pop(key, None)
            if file.dropped or not checksums or not file.proven.issuperset(file.checksums):
                return
            self._known[key] = file.state, checksums
            if len(self._known) > self._most:
                del self._known[next(iter(self._known))]

    def open_again(self, key: str, files: BlockFiles) -> CachedFile | None:
        """Open a file that is remembered, and not changed since; None for others. Raises OSError."""
        with self._lock:
            state, checksums = self._known.pop(key, (None, ()))
        file = None if state is None else files.open(key, dict(checksums), create=False)
        if file is None or file.state != state:
            return None
        file.proven.update(file.checksums)
        return file

    def count(self, key: str) -> int:
        """How many blocks a remembered file had."""
        return len(self._known.get(key, (None, ()))[1])

    def forget(self, key: str | None) -> None:
        """Remember a file (None: all of them) no longer."""
        with self._lock:
            if key is None:
                self._known.clear()
            else:
                self._known.pop(key, None)


# some streams with their read-ahead
MEMORY_BYTES = 32 << 20


class Overflow:
    """Blocks by content and number, the oldest dropped first; any thread may call."""

    def __init__(self, limit_bytes: int = MEMORY_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        # guarded by _lock
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __contains__(self, place: tuple[str, int]) -> bool:
        return place in self._blocks

    def get(self, key: str, block: int) -> bytes | None:
        """Return the block, or None."""
        return self._blocks.get((key, block))

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        """Return bytes of a content that lie in one block, or None."""
        block, start = divmod(offset, BLOCK_BYTES)
        data = self._blocks.get((key, block))
        if data is None or start + length > len(data):
            return None
        return data if length == len(data) else data[start : start + length]

    def put(self, key: str, block: int, data: bytes) -> None:
        """Keep a block, at the cost of older ones."""
        with self._lock:
            self._bytes += len(data) - len(self._blocks.pop((key, block), b""))
            self._blocks[key, block] = data
            while self._bytes > self._limit_bytes:
                self._bytes -= len(self._blocks.popitem(last=False)[1])

    def discard(self, key: str, block: int) -> None:
        """Forget a block, if it is here."""
        with self._lock:
            self._bytes -= len(self._blocks.pop((key, block), b""))


def free_bytes(directory: Path) -> int:
    """How much of a disk may be written; raises OSError."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def shed(directory: Path, wanted_bytes: int) -> None:
    """Delete files of blocks, those written longest ago first, until `wanted_bytes` of the disk are free."""
    try:
        if not directory.is_dir() or free_bytes(directory) >= wanted_bytes:
            return
        files = BlockFiles(directory)
        for key in files.by_age():
            files.delete(key)
            if free_bytes(directory) >= wanted_bytes:
                break
    except OSError as error:
        log.warning("no room can be made in %s: %s", directory, error)


def _delete(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        os.unlink(entry.path)


# what one process at a time does
_EVICTING = "evicting"
# how much is written between two checks of how full the disk is
_LOOK_EVERY_BYTES = 8 << 20
# of the budget, for blocks, whatever is beside them
_LEAST_SHARE = 0.25
# for all sequential readers: more hides no latency, and is wasted where a reader stops
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
        """How many bytes may be prefetched: more would displace what is still to be read."""
        return min(self.limit // 4, _MOST_AHEAD_BYTES)

    @property
    def epoch_bytes(self) -> int:
        """How large a pass over files may be for its remaining files to be prefetched."""
        return self.limit * 4 // 5

    def holds(self, size: int) -> bool:
        """Whether a content of this many bytes can be kept whole without displacing nearly all else."""
        return size <= self.limit // 2

    def is_disk_full(self) -> bool:
        """Whether the disk has no room for what one look allows; raises OSError."""
        disk = self._statvfs(self._directory)
        return disk.f_bavail * disk.f_frsize < _LOOK_EVERY_BYTES

    @property
    def is_held_down(self) -> bool:
        """Whether the disk, not the budget, limits what is kept."""
        return self.limit < max(1, int(self._config.budget_bytes * _LEAST_SHARE))

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
        """Check how much of the disk is free, and set the limit accordingly."""
        try:
            disk = self._statvfs(self._directory)
        except OSError as error:
            self._on_error(error)
            return
        kept_free = self._config.min_free_bytes
        if kept_free is None:
            kept_free = default_min_free(disk.f_blocks * disk.f_frsize)
        spare = disk.f_bavail * disk.f_frsize - kept_free
        budget = self._config.budget_bytes
        # what is beside the blocks counts, but a catalogue larger than the budget does not end all caching
        mine = max(budget - self._beside(), int(budget * _LEAST_SHARE))
        self.limit = max(0, min(mine, self._index.bytes + spare))


# of the disk, unless something else is asked for
_MIN_FREE_SHARE = 0.1
_MOST_MIN_FREE_BYTES = 5 << 30


def default_min_free(disk_bytes: int) -> int:
    """How much of a disk the cache leaves free: a tenth, at most 5 GiB."""
    return min(int(disk_bytes * _MIN_FREE_SHARE), _MOST_MIN_FREE_BYTES)


@dataclass(frozen=True)
class CacheConfig:
    """Limits of the block cache; `budget_bytes` counts the bytes of blocks, and of the files beside them.

    The cache shrinks below its budget rather than leave less than `min_free_bytes` of the disk free; None is
    `default_min_free`. Up to `max_open_files` contents are kept open; each can then be read without an open.
    """

    budget_bytes: int = 20 << 30
    min_free_bytes: int | None = None
    max_open_files: int = 512


class CacheStats(NamedTuple):
    """Counters since the mount began, and what is kept now; the limit is the budget, less on a full disk."""

    bytes: int
    budget_bytes: int
    limit_bytes: int
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
    """20 GiB, or half of what is free where that is less."""
    return min(20 << 30, free_bytes(directory) // 2)
