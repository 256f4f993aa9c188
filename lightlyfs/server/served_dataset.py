"""The dataset being served: its samples together with their objects."""

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from .serve_options import SizeReport
from .state_tables import SampleRow, SampleTable, Window
from .storage import ListedObject, Storage, object_key, plain_key, thumbnail_key

SCAN_PAUSES = 20
"""The pause after a scan, in durations of that scan, so scans take at most a twentieth of one core."""


def now_ms() -> int:
    """Return the time in the unit of the API."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class DatasetFacts:
    """The facts that do not change while the server runs."""

    id: str
    name: str
    created_ms: int


class ServedDataset:
    """Samples plus storage. Any thread may call it.

    `sizes` selects the sizes that imported samples report. The storage is scanned again for new objects after
    `rescan_s`; None means never.
    """

    def __init__(
        self,
        facts: DatasetFacts,
        samples: SampleTable,
        storage: Storage,
        sizes: SizeReport = "true",
        rescan_s: float | None = None,
    ) -> None:
        self.facts = facts
        self.samples = samples
        self.storage = storage
        self._sizes = sizes
        self._rescan_s = rescan_s
        self._next_scan_s = 0.0
        self._adding = threading.Lock()
        self._scanning = threading.Lock()

    def import_objects(self) -> None:
        """Add a sample for each stored object that has none; return at once if a scan is in progress."""
        if not self._scanning.acquire(blocking=False):
            return
        try:
            started_s = time.monotonic()
            for found in self.storage.scan():
                with self._adding:
                    if not self.samples.owns(found.key):
                        self._import(found)
            ended_s = time.monotonic()
            # a large folder is not scanned all the time
            self._next_scan_s = ended_s + max(self._rescan_s or 0.0, SCAN_PAUSES * (ended_s - started_s))
        finally:
            self._scanning.release()

    def is_scan_due(self) -> bool:
        """Return whether the next scan is due."""
        return self._rescan_s is not None and time.monotonic() >= self._next_scan_s

    def _import(self, found: ListedObject) -> None:
        fields: dict[str, Any] = {"fileName": found.name}
        if self._sizes != "omitted":
            fields["metaData"] = {"sizeInBytes": found.size + (1 if self._sizes == "wrong" else 0)}
        self.samples.add(fields, self.samples.new_id(found.name), found.key, found.size, found.modified_ms)

    def create(self, fields: dict[str, Any]) -> SampleRow:
        """Append a sample; the key of its object is its name if that is safe and free."""
        fields = {name: value for name, value in fields.items() if value is not None}
        size = (fields.get("metaData") or {}).get("sizeInBytes", 0)
        # the storage may be remote, so it is not called under the lock
        wanted = self._wanted_key(fields["fileName"])
        with self._adding:
            sample_id = self.samples.new_id(fields["fileName"])
            free = wanted is not None and self.samples.is_free(wanted)
            key = wanted if wanted is not None and free else object_key(sample_id)
            return self.samples.add(fields, sample_id, key, size, now_ms())

    def read_url(self, sample_id: str, thumbnail: bool) -> str | None:
        """Return a signed GET URL, or None if there is no such sample.

        A thumbnail that was never uploaded is the full image, as on a datasource without a thumbnail suffix.
        """
        key = self.samples.key_of(sample_id)
        if key is None:
            return None
        if thumbnail and self.storage.exists(thumbnail_key(sample_id)):
            key = thumbnail_key(sample_id)
        return self.storage.read_url(key)

    def write_url(self, sample_id: str, thumbnail: bool) -> str | None:
        """Return a signed PUT URL, or None if there is no such sample."""
        key = self.samples.key_of(sample_id)
        if key is None:
            return None
        return self.storage.write_url(thumbnail_key(sample_id) if thumbnail else key)

    def documents(self) -> list[dict[str, Any]]:
        """Return all samples in order."""
        return [json.loads(text) for text in self.samples.page("full", Window())]

    def object_bytes(self, sample_id: str, thumbnail: bool) -> bytes | None:
        """Return the stored bytes of a sample, or None."""
        key = thumbnail_key(sample_id) if thumbnail else self.samples.key_of(sample_id)
        return None if key is None else self.storage.read_bytes(key)

    def _wanted_key(self, name: str) -> str | None:
        """Return the key for a sample of this name, or None if it is unsafe or taken."""
        key = plain_key(name)
        return key if key is not None and self.samples.is_free(key) and self.storage.accepts(key) else None
