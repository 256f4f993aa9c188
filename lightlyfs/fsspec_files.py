"""Open files of the fsspec driver: reading through the block cache, writing through the spool."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from lightlyfs.errors import LightlyFsError
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.kernel.errno_table import errno_of

log = logging.getLogger(__name__)

COPY_BYTES = 4 << 20
_WRITE_FLAGS = {"wb": os.O_TRUNC, "xb": os.O_EXCL, "ab": 0}


@contextmanager
def as_os_error(path: str) -> Iterator[None]:
    """What the layers below raise, as what a user of `open` expects."""
    try:
        yield
    except LightlyFsError as error:
        number, _ = errno_of(error)
        raise OSError(number, f"{os.strerror(number)} ({error})", path) from error


class _File(AbstractBufferedFile):  # type: ignore[misc]
    """What open files have in common: a handle of the file system, which is let go of once."""

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
        with as_os_error(path):
            self._handle = self._open_handle(mode)
            size = files.getattr_open(self._handle).size
        super().__init__(fs, path, mode, block_size, size=size, **kwargs)

    def _open_handle(self, mode: str) -> int:
        raise NotImplementedError

    def _take_handle(self) -> int | None:
        """The handle, for whoever lets go of it; None where that was done, or it never opened."""
        handle, self._handle = getattr(self, "_handle", None), None
        return handle


class ReadFile(_File):
    """A file open for reading, of one version from its first byte to its last."""

    def _open_handle(self, mode: str) -> int:
        return self._files.open(self._inside, os.O_RDONLY).handle

    def _fetch_range(self, start: int, end: int) -> bytes:
        assert self._handle is not None
        with as_os_error(self.path):
            return self._files.read(self._handle, start, end - start)

    def close(self) -> None:
        """Let go of it; idempotent."""
        handle = self._take_handle()
        if handle is not None:
            self._files.release(handle)
        if not self.closed:
            super().close()


class WriteFile(_File):
    """A file open for writing: staged on the local disk, on the server when `close` returns.

    A new file that a `with` block leaves by an exception is forgotten: half a sample could not be deleted.
    """

    def __init__(self, fs: AbstractFileSystem, path: str, mode: str, block_size: int, **kwargs: Any) -> None:
        if mode not in _WRITE_FLAGS:
            raise ValueError(f"mode {mode!r}; files are opened with rb, wb, xb or ab")
        super().__init__(fs, path, mode, block_size, **kwargs)
        self.loc = self.size if mode == "ab" else 0

    def _open_handle(self, mode: str) -> int:
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
        handle = self._take_handle()
        if handle is not None:
            try:
                with as_os_error(self.path):
                    self._files.flush(handle)
            finally:
                self._files.release(handle)
        self.closed = True
