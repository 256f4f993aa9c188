"""A mount of one tag's samples."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from trees import environment, lightlyfs, mounted, refused, soon

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse


@pytest.fixture
def ids(own_server: LocalServer) -> list[str]:
    """Six samples in two directories."""
    return [
        own_server.add_sample(f"{number % 2}/{number}.jpg", f"image {number}".encode()) for number in range(6)
    ]


@pytest.fixture(autouse=True)
def tag_id(own_server: LocalServer, ids: list[str]) -> str:
    """The tag `picked` holds three of them."""
    return own_server.add_tag("picked", [ids[0], ids[1], ids[4]])


def test_a_tag_is_a_folder_of_its_samples(own_server: LocalServer, tmp_path: Path) -> None:
    with mounted(own_server, tmp_path / "tree", "3", "--tag", "picked") as tree:
        assert {path: tree.names(path) for path in ("", "0", "1")} == {
            "": ["0", "1"],
            "0": ["0.jpg", "4.jpg"],
            "1": ["1.jpg"],
        }
        assert tree.read("0/4.jpg") == b"image 4"
        with refused(errno.ENOENT):
            tree.stat("0/2.jpg")
        with refused(errno.EROFS):
            tree.write("0/new.jpg", b"new")


def test_a_tag_that_changes_shows_on_refresh(
    own_server: LocalServer, ids: list[str], tag_id: str, tmp_path: Path
) -> None:
    with mounted(own_server, tmp_path / "tree", "3", "--tag", "picked") as tree:
        assert tree.names("1") == ["1.jpg"]
        own_server.remove_tag(tag_id)
        own_server.add_tag("picked", [ids[3]])
        tree.refresh()
        soon(lambda: tree.names("1") == ["3.jpg"])


def test_the_catalogue_of_a_tag_is_its_own_and_contents_are_shared(
    own_server: LocalServer, tmp_path: Path
) -> None:
    directory = tmp_path / "tree"
    with mounted(own_server, directory) as tree:
        assert tree.read("0/0.jpg") == b"image 0"
    with mounted(own_server, directory, "3", "--tag", "picked") as tree:
        assert tree.names("0") == ["0.jpg", "4.jpg"]
        assert tree.read("0/0.jpg") == b"image 0"
    with mounted(own_server, directory) as tree:
        assert tree.names("0") == ["0.jpg", "2.jpg", "4.jpg"]


def test_a_tag_that_is_not_there_is_told_in_one_line(own_server: LocalServer, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environ = environment(own_server, tmp_path / "cache")
    done = lightlyfs(
        "mount", own_server.dataset_id, str(mountpoint), "--tag", "typo", environ=environ, check=False
    )
    assert done.returncode == 1
    assert "no tag 'typo'; there are:" in done.stderr
    assert "'picked'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
