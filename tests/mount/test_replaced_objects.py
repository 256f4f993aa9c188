"""Objects that others replace past the API, by longer and shorter ones, while many programs read them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import MountedTree, mounted

from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

SECONDS = float(os.environ.get("LIGHTLYFS_REPLACED_S", "10"))
FILES = 3
HEAD_BYTES = 16
# reads whole files until its time is over, and prints what was wrong with any
READER = """
import os, random, sys, time
sys.path.insert(0, sys.argv[3])
from test_replaced_objects import content
end, names, reads = time.monotonic() + float(sys.argv[2]), sorted(os.listdir(sys.argv[1])), 0
while time.monotonic() < end:
    name = random.choice(names)
    path = os.path.join(sys.argv[1], name)
    try:
        if random.random() < 0.2:
            os.stat(path)
        if random.random() < 0.05:
            list(os.scandir(sys.argv[1]))
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        print(name, repr(error))
        continue
    reads += 1
    if data != content(name, int(data[:16] or b"-1")):
        print(name, len(data), "bytes of", data[:16])
assert reads
"""


def content(name: str, version: int) -> bytes:
    """The bytes of a version, of a length of its own; the first ones tell which version it is."""
    chance = random.Random(f"{name} {version}")
    size = chance.choice([0, 3_000, 100_000, 200_000]) + chance.randrange(10_000)
    return b"%016d" % version + chance.randbytes(size)


class Replacing:
    """A program that replaces objects, and reads everything again now and then."""

    def __init__(self, server: LocalServer, tree: MountedTree) -> None:
        self._server = server
        self._tree = tree
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        chance = random.Random(3)
        ids = {one["fileName"]: one["id"] for one in self._server.samples()}
        version = 0
        while not self._ended.wait(0.1):
            version += 1
            name = chance.choice(sorted(ids))
            self._server.replace_object(ids[name], content(name, version))
            self._tree.refresh()


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    for number in range(FILES):
        name = f"{number}.jpg"
        own_server.add_sample(name, content(name, 0))
    with mounted(own_server, tmp_path / "tree", "3", "--metadata-ttl", "5") as made:
        yield made


@pytest.mark.timeout(SECONDS + 60)
def test_each_read_gives_one_version_to_its_end(own_server: LocalServer, tree: MountedTree) -> None:
    """No read is cut at the length of another version, and none of a program that just reads fails."""
    words = [sys.executable, "-c", READER, str(tree.mountpoint), str(SECONDS), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with Replacing(own_server, tree):
        readers = [
            subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(6)
        ]
        said = [reader.communicate()[0] for reader in readers]
    assert "".join(said) == ""
    assert [reader.returncode for reader in readers] == [0] * 6
