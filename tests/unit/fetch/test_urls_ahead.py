"""URLs got ahead: for whom, how many, how fast, and that they stop with the epoch."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from lightlyfs.ahead.epochs import IDLE_S, EpochTable, Pace
from lightlyfs.errors import Forbidden, LightlyFsError, Throttled
from lightlyfs.fetch.prefetcher import Prefetcher
from lightlyfs.fetch.urls import ReadUrls, _AskedOnce
from lightlyfs.fetch.urls_ahead import UrlsAhead

FILES = [f"d/{number:04d}.jpg" for number in range(1000)]


class Later(Executor):
    """Keeps jobs until they are run, as a pool whose threads are busy."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.jobs.append(lambda: fn(*args, **kwargs))
        return Future()

    def run_all(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()


class Bench:
    """A directory, the URLs that are known of its files, and whoever opens them."""

    def __init__(self, *, room: int = 10_000, max_under_way: int = 16) -> None:
        self.now = 100.0
        self.known: set[str] = set()
        self.asked: list[str] = []
        self.error: LightlyFsError | None = None
        self.room = room
        self.pool = Later()
        self.ahead: UrlsAhead[str] = UrlsAhead(
            self.after,
            self.ask,
            lambda: self.room - len(self.asked),
            self.pool,
            clock=lambda: self.now,
            max_under_way=max_under_way,
        )

    def after(self, path: str, count: int) -> Sequence[tuple[str, str]]:
        directory = path.rpartition("/")[0]
        names = [name for name in FILES if name > path and name.startswith(directory + "/")]
        return [(name, name) for name in names[:count]]

    def ask(self, name: str) -> bool:
        if name in self.known:
            return False
        self.asked.append(name)
        if self.error is not None:
            raise self.error
        self.known.add(name)
        return True

    def open(self, names: Sequence[str], *, in_order: bool = False) -> None:
        for name in names:
            self.now += 0.01
            self.known.add(name)
            self.ahead.opened(name, in_order)
            self.pool.run_all()


def shuffled(count: int, seed: int = 1) -> list[str]:
    return random.Random(seed).sample(FILES, count)


def test_nothing_is_asked_for_those_who_look_at_a_few_files() -> None:
    bench = Bench()
    bench.open(shuffled(15))
    assert bench.asked == []


def test_an_epoch_gets_most_urls_before_their_files_are_opened() -> None:
    bench = Bench()
    found = 0
    for name in shuffled(len(FILES)):
        found += name in bench.known
        bench.open([name])
    assert found > 0.9 * len(FILES)
    assert len(bench.asked) == len(set(bench.asked))
    assert bench.ahead.stats().got == len(bench.asked)


def test_a_sample_of_a_directory_costs_no_more_than_it_opened() -> None:
    bench = Bench()
    bench.open(shuffled(20))
    assert 0 < len(bench.asked) <= 20 * 8


def test_whoever_reads_in_order_has_its_urls_from_the_prefetch() -> None:
    ahead: EpochTable[str] = EpochTable()

    def start(name: str) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def opened(path: str, in_order: bool) -> None:
        ahead.opened(path, 1.0, in_order=in_order)

    prefetcher: Prefetcher[str] = Prefetcher(Bench().after, start, max_under_way=8, on_opened=opened)
    for name in FILES:
        prefetcher.opened(name)
        assert ahead.wanting(1.0) is None


def test_a_shuffled_epoch_with_a_few_neighbours_by_chance_is_one() -> None:
    bench = Bench()
    for number, name in enumerate(shuffled(400)):
        bench.open([name], in_order=number % 20 == 0)
    assert len(bench.asked) > 300


def test_it_stops_with_the_epoch() -> None:
    bench = Bench()
    for name in shuffled(100):
        bench.ahead.opened(name, False)
    bench.now += IDLE_S + 0.1
    bench.pool.run_all()
    assert bench.asked == []
    assert bench.ahead.stats().under_way == 0


def test_no_more_are_asked_for_than_can_be_kept() -> None:
    bench = Bench(room=50)
    bench.open(shuffled(300))
    assert len(bench.asked) == 50


def test_an_epoch_over_many_directories_is_one_in_each() -> None:
    table: EpochTable[str] = EpochTable()
    for number in range(16):
        for directory in range(1000):
            table.opened(f"class{directory}/{number}.jpg", float(number), in_order=False)
    epoch = table.wanting(15.0)
    assert epoch is not None
    assert epoch.cursor == "class999/"
    assert len(table) == 1000
    for directory in range(5000):
        table.opened(f"other{directory}/x.jpg", 16.0, in_order=False)
    assert len(table) == 2000


def test_what_is_under_way_is_bounded() -> None:
    bench = Bench(max_under_way=6)
    for name in shuffled(200):
        bench.ahead.opened(name, False)
    assert len(bench.pool.jobs) <= 6


@pytest.mark.parametrize("error", [Throttled("slow down", status=429, retry_after_s=7.0), Forbidden("no")])
def test_a_server_that_refuses_is_left_alone_for_a_while(error: LightlyFsError) -> None:
    bench = Bench()
    bench.error = error
    bench.open(shuffled(17))
    asked = len(bench.asked)
    assert asked == 1
    bench.open(shuffled(40))
    assert len(bench.asked) == asked
    bench.error = None
    bench.now += 7.0
    bench.open(shuffled(40, seed=2))
    assert len(bench.asked) > asked + 20


def test_the_pace_falls_by_half_and_recovers_one_by_one() -> None:
    pace = Pace(16)
    for _ in range(200):
        pace.succeeded()
    assert pace.limit == 16
    pace.failed(10.0, None)
    assert pace.limit == 8
    assert not pace.allows(0, 10.4)
    assert pace.allows(7, 10.6)
    assert not pace.allows(8, 10.6)
    for _ in range(9):
        pace.succeeded()
    assert pace.limit == 9
    for _ in range(10):
        pace.failed(10.0, 3.0)
    assert pace.limit == 1
    assert not pace.allows(0, 12.9)


def test_a_reader_who_meets_a_failed_one_that_was_ahead_of_it_asks_itself() -> None:
    asked: list[str] = []

    def patient(sample: str) -> str:
        asked.append(sample)
        return f"https://bucket.test/{sample}"

    urls = ReadUrls(patient, wall_clock=lambda: 0.0)
    waiting: list[Future[str]] = []

    def once(sample: str) -> str:
        found = urls._look(sample)
        assert isinstance(found, Future)  # what a reader waits for meanwhile
        waiting.append(found)
        raise Throttled("slow down", status=429)

    with pytest.raises(Throttled):
        urls.get_ahead("a", once)
    with pytest.raises(_AskedOnce):
        waiting[0].result(0)
    assert urls.get("a") == "https://bucket.test/a"
    assert not urls.get_ahead("a", once)
    assert asked == ["a"]
