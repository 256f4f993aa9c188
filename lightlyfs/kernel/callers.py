"""Finds the programs that callbacks serve in /proc: their names, how they end, which system call they make.

The kernel reports only the thread of a caller (`fuse_get_context`). An unknown value is None, never a guess:
the thread may have ended, be in another pid namespace (0), or belong to another user.
"""

from __future__ import annotations

import fcntl
import os
import platform
import struct
import time
from pathlib import Path
from typing import NamedTuple

# include/linux/sched.h: the thread was ended by a signal
_PF_SIGNALED = 0x400
_WAIT_SIGNAL_MASK = 0x7F
# of /proc/PID/stat, counted behind the name, which may hold anything (proc(5) numbers them from 1)
_FLAGS, _EXIT_CODE = 9 - 3, 52 - 3
# numbers of the system calls that remove a name, and of those that rename (asm/unistd.h)
_UNLINKS = {"x86_64": (87, 263), "aarch64": (35,)}
_RENAMES = {"x86_64": (82, 264, 316), "aarch64": (38, 276)}


# struct pidfd_info: its mask, and behind 52 bytes the exit code; _IOWR(0xFF, 11, 64 bytes)
_PIDFD_INFO = struct.Struct("=Q52xi")
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_EXIT = 1 << 3


# short, for numbers are given out again, and execve(2) changes a name
_REMEMBERED_S, _MOST_REMEMBERED = 0.1, 256


class _Stat(NamedTuple):
    flags: int
    exit_code: int


class Program(NamedTuple):
    """The process of a thread, and its name, as of a time of the monotonic clock."""

    process: int
    name: str
    asked_at: float


class ProgramTable:
    """The processes of threads, kept for a moment: one program opens many files. Any thread may call."""

    def __init__(self) -> None:
        self._known: dict[int, Program] = {}  # single operations on it are atomic

    def __call__(self, thread: int) -> Program:
        """Return whose a thread is: its thread group, or its own number and no name where it is gone."""
        now = time.monotonic()
        known = self._known.get(thread)
        if known is None or now - known.asked_at > _REMEMBERED_S:
            process = _thread_group(thread)
            known = Program(process, program_of(process), now)
            if len(self._known) >= _MOST_REMEMBERED:
                self._known = {}
            self._known[thread] = known
        return known


def program_of(process: int) -> str:
    """Return the name of a process as the kernel keeps it, at most 15 bytes; "" where it is gone.

    To be asked for the thread group: threads have names of their own.
    """
    # asked while a program opens a file: `Path.read_text` takes five times as long
    try:
        descriptor = os.open(f"/proc/{process}/comm", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 64).decode(errors="replace").rstrip("\n")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def was_killed(process: int) -> bool | None:
    """Return whether a signal ended, or is ending, a process; None where it is gone.

    A thread that ends by itself has no PF_SIGNALED, but it ends the other threads of its process by a
    signal. So all threads must have it, and the exit code of the whole must not be one of `exit`.
    """
    # asked first: /proc/PID/stat of a program in the middle of execve(2) waits for the flush that asks
    if _has_memory(process):
        return False
    whole = _stat(Path(f"/proc/{process}/stat"))
    if whole is None:
        return None
    try:
        threads = [_stat(task / "stat") for task in Path(f"/proc/{process}/task").iterdir()]
    except OSError:
        threads = []
    known = [thread for thread in threads if thread is not None] or [whole]
    if not all(thread.flags & _PF_SIGNALED for thread in known):
        return False
    if whole.exit_code == 0:
        return not _shows_exit_code(process)
    return bool(whole.exit_code & _WAIT_SIGNAL_MASK)


class ProcessEnd:
    """How one process ends, known also once it is gone (PIDFD_GET_INFO of Linux 6.15, linux/pidfd.h)."""

    def __init__(self, process: int) -> None:
        """OSError where the process is gone already."""
        self._process = process
        self._descriptor = os.pidfd_open(process)

    def was_killed(self) -> bool | None:
        """Return whether a signal ended it, or is ending it; None if the kernel does not say."""
        killed = was_killed(self._process)
        if killed is not None:
            return killed
        info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, 0))
        try:
            fcntl.ioctl(self._descriptor, _PIDFD_GET_INFO, info)
        except OSError:
            return None
        mask, exit_code = _PIDFD_INFO.unpack(info)
        return bool(exit_code & _WAIT_SIGNAL_MASK) if mask & _PIDFD_INFO_EXIT else None

    def close(self) -> None:
        """Let go of the process."""
        os.close(self._descriptor)


def watch(process: int) -> ProcessEnd | None:
    """Return a handle that knows how a process ends; None if it is gone, or the kernel has none."""
    try:
        return ProcessEnd(process)
    except OSError:
        return None


def is_unlinking(thread: int) -> bool | None:
    """Return whether a thread waits in a call that removes (True) or renames (False), else None."""
    try:
        number = int(Path(f"/proc/{thread}/syscall").read_text().partition(" ")[0])
    except (OSError, ValueError):
        return None
    machine = platform.machine()
    if number in _UNLINKS.get(machine, ()):
        return True
    return False if number in _RENAMES.get(machine, ()) else None


def _has_memory(process: int) -> bool:
    """Return whether a process has an address space: one that ends gives that up before its descriptors."""
    try:
        return b"\nVmSize:" in Path(f"/proc/{process}/status").read_bytes()
    except OSError:
        return False


def _shows_exit_code(process: int) -> bool:
    """Return whether /proc shows the exit code of a process that ends: since Linux 5.17, to who may trace it.

    Its owner may not where its group is another, nor root in a container without CAP_SYS_PTRACE.
    """
    release = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdigit())
    try:
        # this needs the same permission; unlike `exe` and `cwd` it is there until the process is gone
        os.readlink(f"/proc/{process}/ns/user")
    except OSError:
        return False
    return release >= (5, 17)


def _stat(path: Path) -> _Stat | None:
    try:
        fields = path.read_text(errors="replace").rpartition(")")[2].split()
        return _Stat(int(fields[_FLAGS]), int(fields[_EXIT_CODE]) if len(fields) > _EXIT_CODE else 0)
    except (OSError, ValueError, IndexError):
        return None


def _thread_group(thread: int) -> int:
    try:
        for line in Path(f"/proc/{thread}/status").read_text(errors="replace").splitlines():
            if line.startswith("Tgid:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return thread
