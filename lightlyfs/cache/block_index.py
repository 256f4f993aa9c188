"""Which blocks the cache holds: a small SQLite table beside them, written in batches.

A crash may lose a record (its block is fetched again), but a record is never written before its bytes. A
counter in the table keeps the order of use, so changes of the clock do not matter. Several processes may use
one table; each sees what the others have written.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from lightlyfs import database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS block (
    key TEXT NOT NULL, block INTEGER NOT NULL, checksum INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (key, block)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (key TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS content_by_use ON content (used);
CREATE TABLE IF NOT EXISTS pin (key TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);
INSERT INTO total SELECT coalesce(sum(bytes), 0) FROM block WHERE NOT EXISTS (SELECT 1 FROM total);
CREATE TRIGGER IF NOT EXISTS block_added AFTER INSERT ON block
    BEGIN UPDATE total SET bytes = bytes + new.bytes; END;
CREATE TRIGGER IF NOT EXISTS block_removed AFTER DELETE ON block
    BEGIN UPDATE total SET bytes = bytes - old.bytes; END;
"""
# this many blocks, or uses of contents, wait in memory for one transaction; a crash may lose the uses, which
# only decide what is evicted first
_BATCH, _USES_BATCH = 64, 1024
# while the disk takes no records, this many are kept for later; the blocks of others count as absent then
_MAX_WAITING = 4096
# pause before the next attempt after a stopped or stuck process was found to hold the index
_LET_ALONE_S = 10.0
# how many absent contents are remembered: each is looked up several times before it is fetched
_MAX_ABSENT = 1024


class StillHeld(sqlite3.OperationalError):
    """Another process kept the index locked a moment ago, and is not waited for again yet."""


class _Batch:
    """Records on their way into the table: blocks by content, and the contents used, the last one last."""

    def __init__(self) -> None:
        self.blocks: dict[str, dict[int, tuple[int, int]]] = {}
        self.used: dict[str, None] = {}
        self.count = self.bytes = 0

    def add(self, key: str, block: int, checksum: int, length: int) -> None:
        """Take a block."""
        blocks = self.blocks.setdefault(key, {})
        if block not in blocks:
            self.count += 1
            self.bytes += length
        blocks[block] = (checksum, length)

    def use(self, key: str) -> None:
        """Take a content as the one used last."""
        self.used.pop(key, None)
        self.used[key] = None

    def drop(self, key: str, block: int | None = None) -> None:
        """Leave out a block of a content, or all of them."""
        blocks = self.blocks.get(key, {})
        for number in list(blocks) if block is None else [block]:
            if number in blocks:
                self.count -= 1
                self.bytes -= blocks.pop(number)[1]
        if block is None:
            self.used.pop(key, None)

    def absorb(self, later: _Batch) -> None:
        """Take what came after this."""
        for key, blocks in later.blocks.items():
            for block, record in blocks.items():
                self.add(key, block, *record)
        for key in later.used:
            self.use(key)

    @property
    def is_full(self) -> bool:
        """Whether this is worth a transaction."""
        return self.count >= _BATCH or len(self.used) >= _USES_BATCH

    def __bool__(self) -> bool:
        return bool(self.count or self.used)


class BlockIndex:
    """The table in one file; any thread may call. A lookup never waits for a writer.

    Methods raise sqlite3.Error where the disk fails; what was to be recorded then waits for the next call.
    """

    def __init__(self, path: Path, *, alone: bool = True) -> None:
        """Open or create the table; a damaged one is replaced, and its blocks count as absent.

        Where other processes may have it open (not `alone`) sqlite3.DatabaseError is raised instead.
        """
        self._write_lock = database.Lock()  # guards _db; taken before the other one
        with self._write_lock:
            self._db, self.was_closed = database.opened_or_begun(
                path, partial(self._open, alone=alone), may_begin=alone
            )
            self._anchor = database.Anchor.of(path)
            # guarded by _write_lock: until then another process that writes is not waited for again
            self._busy_until = float("-inf")
            self._written_bytes = self._total_locked()
        self._lock = database.Lock()
        # guarded by _lock
        self._reader = database.connect(path)
        self._waiting = _Batch()
        self._writing = _Batch()
        # guarded by _lock: contents without any block, the latest last, as of some version of the table
        self._absent: dict[str, None] = {}
        self._absent_as_of = -1

    def close(self) -> None:
        """Write what waits and close the file."""
        with self._write_lock:
            try:
                self._write_locked()
                with database.transaction(self._db):
                    users = database.user_version(self._db)
                    self._db.execute(f"PRAGMA user_version = {max(0, users - 1)}")
            finally:
                with self._lock:
                    self._reader.close()
                self._db.close()

    def is_deleted(self) -> bool:
        """Whether a cleaner deleted the file; what is recorded then is lost."""
        return not self._anchor.holds()

    def put_aside(self) -> None:
        """Move the file, which is damaged, out of the way; `begin_again` comes next. Raises OSError."""
        database.put_aside(self._anchor.path)

    def begin_again(self) -> None:
        """Go on with the file that is at the path now, made where there is none; raises as `__init__`.

        What was recorded in the deleted one counts as absent.
        """
        path = self._anchor.path
        with self._write_lock:
            # it counts as not closed: the next process that has the table to itself looks for lost files
            fresh, _ = self._open(path, alone=False, users=2)
            reader = database.connect(path)
            with self._lock:
                old = self._db, self._reader
                self._db, self._reader, self._anchor = fresh, reader, database.Anchor.of(path)
                self._waiting, self._writing = _Batch(), _Batch()
                self._absent, self._absent_as_of = {}, -1
            self._written_bytes = self._total_locked()
        for db in old:
            db.close()

    @property
    def bytes(self) -> int:
        """How many bytes all blocks have as of the last write; what was recorded again since counts twice."""
        return self._written_bytes + self._writing.bytes + self._waiting.bytes

    def write(self) -> None:
        """Write what waits, and see how much other processes have written."""
        with self._write_lock:
            self._write_locked()
            self._written_bytes = self._total_locked()

    def keys(self) -> set[str]:
        """Every content of which there are blocks."""
        with self._write_lock:
            self._write_locked()
            return {key for (key,) in self._db.execute("SELECT DISTINCT key FROM block")}

    def blocks(self, key: str) -> dict[int, int]:
        """Return the blocks of a content, with their checksums."""
        with self._lock:
            if key in self._absent and not self._moved_locked():
                return {}
            query = "SELECT block, checksum FROM block WHERE key = ?"
            rows = dict(self._reader.execute(query, (key,)).fetchall())
            for batch in (self._writing, self._waiting):
                rows.update({block: record[0] for block, record in batch.blocks.get(key, {}).items()})
            if not rows:
                self._absent[key] = None
                if len(self._absent) > _MAX_ABSENT:
                    del self._absent[next(iter(self._absent))]
        return rows

    def add(self, key: str, block: int, checksum: int, length: int) -> None:
        """Record a block whose bytes are written."""
        with self._lock:
            self._absent.pop(key, None)
            self._waiting.add(key, block, checksum, length)
            self._waiting.use(key)
            due = self._waiting.is_full
        if due:
            self._write_if_nobody_does()

    def forget(self, key: str, block: int) -> None:
        """Forget one block."""
        with self._write_lock:
            with self._lock:
                self._waiting.drop(key, block)
            with self._transaction_locked():
                self._db.execute("DELETE FROM block WHERE key = ? AND block = ?", (key, block))
            self._written_bytes = self._total_locked()

    def note_use(self, keys: Collection[str]) -> None:
        """Count contents as used just now, the last one last."""
        with self._lock:
            for key in keys:
                self._waiting.use(key)
            due = self._waiting.is_full
        if due:
            self._write_if_nobody_does()

    def oldest(self, but: Collection[str]) -> list[str]:
        """Some of the contents that were not used for longest, without pinned ones and those in `but`."""
        with self._write_lock:
            self._write_locked()
            query = "SELECT key FROM content WHERE key NOT IN (SELECT key FROM pin) ORDER BY used LIMIT ?"
            rows = self._db.execute(query, (len(but) + 100,))
            return [key for (key,) in rows if key not in but]

    def remove(self, key: str) -> None:
        """Forget a content."""
        with self._write_lock:
            with self._lock:
                self._waiting.drop(key)
            with self._transaction_locked():
                self._db.execute("DELETE FROM block WHERE key = ?", (key,))
                self._db.execute("DELETE FROM content WHERE key = ?", (key,))
                self._db.execute("DELETE FROM pin WHERE key = ?", (key,))
            self._written_bytes = self._total_locked()

    def pinned(self) -> set[str]:
        """Return the contents that are kept whatever the budget, as of the last write of any process."""
        with self._write_lock:
            return {key for (key,) in self._db.execute("SELECT key FROM pin")}

    def is_pinned(self, key: str) -> bool:
        """Return whether a content is kept whatever the budget."""
        with self._write_lock:
            return self._db.execute("SELECT 1 FROM pin WHERE key = ?", (key,)).fetchone() is not None

    def set_pinned(self, keys: Collection[str], *, pinned: bool) -> None:
        """Keep contents whatever the budget, or no longer."""
        query = "INSERT OR IGNORE INTO pin VALUES (?)" if pinned else "DELETE FROM pin WHERE key = ?"
        with self._write_lock, self._transaction_locked():
            self._db.executemany(query, [(key,) for key in keys])

    def _moved_locked(self) -> bool:
        """Whether something was written since contents were found to be absent; if so they are forgotten."""
        (version,) = self._reader.execute("PRAGMA data_version").fetchone()
        if version == self._absent_as_of:
            return False
        self._absent.clear()
        self._absent_as_of = version
        return True

    def _total_locked(self) -> int:
        return int(self._db.execute("SELECT bytes FROM total").fetchone()[0])

    def _write_if_nobody_does(self) -> None:
        """Write what waits, without waiting: the caller may be the network loop."""
        if self._write_lock.acquire(blocking=False):
            try:
                self._write_locked(waits=False)
            except sqlite3.OperationalError as error:
                if not database.is_busy(error):
                    raise
            finally:
                self._write_lock.release()

    def _write_locked(self, *, waits: bool = True) -> None:
        with self._lock:
            if not self._waiting:
                return
            batch, self._waiting = self._waiting, _Batch()
            self._writing = batch
        try:
            total = self._insert_locked(batch, waits=waits)
        except sqlite3.Error:
            with self._lock:
                if max(batch.count, len(batch.used)) <= _MAX_WAITING:
                    batch.absorb(self._waiting)
                    self._waiting = batch
                self._writing = _Batch()
            raise
        with self._lock:
            self._written_bytes = total
            self._writing = _Batch()

    def _insert_locked(self, batch: _Batch, *, waits: bool) -> int:
        """Write records; how many bytes all blocks have now."""
        with self._transaction_locked(waits=waits):
            records = (
                (key, b, *record) for key, blocks in batch.blocks.items() for b, record in blocks.items()
            )
            self._db.executemany("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?)", records)
            (tick,) = self._db.execute("SELECT coalesce(max(used), 0) FROM content").fetchone()
            used = [(key, number) for number, key in enumerate(batch.used, tick + 1)]
            self._db.executemany("INSERT OR REPLACE INTO content VALUES (?, ?)", used)
            return self._total_locked()

    @contextmanager
    def _transaction_locked(self, *, waits: bool = True) -> Iterator[None]:
        """A transaction; raises at once where another process did not end its own a moment ago."""
        if waits and time.monotonic() < self._busy_until:
            raise StillHeld("another process does not end its transaction")
        try:
            with database.transaction(self._db, waits=waits):
                yield
        except sqlite3.OperationalError as error:
            if waits and database.is_busy(error):
                self._busy_until = time.monotonic() + _LET_ALONE_S
            raise

    @staticmethod
    def _open(path: Path, *, alone: bool, users: int = 1) -> tuple[sqlite3.Connection, bool]:
        """The open table, and whether its last users closed it; raises DatabaseError where it is damaged.

        `user_version` counts the processes that opened and did not close it.
        """
        db = database.connect(path)  # checksums find what a power cut left behind
        try:
            db.execute("PRAGMA recursive_triggers = ON")  # what replaces a block is an end and a beginning
            with database.transaction(db):
                others = database.user_version(db)
                db.execute(f"PRAGMA user_version = {users if alone else others + users}")
            (is_old,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if not alone and is_old:
                db.execute("CREATE TABLE IF NOT EXISTS pin (key TEXT PRIMARY KEY) WITHOUT ROWID")
                return db, True
            if others and alone and db.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise database.Damaged("the index is damaged")
            db.executescript(_SCHEMA)
            database.check_tables(db, _SCHEMA)
        except BaseException:
            db.close()
            raise
        return db, not alone or (bool(is_old) and others == 0)
