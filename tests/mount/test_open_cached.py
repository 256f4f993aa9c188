"""`lightlyfs.open_cached`: the bytes of a sample from its cached file, for any caller, whatever happens."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_files import fill
from trees import MountedTree, mounted, wait_until

import lightlyfs
from lightlyfs.control import ask, dial
from lightlyfs.places import socket_path
from lightlyfs.testing import Latency, LocalServer, ServerOptions, Status

pytestmark = pytest.mark.fuse

MIB = 1 << 20
FILES = {f"d/{number:02}.bin": random.Random(number).randbytes(50_000 + number) for number in range(40)}
FILES |= {"large.bin": random.Random(99).randbytes(5 * MIB + 17), "empty.bin": b""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    root = fill(tmp_path_factory.mktemp("images"), FILES)
    with LocalServer(ServerOptions(source=root, dataset_name="cached")) as running:
        yield running


@pytest.fixture(params=["3", "2"])
def tree(
    request: pytest.FixtureRequest, server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MountedTree]:
    server.faults.clear()
    with mounted(server, tmp_path, request.param) as subject:
        monkeypatch.setenv("XDG_RUNTIME_DIR", subject.environ["XDG_RUNTIME_DIR"])
        yield subject


def read(path: Path) -> bytes:
    with lightlyfs.open_cached(path) as file:
        return file.read()


def cached_file(descriptor: int) -> Path:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def test_it_gives_the_bytes_of_the_sample_from_its_cached_file(tree: MountedTree) -> None:
    for name, data in FILES.items():
        with lightlyfs.open_cached(tree.mountpoint / name) as file:
            assert file.read() == data
            assert os.fstat(file.fileno()).st_size == len(data)
            assert "/blocks/" in str(cached_file(file.fileno())) or not data
            assert file.name == str(tree.mountpoint / name)


def test_nobody_can_write_through_it_and_no_program_inherits_it(tree: MountedTree) -> None:
    with lightlyfs.open_cached(tree.mountpoint / "d/00.bin") as file:
        assert not file.writable()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(file.fileno(), b"x")
        assert fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        assert not os.get_inheritable(file.fileno())


def test_any_spelling_of_a_path_will_do(
    tree: MountedTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tree.mountpoint / "d")
    monkeypatch.chdir(tmp_path)
    path = tree.mountpoint / "d/01.bin"
    relative = os.path.relpath(path, tmp_path)
    for spelled in (
        path,
        str(path),
        os.fsencode(path),
        relative,
        "link/01.bin",
        f"{tree.mountpoint}/d/../d/01.bin",
    ):
        with lightlyfs.open_cached(spelled) as file:
            assert "/blocks/" in str(cached_file(file.fileno()))
            assert file.read() == FILES["d/01.bin"]


def test_two_openers_have_an_offset_each(tree: MountedTree) -> None:
    path = tree.mountpoint / "d/01.bin"
    with lightlyfs.open_cached(path) as first, lightlyfs.open_cached(path) as second:
        assert first.read() == second.read() == FILES["d/01.bin"]
        second.seek(10)
        assert first.tell() == len(FILES["d/01.bin"])


def test_an_open_file_is_of_one_version(server: LocalServer, tree: MountedTree) -> None:
    path = tree.mountpoint / "d/02.bin"
    source = Path(server.options.source) / "d/02.bin"
    with lightlyfs.open_cached(path) as file:
        begin = file.read(100)
        try:
            source.write_bytes(b"n" * 1234)
            tree.refresh()
            assert read(path) == b"n" * 1234
            assert begin + file.read() == FILES["d/02.bin"]
        finally:
            source.write_bytes(FILES["d/02.bin"])


def test_a_damaged_block_is_fetched_again(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(server, tmp_path) as tree:
        monkeypatch.setenv("XDG_RUNTIME_DIR", tree.environ["XDG_RUNTIME_DIR"])
        with lightlyfs.open_cached(tree.mountpoint / "large.bin") as file:
            kept = cached_file(file.fileno())
    with kept.open("r+b") as raw:
        raw.seek(3 * MIB)
        raw.write(b"damage")
    with mounted(server, tmp_path) as tree:
        assert read(tree.mountpoint / "large.bin") == FILES["large.bin"]


def test_errors_are_those_of_open(server: LocalServer, tree: MountedTree, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        read(tree.mountpoint / "d/nothing.bin")
    assert caught.value.filename == str(tree.mountpoint / "d/nothing.bin")
    with pytest.raises(IsADirectoryError):
        read(tree.mountpoint / "d")
    with pytest.raises(ValueError, match="is not in a dataset that you have mounted"):
        read(tmp_path / "elsewhere.bin")
    server.faults.add(Status(target="api", status=403))
    with pytest.raises(PermissionError):
        read(tree.mountpoint / "d/03.bin")


def test_a_file_that_was_not_uploaded_yet_is_read_through_the_mount(tree: MountedTree) -> None:
    (tree.mountpoint / "note.tmp").write_bytes(b"mine")
    assert read(tree.mountpoint / "note.tmp") == b"mine"


def test_a_cache_that_cannot_keep_it_costs_speed_only(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mounted(server, tmp_path, "3", "--cache-size", "100K") as tree:
        monkeypatch.setenv("XDG_RUNTIME_DIR", tree.environ["XDG_RUNTIME_DIR"])
        assert read(tree.mountpoint / "large.bin") == FILES["large.bin"]


def test_ten_threads_and_forked_workers_each_get_their_own(tree: MountedTree) -> None:
    assert read(tree.mountpoint / "large.bin") == FILES["large.bin"]  # this thread has a connection by now
    wrong: list[str] = []

    def check(seed: int) -> None:
        for name in random.Random(seed).sample(sorted(FILES), len(FILES)):
            wrong.extend([] if read(tree.mountpoint / name) == FILES[name] else [name])

    def forked(seed: int) -> None:
        check(seed)
        os._exit(1 if wrong else 0)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(10)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=forked, args=(seed,)) for seed in range(4)]
    for worker in [*workers, *threads]:
        worker.start()
    check(11)
    for worker in [*workers, *threads]:
        worker.join(60)
    assert wrong == []
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]


def test_a_remount_is_found_again(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with mounted(server, tmp_path) as tree:
            monkeypatch.setenv("XDG_RUNTIME_DIR", tree.environ["XDG_RUNTIME_DIR"])
            assert read(tree.mountpoint / "d/04.bin") == FILES["d/04.bin"]
    with pytest.raises(OSError, match="the mount does not answer") as caught:
        read(tree.mountpoint / "d/04.bin")
    assert caught.value.errno == errno.ENOTCONN
    with pytest.raises(ValueError, match="is not in a dataset"):
        read(tree.mountpoint / "d/04.bin")


def test_commands_are_answered_while_many_wait_for_a_fetch(server: LocalServer, tree: MountedTree) -> None:
    server.faults.add(Latency(target="storage", delay_s=3.0))
    names = [name for name in FILES if name.startswith("d/")]
    threads = [threading.Thread(target=read, args=(tree.mountpoint / name,)) for name in names]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.stats.snapshot()["in_flight"] > 10, 10)
    status = ask(socket_path(tree.mountpoint), "status", timeout_s=2.0)
    assert status is not None
    assert status["ok"]
    for thread in threads:
        thread.join(30)


def test_silent_callers_do_not_shut_out_others(tree: MountedTree) -> None:
    channels = [dial(socket_path(tree.mountpoint), timeout_s=5) for _ in range(220)]
    for channel in channels:
        assert channel is not None
        channel.send({"command": "open_cached", "path": "d/05.bin"})
    answers = [channel.receive() for channel in channels if channel is not None]
    assert sum(bool(answer and answer.get("busy")) for answer in answers) == 220 - 192
    status = ask(socket_path(tree.mountpoint), "status")
    assert status is not None
    assert read(tree.mountpoint / "d/05.bin") == FILES["d/05.bin"]
    for channel in channels:
        assert channel is not None
        channel.close()


def test_it_leaves_no_descriptor_open_in_the_mount(tree: MountedTree) -> None:
    def held() -> int:
        return len(list(Path(f"/proc/{tree.process.pid}/fd").iterdir()))

    assert read(tree.mountpoint / "d/06.bin")
    before = held()
    for _ in range(200):
        read(tree.mountpoint / "d/06.bin")
    assert held() <= before + 2


def test_a_program_of_another_python_needs_the_package_only(tree: MountedTree) -> None:
    code = (
        f"import lightlyfs; print(len(lightlyfs.open_cached({str(tree.mountpoint / 'd/07.bin')!r}).read()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=dict(tree.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str(len(FILES["d/07.bin"]))
