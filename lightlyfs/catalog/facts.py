"""Keeps what storage reported of samples: valid at once, written in batches, published where processes wait.

Threads: any may call. The lock is not held while the store is used.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from lightlyfs import database
from lightlyfs.catalog import tables
from lightlyfs.catalog.entries import Facts, SampleEntry

if TYPE_CHECKING:
    from lightlyfs.catalog.store import CatalogStore

log = logging.getLogger(__name__)

T = TypeVar("T")

# while the disk takes none of them; older ones are asked for again
_MAX_WAITING = 100_000


class Reported:
    """Facts by inode number that the store does not hold yet.

    `on_written(inos)` is called under the lock when the store has them and they are about to be dropped here.
    """

    def __init__(self, store: CatalogStore, on_written: Callable[[Iterable[int]], None]) -> None:
        self._store = store
        self._on_written = on_written
        self._lock = threading.Lock()
        # guarded by _lock: of listed samples, and of those that no listing has met yet
        self._facts: dict[int, Facts] = {}
        self._unlisted: dict[int, Facts] = {}
        # guarded by _lock: what other processes are to hear of with the next write
        self._replaced = self._resized = False
        self._moves = 0  # how often facts went from here into the store
        self._fails = False  # used by the thread that writes

    def __bool__(self) -> bool:
        return bool(self._facts or self._unlisted)

    def apply(self, entry: SampleEntry) -> SampleEntry:
        """Return an entry with what storage reported of it since it was written."""
        facts = self._facts.get(entry.ino) or self._unlisted.get(entry.ino)
        if facts is None or not facts.hold_for(entry):
            return entry
        sure = facts.certain
        return entry._replace(size=facts.size, etag=facts.etag, verified=sure, stands=sure)

    def consistent(self, read: Callable[[], T]) -> T:
        """Return what `read` returns, which asks the store first and then applies what is kept here.

        Calls `read` again if facts moved into the store meanwhile: `read` may have read the store before the
        facts were there, and this object after they had left it.
        """
        while True:
            moves = self._moves
            found = read()
            if moves == self._moves:
                return found

    def put(
        self, ino: int, facts: Facts, of: SampleEntry | None, *, replaced: bool = False, resized: bool = False
    ) -> None:
        """Keep facts of a sample as it is listed, or of one that is not listed yet.

        If they show another version or size, other processes are notified when the facts are written.
        """
        with self._lock:
            self._replaced |= replaced
            self._resized |= resized
            if of is None:
                _put_bounded(self._unlisted, ino, facts)
            else:
                _put_bounded(self._facts, ino, facts._replace(of=(of.mtime, of.size_hint)))

    def note_listing(self, listed: Callable[[int], SampleEntry | None]) -> None:
        """Attach the facts of unlisted samples to the entries that a new listing has for them."""
        with self._lock:
            unlisted = list(self._unlisted)
        for ino in unlisted:
            entry = listed(ino)
            if entry is not None:
                with self._lock:
                    facts = self._unlisted.pop(ino, None)
                    if facts is not None and facts.hold_for(entry):
                        of = entry.mtime, entry.size_hint
                        self._facts.setdefault(ino, facts._replace(of=of))

    def publish(self, inos: Iterable[int]) -> None:
        """Write some of them for other processes to see; here they count from memory until `write`."""
        with self._lock:
            facts = {ino: self._facts[ino] for ino in inos if ino in self._facts}
        if facts:
            self._store.publish_facts(facts)

    def doubt(self) -> None:
        """Have storage asked again for all of it; until then it is shown."""
        with self._lock:
            for table in (self._facts, self._unlisted):
                for ino, facts in table.items():
                    table[ino] = facts._replace(certain=False)

    def write(self) -> None:
        """Write them down; where the disk fails they stay in memory, and count from there."""
        with self._lock:
            facts = dict(self._facts)
            if not facts:
                return
            replaced, resized = self._replaced, self._resized
            self._replaced = self._resized = False
        try:
            self._store.record_facts(facts, replaced=replaced, resized=resized)
        except sqlite3.Error as error:
            with self._lock:
                self._replaced |= replaced
                self._resized |= resized
            if not self._fails:
                log.warning("what storage reports cannot be written to the catalogue: %s", error)
            self._fails = True
            return
        self._fails = False
        with self._lock:
            self._on_written(facts)
            self._moves += 1
            for ino, fact in facts.items():
                if self._facts.get(ino) is fact:
                    del self._facts[ino]


def _put_bounded(facts: dict[int, Facts], ino: int, fact: Facts) -> None:
    facts[ino] = fact
    while len(facts) > _MAX_WAITING:
        del facts[next(iter(facts))]


# how long another process is waited for, and how long not again after that
MOMENT_S = 0.5
_LET_ALONE_S = 10.0

_RECORD = """
UPDATE sample SET size = ?, etag = ?, verified = ?
WHERE ino = ? AND (? IS NULL OR mtime = ? AND hint IS ?)
"""
Values = tuple[int, str, bool, int, int | None, int | None, int | None]


def record_values(ino: int, facts: Facts) -> Values:
    """Return what `record` takes, to keep facts of a sample that did not change since."""
    mtime, hint = facts.of or (None, None)
    return facts.size, facts.etag, facts.certain, ino, mtime, mtime, hint


def record(db: sqlite3.Connection, rows: Sequence[Values]) -> None:
    """Keep what storage reported, within a transaction."""
    inos = [ino for _, _, _, ino, *_ in rows]
    before = tables.sums_of(db, inos)
    db.executemany(_RECORD, rows)
    tables.move_totals(db, tables.sums_of(db, inos) - before)


class Publisher:
    """Writes to one catalogue, over a connection that `connect` makes on first use; any thread may call."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._lock = database.Lock()
        # guarded by _lock
        self._db: sqlite3.Connection | None = None
        self._let_alone_until = float("-inf")

    def publish(self, rows: Sequence[Values]) -> None:
        """Write what storage reported of samples, unless that takes more than a moment."""
        with self._lock:
            if time.monotonic() < self._let_alone_until:
                return
            if self._db is None:
                self._db = self._connect()
                # a caller is waiting: the other connections do the checkpoints
                self._db.execute("PRAGMA wal_autocheckpoint = 0")
            try:
                with database.transaction(self._db):
                    record(self._db, rows)
            except sqlite3.OperationalError:
                # a listing that is written down, or a process that is stopped within its transaction
                self._let_alone_until = time.monotonic() + _LET_ALONE_S

    def renew(self) -> None:
        """Use another connection from now on: the catalogue is another file."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def close(self) -> None:
        """Close the connection; what comes after that is not published."""
        with self._lock:
            self._let_alone_until = float("inf")
            if self._db is not None:
                self._db.close()
                self._db = None
