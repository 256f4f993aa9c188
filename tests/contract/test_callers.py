"""How the programs that a mount serves end, as the kernel shows it."""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lightlyfs.kernel.callers import ProcessEnd, ProgramTable, is_unlinking, program_of, was_killed

WAIT_S = 5.0
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
KILLED = "import os, signal, time; os.kill(os.getpid(), signal.{}); time.sleep(60)"
SLEEPER = "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
THREADS = f"import os, threading, time; [{SLEEPER} for _ in '1234']; "


def ended(code: str) -> int:
    """Run a program until it is a zombie, which its parent has not waited for."""
    process = os.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", code])
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    return process


@pytest.fixture
def sleeper() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT", "SIGSEGV", "SIGABRT"])
def test_a_program_that_a_signal_ends_was_killed(name: str) -> None:
    restore = "signal.signal(signal.SIGINT, signal.SIG_DFL); "
    process = ended("import signal; " + restore + KILLED.format(name))

    end = ProcessEnd(process)
    try:
        assert was_killed(process) is True
        os.waitpid(process, 0)
        assert end.was_killed() in known(True)
    finally:
        end.close()


@pytest.mark.parametrize(
    "code",
    [
        "",
        "raise SystemExit(3)",
        "1 / 0",
        "import os; os._exit(0)",
        THREADS + "os._exit(0)",
        THREADS + "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(60)",
    ],
)
def test_a_program_that_ends_by_itself_was_not_killed(code: str) -> None:
    process = ended(code + "\n")

    end = ProcessEnd(process)
    try:
        assert was_killed(process) is False
        os.waitpid(process, 0)
        assert end.was_killed() in known(False)
    finally:
        end.close()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user and another group")
@pytest.mark.parametrize(
    ("asker", "asked"),
    [((54_321, 54_321), (54_321, 54_322)), ((54_321, 54_321), (54_323, 54_321)), ((0, 0), (54_321, 54_322))],
    ids=["another group of its user", "another user", "root without CAP_SYS_PTRACE"],
)
def test_a_killed_program_whose_exit_code_is_not_shown_did_not_end_by_itself(
    asker: tuple[int, int], asked: tuple[int, int]
) -> None:
    process = os.fork()
    if process == 0:
        try:
            become(*asked)
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(3)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    other = os.fork()
    if other == 0:
        answer = 3
        try:
            become(*asker)
            answer = {True: 0, False: 1, None: 2}[was_killed(process)]
        finally:
            os._exit(answer)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
    finally:
        os.waitpid(process, 0)


def become(user: int, group: int) -> None:
    """Give this process a user and a group, and take every right from it that root has."""
    libc = ctypes.CDLL(None, use_errno=True)
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    assert libc.capset(header, (ctypes.c_uint32 * 6)()) == 0


def known(killed: bool) -> tuple[bool | None, ...]:
    """What may be said of a process that is gone: kernels before 6.15 do not tell."""
    release = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdigit())
    return (killed,) if release >= (6, 15) else (killed, None)


def test_of_a_program_that_goes_on_it_is_known_that_it_was_not_killed(sleeper: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while program_of(sleeper) != "sleep":  # execve closes descriptors, which Popen waits for, before that
        assert time.monotonic() < deadline
    assert was_killed(sleeper) is False
    assert is_unlinking(sleeper) is None


def test_of_a_program_that_is_gone_nothing_is_known() -> None:
    process = ended("")
    os.waitpid(process, 0)

    assert was_killed(process) is None
    assert program_of(process) == ""
    assert ProgramTable()(process)[:2] == (process, "")


def test_threads_are_known_by_their_process() -> None:
    code = f"import threading, time; {SLEEPER}; print(1, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + WAIT_S
        while len(threads := os.listdir(f"/proc/{process.pid}/task")) < 2:
            assert time.monotonic() < deadline
        callers = ProgramTable()
        assert {callers(int(thread)).process for thread in threads} == {process.pid}
        process.send_signal(signal.SIGKILL)
