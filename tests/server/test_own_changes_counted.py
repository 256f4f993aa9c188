"""What `status` counts right after a change by this mount, before any listing shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import InProcessTree, in_process

from lightlyfs.app.metrics import status_of
from lightlyfs.testing import LocalServer, ServerOptions


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[InProcessTree]:
    """Four samples in three directories and the root; what is checked once is believed for good."""
    for name in ("top.jpg", "a/1.jpg", "a/deep/2.jpg", "b/3.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345678")
    with (
        LocalServer(ServerOptions(source=tmp_path / "images")) as server,
        in_process(server, tmp_path / "tree", metadata_ttl="infinite", allow_overwrite="true") as tree,
    ):
        tree.names()
        yield tree


def counts(tree: InProcessTree) -> tuple[int, int, int]:
    names = status_of(tree.parts)["catalogue"]
    return names["samples"], names["directories"], names["bytes"]


def test_an_upload_counts_at_once_and_only_once(tree: InProcessTree) -> None:
    assert counts(tree) == (4, 4, 32)

    tree.write("new/deep/5.jpg", b"12345")

    assert counts(tree) == (5, 6, 37)
    tree.refresh()
    assert counts(tree) == (5, 6, 37)


def test_a_replaced_image_counts_with_its_new_size(tree: InProcessTree) -> None:
    with tree.writing("a/1.jpg", create=False) as file:
        file.truncate(0)
        file.write(0, b"123")

    assert counts(tree) == (4, 4, 27)
    tree.refresh()
    assert counts(tree) == (4, 4, 27)


def test_a_renamed_sample_brings_the_directory_it_is_in(tree: InProcessTree) -> None:
    tree.rename("top.jpg", "c/top.jpg")

    assert counts(tree) == (4, 5, 32)
    tree.refresh()
    assert counts(tree) == (4, 5, 32)


def test_a_renamed_directory_counts_once_with_all_that_is_below(tree: InProcessTree) -> None:
    tree.write("a/6.jpg", b"123456")

    tree.rename("a", "b/was a")

    assert counts(tree) == (5, 4, 38)
    tree.refresh()
    assert counts(tree) == (5, 4, 38)


def test_what_stays_on_this_machine_is_no_sample(tree: InProcessTree) -> None:
    tree.write("notes/.part", b"")

    assert counts(tree) == (4, 4, 32)
