"""The names of a dataset as one file: made once, begun with everywhere."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from trees import environment, lightlyfs, mounted

from lightlyfs.localserver import LocalServer

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


def listed(server: LocalServer) -> int:
    return server.stats.count("samplesPartial") + server.stats.count("samples")


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
        counts = server.stats.snapshot()["requests"]
    assert not any("partial" in name.lower() or name == "samples" for name in counts), counts


def test_what_storage_reported_comes_along(server: LocalServer, tmp_path: Path) -> None:
    """A worker's first look at a size that no metadata tell asks nobody."""
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
