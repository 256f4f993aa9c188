"""Servers for the tests of this folder, each on a port of its own."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serverkit import Api, fill

from lightlyfs.testing import LocalServer, ServerOptions


@pytest.fixture(autouse=True)
def _own_fork_server() -> Iterator[None]:
    """End the process that `multiprocessing` forks from, which keeps the environment of the first test."""
    yield
    started = sys.modules.get("multiprocessing.forkserver")
    if started is not None:
        started._forkserver._stop()  # what it has for tests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the known files."""
    root = tmp_path / "images"
    root.mkdir()
    return fill(root)


@pytest.fixture
def server(folder: Path) -> Iterator[LocalServer]:
    """Return a running server over the folder."""
    with LocalServer(ServerOptions(source=folder)) as running:
        yield running


@pytest.fixture
def api(server: LocalServer) -> Iterator[Api]:
    """Return a client of the server."""
    client = Api(server)
    yield client
    client.session.close()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Return a client of a server that all read-only tests share."""
    root = fill(tmp_path_factory.mktemp("shared"))
    with LocalServer(ServerOptions(source=root)) as running:
        client = Api(running)
        yield client
        client.session.close()
