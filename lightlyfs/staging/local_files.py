"""Files and directories on this disk: for this machine only, being written, or owed to the server.

A `LocalFile` is one such file. `LocalFiles` owns all of them, by path, with their bytes in the spool and
their records in the journal. Only `LocalFiles.update` changes a record, in memory and on disk together, while
the file's lock is held. What a crash must not lose is in the journal before the call of the program succeeds.

Lock order: a file's lock, then the table's, then the uploader's or the journal's. No other lock is taken
under these three, no two files' locks are held at once, and no lock is held during a wait or a request.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, NamedTuple

from cachetools import LRUCache

from lightlyfs.errors import FileExists, NoSuchFile
from lightlyfs.name_rules import numbered
from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import IDENTITY, LocalDirectory, Record, State
from lightlyfs.staging.spool import GONE, Spool, StagedFile, recovered
from lightlyfs.tree import PathTable, local_ino

log = logging.getLogger(__name__)

_MAX_TOUCHED = 10_000


class Ticket:
    """One upload to wait for; `result` is done after its first try, well or not."""

    def __init__(self) -> None:
        self.result: Future[Record] = Future()
        self.moved = 0  # counts steps and pieces sent, so that a waiter sees that it goes on


class LocalFile:
    """One local file; its `lock` guards everything below it, and is held during disk work on it."""

    def __init__(self, record: Record, staged: StagedFile | None, ino: int | None = None) -> None:
        self.lock = threading.RLock()
        # changed by LocalFiles.update alone
        self.record = record
        self.staged = staged
        self.ino = local_ino(record.key) if ino is None else ino
        # what writes change at once, and the record with the next promise
        self.size = record.size
        self.mtime_ns = record.mtime_ns
        self.ctime_ns = record.ctime_ns
        self.dirty = False
        self.handles = 0
        self.writers = 0  # handles that may write
        self.unlinked = False
        self.ticket: Ticket | None = None
        self.delayed = False  # its upload begins a moment after its close
        self.uploaded_at = float("-inf")  # by the clock of Completion; long ago for one of an earlier mount

    @property
    def path(self) -> str:
        """Where it is on the mount."""
        return self.record.path

    @property
    def uploaded(self) -> bool:
        """Whether it is a sample now, shown from here until a listing holds it."""
        return self.record.state is State.UPLOADED

    @property
    def sealed(self) -> bool:
        """Whether its present generation is handed over, and never changes again."""
        record = self.record
        return record.state in (State.PENDING, State.UPLOADED) or (
            record.state is State.FAILED and not record.broken
        )


class Draft(NamedTuple):
    """The staged bytes of a file to be, which no path shows yet."""

    key: str
    staged: StagedFile


class LocalFiles:
    """Every local file and directory of a mount; any thread may call.

    `name_of(path)` gives the sample name that a path stands for, "" where no sample can have it.
    `counts(path)` says whether a complete file at a path is for the server. `generation` moves when a
    listing may differ.
    """

    def __init__(
        self,
        spool: Spool,
        journal: Journal,
        *,
        name_of: Callable[[str], str],
        counts: Callable[[str], bool],
    ) -> None:
        self.spool = spool
        self.journal = journal
        self.counts = counts
        self.name_of = name_of
        self._lock = threading.Lock()
        # guarded by _lock
        self._files: PathTable[LocalFile] = PathTable()
        self._directories: dict[str, LocalDirectory] = {}
        # when entries of directories that were not made here changed, in nanoseconds, while the mount lasts
        self._touched: LRUCache[str, int] = LRUCache(_MAX_TOUCHED)
        # interrupted replacements of samples, which show their old bytes
        self._aside: dict[str, LocalFile] = {}
        self.generation = 0

    def touch(self) -> None:
        """Note that a file changed in a way that listings show."""
        with self._lock:
            self.generation += 1

    def load(self) -> list[LocalFile]:
        """Take over what the journal holds, and drop staged bytes that no record names.

        Of two files with one path (of two mounts, or of before and after a crash) the second gets another.
        """
        kept = set()
        loaded = []
        self._directories = {made.path: made for made in self.journal.directories()}
        for record in recovered(self.journal, self.spool, self.counts):
            if record.state is not State.UPLOADED:
                kept.add((record.key, record.generation))
            file = LocalFile(record, None)
            loaded.append(file)
            if record.hidden:
                self._aside[record.key] = file
                continue
            path = next(path for path in numbered(record.path) if path not in self._files.by_path)
            if path != record.path:
                log.warning("two local files are called %s; one is %s now", record.path, path)
                self._change(file, self._moved(record, path), durable=True)
            with self._lock:
                self._show_locked(file)
        for key, generation in self.spool.generations():
            if (key, generation) not in kept:
                self.spool.remove(key, generation)
        return loaded

    # the record

    def update(self, file: LocalFile, generation: int, /, *, durable: bool = True, **changes: Any) -> Record:
        """Change what is known of a file, in memory and in the journal; returns the record as it is then.

        What speaks of an earlier `generation` than the present one changes only what all generations have in
        common. A file that was removed is not in the journal any more. ValueError where a state may not
        follow the present one, OSError where the disk does not take it; nothing changes then.
        """
        assert "path" not in changes, "a file is moved by `move`"
        with file.lock:
            if generation != file.record.generation:
                changes = {name: value for name, value in changes.items() if name in IDENTITY}
            self._change(file, file.record.changed(**changes), durable=durable)
            return file.record

    def owed(self, file: LocalFile, generation: int) -> Record:
        """Return the record of a sealed generation; a later one, in any state, may have followed by now."""
        record = file.record
        if record.generation == generation:
            return record
        size = self.spool.path(record.key, generation).stat().st_size
        return replace(record, generation=generation, state=State.PENDING, size=size, checksum=-1)

    def _change(self, file: LocalFile, record: Record, *, durable: bool) -> None:
        if not file.unlinked and record != file.record:
            self.journal.put(record, durable=durable)
        file.record = record

    def _moved(self, record: Record, path: str) -> Record:
        """Return a record at another path; one that may be on the server keeps its name there."""
        if record.create_sent or record.sample_id is not None:
            return record.changed(path=path)
        return record.changed(path=path, name=self.name_of(path))

    # files by path

    def get(self, path: str) -> LocalFile | None:
        """Return the local file at a path, or None."""
        return self._files.by_path.get(path)

    def all(self) -> list[LocalFile]:
        """Return every local file that is shown."""
        with self._lock:
            return list(self._files.by_path.values())

    def aside(self) -> list[LocalFile]:
        """Return the halves of new images for samples that show their old ones."""
        with self._lock:
            return list(self._aside.values())

    def within(self, directory: str) -> list[LocalFile]:
        """Return the local files directly in a directory."""
        if not self._files.by_path:
            return []
        with self._lock:
            return self._files.within(directory)

    def below(self, directory: str) -> list[LocalFile]:
        """Return the local files anywhere below a directory."""
        with self._lock:
            return [file for path, file in self._files.by_path.items() if path.startswith(directory + "/")]

    def new(self, path: str, mode: int) -> LocalFile | None:
        """Create an empty file, open for writing; None if the path exists by now."""
        return self.publish(self.draft(), path, self.name_of(path), mode=mode)

    def draft(self) -> Draft:
        """Make room for the bytes of a file to be; `publish` it or `scrap` it."""
        key = secrets.token_hex(16)
        return Draft(key, self.spool.create(key, 0))

    def scrap(self, draft: Draft) -> None:
        """Forget a draft."""
        draft.staged.close()
        self.spool.remove(draft.key, 0)

    def publish(
        self,
        draft: Draft,
        path: str,
        name: str,
        *,
        mode: int = 0o644,
        sample_id: str | None = None,
        ino: int | None = None,
    ) -> LocalFile | None:
        """Show a draft as a file at a path, open for writing; with `sample_id` it is to replace that image.

        None, and the draft is gone, where another file is there by now, or is replacing the same image.
        """
        replaces, now = sample_id is not None, time.time_ns()
        record = Record(
            draft.key,
            path,
            name,
            State.OPEN,
            mode=mode,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            sample_id=sample_id,
            replaces=replaces,
        )
        file = LocalFile(record, draft.staged, ino)
        try:
            file.size = draft.staged.size()
            file.dirty, file.handles, file.writers = True, 1, 1
            self.journal.put(record, durable=False)
        except BaseException:
            self.scrap(draft)
            raise
        with self._lock:
            covered = self._files.by_path.get(path)
            # the file that became this sample, or is to, is covered, unless it is open
            taken = covered is not None and not (replaces and covered.uploaded and not covered.handles)
            if not taken:
                self._show_locked(file)
        if taken:
            self.journal.remove(draft.key)
            self.scrap(draft)
            return None
        if covered is not None:
            self.journal.remove(covered.record.key)
        self.touch_parent(path)
        return file

    def nameless(self, draft: Draft, path: str, *, ino: int) -> LocalFile:
        """Make a draft a file that no path shows, open for writing; `path` is where it was before."""
        now = time.time_ns()
        record = Record(draft.key, path, "", State.OPEN, atime_ns=now, mtime_ns=now, ctime_ns=now)
        file = LocalFile(record, draft.staged, ino)
        file.size, file.handles, file.writers, file.unlinked = draft.staged.size(), 1, 1, True
        self.spool.remove(draft.key, 0)
        return file

    def move(self, file: LocalFile, path: str, **changes: Any) -> LocalFile | None:
        """Give a file another path, and other values; FileExists where another local file is there.

        One there that was removed, or that the server already has, is no longer shown, and is returned.
        """
        with file.lock:
            before = file.record
            record = before.changed(path=path, ctime_ns=time.time_ns(), **changes)
            with self._lock:
                covered = self._files.by_path.get(path)
                if not self._is_free_locked(path, file):
                    raise FileExists(f"it exists by now: {path}")
                self._show_at_locked(file, record)
            covered = None if covered is file else covered
            try:
                if not file.unlinked:
                    forget = () if covered is None else (covered.record.key,)
                    self.journal.put(record, forget=forget, durable=record.owed)
            except BaseException:
                with self._lock:
                    self._show_at_locked(file, before)
                    if covered is not None:
                        self._show_locked(covered)
                raise
        self.touch_parent(before.path)
        self.touch_parent(path)
        return covered

    def show_beside(self, file: LocalFile, **changes: Any) -> None:
        """Show a file at its path with other values, or beside it where another one is by now."""
        with file.lock:
            wanted = file.record.changed(**changes)
            with self._lock:
                path = next(path for path in numbered(wanted.path) if self._is_free_locked(path, file))
                if path != wanted.path:
                    log.warning("another file is called %s by now; this one is %s", wanted.path, path)
                    wanted = self._moved(wanted, path)
                before = file.record
                self._show_at_locked(file, wanted)
            if wanted != before and not file.unlinked:
                self.journal.put(wanted)

    def drop(self, file: LocalFile) -> None:
        """Leave an uploaded file to the catalogue."""
        with file.lock:
            with self._lock:
                self._hide_locked(file)
            self.journal.remove(file.record.key)

    def discard(self, file: LocalFile) -> None:
        """Forget a local file and its bytes; open descriptors keep them."""
        with file.lock:
            file.unlinked = True
            with self._lock:
                self._hide_locked(file)
                self._aside.pop(file.record.key, None)
            # the bytes first: on a full disk the journal needs the room they free
            self.spool.remove_up_to(file.record.key, file.record.generation)
            if file.handles == 0:
                self.unstage_locked(file)
            self.journal.remove(file.record.key)
        self.touch_parent(file.path)

    def drop_bytes(self, record: Record) -> None:
        """Delete a record's staged bytes, and those of earlier generations: the server has them."""
        self.spool.remove_up_to(record.key, record.generation)

    def save(self, file: LocalFile) -> None:
        """Write a file's record to the journal once more, which had forgotten it."""
        self.journal.put(file.record)

    def show_uploaded(self, record: Record) -> None:
        """Show what the server has of a file whose later half was set aside."""
        file = LocalFile(replace(record, key=secrets.token_hex(16)), None)
        with self._lock:
            if record.path in self._files.by_path:
                return
            self._show_locked(file)
        self.journal.put(file.record, durable=False)

    def set_aside_locked(self, file: LocalFile) -> None:
        """Stop showing half of a new image in place of a sample; the file's lock is held."""
        with self._lock:
            self._hide_locked(file)
            self._aside[file.record.key] = file

    def note_deleted(self) -> list[str]:
        """Check which staged bytes a cleaner deleted; return the paths of files that have lost theirs.

        Those that a handle has open are written again, and the other files fail.
        """
        lost = []
        for file in self.all() + self.aside():
            with file.lock:
                record = file.record
                if file.uploaded or file.unlinked or self.spool.has(record.key, record.generation):
                    continue
                if file.staged is not None:
                    deleted, file.staged = (
                        file.staged,
                        self.spool.copy(file.staged, record.key, record.generation),
                    )
                    deleted.close()
                elif not record.size:
                    self.spool.create(record.key, record.generation).close()
                elif record.broken != errno.ENODATA:
                    lost.append(record.path)
                    self.update(file, record.generation, state=State.FAILED, broken=errno.ENODATA, error=GONE)
        return lost

    # directories

    def has_directory(self, path: str) -> bool:
        """Return whether a directory is known here: made, or with a local file below it."""
        return path in self._directories or self._files.has_directory(path)

    def directory(self, path: str) -> LocalDirectory | None:
        """Return a directory that was made here; None for others."""
        return self._directories.get(path)

    def made_directories(self) -> list[str]:
        """Return the paths of the directories that were made here."""
        with self._lock:
            return list(self._directories)

    def directories_within(self, directory: str) -> set[str]:
        """Return the names of directories directly in a directory that are known here."""
        prefix = directory + "/" if directory else ""
        with self._lock:
            made = {p[len(prefix) :].partition("/")[0] for p in self._directories if p.startswith(prefix)}
            return (self._files.directories_within(directory) | made) - {""}

    def make_directory(self, path: str, mode: int) -> None:
        """Make a directory; it lives until it is removed."""
        now = time.time_ns()
        self._put_directory(LocalDirectory(path, mode, now, now, now))
        self.touch_parent(path)

    def remove_directory(self, path: str) -> None:
        """Forget a directory that was made here."""
        self.journal.put_directories(forget=(path,))
        with self._lock:
            self._directories.pop(path, None)
            self.generation += 1
        self.touch_parent(path)

    def move_directories(self, old: str, new: str) -> None:
        """Rename a directory that was made here, with those below it."""
        with self._lock:
            known = list(self._directories.items())
        made = [one for path, one in known if path == old or path.startswith(old + "/")]
        moved = [one._replace(path=new + one.path[len(old) :]) for one in made]
        self.journal.put_directories(*moved, forget=[one.path for one in made])
        with self._lock:
            for one in made:
                self._directories.pop(one.path, None)
            self._directories |= {one.path: one for one in moved}
            self.generation += 1
        self.touch_parent(old)
        self.touch_parent(new)

    def change_directory(self, path: str, **changes: Any) -> bool:
        """Set the mode or times of a directory that was made here; False for others."""
        made = self._directories.get(path)
        if made is None:
            return False
        self._put_directory(made._replace(ctime_ns=time.time_ns(), **changes))
        return True

    def touch_parent(self, path: str) -> None:
        """Note that an entry of the directory above a path was added, removed or renamed."""
        parent, now = path.rpartition("/")[0], time.time_ns()
        made = self._directories.get(parent)
        if made is not None:
            try:
                self._put_directory(made._replace(mtime_ns=now, ctime_ns=now))
            except OSError as error:
                # the change itself stands
                log.warning("the time of %s could not be noted: %s", parent, error)
            return
        with self._lock:
            self._touched[parent] = now
            self.generation += 1

    def directory_time_ns(self, path: str) -> int:
        """Return when the entries of a directory last changed here; 0 where that is not known."""
        made = self._directories.get(path)
        if made is not None:
            return made.mtime_ns
        with self._lock:
            touched = self._touched.get(path)
        return touched or self._files.newest(path) * 1_000_000_000

    def _put_directory(self, made: LocalDirectory) -> None:
        self.journal.put_directories(made)
        with self._lock:
            self._directories[made.path] = made
            self.generation += 1

    # the table; its lock is held

    def _is_free_locked(self, path: str, by: LocalFile) -> bool:
        other = self._files.by_path.get(path)
        return other is None or other is by or other.uploaded or other.unlinked

    def _show_locked(self, file: LocalFile) -> None:
        self._files.put(file.path, file, file.record.mtime)
        self.generation += 1

    def _show_at_locked(self, file: LocalFile, record: Record) -> None:
        """Show a file at the path of another record of it, which it has from then on."""
        if record.path != file.path:
            self._hide_locked(file)
        file.record = record
        self._show_locked(file)

    def _hide_locked(self, file: LocalFile) -> None:
        if self._files.by_path.get(file.path) is file:
            self._files.remove(file.path)
            self.generation += 1

    # the bytes of one file; its lock is held

    def stage_locked(self, file: LocalFile) -> StagedFile:
        """Return its staged bytes, opened if they are not; NoSuchFile where they are gone."""
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
        """Return the staged file to change: a copy, or an empty one, of a generation that is sealed."""
        staged = self.stage_locked(file)
        if file.uploaded and self._files.by_path.get(file.path) not in (None, file):
            # another file took the place of this sample: its open descriptors keep what no path shows
            file.unlinked = True
        if file.unlinked:
            if file.uploaded and staged.has_name():  # the one that the cache has for the sample's bytes
                file.staged = self.spool.nameless_copy(staged, file.record.key, file.record.generation + 1)
                staged.close()
            return self.stage_locked(file)
        record = file.record
        if not file.sealed:
            interrupted = record.state is State.INTERRUPTED
            # a file for this machine only is never incomplete: after a crash it needs no decision by a person
            if interrupted or (record.state is State.LOCAL and self.counts(record.path)):
                self.update(file, record.generation, state=State.OPEN, error="")
            return staged
        generation = record.generation + 1
        if empty:
            copied = self.spool.recreate(record.key, generation)
        else:
            copied = self.spool.copy(staged, record.key, generation)
        try:
            self.update(
                file,
                record.generation,
                generation=generation,
                state=State.OPEN,
                error="",
                replaces=record.replaces or file.uploaded,
                acknowledged=record.generation if record.owed else record.acknowledged,
            )
        except BaseException:
            copied.close()
            self.spool.remove(record.key, generation)
            raise
        staged.close()
        file.staged = copied
        self.show_beside(file)
        return copied

    def sync_locked(self, file: LocalFile) -> None:
        """Make its bytes durable; where that fails they may be lost, and it is broken."""
        try:
            self.stage_locked(file).sync()
        except OSError as error:
            self.note_broken_locked(file, error)
            raise

    def seal_locked(self, file: LocalFile) -> int:
        """Make its bytes durable, to be promised to the server; their checksum."""
        self.sync_locked(file)
        self.spool.sync()
        return self.stage_locked(file).checksum()

    def note_broken_locked(self, file: LocalFile, error: OSError) -> None:
        """Note a failed write: half a file is not uploaded."""
        number = error.errno or errno.EIO
        text = f"a write failed: {os.strerror(number)}"
        try:
            self.update(file, file.record.generation, state=State.FAILED, broken=number, error=text)
        except OSError as second:
            # the disk is full; a crash now would find the record as it was: OPEN, and not upload it
            log.warning("%s: the journal could not note a failed write: %s", file.path, second)
            file.record = file.record.changed(state=State.FAILED, broken=number, error=text)

    def mend_locked(self, file: LocalFile) -> None:
        """Forget that a write failed: all that was written was cut away."""
        if file.record.broken:
            self.update(file, file.record.generation, state=State.OPEN, broken=0, error="")
