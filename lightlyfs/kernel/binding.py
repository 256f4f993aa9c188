"""libfuse on this machine: its Python binding and options, and the C structures that the kernel reads.

Knows the `Operations` of a file system; must not know samples.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import shutil
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cachetools import LRUCache

from lightlyfs.errors import StartError
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr, Ownership
from lightlyfs.fs.namespace import Listing, Part
from lightlyfs.memory import MemoryTarget, default_target_bytes

log = logging.getLogger(__name__)


FuseVersion = Literal["auto", "3", "2"]

# by soname, for that needs neither ldconfig nor a compiler to be found
_SONAMES = {"3": ("libfuse3.so.4", "libfuse3.so.3"), "2": ("libfuse.so.2",)}

# libfuse 3 runs 10 threads by default. Reads are background requests, which the kernel holds back beyond
# `max_background`, so that many threads are always free for metadata
MAX_THREADS = 128
MAX_BACKGROUND = 64
READ_AHEAD_BYTES = 1 << 20
# the line of fuse.conf(5) that lets users give `allow_other`
_ALLOWS_OTHERS = "user_allow_other"
# capabilities(7): the right to mount, and where files hold rights
_CAP_SYS_ADMIN, _FILE_RIGHTS = 21, "security.capability"
_STATUS = Path("/proc/self/status")
# names the kernel was told do not exist; other mounts, and the web, may add them
NEGATIVE_TIMEOUT_S = 2.0
MAX_KERNEL_TIMEOUT_S = 60.0
# libfuse 2 cannot tell the kernel that something changed, so the kernel asks again soon
UNTOLD_TIMEOUT_S = 1.0


# in place of a time: leave it as it is (UTIME_OMIT of utimensat)
KEEP_TIME = -1
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2


@dataclass(frozen=True)
class MountOptions:
    """How the kernel mounts it; `timeout_s` is how long it may answer names and attributes itself."""

    mountpoint: Path
    source: str
    timeout_s: float = MAX_KERNEL_TIMEOUT_S
    read_only: bool = True
    allow_other: bool = False
    fuse_options: tuple[str, ...] = field(default=())
    part: Part = field(default_factory=Part)
    memory: MemoryTarget = field(default_factory=lambda: MemoryTarget(default_target_bytes()))


@dataclass(frozen=True)
class Library:
    """A libfuse that can be loaded; `version` as (major, minor)."""

    soname: str
    version: tuple[int, int]

    def __str__(self) -> str:
        return f"libfuse {self.version[0]}.{self.version[1]} ({self.soname})"


def find_library(wanted: FuseVersion = "auto") -> Library:
    """Return the libfuse to use, 3 before 2; StartError with the way out where there is none."""
    for major in ("3", "2") if wanted == "auto" else (wanted,):
        for soname in _SONAMES[major]:
            try:
                library = ctypes.CDLL(soname)
            except OSError:
                continue
            return Library(soname, _split_version(library.fuse_version()))
    name = "libfuse" if wanted == "auto" else f"libfuse {wanted}"
    package = "libfuse2" if wanted == "2" else "fuse3"
    raise StartError(f"{name} is not installed; install it with: apt-get install {package}")


def check_device() -> None:
    """StartError where this machine or container has no usable /dev/fuse."""
    device = "/dev/fuse"
    try:
        os.close(os.open(device, os.O_RDWR))
    except FileNotFoundError:
        raise StartError(
            f"{device} does not exist; load it with: modprobe fuse "
            f"(in a container: --device {device} --cap-add SYS_ADMIN)"
        ) from None
    except PermissionError:
        raise StartError(
            f"this user may not open {device}; allow it with: sudo chmod 666 {device} "
            f"(in a container: --device {device})"
        ) from None
    except OSError as error:
        raise StartError(f"{device} cannot be opened: {error.strerror}") from None


def check_rights() -> None:
    """StartError where neither this process nor the set-uid helper of libfuse may mount."""
    known = dict(line.partition(":")[::2] for line in _STATUS.read_text(errors="replace").splitlines())
    may_gain, may = (bool(int(known[name], 16) >> _CAP_SYS_ADMIN & 1) for name in ("CapBnd", "CapEff"))
    if not may_gain:
        raise StartError("this container may not mount; start it with: --cap-add SYS_ADMIN")
    if may:
        return
    if known.get("NoNewPrivs", "").strip() == "1":
        raise StartError(
            "no_new_privs is set, so fusermount gets no right to mount; "
            "mount from a terminal outside (in a container: --security-opt no-new-privileges=false)"
        )
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None or _gains_rights(helper):
        return
    raise StartError(
        f"{helper} is not set-uid root, so only root may mount; mend it with: "
        f"sudo sh -c 'chown root {helper}; chmod u+s {helper}'"
    )


def _gains_rights(program: str) -> bool:
    try:
        found = os.stat(program)
        # some systems give it the one capability instead
        return found.st_uid == 0 and bool(
            found.st_mode & stat.S_ISUID or _FILE_RIGHTS in os.listxattr(program)
        )
    except OSError:
        return True  # what is not known is not said


def failed_mount(
    options: MountOptions, code: object, configuration: Path = Path("/etc/fuse.conf")
) -> StartError:
    """Return the error of a mount that libfuse refused with this code; libfuse has printed its own line."""
    if options.allow_other and os.geteuid() and not _allows_others(configuration):
        return StartError(
            f"--allow-other needs {_ALLOWS_OTHERS} in {configuration}; add it with: "
            f"echo {_ALLOWS_OTHERS} | sudo tee -a {configuration}"
        )
    try:
        check_rights()
    except StartError as error:
        return error
    return StartError(f"libfuse could not mount {options.mountpoint} (code {code}); its own line is above")


def _allows_others(configuration: Path) -> bool:
    try:
        return _ALLOWS_OTHERS in map(str.strip, configuration.read_text(errors="replace").splitlines())
    except OSError:
        return False


def load_mfusepy(library: Library) -> Any:
    """Import mfusepy bound to this library; it chooses while it is imported, so only once a process."""
    return _import_bound("mfusepy", library)


def load_fusepy(library: Library) -> Any:
    """Import fusepy bound to this library, likewise."""
    return _import_bound("fuse", library)


def option_list(options: MountOptions, library: Library) -> dict[str, str | bool | float | int]:
    """Return the mount options as keyword arguments of the binding's `FUSE` class."""
    timeout = min(options.timeout_s, MAX_KERNEL_TIMEOUT_S if library.version[0] == 3 else UNTOLD_TIMEOUT_S)
    result: dict[str, str | bool | float | int] = {
        "foreground": True,
        "fsname": _escape(options.source),
        "subtype": "lightlyfs",
        "default_permissions": True,
        # libfuse 2 cannot tell the kernel that a size was wrong
        "attr_timeout": timeout if library.version[0] == 3 else 0,
        "entry_timeout": timeout,
        "negative_timeout": min(timeout, NEGATIVE_TIMEOUT_S),
        "use_ino": True,
        "ro": options.read_only,
        "allow_other": options.allow_other,
    }
    if library.version >= (3, 12):
        # a thread that ends takes its Python thread state with it, so none ends
        result |= {"max_threads": MAX_THREADS, "max_idle_threads": MAX_THREADS}
    elif library.version[0] == 3:
        result |= {"max_idle_threads": MAX_THREADS}
    else:
        result |= {"big_writes": True, "max_read": 128 << 10}
    for option in options.fuse_options:
        name, _, value = option.partition("=")
        result[name] = value or True
    return result


def supports_noflush(library: Library) -> bool:
    """Return whether an open can tell the kernel to send no flush (libfuse 3.11)."""
    return library.version >= (3, 11)


def plain_time(seconds: int, nanoseconds: int) -> int | None:
    """Convert a timespec of utimensat to nanoseconds: None for now, KEEP_TIME for a time to keep."""
    if nanoseconds == _UTIME_NOW:
        return None
    return KEEP_TIME if nanoseconds == _UTIME_OMIT else seconds * 1_000_000_000 + nanoseconds


def keep_thread_state() -> None:
    """Keep the Python thread state of the calling libfuse thread from one callback to the next.

    Without it every callback builds and drops one, which doubles its cost and empties `threading.local`.
    """
    ctypes.pythonapi.PyGILState_Ensure()


def _import_bound(module: str, library: Library) -> Any:
    before = os.environ.get("FUSE_LIBRARY_PATH")
    os.environ["FUSE_LIBRARY_PATH"] = library.soname
    try:
        return __import__(module)
    except ImportError as error:
        # fusepy has no wheel, so that it is missing where only wheels may be installed
        package = {"fuse": "fusepy"}.get(module, module)
        raise StartError(f"{library} needs {package}; install it with: pip install {package}") from error
    finally:
        if before is None:
            del os.environ["FUSE_LIBRARY_PATH"]
        else:
            os.environ["FUSE_LIBRARY_PATH"] = before


def _split_version(number: int) -> tuple[int, int]:
    # 2.9 is 29 and 3.14 is 314
    return divmod(number, 10) if number < 100 else divmod(number, 100)


def _escape(source: str) -> str:
    # libfuse takes a comma or backslash in a value only behind a backslash
    return re.sub(r"([,\\])", r"\\\1", source)


# listings kept packed; one of 100,000 files takes some 25 MB
MAX_KEPT_BYTES = 32 << 20
# Python's share of an entry: its name and the place of it in the list
_NAME_BYTES = 80
_BLOCK_BYTES = 4096

# the fields that are set, in the order `Packer` gives their values; all others are zero
_FIELDS = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blksize", "st_blocks")
_TIMES = ("st_atimespec", "st_mtimespec", "st_ctimespec")
_CODES = {2: "H", 4: "I", 8: "Q"}
_SIGNED_CODES = {4: "i", 8: "q"}  # of times, which may be before 1970


def mode_of(attr: Attr, owner: Ownership) -> int:
    """Return the kind and the permissions of a file, as `st_mode` holds them."""
    if attr.is_directory:
        return stat.S_IFDIR | (owner.directory_mode if attr.exact is None else attr.exact.mode)
    if attr.exact is not None:
        return stat.S_IFREG | attr.exact.mode
    return stat.S_IFLNK | 0o777 if attr.is_link else stat.S_IFREG | owner.file_mode


def links_of(attr: Attr) -> int:
    """Return the number of links: 1 for directories, which stands for "not counted"."""
    return 1 if attr.exact is None else attr.exact.links


def times_of(attr: Attr) -> tuple[int, int, int]:
    """Return the times of access, content and change, in nanoseconds."""
    if attr.exact is not None:
        return attr.exact.atime_ns, attr.exact.mtime_ns, attr.exact.ctime_ns
    mtime_ns = attr.mtime * 1_000_000_000
    return mtime_ns, mtime_ns, attr.ctime_ns or mtime_ns


class PackedListing:
    """A directory ready to be handed out; entry i has name i and the stat structure i.

    The attributes of an entry count only where `known[i]` is set; elsewhere the kernel has to ask.
    """

    def __init__(
        self, generation: int, names: list[bytes], known: bytearray, stats: bytearray, stat_bytes: int
    ) -> None:
        self.generation = generation
        self.names = names
        self.known = known
        self.stat_bytes = stat_bytes
        self._stats = (ctypes.c_char * len(stats)).from_buffer(stats)  # keeps the bytes where they are
        self.address = ctypes.addressof(self._stats)

    @property
    def memory_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.names) * (self.stat_bytes + _NAME_BYTES) + 1


class Packer:
    """Packs for one layout of `struct stat`; any thread may call."""

    def __init__(
        self, stat_type: type[ctypes.Structure], ownership: Ownership, max_kept_bytes: int = MAX_KEPT_BYTES
    ) -> None:
        self._ownership = ownership
        self._max_kept_bytes = max_kept_bytes
        self._layout, self._order = _layout_of(stat_type)
        self._lock = threading.Lock()
        # guarded by _lock
        self._kept: LRUCache[str, PackedListing] = LRUCache(
            max_kept_bytes, getsizeof=lambda listing: listing.memory_bytes
        )

    @property
    def stat_bytes(self) -> int:
        """The size of one stat structure."""
        return self._layout.size

    def pack(self, attr: Attr) -> bytes:
        """Return one stat structure."""
        return self._layout.pack(*self._values(attr))

    def listing(self, path: str, generation: int, read: Callable[[str], Listing]) -> PackedListing:
        """Return a packed directory, cached if it was packed in this generation; -1 is never cached."""
        with self._lock:
            kept = self._kept.get(path)
        if kept is not None and kept.generation == generation >= 0:
            return kept
        packed = self._pack_listing(read(path))
        with self._lock:
            if packed.generation >= 0 and packed.memory_bytes <= self._max_kept_bytes:
                self._kept[path] = packed
        return packed

    def _pack_listing(self, listing: Listing) -> PackedListing:
        dots = [(".", Attr(listing.ino, True, 0, 0)), ("..", Attr(listing.parent_ino, True, 0, 0))]
        entries = dots + listing.entries
        size, pack_into, values = self._layout.size, self._layout.pack_into, self._values
        stats = bytearray(size * len(entries))
        known = bytearray(_is_lasting(attr) for _, attr in entries)
        for index, (name, attr) in enumerate(entries):
            try:
                pack_into(stats, index * size, *values(attr))
            except struct.error:
                log.warning("the attributes of %r cannot be shown: %r", name, attr)
                known[index] = 0  # a lookup of this entry alone raises the error
        names = [name.encode() for name, _ in entries]
        return PackedListing(listing.generation, names, known, stats, size)

    def _values(self, attr: Attr) -> list[int]:
        owner = self._ownership
        size, mtime = max(attr.size, 0), attr.mtime
        head = attr.ino, mode_of(attr, owner), links_of(attr), owner.uid, owner.gid
        tail = size, _BLOCK_BYTES, -(-size // 512)
        if attr.exact is None and not attr.ctime_ns:
            times = mtime, mtime, mtime, 0, 0, 0
        else:
            (a, ans), (m, mns), (c, cns) = (divmod(ns, 1_000_000_000) for ns in times_of(attr))
            times = a, m, c, ans, mns, cns
        values = head + tail + times
        return [values[index] for index in self._order]


def _is_lasting(attr: Attr) -> bool:
    """Return whether attributes may be given with a listing, which the kernel takes for the newest there are.

    Those of a file of this machine may be older than its last write by the time they are handed out.
    """
    if attr.exact is not None and not attr.is_directory:
        return False
    return attr.size != UNKNOWN_SIZE and not attr.is_guess


def _layout_of(stat_type: Any) -> tuple[struct.Struct, list[int]]:
    """Return the structure as one `struct` format with padding, and which value goes where."""
    fields = [(getattr(stat_type, name).offset, getattr(stat_type, name).size) for name in _FIELDS]
    word = ctypes.sizeof(ctypes.c_long)
    fields += [(getattr(stat_type, name).offset, word) for name in _TIMES]
    fields += [(getattr(stat_type, name).offset + word, word) for name in _TIMES]
    order = sorted(range(len(fields)), key=lambda index: fields[index][0])
    text, position = "=", 0
    for index in order:
        offset, size = fields[index]
        codes = _CODES if index < len(_FIELDS) else _SIGNED_CODES
        text += f"{offset - position}x{codes[size]}"
        position = offset + size
    return struct.Struct(f"{text}{ctypes.sizeof(stat_type) - position}x"), order
