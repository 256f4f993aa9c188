"""Files that are fetched before they are opened, over the whole of the parts: how many, and for whom."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from trees import InProcessTree, in_process, wait_until

from lightlyfs.blocks import ContentId
from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.fs.samples import known_content
from lightlyfs.testing import LocalServer, ServerOptions
from lightlyfs.testing.faults import Stall

SIZE, FOLDERS, PER_FOLDER = 20_000, 10, 60
FILES = FOLDERS * PER_FOLDER
# on a machine that is busy some take so long that they are sent a second time
SENT_TWICE = 8 + FILES // 20


@pytest.fixture
def server() -> Iterator[LocalServer]:
    options = ServerOptions(
        fake_samples=FILES, fake_bytes=SIZE, fake_per_directory=PER_FOLDER, storage_latency_s=0.02
    )
    with LocalServer(options) as running:
        yield running


def paths_in(tree: InProcessTree, directory: str = "") -> list[str]:
    found = []
    for name, attr in tree.parts.filesystem.list_directory(directory).entries:
        path = f"{directory}/{name}" if directory else name
        found += paths_in(tree, path) if attr.is_directory else [path]
    return found


def read(tree: InProcessTree, path: str) -> int:
    files = tree.parts.filesystem
    handle = files.open(path, os.O_RDONLY).handle
    try:
        return len(files.read(handle, 0, 131_072))
    finally:
        files.release(handle)


def content_at(tree: InProcessTree, path: str) -> ContentId:
    """The content of a file that was read before; of none where it was not."""
    entry = tree.parts.catalog.known(path)
    assert isinstance(entry, SampleEntry)
    told = tree.parts.catalog.told(entry)
    assert told is not None
    return known_content(told) or ContentId(told.sample_id, "", 1)


def read_all(tree: InProcessTree, paths: list[str], readers: int = 8) -> None:
    with ThreadPoolExecutor(readers) as pool:
        assert set(pool.map(lambda path: read(tree, path), paths)) <= {SIZE}


def sent(server: LocalServer) -> int:
    """How many objects were sent."""
    return server.stats.count("storage.get")


def settled(count: Callable[[], int]) -> int:
    """A count that has stayed the same for a while."""
    before, since = count(), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if count() != before:
            before, since = count(), time.monotonic()
    return before


def test_an_epoch_over_class_folders_finds_most_files_here(server: LocalServer, tmp_path: Path) -> None:
    """Each file is sent once, although readers and what runs ahead of them meet all the time."""
    with in_process(server, tmp_path) as tree:
        paths = paths_in(tree)
        random.Random(1).shuffle(paths)
        read_all(tree, paths)
        ahead = tree.parts.epoch_stats()
        assert FILES <= sent(server) <= FILES + SENT_TWICE
        assert ahead["files_read"] > 0.6 * FILES
        assert ahead["files_read"] >= 0.98 * ahead["files"]

        before = sent(server)
        read_all(tree, paths)
        assert settled(lambda: sent(server)) == before


def test_an_epoch_is_fetched_ahead_in_a_second_process_life_too(server: LocalServer, tmp_path: Path) -> None:
    """What is known of every file, but not its bytes, as after the cache was cleared."""
    with in_process(server, tmp_path) as tree:
        paths = paths_in(tree)
        read_all(tree, paths)
        for path in paths:
            tree.parts.cache.drop(content_at(tree, path))
        before = sent(server)
        random.Random(2).shuffle(paths)
        read_all(tree, paths)
        assert sent(server) - before <= FILES + SENT_TWICE
        assert tree.parts.epoch_stats()["files_read"] > 0.6 * FILES


def test_readers_without_order_fetch_nothing_twice(server: LocalServer, tmp_path: Path) -> None:
    """What follows in order went by entries of a while ago: a third was fetched twice."""
    with in_process(server, tmp_path) as tree:
        for folder in range(FOLDERS):
            paths = paths_in(tree)[folder * PER_FOLDER : (folder + 1) * PER_FOLDER]
            random.Random(folder).shuffle(paths)
            read_all(tree, paths, readers=4)
        assert settled(lambda: sent(server)) <= FILES + SENT_TWICE


def test_nothing_is_fetched_for_those_who_look_at_some_files(server: LocalServer, tmp_path: Path) -> None:
    with in_process(server, tmp_path) as tree:
        paths = random.Random(1).sample(paths_in(tree), 24)
        read_all(tree, paths)
        assert settled(lambda: sent(server)) == 24


@pytest.mark.parametrize(("mode", "most"), [("off", 60), ("files", 60), ("epochs", FILES + SENT_TWICE)])
def test_reading_ahead_can_be_switched_off(server: LocalServer, tmp_path: Path, mode: str, most: int) -> None:
    with in_process(server, tmp_path, read_ahead=mode) as tree:
        paths = random.Random(1).sample(paths_in(tree), 60)
        read_all(tree, paths)
        found = settled(lambda: sent(server))
        assert found <= most
        assert (found > 60) == (mode == "epochs")


def test_one_in_order_fetches_ahead_unless_that_is_off(server: LocalServer, tmp_path: Path) -> None:
    for mode in ("off", "files"):
        with in_process(server, tmp_path / mode, read_ahead=mode) as tree:
            for path in paths_in(tree)[:40]:
                read(tree, path)
            assert (tree.parts.prefetch_stats().started > 0) == (mode == "files")


def test_what_is_announced_is_fetched_once_whoever_reads_it(server: LocalServer, tmp_path: Path) -> None:
    with in_process(server, tmp_path, read_ahead="off") as tree:
        paths = paths_in(tree)
        random.Random(3).shuffle(paths)
        with tree.parts.ahead([path] for path in paths) as announced:
            read_all(tree, paths, readers=4)
            assert announced.fetched > 0
        assert FILES <= sent(server) <= FILES + SENT_TWICE


def test_what_is_announced_and_cached_is_passed_over_where_it_is_looked_up(
    server: LocalServer, tmp_path: Path
) -> None:
    with in_process(server, tmp_path, read_ahead="off") as tree:
        paths = paths_in(tree)
        for path in paths[:20]:
            read(tree, path)

        def is_cached(path: str) -> bool:
            return tree.parts.samples.is_cached(tree.parts.catalog.known(path))

        wait_until(lambda: all(map(is_cached, paths[:20])), 10)
        assert not any(map(is_cached, paths[20:40]))
        tree.parts.cache.drop(content_at(tree, paths[3]))
        before = sent(server)
        with tree.parts.ahead([paths[:20], [], ["no such file", *paths[:10]]]):
            assert settled(lambda: sent(server)) == before + 1
        tree.parts.catalog.refresh()
        assert not any(map(is_cached, paths[:20]))


def test_what_is_announced_comes_in_its_order_up_to_a_limit(server: LocalServer, tmp_path: Path) -> None:
    """Nothing more comes before some of it is read, and nothing at all after the end."""
    with in_process(server, tmp_path, read_ahead_limit="1M") as tree:
        paths = paths_in(tree)
        random.Random(3).shuffle(paths)
        at_once = (1 << 20) // SIZE + 1

        def is_here(path: str) -> bool:
            return tree.parts.cache.has_whole(content_at(tree, path))

        with tree.parts.ahead([paths]):
            assert settled(lambda: sent(server)) == at_once
            assert all(map(is_here, paths[:at_once]))
            for path in paths[:10]:
                read(tree, path)
            assert settled(lambda: sent(server)) == at_once + 10
            assert is_here(paths[at_once + 9])
        for path in paths[10:20]:
            read(tree, path)
        assert settled(lambda: sent(server)) == at_once + 10


@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_programs_that_read_only_heads_fetch_little_more(tmp_path: Path, order: str) -> None:
    """`file *`, or the size of each picture: 24 bytes of each of 60 images fetched all of them."""
    size, count = 1_000_000, 60
    options = ServerOptions(fake_samples=count, fake_bytes=size, fake_per_directory=count)
    with LocalServer(options) as server, in_process(server, tmp_path) as tree:
        files, paths = tree.parts.filesystem, paths_in(tree)
        if order == "shuffled":
            random.Random(7).shuffle(paths)
        for path in paths:
            handle = files.open(path, os.O_RDONLY).handle
            assert len(files.read(handle, 0, 16_384)) == 16_384
            files.release(handle)
        fetched = settled(lambda: int(server.stats.snapshot()["bytes_sent"]))
        assert fetched < 0.4 * count * size
        # and a program that reads all of them gets all of them
        for path in paths:
            handle = files.open(path, os.O_RDONLY).handle
            assert len(files.read(handle, 0, size)) == size
            files.release(handle)


def test_readers_of_what_comes_do_not_wait_for_what_does_not(server: LocalServer, tmp_path: Path) -> None:
    """More reads stand still than there are threads; others come, and those that stood still in the end."""
    stuck, others = 60, 40
    with in_process(server, tmp_path, read_ahead="off") as tree, ThreadPoolExecutor(stuck) as pool:
        paths = paths_in(tree)
        server.faults.add(Stall(target="storage.get", count=stuck))
        waiting = [pool.submit(read, tree, path) for path in paths[:stuck]]
        end = time.monotonic() + 20
        while server.stats.snapshot()["in_flight"] < stuck // 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        for path in paths[stuck : stuck + others]:
            assert read(tree, path) == SIZE
        server.faults.clear()
        assert [one.result(60) for one in waiting] == [SIZE] * stuck


def test_an_announced_order_without_end_is_let_go_of_where_all_of_it_is_cached(
    server: LocalServer, tmp_path: Path
) -> None:
    ended = threading.Event()

    def order(paths: list[str]) -> Iterator[list[str]]:
        try:
            while True:
                yield paths
        finally:
            ended.set()

    with in_process(server, tmp_path, read_ahead="off") as tree:
        paths = paths_in(tree)[:20]
        for path in paths:
            read(tree, path)
        known, is_cached = tree.parts.catalog.known, tree.parts.samples.is_cached
        wait_until(lambda: all(is_cached(known(path)) for path in paths), 10)
        with tree.parts.ahead(order(["no such file", *paths])):
            assert not ended.is_set()
        wait_until(ended.is_set, 10)
