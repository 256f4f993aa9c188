"""A mount through libfuse 2 or 3: the session, its handle and its end, and callbacks of our own.

libfuse 2 (fusepy) has neither readdirplus nor cache invalidation; the kernel's caches expire by time-out
instead. Of libfuse 3 (mfusepy) slow and incorrect callbacks are replaced:
- readdirplus, from a listing packed once: `ls -l` is ten times as fast
- getattr from packed structures: costs a quarter less
- thread states are kept, every exception becomes an errno, names that are not UTF-8 are accepted
- the flags of rename are passed on, without which `mv -n` would overwrite
- an exception in `init` fails the mount instead of leaving one with default time-outs
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lightlyfs.fs.attributes import Ownership
from lightlyfs.kernel import binding
from lightlyfs.kernel.binding import MAX_KEPT_BYTES, Library, MountOptions, Packer
from lightlyfs.kernel.kept_names import KeptNames, node_ids
from lightlyfs.kernel.operations import Operations
from lightlyfs.memory import MemoryTarget

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
        # these return at once: releasing the GIL around them would cost more than they take
        at_once: Any = ctypes.PyDLL(library.soname)
        self._is_interrupted = at_once.fuse_interrupted
        self._context = at_once.fuse_get_context
        self._context.restype = self._libfuse.fuse_get_context.restype
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
        """Stop using libfuse's handle; to be called in `destroy`, before libfuse frees it."""
        with self._state:
            self._handle = None
            if not self._state.wait_for(lambda: not self._users, _RELEASE_S):
                log.warning("a call of libfuse is still under way at the end of the mount")

    @contextmanager
    def _using_handle(self) -> Iterator[int | None]:
        """Yield libfuse's handle, which is not freed in the block; None if there is none, or no longer."""
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
        """Return whether the caller of the callback under way was interrupted; False outside of one."""
        return bool(self._is_interrupted())

    def caller_pid(self) -> int:
        """Return the thread that the callback under way serves; 0 outside of one."""
        context = self._context()
        return int(context.contents.pid) if context else 0

    def _note_handle(self) -> None:
        """Remember libfuse's handle; called in `init`."""
        with self._state:
            self._handle = int(self._context().contents.fuse)


# unlike `ctypes.memmove` it keeps the GIL: the copy is done before another thread could take over
_copy = ctypes.PyDLL(None).memmove
_copy.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
_copy.restype = None

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
    """Return both times of an `utimens` in nanoseconds, with "now" and "as it was" told apart."""
    if not buffer:
        return None
    times = buffer.contents
    return tuple(binding.plain_time(spec.tv_sec, spec.tv_nsec) for spec in (times.actime, times.modtime))


def decode(path: bytes | None) -> str | None:
    """Return a path from libfuse, which need not be UTF-8."""
    return None if path is None else os.fsdecode(path)


class Fuse2Session(Session):
    """One mount through libfuse 2; `run` blocks until it is unmounted."""

    def __init__(self, library: Library, options: MountOptions, ownership: Ownership) -> None:
        super().__init__(binding.load_fusepy(library), library, options)

    def run(self, operations: Operations, on_init: Callable[[], None]) -> None:
        """Mount and serve until unmounted; StartError if it cannot be mounted."""

        def init() -> None:
            self._note_handle()
            on_init()

        operations.on_destroy = self.release_handle
        session_class = type("Session", (_Fuse2Callbacks, self._fuse.FUSE), {})
        try:
            session_class(
                _Fuse2Operations(operations, init),
                str(self._options.mountpoint),
                raw_fi=True,
                **binding.option_list(self._options, self._library),
            )
        except RuntimeError as error:
            raise binding.failed_mount(self._options, error) from None
        finally:
            self.release_handle()


class _Fuse2Operations:
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
        """Note that the mount is there; libfuse calls it."""
        self._on_init()


class _Fuse2Callbacks:
    """Overrides of fusepy's methods: a wrapper that turns every exception into an errno."""

    @staticmethod
    def _wrapper(func: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        return answer(func, *args, **kwargs)

    def utimens(self, path: bytes, buf: Any) -> int:
        """Tell "now" and "as it was" apart from times."""
        operations: Any = self.operations  # type: ignore[attr-defined]
        return int(operations("utimens", decode(path), plain_times(buf)))

    def _decode_optional_path(self, path: bytes | None) -> str | None:
        return decode(path)


_CAP_READDIRPLUS = 1 << 13
_CAP_READDIRPLUS_AUTO = 1 << 14  # would let the kernel fall back to plain readdir
_FILL_DIR_PLUS = 2
_OUT_HEADER = struct.Struct("=IiQ")  # fuse_out_header: length, notification, unique (0: not an answer)
_NOTIFY_INVAL_ENTRY = 3  # fuse_notify_code
_NOTIFY_INC_EPOCH = 8  # of Linux 6.16 and later
_INVAL_ENTRY = struct.Struct("=QII")  # fuse_notify_inval_entry_out: parent, length of the name, flags
_ROOT_ID = 1  # FUSE_ROOT_ID


class Fuse3Session(Session):
    """One mount through libfuse 3; `run` blocks until it is unmounted."""

    def __init__(self, library: Library, options: MountOptions, ownership: Ownership) -> None:
        super().__init__(binding.load_mfusepy(library), library, options)
        self._ownership = ownership
        self.kept_names = KeptNames(options.memory.most_names)
        self._libfuse.fuse_invalidate_path.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._libfuse.fuse_get_session.argtypes = [ctypes.c_void_p]
        self._libfuse.fuse_get_session.restype = ctypes.c_void_p
        self._libfuse.fuse_session_fd.argtypes = [ctypes.c_void_p]

    def run(self, operations: Operations, on_init: Callable[[], None]) -> None:
        """Mount and serve until unmounted; StartError if it cannot be mounted."""
        operations.on_destroy = self.release_handle
        memory = self._options.memory
        packer = Packer(self._fuse.c_stat, self._ownership, memory.share(16, MAX_KEPT_BYTES))
        operations.use_packer(packer, self.kept_names)
        session_class = type("Session", (_Fuse3Callbacks, self._fuse.FUSE), {})
        failure: list[BaseException] = []

        def init(connection: Any, config: Any) -> None:
            self._note_handle()
            try:
                _configure(connection, config, read_only=self._options.read_only)
                on_init()
            except BaseException:
                self.stop()
                raise

        try:
            session_class(
                operations,
                str(self._options.mountpoint),
                on_init=init,
                failure=failure,
                memory=memory,
                raw_fi=True,
                **binding.option_list(self._options, self._library),
            )
        except RuntimeError as error:
            if not failure:
                raise binding.failed_mount(self._options, error) from None
        finally:
            self.release_handle()
        if failure:
            raise failure[0]

    def forget_path(self, path: str) -> None:
        """Drop the kernel's attributes and pages of one path; may block on a read in flight there."""
        with self._using_handle() as handle:
            if handle is not None:
                self._libfuse.fuse_invalidate_path(handle, b"/" + os.fsencode(path))

    def forget_names(self) -> None:
        """Make the kernel ask again for every name, also for those it knows not to exist."""
        try:
            self._notify(_NOTIFY_INC_EPOCH, b"")
        except OSError as error:
            # older kernels do not know it; their negative names end after two seconds
            log.debug("the kernel does not forget names on demand: %s", error)

    def give_back(self, paths: Iterable[str]) -> None:
        """Make the kernel drop names of files, and their pages; not to be called by a callback.

        Raises OSError where it cannot.
        """
        by_directory: dict[str, list[str]] = {}
        for path in paths:
            directory, _, name = path.rpartition("/")
            by_directory.setdefault(directory, []).append(name)
        below = filter(None, by_directory)
        ids = {"": _ROOT_ID, **node_ids(str(self._options.mountpoint), below)}
        for directory, names in by_directory.items():
            for name in names if directory in ids else ():
                raw = os.fsencode(name)
                with suppress(FileNotFoundError):  # the kernel has dropped it by itself
                    self._notify(
                        _NOTIFY_INVAL_ENTRY, _INVAL_ENTRY.pack(ids[directory], len(raw), 0) + raw + b"\0"
                    )

    def _notify(self, code: int, message: bytes) -> None:
        """Send the kernel a message that answers no request; raises OSError."""
        with self._using_handle() as handle:
            if handle is not None:
                descriptor = self._libfuse.fuse_session_fd(self._libfuse.fuse_get_session(handle))
                length = _OUT_HEADER.size + len(message)
                os.write(descriptor, _OUT_HEADER.pack(length, code, 0) + message)


def _configure(connection: Any, config: Any, *, read_only: bool) -> None:
    connection.want = (connection.want | connection.capable & _CAP_READDIRPLUS) & ~_CAP_READDIRPLUS_AUTO
    connection.max_background = binding.MAX_BACKGROUND
    connection.congestion_threshold = binding.MAX_BACKGROUND * 3 // 4
    connection.max_readahead = binding.READ_AHEAD_BYTES
    config.use_ino = 1
    # an open file that is removed or replaced gets a hidden name (`namespace.Removed`): without a path
    # libfuse could not answer fstat of it. Open files are worked on by handle all the same
    config.nullpath_ok = int(not read_only)


# the binding's own prototype takes a structure; an address saves making one for each entry
_FILLER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_int
)


class _OpenDirectory:
    """One listing for all pages of it, with what `sizes_moved` was when it was made."""

    def __init__(self, operations: Operations, path: str) -> None:
        self._operations = operations
        self._path = path
        self._is_read = False
        self._pin()

    def _pin(self) -> None:
        self.moved = self._operations.sizes_moved()
        self.listing = self._operations.opendir_packed(self._path)

    def rewind(self) -> None:
        """Begin to read; from the second time on with what is there now, as rewinddir(3) asks."""
        if self._is_read:
            self._pin()
        self._is_read = True


class _Fuse3Callbacks:
    """Overrides of mfusepy's methods; `run` makes a class of the two once mfusepy is imported."""

    def __init__(
        self,
        operations: Operations,
        mountpoint: str,
        *,
        on_init: Callable[[Any, Any], None],
        failure: list[BaseException],
        memory: MemoryTarget,
        **options: Any,
    ) -> None:
        self.operations = operations
        self._on_init = on_init
        self._failure = failure
        self._memory = memory
        self._directories: dict[int, _OpenDirectory] = {}
        self._numbers = itertools.count(1)
        super().__init__(operations, mountpoint, **options)  # type: ignore[call-arg]

    def _wrapper(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
        return answer(func, *args, **kwargs)

    def init_fuse_3(self, connection: Any, config: Any) -> None:
        """Configure the connection; an exception, which has no caller to reach, ends the mount."""
        try:
            self._on_init(connection.contents, config.contents)
        except BaseException as error:
            self._failure.append(error)

    def getattr_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        """Answer with packed bytes."""
        packed = self.operations.getattr_packed(decode(path), fip.contents if fip else None)
        _copy(buf, packed, len(packed))
        return 0

    def read(self, path: bytes | None, buf: Any, size: int, offset: int, fip: Any) -> int:
        """Copy what is read into libfuse's buffer."""
        data = self.operations.read(decode(path), size, offset, fip.contents)
        assert len(data) <= size  # more would be written past its end
        _copy(buf, data, len(data))
        return len(data)

    def opendir(self, path: bytes, fip: Any) -> int:
        """Pin one packed listing."""
        opened = _OpenDirectory(self.operations, os.fsdecode(path))
        number = next(self._numbers)
        self._directories[number] = opened
        fip.contents.fh = number
        return 0

    def readdir_fuse_3(self, path: Any, buf: Any, filler: Any, offset: int, fip: Any, flags: int) -> int:
        """Return one page, with attributes wherever they are known.

        Once a size was corrected the rest comes without: the kernel would take the old one for the newest. So
        it does where memory is short: with its attributes each name is kept.
        """
        opened = self._directories[fip.contents.fh]
        if not offset:
            opened.rewind()
        listing = opened.listing
        is_current = opened.moved == self.operations.sizes_moved()
        plus = _FILL_DIR_PLUS * (is_current and self._memory.has_room_for_names)
        fill = _FILLER(ctypes.cast(filler, ctypes.c_void_p).value or 0)
        names, known, address, size = listing.names, listing.known, listing.address, listing.stat_bytes
        for index in range(offset, len(names)):
            if fill(buf, names[index], address + index * size, index + 1, plus * known[index]):
                break
        return 0

    def releasedir(self, path: Any, fip: Any) -> int:
        """Let go of the listing."""
        del self._directories[fip.contents.fh]
        return 0

    def truncate_fuse_3(self, path: bytes | None, length: int, fip: Any) -> int:
        """Pass on the handle, which mfusepy drops: an open file may have lost its name."""
        return int(self.operations.truncate(decode(path), length, fip.contents if fip else None))

    def chmod_fuse_3(self, path: bytes | None, mode: int, fip: Any) -> int:
        """Pass on the handle, likewise."""
        return int(self.operations.chmod(decode(path), mode, fip.contents if fip else None))

    def chown_fuse_3(self, path: bytes | None, uid: int, gid: int, fip: Any) -> int:
        """Pass on the handle, likewise."""
        return int(self.operations.chown(decode(path), uid, gid, fip.contents if fip else None))

    def utimens_fuse_3(self, path: bytes | None, buf: Any, fip: Any) -> int:
        """Pass on the handle, and tell "now" and "as it was" apart from times."""
        handle = fip.contents if fip else None
        return int(self.operations.utimens(decode(path), plain_times(buf), handle))

    def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
        """Pass on the flags, which mfusepy drops."""
        return int(self.operations.rename(os.fsdecode(old), os.fsdecode(new), flags))
