"""Thumbnails on disk, so that each is fetched once: a bounded SQLite table, the oldest dropped first."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path

from lightlyfs import database

log = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS picture (
    number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, png BLOB NOT NULL);
"""
# some 10,000 of 128 or 256 pixels
MAX_BYTES = 256 << 20


class PictureStore:
    """PNGs by key, in one file; any thread may call.

    Several processes may use it: then it may grow to as many times its limit. A failure of the disk is logged
    and answered as "not here".
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int = MAX_BYTES,
        *,
        alone: bool = True,
        make_directory: Callable[[], None] = lambda: None,
    ) -> None:
        """Open or make the file; a damaged one is made anew where nobody else uses it (`alone`).

        Where a cleaner deleted it another one is begun; `make_directory` then sees to its directory.
        """
        self._path = path
        self._make_directory = make_directory
        self._max_bytes = max_bytes
        self._lock = database.Lock()
        with self._lock:
            # guarded by _lock
            self._db = self._open(path, alone=alone)
            self._bytes = 0
            self._look_locked()

    def close(self) -> None:
        """Close the file; what is asked for after that is not here."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def get(self, key: str) -> bytes | None:
        """The picture of this key, or None."""
        with self._lock:
            if self._db is None:
                return None
            try:
                row = self._db.execute("SELECT png FROM picture WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                log.warning("a thumbnail on disk cannot be read: %s", error)
                return None
        return None if row is None else bytes(row[0])

    def put(self, key: str, png: bytes) -> None:
        """Keep a picture, at the cost of older ones."""
        with self._lock:
            if self._db is not None and not self._anchor.holds():
                self._begin_again_locked(self._db)
            if self._db is None:
                return
            try:
                self._db.execute("INSERT OR IGNORE INTO picture (key, png) VALUES (?, ?)", (key, png))
                self._bytes += len(png)
                if self._bytes > self._max_bytes:
                    self._shrink_locked(self._db)
            except sqlite3.Error as error:
                log.warning("a thumbnail cannot be kept on disk: %s", error)

    def _look_locked(self) -> None:
        """See which file it is that is open, and how much is in it."""
        if self._db is not None:
            self._anchor = database.Anchor.of(self._path)
            (self._bytes,) = self._db.execute("SELECT coalesce(sum(length(png)), 0) FROM picture").fetchone()

    def _begin_again_locked(self, deleted: sqlite3.Connection) -> None:
        deleted.close()
        self._db = None
        try:
            self._make_directory()
            self._db = self._open(self._path, alone=False)
            self._look_locked()
        except (OSError, sqlite3.Error) as error:
            log.warning("thumbnails cannot be kept on disk: %s", error)

    def _shrink_locked(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM picture WHERE number <= (SELECT number FROM picture ORDER BY number"
            " LIMIT 1 OFFSET (SELECT count(*) / 2 FROM picture))"
        )
        (self._bytes,) = db.execute("SELECT coalesce(sum(length(png)), 0) FROM picture").fetchone()

    @staticmethod
    def _open(path: Path, *, alone: bool) -> sqlite3.Connection | None:
        """The table, made anew where it is damaged; None where the disk does not take it."""
        try:
            return database.opened_or_begun(path, _prepared, may_begin=alone)
        except (OSError, sqlite3.Error) as error:
            log.warning("thumbnails cannot be kept on disk: %s", error)
            return None


def _prepared(path: Path) -> sqlite3.Connection:
    db = database.connect(path)
    try:
        db.executescript(_SCHEMA)
        database.check_tables(db, _SCHEMA)
    except BaseException:
        db.close()
        raise
    return db
