"""Mean and standard deviation of a dataset by Dask: one task a partition, in processes of their own.

python -m lightlyfs.examples.dask_stats my-dataset --workers 4
python -m lightlyfs.examples.dask_stats --latency-ms 20 --compare
"""

from __future__ import annotations

import argparse

from lightlyfs.examples.common import Place, Result, run, stopwatch
from lightlyfs.examples.stats import ImageSums, chosen_partitions, in_one_process, open_dataset, sums_of

# a worker that is killed takes its tasks along; they are repeated, and their result counts once
_RETRIES = 3


def by_dask(place: Place, given: argparse.Namespace) -> Result:
    """Compute the sums of each partition, on any free worker."""
    from distributed import Client, LocalCluster

    partitions = chosen_partitions(place, given)
    with (
        LocalCluster(n_workers=given.workers, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(open_dataset, place)  # as the one process has, before its clock runs
        with stopwatch() as seconds:
            tasks = client.map(sums_of, partitions, options=place.options, retries=_RETRIES)
            total = sum(client.gather(tasks), ImageSums())
            return total.result(seconds())


if __name__ == "__main__":
    run(__doc__ or "", ["distributed", "numpy"], in_one_process, by_dask)
