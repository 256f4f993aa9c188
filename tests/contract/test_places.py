"""Directories that are chosen by several at one moment."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest

from lightlyfs import mountpoints, places
from lightlyfs.errors import SettingsError
from lightlyfs.places import DatasetPlace, SpoolPlace, is_free, spools_of

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
    made.parent.chmod(0o777)  # any user could have put it there
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


@pytest.fixture
def network_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home on a file system that other machines use, and temporary files on one of this machine."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "tmp").mkdir()
    nfs = 0x6969
    monkeypatch.setattr(mountpoints, "type_of", lambda path: nfs if path.is_relative_to(home) else 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return home


def test_a_home_that_other_machines_use_keeps_what_is_owed_apart_and_no_database_of_the_cache(
    network_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.cache_root(None).is_relative_to(tmp_path / "tmp")
    here = places.state_root(None)
    assert here == network_home / "state/lightlyfs" / f"machine-{os.uname().nodename}"
    assert "is on a file system that other machines may use (NFS)" in places.elsewhere(None)

    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="another"))

    assert places.state_root(None) == here.with_name("machine-another")
    # what an earlier version left beside them is still listed
    assert network_home / "state/lightlyfs" in places.state_roots()


def test_a_chosen_directory_that_other_machines_use_holds_one_of_each_machine(network_home: Path) -> None:
    chosen = network_home / "chosen"
    own = chosen / f"machine-{os.uname().nodename}"

    assert (places.cache_root(chosen), places.state_root(chosen)) == (own, own)
    assert places.elsewhere(chosen).startswith(f"the cache and what is owed to the server are in {own}: ")


def test_without_locks_a_mount_keeps_a_cache_of_its_own_and_nothing_that_is_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, command: int, *_: object) -> int:
        if str(tmp_path / "place") in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOLCK, "No locks available")
        return 0

    (tmp_path / "tmp").mkdir()
    (tmp_path / "place").mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(fcntl, "fcntl", no_locks)
    with DatasetPlace(tmp_path / "place", DATASET) as place:
        assert place.path.is_relative_to(tmp_path / "tmp")
        assert "has no locks" in place.private_because

    with pytest.raises(SettingsError, match="has no locks"):
        SpoolPlace(tmp_path / "place", DATASET)


def test_the_type_of_a_file_system_is_told() -> None:
    assert mountpoints.type_of(Path("/proc")) == 0x9FA0
    assert mountpoints.remote_kind(Path("/proc")) == ""


def test_the_list_of_directories_drops_those_that_are_gone_but_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may only be away, and what is owed there is looked for when it is back."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    stays = tmp_path / "stays"
    stays.mkdir()
    places.remember_state_root(stays)
    for number in range(100):
        places.remember_state_root(tmp_path / f"gone-{number}")
    noted = (places.state_root(None) / "state-directories").read_text().splitlines()
    assert noted[0] == str(stays)
    assert noted[-16:] == [str(tmp_path / f"gone-{number}") for number in range(84, 100)]
    assert len(noted) < 20
    assert stays in places.state_roots()


def test_those_who_note_a_directory_at_one_moment_are_all_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    roots = [tmp_path / f"{number}" for number in range(40)]
    for root in roots:
        root.mkdir()
    begin = Barrier(8)

    def note(first: int) -> None:
        begin.wait()
        for root in roots[first::8]:
            places.remember_state_root(root)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(8)))
    assert set(roots) <= set(places.state_roots())
