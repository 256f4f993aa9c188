"""Programs that index everything get a share, and no dataset of terabytes is fetched for them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import MountedTree, mounted

from lightlyfs.desktop.programs import BUDGET_BYTES
from lightlyfs.testing import LocalServer

pytestmark = pytest.mark.fuse

FILES, FILE_BYTES = 30, 4_000_000
READ_ALL = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(15, sys.argv[2].encode(), 0, 0, 0) == 0
refused = 0
for name in sorted(os.listdir(sys.argv[1])):
    try:
        open(os.path.join(sys.argv[1], name), "rb").read()
    except PermissionError:
        refused += 1
print(refused)
"""


@pytest.fixture
def tree(own_server: LocalServer, tmp_path: Path) -> Iterator[MountedTree]:
    """120 MB in files."""
    for number in range(FILES):
        own_server.add_sample(f"{number:02}.bin", bytes([number]) * FILE_BYTES)
    with mounted(own_server, tmp_path / "tree") as made:
        yield made


def refused(tree: MountedTree, program: str) -> int:
    """How many files a program of this name is not given."""
    command = [sys.executable, "-c", READ_ALL, str(tree.mountpoint), program]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_viewer_gets_two_pictures_ahead(own_server: LocalServer, tree: MountedTree) -> None:
    """Anyone else who reads eight files in order gets eight more."""

    def fetched(program: str, first: int) -> int:
        before = own_server.stats.snapshot()["bytes_sent"]
        code = READ_ALL.replace(
            "(os.listdir(sys.argv[1]))", f"(os.listdir(sys.argv[1]))[{first}:{first + 6}]"
        )
        command = [sys.executable, "-c", code, str(tree.mountpoint), program]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0\n"
        sent = -1
        while sent != (sent := own_server.stats.snapshot()["bytes_sent"]):
            time.sleep(0.3)  # until no more comes
        return round((sent - before) / FILE_BYTES)

    assert fetched("eog", 0) == 8
    assert fetched("python3", 10) > 8


def test_a_crawler_fetches_its_share_and_anyone_else_what_he_wants(
    own_server: LocalServer, tree: MountedTree
) -> None:
    assert refused(tree, "tracker-extract") == FILES - BUDGET_BYTES // FILE_BYTES
    fetched = own_server.stats.snapshot()["bytes_sent"]
    assert refused(tree, "python3") == 0
    assert own_server.stats.snapshot()["bytes_sent"] > fetched
    # what is cached may be read by all
    assert refused(tree, "baloo_file_extr") == 0
    assert "has fetched its share" in tree.log.read_text()
