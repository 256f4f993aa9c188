"""Images and batches of a mount: its own process fetches what a training announces."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from restartable import RestartableServer
from trees import MountedTree, mounted, start_mount, use_here, wait_until

import lightlyfs
from lightlyfs import mountpoints
from lightlyfs.fsspec import parts as fsspec_parts
from lightlyfs.testing import LocalServer, ServerOptions
from lightlyfs.training.images import LightlyImages
from lightlyfs.training.order import EpochOrder, with_announcements

FILES, SIZE = 300, 20_000
# on a machine that is busy some take so long that they are sent a second time
SENT_TWICE = 8 + FILES // 20


@pytest.fixture
def server() -> Iterator[LocalServer]:
    options = ServerOptions(
        fake_samples=FILES, fake_bytes=SIZE, fake_per_directory=100, storage_latency_s=0.02
    )
    with LocalServer(options) as running:
        yield running


@pytest.fixture
def tree(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MountedTree]:
    use_here(server, tmp_path / "cache", monkeypatch)
    with mounted(server, tmp_path, "3", "--read-ahead=off") as running:
        yield running


def sent(server: LocalServer) -> int:
    return server.stats.count("storage.get")


def test_images_below_a_mount_are_read_in_an_announced_order(tree: MountedTree, server: LocalServer) -> None:
    images = LightlyImages(tree.mountpoint / "fake", decode=len)
    assert (len(images), images.classes) == (FILES, ["0000", "0001", "0002"])
    order = EpochOrder(FILES, 32, seed=1)
    found: list[tuple[int, int]] = []
    for batch in with_announcements(order.begin(), 1, 4, epoch_run=1):
        found += images.__getitems__(batch)
    assert [size for size, _ in found] == [SIZE] * FILES
    assert [sum(label == one for _, label in found) for one in range(3)] == [100] * 3
    assert sent(server) <= FILES + SENT_TWICE
    status = json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)
    assert status["ahead"]["files_read"] > FILES * 3 // 4


def test_images_of_a_mount_that_are_dropped_leave_no_thread(tree: MountedTree) -> None:
    before = set(threading.enumerate())
    images = LightlyImages(tree.mountpoint, decode=len, labels=None)
    order = EpochOrder(FILES, 32, seed=1)
    images.__getitems__(next(iter(with_announcements(order.begin(), 1, 4, epoch_run=1))))
    begun = {one for one in set(threading.enumerate()) - before if one.name == "lightlyfs-announcing"}
    assert len(begun) == 1
    del images
    wait_until(lambda: not begun & set(threading.enumerate()), 20)
    # and what was announced and not read is given up
    wait_until(lambda: files_ahead(tree, "unread") > 0, 20)


def test_tags_of_a_mount_choose_images(tree: MountedTree, server: LocalServer) -> None:
    ids = [one["id"] for one in sorted(server.samples(), key=lambda one: one["fileName"])]
    server.add_tag("few", ids[98:103])
    server.add_tag("end", ids[298:])
    tree.refresh()
    images = LightlyImages(tree.mountpoint / "fake" / "0001", tags=["few"], labels="tag", decode=len)
    assert [images[number] for number in range(len(images))] == [(SIZE, 0)] * 3
    # a tag that holds nothing of the directory
    both = LightlyImages(tree.mountpoint / "fake" / "0002", tags=["few", "end"], labels="tag", decode=len)
    assert [both[number] for number in range(len(both))] == [(SIZE, 1)] * 2
    with pytest.raises(FileNotFoundError, match="no tag 'absent'"):
        LightlyImages(tree.mountpoint, tags=["absent"])


def test_an_option_of_the_mount_is_not_taken_for_one_that_runs(tree: MountedTree) -> None:
    with pytest.raises(ValueError, match="cache_size is an option of lightly:// addresses"):
        LightlyImages(tree.mountpoint, cache_size="1G")


def sizes_of(given: tuple[LightlyImages, list[int]]) -> list[int]:
    """Run in another process."""
    images, numbers = given
    return images.__getitems__(numbers)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_read_the_mount_of_their_parent(tree: MountedTree, server: LocalServer, way: str) -> None:
    images = LightlyImages(tree.mountpoint, decode=len, labels=None)
    assert images.__getitems__([0, 1]) == [SIZE, SIZE]
    with multiprocessing.get_context(way).Pool(2) as pool:
        parts = [list(range(start, FILES, 2)) for start in range(2)]
        answers = pool.map(sizes_of, [(images, numbers) for numbers in parts], chunksize=1)
    assert answers == [[SIZE] * (FILES // 2)] * 2
    assert sent(server) <= FILES + SENT_TWICE


def test_batches_of_a_mount_come_in_their_order(tree: MountedTree, server: LocalServer) -> None:
    paths = sorted(path for path in tree.mountpoint.rglob("*.jpg"))
    random.Random(1).shuffle(paths)
    came: list[float] = []
    names: list[str] = []
    for batch in lightlyfs.batches(paths, 30):
        assert all(len(data) == SIZE for _, data in batch)
        names += [name for name, _ in batch]
        came.append(time.monotonic())
    assert names == list(map(str, paths))
    assert sent(server) <= FILES + SENT_TWICE
    # one after the other each file would take 20 ms
    assert max(later - before for before, later in pairwise(came)) < 30 * 0.02


def test_an_epoch_goes_on_when_its_mount_was_killed_and_is_back(
    tree: MountedTree, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are waited for, and the new process is told what comes; a new worker may begin meanwhile."""
    images = LightlyImages(tree.mountpoint, decode=len, labels=None)
    batches = list(with_announcements(EpochOrder(FILES, 20).begin(), 1, 2, epoch_run=1))
    assert len(images.__getitems__(batches[0])) == 20
    tree.process.kill()
    tree.process.wait()
    mountpoints.unmount(tree.mountpoint, lazy=True)
    worker = pickle.loads(pickle.dumps(images))
    tried_again = threading.Event()
    monkeypatch.setattr("lightlyfs.training.reading._PAUSE_S", 0.1)
    monkeypatch.setattr("lightlyfs.training.reading.log.warning", lambda *_: tried_again.set())
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: [len(images.__getitems__(batch)) for batch in batches[1:5]])
        second = pool.submit(worker.__getitems__, batches[0])
        assert tried_again.wait(20)
        again = start_mount(server.dataset_id, tree.mountpoint, tree.environ, tree.log, "--read-ahead=off")
        tree.process = again.process
        assert (first.result(60), second.result(60)) == ([20] * 4, [SIZE] * 20)
    wait_until(lambda: files_ahead(tree, "files") > 0, 20)
    assert sum(len(images.__getitems__(batch)) for batch in batches[5:]) == FILES - 100
    assert files_ahead(tree, "files_read") > 0


def files_ahead(tree: MountedTree, count: str) -> int:
    return int(json.loads(tree.run("status", str(tree.mountpoint), "--json").stdout)["ahead"][count])


def test_a_token_that_is_renewed_too_late_costs_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one of all images: `on_error` would leave out whatever is read meanwhile."""
    token = tmp_path / "token"
    token.write_text("first-token")
    token.chmod(0o600)
    with RestartableServer(tmp_path) as restartable:
        for number in range(4):
            restartable.now.add_sample(f"{number}.jpg", b"image")
        use_here(restartable.now, tmp_path / "cache", monkeypatch)
        options = ("--read-ahead=off", f"--token-file={token}")
        with mounted(restartable.now, tmp_path, "3", *options) as tree:
            roots = {tree.mountpoint: {}, restartable.now.dataset_id: {"token_file": str(token)}}
            found = [
                LightlyImages(root, decode=len, labels=None, on_error="skip", **more)
                for root, more in roots.items()
            ]
            assert [images[0] for images in found] == [5, 5]
            restartable.stop()
            restartable.start("second-token")
            tried_again: set[str] = set()
            monkeypatch.setattr(
                "lightlyfs.training.reading.log.warning", lambda _, error: tried_again.add(error.filename)
            )
            with ThreadPoolExecutor(2) as pool:
                # of different images, for what one has read is in the cache of both
                rest = [pool.submit(images.__getitems__, [1 + one]) for one, images in enumerate(found)]
                wait_until(lambda: len(tried_again) == 2, 40)
                token.write_text("second-token")
                assert [one.result(60) for one in rest] == [[5], [5]]
        fsspec_parts.close_all()


@pytest.mark.long  # a mount waits for a minute by itself
def test_an_epoch_outlasts_a_server_that_is_away_for_longer_than_its_mount_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RestartableServer(tmp_path) as restartable:
        for number in range(4):
            restartable.now.add_sample(f"{number}.jpg", b"image")
        use_here(restartable.now, tmp_path / "cache", monkeypatch)
        with mounted(restartable.now, tmp_path, "3", "--read-ahead=off") as tree:
            images = LightlyImages(tree.mountpoint, decode=len, labels=None)
            restartable.stop()
            tried_again = threading.Event()
            monkeypatch.setattr("lightlyfs.training.reading.log.warning", lambda *_: tried_again.set())
            with ThreadPoolExecutor(1) as pool:
                rest = pool.submit(images.__getitems__, [0, 1, 2, 3])
                assert tried_again.wait(90)
                restartable.start()
                assert rest.result(60) == [5] * 4


def test_a_path_in_no_mount_is_explained(tree: MountedTree, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not in a dataset that you have mounted"):
        LightlyImages(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path} is not in a dataset that you have mounted"):
        next(lightlyfs.batches([tmp_path / "a.jpg"], 2))
