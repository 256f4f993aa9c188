"""What a mount through either libfuse has in common: its handle, its end, the caller of a callback."""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import Library, MountOptions

log = logging.getLogger(__name__)


class Session:
    """A mount through one libfuse; subclasses run it. `module` is the binding that drives it."""

    def __init__(self, module: Any, library: Library, options: MountOptions) -> None:
        self._fuse = module
        self._library = library
        self._options = options
        self._libfuse: Any = module._libfuse
        self._libfuse.fuse_interrupted.restype = ctypes.c_int
        self._libfuse.fuse_exit.argtypes = [ctypes.c_void_p]
        self._handle: int | None = None  # libfuse's `struct fuse *`, known from init on

    def stop(self) -> None:
        """Make `run` return; the main thread has to be woken by a signal."""
        if self._handle is not None:
            self._libfuse.fuse_exit(self._handle)

    def interrupted(self) -> bool:
        """Whether the caller of the callback under way was interrupted; False outside of one."""
        return bool(self._libfuse.fuse_interrupted())

    def caller_pid(self) -> int:
        """The thread that the callback under way serves; 0 outside of one."""
        context = self._libfuse.fuse_get_context()
        return int(context.contents.pid) if context else 0

    def _note_handle(self) -> None:
        """Remember libfuse's handle; called in `init`."""
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
    """A path from libfuse, which need not be UTF-8."""
    return None if path is None else os.fsdecode(path)
