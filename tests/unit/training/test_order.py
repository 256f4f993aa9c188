"""The order of an epoch: nothing twice, nothing missed, the same on every machine and after a resume."""

from __future__ import annotations

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightlyfs.training.order import Batch, EpochOrder, RankShare, with_announcements

COUNTS = st.integers(1, 200)
SIZES = st.integers(1, 40)


def flat(batches: list[list[int]]) -> list[int]:
    return [item for batch in batches for item in batch]


def taken(order: EpochOrder, most: int | None = None) -> list[list[int]]:
    """What one who asks is given, and counts."""
    found = []
    for batch in islice(order.begin(), most):
        found.append(batch)
        order.took()
    return found


def test_an_epoch_is_every_item_once_in_an_order_of_its_own() -> None:
    order = EpochOrder(1000, 64, seed=3)
    first, second = flat(taken(order)), flat(taken(order))
    assert sorted(first) == sorted(second) == list(range(1000))
    assert first != second != sorted(second)
    assert (order.epoch, order.position, len(order)) == (2, 0, 16)


def test_the_order_is_that_of_every_machine_and_python() -> None:
    """Written down once: a training that goes on after an update must find the same order."""
    assert flat(taken(EpochOrder(12, 5, seed=7))) == [7, 3, 5, 2, 8, 9, 10, 1, 11, 4, 0, 6]
    assert flat(taken(EpochOrder(5, 5, shuffle=False))) == [0, 1, 2, 3, 4]


def test_seeds_and_epochs_have_orders_that_differ() -> None:
    orders = set()
    for seed in range(4):
        order = EpochOrder(50, 50, seed=seed)
        for epoch in range(4):
            order.set_epoch(epoch)
            orders.add(tuple(flat(taken(order))))
    assert len(orders) == 16


@given(COUNTS, SIZES, st.integers(0, 30), SIZES)
def test_one_rank_goes_on_in_the_middle_with_any_size_of_batch(
    count: int, size: int, steps: int, size_later: int
) -> None:
    whole = flat(taken(EpochOrder(count, size, seed=5)))
    order = EpochOrder(count, size, seed=5)
    before = flat(taken(order, min(steps, len(order) - 1)))
    later = EpochOrder(count, size_later)
    later.load_state_dict(json.loads(json.dumps(order.state_dict())))
    assert before + flat(taken(later)) == whole
    assert (later.epoch, later.position) == (1, 0)


@given(COUNTS, SIZES, st.integers(1, 5), st.integers(1, 5), st.integers(0, 30))
def test_ranks_take_all_and_as_many_and_may_be_others_later(
    count: int, size: int, ranks: int, ranks_later: int, steps: int
) -> None:
    orders = [EpochOrder(count, size, seed=2, share=RankShare(rank, ranks)) for rank in range(ranks)]
    steps = min(steps, len(orders[0]) - 1)
    before = [flat(taken(order, steps)) for order in orders]
    state = orders[0].state_dict()
    assert all(order.state_dict() == state for order in orders)
    after = []
    for rank in range(ranks_later):
        later = EpochOrder(count, size, share=RankShare(rank, ranks_later))
        later.load_state_dict(state)
        after.append(taken(later))
    assert len({tuple(map(len, batches)) for batches in after}) == 1
    found = [item for items in before for item in items] + flat([flat(batches) for batches in after])
    assert set(found) == set(range(count))
    assert len(found) < count + ranks_later  # what fills up the last batches


@given(COUNTS, SIZES, st.integers(1, 5))
def test_with_drop_last_every_batch_is_full_and_nothing_comes_twice(
    count: int, size: int, ranks: int
) -> None:
    found = []
    for rank in range(ranks):
        order = EpochOrder(count, size, share=RankShare(rank, ranks), drop_last=True)
        batches = taken(order)
        assert len(batches) == len(order) == count // (size * ranks)
        assert all(len(batch) == size for batch in batches)
        found += flat(batches)
    assert len(found) == len(set(found))


def test_an_epoch_that_was_left_begins_again_unless_its_state_was_loaded() -> None:
    order = EpochOrder(100, 10, seed=1)
    first = taken(order, 3)
    state = order.state_dict()
    assert taken(order, 3) == first
    order.load_state_dict(state)
    order.set_epoch(0)
    assert taken(order, 3) != first
    order.load_state_dict(state)
    order.set_epoch(1)
    assert order.position == 0


def test_the_end_of_an_epoch_is_the_beginning_of_the_next() -> None:
    order = EpochOrder(100, 30)
    taken(order)
    later = EpochOrder(100, 30)
    later.load_state_dict(order.state_dict())
    assert taken(later) == taken(order)


def test_where_nothing_is_left_of_an_epoch_the_next_one_begins() -> None:
    order = EpochOrder(35, 10)
    taken(order, 3)
    later = EpochOrder(35, 8, drop_last=True)
    later.load_state_dict(order.state_dict())
    assert (later.epoch, later.position) == (1, 0)
    assert len(taken(later)) == 4


def test_a_state_of_another_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="an order of 5 items; here are 6"):
        EpochOrder(6, 2).load_state_dict(EpochOrder(5, 2).state_dict())


@pytest.mark.parametrize("share", [RankShare(2, 2), RankShare(-1, 2), RankShare(0, 0)])
def test_a_rank_that_is_none_is_refused(share: RankShare) -> None:
    with pytest.raises(ValueError, match="rank"):
        EpochOrder(6, 2, share=share)


@given(COUNTS, SIZES, st.integers(1, 5), st.integers(0, 6))
def test_each_worker_is_told_its_own_batches_in_order_and_in_time(
    count: int, size: int, workers: int, ahead: int
) -> None:
    """A worker that gets every n-th batch hears of each no later than with it, and so many before it."""
    order = EpochOrder(count, size)
    plain = taken(order)
    order.set_epoch(0)
    batches = list(with_announcements(order.begin(), workers, ahead, 4))
    assert batches == plain
    assert all(isinstance(batch, Batch) and batch.epoch_run == 4 for batch in batches)
    for worker in range(workers):
        mine = batches[worker::workers]
        told: list[int] = []
        for number, batch in enumerate(mine):
            told += batch.announced
            assert told == flat(mine[: number + ahead + 1])
