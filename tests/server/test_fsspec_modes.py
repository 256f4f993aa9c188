"""How files may be opened over `lightly://`: append as documented, everything else with a clear error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from trees import use_here

from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
    """One sample, and the environment to use it."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/one.jpg").write_bytes(b"image")
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="cars")) as server:
        use_here(server, tmp_path / "home", monkeypatch)
        yield server
        fsspec_parts.close_all()


def file_system(**options: Any) -> Any:
    return fsspec.filesystem("lightly", skip_instance_cache=True, **options)


def test_a_local_file_is_appended_to(served: LocalServer) -> None:
    fs = file_system()
    for text in ("one,", "two"):
        with fs.open("cars/notes.txt", "a") as file:
            file.write(text)
    with fs.open("cars/notes.txt", "ab") as binary:
        assert binary.tell() == len("one,two")
    assert fs.read_text("cars/notes.txt") == "one,two"


def test_a_sample_is_appended_to_only_with_allow_overwrite(served: LocalServer) -> None:
    with pytest.raises(PermissionError, match="--allow-overwrite"):
        file_system().open("cars/one.jpg", "ab")
    fs = file_system(allow_overwrite=True)
    with fs.open("cars/one.jpg", "ab") as file:
        file.write(b"+")
    assert fs.cat("cars/one.jpg") == b"image+"
    assert served.object_bytes(served.samples()[0]["id"]) == b"image+"


@pytest.mark.parametrize("mode", ["r+b", "rb+", "w+b", "a+b", "x+b"])
def test_another_mode_is_refused_by_name(served: LocalServer, mode: str) -> None:
    with pytest.raises(ValueError, match="files are opened with rb, wb, xb or ab"):
        file_system().open("cars/one.jpg", mode)
