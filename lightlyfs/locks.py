"""Advisory locks between the processes that share a directory.

One file, `lock`, of which no byte is ever written: each byte stands for something that one process at a time
does. The locks are those of open file descriptions (fcntl(2), F_OFD_SETLK), so the kernel lets go of them
when a process dies, however it does. What is read and written in the directory never depends on them for
being right, only for being done once: a process that is stopped while it holds one delays the others, and is
then passed by.

Threads: any may call. The threads of one process are one holder; what they must not do at once they lock
among themselves.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

# `struct flock` of 64-bit Linux: type, whence, start, length (0: all), process (0 for these locks)
FLOCK = struct.Struct("hhqqi4x")

_FILE = "lock"
# what the bytes of the file stand for
_PRESENCE = 0
_NAMED = 1 << 10  # as many stripes and names as there are bytes up to the samples
_SAMPLES = 1 << 41
_BLOCKS_PER_SAMPLE = 1 << 20

# the name under which the files of a directory are opened or made, which takes some milliseconds
OPENING = "open"
OPENING_PATIENCE_S = 10.0
# a process that starts may look through the whole cache before it lets others in
_JOIN_TIMEOUT_S = 30.0
# a reader waits for it
_RENEW_TIMEOUT_S = 2.0
# how long the answer whether other processes use the directory is cached
_COMPANY_S = 0.05
# what is done under a stripe takes a millisecond, or some with a busy disk
_MOMENT_S = 2.0
_PASS_BY_S = 60.0
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.02


def open_lock(path: Path) -> int:
    """Open or make a file for locks; a directory in its place is moved aside. Raises OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o600)
    except IsADirectoryError:
        os.replace(path, tempfile.mkdtemp(prefix=f"{path.name}.damaged.", dir=path.parent))
    return os.open(path, flags, 0o600)


class SharedLocks:
    """The locks of one directory; `join` before use, `close` once."""

    def __init__(self, directory: Path | None, make: Callable[[], object] = lambda: None) -> None:
        """Open or make the file; `directory` must exist and be ours (see `places`).

        Without a directory every lock is free: for data that no other process can reach. `make()` makes the
        directory again if a cleaner deleted it.
        """
        self._directory = directory
        self._make = make
        self._fd = -1 if directory is None else open_lock(directory / _FILE)
        self._alone = False
        self._lock = threading.Lock()
        # guarded by _lock
        self._has_company = False
        self._looked_at = float("-inf")

    @classmethod
    def unshared(cls) -> SharedLocks:
        """Return the locks of what no other process can reach."""
        locks = cls(None)
        locks.join()
        return locks

    def close(self) -> None:
        """Release everything."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # who is here

    def join(self, timeout_s: float = _JOIN_TIMEOUT_S) -> None:
        """Register this process as a user of the directory.

        If no other process uses it, others are kept out until `share`, and `alone` is true. Raises
        TimeoutError if another process has exclusive use, OSError if the file system has no locks.
        """
        deadline = time.monotonic() + timeout_s
        for pause_s in _pauses():
            if self._set(fcntl.F_WRLCK, _PRESENCE, 1):
                self._alone = True
                return
            if self._set(fcntl.F_RDLCK, _PRESENCE, 1):
                return
            if time.monotonic() >= deadline:
                raise TimeoutError("another process keeps the directory for itself")
            time.sleep(pause_s)

    @property
    def alone(self) -> bool:
        """Whether no other process is here or can come."""
        return self._alone

    def share(self) -> None:
        """Let others in."""
        self._alone = False
        self._try(fcntl.F_RDLCK, _PRESENCE, 1)

    def renew(self) -> None:
        """Use a new file where a cleaner deleted this one; processes that start meanwhile use that too.

        Raises OSError if that fails. Locks by name that this process holds no longer count then.
        """
        if self._fd < 0 or self._directory is None or self._is_at_its_path():
            return
        with self._lock:
            if self._fd < 0 or self._is_at_its_path():
                return
            self._make()
            fresh = SharedLocks(self._directory)
            try:
                fresh.join(_RENEW_TIMEOUT_S)
                fresh.share()
                os.dup2(fresh._fd, self._fd, inheritable=False)
                self._alone = False
            finally:
                fresh.close()

    def _is_at_its_path(self) -> bool:
        assert self._directory is not None
        try:
            return os.path.samestat(os.fstat(self._fd), os.lstat(self._directory / _FILE))
        except OSError:
            return False

    def has_company(self) -> bool:
        """Return whether another process uses the directory, as of a moment ago."""
        if self._alone:
            return False
        now = time.monotonic()
        if now - self._looked_at >= _COMPANY_S:
            with self._lock:
                self._looked_at = now
                self._has_company = not self._try(fcntl.F_WRLCK, _PRESENCE, 1)
                if not self._has_company:
                    self._try(fcntl.F_RDLCK, _PRESENCE, 1)
        return self._has_company

    @contextmanager
    def keeping_others_out(self) -> Iterator[bool]:
        """Tell whether no other process is here; if so, none comes before the block ends."""
        if self._alone:
            yield True
            return
        with self._lock:
            alone = self._try(fcntl.F_WRLCK, _PRESENCE, 1)
            try:
                yield alone
            finally:
                if alone:
                    self._try(fcntl.F_RDLCK, _PRESENCE, 1)

    # what one process at a time does

    def try_name(self, name: str) -> bool:
        """Try to take the lock of a name; if that worked, `release_name` has to follow."""
        return self._try(fcntl.F_WRLCK, _offset_of(name), 1)

    def release_name(self, name: str) -> None:
        """Release the lock of a name."""
        self._try(fcntl.F_UNLCK, _offset_of(name), 1)

    @contextmanager
    def name(
        self,
        name: str,
        timeout_s: float,
        cancelled: Callable[[], bool] = lambda: False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Iterator[None]:
        """Hold the lock of a name in the block, so that no other process does the same.

        After `timeout_s`, and once it is `cancelled`, the block is run all the same. `on_wait` is called
        over and over meanwhile.
        """
        held = self._wait_for(_offset_of(name), 1, timeout_s, cancelled, on_wait)
        try:
            yield
        finally:
            if held:
                self.release_name(name)

    def take_blocks(
        self, sample_id: str, first: int, last: int, timeout_s: float, cancelled: Callable[[], bool]
    ) -> Callable[[], None]:
        """Keep other processes from fetching blocks of a sample, until what is returned is called.

        Waits as `name` does.
        """
        start, length = _bytes_of(sample_id, first, last)
        if not self._wait_for(start, length, timeout_s, cancelled):
            return lambda: None
        return partial(self._free, start, length)

    def try_blocks(self, sample_id: str, first: int, last: int) -> Callable[[], None] | None:
        """As `take_blocks`, without waiting; None where another process has some of them."""
        start, length = _bytes_of(sample_id, first, last)
        return partial(self._free, start, length) if self._try(fcntl.F_WRLCK, start, length) else None

    def _free(self, start: int, length: int) -> None:
        self._try(fcntl.F_UNLCK, start, length)

    def stripe(self, name: str) -> Stripe:
        """Return a lock between threads and processes."""
        return Stripe(self, name)

    def _wait_for(
        self,
        start: int,
        length: int,
        timeout_s: float,
        cancelled: Callable[[], bool] = lambda: False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> bool:
        if self._try(fcntl.F_WRLCK, start, length):
            return True
        deadline = time.monotonic() + timeout_s
        for pause_s in _pauses():
            on_wait()
            time.sleep(pause_s)
            if cancelled():
                return False
            if self._try(fcntl.F_WRLCK, start, length):
                return True
            if time.monotonic() >= deadline:
                return False
        raise AssertionError("the pauses do not end")

    def _try(self, kind: int, start: int, length: int) -> bool:
        """Return whether the lock is ours now; never waits, and a closed file locks nothing."""
        try:
            return self._set(kind, start, length)
        except OSError:
            return True

    def _set(self, kind: int, start: int, length: int) -> bool:
        return self._request(FLOCK.pack(kind, os.SEEK_SET, start, length, 0))

    def _request(self, lock: bytes) -> bool:
        if self._fd >= 0:
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
            except BlockingIOError:
                return False
        return True


class Stripe:
    """A lock that threads and processes hold for a moment.

    A process that keeps it for longer is stopped or stuck: it is passed by, and not waited for again soon. A
    process that has just come is noticed within `_COMPANY_S`.
    """

    def __init__(self, locks: SharedLocks, name: str) -> None:
        self._locks = locks
        self._lock = threading.Lock()
        start = _offset_of(name)
        self._start = start
        self._take = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
        self._free = FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, 1, 0)
        # guarded by _lock
        self._pass_by_until = float("-inf")
        self._is_alone = False

    def __enter__(self) -> None:
        self._lock.acquire()
        self._is_alone = not self._locks.has_company()
        if self._is_alone:
            return
        try:
            held = self._locks._request(self._take)
        except OSError:
            held = True
        if held or time.monotonic() < self._pass_by_until:
            return
        if not self._locks._wait_for(self._start, 1, _MOMENT_S):
            self._pass_by_until = time.monotonic() + _PASS_BY_S

    def __exit__(self, *_: object) -> None:
        try:
            if not self._is_alone:
                self._locks._request(self._free)
        except OSError:
            pass
        finally:
            self._lock.release()


def _pauses() -> Iterator[float]:
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 1.5, _MAX_PAUSE_S)


def _bytes_of(sample_id: str, first: int, last: int) -> tuple[int, int]:
    """Which bytes of the file stand for blocks of a sample: the first one, and how many."""
    start = _SAMPLES + int(sample_id[-10:], 16) * _BLOCKS_PER_SAMPLE + min(first, _BLOCKS_PER_SAMPLE - 1)
    return start, min(last - first + 1, _BLOCKS_PER_SAMPLE)


def _offset_of(name: str) -> int:
    digest = hashlib.blake2b(name.encode(), digest_size=5).digest()
    return _NAMED + int.from_bytes(digest, "big")
