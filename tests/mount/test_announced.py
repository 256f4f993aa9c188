"""`lightlyfs.ahead`: a program says what it will read, over a mount or in its own process."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trees import MountedTree, mounted, use_here

import lightlyfs
from lightlyfs.control import Channel, dial
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions

FILES, SIZE = 300, 20_000
# on a machine that is busy some take so long that they are sent a second time
SENT_TWICE = 8 + FILES // 20


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with LocalServer(ServerOptions(fake_samples=FILES, fake_bytes=SIZE, fake_per_directory=100)) as running:
        yield running


@pytest.fixture
def tree(server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    with mounted(server, tmp_path, "3", "--read-ahead=off", "--read-ahead-limit=1M") as running:
        yield running


def sent(server: LocalServer) -> int:
    return server.stats.count("storage.get")


def wait_until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def shuffled(root: Path) -> list[Path]:
    found = sorted(path for path in root.rglob("*") if path.is_file())
    random.Random(5).shuffle(found)
    return found


def test_what_a_program_announces_comes_before_it_is_read(tree: MountedTree, server: LocalServer) -> None:
    """An order of any length: the iterator is asked for no more than is needed."""
    paths, asked = shuffled(tree.mountpoint), []

    def order() -> Iterator[Path]:
        for path in paths:
            asked.append(path)
            yield path

    with lightlyfs.ahead(order()):
        wait_until(lambda: sent(server) >= (1 << 20) // SIZE)
        assert len(asked) < FILES
        for path in paths:
            assert len(path.read_bytes()) == SIZE
    assert sent(server) <= FILES + SENT_TWICE
    status = json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)
    assert status["ahead"]["files"] > FILES // 2


def test_a_link_to_the_mount_will_do(tree: MountedTree, server: LocalServer, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tree.mountpoint)
    with lightlyfs.ahead(shuffled(link)):
        wait_until(lambda: sent(server) > 10)


def test_the_fetching_ends_with_the_block(tree: MountedTree, server: LocalServer) -> None:
    paths = shuffled(tree.mountpoint)
    with lightlyfs.ahead(paths):
        wait_until(lambda: sent(server) > 10)
    for path in paths[:100]:
        path.read_bytes()
    assert sent(server) < FILES


def test_a_program_that_ends_takes_its_order_along(tree: MountedTree, server: LocalServer) -> None:
    program = (
        "import lightlyfs, sys; a = lightlyfs.ahead(sys.argv[1:]); "
        "open(sys.argv[1], 'rb').read(); print('read')"
    )
    paths = [str(path) for path in shuffled(tree.mountpoint)]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
    assert sent(server) < FILES


def test_an_order_goes_on_after_the_mount_was_stopped_or_hung_up(
    tree: MountedTree, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a laptop's sleep, or where the iterator gave nothing for longer than the mount waits."""
    monkeypatch.setattr("lightlyfs.library._ANNOUNCED_WAIT_S", 0.5)
    paths, called = shuffled(tree.mountpoint), threading.Event()

    def dialled(*args: Any, **options: Any) -> Channel | None:
        called.set()
        return dial(*args, **{**options, "timeout_s": 20.0})  # it hangs up once

    with lightlyfs.ahead(paths):
        wait_until(lambda: sent(server) > 10)
        monkeypatch.setattr("lightlyfs.library.dial", dialled)
        tree.process.send_signal(signal.SIGSTOP)
        try:
            assert called.wait(20)
        finally:
            tree.process.send_signal(signal.SIGCONT)
        for number, path in enumerate(paths):
            wait_until(lambda least=number: sent(server) > least)  # type: ignore[misc]
            assert len(path.read_bytes()) == SIZE
    status = json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)
    # what was fetched when it hung up counts as given up
    assert status["ahead"]["files"] > FILES // 2


def test_what_an_iterator_gave_is_fetched_while_it_gives_no_more(
    tree: MountedTree, server: LocalServer
) -> None:
    """As where it follows a training by some files, which wait for these."""
    paths, read = shuffled(tree.mountpoint), threading.Semaphore(5)

    def order() -> Iterator[Path]:
        for path in paths[:20]:
            read.acquire()
            yield path

    with lightlyfs.ahead(order()):
        for number, path in enumerate(paths[:20]):
            wait_until(lambda least=number: sent(server) > least)  # type: ignore[misc]
            assert len(path.read_bytes()) == SIZE
            read.release()


def test_what_an_order_was_read_by_ends_with_it(tree: MountedTree) -> None:
    with lightlyfs.ahead(shuffled(tree.mountpoint)):
        assert reading_orders()
    wait_until(lambda: not reading_orders())


def reading_orders() -> list[str]:
    names = ("lightlyfs-order", "lightlyfs-announcing")
    return [thread.name for thread in threading.enumerate() if thread.name in names]


def test_an_order_that_is_none_is_explained(tree: MountedTree, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in a dataset that you have mounted"):
        lightlyfs.ahead([tmp_path / "elsewhere.jpg"])
    with lightlyfs.ahead([]):
        pass
    with lightlyfs.ahead([tree.mountpoint / "no such file", *shuffled(tree.mountpoint)[:1]]) as announced:
        announced.close()


def test_addresses_are_fetched_in_this_process(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_here(server, tmp_path / "home", monkeypatch)
    fs = lightlyfs_filesystem()
    names = sorted(fs.find(server.dataset_id))
    random.Random(6).shuffle(names)
    with lightlyfs.ahead(f"lightly://{name}" for name in names):
        for name in names:
            assert len(fs.cat_file(name)) == SIZE
    assert sent(server) <= FILES + SENT_TWICE
    fsspec_parts.close_all()


def lightlyfs_filesystem() -> Any:
    import fsspec

    return fsspec.filesystem("lightly", skip_instance_cache=True)
