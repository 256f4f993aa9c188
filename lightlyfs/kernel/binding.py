"""Finds libfuse on this machine, and chooses its Python binding and options.

Knows the `Operations` of a file system; must not know samples.
"""

from __future__ import annotations

import ctypes
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightlyfs.errors import StartError
from lightlyfs.fs.part import Part

FuseVersion = Literal["auto", "3", "2"]

# by soname, for that needs neither ldconfig nor a compiler to be found
_SONAMES = {"3": ("libfuse3.so.4", "libfuse3.so.3"), "2": ("libfuse.so.2",)}

# libfuse 3 runs 10 threads unless told. Reads are background requests, which the kernel holds back beyond
# `max_background`, so that many threads are always free for metadata
MAX_THREADS = 128
MAX_BACKGROUND = 64
READ_AHEAD_BYTES = 1 << 20
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
    except OSError as error:
        raise StartError(f"{device} cannot be opened: {error.strerror}") from None


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
