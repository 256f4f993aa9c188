"""The names of a dataset as one file: made once, begun with everywhere."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from trees import environment, lightlyfs, mounted, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

FILES = {f"{number % 3}/{number}.bin": bytes([number]) * 1_000 for number in range(30)}


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    for name, data in FILES.items():
        own_server.add_sample(name, data)
    return own_server


def export(server: LocalServer, home: Path, file: Path, check: bool = True) -> str:
    home.mkdir(exist_ok=True)
    done = lightlyfs(
        "index", "export", server.dataset_id, str(file), environ=environment(server, home), check=check
    )
    return done.stdout + done.stderr


def asked(server: LocalServer) -> dict[str, int]:
    """Requests for names and the dataset since the last reset, by endpoint."""
    counts = server.stats.snapshot()["requests"]
    names = ("dataset", "datasets", "datasetByName", "partial", "samples")
    return {name: sum(counts[name].values()) for name in names if name in counts}


def test_a_worker_with_an_index_lists_nothing(server: LocalServer, tmp_path: Path) -> None:
    index = tmp_path / "names.index"
    assert "30 samples" in export(server, tmp_path / "home", index)
    server.stats.reset()

    with mounted(
        server, tmp_path / "worker", "3", "--index", str(index), "--metadata-ttl", "infinite"
    ) as tree:
        assert {
            path: tree.read(path)
            for directory in tree.names()
            for path in (f"{directory}/{name}" for name in tree.names(directory))
        } == FILES
    assert asked(server) == {"dataset": 1}


def test_a_process_with_an_index_lists_nothing_over_fsspec(server: LocalServer, tmp_path: Path) -> None:
    index = tmp_path / "names.index"
    export(server, tmp_path / "home", index)
    server.stats.reset()
    program = """
import fsspec, sys
options = {"index": sys.argv[2], "cache_dir": sys.argv[3], "metadata_ttl": "infinite"}
fs = fsspec.filesystem("lightly", **options)
print(len(fs.find(sys.argv[1])), fs.cat_file(sys.argv[1] + "/1/7.bin") == bytes([7]) * 1000)
"""
    words = [server.dataset_id, str(index), str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        env=environment(server, tmp_path / "worker"), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == ["30", "True"], done.stderr
    assert asked(server) == {"dataset": 1}


def test_a_worker_checks_an_index_with_requests_of_the_dataset_alone(
    server: LocalServer, tmp_path: Path
) -> None:
    index = tmp_path / "names.index"
    export(server, tmp_path / "home", index)
    server.stats.reset()
    with mounted(server, tmp_path / "worker", "3", "--index", str(index), "--metadata-ttl", "1") as tree:
        wait_until(lambda: bool(tree.names()) and asked(server).get("dataset", 0) >= 4, 20)
        assert asked(server).keys() == {"dataset"}

        server.add_sample("later.bin", b"later")

        wait_until(lambda: "later.bin" in tree.names(), 10)
        assert server.stats.count("partial") > 0


def test_an_imported_index_is_what_later_mounts_begin_with(server: LocalServer, tmp_path: Path) -> None:
    index = tmp_path / "names.index"
    export(server, tmp_path / "home", index)
    environ = environment(server, tmp_path / "worker/cache")
    told = lightlyfs("index", "import", str(index), environ={**environ, "LIGHTLY_TOKEN": ""}).stdout
    assert f"the names of dataset {server.dataset_id}" in told
    server.stats.reset()
    with mounted(server, tmp_path / "worker", "3", "--metadata-ttl", "infinite") as tree:
        assert tree.names() == ["0", "1", "2"]
        assert tree.read("1/7.bin") == FILES["1/7.bin"]
        assert asked(server) == {"dataset": 1}

        busy = tree.run("index", "import", str(index), check=False)
        assert busy.returncode == 1
        assert "unmount or end it first" in busy.stderr
        assert len(busy.stderr.splitlines()) == 1

    server.add_sample("later.bin", b"later")
    with mounted(server, tmp_path / "worker") as tree:
        tree.refresh()
    assert "newer ones, which stay" in lightlyfs("index", "import", str(index), environ=environ).stdout
    with mounted(server, tmp_path / "worker", "3", "--metadata-ttl", "infinite") as tree:
        assert "later.bin" in tree.names()


def test_what_storage_reported_comes_along(server: LocalServer, tmp_path: Path) -> None:
    """A worker's first look at a size that no metadata tell sends no request."""
    server.add_sample("unknown.bin", b"x" * 77, {"metaData": {}})
    with mounted(server, tmp_path / "home") as tree:
        assert tree.stat("unknown.bin").size == 77
        tree.run("refresh", str(tree.mountpoint))
        assert tree.read("unknown.bin") == b"x" * 77
    index = tmp_path / "names.index"
    shutil.copytree(tmp_path / "home/cache", tmp_path / "copied")
    export(server, tmp_path / "copied", index)
    with mounted(
        server, tmp_path / "worker", "3", "--index", str(index), "--metadata-ttl", "infinite"
    ) as tree:
        server.stats.reset()
        assert tree.stat("unknown.bin").size == 77
        assert server.stats.count("readurl") == 0


def test_a_newer_catalogue_stays(server: LocalServer, tmp_path: Path) -> None:
    index = tmp_path / "names.index"
    export(server, tmp_path / "home", index)
    server.add_sample("later.bin", b"later")
    with mounted(server, tmp_path / "worker") as tree:
        assert "later.bin" in tree.names()
    with mounted(
        server, tmp_path / "worker", "3", "--index", str(index), "--metadata-ttl", "infinite"
    ) as tree:
        assert "later.bin" in tree.names()


def test_a_file_that_is_no_index_of_it_is_told_in_one_line(server: LocalServer, tmp_path: Path) -> None:
    index = tmp_path / "names.index"
    export(server, tmp_path / "home", index)
    wrong = {"garbage": b"this is no database" * 100, "empty": b""}
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
    shutil.copy(index, tmp_path / "of another")
    with sqlite3.connect(tmp_path / "of another") as db:
        db.execute("UPDATE meta SET value = ? WHERE key = 'index_of'", ("0" * 24,))
    db.close()
    (tmp_path / "mnt").mkdir()
    for name in [*wrong, "of another"]:
        done = lightlyfs(
            "mount", server.dataset_id, str(tmp_path / "mnt"), "--index", str(tmp_path / name),
            environ=environment(server, tmp_path / "worker"), check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert str(tmp_path / name) in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    for name in wrong:
        done = lightlyfs(
            "index",
            "import",
            str(tmp_path / name),
            environ=environment(server, tmp_path / "worker"),
            check=False,
        )
        assert done.returncode == 1
        assert str(tmp_path / name) in done.stderr
