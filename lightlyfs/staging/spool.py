"""Staged bytes on the local disk, one file per generation of a local file, and what is restored of them.

A generation can be written until it is sealed. A sealed generation never changes; a later write goes to a
copy of it. So an upload always sends one consistent state of the file. After a mount that crashed, at
whatever step, `recovered` brings its journal and its staged files together.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from lightlyfs.staging.journal import Journal
from lightlyfs.staging.record import Record, State

log = logging.getLogger(__name__)

# ioctl that shares the blocks of one file with another (linux/fs.h: _IOW(0x94, 9, int))
_FICLONE = 0x40049409
_COPY_BYTES = 8 << 20
# a file that is rewritten often leaves at most this many gaps between generations that are still on the disk
_MOST_MISSING = 16
_NAME = re.compile(r"([0-9a-f]{32})\.(\d+)")


class Spool:
    """The staged files in one directory; methods on different files may run in parallel."""

    def __init__(self, directory: Path, on_deleted: Callable[[], None] = lambda: None) -> None:
        """`on_deleted` is called where a cleaner deleted the directory; it may call `move_to`."""
        self._on_deleted = on_deleted
        self.move_to(directory)

    def move_to(self, directory: Path) -> None:
        """Keep files in this directory from now on, which is made if it is missing."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self._directory = directory

    def is_deleted(self) -> bool:
        """Return whether the directory is gone."""
        return not self._directory.is_dir()

    def has(self, key: str, generation: int) -> bool:
        """Return whether a generation has a file."""
        return self.path(key, generation).exists()

    def path(self, key: str, generation: int) -> Path:
        """Return the path of a generation of a file."""
        return self._directory / f"{key}.{generation}"

    def create(self, key: str, generation: int) -> StagedFile:
        """Create a new, empty file."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return StagedFile(os.open(self.path(key, generation), flags, 0o600))
        except FileNotFoundError:
            self._on_deleted()
        return StagedFile(os.open(self.path(key, generation), flags, 0o600))

    def recreate(self, key: str, generation: int) -> StagedFile:
        """Create a new, empty file that replaces one left by an earlier failure."""
        self.remove(key, generation)
        return self.create(key, generation)

    def open(self, key: str, generation: int) -> StagedFile:
        """Open an existing file."""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        return StagedFile(os.open(self.path(key, generation), flags))

    def copy(self, source: StagedFile, key: str, target: int) -> StagedFile:
        """Copy an open file as another generation, sharing its blocks if the file system can."""
        copied = self.recreate(key, target)
        try:
            try:
                fcntl.ioctl(copied.descriptor, _FICLONE, source.descriptor)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
                    raise
                _copy(source.descriptor, copied.descriptor)
        except BaseException:
            copied.close()
            self.remove(key, target)
            raise
        return copied

    def nameless_copy(self, source: StagedFile, key: str, target: int) -> StagedFile:
        """Copy an open file, to a file that is gone once it is closed; `target` must not be in use."""
        copied = self.copy(source, key, target)
        self.remove(key, target)
        return copied

    def remove(self, key: str, generation: int) -> None:
        """Delete a generation; harmless where it is not there."""
        path = self.path(key, generation)
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            shutil.rmtree(path)  # nothing of ours

    def put_aside(self, key: str, generation: int) -> Path:
        """Keep a generation that is damaged under a name that nothing reads, which is returned."""
        path = self.path(key, generation)
        return path.replace(path.with_name(f"{path.name}.damaged"))

    def is_whole(self, key: str, generation: int, size: int, checksum: int) -> bool:
        """Return whether a generation is as it was sealed; without a checksum (-1) by its size alone."""
        try:
            staged = self.open(key, generation)
        except OSError:
            return False
        try:
            return staged.size() == size and checksum in (-1, staged.checksum())
        except OSError:
            return False
        finally:
            staged.close()

    def remove_up_to(self, key: str, generation: int) -> None:
        """Delete a generation and those before it, some of which may have gone already."""
        missing = 0
        while generation >= 0 and missing < _MOST_MISSING:
            try:
                self.path(key, generation).unlink()
                missing = 0
            except FileNotFoundError:
                missing += 1
            generation -= 1

    def move(self, key: str, generation: int, other_key: str) -> None:
        """Give a generation to another file."""
        os.rename(self.path(key, generation), self.path(other_key, generation))

    def generations(self) -> list[tuple[str, int]]:
        """Return every (key, generation) that has a file."""
        with os.scandir(self._directory) as entries:
            names = [_NAME.fullmatch(one.name) for one in entries if one.is_file(follow_symlinks=False)]
        return [(name[1], int(name[2])) for name in names if name is not None]

    def sync(self) -> None:
        """Make the directory's own entries durable."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StagedFile:
    """One open staged file: read and written at any place, by any thread."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def size(self) -> int:
        """Return its size in bytes."""
        return os.fstat(self.descriptor).st_size

    def has_name(self) -> bool:
        """Return whether any path still names the file."""
        return os.fstat(self.descriptor).st_nlink > 0

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes from `offset` on, short only at the end."""
        data = os.pread(self.descriptor, size, offset)
        while 0 < len(data) < size and (
            more := os.pread(self.descriptor, size - len(data), offset + len(data))
        ):
            data += more
        return data

    def write_at(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data`; OSError as the disk gives it, with a part perhaps written."""
        _write_all(self.descriptor, data, offset)
        return len(data)

    def truncate(self, size: int) -> None:
        """Cut, or extend with zeros."""
        os.ftruncate(self.descriptor, size)

    def checksum(self) -> int:
        """Return the CRC-32 of its bytes."""
        checksum, offset = 0, 0
        while data := self.read_at(offset, _COPY_BYTES):
            checksum, offset = zlib.crc32(data, checksum), offset + len(data)
        return checksum

    def sync(self) -> None:
        """Make its bytes durable."""
        os.fsync(self.descriptor)

    def close(self) -> None:
        """Close it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _copy(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    offset = 0
    while offset < size:
        data = os.pread(source, _COPY_BYTES, offset)
        if not data:
            break
        _write_all(target, data, offset)
        offset += len(data)
    os.ftruncate(target, size)


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`; a write may be short, also on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


_UNFINISHED = "the mount ended while it was written"
GONE = "its staged bytes are gone"
DAMAGED = "its staged bytes are damaged"
_NO_RECORD = "the journal was damaged, and says nothing of these bytes"


def recovered(journal: Journal, spool: Spool, counts: Callable[[str], bool]) -> list[Record]:
    """Return the records to resume, corrected in the journal; those that keep their path come first.

    `counts(path)` says whether a complete file at a path is for the server.
    """
    present = set(spool.generations())
    records = journal.records()
    changing = {record.sample_id for record in records if record.state is not State.UPLOADED}
    uploaded = Counter(record.sample_id for record in records if record.state is State.UPLOADED)
    # which of several uploads of one sample is the latest is not known; the next listing shows the sample
    changing |= {sample_id for sample_id, uploads in uploaded.items() if uploads > 1}
    found = _without_records(journal, spool, present, {record.key for record in records})
    for record in records:
        if record.state is not State.UPLOADED:
            found += _recovered(journal, spool, record, present, counts)
        elif record.sample_id in changing:
            journal.remove(record.key)  # it may not be the sample's latest image
        else:
            found.append(record)
    return sorted(found, key=_precedence)


def _precedence(record: Record) -> tuple[bool, bool, bool, str]:
    unfinished = record.state is State.INTERRUPTED or bool(record.broken)
    return record.state is not State.UPLOADED, unfinished, not record.create_sent, record.key


def _without_records(
    journal: Journal, spool: Spool, present: set[tuple[str, int]], known: set[str]
) -> list[Record]:
    """Records for staged bytes of which a damaged journal says nothing: half files, for a person to look at.

    Bytes are deleted before their record is, so no other bytes are without one.
    """
    newest = {key: generation for key, generation in sorted(present) if key not in known}
    found = []
    for key, generation in newest.items():
        staged = spool.path(key, generation).stat()
        if not staged.st_size:
            continue
        path, time_ns = f"recovered-{key[:8]}", staged.st_mtime_ns
        record = Record(
            key,
            path,
            path,
            State.INTERRUPTED,
            generation=generation,
            size=staged.st_size,
            atime_ns=time_ns,
            mtime_ns=time_ns,
            ctime_ns=time_ns,
            error=_NO_RECORD,
        )
        journal.put(record)
        log.warning("%s: %s", path, _NO_RECORD)
        found.append(record)
    return found


def _recovered(
    journal: Journal,
    spool: Spool,
    record: Record,
    present: set[tuple[str, int]],
    counts: Callable[[str], bool],
) -> list[Record]:
    unfinished = record.state in (State.OPEN, State.INTERRUPTED) or bool(record.broken)
    if unfinished and (record.key, record.acknowledged) in present:
        return _split(journal, spool, record, present)
    if (record.key, record.generation) not in present:
        return _without_bytes(journal, record)
    if record.owed and not record.broken:
        return [_as_sealed(journal, spool, record)]
    staged = spool.path(record.key, record.generation).stat()
    known = record.changed(size=staged.st_size)
    if record.state is State.OPEN:
        known = known.changed(mtime_ns=staged.st_mtime_ns, ctime_ns=staged.st_mtime_ns)
        if record.replaces or counts(record.path):
            known = known.changed(state=State.INTERRUPTED, error=_UNFINISHED)
        else:
            # a file for this machine only is what was written so far, as on any disk
            known = known.changed(state=State.LOCAL, error="")
    if known != record:
        journal.put(known)
    return [known]


def _split(journal: Journal, spool: Spool, record: Record, present: set[tuple[str, int]]) -> list[Record]:
    """Return a file that was being written again while the server was still owed its earlier generation.

    That one was acknowledged, so it goes up; what was being written becomes a file of its own, or for a
    sample a half that is kept out of view.
    """
    found = []
    if (record.key, record.generation) in present:
        half = Record(
            secrets.token_hex(16),
            record.path,
            record.name,
            State.INTERRUPTED,
            generation=record.generation,
            size=spool.path(record.key, record.generation).stat().st_size,
            mode=record.mode,
            atime_ns=record.atime_ns,
            mtime_ns=record.mtime_ns,
            ctime_ns=record.ctime_ns,
            error=record.error or _UNFINISHED,
            broken=record.broken,
            sample_id=record.sample_id if record.replaces else None,
            replaces=record.replaces,
        )
        journal.put(half)
        spool.move(record.key, record.generation, half.key)
        found.append(half)
    size = os.stat(spool.path(record.key, record.acknowledged)).st_size
    whole = record.changed(
        generation=record.acknowledged,
        state=State.PENDING,
        size=size,
        error="",
        broken=0,
        acknowledged=-1,
        thumbnail_done=False,
    )
    journal.put(whole)
    return [_as_sealed(journal, spool, whole), *found]


def _as_sealed(journal: Journal, spool: Spool, record: Record) -> Record:
    """Check an owed record; bytes that differ from the promised ones are never uploaded."""
    if spool.is_whole(record.key, record.generation, record.size, record.checksum):
        return record
    kept = spool.put_aside(record.key, record.generation)
    log.error("%s: %s; what is left of them is %s", record.path, DAMAGED, kept)
    lost = record.changed(state=State.FAILED, broken=errno.ENODATA, error=DAMAGED)
    journal.put(lost)
    return lost


def _without_bytes(journal: Journal, record: Record) -> list[Record]:
    """Return a record whose bytes are not there.

    They are deleted only after an upload or a removal, which a crash of the machine may have made the
    journal forget: then the server has what there is. Bytes that were promised to no program are no loss.
    """
    if record.broken == errno.ENODATA:
        return [record]  # known to be lost, and a person has not said yet that it may be forgotten
    if record.sample_id or record.create_sent or record.state in (State.OPEN, State.INTERRUPTED):
        log.warning("%s was %s, and its staged bytes are gone; forgotten", record.path, record.state.value)
        journal.remove(record.key)
        return []
    lost = record.changed(state=State.FAILED, broken=errno.ENODATA, error=GONE)
    journal.put(lost)
    return [lost]
