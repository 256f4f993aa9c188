"""Runs one mount in this process: the session, invalidation of kernel caches, and the end by signal."""

from __future__ import annotations

import ctypes
import logging
import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from lightlyfs.fs.attributes import Ownership
from lightlyfs.fs.filesystem import Filesystem
from lightlyfs.fs.namespace import Part
from lightlyfs.kernel import callers
from lightlyfs.kernel.binding import Library, MountOptions, supports_noflush
from lightlyfs.kernel.fuse_sessions import Fuse2Session, Fuse3Session
from lightlyfs.kernel.operations import Operations, ReadOnlyOperations

log = logging.getLogger(__name__)

# libfuse would unmount on SIGHUP, so it is blocked and taken like the others
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RELOAD_SIGNAL = signal.SIGHUP
# wakes the main thread, which is in libfuse, so that it notices the stop
_WAKE_SIGNAL = signal.SIGUSR1
# invalidating a path blocks while a read of it is in flight, so several threads do it in parallel
_FORGETTERS = 4
_M_ARENA_MAX = -8  # malloc.h
_FORGET_WAIT_S = 0.2


def block_signals() -> None:
    """Keep the stop signals for `Mount`; before any thread is started, for threads inherit it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def share_arenas() -> None:
    """Have all threads allocate from two arenas; before any thread is started.

    glibc gives each of the first 8 threads a core an arena of its own, and what was freed in one serves no
    other thread: with 200 threads that is a tenth of a mount's memory. Elsewhere nothing happens.
    """
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
    except (AttributeError, OSError) as error:
        log.debug("memory is allocated as ever: %s", error)


def trim_memory() -> None:
    """Give back to the system what was freed; what a start imports leaves a megabyte of gaps."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError) as error:
        log.debug("memory that was freed is kept: %s", error)


class Mount:
    """Serves a file system at a mountpoint; `run` in the main thread, the rest from any."""

    def __init__(
        self,
        library: Library,
        options: MountOptions,
        ownership: Ownership,
    ) -> None:
        kind = Fuse3Session if library.version[0] == 3 else Fuse2Session
        self._session: Fuse3Session | Fuse2Session = kind(library, options, ownership)
        self._library = library
        self._options = options
        self._ownership = ownership
        self._program_of = callers.ProgramTable()
        self._is_stopping = False
        self._forgets: queue.SimpleQueue[tuple[str | None, threading.Event | None]] = queue.SimpleQueue()

    # for the parts below

    @property
    def mountpoint(self) -> Path:
        """Where it is mounted."""
        return self._options.mountpoint

    @property
    def part(self) -> Part:
        """What of the dataset it shows."""
        return self._options.part

    @property
    def forgets_at_once(self) -> bool:
        """Whether `forget` makes the kernel forget: libfuse 3 can tell it."""
        return isinstance(self._session, Fuse3Session)

    def interrupted(self) -> bool:
        """Return whether the caller of the callback under way was interrupted."""
        return self._session.interrupted()

    def caller_name(self) -> str:
        """Return the program that the callback under way serves."""
        return self._program_of(self._session.caller_pid()).name

    def caller_process(self) -> int:
        """Return the thread group that the callback under way serves."""
        return self._program_of(self._session.caller_pid()).process

    def was_killed(self, process: int) -> bool | None:
        """Return whether a signal ended a process, or is ending it; None where that cannot be said."""
        return callers.was_killed(process) if process else None

    def watch(self, process: int) -> callers.ProcessEnd | None:
        """Return a handle that knows how a process ends, also once it is gone; None if there is none."""
        return callers.watch(process) if process else None

    def caller_unlinks(self) -> bool | None:
        """Return whether the callback under way removes a name (True) or renames; None if unknown."""
        return callers.is_unlinking(self._session.caller_pid())

    def forget(self, paths: tuple[str, ...] | None) -> bool:
        """Drop what the kernel knows of paths (None: every name); whether that is done already.

        With the names of files that are not open go their pages. Names that the kernel knows not to exist
        end after two seconds where paths are given.

        libfuse 2 cannot; there the time-outs end it, and a single path is never reported as done.
        """
        if not isinstance(self._session, Fuse3Session):
            return False
        if paths is None:
            self._forgets.put((None, None))
            return False
        shown = [path for path in map(self.part.shown, paths) if path is not None]
        if len(shown) == 1:
            done = threading.Event()
            self._forgets.put((shown[0], done))
            return done.wait(_FORGET_WAIT_S)
        for path in shown:
            self._forgets.put((path, None))
        return not shown

    # running

    def run(
        self,
        filesystem: Filesystem,
        on_mounted: Callable[[], None],
        on_stop: Callable[[], None],
        on_reload: Callable[[], bool] = lambda: False,
    ) -> None:
        """Mount and serve until unmounted or stopped by a signal; StartError where it cannot be mounted.

        `on_mounted` is called when the kernel has answered; `on_stop` when a signal asks for the end,
        and the mount ends when it returns. SIGHUP calls `on_reload`, and asks for the end where that has
        nothing to read again.
        """
        # fusepy takes what a class has for a callback, also where that is None
        silent = self._options.read_only and self.forgets_at_once
        kind = ReadOnlyOperations if silent else Operations
        operations = kind(filesystem, self._ownership, self.part, noflush=supports_noflush(self._library))
        signal.signal(_WAKE_SIGNAL, lambda *_: None)
        _start_thread("lightlyfs-signals", self._watch_signals, on_stop, on_reload)
        if isinstance(self._session, Fuse3Session):
            for number in range(_FORGETTERS):
                _start_thread(f"lightlyfs-forget-{number}", self._forget_loop, self._session)
            _start_thread("lightlyfs-names", self._give_back_loop, self._session, filesystem)

        def mounted() -> None:
            on_mounted()
            if self._is_stopping:
                self.stop()  # what was asked before libfuse had begun is asked again

        self._session.run(operations, mounted)

    def stop(self) -> None:
        """Make `run` return, as soon as it has begun."""
        self._is_stopping = True
        self._session.stop()
        main = threading.main_thread().ident
        if main is not None:
            signal.pthread_kill(main, _WAKE_SIGNAL)

    def _watch_signals(self, on_stop: Callable[[], None], on_reload: Callable[[], bool]) -> None:
        number = signal.sigwait(STOP_SIGNALS)
        while number == _RELOAD_SIGNAL and on_reload():
            number = signal.sigwait(STOP_SIGNALS)
        log.info("%s: unmounting", signal.Signals(number).name)
        try:
            on_stop()
        finally:
            self.stop()

    def _forget_loop(self, session: Fuse3Session) -> None:
        while True:
            path, done = self._forgets.get()
            if path is None:
                session.forget_names()
            else:
                session.forget_path(path)
            if done is not None:
                done.set()

    def _give_back_loop(self, session: Fuse3Session, filesystem: Filesystem) -> None:
        while True:
            surplus = session.kept_names.take_surplus()
            # dropped, an open file would be "(deleted)" in /proc
            open_now = {self.part.shown(path) for path in filesystem.open_paths()}
            closed = [path for path in surplus if path not in open_now]
            for path in set(surplus).difference(closed):
                session.kept_names.note(path)
            try:
                session.give_back(closed)
            except OSError as error:
                log.debug("the kernel keeps the names of %d files: %s", len(closed), error)


def _start_thread(name: str, target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
