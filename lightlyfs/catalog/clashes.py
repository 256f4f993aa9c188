"""Resolves name clashes of a staged listing: every sample gets a component that is unique in its directory.

Works on the tables of `staging`, one directory after another. The order depends only on the set of samples,
so every machine resolves the clashes alike.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container

from lightlyfs.catalog.names import resolve_clashes
from lightlyfs.inodes import ROOT_INO, directory_ino

_CLASHES = """
CREATE TEMP TABLE clash AS
SELECT dir, wanted, max(is_directory) AS is_directory FROM (
    SELECT dir, wanted, 0 AS is_directory FROM temp.staged GROUP BY dir, wanted HAVING count(*) > 1
    UNION ALL
    SELECT s.dir, s.wanted, 1 FROM temp.staged_dir d CROSS JOIN temp.staged s
    ON s.dir = d.parent AND s.wanted = d.name WHERE d.depth > 0)
GROUP BY dir, wanted ORDER BY dir, wanted
"""


def settle(db: sqlite3.Connection) -> None:
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
