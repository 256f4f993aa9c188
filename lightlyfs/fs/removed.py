"""Names that are gone, or lead to what is gone: open files that were removed, samples about to be replaced.

libfuse gives an open file that is removed or replaced a hidden name beside it, `.fuse_hidden...`, and removes
that when it is closed: so every call on the open file still has a path. No listing shows such names, and no
record of them is kept.

`mv -f` onto a sample removes it before it writes the new file. There is no delete in the API, so such a
removal counts only together with what follows: the sample is out of view for a second, and a create of its
name or a rename to it replaces its image. Otherwise it is there again, as it was. It is granted to programs
that are known to replace like this and have read no sample of the mount, for those could be moving it away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.staging.files import LocalFile

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
