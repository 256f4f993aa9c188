"""A folder of pictures as Hugging Face `datasets` has it, with labels after directories.

python -m lightlyfs.examples.hf_imagefolder my-dataset --workers 4
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

from lightlyfs.examples.common import Place, Result, run, stopwatch
from lightlyfs.examples.stats import ImageSums, in_one_process, sums_of_bytes


def load(place: Place, cache_dir: str, processes: int) -> Any:
    """The dataset, whose files are fetched by processes; labels are the names of directories."""
    from datasets import load_dataset

    return load_dataset(
        "imagefolder",
        data_files={"train": f"{place.url}/**"},
        storage_options=dict(place.options),
        cache_dir=cache_dir,
        num_proc=processes,
    )["train"]


def by_datasets(place: Place, given: argparse.Namespace) -> Result:
    """Load it, then add up what each row holds."""
    from datasets import Image

    with tempfile.TemporaryDirectory() as cache_dir, stopwatch() as seconds:
        rows = load(place, cache_dir, given.workers).cast_column("image", Image(decode=False))
        total = ImageSums()
        for row in rows:
            total += sums_of_bytes(_bytes_of(row["image"]))
        return total.result(seconds())


def _bytes_of(image: dict[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return bytes(image["bytes"])
    with open(image["path"], "rb") as file:
        return file.read()


if __name__ == "__main__":
    run(__doc__ or "", ["datasets", "numpy"], in_one_process, by_datasets)
