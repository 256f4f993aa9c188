"""Users without a home, a name or a disk to write to, as in containers: files go elsewhere, which is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightlyfs import places
from lightlyfs.errors import SettingsError
from lightlyfs.testing import LocalServer, ServerOptions

NOBODY_KNOWN = 54_321
GROUP = 54_322
SCRIPT = """
import logging, sys, fsspec
logging.basicConfig(level="WARNING", format="%(message)s")
dataset, *words = sys.argv[1:]
fs = fsspec.filesystem("lightly", **dict(word.split("=") for word in words))
print([name.partition("/")[2] for name in fs.find(dataset)], fs.cat(f"{dataset}/a.jpg"))
"""

# who may read what root may, such as Python itself, but write nothing of it
AS_NOBODY_KNOWN = [
    *("setpriv", f"--reuid={NOBODY_KNOWN}", f"--regid={GROUP}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "--"),
]

as_root = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="root may become another user, by setpriv of util-linux",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """A server of one file."""
    root = tmp_path_factory.mktemp("images")
    (root / "a.jpg").write_bytes(b"bytes of a")
    with LocalServer(ServerOptions(source=root)) as running:
        yield running


@pytest.fixture
def open_tmp(tmp_path: Path) -> Path:
    """A directory for temporary files of all users."""
    made = tmp_path / "tmp"
    made.mkdir()
    made.chmod(0o1777)
    return made


def run(server: LocalServer, tmp: Path, *words: str, **environ: str) -> tuple[str, str]:
    """What a program of an unknown user finds through fsspec, and what it hears."""
    done = subprocess.run(
        [*AS_NOBODY_KNOWN, sys.executable, "-c", SCRIPT, server.dataset_id, *words],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "LIGHTLY_SERVER_LOCATION": server.url,
            "LIGHTLY_TOKEN": server.token,
            "TMPDIR": str(tmp),
            **environ,
        },
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr


@as_root
@pytest.mark.parametrize(
    "environ", [{}, {"HOME": "/"}, {"HOME": "/nonexistent"}], ids=["unset", "root", "missing"]
)
def test_without_a_home_files_go_among_temporary_ones(
    server: LocalServer, open_tmp: Path, environ: dict[str, str]
) -> None:
    found, heard = run(server, open_tmp, **environ)

    assert found == "['a.jpg'] b'bytes of a'"
    assert heard.count("the cache and what is owed to the server are in") == 1, heard
    assert str(open_tmp / f"lightlyfs-{NOBODY_KNOWN}") in heard
    assert "--cache-dir chooses another" in heard


@as_root
def test_a_volume_of_a_group_holds_a_directory_of_each_user(server: LocalServer, open_tmp: Path) -> None:
    """As an emptyDir with fsGroup: owned by root, and the group may write."""
    volume = open_tmp / "volume"
    volume.mkdir()
    os.chown(volume, 0, GROUP)
    volume.chmod(0o2777)

    found, heard = run(server, open_tmp, f"cache_dir={volume}")

    assert found == "['a.jpg'] b'bytes of a'"
    assert f"the cache and what is owed to the server are in {volume}/lightlyfs-{NOBODY_KNOWN}" in heard
    assert [path.name for path in volume.iterdir()] == [f"lightlyfs-{NOBODY_KNOWN}"]


def test_without_any_disk_files_go_into_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def none() -> str:
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", none)
    monkeypatch.setattr(places, "_MEMORY", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nothing")

    assert places.cache_root(None).parent.parent == tmp_path
    monkeypatch.setattr(places, "_MEMORY", Path("/proc/nothing"))
    with pytest.raises(SettingsError, match="--cache-dir"):
        places.cache_root(None)


def test_a_directory_with_files_that_are_owed_is_not_left_for_another(tmp_path: Path) -> None:
    (tmp_path / "host" / "dataset" / "uploads").mkdir(parents=True)
    tmp_path.chmod(0o777)

    with pytest.raises(SettingsError, match="others may write"):
        places.state_root(tmp_path)


def test_a_shared_folder_is_used_by_a_folder_in_it_and_never_to_be_closed(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    for root in (places.cache_root(shared), places.state_root(shared)):
        assert root.is_relative_to(shared / f"lightlyfs-{os.getuid()}")
    assert "chmod" not in places.elsewhere(shared)
    with pytest.raises(SettingsError, match="use a folder in it"):
        places._own_directory(shared)
    assert shared.stat().st_mode & 0o7777 == 0o1777
