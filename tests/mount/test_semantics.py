"""The examples of semantics.md, run as they stand in a mount of the dataset they speak of."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import pytest
from trees import mounted

from lightlyfs.testing import LocalServer

TEXT = resources.files("lightlyfs").joinpath("docs/semantics.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```console\n\$ (.+?)\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.fuse
def test_the_examples_print_what_the_text_says(own_server: LocalServer, tmp_path: Path) -> None:
    if shutil.which("getfattr") is None:
        pytest.skip("getfattr is not installed; install it with: apt-get install attr")
    own_server.add_sample("a.jpg", b"\xff\xd8\xff\xe0" + b"\0" * 12)
    own_server.add_sample("cars/green/frame0.png", b"png")
    assert len(EXAMPLES) >= 5

    with mounted(own_server, tmp_path / "tree", "3", "--upload", "images") as tree:
        for command, expected in EXAMPLES:
            done = subprocess.run(
                ["bash", "-c", command], cwd=tree.mountpoint, capture_output=True, text=True, check=False
            )
            assert (done.stdout + done.stderr).rstrip("\n") == expected.rstrip("\n"), command
