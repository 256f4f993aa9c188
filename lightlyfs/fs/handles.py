"""The table of open files, and the state of each."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass, field
from typing import Protocol

from lightlyfs.blocks import ContentId
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.errors import BadHandle, TooLarge
from lightlyfs.staging.local_files import LocalFile

# written into a file of the unlisted folder; longer lists of paths are for `lightlyfs warm --files`
MAX_WRITTEN_BYTES = 16 << 20


@dataclass
class ReadHandle:
    """A file open for reading; `content` is None until the first read where opening cost no request.

    `outdated` is set once storage told another version; nothing more is read then. `followed` is set once the
    files that are likely to be next were seen to. The program may have bytes of the version once it
    `has_read`, or where the kernel had pages that it `kept` when the file was opened.
    """

    path: str
    entry: SampleEntry
    content: ContentId | None
    followed: bool = False
    kept: bool = False
    used_at: float = 0.0
    outdated: bool = field(default=False, init=False)
    has_read: bool = field(default=False, init=False)
    read_to: int = field(default=0, init=False)  # the end of the bytes that were read


class ProcessWatch(Protocol):
    """Knows how a process ended, also once it is gone."""

    def was_killed(self) -> bool | None:
        """Return whether a signal ended it; None where that cannot be said."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class Callers(Protocol):
    """The programs that callbacks serve."""

    def caller_process(self) -> int:
        """Return the thread group that the callback under way serves."""
        ...

    def caller_name(self) -> str:
        """Return the program that the callback under way serves."""
        ...

    def caller_unlinks(self) -> bool | None:
        """Return whether the callback under way removes a name (True) or renames; None if unknown."""
        ...

    def was_killed(self, process: int) -> bool | None:
        """Return whether a signal ended a process, or is ending it; None where that cannot be said."""
        ...

    def watch(self, process: int) -> ProcessWatch | None:
        """Return a handle that knows how a process ends, also once it is gone; None if there is none."""
        ...


@dataclass
class WriteHandle:
    """A file open for writing, or a local file open for anything.

    `file` is None until the first change to a sample that was opened for changing. `process` is the
    thread group that opened it, `sync` that it was opened with O_SYNC or O_DSYNC; `unsynced` is set by a
    write until the next fsync. `cut` says that opening it, perhaps for reading only, truncated the file.
    `watch` is there once a descriptor was closed. `replaced` is set while `file` is None and another file has
    taken the place of the sample.
    """

    path: str
    file: LocalFile | None
    entry: SampleEntry | None
    writable: bool
    process: int
    sync: bool = False
    cut: bool = False
    unsynced: bool = field(default=False, init=False)
    replaced: bool = field(default=False, init=False)
    watch: ProcessWatch | None = field(default=None, init=False)

    def need_writable(self) -> None:
        """BadHandle where it was opened for reading only."""
        if not self.writable:
            raise BadHandle("the file is open for reading only")


@dataclass
class ViewHandle:
    """A file of the unlisted folder: its bytes when it was opened, and what was written into it since."""

    path: str
    data: bytes
    written: bytearray
    writable: bool

    def write(self, offset: int, data: bytes) -> int:
        """Take bytes that follow those written so far, wherever the file is said to end; how many."""
        if not self.writable:
            raise BadHandle("the file is open for reading only")
        if len(self.written) + len(data) > MAX_WRITTEN_BYTES:
            raise TooLarge(f"over {MAX_WRITTEN_BYTES >> 20} MiB are not taken at once")
        self.written += data
        return len(data)


Handle = ReadHandle | WriteHandle | ViewHandle


class HandleTable:
    """Handles by number; any thread may call."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._handles: dict[int, Handle] = {}

    def add(self, handle: Handle) -> int:
        """Keep a handle; returns its number, never 0."""
        with self._lock:
            number = next(self._numbers)
            self._handles[number] = handle
        return number

    def get(self, number: int) -> Handle:
        """Return the handle of this number; BadHandle if it is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise BadHandle(f"no open file has the handle {number}") from None

    def remove(self, number: int) -> Handle:
        """Forget a handle and return it; BadHandle if it is not open."""
        with self._lock:
            handle = self._handles.pop(number, None)
        if handle is None:
            raise BadHandle(f"no open file has the handle {number}")
        return handle

    def paths(self) -> set[str]:
        """Return the paths of all open files."""
        with self._lock:
            return {handle.path for handle in self._handles.values()}

    def __len__(self) -> int:
        return len(self._handles)
