"""The libfuse 2 form: fusepy's class as it is, with its callbacks kept from failing.

libfuse 2 has neither readdirplus nor a way to tell the kernel to forget; time-outs do that there.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

from lightlyfs.errors import StartError
from lightlyfs.fs.attributes import Ownership
from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import Library, MountOptions
from lightlyfs.kernel.operations import Operations

log = logging.getLogger(__name__)


class Fuse2Session:
    """One mount through libfuse 2; `run` blocks until it is unmounted."""

    def __init__(self, library: Library, options: MountOptions, ownership: Ownership) -> None:
        self._fuse: Any = binding.load_fusepy(library)
        self._library = library
        self._options = options
        self._libfuse: Any = self._fuse._libfuse
        self._libfuse.fuse_interrupted.restype = ctypes.c_int
        self._libfuse.fuse_exit.argtypes = [ctypes.c_void_p]
        self._handle: int | None = None

    def run(self, operations: Operations, on_init: Callable[[], None]) -> None:
        """Mount and serve until unmounted; StartError where it cannot be mounted."""

        def init() -> None:
            self._handle = int(self._libfuse.fuse_get_context().contents.fuse)
            on_init()

        session_class = type("Session", (_Callbacks, self._fuse.FUSE), {})
        try:
            session_class(
                _Callable(operations, init),
                str(self._options.mountpoint),
                raw_fi=True,
                **binding.option_list(self._options, self._library),
            )
        except RuntimeError as error:
            raise StartError(f"libfuse could not mount {self._options.mountpoint} (code {error})") from None
        finally:
            self._handle = None

    def stop(self) -> None:
        """Make `run` return; the main thread has to be woken by a signal."""
        if self._handle is not None:
            self._libfuse.fuse_exit(self._handle)

    def interrupted(self) -> bool:
        """Whether the caller of the callback under way was interrupted; False outside of one."""
        return bool(self._libfuse.fuse_interrupted())

    def caller_pid(self) -> int:
        """The process that the callback under way serves."""
        return int(self._libfuse.fuse_get_context().contents.pid)


class _Callable:
    """`Operations` in the form fusepy calls: by name, through the object itself."""

    use_ns = True

    def __init__(self, operations: Operations, init: Callable[[], None]) -> None:
        self._operations = operations
        self._on_init = init

    def __call__(self, name: str, *args: Any) -> Any:
        return getattr(self, name)(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)

    def init(self, path: str) -> None:
        """Called by libfuse when the mount is there."""
        self._on_init()


class _Callbacks:
    """What stands before fusepy's own methods: a wrapper that answers every exception."""

    _kept = threading.local()

    @staticmethod
    def _wrapper(func: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        try:
            if not hasattr(_Callbacks._kept, "state"):
                _Callbacks._kept.state = True
                binding.keep_thread_state()
            return func(*args, **kwargs) or 0
        except OSError as error:
            return -(error.errno or errno.EIO)
        except UnicodeError:
            return -errno.EILSEQ
        except BaseException:
            log.exception("a callback failed")
            return -errno.EIO

    def utimens(self, path: bytes, buf: Any) -> int:
        """With "now" and "as it was" told apart from times."""
        times = None
        if buf:
            spec = buf.contents
            times = tuple(binding.plain_time(t.tv_sec, t.tv_nsec) for t in (spec.actime, spec.modtime))
        operations: Any = self.operations  # type: ignore[attr-defined]
        return int(operations("utimens", os.fsdecode(path), times))

    def _decode_optional_path(self, path: bytes | None) -> str | None:
        return None if path is None else os.fsdecode(path)
