"""The durable record of local files and of pending uploads; read again after a crash.

A write is on the disk when it returns, unless the method says otherwise. Each promise to a program is
recorded here before it is made: that a create is about to be sent, and under which mark; which id was
returned; that the server has the file. Names and paths are stored as bytes, because a path need not be UTF-8.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lightlyfs import database
from lightlyfs.errors import StartError
from lightlyfs.staging.record import (
    FIELDS,
    Leftover,
    LocalDirectory,
    Planned,
    Record,
    Renamed,
    SetTime,
    State,
)

log = logging.getLogger(__name__)

SCHEMA_VERSION = 4
# no later version will reach this number: a greater one is damage
_LAST_VERSION = 1_000
_TEXTS = ("path", "name")
_FLAGS = ("create_sent", "replaces", "thumbnail_done")
# what decoding a row that cannot be raises; msgspec's own error is a ValueError in its later versions only
_NO_ROW = (msgspec.ValidationError, ValueError, TypeError, AttributeError)
# a journal is its mount's own; only `uploads` commands look in meanwhile
_BUSY_S = 60.0
# the index of a log has 32 KiB to begin with
_ROOM_TO_READ_BYTES = 64 << 10
_SCHEMA = f"""
CREATE TABLE file ({", ".join(FIELDS)}, crc, PRIMARY KEY (key)) WITHOUT ROWID;
CREATE TABLE directory (
    path BLOB PRIMARY KEY, mode INTEGER NOT NULL, atime_ns INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE leftover (sample_id TEXT PRIMARY KEY, was BLOB NOT NULL, name BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS time (
    sample_id TEXT PRIMARY KEY, mtime INTEGER NOT NULL, version TEXT NOT NULL,
    ctime_ns INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rename (
    sample_id TEXT PRIMARY KEY, old TEXT NOT NULL, new TEXT NOT NULL) WITHOUT ROWID;
"""
_RENAMED = """
CREATE TABLE IF NOT EXISTS renamed (
    sample_id TEXT PRIMARY KEY, old BLOB NOT NULL, new BLOB NOT NULL, renamed_s INTEGER NOT NULL
) WITHOUT ROWID
"""
# the checksum of a row tells damage that leaves the tables whole
_COLUMNS = (*FIELDS, "crc")
_PUT = f"INSERT OR REPLACE INTO file ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
# the other tables by name, the first column being the key, with the types that their values have
_TABLES: dict[str, dict[str, type]] = {
    "directory": {"path": bytes, "mode": int, "atime_ns": int, "mtime_ns": int, "ctime_ns": int},
    "leftover": {"sample_id": str, "was": bytes, "name": bytes},
    "time": {"sample_id": str, "mtime": int, "version": str, "ctime_ns": int},
    "rename": {"sample_id": str, "old": bytes, "new": bytes},
    "renamed": {"sample_id": str, "old": bytes, "new": bytes, "renamed_s": int},
}


T = TypeVar("T")
# one or more changes to the database within a transaction
Change = Callable[[sqlite3.Connection], object]


class _Write:
    """One change that a thread waits for."""

    def __init__(self, durable: bool, change: Change, *, one: bool) -> None:
        self.durable = durable
        self.change = change
        self.one = one  # statement, which is a transaction by itself
        self.done = False
        self.error: Exception | None = None


_FORGET_RENAME = "DELETE FROM rename WHERE sample_id = ?"


class Journal:
    """The record in one SQLite file; any thread may call.

    What several threads write at the same moment goes into one transaction: a durable commit waits for the
    disk, and the next one then takes along all that came meanwhile.

    Raises StartError for a file that cannot be read: it says what is owed, so it is never deleted.
    """

    def __init__(
        self, path: Path, on_deleted: Callable[[], None] = lambda: None, *, rescue: bool = False
    ) -> None:
        """`on_deleted` is called before a write where a cleaner deleted the file; it may call `move_to`.

        To `rescue`, which only the owner of the file may, a damaged one is put aside, and what can be read
        of it goes into another.
        """
        self._path = path
        self._on_deleted = on_deleted
        self._lock = database.Lock()
        self._waiting_lock = threading.Lock()
        # guarded by _waiting_lock, which is taken for a moment only
        self._waiting: list[_Write] = []
        try:
            with self._lock:
                self._db = self._opened(path, rescue=rescue)
                self._anchor = database.Anchor.of(path)
        except (sqlite3.Error, OSError) as error:
            raise self._unreadable(error) from error
        # guarded by _lock
        self._durable = True  # what `synchronous` is set to
        self._closed = False

    def close(self) -> None:
        """Close the file; writes after it raise OSError."""
        with self._lock:
            self._closed = True
            self._db.close()

    def is_deleted(self) -> bool:
        """Return whether a cleaner deleted the file: what is written then is lost with the mount."""
        return not self._anchor.holds()

    def move_to(self, path: Path) -> None:
        """Write all of it into a new file, and use that from now on; OSError where the disk refuses."""
        try:
            with self._lock:
                fresh = database.connect(path, timeout_s=_BUSY_S, synchronous="FULL")
                try:
                    self._db.backup(fresh)
                    anchor = database.Anchor.of(path)
                except BaseException:
                    fresh.close()
                    raise
                deleted, self._db, self._path = self._db, fresh, path
                self._anchor, self._durable = anchor, True
                deleted.close()
        except sqlite3.Error as error:
            raise database.os_error(error, "the journal") from error

    def _opened(self, path: Path, *, rescue: bool) -> sqlite3.Connection:
        try:
            return _checked(path)
        except sqlite3.DatabaseError as error:
            if not (rescue and database.is_damage(error)):
                raise
            damaged = database.put_aside(path, keep=True)
            db = _checked(path)
            count = _rescue(damaged, db)
            log.error(
                "the journal of what is owed was damaged (%s): %d files were found in it; it is kept as %s, "
                "and staged bytes of which it says nothing are shown as recovered-*",
                error,
                count,
                damaged,
            )
            return db

    # files

    def records(self) -> list[Record]:
        """Return every local file, in no order."""
        try:
            with self._lock:
                return _records(self._db)
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def put(self, *records: Record, forget: Iterable[str] = (), durable: bool = True) -> None:
        """Add or replace records, and forget the files of these keys, in one step.

        Not durable, a crash of the machine (not of the mount) may lose it: for steps that can be taken
        again. The order is kept: a later durable write makes it durable too.
        """
        rows, keys = [_row(record) for record in records], [(key,) for key in forget]
        if len(rows) == 1 and not keys:
            self._write(durable, lambda db: db.execute(_PUT, rows[0]), one=True)
            return

        def change(db: sqlite3.Connection) -> None:
            db.executemany(_PUT, rows)
            db.executemany("DELETE FROM file WHERE key = ?", keys)

        self._write(durable, change)

    def remove(self, key: str) -> None:
        """Forget a file; after a crash of the machine it may be back, and then nothing is owed."""
        self.put(forget=(key,), durable=False)

    # directories that were made on the mount

    def directories(self) -> list[LocalDirectory]:
        """Return every directory that was made here."""
        columns = "path, mode, atime_ns, mtime_ns, ctime_ns"
        return self._rows(f"SELECT {columns} FROM directory", lambda row: _typed(row, LocalDirectory, 0))

    def put_directories(self, *directories: LocalDirectory, forget: Iterable[str] = ()) -> None:
        """Remember directories, and forget those at other paths; a crash of the machine may lose it."""
        rows = [(_bytes(made.path), *made[1:]) for made in directories]
        paths = [(_bytes(path),) for path in forget]

        def change(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM directory WHERE path = ?", paths)
            db.executemany("INSERT OR REPLACE INTO directory VALUES (?, ?, ?, ?, ?)", rows)

        self._write(False, change)

    # samples that were renamed out of the way

    def leftovers(self) -> list[Leftover]:
        """Return the samples that cannot be deleted and were renamed out of the way."""
        query = "SELECT sample_id, was, name FROM leftover"
        return self._rows(query, lambda row: _typed(row, Leftover, 1, 2))

    def put_leftover(self, leftover: Leftover) -> None:
        """Remember a sample that was renamed out of the way."""
        row = (leftover.sample_id, _bytes(leftover.was), _bytes(leftover.name))
        self._write(True, lambda db: db.execute("INSERT OR REPLACE INTO leftover VALUES (?, ?, ?)", row))

    # times that were set on samples

    def times(self) -> dict[str, SetTime]:
        """Return the times that were set, by sample id."""
        query = "SELECT sample_id, mtime, version, ctime_ns FROM time"
        return dict(self._rows(query, lambda row: (_typed(row[:1], tuple[str])[0], _typed(row[1:], SetTime))))

    def put_time(self, sample_id: str, time: SetTime) -> None:
        """Remember a time for as long as the sample has the version it was set on."""
        row = (sample_id, *time)
        insert = "INSERT OR REPLACE INTO time VALUES (?, ?, ?, ?)"
        self._write(False, lambda db: db.execute(insert, row), one=True)

    def remove_times(self, sample_ids: Iterable[str]) -> None:
        """Forget the times of samples that have another version by now."""
        rows = [(one,) for one in sample_ids]
        self._write(False, lambda db: db.executemany("DELETE FROM time WHERE sample_id = ?", rows))

    # renames of directories, one by one

    def renames(self) -> list[Planned]:
        """Return renames that may be half done."""
        query = "SELECT old, new, sample_id FROM rename"
        return self._rows(query, lambda row: _typed(row, Planned, 0, 1))

    def put_renames(self, renames: Iterable[Planned], forget: Iterable[str] = ()) -> None:
        """Remember what is about to be renamed, and forget other renames with it, by their keys."""
        rows = [(_bytes(old), _bytes(new), key) for old, new, key in renames]
        forgotten = [(key,) for key in forget]
        insert = "INSERT OR REPLACE INTO rename (old, new, sample_id) VALUES (?, ?, ?)"

        def change(db: sqlite3.Connection) -> None:
            db.executemany(_FORGET_RENAME, forgotten)
            db.executemany(insert, rows)

        self._write(True, change)

    def remove_renames(self, keys: Iterable[str]) -> None:
        """Forget planned renames that are done, or undone."""
        rows = [(key,) for key in keys]
        self._write(False, lambda db: db.executemany(_FORGET_RENAME, rows))

    # renames that no listing showed yet

    def renamed(self) -> list[Renamed]:
        """Return the samples whose new names no listing showed yet."""
        query = "SELECT sample_id, old, new, renamed_s FROM renamed"
        return self._rows(query, lambda row: _typed(row, Renamed, 1, 2))

    def put_renamed(self, *renamed: Renamed) -> None:
        """Remember new names; a crash of the machine may lose them, and then the next listing shows them."""
        rows = [(one.sample_id, _bytes(one.old), _bytes(one.new), one.renamed_s) for one in renamed]
        insert = "INSERT OR REPLACE INTO renamed VALUES (?, ?, ?, ?)"
        self._write(False, lambda db: db.executemany(insert, rows))

    def remove_renamed(self, renamed: Iterable[Renamed]) -> None:
        """Forget new names, but not those of samples that were renamed again since."""
        rows = [(one.sample_id, _bytes(one.new)) for one in renamed]
        delete = "DELETE FROM renamed WHERE sample_id = ? AND new = ?"
        self._write(False, lambda db: db.executemany(delete, rows))

    def _rows(self, query: str, decode: Callable[[tuple[Any, ...]], T]) -> list[T]:
        """Return the rows of a query; StartError where one of them cannot be, for it may be owed."""
        try:
            with self._lock:
                rows = self._db.execute(query).fetchall()
            return [decode(row) for row in rows]
        except (sqlite3.Error, *_NO_ROW) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StartError:
        if isinstance(error, sqlite3.OperationalError) and _is_full(self._path.parent):
            # SQLite needs room to read, too; nothing is damaged
            return StartError(f"{self._path} cannot be read ({error}), for its disk is full; free some of it")
        return StartError(
            f"{self._path} cannot be read ({error}); it says what is owed to the server. "
            f"The files themselves are in {self._path.parent / 'files'}; move both away to start without them"
        )

    def _write(self, durable: bool, change: Change, *, one: bool = False) -> None:
        """Make a change, as a whole or not at all; OSError where the disk does not take it.

        A change of `one` statement costs half of what a transaction does.
        """
        if not self._anchor.holds():
            self._on_deleted()
        mine = _Write(durable, change, one=one)
        with self._waiting_lock:
            self._waiting.append(mine)
        with self._lock:
            if not mine.done:
                with self._waiting_lock:
                    batch, self._waiting = self._waiting, []
                self._commit(batch)
        if isinstance(mine.error, sqlite3.Error):
            raise database.os_error(mine.error, "the journal") from mine.error
        if mine.error is not None:
            raise mine.error

    def _commit(self, batch: list[_Write]) -> None:
        """Make the changes of a batch; where that fails each one by itself, for it may be one's own fault."""
        try:
            self._commit_together(batch)
        except Exception as error:
            for write in batch:
                write.error = error
                if len(batch) > 1:
                    self._commit([write])
        for write in batch:
            write.done = True

    def _commit_together(self, batch: list[_Write]) -> None:
        if self._closed:
            raise OSError(errno.EIO, "the journal is closed")
        durable = any(write.durable for write in batch)
        if durable != self._durable:
            # in WAL mode NORMAL leaves the sync to the next durable commit; setting it is no I/O
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        if len(batch) == 1 and batch[0].one:
            batch[0].change(self._db)
        else:
            with database.transaction(self._db):
                for write in batch:
                    write.change(self._db)
        for write in batch:
            write.error = None


def _is_full(directory: Path) -> bool:
    """Whether a disk lacks the room for the files that SQLite keeps beside a database while it reads."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _ROOM_TO_READ_BYTES


def _checked(path: Path) -> sqlite3.Connection:
    """Return the open database, of this version; raises sqlite3.DatabaseError where it is damaged."""
    database.check_header(path)
    db = database.connect(path, timeout_s=_BUSY_S, synchronous="FULL")
    try:
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise database.Damaged(verdict)
        version = database.user_version(db)
        if not 0 <= version <= _LAST_VERSION:
            raise database.Damaged("its version is none of lightlyfs")
        if version > SCHEMA_VERSION:
            raise sqlite3.DatabaseError("a later version of lightlyfs made it")
        if version < SCHEMA_VERSION:
            _upgrade(db, version)
        wanted = {"file": set(_COLUMNS)} | {table: set(columns) for table, columns in _TABLES.items()}
        if any(columns - set(_columns(db, table)) for table, columns in wanted.items()):
            raise database.Damaged("it has other tables than a journal")
        _records(db)
    except BaseException:
        db.close()
        raise
    return db


def _upgrade(db: sqlite3.Connection, version: int) -> None:
    """Upgrade the tables from a version; raises Damaged if they are not those of that version."""
    try:
        with database.transaction(db):
            _migrate(db, version)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
            raise
        raise database.Damaged(f"it has other tables than a journal of version {version}") from error


def _records(db: sqlite3.Connection) -> list[Record]:
    rows = db.execute(f"SELECT {', '.join(_COLUMNS)} FROM file").fetchall()
    records = [_record(row) for row in rows if _is_sound(row)]
    if len(records) < len(rows):
        raise database.Damaged(f"{len(rows) - len(records)} records are not as they were written")
    return records


def _is_sound(row: tuple[Any, ...]) -> bool:
    """Return whether a row is as it was written; one of an earlier version has no checksum."""
    *values, checksum = row
    if checksum is not None:
        return bool(checksum == _checksum(values))
    try:
        _record(row)
    except _NO_ROW:
        return False
    return True


def _checksum(values: list[Any]) -> int:
    return zlib.crc32(repr(values).encode("utf-8", "surrogatepass"))


def _rescue(damaged: Path, db: sqlite3.Connection) -> int:
    """Take over what can be read of a damaged journal; how many files that are."""
    sound = [row for row in database.readable_rows(damaged, "file", _COLUMNS) if _is_sound(row)]
    with database.transaction(db):
        db.executemany(_PUT, sound)
        for table, columns in _TABLES.items():
            found = database.readable_rows(damaged, table, tuple(columns))
            typed = [row for row in found if list(map(type, row)) == list(columns.values())]
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            db.executemany(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", typed)
    return len(sound)


def _migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring the tables to this version, with all that is in them."""
    if version == 0:
        _make_tables(db)
    if "ctime_ns" not in _columns(db, "time"):
        db.execute("ALTER TABLE time ADD COLUMN ctime_ns INTEGER NOT NULL DEFAULT 0")
    if "crc" not in _columns(db, "file"):
        db.execute("ALTER TABLE file ADD COLUMN checksum INTEGER NOT NULL DEFAULT -1")
        db.execute("ALTER TABLE file ADD COLUMN crc")
    db.execute(_RENAMED)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _columns(db: sqlite3.Connection, table: str) -> list[str]:
    return [str(row[1]) for row in db.execute(f"PRAGMA table_info({table})")]


def _make_tables(db: sqlite3.Connection) -> None:
    """Make the tables; records of journals without a version are taken over with what they mean."""
    present = _columns(db, "file")
    old = db.execute("SELECT * FROM file").fetchall() if present else []
    db.execute("DROP TABLE IF EXISTS file")
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    for row in old:
        values: dict[str, Any] = dict(zip(present, row, strict=True))
        seconds = int(values.pop("mtime", 0))
        values |= dict.fromkeys(("atime_ns", "mtime_ns", "ctime_ns"), seconds * 1000000000)
        # it was a flag; which error it stood for was not kept
        values["broken"] = errno.EIO if values.get("broken") else 0
        known = {name: values[name] for name in FIELDS if name in values}
        db.execute(_PUT, _row(Record(**known | {"state": State(values["state"])})))


def _row(record: Record) -> list[Any]:
    """Return the values of a record as SQLite gives them back, and their checksum."""
    values = {**vars(record), "state": str(record.state)}
    for name in _TEXTS:
        values[name] = _bytes(values[name])
    for name in _FLAGS:
        values[name] = int(values[name])
    plain = [values[name] for name in FIELDS]
    return [*plain, _checksum(plain)]


def _record(row: tuple[Any, ...]) -> Record:
    values = dict(zip(FIELDS, row, strict=False))
    for name in _TEXTS:
        values[name] = _text(values[name])
    for name in _FLAGS:
        values[name] = bool(values[name])
    return msgspec.convert(values, Record)


def _typed(row: tuple[Any, ...], kind: type[T], *texts: int) -> T:
    """Return a row as what it is, with bytes at these places as text."""
    return msgspec.convert([_text(cell) if at in texts else cell for at, cell in enumerate(row)], kind)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(stored: bytes | str) -> str:
    # earlier versions stored text
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")
