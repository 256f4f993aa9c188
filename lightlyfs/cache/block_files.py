"""The files of the block cache: where they are, how they are opened, what is deleted at start.

Nothing here follows a symbolic link: a planted link would make lightlyfs read or write its target.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_OPEN = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class CachedFile:
    """An open cache file; closed when the last reader lets go of it."""

    def __init__(self, fd: int, checksums: dict[int, int]) -> None:
        self.fd = fd
        # written under the cache's lock; a look at one block needs none
        self.checksums = checksums
        self.proven: set[int] = set()
        # when the file was last changed, as far as what is proven goes
        self._proven_at = os.fstat(fd).st_ctime_ns
        self.dropped = False  # deleted from the cache: what is written to it now is lost

    def __del__(self) -> None:
        os.close(self.fd)

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; raises OSError."""
        return os.pread(self.fd, length, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`; raises OSError, and a part may be written then."""
        as_proven = os.fstat(self.fd).st_ctime_ns == self._proven_at
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view, offset)
            view, offset = view[written:], offset + written
        if as_proven:
            self._proven_at = os.fstat(self.fd).st_ctime_ns

    def was_changed(self) -> bool:
        """Whether another process changed the file since the last call; if so, no block counts as verified.

        Call it after a read: the ctime of a file changes before its bytes do.
        """
        changed_at = os.fstat(self.fd).st_ctime_ns
        if changed_at == self._proven_at:
            return False
        self.proven = set()
        self._proven_at = changed_at
        return True


class BlockFiles:
    """One file per content below a directory; any thread may call."""

    def __init__(self, directory: Path) -> None:
        """Make the directory if it is missing; a link in its place is deleted."""
        self.directory = directory
        self._prefix = f"{directory}/"
        self.make()

    def make(self) -> None:
        """Make the directory if it is missing; a link in its place is deleted."""
        if self.directory.is_symlink():
            self.directory.unlink()
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def open(self, key: str, checksums: dict[int, int], *, create: bool) -> CachedFile | None:
        """Return the file of a content, or None where there is none; raises OSError."""
        path = self._path(key)
        flags = _OPEN | os.O_CREAT if create else _OPEN
        try:
            fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            if not create:
                return None
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            fd = os.open(path, flags, 0o600)
        except OSError:
            if os.path.islink(path):
                os.unlink(path)
            elif os.path.isdir(path):
                shutil.rmtree(path)
            else:
                raise
            if not create:
                return None
            fd = os.open(path, flags, 0o600)
        file = CachedFile(fd, checksums)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"not a regular file: {key}")
        return file

    def delete(self, key: str) -> None:
        """Delete the file of a content, if there is one; raises OSError."""
        try:
            os.unlink(self._path(key))
        except FileNotFoundError:
            pass

    def tidy(self, known: set[str]) -> set[str]:
        """Delete all but the files of `known`; returns those of `known` that have no file."""
        lost = set(known)
        for file in self._entries():
            if file.name in known and file.is_file(follow_symlinks=False):
                lost.discard(file.name)
            else:
                _delete(file)
        return lost

    def by_age(self) -> list[str]:
        """Return the contents that have a file, the one written longest ago first; raises OSError."""
        found = [(file.stat(follow_symlinks=False).st_mtime_ns, file.name) for file in self._entries()]
        return [name for _, name in sorted(found)]

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.directory) as directories:
            for directory in directories:
                if directory.is_dir(follow_symlinks=False):
                    with os.scandir(directory.path) as files:
                        yield from files
                else:
                    _delete(directory)

    def _path(self, key: str) -> str:
        # a string, for this is asked for each file that is read; the last digits of an id count up, so they
        # spread contents over 256 directories
        return f"{self._prefix}{key[22:24]}/{key}"


def free_bytes(directory: Path) -> int:
    """How much of a disk may be written; raises OSError."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize


def shed(directory: Path, wanted_bytes: int) -> None:
    """Delete files of blocks, those written longest ago first, until so much of the disk is free."""
    try:
        if not directory.is_dir() or free_bytes(directory) >= wanted_bytes:
            return
        files = BlockFiles(directory)
        for key in files.by_age():
            files.delete(key)
            if free_bytes(directory) >= wanted_bytes:
                break
    except OSError as error:
        log.warning("no room can be made in %s: %s", directory, error)


def _delete(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
    else:
        os.unlink(entry.path)
