"""The code shared by mounts on libfuse 2 and 3: the session handle, its end, the caller of a callback."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import Library, MountOptions

log = logging.getLogger(__name__)


# a call into libfuse waits for a read in flight at most, and none is at the end
_RELEASE_S = 5.0


class Session:
    """A mount through one libfuse; subclasses run it. `module` is the binding that drives it."""

    def __init__(self, module: Any, library: Library, options: MountOptions) -> None:
        self._fuse = module
        self._library = library
        self._options = options
        self._libfuse: Any = module._libfuse
        self._libfuse.fuse_interrupted.restype = ctypes.c_int
        self._libfuse.fuse_exit.argtypes = [ctypes.c_void_p]
        self._state = threading.Condition()
        # guarded by _state: libfuse's `struct fuse *`, from init until it is freed, and who uses it
        self._handle: int | None = None
        self._users = 0

    def stop(self) -> None:
        """Make `run` return; the main thread has to be woken by a signal."""
        with self._using_handle() as handle:
            if handle is not None:
                self._libfuse.fuse_exit(handle)

    def release_handle(self) -> None:
        """Use libfuse's handle no more; to be called in `destroy`, before libfuse frees it."""
        with self._state:
            self._handle = None
            if not self._state.wait_for(lambda: not self._users, _RELEASE_S):
                log.warning("a call of libfuse is still under way at the end of the mount")

    @contextmanager
    def _using_handle(self) -> Iterator[int | None]:
        """Libfuse's handle, which is not freed meanwhile; None where there is none, or none any more."""
        with self._state:
            handle = self._handle
            self._users += handle is not None
        try:
            yield handle
        finally:
            if handle is not None:
                with self._state:
                    self._users -= 1
                    self._state.notify_all()

    def interrupted(self) -> bool:
        """Whether the caller of the callback under way was interrupted; False outside of one."""
        return bool(self._libfuse.fuse_interrupted())

    def caller_pid(self) -> int:
        """Return the thread that the callback under way serves; 0 outside of one."""
        context = self._libfuse.fuse_get_context()
        return int(context.contents.pid) if context else 0

    def _note_handle(self) -> None:
        """Remember libfuse's handle; called in `init`."""
        with self._state:
            self._handle = int(self._libfuse.fuse_get_context().contents.fuse)


_kept = threading.local()


def answer(callback: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Call back with the thread's Python state kept, and turn whatever is raised into a negative errno.

    The bindings' own wrappers lose the state at every call, and fail on some exceptions.
    """
    try:
        if not hasattr(_kept, "state"):
            _kept.state = True
            binding.keep_thread_state()
        return callback(*args, **kwargs) or 0
    except OSError as error:
        return -(error.errno or errno.EIO)
    except UnicodeError:
        return -errno.EILSEQ
    except BaseException:
        log.exception("a callback failed")
        return -errno.EIO


def plain_times(buffer: Any) -> tuple[int | None, ...] | None:
    """Both times of an `utimens` in nanoseconds, with "now" and "as it was" told apart."""
    if not buffer:
        return None
    times = buffer.contents
    return tuple(binding.plain_time(spec.tv_sec, spec.tv_nsec) for spec in (times.actime, times.modtime))


def decode(path: bytes | None) -> str | None:
    """Return a path from libfuse, which need not be UTF-8."""
    return None if path is None else os.fsdecode(path)
