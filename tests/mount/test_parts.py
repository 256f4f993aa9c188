"""A mount of a folder of a dataset, and mounts that show some of the samples."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest
from shared_mount import jpeg
from trees import MountedTree, environment, lightlyfs, lightlyfs_here, mounted, refused, soon, start_mount

from lightlyfs import library
from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

NAMES = ("cars/red/1.jpg", "cars/red/2.png", "cars/3.jpg", "boats/4.jpg", "5.jpg")


@pytest.fixture
def ids(own_server: LocalServer) -> dict[str, str]:
    """Samples in three folders."""
    return {name: own_server.add_sample(name, f"image {name}".encode()) for name in NAMES}


def mount_part(server: LocalServer, directory: Path, part: str, *options: str) -> MountedTree:
    """A mount of a folder, which is to be ended."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(parents=True, exist_ok=True)
    environ = environment(server, directory / "cache")
    source = f"{server.dataset_id}/{part}"
    return start_mount(source, mountpoint, environ, directory / "mount.log", *options)


def run(tree: MountedTree, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command in the environment of a mount."""
    return lightlyfs_here(*words, environ=tree.environ, check=check)


@pytest.mark.parametrize("version", ["3", "2"])
def test_a_folder_of_a_dataset_is_mounted_as_the_root(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path, version: str
) -> None:
    own_server.add_tag("picked", [ids["cars/red/1.jpg"], ids["boats/4.jpg"]])
    tree = mount_part(own_server, tmp_path, "cars/", f"--fuse={version}")
    try:
        assert tree.names() == ["3.jpg", "red"]
        assert tree.read("red/1.jpg") == b"image cars/red/1.jpg"
        assert tree.xattr("red/1.jpg", "user.lightly.file_name") == b"cars/red/1.jpg"
        with refused(errno.ENOENT):
            tree.read("cars/3.jpg")

        tree.write("red/new.jpg", jpeg(1))
        tree.mkdir("blue")
        tree.rename("3.jpg", "blue/6.jpg")
        assert tree.names("red") == ["1.jpg", "2.png", "new.jpg"]
        names = {sample["fileName"] for sample in own_server.samples()}
        assert names == {*NAMES, "cars/red/new.jpg", "cars/blue/6.jpg"} - {"cars/3.jpg"}

        own_server.add_sample("cars/later.jpg", b"later")
        tree.refresh()
        soon(lambda: "later.jpg" in tree.names())

        views = tree.mountpoint / ".lightlyfs"
        assert os.readlink(views / "by-id" / ids["cars/red/1.jpg"]) == "../../red/1.jpg"
        assert (views / "tags" / "picked" / "red" / "1.jpg").read_bytes() == b"image cars/red/1.jpg"
        assert os.listdir(views / "tags" / "picked") == ["red"]
        document = json.loads((views / "metadata" / "red" / "1.jpg.json").read_text())
        assert document["fileName"] == "cars/red/1.jpg"
        with refused(errno.ENOENT):
            os.readlink(views / "by-id" / ids["boats/4.jpg"])
    finally:
        tree.end()


def test_commands_take_paths_below_the_mount_of_a_folder(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = mount_part(own_server, tmp_path, "cars", "--upload", "images")
    try:
        assert (
            f"({own_server.dataset_id}) at {own_server.url}, its folder cars"
            in run(tree, "status", str(tree.mountpoint / "red")).stdout
        )
        rows = json.loads(run(tree, "mounts", "--json").stdout)
        assert [row["dataset"] for row in rows if row["mountpoint"] == str(tree.mountpoint)] == ["own/cars"]
        assert run(tree, "warm", str(tree.mountpoint / "red")).stdout.startswith("2 files")
        failed = run(tree, "warm", str(tree.mountpoint / "none.jpg"), check=False)
        assert f"{tree.mountpoint}/none.jpg: " in failed.stderr
        tree.write("notes.txt", b"for here")
        for name, value in tree.environ.items():
            monkeypatch.setenv(name, value)
        with library.open_cached(tree.mountpoint / "red" / "1.jpg") as file:
            assert file.read() == b"image cars/red/1.jpg"
        with library.ahead([tree.mountpoint / "3.jpg"]):
            soon(
                lambda: json.loads(run(tree, "status", "--json", str(tree.mountpoint)).stdout)["ahead"][
                    "files"
                ]
            )
        assert tree.read("3.jpg") == b"image cars/3.jpg"
        (listed,) = json.loads(run(tree, "uploads", "list", "--json").stdout)
        assert listed["path"] == "cars/notes.txt"
        assert run(tree, "uploads", "send", str(tree.mountpoint / "notes.txt")).stdout == "1 file sent\n"
        assert "cars/notes.txt" in {sample["fileName"] for sample in own_server.samples()}
        refused_to = run(tree, "uploads", "send", str(tree.mountpoint / "none.txt"), check=False)
        assert f"{tree.mountpoint}/none.txt: there is no local file" in refused_to.stderr
    finally:
        tree.end()


def test_what_a_folder_s_mount_keeps_here_is_in_the_mount_of_all(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path
) -> None:
    tree = mount_part(own_server, tmp_path, "cars/red", "--upload", "images")
    try:
        assert tree.read("1.jpg") == b"image cars/red/1.jpg"
        tree.write("notes.txt", b"for here")
    finally:
        tree.end()
    with mounted(own_server, tmp_path) as whole:
        assert whole.names("cars/red") == ["1.jpg", "2.png", "notes.txt"]
        assert whole.read("cars/red/1.jpg") == b"image cars/red/1.jpg"
        assert "read-url" not in run(whole, "status", str(whole.mountpoint)).stdout


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("none", "own has no folder 'none'; `lightlyfs ls own` lists what it has"),
        ("cars/3.jpg", "'cars/3.jpg' is a file of own; mount the folder that it is in"),
        ("../x", "../x is no folder of a dataset; give its path as `lightlyfs ls` shows it"),
        (".lightlyfs/tags", ".lightlyfs/tags is no folder of a dataset"),
    ],
)
def test_what_is_no_folder_is_told_in_one_line(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path, part: str, told: str
) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environ = environment(own_server, tmp_path / "cache")
    done = lightlyfs("mount", f"own/{part}", str(mountpoint), environ=environ, check=False)
    assert done.returncode != 0
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(("patterns", "warns"), [(["cars"], True), (["cars", "*.png"], False)])
def test_patterns_that_fit_no_sample_are_told_when_it_is_mounted(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path, patterns: list[str], warns: bool
) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environ = environment(own_server, tmp_path / "cache")
    words = [word for pattern in patterns for word in ("--include", pattern)]
    said = lightlyfs("mount", own_server.dataset_id, str(mountpoint), *words, environ=environ).stderr
    lightlyfs("umount", str(mountpoint), environ=environ)
    assert ("no sample matches --include cars" in said) == warns


def test_only_the_samples_that_the_patterns_choose_are_shown(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path
) -> None:
    own_server.add_tag("all", list(ids.values()))
    options = ("--include", "*.jpg", "--exclude", "boats/*", "--exclude", "3.*", "--read-only")
    with mounted(own_server, tmp_path, "3", *options) as tree:
        assert {path: tree.names(path) for path in ("", "cars", "cars/red")} == {
            "": ["5.jpg", "cars"],
            "cars": ["red"],
            "cars/red": ["1.jpg"],
        }
        for hidden in ("cars/red/2.png", "cars/3.jpg", "boats", "boats/4.jpg"):
            with refused(errno.ENOENT):
                tree.stat(hidden)
        assert tree.read("cars/red/1.jpg") == b"image cars/red/1.jpg"
        assert run(tree, "warm", str(tree.mountpoint)).stdout.startswith("2 files")
        views = tree.mountpoint / ".lightlyfs"
        assert sorted(os.listdir(views / "tags" / "all")) == ["5.jpg", "cars"]
        with refused(errno.ENOENT):
            os.readlink(views / "by-id" / ids["boats/4.jpg"])
        shown = run(tree, "status", str(tree.mountpoint)).stdout
        assert "include *.jpg, exclude boats/*, 3.*" in shown
        assert "5 samples in 4 directories of the whole dataset, checked" in shown
    with mounted(own_server, tmp_path) as whole:
        assert whole.names("cars/red") == ["1.jpg", "2.png"]
        assert "5 samples in 4 directories, checked" in run(whole, "status", str(whole.mountpoint)).stdout


def test_a_name_that_would_vanish_is_refused_and_what_is_hidden_stays_where_it_is(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path
) -> None:
    with mounted(own_server, tmp_path, "3", "--upload", "images", "--include", "*.jpg") as tree:
        tree.write("cars/new.jpg", jpeg(1))
        with refused(errno.EPERM):
            tree.write("cars/new.png", b"it would not be shown")
        with refused(errno.EPERM):
            tree.rename("cars/3.jpg", "cars/3.png")
        tree.write("cars/notes.txt", b"stays here, so it is shown")
        tree.write("cars/.saving", jpeg(2))
        tree.rename("cars/.saving", "cars/saved.jpg")
        assert tree.names("cars") == ["3.jpg", "new.jpg", "notes.txt", "red", "saved.jpg"]
        with refused(errno.EPERM):
            tree.rename("cars", "vans")
        with refused(errno.EPERM):  # a sample, as ever
            tree.unlink("cars/red/1.jpg")
        tree.refresh()
        assert tree.names("cars") == ["3.jpg", "new.jpg", "notes.txt", "red", "saved.jpg"]
    names = {sample["fileName"] for sample in own_server.samples()}
    assert names == {*NAMES, "cars/new.jpg", "cars/saved.jpg"}


def test_a_folder_of_hidden_samples_is_not_empty(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.add_sample("a/hidden.png", b"png")
    with mounted(own_server, tmp_path, "3", "--include", "*.jpg") as tree:
        assert tree.names("a") == []
        with refused(errno.ENOTEMPTY):
            tree.rmdir("a")
