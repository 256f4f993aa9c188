"""Small SQLite files of the cache: opened without following links, made anew where they are damaged."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# how long a write waits for another process; one that writes for longer is stopped or stuck
BUSY_S = 1.0


def connect(path: Path) -> sqlite3.Connection:
    """Open or make a database of ours; raises OSError or sqlite3.Error.

    Any thread may use it, one at a time, and so may other processes. A crash of this process loses nothing;
    a power cut may lose the last writes or damage the file, and whoever reads it has to stand that.
    """
    make(path)
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
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
    """What the block does is done as a whole, or not at all."""
    # at once, for a transaction that begins by reading can come too late to write
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def user_version(db: sqlite3.Connection) -> int:
    """The number that a database keeps for its users."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])
