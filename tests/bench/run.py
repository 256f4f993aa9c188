"""Benchmarks: `python tests/bench/run.py NAME...|all [--json FILE]`; they compare within a run, and assert
nothing.

NAME is scale, reads, shuffled, direct or large. CPU seconds and memory are those of the mount's process; a
ratio says how many times as fast a row is as the subject it names.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shutil
import tempfile
import time
from pathlib import Path

from harness import Bench, Row, as_json, as_text

NAMES = ("scale", "reads", "shuffled", "direct", "large")


def main() -> None:
    """Run what was asked for."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("names", nargs="+", choices=[*NAMES, "all"], metavar="NAME")
    flags.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the numbers go")
    given = flags.parse_args()
    names = NAMES if "all" in given.names else tuple(given.names)
    rows: list[Row] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lightlyfs-bench-") as directory:
        for name in names:
            bench = Bench(name, Path(directory) / name)
            importlib.import_module(name).run(bench)
            rows += bench.rows
            shutil.rmtree(bench.directory)
    print(f"\n{time.perf_counter() - started:.0f} s in all\n")
    print("\n".join(as_text(row) for row in rows))
    given.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"python": platform.python_version(), "kernel": platform.release(), "at": time.time()}
    given.json.write_text(json.dumps({**facts, "rows": as_json(rows)}, indent=1))


if __name__ == "__main__":
    main()
