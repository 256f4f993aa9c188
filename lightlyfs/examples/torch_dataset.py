"""A dataset for PyTorch's DataLoader, whose workers may be forked or spawned.

    python -m lightlyfs.examples.torch_dataset my-dataset --workers 4

`LightlyImages` itself needs no torch: it has a length, and items by number.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from typing import Any

import fsspec

from lightlyfs.examples.common import Place, Result, run, stopwatch
from lightlyfs.examples.stats import ImageSums, in_one_process, sums_of_bytes

_BATCH = 32
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class LightlyImages:
    """The pictures below a path, each with the number of its directory in `classes`; map-style.

    `transform` makes of the bytes of a file what an item holds; without one it is a Pillow image in RGB.
    A batch is fetched in parallel. Can be pickled where `transform` can; any process may use its copy.
    """

    def __init__(
        self, root: str, transform: Callable[[bytes], Any] | None = None, **storage_options: Any
    ) -> None:
        self._fs = fsspec.filesystem("lightly", **storage_options)
        self._transform = transform or open_picture
        # by itself `find` leaves out what it cannot list, without a word
        found = self._fs.find(root, on_error="raise")
        self.paths = sorted(path for path in found if path.lower().endswith(_ENDINGS))
        self.classes = sorted({_directory(path) for path in self.paths})
        self._class_of = {name: number for number, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path = self.paths[index]
        return self._item(path, self._fs.cat_file(path))

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """The items of a batch; DataLoader calls this where it is there."""
        paths = [self.paths[index] for index in indices]
        contents = self._fs.cat_ranges(paths, None, None, on_error="raise")
        return list(map(self._item, paths, contents))

    def _item(self, path: str, data: bytes) -> tuple[Any, int]:
        return self._transform(data), self._class_of[_directory(path)]


def open_picture(data: bytes) -> Any:
    """A Pillow image in RGB."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def by_loader(place: Place, given: argparse.Namespace) -> Result:
    """An epoch, whose items are sums; a training step would take tensors."""
    from torch.utils.data import DataLoader

    images = LightlyImages(place.url, sums_of_bytes, **place.options)
    loader = DataLoader(
        images, _BATCH, shuffle=given.shuffle, num_workers=given.workers, collate_fn=_added_up
    )
    with stopwatch() as seconds:
        return sum(loader, ImageSums()).result(seconds())


def _added_up(items: list[tuple[ImageSums, int]]) -> ImageSums:
    return sum((sums for sums, _ in items), ImageSums())


def _directory(path: str) -> str:
    return path.rpartition("/")[0]


if __name__ == "__main__":
    run(__doc__ or "", ["torch", "numpy"], in_one_process, by_loader)
