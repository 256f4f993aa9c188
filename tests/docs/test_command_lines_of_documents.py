"""Every command line in a block of a document, run in order by a user with an empty home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_kit import DOCUMENTS, README, lines_to_run, python_blocks
from shared_mount import jpeg
from trees import environment, need_fuse

from lightlyfs import mountpoints
from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = pytest.mark.fuse

# the README's lines are those of tests/docs/newcomer.py
WITH_LINES = [path for path in DOCUMENTS if path != README and lines_to_run(path).blocks]


class User:
    """A user with a home, a shell and a dataset called `my-dataset`."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self.home = home
        self.environ = environ
        self.mountpoint = home / "images"

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )

    def mount(self, wanted: bool) -> None:
        """See to it that the dataset is mounted, or is not."""
        is_mounted = mountpoints.mount_at(self.mountpoint) is not None
        if is_mounted != wanted:
            words = "mount my-dataset ~/images" if wanted else "umount ~/images"
            done = self.run(f"mkdir -p ~/images; lightlyfs {words}")
            assert done.returncode == 0 or not wanted, done.stderr


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """Somebody new, with a few files of their own."""
    need_fuse("3")
    home = tmp_path / "home"
    for name in ("served/cars", "home/new-images", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "served/cars/red.jpg").write_bytes(jpeg(1))
    (home / "new-images/b.jpg").write_bytes(jpeg(2))
    (home / "new.jpg").write_bytes(jpeg(3))
    program = tmp_path / "bin/lightlyfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lightlyfs "$@"\n')
    program.chmod(0o755)
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="my-dataset")) as server:
        environ = environment(server, tmp_path / "cache") | {"HOME": str(home), "TMPDIR": str(tmp_path)}
        environ["PATH"] = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        someone = User(home, environ)
        yield someone
        someone.mount(False)
        if mountpoints.mount_at(someone.mountpoint) is not None:
            mountpoints.unmount(someone.mountpoint, lazy=True)


@pytest.mark.parametrize("path", WITH_LINES, ids=lambda path: path.name)
def test_every_line_of_a_block_works(user: User, path: Path) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed; install it with: apt-get install rsync")
    failed = []
    for block in lines_to_run(path).blocks:
        user.mount(not any(line.startswith("lightlyfs mount") for line in block))
        user.mountpoint.mkdir(exist_ok=True)
        if path.name == "uploads.md":
            user.run("echo hello | tee ~/images/notes.txt > ~/images/draft.txt")
        for line in block:
            if line.startswith("lightlyfs uploads discard"):
                user.mount(False)
            done = user.run(line)
            # the tests of doctor say what it finds; here it may miss what this machine lacks
            if done.returncode and line != "lightlyfs doctor":
                failed.append(f"{line}: {done.stdout}{done.stderr}")
    assert failed == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_the_python_of_a_document_is_python(path: Path) -> None:
    for code in python_blocks(path):
        compile(code, path.name, "exec")
