"""What the kernel knows of mountpoints: which are ours, which are stale, which can be used."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from lightlyfs.errors import StartError

MOUNT_TYPE = "fuse.lightlyfs"
_OCTAL = re.compile(rb"\\([0-7]{3})")


class MountEntry(NamedTuple):
    """One line of mountinfo."""

    mountpoint: Path
    type: str
    source: str
    device: str


def mount_table() -> list[MountEntry]:
    """Every mount of this process's namespace, in order; a later one hides an earlier one."""
    entries = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, tail = before.split(b" "), after.split(b" ")
        mountpoint = Path(os.fsdecode(_unescape(fields[4])))
        source = os.fsdecode(_unescape(tail[1]))
        entries.append(MountEntry(mountpoint, os.fsdecode(tail[0]), source, os.fsdecode(fields[2])))
    return entries


def mount_at(mountpoint: Path) -> MountEntry | None:
    """The topmost mount exactly at this path, or None."""
    found = [entry for entry in mount_table() if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def resolve_mountpoint(path: Path) -> Path:
    """The absolute path without links, never touching what may be a dead mount at its end."""
    path = path.absolute()
    return Path(os.path.realpath(path.parent)) / path.name if path.name else path


def is_stale(mountpoint: Path) -> bool:
    """Whether a mount is there whose process is gone."""
    try:
        # not stat, which the kernel answers from its own memory for a while
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def prepare_mountpoint(mountpoint: Path) -> None:
    """See that a directory is fit to be mounted on, clearing a stale mount of ours.

    Raises StartError, which names the reason and the way out.
    """
    if is_stale(mountpoint):
        entry = mount_at(mountpoint)
        if entry is not None and entry.type != MOUNT_TYPE:
            raise StartError(
                f"a dead {entry.type} mount is at {mountpoint}; clear it with: umount -l {mountpoint}"
            )
        unmount(mountpoint, lazy=True)
    entry = mount_at(mountpoint)
    if entry is not None and entry.type == MOUNT_TYPE:
        raise StartError(
            f"{entry.source} is mounted on {mountpoint} already; end it with: lightlyfs umount {mountpoint}"
        )
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


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount; StartError names the reason, such as a program that still uses it."""
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if os.getuid() == 0 or helper is None:
        command = ["umount", *(["-l"] if lazy else []), str(mountpoint)]
    else:
        command = [helper, "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
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


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
