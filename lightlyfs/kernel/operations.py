"""The FUSE `Operations` class: each callback unpacks its arguments and makes one call of the file system.

The interface is that of fusepy's own class (dicts from `getattr`, names from `readdir`), so fusepy uses it
unchanged. The libfuse 3 binding calls the `*_packed` methods, which return the same values packed for the
kernel. One decorator turns every error into an errno, and logs it once.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from lightlyfs.errors import LightlyFsError, NoSuchFile, StaleName, errno_of
from lightlyfs.fs.attributes import Attr, Ownership
from lightlyfs.fs.filesystem import Filesystem, Opened
from lightlyfs.fs.namespace import Part
from lightlyfs.kernel.binding import KEEP_TIME, PackedListing, Packer, links_of, mode_of, times_of
from lightlyfs.kernel.kept_names import KeptNames

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
                unforeseen = not isinstance(error, LightlyFsError | UnicodeError | OSError)
                shown = self.path_for_log(path, args)
                log.log(level, "%s of %r: %s", method.__name__, shown, error, exc_info=unforeseen)
            raise OSError(number, os.strerror(number)) from None

    return answer  # type: ignore[return-value]


class Operations:
    """Callbacks of one mount; libfuse calls them from any number of threads."""

    use_ns = True

    def __init__(
        self, filesystem: Filesystem, ownership: Ownership, part: Part, *, noflush: bool = False
    ) -> None:
        self._fs = filesystem
        self._part = part
        self._ownership = ownership
        self._noflush = noflush
        self._packer: Packer | None = None
        self._kept_names: KeptNames | None = None
        self.on_destroy: Callable[[], None] = lambda: None

    def destroy(self, path: str) -> None:
        """Handle the end of the mount, before libfuse frees its handle."""
        self.on_destroy()

    def use_packer(self, packer: Packer, kept_names: KeptNames) -> None:
        """Answer the `*_packed` methods with this machine's layout, and note the names that are looked up."""
        self._packer = packer
        self._kept_names = kept_names

    def path_for_log(self, path: str | None, args: tuple[Any, ...]) -> str:
        """Return the path that a callback is about; most callbacks of an open file come without one."""
        if path is not None:
            return path
        handle = _handle(args[-1]) if args else None
        return "" if handle is None else "/" + self._fs.path_of(handle)

    def _inside(self, path: str | None) -> str:
        """Return the path in the dataset of one that the kernel names."""
        return self._fs.place_of(self._named(path))

    def _named(self, path: str | None) -> str:
        """Likewise, but as libfuse calls it: by the hidden name of an open file that was to be replaced."""
        if path is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._part.inside(path[1:]) if self._part.folder else path[1:]

    # names and attributes

    @answers
    def getattr(self, path: str | None, fh: FileInfo | int | None = None) -> dict[str, int]:
        return self._stat(self._attr(path, fh))

    @answers
    def getattr_packed(self, path: str | None, fh: FileInfo | None) -> bytes:
        assert self._packer is not None
        attr = self._attr(path, fh)
        if self._kept_names is not None and path is not None and not attr.is_directory:
            self._kept_names.note(path[1:])
        return self._packer.pack(attr)

    def sizes_moved(self) -> int:
        """Return a number that changes whenever a size in a packed listing may be outdated."""
        return self._fs.sizes_moved

    @answers
    def opendir_packed(self, path: str) -> PackedListing:
        assert self._packer is not None
        self._fs.open_directory(self._inside(path))
        return self._packer.listing(
            self._inside(path), self._fs.current_generation(), self._fs.list_directory
        )

    @answers
    def opendir(self, path: str) -> int:
        self._fs.open_directory(self._inside(path))
        return 0

    @answers
    def releasedir(self, path: str | None, fh: int) -> int:
        return 0

    @answers
    def readdir(self, path: str, fh: int) -> list[tuple[str, dict[str, int], int]]:
        listing = self._fs.list_directory(self._inside(path))
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

    @answers
    def readlink(self, path: str) -> str:
        return self._fs.read_link(self._inside(path))

    # reading

    @answers
    def open(self, path: str, fi: FileInfo) -> int:
        try:
            opened = self._fs.open(self._inside(path), fi.flags)
        except NoSuchFile as error:
            # the kernel opens only names that it knows; it looks an unknown name up first
            raise StaleName(str(error)) from error
        self._tell(fi, opened)
        return 0

    @answers
    def create(self, path: str, mode: int, fi: FileInfo) -> int:
        self._tell(fi, self._fs.create(self._inside(path), fi.flags, mode))
        return 0

    @answers
    def read(self, path: str | None, size: int, offset: int, fi: FileInfo) -> bytes:
        if not fi.fh:
            return self._fs.read_path(self._inside(path), offset, size)
        return self._fs.read(fi.fh, offset, size)

    @answers
    def write(self, path: str | None, data: bytes, offset: int, fi: FileInfo) -> int:
        return self._fs.write(fi.fh, offset, data)

    @answers
    def truncate(self, path: str | None, length: int, fi: FileInfo | None = None) -> int:
        self._fs.truncate(None if path is None else self._inside(path), _handle(fi), length)
        return 0

    @answers
    def flush(self, path: str | None, fi: FileInfo) -> int:
        self._fs.flush(fi.fh)
        return 0

    @answers
    def fsync(self, path: str | None, datasync: int, fi: FileInfo) -> int:
        self._fs.fsync(fi.fh)
        return 0

    @answers
    def release(self, path: str | None, fi: FileInfo) -> int:
        self._fs.release(fi.fh)
        return 0

    # extended attributes

    @answers
    def listxattr(self, path: str) -> list[str]:
        return self._fs.list_xattrs(self._inside(path))

    @answers
    def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
        return self._fs.get_xattr(self._inside(path), name)

    @answers
    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        self._fs.set_xattr(self._inside(path), name, value)
        return 0

    @answers
    def removexattr(self, path: str, name: str) -> int:
        self._fs.set_xattr(self._inside(path), name, None)
        return 0

    # changing the tree

    @answers
    def mkdir(self, path: str, mode: int) -> int:
        self._fs.make_directory(self._inside(path), mode)
        return 0

    @answers
    def rmdir(self, path: str) -> int:
        self._fs.remove_directory(self._inside(path))
        return 0

    @answers
    def unlink(self, path: str) -> int:
        self._fs.unlink(self._named(path))
        return 0

    @answers
    def rename(self, old: str, new: str, flags: int = 0) -> int:
        self._fs.rename(self._inside(old), self._inside(new), flags)
        return 0

    @answers
    def mknod(self, path: str, mode: int, dev: int) -> int:
        self._fs.refuse(self._inside(path))
        return 0

    @answers
    def symlink(self, target: str, source: str) -> int:
        self._fs.refuse(self._inside(target))
        return 0

    @answers
    def link(self, target: str, source: str) -> int:
        self._fs.refuse_link(self._inside(source), self._inside(target))
        return 0

    @answers
    def chmod(self, path: str | None, mode: int, fi: FileInfo | None = None) -> int:
        self._fs.set_mode(None if path is None else self._inside(path), _handle(fi), mode)
        return 0

    @answers
    def chown(self, path: str | None, uid: int, gid: int, fi: FileInfo | None = None) -> int:
        self._fs.set_owner(path)
        return 0

    @answers
    def utimens(
        self, path: str | None, times: tuple[int | None, ...] | None = None, fi: FileInfo | None = None
    ) -> int:
        """Both times in nanoseconds; UTIME_NOW and UTIME_OMIT as `binding.plain_times` gives them."""
        now = time.time_ns()
        wanted = [now if ns is None else ns for ns in times or (None, None)]
        atime_ns, mtime_ns = (None if ns == KEEP_TIME else ns for ns in wanted)
        relative = None if path is None else self._inside(path)
        self._fs.set_times(relative, _handle(fi), atime_ns=atime_ns, mtime_ns=mtime_ns)
        return 0

    def _tell(self, fi: FileInfo, opened: Opened) -> None:
        fi.fh = opened.handle
        fi.keep_cache = int(opened.keep_cache)
        fi.direct_io = int(opened.direct_io)
        if self._noflush and not opened.flushes:
            fi.noflush = 1  # type: ignore[attr-defined]

    def _attr(self, path: str | None, fh: Any) -> Attr:
        handle = _handle(fh)
        return self._fs.getattr_open(handle) if handle is not None else self._fs.getattr(self._inside(path))

    def _stat(self, attr: Attr) -> dict[str, int]:
        owner = self._ownership
        atime_ns, mtime_ns, ctime_ns = times_of(attr)
        return {
            "st_ino": attr.ino,
            "st_mode": mode_of(attr, owner),
            "st_nlink": links_of(attr),
            "st_uid": owner.uid,
            "st_gid": owner.gid,
            "st_size": max(attr.size, 0),
            "st_blocks": -(-max(attr.size, 0) // 512),
            "st_blksize": _BLOCK_BYTES,
            "st_atime": atime_ns,
            "st_mtime": mtime_ns,
            "st_ctime": ctime_ns,
        }


class ReadOnlyOperations(Operations):
    """Those of a mount that cannot be written to: without `flush`, which the kernel then does not send."""

    flush = None  # type: ignore[assignment]


def _handle(fi: Any) -> int | None:
    """The number of an open file, from what the binding passes; 0 stands for none."""
    number: int = getattr(fi, "fh", fi) or 0
    return number or None
