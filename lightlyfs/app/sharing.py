"""Sharing the directory of a dataset with other processes: who lists, who opens, and news of their writes.

`DirectoryWatch` is a thread that sleeps in inotify(7) until a file of the directory is written. It reports
the writes of this process too; the callback has to recognize that they are no news.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import sqlite3
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from lightlyfs.errors import StartError
from lightlyfs.locks import OPENING, OPENING_PATIENCE_S
from lightlyfs.places import DatasetPlace

log = logging.getLogger(__name__)

# a first listing of ten million samples takes some minutes
_LISTING_PATIENCE_S = 900.0


def listing_turn(
    place: DatasetPlace, catalogue: str, cancelled: Callable[[], bool]
) -> Callable[[Callable[[], None]], AbstractContextManager[None]]:
    """Return what keeps other processes from listing a catalogue while this one does; see `Refresher`."""
    return lambda on_wait: place.locks.name(f"list {catalogue}", _LISTING_PATIENCE_S, cancelled, on_wait)


@contextmanager
def opening(place: DatasetPlace) -> Iterator[None]:
    """Open files of a place in the block; StartError where that cannot be.

    Processes take turns: two may both find no catalogue of a tag, and make one.
    """
    try:
        with place.locks.name(OPENING, OPENING_PATIENCE_S):
            yield
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"the cache in {place.path} cannot be used: {error}") from error


@contextmanager
def renewing(place: DatasetPlace) -> Iterator[None]:
    """Make a file of a place again in the block, which a cleaner deleted; OSError where that cannot be."""
    place.locks.renew()
    with place.locks.name(OPENING, OPENING_PATIENCE_S):
        yield


_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF = 0x2, 0x80, 0x100, 0x200, 0x400
_IN_IGNORED = 0x8000
_EVENTS = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 64 << 10
# between two notifications: writes come in bursts
_PAUSE_S = 0.5
# where the system has no inotify left
_TICK_S = 1.0


class DirectoryWatch:
    """Calls `on_change()` soon after something in a directory was written; `start` and `close` once.

    Where nothing can be watched it is called each second.
    """

    def __init__(self, directory: Path, on_change: Callable[[], None]) -> None:
        self._directory = directory
        self._on_change = on_change
        self._closing = threading.Event()
        self._inotify = self._wake = -1
        self._watched = (0, 0)  # device and inode number
        self._thread = threading.Thread(target=self._run, name="lightlyfs-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._watch()
        self._thread.start()

    def close(self) -> None:
        """Stop calling."""
        self._closing.set()
        if self._thread.is_alive():
            os.eventfd_write(self._wake, 1)
            self._thread.join()
        for descriptor in (self._inotify, self._wake):
            if descriptor >= 0:
                os.close(descriptor)
        self._inotify = self._wake = -1

    def _run(self) -> None:
        while not self._closing.is_set():
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            if self._inotify >= 0:
                poll.register(self._inotify, select.POLLIN)
            poll.poll(None if self._inotify >= 0 else _TICK_S * 1000)
            if self._closing.wait(_PAUSE_S):
                return
            self._take_events()  # before the changes are read, or the next events would be lost
            try:
                self._on_change()
            except Exception:
                log.exception("what other processes wrote cannot be looked at")

    def _watch(self) -> None:
        try:
            self._watched = _identity(self._directory)
            self._inotify = _watch(self._directory)
        except OSError as error:
            log.debug("what others write to %s is looked for each second: %s", self._directory, error)

    def _is_in_place(self) -> bool:
        """Whether the path names what is watched; while a file in it is open, the system does not tell."""
        try:
            return _identity(self._directory) == self._watched
        except OSError:
            return False

    def _take_events(self) -> None:
        """Forget what was told; where the directory itself was deleted, watch the one that took its place."""
        if self._inotify < 0:
            self._watch()
            return
        ended = False
        while data := _read_some(self._inotify):
            while data:
                _, mask, _, length = _EVENT.unpack_from(data)
                data = data[_EVENT.size + length :]
                ended |= bool(mask & _IN_IGNORED)
        if ended or not self._is_in_place():
            os.close(self._inotify)
            self._inotify = -1
            self._watch()


def _identity(directory: Path) -> tuple[int, int]:
    found = os.stat(directory)
    return found.st_dev, found.st_ino


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return b""


def _watch(directory: Path) -> int:
    """Return an inotify descriptor, readable after a write in a directory; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.inotify_add_watch(descriptor, os.fsencode(directory), _EVENTS) < 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(number, os.strerror(number))
    return int(descriptor)
