"""Files that live on this disk: being written, waiting for the server, or not for it at all.

A `LocalFile` is one such file, `LocalFiles` all of them by path, with the directories that only this mount
has. What a crash must not lose is in the journal before a program is told that it succeeded.

Lock order: a file's lock, then the table's, the uploader's or the journal's. Nothing else is taken under
those three, no two files' locks are held at once, and none of them while waiting or asking the server.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from lightlyfs.catalog.inodes import local_ino, sample_ino
from lightlyfs.catalog.store import SampleEntry
from lightlyfs.catalog.tree import join_name
from lightlyfs.errors import NoSuchFile
from lightlyfs.fs.attributes import Attr
from lightlyfs.fs.occupied import Occupied
from lightlyfs.fs.paths import numbered
from lightlyfs.upload.journal import Journal, Record, State
from lightlyfs.upload.recovery import recovered
from lightlyfs.upload.spool import Spool, StagedFile
from lightlyfs.upload.uploader import Ticket

log = logging.getLogger(__name__)


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
        self.writers = 0  # handles that may write
        self.unlinked = False
        self.ticket: Ticket | None = None
        # set once the server has it: it is a sample then, shown from here until a listing shows it
        self.entry: SampleEntry | None = _entry_of(record) if record.state is State.UPLOADED else None
        self.listings_without = 0  # that came since then and did not show it here

    @property
    def broken(self) -> str:
        """Why it is half a file, or ""."""
        return self.record.error if self.record.broken else ""

    def attr(self) -> Attr:
        """What `stat` shows."""
        return Attr(local_ino(self.record.key), False, self.size, self.mtime)

    def now_uploaded(self, record: Record) -> None:
        """The server has it; the lock is held."""
        self.record = record
        self.entry = _entry_of(record)
        self.listings_without = 0

    @property
    def path(self) -> str:
        """Where it is on the mount."""
        return self.record.path


class Draft(NamedTuple):
    """The staged bytes of a file to be, which nobody sees yet."""

    key: str
    staged: StagedFile


def _entry_of(record: Record) -> SampleEntry:
    """The directory entry of an uploaded file."""
    assert record.sample_id is not None
    sample_id = bytes.fromhex(record.sample_id)
    raw = None if record.name == record.path else record.name.encode("utf-8", "surrogatepass")
    name = record.path.rpartition("/")[2]
    size, etag = record.size, record.etag
    ino = sample_ino(sample_id)
    return SampleEntry(name, ino, sample_id, raw, size, record.mtime, size, etag, verified=True, stands=True)


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
        # the files directly in each directory
        self._within: dict[str, dict[str, LocalFile]] = {}
        self._occupied = Occupied()
        self._directories: dict[str, int] = {}
        self.generation = 0

    def now(self) -> int:
        """The time in whole seconds."""
        return int(self._clock())

    def load(self) -> list[LocalFile]:
        """Take over what the journal holds, and drop staged bytes that nothing speaks of.

        Of two files with one path (of two mounts, or of before and after a crash) the second gets another.
        """
        kept = set()
        loaded = []
        for record in recovered(self.journal, self.spool):
            path = next(path for path in numbered(record.path) if path not in self._files)
            if path != record.path:
                log.warning("two local files are called %s; one is %s now", record.path, path)
                record = _renamed(record, path)
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

    def new(self, path: str, name: str) -> LocalFile:
        """A new, empty local file."""
        file = self.publish(self.draft(), path, name)
        assert file is not None
        return file

    def draft(self) -> Draft:
        """Room for the bytes of a file to be; `publish` it or `scrap` it."""
        key = secrets.token_hex(16)
        return Draft(key, self.spool.create(key, 0))

    def scrap(self, draft: Draft) -> None:
        """Forget a draft."""
        draft.staged.close()
        self.spool.remove(draft.key, 0)

    def publish(
        self, draft: Draft, path: str, name: str, *, sample_id: str | None = None
    ) -> LocalFile | None:
        """Show a draft as a file at a path, open for writing; with `sample_id` it is to replace that image.

        None, and the draft is gone, where another is replacing the same image.
        """
        replaces = sample_id is not None
        record = Record(
            draft.key, path, name, State.OPEN, mtime=self.now(), sample_id=sample_id, replaces=replaces
        )
        try:
            file = LocalFile(record, draft.staged)
            file.size = draft.staged.size()
            file.dirty, file.handles, file.writers = True, 1, 1
            self.journal.put(record, durable=False)
        except BaseException:
            self.scrap(draft)
            raise
        with self._lock:
            before = self._files.get(path)
            taken = replaces and before is not None and (before.entry is None or before.handles > 0)
            if not taken:
                self._show_locked(file)
                self.generation += 1
        if taken:
            self.journal.remove(draft.key)
            self.scrap(draft)
            return None
        if before is not None and before.entry is not None:
            self.journal.remove(before.record.key)
        return file

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
        with file.lock, self._lock:
            self._hide_locked(file)
            file.record = record
            self._show_locked(file)
            self.generation += 1

    def move_uploaded(self, file: LocalFile, path: str, name: str) -> None:
        """Show a file at another path whose sample was renamed on the server."""
        with file.lock:
            record = file.record.changed(path=path, name=name)
            self.journal.put(record)
            self.move(file, record)
            if file.entry is not None:
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

    def unseal_locked(self, file: LocalFile, *, empty: bool = False) -> StagedFile:
        """The staged file to change: a copy, or an empty one, where the present generation is sealed."""
        staged = self.stage_locked(file)
        if not file.sealed or file.unlinked:
            return staged
        record = file.record
        generation = record.generation + 1
        opened = record.changed(
            generation=generation,
            replaces=record.replaces or file.entry is not None,
            acknowledged=record.generation if record.owed and not record.broken else record.acknowledged,
        )
        if not record.broken:
            opened = opened.changed(state=State.OPEN, error="")
        if empty:
            copied = self.spool.create_anew(record.key, generation)
        else:
            copied = self.spool.copy(staged, record.key, generation)
        try:
            self.journal.put(opened)
        except BaseException:
            copied.close()
            self.spool.remove(record.key, generation)
            raise
        staged.close()
        file.record, file.entry = opened, None
        file.staged, file.sealed = copied, False
        self.add(file)
        return copied

    def sync_locked(self, file: LocalFile) -> None:
        """Make its bytes durable; where that fails they may be lost, and it is broken."""
        try:
            self.stage_locked(file).sync()
        except OSError as error:
            self.note_broken_locked(file, error)
            raise

    def note_broken_locked(self, file: LocalFile, error: OSError) -> None:
        """A write failed: half a file is not uploaded."""
        reason = os.strerror(error.errno or errno.EIO)
        broken = file.record.changed(state=State.FAILED, broken=True, error=f"a write failed: {reason}")
        try:
            self.note_locked(file, broken)
        except OSError as second:
            # the disk is full; a crash now would find the record as it was: OPEN, and not upload it
            log.warning("the journal could not note a failed write: %s", second)

    def mend_locked(self, file: LocalFile) -> None:
        """All of it was cut away: what failed before does not matter any more."""
        if file.record.broken:
            self.note_locked(file, file.record.changed(state=State.OPEN, broken=False, error=""))

    def note_locked(self, file: LocalFile, record: Record) -> None:
        """Change what is known of a file, in the journal too unless that has forgotten it."""
        file.record = record
        if not file.unlinked:
            self.journal.put(record)

    def discard(self, file: LocalFile) -> None:
        """Forget a local file and its bytes; open descriptors keep them."""
        with file.lock:
            file.unlinked = True
            self.drop(file)
            # the bytes first: on a full disk the journal needs the room they free
            self.spool.remove_up_to(file.record.key, file.record.generation)
            if file.handles == 0:
                self.unstage_locked(file)
            self.journal.remove(file.record.key)

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

    def touch(self) -> None:
        """A file changed in a way that listings show."""
        with self._lock:
            self.generation += 1


def _renamed(record: Record, path: str) -> Record:
    """A record at another path; what the server may have under the old name keeps that name there."""
    if record.create_sent or record.sample_id is not None:
        return record.changed(path=path)
    return record.changed(path=path, name=join_name(path.split("/")) or "")
