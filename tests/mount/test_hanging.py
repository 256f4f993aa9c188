"""A mount whose process is stopped, or whose socket is gone: every command answers, and says what to do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import MountedTree, mounted

from lightlyfs import mountpoints
from lightlyfs.testing import LocalServer, Status

pytestmark = pytest.mark.fuse

ANSWER_S = 5.0


@pytest.fixture
def stopped(server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount whose process was stopped."""
    with mounted(server, tmp_path, "3", "--metadata-ttl=0") as tree:
        tree.names()
        os.kill(tree.process.pid, signal.SIGSTOP)
        yield tree
        if tree.process.poll() is None:
            os.kill(tree.process.pid, signal.SIGCONT)


def answers(
    tree: MountedTree, commands: list[list[str]], cwd: Path | None = None
) -> list[tuple[int, str, float]]:
    """What commands that run at one time end with, say, and take."""
    found = []
    started = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "lightlyfs", *words],
            env=dict(tree.environ),
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )
        for words in commands
    ]
    for process in running:
        try:
            _, text = process.communicate(timeout=20)
        finally:
            process.kill()
        found.append((process.returncode, text, time.monotonic() - started))
    return found


def test_every_command_says_in_five_seconds_that_a_mount_hangs(
    stopped: MountedTree, tmp_path: Path, server: LocalServer
) -> None:
    where = str(stopped.mountpoint)
    (tmp_path / "link").symlink_to(tmp_path)
    commands = [
        ["status", where],
        ["status", str(tmp_path / "link" / stopped.mountpoint.name)],
        ["refresh", where],
        ["umount", where],
        ["warm", where],
        ["warm", f"{where}/a.jpg"],
        ["mount", server.dataset_id, where],
    ]
    for words in commands:
        [(code, text, seconds)] = answers(stopped, [words])
        assert (code, seconds < ANSWER_S) == (1, True), (words, text)
        assert len(text.splitlines()) == 1
        if words[0] != "mount":
            assert f"kill -CONT {stopped.process.pid}" in text
            assert "umount --lazy" in text


def test_a_mount_that_hangs_is_detached(stopped: MountedTree) -> None:
    [(code, text, seconds)] = answers(stopped, [["umount", "--lazy", str(stopped.mountpoint)]])

    assert (code, seconds < ANSWER_S) == (0, True), text
    assert f"process {stopped.process.pid} does not answer" in text
    assert mountpoints.mount_at(stopped.mountpoint) is None
    os.kill(stopped.process.pid, signal.SIGCONT)
    assert stopped.process.wait(10) == 0
    stopped.ended = True


def test_commands_reach_a_mount_whose_runtime_directory_went(own_server: LocalServer, tmp_path: Path) -> None:
    """As at the end of a session; and the end of the mount says what is owed."""
    with mounted(own_server, tmp_path, "3") as tree:
        own_server.faults.add(Status(target="api", status=403))
        with pytest.raises(PermissionError):
            tree.write("a.jpg", b"owed")
        shutil.rmtree(tree.environ["XDG_RUNTIME_DIR"])

        assert "a.jpg" in tree.run("status", str(tree.mountpoint)).stdout
        done = tree.run("umount", str(tree.mountpoint), check=False)

        assert done.returncode == 1
        assert "a.jpg" in done.stderr
        tree.end()


def test_the_end_of_a_killed_mount_says_what_is_owed(own_server: LocalServer, tmp_path: Path) -> None:
    with mounted(own_server, tmp_path, "3", "--write-back") as tree:
        own_server.faults.add(Status(target="api", status=403))
        tree.write("a.jpg", b"owed")
        tree.process.kill()
        tree.process.wait()
        tree.ended = True

        done = tree.run("umount", str(tree.mountpoint))

        assert "1 file on this machine not on the server yet" in done.stderr
        assert mountpoints.mount_at(tree.mountpoint) is None
