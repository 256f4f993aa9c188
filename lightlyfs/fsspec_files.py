"""Open files of the fsspec driver: reading through the block cache, writing through the spool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from lightlyfs.errors import LightlyFsError
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.kernel.errno_table import errno_of

COPY_BYTES = 4 << 20


@contextmanager
def as_os_error(path: str) -> Iterator[None]:
    """What the layers below raise, as what a user of `open` expects."""
    try:
        yield
    except LightlyFsError as error:
        number, _ = errno_of(error)
        raise OSError(number, f"{os.strerror(number)} ({error})", path) from error


class ReadFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file open for reading, of one version from its first byte to its last."""

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
        with as_os_error(path):
            self._handle: int | None = self._files.open(inside, os.O_RDONLY).handle
            size = self._files.getattr_open(self._handle).size
        super().__init__(fs, path, mode, block_size, size=size, **kwargs)

    def _fetch_range(self, start: int, end: int) -> bytes:
        assert self._handle is not None
        with as_os_error(self.path):
            return self._files.read(self._handle, start, end - start)

    def close(self) -> None:
        """Let go of it; idempotent."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            self._files.release(handle)
        if not self.closed:
            super().close()


class WriteFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file open for writing: staged on the local disk, on the server when `close` returns."""

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
        flags = {"wb": os.O_TRUNC, "xb": os.O_EXCL, "ab": 0}.get(mode)
        if flags is None:
            raise NotImplementedError(f"mode {mode!r}; files are opened with rb, wb, xb or ab")
        with as_os_error(path):
            self._handle = self._files.create(inside, flags | os.O_WRONLY).handle
            start = self._files.getattr_open(self._handle).size if mode == "ab" else 0
        super().__init__(fs, path, mode, block_size, **kwargs)
        self.loc = start

    def write(self, data: Any) -> int:
        """Write at the end."""
        assert self._handle is not None
        view = memoryview(data).cast("B")
        with as_os_error(self.path):
            for begin in range(0, len(view), COPY_BYTES):
                self.loc += self._files.write(self._handle, self.loc, bytes(view[begin : begin + COPY_BYTES]))
        return len(view)

    def flush(self, force: bool = False) -> None:
        """Nothing: what was written is on the local disk, and `close` says whether the server has it."""

    def discard(self) -> None:
        """Forget what was written, where nothing of it was sent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with as_os_error(self.path):
                self._files.unlink(self._inside)
                self._files.release(handle)

    def close(self) -> None:
        """Upload it; OSError says why the server does not have it, and it is tried again then."""
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            try:
                with as_os_error(self.path):
                    self._files.flush(handle)
            finally:
                self._files.release(handle)
        self.closed = True
