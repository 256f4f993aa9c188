"""The one way to open and write SQLite files: catalogue, cache index, URLs, thumbnails and the journal.

Knows nothing of what is in them. Files are opened without following links and have mode 0600.

A fork copies the process while its other threads may be anywhere, and SQLite keeps its locks per process: a
child would wait without end for a mutex that a thread of the parent held, and take the file locks of the
parent for its own. So all work on a database is done inside `FORK_GATE`, `os.fork` waits until no thread is
inside, and a child closes what it inherited before it opens its own. Inside, no lock is taken under which
others enter.
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

# how long a write waits for another process; one that writes for longer is stopped or stuck
BUSY_S = 1.0
# how long a fork waits for work on databases: as long as any of them waits for another process
_LONGEST_S = 60.0


class _ForkGate:
    """Keeps forks apart from work on databases; a context manager that a thread may enter again and again.

    Entering costs half a microsecond. The thread that forks may be inside itself, as in a signal handler.
    """

    def __init__(self) -> None:
        self._open_again()
        self._inside: dict[int, int] = {}  # by thread, how often; single operations on it are atomic

    def _open_again(self) -> None:
        self._forks = threading.Lock()  # held by the thread that forks
        self._moved = threading.Condition(threading.Lock())
        self._shut = False

    def __enter__(self) -> None:
        thread = threading.get_ident()
        depth = self._inside.get(thread, 0)
        # said before it is asked whether a fork is near, as that is said before it is asked who is inside
        self._inside[thread] = depth + 1
        if self._shut and not depth:
            self._wait_outside(thread)

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        depth = self._inside[thread] - 1
        if depth:
            self._inside[thread] = depth
            return
        del self._inside[thread]
        if self._shut:
            with self._moved:
                self._moved.notify_all()

    def entered(self) -> bool:
        """Whether the calling thread is inside."""
        return threading.get_ident() in self._inside

    def _wait_outside(self, thread: int) -> None:
        with self._moved:
            while self._shut:
                self._inside.pop(thread, None)
                self._moved.notify_all()
                self._moved.wait()
            self._inside[thread] = 1

    def before_fork(self) -> None:
        """Wait until no other thread is inside, and keep all out."""
        self._forks.acquire()
        thread = threading.get_ident()
        with self._moved:
            self._shut = True
            self._moved.wait_for(lambda: self._inside.keys() <= {thread}, _LONGEST_S)

    def after_in_parent(self) -> None:
        """Let all in again."""
        with self._moved:
            self._shut = False
            self._moved.notify_all()
        self._forks.release()

    def after_in_child(self) -> None:
        """Be open, with nobody inside but the thread that forked."""
        thread = threading.get_ident()
        self._inside = {thread: self._inside[thread]} if thread in self._inside else {}
        self._open_again()


FORK_GATE = _ForkGate()


class Connection(sqlite3.Connection):
    """A connection that a forked child can find, to close it."""

    def close(self) -> None:
        """Close it; idempotent."""
        with FORK_GATE:
            super().close()


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    FORK_GATE.after_in_child()
    # Nobody is in a transaction, so closing writes nothing; the locks on the files are the parent's and stay.
    # Without it SQLite would count this process as one that holds them.
    for connection in list(_connections):
        connection.close()


os.register_at_fork(
    before=FORK_GATE.before_fork,
    after_in_parent=FORK_GATE.after_in_parent,
    after_in_child=_after_fork_in_child,
)


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
