"""Somebody new gets from the README what it says; `make newcomer` also installs from the package index."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs_kit import README, lines_to_run, python_blocks
from newcomer import Newcomer, copy_clone
from shared_mount import jpeg, need_tool
from trees import need_fuse

from lightlyfs.testing import LocalServer, ServerOptions


@pytest.mark.fuse
def test_every_line_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    need_fuse("3")
    need_tool("rsync", "rsync")
    (tmp_path / "served/cars").mkdir(parents=True)
    (tmp_path / "served/cars/red.jpg").write_bytes(jpeg(1))
    copy_clone(tmp_path / "clone")
    with LocalServer(ServerOptions(source=tmp_path / "served", dataset_name="my-dataset")) as server:
        newcomer = Newcomer(tmp_path, server, borrow=True)
        try:
            seen = []
            for one in newcomer.play():
                if "No matching distribution found for setuptools" in one.printed:
                    pytest.skip("setuptools cannot be fetched to build with")
                assert one.as_expected, one
                seen.append(one.line)
            for code in python_blocks(README):
                ran = newcomer.run_python(code)
                assert (ran.printed, ran.code) == ("", 0)
        finally:
            newcomer.mount(wanted=False)
        assert {sample["fileName"] for sample in server.samples()} == {"cars/red.jpg", "new-images/b.jpg"}
    assert {line for block in lines_to_run(README).blocks for line in block} <= set(seen)
