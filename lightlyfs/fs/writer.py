"""Writing files: staging, what close and fsync promise, the end of an upload.

`close` of a real name returns once the server has the file, or says why not; the file is then owed, and stays
readable. Scratch names and empty files stay on this disk. A generation that was sealed for upload never
changes; a later write goes to a copy of it.

Locks: a file's own lock guards its disk work. Nothing waits for the server while holding it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from lightlyfs.catalog.store import SampleEntry
from lightlyfs.errors import (
    BadHandle,
    NotPermitted,
    TooManyWaiting,
    WriteFailed,
)
from lightlyfs.fs.handles import WriteHandle
from lightlyfs.fs.local import LocalFile, LocalFiles, is_scratch
from lightlyfs.fs.namespace import Node
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.times import SetTimes
from lightlyfs.upload.journal import Record, State
from lightlyfs.upload.uploader import Ticket, Uploader

log = logging.getLogger(__name__)

# calls that wait for uploads hold a thread of libfuse each, and metadata must not run out of them
MAX_WAITING = 64
_COPY_BYTES = 4 << 20

# read a sample's bytes: (entry, offset, size, turn)
ReadSample = Callable[[SampleEntry, int, int, Turn], bytes]


@dataclass(frozen=True)
class WritePolicy:
    """What writing may do: replace the image of a sample, return from `close` before the server has it."""

    allow_overwrite: bool = False
    write_back: bool = False


class Writer:
    """The write side of open files; any thread may call."""

    def __init__(
        self,
        local: LocalFiles,
        uploader: Uploader,
        policy: WritePolicy,
        patience: Patience,
        *,
        read_sample: ReadSample,
        caller_process: Callable[[], int],
    ) -> None:
        self._local = local
        self._uploader = uploader
        self._policy = policy
        self._patience = patience
        self._read_sample = read_sample
        self._caller_process = caller_process
        self._waiting = threading.BoundedSemaphore(MAX_WAITING)

    def resume(self) -> None:
        """Go on with what an earlier mount left."""
        for file in self._local.load():
            if file.record.state is State.PENDING or (file.record.state is State.FAILED and not file.broken):
                file.ticket = self._uploader.submit(file.record.changed(state=State.PENDING))

    # opening

    def create(self, path: str, name: str) -> WriteHandle:
        """A new, empty file, open for writing."""
        file = self._local.new(path, name)
        file.dirty = True
        file.handles = 1
        return WriteHandle(path, file, None, True, self._caller_process())

    def open_local(self, file: LocalFile, flags: int) -> WriteHandle:
        """A local file, open for reading or writing."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        with file.lock:
            self._local.stage_locked(file)
            file.handles += 1
        handle = WriteHandle(file.path, file, None, writable, self._caller_process())
        if flags & os.O_TRUNC:
            self.truncate(handle, 0)
        return handle

    def open_sample(self, path: str, entry: SampleEntry, name: str, flags: int) -> WriteHandle:
        """A sample, open for changing it; NotPermitted unless the mount allows overwriting."""
        self.need_overwrite(path)
        handle = WriteHandle(path, None, entry, True, self._caller_process())
        if flags & os.O_TRUNC:
            self._take_over(handle, name, copy=False)
        return handle

    def need_overwrite(self, path: str) -> None:
        """NotPermitted unless the mount may replace the image of a sample."""
        if not self._policy.allow_overwrite:
            raise NotPermitted(
                f"{path} is on the server already; mount with --allow-overwrite to replace images"
            )

    def release(self, handle: WriteHandle) -> None:
        """The last descriptor of a handle is closed; whatever is dirty since its flush goes up now."""
        file = handle.file
        if file is None:
            return
        with file.lock:
            file.handles -= 1
            last = file.handles == 0
        if last and handle.writable and not file.unlinked:
            self._finish(file)
        with file.lock:
            if file.handles == 0 and (file.unlinked or file.entry is not None or not file.dirty):
                self._local.unstage_locked(file)

    # bytes

    def read(self, handle: WriteHandle, offset: int, size: int) -> bytes:
        """Bytes of a file that is being written, or of the sample it will replace."""
        file = handle.file
        if file is None:
            assert handle.entry is not None
            return self._read_sample(handle.entry, offset, size, self._patience.turn())
        with file.lock:
            return self._local.stage_locked(file).read_at(offset, size)

    def write(self, handle: WriteHandle, offset: int, data: bytes, name: str) -> int:
        """Write bytes at any place; OSError as the disk gives it."""
        file = self._for_change(handle, name)
        with file.lock:
            staged = self._local.unseal_locked(file)
            try:
                count = staged.write_at(offset, data)
            except OSError as error:
                self._local.note_broken_locked(file, error)
                raise
            file.size = max(file.size, offset + count)
            file.mtime = self._local.now()
            file.dirty = True
        return count

    def truncate(self, handle: WriteHandle, size: int, name: str = "") -> None:
        """Cut an open file, or extend it with zeros."""
        file = self._for_change(handle, name)
        with file.lock:
            staged = self._local.unseal_locked(file)
            try:
                staged.truncate(size)
            except OSError as error:
                self._local.note_broken_locked(file, error)
                raise
            file.size = size
            file.mtime = self._local.now()
            file.dirty = True
        self._local.touch()

    def truncate_path(self, path: str, node: LocalFile | SampleEntry, size: int, name: str) -> None:
        """Cut a file that is not open by the caller."""
        if isinstance(node, LocalFile):
            handle = self.open_local(node, os.O_RDWR)
        else:
            handle = self.open_sample(path, node, name, os.O_RDWR | (os.O_TRUNC if size == 0 else 0))
        try:
            self.truncate(handle, size, name)
            self.flush(handle)
        finally:
            self.release(handle)

    def set_mtime(self, node: Node, mtime: int | None, times: SetTimes) -> None:
        """Set a time in seconds (None: now); nothing is kept for directories."""
        when = self._local.now() if mtime is None else mtime
        if isinstance(node, LocalFile):
            with node.lock:
                node.mtime = when
                entry = node.entry
                if entry is None:
                    node.record = node.record.changed(mtime=when)
                    self._local.journal.put(node.record)
            self._local.touch()
            if entry is None:
                return
            node = entry
        if isinstance(node, SampleEntry):
            times.put(node.sample_id, node.published_size, when)
            self._local.touch()

    # promises

    def flush(self, handle: WriteHandle) -> None:
        """A descriptor is closed: what it wrote is the server's, or the error says why not.

        From another process than the opener's (a forked child closes its copies) only the disk is seen to.
        """
        file = handle.file
        if file is None or not handle.writable or file.unlinked:
            return
        if self._caller_process() != handle.process:
            self._sync(file)
            return
        ticket = self._finish(file)
        if ticket is not None and not self._policy.write_back:
            self._wait(ticket)

    def fsync(self, handle: WriteHandle) -> None:
        """What was written is the server's, for a real name; on this disk, for a scratch name."""
        file = handle.file
        if file is None or file.unlinked:
            return
        self._sync(file)
        ticket = self._finish(file)
        if ticket is not None:
            self._wait(ticket)

    def upload_as(self, file: LocalFile, record: Record) -> None:
        """Upload a local file under another name, and wait; where that fails nothing is owed.

        The file's own record changes only with success.
        """
        with file.lock:
            staged = self._local.stage_locked(file)
            staged.sync()
            wanted = record.changed(state=State.PENDING, size=file.size, mtime=file.mtime)
            self._local.spool.sync()
            before = file.record
            self._local.journal.put(wanted)
            self._local.move(file, wanted)
            file.sealed, file.dirty = True, False
            ticket = file.ticket = self._uploader.submit(wanted)
        if self._policy.write_back:
            return
        try:
            self._wait(ticket)
        except BaseException:
            self._put_back(file, before)
            raise

    def withdraw(self, file: LocalFile) -> bool:
        """Take a file back from the uploader; False where it is on its way, or may be on the server."""
        owed = self._uploader.withdraw(file.record.key)
        return owed is not None and not owed.create_sent

    def wait_uploaded(self, file: LocalFile) -> None:
        """Wait until what is owed of a file is the server's; raises why it is not."""
        ticket = self._finish(file)
        if ticket is not None:
            self._wait(ticket)

    # one file

    def _finish(self, file: LocalFile) -> Ticket | None:
        """Seal what is dirty and hand it over; the ticket to wait for, or None where nothing is owed."""
        with file.lock:
            if file.broken:
                raise WriteFailed(f"{file.path} could not be written whole: {file.broken}")
            if not file.dirty:
                return file.ticket
            staged = self._local.stage_locked(file)
            staged.sync()
            self._local.spool.sync()
            real = bool(file.size) and bool(file.record.name) and not is_scratch(file.path)
            state = State.PENDING if real else State.LOCAL
            record = file.record.changed(state=state, size=file.size, mtime=file.mtime, error="")
            self._local.journal.put(record)
            file.record, file.dirty = record, False
            file.sealed = real
            file.ticket = self._uploader.submit(record) if real else None
            return file.ticket

    def _wait(self, ticket: Ticket) -> None:
        if ticket.result.done():
            ticket.result.result()
            return
        if not self._waiting.acquire(blocking=False):
            raise TooManyWaiting("too many files wait for the server; this one stays pending")
        try:
            self._patience.turn().result(ticket.result, moved=lambda: ticket.moved)
        finally:
            self._waiting.release()

    def _sync(self, file: LocalFile) -> None:
        with file.lock:
            if file.staged is not None:
                file.staged.sync()

    def _for_change(self, handle: WriteHandle, name: str) -> LocalFile:
        if not handle.writable:
            raise BadHandle("the file is open for reading only")
        if handle.file is None:
            self._take_over(handle, name, copy=True)
        assert handle.file is not None
        return handle.file

    def _take_over(self, handle: WriteHandle, name: str, *, copy: bool) -> None:
        """Stage a sample that is about to change, with its present bytes unless they are cut away."""
        entry = handle.entry
        assert entry is not None
        file = self._local.get(handle.path)
        if file is None:
            file = self._local.new(handle.path, name, sample_id=entry.sample_id)
        elif file.entry is not None:
            self._local.reopen(file)
        else:
            copy = False  # somebody else is changing it already
        if copy:
            try:
                self._copy_sample(entry, file)
            except BaseException:
                self._local.discard(file)
                raise
        with file.lock:
            self._local.stage_locked(file)
            file.handles += 1
            file.dirty = True
        handle.file = file

    def _copy_sample(self, entry: SampleEntry, file: LocalFile) -> None:
        assert file.staged is not None
        offset = 0
        while data := self._read_sample(entry, offset, _COPY_BYTES, self._patience.turn()):
            file.staged.write_at(offset, data)
            offset += len(data)
        file.size = offset

    def _put_back(self, file: LocalFile, before: Record) -> None:
        """A rename whose upload failed: the old name stays, and nothing is owed unless a create was sent."""
        owed = self._uploader.withdraw(file.record.key)
        if owed is None or owed.create_sent:
            return  # it is on its way, or may be: what the server got must not be forgotten
        with file.lock:
            self._local.journal.put(before)
            self._local.move(file, before)
            file.ticket = None
            file.sealed = False
