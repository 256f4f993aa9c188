"""The SQLite catalogue: the samples and directories of one dataset, on disk, read by many threads.

Owns the file, its schema and its transactions; must not know the network. Rows are clustered by (directory,
name), because listing one directory and looking up one path are the only frequent queries. Inode numbers are
digests (of the sample id, of the directory's path), so they are the same on every mount, and the number of a
directory follows from its path without a query.

Several processes may have the file open. A commit is visible to the others at once; `news` reports that
what they have in memory, or in the kernel's caches, may be outdated.

Threads: any number of threads may read, each with a borrowed connection. One lock serialises writes; it is
held for one transaction and never during a callback. With WAL, readers see the last commit meanwhile, so a
re-listing shows completely or not at all.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

from lightlyfs import database
from lightlyfs.catalog import tables
from lightlyfs.catalog.entries import DirectoryEntry, Entry, Facts, News, Place, Row, SampleEntry, Totals
from lightlyfs.catalog.known import MOMENT_S, Publisher, record
from lightlyfs.catalog.listing_writer import ListingWriter, directory_path
from lightlyfs.catalog.tables import CHANGES, REFRESHES, RESIZED, SCHEMA, count, counted, create_schema
from lightlyfs.forks import FORK_GATE
from lightlyfs.tree import ROOT_INO, directory_ino, sample_ino

log = logging.getLogger(__name__)

_COLUMNS = "name, ino, id, file_name, hint, mtime, size, etag, verified = 1, verified != 0"
# one connection's page cache; the operating system caches the file once for all of them
_READER_CACHE_KIB = 512
_LISTING_CACHE_KIB = 32 * 1024
# facts of files read at random fill whatever their connection may have
_FACTS_CACHE_KIB = 4 * 1024
_IDLE_READERS = 8
_SHRINK_TIMEOUT_MS = 500
# another process may be writing down a listing, and a listing is worth waiting for; facts are not: they count
# from memory, and a mount that ends writes them down once more
_WRITE_TIMEOUT_S = 60.0
_FACTS_TIMEOUT_MS = 5_000

# a directory's number is asked for with each of its files
_parent_ino = lru_cache(4_096)(directory_ino)


class CatalogStore:
    """The catalogue file of one dataset; see the module for the rules of its threads."""

    def __init__(
        self,
        path: Path,
        *,
        alone: bool = True,
        opening: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Open or create the file; one of another schema, or a damaged one, is replaced by a new one.

        Where other processes may have it open (not `alone`) sqlite3.DatabaseError is raised instead. Where a
        cleaner deleted the file it is written again from what is open; `opening()` is held meanwhile, with
        the directory there and other processes kept from the same.
        """
        self._path = path
        self._opening = opening
        self._can_renew = True
        self._is_damaged = False  # as SQLite says
        # called where the file was damaged, and another one is begun that holds nothing
        self.on_lost: Callable[[], None] = lambda: None
        self._write_lock = database.Lock()
        self._renewing = database.Lock()  # taken before _write_lock
        self._idle: list[sqlite3.Connection] = []
        self._closed = False
        with FORK_GATE:
            # the catalogue is a copy of what the API knows: losing it costs one listing
            self._writer = database.opened_or_begun(path, self._open_writer, may_begin=alone)
            self._anchor = database.Anchor.of(path)
            # guarded by _write_lock: what is known of the writes of others; what was counted here, or noticed
            (self._version,) = self._writer.execute("PRAGMA data_version").fetchone()
            self._seen = {what: counted(self._writer, what) for what in (CHANGES, RESIZED)}
            self._refreshes = counted(self._writer, REFRESHES)  # guarded by _write_lock
        self._heeded = self._refreshes
        self._publisher = Publisher(lambda: self._connect(_READER_CACHE_KIB, timeout_s=MOMENT_S))

    def close(self) -> None:
        """Close every connection; reads and writes after it fail."""
        self._publisher.close()
        with self._write_lock:
            self._closed = True
            while self._idle:
                self._idle.pop().close()
            self._writer.close()

    # reading

    def get_meta(self, key: str) -> str | None:
        """Return a remembered value, or None."""
        with self._reader() as db:
            row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def lookup(self, path: str) -> Entry | None:
        """Return the entry of a path without a leading slash, or None; "" is the root."""
        return self.lookup_with_next(path, 0)[0]

    def lookup_with_next(self, path: str, count: int) -> tuple[Entry | None, list[SampleEntry]]:
        """Return the entry of a path, and where it is a sample at most `count` behind it in its directory."""
        directory, _, name = path.rpartition("/")
        query = f"SELECT {_COLUMNS} FROM sample WHERE dir = ? AND name >= ? ORDER BY name LIMIT ?"
        try:
            key = (_parent_ino(directory), name, count + 1)
            with self._reader() as db:
                rows = db.execute(query, key).fetchall()
        except UnicodeEncodeError:
            return None, []  # not UTF-8, so no sample can have it
        if rows and rows[0][0] == name:
            return SampleEntry._make(rows[0]), [SampleEntry._make(row) for row in rows[1:]]
        return self._lookup_directory(path), []

    def samples_at(self, paths: Sequence[str]) -> list[tuple[str, SampleEntry]]:
        """Return the samples at these paths, in any order, by one query; directories are left out."""
        wanted = []
        for number, path in enumerate(paths):
            directory, _, name = path.rpartition("/")
            try:
                wanted += [number, _parent_ino(directory), name.encode().decode()]
            except UnicodeEncodeError:
                pass  # not UTF-8, so no sample can have it
        if not wanted:
            return []
        values = ", ".join(["(?, ?, ?)"] * (len(wanted) // 3))
        query = (
            f"WITH wanted (number, directory, called) AS (VALUES {values}) "
            f"SELECT number, {_COLUMNS} FROM wanted CROSS JOIN sample ON dir = directory AND name = called"
        )
        with self._reader() as db:
            rows = db.execute(query, wanted).fetchall()
        return [(paths[row[0]], SampleEntry._make(row[1:])) for row in rows]

    def _lookup_directory(self, path: str) -> Entry | None:
        """Return the entry of a path at which no sample was found."""
        directory, _, name = path.rpartition("/")
        sample = f"SELECT {_COLUMNS} FROM sample WHERE dir = ? AND name = ?"
        # both of one commit: a listing that comes between may make a file of a directory
        with self._snapshot() as db:
            key = (directory_ino(path),)
            found = db.execute("SELECT name, ino, mtime FROM directory WHERE ino = ?", key).fetchone()
            if found is not None:
                return DirectoryEntry._make(found)
            row = db.execute(sample, (_parent_ino(directory), name)).fetchone()
        return None if row is None else SampleEntry._make(row)

    def list_directory(self, path: str) -> tuple[list[DirectoryEntry], list[SampleEntry]]:
        """Return the directories and samples directly in a directory, from one commit, in byte order."""
        directories = "SELECT name, ino, mtime FROM directory WHERE parent = ? AND ino != ? ORDER BY name"
        samples = f"SELECT {_COLUMNS} FROM sample WHERE dir = ? ORDER BY name"
        try:
            ino = directory_ino(path)
        except UnicodeEncodeError:
            return [], []  # not UTF-8, so no sample can be in it
        with self._snapshot() as db:
            return (
                [DirectoryEntry._make(row) for row in db.execute(directories, (ino, ROOT_INO))],
                [SampleEntry._make(row) for row in db.execute(samples, (ino,))],
            )

    def samples_after(self, path: str, count: int) -> list[SampleEntry]:
        """Return at most `count` samples after a path in its directory, in the byte order of names.

        With a negative count those before it, the nearest first.
        """
        directory, _, name = path.rpartition("/")
        beyond = "name > ? ORDER BY name" if count > 0 else "name < ? ORDER BY name DESC"
        query = f"SELECT {_COLUMNS} FROM sample WHERE dir = ? AND {beyond} LIMIT ?"
        with self._reader() as db:
            rows = db.execute(query, (directory_ino(directory), name, abs(count))).fetchall()
        return [SampleEntry._make(row) for row in rows]

    def sums_in(self, path: str, unknown_bytes: int) -> tuple[int, int]:
        """Count the samples directly in a directory, and their bytes; an unknown size is `unknown_bytes`."""
        query = "SELECT count(*), total(coalesce(size, hint, ?)) FROM sample WHERE dir = ?"
        with self._reader() as db:
            files, size = db.execute(query, (unknown_bytes, directory_ino(path))).fetchone()
        return files, int(size)

    def directories_in(self, path: str) -> list[str]:
        """Return the names of the directories directly in a directory, in byte order."""
        query = "SELECT name FROM directory WHERE parent = ? AND ino != ? ORDER BY name"
        with self._reader() as db:
            return [name for (name,) in db.execute(query, (directory_ino(path), ROOT_INO))]

    def sample(self, ino: int) -> SampleEntry | None:
        """Return the sample with this inode number, or None."""
        with self._reader() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM sample WHERE ino = ?", (ino,)).fetchone()
        return None if row is None else SampleEntry._make(row)

    def by_ino(self, ino: int) -> tuple[str, SampleEntry] | None:
        """Return the path and entry of the sample with this inode number, or None."""
        with self._snapshot() as db:
            row = db.execute(f"SELECT dir, {_COLUMNS} FROM sample WHERE ino = ?", (ino,)).fetchone()
            if row is None:
                return None
            entry = SampleEntry._make(row[1:])
            return "/".join([*directory_path(db, "main.directory", row[0]), entry.name]), entry

    def holds(self, rows: Iterable[Row]) -> bool:
        """Return whether every one of these samples is stored as it is listed."""
        query = "SELECT dir, name, file_name, hint, mtime FROM sample WHERE ino = ?"
        with self._snapshot() as db:
            for row in rows:
                stored = db.execute(query, (sample_ino(row.id),)).fetchone()
                if stored is None or not _is_same(row, *stored):
                    return False
        return True

    def first_unsettled(self, start: Place, absent_etag: str) -> Place | None:
        """Return the first sample at or behind a place that is unverified or of this version, or None.

        Scans from there, in the order of the table.
        """
        query = "SELECT dir, name FROM sample WHERE (dir, name) >= (?, ?) AND (verified != 1 OR etag = ?)"
        with self._reader() as db:
            row = db.execute(f"{query} LIMIT 1", (*start, absent_etag)).fetchone()
        return None if row is None else (row[0], row[1])

    def directories_holding(self, ids: Container[bytes]) -> frozenset[int]:
        """Return the inode numbers of the directories that hold one of these samples, at any depth; scans."""
        with self._snapshot() as db:
            found = {ino for ino, sample in db.execute("SELECT dir, id FROM sample") if sample in ids}
            parents = dict(db.execute("SELECT ino, parent FROM directory").fetchall())
        above: set[int] = set()
        for ino in found:
            while ino not in above:
                above.add(ino)
                ino = parents.get(ino, ROOT_INO)
        return frozenset(above)

    def totals(self, without: Collection[int] = ()) -> Totals:
        """Return sums over all samples but those of these inode numbers, as they are kept."""
        with self._snapshot() as db:
            kept = tables.stored_totals(db)
            if not without:
                return kept
            left = tables.sums_of(db, without)
        return Totals(
            kept.samples - left.samples,
            kept.directories,
            kept.bytes - left.bytes,
            kept.unverified - left.unverified,
        )

    # a file that was deleted

    def _renew(self) -> bool:
        """Write the catalogue again where its file was deleted; whether the file at the path is ours now."""
        if self._anchor.holds() and not self._is_damaged:
            return True
        with self._renewing:
            if self._anchor.holds() and not self._is_damaged:
                return True
            try:
                with self._opening(), self._write_lock:
                    lost = self._renew_locked()
            except (sqlite3.Error, OSError) as error:
                if self._can_renew:
                    log.warning("the catalogue was deleted, and cannot be written again: %s", error)
                self._can_renew = False
                return False
        self._can_renew = True
        if lost:
            log.warning("the catalogue was damaged; everything is listed again")
            self.on_lost()
        else:
            log.warning("the catalogue was deleted; it is written again")
        return True

    def _renew_locked(self) -> bool:
        """Use the file that is at the path now, which is made, or filled, from the deleted one.

        Returns whether it holds nothing, for that one was damaged.
        """
        damaged, self._is_damaged = self._is_damaged, False
        if damaged and self._anchor.holds():
            database.put_aside(self._path)  # the other processes find that it is gone
        writer = self._open_writer(self._path)
        try:
            listed = "SELECT count(*) FROM meta WHERE key = 'listed_at'"
            lost = bool(writer.execute(listed).fetchone() != (1,))
            if lost and not damaged:
                self._writer.backup(writer)
                lost = False
            self._anchor = database.Anchor.of(self._path)
        except BaseException:
            writer.close()
            raise
        old, self._writer = self._writer, writer
        self._publisher.renew()
        # what another process wrote may differ from what is remembered here
        self._seen, self._version, self._heeded = dict.fromkeys(self._seen, -1), -1, -1
        self._idle, idle = [], self._idle
        for db in (old, *idle):
            db.close()
        return lost

    # other processes

    def news(self) -> News | None:
        """Return what other processes wrote since the last call, or None; for one thread at a time."""
        self._renew()
        with self._noting_damage(), self._write_lock:
            (version,) = self._writer.execute("PRAGMA data_version").fetchone()
            if version == self._version:
                return None
            self._version = version
            found = {what: counted(self._writer, what) for what in self._seen}
            self._refreshes = counted(self._writer, REFRESHES)
            news = News(
                found[CHANGES] != self._seen[CHANGES],
                found[RESIZED] != self._seen[RESIZED],
                self._refreshes != self._heeded,
            )
            self._seen = found
        return news

    def heed_refreshes(self) -> None:
        """Take what is recorded from now on for what storage said after the last refresh that is known."""
        with self._write_lock:
            self._heeded = self._refreshes

    def _count_locked(self, what: str) -> None:
        self._note_own_locked(what, count(self._writer, what))

    def _note_own_locked(self, what: str, number: int) -> None:
        """Note a change of this process, so that `news` reports only those of others."""
        if number == self._seen[what] + 1:
            self._seen[what] = number

    # writing

    def set_meta(self, values: dict[str, str]) -> None:
        """Remember values, replacing those of the same keys."""
        with self._transaction() as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def record_facts(self, facts: dict[int, Facts], *, resized: bool = False) -> list[int]:
        """Keep what storage reported, by inode number, of samples that did not change since.

        Other processes hear of it where an object was replaced by another version, or `resized`: one that
        was shown with another size or none. Returns those in doubt: of which others have told another version
        since, or all after a refresh that was not heeded yet.
        """
        with self._transaction() as db:
            replaced, in_doubt = record(db, facts, self._heeded)
            if replaced:
                self._count_locked(CHANGES)
            if resized:
                self._count_locked(RESIZED)
        return in_doubt

    def publish_facts(self, facts: dict[int, Facts]) -> list[int]:
        """Let other processes see what storage reported of samples, unless that takes more than a moment.

        Returns what `record_facts` does.
        """
        return self._publisher.publish(facts, self._heeded)

    def forget_facts(self) -> None:
        """Make every size and version unverified; they stay as the best guess. Heed it then."""
        with self._transaction() as db:
            db.execute("UPDATE sample SET verified = 2 WHERE verified = 1")
            kept = tables.stored_totals(db)
            tables.keep_totals(db, kept._replace(unverified=kept.samples))
            self._refreshes = count(db, REFRESHES)
            self._count_locked(CHANGES)

    @contextmanager
    def listing(self) -> Iterator[ListingWriter]:
        """Collect a complete listing; nothing is visible before `commit`, nothing kept without it."""
        if not self._renew():
            raise sqlite3.OperationalError("the catalogue was deleted, and cannot be written again")
        anchor = self._anchor
        with self._noting_damage(), closing(self._connect(_LISTING_CACHE_KIB)) as db:
            with FORK_GATE:
                db.execute("PRAGMA temp_store = FILE")
                db.execute(f"PRAGMA temp.cache_size = -{_LISTING_CACHE_KIB}")
            yield ListingWriter(
                db,
                self._write_lock,
                lambda number: self._note_own_locked(CHANGES, number),
                stands=anchor.holds,
            )
            with FORK_GATE:
                # else the log keeps as much of the disk as the catalogue; its readers are not waited for
                database.set_patience(db, _SHRINK_TIMEOUT_MS)
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._renew()
        with self._write_lock:
            try:
                with self._noting_damage(), database.transaction(self._writer):
                    yield self._writer
            except BaseException:
                # the change may not have been counted: needless news is better than none
                self._seen = dict.fromkeys(self._seen, -1)
                raise

    @contextmanager
    def _noting_damage(self) -> Iterator[None]:
        try:
            with database.damage_told():
                yield
        except sqlite3.DatabaseError as error:
            self._is_damaged |= database.is_damage(error)
            raise

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with FORK_GATE:
            if self._is_damaged:
                self._renew()
            idle = self._idle
            try:
                db = idle.pop()
            except IndexError:
                fresh = self._new_reader()
                if fresh is None:
                    with self._write_lock:
                        yield self._writer
                    return
                db, idle = fresh
            try:
                yield db
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                with self._noting_damage():
                    raise error
            finally:
                # those of a file that was deleted meanwhile are done with
                if self._closed or len(idle) >= _IDLE_READERS or idle is not self._idle:
                    db.close()
                else:
                    idle.append(db)

    def _new_reader(self) -> tuple[sqlite3.Connection, list[sqlite3.Connection]] | None:
        """Return one more connection, and where it is kept.

        None where it would find an empty file, or the process has no descriptor left.
        """
        if not self._renew():
            return None
        idle = self._idle  # before the file is opened, which may be another one a moment later
        db = None
        try:
            db = self._connect(_READER_CACHE_KIB)
            db.execute("SELECT 1 FROM meta LIMIT 1").fetchone()  # opens all of its files
        except sqlite3.OperationalError as error:
            log.debug("no further connection to the catalogue: %s", error)
            if db is not None:
                db.close()
            return None
        return db, idle

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Lend a reader that sees one state of the catalogue."""
        with self._reader() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("COMMIT")

    def _connect(self, cache_kib: int, timeout_s: float = _WRITE_TIMEOUT_S) -> sqlite3.Connection:
        with FORK_GATE:
            db = database.open_file(self._path, timeout_s)
            db.execute(f"PRAGMA cache_size = -{cache_kib}")
        return db

    @staticmethod
    def _open_writer(path: Path) -> sqlite3.Connection:
        # a lost last commit is one more listing
        db = database.connect(path, timeout_s=_WRITE_TIMEOUT_S, synchronous="NORMAL")
        try:
            db.execute(f"PRAGMA cache_size = -{_FACTS_CACHE_KIB}")
            create_schema(db)
            database.check_tables(db, SCHEMA)
            database.set_patience(db, _FACTS_TIMEOUT_MS)
        except BaseException:
            db.close()
            raise
        return db


def _is_same(
    row: Row, directory: int, name: str, file_name_raw: bytes | None, hint: int | None, mtime: int
) -> bool:
    """Return whether a stored sample is what a listing says; its path may be spelled apart from another's."""
    if (directory, hint, mtime) != (directory_ino(row.directory), row.hint, row.mtime):
        return False
    if row.file_name_raw is not None:
        return file_name_raw == row.file_name_raw
    return name == row.wanted if file_name_raw is None else file_name_raw == row.path.encode()
