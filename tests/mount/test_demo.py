"""The demo, and what it leaves when it is interrupted: nothing."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trees import need_fuse, wait_until

from lightlyfs.cli import demo
from lightlyfs.errors import StartError
from lightlyfs.mountpoints import MountEntry, mount_table

pytestmark = pytest.mark.fuse

# a run takes two to three seconds
_LATEST_S = 3.5


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory for all that the demo makes."""
    need_fuse("3")
    return tmp_path


@contextlib.contextmanager
def running(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The demo on its way, in a process group of its own."""
    environ = {**os.environ, "HOME": str(home), "TMPDIR": str(home), "LIGHTLYFS_TEST_MARK": str(home)}
    for name in [name for name in environ if name.startswith("XDG_")]:
        del environ[name]
    command = [sys.executable, "-m", "lightlyfs", "demo"]
    with subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0
    ) as process:
        yield process


def left(home: Path) -> list[str]:
    """What a run left: mounts, processes, files."""
    mounts = [str(entry.mountpoint) for entry in mount_table() if entry.mountpoint.is_relative_to(home)]
    processes = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"LIGHTLYFS_TEST_MARK={home}".encode() in path.read_bytes():
                processes.append(path.parent.name)
    return mounts + processes + [path.name for path in home.glob("lightlyfs-demo-*")]


def test_the_demo_shows_everything_and_leaves_nothing(home: Path) -> None:
    with running(home) as process:
        assert process.wait(60) == 0
    assert left(home) == []


def interrupt(home: Path, chance: random.Random) -> None:
    number = chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    with running(home) as process:
        time.sleep(chance.uniform(0.05, _LATEST_S))
        # Ctrl-C reaches all of the terminal's processes, `kill` the one that it names
        for _ in range(chance.choice([1, 3])):
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if chance.random() < 0.5 else os.kill)(process.pid, number)
            time.sleep(0.05)
        code = process.wait(60)
        assert process.stderr is not None
        said = process.stderr.read().decode()
    # -number, or an error of the interpreter itself: it came before the demo began
    assert code in (0, 1, 130, 128 + number, -number), said
    assert code == -number or "Traceback" not in said or said.startswith("Fatal Python error: init")
    wait_until(lambda: not left(home), 10)


def test_an_interrupt_at_any_moment_leaves_nothing(home: Path) -> None:
    """Four, each in a home of its own, at once."""

    def one(seed: int) -> None:
        (home / str(seed)).mkdir()
        interrupt(home / str(seed), random.Random(seed))

    with ThreadPoolExecutor() as pool:
        list(pool.map(one, range(4)))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_twenty_interrupts_leave_nothing(home: Path) -> None:
    for seed in range(100, 120):
        interrupt(home, random.Random(seed))


def test_nothing_is_removed_below_a_mount(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the mount stays whatever is done, so does the directory."""
    (home / "demo/mnt").mkdir(parents=True)
    (home / "demo/mnt/sample.jpg").touch()
    stuck = [MountEntry(home / "demo/mnt", "fuse.lightlyfs", "lightly:demo", "0:1", None)]
    monkeypatch.setattr(demo, "mount_table", lambda: stuck)
    monkeypatch.setattr(demo.mountpoints, "unmount", lambda *_args, **_flags: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(StartError, match="something is mounted below it"):
            demo._Demo(home / "demo")._end()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (home / "demo/mnt/sample.jpg").exists()
