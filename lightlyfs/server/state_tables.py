"""The state of a served dataset in SQLite: the file, its samples in insertion order, and its tags.

Rows of samples are JSON texts ready to send, so a page costs one query and one join. Computed samples, if
any, come first and have rows only once they are updated. Tags are named bit masks, bit k for the k-th sample.
"""

import hashlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from .asgi import ApiError, LocalServerError
from .serve_options import SizeReport
from .storage import LocalStorage

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


Column = Literal["ids", "fileNames", "full", "id", "name"]

SIZE_MAX_BYTES = 2**63 - 1
"""The largest integer of SQLite; a request may send a larger one."""

_SQL_COLUMNS: dict[str, str] = {
    "ids": """'{"id":"' || id || '"}'""",
    "fileNames": """'{"id":"' || id || '","fileName":' || name_json || '}'""",
    "full": "document",
    "id": """'"' || id || '"'""",
    "name": "name_json",
}


@dataclass(frozen=True)
class SampleRow:
    """One sample: its number, its document, the key of its full object."""

    seq: int
    document: dict[str, Any]
    key: str

    @property
    def id(self) -> str:
        """The id of the sample."""
        return str(self.document["id"])


@dataclass(frozen=True)
class Window:
    """A part of the list; a `limit` of None means to the end."""

    offset: int = 0
    limit: int | None = None
    by_id: bool = False


class ComputedSamples(Protocol):
    """The first samples of a dataset, which have no rows. Pure: any thread may call it."""

    @property
    def count(self) -> int:
        """The number of samples."""
        ...

    @property
    def total_bytes(self) -> int:
        """The size of all their objects."""
        ...

    @property
    def created_ms(self) -> int:
        """The time of creation of all of them."""
        ...

    def id_of(self, index: int) -> str:
        """Return the id of the sample at `index`, which may lie past `count` for samples added later."""
        ...

    def key_of(self, sample_id: str) -> str:
        """Return the key of the object of a sample."""
        ...

    def index_of(self, sample_id: str) -> int | None:
        """Return the index of an id, or None if no computed sample has it."""
        ...

    def name_of(self, index: int) -> str:
        """Return the file name of a sample."""
        ...

    def indices_named(self, name: str, prefix: bool) -> list[int]:
        """Return the indices of the samples called `name`, or whose names start with it."""
        ...

    def document(self, index: int) -> dict[str, Any]:
        """Return the full SampleData of a sample."""
        ...

    def fragments(self, column: str, indices: range) -> list[str]:
        """Return one JSON text per index; columns as in `SampleTable.page`."""
        ...


class ComputedDataset(Protocol):
    """A dataset that is computed instead of read from a folder or a bucket."""

    @property
    def place(self) -> str:
        """The text from which the dataset id is derived; the path, for a folder."""
        ...

    @property
    def name(self) -> str:
        """The name of the dataset, unless the options give one."""
        ...

    def open(
        self, dataset_id: str, sizes: SizeReport, uploads: LocalStorage
    ) -> tuple[ComputedSamples, LocalStorage]:
        """Return the samples, and a storage of their objects that keeps uploads in `uploads`."""
        ...


class SampleTable:
    """The samples of one dataset. Any thread may call it."""

    def __init__(self, state: StateFile, dataset_id: str, computed: ComputedSamples | None) -> None:
        self._state = state
        self._dataset_id = dataset_id
        self._computed = computed
        self._base = computed.count if computed else 0

    def count(self) -> int:
        """Return the number of samples."""
        last = self._state.row("SELECT max(seq) FROM samples")[0]
        return max(self._base, last or 0)

    def total_bytes(self) -> int:
        """Return the sum of the sizes that were known when samples were added."""
        # total(), a float, is exact up to 2^53 and never too large, as sum() may be
        added = int(self._state.row("SELECT total(size) FROM samples WHERE seq > ?", self._base)[0])
        return added + (self._computed.total_bytes if self._computed else 0)

    def modified_ms(self) -> int:
        """Return when a sample last changed, 0 for an empty dataset."""
        changed: int = self._state.row("SELECT coalesce(max(modified_ms), 0) FROM samples")[0]
        return max(changed, self._computed.created_ms if self._computed else 0)

    def get(self, sample_id: str) -> SampleRow | None:
        """Return one sample, or None."""
        row = self._state.row("SELECT seq, document, key FROM samples WHERE id = ?", sample_id)
        if row is not None:
            return SampleRow(row[0], json.loads(row[1]), text_of(row[2]))
        index = self._computed.index_of(sample_id) if self._computed else None
        return None if index is None else self._computed_row(index)

    def key_of(self, sample_id: str) -> str | None:
        """Return the key of the full object of a sample without its document; this is the hot path."""
        row = self._state.row("SELECT key FROM samples WHERE id = ?", sample_id)
        if row is not None:
            return text_of(row[0])
        if self._computed is None or self._computed.index_of(sample_id) is None:
            return None
        return self._computed.key_of(sample_id)

    def page(self, column: Column, window: Window) -> list[str]:
        """Return one JSON text per sample of the window, in insertion order or by id."""
        if window.by_id and not self._base:
            sql = f"SELECT {_SQL_COLUMNS[column]} FROM samples ORDER BY id LIMIT ? OFFSET ?"
            return self._state.column(sql, -1 if window.limit is None else window.limit, window.offset)
        end = self.count() if window.limit is None else window.offset + window.limit
        texts = self._computed_page(column, window.offset, min(end, self._base))
        if end > self._base:
            sql = f"SELECT {_SQL_COLUMNS[column]} FROM samples WHERE seq > ? AND seq <= ? ORDER BY seq"
            texts += self._state.column(sql, max(window.offset, self._base), end)
        return texts

    def page_named(self, column: Column, name: str, prefix: bool, window: Window) -> list[str]:
        """Return the samples called `name`, or whose names start with it."""
        indices = self._indices_named(name, prefix)
        stop = None if window.limit is None else window.offset + window.limit
        texts = []
        for index in indices[window.offset : stop]:
            texts += self.page(column, Window(index, 1))
        return texts

    def name_and_id(self, indices: Sequence[int]) -> list[tuple[str, str]]:
        """Return (file name, id) of the samples at these ascending indices."""
        if not indices:
            return []
        sql = "SELECT seq, name, id FROM samples WHERE seq > ? AND seq <= ?"
        rows = {row[0]: row for row in self._state.rows(sql, indices[0], indices[-1] + 1)}
        pairs = []
        for index in indices:
            row = rows.get(index + 1)
            if row is not None:
                pairs.append((row[1].decode("utf-8", "surrogatepass"), row[2]))
            elif self._computed is not None:
                pairs.append((self._computed.name_of(index), self._computed.id_of(index)))
        return pairs

    def indices_of_names(self, names: Sequence[str]) -> list[int]:
        """Return the indices of all samples with these names."""
        return [index for name in names for index in self._indices_named(name, False)]

    def add(self, fields: dict[str, Any], sample_id: str, key: str, size: int, now_ms: int) -> SampleRow:
        """Append a sample; `fields` are those of a create request."""
        with self._state.transaction():
            seq = self.count() + 1
            document = {
                "id": sample_id,
                "type": sample_type(fields),
                "datasetId": self._dataset_id,
                "index": seq - 1,
                "createdAt": now_ms,
                "lastModifiedAt": now_ms,
                **fields,
            }
            self._put(seq, document, key, size)
        return SampleRow(seq, document, key)

    def update(self, sample_id: str, fields: dict[str, Any], now_ms: int) -> bool:
        """Change these fields and increase the time of change; return False for an unknown id."""
        with self._state.transaction():
            row = self.get(sample_id)
            if row is None:
                return False
            changed_ms = max(now_ms, row.document["lastModifiedAt"] + 1)
            document = {**row.document, **fields, "lastModifiedAt": changed_ms}
            document = {name: value for name, value in document.items() if value is not None}
            self._put(row.seq, document, row.key, 0)
        return True

    def is_free(self, key: str) -> bool:
        """Return whether no sample owns `key`, a folder above it, or something below it."""
        parts = key.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        marks = ", ".join("?" * len(above))
        taken = self._state.row(f"SELECT 1 FROM samples WHERE key IN ({marks})", *map(key_bytes, above))
        low, high = key_bytes(key) + b"/", key_bytes(key) + b"0"
        return (
            taken is None
            and self._state.row("SELECT 1 FROM samples WHERE key > ? AND key < ?", low, high) is None
        )

    def owns(self, key: str) -> bool:
        """Return whether a sample has this key."""
        return self._state.row("SELECT 1 FROM samples WHERE key = ?", key_bytes(key)) is not None

    def new_id(self, name: str) -> str:
        """Return an unused id: derived from the name, so a server without state returns the same one."""
        if self._computed is not None:
            return self._computed.id_of(self.count())
        raw = bytes_of(name)
        sample_id = derived_id(raw)
        repeat = 0
        while self._state.row("SELECT 1 FROM samples WHERE id = ?", sample_id) is not None:
            repeat += 1
            sample_id = derived_id(raw + b"\0" + str(repeat).encode())
        return sample_id

    def _put(self, seq: int, document: dict[str, Any], key: str, size: int) -> None:
        name = document["fileName"]
        self._state.write(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (seq) DO UPDATE SET"
            " name = excluded.name, name_json = excluded.name_json, document = excluded.document,"
            " modified_ms = excluded.modified_ms",
            seq,
            document["id"],
            bytes_of(name),
            json.dumps(name),
            json.dumps(document, separators=(",", ":")),
            key_bytes(key),
            min(size, SIZE_MAX_BYTES),
            document["lastModifiedAt"],
        )

    def _computed_page(self, column: Column, start: int, end: int) -> list[str]:
        if self._computed is None or start >= end:
            return []
        texts = self._computed.fragments(column, range(start, end))
        sql = f"SELECT seq, {_SQL_COLUMNS[column]} FROM samples WHERE seq > ? AND seq <= ?"
        for seq, text in self._state.rows(sql, start, end):
            texts[seq - 1 - start] = text
        return texts

    def _indices_named(self, name: str, prefix: bool) -> list[int]:
        where = "substr(name, 1, length(?)) = ?" if prefix else "name = ?"
        values = [bytes_of(name)] * where.count("?")
        stored = self._state.column(f"SELECT seq - 1 FROM samples WHERE {where} ORDER BY seq", *values)
        if self._computed is None:
            return stored
        renamed = set(self._state.column("SELECT seq - 1 FROM samples WHERE seq <= ?", self._base))
        others = set(self._computed.indices_named(name, prefix)) - renamed
        return sorted(others.union(stored))

    def _computed_row(self, index: int) -> SampleRow:
        assert self._computed is not None
        document = self._computed.document(index)
        return SampleRow(index + 1, document, self._computed.key_of(document["id"]))


def sample_type(fields: dict[str, Any]) -> str:
    """Return the type that the service assigns to a sample; requests cannot set it."""
    if fields.get("cropData"):
        return "CROP"
    return "VIDEO_FRAME" if fields.get("videoFrameData") else "IMAGE"


def derived_id(raw: bytes) -> str:
    """Return the id derived from `raw`."""
    return hashlib.sha256(raw).hexdigest()[:24]


def bytes_of(name: str) -> bytes:
    """Return any JSON string as bytes, lone surrogates included."""
    return name.encode("utf-8", "surrogatepass")


def key_bytes(key: str) -> bytes:
    """Return a key as the bytes of its path."""
    return key.encode("utf-8", "surrogateescape")


def text_of(raw: bytes) -> str:
    """Return a key from the bytes of its path."""
    return raw.decode("utf-8", "surrogateescape")


INITIAL_TAG = "initial-tag"


class TagTable:
    """The tags of one dataset, newest first. Any thread may call it."""

    def __init__(self, state: StateFile, dataset_id: str) -> None:
        self._state = state
        self._dataset_id = dataset_id

    def list_all(self) -> list[dict[str, Any]]:
        """Return all tags; the initial tag is the oldest and comes last."""
        return [
            json.loads(text) for text in self._state.column("SELECT document FROM tags ORDER BY seq DESC")
        ]

    def get(self, tag_id: str) -> dict[str, Any] | None:
        """Return one tag, or None."""
        row = self._state.row("SELECT document FROM tags WHERE id = ?", tag_id)
        return json.loads(row[0]) if row else None

    def add(self, name: str, mask: int, previous: str | None, now_ms: int) -> str:
        """Add a tag and return its id; names are unique within the dataset."""
        tag_id = secrets.token_hex(12)
        document = {
            "id": tag_id,
            "datasetId": self._dataset_id,
            "prevTagId": previous,
            "name": name,
            "bitMaskData": f"0x{mask:x}",
            "totSize": mask.bit_count(),
            "createdAt": now_ms,
            "lastModifiedAt": now_ms,
        }
        with self._state.transaction():
            if self._state.row("SELECT 1 FROM tags WHERE name = ?", name) is not None:
                raise ApiError(400, "TAG_NAME_EXISTS", f"there is a tag called {name} already")
            insert = "INSERT INTO tags (id, name, document) VALUES (?, ?, ?)"
            self._state.write(insert, tag_id, name, json.dumps(document))
        return tag_id

    def remove(self, tag_id: str) -> None:
        """Remove a tag; no effect for an unknown id."""
        with self._state.transaction():
            self._state.write("DELETE FROM tags WHERE id = ?", tag_id)

    def ensure_initial(self, count: int, now_ms: int) -> None:
        """Add the tag of all samples present, once there are any; later samples are not added to it."""
        if count and self._state.row("SELECT 1 FROM tags") is None:
            self.add(INITIAL_TAG, (1 << count) - 1, None, now_ms)

    def root_id(self) -> str | None:
        """Return the id of the oldest tag, or None without tags."""
        row = self._state.row("SELECT id FROM tags ORDER BY seq LIMIT 1")
        return row[0] if row else None


def mask_of(indices: Iterable[int], count: int) -> int:
    """Return the mask with these bits set, in time linear in `count`."""
    raw = bytearray(count // 8 + 1)
    for index in indices:
        raw[index // 8] |= 1 << (index % 8)
    return int.from_bytes(raw, "little")


def indices_of(mask: int) -> list[int]:
    """Return the set bits, lowest first, in linear time."""
    raw = mask.to_bytes((mask.bit_length() + 7) // 8, "little")
    return [
        position * 8 + bit for position, byte in enumerate(raw) if byte for bit in range(8) if byte >> bit & 1
    ]
