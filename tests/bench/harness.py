"""What the benchmarks share: rows of a table, processes and what they cost, readers."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# what a round trip to a server in the same region takes, where a benchmark adds one
ROUND_TRIP_S = 0.02
MB = 1_000_000
LOCAL = "local disk"
SMALL_PAGES = "tmpfs"
_TMPFS = Path("/dev/shm")


@dataclass(frozen=True)
class Row:
    """One number; CPU and peak memory are those of the mount's processes while it was taken."""

    bench: str
    what: str
    subject: str
    value: float
    unit: str
    cpu_s: float | None = None
    cpu_ms_per_file: float | None = None
    peak_mb: float | None = None


@dataclass
class Cost:
    """What processes used so far: CPU seconds of all their threads, and the most memory, in MB."""

    cpu_s: float
    peak_mb: float


@dataclass
class Bench:
    """One benchmark's rows, and the place for its files."""

    name: str
    directory: Path
    rows: list[Row] = field(default_factory=list)

    def note(self, what: str, subject: str, value: float, unit: str, **more: float) -> float:
        """Keep a number and show it."""
        row = Row(self.name, what, subject, value, unit, **more)
        self.rows.append(row)
        print(as_text(row), flush=True)
        return value

    def keep_best(self) -> None:
        """Of rates measured several times, in turns, keep the highest: what disturbs a run only slows it."""
        best: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            kept = best.setdefault((row.what, row.subject), row)
            if row.value > kept.value:
                best[row.what, row.subject] = row
        self.rows = list(best.values())

    def keep_claims(self, ours: str) -> None:
        """Of rates measured several times keep our lowest and the highest of each other."""
        kept: dict[tuple[str, str], Row] = {}
        for row in self.rows:
            one = kept.setdefault((row.what, row.subject), row)
            if (row.value < one.value) == (row.subject == ours):
                kept[row.what, row.subject] = row
        self.rows = list(kept.values())

    def place(self, name: str) -> Path:
        """A new empty directory; the one of before stays until the end.

        ext4 without a journal goes past each file deleted in the last minutes when it makes one, which took a
        fifth of a mount's CPU where thousands had just been deleted.
        """
        path = self.directory / name
        if path.exists():
            path.rename(Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory)) / "before")
        path.mkdir(mode=0o700, parents=True)
        return path


def as_text(row: Row) -> str:
    """A row as a line of the table."""
    memory = "" if row.peak_mb is None else f"{row.peak_mb:7.0f} MB"
    cost = "" if row.cpu_s is None else f"{row.cpu_s:7.2f} s CPU"
    each = "" if row.cpu_ms_per_file is None else f"{row.cpu_ms_per_file:7.2f} ms/file"
    number = f"{row.value:10,.2f} {row.unit:8}"
    return f"{row.bench:8} {row.what:50} {row.subject:16} {number} {memory:>10} {cost:>13} {each}".rstrip()


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as plain values, without what was not measured."""
    return [{key: value for key, value in asdict(row).items() if value is not None} for row in rows]


def cost_of(pid: int) -> Cost:
    """What a process, its children and those that ended used so far."""
    total = Cost(0, 0)
    for one in family_of(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{one}/status").read_text().splitlines()
        except OSError:
            continue  # it ended meanwhile
        total.cpu_s += sum(map(int, fields[11:15])) / TICKS_PER_S
        memory = [line.split()[1] for line in status if line.startswith("VmHWM:")]
        total.peak_mb += sum(map(int, memory)) / 1024
    return total


def family_of(pid: int) -> list[int]:
    """A process and its children, theirs too."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [one for child in task.read_text().split() for one in family_of(int(child))]
    return found


def timed(*words: str | Path, cwd: Path | None = None) -> float:
    """Seconds that a program takes; its output goes nowhere."""
    command = [str(word) for word in words]
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "LC_ALL": "C"})
    return time.perf_counter() - started


def middle_of(measure: Callable[[], float], times: int = 3) -> float:
    """The median of a few measurements, for what takes too little time to be measured once."""
    return statistics.median(measure() for _ in range(times))


def read_files(
    bench: Bench,
    directory: Path,
    names: Sequence[str],
    *,
    file_bytes: int,
    readers: int = 1,
    passes: int = 1,
    way: str = "plain",
    environ: dict[str, str] | None = None,
) -> float:
    """Files a second that `readers` processes read whole; stops everything if bytes are missing."""
    listed = bench.directory / "names"
    listed.write_text("\n".join(names))
    seconds, total = run_script("readers.py", directory, listed, readers, passes, way, environ=environ)
    expected = file_bytes * len(names) * passes
    if total != expected:
        raise SystemExit(f"{directory}: read {total} bytes, not {expected}")
    return len(names) * passes / seconds


def run_script(name: str, *words: object, environ: dict[str, str] | None = None) -> tuple[float, int]:
    """The two numbers that a script of this folder prints: seconds or a share, and bytes."""
    command = [sys.executable, str(HERE / name), *map(str, words)]
    environ = {**os.environ, **(environ or {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
    number, total = done.stdout.split()
    return float(number), int(total)


@contextlib.contextmanager
def in_memory(folder: Path) -> Iterator[Path]:
    """A copy of a folder's files on tmpfs, for the time of the block."""
    with tempfile.TemporaryDirectory(prefix="lightlyfs-bench-", dir=_TMPFS) as directory:
        yield Path(shutil.copytree(folder, Path(directory) / "copied"))


@dataclass
class Mount:
    """A mount by some program."""

    subject: str
    path: Path
    pid: int
    started_s: float

    def environ(self) -> dict[str, str]:
        """What programs need that talk to ours past the kernel."""
        return {"XDG_RUNTIME_DIR": str(self.path.parent / "run")}

    def cost(self) -> Cost:
        """What its processes used so far."""
        return cost_of(self.pid)

    @contextlib.contextmanager
    def metered(self, files: int = 0) -> Iterator[dict[str, float]]:
        """Fills in, at the end of the block, what the mount used in it, also per file."""
        before = self.cost()
        used: dict[str, float] = {}
        yield used
        after = self.cost()
        used.update(cpu_s=after.cpu_s - before.cpu_s, peak_mb=after.peak_mb)
        if files:
            used.update(cpu_ms_per_file=used["cpu_s"] / files * 1000)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Return once something listens."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"a server ended at its start: {process.args!r}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"a server does not listen: {process.args!r}")


def port_in(ready: Path, process: subprocess.Popen[Any]) -> int:
    """The port that a server wrote into a file."""
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"a server ended at its start: {process.args!r}")
        with contextlib.suppress(OSError, ValueError):
            return int(ready.read_text())
        time.sleep(0.05)
    raise SystemExit("a server does not start")


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
