"""Which local files and directories there are, by path.

Threads: any may call. A file's own lock is taken before the one of the table.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from lightlyfs.errors import FileExists
from lightlyfs.fs.local_file import LocalFile, renamed
from lightlyfs.fs.occupied import Occupied
from lightlyfs.fs.paths import numbered
from lightlyfs.staging.journal import Record

log = logging.getLogger(__name__)


class LocalTable:
    """Every local file and directory of a mount; `generation` moves when a listing may differ."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._files: dict[str, LocalFile] = {}
        self._by_key: dict[str, LocalFile] = {}
        # the files directly in each directory
        self._within: dict[str, dict[str, LocalFile]] = {}
        self._occupied = Occupied()
        self._directories: dict[str, int] = {}
        self.generation = 0

    def now(self) -> int:
        """The time in whole seconds."""
        return int(self._clock())

    def touch(self) -> None:
        """A file changed in a way that listings show."""
        with self._lock:
            self.generation += 1

    # files

    def get(self, path: str) -> LocalFile | None:
        """The local file at a path, or None."""
        return self._files.get(path)

    def by_key(self, key: str) -> LocalFile | None:
        """The local file of this key, or None."""
        with self._lock:
            return self._by_key.get(key)

    def all(self) -> list[LocalFile]:
        """Every local file."""
        with self._lock:
            return list(self._files.values())

    def within(self, directory: str) -> list[LocalFile]:
        """The local files directly in a directory."""
        if not self._files:
            return []
        with self._lock:
            return list(self._within.get(directory, {}).values())

    def below(self, directory: str) -> list[LocalFile]:
        """The local files anywhere below a directory."""
        with self._lock:
            return [file for path, file in self._files.items() if path.startswith(directory + "/")]

    def show(self, file: LocalFile, *, replaces: bool = False) -> tuple[bool, LocalFile | None]:
        """Show a new file at its path, unless another one is there: whether it is shown, and what was there.

        One that `replaces` the image of a sample may cover the file that became that sample, unless that is
        open.
        """
        with self._lock:
            before = self._files.get(file.path)
            taken = before is not None and (not replaces or before.entry is None or before.handles > 0)
            if not taken:
                self._show_locked(file)
                self.generation += 1
        return not taken, before

    def drop(self, file: LocalFile) -> None:
        """Show it no more."""
        with self._lock:
            self._hide_locked(file)
            self._by_key.pop(file.record.key, None)
            self.generation += 1

    def move(self, file: LocalFile, record: Record) -> LocalFile | None:
        """Give a file another path; FileExists where another local file is there.

        One that was set aside, or that the server has already, is shown no more, and is returned.
        """
        with file.lock, self._lock:
            if self._is_taken_locked(record.path, file):
                raise FileExists(f"it exists by now: {record.path}")
            covered = self._files.get(record.path)
            self._hide_locked(file)
            file.record = record
            self._show_locked(file)
            self.generation += 1
        return None if covered is file else covered

    def move_back(self, file: LocalFile, record: Record) -> None:
        """Give a file a path it had before, or one beside it where another file is there by now."""
        with file.lock, self._lock:
            path = next(path for path in numbered(record.path) if not self._is_taken_locked(path, file))
            if path != record.path:
                log.warning("another file is called %s by now; this one is %s", record.path, path)
                record = renamed(record, path)
            self._hide_locked(file)
            file.record = record
            self._show_locked(file)
            self.generation += 1

    # directories

    def has_directory(self, path: str) -> bool:
        """Whether a directory is known here: made, or with a local file below it."""
        return path in self._directories or path in self._occupied

    def directories_within(self, directory: str) -> set[str]:
        """The names of directories directly in a directory that are known here."""
        prefix = directory + "/" if directory else ""
        with self._lock:
            made = [path[len(prefix) :] for path in self._directories if path.startswith(prefix)]
            names = self._occupied.within(directory)
        return (names | {path.partition("/")[0] for path in made}) - {""}

    def make_directory(self, path: str) -> None:
        """Make a directory that lives until the mount ends or it gets a sample."""
        with self._lock:
            self._directories[path] = self.now()
            self.generation += 1

    def remove_directory(self, path: str) -> None:
        """Forget a directory made here."""
        with self._lock:
            self._directories.pop(path, None)
            self.generation += 1

    def move_directories(self, old: str, new: str) -> None:
        """Rename a directory made here, with those below it."""
        with self._lock:
            for path in [p for p in self._directories if p == old or p.startswith(old + "/")]:
                self._directories[new + path[len(old) :]] = self._directories.pop(path)
            self.generation += 1

    def directory_time(self, path: str) -> int:
        """The time of a directory that is known here only: when it was made, or of its newest file."""
        return max(self._occupied.newest(path), self._directories.get(path, 0))

    def _is_taken_locked(self, path: str, by: LocalFile) -> bool:
        """Whether a file is at a path that nothing else has the bytes of."""
        other = self._files.get(path)
        return other is not None and other is not by and other.entry is None and not other.unlinked

    def _show_locked(self, file: LocalFile) -> None:
        replaced = self._files.get(file.path)
        if replaced is not None:
            self._hide_locked(replaced)
        directory, _, name = file.path.rpartition("/")
        self._files[file.path] = file
        self._by_key[file.record.key] = file
        self._within.setdefault(directory, {})[name] = file
        self._occupied.add(file.path, file.mtime)

    def _hide_locked(self, file: LocalFile) -> None:
        if self._files.get(file.path) is not file:
            return
        directory, _, name = file.path.rpartition("/")
        del self._files[file.path]
        del self._within[directory][name]
        self._occupied.remove(file.path)
