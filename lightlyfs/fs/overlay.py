"""Renamed samples that the catalogue does not show under their new name yet."""

from __future__ import annotations

import threading

from lightlyfs.catalog.catalog import Catalog
from lightlyfs.catalog.store import SampleEntry


class RenamedSamples:
    """Where samples were renamed to, until a listing says the same; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock: entries by new path, and by old path the inode number that is gone there
        self._shown: dict[str, SampleEntry] = {}
        self._hidden: dict[str, int] = {}
        self._gone: set[str] = set()  # directories that were renamed with all their samples
        self.generation = 0

    def note(self, old: str, new: str, entry: SampleEntry) -> None:
        """A sample is at `new` now."""
        with self._lock:
            self._shown.pop(old, None)
            if self._hidden.get(new) == entry.ino:
                del self._hidden[new]
            self._hidden[old] = entry.ino
            self._shown[new] = entry._replace(name=new.rpartition("/")[2], file_name_raw=None)
            self.generation += 1

    def note_directory(self, old: str, new: str) -> None:
        """A whole directory is at `new` now."""
        with self._lock:
            self._gone.add(old)
            self._gone.discard(new)
            self.generation += 1

    def is_gone(self, path: str) -> bool:
        """Whether the directory that the catalogue shows at a path was renamed, or is in one that was."""
        return bool(self._gone) and any(path == gone or path.startswith(gone + "/") for gone in self._gone)

    def at(self, path: str) -> SampleEntry | None:
        """The sample that was renamed to this path."""
        return self._shown.get(path) if self._shown else None

    def is_hidden(self, path: str, ino: int) -> bool:
        """Whether the sample that the catalogue shows at a path is elsewhere now."""
        return bool(self._hidden) and self._hidden.get(path) == ino

    def within(self, directory: str) -> list[SampleEntry]:
        """The samples renamed to a place directly in a directory."""
        with self._lock:
            return [entry for path, entry in self._shown.items() if path.rpartition("/")[0] == directory]

    def directories_within(self, directory: str) -> set[str]:
        """The names of directories in a directory that samples were renamed into."""
        prefix = directory + "/" if directory else ""
        with self._lock:
            parents = [path.rpartition("/")[0] for path in self._shown]
        return {
            parent[len(prefix) :].partition("/")[0] for parent in parents if parent.startswith(prefix)
        } - {""}

    def has_directory(self, path: str) -> bool:
        """Whether a sample was renamed to a place below this path."""
        return bool(self._shown) and any(name.startswith(path + "/") for name in list(self._shown))

    def prune(self, catalog: Catalog) -> None:
        """Forget what a new listing shows by itself."""
        with self._lock:
            shown = list(self._shown.items())
        found = {path: catalog.by_id(entry.sample_id) for path, entry in shown}
        settled = {path: entry for path, entry in shown if (at := found[path]) is None or at[0] == path}
        if not settled:
            return
        inos = {entry.ino for entry in settled.values()}
        with self._lock:
            for path in settled:
                self._shown.pop(path, None)
            self._hidden = {old: ino for old, ino in self._hidden.items() if ino not in inos}
            self._gone = {
                gone for gone in self._gone if any(old.startswith(gone + "/") for old in self._hidden)
            }
            self.generation += 1
