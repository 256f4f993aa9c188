"""Keeps read URLs on disk, so that a remount requests none: a SQLite file of mode 0600, written in batches.

URLs are secrets, and each is valid only for the credential that got it: a process that opens the store while
no other process uses it deletes the URLs of other credentials. A URL is kept until `URL_SHARE` of its life is
over. A failure of the disk is counted and treated as a miss. URLs that were not written before a kill are
requested again.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from lightlyfs import database
from lightlyfs.locks import SharedLocks

log = logging.getLogger(__name__)

T = TypeVar("T")

# a clock that runs a little wrong, or a session that ends a little early, must not turn an epoch into one
# of refused URLs
URL_SHARE = 0.8
# 300 MB with the session credentials that make a URL 1.5 KB long, 80 MB without. Only samples whose content
# is not in the cache need one: a larger dataset requests again the URLs that were kept longest
MAX_STORED = 200_000
# as many are lost in a crash; writing them takes some 2 ms
_BATCH = 256
# as many may be asked for again by other processes
_SHARED_BATCH = 8
# while the disk takes none, so many wait; further ones are not kept
_MAX_WAITING = 4096

_SCHEMA = """
DROP TABLE IF EXISTS url;  -- of an earlier form
DROP TABLE IF EXISTS owner;
CREATE TABLE IF NOT EXISTS kept (
    owner TEXT NOT NULL, sample TEXT NOT NULL, url TEXT NOT NULL, since REAL NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (owner, sample));
CREATE INDEX IF NOT EXISTS kept_by_end ON kept (until);
"""


class KeptUrl(NamedTuple):
    """A URL that counts from `since` to `until`, in unix seconds by our clock."""

    url: str
    since: float
    until: float


class UrlStore:
    """The URLs of one dataset as one credential got them; any thread may call, nothing raises.

    `later(job)` runs a job in some other thread; where it raises RuntimeError, being shut down, what
    waits is written by `close`.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        *,
        wall_clock: Callable[[], float],
        later: Callable[[Callable[[], None]], object],
        max_urls: int = MAX_STORED,
        locks: SharedLocks | None = None,
    ) -> None:
        """Open or make the store; what another `fingerprint` got, or is damaged, is not there.

        With `locks` other processes may use it; then one that is damaged is left alone, and nothing kept.
        """
        self._path = path
        self._fingerprint = fingerprint
        self._wall_clock = wall_clock
        self._later = later
        self._max_urls = max_urls
        self._locks = locks or SharedLocks.of_nobody_else()
        self._db_lock = database.Lock()  # taken before the other one
        self._lock = threading.Lock()
        # guarded by _db_lock
        self._db: sqlite3.Connection | None = None
        self._count = 0
        # guarded by _lock: not written yet
        self._waiting: dict[str, KeptUrl] = {}
        self._write_due = False
        self.errors = 0
        with self._db_lock:
            self._open_locked()

    def __len__(self) -> int:
        return self._count + len(self._waiting)

    def holds_more_than(self, count: int) -> bool:
        """Whether there may be URLs here besides the last `count` that were put."""
        return len(self) > count or self._locks.has_company()

    def get(self, sample_id: str) -> KeptUrl | None:
        """Return the URL of a sample while it counts, else None."""
        with self._lock:
            found = self._waiting.get(sample_id)
        if found is None:
            found = self._run(lambda db: self._stored_locked(db, sample_id))
        if found is None or not found.since <= self._wall_clock() < found.until:
            return None
        return found

    def put(self, sample_id: str, url: str, expiry: float) -> None:
        """Keep a URL that was got just now and expires then."""
        now = self._wall_clock()
        # not where one of the two clocks is wrong, nor what SQLite might not take
        if expiry <= now or not url.isascii():
            return
        with self._lock:
            if len(self._waiting) >= _MAX_WAITING:
                return
            self._waiting[sample_id] = KeptUrl(url, now, now + (expiry - now) * URL_SHARE)
            batch = _SHARED_BATCH if self._locks.has_company() else _BATCH
            due = len(self._waiting) >= batch and not self._write_due
            self._write_due |= due
        if due:
            try:
                self._later(self.write)
            except RuntimeError:
                pass

    def discard(self, sample_id: str, url: str) -> None:
        """Forget a URL that was refused, unless another one took its place."""
        with self._lock:
            found = self._waiting.get(sample_id)
            if found is not None and found.url == url:
                del self._waiting[sample_id]
        # even where it was taken from those that wait: it may be on its way to the disk
        self._run(lambda db: self._delete_locked(db, sample_id, url))

    def write(self) -> None:
        """Write what waits; where a cleaner deleted the file, into a new one."""
        self._renew()
        self._run(self._write_locked)
        with self._lock:
            self._write_due = False

    def close(self) -> None:
        """Write what waits and close the file; after it nothing is found or kept."""
        self.write()
        with self._db_lock:
            if self._db is not None:
                self._db.close()
            self._db = None
            self._count = 0

    def _write_locked(self, db: sqlite3.Connection) -> None:
        with self._lock:
            rows = [(sample, *stored) for sample, stored in self._waiting.items()]
        with database.transaction(db):
            db.executemany(
                "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?)",
                [(self._fingerprint, *row) for row in rows],
            )
            self._make_room_locked(db)
        with self._lock:
            for sample, *stored in rows:
                if self._waiting.get(sample) == tuple(stored):
                    del self._waiting[sample]

    def _delete_locked(self, db: sqlite3.Connection, sample_id: str, url: str) -> None:
        key = (self._fingerprint, sample_id, url)
        deleted = db.execute("DELETE FROM kept WHERE owner = ? AND sample = ? AND url = ?", key)
        self._count -= deleted.rowcount

    def _make_room_locked(self, db: sqlite3.Connection) -> None:
        """Delete what counts no longer, and what will soonest where there is too much."""
        db.execute("DELETE FROM kept WHERE until <= ?", (self._wall_clock(),))
        (count,) = db.execute("SELECT count(*) FROM kept").fetchone()
        if count > self._max_urls:
            surplus = count - self._max_urls * 9 // 10
            db.execute(
                "DELETE FROM kept WHERE rowid IN (SELECT rowid FROM kept ORDER BY until, rowid LIMIT ?)",
                (surplus,),
            )
            count -= surplus
        self._count = count

    def _open_locked(self) -> None:
        try:
            with self._locks.keeping_others_out() as alone:
                self._db = database.opened_or_begun(self._path, self._prepared_locked, may_begin=alone)
            self._anchor = database.Anchor.of(self._path)
        except (OSError, sqlite3.Error) as error:
            self._count_error(error)

    def _prepared_locked(self, path: Path) -> sqlite3.Connection:
        db = database.connect(path)
        try:
            db.execute("PRAGMA secure_delete = ON")  # what is deleted is a secret still
            db.executescript(_SCHEMA)
            database.check_tables(db, _SCHEMA)
            with database.transaction(db):
                if self._locks.alone:
                    db.execute("DELETE FROM kept WHERE owner != ?", (self._fingerprint,))
                self._make_room_locked(db)
        except BaseException:
            db.close()
            raise
        return db

    def _run(self, job: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do something with the file; None where that fails, or there is no file."""
        with self._db_lock:
            if self._db is None:
                return None
            try:
                return job(self._db)
            except sqlite3.Error as error:
                self._count_error(error)
                if database.is_damage(error):
                    self._begin_anew_locked()
        return None

    def _renew(self) -> None:
        with self._db_lock:
            if self._db is None or self._anchor.holds():
                return
            self._db.close()
            self._db, self._count = None, 0
            try:
                self._locks.renew()
            except OSError as error:
                self._count_error(error)
                return
            self._open_locked()

    def _begin_anew_locked(self) -> None:
        """Go on with another file, unless another process may use the damaged one."""
        assert self._db is not None
        self._db.close()
        self._db, self._count = None, 0
        try:
            with self._locks.keeping_others_out() as alone:
                if alone:
                    database.put_aside(self._path)
        except OSError as error:
            self._count_error(error)
            return
        if alone:
            self._open_locked()

    def _stored_locked(self, db: sqlite3.Connection, sample_id: str) -> KeptUrl | None:
        query = "SELECT url, since, until FROM kept WHERE owner = ? AND sample = ?"
        row = db.execute(query, (self._fingerprint, sample_id)).fetchone()
        return None if row is None else KeptUrl._make(row)

    def _count_error(self, error: Exception) -> None:
        self.errors += 1
        log.warning("the URLs on disk failed and are bypassed: %s", error)
