"""The order of an epoch: seeded, the same on every machine, and resumable at any point.

An order is one permutation of all items, of which all ranks take their shares in turns. So how far an epoch
has come is one number, whatever the numbers of ranks and workers and the size of a batch are then and later.
"""

from __future__ import annotations

import random
from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple


class RankShare(NamedTuple):
    """Which of several processes that train one model this is."""

    rank: int = 0
    ranks: int = 1


class Batch(list[int]):
    """The numbers of the items of a batch; a plain list to code that does not know this class.

    `announced` are items of later batches that the same worker should have fetched from now on. `epoch_run`
    differs where the batches before this one are not read any more.
    """

    def __init__(self, items: Iterable[int], announced: Iterable[int] = (), epoch_run: int = 0) -> None:
        super().__init__(items)
        self.announced = list(announced)
        self.epoch_run = epoch_run


class EpochOrder:
    """The batches of one rank, epoch after epoch; used by one thread.

    Without `drop_last` the first items of an epoch fill up what is missing for all ranks to have as many, as
    torch does it: with one rank no item comes twice. With it every batch is full, and the rest is left out.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        share: RankShare = RankShare(),  # noqa: B008 - it cannot be changed
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one item, not {batch_size}")
        if not 0 <= share.rank < share.ranks:
            raise ValueError(f"rank {share.rank} of {share.ranks}")
        self.count = count
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.share = share
        self.drop_last = drop_last
        self.epoch = 0
        self.position = 0  # items that all ranks have taken of the epoch
        self._goes_on = False

    def __len__(self) -> int:
        """Return how many batches a rank has in a whole epoch."""
        return -(-self._left(0) // self._per_step)

    def set_epoch(self, epoch: int) -> None:
        """Begin with this epoch; one whose state was loaded resumes where it was."""
        if epoch != self.epoch:
            self.epoch, self.position, self._goes_on = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Return what another process needs to resume after the batches taken so far."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "count": self.count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where a state was taken; ValueError where that was in an order of other items."""
        if state["count"] != self.count:
            raise ValueError(f"the state is of an order of {state['count']} items; here are {self.count}")
        self.seed, self.shuffle = state["seed"], state["shuffle"]
        self.epoch, self.position = state["epoch"], state["position"]
        self._goes_on = True
        self._end_epoch()  # with `drop_last`, or another size of a batch, nothing may be left of it

    def begin(self) -> Iterator[list[int]]:
        """Return the batches from here on: of a whole epoch, unless a state was loaded since the last one."""
        if not self._goes_on:
            self.position = 0
        self._goes_on = False
        return self._batches(self._permutation(), self.position)

    def took(self) -> None:
        """Count a batch, which all ranks take at once; behind the last one the next epoch begins."""
        self.position = min(self.count, self.position + self._per_step)
        self._end_epoch()

    def _end_epoch(self) -> None:
        if self.position and self._left(self.position) <= 0:
            self.epoch, self.position = self.epoch + 1, 0

    @property
    def _per_step(self) -> int:
        return self.batch_size * self.share.ranks

    def _left(self, position: int) -> int:
        """How many items all ranks together still take behind a position."""
        left = max(0, self.count - position)
        if self.drop_last:
            return left // self._per_step * self._per_step
        return -(-left // self.share.ranks) * self.share.ranks

    def _batches(self, order: Sequence[int], position: int) -> Iterator[list[int]]:
        rank, ranks = self.share
        end = position + self._left(position)
        for start in range(position, end, self._per_step):
            places = range(start + rank, min(end, start + self._per_step), ranks)
            yield [order[place % self.count] for place in places]

    def _permutation(self) -> array[int] | range:
        if not self.shuffle:
            return range(self.count)
        order = array("I", range(self.count))
        # a text, for then the seeds of neighbouring epochs have nothing in common
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return order


def with_announcements(
    batches: Iterator[list[int]], workers: int, batches_ahead: int, epoch_run: int
) -> Iterator[Batch]:
    """Yield batches that go to `workers` in turns, each with what its worker should have fetched from now on.

    That is the batch which is so many ahead among those of the same worker; with its first, all up to that.
    """
    waiting: deque[list[int]] = deque(islice(batches, workers * batches_ahead))
    number = 0
    while True:
        waiting.extend(islice(batches, 1))
        if not waiting:
            return
        if number < workers:
            announced = islice(waiting, 0, None, workers)
        else:
            announced = islice(waiting, workers * batches_ahead, None)
        items = [item for batch in announced for item in batch]
        yield Batch(waiting.popleft(), items, epoch_run)
        number += 1
