"""What a mount takes of the machine: nothing while it is not used, and few descriptors if it must."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from test_shared_mounts import two_mounts
from trees import MountedTree, mounted, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

WATCHED_S = 4.0
FILES, FEW_DESCRIPTORS = 400, 256
WRITTEN = 60
MOST_WAKEUPS_A_SECOND = 0.5
# none of these is needed before a command is given, a picture sent or a port opened
UNNEEDED = ("click", "rich", "PIL", "requests", "urllib3", "uvicorn", "boto3", "prometheus_client")
_SWITCHES = re.compile(r"^voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)


@pytest.fixture
def idle(server: LocalServer, tmp_path: Path) -> Iterator[list[MountedTree]]:
    """Two mounts that share a cache, after both were read from."""
    with two_mounts(server, tmp_path) as trees:
        for tree in trees:
            tree.read("a.jpg")
        yield trees


def wakeups(tree: MountedTree) -> int:
    """How often a thread of a mount went to sleep so far."""
    tasks = Path(f"/proc/{tree.process.pid}/task").iterdir()
    return sum(int(count) for task in tasks for count in _SWITCHES.findall((task / "status").read_text()))


def are_at_rest(trees: list[MountedTree]) -> bool:
    """Whether none of them wakes more often than it may, for some seconds."""
    before = list(map(wakeups, trees))
    time.sleep(WATCHED_S)
    after = list(map(wakeups, trees))
    return all((b - a) / WATCHED_S <= MOST_WAKEUPS_A_SECOND for a, b in zip(before, after, strict=True))


def test_a_mount_that_nobody_uses_does_not_wake(idle: list[MountedTree]) -> None:
    """What the last call left to do may take a while where the machine is busy."""
    wait_until(lambda: are_at_rest(idle), 30)
    assert are_at_rest(idle)


def cores_of(process: int) -> list[set[int]]:
    """The cores that each thread of a process may use."""
    return [os.sched_getaffinity(int(task.name)) for task in Path(f"/proc/{process}/task").iterdir()]


def test_a_mount_stays_on_one_core_and_what_it_starts_does_not(
    own_server: LocalServer, tmp_path: Path
) -> None:
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("there is one core")
    with mounted(own_server, tmp_path, "3") as tree:
        Image.effect_noise((64, 48), 50).save(tree.mountpoint / "a.jpg")
        one = set().union(*cores_of(tree.process.pid))
        assert len(one) == 1
        assert one < mine
        tasks = Path(f"/proc/{tree.process.pid}/task").iterdir()
        helpers = [int(child) for task in tasks for child in (task / "children").read_text().split()]
        assert helpers
        assert [cores_of(helper) for helper in helpers] == [[mine]] * len(helpers)


def test_what_a_mount_does_not_need_is_not_in_its_memory() -> None:
    script = "import sys, lightlyfs.cli.serving; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout

    assert set(loaded.split()) & set(UNNEEDED) == set()


def test_with_few_descriptors_a_mount_is_slower_and_reads_all(
    own_server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"a/{number:03d}.jpg": b"%03d" % number * 5_000 for number in range(FILES)}
    for name, data in files.items():
        own_server.add_sample(name, data)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    start = subprocess.Popen

    def with_few(*args: object, **kwargs: object) -> object:
        few = (FEW_DESCRIPTORS, FEW_DESCRIPTORS)
        return start(*args, **kwargs, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, few))  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", with_few)
    with mounted(own_server, tmp_path, "3") as tree:
        monkeypatch.undo()
        with ThreadPoolExecutor(32) as pool:
            found = dict(zip(files, pool.map(tree.read, files), strict=True))
        assert found == files
        assert resource.prlimit(tree.process.pid, resource.RLIMIT_NOFILE) == (FEW_DESCRIPTORS,) * 2 != limits
        assert "Too many open files" not in tree.log.read_text()


def test_files_that_were_written_hold_no_descriptor(own_server: LocalServer, tmp_path: Path) -> None:
    with mounted(own_server, tmp_path, "3") as tree:
        tree.write("a/first.jpg", b"first")
        before = len(list(Path(f"/proc/{tree.process.pid}/fd").iterdir()))
        for number in range(WRITTEN):
            tree.write(f"a/{number}.jpg", b"%d" % number)

        assert len(list(Path(f"/proc/{tree.process.pid}/fd").iterdir())) < before + WRITTEN // 4
        assert tree.read("a/7.jpg") == b"7"
