"""Which blocks the cache holds: a small SQLite table beside them, written in batches.

A record may be lost in a crash (its block is fetched again); it never precedes the bytes it speaks of.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS block (
    key TEXT NOT NULL, block INTEGER NOT NULL, checksum INTEGER NOT NULL, bytes INTEGER NOT NULL,
    PRIMARY KEY (key, block)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS content (key TEXT PRIMARY KEY, used INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS content_by_use ON content (used);
"""
# this many records wait in memory before they are written in one transaction
_BATCH = 64


class BlockIndex:
    """The table in one file; any thread may call, one at a time is served."""

    def __init__(self, path: Path) -> None:
        """Open or make the table; a damaged one is made anew, and its blocks count as absent."""
        self._lock = threading.Lock()
        try:
            self._db = self._connect(path)
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            self._db = self._connect(path)
        # guarded by _lock: records not written yet, and the keys used since
        self._waiting: dict[str, dict[int, tuple[int, int]]] = {}
        self._waiting_count = 0
        self._used: set[str] = set()

    def close(self) -> None:
        """Write what waits and close the file."""
        with self._lock:
            self._write_locked()
            self._db.close()

    def total_bytes(self) -> int:
        """How many bytes all blocks have."""
        with self._lock:
            (total,) = self._db.execute("SELECT coalesce(sum(bytes), 0) FROM block").fetchone()
        return int(total)

    def blocks(self, key: str) -> dict[int, int]:
        """The blocks of a content, with their checksums."""
        with self._lock:
            rows = dict(
                self._db.execute("SELECT block, checksum FROM block WHERE key = ?", (key,)).fetchall()
            )
            rows.update({block: record[0] for block, record in self._waiting.get(key, {}).items()})
        return rows

    def add(self, key: str, block: int, checksum: int, length: int) -> None:
        """Record a block whose bytes are written."""
        with self._lock:
            self._waiting.setdefault(key, {})[block] = (checksum, length)
            self._used.add(key)
            self._waiting_count += 1
            if self._waiting_count >= _BATCH:
                self._write_locked()

    def note_use(self, key: str) -> None:
        """Count a content as used just now."""
        with self._lock:
            self._used.add(key)
            if len(self._used) >= _BATCH:
                self._write_locked()

    def oldest(self, but: Collection[str]) -> Iterator[str]:
        """The contents, least recently used first, without those in `but`."""
        skip = set(but)
        while True:
            with self._lock:
                self._write_locked()
                rows = self._db.execute(
                    "SELECT key FROM content ORDER BY used LIMIT ?", (len(skip) + 100,)
                ).fetchall()
            keys = [key for (key,) in rows if key not in skip]
            if not keys:
                return
            skip.update(keys)
            yield from keys

    def remove(self, key: str) -> int:
        """Forget a content; returns how many bytes its blocks had."""
        with self._lock:
            self._write_locked()
            (freed,) = self._db.execute(
                "SELECT coalesce(sum(bytes), 0) FROM block WHERE key = ?", (key,)
            ).fetchone()
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM block WHERE key = ?", (key,))
            self._db.execute("DELETE FROM content WHERE key = ?", (key,))
            self._db.execute("COMMIT")
        return int(freed)

    def _write_locked(self) -> None:
        if not self._waiting and not self._used:
            return
        now = time.time_ns()
        records = [(key, b, *record) for key, blocks in self._waiting.items() for b, record in blocks.items()]
        self._db.execute("BEGIN")
        self._db.executemany("INSERT OR REPLACE INTO block VALUES (?, ?, ?, ?)", records)
        self._db.executemany(
            "INSERT OR REPLACE INTO content VALUES (?, ?)", [(key, now) for key in self._used]
        )
        self._db.execute("COMMIT")
        self._waiting.clear()
        self._used.clear()
        self._waiting_count = 0

    @staticmethod
    def _connect(path: Path) -> sqlite3.Connection:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")  # checksums find what a power cut left behind
        db.executescript(_SCHEMA)
        return db
