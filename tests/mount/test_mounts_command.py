"""Several mounts at once: listed, looked at from below, ended together."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import environment, lightlyfs, need_fuse, wait_until

from lightlyfs import mountpoints
from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse


@pytest.fixture
def two(server: LocalServer, tmp_path: Path) -> Iterator[tuple[list[Path], dict[str, str]]]:
    """One dataset mounted at two directories."""
    need_fuse("3")
    environ = environment(server, tmp_path / "cache")
    places = [tmp_path / "one", tmp_path / "two"]
    for place in places:
        place.mkdir()
        lightlyfs("mount", server.dataset_id, str(place), "--profile", "train", environ=environ)
    yield places, environ
    for place in places:
        if mountpoints.mount_at(place) is not None:
            mountpoints.unmount(place, lazy=True)


def rows(environ: dict[str, str], places: list[Path]) -> dict[str, dict[str, object]]:
    """What is listed of these mounts; other tests have theirs."""
    found = json.loads(lightlyfs("mounts", "--json", environ=environ).stdout)
    return {row["mountpoint"]: row for row in found if Path(row["mountpoint"]) in places}


def test_mounts_are_listed_and_ended_together(two: tuple[list[Path], dict[str, str]]) -> None:
    places, environ = two
    found = rows(environ, places)
    assert [found[str(place)]["state"] for place in places] == ["read-only", "read-only"]
    assert all(abs(int(str(row["since"])) - time.time()) < 60 for row in found.values())
    assert str(places[0]) in lightlyfs("mounts", environ=environ).stdout

    os.kill(int(str(found[str(places[1])]["pid"])), signal.SIGKILL)
    wait_until(lambda: rows(environ, places)[str(places[1])]["state"] == "dead", 10)

    done = lightlyfs("umount", *map(str, places), environ=environ)
    assert "was gone" in done.stderr
    assert rows(environ, places) == {}


def test_a_mount_is_found_from_below(two: tuple[list[Path], dict[str, str]]) -> None:
    places, environ = two
    below = str(places[0] / "cars")
    assert json.loads(lightlyfs("status", below, "--json", environ=environ).stdout)["read_only"]
    assert "0 added" in lightlyfs("refresh", below, environ=environ).stdout
    assert "INFO" in lightlyfs("log", below, environ=environ).stdout


def test_one_that_cannot_be_ended_does_not_keep_the_other(two: tuple[list[Path], dict[str, str]]) -> None:
    places, environ = two
    with (places[0] / "a.jpg").open("rb"):
        done = lightlyfs("umount", *map(str, places), environ=environ, check=False)
    assert done.returncode == 1
    assert "a program still uses it" in done.stderr
    assert list(rows(environ, places)) == [str(places[0])]


def test_status_is_watched_until_an_interrupt(two: tuple[list[Path], dict[str, str]]) -> None:
    places, environ = two
    command = [sys.executable, "-m", "lightlyfs", "status", "--watch", str(places[0])]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(10)]
        shown += [process.stdout.readline() for _ in range(10)]
        assert sum(line.startswith("dataset ") for line in shown) >= 2
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_commands_that_are_shown_can_be_copied_where_a_path_has_blanks(
    server: LocalServer, tmp_path: Path
) -> None:
    need_fuse("3")
    environ = environment(server, tmp_path / "cache")
    place = tmp_path / "my 'own' images"

    def command_of_failure(*words: str) -> list[str]:
        done = lightlyfs(*words, environ=environ, check=False)
        assert done.returncode == 1
        return shlex.split(done.stderr[done.stderr.rindex("with: ") + 6 :])

    mount = ("mount", server.dataset_id, str(place), "--profile", "train")
    assert command_of_failure(*mount) == ["mkdir", "-p", str(place)]
    place.mkdir()
    lightlyfs(*mount, environ=environ)
    try:
        assert command_of_failure(*mount) == ["lightlyfs", "umount", str(place)]
        with (place / "a.jpg").open("rb"):
            assert command_of_failure("umount", str(place)) == ["fuser", "-vm", str(place)]
        os.kill(int(str(rows(environ, [place])[str(place)]["pid"])), signal.SIGKILL)
        wait_until(lambda: mountpoints.probe(place) is mountpoints.Health.DEAD, 10)
        assert command_of_failure("status", str(place)) == ["lightlyfs", "umount", str(place)]
    finally:
        mountpoints.unmount(place, lazy=True)
