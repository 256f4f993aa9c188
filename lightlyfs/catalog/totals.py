"""Keeps sums over a catalogue beside its rows, because a scan of a million rows takes half a second.

All functions but `stored` must run in the transaction that changes the rows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import NamedTuple

_KEY = "totals"
_SIZE, _IS_UNVERIFIED = "coalesce(size, hint, 0)", "verified != 1"
_HALF = 27  # bits


class Totals(NamedTuple):
    """Sums over the catalogue; `unverified` counts the samples storage has not reported yet."""

    samples: int
    directories: int
    bytes: int
    unverified: int


class CatalogSums(NamedTuple):
    """Sums over some samples."""

    samples: int
    bytes: int
    unverified: int

    def __sub__(self, other: CatalogSums) -> CatalogSums:
        return CatalogSums(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


def stored(db: sqlite3.Connection) -> Totals:
    """Return the sums that are kept."""
    (text,) = db.execute("SELECT value FROM main.meta WHERE key = ?", (_KEY,)).fetchone()
    return Totals(*map(int, text.split()))


def counted(db: sqlite3.Connection) -> Totals:
    """Return the sums as a scan finds them."""
    (directories,) = db.execute("SELECT count(*) FROM main.directory").fetchone()
    samples, total, unverified = sums_in(db, "main.sample")
    return Totals(samples, directories, total, unverified)


def keep(db: sqlite3.Connection, totals: Totals) -> None:
    """Keep sums."""
    db.execute("INSERT OR REPLACE INTO main.meta VALUES (?, ?)", (_KEY, " ".join(map(str, totals))))


def move(db: sqlite3.Connection, difference: CatalogSums, directories: int | None = None) -> None:
    """Change the sums that are kept by what changed of the rows."""
    kept = stored(db)
    moved = Totals(
        kept.samples + difference.samples,
        kept.directories if directories is None else directories,
        kept.bytes + difference.bytes,
        kept.unverified + difference.unverified,
    )
    if moved != kept:
        keep(db, moved)


def sums_in(db: sqlite3.Connection, rows: str) -> CatalogSums:
    """Return the sums over a table, or a part of it, as SQL names it."""
    # in halves, for sizes that cannot be may add up to more than SQLite can hold
    halves = f"total({_SIZE} >> {_HALF}), total({_SIZE} & {(1 << _HALF) - 1})"
    query = f"SELECT count(*), {halves}, total({_IS_UNVERIFIED}) FROM {rows}"
    samples, upper, lower, unverified = map(int, db.execute(query).fetchone())
    return CatalogSums(samples, (upper << _HALF) + lower, unverified)


def sums_of(db: sqlite3.Connection, inos: Iterable[int]) -> CatalogSums:
    """Return the sums over a few samples by their inode numbers."""
    query = f"SELECT {_SIZE}, {_IS_UNVERIFIED} FROM main.sample WHERE ino = ?"
    found = [row for ino in set(inos) for row in db.execute(query, (ino,))]
    return CatalogSums(len(found), sum(size for size, _ in found), sum(unverified for _, unverified in found))
