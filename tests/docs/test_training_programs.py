"""The complete programs of `lightlyfs help training` run, word for word, over a dataset and a mount of it."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from docs_kit import ROOT, python_blocks
from PIL import Image
from trees import environment, need_fuse, start_mount

from lightlyfs.testing import LocalServer, ServerOptions

PROGRAMS = [
    code
    for code in python_blocks(ROOT / "lightlyfs/docs/training.md")
    if "import lightlyfs" in code or "lightlyfs.torch import" in code
]
EPOCHS = "0 done\n1 done\n"
NEEDED = ("torch", "torchvision")


@pytest.fixture
def environ(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a user of `my-dataset`, 150 pictures of two classes."""
    for number in range(150):
        path = tmp_path / "served" / ("cat", "dog")[number % 2] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = random.Random(number).randbytes(32 * 24 * 3)
        Image.frombytes("RGB", (32, 24), noise).save(path)
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="my-dataset")) as server:
        yield environment(server, tmp_path / "home")


@pytest.mark.parametrize("code", PROGRAMS, ids=["torch", "imagefolder", "fsspec"])
def test_a_program_of_the_page_runs(code: str, environ: dict[str, str], tmp_path: Path) -> None:
    needed = [name for name in NEEDED if f"from {name}" in code or f"import {name}" in code]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: pip install {' '.join(missing)}")
    script = tmp_path / "program.py"
    tree = None
    if "/mnt/images" in code:
        need_fuse("3")
        mountpoint = tmp_path / "mnt"
        mountpoint.mkdir()
        tree = start_mount("my-dataset", mountpoint, environ, tmp_path / "mount.log", "--read-only")
        code = code.replace("/mnt/images", str(mountpoint))
    script.write_text(code)
    try:
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100
        )
    finally:
        if tree is not None:
            tree.end()
    assert (done.returncode, done.stdout) == (0, EPOCHS), done.stderr
