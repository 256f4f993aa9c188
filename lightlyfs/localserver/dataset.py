"""The dataset being served: samples and their objects together, whoever asks (the API or a test)."""

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from .catalog import Catalog, Row, Window
from .keys import object_key, plain_key, thumbnail_key
from .options import SizeReport
from .storage import Found, Storage

SCAN_PAUSES = 20
"""How many times its own duration a scan is followed by a pause: a twentieth of one core at most."""


def now_ms() -> int:
    """Return the time as the API writes it."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class DatasetFacts:
    """What does not change while the server runs."""

    id: str
    name: str
    created_ms: int


class Dataset:
    """Samples plus storage. Any thread may call it.

    `sizes` says what the samples of stored objects tell of their sizes; the storage is looked through again
    for new objects when `rescan_s` are over, None for never.
    """

    def __init__(
        self,
        facts: DatasetFacts,
        catalog: Catalog,
        storage: Storage,
        sizes: SizeReport = "true",
        rescan_s: float | None = None,
    ) -> None:
        self.facts = facts
        self.catalog = catalog
        self.storage = storage
        self._sizes = sizes
        self._rescan_s = rescan_s
        self._next_scan_s = 0.0
        self._adding = threading.Lock()
        self._scanning = threading.Lock()

    def import_objects(self) -> None:
        """Add a sample for each stored object that has none; returns at once where that is under way."""
        if not self._scanning.acquire(blocking=False):
            return
        try:
            started_s = time.monotonic()
            for found in self.storage.scan():
                with self._adding:
                    if not self.catalog.owns(found.key):
                        self._import(found)
            ended_s = time.monotonic()
            # a large folder is not looked through all the time
            self._next_scan_s = ended_s + max(self._rescan_s or 0.0, SCAN_PAUSES * (ended_s - started_s))
        finally:
            self._scanning.release()

    def is_scan_due(self) -> bool:
        """Say whether the storage is to be looked through again."""
        return self._rescan_s is not None and time.monotonic() >= self._next_scan_s

    def _import(self, found: Found) -> None:
        fields: dict[str, Any] = {"fileName": found.name}
        if self._sizes != "omitted":
            fields["metaData"] = {"sizeInBytes": found.size + (1 if self._sizes == "wrong" else 0)}
        self.catalog.add(fields, self.catalog.new_id(found.name), found.key, found.size, found.modified_ms)

    def create(self, fields: dict[str, Any]) -> Row:
        """Append a sample; its object gets its name as key where that is safe and free."""
        fields = {name: value for name, value in fields.items() if value is not None}
        size = (fields.get("metaData") or {}).get("sizeInBytes", 0)
        # the storage may be far away, so it is not asked under the lock
        wanted = self._wanted_key(fields["fileName"])
        with self._adding:
            sample_id = self.catalog.new_id(fields["fileName"])
            free = wanted is not None and self.catalog.is_free(wanted)
            key = wanted if wanted is not None and free else object_key(sample_id)
            return self.catalog.add(fields, sample_id, key, size, now_ms())

    def read_url(self, sample_id: str, thumbnail: bool) -> str | None:
        """Return a signed GET URL, or None if there is no such sample.

        A thumbnail that was never uploaded is the full image, as on a datasource without a thumbnail suffix.
        """
        key = self.catalog.key_of(sample_id)
        if key is None:
            return None
        if thumbnail and self.storage.exists(thumbnail_key(sample_id)):
            key = thumbnail_key(sample_id)
        return self.storage.read_url(key)

    def write_url(self, sample_id: str, thumbnail: bool) -> str | None:
        """Return a signed PUT URL, or None if there is no such sample."""
        key = self.catalog.key_of(sample_id)
        if key is None:
            return None
        return self.storage.write_url(thumbnail_key(sample_id) if thumbnail else key)

    def documents(self) -> list[dict[str, Any]]:
        """Return all samples in order."""
        return [json.loads(text) for text in self.catalog.page("full", Window())]

    def object_bytes(self, sample_id: str, thumbnail: bool) -> bytes | None:
        """Return the stored bytes of a sample, or None."""
        key = thumbnail_key(sample_id) if thumbnail else self.catalog.key_of(sample_id)
        return None if key is None else self.storage.read_bytes(key)

    def _wanted_key(self, name: str) -> str | None:
        """The key that a sample of this name would get; None where it is unsafe or taken."""
        key = plain_key(name)
        return key if key is not None and self.catalog.is_free(key) and self.storage.accepts(key) else None
