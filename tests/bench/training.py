"""A training loop like RetinaNet's: 323 kB a file, 8 reader processes, batches of 24, 505 images/s.

Readers only read bytes; decoding would take cores of its own. Utilisation is the share of its time for which
the accelerator had a batch. The server is 20 ms away.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator

from harness import LOCAL, ROUND_TRIP_S, Bench, Mount, run_script, running
from mounts import lightlyfs_mount, rclone_mount
from servers import BUCKET, Far, rclone_served, served_bucket
from trainer import order_of

FILES, FEW_FILES, FILE_BYTES = 1_920, 960, 323_000
READERS, BATCH, IMAGES_PER_S = 8, 24, 505
ROUNDS = 2
COLD, WARM, REMOUNTED = "first epoch, cold", "second epoch", "first epoch of a remount"
TOLD = "first epoch, cold, its order told to warm"


def run(bench: Bench) -> None:
    """The local disk, ours, rclone's."""
    source = bench.place("source")
    folder = source / BUCKET
    folder.mkdir()
    names = [f"{number:05}.jpg" for number in range(FILES)]
    for name in names:
        (folder / name).write_bytes(random.Random(name).randbytes(FILE_BYTES))
    (bench.directory / "names").write_text("\n".join(names))
    (bench.directory / "few-names").write_text("\n".join(names[:FEW_FILES]))
    far = Far(ROUND_TRIP_S)
    bench.note(WARM, LOCAL, train(bench, folder, "names", 0), "% busy")
    with rclone_served(source, bench.place("served"), far) as port, served_bucket(port, far) as exported:
        for _ in range(ROUNDS):
            ours(bench, exported)
            with lightlyfs_mount(exported, bench.place("told")) as mount, told(bench, mount):
                note(bench, mount, "names", TOLD)
            with rclone_mount(port, bench.place("rclone")) as mount:
                note(bench, mount, "few-names", COLD, WARM)
    bench.keep_best()


def ours(bench: Bench, exported: dict[str, str]) -> None:
    """Cold, warm, and after a remount of either kind."""
    place = bench.place("lightlyfs")
    with lightlyfs_mount(exported, place) as mount:
        note(bench, mount, "names", COLD, WARM)
    for words in ((), ("--read-only",)):
        subject = "lightlyfs ro" if words else "lightlyfs"
        with lightlyfs_mount(exported, place, *words, subject=subject) as mount:
            note(bench, mount, "names", REMOUNTED, WARM if words else "")


@contextlib.contextmanager
def told(bench: Bench, mount: Mount) -> Iterator[None]:
    """`lightlyfs warm` with the order of the first epoch, beside the training, which begins with it."""
    names = order_of((bench.directory / "names").read_text().splitlines(), 0)
    listed = bench.directory / "order"
    listed.write_text("".join(f"{mount.path / name}\n" for name in names))
    command = [sys.executable, "-m", "lightlyfs", "warm", "--files", listed]
    with running(command, env={**os.environ, **mount.environ()}, stdout=subprocess.DEVNULL):
        yield


def note(bench: Bench, mount: Mount, names_file: str, *epochs: str) -> None:
    """One epoch after the other, those that have a name."""
    count = len((bench.directory / names_file).read_text().splitlines())
    for seed, name in enumerate(filter(None, epochs)):
        with mount.metered(count) as used:
            share = train(bench, mount.path, names_file, seed)
        bench.note(name, mount.subject, share, "% busy", **used)


def train(bench: Bench, directory: object, names_file: str, seed: int) -> float:
    """Utilisation of an epoch in %."""
    listed = bench.directory / names_file
    share, total = run_script("trainer.py", directory, listed, seed, READERS, BATCH, IMAGES_PER_S, "plain")
    expected = FILE_BYTES * len(listed.read_text().splitlines())
    if total != expected:
        raise SystemExit(f"{directory}: an epoch read {total} bytes, not {expected}")
    return share * 100
