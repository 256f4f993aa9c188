"""What `stat` says where the sizes that the API lists are wrong, and when a content was changed."""

from __future__ import annotations

import io
import os
import random
import tarfile
import time
from pathlib import Path

import pytest
from trees import MountedTree, in_process, mounted

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

FILES, WRONG = 60, 13


def content(number: int) -> bytes:
    return random.Random(number).randbytes(20_000 + number)


@pytest.fixture
def lying(own_server: LocalServer) -> LocalServer:
    """Files of which some have less or more bytes than the API says."""
    wrong = set(random.Random(1).sample(range(1, FILES), WRONG - 1)) | {0}
    for number in range(FILES):
        data = content(number)
        hint = len(data) + (random.Random(number).choice([-5_000, 7_000]) if number in wrong else 0)
        own_server.add_sample(f"d/{number:02d}.jpg", data, {"metaData": {"sizeInBytes": hint}})
    return own_server


def by_stat(path: Path) -> bytes:
    """A file as programs read it that ask for the size first, of the path, and read so much."""
    size = os.stat(path).st_size
    with open(path, "rb", buffering=0) as file:
        return file.read(size)


@pytest.mark.parametrize("version", ["3", "2"])
@pytest.mark.parametrize("listed", [False, True], ids=["", "after ls -l"])
def test_after_one_wrong_hint_a_stat_tells_the_truth(
    lying: LocalServer, tmp_path: Path, version: str, listed: bool
) -> None:
    with mounted(lying, tmp_path / "tree", version) as tree:
        folder = tree.mountpoint / "d"
        if listed:
            assert len([entry.stat() for entry in os.scandir(folder)]) == FILES
        assert (folder / "00.jpg").read_bytes() == content(0)

        assert [by_stat(folder / f"{number:02d}.jpg") for number in range(FILES)] == list(
            map(content, range(FILES))
        )


def test_a_tar_of_all_is_whole_and_what_it_costs(lying: LocalServer, tmp_path: Path) -> None:
    with mounted(lying, tmp_path / "tree") as tree:
        folder = tree.mountpoint / "d"
        (folder / "00.jpg").read_bytes()
        lying.stats.reset()
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            tar.add(folder, "d")
        packed.seek(0)
        with tarfile.open(fileobj=packed) as tar:
            found = {name: tar.extractfile(name).read() for name in tar.getnames() if name != "d"}  # type: ignore[union-attr]

    assert found == {f"d/{number:02d}.jpg": content(number) for number in range(FILES)}
    requests = lying.stats.snapshot()["requests"]
    # one for the size and one for the content of each; a hint that turns out wrong costs up to two more
    assert sum(requests["readurl"].values()) <= FILES + 2 * WRONG
    assert sum(requests["storage.get"].values()) <= 2 * FILES + 2 * WRONG


def test_the_next_mount_knows_that_hints_are_wrong(lying: LocalServer, tmp_path: Path) -> None:
    for _ in range(2):
        with mounted(lying, tmp_path / "tree") as tree:
            folder = tree.mountpoint / "d"
            if not _:
                (folder / "00.jpg").read_bytes()
            else:
                sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder)}
    assert sizes == {f"{number:02d}.jpg": len(content(number)) for number in range(FILES)}


def test_where_storage_cannot_be_asked_a_guess_is_shown(lying: LocalServer, tmp_path: Path) -> None:
    with in_process(lying, tmp_path / "tree") as tree:
        tree.names("d")
        tree.read("d/00.jpg")
        hint = next(one for one in lying.samples() if one["fileName"] == "d/59.jpg")["metaData"][
            "sizeInBytes"
        ]
        tree.parts.closing.set()  # ends every wait at once
        assert tree.stat("d/59.jpg").size == hint


def set_back(tree: MountedTree, path: Path, data: bytes) -> None:
    """Change a file, and set its time back, as `exiftool -P` and `rsync -t` do."""
    before = os.stat(path)
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_time_of_change_moves_with_the_content(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.add_sample("a.jpg", b"first")
    with mounted(own_server, tmp_path / "tree", "3", "--allow-overwrite") as tree:
        path = tree.mountpoint / "a.jpg"
        mtime = os.stat(path).st_mtime_ns
        seen = [os.stat(path).st_ctime_ns]
        for round_ in range(3):
            set_back(tree, path, b"content %d" % round_)
            found = os.stat(path)
            assert found.st_mtime_ns // 1_000_000_000 == mtime // 1_000_000_000
            seen.append(found.st_ctime_ns)
        tree.refresh()
        assert os.stat(path).st_ctime_ns == seen[-1]
    assert seen == sorted(set(seen))
    assert seen[-1] > time.time_ns() - 60_000_000_000

    # kept over a remount
    with mounted(own_server, tmp_path / "tree", "3", "--allow-overwrite") as tree:
        assert os.stat(tree.mountpoint / "a.jpg").st_ctime_ns == seen[-1]
