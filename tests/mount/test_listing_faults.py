"""A listing is complete, whatever the pages go through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from trees import Tree, in_process, mounted

from lightlyfs.testing import (
    Chunked,
    DropReply,
    Fault,
    Html,
    LocalServer,
    ServerOptions,
    Status,
    Truncate,
)

LISTED = {f"folder {number % 7}/{number:03d} ü.jpg": 10 + number for number in range(300)}
PAGE = "40"  # samples, so that there are pages to go wrong
# four at most where chance decides, for a page is tried five times
FAULTS: dict[str, Sequence[Fault]] = {
    "503 on some pages": [Status(target="partial", status=503, probability=0.3, count=4)],
    "500 twice": [Status(target="partial", status=500, count=2)],
    "429 with Retry-After": [Status(target="api", status=429, retry_after_s=1, count=3)],
    "hangs up on some pages": [DropReply(target="partial", probability=0.3, count=4)],
    "some pages end early": [Truncate(target="partial", probability=0.3, count=4)],
    "a web page once": [Html(target="partial", count=1)],
    "a web page for the dataset once": [Html(target="dataset", count=1)],
    "chunked": [Chunked(target="api")],
    "no partial list": [Status(target="partial", status=404)],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "413 over a few samples": {"response_cap_bytes": 20_000},
    "pages of seven": {"page_size_max": 7},
    "pages of one": {"page_size_max": 1},
}


@pytest.fixture
def faulty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalServer]:
    """A server of `LISTED` with the named fault."""
    root = tmp_path / "images"
    root.mkdir()
    with LocalServer(ServerOptions(source=root, **OPTIONS.get(request.param, {}))) as server:
        for name, size in LISTED.items():
            server.add_sample(name, None, {"metaData": {"sizeInBytes": size}})
        server.faults.add(*FAULTS.get(request.param, ()))  # type: ignore[arg-type]
        yield server


def walk(tree: Tree) -> dict[str, int]:
    """Every file of a tree of two levels with its size."""
    paths = [f"{directory}/{name}" for directory in tree.names() for name in tree.names(directory)]
    return {path: tree.stat(path).size for path in paths}


@pytest.mark.parametrize("faulty", [*FAULTS, *OPTIONS], indirect=True)
def test_a_listing_is_complete(faulty: LocalServer, tmp_path: Path) -> None:
    with in_process(faulty, tmp_path / "tree", page_size=PAGE) as tree:
        assert walk(tree) == LISTED


@pytest.mark.fuse
@pytest.mark.parametrize("faulty", ["503 on some pages", "a web page once", "pages of seven"], indirect=True)
def test_a_mount_over_such_a_listing_is_complete(faulty: LocalServer, tmp_path: Path) -> None:
    with mounted(faulty, tmp_path / "tree", "3", "--page-size", PAGE) as tree:
        assert walk(tree) == LISTED
