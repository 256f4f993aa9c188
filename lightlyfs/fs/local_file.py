"""One file of this machine: its record, its staged bytes, and what it shows."""

from __future__ import annotations

import threading

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.inodes import local_ino, sample_ino
from lightlyfs.catalog.tree import join_name
from lightlyfs.fs.attributes import Attr
from lightlyfs.staging.journal import Record, State
from lightlyfs.staging.spool import StagedFile
from lightlyfs.staging.uploader import Ticket


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


def renamed(record: Record, path: str) -> Record:
    """A record at another path; what the server may have under the old name keeps that name there."""
    if record.create_sent or record.sample_id is not None:
        return record.changed(path=path)
    return record.changed(path=path, name=join_name(path.split("/")) or "")


def put_back(record: Record, before: Record) -> Record:
    """The record of a file that is not renamed after all; it may have been written again meanwhile."""
    if record.generation == before.generation:
        return before
    return record.changed(
        path=before.path,
        name=before.name,
        sample_id=before.sample_id,
        replaces=before.replaces,
        acknowledged=before.generation if before.owed else -1,
    )


def _entry_of(record: Record) -> SampleEntry:
    """The directory entry of an uploaded file."""
    assert record.sample_id is not None
    sample_id = bytes.fromhex(record.sample_id)
    raw = None if record.name == record.path else record.name.encode("utf-8", "surrogatepass")
    name = record.path.rpartition("/")[2]
    size, etag = record.size, record.etag
    ino = sample_ino(sample_id)
    return SampleEntry(name, ino, sample_id, raw, size, record.mtime, size, etag, verified=True, stands=True)
