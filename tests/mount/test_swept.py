"""A cleaner empties the cache or the state directory under mounts: they go on, and name what is gone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from test_shared_mounts import truth, two_mounts
from trees import MountedTree, lightlyfs, mounted, start_mount, wait_until

from lightlyfs.testing import LocalServer, Status

pytestmark = pytest.mark.fuse

COUNT = 60


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """A server of sixty files."""
    for number in range(COUNT):
        own_server.add_sample(f"a/{number:02d}.jpg", os.urandom(30_000 + number))
    return own_server


def empty(directory: Path) -> None:
    """Delete what is in a directory, as `rm -rf directory/*` does."""
    for path in directory.iterdir():
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True) if not path.is_dir() else None


def whole(directory: Path) -> None:
    """Delete a directory."""
    shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(directory, ignore_errors=True)  # a file may have come meanwhile


def dataset_directory(tree: MountedTree) -> Path:
    """Where a mount keeps its cache."""
    return Path(status(tree)["cache"]["directory"])


def status(tree: MountedTree) -> dict:  # type: ignore[type-arg]
    answer: dict = json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)  # type: ignore[type-arg]
    return answer


def contents(tree: MountedTree) -> dict[str, bytes]:
    """Every file, by many readers at once."""
    names = tree.names("a")
    with ThreadPoolExecutor(16) as pool:
        return dict(zip(names, pool.map(lambda name: tree.read(f"a/{name}"), names), strict=True))


@pytest.mark.parametrize(("sweep", "options"), [(empty, []), (whole, ["--read-only"])])
def test_reads_go_on_when_the_cache_is_swept(
    server: LocalServer, tmp_path: Path, sweep: Callable[[Path], None], options: list[str]
) -> None:
    with mounted(server, tmp_path, "3", *options) as tree:
        found = dataset_directory(tree)
        some = tree.names("a")[: COUNT // 2]
        assert {name: tree.read(f"a/{name}") for name in some} == {
            name: data for name, data in truth(server).items() if name in some
        }
        sweep(found)

        assert contents(tree) == truth(server)
        server.add_sample("a/new.jpg", b"new")
        tree.refresh()
        assert contents(tree) == truth(server)
        now = status(tree)
        assert now["cache"]["bytes"] > 0
        assert {path.name for path in found.iterdir()} >= {"lock", "catalog.db", "blocks.db", "blocks"}


def test_mounts_that_share_a_swept_cache_share_the_new_one(server: LocalServer, tmp_path: Path) -> None:
    """Also with one that begins after the sweep: it lists nothing, for the others have the names."""
    with two_mounts(server, tmp_path) as trees:
        found = dataset_directory(trees[0])
        assert [contents(tree) for tree in trees] == [truth(server)] * 2
        empty(found)
        listings = server.stats.count("partial")
        assert [contents(tree) for tree in trees] == [truth(server)] * 2
        server.add_sample("a/new.jpg", b"new")
        trees[0].refresh()
        once = server.stats.count("partial")
        wait_until(lambda: "new.jpg" in trees[1].names("a"), 5)

        (tmp_path / "third").mkdir()
        third = start_mount(
            server.dataset_id,
            tmp_path / "third",
            trees[0].environ,
            tmp_path / "third.log",
            "--metadata-ttl=infinite",
        )
        try:
            assert [contents(tree) for tree in (*trees, third)] == [truth(server)] * 3
            assert [status(tree)["cache"]["shared"] for tree in (*trees, third)] == [True] * 3
        finally:
            third.end()
        assert server.stats.count("partial") == once > listings


def test_what_was_staged_and_is_gone_is_named(server: LocalServer, tmp_path: Path) -> None:
    """A file that is open keeps its bytes; every command names the others until they are discarded."""
    gone = "failed: its staged bytes are gone"
    with mounted(server, tmp_path, "3", "--write-back") as tree:
        server.faults.add(Status(target="api", status=403))
        for name in ("b.jpg", "c.jpg"):
            tree.write(name, b"owed " + name.encode())
        with open(tree.mountpoint / "d.jpg", "wb", buffering=0) as file:
            file.write(b"open")
            empty(tmp_path / "cache" / "state")
            listed = tree.run("uploads", "list").stdout
            assert rows(listed) == [("b.jpg", gone), ("c.jpg", gone), ("d.jpg", "being written")]
            file.write(b" and more")
            server.faults.clear()
        assert tree.read("d.jpg") == b"open and more"
        tree.write("e.jpg", b"afterwards")
        wait_until(lambda: {one["fileName"] for one in server.samples()} >= {"d.jpg", "e.jpg"}, 20)
        assert "2 files were deleted from the state directory" in tree.log.read_text()
        shown = status(tree)["uploads"]
        assert [(one["path"], one["error"]) for one in shown["files"]] == [
            ("b.jpg", gone[8:]),
            ("c.jpg", gone[8:]),
        ]
        done = tree.run("umount", str(tree.mountpoint), check=False)
        assert (done.returncode, "2 files are not on the server" in done.stderr) == (1, True)
        tree.end()
    with mounted(server, tmp_path, "3") as tree:
        assert rows(tree.run("uploads", "list").stdout) == [("b.jpg", gone), ("c.jpg", gone)]
    lightlyfs("uploads", "discard", "b.jpg", "c.jpg", "--yes", environ=tree.environ)
    assert lightlyfs("uploads", "list", environ=tree.environ).stdout == ""


def rows(listed: str) -> list[tuple[str, ...]]:
    """Path and state of each file that `uploads list` shows."""
    return [tuple(line.split("\t")[:2]) for line in listed.splitlines()]


def test_damaged_databases_cost_a_listing_and_never_a_byte(server: LocalServer, tmp_path: Path) -> None:
    """As another machine damages them that uses the same directory without locks."""
    with mounted(server, tmp_path, "3") as tree:
        some = tree.names("a")[: COUNT // 2]
        for name in some:
            tree.read(f"a/{name}")
        found = dataset_directory(tree)
        for name in ("catalog.db", "blocks.db", "urls.db", "thumbnails.db"):
            for path in found.glob(f"{name}*"):
                if not path.name.endswith("-shm"):  # shortening what is mapped would end the process
                    with path.open("r+b") as file:
                        file.write(os.urandom(max(path.stat().st_size, 4096)))
        for path in found.glob("blocks/*/*"):
            with path.open("r+b") as file:
                file.write(b"damage")

        wait_until(lambda: listed(tree) == sorted(truth(server)), 20)
        wait_until(lambda: is_readable(tree, server), 20)
        assert contents(tree) == truth(server)
        # what is in memory stays right; the next listing meets the file itself
        wait_until(lambda: tree.run("refresh", str(tree.mountpoint), check=False).returncode == 0, 20)
        assert contents(tree) == truth(server)


def listed(tree: MountedTree) -> list[str]:
    """The names, or none while they cannot be said."""
    with contextlib.suppress(OSError):
        return tree.names("a")
    return []


def is_readable(tree: MountedTree, server: LocalServer) -> bool:
    """Whether every file can be read; what is read has to be right."""
    for name, data in truth(server).items():
        try:
            assert tree.read(f"a/{name}") == data
        except OSError:
            return False
    return True
