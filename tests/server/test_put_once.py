"""`put_once`: what a task uploads is one sample, however often the task runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from late import WorkLater
from trees import use_here, wait_until

from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import DropReply, LocalServer, ServerOptions

SCRIPT = """
import sys, fsspec
fsspec.filesystem("lightly", cache_dir=sys.argv[1]).put_once(sys.argv[2], sys.argv[3])
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """A dataset that holds one file, and the environment to use it."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/there.bin").write_bytes(b"there")
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="cars")) as running:
        use_here(running, tmp_path / "home", monkeypatch)
        yield running


@pytest.fixture
def fs(server: LocalServer, tmp_path: Path) -> Iterator[Any]:
    yield fsspec.filesystem("lightly", cache_dir=str(tmp_path / "cache"), skip_instance_cache=True)
    fsspec_parts.close_all()


@pytest.fixture
def local(tmp_path: Path) -> Path:
    path = tmp_path / "local.bin"
    path.write_bytes(os.urandom(300_000))
    return path


def contents(server: LocalServer, name: str) -> list[bytes | None]:
    """What each sample of a name holds."""
    return [server.object_bytes(one["id"]) for one in server.samples() if one["fileName"] == name]


def test_the_second_time_nothing_is_sent(server: LocalServer, fs: Any, local: Path) -> None:
    assert fs.put_once(local, "cars/new/a.bin") is True
    server.stats.reset()
    assert fs.put_once(str(local), "lightly://cars/new/a.bin") is False
    assert contents(server, "new/a.bin") == [local.read_bytes()]
    assert server.stats.snapshot()["bytes_sent"] < local.stat().st_size  # it was not read back either


def test_its_name_is_soon_listed(fs: Any, local: Path) -> None:
    assert fs.ls("cars", detail=False) == ["cars/there.bin"]
    fs.put_once(local, "cars/a.bin")
    wait_until(lambda: fs.exists("cars/a.bin"), 10)
    assert fs.cat("cars/a.bin") == local.read_bytes()


def test_the_same_content_under_two_names_is_two_samples(server: LocalServer, fs: Any, local: Path) -> None:
    assert fs.put_once(local, "cars/a.bin")
    assert fs.put_once(local, "cars/b.bin")
    assert contents(server, "a.bin") == contents(server, "b.bin") == [local.read_bytes()]


def test_a_sample_of_somebody_else_is_compared(server: LocalServer, fs: Any, local: Path) -> None:
    with pytest.raises(FileExistsError, match="other content"):
        fs.put_once(local, "cars/there.bin")
    local.write_bytes(b"there")
    assert fs.put_once(local, "cars/there.bin") is False
    local.write_bytes(b"THERE")
    with pytest.raises(FileExistsError):
        fs.put_once(local, "cars/there.bin")
    assert contents(server, "there.bin") == [b"there"]


def test_a_sample_that_got_no_bytes_gets_them(
    server: LocalServer, fs: Any, local: Path, tmp_path: Path
) -> None:
    """A worker that died between the create and the upload."""
    assert fs.put_once(local, "cars/a.bin")
    (tmp_path / "served/a.bin").unlink()
    assert contents(server, "a.bin") == [None]
    assert fs.put_once(local, "cars/a.bin") is True
    assert contents(server, "a.bin") == [local.read_bytes()]


def test_a_create_whose_reply_was_lost_is_found(server: LocalServer, fs: Any, local: Path) -> None:
    server.faults.add(DropReply(target="withWriteUrls", count=1))
    fs.put_once(local, "cars/a.bin")
    assert contents(server, "a.bin") == [local.read_bytes()]


def test_threads_at_one_name_make_one_sample(server: LocalServer, fs: Any, local: Path) -> None:
    sent: list[bool] = []
    threads = [
        threading.Thread(target=lambda: sent.append(fs.put_once(local, "cars/a.bin"))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == [False] * 7 + [True]
    assert contents(server, "a.bin") == [local.read_bytes()]


def test_a_read_only_file_system_uploads_nothing(server: LocalServer, local: Path, tmp_path: Path) -> None:
    options = {"cache_dir": str(tmp_path / "cache"), "read_only": True, "skip_instance_cache": True}
    with pytest.raises(OSError, match="read_only"):
        fsspec.filesystem("lightly", **options).put_once(local, "cars/a.bin")
    fsspec_parts.close_all()


@pytest.mark.parametrize("step", ["withWriteUrls", "storage.put"])
def test_a_process_that_is_killed_at_a_step_leaves_it_to_the_next(
    server: LocalServer, fs: Any, local: Path, tmp_path: Path, step: str
) -> None:
    server.faults.add(WorkLater(target=step, count=1))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "cache"), str(local), "cars/a.bin"]
    with subprocess.Popen(command) as process:
        wait_until(lambda: not server.faults.armed(), 30)
        process.send_signal(signal.SIGKILL)
    # the server is still at the request of the dead one
    fs.put_once(local, "cars/a.bin")
    # and nothing that was owed comes later, when another process opens the dataset
    subprocess.run([sys.executable, "-c", SCRIPT, *command[3:5], "cars/b.bin"], check=True)
    wait_until(lambda: server.stats.snapshot()["in_flight"] == 0, 10)
    assert contents(server, "a.bin") == [local.read_bytes()]
    assert len(server.samples()) == 3
