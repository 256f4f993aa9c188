"""The entries of paths that were looked up recently, and those of the names behind them."""

from __future__ import annotations

import threading

from cachetools import LRUCache

from lightlyfs.catalog.entries import Entry
from lightlyfs.catalog.store import CatalogStore

# a path that is looked at is soon opened, and its neighbours along with it
_MAX_KEPT = 8_000
# a caller that looks up names in directory order has the next ones read ahead, at most this many at once
_MAX_AHEAD = 64
_MAX_DIRECTORIES = 256


class RecentLookups:
    """The entries of paths, from memory where the store was asked recently; any thread may call.

    `outdate` says that the store may answer differently now. Single operations on `_kept` are atomic, and one
    that is lost costs a query.
    """

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self.version = 0
        self._kept: dict[str, tuple[int, Entry | None]] = {}
        self._lock = threading.Lock()
        # guarded by _lock, for a lookup moves entries: by directory the name that comes next where names are
        # asked for in order, and how many were read
        self._ahead: LRUCache[str, tuple[str, int]] = LRUCache(_MAX_DIRECTORIES)

    def outdate(self) -> None:
        """Invalidate all entries after the store changed; for one thread at a time."""
        self.version += 1

    def lookup(self, path: str) -> Entry | None:
        """Return the entry of a path, or None where there is none; may raise sqlite3.Error."""
        version = self.version  # before the store is read, so that what comes meanwhile outdates it
        kept = self._kept.get(path)
        if kept is not None and kept[0] == version:
            return kept[1]
        if len(self._kept) > _MAX_KEPT:
            self._kept = {}
        directory, _, name = path.rpartition("/")
        with self._lock:
            expected, count = self._ahead.get(directory, ("", 1))
        count = min(_MAX_AHEAD, count * 2) if name == expected else 1
        entry, behind = self._store.lookup_with_next(path, count)
        prefix = directory + "/" if directory else ""
        for other in behind[:-1]:
            self._kept[prefix + other.name] = (version, other)
        if behind:
            with self._lock:
                self._ahead[directory] = (behind[-1].name, count)
        self._kept[path] = (version, entry)
        return entry
