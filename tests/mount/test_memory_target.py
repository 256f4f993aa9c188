"""Near its target of memory a mount has the kernel keep fewer names.

Listings then come without attributes, and names that were looked up are given back.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trees import environment

from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = pytest.mark.fuse

FILES = 30_000
WAIT_S = 30.0
# a mount that has done nothing takes less than what names always have
PROGRAM = """
import runpy
import lightlyfs.memory, lightlyfs.settings
lightlyfs.memory._LEAST_FOR_NAMES_BYTES = lightlyfs.settings.LEAST_TARGET_BYTES = 1
lightlyfs.memory._BYTES_A_NAME = BYTES_A_NAME
runpy.run_module("lightlyfs.cli.serving", run_name="__main__", alter_sys=True)
"""


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def mounted(
    server: LocalServer, directory: Path, target: str, bytes_a_name: int = 400, **settings: str
) -> Iterator[tuple[Path, int]]:
    """A mount with a target of memory, and its process."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True)
    words = [server.dataset_id, str(mountpoint), "--setting", f"memory_target={target}"]
    words += [word for name, text in settings.items() for word in ("--setting", f"{name}={text}")]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("BYTES_A_NAME\nrunpy", f"{bytes_a_name}\nrunpy"), *words],
        env={**os.environ, **environment(server, directory / "cache")},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: process.poll() is not None or os.path.ismount(mountpoint))
            assert process.poll() is None
            yield mountpoint, process.pid
        finally:
            process.terminate()
            process.wait(WAIT_S)


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def bytes_a_name(server: LocalServer, directory: Path, target: str) -> float:
    """What `find` through all names adds to a mount, a name; sizes are right with either target."""
    with mounted(server, directory, target, read_only="on") as (mountpoint, process):
        os.listdir(mountpoint / "fake")
        before = resident_bytes(process)
        found = subprocess.run(
            ["find", mountpoint, "-type", "f"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
        after = resident_bytes(process)
        assert len(found) == FILES
        assert {Path(path).stat().st_size for path in found[::5_000]} == {100}
    return (after - before) / FILES


def test_names_that_find_walks_over_take_no_memory_above_the_target(tmp_path: Path) -> None:
    with LocalServer(ServerOptions(fake_samples=FILES, fake_bytes=100)) as server:
        assert bytes_a_name(server, tmp_path / "over", "1M") < 60
        assert bytes_a_name(server, tmp_path / "below", "1G") > 150


@pytest.mark.parametrize("read_only", ["on", "off"])
def test_the_kernel_gives_back_the_names_that_were_looked_up_longest_ago(
    tmp_path: Path, read_only: str
) -> None:
    """Not the directories, in which programs are, nor the files that are open."""
    with (
        LocalServer(ServerOptions(fake_samples=3_000, fake_bytes=100, fake_per_directory=100)) as server,
        # a sixth of it is for 256 names
        mounted(server, tmp_path, "6M", 4096, read_only=read_only) as (mountpoint, _),
    ):
        paths = sorted(mountpoint.rglob("*.jpg"))
        assert len(paths) == 3_000
        with contextlib.ExitStack() as stack, paths[1].open("rb") as opened:
            # without an open that the mount hears of
            looked_up = os.open(paths[0], os.O_PATH)
            stack.callback(os.close, looked_up)
            inside = os.open(paths[0].parent, os.O_PATH)
            stack.callback(os.close, inside)
            assert shown(looked_up) == str(paths[0])
            for path in paths:
                assert path.stat().st_size == 100
            wait_until(lambda: shown(looked_up) == f"{paths[0]} (deleted)")
            assert shown(opened.fileno()) == str(paths[1])
            assert shown(inside) == str(paths[0].parent)
            # what was given back is there as before
            assert os.fstat(looked_up).st_ino == paths[0].stat().st_ino
            assert {len(path.read_bytes()) for path in paths[:500]} == {100}


def shown(descriptor: int) -> str:
    """The path that the kernel has for what is open."""
    return os.readlink(f"/proc/self/fd/{descriptor}")
