"""The images of a dataset in PyTorch's DataLoader, whose workers may be forked or spawned.

python -m lightlyfs.examples.torch_dataset my-dataset --workers 4
"""

from __future__ import annotations

import argparse

from lightlyfs.examples.common import Place, Result, run, stopwatch
from lightlyfs.examples.stats import ImageSums, in_one_process, sums_of_bytes

_BATCH = 32


def by_loader(place: Place, given: argparse.Namespace) -> Result:
    """An epoch, whose items are sums; a training step would take tensors."""
    from lightlyfs.torch import LightlyImages, loader

    images = LightlyImages(place.url, labels=None, decode=sums_of_bytes, **place.options)
    batches = loader(images, _BATCH, shuffle=given.shuffle, num_workers=given.workers, collate_fn=_added_up)
    with stopwatch() as seconds:
        return sum(batches, ImageSums()).result(seconds())


def _added_up(items: list[ImageSums]) -> ImageSums:
    return sum(items, ImageSums())


if __name__ == "__main__":
    run(__doc__ or "", ["torch", "numpy"], in_one_process, by_loader)
