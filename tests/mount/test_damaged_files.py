"""Every file of ours, damaged in four ways, each alone: the mount starts and no wrong byte is ever read.

`pytest -s tests/mount/test_damaged_files.py` prints how many there were; with `-m long` it damages them all.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from test_shared_mounts import truth
from test_swept import contents, is_readable, listed
from trees import MountedTree, mounted, wait_until

from lightlyfs import mountpoints
from lightlyfs.testing import LocalServer, Status

pytestmark = pytest.mark.fuse

FILES = 6
OWED = {f"owed {number}.jpg": random.Random(number).randbytes(20_000) for number in range(3)}
# of the cases of the long form, every so many in each run
STEP = 12


def empty(path: Path) -> None:
    os.truncate(path, 0)


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def scatter(path: Path) -> None:
    """Random bytes over a tenth, in pieces of 16."""
    dice, size = random.Random(path.name), path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(max(1, size // 160)):
            file.seek(dice.randrange(max(1, size - 16)))
            file.write(dice.randbytes(16))


def become_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)
    (path / "in it").write_bytes(b"something")


DAMAGES: list[Callable[[Path], None]] = [empty, halve, scatter, become_directory]


@pytest.fixture
def server(own_server: LocalServer) -> LocalServer:
    """A server of a few files, that takes no upload."""
    for number in range(FILES):
        own_server.add_sample(f"a/{number:02d}.jpg", os.urandom(300_000 + number))
    own_server.faults.add(Status(target="withWriteUrls", status=403))
    return own_server


def fill(server: LocalServer, home: Path, *, killed: bool) -> Path:
    """The cache and the state of a mount that read all and owes some; returns where they are."""
    with mounted(server, home, "3", "--write-back") as tree:
        wait_until(lambda: is_readable(tree, server), 20)
        for name, data in OWED.items():
            tree.write(name, data)
        wait_until(lambda: tree.run("uploads", "list").stdout.count("pending") == len(OWED), 20)
        tree.run("refresh", str(tree.mountpoint))  # what is known of sizes is written down
        wait_until(lambda: is_readable(tree, server), 20)
        if killed:
            kill(tree)
    shutil.rmtree(home / "cache" / "run")
    return home / "cache"


def kill(tree: MountedTree) -> None:
    """End a mount at once, without waiting for its uploads."""
    tree.process.kill()
    tree.process.wait()
    mountpoints.unmount(tree.mountpoint, lazy=True)
    tree.ended = True


def cases(cache: Path) -> list[tuple[Path, Callable[[Path], None]]]:
    """Each file that the next mount finds, below `cache`, with each damage."""
    files = sorted(path.relative_to(cache) for path in cache.rglob("*") if path.is_file())
    return [(path, damage) for path in files for damage in DAMAGES]


def stands(server: LocalServer, home: Path, *options: str) -> None:
    """A mount over damaged files reads right bytes, and shows or reports all that is owed."""
    with mounted(server, home, "3", "--write-back", *options) as tree:
        wait_until(lambda: listed(tree) == sorted(truth(server)), 20)
        wait_until(lambda: is_readable(tree, server), 20)
        assert contents(tree) == truth(server)
        rows = [line.split("\t") for line in tree.run("uploads", "list").stdout.splitlines()]
        kept = [one_owed(tree, *row[:2]) for row in rows]
        gone = len(OWED) - len({data for data in kept if data})
        assert gone == kept.count(None), (rows, tree.log.read_text())
        kill(tree)


def one_owed(tree: MountedTree, path: str, state: str) -> bytes | None:
    """The bytes of a file that is owed, which are right; None where it is said that they are not."""
    if "damaged" in state or "gone" in state:
        return None
    data = tree.read(path)
    assert data in OWED.values(), (path, state)
    return data


def run(server: LocalServer, home: Path, *, killed: bool, step: int) -> None:
    """Damage every `step`th case, and print how many stand."""
    cache = fill(server, home / "filled", killed=killed)
    chosen, failed = cases(cache)[::step], []
    for number, (path, damage) in enumerate(chosen):
        case = home / f"{number}"
        shutil.copytree(cache, case / "cache", symlinks=True)
        damage(case / "cache" / path)
        try:
            stands(server, case)
        except Exception:
            failed.append(f"{path} {damage.__name__}: {traceback.format_exc(limit=-2)}")
        shutil.rmtree(case)
    # with `-s` the number is there to be seen
    print(f"\n{len(chosen)} damages ({'killed' if killed else 'unmounted'}), {len(failed)} not survived")  # noqa: T201
    assert not failed, "\n".join(failed)


@pytest.mark.timeout(300)
def test_damaged_files_cost_what_they_held(server: LocalServer, tmp_path: Path) -> None:
    run(server, tmp_path, killed=True, step=STEP)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("killed", [True, False])
def test_every_file_damaged_in_four_ways(server: LocalServer, tmp_path: Path, killed: bool) -> None:
    run(server, tmp_path, killed=killed, step=1)


@pytest.mark.parametrize("name", ["blocks.db", "urls.db", "catalog.db"])
def test_a_database_that_another_process_keeps_locked_costs_no_cache(
    server: LocalServer, tmp_path: Path, name: str
) -> None:
    with mounted(server, tmp_path, "3") as tree:
        wait_until(lambda: is_readable(tree, server), 20)
    (locked,) = tmp_path.rglob(name)
    before = {path: path.read_bytes() for path in locked.parent.glob("blocks/*/*")}
    other = sqlite3.connect(locked)
    other.execute("BEGIN IMMEDIATE")

    with mounted(server, tmp_path, "3") as tree:
        assert contents(tree) == truth(server)
        wait_until(lambda: "is locked" in tree.log.read_text(), 10)
        ending = time.monotonic()
    assert time.monotonic() - ending < 15

    other.close()
    assert {path: path.read_bytes() for path in locked.parent.glob("blocks/*/*")} == before != {}
    assert not list(tmp_path.rglob("*.damaged*"))
