"""The desktop's thumbnail cache, filled for programs that show pictures, and for no others."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from PIL import Image
from trees import MountedTree, environment, mounted, soon, start_mount, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

# names that programs spell differently as URIs are among them
NAMES = ["a b.jpg", "ü.jpg", "[x];y.jpg", "#%.jpg", *(f"{number:02}.jpg" for number in range(20))]
AS_A_FILE_MANAGER = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(15, sys.argv[2].encode(), 0, 0, 0) == 0
os.listdir(sys.argv[1])
"""


def picture(format_: str, side: int) -> bytes:
    """A picture that does not compress well."""
    out = io.BytesIO()
    Image.effect_noise((side, side), 80).convert("RGB").save(out, format_)
    return out.getvalue()


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """Pictures of 500 KB or so, each with a thumbnail."""
    original, thumbnail = picture("JPEG", 1200), picture("WEBP", 128)
    for name in NAMES:
        sample_id = own_server.add_sample(f"shown/{name}", original)
        samples = f"{own_server.url}/v1/datasets/{own_server.dataset_id}/samples/{sample_id}"
        params = {"token": own_server.token, "isThumbnail": "true"}
        url = requests.get(f"{samples}/writeurl", params=params, timeout=5).json()
        requests.put(url, data=thumbnail, timeout=5).raise_for_status()
    return own_server


@pytest.fixture
def tree(server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    with mounted(server, tmp_path / "tree") as made:
        server.stats.reset()
        yield made


def list_as(program: str, directory: Path) -> None:
    """List a directory from a process of this name."""
    subprocess.run([sys.executable, "-c", AS_A_FILE_MANAGER, str(directory), program], check=True)


def entries(tree: MountedTree, folder: str = "normal") -> dict[str, Path]:
    """The entries of a size, by URI."""
    found = {}
    for path in Path(tree.environ["XDG_CACHE_HOME"], "thumbnails", folder).glob("*.png"):
        with Image.open(path) as image:
            found[str(image.info["Thumb::URI"])] = path
    return found


def glib_uri(path: Path) -> str:
    """The URI as GLib has it."""
    done = subprocess.run(["gio", "info", str(path)], capture_output=True, text=True, check=True)
    return next(line.split(" ", 1)[1] for line in done.stdout.splitlines() if line.startswith("uri:"))


def test_a_folder_that_a_file_manager_opens_is_filled_without_an_image(
    server: LocalServer, tree: MountedTree
) -> None:
    list_as("thunar", tree.mountpoint / "shown")
    uris = {name: glib_uri(tree.mountpoint / "shown" / name) for name in NAMES}
    wait_until(lambda: set(uris.values()) <= set(entries(tree)), 20)
    wait_until(lambda: set(uris.values()) <= set(entries(tree, "large")), 20)

    for name, uri in uris.items():
        path = entries(tree)[uri]
        assert path.name == hashlib.md5(uri.encode()).hexdigest() + ".png"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with Image.open(path) as image:
            assert image.info["Thumb::MTime"] == str(tree.stat(f"shown/{name}").mtime)
            assert max(image.size) <= 128
    # KDE leaves some characters bare
    assert any(uri.endswith("[x];y.jpg") for uri in entries(tree))
    originals = sum(os.path.getsize(tree.mountpoint / "shown" / name) for name in NAMES)
    assert server.stats.snapshot()["bytes_sent"] < originals / 20


def test_the_mount_of_a_folder_is_filled_under_its_own_paths(server: LocalServer, tmp_path: Path) -> None:
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environ = environment(server, tmp_path / "cache")
    options = ("--read-only", "--exclude", "0?.jpg")
    tree = start_mount(f"{server.dataset_id}/shown", mountpoint, environ, tmp_path / "mount.log", *options)
    try:
        list_as("thunar", mountpoint)
        shown = {path.as_uri() for path in mountpoint.iterdir()}
        wait_until(lambda: len(entries(tree)) >= len(shown), 20)
        assert (mountpoint / "19.jpg").as_uri() in shown & set(entries(tree))
        assert not [uri for uri in entries(tree) if uri.endswith(tuple(f"/0{n}.jpg" for n in range(10)))]
    finally:
        tree.end()


def test_nobody_else_causes_a_request(server: LocalServer, tree: MountedTree) -> None:
    list_as("ls", tree.mountpoint / "shown")
    list_as("thunar", tree.mountpoint)
    list_as("thunar", tree.mountpoint / "shown")
    wait_until(lambda: len(entries(tree)) >= len(NAMES), 20)
    requests_before = server.stats.total()
    # a second look finds what is there
    list_as("thunar", tree.mountpoint / "shown")
    list_as("ls", tree.mountpoint / "shown")
    assert server.stats.total() == requests_before


def test_an_entry_of_an_older_picture_goes_in_all_sizes(server: LocalServer, tree: MountedTree) -> None:
    list_as("thunar", tree.mountpoint / "shown")
    uri = glib_uri(tree.mountpoint / "shown/00.jpg")
    wait_until(lambda: uri in entries(tree) and uri in entries(tree, "large"), 20)
    stale = Path(tree.environ["XDG_CACHE_HOME"], "thumbnails", "x-large", entries(tree)[uri].name)
    stale.parent.mkdir()
    stale.write_bytes(entries(tree)[uri].read_bytes())

    (document,) = [one for one in server.samples() if one["fileName"] == "shown/00.jpg"]
    url = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{document['id']}"
    requests.put(url, params={"token": server.token}, json={"exif": {"a": 1}}, timeout=5).raise_for_status()
    if server.sample(document["id"])["lastModifiedAt"] // 1000 == document["lastModifiedAt"] // 1000:
        body = {"metaData": {"sizeInBytes": 1}}
        requests.put(url, params={"token": server.token}, json=body, timeout=5).raise_for_status()
    tree.refresh()

    soon(lambda: uri not in entries(tree) and uri not in entries(tree, "large") and not stale.exists())


@pytest.mark.parametrize("mode", ["on-demand", "off"])
def test_it_can_be_turned_off(server: LocalServer, tmp_path: Path, mode: str) -> None:
    with mounted(server, tmp_path / "tree", "3", "--thumbnails", mode) as tree:
        server.stats.reset()
        list_as("thunar", tree.mountpoint / "shown")
        if mode == "off":
            with pytest.raises(OSError, match="No data"):
                tree.xattr("shown/00.jpg", "user.lightly.thumbnail")
        else:
            assert tree.xattr("shown/00.jpg", "user.lightly.thumbnail").startswith(b"\x89PNG")
        assert entries(tree) == {}


def test_without_thumbnails_on_the_server_pictures_are_made_of_cached_images_only(
    own_server: LocalServer, tmp_path: Path
) -> None:
    data = picture("JPEG", 1200)
    for number in range(10):
        own_server.add_sample(f"{number}.jpg", data)
    with mounted(own_server, tmp_path / "tree") as tree:
        assert tree.read("3.jpg") == data
        own_server.stats.reset()
        list_as("thunar", tree.mountpoint)
        wait_until(lambda: len(entries(tree)) == 1, 20)
        assert list(entries(tree)) == [glib_uri(tree.mountpoint / "3.jpg")]
        # what is said to be a thumbnail is looked at as far as one may be large
        assert own_server.stats.snapshot()["bytes_sent"] < 10 * (260 << 10)


def test_a_thumbnail_is_fetched_once(server: LocalServer, tmp_path: Path) -> None:
    for _ in range(2):
        with mounted(server, tmp_path / "tree") as tree:
            for _ in range(3):
                assert tree.xattr("shown/00.jpg", "user.lightly.thumbnail").startswith(b"\x89PNG")
    assert server.stats.count("readurl") == 1
