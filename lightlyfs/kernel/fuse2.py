"""The libfuse 2 mount: fusepy's class, with callbacks that catch every exception.

libfuse 2 has neither readdirplus nor cache invalidation; the kernel's caches expire by time-out instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightlyfs.errors import StartError
from lightlyfs.fs.attributes import Ownership
from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import Library, MountOptions
from lightlyfs.kernel.operations import Operations
from lightlyfs.kernel.session import Session, answer, decode, plain_times

log = logging.getLogger(__name__)


class Fuse2Session(Session):
    """One mount through libfuse 2; `run` blocks until it is unmounted."""

    def __init__(self, library: Library, options: MountOptions, ownership: Ownership) -> None:
        super().__init__(binding.load_fusepy(library), library, options)

    def run(self, operations: Operations, on_init: Callable[[], None]) -> None:
        """Mount and serve until unmounted; StartError where it cannot be mounted."""

        def init() -> None:
            self._note_handle()
            on_init()

        operations.on_destroy = self.release_handle
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
            self.release_handle()


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

    @staticmethod
    def _wrapper(func: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        return answer(func, *args, **kwargs)

    def utimens(self, path: bytes, buf: Any) -> int:
        """With "now" and "as it was" told apart from times."""
        operations: Any = self.operations  # type: ignore[attr-defined]
        return int(operations("utimens", decode(path), plain_times(buf)))

    def _decode_optional_path(self, path: bytes | None) -> str | None:
        return decode(path)
