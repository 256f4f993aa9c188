"""Writes one complete listing to the catalogue: stages, names and compares its rows, and swaps them in.

Works in temporary tables of one connection, so that a million samples need no memory: rows are appended as
they arrive and sorted once at the end. Changes only the rows of the catalogue that differ, so that an
unchanged dataset costs no writes and keeps its verified sizes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Iterable, Iterator

from lightlyfs import database
from lightlyfs.catalog import tables
from lightlyfs.catalog.entries import Changes, Row
from lightlyfs.catalog.names import resolve_clashes
from lightlyfs.catalog.tables import CHANGES, count, counted
from lightlyfs.forks import FORK_GATE
from lightlyfs.tree import ROOT_INO, above, directory_ino, directory_inos, sample_ino

# more changed paths than this are reported as "everything": telling the kernel one by one costs more
MAX_REPORTED_PATHS = 10_000
# directories remembered as staged; for others the table is asked, or they are written once more
_MAX_KNOWN = 200_000
# paths whose inode number is remembered; they are long strings where datasets are deep
_MAX_KNOWN_PATHS = 2_000

_TABLES = """
CREATE TEMP TABLE staged (
    ino INTEGER NOT NULL, id BLOB NOT NULL, dir INTEGER NOT NULL, wanted TEXT NOT NULL,
    name TEXT,  -- where it differs from what the sample wanted
    file_name BLOB, hint INTEGER, mtime INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE TEMP TABLE staged_dir (
    ino INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, mtime INTEGER NOT NULL,
    depth INTEGER NOT NULL);
CREATE TEMP TABLE changed (ino INTEGER PRIMARY KEY);
CREATE TEMP TABLE gone (ino INTEGER PRIMARY KEY);
"""
_STAGE_DIRECTORY = """
INSERT INTO temp.staged_dir VALUES (?, ?, ?, ?, ?)
ON CONFLICT (ino) DO UPDATE SET mtime = max(mtime, excluded.mtime)
"""
# a sample handed over twice counts as it was the last time
_FORGET_OLDER = """
DELETE FROM temp.staged WHERE ino IN (SELECT ino FROM temp.staged GROUP BY ino HAVING count(*) > 1)
AND rowid < (SELECT max(s.rowid) FROM temp.staged s WHERE s.ino = staged.ino)
"""
_FORGET_EMPTY = """
DELETE FROM temp.staged_dir WHERE depth = ? AND ino NOT IN (SELECT dir FROM temp.staged)
AND ino NOT IN (SELECT parent FROM temp.staged_dir)
"""
_RAISE_PARENTS = """
UPDATE temp.staged_dir SET mtime = max(mtime, below.newest)
FROM (SELECT parent, max(mtime) AS newest FROM temp.staged_dir WHERE depth = ? GROUP BY parent) AS below
WHERE staged_dir.ino = below.parent
"""
_CHANGED = """
INSERT INTO temp.changed
SELECT n.ino FROM temp.staged n
LEFT JOIN main.sample o ON o.dir = n.dir AND o.name = coalesce(n.name, n.wanted)
WHERE o.ino IS NOT n.ino OR o.mtime != n.mtime OR o.hint IS NOT n.hint OR o.file_name IS NOT n.file_name
"""
_GONE = """
INSERT INTO temp.gone
SELECT o.ino FROM main.sample o WHERE NOT EXISTS (SELECT 1 FROM temp.staged n WHERE n.ino = o.ino)
"""
_ALL = """
INSERT INTO main.sample
SELECT dir, coalesce(name, wanted), ino, id, file_name, hint, mtime, created, NULL, NULL, 0
FROM temp.staged ORDER BY dir, wanted
"""
# what storage reported still holds where neither time nor size hint moved, as after a rename; the size
# stays the better guess as long as the hint is what it was
_FRESH = """
CREATE TEMP TABLE fresh AS
SELECT n.dir, coalesce(n.name, n.wanted) AS name, n.ino, n.id, n.file_name, n.hint, n.mtime, n.created,
       CASE WHEN o.hint IS n.hint THEN o.size END AS size, o.etag,
       CASE WHEN o.mtime = n.mtime AND o.hint IS n.hint THEN o.verified ELSE 0 END AS verified
FROM temp.changed c CROSS JOIN temp.staged n ON n.ino = c.ino LEFT JOIN main.sample o ON o.ino = n.ino
"""
_TOUCHED = "(SELECT ino FROM temp.changed UNION ALL SELECT ino FROM temp.gone)"
_DIRECTORIES = """
INSERT OR REPLACE INTO main.directory
SELECT n.ino, n.parent, n.name, n.mtime FROM temp.staged_dir n LEFT JOIN main.directory o ON o.ino = n.ino
WHERE o.ino IS NULL OR o.mtime != n.mtime OR o.parent != n.parent OR o.name != n.name
"""
SAMPLE_BY_INO = "CREATE UNIQUE INDEX main.sample_by_ino ON sample (ino)"


class ListingWriter:
    """A listing being collected, in temporary tables of a connection of its own; used by one thread."""

    def __init__(
        self,
        db: sqlite3.Connection,
        write_lock: database.Lock,
        on_counted: Callable[[int], None],
        *,
        stands: Callable[[], bool],
    ) -> None:
        """Make the empty tables. `stands()` says whether the catalogue is still at its path.

        `on_counted` is called with the number of this change of the catalogue, where it was one, under the
        write lock.
        """
        self._db = db
        self._write_lock = write_lock
        self._on_counted = on_counted
        self._stands = stands
        self._known: set[int] = set()
        self._inos: dict[str, int] = {}
        self._max_depth = 0
        self._is_sorted = False
        self._compared_with = 0
        with FORK_GATE:
            db.executescript(_TABLES)
            db.execute(_STAGE_DIRECTORY, (ROOT_INO, ROOT_INO, "", 0, 0))

    def add(self, rows: Iterable[Row]) -> None:
        """Add a page of samples; a sample seen before is replaced."""
        newest: dict[str, int] = {}
        insert = "INSERT INTO temp.staged VALUES (?, ?, ?, ?, NULL, ?, ?, ?, ?)"
        with FORK_GATE:
            if self._is_sorted:
                self._reopen()
            self._db.execute("BEGIN")
            self._db.executemany(insert, self._encode(rows, newest))
            self._db.executemany(_STAGE_DIRECTORY, self._encode_directories(newest))
            self._db.execute("COMMIT")

    def count(self) -> int:
        """Return the number of distinct samples added; sorts them, so that each further page costs more."""
        with FORK_GATE:
            self._sort()
            (count,) = self._db.execute("SELECT count(*) FROM temp.staged").fetchone()
        return int(count)

    def has_directory(self, path: str) -> bool:
        """Return whether a sample in or below this directory was added recently; any thread may call."""
        try:
            return directory_ino(path) in self._known
        except UnicodeEncodeError:
            return False

    def commit(self, meta: dict[str, str]) -> Changes:
        """Make this listing the catalogue, in one step, and say what differs from the last one.

        What storage reported stays verified where neither the sample's time nor its size hint moved. Raises
        sqlite3.Error where the disk fails, or a cleaner deleted the catalogue since the listing began.
        """
        with FORK_GATE:
            self._settle_names()
        with self._write_lock:
            if not self._stands():
                raise sqlite3.OperationalError("it was deleted while the dataset was listed")
            counted_as: int | None = None
            with database.transaction(self._db):
                if counted(self._db, CHANGES) != self._compared_with:
                    self._compare()  # another process listed meanwhile
                changes = self._swap(meta)
                if changes:
                    counted_as = count(self._db, CHANGES)
            if counted_as is not None:
                self._on_counted(counted_as)
        return changes

    def _settle_names(self) -> None:
        """Give every sample its final name and every directory its time, then find what differs."""
        self._sort()
        self._db.execute("BEGIN")  # one transaction of temporary tables, not one for each name
        settle_clashes(self._db)
        self._db.execute("CREATE INDEX temp.staged_dir_by_depth ON staged_dir (depth)")
        for depth in range(self._max_depth, 0, -1):
            self._db.execute(_RAISE_PARENTS, (depth,))
        self._db.execute("COMMIT")
        self._compared_with = counted(self._db, CHANGES)
        self._compare()

    def _swap(self, meta: dict[str, str]) -> Changes:
        db = self._db
        changes, moved = self._insert_all() if self._is_first() else self._swap_in()
        self._swap_directories()
        if changes:
            (directories,) = db.execute("SELECT count(*) FROM main.directory").fetchone()
            tables.move_totals(db, moved, directories)
        db.executemany("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", meta.items())
        return changes

    def _encode(self, rows: Iterable[Row], newest: dict[str, int]) -> Iterator[tuple[object, ...]]:
        """Yield the rows as the table takes them; notes the newest time in each directory."""
        inos = self._inos
        for sample_id, directory, wanted, raw, hint, mtime, created in rows:
            ino = inos.get(directory)
            if ino is None:
                if len(inos) >= _MAX_KNOWN_PATHS:
                    inos.clear()
                ino = inos[directory] = directory_ino(directory)
            if mtime > newest.get(directory, -1):
                newest[directory] = mtime
            yield sample_ino(sample_id), sample_id, ino, wanted, raw, hint, mtime, created

    def _encode_directories(self, newest: dict[str, int]) -> Iterator[tuple[object, ...]]:
        """Yield each directory with its time, and those above it with none."""
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        for path, mtime in newest.items():
            names = path.split("/") if path else []
            inos = [ROOT_INO, *directory_inos(names)]
            self._max_depth = max(self._max_depth, len(names))
            for depth, (name, parent, ino) in enumerate(zip(names, inos, inos[1:], strict=False), 1):
                if depth < len(names) and ino in self._known:
                    continue
                self._known.add(ino)
                yield ino, parent, name, mtime if depth == len(names) else 0, depth
            if not names:
                yield ROOT_INO, ROOT_INO, "", mtime, 0

    def _sort(self) -> None:
        """Index what was appended, and forget what was handed over twice."""
        if self._is_sorted:
            return
        self._is_sorted = True
        self._db.execute("CREATE INDEX temp.staged_by_ino ON staged (ino)")
        twice = self._db.execute(_FORGET_OLDER).rowcount
        self._db.execute("CREATE INDEX temp.staged_by_path ON staged (dir, wanted)")
        for depth in range(self._max_depth if twice else 0, 0, -1):
            self._db.execute(_FORGET_EMPTY, (depth,))

    def _reopen(self) -> None:
        """Take more after `count`."""
        self._is_sorted = False
        self._db.execute("DROP INDEX temp.staged_by_ino")
        self._db.execute("DROP INDEX temp.staged_by_path")
        self._known.clear()  # those that were empty are staged no longer

    def _compare(self) -> None:
        """Find what differs from the catalogue as it is now."""
        self._db.execute("DELETE FROM temp.changed")
        self._db.execute("DELETE FROM temp.gone")
        if not self._is_first():
            self._db.execute(_CHANGED)
            self._db.execute(_GONE)

    def _is_first(self) -> bool:
        (found,) = self._db.execute("SELECT EXISTS (SELECT 1 FROM main.sample)").fetchone()
        return not found

    def _insert_all(self) -> tuple[Changes, tables.CatalogSums]:
        """Return the first listing: an index is made in a quarter of the time it takes to keep one."""
        self._db.execute("DROP INDEX main.sample_by_ino")
        added = self._db.execute(_ALL).rowcount
        self._db.execute(SAMPLE_BY_INO)
        return Changes(added, 0, 0, None), tables.sums_in(self._db, "main.sample")

    def _swap_in(self) -> tuple[Changes, tables.CatalogSums]:
        db = self._db
        (changed,) = db.execute("SELECT count(*) FROM temp.changed").fetchone()
        (gone,) = db.execute("SELECT count(*) FROM temp.gone").fetchone()
        few = changed + gone <= MAX_REPORTED_PATHS
        paths = self._changed_paths() if few else []
        db.execute(_FRESH)
        (known,) = db.execute(
            "SELECT count(*) FROM temp.changed c CROSS JOIN main.sample o ON o.ino = c.ino"
        ).fetchone()
        moved = tables.sums_in(db, "temp.fresh") - tables.sums_in(db, f"main.sample WHERE ino IN {_TOUCHED}")
        db.execute(f"DELETE FROM main.sample WHERE ino IN {_TOUCHED}")
        db.execute("INSERT INTO main.sample SELECT * FROM temp.fresh")
        if few:
            paths += self._changed_paths(staged=True)
        changes = Changes(changed - known, known, gone, tuple(dict.fromkeys(paths)) if few else None)
        return changes, moved

    def _swap_directories(self) -> None:
        self._db.execute("DELETE FROM main.directory WHERE ino NOT IN (SELECT ino FROM temp.staged_dir)")
        self._db.execute(_DIRECTORIES)

    def _changed_paths(self, *, staged: bool = False) -> list[str]:
        """Return where the catalogue, as it is now, holds the samples that change, and their directories."""
        table = "temp.staged_dir" if staged else "main.directory"
        query = f"SELECT dir, name FROM main.sample WHERE ino IN {_TOUCHED} ORDER BY dir"
        last, directory, paths = 0, "", [""]
        for ino, name in self._db.execute(query):
            if ino != last:
                last, directory = ino, "/".join(directory_path(self._db, table, ino))
                if directory:
                    paths += [directory, *above(directory)]
            paths.append(f"{directory}/{name}" if directory else name)
        return paths


# name clashes: every sample gets a component that is unique in its directory

_CLASHES = """
CREATE TEMP TABLE clash AS
SELECT dir, wanted, max(is_directory) AS is_directory FROM (
    SELECT dir, wanted, 0 AS is_directory FROM temp.staged GROUP BY dir, wanted HAVING count(*) > 1
    UNION ALL
    SELECT s.dir, s.wanted, 1 FROM temp.staged_dir d CROSS JOIN temp.staged s
    ON s.dir = d.parent AND s.wanted = d.name WHERE d.depth > 0)
GROUP BY dir, wanted ORDER BY dir, wanted
"""


def settle_clashes(db: sqlite3.Connection) -> None:
    """Name the samples that want a component others want too; the rest keep what they wanted."""
    db.execute(_CLASHES)
    directory = None
    for ino, wanted, is_directory in db.execute("SELECT dir, wanted, is_directory FROM temp.clash"):
        if directory is None or directory.ino != ino:
            directory = _Directory(db, ino)
        _settle_one(db, directory, wanted, is_directory=bool(is_directory))
    db.execute("DROP TABLE temp.clash")


def directory_path(db: sqlite3.Connection, table: str, ino: int) -> list[str]:
    """Return the components of a directory's path, from a table that has `ino`, `parent` and `name`."""
    parts: list[str] = []
    while ino != ROOT_INO:
        name, ino = db.execute(f"SELECT name, parent FROM {table} WHERE ino = ?", (ino,)).fetchone()
        parts.append(name)
    return parts[::-1]


class _Directory(Container[str]):
    """The components of one directory that are spoken for, asked one at a time: there may be a million."""

    def __init__(self, db: sqlite3.Connection, ino: int) -> None:
        self._db = db
        self.ino = ino
        self.path = "/".join(directory_path(db, "temp.staged_dir", ino))
        self.given: set[str] = set()

    def child(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str) or name in self.given:
            return True
        query = """SELECT EXISTS (SELECT 1 FROM temp.staged WHERE dir = ? AND wanted = ?)
                       OR EXISTS (SELECT 1 FROM temp.staged_dir WHERE ino = ?)"""
        (found,) = self._db.execute(query, (self.ino, name, directory_ino(self.child(name)))).fetchone()
        return bool(found)


def _settle_one(db: sqlite3.Connection, directory: _Directory, wanted: str, *, is_directory: bool) -> None:
    query = "SELECT id, rowid FROM temp.staged WHERE dir = ? AND wanted = ?"
    rows = {sample_id.hex(): row for sample_id, row in db.execute(query, (directory.ino, wanted))}
    names = resolve_clashes(wanted, rows, directory, is_directory=is_directory)
    directory.given.update(names.values())
    # one whose path no longer spells its true name keeps that beside it
    spelled = directory.child(wanted).encode()
    db.executemany(
        "UPDATE temp.staged SET name = ?, file_name = coalesce(file_name, ?) WHERE rowid = ?",
        [(name, spelled, rows[sample_id]) for sample_id, name in names.items() if name != wanted],
    )
