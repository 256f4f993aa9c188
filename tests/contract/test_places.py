"""Directories that are chosen by several at one moment."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from lightlyfs import places
from lightlyfs.places import SpoolPlace, is_free, spools_of

DATASET = "a" * 24


def test_those_who_begin_at_one_moment_each_get_a_directory_for_what_they_owe(tmp_path: Path) -> None:
    for _ in range(20):
        begin = Barrier(8)

        def choose(_: int, begin: Barrier = begin) -> SpoolPlace:
            begin.wait()
            return SpoolPlace(tmp_path, DATASET)

        with ThreadPoolExecutor(8) as pool:
            chosen = list(pool.map(choose, range(8)))
        mine = [path for place in chosen for path in (place.path, *place.others)]
        assert len(mine) == len(set(mine))
        assert sorted(mine) == [path for path in spools_of(tmp_path, DATASET) if not is_free(path)]
        assert {path.is_dir() for path in mine} == {True}
        for place in chosen:
            place.close()


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's session, on a machine whose services have their sockets elsewhere."""
    made = tmp_path / "session"
    made.mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made))
    monkeypatch.setattr(places, "_MAX_RUNTIME_BYTES", 500)  # the directories of tests have long names
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(places, "_SERVICES", tmp_path / "services/lightlyfs")
    return made


@pytest.mark.parametrize("where", ["services", "tmp"])
def test_commands_of_a_session_find_mounts_that_were_made_without_one(
    where: str, session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mountpoint = Path("/mnt/images")
    assert places.socket_of(mountpoint) == places.socket_path(mountpoint)
    assert places.mount_above(mountpoint / "a.jpg") is None

    with monkeypatch.context() as boot:
        if where == "services":
            (tmp_path / where).mkdir()
            boot.setenv("XDG_RUNTIME_DIR", str(tmp_path / where))
        else:
            boot.delenv("XDG_RUNTIME_DIR")
        made = places.socket_path(mountpoint)
        made.touch()

    assert places.socket_of(mountpoint) == made
    assert places.mount_above(mountpoint / "a.jpg") == mountpoint
    made.parent.chmod(0o777)  # anybody could have put it there
    assert places.socket_of(mountpoint) == session / "lightlyfs" / made.name
    assert places.mount_above(mountpoint) is None


def test_directories_whose_content_was_taken_over_are_deleted(tmp_path: Path) -> None:
    """Else each of a thousand workers leaves one, and each start looks through all of them."""
    places_at_once = [SpoolPlace(tmp_path, DATASET) for _ in range(4)]
    for place in places_at_once:
        (place.path / "files").mkdir()
        (place.path / "journal.db").touch()
        place.close()
    (places_at_once[2].path / "files/of no record").touch()
    place = SpoolPlace(tmp_path, DATASET)
    assert len(place.others) == 3
    place.drop_others()
    assert spools_of(tmp_path, DATASET) == [place.path, places_at_once[2].path]
    assert not is_free(place.path)
    place.close()
