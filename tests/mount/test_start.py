"""Every failure at start is one line that names the thing and the way out, and leaves no mount."""

from __future__ import annotations

import os
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import environment, lightlyfs, need_fuse

from lightlyfs import mountpoints
from lightlyfs.testing import Html, LocalServer

pytestmark = pytest.mark.fuse

CASES = [
    ([], {"LIGHTLY_TOKEN": ""}, 2, "no API token; set LIGHTLY_TOKEN"),
    ([], {"LIGHTLY_TOKEN": "wrong"}, 1, "does not accept the token; check LIGHTLY_TOKEN"),
    (["DATASET=nosuch"], {}, 1, "no dataset of name 'nosuch' can be seen"),
    (["DATASET=" + "a" * 24], {}, 1, "no dataset of id or name"),
    (["MNT=nodir"], {}, 1, "does not exist; make it with: mkdir -p"),
    (["MNT=full"], {}, 1, "is not empty"),
    (["MNT=file"], {}, 1, "is not a directory"),
    (["--jobs", "x"], {}, 2, "--jobs is 'x'; expected a whole number from 1 to 1024"),
    (["--jobs", "0"], {}, 2, "--jobs is '0'; expected a whole number from 1 to 1024"),
    (["--cache-size", "much"], {}, 2, "--cache-size is 'much'; expected a size such as 512M, 20G or 50%"),
    (["--metadata-ttl", "-1"], {}, 2, "--metadata-ttl is '-1'"),
    (["--fuse", "4"], {}, 2, "--fuse is '4'; it may be auto, 3, 2"),
    (["--read-mode", "odd"], {}, 2, "--read-mode is 'odd'; it may be url, redirect"),
    (["-o", "ro,foo=1"], {}, 2, "-o foo: no such option"),
    (["--token-file", "nofile"], {}, 2, "cannot be read: No such file or directory"),
    (["--cache-dir", "mnt/cache"], {}, 1, "choose one outside"),
    (["--log-file", "mnt/log"], {}, 1, "mnt/log lies inside"),
    (["--log-file", "nodir/log"], {}, 1, "nodir/log cannot be written: No such file or directory"),
    (["--log-file", "full"], {}, 1, "full cannot be written: Is a directory"),
    (["--read-mode", "redirect"], {"LIGHTLY_PUBLIC_TOKEN": ""}, 2, "set LIGHTLY_PUBLIC_TOKEN"),
    ([], {"LIGHTLY_SERVER_LOCATION": "http://127.0.0.1:1"}, 1, "cannot be reached"),
    ([], {"LIGHTLY_SERVER_LOCATION": "http://no.such.host.invalid"}, 1, "Could not resolve host"),
    ([], {"LIGHTLY_SERVER_LOCATION": "ftp://x"}, 2, "expected an address that starts with https://"),
    ([], {"LIGHTLY_SERVER_LOCATION": "https"}, 1, "does not speak TLS"),
    ([], {"LIGHTLY_CA_CERTS": "/no/such.pem"}, 2, "LIGHTLY_CA_CERTS"),
]


@pytest.mark.parametrize(("words", "variables", "code", "text"), CASES, ids=[case[3][:30] for case in CASES])
def test_a_failure_at_start_is_one_line(
    server: LocalServer, tmp_path: Path, words: list[str], variables: dict[str, str], code: int, text: str
) -> None:
    need_fuse("3")
    for name in ("mnt", "full/x"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    named = dict(word.split("=", 1) for word in words if word.startswith(("DATASET=", "MNT=")))
    mountpoint = tmp_path / named.get("MNT", "mnt")
    options = [word for word in words if not word.startswith(("DATASET=", "MNT="))]
    environ = environment(server, tmp_path / "cache") | variables
    if variables.get("LIGHTLY_SERVER_LOCATION") == "https":
        environ["LIGHTLY_SERVER_LOCATION"] = server.url.replace("http:", "https:")
    command = [sys.executable, "-m", "lightlyfs", "mount", named.get("DATASET", server.dataset_id)]

    done = subprocess.run(
        [*command, str(mountpoint), *options],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert text in done.stderr
    assert done.stderr.startswith("lightlyfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.returncode == code
    assert done.stdout == ""
    assert mountpoints.mount_at(mountpoint) is None


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"])
def test_a_mount_over_the_directories_that_it_would_use_is_refused(
    server: LocalServer, tmp_path: Path, name: str
) -> None:
    """It would wait for itself: without the refusal, nothing ends but by force."""
    need_fuse("3")
    place = tmp_path / "mnt"
    place.mkdir()
    environ = environment(server, tmp_path / "cache") | {"HOME": str(tmp_path)}
    environ = {key: text for key, text in environ.items() if not key.startswith("XDG_")} | {name: str(place)}
    done = lightlyfs("mount", server.dataset_id, str(place), environ=environ, check=False)
    assert done.returncode == 1
    assert f"lies inside {place}; choose one outside with --cache-dir" in done.stderr
    assert list(place.iterdir()) == []


def test_a_server_that_is_something_else_is_told_apart(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.faults.add(Html())
    (tmp_path / "mnt").mkdir()
    environ = environment(own_server, tmp_path / "cache")

    done = lightlyfs("mount", "own", str(tmp_path / "mnt"), environ=environ, check=False)

    assert done.returncode == 1
    assert "does not answer like the Lightly API" in done.stderr
    assert done.stderr.count("\n") == 1


class RefusingProxy(socketserver.StreamRequestHandler):
    """Answers each request, and each CONNECT, with 407."""

    def handle(self) -> None:
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        head = b'HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm="x"\r\n'
        self.wfile.write(head + b"Content-Length: 0\r\nConnection: close\r\n\r\n")


@pytest.fixture
def refusing_proxy() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), RefusingProxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        yield f"http://user:secret-password@127.0.0.1:{proxy.server_address[1]}"
        proxy.shutdown()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_its_user_is_told_apart(
    server: LocalServer, tmp_path: Path, refusing_proxy: str, scheme: str
) -> None:
    environ = environment(server, tmp_path / "cache") | {
        "LIGHTLY_SERVER_LOCATION": f"{scheme}://api.example.org",
        "HTTP_PROXY": refusing_proxy,
        "HTTPS_PROXY": refusing_proxy,
    }
    (tmp_path / "mnt").mkdir()
    for command in (["datasets"], ["mount", "own", str(tmp_path / "mnt")]):
        done = lightlyfs(*command, environ=environ, check=False)
        assert done.returncode == 1
        assert "the proxy does not accept its user name and password (407)" in done.stderr
        assert "secret-password" not in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_mountpoint_that_is_used_already_is_refused(server: LocalServer, tmp_path: Path) -> None:
    need_fuse("3")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    environ = environment(server, tmp_path / "cache")
    lightlyfs("mount", server.dataset_id, str(mountpoint), environ=environ)
    try:
        done = lightlyfs("mount", server.dataset_id, str(mountpoint), environ=environ, check=False)
    finally:
        lightlyfs("umount", str(mountpoint), environ=environ)

    assert done.returncode == 1
    assert f"end it with: lightlyfs umount {mountpoint}" in done.stderr


def test_the_helper_of_mount_8_can_start_it(server: LocalServer, tmp_path: Path) -> None:
    need_fuse("3")
    helper = shutil.which("mount.fuse3", path="/sbin:/usr/sbin")
    if os.getuid() != 0 or helper is None:
        pytest.skip("the helper of mount(8) needs root and mount.fuse3")
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    binaries = Path(sys.executable).parent
    environ = environment(server, tmp_path / "cache") | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    # mount(8) itself would look in the system's own directories only
    command = [helper, server.dataset_name, str(mountpoint), "-o", "ro,nosuid", "-t", "fuse.lightlyfs"]

    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    try:
        assert done.returncode == 0, done.stderr
        assert (mountpoint / "a.jpg").exists()
    finally:
        lightlyfs("umount", str(mountpoint), environ=environ)
