"""The units that `lightlyfs deploy` prints: what systemd says of them, and their commands run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from trees import environment, lightlyfs, need_fuse, wait_until

from lightlyfs import mountpoints
from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

INSTANCE = "own"
UNITS = ["system-unit", "user-unit"]


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest) -> str:
    """The text of one of the units."""
    return lightlyfs("deploy", request.param, environ=os.environ).stdout


def test_systemd_finds_nothing_wrong_with_a_unit(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here; install it with: apt-get install systemd")
    file = tmp_path / "lightlyfs@.service"
    file.write_text(unit)
    whose = "--user" if "WantedBy=default.target" in unit else "--system"
    # the manager of a user wants to know where that keeps its sockets
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", whose, "--man=no", "verify", str(file)],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


class Service:
    """A unit's commands, with what systemd puts for its specifiers and variables."""

    def __init__(self, unit: str, places: Mapping[str, str], environ: Mapping[str, str]) -> None:
        self._lines = [line.partition("=") for line in unit.splitlines() if re.match(r"\w+=", line)]
        self._places = places
        variables = dict(word.split("=", 1) for word in self._words("Environment"))
        file = Path(self._words("EnvironmentFile")[0].removeprefix("-"))
        variables |= dict(line.split("=", 1) for line in file.read_text().splitlines())
        self.environ = {**environ, **variables}

    def _words(self, key: str) -> list[str]:
        """The words of all lines of a key, with what stands for each specifier, and for the system's /etc."""
        text = " ".join(value for name, _, value in self._lines if name == key)
        for specifier, place in self._places.items():
            text = text.replace(specifier, place)
        return text.split()

    def command(self, key: str) -> list[str]:
        """The words of a command: `${NAME}` is one of them, `$NAME` as many as it has."""
        found: list[str] = []
        for word in " ".join(self._words(key)).removeprefix("-").split(" "):
            if match := re.fullmatch(r"\$(\w+)", word):
                found += shlex.split(self.environ[match[1]])
            else:
                found.append(re.sub(r"\$\{(\w+)\}", lambda match: self.environ[match[1]], word))
        return found


@pytest.fixture
def runtime() -> Iterator[Path]:
    """What /run is to systemd; its path is short, for those of sockets have to be."""
    with tempfile.TemporaryDirectory(prefix="lightlyfs-run-") as directory:
        (Path(directory) / "lightlyfs").mkdir(mode=0o700)
        yield Path(directory)


@pytest.fixture
def service(unit: str, own_server: LocalServer, runtime: Path, tmp_path: Path) -> Service:
    """The unit of an administrator who wrote a token and the place of the mount."""
    need_fuse("3")
    configured = tmp_path / "etc/lightlyfs"
    configured.mkdir(parents=True)
    (tmp_path / "state").mkdir(mode=0o700)
    (configured / f"{INSTANCE}.token").write_text(own_server.token)
    (configured / f"{INSTANCE}.token").chmod(0o600)
    said = f"MOUNTPOINT={tmp_path / 'a place'}\nOPTIONS=--jobs=4 --read-only\n"
    (configured / f"{INSTANCE}.env").write_text(said)
    environ = environment(own_server, tmp_path / "cache")
    del environ["LIGHTLY_TOKEN"]
    places = {"%i": INSTANCE, "%t": str(runtime), "%S": str(tmp_path / "state"), "%h": str(tmp_path)}
    etc = str(tmp_path / "etc")
    return Service(unit, {"/etc": etc, **places, "%E": etc}, environ)


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd is told."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(20)
        yield heard


def test_the_commands_of_a_unit_start_reload_and_stop_a_mount(
    service: Service, own_server: LocalServer, notified: socket.socket, tmp_path: Path
) -> None:
    own_server.add_sample("a.bin", b"a")
    mountpoint = tmp_path / "a place"
    subprocess.run(service.command("ExecStartPre"), check=True)
    environ = {**service.environ, "NOTIFY_SOCKET": notified.getsockname()}
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(service.command("ExecStart"), env=environ, stdout=out, stderr=out)
    try:
        assert notified.recv(100) == b"READY=1"
        assert (mountpoint / "a.bin").read_bytes() == b"a"

        status = [service.command("ExecStop")[0], "status", str(mountpoint)]
        told = subprocess.run(status, env=service.environ, capture_output=True, text=True, check=True)
        assert "1 sample " in told.stdout

        service.environ["MAINPID"] = str(process.pid)
        subprocess.run(service.command("ExecReload"), check=True)
        wait_until(lambda: "the token was read again" in log.read_text(), 5)

        with subprocess.Popen(service.command("ExecStop"), env=service.environ) as stop:
            # whoever started the mount has to take its exit code before `umount` sees the end
            assert process.wait(20) == 0, log.read_text()
            assert stop.wait(20) == 0
        assert mountpoints.mount_at(mountpoint) is None
    finally:
        process.kill()
        process.wait()
        if mountpoints.mount_at(mountpoint) is not None:
            mountpoints.unmount(mountpoint, lazy=True)
