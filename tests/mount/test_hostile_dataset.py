"""Everything that can be wrong with a dataset at once: 10,000 good samples are all right beside it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trees import environment, mounted

from lightlyfs.testing import LocalServer, ServerOptions

# beside everything bad; all of them in the long form
GOOD, FEW = 10_000, 2_000
MS = 1_700_000_000_000
RECORDS: dict[str, dict[str, Any]] = {
    "size 2^63": {"metaData": {"sizeInBytes": 2**63 - 1}},
    "size below nothing": {"metaData": {"sizeInBytes": -1}},
    "before 1970": {"lastModifiedAt": -86_400_000},
    "far future": {"lastModifiedAt": 10**17},
    "in seconds": {"createdAt": MS // 1000, "lastModifiedAt": MS // 1000},
}
NO_RECORDS: list[Any] = [
    None,
    7,
    [],
    {},
    {"id": 5},
    {"id": "../../etc/passwd", "fileName": "x"},
    {"id": "A" * 24},
]
NAMES = [
    "",
    "../../etc/passwd",
    "d/" * 2_000 + "deep.jpg",
    "d/" * 300_000 + "deeper.jpg",
    "x" * 60_000 + ".jpg",
    "\ud800\udfff.jpg",
    "".join(map(chr, range(1, 32))) + "\x1b[2J.jpg",
    "good",
    "GOOD/0.bin",
    *["same name.jpg"] * 300,
]
URLS = {
    "file": "file:///etc/hostname",
    "scheme": "gopher://127.0.0.1/x",
    "user": "http://user:pw@127.0.0.1/x",
    "closed port": "http://127.0.0.1:9/x",
    "control": "http://127.0.0.1/\r\nHost: evil\r\n",
    "no address": "not an address",
}


class Evil(http.server.BaseHTTPRequestHandler):
    """A storage that lies in every way there is, by path."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self) -> None:
        Evil.asked += 1
        status, headers, body = {
            "/gone": (404, {}, b""),
            "/broken": (500, {}, b""),
            "/short": (200, {"Content-Length": "1000"}, b"short"),
            "/large": (206, {"Content-Range": "bytes 0-0/" + "9" * 5000, "Content-Length": "1"}, b"x"),
            "/digits": (200, {"Content-Length": "\xb2"}, b""),
            "/versions": (200, {"Content-Length": "1", "ETag": f'"{Evil.asked}"'}, b"x"),
            "/page": (200, {"Content-Type": "text/html", "Content-Length": "6"}, b"<html>"),
            "/around": (302, {"Location": self.path, "Content-Length": "0"}, b""),
        }.get(self.path, (200, {}, b""))
        self.close_connection = True
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)
            while self.path == "/endless":
                self.wfile.write(bytes(1 << 16))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


# what may pass is waited out, for the minute that a call may take
WAITED_OUT = {"closed port", "broken", "short", "digits", "page"}
THOROUGH = pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.long)])
EVIL = ["gone", "broken", "short", "large", "digits", "versions", "page", "around", "endless"]


@contextlib.contextmanager
def evil_storage() -> Iterator[str]:
    storage = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    storage.daemon_threads = True
    threading.Thread(target=storage.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{storage.server_address[1]}"
    finally:
        storage.shutdown()
        storage.server_close()


def content(number: int) -> bytes:
    return f"the content of {number}".encode()


def add_rows(server: LocalServer, storage: str) -> set[str]:
    """Put what no server would say into the listing; the names that `status --problems` is to show."""
    dataset, database = server._parts.dataset, server._parts.dataset.samples._state
    for name in NAMES:
        server.add_sample(name, b"odd name")
    read_urls = {
        server.add_sample(f"url/{name}.jpg", None, {"metaData": {"sizeInBytes": 3}}): url
        for name, url in {**URLS, **{name: f"{storage}/{name}" for name in EVIL}}.items()
    }
    honest = dataset.read_url
    dataset.read_url = lambda one, thumbnail: read_urls.get(one) or honest(one, thumbnail)  # type: ignore[method-assign]
    rewritten = [(name, server.add_sample(f"odd/{name}.jpg", b"odd record")) for name in RECORDS]
    for name, sample_id in rewritten:
        document = {**server.sample(sample_id), **RECORDS[name]}
        database.write("UPDATE samples SET document = ? WHERE id = ?", json.dumps(document), sample_id)
    for row in NO_RECORDS:
        sample_id = server.add_sample("no record", b"")
        database.write("UPDATE samples SET document = ? WHERE id = ?", json.dumps(row), sample_id)
    doubled = server.add_sample("doubled.jpg", b"doubled")
    twin = server.add_sample("doubled.jpg", b"doubled")
    database.write("UPDATE samples SET document = ? WHERE id = ?", json.dumps(server.sample(doubled)), twin)
    return {f"odd/{name}.jpg" for name in RECORDS}


@pytest.fixture
def good(thorough: bool) -> int:
    """How many samples are good."""
    return GOOD if thorough else FEW


@pytest.fixture
def hostile(tmp_path: Path, good: int) -> Iterator[tuple[LocalServer, set[str]]]:
    """The server, and what of its dataset is to be named as odd."""
    root = tmp_path / "images" / "good"
    root.mkdir(parents=True)
    for number in range(good):
        (root / f"{number}.bin").write_bytes(content(number))
    with (
        evil_storage() as storage,
        LocalServer(ServerOptions(source=root.parent, dataset_name="hostile", rescan_s=None)) as server,
    ):
        yield server, add_rows(server, storage)


def check_good(folder: Path, good: int) -> None:
    """All that is good is here as it should be."""
    for number in range(good):
        assert (folder / f"{number}.bin").read_bytes() == content(number)


@pytest.mark.fuse
@pytest.mark.timeout(300)
@THOROUGH
def test_ten_thousand_good_samples_are_all_right_beside_everything_bad(
    hostile: tuple[LocalServer, set[str]], tmp_path: Path, good: int, thorough: bool
) -> None:
    server, odd = hostile
    with mounted(server, tmp_path / "tree", "3") as tree:
        mountpoint = tree.mountpoint
        files = {os.path.join(folder, name) for folder, _, names in os.walk(mountpoint) for name in names}
        assert len(files) == good + len(NAMES) + len(URLS) + len(EVIL) + len(RECORDS) + 1
        assert len(os.listdir(mountpoint / "good")) == good
        names = tmp_path / "names"
        names.write_text("".join(f"{mountpoint}/good/{number}.bin\n" for number in range(good)))
        tree.run("warm", "--from", str(names))
        subprocess.run(
            ["cp", "-r", str(mountpoint / "good"), str(tmp_path / "copy")], check=True, timeout=100
        )
        check_good(tmp_path / "copy", good)
        found = subprocess.run(
            ["find", str(mountpoint), "-type", "f"], capture_output=True, check=True, timeout=60
        )
        assert found.stdout.count(b"good/") >= good
        assert sorted(os.listdir(mountpoint / "url")) == sorted(f"{name}.jpg" for name in [*URLS, *EVIL])
        for path in sorted(files):
            if "/good/" not in path and "/url/" not in path:
                with open(path, "rb") as file:
                    assert file.read() in (b"odd name", b"odd record", b"doubled")
        failed = read_bad(mountpoint / "url", set() if thorough else WAITED_OUT)
        problems = tree.run("status", str(mountpoint), "--problems").stdout
        assert {name for name in odd if name in problems} == odd
        unread = {f"url/{name}.jpg" for name in failed}
        assert {name for name in unread if name in problems} == unread
        escaped = [name for name in ("../../etc/passwd", "x" * 100) if name in problems]
        assert escaped == ["../../etc/passwd", "x" * 100]
        assert problems.replace("\n", "").isprintable()
        assert len([line for line in problems.splitlines() if line.startswith("a record")]) >= 3


def read_bad(folder: Path, but: set[str]) -> set[str]:
    """Each costs an error, or the bytes it has, and no more than what one call may take; all at once.

    Returns which could not be read.
    """
    failed: dict[str, float] = {}

    def read(path: Path) -> None:
        started = time.monotonic()
        try:
            with path.open("rb") as file:
                file.read(1000)
        except OSError:
            failed[path.stem] = time.monotonic() - started

    readers = [
        threading.Thread(target=read, args=(path,)) for path in folder.iterdir() if path.stem not in but
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(100)
        assert not reader.is_alive()
    assert {*URLS, "gone", "broken", "page", "around"} - but <= failed.keys()
    assert max(failed.values()) < 70
    return set(failed)


PROGRAM = """
import sys, fsspec
fs = fsspec.filesystem("lightly", server=sys.argv[1])
total = len(fs.find("hostile"))
found = fs.cat(fs.ls("hostile/good", detail=False)[:: int(sys.argv[2])])
print(sum(data == b"the content of " + path.rsplit("/", 1)[1][:-4].encode() for path, data in found.items()))
print(total)
"""


@pytest.mark.timeout(300)
@THOROUGH
def test_over_fsspec_too(
    hostile: tuple[LocalServer, set[str]], tmp_path: Path, good: int, thorough: bool
) -> None:
    server, _ = hostile
    step = 1 if thorough else 20
    words = [sys.executable, "-c", PROGRAM, server.url, str(step)]
    environ = environment(server, tmp_path / "cache")
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    right, total = map(int, done.stdout.split())
    assert right == good // step
    assert total == good + len(NAMES) + len(URLS) + len(EVIL) + len(RECORDS) + 1
