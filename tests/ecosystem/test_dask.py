"""Dask with processes of its own: the same result as one process, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from late import WorkLater
from trees import wait_until

from lightlyfs.examples.common import Place
from lightlyfs.examples.stats import ImageSums, partitions_of, sums_of, sums_of_bytes
from lightlyfs.testing import LocalServer, ServerOptions

pytestmark = pytest.mark.ecosystem

WORKERS = 4
ATTEMPTS = 3
UPLOADS = 12


@pytest.fixture(scope="module")
def client(server: LocalServer) -> Iterator[Any]:
    """A client of four worker processes."""
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as connected,
    ):
        yield connected


def of_the_folder(folder: Path) -> ImageSums:
    """What is on the disk, past everything that is tried here."""
    return sum((sums_of_bytes(path.read_bytes()) for path in sorted(folder.rglob("*.jpg"))), ImageSums())


@pytest.mark.parametrize("tags", [None, ["odd", "even"]], ids=["directories", "tags"])
def test_four_workers_find_what_one_process_does(
    client: Any, place: Place, pictures: Path, tags: list[str] | None
) -> None:
    partitions = partitions_of(place, tags)
    assert len(partitions) >= 2
    found = client.map(sums_of, partitions, options=place.options, pure=False)
    total = sum(client.gather(found), ImageSums())
    assert total == sum((sums_of(paths, place.options) for paths in partitions), ImageSums())
    assert total == of_the_folder(pictures)
    assert 0.4 < total.mean()[0] < 0.6
    assert 0.1 < total.std()[0] < 0.3


def test_the_partitions_are_the_directories(place: Place, pictures: Path) -> None:
    on_disk = [
        [f"pictures/{path.relative_to(pictures)}" for path in sorted(folder.iterdir())]
        for folder in sorted(pictures.iterdir())
    ]
    assert partitions_of(place) == on_disk


def test_tags_hold_what_they_are_said_to(place: Place) -> None:
    odd, even = partitions_of(place, ["odd"]), partitions_of(place, ["odd", "even"])
    assert sum(map(len, odd)) == sum(map(len, even)) / 2


def sums_with_a_stop(paths: list[str], options: dict[str, Any], stop: str) -> ImageSums:
    """The sums of a partition, whose first run stays in the middle and says which process it is."""
    first, rest = sums_of(paths[:3], options), paths[3:]
    if stop and not os.path.exists(stop):
        Path(stop + ".new").write_text(str(os.getpid()))
        os.rename(stop + ".new", stop)
        time.sleep(600)
    return first + sums_of(rest, options)


def test_the_task_of_a_killed_worker_is_repeated_and_counts_once(
    client: Any, place: Place, pictures: Path, tmp_path: Path
) -> None:
    partitions = partitions_of(place)
    stop = tmp_path / "pid"
    stops = [str(stop) if number == 2 else "" for number in range(len(partitions))]
    before = client.run(os.getpid)
    tasks = client.map(
        sums_with_a_stop, partitions, [place.options] * len(partitions), stops, pure=False, retries=ATTEMPTS
    )
    wait_until(stop.exists, 30)
    killed = int(stop.read_text())
    assert killed in before.values()
    os.kill(killed, signal.SIGKILL)
    assert sum(client.gather(tasks), ImageSums()) == of_the_folder(pictures)
    client.wait_for_workers(WORKERS, timeout=30)
    assert killed not in client.run(os.getpid).values()


def upload(number: int, local: str, options: dict[str, Any], pids: str) -> bool:
    """Upload a file from a worker, which says who it is."""
    with open(pids, "a") as file:
        file.write(f"{number} {os.getpid()}\n")
    fs = fsspec.filesystem("lightly", **options)
    return bool(fs.put_once(local, f"own/uploaded/{number}.bin"))


@pytest.fixture
def own(server: LocalServer, tmp_path: Path) -> Iterator[tuple[LocalServer, Place]]:
    """An empty dataset of the test's own, to which the token of the workers is good too."""
    (tmp_path / "own").mkdir()
    options = ServerOptions(source=tmp_path / "own", dataset_name="own", token=server.token)
    with LocalServer(options) as running:
        yield running, Place("own", {"cache_dir": str(tmp_path / "cache"), "server": running.url})


@pytest.mark.parametrize("step", ["withWriteUrls", "storage.put"])
def test_uploads_of_workers_are_made_once_also_by_a_killed_one(
    client: Any, own: tuple[LocalServer, Place], tmp_path: Path, step: str
) -> None:
    server, place = own
    pids = tmp_path / "pids"
    locals_ = []
    for number in range(UPLOADS):
        locals_.append(tmp_path / f"{number}.bin")
        locals_[-1].write_bytes(os.urandom(50_000 + number))
    numbers = list(range(UPLOADS))
    server.faults.add(WorkLater(target=step, count=1))
    args = (place.options, str(pids))
    (first,) = client.map(upload, numbers[:1], [str(locals_[0])], *([one] for one in args), retries=ATTEMPTS)
    wait_until(lambda: not server.faults.armed(), 30)
    os.kill(int(pids.read_text().split()[1]), signal.SIGKILL)
    others = client.map(
        upload, numbers * 2, list(map(str, locals_)) * 2, *([one] * UPLOADS * 2 for one in args), pure=False
    )
    client.gather([first, *others])
    runs = pids.read_text().splitlines()
    assert len(runs) == UPLOADS * 2 + 2  # all of them twice, the first, and the first once more
    wait_until(lambda: server.stats.snapshot()["in_flight"] == 0, 10)
    stored = {}
    for sample in server.samples():
        assert stored.setdefault(sample["fileName"], sample["id"]) == sample["id"], "there are two of it"
    assert {name: server.object_bytes(one) for name, one in stored.items()} == {
        f"uploaded/{path.name}": path.read_bytes() for path in locals_
    }
