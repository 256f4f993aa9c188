"""The one way to open and write SQLite files: catalogue, cache index, URLs, thumbnails and the journal.

Knows nothing of what is in them. Files are opened without following links and have mode 0600.

SQLite keeps its locks per process: a forked child would wait without end for a mutex that a thread of the
parent held, and take the file locks of the parent for its own. So all work on a database is done inside
`FORK_GATE`, and a child closes what it inherited before it opens its own.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from lightlyfs.forks import FORK_GATE

# how long a write waits for another process; one that writes for longer is stopped or stuck
BUSY_S = 1.0


class Connection(sqlite3.Connection):
    """A connection that a forked child can find, to close it."""

    def close(self) -> None:
        """Close it; idempotent."""
        with FORK_GATE:
            super().close()


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_inherited() -> None:
    # Nobody is in a transaction, so closing writes nothing; the locks on the files are the parent's and stay.
    # Without it SQLite would count this process as one that holds them.
    for connection in list(_connections):
        connection.close()


os.register_at_fork(after_in_child=_close_inherited)


class Lock:
    """A lock for a database that one thread uses at a time; no process is forked while it is held."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it; whether it was taken."""
        FORK_GATE.__enter__()
        taken = False
        try:
            taken = self._lock.acquire(blocking=blocking)
        finally:
            if not taken:
                FORK_GATE.__exit__()
        return taken

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()
        FORK_GATE.__exit__()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def open_file(path: Path, timeout_s: float) -> Connection:
    """Open a database as it is, in autocommit: transactions are begun and ended where they are seen."""
    with FORK_GATE:
        db = sqlite3.connect(
            path, timeout=timeout_s, isolation_level=None, check_same_thread=False, factory=Connection
        )
        _connections.add(db)
    return db


def connect(path: Path, *, timeout_s: float = BUSY_S, synchronous: str = "OFF") -> sqlite3.Connection:
    """Open or make a database in WAL mode; raises OSError or sqlite3.Error.

    Any thread may use it, one at a time, and so may other processes. With `synchronous` OFF a crash of this
    process loses nothing, but a power cut may lose the last writes or damage the file, and the reader has to
    stand that; with FULL a committed transaction survives a power cut.
    """
    make(path)
    with FORK_GATE:
        db = open_file(path, timeout_s)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {synchronous}")
        except BaseException:
            db.close()
            raise
    return db


def make(path: Path) -> None:
    """See that there is a file of mode 0600, and no link; raises OSError."""
    if path.is_symlink():
        path.unlink()
    # one that is there is not opened: closing it would end the locks that this process has on it
    if not path.exists():
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass  # another process was first


class Anchor(NamedTuple):
    """Which file a path named when a database was opened there.

    A cleaner may delete it; open connections then go on, but what they write is lost, and a new connection
    makes an empty database.
    """

    path: Path
    device: int
    number: int

    @classmethod
    def of(cls, path: Path) -> Anchor:
        """The file at a path now; raises OSError."""
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def holds(self) -> bool:
        """Whether the path still names that file."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.number)


def remove(path: Path) -> None:
    """Delete a database, if there is one."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Do what the block does as a whole, or not at all, whatever the block raises."""
    with FORK_GATE:
        # at once, for a transaction that begins by reading can come too late to write
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def os_error(error: sqlite3.Error, what: str) -> OSError:
    """The error of a write as the disk would give it: ENOSPC where it is full, else EIO."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or "full" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, f"{what}: {error}")


def user_version(db: sqlite3.Connection) -> int:
    """The number that a database keeps for its users."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])
