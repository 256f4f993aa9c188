"""Mounts to be measured: ours, and those of others over the same bucket. One that is missing is left out."""

from __future__ import annotations

import contextlib
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import HERE, Mount, running
from servers import BUCKET, KEY, SECRET, find_rclone

# opens a mount of the bucket behind a port, whose files are kept in a directory for the next one
Peer = Callable[[int, Path], contextlib.AbstractContextManager[Mount]]


@contextlib.contextmanager
def lightlyfs_mount(
    exported: dict[str, str], place: Path, *options: str, subject: str = "lightlyfs"
) -> Iterator[Mount]:
    """A mount of the dataset that `served` serves; its files are kept in `place` for the next one."""
    (place / "run").mkdir(mode=0o700, exist_ok=True)
    environ = {**os.environ, **exported, "XDG_RUNTIME_DIR": str(place / "run")}
    command = [sys.executable, "-m", "lightlyfs", "mount", exported["LIGHTLY_DATASET_ID"]]
    words = ["--foreground", "--cache-dir", place / "cache", "--log-level", "error", *options]
    with mounted(subject, place, command, words, env=environ) as mount:
        yield mount


# for reading: small files come fastest without a cache of its own (300 files/s over 20 ms, 160 with it), what
# is read again needs one; without `--use-server-modtime` each file would cost a HEAD more
RCLONE_SMALL = (
    *("--use-server-modtime", "--no-checksum", "--vfs-cache-mode", "off", "--attr-timeout", "60s"),
    *("--poll-interval", "0", "--vfs-refresh"),
)
RCLONE_CACHED = (
    *("--use-server-modtime", "--no-checksum", "--vfs-cache-mode", "full", "--vfs-fast-fingerprint"),
    *("--attr-timeout", "60s", "--poll-interval", "0", "--vfs-refresh"),
)


@contextlib.contextmanager
def rclone_mount(
    port: int,
    place: Path,
    *,
    writable: bool = False,
    words: Sequence[str] = RCLONE_CACHED,
    subject: str = "rclone mount",
) -> Iterator[Mount]:
    """`rclone mount`, by default with a cache on disk."""
    remote = (
        f":s3,provider=Rclone,access_key_id={KEY},secret_access_key={SECRET},force_path_style=true,"
        f"endpoint='http://127.0.0.1:{port}':{BUCKET}"
    )
    command: list[str | Path] = [find_rclone(), "mount", "--config", "/dev/null", remote]
    options: list[str | Path] = [*words, "--cache-dir", place / "cache"]
    options += ["--dir-cache-time", "1h", *([] if writable else ["--read-only"])]
    with mounted(subject, place, command, options, stderr=subprocess.DEVNULL) as mount:
        yield mount


@contextlib.contextmanager
def s3fs_mount(port: int, place: Path, *, writable: bool = False) -> Iterator[Mount]:
    """`s3fs`, with its cache on disk."""
    password = place / "password"
    password.touch(0o600)
    password.write_text(f"{KEY}:{SECRET}")
    (place / "cache").mkdir(exist_ok=True)
    options = [f"url=http://127.0.0.1:{port}", "use_path_request_style", f"passwd_file={password}"]
    options += [f"use_cache={place / 'cache'}", "enable_noobj_cache", "stat_cache_expire=3600"]
    options += [] if writable else ["ro"]
    words = ["-f", *(word for option in options for word in ("-o", option))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with mounted("s3fs", place, ["s3fs", BUCKET], words, **quiet) as mount:
        yield mount


@contextlib.contextmanager
def fsspec_mount(port: int, place: Path) -> Iterator[Mount]:
    """`fsspec.fuse` over s3fs(py), which keeps nothing on disk."""
    command = [sys.executable, HERE / "fsspec_fuse.py", str(port), BUCKET]
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with mounted("fsspec.fuse", place, command, [], env=environ, stderr=subprocess.DEVNULL) as mount:
        yield mount


def other_peers() -> list[Peer]:
    """The mounts beside rclone's that this machine has; what is missing is said."""
    found: list[Peer] = []
    if shutil.which("s3fs"):
        found.append(s3fs_mount)
    else:
        print("s3fs is left out: apt-get install s3fs")
    missing = [name for name in ("fsspec", "s3fs", "fuse") if importlib.util.find_spec(name) is None]
    if not missing and ctypes.util.find_library("fuse"):
        found.append(fsspec_mount)
    else:
        print("fsspec.fuse is left out: pip install 'lightlyfs[bench]', apt-get install libfuse2")
    return found


@contextlib.contextmanager
def mounted(
    subject: str, place: Path, command: Sequence[str | Path], words: Sequence[str | Path], **options: Any
) -> Iterator[Mount]:
    """Run a program that mounts `place/mnt`, whose path stands between `command` and `words`."""
    path = place / "mnt"
    path.mkdir(exist_ok=True)
    started = time.perf_counter()
    with running([*command, path, *words], **options) as process:
        try:
            wait_for_mount(path, process)
            yield Mount(subject, path, process.pid, time.perf_counter() - started)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if os.path.ismount(path):
                subprocess.run(["fusermount3", "-u", "-z", path], check=False, stderr=subprocess.DEVNULL)


def wait_for_mount(path: Path, process: subprocess.Popen[Any]) -> None:
    """Return once a mount answers."""
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit(f"a mount ended at its start: {process.args!r}")
        if os.path.ismount(path):
            os.statvfs(path)
            return
        time.sleep(0.01)
    raise SystemExit(f"a mount does not come: {process.args!r}")
