"""Files that live on this disk: being written, waiting for the server, or not for it at all.

A `LocalFile` is one such file, `LocalFiles` all of them by path, with the directories that only this mount
has. What a crash must not lose is in the journal before a program is told that it succeeded.

Lock order: the table's lock is never taken while a file's is held, and neither while waiting or asking the
server.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from lightlyfs.catalog.inodes import local_ino, sample_ino
from lightlyfs.catalog.store import SampleEntry
from lightlyfs.errors import NoSuchFile
from lightlyfs.fs.attributes import Attr
from lightlyfs.upload.journal import Journal, Record, State
from lightlyfs.upload.spool import Spool, StagedFile
from lightlyfs.upload.uploader import Ticket

log = logging.getLogger(__name__)

# names that programs give to what is not finished; they stay here until they get a real name
_SCRATCH = re.compile(
    r"\..*|.*~|.*\.(tmp|temp|part|partial|crdownload|swp|swx|swo|filepart|download|lock|bak)|#.*#|4913",
    re.IGNORECASE | re.DOTALL,
)


def is_scratch(path: str) -> bool:
    """Whether a path's last part is the name of something unfinished."""
    return _SCRATCH.fullmatch(path.rpartition("/")[2]) is not None


class LocalFile:
    """One local file; its `lock` guards everything below it, and is held during disk work on it."""

    def __init__(self, record: Record, staged: StagedFile | None) -> None:
        self.lock = threading.RLock()
        self.record = record
        self.staged = staged
        self.size = record.size
        self.mtime = record.mtime
        self.dirty = False
        self.sealed = record.state is not State.OPEN
        self.handles = 0
        self.unlinked = False
        self.broken = ""  # why a write of it failed
        self.ticket: Ticket | None = None
        # set once the server has it: it is a sample then, shown from here until a listing shows it
        self.entry: SampleEntry | None = _entry_of(record) if record.state is State.UPLOADED else None

    def attr(self) -> Attr:
        """What `stat` shows."""
        return Attr(local_ino(self.record.key), False, self.size, self.mtime)

    def now_uploaded(self, record: Record) -> None:
        """The server has it; the lock is held."""
        self.record = record
        self.entry = _entry_of(record)

    @property
    def path(self) -> str:
        """Where it is on the mount."""
        return self.record.path


def _entry_of(record: Record) -> SampleEntry:
    """The directory entry of an uploaded file."""
    assert record.sample_id is not None
    sample_id = bytes.fromhex(record.sample_id)
    raw = None if record.name == record.path else record.name.encode("utf-8", "surrogatepass")
    name = record.path.rpartition("/")[2]
    size, etag = record.size, record.etag
    return SampleEntry(name, sample_ino(sample_id), sample_id, raw, size, record.mtime, size, etag, True)


class LocalFiles:
    """Every local file and directory, by path; any thread may call."""

    def __init__(self, spool: Spool, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        self.spool = spool
        self.journal = journal
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._files: dict[str, LocalFile] = {}
        self._by_key: dict[str, LocalFile] = {}
        # the files directly in each directory, and how many are anywhere below it
        self._within: dict[str, dict[str, LocalFile]] = {}
        self._below: Counter[str] = Counter()
        self._directories: dict[str, int] = {}
        self.generation = 0

    def now(self) -> int:
        """The time in whole seconds."""
        return int(self._clock())

    def load(self) -> list[LocalFile]:
        """Take over what the journal holds, and drop staged bytes that nothing speaks of."""
        loaded = []
        kept = set()
        for record in self.journal.records():
            if record.state is State.OPEN:
                record = record.changed(state=State.INTERRUPTED, error="the mount ended while it was written")
                self.journal.put(record)
            if record.state is not State.UPLOADED:
                kept.add((record.key, record.generation))
            file = LocalFile(record, None)
            loaded.append(file)
            with self._lock:
                self._show_locked(file)
        for key, generation in self.spool.generations():
            if (key, generation) not in kept:
                self.spool.remove(key, generation)
        for file in loaded:
            self._measure(file)
        return loaded

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

    def new(self, path: str, name: str, *, sample_id: str | None = None) -> LocalFile:
        """A new, empty local file; with `sample_id` it is to replace that sample's image."""
        key = secrets.token_hex(16)
        record = Record(
            key, path, name, State.OPEN, mtime=self.now(), sample_id=sample_id, replaces=sample_id is not None
        )
        file = LocalFile(record, self.spool.create(key, 0))
        self.journal.put(record, durable=False)
        self.add(file)
        return file

    def reopen(self, file: LocalFile) -> None:
        """A file that the server has is to change again: an empty new generation for the same sample."""
        with file.lock:
            record = file.record
            generation = record.generation + 1
            file.record = record.changed(
                generation=generation, state=State.OPEN, size=0, mtime=self.now(), replaces=True, etag=""
            )
            file.staged = self.spool.create(record.key, generation)
            file.entry, file.sealed, file.size = None, False, 0
            self.journal.put(file.record)
        self.touch()

    def add(self, file: LocalFile) -> None:
        """Show a file at its path, with the directories above it."""
        with self._lock:
            self._show_locked(file)
            self.generation += 1

    def drop(self, file: LocalFile) -> None:
        """Show it no more."""
        with self._lock:
            self._hide_locked(file)
            self._by_key.pop(file.record.key, None)
            self.generation += 1

    def move(self, file: LocalFile, record: Record) -> None:
        """Give a file another path; what was there is shown no more."""
        with self._lock:
            self._hide_locked(file)
            file.record = record
            self._show_locked(file)
            self.generation += 1

    def move_uploaded(self, file: LocalFile, record: Record) -> None:
        """Show a file that the server has at another path."""
        self.journal.put(record)
        self.move(file, record)
        with file.lock:
            file.now_uploaded(record)

    # the bytes of one file; its lock is held

    def stage_locked(self, file: LocalFile) -> StagedFile:
        """Its staged bytes, opened if they are not; NoSuchFile where they are gone."""
        if file.staged is None:
            try:
                file.staged = self.spool.open(file.record.key, file.record.generation)
            except FileNotFoundError:
                raise NoSuchFile(f"the staged bytes of {file.path} are gone") from None
        return file.staged

    def unstage_locked(self, file: LocalFile) -> None:
        """Close its staged bytes."""
        if file.staged is not None:
            file.staged.close()
            file.staged = None

    def unseal_locked(self, file: LocalFile) -> StagedFile:
        """The staged file to change: a copy where the present generation is sealed."""
        staged = self.stage_locked(file)
        if not file.sealed:
            return staged
        record = file.record
        generation = record.generation + 1
        copied = self.spool.copy(staged, record.key, generation)
        staged.close()
        uploaded = file.entry is not None
        file.record = record.changed(
            generation=generation, state=State.OPEN, replaces=record.replaces or uploaded, error=""
        )
        file.entry = None
        file.staged, file.sealed = copied, False
        self.journal.put(file.record)
        self.add(file)
        return copied

    def note_broken_locked(self, file: LocalFile, error: OSError) -> None:
        """A write failed: half a file is not uploaded."""
        reason = os.strerror(error.errno or errno.EIO)
        file.broken = reason
        file.record = file.record.changed(state=State.FAILED, error=f"a write failed: {reason}")
        try:
            self.journal.put(file.record)
        except Exception as second:
            # the disk is full; a crash now would find the record as it was: OPEN, and not upload it
            log.warning("the journal could not note a failed write: %s", second)

    def discard(self, file: LocalFile) -> None:
        """Forget a local file and its bytes; open descriptors keep them."""
        self.drop(file)
        with file.lock:
            file.unlinked = True
            # the bytes first: on a full disk the journal needs the room they free
            self.spool.remove(file.record.key, file.record.generation)
            if file.handles == 0:
                self.unstage_locked(file)
            self.journal.remove(file.record.key)

    # directories

    def has_directory(self, path: str) -> bool:
        """Whether a directory is known here: made, or with a local file below it."""
        return path in self._directories or path in self._below

    def directories_within(self, directory: str) -> set[str]:
        """The names of directories directly in a directory that are known here."""
        prefix = directory + "/" if directory else ""
        with self._lock:
            known = [path for path in (*self._directories, *self._below) if path.startswith(prefix)]
        return {path[len(prefix) :].partition("/")[0] for path in known} - {""}

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
        newest = max((file.mtime for file in self.below(path)), default=0)
        return max(newest, self._directories.get(path, 0))

    def _show_locked(self, file: LocalFile) -> None:
        replaced = self._files.get(file.path)
        if replaced is not None:
            self._hide_locked(replaced)
        directory, _, name = file.path.rpartition("/")
        self._files[file.path] = file
        self._by_key[file.record.key] = file
        self._within.setdefault(directory, {})[name] = file
        self._below.update(_ancestors(directory))

    def _hide_locked(self, file: LocalFile) -> None:
        if self._files.get(file.path) is not file:
            return
        directory, _, name = file.path.rpartition("/")
        del self._files[file.path]
        del self._within[directory][name]
        for ancestor in _ancestors(directory):
            self._below[ancestor] -= 1
            if not self._below[ancestor]:
                del self._below[ancestor]

    def touch(self) -> None:
        """A file changed in a way that listings show."""
        with self._lock:
            self.generation += 1

    def _measure(self, file: LocalFile) -> None:
        """The size of a file that a crash left is what is on the disk."""
        record = file.record
        if record.state is State.UPLOADED:
            return
        try:
            staged = self.spool.open(record.key, record.generation)
        except OSError as error:
            file.broken = f"its staged bytes are gone: {error.strerror}"
            return
        file.size = staged.size()
        staged.close()


def _ancestors(directory: str) -> Iterator[str]:
    """A directory and those above it, without the root."""
    while directory:
        yield directory
        directory = directory.rpartition("/")[0]
