"""Reports the state of a mount: as plain values, and as Prometheus counters on a local port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import reduce
from operator import getitem
from typing import TYPE_CHECKING, Any

from lightlyfs import places
from lightlyfs.app.connections import LATENCY_BUCKETS_S
from lightlyfs.app.uploading import uploads_status
from lightlyfs.cache.block_files import bytes_beside
from lightlyfs.errors import StartError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from lightlyfs.app.dataset import Dataset


# what `status` counts, as (name, place in it, help); totals end in `_total`
_NUMBERS = (
    ("cache_hits_total", ("cache", "hits"), "Reads answered from the block cache."),
    ("cache_misses_total", ("cache", "misses"), "Reads that were not."),
    ("cache_errors_total", ("cache", "errors"), "Failures of the cache, each bypassed."),
    ("cache_evicted_total", ("cache", "evicted"), "Contents that were displaced from the cache."),
    ("cache_bytes", ("cache", "bytes"), "Bytes of blocks in the cache."),
    ("cache_beside_bytes", ("cache", "beside_bytes"), "Bytes of the databases and logs beside the blocks."),
    ("cache_budget_bytes", ("cache", "budget_bytes"), "Most bytes the cache may hold."),
    ("fetched_bytes_total", ("content", "fetched_bytes"), "Bytes of images fetched from storage."),
    ("fetches_under_way", ("content", "under_way"), "Fetches from storage under way."),
    ("fetch_failures_total", ("content", "failures"), "Fetches that failed for someone who waited."),
    ("prefetched_total", ("prefetch", "started"), "Files fetched before they were asked for."),
    ("samples", ("catalogue", "samples"), "Samples in the catalogue."),
    ("samples_unverified", ("catalogue", "unverified"), "Samples whose size storage has not confirmed."),
    ("open_files", ("open_files",), "Files open on the mount."),
)
_UPLOADS = (
    ("uploads_done_total", "uploaded", "Files uploaded."),
    ("uploads_pending", "pending", "Files that are to be uploaded."),
    ("uploads_under_way", "under_way", "Uploads under way."),
    ("uploads_failed", "failed", "Files whose upload failed, and is tried again."),
)


def serve_metrics(parts: Dataset, address: tuple[str, int]) -> None:
    """Serve metrics until the process ends; StartError if the port cannot be opened."""
    try:
        import prometheus_client
        from prometheus_client.registry import Collector
    except ImportError:
        raise StartError(
            "--metrics-port needs prometheus_client; install it with: pip install prometheus_client"
        ) from None

    class _Collector(Collector):
        def collect(self) -> Iterator[Metric]:
            return metrics_of(parts)

    registry = prometheus_client.CollectorRegistry(auto_describe=False)
    prometheus_client.ProcessCollector(registry=registry)
    registry.register(_Collector())
    host, port = address
    try:
        prometheus_client.start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise StartError(f"metrics cannot be served on {host}:{port}: {error.strerror}") from None


def metrics_of(parts: Dataset) -> Iterator[Metric]:
    """Yield every metric, as of now."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    def number(name: str, help_: str, value: float) -> Metric:
        family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        return family(f"lightlyfs_{name}", help_, value=value)

    status = status_of(parts)
    for name, place, help_ in _NUMBERS:
        value: Any = reduce(getitem, place, status)
        yield number(name, help_, float(value))
    if status["uploads"] is not None:
        for name, key, help_ in _UPLOADS:
            yield number(name, help_, float(status["uploads"].get(key, 0)))
    age = status["catalogue"]["age_s"]
    if age is not None:
        yield number("catalogue_age_seconds", "Seconds since the names were last known to be true.", age)
    requests = CounterMetricFamily(
        "lightlyfs_requests", "Requests by operation and outcome.", labels=("operation", "outcome")
    )
    for (operation, outcome), count in sorted(parts.connections.requests.outcomes().items()):
        requests.add_metric((operation, outcome), count)
    yield requests
    latencies = HistogramMetricFamily(
        "lightlyfs_request_seconds", "How long requests took.", labels=("operation",)
    )
    bounds = [*(str(bound) for bound in LATENCY_BUCKETS_S), "+Inf"]
    for operation, took in sorted(parts.connections.requests.latencies().items()):
        latencies.add_metric((operation,), list(zip(bounds, took.buckets, strict=True)), took.sum_s)
    yield latencies


def status_of(parts: Dataset) -> dict[str, Any]:
    """Return what `lightlyfs status` shows, as plain values."""
    refresher = parts.catalog.refresher
    record = parts.catalog.dataset()
    totals = parts.totals()
    cache = parts.cache.stats()
    reader = parts.reader.stats()
    return {
        "pid": os.getpid(),
        "dataset": {"id": parts.dataset_id, "name": record.name if record else None},
        "part": parts.part.folder,
        "include": list(parts.settings.shown.include),
        "exclude": list(parts.settings.shown.exclude),
        "tag": parts.settings.tag,
        "server": parts.settings.server,
        "catalogue": {
            "complete": refresher.complete,
            "age_s": refresher.age_s(),
            "stopped": refresher.stopped,
            "error": None if refresher.error is None else str(refresher.error),
            "listed": refresher.progress.listed,
            "expected": refresher.progress.expected,
            **totals._asdict(),
            "problems": parts.problems.count(),
        },
        "problems": [problem._asdict() for problem in parts.problems.all()],
        "cache": {
            "directory": str(parts.place.path),
            "private": parts.place.temporary,
            "why_there": places.elsewhere(parts.settings.cache_dir),
            "shared": parts.place.locks.has_company(),
            "beside_bytes": bytes_beside(parts.place.path),
            "disk_nearly_full": parts.cache.room.is_held_down,
            **cache._asdict(),
        },
        "content": reader._asdict(),
        "prefetch": parts.prefetch_stats()._asdict(),
        "ahead": parts.epoch_stats(),
        "reads_by_path": parts.filesystem.reads_by_path,
        "urls": parts.url_stats(),
        "open_files": parts.filesystem.open_files,
        "requests": parts.connections.requests.counts(),
        "read_only": parts.uploads is None,
        "upload": parts.settings.upload.text,
        "cache_dir": None if parts.settings.cache_dir is None else str(parts.settings.cache_dir),
        "uploads": uploads_status(parts.uploads),
    }
