"""Asks the kernel about mountpoints: which belong to lightlyfs, which are stale, which can be used."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading
from enum import Enum
from pathlib import Path

from lightlyfs.errors import StartError
from lightlyfs.mountinfo import MOUNT_TYPE, mount_at, without_links

# what does not answer by then is stopped or stuck
_PROBE_S = 1.5
_UNMOUNT_S = 30.0
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # sys/mount.h


class Health(Enum):
    """What a mount does when it is asked."""

    ANSWERS = "answers"
    DEAD = "its process is gone"
    HANGS = "it does not answer"


def resolve_mountpoint(path: Path) -> Path:
    """Return the absolute path without links, never touching what may be a dead mount at its end."""
    return without_links(path)


def probe(mountpoint: Path) -> Health:
    """Ask a mount for its size, in another thread, which is left behind where there is no answer."""
    found: list[Health] = []

    def ask() -> None:
        try:
            # not stat, which the kernel answers from its own memory for a while
            os.statvfs(mountpoint)
        except OSError as error:
            gone = error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
            found.append(Health.DEAD if gone else Health.ANSWERS)
        else:
            found.append(Health.ANSWERS)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return found[0] if found else Health.HANGS


def prepare_mountpoint(mountpoint: Path) -> bool:
    """See that a directory is fit to be mounted on; returns whether a dead mount of ours was cleared there.

    Raises StartError, which names the reason and the way out.
    """
    cleared = False
    entry = mount_at(mountpoint)
    health = Health.ANSWERS if entry is None else probe(mountpoint)
    if entry is not None and health is Health.DEAD:
        if entry.type != MOUNT_TYPE:
            raise StartError(
                f"a dead {entry.type} mount is at {mountpoint}; clear it with: umount -l {mountpoint}"
            )
        unmount(mountpoint, lazy=True)
        cleared = True
        entry = mount_at(mountpoint)
    if entry is not None and entry.type == MOUNT_TYPE:
        if health is Health.HANGS:
            raise StartError(
                f"{entry.source} is mounted on {mountpoint} already, and does not answer; "
                f"see: lightlyfs status {mountpoint}"
            )
        raise StartError(
            f"{entry.source} is mounted on {mountpoint} already; end it with: lightlyfs umount {mountpoint}"
        )
    if health is Health.HANGS:
        raise StartError(f"what is mounted on {mountpoint} does not answer; choose another directory")
    try:
        occupied = next(iter(os.scandir(mountpoint)), None) is not None
    except FileNotFoundError:
        raise StartError(f"{mountpoint} does not exist; make it with: mkdir -p {mountpoint}") from None
    except NotADirectoryError:
        raise StartError(f"{mountpoint} is not a directory; choose an empty one") from None
    except OSError as error:
        raise StartError(f"{mountpoint} cannot be used: {error.strerror}") from None
    if occupied:
        raise StartError(
            f"{mountpoint} is not empty; a mount would hide its files: choose an empty directory"
        )
    return cleared


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; StartError names the reason, such as a program that still uses it."""
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if os.getuid() == 0 or helper is None:
        command = ["umount", *(["-l"] if lazy else []), str(mountpoint)]
    else:
        command = [helper, "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    if lazy and os.getuid() == 0 and _detach(mountpoint):
        return
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_UNMOUNT_S)
    except subprocess.TimeoutExpired:
        raise StartError(
            f"{mountpoint} cannot be unmounted, for it does not answer; "
            f"detach it with: lightlyfs umount --lazy {mountpoint}"
        ) from None
    if done.returncode == 0:
        return
    reason = done.stderr.strip().rpartition(": ")[2] or f"{command[0]} failed"
    if "busy" in reason:
        reason = f"a program still uses it; find it with: fuser -vm {mountpoint}"
    raise StartError(f"{mountpoint} cannot be unmounted: {reason}")


def set_read_ahead(mountpoint: Path, kib: int) -> None:
    """Let the kernel read ahead so far; without the right to, it stays at 128 KiB and works as well."""
    entry = mount_at(mountpoint)
    if entry is None:
        return
    try:
        Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").write_text(str(kib))
    except OSError:
        pass


def _detach(mountpoint: Path) -> bool:
    """Unmount at once without touching the mount, as the program `umount` would."""
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.umount2(os.fsencode(mountpoint), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0)
    except (AttributeError, OSError):
        return False
