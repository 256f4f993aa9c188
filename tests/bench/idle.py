"""What mounts cost that nobody uses: wakeups, CPU and memory of each, with twenty of them on one dataset.

Half of them share a cache, the others have one each. Memory is that of mounts that were listed, and again
after a few files of each were read; wakeups and CPU are those after that.
"""

from __future__ import annotations

import contextlib
import re
import statistics
import time
from pathlib import Path

from harness import Bench, family_of
from mounts import lightlyfs_mount
from servers import served

MOUNTS, FILES, READ = 20, 2_000, 50
SUBJECT = "lightlyfs"
# what follows the last call, such as facts written down behind, has ended by then
SETTLE_S = 5.0
WATCHED_S = 60.0
WAKEUPS, CPU, MEMORY = "wakeups of an idle mount", "CPU of an idle mount", "memory (PSS) of an idle mount"
_SWITCHES = re.compile(r"^(?:non)?voluntary_ctxt_switches:\s+(\d+)", re.MULTILINE)
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def run(bench: Bench) -> None:
    """Twenty mounts, left alone for a minute."""
    words = ["--fake", str(FILES), "--fake-size", "100000", "--fake-per-dir", "1000"]
    shared = bench.place("shared")
    with served(*words) as exported, contextlib.ExitStack() as stack:
        found = []
        for number in range(MOUNTS):
            place = bench.place(f"mount-{number}")
            options = () if number % 2 else ("--cache-dir", str(shared))
            found.append(stack.enter_context(lightlyfs_mount(exported, place, *options)))
        time.sleep(SETTLE_S)
        families = [family_of(mount.pid) for mount in found]
        fresh_mb = statistics.mean(map(memory_mb, families))
        for mount in found:
            for path in sorted(mount.path.rglob("*.jpg"))[:READ]:
                path.read_bytes()
        time.sleep(SETTLE_S)
        before = [measured(family) for family in families]
        started = time.monotonic()
        time.sleep(WATCHED_S)
        seconds = time.monotonic() - started
        after = [measured(family) for family in families]
        switches = [(b[0] - a[0]) / seconds for a, b in zip(before, after, strict=True)]
        cpu_ms = [(b[1] - a[1]) * 1000 * 60 / seconds for a, b in zip(before, after, strict=True)]
        bench.note(WAKEUPS, SUBJECT, statistics.mean(switches), "/s")
        bench.note(f"{WAKEUPS}, the busiest", SUBJECT, max(switches), "/s")
        bench.note(CPU, SUBJECT, statistics.mean(cpu_ms), "ms/min")
        bench.note(MEMORY, SUBJECT, fresh_mb, "MB")
        bench.note(f"{MEMORY}, after {READ} files", SUBJECT, statistics.mean(map(memory_mb, families)), "MB")


def measured(family: list[int]) -> tuple[int, float]:
    """How often the threads of processes gave the processor away so far, and the CPU seconds they used."""
    return sum(map(wakeups_of, family)), sum(map(cpu_of, family))


def wakeups_of(pid: int) -> int:
    """How often the threads of a process went to sleep so far, or were interrupted."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            found += sum(map(int, _SWITCHES.findall((task / "status").read_text())))
    return found


def cpu_of(pid: int) -> float:
    """The CPU seconds that a process used so far, to the nanosecond."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9


def memory_mb(family: list[int]) -> float:
    """The memory of processes, what they share divided among those who do."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in family]
    return sum(int(size) for text in texts for size in _PSS.findall(text)) / 1024
