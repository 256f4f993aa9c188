"""Samples as rows: insertion order, pages, names, and which object belongs to which sample.

Rows are JSON texts ready to send, so a page costs a query and a join. Generated samples, if any, come first
and exist as rows only once they are updated.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .database import Database
from .generated import CREATED_MS, KEY_PREFIX, GeneratedSamples

Column = Literal["ids", "fileNames", "full", "id", "name"]

SIZE_MAX_BYTES = 2**63 - 1
"""SQLite has no larger number; a record may claim one."""

_SQL_COLUMNS: dict[str, str] = {
    "ids": """'{"id":"' || id || '"}'""",
    "fileNames": """'{"id":"' || id || '","fileName":' || name_json || '}'""",
    "full": "document",
    "id": """'"' || id || '"'""",
    "name": "name_json",
}


@dataclass(frozen=True)
class Row:
    """One sample: its place, its document, the key of its full object."""

    seq: int
    document: dict[str, Any]
    key: str

    @property
    def id(self) -> str:
        """The sample's id."""
        return str(self.document["id"])


@dataclass(frozen=True)
class Window:
    """Which part of the list: `limit` None means to the end."""

    offset: int = 0
    limit: int | None = None
    by_id: bool = False


class Catalog:
    """The samples of one dataset. Any thread may call it."""

    def __init__(self, database: Database, dataset_id: str, generated: GeneratedSamples | None) -> None:
        self._db = database
        self._dataset_id = dataset_id
        self._generated = generated
        self._base = generated.count if generated else 0

    def count(self) -> int:
        """Return how many samples there are."""
        last = self._db.row("SELECT max(seq) FROM samples")[0]
        return max(self._base, last or 0)

    def total_bytes(self) -> int:
        """Return the sum of the sizes that were known when samples were added."""
        # total(), a float, is exact up to 2^53 and never too large, as sum() may be
        added = int(self._db.row("SELECT total(size) FROM samples WHERE seq > ?", self._base)[0])
        return added + (self._base * self._generated.size if self._generated else 0)

    def modified_ms(self) -> int:
        """Return when a sample last changed, 0 for an empty dataset."""
        changed: int = self._db.row("SELECT coalesce(max(modified_ms), 0) FROM samples")[0]
        return max(changed, CREATED_MS if self._base else 0)

    def get(self, sample_id: str) -> Row | None:
        """Return one sample, or None."""
        row = self._db.row("SELECT seq, document, key FROM samples WHERE id = ?", sample_id)
        if row is not None:
            return Row(row[0], json.loads(row[1]), text_of(row[2]))
        index = self._generated.index_of(sample_id) if self._generated else None
        return None if index is None else self._generated_row(index)

    def key_of(self, sample_id: str) -> str | None:
        """Return the key of a sample's full object without building the sample: this is the hot path."""
        row = self._db.row("SELECT key FROM samples WHERE id = ?", sample_id)
        if row is not None:
            return text_of(row[0])
        if self._generated is None or self._generated.index_of(sample_id) is None:
            return None
        return KEY_PREFIX + sample_id

    def page(self, column: Column, window: Window) -> list[str]:
        """Return one JSON text per sample of the window, in insertion order or by id."""
        if window.by_id and not self._base:
            return self._select(column, "1 ORDER BY id", (), window)
        end = self.count() if window.limit is None else window.offset + window.limit
        texts = self._generated_page(column, window.offset, min(end, self._base))
        if end > self._base:
            sql = f"SELECT {_SQL_COLUMNS[column]} FROM samples WHERE seq > ? AND seq <= ? ORDER BY seq"
            texts += self._db.column(sql, max(window.offset, self._base), end)
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
        """Return (file name, id) of the samples at these places, which are in ascending order."""
        if not indices:
            return []
        sql = "SELECT seq, name, id FROM samples WHERE seq > ? AND seq <= ?"
        rows = {row[0]: row for row in self._db.rows(sql, indices[0], indices[-1] + 1)}
        pairs = []
        for index in indices:
            row = rows.get(index + 1)
            if row is not None:
                pairs.append((row[1].decode("utf-8", "surrogatepass"), row[2]))
            elif self._generated is not None:
                pairs.append((self._generated.name_of(index), self._generated.id_of(index)))
        return pairs

    def indices_of_names(self, names: Sequence[str]) -> list[int]:
        """Return the places of all samples with these names."""
        return [index for name in names for index in self._indices_named(name, False)]

    def add(self, fields: dict[str, Any], sample_id: str, key: str, size: int, now_ms: int) -> Row:
        """Append a sample; `fields` are those of a create request."""
        with self._db.transaction():
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
        return Row(seq, document, key)

    def update(self, sample_id: str, fields: dict[str, Any], now_ms: int) -> bool:
        """Change these fields and the time of change, which always grows; False without such a sample."""
        with self._db.transaction():
            row = self.get(sample_id)
            if row is None:
                return False
            changed_ms = max(now_ms, row.document["lastModifiedAt"] + 1)
            document = {**row.document, **fields, "lastModifiedAt": changed_ms}
            document = {name: value for name, value in document.items() if value is not None}
            self._put(row.seq, document, row.key, 0)
        return True

    def is_free(self, key: str) -> bool:
        """Say whether no sample owns `key`, a folder above it, or something below it."""
        parts = key.split("/")
        above = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        marks = ", ".join("?" * len(above))
        taken = self._db.row(f"SELECT 1 FROM samples WHERE key IN ({marks})", *map(key_bytes, above))
        low, high = key_bytes(key) + b"/", key_bytes(key) + b"0"
        return (
            taken is None
            and self._db.row("SELECT 1 FROM samples WHERE key > ? AND key < ?", low, high) is None
        )

    def owns(self, key: str) -> bool:
        """Say whether a sample has this key."""
        return self._db.row("SELECT 1 FROM samples WHERE key = ?", key_bytes(key)) is not None

    def new_id(self, name: str) -> str:
        """Return an unused id: derived from the name, so that a server without state gives it again."""
        if self._generated is not None:
            return self._generated.id_of(self.count())
        raw = bytes_of(name)
        sample_id = derived_id(raw)
        repeat = 0
        while self._db.row("SELECT 1 FROM samples WHERE id = ?", sample_id) is not None:
            repeat += 1
            sample_id = derived_id(raw + b"\0" + str(repeat).encode())
        return sample_id

    def _put(self, seq: int, document: dict[str, Any], key: str, size: int) -> None:
        name = document["fileName"]
        self._db.write(
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

    def _select(self, column: Column, where: str, values: tuple[Any, ...], window: Window) -> list[str]:
        limit = -1 if window.limit is None else window.limit
        sql = f"SELECT {_SQL_COLUMNS[column]} FROM samples WHERE {where} LIMIT {limit} OFFSET {window.offset}"
        return self._db.column(sql, *values)

    def _generated_page(self, column: Column, start: int, end: int) -> list[str]:
        if self._generated is None or start >= end:
            return []
        texts = self._generated.fragments(column, range(start, end))
        sql = f"SELECT seq, {_SQL_COLUMNS[column]} FROM samples WHERE seq > ? AND seq <= ?"
        for seq, text in self._db.rows(sql, start, end):
            texts[seq - 1 - start] = text
        return texts

    def _indices_named(self, name: str, prefix: bool) -> list[int]:
        where = "substr(name, 1, length(?1)) = ?1" if prefix else "name = ?1"
        stored = self._db.column(f"SELECT seq - 1 FROM samples WHERE {where} ORDER BY seq", bytes_of(name))
        if self._generated is None:
            return stored
        renamed = set(self._db.column("SELECT seq - 1 FROM samples WHERE seq <= ?", self._base))
        computed = set(self._generated.indices_named(name, prefix)) - renamed
        return sorted(computed.union(stored))

    def _generated_row(self, index: int) -> Row:
        assert self._generated is not None
        document = self._generated.document(index)
        return Row(index + 1, document, KEY_PREFIX + document["id"])


def sample_type(fields: dict[str, Any]) -> str:
    """Return the type the service gives a sample: requests cannot set it."""
    if fields.get("cropData"):
        return "CROP"
    return "VIDEO_FRAME" if fields.get("videoFrameData") else "IMAGE"


def derived_id(raw: bytes) -> str:
    """Return the id that `raw` always gets."""
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
