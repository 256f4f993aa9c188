"""The SQLite file (or memory) of one dataset: schema, lock, and small named values."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .api_errors import LocalServerError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS samples (
    seq INTEGER PRIMARY KEY,           -- 1, 2, 3...: nothing is ever deleted, so an offset is a seek
    id TEXT NOT NULL UNIQUE,
    name BLOB NOT NULL,                -- UTF-8 with surrogates passed: any JSON string fits
    name_json TEXT NOT NULL,
    document TEXT NOT NULL,            -- the full SampleData, ready to send
    key BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    modified_ms INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS samples_by_name ON samples (name);
CREATE INDEX IF NOT EXISTS samples_by_change ON samples (modified_ms);
CREATE TABLE IF NOT EXISTS tags (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE, document TEXT NOT NULL);
"""


class StateFile:
    """One connection under one lock, held for one statement or transaction. Any thread may use it."""

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.RLock()
        try:
            self._connection = _connect(path)
        except (sqlite3.Error, OSError) as error:
            raise LocalServerError(f"cannot keep state in {path}: {error}") from error

    def rows(self, sql: str, *values: Any) -> list[Any]:
        """Return all rows of a query."""
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    def column(self, sql: str, *values: Any) -> list[Any]:
        """Return the first column of all rows of a query."""
        return [row[0] for row in self.rows(sql, *values)]

    def row(self, sql: str, *values: Any) -> Any:
        """Return the first row of a query, or None."""
        with self._lock:
            return self._connection.execute(sql, values).fetchone()

    def write(self, sql: str, *values: Any) -> None:
        """Run one statement that writes."""
        with self._lock:
            self._connection.execute(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Hold the lock, and commit all changes inside or none."""
        with self._lock:
            if self._connection.in_transaction:
                yield
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def fact(self, name: str, default: str) -> str:
        """Return a stored value; store `default` if there is none."""
        with self.transaction():
            self.write("INSERT OR IGNORE INTO facts VALUES (?, ?)", name, default)
            value: str = self.row("SELECT value FROM facts WHERE name = ?", name)[0]
        return value

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The file holds the API token and the signing secret.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(_SCHEMA)
    return connection
