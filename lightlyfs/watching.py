"""Notifies of writes to a directory by other processes: a thread that sleeps in inotify(7) until they occur.

Writes of this process are reported too; the callback has to recognize that they are no news.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import struct
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_IN_MODIFY, _IN_MOVED_TO, _IN_CREATE, _IN_DELETE, _IN_DELETE_SELF = 0x2, 0x80, 0x100, 0x200, 0x400
_IN_IGNORED = 0x8000
_EVENTS = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_DELETE_SELF
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 64 << 10
# between two times that something is told: writes come in bursts
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
        self._thread = threading.Thread(target=self._run, name="lightlyfs-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._watch()
        self._thread.start()

    def close(self) -> None:
        """Call no more."""
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
            self._take_events()  # before what they tell is looked at, or the next ones would be lost
            try:
                self._on_change()
            except Exception:
                log.exception("what other processes wrote cannot be looked at")

    def _watch(self) -> None:
        try:
            self._inotify = _watch(self._directory)
        except OSError as error:
            log.debug("what others write to %s is looked for each second: %s", self._directory, error)

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
        if ended:
            os.close(self._inotify)
            self._inotify = -1
            self._watch()


def _read_some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return b""


def _watch(directory: Path) -> int:
    """An inotify descriptor that can be read when something in a directory was written; raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.inotify_add_watch(descriptor, os.fsencode(directory), _EVENTS) < 0:
        number = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(number, os.strerror(number))
    return int(descriptor)
