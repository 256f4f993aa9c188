"""What lookup, list, open, read and the extended attributes mean on a dataset.

Free of FUSE types and of HTTP: every method takes paths and numbers, returns plain values and raises
errors of `lightlyfs.errors`. Paths have no leading slash; "" is the root.

Threads: any may call anything; no lock is held while waiting.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

from cachetools import LRUCache

from lightlyfs.catalog.catalog import Catalog
from lightlyfs.catalog.inodes import directory_ino
from lightlyfs.catalog.store import DirectoryEntry, Entry, SampleEntry
from lightlyfs.content.identity import ContentId
from lightlyfs.content.reader import Reader
from lightlyfs.errors import (
    InvalidArgument,
    IsADirectory,
    LightlyFsError,
    NoContent,
    NoSuchFile,
    NotADirectory,
    ReadOnly,
    RequestError,
    SizeUnknown,
)
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr, DiskUsage, attr_of_directory, attr_of_sample
from lightlyfs.fs.handles import HandleTable, ReadHandle
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.probes import is_probe, opens_without_reading
from lightlyfs.fs.xattrs import ExtendedAttributes

log = logging.getLogger(__name__)

# sizes of neighbours that are found along with one that was asked for
_SIZES_AHEAD = 64
# which version the kernel holds pages of is remembered for this many files; for others they are dropped
_KERNEL_VERSIONS = 200_000
# shown as free; tools refuse to copy to a full disk, and what the account allows is not known
_FREE_BYTES = 1 << 50


class Opened(NamedTuple):
    """An open file, and what the kernel may do with the pages it holds of it."""

    handle: int
    keep_cache: bool
    direct_io: bool


class Listing(NamedTuple):
    """A directory as a whole, with the inode numbers of `.` and `..`; sizes may be UNKNOWN_SIZE.

    `generation` moves when it may differ.
    """

    generation: int
    ino: int
    parent_ino: int
    entries: list[tuple[str, Attr]]


class Filesystem:
    """A dataset as a tree of files.

    `forget(paths)` tells the kernel that what it knows of these paths is outdated (None: everything); it
    returns whether the kernel has forgotten by then.
    """

    def __init__(
        self,
        catalog: Catalog,
        reader: Reader,
        xattrs: ExtendedAttributes,
        patience: Patience,
        *,
        caller_name: Callable[[], str],
        forget: Callable[[tuple[str, ...] | None], bool],
    ) -> None:
        self._catalog = catalog
        self._reader = reader
        self._xattrs = xattrs
        self._patience = patience
        self._caller_name = caller_name
        self._forget = forget
        self._handles = HandleTable()
        self._lock = threading.Lock()
        # guarded by _lock: the version of each file whose pages the kernel may hold
        self._kernel_has: LRUCache[int, str] = LRUCache(_KERNEL_VERSIONS)

    @property
    def open_files(self) -> int:
        """How many files are open."""
        return len(self._handles)

    def current_generation(self) -> int:
        """The generation whose listings may be shown again; -1 where each one has to ask the API."""
        return self._catalog.current_generation()

    # names and attributes

    def getattr(self, path: str) -> Attr:
        """The attributes of a path; NoSuchFile, or SizeUnknown where the size cannot be found now."""
        turn = self._patience.turn()
        entry = self._entry(path, turn)
        if isinstance(entry, DirectoryEntry):
            return attr_of_directory(entry)
        attr = attr_of_sample(entry)
        return attr if attr.size != UNKNOWN_SIZE else self._find_size(path, entry, turn)

    def getattr_open(self, handle: int) -> Attr:
        """The attributes of an open file: those of the version it was opened with."""
        opened = self._handles.get(handle)
        if opened.content is None:
            return self.getattr(opened.path)
        return Attr(opened.entry.ino, False, opened.content.size, opened.entry.mtime)

    def list_directory(self, path: str) -> Listing:
        """Everything in a directory, in byte order; waits for the first listing to be complete."""
        turn = self._patience.turn()
        entry = self._entry(path, turn)
        if isinstance(entry, SampleEntry):
            raise NotADirectory(f"a file, not a directory: {path}")
        generation = self._catalog.generation
        directories, samples = self._catalog.list_directory(path, turn)
        entries = [(d.name, attr_of_directory(d)) for d in directories]
        entries += [(sample.name, attr_of_sample(sample)) for sample in samples]
        if directories:
            entries.sort(key=lambda pair: pair[0].encode())
        return Listing(generation, entry.ino, directory_ino(path.rpartition("/")[0]), entries)

    def disk_usage(self) -> DiskUsage:
        """The dataset's bytes and files, from its record."""
        record = self._catalog.dataset()
        if record is None:
            return DiskUsage(0, 0, _FREE_BYTES)
        return DiskUsage(record.bytes, record.samples, _FREE_BYTES)

    # reading

    def open(self, path: str, flags: int) -> Opened:
        """Open a file for reading; an unverified one waits for the headers of the GET that reads it.

        Programs known to open without reading are not made to wait: their first read is.
        """
        turn = self._patience.turn()
        entry = self._entry(path, turn)
        if isinstance(entry, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        if flags & (os.O_ACCMODE | os.O_TRUNC | os.O_APPEND):
            raise ReadOnly("the mount is read-only")
        if entry.verified:
            return self._opened(path, entry, _content_of(entry))
        if opens_without_reading(self._caller_name()):
            return Opened(self._handles.add(ReadHandle(path, entry, None)), False, True)
        content = self._identify(entry, turn)
        outdated = entry.published_size not in (None, content.size) and not self._forget((path,))
        return self._opened(path, entry, content, direct_io=outdated)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        """Bytes of an open file, short only at its end; ContentChanged once storage has another version."""
        if offset < 0 or size < 0:
            raise InvalidArgument("negative offset or size")
        opened = self._handles.get(handle)
        turn = self._patience.turn()
        if opened.content is None:
            opened.content = self._identify(opened.entry, turn)
            _need_object(opened.content, opened.path)
        return self._reader.read(opened.content, offset, size, turn.result)

    def release(self, handle: int) -> None:
        """Close a file."""
        self._handles.remove(handle)

    # extended attributes

    def list_xattrs(self, path: str) -> list[str]:
        """The names of a path's extended attributes."""
        turn = self._patience.turn()
        entry = self._entry(path, turn)
        return [] if isinstance(entry, DirectoryEntry) else self._xattrs.names(entry, turn)

    def get_xattr(self, path: str, name: str) -> bytes:
        """The value of an extended attribute; NoAttribute or UnknownNamespace where there is none."""
        self._xattrs.check_name(name)
        turn = self._patience.turn()
        entry = self._entry(path, turn)
        return self._xattrs.value(path, entry if isinstance(entry, SampleEntry) else None, name, turn)

    # changing: nothing here allows it yet

    def refuse_change(self, path: str) -> None:
        """What every changing call raises on a read-only mount."""
        raise ReadOnly(f"the mount is read-only: {path}")

    # what the parts below report

    def note_changes(self, paths: tuple[str, ...] | None) -> None:
        """The dataset changed at these paths (None: anywhere)."""
        self._forget(paths)

    def _entry(self, path: str, turn: Turn) -> Entry:
        if not self._catalog.refresher.complete and is_probe(path):
            raise NoSuchFile(f"no such file: {path}")
        entry = self._catalog.lookup(path, turn)
        if entry is None:
            raise NoSuchFile(f"no such file: {path}")
        return entry

    def _identify(self, entry: SampleEntry, turn: Turn) -> ContentId:
        future = self._reader.identify(entry.sample_id, size_hint=entry.published_size, for_reading=True)
        return turn.result(future)

    def _opened(
        self, path: str, entry: SampleEntry, content: ContentId, *, direct_io: bool = False
    ) -> Opened:
        _need_object(content, path)
        key = content.key()
        with self._lock:
            keep = self._kernel_has.get(entry.ino, key) == key
            self._kernel_has[entry.ino] = key
        return Opened(self._handles.add(ReadHandle(path, entry, content)), keep, direct_io)

    def _find_size(self, path: str, entry: SampleEntry, turn: Turn) -> Attr:
        """Find a size that no metadata tell, and those of the next such neighbours along with it."""
        future = self._reader.identify(entry.sample_id, size_hint=None, for_reading=False)
        self._find_sizes_after(path, entry, turn)
        try:
            content = turn.result(future)
        except RequestError as error:
            raise SizeUnknown(f"the size of {path} cannot be found: {error}") from error
        return Attr(entry.ino, False, content.size, entry.mtime)

    def _find_sizes_after(self, path: str, entry: SampleEntry, turn: Turn) -> None:
        try:
            _, samples = self._catalog.list_directory(path.rpartition("/")[0], turn)
        except LightlyFsError:
            return
        later = [sample for sample in samples if sample.name > entry.name and sample.published_size is None]
        for sample in later[:_SIZES_AHEAD]:
            self._reader.identify(sample.sample_id, size_hint=None, for_reading=False)


def _content_of(entry: SampleEntry) -> ContentId:
    assert entry.size is not None
    assert entry.etag is not None
    return ContentId(entry.sample_id, entry.etag, entry.size)


def _need_object(content: ContentId, path: str) -> None:
    if not content.has_object:
        raise NoContent(f"the sample has no image on the server: {path}")
