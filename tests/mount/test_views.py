"""The unlisted folder `.lightlyfs/`: there by name, in no listing."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image
from trees import MountedTree, mounted, mounted_by_path, refused, soon

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse


def picture(colour: str, side: int = 300) -> bytes:
    """A small JPEG."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "JPEG")
    return out.getvalue()


@pytest.fixture
def ids(own_server: LocalServer) -> dict[str, str]:
    """Three pictures, two of them in a tag; ids by name."""
    names = {"top.jpg": "red", "cars/green/0.jpg": "green", "cars/blue.jpg": "blue"}
    ids = {name: own_server.add_sample(name, picture(colour)) for name, colour in names.items()}
    own_server.add_tag("best of", [ids["top.jpg"], ids["cars/green/0.jpg"]])
    return ids


@pytest.fixture(params=["read-write", "by-path"])
def tree(
    request: pytest.FixtureRequest, own_server: LocalServer, ids: dict[str, str], tmp_path: Path
) -> Iterator[MountedTree]:
    """A mount that hears of opens, and one that does not."""
    make = mounted if request.param == "read-write" else mounted_by_path
    with make(own_server, tmp_path / "tree") as made:
        yield made


def test_no_listing_shows_it(tree: MountedTree) -> None:
    assert tree.names() == ["cars", "top.jpg"]
    assert (tree.mountpoint / ".lightlyfs").is_dir()
    assert tree.names() == ["cars", "top.jpg"]
    found = subprocess.run(["find", str(tree.mountpoint)], capture_output=True, text=True, check=True).stdout
    assert ".lightlyfs" not in found
    assert tree.names(".lightlyfs") == [
        "by-id",
        "log",
        "metadata",
        "prefetch",
        "status.json",
        "tags",
        "thumbnails",
    ]


def test_the_status_is_that_of_the_command_and_is_made_anew(tree: MountedTree) -> None:
    shown = json.loads(tree.read(".lightlyfs/status.json"))
    assert shown["catalogue"]["samples"] == 3
    assert shown["pid"] == tree.process.pid
    before = shown["cache"]["hits"]
    tree.read("top.jpg")
    tree.refresh()

    def read_from_the_cache() -> bool:
        tree.read("top.jpg")  # from pages of the kernel, until it has dropped them
        return bool(json.loads(tree.read(".lightlyfs/status.json"))["cache"]["hits"] > before)

    soon(read_from_the_cache)


def test_metadata_are_what_the_api_gives(
    own_server: LocalServer, ids: dict[str, str], tree: MountedTree
) -> None:
    for name, sample_id in ids.items():
        url = f"{own_server.url}/v1/datasets/{own_server.dataset_id}/samples/{sample_id}"
        answer = requests.get(url, params={"token": own_server.token}, timeout=5)
        assert json.loads(tree.read(f".lightlyfs/metadata/{name}.json")) == answer.json()
        # whoever trusts the size gets all of it
        path = tree.mountpoint / f".lightlyfs/metadata/{name}.json"
        assert path.stat().st_size == len(path.read_bytes())
    assert tree.names(".lightlyfs/metadata") == ["cars", "top.jpg.json"]
    assert tree.names(".lightlyfs/metadata/cars") == ["blue.jpg.json", "green"]


def test_thumbnails_are_pictures_and_absent_ones_are_not_there(
    own_server: LocalServer, tree: MountedTree
) -> None:
    with Image.open(tree.mountpoint / ".lightlyfs/thumbnails/top.jpg") as image:
        assert image.format == "PNG"
        assert max(image.size) <= 256
    own_server.add_sample("nothing.jpg", None)
    tree.refresh()
    with refused(errno.ENOENT):
        tree.stat(".lightlyfs/thumbnails/nothing.jpg")
    assert tree.names(".lightlyfs/thumbnails/cars") == ["blue.jpg", "green"]


def test_an_uploaded_picture_has_its_thumbnail(own_server: LocalServer, tmp_path: Path) -> None:
    with mounted(own_server, tmp_path / "tree") as tree:
        tree.write("new.jpg", picture("yellow", 500))
        shown = tree.read(".lightlyfs/thumbnails/new.jpg")
        assert shown.startswith(b"\x89PNG")
        with Image.open(io.BytesIO(shown)) as image:
            assert max(image.size) <= 256


def test_an_id_is_a_link_to_its_sample(ids: dict[str, str], tree: MountedTree) -> None:
    for name, sample_id in ids.items():
        link = tree.mountpoint / ".lightlyfs/by-id" / sample_id
        assert link.resolve() == tree.mountpoint / name
        assert link.read_bytes() == tree.read(name)
    assert tree.names(".lightlyfs/by-id") == []
    for wrong in ("0" * 24, "nonsense"):
        with refused(errno.ENOENT):
            os.lstat(tree.mountpoint / ".lightlyfs/by-id" / wrong)


def test_a_tag_is_a_folder_of_links(own_server: LocalServer, ids: dict[str, str], tree: MountedTree) -> None:
    folder = tree.mountpoint / ".lightlyfs/tags/best of"
    assert {
        str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    } == {name: tree.read(name) for name in ("top.jpg", "cars/green/0.jpg")}
    assert (folder / "cars/green/0.jpg").is_symlink()
    with refused(errno.ENOENT):
        os.lstat(folder / "cars/blue.jpg")
    with refused(errno.ENOENT):
        os.lstat(tree.mountpoint / ".lightlyfs/tags/no such tag")
    own_server.add_tag("empty", [])
    tree.refresh()
    soon(lambda: "empty" in tree.names(".lightlyfs/tags"))
    with refused(errno.ENOENT):
        os.lstat(tree.mountpoint / ".lightlyfs/tags/empty/cars")


def test_the_log_is_there(tree: MountedTree) -> None:
    assert b"mounted on" in tree.read(".lightlyfs/log")


def test_nothing_in_it_can_be_changed(own_server: LocalServer, ids: dict[str, str], tmp_path: Path) -> None:
    with mounted(own_server, tmp_path / "tree", "3", "--allow-overwrite") as tree:
        for path in ("status.json", "log", "metadata/top.jpg.json", "thumbnails/top.jpg.png", "new"):
            with pytest.raises(OSError):  # noqa: PT011 - which one depends on what is there
                tree.write(f".lightlyfs/{path}", b"x")
        with pytest.raises(OSError):  # noqa: PT011
            tree.mkdir(".lightlyfs/new")
        with pytest.raises(OSError):  # noqa: PT011
            tree.rename("top.jpg", ".lightlyfs/top.jpg")
        with pytest.raises(OSError):  # noqa: PT011
            tree.unlink(".lightlyfs/log")
        assert tree.names() == ["cars", "top.jpg"]
    assert {document["fileName"] for document in own_server.samples()} == set(ids)


def test_a_sample_of_that_name_is_reachable(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.add_sample(".lightlyfs/status.json", b"a sample")
    with mounted(own_server, tmp_path / "tree") as tree:
        assert tree.names() == ["%2Elightlyfs"]
        assert tree.read("%2Elightlyfs/status.json") == b"a sample"
        assert b"catalogue" in tree.read(".lightlyfs/status.json")


@pytest.mark.parametrize("form", ["cars\nno such file\n/top.jpg", "\ufeff{root}/cars\r\n{root}/top.jpg\r\n"])
def test_paths_written_into_prefetch_are_fetched(
    own_server: LocalServer, ids: dict[str, str], tmp_path: Path, form: str
) -> None:
    with mounted(own_server, tmp_path / "tree") as tree:
        names = form.format(root=tree.mountpoint)
        subprocess.run(
            ["sh", "-c", 'echo "$1" > .lightlyfs/prefetch', "sh", names], cwd=tree.mountpoint, check=True
        )
        fetched = sum(len(own_server.object_bytes(one) or b"") for one in ids.values())
        soon(lambda: json.loads(tree.read(".lightlyfs/status.json"))["cache"]["bytes"] == fetched)
        own_server.stats.reset()
        assert all(tree.read(name) == own_server.object_bytes(one) for name, one in ids.items())
        assert own_server.stats.total() == 0
