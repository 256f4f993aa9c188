"""Whether storage has reported every sample, so that every size shown is the true one."""

from __future__ import annotations

import threading

from lightlyfs.catalog.entries import Place
from lightlyfs.catalog.store import CatalogStore

# before every sample: the inode numbers of directories are positive
_START: Place = (0, "")


class Census:
    """Looks for samples that storage has not reported, or of which it has nothing; any thread may call.

    Remembers where it found the first one, so that all looks together cost little more than one scan.
    `absent_etag` is the version that stands for a sample without a stored object.
    """

    def __init__(self, store: CatalogStore, absent_etag: str) -> None:
        self._store = store
        self._absent_etag = absent_etag
        self._lock = threading.Lock()
        # guarded by _lock
        self._from = _START
        self._changes = 0
        self.settled = False

    def look(self) -> None:
        """Set `settled` if storage has reported all samples by now. Raises sqlite3.Error."""
        with self._lock:
            start, changes = self._from, self._changes
        found = self._store.first_unsettled(start, self._absent_etag)
        with self._lock:
            if self._changes == changes:
                self._from = start if found is None else found
                self.settled = found is None

    def start_over(self) -> None:
        """Start again from the first sample, because the catalogue changed."""
        with self._lock:
            self._from = _START
            self._changes += 1
            self.settled = False
