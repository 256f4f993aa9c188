"""How a mount begins and ends, and what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dataset_files import FILES
from trees import (
    MountedTree,
    environment,
    lightlyfs,
    mounted,
    need_fuse,
    start_mount,
    wait_until,
)

from lightlyfs import mountpoints
from lightlyfs.testing import Fault, Latency, LocalServer, ServerOptions, Stall

pytestmark = pytest.mark.fuse


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty directory to mount on."""
    need_fuse("3")
    (tmp_path / "mnt").mkdir()
    return tmp_path / "mnt"


@pytest.fixture
def environ(server: LocalServer, tmp_path: Path) -> dict[str, str]:
    """The environment of a user of `server`, with temporary files of its own."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    return environment(server, tmp_path / "cache") | {"TMPDIR": str(temporary)}


@pytest.fixture
def background(place: Path, environ: dict[str, str], server: LocalServer) -> Iterator[int]:
    """A mount in the background; the number of its process."""
    lightlyfs("mount", server.dataset_id, str(place), environ=environ)
    yield pid_of(place, environ)
    if mountpoints.mount_at(place) is not None:
        mountpoints.unmount(place, lazy=True)


def pid_of(place: Path, environ: Mapping[str, str]) -> int:
    """The process behind a mount, as the mount tells."""
    return int(json.loads(lightlyfs("status", str(place), "--json", environ=environ).stdout)["pid"])


def is_running(pid: int) -> bool:
    """Whether a process runs, zombies apart."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def leftovers(environ: Mapping[str, str]) -> list[str]:
    """Sockets and temporary files that should be gone."""
    runtime = list(Path(environ["XDG_RUNTIME_DIR"]).rglob("*.sock"))
    temporary = list(Path(environ["TMPDIR"]).rglob("*.sock"))
    partial = [p for p in Path(environ["XDG_CACHE_HOME"]).rglob("*") if p.name.endswith(".tmp")]
    return [str(path) for path in runtime + temporary + partial]


def test_the_command_returns_when_the_mount_is_usable(background: int, place: Path) -> None:
    assert (place / "a.jpg").read_bytes() == FILES["a.jpg"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_and_leaves_nothing(
    background: int, place: Path, environ: dict[str, str], number: signal.Signals
) -> None:
    os.kill(background, number)

    wait_until(lambda: not is_running(background), 10)
    assert mountpoints.mount_at(place) is None
    assert os.listdir(place) == []
    assert leftovers(environ) == []


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_an_interrupt_while_a_mount_starts_ends_it_without_a_traceback(
    server: LocalServer, place: Path, environ: dict[str, str], delay_s: float
) -> None:
    command = [sys.executable, "-m", "lightlyfs", "mount", "-f", server.dataset_id, str(place)]
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        arguments = Path(f"/proc/{process.pid}/cmdline")
        wait_until(lambda: b"lightlyfs.cli.serving" in arguments.read_bytes(), 20)
        time.sleep(delay_s)  # any moment will do
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert "Traceback" not in said
    assert not os.path.ismount(place)


def test_umount_waits_until_the_process_has_ended(
    background: int, place: Path, environ: dict[str, str]
) -> None:
    done = lightlyfs("umount", str(place), environ=environ)

    assert not is_running(background)
    assert mountpoints.mount_at(place) is None
    assert leftovers(environ) == []
    assert done.stdout == done.stderr == ""


def test_the_systems_own_umount_ends_it_too(background: int, place: Path, environ: dict[str, str]) -> None:
    mountpoints.unmount(place)

    wait_until(lambda: not is_running(background), 10)
    assert leftovers(environ) == []


def test_umount_of_a_mount_in_use_says_who_can_be_found_how(
    background: int, place: Path, environ: dict[str, str]
) -> None:
    with (place / "a.jpg").open("rb"):
        done = lightlyfs("umount", str(place), environ=environ, check=False)

    assert done.returncode == 1
    assert "a program still uses it" in done.stderr
    assert (place / "a.jpg").read_bytes() == FILES["a.jpg"]


def test_a_signal_ends_it_although_a_read_hangs(own_server: LocalServer, tmp_path: Path) -> None:
    own_server.add_sample("slow.bin", os.urandom(200_000))
    with mounted(own_server, tmp_path / "tree") as tree:
        own_server.faults.add(Stall(target="storage"))
        reader = subprocess.Popen(["cat", str(tree.mountpoint / "slow.bin")], stderr=subprocess.DEVNULL)
        wait_until(lambda: own_server.stats.snapshot()["in_flight"] > 0, 10)

        tree.end()

        assert reader.wait(10) != 0


def test_a_killed_mount_is_cleared_by_the_next_one(
    background: int, place: Path, environ: dict[str, str], server: LocalServer
) -> None:
    os.kill(background, signal.SIGKILL)
    wait_until(lambda: not is_running(background), 10)
    with pytest.raises(OSError) as dead:  # noqa: PT011 - the errno is compared below
        os.listdir(place)
    assert dead.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)

    said = lightlyfs("status", str(place), environ=environ, check=False)
    assert "its process is gone" in said.stderr

    done = lightlyfs("mount", server.dataset_id, str(place), environ=environ)

    assert "cleared a dead mount" in done.stderr
    assert (place / "a.jpg").read_bytes() == FILES["a.jpg"]
    lightlyfs("umount", str(place), environ=environ)
    assert mountpoints.mount_at(place) is None


def test_umount_clears_what_a_killed_mount_left(
    background: int, place: Path, environ: dict[str, str]
) -> None:
    os.kill(background, signal.SIGKILL)
    wait_until(lambda: not is_running(background), 10)

    done = lightlyfs("umount", str(place), environ=environ)

    assert f"the process of the mount on {place} was gone" in done.stderr
    assert mountpoints.mount_at(place) is None


@contextlib.contextmanager
def bound(place: Path, directory: Path) -> Iterator[str]:
    """The mount at a second place; what names it."""
    directory.mkdir()
    subprocess.run(["mount", "--bind", str(place), str(directory)], check=True)
    try:
        yield str(directory)
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@contextlib.contextmanager
def in_another_namespace(place: Path, directory: Path) -> Iterator[str]:
    """The mount in the namespace of another process, as a container has it; what names it."""
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo ready; exec sleep 1000"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield f"{place} (for process {process.pid})"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("held", [bound, in_another_namespace])
def test_umount_of_what_is_mounted_elsewhere_says_where(
    background: int, place: Path, environ: dict[str, str], tmp_path: Path, held: Any
) -> None:
    need_root()
    started = time.monotonic()
    with held(place, tmp_path / "second") as name:
        command = subprocess.Popen(
            [sys.executable, "-m", "lightlyfs", "umount", str(place)],
            stderr=subprocess.PIPE,
            env=environ,
            text=True,
        )
        assert command.stderr is not None
        said = command.stderr.readline()
        assert time.monotonic() - started < 10
        assert f"waiting for process {background}, whose mount is still at {name}" in said
        assert command.poll() is None

    with command:
        assert command.wait(10) == 0
    assert not is_running(background)


def test_a_lazy_umount_of_what_is_mounted_elsewhere_does_not_wait(
    background: int, place: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    need_root()
    with bound(place, tmp_path / "second") as name:
        done = lightlyfs("umount", "--lazy", str(place), environ=environ)

        assert f"the same mount is still at {name}" in done.stderr
        assert mountpoints.mount_at(place) is None
    wait_until(lambda: not is_running(background), 10)


LISTINGS = ("list", "partial")
SLOW: dict[str, list[Fault]] = {
    "slow": [Latency(target=target, delay_s=60) for target in LISTINGS],
    "stalled": [Stall(target=target, at="half") for target in LISTINGS],
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_mount_that_is_still_listing_ends_at_once(
    place: Path, environ: dict[str, str], server: LocalServer, kind: str
) -> None:
    """By umount, and by a signal; nobody waits for the answers that are under way."""
    server.faults.add(*SLOW[kind])
    try:
        for end in (lambda _: lightlyfs("umount", str(place), environ=environ), terminate):
            lightlyfs("mount", "--no-wait", server.dataset_id, str(place), environ=environ)
            pid = pid_of(place, environ)
            started = time.monotonic()
            end(pid)
            wait_until(lambda pid=pid: not is_running(pid), 10)
            assert time.monotonic() - started < 3
    finally:
        server.faults.clear()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), ("--foreground",)], ids=["background", "foreground"])
def test_a_signal_during_the_first_listing_ends_all_that_was_started(
    place: Path, environ: dict[str, str], server: LocalServer, number: int, options: tuple[str, ...]
) -> None:
    server.faults.add(*SLOW["stalled"])
    words = [sys.executable, "-m", "lightlyfs", "mount", *options, server.dataset_id, str(place)]
    marked = environ | {"LIGHTLYFS_TEST_MARK": str(place)}
    try:
        with subprocess.Popen(
            words, env=marked, stderr=subprocess.DEVNULL, start_new_session=True
        ) as command:
            wait_until(lambda: server.stats.snapshot()["in_flight"] > 0, 20)
            started = time.monotonic()
            command.send_signal(number)
            command.wait(10)
            wait_until(lambda: not marked_processes(str(place)), 10)
            assert time.monotonic() - started < 3
    finally:
        server.faults.clear()
    assert mountpoints.mount_at(place) is None


def marked_processes(mark: str) -> list[int]:
    """Those that have the mark in their environment, zombies apart."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if f"LIGHTLYFS_TEST_MARK={mark}".encode() in Path(f"/proc/{process}/environ").read_bytes():
                found.append(int(process))
    return found


def terminate(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def need_root() -> None:
    """Skip where nothing may be mounted twice."""
    if os.getuid() != 0:
        pytest.skip("only root may bind mounts")


def test_a_remount_asks_for_no_url_and_no_content_it_has(
    server: LocalServer, place: Path, environ: dict[str, str]
) -> None:
    def read_all() -> dict[str, int]:
        lightlyfs("mount", server.dataset_id, str(place), environ=environ)
        for name, data in FILES.items():
            assert (place / name).read_bytes() == data
        status = json.loads(lightlyfs("status", str(place), "--json", environ=environ).stdout)
        lightlyfs("umount", str(place), environ=environ)
        return dict(status["requests"]) | {"fetched": status["content"]["fetches"]}

    first, second = read_all(), read_all()

    assert first["get_sample_read_url"] == len(FILES)
    assert "get_sample_read_url" not in second
    assert second["fetched"] == 0


def test_a_stored_catalogue_and_cache_serve_without_a_server(
    folder: Path, place: Path, tmp_path: Path
) -> None:
    with LocalServer(ServerOptions(source=folder)) as server:
        environ = environment(server, tmp_path / "cache")
        lightlyfs("mount", server.dataset_id, str(place), environ=environ)
        assert (place / "a.jpg").read_bytes() == FILES["a.jpg"]
        lightlyfs("umount", str(place), environ=environ)

    done = lightlyfs("mount", server.dataset_id, str(place), environ=environ)
    try:
        assert done.stderr.count("\n") == 1
        assert "cannot be reached" in done.stderr
        assert sorted(os.listdir(place)) == ["a.jpg", "big.bin", "cars", "empty.png", "one.bin"]
        assert (place / "a.jpg").read_bytes() == FILES["a.jpg"]
    finally:
        lightlyfs("umount", str(place), environ=environ)


def test_a_second_mount_of_a_dataset_shares_its_cache(
    background: int, place: Path, server: LocalServer, environ: dict[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()

    done = lightlyfs("mount", server.dataset_id, str(other), environ=environ)

    try:
        assert (done.returncode, done.stderr) == (0, "")
        assert (place / "a.jpg").read_bytes() == FILES["a.jpg"]
        before = server.stats.count("storage.get")
        assert (other / "a.jpg").read_bytes() == FILES["a.jpg"]
        assert server.stats.count("storage.get") == before
        said = json.loads(lightlyfs("status", str(other), "--json", environ=environ).stdout)
        assert (said["cache"]["shared"], said["cache"]["private"]) == (True, False)
    finally:
        lightlyfs("umount", str(other), environ=environ)
    datasets = next(Path(environ["XDG_CACHE_HOME"], "lightlyfs").iterdir())
    assert [p.name for p in datasets.iterdir() if p.is_dir()] == [server.dataset_id]


def test_no_cache_leaves_nothing_on_disk(server: LocalServer, place: Path, environ: dict[str, str]) -> None:
    lightlyfs("mount", server.dataset_id, str(place), "--no-cache", environ=environ)
    assert (place / "big.bin").read_bytes() == FILES["big.bin"]
    lightlyfs("umount", str(place), environ=environ)

    left = [p for p in Path(environ["XDG_CACHE_HOME"], "lightlyfs").rglob("*") if p.is_file()]
    assert [p.name for p in left] == ["names.json"]


@pytest.mark.parametrize(
    "words",
    [
        ["DATASET", "MNT", "-o", "ro,nodev,nosuid,noatime,metadata_ttl=30,x-systemd.automount,_netdev"],
        ["mount", "NAME", "MNT"],
        ["mount", "lightly:NAME", "MNT"],
        ["mount", "https://app.lightly.ai/dataset/DATASET/samples", "MNT"],
        pytest.param(
            ["mount", "DATASET", "MNT", "--umask", "077", "--uid", "1", "--gid", "2", "--jobs", "3"],
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root may read the files of another user"),
        ),
    ],
)
def test_the_forms_of_the_command_are_the_same(
    words: list[str], server: LocalServer, place: Path, environ: dict[str, str]
) -> None:
    names = {"DATASET": server.dataset_id, "MNT": str(place), "NAME": server.dataset_name}

    for name, value in names.items():
        words = [word.replace(name, value) for word in words]

    lightlyfs(*words, environ=environ)

    try:
        found = (place / "a.jpg").stat()
        assert (found.st_uid, found.st_gid) == ((1, 2) if "--uid" in words else (os.getuid(), os.getgid()))
        expected = "600" if "--umask" in words else "444" if "-o" in words else "644"
        assert oct(found.st_mode)[-3:] == expected
        entry = mountpoints.mount_at(place)
        assert entry is not None
        assert (entry.type, entry.source) == ("fuse.lightlyfs", f"lightly:{server.dataset_name}")
    finally:
        lightlyfs("umount", str(place), environ=environ)


def test_the_token_is_in_no_argument_list_and_no_log(
    background: int, environ: dict[str, str], place: Path
) -> None:
    (place / "a.jpg").read_bytes()
    secrets = [environ["LIGHTLY_TOKEN"].encode(), environ["LIGHTLY_PUBLIC_TOKEN"].encode(), b"sig="]

    for path in [Path(f"/proc/{background}/cmdline"), *Path(environ["XDG_CACHE_HOME"]).rglob("*.log")]:
        text = path.read_bytes()
        assert not [secret for secret in secrets if secret in text]


def test_files_on_disk_are_the_owners_alone(background: int, environ: dict[str, str], place: Path) -> None:
    (place / "a.jpg").read_bytes()
    root = Path(environ["XDG_CACHE_HOME"]) / "lightlyfs"

    open_to_others = [str(p) for p in [root, *root.rglob("*")] if p.stat().st_mode & 0o077]

    assert open_to_others == []


def test_redirect_mode_reads_with_a_public_token(server: LocalServer, tmp_path: Path) -> None:
    server.stats.reset()
    with mounted(server, tmp_path / "tree", "3", "--read-mode", "redirect") as tree:
        assert isinstance(tree, MountedTree)
        assert tree.read("big.bin") == FILES["big.bin"]
        status = json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)

    assert status["requests"]["get_sample_redirect_url"] == 1
    assert "get_sample_read_url" not in status["requests"]


def test_python_can_mount(server: LocalServer, place: Path, environ: dict[str, str], tmp_path: Path) -> None:
    program = f"""
import lightlyfs
with lightlyfs.mount({server.dataset_id!r}, {str(place)!r}, jobs=4, no_wait=False) as mounted:
    print(len((mounted.path / "a.jpg").read_bytes()), mounted.refresh(), mounted.status()["dataset"]["name"])
try:
    lightlyfs.mount("x", {str(tmp_path / "none")!r})
except lightlyfs.errors.StartError as error:
    print(error)
"""

    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True
    )

    first, second = done.stdout.splitlines()
    assert first == "100000 {'added': 0, 'changed': 0, 'gone': 0} files"
    assert "does not exist; make it with" in second
    assert mountpoints.mount_at(place) is None


def test_start_mount_of_a_killed_server_fails_in_time(place: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as images, LocalServer(ServerOptions(source=Path(images))) as server:
        environ = environment(server, tmp_path / "cache")
    with pytest.raises(AssertionError, match="cannot be reached"):
        start_mount(server.dataset_id, place, environ, tmp_path / "log")
