"""Pictures in directories, served; and no process that outlives a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trees import environment, wait_until

from lightlyfs.examples.common import Place, make_pictures
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions

PICTURES = 64


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PICTURES in eight directories."""
    return make_pictures(tmp_path_factory.mktemp("pictures"), PICTURES)


@pytest.fixture(scope="session")
def environ() -> Iterator[pytest.MonkeyPatch]:
    """The environment that workers inherit, for the whole run: those of Ray are started once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield patch


@pytest.fixture(scope="session")
def server(
    pictures: Path, environ: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    """The pictures as the dataset `pictures`; its tags `odd` and `even` have one picture in common."""
    with LocalServer(ServerOptions(source=pictures, dataset_name="pictures")) as running:
        for name, value in environment(running, tmp_path_factory.mktemp("home")).items():
            if name.startswith(("LIGHTLY", "XDG")):
                environ.setenv(name, value)
        ids = [one["id"] for one in sorted(running.samples(), key=lambda one: one["fileName"])]
        running.add_tag("odd", ids[1::2])
        running.add_tag("even", [*ids[::2], ids[1]])
        yield running


@pytest.fixture
def place(server: LocalServer, tmp_path: Path) -> Iterator[Place]:
    """The dataset, with a cache of the test's own."""
    yield Place("pictures", {"cache_dir": str(tmp_path / "cache")})
    fsspec_parts.close_all()


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Clusters end with their blocks, and take along what they started."""
    yield
    import psutil

    def left() -> list[Any]:
        found = psutil.Process(os.getpid()).children(recursive=True)
        # multiprocessing keeps its trackers and servers until this process ends
        return [one for one in found if not _is_of_multiprocessing(one)]

    wait_until(lambda: not left(), 20)


def _is_of_multiprocessing(process: Any) -> bool:
    import psutil

    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return True  # it ended meanwhile
    return "resource_tracker" in command or "forkserver" in command or "facts" in command
