"""The server's small picture of a sample, as PNG, kept on disk; never made by fetching the image itself."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

from lightlyfs import database
from lightlyfs.api.contract import Request, Transport, whole_number
from lightlyfs.api.retry import raise_for_status
from lightlyfs.errors import Cancelled, MalformedAnswer, NotFound, TooLarge

log = logging.getLogger(__name__)

# one of 128 pixels has some 10 KB, one of 256 pixels up to 150; a server may give the image instead
MAX_THUMBNAIL_BYTES = 256 << 10
_NONE = "the server has the image itself in place of a thumbnail"
_SIDE_PIXELS = 256
# a picture of one pixel stands for none: an overwrite by what is no image cannot delete the old one
_BLANK_BYTES = 40


class Thumbnails:
    """Fetches thumbnails, and keeps them.

    `resolve(sample_id)` asks the API for the read URL of type thumbnail. `to_png(picture, side)` decodes one
    in a process of few rights; it raises MalformedAnswer. `original(sample_id)` gives the bytes of an image
    that is cached already, or None.
    """

    def __init__(
        self,
        resolve: Callable[[str], str],
        transport: Transport,
        executor: Executor,
        *,
        to_png: Callable[[bytes, int], bytes],
        original: Callable[[str], bytes | None],
        store: PictureStore,
    ) -> None:
        self._resolve = resolve
        self._transport = transport
        self._executor = executor
        self._to_png = to_png
        self._original = original
        self._store = store

    def png(self, sample_id: str, version: str = "") -> Future[bytes]:
        """Return the thumbnail, at most 256 pixels wide and high; NotFound where there is none.

        `version` moves when the sample does; the picture of another one does not count.
        """
        try:
            return self._executor.submit(self.get, sample_id, version)
        except RuntimeError:
            refused: Future[bytes] = Future()
            refused.set_exception(Cancelled("the mount is being taken down", request_sent=False))
            return refused

    def get(self, sample_id: str, version: str) -> bytes:
        """Return the thumbnail as `png` does, in the calling thread."""
        key = f"{sample_id}.{version}"
        kept = self._store.get(key)
        if kept is not None:
            return kept
        try:
            fetched = self._fetch(sample_id)
            if len(fetched) <= _BLANK_BYTES:
                raise NotFound("the image has no thumbnail any more")
            png = self._to_png(fetched, _SIDE_PIXELS)
        except (NotFound, MalformedAnswer):
            original = self._original(sample_id)
            if original is None:
                raise
            png = self._to_png(original, _SIDE_PIXELS)
        self._store.put(key, png)
        return png

    def _fetch(self, sample_id: str) -> bytes:
        # a range, so that little of an image comes where the server has one in place of a thumbnail
        headers = {"Range": f"bytes=0-{MAX_THUMBNAIL_BYTES - 1}", "Accept-Encoding": "identity"}
        url = self._resolve(sample_id)
        try:
            response = self._transport.send(
                Request("GET", url, headers=headers, max_body_bytes=MAX_THUMBNAIL_BYTES)
            )
        except TooLarge as error:
            raise NotFound(_NONE) from error
        total = whole_number(response.headers.get("content-range", "").rpartition("/")[2])
        if total is not None and total > MAX_THUMBNAIL_BYTES:
            raise NotFound(_NONE)
        if response.status in (400, 401, 403):
            # a fresh URL that is refused names an object that is not there, or not for us
            raise NotFound("storage refuses the thumbnail", status=response.status)
        raise_for_status(response, what="the read of a thumbnail from storage", storage=True)
        return response.body


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
        """Open or create the file; a damaged one is replaced where no other process uses it (`alone`).

        If a cleaner deleted the file, a new one is created; `make_directory` then creates its directory.
        """
        self._path = path
        self._make_directory = make_directory
        self._max_bytes = max_bytes
        self._failures = database.Failures(
            log, "thumbnails cannot be kept on disk", "thumbnails are kept on disk again"
        )
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
        """Return the picture of this key, or None."""
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
                self._failures.note_success()
            except sqlite3.Error as error:
                self._failures.note(error)

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
        """Return the table, replaced if it is damaged; None if the disk does not accept it."""
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
