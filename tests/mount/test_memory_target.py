"""Near its target of memory a mount gives listings without attributes, so that the kernel keeps no names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
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
runpy.run_module("lightlyfs.cli.serving", run_name="__main__", alter_sys=True)
"""


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_a_name(server: LocalServer, directory: Path, target: str) -> float:
    """What `find` through all names adds to a mount, a name; sizes are right with either target."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True)
    words = [server.dataset_id, str(mountpoint), "--setting", "read_only=on"]
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words, "--setting", f"memory_target={target}"],
        env={**os.environ, **environment(server, directory / "cache")},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            deadline = time.monotonic() + WAIT_S
            while not os.path.ismount(mountpoint):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            os.listdir(mountpoint / "fake")
            before = resident_bytes(process.pid)
            found = subprocess.run(
                ["find", mountpoint, "-type", "f"], check=True, capture_output=True, text=True
            ).stdout.splitlines()
            after = resident_bytes(process.pid)
            assert len(found) == FILES
            assert {Path(path).stat().st_size for path in found[::5_000]} == {100}
        finally:
            process.terminate()
            process.wait(WAIT_S)
    return (after - before) / FILES


def test_names_that_find_walks_over_take_no_memory_above_the_target(tmp_path: Path) -> None:
    with LocalServer(ServerOptions(fake_samples=FILES, fake_bytes=100)) as server:
        assert bytes_a_name(server, tmp_path / "over", "1M") < 60
        assert bytes_a_name(server, tmp_path / "below", "1G") > 150
