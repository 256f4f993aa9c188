"""Names at scale: 100,000 files in one directory, 1,000,000 in directories of 1,000; nothing is far away.

The local disk has the same 100,000 names; rclone mount shows the local directory through an S3 server.
"""

from __future__ import annotations

import os
from pathlib import Path

from harness import LOCAL, Bench, Mount, middle_of, timed
from mounts import lightlyfs_mount, rclone_mount
from servers import BUCKET, rclone_served, served

MANY, MILLION = 100_000, 1_000_000
FILE_BYTES = 100_000
LS, FIND = f"{MANY:,} files: ls -l", f"{MANY:,} files: find"
FIRST, AGAIN = "first", "again"
MOUNT_MANY, MOUNT_MILLION = f"{MANY:,} files: mount and list", f"{MILLION:,} files: mount and list"
REMOUNT_MILLION = f"{MILLION:,} files: remount, no network"


def run(bench: Bench) -> None:
    """Both sizes."""
    one_directory(bench)
    million(bench)


def one_directory(bench: Bench) -> None:
    """Everything in one directory."""
    source = bench.place("source")
    local = source / BUCKET
    local.mkdir()
    for number in range(MANY):
        with open(local / f"img_{number:07}.jpg", "wb") as file:
            file.truncate(FILE_BYTES)
    bench.note(LS, LOCAL, middle_of(lambda: timed("ls", "-l", local)), "s")
    bench.note(FIND, LOCAL, middle_of(lambda: timed("find", local, "-type", "f")), "s")
    place = bench.place("flat")
    words = ["--fake", str(MANY), "--fake-size", str(FILE_BYTES), "--fake-per-dir", "0"]
    with served(*words) as exported:
        with lightlyfs_mount(exported, place) as mount:
            note_start(bench, mount, MOUNT_MANY)
            note_names(bench, mount, str(mount.path / os.listdir(mount.path)[0]), "ls", "find")
        with lightlyfs_mount(exported, place) as mount:
            note_names(bench, mount, str(mount.path / os.listdir(mount.path)[0]), "find")
    with rclone_served(source, bench.place("served")) as port, rclone_mount(port, place) as mount:
        note_names(bench, mount, str(mount.path), "ls", "find")


def note_names(bench: Bench, mount: Mount, directory: str, *programs: str) -> None:
    """What programs take the first time, the kernel knowing nothing, and again.

    The first program alone is first; the others find what it left.
    """
    commands = {"ls": (LS, ("ls", "-l", directory)), "find": (FIND, ("find", directory, "-type", "f"))}
    for number, program in enumerate(programs):
        what, words = commands[program]
        if number == 0:
            note_timed(bench, mount, f"{what}, {FIRST}", *words)
        note_timed(bench, mount, f"{what}, {AGAIN}", *words)


def million(bench: Bench) -> None:
    """A million files, online and offline."""
    place = bench.place("million")
    words = ["--fake", str(MILLION), "--fake-size", str(FILE_BYTES)]
    with served(*words) as exported, lightlyfs_mount(exported, place) as mount:
        note_start(bench, mount, MOUNT_MILLION)
        for what in (FIRST, AGAIN):
            note_timed(bench, mount, f"{MILLION:,} files: find, {what}", "find", mount.path, "-type", "f")
    with lightlyfs_mount(exported, place) as mount:
        note_start(bench, mount, REMOUNT_MILLION)
        note_timed(bench, mount, f"{MILLION:,} files: find, no network", "find", mount.path, "-type", "f")


def note_start(bench: Bench, mount: Mount, what: str) -> None:
    """How long the mount took to be usable, and what it used until then."""
    cost = mount.cost()
    bench.note(what, mount.subject, mount.started_s, "s", cpu_s=cost.cpu_s, peak_mb=cost.peak_mb)


def note_timed(bench: Bench, mount: Mount, what: str, *words: str | Path) -> None:
    """How long a program takes on a mount."""
    with mount.metered() as used:
        took_s = timed(*words)
    bench.note(what, mount.subject, took_s, "s", **used)
