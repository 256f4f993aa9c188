"""What is owed to the server, seen and handled from the command line, with and without a mount."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from shared_mount import REPLACED, jpeg
from test_writing import stored
from trees import MountedTree, environment, lightlyfs, lightlyfs_here, need_fuse, start_mount, wait_until

from lightlyfs import mountpoints
from lightlyfs.testing import LocalServer, ServerOptions, Status

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
        return lightlyfs_here(*words, environ=self.environ).stdout


@pytest.fixture
def machine(own_server: LocalServer, tmp_path: Path) -> Machine:
    """A machine on which uploads are refused for now."""
    need_fuse("3")
    own_server.faults.add(Status(status=403, target="withWriteUrls"))
    return Machine(own_server, tmp_path)


def leave_owed(machine: Machine, *, refused: bool = False) -> None:
    """A mount has come and gone, and left one owed and one scratch file.

    A refusal takes seconds, for it is doubted; without it the mount is killed before that.
    """
    tree = machine.mount("mnt", *([] if refused else ["--write-back"]))
    with pytest.raises(PermissionError) if refused else nullcontext():
        (tree.mountpoint / "owed.jpg").write_bytes(b"owed")
    (tree.mountpoint / "x.tmp").write_bytes(b"scratch")
    if refused:
        tree.end()
        return
    tree.ended = True
    tree.process.kill()
    tree.process.wait()
    mountpoints.unmount(tree.mountpoint, lazy=True)


def test_what_is_owed_is_listed_without_a_mount(machine: Machine) -> None:
    leave_owed(machine, refused=True)

    lines = sorted(machine.run("uploads", "list").splitlines())

    assert len(lines) == 2
    name, state, size, age, dataset, server = lines[0].split("\t")
    assert (name, size, dataset) == ("owed.jpg", "4", machine.server.dataset_id)
    assert state.startswith("pending: ")
    assert age.endswith(" s")
    assert machine.server.url.endswith(server.replace("_", ":"))
    assert lines[1].split("\t")[:3] == ["x.tmp", "local", "7"]


def test_the_age_of_a_file_is_not_that_of_the_image_it_is_a_copy_of(machine: Machine, tmp_path: Path) -> None:
    original = tmp_path / "old.jpg"
    original.write_bytes(b"image")
    os.utime(original, (10**9, 10**9))
    tree = machine.mount("mnt")
    try:
        copy = tree.mountpoint / "copy.jpg"
        with pytest.raises(PermissionError):
            copy.write_bytes(original.read_bytes())
        shutil.copystat(original, copy)

        (owed,) = json.loads(machine.run("uploads", "list", "--json"))
    finally:
        tree.end()

    assert copy.name == owed["path"]
    assert owed["age_s"] < 100


def test_the_list_as_json_has_all_that_programs_need(machine: Machine) -> None:
    leave_owed(machine, refused=True)

    owed, scratch = sorted(json.loads(machine.run("uploads", "list", "--json")), key=lambda one: one["path"])

    assert (owed["path"], owed["state"], owed["size"], owed["owed"]) == ("owed.jpg", "pending", 4, True)
    assert "403" in owed["error"]
    assert (scratch["path"], scratch["state"], scratch["size"], scratch["owed"]) == (
        "x.tmp",
        "local",
        7,
        False,
    )
    for values in (owed, scratch):
        assert values["dataset"] == machine.server.dataset_id
        assert values["in_use"] is False
        assert 0 <= values["age_s"] < 100
    assert json.loads(machine.run("uploads", "list", "--json", "--dataset", "0" * 24)) == []


def test_a_list_fails_where_one_of_several_journals_cannot_be_read(machine: Machine) -> None:
    leave_owed(machine)
    (journal,) = Path(machine.environ["XDG_STATE_HOME"]).rglob("journal.db")
    ours = next(path for path in journal.parents if path.name == machine.server.dataset_id)
    other = shutil.copytree(ours, ours.with_name("0" * 24)) / journal.relative_to(ours)
    other.write_bytes(b"no database" * 100)

    done = lightlyfs_here("uploads", "list", environ=machine.environ, check=False)

    assert done.returncode == 1
    assert "owed.jpg" in done.stdout
    assert f"{other} cannot be read" in done.stderr


def test_a_mount_with_a_cache_directory_elsewhere_is_found_by_a_bare_list(
    machine: Machine, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "else where"
    for directory in (elsewhere, tmp_path / "unused"):
        tree = machine.mount("mnt", f"--cache-dir={directory}")
        with pytest.raises(PermissionError):
            (tree.mountpoint / f"{directory.name}.jpg").write_bytes(b"owed")
        running = [one["in_use"] for one in json.loads(machine.run("uploads", "list", "--json"))]
        assert running.count(True) == 1
        tree.end()

    names = sorted(line.split("\t")[0] for line in machine.run("uploads", "list").splitlines())
    assert names == ["else where.jpg", "unused.jpg"]
    only = machine.run("uploads", "list", "--cache-dir", str(elsewhere)).splitlines()
    assert [line.split("\t")[0] for line in only] == ["else where.jpg"]
    file = Path(machine.environ["XDG_CONFIG_HOME"]) / "lightlyfs/config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'[profiles.work]\ncache_dir = "{elsewhere}"\n')
    (found,) = json.loads(machine.run("uploads", "list", "--profile", "work", "--json"))
    assert found["path"] == "else where.jpg"
    assert str(elsewhere) in machine.run("cache", "show", "--profile", "work")
    machine.run("uploads", "discard", "--yes", "unused.jpg")
    machine.run("uploads", "export", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").rglob("*.jpg")] == ["else where.jpg"]
    elsewhere.rename(tmp_path / "gone")
    assert machine.run("uploads", "list") == ""


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

    assert "1 file is not on the server yet" in tree.log.read_text()
    assert stored(own_server) == {}


def test_retry_reaches_the_mount_that_runs(machine: Machine, own_server: LocalServer) -> None:
    tree = machine.mount("mnt")
    try:
        with pytest.raises(PermissionError):
            (tree.mountpoint / "owed.jpg").write_bytes(b"owed")
        own_server.faults.clear()

        assert "1 file is tried again" in machine.run("uploads", "retry")

        wait_until(lambda: stored(own_server) == {"owed.jpg": b"owed"}, 20)
    finally:
        tree.end()


def test_export_copies_and_discard_forgets(machine: Machine, own_server: LocalServer, tmp_path: Path) -> None:
    leave_owed(machine)

    machine.run("uploads", "export", str(tmp_path / "out"))
    told = machine.run("uploads", "discard", "--yes", "owed.jpg")

    assert told.startswith("owed.jpg: pending, 4 bytes")
    assert told.endswith("1 file discarded\n")
    assert (tmp_path / "out" / own_server.dataset_id / "owed.jpg").read_bytes() == b"owed"
    assert machine.run("uploads", "list").startswith("x.tmp\tlocal\t7\t")
    machine.run("uploads", "discard", "--all", "--yes", "--dataset", own_server.dataset_id)
    assert machine.run("uploads", "list") == ""


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("owed.jpg",), "--yes is needed"),
        (("--all",), "--all needs --dataset"),
        ((), "name the files to discard"),
        (("--yes", "owed.jpg", "none.jpg"), "there is no local file of this name: none.jpg"),
    ],
)
def test_discard_deletes_nothing_that_was_not_asked_for_in_so_many_words(
    machine: Machine, words: tuple[str, ...], why: str
) -> None:
    leave_owed(machine)
    before = machine.run("uploads", "list", "--json", "--dataset", machine.server.dataset_id)

    done = lightlyfs("uploads", "discard", *words, environ=machine.environ, check=False)

    assert done.returncode != 0
    assert why in done.stderr
    after = machine.run("uploads", "list", "--json", "--dataset", machine.server.dataset_id)
    assert [one["path"] for one in json.loads(after)] == [one["path"] for one in json.loads(before)]


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[LocalServer]:
    """Another dataset, which is also used from this machine, and refuses uploads too."""
    folder = tmp_path / "other"
    folder.mkdir()
    with LocalServer(ServerOptions(source=folder, dataset_name="other")) as running:
        running.faults.add(Status(status=403, target="withWriteUrls"))
        yield running


def test_a_name_that_is_owed_to_two_datasets_has_to_be_told_apart(
    machine: Machine, other_server: LocalServer, tmp_path: Path
) -> None:
    leave_owed(machine)
    leave_owed(Machine(other_server, tmp_path))
    datasets = sorted([machine.server.dataset_id, other_server.dataset_id])

    done = lightlyfs("uploads", "discard", "--yes", "owed.jpg", environ=machine.environ, check=False)

    assert done.returncode != 0
    assert f"owed.jpg is in several datasets; choose one with --dataset {datasets[0]}" in done.stderr
    assert len(machine.run("uploads", "list").splitlines()) == 4
    machine.run("uploads", "discard", "--yes", "owed.jpg", "--dataset", other_server.dataset_id)
    left = json.loads(machine.run("uploads", "list", "--json"))
    assert sorted((one["path"], one["dataset"]) for one in left) == sorted(
        [("owed.jpg", machine.server.dataset_id), *(("x.tmp", dataset) for dataset in datasets)]
    )
    machine.run("uploads", "export", str(tmp_path / "out"), "--dataset", machine.server.dataset_id)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [machine.server.dataset_id]


def test_send_makes_a_local_file_a_sample(machine: Machine, own_server: LocalServer) -> None:
    own_server.faults.clear()
    tree = machine.mount("mnt", "--upload", "images")
    try:
        tree.write("notes.txt", b"my notes")
        tree.write("d/list.csv", b"a,b")
        tree.write("empty.txt", b"")
        assert stored(own_server) == {}

        told = machine.run(
            "uploads", "send", str(tree.mountpoint / "notes.txt"), str(tree.mountpoint / "d/list.csv")
        )

        assert told == "2 files sent\n"
        assert stored(own_server) == {"notes.txt": b"my notes", "d/list.csv": b"a,b"}
        assert tree.xattr("notes.txt", "user.lightly.upload") == b"uploaded"
        assert tree.read("notes.txt") == b"my notes"
        with pytest.raises(PermissionError):
            (tree.mountpoint / "notes.txt").unlink()
        for name, why in [
            ("notes.txt", "server"),
            ("none.txt", "there is no local file of this name"),
            ("empty.txt", "no content of its own"),
        ]:
            words = ("uploads", "send", str(tree.mountpoint / name))
            done = lightlyfs(*words, environ=machine.environ, check=False)
            assert done.returncode != 0
            assert why in done.stderr
            assert "1 file not sent, and still here" in done.stderr
        tree.refresh()
        assert tree.names() == ["d", "empty.txt", "notes.txt"]
    finally:
        tree.end()
    assert [line.split("\t")[0] for line in machine.run("uploads", "list").splitlines()] == ["empty.txt"]


def test_samples_that_were_replaced_and_cannot_be_deleted_are_listed(
    machine: Machine, own_server: LocalServer
) -> None:
    own_server.faults.clear()
    own_server.add_sample("old.jpg", jpeg(1))
    tree = machine.mount("mnt", "--upload", "images", "--allow-overwrite")
    try:
        tree.write("new.jpg", jpeg(2))
        tree.rename("new.jpg", "old.jpg")
        assert tree.names() == ["old.jpg"]
        assert tree.read("old.jpg") == jpeg(2)
        assert "1 replaced sample hidden" in tree.run("status", str(tree.mountpoint)).stdout
    finally:
        tree.end()

    (away,) = [name for name in stored(own_server) if name.startswith(REPLACED)]
    (line,) = machine.run("uploads", "list").splitlines()
    assert line.startswith(f"new.jpg\tleftover: a sample that cannot be deleted, hidden as {away}\t")
    (values,) = json.loads(machine.run("uploads", "list", "--json"))
    assert (values["state"], values["owed"]) == ("leftover", False)
    done = lightlyfs("uploads", "discard", "--yes", "new.jpg", environ=machine.environ, check=False)
    assert done.returncode != 0
    assert "cannot delete samples" in done.stderr


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
    assert "there is no local file of this name: none.jpg" in done.stderr


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

    assert done.stderr == "lightlyfs: on this machine only: 1 local file: x.tmp\n"


def test_umount_fails_while_something_is_owed_and_names_the_command(machine: Machine) -> None:
    mountpoint, cache = machine.directory / "bg", machine.directory / "the cache"
    mountpoint.mkdir()
    machine.run("mount", machine.server.dataset_id, str(mountpoint), f"--cache-dir={cache}")
    with pytest.raises(PermissionError):
        (mountpoint / "owed.jpg").write_bytes(b"owed")
    (mountpoint / "x.tmp").write_bytes(b"scratch")

    done = lightlyfs("umount", str(mountpoint), environ=machine.environ, check=False)

    assert done.returncode == 1
    assert "on this machine only: 1 local file: x.tmp" in done.stderr
    assert "  owed.jpg: pending (" in done.stderr
    assert f"To see them: lightlyfs uploads list --cache-dir '{cache}'" in done.stderr
