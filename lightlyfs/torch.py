"""The images of a dataset for torch: `LightlyImages` and a DataLoader that knows its order.

    images = LightlyImages("my-dataset", transform=to_tensor)
    batches = loader(images, batch_size=64, seed=1)
    for epoch in range(10):
        batches.set_epoch(epoch)
        for pictures, labels in batches:
            ...

Importing this imports torch; nothing else of lightlyfs does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch.distributed
from torch.utils.data import DataLoader, default_collate

from lightlyfs.memory import keep_freed_memory
from lightlyfs.training.images import LightlyImages
from lightlyfs.training.order import Batch, EpochOrder, RankShare, with_announcements
from lightlyfs.training.reading import batches_ahead

__all__ = ["LightlyImages", "Loader", "loader"]

# more workers are seldom useful for one GPU, and each takes the memory of a process
_MOST_WORKERS = 8


def loader(
    images: Any,
    batch_size: int = 64,
    *,
    shuffle: bool = True,
    seed: int = 0,
    drop_last: bool = False,
    share: RankShare | tuple[int, int] | None = None,
    **options: Any,
) -> Loader:
    """Return a DataLoader over images that announces its order, so that the network is batches ahead.

    Each epoch is shuffled by `seed` and its number; `set_epoch` sets that, and the end of an epoch adds one.
    `share` is the rank of this process and the number of ranks; else what `torch.distributed` says. All
    ranks have as many batches. `state_dict` and `load_state_dict` resume in the middle of an epoch, with the
    same order, also with other numbers of workers and ranks and another batch size.

    `options` are those of DataLoader; `num_workers` is one a core, at most 8, which stay for all epochs. The
    process that decodes, a worker or with `num_workers=0` this one, keeps up to 32 MiB of freed memory.
    `images` may be a dataset around ours: its batches are fetched ahead where it hands the list of numbers
    that its `__getitems__` gets on as it came.
    """
    if share is None:
        share = (0, 1)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            share = torch.distributed.get_rank(), torch.distributed.get_world_size()
    options.setdefault("num_workers", min(_MOST_WORKERS, len(os.sched_getaffinity(0))))
    options.setdefault("persistent_workers", options["num_workers"] > 0)
    if not options["num_workers"]:
        keep_freed_memory()  # as workers do
    order = EpochOrder(
        len(images), batch_size, shuffle=shuffle, seed=seed, share=RankShare(*share), drop_last=drop_last
    )
    return Loader(images, order, **options)


class BatchSampler:
    """Gives a DataLoader the batches of an order, each with what its worker is to fetch ahead."""

    def __init__(self, order: EpochOrder, workers: int) -> None:
        self.order = order
        self._workers = max(1, workers)
        self._runs = 0

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Batch]:
        # begun with the first batch: DataLoader makes two iterators, of which it uses one
        self._runs += 1
        ahead = batches_ahead(self.order.batch_size, self._workers)
        yield from with_announcements(self.order.begin(), self._workers, ahead, self._runs)

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch."""
        self.order.set_epoch(epoch)


class Loader(DataLoader):  # type: ignore[misc]
    """A DataLoader whose order is announced, and whose state counts the batches that the caller was given."""

    def __init__(self, dataset: Any, order: EpochOrder, **options: Any) -> None:
        if not options.get("in_order", True):
            raise ValueError(
                "in_order=False: batches that come in another order cannot be resumed or fetched ahead"
            )
        options["collate_fn"] = _Collate(options.get("collate_fn") or default_collate)
        sampler = BatchSampler(order, options.get("num_workers", 0))
        super().__init__(dataset, batch_sampler=sampler, **options)

    @property
    def order(self) -> EpochOrder:
        """The order of the epochs."""
        sampler: BatchSampler = self.batch_sampler
        return sampler.order

    def __iter__(self) -> Iterator[Any]:
        return self._counted(super().__iter__())

    def _counted(self, given: Iterator[Any]) -> Iterator[Any]:
        for batch in given:
            self.order.took()
            if not isinstance(batch, _Nothing):
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch; one whose state was loaded resumes where it was."""
        self.order.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return where the caller is: behind the last batch that it was given."""
        return {**self.order.state_dict(), "listing": _digest_of(self.dataset)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Have the next iteration go on there; ValueError where the dataset holds other images by now."""
        if state["listing"] != _digest_of(self.dataset):
            raise ValueError("the state is of other images: samples were added, renamed or removed since")
        self.order.load_state_dict(state)


class _Nothing:
    """A batch of which nothing can be read."""


class _Collate:
    """Makes a batch of items, of which some may have been left out."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: list[Any]) -> Any:
        return self._collate(items) if items else _Nothing()


def _digest_of(images: Any) -> str | None:
    return images.paths.digest if isinstance(images, LightlyImages) else None
