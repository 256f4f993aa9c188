"""`lightlyfs warm`: what is named is in the cache afterwards; what cannot be is told with the reason."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dataset_files import fill
from trees import MountedTree, mounted, wait_until

from lightlyfs.cli.cache import listed_names
from lightlyfs.errors import StartError
from lightlyfs.library import Mounted
from lightlyfs.testing import Latency, LocalServer, ServerOptions

pytestmark = pytest.mark.fuse

MIB = 1 << 20
FILES = {f"cars/{number:03}.bin": random.Random(number).randbytes(20_000 + number) for number in range(60)}
FILES |= {f"cars/old/{number}.bin": random.Random(-number).randbytes(500) for number in range(1, 6)}
FILES["video.bin"] = random.Random(7).randbytes(21 * MIB + 5)
FILES["empty.bin"] = b""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = fill(tmp_path_factory.mktemp("images"), FILES)
    with LocalServer(ServerOptions(source=root, dataset_name="warm")) as running:
        yield running


@pytest.fixture
def tree(server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    server.faults.clear()
    with mounted(server, tmp_path) as subject:
        yield subject


def storage_reads(server: LocalServer) -> int:
    return sum(server.stats.snapshot()["storage_paths"].values())


def test_a_directory_is_read_without_the_network_afterwards(server: LocalServer, tree: MountedTree) -> None:
    told = tree.run("warm", str(tree.mountpoint))

    assert told.stdout.startswith(f"{len(FILES)} files, ")
    assert f"{len(FILES)} files are in the cache; {len(FILES)} fetched" in told.stdout
    server.stats.reset()
    for name, data in FILES.items():
        assert tree.read(name) == data
    assert storage_reads(server) == 0


def test_what_is_cached_is_skipped(server: LocalServer, tree: MountedTree) -> None:
    tree.run("warm", str(tree.mountpoint / "cars" / "old"), str(tree.mountpoint / "video.bin"))
    server.stats.reset()
    told = tree.run("warm", str(tree.mountpoint / "cars"), str(tree.mountpoint / "video.bin"))

    assert told.stdout.startswith("66 files, ")
    assert re.search(r"6 \(.*\) of them in the cache already", told.stdout)
    assert "66 files are in the cache; 60 fetched" in told.stdout
    assert storage_reads(server) == 60


def test_a_list_says_what_and_in_which_order(server: LocalServer, tree: MountedTree) -> None:
    names = random.Random(1).sample([name for name in FILES if name.startswith("cars/0")], 20)
    command = [sys.executable, "-m", "lightlyfs", "warm", "--files", "-", "--jobs", "1"]
    server.stats.reset()
    done = subprocess.run(
        command,
        input="\n".join(names) + "\n\n",
        cwd=tree.mountpoint,
        env=dict(tree.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    asked = list(server.stats.snapshot()["storage_paths"])
    assert [path.rpartition("/")[2] for path in asked] == [name.rpartition("/")[2] for name in names]


LISTS: dict[str, Callable[[list[str], Path], bytes]] = {
    "bom": lambda names, _: b"\xef\xbb\xbf" + "\n".join(names).encode(),
    "crlf": lambda names, _: "".join(f"{name}\r\n" for name in names).encode(),
    "utf-16": lambda names, _: "\r\n".join(names).encode("utf-16"),
    "backslashes": lambda names, _: "\n".join(names).replace("/", "\\").encode(),
    "absolute": lambda names, root: "\n".join(f"{root}/{name}" for name in names).encode(),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_may_come_from_another_system(tree: MountedTree, tmp_path: Path, kind: str) -> None:
    names = ["cars/000.bin", "cars/old/1.bin", "video.bin"]
    path = tmp_path / "list.txt"
    path.write_bytes(LISTS[kind](names, tree.mountpoint))
    command = [sys.executable, "-m", "lightlyfs", "warm", "--from", str(path)]
    done = subprocess.run(
        command, cwd=tree.mountpoint, env=dict(tree.environ), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "3 files are in the cache; 3 fetched" in done.stdout


def test_a_backslash_that_is_in_a_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "back\\slash.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert listed_names(b"back\\slash.jpg\ncars\\red.jpg") == ["back\\slash.jpg", "cars/red.jpg"]


def test_files_that_cannot_be_had_are_named_with_the_reason(server: LocalServer, tree: MountedTree) -> None:
    missing = tree.mountpoint / "nothing.bin"
    told = tree.run("warm", str(tree.mountpoint / "cars" / "old"), str(missing), check=False)

    assert told.returncode == 1
    assert f"{missing}: no such file" in told.stderr
    assert "lightlyfs: 1 file is not in the cache" in told.stderr
    assert "5 files are in the cache" in told.stdout


def test_a_cache_that_is_too_small_is_told_before_and_after(server: LocalServer, tmp_path: Path) -> None:
    with mounted(server, tmp_path, "3", "--cache-size", "600K") as tree:
        told = tree.run("warm", str(tree.mountpoint / "cars"), check=False)
        assert told.returncode == 1
        # less than was asked for: the databases count, too
        assert re.search(r"the cache holds \d+\.\d kB, less than all of them", told.stderr)
        displaced = told.stderr.count("it was displaced again")
        assert 0 < displaced < 65
        assert f"{displaced} file" in told.stderr


def test_what_is_not_in_a_mount_is_refused(tree: MountedTree, tmp_path: Path) -> None:
    told = tree.run("warm", str(tmp_path), check=False)
    assert told.returncode == 1
    assert told.stderr == f"lightlyfs: {tmp_path} is not in a dataset that you have mounted\n"
    assert tree.run("warm", check=False).returncode == 2


def test_ctrl_c_ends_it_and_the_next_one_goes_on(server: LocalServer, tree: MountedTree) -> None:
    server.faults.add(Latency(target="storage", delay_s=0.2))
    server.stats.reset()
    command = [sys.executable, "-m", "lightlyfs", "warm", "--jobs", "2", str(tree.mountpoint / "cars")]
    warm = subprocess.Popen(command, env=dict(tree.environ), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: storage_reads(server) > 4, 20)
    warm.send_signal(signal.SIGINT)
    _, told = warm.communicate(timeout=20)
    assert warm.returncode == 130
    assert "stopped" in told

    wait_until(lambda: server.stats.snapshot()["in_flight"] == 0, 20)
    server.faults.clear()
    fetched = storage_reads(server)
    assert fetched < 60
    server.stats.reset()
    assert "65 files are in the cache" in tree.run("warm", str(tree.mountpoint / "cars")).stdout
    assert storage_reads(server) == 65 - fetched


def test_a_mount_that_ends_ends_it_with_a_word(server: LocalServer, tree: MountedTree) -> None:
    server.faults.add(Latency(target="storage", delay_s=0.3))
    server.stats.reset()
    command = [sys.executable, "-m", "lightlyfs", "warm", "--jobs", "2", str(tree.mountpoint / "cars")]
    warm = subprocess.Popen(command, env=dict(tree.environ), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: storage_reads(server) > 2, 20)
    tree.end()
    _, told = warm.communicate(timeout=20)
    assert warm.returncode == 1
    assert told.startswith("lightlyfs: the mount on")


def test_only_the_samples_of_a_tag_are_meant(server: LocalServer, tmp_path: Path) -> None:
    root = tmp_path / "tagged"
    root.mkdir()
    with LocalServer(ServerOptions(source=root, dataset_name="tagged")) as own:
        ids = [own.add_sample(f"{number % 2}/{number}.jpg", b"image %d" % number) for number in range(6)]
        own.add_tag("picked", [ids[0], ids[1], ids[4]])
        with mounted(own, tmp_path / "tree") as tree:
            told = tree.run("warm", str(tree.mountpoint / "0"), "--tag", "picked")
            assert told.stdout.startswith("2 files, ")
            assert "2 files are in the cache; 2 fetched" in told.stdout
            refused = tree.run("warm", str(tree.mountpoint), "--tag", "typo", check=False)
            assert refused.returncode == 1
            assert refused.stderr == "lightlyfs: the dataset has no tag 'typo'\n"


def test_python_warms_too(tree: MountedTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", tree.environ["XDG_RUNTIME_DIR"])
    mounted_here = Mounted(tree.mountpoint)
    mounted_here.warm("cars/old", "video.bin", jobs=2)
    assert mounted_here.status()["cache"]["bytes"] == 5 * 500 + 21 * MIB + 5
    with pytest.raises(StartError, match=r"1 file not in the cache\nnothing.bin: no such file"):
        mounted_here.warm("nothing.bin")
