"""The durable record of local files and of what is owed to the server; replayed after a crash.

A `put` is on the disk when it returns, unless it says that it need not be. What is promised to a program is
written here first: that a create is about to be sent, under which mark; which id came back; that the file is
the server's now.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from pathlib import Path

from lightlyfs.errors import StartError


class State(StrEnum):
    """What is to become of a local file."""

    OPEN = "open"  # being written; found after a crash, it is INTERRUPTED
    LOCAL = "local"  # scratch or empty: complete, and not for the server
    PENDING = "pending"  # sealed, and owed to the server
    FAILED = "failed"  # owed, but the server refused it, or its write failed: a person has to look
    INTERRUPTED = "interrupted"  # a crash left it half written: not uploaded by itself
    UPLOADED = "uploaded"  # the server has it; kept until a listing shows it


@dataclass(frozen=True)
class Record:
    """One local file.

    `path` is its place on the mount, `name` the sample's name or "" where it is not for the server.
    `mark` is what a create of it carries, so that a create whose reply was lost can be told. `replaces`
    is set where `sample_id` is a sample that existed before. `etag` is what storage called the upload.
    `broken` says that a write failed, so that it is half a file. While `generation` is being written,
    `acknowledged` is the earlier one that the server is still owed, or -1.
    """

    key: str
    path: str
    name: str
    state: State
    generation: int = 0
    size: int = 0
    mtime: int = 0
    sample_id: str | None = None
    mark: str = ""
    create_sent: bool = False
    replaces: bool = False
    thumbnail_done: bool = False
    etag: str = ""
    error: str = ""
    broken: bool = False
    acknowledged: int = -1

    def changed(self, **values: object) -> Record:
        """A copy with other values."""
        return replace(self, **values)  # type: ignore[arg-type]

    @property
    def owed(self) -> bool:
        """Whether the server is still to get it."""
        return self.state in (State.PENDING, State.FAILED)


_NAMES = [field.name for field in fields(Record)]
_FLAGS = ("create_sent", "replaces", "thumbnail_done", "broken")
# columns that journals of earlier versions lack, with what their records mean
_ADDED = {"broken": 0, "acknowledged": -1}
_COLUMNS = ", ".join(name if name == "sample_id" else f"{name} NOT NULL" for name in _NAMES)
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS file ({_COLUMNS}, PRIMARY KEY (key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS time (
    sample_id TEXT PRIMARY KEY, mtime INTEGER NOT NULL, version TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rename (
    sample_id TEXT PRIMARY KEY, old TEXT NOT NULL, new TEXT NOT NULL) WITHOUT ROWID;
"""
_NOTE = """
UPDATE file SET sample_id = :sample_id, mark = :mark, create_sent = :create_sent,
    state = CASE generation WHEN :generation THEN :state ELSE state END,
    error = CASE generation WHEN :generation THEN :error ELSE error END,
    thumbnail_done = CASE generation WHEN :generation THEN :thumbnail_done ELSE thumbnail_done END
WHERE key = :key
"""


class Journal:
    """The record in one SQLite file; any thread may call, and a `put` that returned is durable.

    Raises StartError for a file that cannot be read: it says what is owed, so it is never begun anew.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
            self._open()
        except sqlite3.Error as error:
            raise StartError(
                f"{path} cannot be read ({error}); it says what is owed to the server. "
                f"The files themselves are in {path.parent / 'files'}; move both away to go on without"
            ) from error
        self._durable = True  # what `synchronous` is set to
        self._closed = False

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._closed = True
            self._db.close()

    def _open(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        present = {row[1] for row in self._db.execute("PRAGMA table_info(file)")}
        for name in _ADDED.keys() - present:
            self._db.execute(f"ALTER TABLE file ADD COLUMN {name} NOT NULL DEFAULT {_ADDED[name]}")

    def records(self) -> list[Record]:
        """Every local file, in no order."""
        with self._lock:
            rows = self._db.execute(f"SELECT {', '.join(_NAMES)} FROM file").fetchall()
        return [_record(row) for row in rows]

    def put(self, record: Record, *, durable: bool = True) -> None:
        """Add or replace a file's record.

        Not durable, a crash of the machine (not of the mount) may lose it: for steps that can be taken
        again. The order is kept: a later durable one makes it durable too.
        """
        marks = ", ".join("?" * len(_NAMES))
        values = [getattr(record, name) for name in _NAMES]
        with self._writing(durable) as db:
            db.execute(f"INSERT OR REPLACE INTO file ({', '.join(_NAMES)}) VALUES ({marks})", values)

    def note(self, record: Record, *, durable: bool = True) -> None:
        """What an upload of a generation found out; nothing else of the file's record changes.

        Meanwhile the file may have been renamed, forgotten, or written again: its place stays, a file that
        is forgotten stays so, and what speaks of one generation is not said of a later one.
        """
        with self._writing(durable) as db:
            db.execute(_NOTE, {name: getattr(record, name) for name in _NAMES})

    def settle(self, record: Record) -> None:
        """The server has a file: keep that, and forget earlier uploads of the same sample, in one step.

        Not durable: a crash of the machine may lose it, and costs a second PUT of the same bytes.
        """
        marks = ", ".join("?" * len(_NAMES))
        values = [getattr(record, name) for name in _NAMES]
        others = "DELETE FROM file WHERE sample_id = ? AND key != ? AND state = ?"
        with self._writing(False) as db:
            db.execute("BEGIN")
            db.execute(f"INSERT OR REPLACE INTO file VALUES ({marks})", values)
            db.execute(others, (record.sample_id, record.key, State.UPLOADED))
            db.execute("COMMIT")

    def remove(self, key: str) -> None:
        """Forget a file; a crash of the machine may remember it, and find that nothing is owed."""
        with self._writing(False) as db:
            db.execute("DELETE FROM file WHERE key = ?", (key,))

    # times that were set on samples

    def times(self) -> dict[str, tuple[int, str]]:
        """By sample id: the time that was set, in seconds, and the version it was set on."""
        with self._lock:
            rows = self._db.execute("SELECT sample_id, mtime, version FROM time").fetchall()
        return {sample_id: (mtime, version) for sample_id, mtime, version in rows}

    def put_time(self, sample_id: str, mtime: int, version: str) -> None:
        """Remember a time for as long as the sample has this version."""
        with self._writing(False) as db:
            db.execute("INSERT OR REPLACE INTO time VALUES (?, ?, ?)", (sample_id, mtime, version))

    # renames of directories, one by one

    def renames(self) -> list[tuple[str, str, str]]:
        """Renames that may be half done: old name, new name, sample id."""
        with self._lock:
            return self._db.execute("SELECT old, new, sample_id FROM rename").fetchall()

    def put_renames(self, renames: list[tuple[str, str, str]]) -> None:
        """Remember what is about to be renamed."""
        with self._writing(True) as db:
            db.execute("BEGIN")
            db.executemany("INSERT OR REPLACE INTO rename (old, new, sample_id) VALUES (?, ?, ?)", renames)
            db.execute("COMMIT")

    def remove_rename(self, sample_id: str) -> None:
        """A rename is done, or undone."""
        with self._writing(False) as db:
            db.execute("DELETE FROM rename WHERE sample_id = ?", (sample_id,))

    @contextmanager
    def _writing(self, durable: bool) -> Iterator[sqlite3.Connection]:
        """A change; OSError where the disk does not take it."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EIO, "the journal is closed")
            try:
                if durable != self._durable:
                    # in WAL mode NORMAL leaves the sync to the next durable commit; setting it is no I/O
                    self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                yield self._db
            except sqlite3.Error as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                full = "full" in str(error)
                raise OSError(errno.ENOSPC if full else errno.EIO, f"the journal: {error}") from error


def _record(row: tuple[object, ...]) -> Record:
    values = dict(zip(_NAMES, row, strict=True))
    values["state"] = State(str(values["state"]))
    for name in _FLAGS:
        values[name] = bool(values[name])
    return Record(**values)  # type: ignore[arg-type]
