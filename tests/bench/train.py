"""Epochs by data loaders: batches of 64, shuffled, cold and again, over 20 and 80 ms, 0, 2 and 8 workers.

Ours (`lightlyfs.torch`, and the same over a mount) beside litData's raw files, torch's connector for S3 and
rclone mount at its best flags, a download of everything by 32 threads, and a plain loader over what that
left on the local disk. All read one object
server (`object_server.py`); ours asks it for a URL first. Rates count from the first batch on, those of a
whole epoch from its beginning: until a first batch is there, workers have read others. A peer that is
not installed is left out, and so is all that needs torch without torch: `pip install '.[torch]' litdata
s3torchconnector`. `LIGHTLYFS_BENCH_FILES` sets how many files there are, `..._DECODE=1` has them decoded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from harness import HERE, Bench, run_script
from mounts import RCLONE_SMALL, lightlyfs_mount, rclone_mount
from object_server import BUCKET
from servers import KEY, SECRET, object_served

FILES = int(os.environ.get("LIGHTLYFS_BENCH_FILES", "2000"))
DECODE = "decoded" if os.environ.get("LIGHTLYFS_BENCH_DECODE") else "raw"
FILE_BYTES, BATCH, THREADS = 100_000, 64, 32
# of those that take a round trip a file: the rate is the same
FEW_BATCHES = 4
DELAYS_S = (0.02, 0.08)
WORKERS = (0, 2, 8)
OURS, OURS_MOUNTED, RCLONE = "lightlyfs.torch", "over the mount", "rclone mount"
LOCAL, DOWNLOAD = "local disk", "download"
PEERS = {"litdata": "litdata", "s3torch": "s3torchconnector"}


def run(bench: Bench) -> None:
    """Every loader, at each distance."""
    for delay_s in DELAYS_S:
        with served(bench, delay_s) as environ:
            local = download(bench, environ, delay_s)
            if importlib.util.find_spec("torch") is None:
                print("the loaders are left out: pip install '.[torch]'")
                continue
            for workers in WORKERS:
                loaders(bench, environ, delay_s, workers)
                if delay_s == DELAYS_S[0]:  # no network, so no second distance
                    note(bench, environ, Loader(LOCAL, "folder", f"{local}"), delay_s, workers)


def loaders(bench: Bench, environ: dict[str, str], delay_s: float, workers: int) -> None:
    """Ours and the others, with so many workers, in turns."""
    for kind, package in PEERS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{kind} is left out: pip install {package}")
            continue
        place = f"s3://{BUCKET}/fake" if kind == "litdata" else f"s3://{BUCKET}/fake/"
        few = FEW_BATCHES * max(1, workers) if kind == "s3torch" else 0
        note(bench, environ, Loader(kind, kind, place, few), delay_s, workers)
        if kind == "litdata":
            note(bench, environ, Loader("litdata, files cached", kind, f"{place}?cached"), delay_s, workers)
    note(bench, environ, Loader(OURS, "ours", environ["LIGHTLY_DATASET_ID"]), delay_s, workers)
    with lightlyfs_mount(environ, bench.place("ours")) as mount:
        told = {**environ, **mount.environ()}
        note(bench, told, Loader(OURS_MOUNTED, "ours", f"{mount.path}"), delay_s, workers)
    if workers:  # one file after the other, each of which waits
        port = int(environ["LIGHTLY_SERVER_LOCATION"].rpartition(":")[2])
        with rclone_mount(port, bench.place("rclone"), words=RCLONE_SMALL) as mount:
            few = FEW_BATCHES * workers
            note(bench, environ, Loader(RCLONE, "folder", f"{mount.path}", few), delay_s, workers)


class Loader(NamedTuple):
    """A loader: what it is called, which of `epoch.py` it is, what it reads, and how much (0: all)."""

    subject: str
    kind: str
    place: str
    few_batches: int = 0


def note(bench: Bench, environ: dict[str, str], loader: Loader, delay_s: float, workers: int) -> None:
    """Run a loader in a process of its own, with an empty cache."""
    most = min(loader.few_batches, FILES // BATCH) or -(-FILES // BATCH)
    epochs = 1 if loader.few_batches else 2
    words = [loader.kind, loader.place, workers, BATCH, epochs, most, DECODE]
    cache = bench.place("cache")
    environ = {**environ, "XDG_CACHE_HOME": f"{cache}", "BENCH_CACHE": f"{cache / 'peer'}"}
    before = stats(environ)
    command = [sys.executable, str(HERE / "epoch.py"), *map(str, words)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{loader.subject} is left out: {done.stderr.strip().splitlines()[-1]}")
        return
    files = min(FILES, most * BATCH)
    what = f"{delay_s * 1000:.0f} ms, {workers} workers"
    for name, line in zip(("cold", "second epoch"), done.stdout.splitlines(), strict=False):
        row = json.loads(line)
        if row["files"] != files or row["bytes"] != files * FILE_BYTES:
            raise SystemExit(f"{loader.subject}: {row['files']} files of {row['bytes']} bytes")
        cost = {"cpu_ms_per_file": row["cpu_s"] / files * 1000}
        bench.note(f"{name}, {what}", loader.subject, row["per_s"], "files/s", **cost)
        bench.note(f"{name}, whole epoch, {what}", loader.subject, row["whole_per_s"], "files/s")
        if name == "cold":
            bench.note(f"first batch, {what}", loader.subject, row["first_s"], "s")
    sent = stats(environ)["bytes"] - before["bytes"]
    bench.note(f"sent, {what}", loader.subject, sent / FILE_BYTES / files, "times")


def download(bench: Bench, environ: dict[str, str], delay_s: float) -> Path:
    """Everything, before any of it is read; where it is then."""
    place = bench.place("downloaded")
    seconds, total = run_script("download.py", place, THREADS, "urllib3", environ=environ)
    if total != FILES * FILE_BYTES:
        raise SystemExit(f"downloaded {total} bytes, not {FILES * FILE_BYTES}")
    bench.note(f"all downloaded first, {delay_s * 1000:.0f} ms", DOWNLOAD, FILES / seconds, "files/s")
    return place


def stats(environ: dict[str, str]) -> dict[str, int]:
    """What the object server counted."""
    import requests

    answer = requests.get(f"{environ['LIGHTLY_SERVER_LOCATION']}/bench/stats", timeout=60)
    return dict(answer.json())


@contextlib.contextmanager
def served(bench: Bench, delay_s: float) -> Iterator[dict[str, str]]:
    """An API and the object server in front of it, as the environment of their users."""
    place = bench.place("server")
    with object_served(place, FILES, FILE_BYTES, delay_s) as (_, exported):
        (place / "run").mkdir(mode=0o700)
        yield {
            **os.environ,
            **exported,
            "XDG_RUNTIME_DIR": f"{place / 'run'}",
            "XDG_STATE_HOME": f"{place / 'state'}",
            "AWS_ENDPOINT_URL": exported["LIGHTLY_SERVER_LOCATION"],
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
