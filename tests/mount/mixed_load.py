"""Programs that use a mount all at once for some time; prints what they saw, as JSON.

    python mixed_load.py MOUNTPOINT SECONDS

Readers check every byte. A file says what is to be in it by its name and its first bytes: see `content`.
Imports nothing of lightlyfs.
"""

from __future__ import annotations

import collections
import errno
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

SMALL_BYTES, LARGE_BYTES = 60_000, 5_500_000
READERS = 8
_HEAD_BYTES = 16


def content(name: str, version: int = 0) -> bytes:
    """The bytes of a file of this name: its version in digits, then what follows from both."""
    size = LARGE_BYTES if name.startswith("large") else SMALL_BYTES + version
    return b"%016d" % version + random.Random(f"{name} {version}").randbytes(size - _HEAD_BYTES)


class Load:
    """The programs, and what they saw."""

    def __init__(self, root: Path, seconds: float) -> None:
        self._root = root
        self._end = time.monotonic() + seconds
        self._lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.errors: list[str] = []
        self.wrong: list[str] = []
        self.stat_ms: list[float] = []
        self.written: dict[str, str] = {}  # name on the mount: what its content follows from

    def run(self) -> None:
        """Run all programs until the time is over."""
        programs: list[Callable[[random.Random], None]] = [self._read] * READERS
        programs += [self._write, self._rename, self._list, self._stat]
        threads = [
            threading.Thread(target=self._repeat, args=(program, number))
            for number, program in enumerate(programs)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def report(self) -> dict[str, object]:
        """What was seen, as plain values."""
        slow = sorted(self.stat_ms)
        return {
            **self.counts,
            "errors": self.errors,
            "wrong": self.wrong,
            "written": self.written,
            "stat_p50_ms": slow[len(slow) // 2] if slow else 0,
            "stat_p99_ms": slow[len(slow) * 99 // 100] if slow else 0,
        }

    def _repeat(self, program: Callable[[random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < self._end:
            try:
                program(chance)
            except OSError as error:
                with self._lock:
                    self.errors.append(f"{program.__name__} {error!r} {error.filename}")
                time.sleep(0.1)

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def _read(self, chance: random.Random) -> None:
        names = self._names(
            "small" if chance.random() < 0.9 else "large" if chance.random() < 0.5 else "changing"
        )
        path = self._root / chance.choice(names)
        try:
            data = path.read_bytes()
        except OSError as error:
            if error.errno != errno.ESTALE or path.parent.name != "changing":
                raise
            self._count("replaced_while_open")
            data = path.read_bytes()  # a program opens such a file again
        name = str(path.relative_to(self._root))
        if data != content(name, int(data[:_HEAD_BYTES] or b"-1")):
            with self._lock:
                self.wrong.append(f"{name}: {len(data)} bytes, {data[:_HEAD_BYTES]!r}")
        self._count("reads")

    def _names(self, directory: str) -> list[str]:
        return [f"{directory}/{name}" for name in os.listdir(self._root / directory)]

    def _write(self, chance: random.Random) -> None:
        name = f"written/{self.counts['writes']:06d}.jpg"
        path = self._root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content(name))
        self.written[name] = name
        if path.read_bytes() != content(name):
            self.wrong.append(f"{name} just after it was written")
        self._count("writes")
        time.sleep(0.2)

    def _rename(self, chance: random.Random) -> None:
        old = next((name for name in list(self.written) if name.startswith("written/")), None)
        if old is not None:
            new = old.replace("written/", "renamed/")
            (self._root / "renamed").mkdir(exist_ok=True)
            os.rename(self._root / old, self._root / new)
            self.written[new] = self.written.pop(old)
            self._count("renames")
        time.sleep(1)

    def _list(self, chance: random.Random) -> None:
        subprocess.run(["ls", "-lR", str(self._root)], stdout=subprocess.DEVNULL, check=False)
        found = len(os.listdir(self._root / "small"))
        if found < self.counts["small"]:
            self.wrong.append(f"a listing lost {self.counts['small'] - found} names")
        self.counts["small"] = found
        self._count("listings")
        time.sleep(1)

    def _stat(self, chance: random.Random) -> None:
        path = self._root / chance.choice(self._names("small"))
        started = time.monotonic()
        os.stat(path)
        self.stat_ms.append((time.monotonic() - started) * 1000)
        time.sleep(0.02)


def main() -> None:
    """Run the load, and print its report."""
    load = Load(Path(sys.argv[1]), float(sys.argv[2]))
    load.run()
    json.dump(load.report(), sys.stdout)


if __name__ == "__main__":
    main()
