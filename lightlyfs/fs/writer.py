"""Writing files: staging, what close and fsync promise, the end of an upload.

`close` of a real name returns once the server has the file, or says why not; the file is then owed, and stays
readable. Scratch names and empty files stay on this disk. A generation that was sealed for upload never
changes; a later write goes to a copy of it.

Locks: a file's own lock guards its disk work. Nothing waits for the server while holding it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.errors import (
    BadHandle,
    LightlyFsError,
    NoSuchFile,
    NotPermitted,
    WriteFailed,
)
from lightlyfs.fs.handles import WriteHandle
from lightlyfs.fs.local import LocalFiles
from lightlyfs.fs.local_file import LocalFile, put_back
from lightlyfs.fs.namespace import Node
from lightlyfs.fs.paths import is_scratch
from lightlyfs.fs.patience import Patience
from lightlyfs.fs.policy import WritePolicy
from lightlyfs.fs.takeover import ReadSample, Takeover
from lightlyfs.fs.times import SetTimes
from lightlyfs.fs.waits import UploadWaits
from lightlyfs.staging.journal import Record, State
from lightlyfs.staging.uploader import Ticket, Uploader

log = logging.getLogger(__name__)


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
        self._waits = UploadWaits(patience)
        self.takeover = Takeover(local, read_sample, patience)

    def resume(self) -> None:
        """Go on with what an earlier mount left."""
        for file in self._local.load():
            if file.record.owed and not file.broken:
                file.ticket = self._uploader.submit(file.record.changed(state=State.PENDING))

    # opening

    def create(self, path: str, name: str) -> WriteHandle | None:
        """A new, empty file, open for writing; None where there is one by now."""
        file = self._local.new(path, name)
        return None if file is None else WriteHandle(path, file, None, True, self._caller_process())

    def open_local(self, file: LocalFile, flags: int) -> WriteHandle:
        """A local file, open for reading or writing."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if not self.takeover.join(file, writable):
            return self._open_uploaded(file, flags)
        handle = WriteHandle(file.path, file, None, writable, self._caller_process())
        return self._cut(handle, flags)

    def open_sample(self, path: str, entry: SampleEntry, flags: int) -> WriteHandle:
        """A sample, open for changing it; NotPermitted unless the mount allows overwriting.

        A new file of this mount may be changed for as long as it is open, whoever has it already.
        """
        file = self._local.get(path)
        if file is not None and file.handles and self.takeover.join(file, True):
            handle = WriteHandle(path, file, None, True, self._caller_process())
        else:
            self.need_overwrite(path)
            handle = WriteHandle(path, None, entry, True, self._caller_process())
            self.takeover.watch(handle)
        return self._cut(handle, flags)

    def _cut(self, handle: WriteHandle, flags: int) -> WriteHandle:
        if flags & os.O_TRUNC:
            try:
                self.truncate(handle, 0)
            except BaseException:
                self.release(handle)
                raise
        return handle

    def _open_uploaded(self, file: LocalFile, flags: int) -> WriteHandle:
        """A file that became a sample, or was removed, since it was looked up."""
        entry = file.entry
        if entry is None:
            raise NoSuchFile(f"no such file: {file.path}")
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            return self.open_sample(file.path, entry, flags)
        return WriteHandle(file.path, None, entry, False, self._caller_process())

    def need_overwrite(self, path: str) -> None:
        """NotPermitted unless the mount may replace the image of a sample."""
        if not self._policy.allow_overwrite:
            raise NotPermitted(
                f"{path} is on the server already; mount with --allow-overwrite to replace images"
            )

    def release(self, handle: WriteHandle) -> None:
        """A handle is closed; whatever is dirty goes up with the last that may write."""
        file = handle.file
        if file is None:
            self.takeover.forget(handle)
            return
        with file.lock:
            file.handles -= 1
            file.writers -= handle.writable
            finished = handle.writable and not file.writers
        try:
            if finished:
                self._finish(file)
        except (LightlyFsError, OSError) as error:
            # nobody is told of it here, and its close was; it stays what it is, and shows why
            self._note_unfinished(file, error)
        with file.lock:
            if file.handles == 0:
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

    def write(self, handle: WriteHandle, offset: int, data: bytes) -> int:
        """Write bytes at any place; OSError as the disk gives it."""
        file = self._for_change(handle, copy=True)
        with file.lock:
            staged = self._local.unseal_locked(file)
            try:
                count = staged.write_at(offset, data)
            except OSError as error:
                self._local.note_broken_locked(file, error)
                raise
            grew = offset + count > file.size
            file.size = max(file.size, offset + count)
            file.mtime = self._local.now()
            file.dirty = True
        if grew:
            # a listing with the old size would have the kernel cut the file
            self._local.touch()
        return count

    def truncate(self, handle: WriteHandle, size: int) -> None:
        """Cut an open file, or extend it with zeros."""
        file = self._for_change(handle, copy=size > 0)
        with file.lock:
            # where it fails, the file is as it was
            self._local.unseal_locked(file, empty=size == 0).truncate(size)
            if size == 0:
                self._local.mend_locked(file)
            file.size = size
            file.mtime = self._local.now()
            file.dirty = True
        self._local.touch()

    def truncate_path(self, path: str, node: LocalFile | SampleEntry, size: int) -> None:
        """Cut a file that is not open by the caller."""
        if isinstance(node, LocalFile):
            handle = self.open_local(node, os.O_RDWR)
        else:
            handle = self.open_sample(path, node, os.O_RDWR | (os.O_TRUNC if size == 0 else 0))
        try:
            self.truncate(handle, size)
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
                    self._local.note_locked(node, node.record.changed(mtime=when))
            self._local.touch()
            if entry is None:
                return
            node = entry
        if isinstance(node, SampleEntry):
            times.put(node.sample_id, node.published_size, node.etag, when)
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
            self._waits.wait(ticket)

    def fsync(self, handle: WriteHandle) -> None:
        """What was written is the server's, for a real name; on this disk, for a scratch name."""
        file = handle.file
        if file is None or file.unlinked:
            return
        self._sync(file)
        ticket = self._finish(file)
        if ticket is not None:
            self._waits.wait(ticket)

    def upload_as(self, file: LocalFile, changes: Mapping[str, object]) -> None:
        """Upload a local file with these changes to its record, and wait; where that fails nothing is owed.

        The file's own record changes only with success.
        """
        with file.lock:
            if file.broken:
                raise WriteFailed(f"{file.path} could not be written whole: {file.broken}")
            if not self.withdraw(file):
                raise NotPermitted(f"{file.path} is on its way to the server; try again when it is there")
            self._local.sync_locked(file)
            self._local.spool.sync()
            before = file.record
            wanted = before.changed(**changes).changed(
                state=State.PENDING, size=file.size, mtime=file.mtime, error=""
            )
            covered = self.rename_here(file, wanted)
            file.sealed, file.dirty = True, False
            ticket = file.ticket = self._uploader.submit(wanted)
        if self._policy.write_back:
            return
        try:
            self._waits.wait(ticket)
        except BaseException:
            self._put_back(file, before, covered)
            raise

    def rename_here(self, file: LocalFile, record: Record) -> LocalFile | None:
        """Give a file another record, with another path; FileExists where a local file is there by now.

        Returns the sample of this mount that was shown there, of which the journal speaks no more.
        """
        with file.lock:
            before = file.record
            covered = self._local.move(file, record)
            try:
                self._local.journal.put(record)
            except BaseException:
                self._local.move_back(file, before)
                raise
        if covered is None or covered.entry is None:
            return None
        self._local.journal.remove(covered.record.key)
        return covered

    def withdraw(self, file: LocalFile) -> bool:
        """Take a file back from the uploader; False where it is on its way, or may be on the server."""
        return not file.record.create_sent and self._uploader.withdraw(file.record.key)

    def remove(self, file: LocalFile) -> None:
        """Forget a local file; NotPermitted where it is a sample, or may be one already."""
        with file.lock:
            record = file.record
            if file.unlinked:
                raise NoSuchFile(f"no such file: {file.path}")
            if record.replaces:
                raise NotPermitted(f"{file.path} is a sample, and the Lightly API cannot delete samples")
            if record.create_sent or not self.withdraw(file):
                raise NotPermitted(f"{file.path} may be on the server already, which cannot delete it")
            self._local.discard(file)

    def set_aside(self, file: LocalFile) -> None:
        """Hold on to a local file that another is about to replace; NotPermitted where it is on its way.

        From here on it counts as removed, so that a close does not send it after all.
        """
        with file.lock:
            if file.unlinked:
                raise NoSuchFile(f"no such file: {file.path}")
            if file.record.create_sent or file.record.replaces or not self.withdraw(file):
                raise NotPermitted(f"{file.path} is on its way to the server; try again when it is there")
            file.unlinked = True

    def show_again(self, file: LocalFile) -> None:
        """A file that was set aside is not replaced after all; what was closed meanwhile is owed."""
        with file.lock:
            file.unlinked = False
            self._local.add(file)
            file.dirty |= file.record.owed and not file.broken
            if file.writers:
                return
        try:
            self._finish(file)
        except (LightlyFsError, OSError) as error:
            self._note_unfinished(file, error)

    def wait_uploaded(self, file: LocalFile) -> None:
        """Wait until what is owed of a file is the server's; raises why it is not."""
        ticket = self._finish(file)
        if ticket is not None:
            self._waits.wait(ticket)

    # one file

    def _finish(self, file: LocalFile) -> Ticket | None:
        """Seal what is dirty and hand it over; the ticket to wait for, or None where nothing is owed."""
        with file.lock:
            if file.unlinked or file.entry is not None:
                return None
            if file.broken:
                raise WriteFailed(f"{file.path} could not be written whole: {file.broken}")
            if not file.dirty:
                return file.ticket
            self._local.sync_locked(file)
            self._local.spool.sync()
            record = file.record
            # what is a sample already has its name, whatever that looks like
            real = bool(file.size and record.name) and (record.replaces or not is_scratch(file.path))
            state = State.PENDING if real else State.LOCAL
            record = record.changed(
                state=state, size=file.size, mtime=file.mtime, error="", acknowledged=-1, thumbnail_done=False
            )
            self._local.journal.put(record)
            file.record, file.dirty = record, False
            file.sealed = real
            file.ticket = self._uploader.submit(record) if real else None
        self._local.touch()
        return file.ticket

    def _note_unfinished(self, file: LocalFile, error: Exception) -> None:
        log.warning("%s stays on this machine: %s", file.path, error)
        with file.lock:
            if file.dirty and not file.broken:
                file.record = file.record.changed(state=State.FAILED, error=str(error))

    def _sync(self, file: LocalFile) -> None:
        with file.lock:
            if file.staged is not None:
                self._local.sync_locked(file)

    def _for_change(self, handle: WriteHandle, *, copy: bool) -> LocalFile:
        if not handle.writable:
            raise BadHandle("the file is open for reading only")
        if handle.file is None:
            self.takeover.take(handle, copy=copy)
        assert handle.file is not None
        return handle.file

    def _put_back(self, file: LocalFile, before: Record, covered: LocalFile | None) -> None:
        """A rename whose upload failed: the old name stays, and nothing is owed unless a create was sent.

        `covered` is what was shown at the new name; a sample that no listing shows yet is shown again.
        """
        with file.lock:
            if not self.withdraw(file):
                return  # it is on its way, or may be: what the server got must not be forgotten
            back = put_back(file.record, before)
            self._local.move_back(file, back)
            self._local.journal.put(file.record)
            # what was owed under the old name still is
            owed = back is before and before.owed
            file.sealed = owed
            file.ticket = self._uploader.submit(file.record) if owed else None
        if covered is not None and self._local.get(covered.path) is None:
            self._local.journal.put(covered.record)
            self._local.add(covered)
