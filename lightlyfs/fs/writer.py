"""Writes files: staging, what close and fsync promise, the end of an upload.

For a name that is uploaded, `close` returns once the server has the file; if it raises an error, the file is
owed and stays readable. All other names, and empty files, stay on this disk. A generation that was sealed for
upload never changes; a later write goes to a copy of it.

A file whose writer was killed is incomplete: it is kept, and uploaded only when a user asks for it.

Locks: a file's own lock guards its disk work. Nothing waits for the server while holding it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Container
from typing import Any

from lightlyfs.catalog.entries import SampleEntry, true_name
from lightlyfs.errors import LightlyFsError, NoSuchFile, NotPermitted
from lightlyfs.fs.conversion import Takeover
from lightlyfs.fs.handles import Callers, WriteHandle
from lightlyfs.fs.namespace import Namespace, Node, entry_of_uploaded
from lightlyfs.fs.patience import UploadWaits
from lightlyfs.name_rules import TEMPORARY_DELAY_S, WritePolicy, is_scratch, looks_temporary
from lightlyfs.staging.local_files import LocalFile, LocalFiles, Ticket
from lightlyfs.staging.record import Record, State
from lightlyfs.staging.uploader import Uploader

log = logging.getLogger(__name__)

_SHOWN_REFUSED = 3

_KILLED = "the program that wrote it was killed"
_NEVER_CLOSED = "the program that wrote it never closed it"
# directories of which one file was logged as staying here
_MAX_TOLD = 1_000


class Writer:
    """The write side of open files; any thread may call."""

    def __init__(
        self,
        local: LocalFiles,
        uploader: Uploader,
        policy: WritePolicy,
        namespace: Namespace,
        takeover: Takeover,
        waits: UploadWaits,
        callers: Callers,
    ) -> None:
        self._local = local
        self._uploader = uploader
        self.policy = policy
        self._names = namespace
        self.takeover = takeover
        self._waits = waits
        self._callers = callers
        self._told: set[str] = set()
        # the last paths whose images may not be replaced; single operations on it are atomic
        self.refused: deque[str] = deque(maxlen=_SHOWN_REFUSED)

    def resume(self, held: Container[str] = ()) -> None:
        """Resume what an earlier mount left; new files of the keys in `held` wait for `resume_file`."""
        for file in self._local.load():
            if file.record.create_sent or file.record.sample_id or file.record.key not in held:
                self.resume_file(file)

    def resume_file(self, file: LocalFile) -> None:
        """Upload a file that an earlier mount owed, unless that has begun already."""
        with file.lock:
            owed = file.record.owed and not file.record.broken and not file.unlinked
            if owed and file.ticket is None and not self.overlays:
                file.ticket = self._submit(file)

    def counts(self, path: str) -> bool:
        """Return whether a complete file at a path is for the server."""
        return self.policy.rules.counts(path)

    # opening

    def create(self, path: str, mode: int, flags: int) -> WriteHandle | None:
        """Create an empty file, open for writing; None if the path exists by now."""
        file = self._local.new(path, mode)
        return None if file is None else self._handle(path, file, None, True, flags)

    def open_local(self, file: LocalFile, flags: int) -> WriteHandle:
        """Open a local file for reading or writing."""
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if not self.takeover.join(file, writable):
            return self._open_uploaded(file, flags)
        return self._cut(self._handle(file.path, file, None, writable, flags), flags)

    def open_sample(self, path: str, entry: SampleEntry, flags: int) -> WriteHandle:
        """Open a sample for changing it; NotPermitted unless the mount allows overwriting.

        A new file of this mount may be changed for as long as it is open, by any program.
        """
        file = self._local.get(path)
        if file is not None and file.handles and self.takeover.join(file, True):
            handle = self._handle(path, file, None, True, flags)
        else:
            self.need_overwrite(path)
            handle = self._handle(path, None, entry, True, flags)
            self.takeover.watch(handle)
        return self._cut(handle, flags)

    def _handle(
        self, path: str, file: LocalFile | None, entry: SampleEntry | None, writable: bool, flags: int
    ) -> WriteHandle:
        process = self._callers.caller_process()
        # O_DSYNC is a bit of O_SYNC
        sync, cut = bool(flags & os.O_DSYNC), bool(flags & os.O_TRUNC)
        return WriteHandle(path, file, entry, writable, process, sync=sync, cut=cut)

    def _cut(self, handle: WriteHandle, flags: int) -> WriteHandle:
        if flags & os.O_TRUNC:
            try:
                self._truncate(handle, 0)
            except BaseException:
                self.release(handle)
                raise
        return handle

    def _open_uploaded(self, file: LocalFile, flags: int) -> WriteHandle:
        """Return a file that became a sample, or was removed, since it was looked up."""
        if not file.uploaded:
            raise NoSuchFile(f"no such file: {file.path}")
        entry = entry_of_uploaded(file.record)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            return self.open_sample(file.path, entry, flags)
        return self._handle(file.path, None, entry, False, flags)

    def need_overwrite(self, path: str) -> None:
        """NotPermitted unless the mount may replace the image of a sample."""
        if not (self.policy.allow_overwrite or self.overlays):
            self.refused.append(path)
            raise NotPermitted(f"{path} is on the server; mount with --allow-overwrite to replace images")

    def release(self, handle: WriteHandle) -> None:
        """Close a handle; what is dirty goes up with the last that may write."""
        file = handle.file
        if file is None:
            self.takeover.forget(handle)
            return
        with file.lock:
            file.handles -= 1
            file.writers -= handle.writable
            # a mapping is written until the process ends, and no flush follows
            finished = file.dirty and not file.writers and (handle.writable or handle.cut)
        try:
            if finished and self._ended_by_signal(handle):
                self._interrupt(file, _KILLED)
            elif finished:
                self._finish(file)
        except (LightlyFsError, OSError) as error:
            # no program gets this error: `close` has reported one; the file keeps its state, and shows why
            log.warning("%s stays on this machine: %s", file.path, error)
        finally:
            if handle.watch is not None:
                handle.watch.close()
        with file.lock:
            if file.handles == 0:
                self._local.unstage_locked(file)

    def abandon(self, handle: WriteHandle) -> None:
        """Let go of a handle that a program lost without closing it; what it wrote is half a file."""
        if handle.file is not None and (handle.writable or handle.cut):
            self._interrupt(handle.file, _NEVER_CLOSED)
        self.release(handle)

    def _ended_by_signal(self, handle: WriteHandle) -> bool:
        """Return whether the opener was killed; one that is gone was, unless something says otherwise."""
        if not handle.process:
            return False
        killed = self._callers.was_killed(handle.process)
        if killed is None and handle.watch is not None:
            killed = handle.watch.was_killed()
        # of one that closed its descriptor and is gone, nothing else says that it was killed
        return killed if killed is not None else handle.watch is None

    # bytes

    def read(self, handle: WriteHandle, offset: int, size: int) -> bytes:
        """Read bytes of a file that is being written, or of the sample it will replace."""
        file = handle.file
        if file is None:
            assert handle.entry is not None
            return self.takeover.read(handle.entry, offset, size)
        with file.lock:
            return self._local.stage_locked(file).read_at(offset, size)

    def write(self, handle: WriteHandle, offset: int, data: bytes) -> int:
        """Write bytes at any place; OSError as the disk gives it, and again until the file is cut to 0."""
        handle.need_writable()
        file = self._staged(handle, copy=True)
        with file.lock:
            _raise_broken(file)
            staged = self._local.unseal_locked(file)
            try:
                count = staged.write_at(offset, data)
            except OSError as error:
                self._local.note_broken_locked(file, error)
                raise
            grew = offset + count > file.size
            file.size = max(file.size, offset + count)
            self._note_changed_locked(file)
            handle.unsynced = True
        if grew:
            # a listing with the old size would have the kernel cut the file
            self._local.touch()
        return count

    def truncate(self, handle: WriteHandle, size: int) -> None:
        """Cut an open file, or extend it with zeros."""
        handle.need_writable()
        self._truncate(handle, size)

    def _truncate(self, handle: WriteHandle, size: int) -> None:
        file = self._staged(handle, copy=size > 0)
        with file.lock:
            if size:
                _raise_broken(file)
            # where it fails, the file is as it was
            self._local.unseal_locked(file, empty=size == 0).truncate(size)
            if size == 0:
                self._local.mend_locked(file)
            file.size = size
            self._note_changed_locked(file)
        self._local.touch()

    def _note_changed_locked(self, file: LocalFile) -> None:
        """Note changed bytes; the journal gets size and times with the next promise."""
        file.mtime_ns = file.ctime_ns = time.time_ns()
        file.dirty = True

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

    # attributes

    def set_times(self, node: Node, *, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set times in nanoseconds (None: as it was); of a sample the modification time, in whole seconds."""
        if isinstance(node, LocalFile):
            with node.lock:
                if not node.uploaded:
                    values = {"atime_ns": atime_ns, "mtime_ns": mtime_ns}
                    known = {name: value for name, value in values.items() if value is not None}
                    self._note_attributes_locked(node, **known)
                    return
                node_entry: Node = entry_of_uploaded(node.record)
            node = node_entry
        if isinstance(node, SampleEntry) and mtime_ns is not None:
            self._names.times.put(node.sample_id, node.published_size, node.etag, mtime_ns // 1_000_000_000)
            self._local.touch()

    def set_mode(self, node: Node, mode: int) -> None:
        """Set the permission bits of a local file; of a sample they cannot be kept."""
        if isinstance(node, LocalFile):
            with node.lock:
                if not node.uploaded:
                    self._note_attributes_locked(node, mode=mode & 0o7777)

    def _note_attributes_locked(self, file: LocalFile, **changes: Any) -> None:
        file.mtime_ns = changes.get("mtime_ns", file.mtime_ns)
        file.ctime_ns = time.time_ns()
        self._local.update(file, file.record.generation, durable=False, ctime_ns=file.ctime_ns, **changes)
        self._local.touch()

    # promises

    def flush(self, handle: WriteHandle) -> None:
        """Finish the writes of a closed descriptor; raises an error if the server does not have them.

        A call from another process than the opener's (a forked child closes its copies) only syncs the disk.
        """
        file = handle.file
        if file is None or file.unlinked or not (handle.writable or handle.cut):
            return
        process = self._callers.caller_process()
        if handle.watch is None and process == handle.process:
            # a mapping outlives its descriptor, and is written until the process ends
            handle.watch = self._callers.watch(process)
        if process != handle.process:
            self._sync(file)
        elif file.dirty and self._callers.was_killed(process):
            self._interrupt(file, _KILLED)
        else:
            ticket = self._finish(file)
            if ticket is not None and not (self.policy.write_back or file.delayed):
                self._waits.wait(ticket)

    def fsync(self, handle: WriteHandle) -> None:
        """Make the writes durable: on the server for a name that is uploaded, else on this disk.

        The kernel also sends an fsync after each write with O_SYNC: it only syncs the disk.
        """
        file = handle.file
        if file is None or file.unlinked:
            return
        self._sync(file)
        of_write, handle.unsynced = handle.sync and handle.unsynced, False
        if of_write or self._looks_temporary(file.record):
            return
        ticket = self._finish(file)
        if ticket is not None:
            self._waits.wait(ticket)

    def send(self, file: LocalFile) -> None:
        """Upload a local file because a person says so, whatever its name is, and wait."""
        if file.record.hidden or not file.size or not file.record.name:
            raise NotPermitted(f"{file.path} has no content of its own, or no name that a sample can have")
        self.upload_as(file, file.path)

    def upload_as(self, file: LocalFile, path: str, **changes: Any) -> None:
        """Upload a local file under a path, with other values of its record, and wait.

        Where that fails nothing is owed, and the file is what it was, where it was.
        """
        with file.lock:
            _raise_broken(file)
            if not self.withdraw(file):
                raise NotPermitted(f"{file.path} is on its way to the server; try again when it is there")
            checksum = self._local.seal_locked(file)
            before = file.record
            covered = self._local.move(
                file,
                path,
                state=State.PENDING,
                size=file.size,
                mtime_ns=file.mtime_ns,
                error="",
                thumbnail_done=False,
                checksum=checksum,
                **changes,
            )
            file.dirty = False
            ticket = file.ticket = self._submit(file)
        try:
            if not (self.policy.write_back or file.delayed):
                self._waits.wait(ticket)
        except BaseException:
            self._put_back(file, before, covered)
            raise
        self.let_go(covered)

    @staticmethod
    def let_go(covered: LocalFile | None) -> None:
        """Let what open descriptors of a replaced file write from here on reach no path."""
        if covered is not None:
            with covered.lock:
                covered.unlinked = True

    def replace_image(self, target: SampleEntry, path: str, source: SampleEntry) -> None:
        """Give the sample at a path the bytes of another one, and wait; if that fails it keeps its own."""
        draft = self._local.draft()
        try:
            self.takeover.copy_sample(source, draft.staged)
        except BaseException:
            self._local.scrap(draft)
            raise
        name, ino = true_name(path, target), self.takeover.ino_of(source)
        file = self._local.publish(draft, path, name, sample_id=target.sample_id, ino=ino)
        if file is None:
            raise NotPermitted(f"{path} is being changed by another program; try again when it is closed")
        try:
            self.wait_uploaded(file)
        except BaseException:
            with file.lock:
                if self._uploader.withdraw(file.record.key):
                    self._local.discard(file)
            raise
        finally:
            self.release(self._handle(path, file, None, True, 0))

    @property
    def overlays(self) -> bool:
        """Whether every change stays on this machine."""
        return self.policy.rules.sends_nothing

    def withdraw(self, file: LocalFile) -> bool:
        """Take a file back from the uploader; False where it is on its way, or may be on the server."""
        return not file.record.create_sent and self._uploader.withdraw(file.record.key)

    @staticmethod
    def is_under_way(file: LocalFile) -> bool:
        """Return whether a complete file is owed to the server, which may have begun to get it."""
        with file.lock:
            return file.record.state is State.PENDING and not file.dirty

    def is_on_its_way(self, file: LocalFile) -> bool:
        """Return whether the server knows of a file, or is about to."""
        return file.record.create_sent or self._uploader.is_running(file.record.key)

    def keep_here(self, file: LocalFile) -> None:
        """Let a file whose upload has not begun stay on this machine."""
        with file.lock:
            if file.record.state is State.PENDING and not file.record.replaces and self.withdraw(file):
                self._local.update(file, file.record.generation, state=State.LOCAL)
                file.delayed = False

    def remove(self, file: LocalFile) -> None:
        """Forget a local file; NotPermitted where it is a sample, or may be one already."""
        with file.lock:
            self._need_removable(file)
            self._local.discard(file)

    def set_aside(self, file: LocalFile) -> None:
        """Hold on to a local file that another is about to replace; NotPermitted where it is on its way.

        From here on it counts as removed, so that a close does not send it after all. A sample that was
        emptied here is local, too: the other file is to replace its image.
        """
        with file.lock:
            if not (file.record.replaces and file.record.state is State.LOCAL and not file.unlinked):
                self._need_removable(file)
            file.unlinked = True

    def _need_removable(self, file: LocalFile) -> None:
        record = file.record
        if file.unlinked:
            raise NoSuchFile(f"no such file: {file.path}")
        if record.replaces:
            raise NotPermitted(f"{file.path} is a sample, and the Lightly API cannot delete samples")
        if record.create_sent or not self.withdraw(file):
            raise NotPermitted(f"{file.path} may be on the server already, which cannot delete it")

    def show_again(self, file: LocalFile) -> None:
        """Show a file again that was set aside but not replaced; if it was closed meanwhile, it is owed."""
        with file.lock:
            file.unlinked = False
            self._local.show_beside(file)
            self._local.save(file)
            if file.record.owed and not file.record.broken and not file.dirty:
                file.ticket = self._submit(file)
                return
            if file.writers:
                return
        try:
            self._finish(file)
        except (LightlyFsError, OSError) as error:
            log.warning("%s stays on this machine: %s", file.path, error)

    def wait_uploaded(self, file: LocalFile) -> None:
        """Wait until what is owed of a file is the server's; raises why it is not."""
        ticket = self._finish(file)
        if ticket is not None:
            self._uploader.hasten(file)
            self._waits.wait(ticket)

    # one file

    def _submit(self, file: LocalFile) -> Ticket:
        file.delayed = self._looks_temporary(file.record)
        return self._uploader.submit(file, delay_s=TEMPORARY_DELAY_S if file.delayed else 0.0)

    def _looks_temporary(self, record: Record) -> bool:
        return not record.replaces and looks_temporary(record.path, self._names.knows)

    def _is_for_server(self, file: LocalFile) -> bool:
        record = file.record
        # a sample keeps its name, whatever that looks like
        counts = record.replaces or self.counts(record.path)
        return bool(file.size and record.name and counts and not self.overlays)

    def _finish(self, file: LocalFile) -> Ticket | None:
        """Seal what is dirty and hand it over; the ticket to wait for, or None where nothing is owed."""
        with file.lock:
            if file.unlinked or file.uploaded or file.record.hidden:
                return None
            _raise_broken(file)
            if not file.dirty:
                return file.ticket if file.record.owed else None
            known: dict[str, Any] = {"error": "", "acknowledged": -1, "thumbnail_done": False}
            for_server = self._is_for_server(file)
            if for_server:
                known["checksum"] = self._local.seal_locked(file)
            self._update_dirty_locked(
                file, durable=for_server, state=State.PENDING if for_server else State.LOCAL, **known
            )
            if not for_server:
                self.withdraw(file)  # what an earlier close left to send is not what the file is now
            file.ticket = self._submit(file) if for_server else None
        if not for_server:
            self._tell_kept(file)
        self._local.touch()
        return file.ticket

    def _update_dirty_locked(self, file: LocalFile, *, durable: bool = True, **changes: Any) -> None:
        """Change the record of a file that was written, and tell the journal what it is now."""
        known = {"size": file.size, "mtime_ns": file.mtime_ns, "ctime_ns": file.ctime_ns}
        self._local.update(file, file.record.generation, durable=durable, **known, **changes)
        file.dirty = False

    def _interrupt(self, file: LocalFile, why: str) -> None:
        """Keep what a killed writer left: half a file, which is not uploaded."""
        with file.lock:
            if file.unlinked or file.uploaded or not file.dirty or file.writers > 1:
                return
            record = file.record
            # of a sample that is being replaced even nothing yet is half
            if self.overlays or not (record.replaces or self._is_for_server(file)):
                self._update_dirty_locked(file, durable=False, state=State.LOCAL)
                return
            self._update_dirty_locked(file, state=State.INTERRUPTED, error=why)
            if record.replaces:
                self._local.set_aside_locked(file)
        log.warning(
            "%s: %s; what it wrote is kept here, and not uploaded (`lightlyfs uploads list`)",
            record.path,
            why,
        )
        if record.replaces and record.sample_id is not None:
            self.takeover.shows_again(record.path, record.sample_id)

    def _tell_kept(self, file: LocalFile) -> None:
        """Log one line a directory of files that the name keeps from the server."""
        path = file.path
        directory = path.rpartition("/")[0]
        if not file.size or is_scratch(path) or directory in self._told or self.overlays:
            return
        if len(self._told) < _MAX_TOLD:
            self._told.add(directory)
            log.info(
                "%s stays on this machine, as do other files of %s that --upload %s does not count; "
                "--upload all uploads them",
                path,
                directory or "the top folder",
                self.policy.rules.text,
            )

    def _sync(self, file: LocalFile) -> None:
        with file.lock:
            _raise_broken(file)
            if file.staged is not None:
                self._local.sync_locked(file)

    def _staged(self, handle: WriteHandle, *, copy: bool) -> LocalFile:
        """Return the file of a handle; a sample becomes one, as it is now, at its first change."""
        if handle.file is None:
            if copy and handle.entry is not None and not handle.replaced:
                handle.entry = self._as_it_is_now(handle.path, handle.entry)
            self.takeover.take(handle, copy=copy)
        assert handle.file is not None
        return handle.file

    def _as_it_is_now(self, path: str, entry: SampleEntry) -> SampleEntry:
        """Return a sample with what other programs have changed of it since it was opened."""
        file, listed = self._local.get(path), self._names.catalog.by_id(entry.sample_id)
        now = None if listed is None else listed[1]
        if file is not None and file.uploaded and file.record.sample_id == entry.sample_id:
            now = entry_of_uploaded(file.record)
        return entry if now is None else now._replace(name=entry.name, file_name_raw=entry.file_name_raw)

    def _put_back(self, file: LocalFile, before: Record, covered: LocalFile | None) -> None:
        """Undo a rename whose upload failed; nothing is owed unless a create was sent.

        `covered` is what was shown at the new name; a sample that no listing shows yet is shown again.
        """
        with file.lock:
            if not self.withdraw(file):
                return  # its upload is or may be under way: what the server received must not be forgotten
            known = file.record
            written_since = known.generation != before.generation
            state = State.LOCAL if before.state is State.OPEN else before.state
            self._local.show_beside(
                file,
                path=before.path,
                name=before.name,
                sample_id=before.sample_id,
                replaces=before.replaces,
                mark=before.mark,
                state=known.state if written_since else state,
                error=known.error if written_since else before.error,
                acknowledged=before.generation if written_since and before.owed else -1,
            )
            file.ticket = self._submit(file) if before.owed and not written_since else None
        if covered is not None and self._local.get(covered.path) is None:
            self._local.show_beside(covered)
            self._local.save(covered)


def _raise_broken(file: LocalFile) -> None:
    """Raise again what a write failed with: half a file is neither written on nor uploaded."""
    if file.record.broken:
        raise OSError(file.record.broken, file.record.error)
