"""Files that live on this disk: being written, waiting for the server, or not for it at all.

A `LocalFile` is one such file, `LocalTable` all of them by path, with the directories that only this mount
has, and `LocalFiles` knows their bytes, too. What a crash must not lose is in the journal before a program is
told that it succeeded.

Lock order: a file's lock, then the table's, the uploader's or the journal's. Nothing else is taken under
those three, no two files' locks are held at once, and none of them while waiting or asking the server.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

from lightlyfs.errors import NoSuchFile
from lightlyfs.fs.local_file import LocalFile, renamed
from lightlyfs.fs.local_table import LocalTable
from lightlyfs.fs.paths import numbered
from lightlyfs.staging.journal import Journal, Record, State
from lightlyfs.staging.recovery import recovered
from lightlyfs.staging.spool import Spool, StagedFile

log = logging.getLogger(__name__)


class Draft(NamedTuple):
    """The staged bytes of a file to be, which nobody sees yet."""

    key: str
    staged: StagedFile


class LocalFiles(LocalTable):
    """Every local file and directory, and the bytes of the files; any thread may call."""

    def __init__(self, spool: Spool, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        super().__init__(clock)
        self.spool = spool
        self.journal = journal

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
                record = renamed(record, path)
                self.journal.put(record)
            if record.state is not State.UPLOADED:
                kept.add((record.key, record.generation))
            file = LocalFile(record, None)
            loaded.append(file)
            self.show(file)
        for key, generation in self.spool.generations():
            if (key, generation) not in kept:
                self.spool.remove(key, generation)
        return loaded

    def new(self, path: str, name: str) -> LocalFile | None:
        """A new, empty local file; None where there is one by now."""
        return self.publish(self.draft(), path, name)

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

        None, and the draft is gone, where another file is there by now, or is replacing the same image.
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
        shown, before = self.show(file, replaces=replaces)
        if not shown:
            self.journal.remove(draft.key)
            self.scrap(draft)
            return None
        if before is not None and before.entry is not None:
            self.journal.remove(before.record.key)
        return file

    def add(self, file: LocalFile) -> None:
        """Show a file at its path again, or beside it where another one is there by now."""
        record = file.record
        self.move_back(file, record)
        if file.record is not record:
            self.journal.put(file.record)

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
        if file.entry is not None and self._files.get(file.path) not in (None, file):
            # another file took the place of this sample: who has it open goes on with what nobody sees
            file.unlinked = True
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
