"""The tables of a catalogue: their schema, the counters of changes, and sums kept beside the rows.

The sums are kept because a scan of a million rows takes half a second. All functions that change them must
run in the transaction that changes the rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

from lightlyfs import database
from lightlyfs.catalog.entries import Totals
from lightlyfs.tree import ROOT_INO

# 1 kept no totals
SCHEMA_VERSION = 2
# the dataset whose exported index a catalogue is, until it was listed on this machine
INDEX_OF = "index_of"

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE directory (
    ino INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name TEXT NOT NULL, mtime INTEGER NOT NULL DEFAULT 0);
CREATE UNIQUE INDEX directory_by_name ON directory (parent, name);
CREATE TABLE sample (
    dir INTEGER NOT NULL, name TEXT NOT NULL, ino INTEGER NOT NULL, id BLOB NOT NULL,
    file_name BLOB,      -- only where the path does not spell it
    hint INTEGER,        -- metaData.sizeInBytes
    mtime INTEGER NOT NULL, created INTEGER NOT NULL,
    size INTEGER, etag TEXT,  -- what storage last reported; NULL until it did
    verified INTEGER NOT NULL DEFAULT 0,  -- 1: that counts; 2: it did until a refresh; 0: it may not
    PRIMARY KEY (dir, name)) WITHOUT ROWID;
CREATE UNIQUE INDEX sample_by_ino ON sample (ino);
"""

# counted in the catalogue, so that processes sharing it notice each other's: changes after which anything may
# be another, those of sizes that directories show, and refreshes, before which storage is to be asked again
CHANGES = "changes"
RESIZED = "resized"
REFRESHES = "refreshes"


_KEY = "totals"
_SIZE, _IS_UNVERIFIED = "coalesce(size, hint, 0)", "verified != 1"
_HALF = 27  # bits


class CatalogSums(NamedTuple):
    """Sums over some samples."""

    samples: int
    bytes: int
    unverified: int

    def __sub__(self, other: CatalogSums) -> CatalogSums:
        return CatalogSums(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def stored_totals(db: sqlite3.Connection) -> Totals:
    """Return the sums that are kept."""
    (text,) = db.execute("SELECT value FROM main.meta WHERE key = ?", (_KEY,)).fetchone()
    return Totals(*map(int, text.split()))


def scanned_totals(db: sqlite3.Connection) -> Totals:
    """Return the sums as a scan finds them."""
    (directories,) = db.execute("SELECT count(*) FROM main.directory").fetchone()
    samples, total, unverified = sums_in(db, "main.sample")
    return Totals(samples, directories, total, unverified)


def keep_totals(db: sqlite3.Connection, totals: Totals) -> None:
    """Keep sums."""
    db.execute("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", (_KEY, " ".join(map(str, totals))))


def move_totals(db: sqlite3.Connection, difference: CatalogSums, directories: int | None = None) -> None:
    """Change the sums that are kept by what changed of the rows."""
    kept = stored_totals(db)
    moved = Totals(
        kept.samples + difference.samples,
        kept.directories if directories is None else directories,
        kept.bytes + difference.bytes,
        kept.unverified + difference.unverified,
    )
    if moved != kept:
        keep_totals(db, moved)


def sums_in(db: sqlite3.Connection, rows: str, *values: str) -> CatalogSums:
    """Return the sums over a table, or a part of it, as SQL names it with its values."""
    # in halves, for sizes that cannot be may add up to more than SQLite can hold
    halves = f"total({_SIZE} >> {_HALF}), total({_SIZE} & {(1 << _HALF) - 1})"
    query = f"SELECT count(*), {halves}, total({_IS_UNVERIFIED}) FROM {rows}"
    samples, upper, lower, unverified = map(int, db.execute(query, values).fetchone())
    return CatalogSums(samples, (upper << _HALF) + lower, unverified)


def sums_of(db: sqlite3.Connection, inos: Iterable[int]) -> CatalogSums:
    """Return the sums over a few samples by their inode numbers."""
    return sums_in(db, "main.sample WHERE ino IN (SELECT value FROM json_each(?))", json.dumps([*inos]))


def create_schema(db: sqlite3.Connection) -> None:
    """Make or migrate the tables, unless another process did; raises Damaged where others are there."""
    if database.user_version(db) == SCHEMA_VERSION:
        return
    with database.transaction(db):
        version = database.user_version(db)
        if version == SCHEMA_VERSION:
            return
        if version == 0 and not db.execute("SELECT 1 FROM sqlite_master").fetchone():
            for statement in SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute("INSERT INTO directory VALUES (?, ?, '', 0)", (ROOT_INO, ROOT_INO))
        elif version != 1:
            raise database.Damaged(f"a catalogue of version {version}")
        keep_totals(db, scanned_totals(db))
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def counted(db: sqlite3.Connection, what: str) -> int:
    """Return how often something was counted."""
    row = db.execute("SELECT value FROM main.meta WHERE key = ?", (what,)).fetchone()
    return 0 if row is None else int(row[0])


def count(db: sqlite3.Connection, what: str) -> int:
    """Count something once more, within a transaction; the new number."""
    number = counted(db, what) + 1
    db.execute("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", (what, str(number)))
    return number
