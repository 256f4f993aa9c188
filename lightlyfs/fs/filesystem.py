"""Implements lookup, list, open, read, write and the other calls on a dataset; `lightlyfs.kernel` calls it.

This module must not know FUSE types or HTTP: every method takes paths and numbers, returns plain values and
raises errors of `lightlyfs.errors`. Paths have no leading slash; "" is the root. It decides what a call
means; the parts read samples, write files and change the tree.

Threads: any may call anything; no lock is held while waiting.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.desktop.prefill import ThumbnailPrefill
from lightlyfs.desktop.programs import is_file_manager
from lightlyfs.errors import (
    BadHandle,
    FileExists,
    InvalidArgument,
    IsADirectory,
    NameTooLong,
    NotADirectory,
    NotPermitted,
    OpenNotNeeded,
    ReadOnly,
    SizeUnknown,
)
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr, DiskUsage, SetTimes, attr_of_local
from lightlyfs.fs.changes import TreeChanges, refuse_trash
from lightlyfs.fs.conversion import Completion
from lightlyfs.fs.direct_reads import PathReads
from lightlyfs.fs.handles import HandleTable, ReadHandle, ViewHandle, WriteHandle
from lightlyfs.fs.namespace import HIDDEN_PREFIX, Listing, Namespace, Node, is_view
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.samples import Samples
from lightlyfs.fs.views import ExtendedAttributes, Views
from lightlyfs.fs.writer import Writer
from lightlyfs.staging.local_files import LocalFile
from lightlyfs.tree import above

# shown as free; tools refuse to copy to a full disk, and what the account allows is not known
_FREE_BYTES = 1 << 50
_NAME_MAX_BYTES = 255


class Opened(NamedTuple):
    """An open file, and what the kernel may do with the pages it holds of it."""

    handle: int
    keep_cache: bool
    direct_io: bool
    flushes: bool  # whether a close of it has to be told to us


@dataclass(frozen=True)
class WriteParts:
    """The parts that only a writable mount has."""

    writer: Writer
    changes: TreeChanges
    completion: Completion


class Filesystem:
    """A dataset as a tree of files; `writing` is None on a read-only mount.

    With `by_path` files need not be opened once storage has reported every sample.
    """

    def __init__(
        self,
        namespace: Namespace,
        samples: Samples,
        xattrs: ExtendedAttributes,
        times: SetTimes,
        patience: Patience,
        *,
        forget: Callable[[tuple[str, ...] | None], bool],
        writing: WriteParts | None,
        by_path: PathReads | None,
        views: Views,
        prefill: ThumbnailPrefill | None,
        caller_name: Callable[[], str],
        caller_process: Callable[[], int],
    ) -> None:
        self._names = namespace
        self._samples = samples
        self._xattrs = xattrs
        self._times = times
        self._patience = patience
        self._forget = forget
        self._writing = writing
        self._by_path = by_path
        self._views = views
        self._prefill = prefill
        self._caller_name = caller_name
        self._caller_process = caller_process
        self._handles = HandleTable()

    @property
    def reads_by_path(self) -> bool:
        """Whether files are read by their path, and opens are not told."""
        return self._by_path is not None and self._by_path.active

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return len(self._handles)

    def open_paths(self) -> set[str]:
        """Return the paths of the open files, as of when they were opened."""
        return self._handles.paths()

    def current_generation(self) -> int:
        """Return the generation whose listings may be shown again; -1 where each one has to ask the API."""
        return self._names.current_generation()

    @property
    def sizes_moved(self) -> int:
        """A number that changes whenever a listing may show an outdated size."""
        return self._names.sizes_moved

    # names and attributes

    def getattr(self, path: str) -> Attr:
        """Return the attributes of a path; NoSuchFile, or SizeUnknown where the size cannot be found now."""
        turn = self._patience.turn()
        _need_short_names(path)
        if is_view(path):
            return self._views.attr(path, turn)
        node = self._names.lookup(path, turn)
        if isinstance(node, DirectoryEntry):
            return self._names.directory_attr(path, node)
        if isinstance(node, LocalFile):
            return attr_of_local(node)
        if self._by_path is not None and self._by_path.active:
            return self._by_path.attr(path, node, turn)
        attr = self._names.sample_attr(node)
        if attr.size != UNKNOWN_SIZE and not attr.is_guess:
            return attr
        try:
            found = self._samples.find_size(path, node, turn)
        except SizeUnknown:
            if attr.size == UNKNOWN_SIZE:
                raise
            return attr  # a guess is better than none
        return self._times.numbered(found, node.id)

    def getattr_open(self, handle: int) -> Attr:
        """Return the attributes of an open file: those of the version it was opened with.

        Once another version is shown they are that one's, for the kernel keeps them for all who have it open.
        """
        opened = self._handles.get(handle)
        if isinstance(opened, ViewHandle):
            return self.getattr(opened.path)._replace(size=len(opened.data))
        if isinstance(opened, ReadHandle):
            if opened.content is None or opened.outdated:
                entry = self._names.catalog.told(opened.entry) or opened.entry
                attr = self._names.sample_attr(entry)
                asks = attr.size == UNKNOWN_SIZE or attr.is_guess
                return self.getattr(opened.path) if asks else attr
            return self._names.sample_attr(opened.entry)._replace(size=opened.content.size)
        if opened.file is not None:
            return attr_of_local(opened.file)
        return self.getattr(opened.path) if opened.entry is None else self._names.sample_attr(opened.entry)

    def open_directory(self, path: str) -> None:
        """Prepare for a directory to be listed; does nothing unless the caller is a file manager."""
        if self._prefill is not None and is_file_manager(self._caller_name()):
            self._prefill.opened(path, self._patience.turn().sleep)

    def list_directory(self, path: str) -> Listing:
        """Everything in a directory, in byte order; waits for the first listing to be complete."""
        if is_view(path):
            return self._views.list_directory(path, self._patience.turn())
        return self._names.list_directory(path, self._patience.turn())

    def read_link(self, path: str) -> str:
        """Return where a link points, relative to where it is; only the unlisted folder has links."""
        if not is_view(path):
            raise InvalidArgument(f"not a link: {path}")
        return self._views.read_link(path, self._patience.turn())

    def disk_usage(self) -> DiskUsage:
        """Return the dataset's bytes and files, from its record."""
        record = self._names.catalog.dataset()
        if record is None:
            return DiskUsage(0, 0, _FREE_BYTES)
        return DiskUsage(record.bytes, record.samples, _FREE_BYTES)

    def sample(self, path: str) -> SampleEntry | None:
        """Return the sample at a path; None where there is something else."""
        node = self._names.lookup(path, self._patience.turn())
        return node if isinstance(node, SampleEntry) else None

    def need_directories_above(self, path: str) -> None:
        """Raise NotADirectory where a file is above a path; on a mount the kernel sees to that."""
        turn = self._patience.turn()
        for directory in above(path):
            node = self._names.find(directory, turn)
            if node is not None and not isinstance(node, DirectoryEntry):
                raise NotADirectory(f"a file, not a directory: {directory}")

    # open files

    def open(self, path: str, flags: int) -> Opened:
        """Open a file; changing a sample needs a mount that allows overwriting.

        Raises OpenNotNeeded once files are read by their path alone.
        """
        if self._by_path is not None and self._by_path.begin():
            raise OpenNotNeeded("files are read by their path")
        turn = self._patience.turn()
        if is_view(path):
            return self._open_view(path, flags, turn)
        node = self._names.lookup(path, turn)
        if isinstance(node, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        changing = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        if changing:
            writer = self._need_writing(path).writer
        if isinstance(node, LocalFile):
            handle = self._need_writing(path).writer.open_local(node, flags)
            return Opened(self._handles.add(handle), True, False, True)
        if changing:
            handle = writer.open_sample(path, node, flags)
            return Opened(self._handles.add(handle), True, False, True)
        if self._writing is not None:
            self._names.removed.note_reader(self._caller_process())
        opened = self._samples.open(path, node, turn)
        return Opened(self._handles.add(opened.handle), opened.keep_cache, opened.direct_io, False)

    def _open_view(self, path: str, flags: int, turn: Turn) -> Opened:
        writable = bool(flags & (os.O_ACCMODE | os.O_TRUNC))
        if writable:
            self._need_writing(path)
            self._views.need_writable(path)
        handle = ViewHandle(path, self._views.content(path, turn), bytearray(), writable)
        # generated for each open, so the kernel keeps none of it
        return Opened(self._handles.add(handle), False, True, writable)

    def create(self, path: str, flags: int, mode: int = 0o644) -> Opened:
        """Make a new file and open it for writing."""
        _need_short_names(path)
        if is_view(path):
            self._views.need_writable(path)
        writing = self._need_writing(path)
        refuse_trash(path)
        removed = self._names.removed.take(path)
        if removed is not None:
            handle = writing.writer.open_sample(path, removed, flags | os.O_TRUNC)
            return Opened(self._handles.add(handle), True, False, True)
        existing = self._names.find(path, self._patience.turn())
        if existing is None:
            writing.changes.name_at(path)
        created = writing.writer.create(path, mode & 0o7777, flags) if existing is None else None
        if created is not None:
            return Opened(self._handles.add(created), True, False, True)
        if flags & os.O_EXCL:
            raise FileExists(f"it exists already: {path}")
        return self.open(path, flags)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Bytes of an open file, short only at its end; ContentChanged once storage has another version."""
        if offset < 0 or size < 0:
            raise InvalidArgument("negative offset or size")
        opened = self._handles.get(handle)
        if isinstance(opened, ReadHandle):
            return self._samples.read(opened, offset, size, self._patience.turn())
        if isinstance(opened, ViewHandle):
            return opened.data[offset : offset + size]
        return self._need_writing(opened.path).writer.read(opened, offset, size)

    def read_path(self, path: str, offset: int, size: int) -> bytes:
        """Bytes of a file that was not opened, for `open` said that there is no need to."""
        if self._by_path is None or not self._by_path.active:
            raise BadHandle(f"not open: {path}")
        if offset < 0 or size < 0:
            raise InvalidArgument("negative offset or size")
        turn = self._patience.turn()
        if is_view(path):
            return self._views.content(path, turn, as_shown=True)[offset : offset + size]
        return self._by_path.read(path, offset, size, turn)

    def read_whole(self, path: str) -> bytes | None:
        """Return all bytes of a sample that is small or in the cache; None for what has to be opened."""
        if is_view(path):
            return None
        turn = self._patience.turn()
        node = self._names.lookup(path, turn)
        return self._samples.read_whole(path, node, turn) if isinstance(node, SampleEntry) else None

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """Write bytes into an open file; how many were."""
        opened = self._handles.get(handle)
        if isinstance(opened, ViewHandle):
            return opened.write(offset, data)
        if isinstance(opened, ReadHandle):
            raise NotPermitted("the file is open for reading only")
        writer = self._need_writing(opened.path).writer
        return writer.write(opened, offset, data)

    def truncate(self, path: str | None, handle: int | None, size: int) -> None:
        """Cut or extend a file, by an open one of it where there is one."""
        if handle is not None:
            opened = self._handles.get(handle)
            if isinstance(opened, ViewHandle):
                return
            if isinstance(opened, ReadHandle):
                raise NotPermitted("the file is open for reading only")
            self._need_writing(opened.path).writer.truncate(opened, size)
            return
        assert path is not None
        writer = self._need_writing(path).writer
        if is_view(path):
            self._views.need_writable(path)
            return
        node = self._names.lookup(path, self._patience.turn())
        if isinstance(node, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        writer.truncate_path(path, node, size)

    def flush(self, handle: int) -> None:
        """Finish the writes of a closed descriptor; raises an error if they are not on the server."""
        opened = self._handles.get(handle)
        if isinstance(opened, ViewHandle):
            if opened.written:
                written, opened.written = bytes(opened.written), bytearray()
                self._views.fetch(written)
        elif not isinstance(opened, ReadHandle) and self._writing is not None:
            self._writing.writer.flush(opened)

    def fsync(self, handle: int) -> None:
        """Make the writes durable: on the server for a real name, on this disk for a scratch name."""
        opened = self._handles.get(handle)
        if isinstance(opened, WriteHandle) and self._writing is not None:
            self._writing.writer.fsync(opened)

    def release(self, handle: int) -> None:
        """Close an open file, after its last descriptor was closed."""
        opened = self._handles.remove(handle)
        if isinstance(opened, ReadHandle):
            self._samples.release(opened)
        elif isinstance(opened, WriteHandle) and self._writing is not None:
            self._writing.writer.release(opened)
            if opened.file is not None:
                self._writing.completion.closed(opened.file)

    def abandon(self, handle: int) -> None:
        """Drop an open file that a program did not close; its writes are kept, and not uploaded."""
        opened = self._handles.get(handle)
        if isinstance(opened, WriteHandle) and self._writing is not None:
            self._handles.remove(handle)
            self._writing.writer.abandon(opened)
        else:
            self.release(handle)

    # changing the tree

    def make_directory(self, path: str, mode: int = 0o755) -> None:
        """Make a directory; see `TreeChanges`."""
        _need_short_names(path)
        self._refuse_views(path)
        self._need_writing(path).changes.make_directory(path, mode, self._patience.turn())

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory."""
        self._refuse_views(path)
        self._need_writing(path).changes.remove_directory(path, self._patience.turn())

    def unlink(self, path: str) -> None:
        """Remove a local file; NotPermitted for a sample."""
        self._refuse_views(path)
        self._need_writing(path).changes.unlink(path, self._patience.turn())

    def rename(self, old: str, new: str, flags: int) -> None:
        """Rename a file or directory; `flags` as renameat2 takes them."""
        _need_short_names(new)
        self._refuse_views(old, new)
        changes, turn = self._need_writing(old).changes, self._patience.turn()
        if new.rpartition("/")[2].startswith(HIDDEN_PREFIX):
            changes.hide(old, new, turn)
            return
        done = False
        try:
            changes.rename(old, new, flags, turn)
            done = True
        finally:
            self._names.removed.renamed(old, new, done=done)

    def place_of(self, path: str) -> str:
        """Return where a file is that the kernel knows by a hidden name: a rename over it failed."""
        return self._names.removed.place_of(path) if HIDDEN_PREFIX in path else path

    def set_times(
        self, path: str | None, handle: int | None, *, atime_ns: int | None, mtime_ns: int | None
    ) -> None:
        """Set times in nanoseconds (None: as it was); on a sample this machine remembers the second."""
        path, node = self._node(path, handle)
        writing = self._need_writing(path)
        if isinstance(node, DirectoryEntry):
            writing.changes.set_directory(path, atime_ns=atime_ns, mtime_ns=mtime_ns)
        else:
            writing.writer.set_times(node, atime_ns=atime_ns, mtime_ns=mtime_ns)

    def set_mode(self, path: str | None, handle: int | None, mode: int) -> None:
        """Set the permission bits of what is on this machine only.

        A sample's cannot be kept; refusing that would make rsync and cp fail, so it is ignored.
        """
        path, node = self._node(path, handle)
        writing = self._need_writing(path)
        if isinstance(node, DirectoryEntry):
            writing.changes.set_directory(path, mode=mode & 0o7777)
        else:
            writing.writer.set_mode(node, mode)

    def set_owner(self, path: str | None) -> None:
        """Ignore a change of owner, which cannot be stored; an error would make rsync and cp fail."""
        self._need_writing(path or "")

    def path_of(self, handle: int) -> str:
        """Return the path of an open file, for people to read."""
        try:
            opened = self._handles.get(handle)
        except BadHandle:
            return ""
        file = opened.file if isinstance(opened, WriteHandle) else None
        return opened.path if file is None else file.path

    def _node(self, path: str | None, handle: int | None) -> tuple[str, Node]:
        """Return the path and node of an open file, or of a path."""
        opened = None if handle is None else self._handles.get(handle)
        if isinstance(opened, WriteHandle) and opened.file is not None:
            return opened.file.path, opened.file
        path = opened.path if opened is not None else path
        assert path is not None
        return path, self._names.lookup(path, self._patience.turn())

    def refuse_link(self, old: str, new: str) -> None:
        """Raise the error for a hard link."""
        self._need_writing(new).changes.note_refused_link(old, new)
        self.refuse(new)

    def refuse(self, path: str) -> None:
        """Raise the error for links and device files, which a dataset cannot have."""
        self._need_writing(path)
        raise NotPermitted(f"a dataset has files and directories only: {path}")

    # extended attributes

    def list_xattrs(self, path: str) -> list[str]:
        """Return the names of a path's extended attributes."""
        turn = self._patience.turn()
        return self._xattrs.names(self._names.lookup(path, turn), turn)

    def get_xattr(self, path: str, name: str) -> bytes:
        """Return the value of an extended attribute; NoAttribute or UnknownNamespace where there is none."""
        self._xattrs.check_name(name)
        turn = self._patience.turn()
        return self._xattrs.value(path, self._names.lookup(path, turn), name, turn)

    def set_xattr(self, path: str, name: str, value: bytes | None) -> None:
        """Set the custom metadata of a sample, or remove them with None."""
        entry = self._need_writing(path).changes.set_attribute(path, name, value, self._patience.turn())
        if entry is not None:
            self._xattrs.forget(entry)

    # what the parts below report

    def note_changes(self, paths: tuple[str, ...] | None) -> None:
        """Apply a change of the dataset at these paths (None: anywhere)."""
        self._names.renamed.prune(self._names.catalog)
        if self._writing is not None:
            self._writing.completion.listed()
        self._samples.note_forgotten(paths)
        self._forget(paths)
        if self._prefill is not None and paths is not None:
            self._prefill.changed(paths)
        if paths is None and self._by_path is not None and self._by_path.active:
            self._by_path.forget_pages(self._patience.turn())

    def _refuse_views(self, *paths: str) -> None:
        """Raise NotPermitted for paths of the unlisted folder."""
        for path in paths:
            if is_view(path):
                raise NotPermitted(f"lightlyfs shows this itself: {path}")

    def _need_writing(self, path: str) -> WriteParts:
        if self._writing is None:
            raise ReadOnly(f"the mount is read-only: {path}")
        return self._writing


def _need_short_names(path: str) -> None:
    """NameTooLong where a part of a path is longer than any file system takes; `stat` of it says so, too."""
    if len(path) > _NAME_MAX_BYTES // 4 and any(
        len(part.encode("utf-8", "surrogateescape")) > _NAME_MAX_BYTES for part in path.split("/")
    ):
        raise NameTooLong(f"a part of the path has over {_NAME_MAX_BYTES} bytes: {path[:100]}...")
