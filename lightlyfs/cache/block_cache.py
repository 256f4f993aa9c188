"""Blocks on disk: one sparse file per content, an index of what is in it, a budget.

A block is recorded as present, with its checksum, after its bytes are written. The first use of a block after
its file is opened verifies the checksum. So a crash or a power cut costs a fetch, never a wrong byte. When
the budget is exceeded, the least recently used contents are deleted. A failure of the disk is counted and
treated as a miss: the reader gets its bytes from the network. The last few blocks that could not be written
are kept in memory, because a block is read in several pieces.

Several processes may share a cache. Each keeps in memory which blocks are in its open files, and checks the
index again (`catch_up`) before it fetches one. A file that another process deleted stays readable while open.

Threads: any may call. The lock guards the tables and is never held during disk work. Contents are created and
deleted, here and in the index, under the lock of that content: one of a few striped locks, shared between
processes too. It is taken before the table lock. A read of a content whose file is open takes neither a
content's lock nor the index's.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path

from lightlyfs import database
from lightlyfs.blocks import BLOCK_BYTES, ContentId, Span, block_count, block_length, block_of, span_of
from lightlyfs.cache.block_files import (
    BlockFiles,
    CacheConfig,
    CachedFile,
    CacheStats,
    ClosedFiles,
    Overflow,
    Room,
)
from lightlyfs.cache.block_index import BlockIndex, StillHeld
from lightlyfs.locks import OPENING, OPENING_PATIENCE_S, SharedLocks, Stripe

log = logging.getLogger(__name__)

_CONTENT_LOCKS = 64
# how often it is checked whether a cleaner deleted the cache
_RENEW_EVERY_S = 0.25
# tries to read a file that others keep changing; after that its bytes come from the network
_MAX_LOOKS = 4
# closed files whose verified blocks are remembered, in some 400 bytes each
_CLOSED_FILES = 8_192


class BlockCache:
    """The cache in one directory, which this process has for itself or, with `locks`, shares."""

    def __init__(
        self,
        directory: Path,
        config: CacheConfig,
        *,
        locks: SharedLocks | None = None,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
        beside: Callable[[], int] = lambda: 0,
    ) -> None:
        """Open or make the cache; `directory` must exist and be ours (see `places`).

        `beside()` says how many bytes of the budget files other than blocks take.
        sqlite3.DatabaseError: the index is damaged, and another process uses it.
        """
        self._config = config
        self._locks = locks or SharedLocks.unshared()
        self._files = BlockFiles(directory / "blocks")
        self._index = BlockIndex(directory / "blocks.db", alone=self._locks.alone)
        self._overflow = Overflow()
        # neither SQLite nor a call on a descriptor says where
        self._failures = database.Failures(
            log, f"the cache in {directory} failed and is bypassed", f"the cache in {directory} works again"
        )
        self._lock = threading.Lock()
        self._renewing = threading.Lock()  # taken before all others
        self._content_locks = [self._locks.stripe(f"content {number}") for number in range(_CONTENT_LOCKS)]
        # counted without a lock, so perhaps a few short
        self._hits = self._misses = self._errors = 0
        self._closed = False
        self._is_damaged = False  # the index, as SQLite says
        # called, from any thread, when something is used or written for the first time since `keep_up`
        self.on_use: Callable[[], None] = lambda: None
        self._is_used = False
        self._renew_at = 0.0
        self.room = Room(
            self._files.directory,
            config,
            self._index,
            self._locks,
            self._remove,
            statvfs=statvfs,
            beside=beside,
            on_error=self._count_error,
        )
        if not self._index.was_closed:
            # a crash, or a lost index, leaves files that nothing else would delete
            for key in self._files.tidy(self._index.keys()):
                self._index.remove(key)
        # guarded by _lock
        self._open: OrderedDict[str, CachedFile] = OrderedDict()
        self._closed_files = ClosedFiles(_CLOSED_FILES)

    def close(self) -> None:
        """Write the index down and close every file."""
        with self._lock:
            used = list(self._open)
            self._open.clear()
            self._closed = True
        try:
            self._index.note_use(used)
            self._index.close()
        except sqlite3.Error as error:
            self._count_error(error)

    def stats(self) -> CacheStats:
        """Counters since the mount began, and what is kept now, also by other processes."""
        self._write_index()
        kept = self._index.bytes, self._config.budget_bytes, self.room.limit
        return CacheStats(*kept, self._hits, self._misses, self._errors, self.room.evicted)

    def has(self, content: ContentId, span: Span) -> bool:
        """Whether all these blocks are recorded as present."""
        key = content.key()
        file = self._file(key)
        return all(self._holds(key, file, block) for block in range(span.first, span.last + 1))

    def has_whole(self, content: ContentId) -> bool:
        """Whether all blocks of a content are recorded as present; opens no file."""
        key, count = content.key(), block_count(content.size)
        file = self._open.get(key)
        if file is None and self._closed_files.count(key) >= count and not self._locks.has_company():
            return True
        try:
            blocks = self._index.blocks(key) if file is None else file.checksums
        except sqlite3.Error as error:
            self._count_error(error)
            return count == 0
        return len(blocks) >= count

    def missing(self, content: ContentId, span: Span) -> list[int]:
        """Those of the blocks that are not recorded as present, ascending."""
        key = content.key()
        file = self._file(key)
        return [block for block in range(span.first, span.last + 1) if not self._holds(key, file, block)]

    def read(self, content: ContentId, offset: int, length: int) -> bytes | None:
        """Return the bytes [offset, offset + length) of a content, or None where not all of them are here.

        The range must lie within the content.
        """
        data = self._overflow.read(content.key(), offset, length) if self._overflow else None
        file = self._file(content.key()) if data is None else None
        if file is not None:
            data = self._read_file(content, file, offset, length)
        if data is None and self._overflow:
            data = self._read_mixed(content, file, offset, length)
        if data is None:
            self._misses += 1
        else:
            self._hits += 1
            if not self._is_used:
                self._note_use()
        return data

    def proven_file(self, content: ContentId) -> CachedFile | None:
        """Return the file of a completely cached content, every checksum verified; otherwise None."""
        file = self._file(content.key())
        if file is None:
            return None
        try:
            file.was_changed()  # then every block is compared again
            for block in range(block_count(content.size)):
                if block not in file.proven and not self._prove(content, file, block):
                    return None
        except OSError as error:
            self._count_error(error)
            return None
        return file

    def write(self, content: ContentId, block: int, data: bytes) -> None:
        """Keep one whole block; a failure is counted, not raised."""
        key = content.key()
        if not self.room.may_grow(len(data)):
            self._overflow.put(key, block, data)
            return
        try:
            file = self._opened(key, create=True)
            assert file is not None
            file.write(block * BLOCK_BYTES, data)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
            self._overflow.put(key, block, data)
            self._relieve_disk(key)
            return
        self._record(key, file, block, data)
        self._note_grown(key)

    def hold(self, content: ContentId, body: bytes) -> None:
        """Keep a whole content in memory, to be read at once, until `write_whole` has it on the disk."""
        key = content.key()
        for block in range(block_count(content.size)):
            self._overflow.put(key, block, block_of(body, block))

    def write_whole(self, content: ContentId, body: bytes) -> None:
        """Keep all blocks of a small content; a failure is counted, not raised."""
        key, count = content.key(), block_count(content.size)
        if not count:
            return
        if key in self._open or not self.room.may_grow(len(body)):
            for block in range(count):
                self.write(content, block, block_of(body, block))
            return
        self._renew_now_and_then()
        checksums = {block: zlib.crc32(block_of(body, block)) for block in range(count)}
        try:
            with self._lock_of(key):
                file = self._files.open(key, {}, create=True)
                assert file is not None
                file.write(0, body)
                file.checksums.update(checksums)
                file.proven.update(checksums)
                self._keep_open(key, file)
                for block, checksum in checksums.items():
                    self._index.add(key, block, checksum, block_length(block, content.size))
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
            self._relieve_disk(key)
            return  # it is in memory for a while
        for block in checksums:
            self._overflow.discard(key, block)
        self._note_grown(key)

    def adopt(self, content: ContentId, source: Path, checksums: Collection[int]) -> bool:
        """Keep a whole content as a hard link to a file that no longer changes; return False on failure."""
        key = content.key()
        if not self.room.may_grow(content.size):
            return False
        self._renew_now_and_then()
        try:
            with self._lock_of(key):
                self._files.link(key, source)
                for block, checksum in enumerate(checksums):
                    self._index.add(key, block, checksum, block_length(block, content.size))
        except (OSError, sqlite3.Error):
            return False
        self._note_grown(key)
        return True

    def let_go(self, content: ContentId) -> None:
        """Close the file of a content that is not about to be read."""
        key = content.key()
        with self._lock:
            file = self._open.pop(key, None)
            if file is not None:
                self._closed_files.put(key, file)
        if file is not None:
            self._index.note_use([key])

    def drop(self, content: ContentId) -> None:
        """Forget a content; readers that have it open keep their bytes."""
        self._remove(content.key())

    def pinned(self) -> set[str]:
        """Return the keys of the contents that no budget evicts."""
        return self._index.pinned()

    def set_pinned(self, keys: Collection[str], *, pinned: bool) -> None:
        """Keep contents whatever the budget, or no longer; raises sqlite3.Error where the disk fails."""
        self._index.set_pinned(keys, pinned=pinned)

    # other processes

    def publish(self) -> None:
        """Let other processes see what was written, if there are any."""
        if self._locks.has_company():
            self._write_index()

    def catch_up(self, content: ContentId) -> None:
        """See the blocks of a content that other processes wrote since its file was opened."""
        key = content.key()
        file = self._open.get(key)
        if not self._locks.has_company():
            return
        if file is None:
            self._closed_files.forget(key)
            return
        try:
            with self._lock_of(key):
                if self._is_deleted(key, file):
                    return
                found = self._index.blocks(key)
                with self._lock:
                    file.checksums.update(found)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)

    def keep_up(self) -> None:
        """Write down what is kept, for processes to come; with others also what is used.

        To be called soon after `on_use` was. Lets go of what others deleted.
        """
        was_used, self._is_used = self._is_used, False
        if self._locks.has_company():
            with self._lock:
                files = list(self._open.items())
            try:
                for key, file in files:
                    if os.fstat(file.fd).st_nlink == 0:
                        with self._lock_of(key):
                            self._is_deleted(key, file)
                if was_used:
                    self._index.note_use([key for key, _ in files])
            except (OSError, sqlite3.Error) as error:
                self._count_error(error)
        self._write_index()

    def _note_use(self) -> None:
        self._is_used = True
        self.on_use()

    def _write_index(self) -> None:
        try:
            self._index.write()
        except sqlite3.Error as error:
            self._count_error(error)

    def _is_deleted(self, key: str, file: CachedFile) -> bool:
        """Whether a file is out of the cache, and let go of; to be asked under the lock of the content."""
        if not file.dropped and os.fstat(file.fd).st_nlink == 0:
            with self._lock:
                file.dropped = True
                if self._open.get(key) is file:
                    del self._open[key]
        return file.dropped

    # files

    def _holds(self, key: str, file: CachedFile | None, block: int) -> bool:
        return (file is not None and block in file.checksums) or (key, block) in self._overflow

    def _file(self, key: str) -> CachedFile | None:
        """The open file of a content that has blocks here."""
        try:
            return self._opened(key, create=False)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
            return None

    def _opened(self, key: str, *, create: bool) -> CachedFile | None:
        with self._lock:
            file = self._open.get(key)
            if file is not None:
                self._open.move_to_end(key)
                return file
        if create:
            self._renew_now_and_then()
        with self._lock_of(key):
            try:
                file = self._open_file(key, create=create)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                self._close_all_but(len(self._open) // 2)  # other parts need descriptors, too
                file = self._open_file(key, create=create)
            return None if file is None else self._keep_open(key, file)

    def _open_file(self, key: str, *, create: bool) -> CachedFile | None:
        """Open the file of a content that has blocks here, under its lock."""
        file = self._closed_files.open_again(key, self._files)
        if file is None:
            checksums = self._index.blocks(key)
            if not checksums and not create:
                return None
            file = self._files.open(key, checksums, create=create)
            if file is None:
                self._remove_locked(key)
        return file

    def _close_all_but(self, most: int) -> None:
        """Let go of the files that were used longest ago."""
        with self._lock:
            let_go = [self._open.popitem(last=False) for _ in range(len(self._open) - most)]
            for key, file in let_go:
                self._closed_files.put(key, file)
        if let_go:
            self._index.note_use([key for key, _ in let_go])

    def _renew_now_and_then(self) -> None:
        if time.monotonic() >= self._renew_at:
            self._renew()
            self._renew_at = time.monotonic() + _RENEW_EVERY_S

    def _renew(self) -> None:
        """Begin again where a cleaner deleted the directory or what says what is in it; raises as `open`."""
        self._locks.renew()
        if not (self._index.is_deleted() or self._is_damaged):
            return
        with self._locks.name(OPENING, OPENING_PATIENCE_S), self._renewing:
            if self._is_damaged and not self._index.is_deleted():
                self._index.put_aside()  # the other processes find that it is gone, and begin again too
            self._is_damaged = False
            if not self._index.is_deleted():
                return
            log.warning("the cache in %s was deleted; it is begun again", self._files.directory.parent)
            with self._lock:
                for file in self._open.values():
                    file.dropped = True
                self._open.clear()
            self._closed_files.forget(None)
            self._files.make()
            self._index.begin_again()

    def _lock_of(self, key: str) -> Stripe:
        # the same one in every process
        return self._content_locks[int(key[20:24], 16) % _CONTENT_LOCKS]

    def _keep_open(self, key: str, file: CachedFile) -> CachedFile:
        with self._lock:
            # if two threads opened it, the file of the first one holds the state
            kept = self._open.setdefault(key, file)
            self._open.move_to_end(key)
        self._close_all_but(self._config.max_open_files)
        return kept

    # blocks

    def _read_file(self, content: ContentId, file: CachedFile, offset: int, length: int) -> bytes | None:
        blocks = range(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1)
        data = b""
        try:
            for _ in range(_MAX_LOOKS):
                for block in blocks:
                    if block not in file.proven and not self._prove(content, file, block):
                        return None
                data = file.read(offset, length)
                # bytes that other processes wrote, now or earlier, are verified before they are returned
                if not file.was_changed():
                    break
            else:
                return None
        except OSError as error:
            self._count_error(error)
            data = b""
        if len(data) == length:
            return data
        for block in blocks:
            self._forget(content, file, block)
        return None

    def _read_mixed(
        self, content: ContentId, file: CachedFile | None, offset: int, length: int
    ) -> bytes | None:
        """Put together what is partly in the file and partly in memory."""
        key, parts = content.key(), []
        span = span_of(offset, length, content.size)
        assert span is not None
        for block in range(span.first, span.last + 1):
            start = block * BLOCK_BYTES
            lo, hi = max(offset, start), min(offset + length, start + BLOCK_BYTES)
            kept = self._overflow.get(key, block)
            if kept is not None:
                part: bytes | None = kept[lo - start : hi - start]
            else:
                part = None if file is None else self._read_file(content, file, lo, hi - lo)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _prove(self, content: ContentId, file: CachedFile, block: int) -> bool:
        expected = file.checksums.get(block)
        if expected is None:
            return False
        length = block_length(block, content.size)
        data = file.read(block * BLOCK_BYTES, length)
        if len(data) != length or zlib.crc32(data) != expected:
            log.warning("a damaged block in the cache is fetched again: %s, block %d", content.key(), block)
            self._errors += 1
            self._forget(content, file, block)
            return False
        file.proven.add(block)
        return True

    def _record(self, key: str, file: CachedFile, block: int, data: bytes) -> None:
        """Count a block whose bytes are written as present."""
        checksum = zlib.crc32(data)
        try:
            with self._lock_of(key):
                if self._is_deleted(key, file):
                    self._overflow.put(key, block, data)
                    return
                with self._lock:
                    file.checksums[block] = checksum
                    file.proven.add(block)
                self._index.add(key, block, checksum, len(data))
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
        self._overflow.discard(key, block)

    def _forget(self, content: ContentId, file: CachedFile, block: int) -> None:
        """A block turned out to be damaged or unreadable: it counts as absent from now on."""
        key = content.key()
        try:
            with self._lock_of(key):
                with self._lock:
                    file.proven.discard(block)
                    if file.checksums.pop(block, None) is None or file.dropped:
                        return
                if not self._is_deleted(key, file):
                    self._index.forget(key, block)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)

    # room

    def _note_grown(self, key: str) -> None:
        self._failures.note_success()
        if not self._is_used:
            self._note_use()
        if self.room.is_over:
            self._make_room(keep=key)

    def _make_room(self, keep: str) -> None:
        with self._lock:
            in_use = list(self._open)
        try:
            self.room.make(keep, in_use)
        except sqlite3.Error as error:
            self._count_error(error)

    def _relieve_disk(self, keep: str) -> None:
        """Free space after a failed write; if the index cannot be written, delete files by age."""
        self.room.look()
        self._make_room(keep)
        try:
            for key in self._files.by_age() if self.room.is_disk_full() else ():
                self._remove(key)
                if not self.room.is_disk_full():
                    break
        except OSError as error:
            self._count_error(error)

    def _remove(self, key: str) -> bool:
        try:
            with self._lock_of(key):
                return self._remove_locked(key)
        except OSError as error:
            self._count_error(error)
            return False

    def _remove_locked(self, key: str) -> bool:
        """Delete a content, under its lock; False where the disk fails."""
        with self._lock:
            file = self._open.pop(key, None)
            if file is not None:
                file.dropped = True
            self._closed_files.forget(key)
        try:
            # the file goes also where the index cannot be written, as on a full disk
            try:
                self._index.remove(key)
            finally:
                self._files.delete(key)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)
            return False
        return True

    def _count_error(self, error: Exception) -> None:
        self._errors += 1
        self._is_damaged |= database.is_damage(error)
        # what is still under way after the end finds everything closed; a lock was logged when it was found
        if self._closed or isinstance(error, StillHeld):
            log.debug("the cache in %s: %s", self._files.directory.parent, error)
        else:
            self._failures.note(error)
