"""Mean and standard deviation of each colour over a dataset, in pieces that any process can work out.

Sums are whole numbers, so that the result is the same to the last bit however the files are shared out.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec

from lightlyfs.examples.common import Place, Result, stopwatch
from lightlyfs.fsspec.driver import by_directory, by_tag

# whole directories: a reader in order has the next files fetched, and those past its task are another's
_FILES_PER_TASK = 256
_SHUFFLED_PER_TASK = 25


@dataclass(frozen=True)
class ImageSums:
    """What is added up over pixels, per colour."""

    files: int = 0
    size: int = 0
    pixels: int = 0
    values: tuple[int, ...] = (0, 0, 0)
    squares: tuple[int, ...] = (0, 0, 0)

    def __add__(self, other: ImageSums) -> ImageSums:
        return ImageSums(
            self.files + other.files,
            self.size + other.size,
            self.pixels + other.pixels,
            tuple(map(int.__add__, self.values, other.values)),
            tuple(map(int.__add__, self.squares, other.squares)),
        )

    def mean(self) -> list[float]:
        """Per colour, of values between 0 and 1."""
        return [value / self.pixels / 255 for value in self.values]

    def std(self) -> list[float]:
        """Likewise."""
        n = self.pixels
        pairs = zip(self.values, self.squares, strict=True)
        # in whole numbers as far as it goes: the difference of two large floats would lose digits
        return [(max(0, n * square - value * value)) ** 0.5 / n / 255 for value, square in pairs]

    def result(self, seconds: float) -> Result:
        """As a line for a person."""
        mean, std = (" ".join(f"{one:.6f}" for one in values) for values in (self.mean(), self.std()))
        return Result(f"mean {mean}, std {std}", self.files, self.size, seconds)


def sums_of_bytes(data: bytes) -> ImageSums:
    """The sums of one picture."""
    import numpy as np
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64)
    values, squares = (array.sum(axis=(0, 1)).tolist() for array in (pixels, pixels * pixels))
    return ImageSums(1, len(data), pixels.shape[0] * pixels.shape[1], tuple(values), tuple(squares))


def sums_of(paths: Iterable[str], options: dict[str, Any]) -> ImageSums:
    """The sums of a partition: a task of a worker, which opens the dataset by these storage options."""
    fs = fsspec.filesystem("lightly", **options)
    return sum((sums_of_bytes(fs.cat_file(path)) for path in paths), ImageSums())


def open_dataset(place: Place) -> None:
    """Have this process know the names of a dataset, as it then does for all its tasks."""
    fsspec.filesystem("lightly", **place.options).ls(place.dataset)


def partitions_of(place: Place, tags: Sequence[str] | None = None) -> list[list[str]]:
    """The files of a dataset, shared out by directory, or by these tags."""
    if not tags:
        return by_directory(_pictures(place, place.options), most=_FILES_PER_TASK)
    # a file system for each tag shows what the tag holds, under the same names
    return by_tag(
        {tag: _pictures(place, {**place.options, "tag": tag}) for tag in tags}, most=_FILES_PER_TASK
    )


def _pictures(place: Place, options: dict[str, Any]) -> list[str]:
    # by itself `find` leaves out what it cannot list, without a word
    found = fsspec.filesystem("lightly", **options).find(place.dataset, on_error="raise")
    if not found:
        raise FileNotFoundError(f"there are no pictures in {place.url}")
    return list(found)


def chosen_partitions(place: Place, given: argparse.Namespace) -> list[list[str]]:
    """The partitions that the arguments ask for; shuffled ones hold files from anywhere, always the same."""
    partitions = partitions_of(place, given.tag)
    if not given.shuffle:
        return partitions
    paths = [path for partition in partitions for path in partition]
    random.Random(0).shuffle(paths)
    starts = range(0, len(paths), _SHUFFLED_PER_TASK)
    return [paths[start : start + _SHUFFLED_PER_TASK] for start in starts]


def in_one_process(place: Place, given: argparse.Namespace) -> Result:
    """One partition after the other, in this process."""
    partitions = chosen_partitions(place, given)
    with stopwatch() as seconds:
        total = sum((sums_of(paths, place.options) for paths in partitions), ImageSums())
        return total.result(seconds())
