"""One complete listing on its way into the catalogue: staged, named, compared, swapped in.

Works in temporary tables of one connection, so a million samples need no memory, and touches only the
rows that differ, so that an unchanged dataset costs no writes and keeps its verified sizes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Iterable, Iterator
from typing import NamedTuple

from lightlyfs.catalog.inodes import ROOT_INO, directory_ino, sample_ino
from lightlyfs.catalog.tree import resolve_clashes, split_name

# more changed paths than this are reported as "everything": telling the kernel one by one costs more
MAX_REPORTED_PATHS = 10_000

_TABLES = """
CREATE TEMP TABLE staged (
    ino INTEGER PRIMARY KEY, id BLOB NOT NULL, dir INTEGER NOT NULL, wanted TEXT NOT NULL, name TEXT NOT NULL,
    file_name BLOB, hint INTEGER, mtime INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE TEMP TABLE staged_dir (
    ino INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, mtime INTEGER NOT NULL DEFAULT 0);
CREATE TEMP TABLE changed (ino INTEGER PRIMARY KEY);
CREATE TEMP TABLE gone (ino INTEGER PRIMARY KEY);
"""
_CLASHES = """
SELECT dir, wanted, 0 FROM temp.staged GROUP BY dir, wanted HAVING count(*) > 1
UNION
SELECT s.dir, s.wanted, 1 FROM temp.staged_dir d JOIN temp.staged s ON s.dir = d.parent AND s.wanted = d.name
WHERE d.ino != d.parent
ORDER BY 1, 2, 3
"""
_CHANGED = """
INSERT INTO temp.changed
SELECT n.ino FROM temp.staged n LEFT JOIN main.sample o ON o.ino = n.ino
WHERE o.ino IS NULL OR o.dir != n.dir OR o.name != n.name OR o.mtime != n.mtime
   OR o.hint IS NOT n.hint OR o.file_name IS NOT n.file_name
"""
_GONE = """
INSERT INTO temp.gone
SELECT o.ino FROM main.sample o WHERE NOT EXISTS (SELECT 1 FROM temp.staged n WHERE n.ino = o.ino)
"""
# what storage reported still holds where neither time nor size hint moved, as after a rename; the size
# stays the better guess as long as the hint is what it was
_FRESH = """
SELECT n.dir, n.name, n.ino, n.id, n.file_name, n.hint, n.mtime, n.created,
       CASE WHEN o.hint IS n.hint THEN o.size END, o.etag,
       coalesce(o.mtime = n.mtime AND o.hint IS n.hint AND o.verified, 0)
FROM temp.staged n LEFT JOIN main.sample o ON o.ino = n.ino
"""


class Row(NamedTuple):
    """A sample as the API lists it, its name already split into a path."""

    id: bytes
    directory: str
    wanted: str
    file_name_raw: bytes | None
    hint: int | None
    mtime: int
    created: int


class Changes(NamedTuple):
    """What a new listing changed; `paths` is None where everything may have changed."""

    added: int
    changed: int
    gone: int
    paths: tuple[str, ...] | None

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.gone)


def make_row(sample_id: str, file_name: str, hint: int | None, mtime: int, created: int) -> Row:
    """Split a sample's name into its path; `hint` is in bytes, the times in whole seconds."""
    *directories, wanted = split_name(file_name)
    directory = "/".join(directories)
    spelled = f"{directory}/{wanted}" if directory else wanted
    raw = None if spelled == file_name else file_name.encode("utf-8", "surrogatepass")
    return Row(bytes.fromhex(sample_id), directory, wanted, raw, hint, mtime, created)


class Staging:
    """The temporary tables of one listing, on a connection of their own."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._known_directories: set[str] = set()

    def create(self) -> None:
        """Make the empty tables."""
        self._db.executescript(_TABLES)
        self._db.execute("INSERT INTO temp.staged_dir VALUES (?, ?, '', 0)", (ROOT_INO, ROOT_INO))

    def add(self, rows: Iterable[Row]) -> None:
        """Stage samples; one staged before is replaced."""
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR REPLACE INTO temp.staged VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", self._encode(rows)
        )
        self._db.execute("COMMIT")

    def count(self) -> int:
        """How many different samples are staged."""
        (count,) = self._db.execute("SELECT count(*) FROM temp.staged").fetchone()
        return int(count)

    def has_directory(self, path: str) -> bool:
        """Whether this directory was staged lately; may be asked by any thread."""
        return path in self._known_directories

    def settle_names(self) -> None:
        """Give every sample its final name and every directory its time, then find what differs."""
        self._db.execute("CREATE INDEX temp.staged_by_path ON staged (dir, wanted)")
        self._settle_clashes()
        self._settle_directory_times()
        self._db.execute(_CHANGED)
        self._db.execute(_GONE)

    def commit(self, meta: dict[str, str], keep: frozenset[int]) -> Changes:
        """Swap the differences in; the caller holds the store's write lock."""
        db = self._db
        db.executemany("DELETE FROM temp.gone WHERE ino = ?", [(ino,) for ino in keep])
        db.execute("BEGIN IMMEDIATE")
        try:
            changes = self._swap_in()
            db.executemany("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", meta.items())
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        return changes

    def _encode(self, rows: Iterable[Row]) -> Iterator[tuple[object, ...]]:
        inos: dict[str, int] = {}
        for row in rows:
            directory = inos.get(row.directory)
            if directory is None:
                directory = inos[row.directory] = self._stage_directory(row.directory)
            ino = sample_ino(row.id)
            yield (
                ino,
                row.id,
                directory,
                row.wanted,
                row.wanted,
                row.file_name_raw,
                row.hint,
                row.mtime,
                row.created,
            )

    def _stage_directory(self, path: str) -> int:
        ino = directory_ino(path)
        if path and path not in self._known_directories:
            if len(self._known_directories) >= 10_000:  # a bound on memory; the table ignores repeats
                self._known_directories.clear()
            self._known_directories.add(path)
            parent, _, name = path.rpartition("/")
            self._db.execute(
                "INSERT OR IGNORE INTO temp.staged_dir (ino, parent, name) VALUES (?, ?, ?)",
                (ino, self._stage_directory(parent), name),
            )
        return ino

    def _settle_clashes(self) -> None:
        given: set[str] = set()
        last_directory = None
        clashes = self._db.execute(_CLASHES).fetchall()
        directory_clashes = {(directory, wanted) for directory, wanted, kind in clashes if kind}
        for directory, wanted in dict.fromkeys((row[0], row[1]) for row in clashes):
            if directory != last_directory:
                given, last_directory = set(), directory
            rows = self._db.execute(
                "SELECT id FROM temp.staged WHERE dir = ? AND wanted = ?", (directory, wanted)
            )
            names = resolve_clashes(
                wanted,
                [row[0].hex() for row in rows],
                _Taken(self._db, directory, given),
                is_directory=(directory, wanted) in directory_clashes,
            )
            given.update(names.values())
            self._rename(directory, wanted, names)

    def _rename(self, directory: int, wanted: str, names: dict[str, str]) -> None:
        """Give samples their names; one whose path no longer spells its true name keeps that beside it."""
        spelled = "/".join([*self._staged_path(directory), wanted]).encode()
        self._db.executemany(
            "UPDATE temp.staged SET name = ?1, file_name = coalesce(file_name, ?2) WHERE ino = ?3",
            [
                (name, None if name == wanted else spelled, sample_ino(bytes.fromhex(sample_id)))
                for sample_id, name in names.items()
            ],
        )

    def _staged_path(self, ino: int) -> list[str]:
        parts: list[str] = []
        while ino != ROOT_INO:
            query = "SELECT name, parent FROM temp.staged_dir WHERE ino = ?"
            name, ino = self._db.execute(query, (ino,)).fetchone()
            parts.append(name)
        return parts[::-1]

    def _settle_directory_times(self) -> None:
        newest = dict(self._db.execute("SELECT dir, max(mtime) FROM temp.staged GROUP BY dir"))
        parents = dict(self._db.execute("SELECT ino, parent FROM temp.staged_dir"))
        for ino, mtime in list(newest.items()):
            while newest.get(ino, 0) <= mtime:
                newest[ino] = mtime
                if ino == ROOT_INO:
                    break
                ino = parents[ino]
        self._db.executemany(
            "UPDATE temp.staged_dir SET mtime = ? WHERE ino = ?", [(m, i) for i, m in newest.items()]
        )

    def _swap_in(self) -> Changes:
        db = self._db
        (before,) = db.execute("SELECT count(*) FROM main.sample").fetchone()
        (changed,) = db.execute("SELECT count(*) FROM temp.changed").fetchone()
        (gone,) = db.execute("SELECT count(*) FROM temp.gone").fetchone()
        if before == 0:
            db.execute(f"INSERT INTO main.sample {_FRESH} ORDER BY n.dir, n.name")
            self._swap_directories()
            return Changes(changed, 0, 0, None)
        few = changed + gone <= MAX_REPORTED_PATHS
        paths = self._changed_paths() if few else []
        db.execute(f"CREATE TEMP TABLE fresh AS {_FRESH} WHERE n.ino IN temp.changed")
        (added,) = db.execute(
            "SELECT count(*) FROM temp.changed WHERE ino NOT IN (SELECT ino FROM main.sample)"
        ).fetchone()
        db.execute("DELETE FROM main.sample WHERE ino IN temp.changed OR ino IN temp.gone")
        db.execute("INSERT INTO main.sample SELECT * FROM temp.fresh")
        self._swap_directories()
        if few:
            paths += self._changed_paths()
        return Changes(added, changed - added, gone, tuple(dict.fromkeys(paths)) if few else None)

    def _swap_directories(self) -> None:
        self._db.execute("DELETE FROM main.directory WHERE ino NOT IN (SELECT ino FROM temp.staged_dir)")
        self._db.execute(
            "INSERT OR REPLACE INTO main.directory SELECT ino, parent, name, mtime FROM temp.staged_dir"
        )

    def _changed_paths(self) -> list[str]:
        """Where the catalogue, as it is now, holds the samples that change, and their directories."""
        query = "SELECT dir, name FROM main.sample WHERE ino IN temp.changed OR ino IN temp.gone"
        directories: dict[int, str] = {ROOT_INO: ""}
        paths = []
        for directory, name in self._db.execute(query):
            prefix = self._directory_path(directory, directories)
            paths.append(f"{prefix}/{name}" if prefix else name)
        return paths + list(directories.values())

    def _directory_path(self, ino: int, known: dict[int, str]) -> str:
        if ino not in known:
            name, parent = self._db.execute(
                "SELECT name, parent FROM main.directory WHERE ino = ?", (ino,)
            ).fetchone()
            prefix = self._directory_path(parent, known)
            known[ino] = f"{prefix}/{name}" if prefix else name
        return known[ino]


class _Taken(Container[str]):
    """The components of one directory that are spoken for, asked one at a time: there may be a million."""

    def __init__(self, db: sqlite3.Connection, directory: int, given: set[str]) -> None:
        self._db = db
        self._directory = directory
        self._given = given

    def __contains__(self, name: object) -> bool:
        if name in self._given:
            return True
        query = """SELECT EXISTS (SELECT 1 FROM temp.staged WHERE dir = ?1 AND wanted = ?2)
                       OR EXISTS (SELECT 1 FROM temp.staged_dir WHERE parent = ?1 AND name = ?2)"""
        (found,) = self._db.execute(query, (self._directory, name)).fetchone()
        return bool(found)
