"""Mean and standard deviation of a dataset by Ray Data, which reads through pyarrow's way into fsspec.

python -m lightlyfs.examples.ray_stats my-dataset --workers 4
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import fsspec

from lightlyfs.examples.common import Place, Result, run, stopwatch
from lightlyfs.examples.stats import ImageSums, chosen_partitions, in_one_process, open_dataset, sums_of_bytes

_OBJECT_STORE_BYTES = 100 << 20  # what is read is added up at once, and little is under way


@contextlib.contextmanager
def ray_running(workers: int) -> Iterator[None]:
    """Ray on this machine, asking nobody and telling nobody; its processes end with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(
        num_cpus=workers,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="WARNING",
    )
    try:
        yield
    finally:
        ray.shutdown()


def arrow_filesystem(options: dict[str, Any]) -> Any:
    """`lightly://` as pyarrow takes it."""
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(fsspec.filesystem("lightly", **options)))


def sums_of_file(row: dict[str, Any]) -> dict[str, Any]:
    """The sums of a file, as a row."""
    sums = sums_of_bytes(row["bytes"])
    return {"sums": (sums.files, sums.size, sums.pixels, *sums.values, *sums.squares)}


def by_ray(place: Place, given: argparse.Namespace) -> Result:
    """The files, spread by Ray over its workers."""
    from ray import data

    paths = [path for partition in chosen_partitions(place, given) for path in partition]
    data.DataContext.get_current().enable_progress_bars = False
    with ray_running(given.workers):
        _open_in_workers(place, given.workers)  # as the one process has, before its clock runs
        return _sums_of(paths, place, given.workers)


def _open_in_workers(place: Place, workers: int) -> None:
    import ray

    opened = ray.remote(num_cpus=1)(open_dataset)
    ray.get([opened.remote(place) for _ in range(workers)])


def _sums_of(paths: list[str], place: Place, workers: int) -> Result:
    from ray import data

    with stopwatch() as seconds:
        files = data.read_binary_files(
            paths, filesystem=arrow_filesystem(place.options), override_num_blocks=workers * 4
        )
        # by the task that read it: an operator of its own would take half of the workers
        rows = files.map(sums_of_file).take_all()
        return sum((_from_row(row["sums"]) for row in rows), ImageSums()).result(seconds())


def _from_row(row: Any) -> ImageSums:
    files, size, pixels, *colours = map(int, row)
    return ImageSums(files, size, pixels, tuple(colours[:3]), tuple(colours[3:]))


if __name__ == "__main__":
    run(__doc__ or "", ["ray", "pyarrow", "numpy"], in_one_process, by_ray)
