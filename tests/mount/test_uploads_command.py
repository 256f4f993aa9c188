"""What is owed to the server, seen and handled from the command line, with and without a mount."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_writing import stored
from trees import MountedTree, environment, lightlyfs, need_fuse, start_mount, wait_until

from lightlyfs.localserver import LocalServer, Status

pytestmark = pytest.mark.fuse


class Machine:
    """One user's machine: an environment, and mounts of one dataset on it."""

    def __init__(self, server: LocalServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.environ = environment(server, directory / "cache")

    def mount(self, name: str, *options: str) -> MountedTree:
        """Mount on a directory of this name."""
        mountpoint = self.directory / name
        mountpoint.mkdir(exist_ok=True)
        return start_mount(
            self.server.dataset_id, mountpoint, self.environ, self.directory / f"{name}.log", *options
        )

    def run(self, *words: str) -> str:
        """What a command prints."""
        return lightlyfs(*words, environ=self.environ).stdout


@pytest.fixture
def machine(own_server: LocalServer, tmp_path: Path) -> Machine:
    """A machine on which uploads are refused for now."""
    need_fuse("3")
    own_server.faults.add(Status(status=403, target="withWriteUrls"))
    return Machine(own_server, tmp_path)


def leave_owed(machine: Machine) -> None:
    """A mount has come and gone, and left one owed and one scratch file."""
    tree = machine.mount("mnt")
    with pytest.raises(PermissionError):
        (tree.mountpoint / "owed.jpg").write_bytes(b"owed")
    (tree.mountpoint / "x.tmp").write_bytes(b"scratch")
    tree.end()


def test_what_is_owed_is_listed_without_a_mount(machine: Machine) -> None:
    leave_owed(machine)

    lines = sorted(machine.run("uploads", "list").splitlines())

    assert len(lines) == 2
    name, state, size = lines[0].split("\t")
    assert (name, size) == ("owed.jpg", "4")
    assert state.startswith("failed: ")
    assert lines[1] == "x.tmp\tlocal\t7"


def test_the_next_mount_goes_on_with_it(machine: Machine, own_server: LocalServer) -> None:
    leave_owed(machine)
    own_server.faults.clear()

    tree = machine.mount("mnt")
    try:
        wait_until(lambda: stored(own_server) == {"owed.jpg": b"owed"}, 20)
        assert (tree.mountpoint / "x.tmp").read_bytes() == b"scratch"
    finally:
        tree.end()


def test_a_read_only_mount_says_what_is_owed_and_leaves_it(machine: Machine, own_server: LocalServer) -> None:
    leave_owed(machine)
    own_server.faults.clear()

    tree = machine.mount("mnt", "--read-only")
    tree.end()

    assert "2 files are not on the server yet" in tree.log.read_text()
    assert stored(own_server) == {}


def test_retry_reaches_the_mount_that_runs(machine: Machine, own_server: LocalServer) -> None:
    tree = machine.mount("mnt")
    try:
        with pytest.raises(PermissionError):
            (tree.mountpoint / "owed.jpg").write_bytes(b"owed")
        own_server.faults.clear()

        assert "1 files are tried again" in machine.run("uploads", "retry")

        wait_until(lambda: stored(own_server) == {"owed.jpg": b"owed"}, 20)
    finally:
        tree.end()


def test_export_copies_and_discard_forgets(machine: Machine, own_server: LocalServer, tmp_path: Path) -> None:
    leave_owed(machine)

    machine.run("uploads", "export", str(tmp_path / "out"))
    machine.run("uploads", "discard", "owed.jpg")

    assert (tmp_path / "out" / own_server.dataset_id / "owed.jpg").read_bytes() == b"owed"
    assert machine.run("uploads", "list") == "x.tmp\tlocal\t7\n"
    machine.run("uploads", "discard", "--all")
    assert machine.run("uploads", "list") == ""


def test_discard_leaves_a_mount_that_runs_alone(machine: Machine) -> None:
    tree = machine.mount("mnt")
    try:
        (tree.mountpoint / "x.tmp").write_bytes(b"scratch")
        done = lightlyfs("uploads", "discard", "x.tmp", environ=machine.environ, check=False)
    finally:
        tree.end()

    assert done.returncode == 1
    assert "unmount it first" in done.stderr
    assert machine.run("uploads", "list").startswith("x.tmp")


def test_a_name_that_is_not_owed_is_told(machine: Machine) -> None:
    done = lightlyfs("uploads", "discard", "none.jpg", environ=machine.environ, check=False)

    assert done.returncode == 1
    assert "no file of this name is owed: none.jpg" in done.stderr


def test_two_mounts_owe_apart_and_a_later_one_takes_both_over(
    machine: Machine, own_server: LocalServer
) -> None:
    one, two = machine.mount("one"), machine.mount("two")
    for number, tree in enumerate([one, two]):
        with pytest.raises(PermissionError):
            (tree.mountpoint / f"{number}.jpg").write_bytes(os.fsencode(str(number)))
    one.end()
    two.end()
    own_server.faults.clear()

    tree = machine.mount("one")
    try:
        wait_until(lambda: stored(own_server) == {"0.jpg": b"0", "1.jpg": b"1"}, 20)
    finally:
        tree.end()


def test_umount_tells_what_is_left(machine: Machine) -> None:
    mountpoint = machine.directory / "bg"
    mountpoint.mkdir()
    machine.run("mount", machine.server.dataset_id, str(mountpoint))
    (mountpoint / "x.tmp").write_bytes(b"scratch")

    done = lightlyfs("umount", str(mountpoint), environ=machine.environ)

    assert done.stderr.splitlines()[:2] == ["lightlyfs: 1 files are on this machine only:", "  x.tmp: local"]
