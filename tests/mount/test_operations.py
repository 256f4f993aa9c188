"""What operators use: metrics, logs for programs, a renewed token, systemd's protocol."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
import requests
from trees import MountedTree, environment, free_port, need_fuse, soon, start_mount, wait_until

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse


def start(server: LocalServer, directory: Path, *options: str, **environ: str) -> MountedTree:
    need_fuse("3")
    (directory / "mnt").mkdir(parents=True)
    known = environment(server, directory / "cache") | environ
    return start_mount(server.dataset_id, directory / "mnt", known, directory / "mount.log", *options)


def metrics(port: int) -> dict[str, float]:
    """Values by name with labels."""
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=5).text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_metrics_agree_with_what_the_server_counted(own_server: LocalServer, tmp_path: Path) -> None:
    for number in range(20):
        own_server.add_sample(f"{number}.bin", bytes(50_000))
    port = free_port()
    own_server.stats.reset()
    tree = start(own_server, tmp_path / "tree", f"--metrics-port={port}")
    try:
        for number in range(20):
            tree.read(f"{number}.bin")
        tree.write("new.bin", b"new")
        wait_until(lambda: own_server.stats.snapshot()["in_flight"] == 0, 10)
        ours = metrics(port)
        counted = own_server.stats.snapshot()["requests"]
        pairs = {"get_sample_read_url": "readurl", "storage_get": "storage.get", "storage_put": "storage.put"}
        for operation, name in pairs.items():
            by_outcome = {
                match[1]: value
                for key, value in ours.items()
                if (
                    match := re.fullmatch(
                        rf'lightlyfs_requests_total{{operation="{operation}",outcome="(.+)"}}', key
                    )
                )
            }
            assert by_outcome == counted[name]
            assert ours[f'lightlyfs_request_seconds_count{{operation="{operation}"}}'] == sum(
                counted[name].values()
            )
        assert ours["lightlyfs_fetched_bytes_total"] >= 20 * 50_000
        assert ours["lightlyfs_uploads_done_total"] == 1
        assert ours["lightlyfs_samples"] == 21
        assert ours["lightlyfs_catalogue_age_seconds"] < 60
    finally:
        tree.end()


def test_a_port_that_is_taken_is_told_in_one_line(own_server: LocalServer, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(AssertionError, match=f"metrics cannot be served on 127.0.0.1:{port}"):
            start(own_server, tmp_path / "tree", f"--metrics-port={port}")


def test_a_log_for_programs_is_an_object_a_line(own_server: LocalServer, tmp_path: Path) -> None:
    tree = start(own_server, tmp_path / "tree", "--log-format=json")
    tree.end()
    records = [json.loads(line) for line in tree.log.read_text().splitlines()]
    assert any(record["message"].startswith("mounted on") for record in records)
    assert all({"time", "level", "logger", "message"} <= set(record) for record in records)


def test_a_hang_up_reads_the_token_again(own_server: LocalServer, tmp_path: Path) -> None:
    """A token that is renewed, as tokens are, needs no remount; one that is wrong stops nothing."""
    token = tmp_path / "token"
    token.write_text(own_server.token)
    tree = start(own_server, tmp_path / "tree", f"--token-file={token}", "--metadata-ttl=0", LIGHTLY_TOKEN="")
    try:
        tree.write("a.bin", b"a")
        token.write_text("renewed-wrongly")
        tree.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the token was read again" in tree.log.read_text(), 5)
        with pytest.raises(OSError, match="Permission denied"):
            tree.write("b.bin", b"b")

        token.write_text("")
        tree.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "the old token stays in use" in tree.log.read_text(), 5)

        token.write_text(own_server.token)
        tree.process.send_signal(signal.SIGHUP)
        names = lambda: {document["fileName"] for document in own_server.samples()}  # noqa: E731
        # what was owed goes up by itself
        wait_until(lambda: names() == {"a.bin", "b.bin"}, 10)
        tree.write("c.bin", b"c")
        soon(lambda: "c.bin" in names())
    finally:
        tree.end()


def test_systemd_is_told(own_server: LocalServer, tmp_path: Path) -> None:
    address = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(address))
        heard.settimeout(10)
        tree = start(own_server, tmp_path / "tree", NOTIFY_SOCKET=str(address), WATCHDOG_USEC="200000")
        assert heard.recv(100) == b"READY=1"
        assert os.path.ismount(tree.mountpoint)
        assert heard.recv(100) == b"WATCHDOG=1"
        assert heard.recv(100) == b"WATCHDOG=1"
        tree.end()
        told = {b""}
        heard.setblocking(False)
        try:
            while True:
                told.add(heard.recv(100))
        except BlockingIOError:
            pass
        assert b"STOPPING=1" in told
