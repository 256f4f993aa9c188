"""The warming itself, without a command: how much at once, what it says of trouble, that it stops."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_files import fill
from trees import InProcessTree, in_process, wait_until

from lightlyfs.fs.warming import Warming
from lightlyfs.testing import Latency, LocalServer, ServerOptions, Status

FILES = {f"d/{number}.bin": random.Random(number).randbytes(1000) for number in range(30)}
LARGE = {"large.bin": random.Random(1).randbytes((40 << 20) + 3)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with LocalServer(ServerOptions(source=fill(tmp_path / "images", FILES | LARGE))) as running:
        yield running


@pytest.fixture
def tree(server: LocalServer, tmp_path: Path) -> Iterator[InProcessTree]:
    with in_process(server, tmp_path / "tree", metadata_ttl="infinite") as subject:
        yield subject


def run(warming: Warming) -> Warming:
    warming.start()
    wait_until(lambda: warming.wait(1.0).ended, 60)
    return warming


@pytest.mark.parametrize("name", ["d", "large.bin"])
def test_as_many_downloads_as_asked_for_are_under_way(
    server: LocalServer, tree: InProcessTree, name: str
) -> None:
    tree.stat("large.bin")
    server.faults.add(Latency(target="storage", delay_s=0.05))
    server.stats.reset()
    warming = run(tree.parts.warming([name], 3, None))

    assert server.stats.snapshot()["in_flight_max"] == 3
    assert warming.take_failures() == []
    for file, data in (FILES | LARGE).items():
        if file.startswith(name):
            server.stats.reset()
            assert tree.read(file) == data
            assert server.stats.snapshot()["storage_paths"] == {}


def test_no_more_than_the_mount_has_are_under_way(server: LocalServer, tmp_path: Path) -> None:
    with in_process(server, tmp_path / "small", jobs="2", metadata_ttl="infinite") as tree:
        server.faults.add(Latency(target="storage", delay_s=0.02))
        server.stats.reset()
        run(tree.parts.warming([""], 50, None))
        assert server.stats.snapshot()["in_flight_max"] == 2


def test_each_file_that_fails_is_told_once_with_its_reason(server: LocalServer, tree: InProcessTree) -> None:
    server.faults.add(Status(target="storage", status=403))
    warming = run(tree.parts.warming(["large.bin", "d", "d/3.bin", "nowhere"], 8, None))

    failures = warming.take_failures()
    assert sorted({failure.path for failure in failures}) == sorted([*FILES, "large.bin", "nowhere"])
    assert warming.wait(0).failed == len(set(failures))
    assert all("403" in failure.reason for failure in failures if failure.path != "nowhere")


def test_it_stops_when_it_is_told_to(server: LocalServer, tree: InProcessTree) -> None:
    server.faults.add(Latency(target="storage", delay_s=0.1))
    warming = tree.parts.warming([""], 2, None)
    warming.start()
    wait_until(lambda: warming.wait(0.01).files > 2, 20)
    warming.stop()
    wait_until(lambda: warming.wait(1.0).ended, 10)
    assert warming.wait(0).files < 10


def test_the_plan_counts_what_is_cached(tree: InProcessTree) -> None:
    for number in range(5):
        tree.read(f"d/{number}.bin")
    # a reader has its bytes before the cache does
    wait_until(lambda: tree.parts.cache.stats().bytes == 5_000, 10)
    plan = tree.parts.warming(["d", "large.bin"], 2, None).plan()
    assert plan[:4] == (31, 30_000 + (40 << 20) + 3, 5, 5_000)
