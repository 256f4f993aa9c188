"""Names at scale: 100,000 files in one directory beside the local disk, 1,000,000 in directories of 1,000."""

from __future__ import annotations

import os

from harness import Bench, Mount, lightlyfs_mount, served, timed

MANY, MILLION = 100_000, 1_000_000
FILE_BYTES = 100_000


def run(bench: Bench) -> None:
    """Both sizes."""
    one_directory(bench)
    million(bench)


def one_directory(bench: Bench) -> None:
    """Everything in one directory, beside the same names on the local disk."""
    local = bench.place("local")
    for number in range(MANY):
        with open(local / f"{number:07}.jpg", "wb") as file:
            file.truncate(FILE_BYTES)
    place = bench.place("flat")
    words = ["--fake", str(MANY), "--fake-size", str(FILE_BYTES), "--fake-per-dir", "0"]
    with served(*words) as exported:
        with lightlyfs_mount(exported, place) as mount:
            note_start(bench, mount, f"{MANY:,} files: mount, with the first listing")
            directory = str(mount.path / os.listdir(mount.path)[0])
            local_s = timed("ls", "-l", local)
            bench.note(f"{MANY:,} files: ls -l", "local disk", local_s, "s")
            for what in ("first", "again"):
                note_timed(bench, mount, f"{MANY:,} files: ls -l, {what}", local_s, "ls", "-l", directory)
            local_s = timed("find", local, "-type", "f")
            bench.note(f"{MANY:,} files: find", "local disk", local_s, "s")
            note_timed(bench, mount, f"{MANY:,} files: find", local_s, "find", directory, "-type", "f")
        with lightlyfs_mount(exported, place) as mount:
            note_start(bench, mount, f"{MANY:,} files: mounted again")
            directory = str(mount.path / os.listdir(mount.path)[0])
            what = f"{MANY:,} files: ls -l, first of the remount"
            note_timed(bench, mount, what, None, "ls", "-l", directory)


def million(bench: Bench) -> None:
    """A million files, online and offline."""
    place = bench.place("million")
    with served("--fake", str(MILLION), "--fake-size", str(FILE_BYTES)) as exported:
        with lightlyfs_mount(exported, place) as mount:
            note_start(bench, mount, f"{MILLION:,} files: mount, with the first listing")
            for what in ("first", "again"):
                words = ("find", str(mount.path), "-type", "f")
                note_timed(bench, mount, f"{MILLION:,} files: find, {what}", None, *words)
        with lightlyfs_mount(exported, place) as mount:
            note_start(bench, mount, f"{MILLION:,} files: mounted again")
    with lightlyfs_mount(exported, place) as mount:
        note_start(bench, mount, f"{MILLION:,} files: mounted again, offline")
        what = f"{MILLION:,} files: find, offline"
        note_timed(bench, mount, what, None, "find", str(mount.path), "-type", "f")


def note_start(bench: Bench, mount: Mount, what: str) -> None:
    """How long the mount took to be usable, and what it used until then."""
    cost = mount.cost()
    bench.note(what, mount.subject, mount.started_s, "s", rss_mb=cost.rss_mb, cpu_s=cost.cpu_s)


def note_timed(bench: Bench, mount: Mount, what: str, local_s: float | None, *words: str) -> None:
    """How long a program takes on a mount, as a share of what the local disk takes where that is known."""
    with mount.metered() as used:
        took_s = timed(*words)
    ratio = {} if local_s is None else {"ratio": local_s / took_s, "against": "local disk"}
    bench.note(what, mount.subject, took_s, "s", **used, **ratio)
