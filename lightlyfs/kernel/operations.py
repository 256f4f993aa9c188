"""The FUSE `Operations` class: unpack, one call of the file system, return.

The shape is that of fusepy's own class (dicts from `getattr`, names from `readdir`), so it runs under
fusepy as it is; the libfuse 3 binding takes the same answers packed for the kernel, by the `*_packed`
methods. Every error becomes an errno in one decorator, which also logs it, once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from lightlyfs.errors import LightlyFsError
from lightlyfs.fs.attributes import Attr, Ownership
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.kernel.errno_table import errno_of
from lightlyfs.kernel.packing import PackedListing, Packer

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])

_BLOCK_BYTES = 4096
_NAME_MAX = 255


class FileInfo(Protocol):
    """What is used of libfuse's `fuse_file_info`."""

    flags: int
    fh: int
    direct_io: int
    keep_cache: int


def answers(method: F) -> F:
    """Turn whatever a callback raises into the OSError its caller gets, logging it once."""

    @functools.wraps(method)
    def answer(self: Operations, path: str | None, *args: Any) -> Any:
        try:
            return method(self, path, *args)
        except BaseException as error:
            number, level = errno_of(error)
            if log.isEnabledFor(level):
                unforeseen = not isinstance(error, (LightlyFsError, UnicodeError))
                log.log(level, "%s of %r: %s", method.__name__, path, error, exc_info=unforeseen)
            raise OSError(number, os.strerror(number)) from None

    return answer  # type: ignore[return-value]


class Operations:
    """Callbacks of one mount; libfuse calls them from any number of threads."""

    use_ns = True

    def __init__(self, filesystem: Filesystem, ownership: Ownership, *, noflush: bool = False) -> None:
        self._fs = filesystem
        self._ownership = ownership
        self._noflush = noflush
        self._packer: Packer | None = None

    def use_packer(self, packer: Packer) -> None:
        """Answer the `*_packed` methods with this machine's layout."""
        self._packer = packer

    # names and attributes

    @answers
    def getattr(self, path: str | None, fh: FileInfo | int | None = None) -> dict[str, int]:
        return self._stat(self._attr(path, fh))

    @answers
    def getattr_packed(self, path: str | None, fh: FileInfo | None) -> bytes:
        assert self._packer is not None
        return self._packer.pack(self._attr(path, fh))

    @answers
    def opendir_packed(self, path: str) -> PackedListing:
        assert self._packer is not None
        return self._packer.listing(_relative(path), self._fs.current_generation(), self._fs.list_directory)

    @answers
    def opendir(self, path: str) -> int:
        return 0

    @answers
    def releasedir(self, path: str | None, fh: int) -> int:
        return 0

    @answers
    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        listing = self._fs.list_directory(_relative(path))
        dots = [(".", Attr(listing.ino, True, 0, 0)), ("..", Attr(listing.parent_ino, True, 0, 0))]
        return [(name, self._stat(attr), 0) for name, attr in dots + listing.entries]

    @answers
    def statfs(self, path: str) -> dict[str, int]:
        usage = self._fs.disk_usage()
        free = usage.free_bytes // _BLOCK_BYTES
        used = -(-usage.bytes // _BLOCK_BYTES)
        return {
            "f_bsize": _BLOCK_BYTES,
            "f_frsize": _BLOCK_BYTES,
            "f_blocks": used + free,
            "f_bfree": free,
            "f_bavail": free,
            "f_files": usage.files + (1 << 32),
            "f_ffree": 1 << 32,
            "f_favail": 1 << 32,
            "f_namemax": _NAME_MAX,
        }

    # reading

    @answers
    def open(self, path: str, fi: FileInfo) -> int:
        opened = self._fs.open(_relative(path), fi.flags)
        fi.fh = opened.handle
        fi.keep_cache = int(opened.keep_cache)
        fi.direct_io = int(opened.direct_io)
        if self._noflush:
            fi.noflush = 1  # type: ignore[attr-defined]
        return 0

    @answers
    def read(self, path: str | None, size: int, offset: int, fi: FileInfo) -> bytes:
        return self._fs.read(fi.fh, offset, size)

    @answers
    def release(self, path: str | None, fi: FileInfo) -> int:
        self._fs.release(fi.fh)
        return 0

    # extended attributes

    @answers
    def listxattr(self, path: str) -> list[str]:
        return self._fs.list_xattrs(_relative(path))

    @answers
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self._fs.get_xattr(_relative(path), name)

    # changing

    @answers
    def create(self, path: str, mode: int, fi: FileInfo | None = None) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def write(self, path: str | None, data: bytes, offset: int, fi: FileInfo) -> int:
        self._fs.refuse_change(path or "")
        return 0

    @answers
    def truncate(self, path: str, length: int, fh: FileInfo | None = None) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def mkdir(self, path: str, mode: int) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def rmdir(self, path: str) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def unlink(self, path: str) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def rename(self, old: str, new: str, flags: int = 0) -> int:
        self._fs.refuse_change(old)
        return 0

    @answers
    def mknod(self, path: str, mode: int, dev: int) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def symlink(self, target: str, source: str) -> int:
        self._fs.refuse_change(target)
        return 0

    @answers
    def link(self, target: str, source: str) -> int:
        self._fs.refuse_change(target)
        return 0

    @answers
    def chmod(self, path: str, mode: int) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def chown(self, path: str, uid: int, gid: int) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def utimens(self, path: str, times: tuple[int, int] | None = None) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        self._fs.refuse_change(path)
        return 0

    @answers
    def removexattr(self, path: str, name: str) -> int:
        self._fs.refuse_change(path)
        return 0

    def _attr(self, path: str | None, fh: Any) -> Attr:
        handle: int | None = getattr(fh, "fh", fh)
        if path is None and handle:
            return self._fs.getattr_open(handle)
        return self._fs.getattr(_relative(path))

    def _stat(self, attr: Attr) -> dict[str, int]:
        owner = self._ownership
        kind = stat.S_IFDIR | owner.directory_mode if attr.is_directory else stat.S_IFREG | owner.file_mode
        time_ns = attr.mtime * 1_000_000_000
        return {
            "st_ino": attr.ino,
            "st_mode": kind,
            "st_nlink": 2 if attr.is_directory else 1,
            "st_uid": owner.uid,
            "st_gid": owner.gid,
            "st_size": max(attr.size, 0),
            "st_blocks": -(-max(attr.size, 0) // 512),
            "st_blksize": _BLOCK_BYTES,
            "st_atime": time_ns,
            "st_mtime": time_ns,
            "st_ctime": time_ns,
        }


def _relative(path: str | None) -> str:
    if path is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return path[1:]
