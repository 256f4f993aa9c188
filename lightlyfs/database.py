"""The one way to open, write and recover SQLite files: catalogue, cache index, URLs, thumbnails, the journal.

Knows nothing of what is in them. Files are opened without following links and have mode 0600. One that
SQLite says is damaged is put aside as `NAME.damaged`. A disk that is full or read-only, a file that may not
be opened, and one that another process keeps locked are errors that pass, for which nothing is deleted.

SQLite keeps its locks per process: a forked child would wait without end for a mutex that a thread of the
parent held, and take the file locks of the parent for its own. So all work on a database is done inside
`FORK_GATE`, and a child closes what it inherited before it opens its own.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sqlite3
import stat
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast
from urllib.parse import quote

from lightlyfs.forks import FORK_GATE

log = logging.getLogger(__name__)

T = TypeVar("T")

# how long a write waits for another process; one that writes for longer is stopped or stuck
BUSY_S = 1.0
# how long it waits in all while others end their transactions, as hundreds of workers do one after the other
_BUSY_IN_ALL_S = 30.0
# between tries to begin, as SQLite itself waits
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.1
# the main file comes last: while it is at its path, the others are what belongs to it
_SUFFIXES = ("-shm", "-wal", "")
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# SQLite reports an unknown schema format with this text and the generic code SQLITE_ERROR
_ODD_HEADER = "unsupported file format"


# https://www.sqlite.org/fileformat2.html#the_database_header: bytes 18 and 19 are the versions of the format
_HEADER_BYTES = 100


class Damaged(sqlite3.DatabaseError):
    """A file that is no database, or holds other tables than we made."""


class Connection(sqlite3.Connection):
    """A connection that a forked child can find, to close it."""

    patience_ms = 0  # how long it waits for another process; changed by `set_patience` alone

    def close(self) -> None:
        """Close it; idempotent."""
        with FORK_GATE:
            super().close()


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _close_inherited() -> None:
    # No thread is in a transaction, so closing writes nothing; the locks on the files are the parent's, and
    # stay. Without it SQLite would count this process as one that holds them.
    for connection in list(_connections):
        connection.close()


os.register_at_fork(after_in_child=_close_inherited)


class Lock:
    """A lock for a database that one thread uses at a time.

    No process is forked while it is held, but where its holder waits for another process, so a forked child
    takes none of its parent's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it; whether it was taken."""
        FORK_GATE.enter_leavable()
        taken = False
        try:
            taken = self._lock.acquire(blocking=False)
            if blocking and not taken:
                with FORK_GATE.outside():
                    taken = self._lock.acquire()
        finally:
            if not taken:
                FORK_GATE.exit_leavable()
        return taken

    def release(self) -> None:
        """Let go of it."""
        self._lock.release()
        FORK_GATE.exit_leavable()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def open_file(path: Path, timeout_s: float, query: str = "") -> Connection:
    """Open a database as it is, in autocommit: transactions are begun and ended where they are seen.

    `query` are parameters of SQLite's URIs, such as "mode=ro".
    """
    where = f"file:{quote(os.fsencode(path))}?{query}" if query else path
    with FORK_GATE:
        db = sqlite3.connect(
            where,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
            uri=bool(query),
        )
        _connections.add(db)
        db.patience_ms = int(timeout_s * 1000)
    return db


def set_patience(db: sqlite3.Connection, patience_ms: int) -> None:
    """Change how long a connection waits for another process."""
    db.execute(f"PRAGMA busy_timeout = {patience_ms}")
    cast(Connection, db).patience_ms = patience_ms


def open_foreign(path: Path) -> Connection:
    """Open a database that others made, to read it: nothing in it is run, and nothing written.

    The file must not change meanwhile. Raises OSError or sqlite3.Error.
    """
    db = open_file(path, 0.0, "mode=ro&immutable=1")
    with FORK_GATE:
        try:
            for pragma in (
                "trusted_schema = OFF",
                "query_only = ON",
                "cell_size_check = ON",
                "mmap_size = 0",
            ):
                db.execute(f"PRAGMA {pragma}")
        except BaseException:
            db.close()
            raise
    return db


def connect(path: Path, *, timeout_s: float = BUSY_S, synchronous: str = "OFF") -> sqlite3.Connection:
    """Open or make a database in WAL mode; raises OSError or sqlite3.Error.

    Any thread may use it, one at a time, and so may other processes. With `synchronous` OFF a crash of this
    process loses nothing, but a power cut may lose the last writes or damage the file, and the reader has to
    stand that; with FULL a committed transaction survives a power cut.
    """
    make(path)
    with FORK_GATE, damage_told():
        db = open_file(path, timeout_s)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {synchronous}")
        except BaseException:
            db.close()
            raise
    return db


def make(path: Path) -> None:
    """Make sure that there is a regular file of mode 0600, not a link or directory; raises OSError."""
    for one in (path.with_name(path.name + suffix) for suffix in _SUFFIXES):
        if one.is_symlink():
            one.unlink()
        elif one.exists() and not stat.S_ISREG(one.stat().st_mode):
            log.warning("%s is no file; it is kept as %s", one, put_aside(one, keep=True))
    # one that is there is not opened: closing it would end the locks that this process has on it
    if not path.exists():
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass  # another process was first


def see_writable(path: Path) -> None:
    """Write something that changes nothing; raises OSError, or sqlite3.OperationalError where that fails."""
    try:
        with closing(connect(path)) as db, transaction(db):
            db.execute(f"PRAGMA user_version = {user_version(db)}")
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise


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
        """Return the file at a path now; raises OSError."""
        found = os.lstat(path)
        return cls(path, found.st_dev, found.st_ino)

    def holds(self) -> bool:
        """Return whether the path still names that file."""
        try:
            found = os.lstat(self.path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.number)


def is_damage(error: BaseException | None) -> bool:
    """Return whether an error means a damaged file, and not a full disk or a locked file."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # text that is none is found by the module, not by SQLite
        return isinstance(error, Damaged) or str(error).startswith("Could not decode")
    return code & 0xFF in _DAMAGE or str(error) == _ODD_HEADER


def check_header(path: Path) -> None:
    """Raise Damaged if the format versions in the header would make SQLite open the file read-only.

    Call it before the database is opened, or where it is of no use any more: closing the file drops the locks
    that this process has on it.
    """
    with suppress(FileNotFoundError), path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
        if len(head) == _HEADER_BYTES and not set(head[18:20]) <= {1, 2}:
            raise Damaged("its header asks for a later SQLite")


@contextmanager
def _odd_header_told(db: sqlite3.Connection) -> Iterator[None]:
    """Raise Damaged if a database takes nothing because of its header, and not because of its disk."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_READONLY:
            (_, _, path), *_ = db.execute("PRAGMA database_list")
            with suppress(OSError):
                check_header(Path(path))
        raise


@contextmanager
def damage_told() -> Iterator[None]:
    """Raise Damaged if SQLite's error text is not valid UTF-8: Python then raises an error of its own."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise Damaged(f"its definitions are no text ({error.reason})") from error


def opened_or_begun(path: Path, opened: Callable[[Path], T], *, may_begin: bool) -> T:
    """Return `opened(path)`; a damaged file that `may_begin` again is replaced by a new one first.

    Raises as `opened` does.
    """
    try:
        return opened(path)
    except sqlite3.DatabaseError as error:
        if not (is_damage(error) and may_begin):
            raise
        log.warning("%s is damaged (%s); it is kept as %s", path, error, put_aside(path))
    return opened(path)


def put_aside(path: Path, *, keep: bool = False) -> Path:
    """Move a database to `NAME.damaged`, in place of what is there, or, to `keep` that, beside it.

    Returns where it is. Raises OSError.
    """
    target, number = path.with_name(f"{path.name}.damaged"), 1
    while keep and os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.damaged{number}")
    for suffix in _SUFFIXES:
        old, new = path.with_name(path.name + suffix), target.with_name(target.name + suffix)
        if new.is_dir() and not new.is_symlink():
            shutil.rmtree(new)
        if os.path.lexists(old):
            os.replace(old, new)
        else:
            new.unlink(missing_ok=True)
    return target


def check_tables(db: sqlite3.Connection, schema: str) -> None:
    """Check that a database holds the tables of a script and nothing else; raises Damaged."""
    with closing(sqlite3.connect(":memory:")) as model:
        model.executescript(schema)
        wanted = _definitions(model)
    if _definitions(db) != wanted:
        raise Damaged("it holds other tables than those of lightlyfs")


def _definitions(db: sqlite3.Connection) -> set[tuple[str, ...]]:
    """Return what is in a database, as it was defined; comments and blanks do not count."""
    rows = db.execute("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_master").fetchall()
    return {(*row[:3], " ".join(re.sub(r"--[^\n]*", "", row[3]).split())) for row in rows}


def readable_rows(path: Path, table: str, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """Return what can be read of a table in a damaged database; the first of its columns is its primary key.

    Reads from both ends up to the damage.
    """
    found: dict[Any, tuple[Any, ...]] = {}
    for order in ("ASC", "DESC"):
        try:
            with FORK_GATE, damage_told(), closing(open_file(path, BUSY_S)) as db:
                db.execute("PRAGMA writable_schema = ON")  # then a file that was cut is read up to the cut
                for row in db.execute(
                    f"SELECT {', '.join(columns)} FROM {table} ORDER BY {columns[0]} {order}"
                ):
                    found.setdefault(row[0], row)
        except sqlite3.Error as error:
            log.debug("%s of %s, %s: %s", table, path, order, error)
    return list(found.values())


@contextmanager
def transaction(db: sqlite3.Connection, *, waits: bool = True) -> Iterator[None]:
    """Run the block as one transaction: all of it takes effect, or nothing if it raises.

    If another process is writing, it waits as long as others end their transactions; without `waits`, not at
    all. Then it raises an error for which `is_busy` is true.
    """
    FORK_GATE.enter_leavable()
    try:
        with damage_told(), _odd_header_told(db):
            _begin(cast(Connection, db), waits=waits)
            with FORK_GATE:
                try:
                    yield
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    raise
    finally:
        FORK_GATE.exit_leavable()


def _begin(db: Connection, *, waits: bool) -> None:
    """Begin to write at once, for a transaction that begins by reading can come too late to write."""
    db.execute("PRAGMA busy_timeout = 0")  # SQLite would wait inside
    try:
        if waits:
            _begin_waiting(db, db.patience_ms / 1000)
        else:
            db.execute("BEGIN IMMEDIATE")
    finally:
        db.execute(f"PRAGMA busy_timeout = {db.patience_ms}")


def _begin_waiting(db: Connection, patience_s: float) -> None:
    started, moves = time.monotonic(), -1
    until, pause_s = started, _FIRST_PAUSE_S
    while True:
        try:
            db.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            now = time.monotonic()
            if not is_busy(error):
                raise
            if now >= until:
                before, moves = moves, _moves_of_others(db)
                if moves == before or now >= started + _BUSY_IN_ALL_S:
                    raise
                until, pause_s = now + patience_s, _FIRST_PAUSE_S
        with FORK_GATE.outside():
            time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _moves_of_others(db: sqlite3.Connection) -> int:
    """Return a number that another one takes when another connection commits."""
    return int(db.execute("PRAGMA data_version").fetchone()[0])


def is_busy(error: sqlite3.Error) -> bool:
    """Return whether an error means that another process keeps the database locked."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def os_error(error: sqlite3.Error, what: str) -> OSError:
    """Return the error of a write as the disk would give it: ENOSPC where it is full, else EIO."""
    full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL or "full" in str(error)
    return OSError(errno.ENOSPC if full else errno.EIO, f"{what}: {error}")


# a full disk takes this and that: failures are over once something is written so long after the last
_OVER_AFTER_S = 60.0
_WHAT_TO_DO = "; free some of that disk, or choose another one with --cache-dir"


class Failures:
    """Logs that the work on some file fails, and that it is over, once each; any thread may call.

    `began` and `over` are what it says; another kind of error while some go on is worth another line.
    """

    def __init__(
        self, log: logging.Logger, began: str, over: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._began, self._over = began, over
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._kinds: set[object] = set()
        self._count = 0
        self._last_at = 0.0

    def note(self, error: Exception) -> None:
        """Note a failure, which is logged where it is the first of its kind."""
        is_full = isinstance(error, sqlite3.Error) and os_error(error, "").errno == errno.ENOSPC
        kind = errno.ENOSPC if is_full else getattr(error, "errno", None) or str(error)
        with self._lock:
            self._count += 1
            self._last_at = self._clock()
            known = kind in self._kinds
            self._kinds.add(kind)
        what_to_do = _WHAT_TO_DO if kind == errno.ENOSPC else ""
        level = logging.DEBUG if known else logging.WARNING
        self._log.log(level, "%s: %s%s", self._began, error, what_to_do)

    def note_success(self) -> None:
        """Note that something was written, which may end the failures."""
        if not self._count:
            return
        with self._lock:
            if not self._count or self._clock() - self._last_at < _OVER_AFTER_S:
                return
            count, self._count = self._count, 0
            self._kinds.clear()
        self._log.info("%s; it had failed %s", self._over, "once" if count == 1 else f"{count:,} times")


def user_version(db: sqlite3.Connection) -> int:
    """Return the number that a database keeps for its users."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])
