"""The cache as a thing one can hold: shown, checked, emptied, pinned, while programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import MountedTree, environment, lightlyfs, lightlyfs_here, mounted, need_fuse

from lightlyfs.library import Mounted
from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = pytest.mark.fuse

FILE_BYTES = 14_000
FILES = {f"{part}/{number}.bin": bytes([number]) * FILE_BYTES for part in "ab" for number in range(20)}
# of which databases take a quarter
BUDGET = "600K"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[LocalServer]:
    """Forty files in two directories."""
    (tmp_path / "served").mkdir()
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="held")) as server:
        for name, data in FILES.items():
            server.add_sample(name, data)
        yield server


@pytest.fixture
def tree(served: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """A mount whose cache is too small for all of them."""
    with mounted(served, tmp_path / "tree", "3", "--cache-size", BUDGET, "--read-only") as tree:
        yield tree


def run(tree: MountedTree, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command in the environment of a mount."""
    return lightlyfs_here(*words, environ=tree.environ, check=check)


def cached(tree: MountedTree, path: str) -> dict[str, int]:
    (row,) = json.loads(run(tree, "cache", "show", "--json", str(tree.mountpoint / path)).stdout)
    return dict(row)


def test_a_mount_on_a_nearly_full_disk_says_that_nothing_is_cached(
    served: LocalServer, tmp_path: Path
) -> None:
    with mounted(served, tmp_path, "3", "--read-only", "--cache-min-free", "100%") as tree:
        assert "next to nothing is cached" in (tmp_path / "mount.log").read_text()
        for _ in range(2):
            assert {name: tree.read(name) for name in FILES} == FILES
        told = run(tree, "status", str(tree.mountpoint)).stdout
        assert "its disk is nearly full: at most 0 bytes are kept; see --cache-min-free" in told


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        (("--cache-min-free", "100%"), {}, "next to nothing is cached"),
        ((), {"XDG_STATE_HOME": "/proc/none"}, "what is owed to the server is in "),
    ],
)
def test_what_a_mount_in_the_background_warns_of_is_told_and_logged(
    served: LocalServer, tmp_path: Path, words: tuple[str, ...], variables: dict[str, str], told: str
) -> None:
    need_fuse("3")
    mountpoint, log = tmp_path / "mnt", tmp_path / "mount.log"
    mountpoint.mkdir()
    environ = environment(served, tmp_path / "cache") | {"TMPDIR": str(tmp_path)} | variables
    done = lightlyfs(
        "mount",
        "held",
        str(mountpoint),
        "--cache-size",
        BUDGET,
        "--log-file",
        str(log),
        *words,
        environ=environ,
    )
    try:
        assert told in done.stderr
        assert ("nothing is cached" in done.stderr) == bool(words)
        assert "WARNING" not in done.stderr  # a line for a person, not one of a log
        assert "WARNING [held]" in log.read_text()
        assert told in log.read_text()
        assert (mountpoint / "a/1.bin").read_bytes() == FILES["a/1.bin"]
    finally:
        lightlyfs("umount", str(mountpoint), environ=environ)


def test_a_pinned_folder_is_never_evicted(tree: MountedTree, served: LocalServer) -> None:
    told = run(tree, "cache", "pin", str(tree.mountpoint / "a"))
    assert "20 files pinned" in told.stdout
    for _ in range(3):
        for number in range(20):
            assert tree.read(f"b/{number}.bin") == FILES[f"b/{number}.bin"]
    assert cached(tree, "a")["cached_files"] == 20
    assert cached(tree, "b")["cached_files"] < 20
    refused = run(tree, "cache", "pin", str(tree.mountpoint), check=False)
    assert refused.returncode == 1
    assert cached(tree, "a")["pinned_files"] == 20

    run(tree, "cache", "unpin", str(tree.mountpoint / "a"))
    run(tree, "warm", str(tree.mountpoint / "b"), check=False)
    assert cached(tree, "a")["cached_files"] < 20


def test_the_cache_is_right_while_four_processes_read(
    tree: MountedTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is evicted under readers is fetched again; no reader sees other bytes."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "root = Path(sys.argv[1])\n"
        "for _ in range(15):\n"
        "    for path in sorted(root.rglob('*.bin')):\n"
        "        assert path.read_bytes() == bytes([int(path.stem)]) * 14_000, path\n"
    )
    readers = [subprocess.Popen([sys.executable, "-c", code, str(tree.mountpoint)]) for _ in range(4)]
    here = Mounted(tree.mountpoint)
    monkeypatch.setenv("XDG_RUNTIME_DIR", tree.environ["XDG_RUNTIME_DIR"])
    rounds = 0
    try:
        while any(reader.poll() is None for reader in readers):
            here.pin("a")
            assert here.cached("a")["pinned_files"] == 20
            here.cached("b", do="evict")
            found = here.cached(do="verify")
            assert found["done_files"] == found["cached_files"]
            here.cached("a", do="evict")
            rounds += 1
        assert [reader.wait() for reader in readers] == [0] * 4
        assert rounds > 1
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def test_a_damaged_block_is_found_and_fetched_again(tree: MountedTree) -> None:
    run(tree, "warm", str(tree.mountpoint / "a"))
    directory = Path(
        json.loads(run(tree, "status", str(tree.mountpoint), "--json").stdout)["cache"]["directory"]
    )
    block = next(path for path in (directory / "blocks").rglob("*") if path.is_file())
    block.write_bytes(b"x" * block.stat().st_size)
    done = run(tree, "cache", "verify", str(tree.mountpoint), check=False)
    assert done.returncode == 1
    assert "1 damaged file deleted from the cache" in done.stderr
    for number in range(20):
        assert tree.read(f"a/{number}.bin") == FILES[f"a/{number}.bin"]
    assert run(tree, "cache", "verify", str(tree.mountpoint)).returncode == 0


def test_warm_checks_and_evicts(tree: MountedTree) -> None:
    folder = str(tree.mountpoint / "a")
    assert run(tree, "warm", "--check", folder, check=False).returncode == 1
    run(tree, "warm", folder)
    assert run(tree, "warm", "--check", folder).stdout == "20 files, 0 of them not in the cache\n"
    assert run(tree, "warm", "--evict", folder).stdout == "20 files deleted from the cache\n"
    assert cached(tree, "a")["cached_files"] == 0


def test_caches_are_shown_and_cleared_where_nobody_uses_them(tree: MountedTree) -> None:
    run(tree, "warm", str(tree.mountpoint / "a"))
    (row,) = json.loads(run(tree, "cache", "show", "--json").stdout)
    assert "in use, and kept" in run(tree, "cache", "clear", "--all").stderr
    assert (row["files"], row["bytes"]) == (20, 20 * FILE_BYTES)
    tree.end()
    assert "280.0 kB deleted" in run(tree, "cache", "clear", "--all").stdout
    assert json.loads(run(tree, "cache", "show", "--json").stdout) == []
