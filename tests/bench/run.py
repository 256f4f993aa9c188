"""Benchmarks: `python tests/bench/run.py NAME...|all [--json FILE] [--plot FILE]`.

They compare within a part, on one machine that runs the servers too. CPU and memory are those of a mount's
processes. A table of ratios, each beside what is asked of it, comes last. Parts that are not run keep the
numbers that FILE has of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from bars import as_lines, judged
from harness import Bench, Row, as_json, as_text

NAMES = ("cold", "training", "large", "warm", "scale", "writing", "metrics", "idle")
# several names for those who look for a topic; soak, slopes, write_rates and train are asked for by name
GROUPS = {
    "all": NAMES,
    "reads": ("cold", "warm"),
    "soak": ("soak",),
    "slopes": ("slopes",),
    "write_rates": ("write_rates",),
    "train": ("train",),
}


def main() -> None:
    """Run what was asked for."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    flags.add_argument("names", nargs="+", choices=[*NAMES, *GROUPS], metavar="NAME", help="%(choices)s")
    flags.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the numbers go")
    flags.add_argument("--plot", type=Path, default=Path("build/bench.png"), help="where the picture goes")
    given = flags.parse_args()
    names = list(dict.fromkeys(part for name in given.names for part in GROUPS.get(name, (name,))))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="lightlyfs-bench-") as directory:
        rows = [row for name in names for row in rows_of(name, Path(directory) / name)]
    print(f"\n{time.perf_counter() - started:.0f} s in all\n")
    print("\n".join(as_text(row) for row in rows))
    print("\n" + "\n".join(as_lines(judged(rows))))
    rows = [row for row in kept_in(given.json) if row.bench not in names] + rows
    keep(rows, given.json)
    draw(rows, given.plot)


def rows_of(name: str, directory: Path) -> list[Row]:
    """Run one benchmark; what it found until then where it fails, so that the others still run."""
    bench = Bench(name, directory)
    started = time.perf_counter()
    directory.mkdir()
    try:
        importlib.import_module(name).run(bench)
    except (SystemExit, OSError, ValueError) as error:
        print(f"{name} ended early: {error}", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    print(f"{name}: {time.perf_counter() - started:.0f} s\n", flush=True)
    return bench.rows


def kept_in(path: Path) -> list[Row]:
    """The numbers of earlier runs; none where they are of another make."""
    try:
        return [Row(**row) for row in json.loads(path.read_text())["rows"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def keep(rows: list[Row], path: Path) -> None:
    """Write the numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"python": platform.python_version(), "kernel": platform.release(), "cores": os.cpu_count()}
    results = {
        **facts,
        "at": time.time(),
        "rows": as_json(rows),
        "bars": [bar.plain() for bar in judged(rows)],
    }
    path.write_text(json.dumps(results, indent=1) + "\n")


def draw(rows: list[Row], path: Path) -> None:
    """Draw the picture, where matplotlib is there to do it."""
    try:
        plot = importlib.import_module("plot")
    except ImportError:
        print("no picture: pip install 'lightlyfs[bench]'")
        return
    plot.draw(rows, path)


if __name__ == "__main__":
    main()
