"""What storage reported of samples, written at once where other processes may wait for it.

A catalogue that another process keeps locked is let alone for a while: what was not published is written
later in any case (see `reported`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence

from lightlyfs import database
from lightlyfs.catalog import totals
from lightlyfs.catalog.entries import Facts

# how long another process is waited for, and how long not again after that
MOMENT_S = 0.5
_LET_ALONE_S = 10.0

_RECORD = """
UPDATE sample SET size = ?1, etag = ?2, verified = ?6
WHERE ino = ?3 AND (?4 IS NULL OR mtime = ?4 AND hint IS ?5)
"""
Values = tuple[int, str, int, int | None, int | None, bool]


def record_values(ino: int, facts: Facts) -> Values:
    """What `record` takes, to keep facts of a sample that did not change since."""
    mtime, hint = facts.of or (None, None)
    return facts.size, facts.etag, ino, mtime, hint, facts.certain


def record(db: sqlite3.Connection, rows: Sequence[Values]) -> None:
    """Keep what storage reported, within a transaction."""
    inos = [row[2] for row in rows]
    before = totals.sums_of(db, inos)
    db.executemany(_RECORD, rows)
    totals.move(db, totals.sums_of(db, inos) - before)


class Publisher:
    """Writes to one catalogue, over a connection that `connect` makes on first use; any thread may call."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._lock = database.Lock()
        # guarded by _lock
        self._db: sqlite3.Connection | None = None
        self._let_alone_until = float("-inf")

    def publish(self, rows: Sequence[Values]) -> None:
        """Write what storage reported of samples, unless that takes more than a moment."""
        with self._lock:
            if time.monotonic() < self._let_alone_until:
                return
            if self._db is None:
                self._db = self._connect()
                # somebody waits: checkpoints are left to the others
                self._db.execute("PRAGMA wal_autocheckpoint = 0")
            try:
                with database.transaction(self._db):
                    record(self._db, rows)
            except sqlite3.OperationalError:
                # a listing that is written down, or a process that is stopped within its transaction
                self._let_alone_until = time.monotonic() + _LET_ALONE_S

    def renew(self) -> None:
        """Use another connection from now on: the catalogue is another file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def close(self) -> None:
        """Close the connection; what comes after that is not published."""
        with self._lock:
            self._let_alone_until = float("inf")
            if self._db is not None:
                self._db.close()
                self._db = None
