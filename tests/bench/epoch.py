"""An epoch by one kind of loader: KIND PLACE WORKERS BATCH EPOCHS BATCHES DECODE [START_METHOD].

Prints, for each epoch of at most so many batches, one JSON line: seconds to the first batch, files a second
after it and in all, files, bytes, CPU seconds of this process and its workers. PLACE is what the kind reads:
a dataset, a directory, an S3 URL.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from harness import cost_of


def picture(data: Any) -> int:
    """Decode an image as a training does; how many bytes it had."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        image.convert("RGB").resize((224, 224))
    return len(data)


def size_of(data: Any) -> int:
    """Decode nothing."""
    return len(data)


class Folder:
    """The files below a directory, read with `open`, as ImageFolder does."""

    def __init__(self, directory: str, use: Callable[[Any], int]) -> None:
        self._use = use
        self.paths = sorted(str(path) for path in Path(directory).rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> int:
        return self._use(Path(self.paths[number]).read_bytes())


class Raw:
    """litData's dataset of raw files, or torch's connector for S3, with one function over the bytes."""

    def __init__(self, dataset: Any, use: Callable[[Any], int]) -> None:
        self.dataset, self._use = dataset, use

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, number: int) -> int:
        item = self.dataset[number]
        return self._use(item.read() if hasattr(item, "read") else item)


class RawTogether(Raw):
    """One that fetches a batch at once."""

    def __getitems__(self, numbers: list[int]) -> list[int]:
        return [self._use(data) for data in self.dataset.__getitems__(numbers)]


def ours(place: str, use: Callable[[Any], int], batch: int, options: dict[str, Any]) -> Any:
    """Our loader."""
    from lightlyfs.torch import LightlyImages, loader

    return loader(LightlyImages(place, decode=False, labels=None, transform=use), batch, seed=1, **options)


def folder(place: str, use: Callable[[Any], int], batch: int, options: dict[str, Any]) -> Any:
    """A plain loader over a directory."""
    return plain(Folder(place, use), batch, options)


def litdata(place: str, use: Callable[[Any], int], batch: int, options: dict[str, Any]) -> Any:
    """litData's dataset of raw files over a plain loader, as its users do; PLACE may end in `?cached`."""
    from litdata import StreamingRawDataset
    from litdata.streaming import downloader

    # it takes only https otherwise; the endpoint it takes from the environment
    downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}
    url, _, cached = place.partition("?")
    dataset = StreamingRawDataset(url, cache_dir=os.environ["BENCH_CACHE"], cache_files=bool(cached))
    return plain(RawTogether(dataset, use), batch, options)


def s3torch(place: str, use: Callable[[Any], int], batch: int, options: dict[str, Any]) -> Any:
    """torch's connector for S3, map-style."""
    from s3torchconnector import S3ClientConfig, S3MapDataset

    dataset = S3MapDataset.from_prefix(
        place,
        region="us-east-1",
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        s3client_config=S3ClientConfig(force_path_style=True),
    )
    return plain(Raw(dataset, use), batch, options)


def plain(dataset: Any, batch: int, options: dict[str, Any]) -> Any:
    """torch's own loader, shuffled."""
    from torch.utils.data import DataLoader

    options = {"persistent_workers": options["num_workers"] > 0, **options}
    return DataLoader(dataset, batch, shuffle=True, **options)


KINDS = {"ours": ours, "folder": folder, "litdata": litdata, "s3torch": s3torch}


def epoch(batches: Iterable[Any], most: int) -> dict[str, float]:
    """One pass over at most so many batches, as a row."""
    before = cost_of(os.getpid())
    began = time.perf_counter()
    first_s, files, size, first_files = 0.0, 0, 0, 0
    for batch in islice(batches, most):
        files += len(batch)
        size += int(sum(batch))
        if not first_s:
            first_s, first_files = time.perf_counter() - began, files
    took_s = time.perf_counter() - began
    cpu_s = cost_of(os.getpid()).cpu_s - before.cpu_s
    per_s = (files - first_files) / max(1e-9, took_s - first_s)
    return {
        "first_s": first_s,
        "per_s": per_s,
        "whole_per_s": files / took_s,
        "files": files,
        "bytes": size,
        "cpu_s": cpu_s,
    }


def main(
    kind: str, place: str, workers: int, batch: int, epochs: int, most: int, decode: bool, method: str = ""
) -> None:
    """Make the loader, run the epochs."""
    options: dict[str, Any] = {"num_workers": workers}
    if workers:
        options["multiprocessing_context"] = method or None
    began = time.perf_counter()
    batches = KINDS[kind](place, picture if decode else size_of, batch, options)
    made_s = time.perf_counter() - began
    for _ in range(epochs):
        print(json.dumps({**epoch(batches, most), "made_s": made_s}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7]), sys.argv[7] == "decoded", *sys.argv[8:])
