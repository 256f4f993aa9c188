"""Bounds how many names of files the kernel keeps: those looked up longest ago are given back.

For each name that a program looks up, the kernel keeps an inode, libfuse a node of 240 bytes and this module
the path, until the kernel itself is short of memory; the limit of a container does not count for that. Giving
a name back also drops the pages of its file. Directories stay: a process whose working directory the kernel
drops has none any more.

A name is given back by the number of its directory on the FUSE connection, which only libfuse and the kernel
know. The kernel tells it in a file handle. This file, run as a program, asks for those, because a process
that waits for its own mount might never end.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable

# names are given back some at a time, because each time starts a process
_MOST_AT_ONCE, _PART_AT_ONCE = 16_384, 8
_TIMEOUT_S = 10.0
# linux/exportfs.h: a node's number in 64 bits, and its generation, perhaps with those of its parent
_FUSE_HANDLES = (0x81, 0x82)
_MAX_HANDLE_BYTES = 128
_AT_FDCWD = -100


class KeptNames:
    """The paths of files that were looked up, the latest last; one thread takes what is over `most`."""

    def __init__(self, most: int) -> None:
        self._at_once = min(_MOST_AT_ONCE, most // _PART_AT_ONCE + 1)
        self._limit = most + self._at_once
        # single operations on it are atomic
        self._paths: OrderedDict[str, None] = OrderedDict()
        self._is_over = threading.Event()

    def __len__(self) -> int:
        return len(self._paths)

    def note(self, path: str) -> None:
        """Note that the kernel was given the name of a file; any thread may call."""
        paths = self._paths
        paths[path] = None
        try:
            paths.move_to_end(path)
        except KeyError:
            return  # taken in between
        if len(paths) >= self._limit and not self._is_over.is_set():
            self._is_over.set()

    def take_surplus(self) -> list[str]:
        """Wait until there are too many, and return those that were looked up longest ago."""
        self._is_over.wait()
        self._is_over.clear()
        surplus = len(self._paths) - self._limit + self._at_once
        return [self._paths.popitem(last=False)[0] for _ in range(min(surplus, _MOST_AT_ONCE))]


def node_ids(root: str, directories: Iterable[str]) -> dict[str, int]:
    """Return the numbers of directories below the root of a FUSE mount; those that have none are left out.

    Raises OSError where the kernel cannot be asked.
    """
    wanted = list(directories)
    if not wanted:
        return {}
    if not sys.executable:
        raise OSError("there is no Python to ask the mount with")
    words = [sys.executable, "-I", "-S", __file__, root]
    try:
        done = subprocess.run(
            words,
            input=b"\0".join(map(os.fsencode, wanted)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except subprocess.SubprocessError as error:
        raise OSError(f"the mount does not tell the numbers of its directories: {error}") from error
    try:
        numbers = zip(wanted, map(int, done.stdout.split()), strict=True)
        return {directory: number for directory, number in numbers if number}
    except ValueError as error:
        raise OSError(f"the numbers of directories do not come as they should: {error}") from error


class _FileHandle(ctypes.Structure):
    """`struct file_handle` of open_by_handle_at(2), with room for what FUSE puts into it."""

    _fields_ = (
        ("bytes", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("words", ctypes.c_uint32 * (_MAX_HANDLE_BYTES // 4)),
    )


def _node_id(libc: ctypes.CDLL, path: bytes) -> int:
    """Return the number of a file on its FUSE connection; 0 if it has none."""
    handle = _FileHandle(_MAX_HANDLE_BYTES)
    mount = ctypes.c_int()
    if libc.name_to_handle_at(_AT_FDCWD, path, ctypes.byref(handle), ctypes.byref(mount), 0):
        return 0
    return (handle.words[0] << 32 | handle.words[1]) if handle.type in _FUSE_HANDLES else 0


def _main(root: str) -> None:
    libc = ctypes.CDLL(None)
    for directory in sys.stdin.buffer.read().split(b"\0"):
        sys.stdout.write(f"{_node_id(libc, os.path.join(os.fsencode(root), directory))}\n")


if __name__ == "__main__":
    _main(sys.argv[1])
