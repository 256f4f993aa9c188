"""Names that this mount changed (renamed, removed, replaced) and that the catalogue does not show yet."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.occupied import Occupied
from lightlyfs.staging.local_files import LocalFile

# a listing that shows the old name began before the rename, or is of a server that lags; one this much later
# tells that others have renamed it back
LISTING_LAGS_S = 600.0


class RenamedSamples:
    """Where samples were renamed to, until a listing shows the rename; any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock: entries by new path, and where those are; by old path the inode number gone there
        self._shown: dict[str, SampleEntry] = {}
        self._within: dict[str, dict[str, SampleEntry]] = {}
        self._occupied = Occupied()
        self._hidden: dict[str, int] = {}
        self._noted_at: dict[str, float] = {}
        # directories that were renamed with all their samples; replaced as a whole, read without the lock
        self._gone: frozenset[str] = frozenset()
        self.generation = 0

    def note(self, old: str, new: str, entry: SampleEntry) -> None:
        """Note that a sample was renamed to `new`, with `entry` as its entry there."""
        with self._lock:
            self._forget_locked(old)
            self._forget_locked(new)
            if self._hidden.get(new) == entry.ino:
                del self._hidden[new]
            self._hidden[old] = entry.ino
            directory, _, name = new.rpartition("/")
            self._noted_at[new] = self._clock()
            self._shown[new] = self._within.setdefault(directory, {})[name] = entry
            self._occupied.add(new)
            self.generation += 1

    def note_directory(self, old: str, new: str) -> None:
        """Note that a whole directory was renamed to `new`."""
        self.note_removed(old)
        with self._lock:
            self._gone -= {new}
            self.generation += 1

    def note_removed(self, directory: str) -> None:
        """Note that an empty directory was removed."""
        with self._lock:
            if self._hides_below_locked(directory):
                self._gone |= {directory}
            self.generation += 1

    def is_gone(self, path: str) -> bool:
        """Whether the directory that the catalogue shows at a path was renamed, or is in one that was."""
        gone = self._gone
        while gone and path:
            if path in gone:
                return True
            path = path.rpartition("/")[0]
        return False

    def at(self, path: str) -> SampleEntry | None:
        """Return the sample that was renamed to this path."""
        return self._shown.get(path) if self._shown else None

    def is_hidden(self, path: str, ino: int) -> bool:
        """Whether the sample that the catalogue shows at a path is elsewhere now."""
        return bool(self._hidden) and self._hidden.get(path) == ino

    def within(self, directory: str) -> list[SampleEntry]:
        """Return the samples renamed to a place directly in a directory."""
        with self._lock:
            return list(self._within.get(directory, {}).values())

    def directories_within(self, directory: str) -> set[str]:
        """Return the names of directories in a directory that samples were renamed into."""
        with self._lock:
            return self._occupied.within(directory)

    def has_directory(self, path: str) -> bool:
        """Whether a sample was renamed to a place below this path."""
        return path in self._occupied

    def prune(self, catalog: Catalog) -> None:
        """Forget what a new listing shows by itself."""
        with self._lock:
            shown = list(self._shown.items())
        settled = {}
        for path, entry in shown:
            found = catalog.by_id(entry.sample_id)
            lags = found is not None and self.is_hidden(found[0], entry.ino)
            if not lags or self._clock() - self._noted_at.get(path, 0.0) > LISTING_LAGS_S:
                settled[path] = entry
        with self._lock:
            # one that was renamed on meanwhile is not settled
            done = {entry.ino for path, entry in settled.items() if self._shown.get(path) is entry}
            for path in settled:
                if self._shown.get(path) is settled[path]:
                    self._forget_locked(path)
            self._hidden = {old: ino for old, ino in self._hidden.items() if ino not in done}
            self._gone = frozenset(gone for gone in self._gone if self._hides_below_locked(gone))
            self.generation += bool(done)

    def _forget_locked(self, path: str) -> None:
        self._noted_at.pop(path, None)
        if self._shown.pop(path, None) is None:
            return
        directory, _, name = path.rpartition("/")
        del self._within[directory][name]
        if not self._within[directory]:
            del self._within[directory]
        self._occupied.remove(path)

    def _hides_below_locked(self, directory: str) -> bool:
        return any(old.startswith(directory + "/") for old in self._hidden)


log = logging.getLogger(__name__)

HIDDEN_PREFIX = ".fuse_hidden"
# coreutils and BusyBox remove the target of `mv -f` and `install` before they write it
_REPLACERS = frozenset({"mv", "install", "ginstall", "busybox"})
REPLACED_WITHIN_S = 1.0
# programs that have read samples; one that was forgotten is refused no more, so there are many
_MAX_READERS = 10_000
# hidden names that lead to what is still there: a rename that failed leaves the kernel with one
_MAX_HIDDEN = 1_000


class _Removal(NamedTuple):
    entry: SampleEntry
    timer: threading.Timer


class Removed:
    """What is removed on one mount, but not gone; any thread may call.

    `on_changed(path)` is called when a path shows something else.
    """

    def __init__(self, on_changed: Callable[[str], None]) -> None:
        self._on_changed = on_changed
        self._lock = threading.Lock()
        # guarded by _lock
        self._files: dict[str, LocalFile] = {}
        self._kept: LRUCache[str, LocalFile | SampleEntry] = LRUCache(_MAX_HIDDEN)
        self._removals: dict[str, _Removal] = {}
        self._readers: LRUCache[int, None] = LRUCache(_MAX_READERS)

    # hidden names of open files

    def hide(self, path: str, node: LocalFile | SampleEntry) -> None:
        """Let a hidden path lead to an open file."""
        with self._lock:
            if isinstance(node, LocalFile):
                self._files[path] = node
            else:
                self._kept[path] = node

    def at(self, path: str) -> LocalFile | SampleEntry | None:
        """Return the open file that a hidden path leads to."""
        with self._lock:
            return self._files.get(path) or self._kept.get(path)

    def closed(self, path: str) -> None:
        """Forget a hidden path, whose file is closed."""
        with self._lock:
            file = self._files.pop(path, None)
            # one whose replacement failed is still there, and the kernel knows it by this path for a while
            if file is not None and not file.unlinked:
                self._kept[path] = file

    # removals that a replacement is to follow

    def note_reader(self, process: int) -> None:
        """Note that a program reads a sample: it may be moving that away."""
        if process not in self._readers:
            with self._lock:
                self._readers[process] = None

    def may_replace(self, process: int, program: str) -> bool:
        """Whether a removal by this program is the first half of a replacement."""
        return program in _REPLACERS and process not in self._readers

    def remove(self, path: str, entry: SampleEntry) -> None:
        """Take a sample out of view for a moment."""
        timer = threading.Timer(REPLACED_WITHIN_S, self._show_again, (path,))
        timer.daemon = True
        with self._lock:
            self._removals[path] = _Removal(entry, timer)
        timer.start()

    def is_removed(self, path: str) -> bool:
        """Whether the sample at a path is out of view."""
        return bool(self._removals) and path in self._removals

    def names_within(self, directory: str) -> set[str]:
        """Return the names directly in a directory that are out of view."""
        with self._lock:
            split = [path.rpartition("/") for path in self._removals]
        return {name for parent, _, name in split if parent == directory}

    def take(self, path: str) -> SampleEntry | None:
        """Return the sample that is about to be replaced at a path, which ends its removal."""
        with self._lock:
            removal = self._removals.pop(path, None)
        if removal is None:
            return None
        removal.timer.cancel()
        return removal.entry

    def _show_again(self, path: str) -> None:
        if self.take(path) is not None:
            log.warning("%s is a sample, which the Lightly API cannot delete; it is there again", path)
            self._on_changed(path)
