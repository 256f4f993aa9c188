"""`lightlyfs.mount` from a program: what it raises, prints and leaves."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_files import FILES
from trees import need_fuse, use_here

import lightlyfs
from lightlyfs import mountpoints
from lightlyfs.library import MountSettings
from lightlyfs.settings import SETTINGS
from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse


@pytest.fixture
def place(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty directory, and this process as a user of the server."""
    need_fuse("3")
    use_here(server, tmp_path / "cache", monkeypatch)
    (tmp_path / "mnt").mkdir()
    yield tmp_path / "mnt"
    if mountpoints.mount_at(tmp_path / "mnt") is not None:
        mountpoints.unmount(tmp_path / "mnt", lazy=True)


def test_an_exception_of_the_block_is_never_replaced(server: LocalServer, place: Path) -> None:
    """Also where the mount cannot be ended: a file is still open."""
    with (  # noqa: PT012
        contextlib.ExitStack() as kept,
        pytest.raises(ZeroDivisionError) as caught,
        lightlyfs.mount(server.dataset_id, place),
    ):
        kept.enter_context(open(place / "a.jpg", "rb"))
        1 / 0  # noqa: B018
    assert "a program still uses it" in caught.value.__notes__[0]
    assert mountpoints.mount_at(place) is None


def test_a_busy_mount_is_detached_with_a_warning(server: LocalServer, place: Path) -> None:
    with (
        contextlib.ExitStack() as kept,
        pytest.warns(RuntimeWarning, match=r"a program still uses it.*; it was detached"),
        lightlyfs.mount(server.dataset_id, place),
    ):
        kept.enter_context(open(place / "a.jpg", "rb"))
    assert mountpoints.mount_at(place) is None


def test_nothing_is_printed(server: LocalServer, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[int, int]] = []
    with lightlyfs.mount(server.dataset_id, place, read_only=True, jobs=3) as mounted:
        mounted.warm()
        mounted.warm(place / "cars", progress=lambda done, total: seen.append((done, total)))
        with pytest.raises(lightlyfs.StartError, match="is not in the mount"):
            mounted.warm("/etc")
    assert capfd.readouterr() == ("", "")
    expected = sum(len(data) for name, data in FILES.items() if name.startswith("cars/"))
    assert seen[-1] == (expected, expected)


def test_a_bar_is_shown_on_stderr_where_it_is_asked_for(
    server: LocalServer, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with lightlyfs.mount(server.dataset_id, place) as mounted:
        mounted.warm(progress=True)
    assert capfd.readouterr().out == ""


def test_wrong_arguments_are_settings_errors(server: LocalServer, place: Path) -> None:
    with pytest.raises(lightlyfs.SettingsError, match=r"^--jobs is 'many'"):
        lightlyfs.mount(server.dataset_id, place, jobs="many")  # type: ignore[typeddict-item]
    with pytest.raises(lightlyfs.SettingsError, match="unknown setting speed"):
        lightlyfs.mount(server.dataset_id, place, speed=1)  # type: ignore[call-arg]
    with pytest.raises(lightlyfs.StartError, match="no dataset of name 'nothing'"):
        lightlyfs.mount("nothing", place)


def test_the_package_shows_what_there_is() -> None:
    assert set(lightlyfs.__all__) <= set(dir(lightlyfs))
    assert not {"Any", "TYPE_CHECKING", "annotations", "_HOMES"} & set(dir(lightlyfs))
    for name in lightlyfs.__all__:
        assert getattr(lightlyfs, name) is not None
    assert lightlyfs.__version__ == "0.1.0"
    assert issubclass(lightlyfs.SettingsError, lightlyfs.LightlyFsError)


def test_the_keywords_are_the_settings_and_help_says_what_they_mean() -> None:
    assert list(MountSettings.__annotations__) == ["profile", *[row.name for row in SETTINGS]]
    told = inspect.getdoc(lightlyfs.mount)
    assert told is not None
    assert [row.name for row in SETTINGS if f"{row.name}: {row.help}" not in told] == []


def test_help_in_a_new_interpreter_shows_the_public_names() -> None:
    code = "import lightlyfs; help(lightlyfs.mount); print(dir(lightlyfs))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cache_size: Most bytes" in done.stdout
    assert "open_cached" in done.stdout
