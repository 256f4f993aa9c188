"""Mounts, as the kernel lists them: which are ours, which are dead, which directories can be mounted on.

The list is read without touching a mount, which may not answer. Also tells which file systems other machines
may write to: no lock of this machine excludes those.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shlex
import shutil
import subprocess
import threading
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from lightlyfs.errors import StartError

MOUNT_TYPE = "fuse.lightlyfs"
_OCTAL = re.compile(rb"\\([0-7]{3})")
_OWNER = re.compile(rb"(?:^|,)user_id=(\d+)")
# as the kernel: more links than this in one path go in a circle
_MAX_LINKS = 40


class MountEntry(NamedTuple):
    """One line of mountinfo; `owner` is the user who mounted, where the file system tells it."""

    mountpoint: Path
    type: str
    source: str
    device: str
    owner: int | None


def mount_table(process: str = "self") -> list[MountEntry]:
    """Return every mount of a process's namespace, in order; a later one hides an earlier one."""
    entries = []
    for line in Path(f"/proc/{process}/mountinfo").read_bytes().splitlines():
        before, _, after = line.partition(b" - ")
        fields, tail = before.split(b" "), after.split(b" ")
        mountpoint = Path(os.fsdecode(_unescape(fields[4])))
        source = os.fsdecode(_unescape(tail[1]))
        owner = _OWNER.search(tail[2])
        entries.append(
            MountEntry(
                mountpoint, os.fsdecode(tail[0]), source, os.fsdecode(fields[2]), owner and int(owner[1])
            )
        )
    return entries


def mount_at(mountpoint: Path) -> MountEntry | None:
    """Return the topmost mount exactly at this path, or None."""
    found = [entry for entry in mount_table() if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def our_mounts() -> dict[Path, MountEntry]:
    """Return the mounts of this program, by their mountpoint."""
    return {entry.mountpoint: entry for entry in mount_table() if entry.type == MOUNT_TYPE}


def other_places(device: str) -> list[str]:
    """Return where else a file system is mounted: here, and where other processes have mounts of their own.

    A process of which that may not be read is left out.
    """
    seen = {os.readlink("/proc/self/ns/mnt")}
    found = [str(entry.mountpoint) for entry in mount_table() if entry.device == device]
    for process in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            if namespace not in seen:
                table = mount_table(process)
                found += [
                    f"{entry.mountpoint} (for process {process})" for entry in table if entry.device == device
                ]
        except OSError:
            continue
        seen.add(namespace)
    return found


def without_links(path: Path, *, last: bool = False) -> Path:
    """Return the absolute path with links resolved, of its last part where that is asked for.

    None at or below a mount of this program is, so that nothing is asked of a mount.
    """
    mountpoints = our_mounts()
    parts, found = list(path.absolute().parts[1:]), Path("/")
    links = 0
    while parts:
        part = parts.pop(0)
        if part == "..":
            found = found.parent
            continue
        found /= part
        if found in mountpoints:
            return found.joinpath(*parts)
        if (parts or last) and links < _MAX_LINKS and os.path.islink(found):
            links += 1
            target = Path(os.readlink(found))
            found = Path("/") if target.is_absolute() else found.parent
            parts = [*(target.parts[1:] if target.is_absolute() else target.parts), *parts]
    return found


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)


# file systems that other machines may write to

# what statfs(2) calls those that may be remote; linux/magic.h and the headers of each
_REMOTE = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0xAAD7AAEA: "PanFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x01161970: "GFS2",
    0x7461636F: "OCFS2",
}
_STATFS_BYTES = 256  # more than `struct statfs` has anywhere


def remote_kind(path: Path) -> str:
    """Return what the file system of a directory is called where other machines may use it, otherwise ""."""
    return _REMOTE.get(type_of(path), "")


def type_of(path: Path) -> int:
    """Return the number of the file system's type; 0 where it cannot be told."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    try:
        if ctypes.CDLL(None).statfs(os.fsencode(path), found) != 0:
            return 0
    except (AttributeError, OSError):
        return 0
    # the first field, a word; some types have its highest bit set
    return ctypes.c_ulong.from_buffer(found).value & 0xFFFFFFFF


# a mount that does not answer by then is stopped or stuck
_PROBE_S = 1.5
_UNMOUNT_S = 30.0
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # sys/mount.h


class Health(Enum):
    """How a mount reacts when it is asked for its size."""

    ANSWERS = "answers"
    DEAD = "its process is gone"
    HANGS = "it does not answer"


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
    """Check that a directory can be mounted on; return whether a dead mount of ours was cleared there.

    Raises StartError, which names the reason and the way out.
    """
    cleared = False
    entry = mount_at(mountpoint)
    health = Health.ANSWERS if entry is None else probe(mountpoint)
    if entry is not None and health is Health.DEAD:
        if entry.type != MOUNT_TYPE:
            raise StartError(
                f"a dead {entry.type} mount is at {mountpoint}; clear it with: umount -l {_word(mountpoint)}"
            )
        unmount(mountpoint, lazy=True)
        cleared = True
        entry = mount_at(mountpoint)
    if entry is not None and entry.type == MOUNT_TYPE:
        if health is Health.HANGS:
            raise StartError(
                f"{entry.source} is mounted on {mountpoint} already, and does not answer; "
                f"see: lightlyfs status {_word(mountpoint)}"
            )
        raise StartError(
            f"{entry.source} is mounted on {mountpoint} already; "
            f"end it with: lightlyfs umount {_word(mountpoint)}"
        )
    if health is Health.HANGS:
        raise StartError(f"what is mounted on {mountpoint} does not answer; choose another directory")
    try:
        occupied = next(iter(os.scandir(mountpoint)), None) is not None
    except FileNotFoundError:
        raise StartError(f"{mountpoint} does not exist; make it with: mkdir -p {_word(mountpoint)}") from None
    except NotADirectoryError:
        raise StartError(f"{mountpoint} is not a directory; choose an empty one") from None
    except OSError as error:
        raise StartError(f"{mountpoint} cannot be used: {error.strerror}") from None
    if occupied:
        raise StartError(
            f"{mountpoint} is not empty; a mount would hide its files: choose an empty directory"
        )
    return cleared


def _word(path: Path) -> str:
    """Return a path as a shell takes it, for a command that is shown to be copied."""
    return shlex.quote(str(path))


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
            f"detach it with: lightlyfs umount --lazy {_word(mountpoint)}"
        ) from None
    if done.returncode == 0:
        return
    reason = done.stderr.strip().rpartition(": ")[2] or f"{command[0]} failed"
    if "busy" in reason:
        reason = f"a program still uses it; find it with: fuser -vm {_word(mountpoint)}"
    raise StartError(f"{mountpoint} cannot be unmounted: {reason}")


def set_read_ahead(mountpoint: Path, kib: int) -> None:
    """Set how far the kernel reads ahead; without the permission it stays at 128 KiB, which also works."""
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
