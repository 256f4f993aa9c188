"""Open files of the fsspec driver: reading through the block cache, writing through the spool.

Programs drop files without closing them. fsspec's file is part of a cycle, so the garbage collector ends it,
in whatever code happens to allocate: also in ours, under a lock. So a finaliser, and a `close` that one
calls, takes no lock: it queues the file for the next ordinary call, which calls `let_go_of_dropped`.
"""

from __future__ import annotations

import gc
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from lightlyfs.errors import BadHandle, ContentChanged, LightlyFsError, NoSuchFile, errno_of
from lightlyfs.fs.filesystem import Filesystem

log = logging.getLogger(__name__)

COPY_BYTES = 4 << 20
_WRITE_FLAGS = {"wb": os.O_TRUNC, "xb": os.O_EXCL, "ab": 0}


@contextmanager
def as_os_error(path: str) -> Iterator[None]:
    """What the layers below raise, as what a user of `open` expects."""
    try:
        yield
    except (LightlyFsError, sqlite3.Error) as error:
        number, _ = errno_of(error)
        raise OSError(number, f"{os.strerror(number)} ({error})", path) from error


@contextmanager
def looking_up(files: Filesystem, path: str, inside: str) -> Iterator[None]:
    """What the layers below raise of a path in a dataset; below a file it is not that nothing is there."""
    with as_os_error(path):
        try:
            yield
        except NoSuchFile:
            files.need_directories_above(inside)
            raise


# what finalisers handed over; appending to it takes no lock
_dropped: deque[tuple[Filesystem, int]] = deque()
# the threads in which the garbage collector runs; single operations on it are atomic
_collecting: set[int] = set()


def _note_collection(phase: str, _info: dict[str, int]) -> None:
    if phase == "start":
        _collecting.add(threading.get_ident())
    else:
        _collecting.discard(threading.get_ident())


def _forget_parents() -> None:
    """In a forked child: the files are the parent's, and the collector's threads did not come along."""
    _dropped.clear()
    _collecting.clear()


gc.callbacks.append(_note_collection)
os.register_at_fork(after_in_child=_forget_parents)


def let_go_of_dropped() -> None:
    """Close the files that were dropped without a close."""
    while _dropped:
        try:
            files, handle = _dropped.popleft()
        except IndexError:
            return  # another thread was first
        try:
            files.abandon(handle)
        except (LightlyFsError, OSError) as error:
            log.warning("a file that was never closed: %s", error)


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """What open files have in common: a handle of the file system, which is let go of once.

    The handle is of one process; what a forked child makes of the file is up to the subclass.
    """

    def __init__(
        self,
        fs: AbstractFileSystem,
        path: str,
        mode: str,
        block_size: int,
        *,
        files: Filesystem,
        inside: str,
        **kwargs: Any,
    ) -> None:
        self._files = files
        self._inside = inside
        self._handle: int | None = None
        self._process = os.getpid()
        with looking_up(files, path, inside):
            self._handle = self._open_handle(mode)
            self._attr = files.getattr_open(self._handle)
        super().__init__(fs, path, mode, block_size, size=self._attr.size, **kwargs)

    def _open_handle(self, mode: str) -> int:
        raise NotImplementedError

    @property
    def _inherited(self) -> bool:
        """Whether the handle is that of the process this one was forked from."""
        return self._process != os.getpid()

    def _take_handle(self) -> int | None:
        """Take the handle to release it; None if that was done, or the handle belongs to another process."""
        handle, self._handle = getattr(self, "_handle", None), None
        return None if handle is None or self._inherited else handle

    def __del__(self) -> None:
        self._drop()
        self.closed = True  # or the base class would call `close`

    def _drop(self) -> None:
        handle = self._take_handle()
        if handle is not None:
            _dropped.append((self._files, handle))

    def close(self) -> None:
        """Let go of it; idempotent."""
        if threading.get_ident() in _collecting:
            self._drop()  # called by the finaliser of a wrapper, as `io.TextIOWrapper` is one
        try:
            handle = self._take_handle()
            if handle is not None:
                self._close_handle(handle)
        finally:
            self._mark_closed()

    def _close_handle(self, handle: int) -> None:
        raise NotImplementedError

    def _mark_closed(self) -> None:
        self.closed = True


class ReadFile(_File):
    """A file open for reading, of one version from its first byte to its last."""

    def _open_handle(self, mode: str) -> int:
        return self._files.open(self._inside, os.O_RDONLY).handle

    def _fetch_range(self, start: int, end: int) -> bytes:
        if self._inherited:
            self._open_again()
        assert self._handle is not None
        with as_os_error(self.path):
            return self._files.read(self._handle, start, end - start)

    def _open_again(self) -> None:
        """In a forked child, which has a file system of its own."""
        self._files, self._inside = self.fs.files_at(self.path)
        with as_os_error(self.path):
            handle = self._open_handle("rb")
            if self._files.getattr_open(handle) != self._attr:
                self._files.release(handle)
                raise ContentChanged("it changed since it was opened")
        self._handle, self._process = handle, os.getpid()

    def _close_handle(self, handle: int) -> None:
        self._files.release(handle)

    def _mark_closed(self) -> None:
        if not self.closed:
            AbstractBufferedFile.close(self)  # lets go of the bytes in memory


class WriteFile(_File):
    """A file open for writing: staged on the local disk, on the server when `close` returns.

    A new file that a `with` block leaves by an exception is forgotten: half a sample could not be deleted.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, mode: str, block_size: int, **kwargs: Any) -> None:
        if mode not in _WRITE_FLAGS:
            raise ValueError(f"mode {mode!r}; files are opened with rb, wb, xb or ab")
        super().__init__(fs, path, mode, block_size, **kwargs)
        self.loc = self._attr.size if mode == "ab" else 0

    def _open_handle(self, mode: str) -> int:
        self._files.need_directories_above(self._inside)
        return self._files.create(self._inside, _WRITE_FLAGS[mode] | os.O_WRONLY).handle

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            try:
                self.discard()
            except OSError as error:
                log.warning("%s was written in part: %s", self.path, error)
        self.close()

    def write(self, data: Any) -> int:
        """Write at the end."""
        if self._handle is None:
            raise ValueError("I/O operation on closed file")
        view = memoryview(data).cast("B")
        with as_os_error(self.path):
            if self._inherited:
                raise BadHandle("it was opened for writing before the fork")
            for begin in range(0, len(view), COPY_BYTES):
                self.loc += self._files.write(self._handle, self.loc, bytes(view[begin : begin + COPY_BYTES]))
        return len(view)

    def flush(self, force: bool = False) -> None:
        """Nothing: what was written is on the local disk, and `close` says whether the server has it."""

    def discard(self) -> None:
        """Forget a new file; PermissionError where it replaces a sample, or was sent."""
        handle = self._take_handle()
        if handle is not None:
            try:
                with as_os_error(self.path):
                    self._files.unlink(self._inside)
            finally:
                self._files.release(handle)

    def close(self) -> None:
        """Upload it; OSError says why the server does not have it, and it is tried again then."""
        super().close()

    def _close_handle(self, handle: int) -> None:
        try:
            with as_os_error(self.path):
                self._files.flush(handle)
        finally:
            self._files.release(handle)
