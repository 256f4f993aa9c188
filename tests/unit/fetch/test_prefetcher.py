"""What is fetched ahead: the next files of a reader in order, hardly any by chance."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import Future

import pytest

from lightlyfs.errors import Throttled
from lightlyfs.fetch.prefetcher import Prefetcher
from lightlyfs.readahead.in_order import MAX_WINDOW

FILES = [f"d/{number:04d}.jpg" for number in range(500)]


class Bench:
    """A directory of files, and what was fetched ahead of whom."""

    def __init__(
        self, max_under_way: int = 24, *, at_once: bool = True, files: int = 0, room: int = 1000
    ) -> None:
        self.files = [f"d/{number:04d}.jpg" for number in range(files)] or FILES
        self.fetched: list[str] = []
        self.pending: list[Future[None]] = []
        self.opened: set[str] = set()
        self.look_ups = 0
        self.most_looked_up = 0
        self.at_once = at_once
        self.now = 0.0
        self.begun: list[float] = []  # when each of `pending` was
        self.prefetcher = Prefetcher(
            self.after,
            self.start,
            max_under_way=max_under_way,
            room=lambda _: room,
            clock=lambda: self.now,
        )

    def after(self, path: str, count: int) -> Sequence[tuple[str, str]]:
        self.look_ups += 1
        self.most_looked_up = max(self.most_looked_up, abs(count))
        if count < 0:
            end = bisect_left(self.files, path)
            behind = self.files[max(0, end + count) : end][::-1]
        else:
            start = bisect_right(self.files, path)
            behind = self.files[start : start + count]
        return [(name, name) for name in behind]

    def start(self, name: str) -> Future[None] | None:
        if name in self.opened or name in self.fetched:
            return None
        self.fetched.append(name)
        future: Future[None] = Future()
        if self.at_once:
            future.set_result(None)
        else:
            self.pending.append(future)
            self.begun.append(self.now)
        return future

    def end_fetches_of(self, seconds: float) -> None:
        """End the fetches that began at least so long ago."""
        while self.pending and self.now - self.begun[0] >= seconds - 1e-9:
            self.begun.pop(0)
            self.pending.pop(0).set_result(None)

    def open_all(self, names: Iterable[str]) -> float:
        """Open files in an order; the share of those opened that were there already."""
        hits = 0
        total = 0
        for name in names:
            total += 1
            hits += name in self.fetched
            self.opened.add(name)
            self.prefetcher.opened(name)
        return hits / total

    def unused(self) -> float:
        """The share of what was fetched that nobody opened."""
        return len(set(self.fetched) - self.opened) / max(1, len(self.fetched))


def test_nothing_is_fetched_for_one_or_two_files() -> None:
    bench = Bench()

    bench.open_all(FILES[:2])

    assert bench.fetched == []


def test_a_reader_in_order_finds_nearly_everything_there() -> None:
    bench = Bench()

    assert bench.open_all(FILES) > 0.98
    assert bench.unused() == 0


@pytest.mark.parametrize(
    ("read", "fetch_s", "unused"),
    # 2 s on the way and a file a tenth of a second: 20 at a time, for which 80 ahead are enough
    [(20, 3.0, 32), (60, 3.0, 59), (300, 9.0, 128), (300, 2.0, 80), (300, 0.5, 32), (300, 0.0, 32)],
)
def test_a_reader_has_four_times_as_many_ahead_as_are_on_their_way_but_not_more_than_it_read(
    read: int, fetch_s: float, unused: int
) -> None:
    bench = Bench(max_under_way=200, at_once=False)

    for name in FILES[:read]:
        bench.now += 0.1
        bench.open_all([name])
        bench.end_fetches_of(fetch_s)

    assert len(set(bench.fetched) - bench.opened) == unused


def test_a_reader_of_whom_fetches_queue_has_no_more_ahead_for_that() -> None:
    bench = Bench(max_under_way=200, at_once=False)
    for number, name in enumerate(FILES[:300]):
        bench.now += 0.1
        bench.open_all([name])
        bench.end_fetches_of(0.5 if number < 20 else 2.0)

    assert len(set(bench.fetched) - bench.opened) == 32


def test_who_browses_gets_two_files_ahead() -> None:
    bench = Bench()

    for count, name in enumerate(FILES[:40], 1):
        bench.opened.add(name)
        bench.prefetcher.opened(name, browsed=True)
        assert len(set(bench.fetched) - bench.opened) == (0 if count < 3 else 2)

    assert set(bench.fetched) == set(FILES[3:42])


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_reader_costs_next_to_nothing(seed: int) -> None:
    bench = Bench()

    bench.open_all(random.Random(seed).sample(FILES, len(FILES)))

    # in 500 files two neighbours follow each other by chance now and then
    assert len(bench.fetched) < len(FILES) * 0.15
    assert bench.unused() == 0


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_share_a_directory_are_followed(workers: int) -> None:
    bench = Bench()
    chunks = [FILES[start : start + 24] for start in range(0, 480, 24)]
    order: list[str] = []
    for first in range(0, len(chunks), workers):
        group = chunks[first : first + workers]
        order += [name for row in zip(*group, strict=False) for name in row]

    assert bench.open_all(order) > 0.7
    assert bench.unused() < 0.1


def test_workers_that_take_every_nth_file_are_followed() -> None:
    bench = Bench()
    order = [
        name
        for start in range(0, 480, 8)
        for name in random.Random(start).sample(FILES[start : start + 8], 8)
    ]

    assert bench.open_all(order) > 0.9


@pytest.mark.parametrize("step", [2, 3, 8, 32])
def test_a_reader_of_every_kth_file_finds_most_there_and_no_other(step: int) -> None:
    bench = Bench(files=3000)

    hits = bench.open_all(bench.files[::step])

    assert hits > 1 - 6 / (3000 / step)
    assert bench.unused() < 0.03


def test_a_reader_who_goes_backward_is_followed() -> None:
    bench = Bench()

    assert bench.open_all(reversed(FILES)) > 0.98
    assert bench.unused() == 0


def test_two_readers_of_every_kth_file_that_take_turns_are_followed() -> None:
    bench = Bench(files=3000)
    order = [name for pair in zip(bench.files[::5], bench.files[1500::5], strict=False) for name in pair]

    assert bench.open_all(order) > 0.95
    assert bench.unused() < 0.05


@pytest.mark.parametrize(("workers", "batch"), [(2, 24), (8, 24), (8, 8), (16, 24)])
@pytest.mark.parametrize("seed", range(3))
def test_workers_that_take_batches_in_turn_find_most_there(workers: int, batch: int, seed: int) -> None:
    bench = Bench(files=3000)
    chunks = [bench.files[start : start + batch] for start in range(0, 3000, batch)]
    left = [[name for chunk in chunks[w::workers] for name in chunk] for w in range(workers)]
    turns = random.Random(seed)
    order = []
    while any(left):
        order.append(turns.choice([names for names in left if names]).pop(0))

    assert bench.open_all(order) > 0.85
    assert bench.unused() < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_half_of_a_directory_in_no_order_wastes_next_to_nothing(seed: int) -> None:
    bench = Bench(files=3000)

    bench.open_all(random.Random(seed).sample(bench.files, 1500))

    assert len(set(bench.fetched) - bench.opened) < 0.1 * 1500


def test_who_reads_in_order_costs_a_look_up_for_many_files() -> None:
    bench = Bench()
    bench.open_all(FILES)
    assert bench.look_ups < len(FILES) / 8


def test_who_leaves_files_out_has_no_more_looked_up_than_that_takes() -> None:
    bench = Bench()
    assert bench.open_all(FILES[::3]) > 0.8
    assert bench.most_looked_up <= 3 * MAX_WINDOW


def test_an_epoch_in_no_order_costs_few_look_ups_and_an_order_behind_it_is_found() -> None:
    bench = Bench(files=3000)
    bench.open_all(random.Random(1).sample(bench.files[:1500], 1000))
    before = bench.look_ups
    bench.open_all(random.Random(2).sample(bench.files[:1500], 1000))
    assert bench.look_ups - before < 400

    assert bench.open_all(bench.files[1500:]) > 0.9


def test_no_more_is_ahead_than_there_is_room_for() -> None:
    bench = Bench(room=6)
    bench.open_all(FILES[:100])
    assert 0 < len(set(bench.fetched) - bench.opened) <= 6

    bench = Bench(room=0)
    bench.open_all(FILES[:100])
    assert bench.fetched == []


def test_what_is_under_way_is_bounded() -> None:
    bench = Bench(max_under_way=6, at_once=False)

    bench.open_all(FILES[:20])

    assert len(bench.pending) == 6
    assert bench.prefetcher.stats().under_way == 6


def test_a_server_in_trouble_is_asked_for_less_and_then_for_more_again() -> None:
    bench = Bench(max_under_way=16, at_once=False)
    bench.open_all(FILES[:30])
    for future in bench.pending[:8]:
        future.set_exception(Throttled("slow down", status=429))
    assert bench.prefetcher.stats().limit == 2

    for future in bench.pending[8:]:
        future.set_result(None)
    assert bench.prefetcher.stats().limit == 10


def test_memory_is_bounded() -> None:
    bench = Bench()

    for number in range(1000):
        bench.prefetcher.opened(f"other{number}/x.jpg")

    assert len(bench.prefetcher._table) <= 80


class Epochs:
    """Notes what it is told, in place of those who fetch for readers without order."""

    def __init__(self) -> None:
        self.unread: set[str] = set()
        self.told: list[tuple[str, int, bool]] = []

    def opened(self, path: str, size: int, *, in_order: bool) -> None:
        self.told.append((path, size, in_order))


def with_epochs(bench: Bench, **options: bool) -> tuple[Prefetcher[str], Epochs]:
    epochs = Epochs()
    prefetcher = Prefetcher(
        bench.after,
        bench.start,
        max_under_way=24,
        epochs=epochs,  # type: ignore[arg-type]
        clock=lambda: bench.now,
        **options,
    )
    return prefetcher, epochs


def test_who_fetches_for_readers_without_order_hears_of_each_open_and_its_order() -> None:
    bench = Bench()
    prefetcher, epochs = with_epochs(bench)
    for name in FILES[:4]:
        prefetcher.opened(name, 7)
    assert epochs.told == [(name, 7, number > 0) for number, name in enumerate(FILES[:4])]
    assert bench.fetched


def test_what_a_person_browses_is_no_epoch_unless_it_was_fetched_for_one() -> None:
    prefetcher, epochs = with_epochs(Bench())
    epochs.unread.add(FILES[9])
    prefetcher.opened(FILES[5], browsed=True)
    prefetcher.opened(FILES[9], browsed=True)
    assert [path for path, _, _ in epochs.told] == [FILES[9]]


def test_switched_off_it_follows_no_reader_and_tells_of_opens_all_the_same() -> None:
    bench = Bench()
    prefetcher, epochs = with_epochs(bench, is_on=False)
    for name in FILES[:20]:
        prefetcher.opened(name)
    assert bench.fetched == []
    assert bench.look_ups == 0
    assert [in_order for _, _, in_order in epochs.told] == [False] * 20


def test_a_file_that_was_fetched_for_an_epoch_begins_no_order() -> None:
    bench = Bench()
    prefetcher, epochs = with_epochs(bench)
    epochs.unread.update(FILES)
    assert prefetcher.expects(FILES[3])
    for name in FILES[:4]:
        prefetcher.opened(name)
    assert bench.look_ups == 0
    epochs.unread.clear()
    assert not prefetcher.expects(FILES[3])
    prefetcher.opened(FILES[10])
    assert prefetcher.expects(FILES[11])


def test_fetches_are_counted_and_what_is_here_already_is_none() -> None:
    bench = Bench(at_once=False)
    bench.open_all(FILES[:3])
    assert bench.prefetcher.stats() == (4, 4, 24)
    assert bench.fetched == FILES[3:7]
    bench.opened |= {*FILES[7:9]}  # here already
    bench.open_all(FILES[3:4])
    assert bench.fetched == [*FILES[3:7], *FILES[9:12]]
    assert bench.prefetcher.stats() == (7, 7, 24)
    for future in bench.pending:
        future.set_result(None)
    assert bench.prefetcher.stats() == (7, 0, 24)


def test_a_failure_halves_what_may_be_under_way_and_a_success_adds_one() -> None:
    bench = Bench(max_under_way=9, at_once=False)
    bench.open_all(FILES[:30])
    limits = []
    for number, future in enumerate(bench.pending):
        if number == 0:
            future.cancel()
            future.set_running_or_notify_cancel()
        elif number == 1:
            future.set_exception(Throttled("slow down", status=429))
        else:
            future.set_result(None)
        limits.append(bench.prefetcher.stats().limit)
    assert limits == [4, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(("asked", "limit"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_two_at_least_may_be_under_way(asked: int, limit: int) -> None:
    assert Bench(max_under_way=asked).prefetcher.stats() == (0, 0, limit)


def test_the_room_is_divided_among_readers() -> None:
    bench = Bench(room=12, files=400)
    for number in range(40):
        for first in (0, 200):
            bench.open_all([bench.files[first + number]])
    assert len(set(bench.fetched) - bench.opened) == 12
    assert {name for name in set(bench.fetched) - bench.opened if name < bench.files[200]} == {
        *bench.files[40:46]
    }
