"""Datasets and the trees that show them: without a kernel, on libfuse 3, on libfuse 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_files import FILES, READING_SUBJECTS, fill
from trees import InProcessTree, MountedTree, in_process, mounted, mounted_by_path

from lightlyfs import mountpoints
from lightlyfs.mountpoints import MOUNT_TYPE, mount_table
from lightlyfs.testing import LocalServer, ServerOptions


@pytest.fixture(scope="session", autouse=True)
def no_mount_is_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whatever a test broke, its mounts do not outlive the run; those of others are left alone."""
    ours = tmp_path_factory.getbasetemp()
    yield
    left = [
        entry for entry in mount_table() if entry.type == MOUNT_TYPE and entry.mountpoint.is_relative_to(ours)
    ]
    for entry in left:
        mountpoints.unmount(entry.mountpoint, lazy=True)
    assert left == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FILES in a folder."""
    return fill(tmp_path_factory.mktemp("images"), FILES)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[LocalServer]:
    """A server over FILES, shared by the tests of a module that change nothing."""
    with LocalServer(ServerOptions(source=folder, dataset_name="files")) as running:
        yield running


@pytest.fixture(scope="module", params=READING_SUBJECTS)
def tree(
    request: pytest.FixtureRequest, server: LocalServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcessTree | MountedTree]:
    """The dataset of `server`, as each of the subjects in turn."""
    directory = tmp_path_factory.mktemp("tree")
    if request.param == "in-process":
        with in_process(server, directory) as subject:
            yield subject
    elif request.param == "by-path":
        with mounted_by_path(server, directory) as subject:
            yield subject
    else:
        with mounted(server, directory, request.param[-1]) as subject:
            yield subject


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[LocalServer]:
    """An empty dataset of the test's own, to be filled and changed."""
    root = tmp_path / "own"
    root.mkdir()
    with LocalServer(ServerOptions(source=root, dataset_name="own")) as running:
        yield running


@pytest.fixture(params=READING_SUBJECTS)
def own_tree(
    request: pytest.FixtureRequest, own_server: LocalServer, tmp_path: Path
) -> Iterator[InProcessTree | MountedTree]:
    """The dataset of `own_server`, as each of the subjects; fill the server in a fixture before this one."""
    if request.param == "in-process":
        with in_process(own_server, tmp_path / "tree") as subject:
            yield subject
    elif request.param == "by-path":
        own_server.add_sample("read before.bin", b"read before")
        with mounted_by_path(own_server, tmp_path / "tree") as subject:
            yield subject
    else:
        with mounted(own_server, tmp_path / "tree", request.param[-1]) as subject:
            yield subject
