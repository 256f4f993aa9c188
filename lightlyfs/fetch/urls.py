"""Signed read URLs: requested once, kept until shortly before they expire, on disk too.

A URL is a secret. It is held in memory and in the `UrlStore`, a SQLite file of mode 0600 that a remount
finds, and passed only to the transport.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote

from cachetools import TLRUCache

from lightlyfs import database
from lightlyfs.locks import SharedLocks

log = logging.getLogger(__name__)
T = TypeVar("T")


# a URL is not handed out in the last moments of its life: a transfer has to begin before it ends
EXPIRY_MARGIN_S = 30.0
# for a URL that does not say when it expires, or whose life is over by our clock although it is new, so
# that one of the two clocks is wrong; a refusal renews it earlier
UNKNOWN_LIFETIME_S = 600.0
# a URL with session credentials has some 1.5 KB
MAX_URLS = 20_000
# after this long the object may have been moved since the URL was issued
_NEW_S = 60.0

# the longest name of a parameter that tells a time: X-Amz-Expires and those like it
_MAX_NAME = 20


def expiry_of(url: str) -> float | None:
    """Return when a signed URL expires, in unix seconds; None where it does not say.

    Knows SigV4 (`X-Amz-Date` + `X-Amz-Expires`), those made like it (`X-Goog-*`, `X-Oss-*`), Azure (`se`)
    and the plain `Expires` of S3 V2, CloudFront and others.
    """
    try:
        expiry = _expiry_in(_short_parameters(url))
    except (KeyError, ValueError, OverflowError):
        return None
    return expiry if expiry is not None and isfinite(expiry) else None


def _short_parameters(url: str) -> dict[str, str]:
    """The parameters of a URL that may tell a time, by lower-case names; the last of each name."""
    found = {}
    for part in url.partition("#")[0].partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if value and len(name) <= _MAX_NAME:
            found[name.lower()] = value
    return found


def _expiry_in(query: dict[str, str]) -> float | None:
    for name, value in query.items():
        if name.startswith("x-") and name.endswith("-date"):
            return _unix_time(unquote(value)) + float(unquote(query[f"{name[:-5]}-expires"]))
    if "se" in query:
        return _unix_time(unquote(query["se"]).partition("Z")[0].partition(".")[0])
    return float(unquote(query["expires"])) if "expires" in query else None


def _unix_time(text: str) -> float:
    """The unix time of a moment in a form of ISO 8601, in UTC where it does not say."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class ReadUrls:
    """The read URLs of samples; ten threads that miss one URL cause one request.

    `resolve(sample_id)` asks the API and may raise; it is called with no lock held. `wall_clock` is in
    unix seconds, as in the URLs. `store` holds them over remounts, and those that memory
    has no room for.
    """

    def __init__(
        self,
        resolve: Callable[[str], str],
        *,
        wall_clock: Callable[[], float],
        store: UrlStore | None = None,
        max_urls: int = MAX_URLS,
    ) -> None:
        self._resolve = resolve
        self._max_urls = max_urls
        self._store = store
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._urls: TLRUCache[str, KeptUrl] = TLRUCache(max_urls, ttu=_last_use, timer=wall_clock)
        self._asking: dict[str, Future[str] | None] = {}  # the futures for others who wait

    def get(self, sample_id: str) -> str:
        """Return a URL that stays valid for some time; raises the API's error."""
        while True:
            found = self.begin(sample_id)
            if isinstance(found, str):
                return found
            if found is None:
                return self._ask(sample_id)
            try:
                return found.result()
            except AskedOnce:
                continue

    def begin(self, sample_id: str) -> str | Future[str] | None:
        """Return a URL, or the future of one that is asked for; None: the caller is to ask, and to `end`.

        The future raises the API's error, or AskedOnce where the request was not tried again.
        """
        with self._lock:
            kept = self._kept_locked(sample_id)
            if kept is not None:
                return kept.url
            if sample_id in self._asking:
                asking = self._asking[sample_id] = self._asking[sample_id] or Future()
                return asking
            self._asking[sample_id] = None
            known = len(self._urls)
        store = self._store
        # in a first epoch each URL in the store is in memory, too
        stored = store.get(sample_id) if store is not None and store.holds_more_than(known) else None
        if stored is None:
            return None
        self._keep(sample_id, stored)
        return stored.url

    def end(self, sample_id: str, url: str | None, error: BaseException | None = None) -> None:
        """Give what was asked for after `begin` to all who wait for it; without a URL, why there is none."""
        if url is not None:
            self._keep(sample_id, self._new(sample_id, url))
            return
        with self._lock:
            waited_for = self._asking.pop(sample_id)
        if waited_for is not None:
            waited_for.set_exception(error or AskedOnce())

    def is_new(self, sample_id: str, url: str) -> bool:
        """Whether this URL was issued a moment ago, so that a new one would name the same object."""
        with self._lock:
            found = self._kept_locked(sample_id)
        return found is None or found.url != url or self._wall_clock() < found.since + _NEW_S

    def renew(self, sample_id: str, refused: str) -> str:
        """Another URL than the refused one, from the API unless another thread has it already."""
        self.discard(sample_id, refused)
        return self.get(sample_id)

    def discard(self, sample_id: str, refused: str) -> None:
        """Forget a refused URL, unless it was replaced by now."""
        with self._lock:
            kept = self._kept_locked(sample_id)
            if kept is not None and kept.url == refused:
                with suppress(KeyError):  # its time may end between the two looks
                    del self._urls[sample_id]
        if self._store is not None:
            self._store.discard(sample_id, refused)

    def _kept_locked(self, sample_id: str) -> KeptUrl | None:
        try:
            # not `get`, which looks at the clock twice and fails where the time ends in between
            return self._urls[sample_id]
        except KeyError:
            return None

    def _ask(self, sample_id: str) -> str:
        try:
            url = self._resolve(sample_id)
        except BaseException as error:
            self.end(sample_id, None, error)
            raise
        self.end(sample_id, url)
        return url

    def _keep(self, sample_id: str, kept: KeptUrl) -> None:
        with self._lock:
            self._urls[sample_id] = kept
            waited_for = self._asking.pop(sample_id)
        if waited_for is not None:
            waited_for.set_result(kept.url)

    def _new(self, sample_id: str, url: str) -> KeptUrl:
        expiry = expiry_of(url)
        if self._store is not None and expiry is not None:
            self._store.put(sample_id, url, expiry)
        now = self._wall_clock()
        return KeptUrl(url, now, _end_of_use(expiry, now))


class AskedOnce(Exception):
    """A request for a URL failed and is not retried; the caller has to ask for the URL itself."""


def _last_use(_sample_id: str, kept: KeptUrl, _now: float) -> float:
    return kept.until


def _end_of_use(expiry: float | None, now: float) -> float:
    if expiry is None or expiry <= now:
        return now + UNKNOWN_LIFETIME_S
    # one that is valid for less than the margin is used to its end: the next one would last no longer
    return expiry - EXPIRY_MARGIN_S if expiry - EXPIRY_MARGIN_S > now else expiry


# a clock that is a little wrong, or a session that ends a little early, must not lead to an epoch of refused
# URLs
URL_SHARE = 0.8
# 300 MB with the session credentials that make a URL 1.5 KB long, 80 MB without. Only samples whose content
# is not in the cache need one: a larger dataset requests again the URLs that were kept longest
MAX_STORED = 200_000
# as many are lost in a crash; writing them takes some 2 ms
_BATCH = 256
# as many may be asked for again by other processes
_SHARED_BATCH = 8
# how many wait while the disk takes none; further ones are not kept
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
        self._locks = locks or SharedLocks.unshared()
        self._db_lock = database.Lock()  # taken before the other one
        self._lock = threading.Lock()
        # guarded by _db_lock
        self._db: sqlite3.Connection | None = None
        self._count = 0
        # guarded by _lock: not written yet
        self._waiting: dict[str, KeptUrl] = {}
        self._write_due = False
        self.errors = 0
        self._failures = database.Failures(
            log, f"the URLs in {path} failed and are bypassed", f"the URLs in {path} are kept again"
        )
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
        self._failures.note_success()
        with self._lock:
            for sample, *stored in rows:
                if self._waiting.get(sample) == tuple(stored):
                    del self._waiting[sample]

    def _delete_locked(self, db: sqlite3.Connection, sample_id: str, url: str) -> None:
        key = (self._fingerprint, sample_id, url)
        deleted = db.execute("DELETE FROM kept WHERE owner = ? AND sample = ? AND url = ?", key)
        self._count -= deleted.rowcount

    def _make_room_locked(self, db: sqlite3.Connection) -> None:
        """Delete expired URLs, and if there are too many, those that expire first."""
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
                    self._recreate_locked()
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

    def _recreate_locked(self) -> None:
        """Continue with a new file, unless another process may use the damaged one."""
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
        self._failures.note(error)
