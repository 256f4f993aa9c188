"""What the catalogue knows without a query: recent lookups, and what storage reported of samples.

A query costs a tenth of a millisecond in a busy process, because SQLite releases the GIL for each row. What
storage reported is valid at once, written in batches, and published where processes wait.

Threads: any may call. No lock is held while the store is used.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from cachetools import LRUCache

from lightlyfs import database
from lightlyfs.catalog import tables
from lightlyfs.catalog.entries import Entry, Facts, SampleEntry

if TYPE_CHECKING:
    from lightlyfs.catalog.store import CatalogStore

log = logging.getLogger(__name__)

T = TypeVar("T")

# while the disk takes none of them; older ones are asked for again
_MAX_WAITING = 100_000


class Reported:
    """Facts by inode number that the store does not hold yet.

    `on_written(facts)` is called under the lock once the store has them, before they are dropped here.
    """

    def __init__(self, store: CatalogStore, on_written: Callable[[Mapping[int, Facts]], None]) -> None:
        self._store = store
        self._on_written = on_written
        self._lock = threading.Lock()
        # guarded by _lock: of listed samples, and of those that no listing has met yet
        self._facts: dict[int, Facts] = {}
        self._unlisted: dict[int, Facts] = {}
        # guarded by _lock: what other processes are to hear of with the next write
        self._resized = False
        self._moves = 0  # how often facts went from here into the store
        self._failures = database.Failures(
            log,
            "what storage reports cannot be written to the catalogue",
            "what storage reports is written to the catalogue again",
        )

    def __bool__(self) -> bool:
        return bool(self._facts or self._unlisted)

    def apply(self, entry: SampleEntry) -> SampleEntry:
        """Return an entry with what storage reported of it since it was written."""
        facts = self._facts.get(entry.ino) or self._unlisted.get(entry.ino)
        return entry if facts is None else facts.applied_to(entry)

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

    def put(self, ino: int, facts: Facts, of: SampleEntry | None, *, resized: bool = False) -> None:
        """Keep facts of a sample as it is listed, or of one that is not listed yet.

        If they show another version or size, other processes are notified when the facts are written.
        """
        with self._lock:
            self._resized |= resized
            if of is None:
                _put_bounded(self._unlisted, ino, facts)
                self._facts.pop(ino, None)
            else:
                _put_bounded(self._facts, ino, _of_listed(facts, of))
                # or these earlier ones would count again once the store has the later
                self._unlisted.pop(ino, None)

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
                        self._facts.setdefault(ino, _of_listed(facts, entry))

    def publish(self, inos: Iterable[int]) -> None:
        """Write some of them for other processes to see; here they count from memory until `write`."""
        with self._lock:
            facts = {ino: self._facts[ino] for ino in inos if ino in self._facts}
        if facts:
            in_doubt = self._store.publish_facts(facts)
            with self._lock:
                for ino in in_doubt:
                    if self._facts.get(ino) is facts[ino]:
                        self._facts[ino] = facts[ino]._replace(certain=False)

    def doubt(self) -> None:
        """Have storage asked again for all of it; until then it is shown."""
        with self._lock:
            for table in (self._facts, self._unlisted):
                for ino, facts in table.items():
                    table[ino] = facts._replace(certain=False)

    def write(self) -> None:
        """Write them down; where the disk fails they stay in memory, and count from there.

        After a refresh by another process they are doubtful, in the store and here.
        """
        with self._lock:
            facts = dict(self._facts)
            if not facts:
                return
            resized, self._resized = self._resized, False
        try:
            in_doubt = self._store.record_facts(facts, resized=resized)
        except sqlite3.Error as error:
            with self._lock:
                self._resized |= resized
            self._failures.note(error)
            return
        self._failures.note_success()
        with self._lock:
            self._on_written(facts | {ino: facts[ino]._replace(certain=False) for ino in in_doubt})
            self._moves += 1
            for ino, fact in facts.items():
                if self._facts.get(ino) is fact:
                    del self._facts[ino]


def _of_listed(facts: Facts, entry: SampleEntry) -> Facts:
    return facts._replace(of=(entry.mtime, entry.size_hint), before=entry.etag)


def _put_bounded(facts: dict[int, Facts], ino: int, fact: Facts) -> None:
    facts[ino] = fact
    while len(facts) > _MAX_WAITING:
        del facts[next(iter(facts))]


# how long to wait for another process, and how long not to wait again after that failed
MOMENT_S = 0.5
_LET_ALONE_S = 10.0

# Reports wait before they are written. If another process wrote a different version in the meantime, the
# order of the two is unknown, and storage is asked again.
_RECORD = """
UPDATE sample SET size = :size, etag = :etag,
    verified = :certain AND (:mtime IS NULL OR etag IS NULL OR etag = :etag OR etag IS :before)
WHERE ino = :ino AND (:mtime IS NULL OR mtime = :mtime AND hint IS :hint)
"""
_ARE_REPLACED = """
SELECT ino, etag FROM json_each(?) AS said JOIN main.sample ON ino = CAST(said.key AS INTEGER)
WHERE etag != said.value
"""


def record(db: sqlite3.Connection, facts: Mapping[int, Facts], heeded: int) -> tuple[bool, list[int]]:
    """Keep what storage reported of samples that did not change since, by inode number; within a transaction.

    Returns whether any object had another version before, and of which objects another process has written
    another version since: storage has to be asked. Only the store knows. `heeded` is the number of refreshes
    that this process has heard of: what it was told before a later one is in doubt, too.
    """
    is_refreshed = tables.counted(db, tables.REFRESHES) != heeded
    if is_refreshed:
        facts = {ino: reported._replace(certain=False) for ino, reported in facts.items()}
    sums = tables.sums_of(db, facts)
    said = json.dumps({ino: reported.etag for ino, reported in facts.items()})
    replaced = db.execute(_ARE_REPLACED, (said,)).fetchall()
    listed = {ino: reported for ino, reported in facts.items() if reported.of is not None}
    in_doubt = [ino for ino, etag in replaced if ino in listed and etag != listed[ino].before]
    db.executemany(_RECORD, [_values(ino, reported) for ino, reported in facts.items()])
    tables.move_totals(db, tables.sums_of(db, facts) - sums)
    return bool(replaced), list(facts) if is_refreshed else in_doubt


def _values(ino: int, facts: Facts) -> dict[str, object]:
    mtime, hint = facts.of or (None, None)
    return {**facts._asdict(), "ino": ino, "mtime": mtime, "hint": hint, "of": None}


class Publisher:
    """Writes to one catalogue, over a connection that `connect` makes on first use; any thread may call."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._lock = database.Lock()
        # guarded by _lock
        self._db: sqlite3.Connection | None = None
        self._let_alone_until = float("-inf")

    def publish(self, facts: Mapping[int, Facts], heeded: int) -> list[int]:
        """Write what storage reported of samples, unless that takes more than a moment; see `record`."""
        with self._lock:
            if time.monotonic() < self._let_alone_until:
                return []
            try:
                if self._db is None:
                    self._db = self._connect()
                    # a caller is waiting: the other connections do the checkpoints
                    self._db.execute("PRAGMA wal_autocheckpoint = 0")
                with database.transaction(self._db):
                    replaced, in_doubt = record(self._db, facts, heeded)
                    if replaced:
                        tables.count(self._db, tables.CHANGES)
                return in_doubt
            except sqlite3.OperationalError:
                # a listing that is written down, a process that is stopped within its transaction, or a
                # catalogue that was deleted, which the next facts that are written down bring back
                self._let_alone_until = time.monotonic() + _LET_ALONE_S
                return []

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


# a path that is looked up is soon opened, and so are its neighbours
_MAX_KEPT = 8_000
# a caller that looks up names in directory order has the next ones read ahead, at most this many at once
_MAX_AHEAD = 64
_MAX_DIRECTORIES = 256
_NO_ROW, _NOTHING = (-1, -1, None), (-1, None)  # of no version


class RecentLookups:
    """Entries from memory where the store was asked recently; any thread may call.

    Call `outdate` when the store may answer differently, `written` when facts went into it, and `heard` when
    another process wrote facts. Single operations on the tables are atomic, and a lost update costs a query.
    """

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self.version = 0
        self.writes = 0  # how often facts went into the store
        self._heard = 0  # how often another process wrote facts
        # behind `version` and `_heard`: samples by number; what is at a path: a sample's number, or itself
        self._samples: dict[int, tuple[int, int, SampleEntry]] = {}
        self._paths: dict[str, tuple[int, int | Entry | None]] = {}
        self._lock = threading.Lock()
        # guarded by _lock, for a lookup moves entries: by directory the name that comes next where names are
        # asked for in order, and how many were read
        self._ahead: LRUCache[str, tuple[str, int]] = LRUCache(_MAX_DIRECTORIES)

    @property
    def state(self) -> tuple[int, int]:
        """A value that changes whenever the store does."""
        return self.version, self.writes

    def outdate(self) -> None:
        """Invalidate all entries after the store changed; for one thread at a time."""
        self.version += 1

    def written(self, facts: Mapping[int, Facts]) -> None:
        """Apply facts that went into the store to the rows kept here; for one thread at a time."""
        # counted first: a thread that read its row before this, and keeps it after this, drops it again
        self.writes += 1
        for ino, reported in facts.items():
            version, heard, entry = self._samples.get(ino, _NO_ROW)
            if entry is not None:
                self._samples[ino] = version, heard, reported.applied_to(entry)

    def heard(self) -> None:
        """Note that another process wrote facts, which rows kept here may lack; for one thread at a time."""
        self._heard += 1

    def may_lack_facts(self, ino: int) -> bool:
        """Whether another process may have written facts of a sample since its entry was read."""
        version, heard, _ = self._samples.get(ino, _NO_ROW)
        return version != self.version or heard != self._heard

    def lookup(self, path: str) -> Entry | None:
        """Return the entry of a path, or None where there is none; may raise sqlite3.Error."""
        as_of = self._as_of()  # before the query, so that changes meanwhile are noticed
        version = as_of[0]
        is_kept, kept = self._kept(path, version)
        if is_kept:
            return kept
        directory, _, name = path.rpartition("/")
        with self._lock:
            expected, count = self._ahead.get(directory, ("", 1))
        count = min(_MAX_AHEAD, count * 2) if name == expected else 1
        entry, behind = self._store.lookup_with_next(path, count)
        prefix = directory + "/" if directory else ""
        self._keep(((prefix + other.name, other) for other in behind[:-1]), as_of)
        if behind:
            with self._lock:
                self._ahead[directory] = (behind[-1].name, count)
        if isinstance(entry, SampleEntry):
            self._keep(((path, entry),), as_of)
        else:
            self._paths[path] = version, entry
        return entry

    def samples_at(self, paths: Sequence[str]) -> list[tuple[str, SampleEntry]]:
        """Return the samples at some paths, in their order; may raise sqlite3.Error."""
        as_of = self._as_of()
        version = as_of[0]
        found: dict[str, Entry | None] = {}
        for path in paths:
            is_kept, kept = self._kept(path, version)
            if is_kept:
                found[path] = kept
        others = self._store.samples_at([path for path in paths if path not in found])
        self._keep(others, as_of)
        found.update(others)
        entries = ((path, found.get(path)) for path in paths)
        return [(path, entry) for path, entry in entries if isinstance(entry, SampleEntry)]

    def _kept(self, path: str, version: int) -> tuple[bool, Entry | None]:
        """Return whether memory holds what is at a path, and the entry that it holds."""
        found_in, found = self._paths.get(path, _NOTHING)
        if found_in != version:
            return False, None
        if not isinstance(found, int):
            return True, found
        read_in, _, entry = self._samples.get(found, _NO_ROW)
        return (True, entry) if read_in == version else (False, None)

    def sample(self, ino: int, *, reread: bool = False) -> SampleEntry | None:
        """Return the sample with this inode number, or None; may raise sqlite3.Error.

        `reread` queries the store even where the row is kept, because other processes write to it, too.
        """
        as_of = self._as_of()
        version = as_of[0]
        read_in, _, kept = self._samples.get(ino, _NO_ROW)
        if read_in == version and not reread:
            return kept
        entry = self._store.sample(ino)
        if entry is not None:
            self._keep((("", entry),), as_of)
        return entry

    def samples_after(self, path: str, count: int) -> list[tuple[str, SampleEntry]]:
        """Return samples as the store does, with their paths, and keep them; may raise sqlite3.Error."""
        as_of = self._as_of()
        directory = path.rpartition("/")[0]
        prefix = directory + "/" if directory else ""
        found = [(prefix + entry.name, entry) for entry in self._store.samples_after(path, count)]
        self._keep(found, as_of)
        return found

    def _as_of(self) -> tuple[int, int, int]:
        return self.version, self._heard, self.writes

    def _keep(self, found: Iterable[tuple[str, SampleEntry]], as_of: tuple[int, int, int]) -> None:
        """Keep rows of the store as of then; one without a path is found by its number alone."""
        version, heard, writes = as_of
        if max(len(self._paths), len(self._samples)) > _MAX_KEPT:
            self._paths, self._samples = {}, {}
        samples = self._samples
        inos = []
        for path, entry in found:
            inos.append(entry.ino)
            samples[entry.ino] = version, heard, entry
            if path:
                self._paths[path] = version, entry.ino
        if self.writes != writes:  # the rows may lack the facts that were written meanwhile
            for ino in inos:
                samples.pop(ino, None)
