"""Keeps forks apart from work in C libraries that have their own locks.

A fork copies the process while its other threads may be anywhere. A lock that one of them holds at that
moment, in SQLite or OpenSSL, is never released in the child. So such work is done inside `FORK_GATE`:
transactions, and new TLS connections until the first byte of the answer. `os.fork` waits until no thread is
inside. Inside, no lock is taken under which others enter, but for those of `database.Lock`.

A thread that waits inside, for another process or for such a lock, would make a fork wait as long. So it
waits `outside`, unless it has work inside that cannot be left.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# how long a fork waits: as long as any work on a database waits for another process
_LONGEST_S = 60.0
# what a thread's entries add up to: less than one of work as long as all of them may be left
_LEAVABLE, _WORK = 1, 1 << 20


class _ForkGate:
    """Keeps forks apart from work on databases; a context manager that a thread may enter again and again.

    Entering costs half a microsecond. The thread that forks may be inside itself, as in a signal handler.
    """

    def __init__(self) -> None:
        self._open_again()
        self._inside: dict[int, int] = {}  # by thread, its entries; single operations on it are atomic

    def _open_again(self) -> None:
        self._forks = threading.Lock()  # held by the thread that forks
        self._moved = threading.Condition(threading.Lock())
        self._shut = False
        self._forking = False  # guarded by _moved: no other thread is inside, and none may come back

    def __enter__(self) -> None:
        self._enter(_WORK)

    def __exit__(self, *_: object) -> None:
        self._exit(_WORK)

    def enter_leavable(self) -> None:
        """Enter for work that has not begun, or may be left for a while; see `outside`."""
        self._enter(_LEAVABLE)

    def exit_leavable(self) -> None:
        """End what `enter_leavable` began."""
        self._exit(_LEAVABLE)

    def _enter(self, entry: int) -> None:
        thread = threading.get_ident()
        entries = self._inside.get(thread, 0)
        # set before `_shut` is read, as `before_fork` sets `_shut` before it reads who is inside
        self._inside[thread] = entries + entry
        if self._shut and not entries:
            self._wait_outside(thread, entry)

    def _exit(self, entry: int) -> None:
        thread = threading.get_ident()
        entries = self._inside[thread] - entry
        if entries:
            self._inside[thread] = entries
        else:
            self._leave(thread)

    def _leave(self, thread: int) -> None:
        del self._inside[thread]
        if self._shut:
            with self._moved:
                self._moved.notify_all()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Let forks pass while the block waits, where all that the thread is inside for may be left."""
        thread = threading.get_ident()
        entries = self._inside.get(thread, 0)
        if not 0 < entries < _WORK:
            yield
            return
        self._leave(thread)
        try:
            yield
        finally:
            with self._moved:
                # a fork that waits for others is not waited for: they may wait for a lock of this thread
                while self._forking:
                    self._moved.wait()
                self._inside[thread] = entries

    def entered(self) -> bool:
        """Return whether the calling thread is inside."""
        return threading.get_ident() in self._inside

    def _wait_outside(self, thread: int, entry: int) -> None:
        with self._moved:
            while self._shut:
                self._inside.pop(thread, None)
                self._moved.notify_all()
                self._moved.wait()
            self._inside[thread] = entry

    def before_fork(self) -> None:
        """Wait until no other thread is inside, and keep all out."""
        self._forks.acquire()
        thread = threading.get_ident()
        with self._moved:
            self._shut = True
            self._moved.wait_for(lambda: self._inside.keys() <= {thread}, _LONGEST_S)
            self._forking = True

    def after_in_parent(self) -> None:
        """Let all in again."""
        with self._moved:
            self._shut = self._forking = False
            self._moved.notify_all()
        self._forks.release()

    def after_in_child(self) -> None:
        """Be open, with no thread inside but the one that forked."""
        thread = threading.get_ident()
        self._inside = {thread: self._inside[thread]} if thread in self._inside else {}
        self._open_again()


FORK_GATE = _ForkGate()
os.register_at_fork(
    before=FORK_GATE.before_fork,
    after_in_parent=FORK_GATE.after_in_parent,
    after_in_child=FORK_GATE.after_in_child,
)
