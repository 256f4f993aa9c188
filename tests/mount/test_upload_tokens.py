"""A token that is refused while files go up: what a program sees, and what a renewed one mends by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from restartable import RestartableServer
from shared_mount import jpeg
from test_writing import stored
from trees import (
    InProcessTree,
    environment,
    in_process,
    lightlyfs,
    need_fuse,
    refused,
    start_mount,
    wait_until,
)

RENEWED = "second-token"
SECONDS = 5.0
WAY_OUT = "check LIGHTLY_TOKEN, or the file of --token-file; then run: lightlyfs refresh"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestartableServer]:
    with RestartableServer(tmp_path) as running:
        yield running


@pytest.fixture
def token(server: RestartableServer, tmp_path: Path) -> Path:
    """The token file, as the mount begins with it."""
    path = tmp_path / "token"
    path.write_text(server.now.token)
    return path


@pytest.fixture
def tree(server: RestartableServer, token: Path, tmp_path: Path) -> Iterator[InProcessTree]:
    with in_process(server.now, tmp_path / "tree", upload="images", token_file=str(token)) as subject:
        subject.write("before.jpg", jpeg(0))
        yield subject


def renew(server: RestartableServer) -> None:
    """Let the server know another token only."""
    server.stop()
    server.start(RENEWED)


def has(server: RestartableServer, *names: str) -> bool:
    """Whether the server has these files, each once, and no others."""
    return stored(server.now) == dict.fromkeys(names, jpeg(0))


def test_a_refused_token_keeps_a_file_pending_until_the_token_file_changes(
    server: RestartableServer, token: Path, tree: InProcessTree
) -> None:
    renew(server)

    with refused(errno.EACCES):
        tree.write("a.jpg", jpeg(0))

    told = tree.xattr("a.jpg", "user.lightly.upload").decode()
    assert told.startswith("pending: ")
    assert WAY_OUT in told
    assert tree.read("a.jpg") == jpeg(0)
    assert has(server, "before.jpg")
    token.write_text(RENEWED)
    wait_until(lambda: has(server, "before.jpg", "a.jpg"), SECONDS)
    wait_until(lambda: tree.xattr("a.jpg", "user.lightly.upload") == b"uploaded", SECONDS)
    tree.write("b.jpg", jpeg(0))


def test_a_token_file_that_changed_before_the_old_token_was_refused_is_read_in_time(
    server: RestartableServer, token: Path, tree: InProcessTree
) -> None:
    token.write_text(RENEWED)
    renew(server)

    tree.write("a.jpg", jpeg(0))
    assert has(server, "before.jpg", "a.jpg")


def test_a_token_file_that_is_replaced_by_a_rename_is_noticed_and_a_wrong_one_stops_nothing(
    server: RestartableServer, token: Path, tree: InProcessTree
) -> None:
    renew(server)
    with refused(errno.EACCES):
        tree.write("a.jpg", jpeg(0))

    for content in ("", "wrong", RENEWED):
        other = token.with_name("token.new")
        other.write_text(content)
        os.replace(other, token)
        if content != RENEWED:
            with refused(errno.EACCES):
                tree.write(f"{content or 'empty'}.jpg", jpeg(0))

    names = ["before.jpg", "a.jpg", "empty.jpg", "wrong.jpg"]
    wait_until(lambda: has(server, *names), 2 * SECONDS)


def test_a_refresh_reads_the_token_file_and_sends_what_is_owed(
    server: RestartableServer, token: Path, tree: InProcessTree
) -> None:
    renew(server)
    with refused(errno.EACCES):
        tree.write("a.jpg", jpeg(0))
    before = os.stat(token)
    token.write_text(RENEWED)
    os.utime(token, ns=(before.st_atime_ns, before.st_mtime_ns))  # nothing shows that it changed

    tree.refresh()

    wait_until(lambda: has(server, "before.jpg", "a.jpg"), SECONDS)


def test_a_token_that_is_refused_long_is_tried_again_when_all_is_retried(
    server: RestartableServer, tree: InProcessTree
) -> None:
    renew(server)
    with refused(errno.EACCES):
        tree.write("a.jpg", jpeg(0))
    server.stop()
    server.start("first-token")  # the server takes it again

    tree.retry_uploads()

    wait_until(lambda: has(server, "before.jpg", "a.jpg"), SECONDS)


@pytest.mark.fuse
def test_status_names_the_file_and_the_way_out(
    server: RestartableServer, token: Path, tmp_path: Path
) -> None:
    need_fuse("3")
    (tmp_path / "mnt").mkdir()
    environ = environment(server.now, tmp_path / "cache")
    del environ["LIGHTLY_TOKEN"]
    options = ("--upload", "images", f"--token-file={token}")
    dataset = server.now.dataset_id
    mount = start_mount(dataset, tmp_path / "mnt", environ, tmp_path / "log", *options)
    try:
        renew(server)
        with refused(errno.EACCES):
            mount.write("cars/a.jpg", jpeg(0))

        shown = mount.run("status", str(tmp_path / "mnt")).stdout

        (line,) = [line for line in shown.splitlines() if "cars/a.jpg" in line]
        assert WAY_OUT in line
        listed = lightlyfs("uploads", "list", environ=environ).stdout
        assert listed.startswith("cars/a.jpg\tpending: ")
        token.write_text(RENEWED)
        wait_until(lambda: has(server, "cars/a.jpg"), SECONDS)
        assert "cars/a.jpg" not in mount.run("status", str(tmp_path / "mnt")).stdout
    finally:
        mount.end()
