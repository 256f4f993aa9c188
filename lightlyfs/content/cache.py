"""Blocks on disk: one sparse file per content, an index of what is in it, a budget.

A block is recorded as present after its bytes are written, with their checksum; the first use of a block
in this process compares it. So a crash or a power cut costs a fetch, never a wrong byte. The least
recently used contents are deleted when the budget is exceeded. Every failure of the disk is counted and
answered as "not here": a reader then gets its bytes from the network.

Threads: any may call. The lock guards the table of open files and is never held during disk work on
blocks; a block is only ever written by the one fetch that owns it.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lightlyfs.content.identity import ContentId
from lightlyfs.content.index import BlockIndex
from lightlyfs.content.ranges import BLOCK_BYTES, Span, block_count, block_length

log = logging.getLogger(__name__)

# open descriptors kept; each is one content that can be read without an open
MAX_OPEN_FILES = 512
# the disk must keep this share free, whatever the budget says
_MIN_FREE_SHARE = 0.1


@dataclass(frozen=True)
class CacheConfig:
    """Limits of the block cache; `budget_bytes` counts the bytes of blocks."""

    budget_bytes: int = 20 << 30


class CacheStats(NamedTuple):
    """Counters since the mount began, and what is kept now."""

    bytes: int
    budget_bytes: int
    hits: int
    misses: int
    errors: int
    evicted: int


class CachedFile:
    """An open cache file; dropped when the last reader lets go of it."""

    def __init__(self, fd: int, size: int, checksums: dict[int, int]) -> None:
        self.fd = fd
        self.size = size
        # single dict operations are atomic, which is all the locking these need
        self.checksums = checksums
        self.proven: set[int] = set()

    def __del__(self) -> None:
        os.close(self.fd)


class BlockCache:
    """The cache in one directory, which this process has for itself."""

    def __init__(self, directory: Path, config: CacheConfig) -> None:
        """Open or make the cache; `directory` must exist and be ours (see `places`)."""
        self._blocks = directory / "blocks"
        self._blocks.mkdir(mode=0o700, exist_ok=True)
        self._config = config
        self._index = BlockIndex(directory / "blocks.db")
        self._lock = threading.Lock()
        # guarded by _lock
        self._open: OrderedDict[str, CachedFile] = OrderedDict()
        self._bytes = self._index.total_bytes()
        self._hits = self._misses = self._errors = self._evicted = 0

    def close(self) -> None:
        """Write the index down and close every file."""
        with self._lock:
            self._open.clear()
        self._index.close()

    def stats(self) -> CacheStats:
        """Counters since the mount began, and what is kept now."""
        return CacheStats(
            self._bytes, self._config.budget_bytes, self._hits, self._misses, self._errors, self._evicted
        )

    def has(self, content: ContentId, span: Span) -> bool:
        """Whether all these blocks are recorded as present."""
        file = self._file(content)
        return file is not None and all(block in file.checksums for block in range(span.first, span.last + 1))

    def missing(self, content: ContentId, span: Span) -> list[int]:
        """Those of the blocks that are not recorded as present, ascending."""
        file = self._file(content)
        blocks = range(span.first, span.last + 1)
        return list(blocks) if file is None else [block for block in blocks if block not in file.checksums]

    def read(self, content: ContentId, offset: int, length: int) -> bytes | None:
        """The bytes [offset, offset + length) of a content, or None where not all of them are here.

        The range must lie within the content.
        """
        file = self._file(content)
        if file is None:
            return None
        try:
            for block in range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1):
                if block not in file.proven and not self._prove(content, file, block):
                    self._misses += 1
                    return None
            data = os.pread(file.fd, length, offset)
        except OSError as error:
            self._count_error(error)
            return None
        self._hits += 1
        return data if len(data) == length else None

    def write(self, content: ContentId, block: int, data: bytes | memoryview) -> None:
        """Keep one whole block; a failure is counted, not raised."""
        try:
            file = self._file(content, create=True)
            assert file is not None
            _write_all(file.fd, data, block * BLOCK_BYTES)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
            return
        checksum = zlib.crc32(data)
        file.checksums[block] = checksum
        file.proven.add(block)
        self._index.add(content.key(), block, checksum, len(data))
        with self._lock:
            self._bytes += len(data)
            over = self._bytes > self._config.budget_bytes
        if over:
            self._evict(keep=content.key())

    def drop(self, content: ContentId) -> None:
        """Forget a content; readers that have it open keep their bytes."""
        self._remove(content.key())

    def path_of(self, content: ContentId) -> Path | None:
        """The file that holds the whole content, or None unless every block is here."""
        count = block_count(content.size)
        if count and not self.has(content, Span(0, count - 1)):
            return None
        return self._path(content.key())

    def _file(self, content: ContentId, *, create: bool = False) -> CachedFile | None:
        key = content.key()
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                self._open.move_to_end(key)
                return file
        try:
            return self._open_file(key, content.size, create=create)
        except (OSError, sqlite3.Error) as error:
            if create:
                raise
            self._count_error(error)
            return None

    def _open_file(self, key: str, size: int, *, create: bool) -> CachedFile | None:
        checksums = self._index.blocks(key)
        if not checksums and not create:
            return None
        path = self._path(key)
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        if create:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            flags |= os.O_CREAT
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            self._remove(key)
            return None
        return self._keep_open(key, CachedFile(fd, size, checksums))

    def _keep_open(self, key: str, file: CachedFile) -> CachedFile:
        with self._lock:
            # of two threads that opened it, the first one's file holds the state
            kept = self._open.setdefault(key, file)
            self._open.move_to_end(key)
            while len(self._open) > MAX_OPEN_FILES:
                old_key, _ = self._open.popitem(last=False)
                self._index.note_use(old_key)
        return kept

    def _prove(self, content: ContentId, file: CachedFile, block: int) -> bool:
        expected = file.checksums.get(block)
        if expected is None:
            return False
        length = block_length(block, content.size)
        data = os.pread(file.fd, length, block * BLOCK_BYTES)
        if len(data) != length or zlib.crc32(data) != expected:
            log.warning(
                "a block in the cache is damaged and is fetched again: %s, block %d", content.key(), block
            )
            self._errors += 1
            file.checksums.pop(block, None)
            return False
        file.proven.add(block)
        return True

    def _evict(self, keep: str) -> None:
        """Delete the least recently used contents until a tenth of the budget is free."""
        with self._lock:
            in_use = list(self._open)
        target = self._config.budget_bytes * 9 // 10
        for key in self._index.oldest(in_use):
            if self._bytes <= target:
                return
            if key != keep:
                self._remove(key)
                self._evicted += 1
        for key in in_use:
            if self._bytes <= target:
                return
            if key != keep:
                self._remove(key)
                self._evicted += 1
        if self._bytes > self._config.budget_bytes:
            self._remove(keep)  # one content larger than the budget starts over

    def _remove(self, key: str) -> None:
        with self._lock:
            self._open.pop(key, None)
        try:
            freed = self._index.remove(key)
            self._path(key).unlink(missing_ok=True)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
            return
        with self._lock:
            self._bytes -= freed

    def _path(self, key: str) -> Path:
        # the last digits of an id count up, so they spread contents over 256 directories
        return self._blocks / key[22:24] / key

    def _count_error(self, error: Exception) -> None:
        self._errors += 1
        log.warning("the cache failed and is bypassed: %s", error)


def default_budget(directory: Path) -> int:
    """20 GiB, or half of what is free where that is less, always leaving a tenth of the disk."""
    disk = os.statvfs(directory)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    return max(0, min(20 << 30, free // 2, free - int(total * _MIN_FREE_SHARE)))


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
