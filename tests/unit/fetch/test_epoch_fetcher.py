"""What is fetched ahead of a reader without order: for whom, how much, how fast, and that it stops."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from lightlyfs.fetch.prefetcher import Ended, EpochFetcher, Prefetcher
from lightlyfs.fetch.urls import AskedOnce, ReadUrls
from lightlyfs.readahead.epochs import (
    IDLE_S,
    OPENS_FOR_CONTENTS,
    OPENS_FOR_URLS,
    EpochTable,
    Pace,
)

SIZE = 100_000
FILES = [f"d/{number:04d}.jpg" for number in range(2000)]


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
    """A tree of files of one size, a cache that starts empty, and those who open them."""

    def __init__(
        self, files: Sequence[str] = FILES, *, room: int = 1 << 30, max_under_way: int = 16, size: int = SIZE
    ) -> None:
        self.now = 100.0
        self.files, self.size, self.room = files, size, room
        self.here: set[str] = set()
        self.fetched: list[str] = []
        self.urls: list[str] = []
        self.fails: float | bool | None = False  # or the pause that the server asks for
        self.holds = False  # answers are kept back
        self.under_way: list[Callable[[], None]] = []
        self.pool = Later()
        self.ahead: EpochFetcher[str] = EpochFetcher(
            self,
            self.content,
            self.url,
            self.pool,
            guesses=True,
            clock=lambda: self.now,
            max_under_way=max_under_way,
        )

    def room_bytes(self) -> int:
        return self.room

    def count_below(self, directory: str, most_bytes: int) -> tuple[int, int]:
        files = len(list(self.walk(directory)))
        return files, files * self.size

    def walk(self, directory: str) -> Iterator[tuple[str, str, int]]:
        prefix = directory + "/" if directory else ""
        yield from ((name, name, self.size) for name in self.files if name.startswith(prefix))

    def content(self, name: str, ended: Ended) -> bool:
        if name in self.here:
            return False
        self.fetched.append(name)
        self._answer(ended, lambda: self.here.add(name))
        return True

    def url(self, name: str, ended: Ended) -> bool:
        if name in self.urls:
            return False
        self.urls.append(name)
        self._answer(ended, lambda: None)
        return True

    def _answer(self, ended: Ended, come: Callable[[], None]) -> None:
        def answer() -> None:
            if self.fails is False:
                come()
                ended(True, None)
            else:
                ended(False, None if self.fails is True else self.fails)

        if self.holds:
            self.under_way.append(answer)
        else:
            answer()

    def open(self, names: Sequence[str], *, in_order: bool = False) -> int:
        """Open files one after the other; how many were here already."""
        hits = 0
        for name in names:
            self.now += 0.01
            if name not in self.here or name in self.ahead.unread:
                hits += name in self.here
                self.here.add(name)
                self.ahead.opened(name, self.size, in_order=in_order)
            self.pool.run_all()
        return hits


def shuffled(count: int, seed: int = 1, files: Sequence[str] = FILES) -> list[str]:
    return random.Random(seed).sample(list(files), count)


def test_nothing_is_fetched_for_those_who_look_at_a_few_files() -> None:
    bench = Bench()
    bench.open(shuffled(OPENS_FOR_URLS - 1))
    assert bench.fetched == bench.urls == []


def test_before_contents_the_urls_are_asked_a_few_for_each_open() -> None:
    bench = Bench()
    bench.open(shuffled(OPENS_FOR_CONTENTS - 1))
    assert bench.fetched == []
    assert 100 < len(bench.urls) <= 8 * (OPENS_FOR_CONTENTS - 1)
    asked = list(bench.urls)
    bench.open(shuffled(OPENS_FOR_CONTENTS + 1)[-2:])
    opened = set(shuffled(OPENS_FOR_CONTENTS + 1))
    wanted = [name for name in asked if name not in opened]
    assert bench.fetched[: len(wanted)] == wanted


def test_who_goes_on_in_order_has_no_contents_fetched() -> None:
    bench = Bench()
    bench.open(shuffled(OPENS_FOR_URLS + 4))
    asked = len(bench.urls)
    bench.open(FILES[:400], in_order=True)
    assert bench.fetched == []
    assert len(bench.urls) < asked + 40


def test_one_file_elsewhere_begins_no_epoch_over_both_folders() -> None:
    files = [f"{folder}/{number:04d}.jpg" for folder in ("train", "val") for number in range(1000)]
    bench = Bench(files)
    bench.open([*shuffled(200, files=files[:1000]), files[1500]])
    assert bench.fetched
    assert not [name for name in bench.fetched + bench.urls if name.startswith("val/")]
    bench.open(shuffled(OPENS_FOR_CONTENTS, files=files[1000:]))
    assert [name for name in bench.fetched if name.startswith("val/")]


def test_an_epoch_finds_most_files_here() -> None:
    bench = Bench()
    assert bench.open(shuffled(2000)) > 0.75 * 2000
    assert len(bench.fetched) == len(set(bench.fetched))
    assert bench.ahead.stats().files == bench.ahead.stats().files_read == len(bench.fetched)


def test_what_begins_needs_no_further_open() -> None:
    bench = Bench()
    bench.open(shuffled(OPENS_FOR_CONTENTS))
    assert len(bench.fetched) > 600


def test_an_open_while_the_mount_is_taken_down_is_no_error() -> None:
    class Closed(Later):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            raise RuntimeError("cannot schedule new futures after shutdown")

    bench = Bench()
    bench.ahead._executor = Closed()
    bench.open(shuffled(OPENS_FOR_CONTENTS + 10))
    assert bench.fetched == bench.urls == []


def test_a_second_epoch_fetches_nothing() -> None:
    bench = Bench()
    bench.open(shuffled(2000))
    before = len(bench.fetched)
    bench.open(shuffled(2000, seed=2))
    assert len(bench.fetched) == before


def test_class_folders_are_one_epoch() -> None:
    files = [f"train/class{number % 100:02d}/{number:04d}.jpg" for number in range(2000)]
    bench = Bench(files)
    assert bench.open(shuffled(2000, files=files)) > 0.75 * 2000


def test_an_epoch_that_is_abandoned_costs_no_more_than_promised() -> None:
    """At most twice what was read, and 64 MiB; then silence."""
    bench = Bench()
    bench.open(shuffled(200))
    never_read = len(bench.fetched) - bench.ahead.stats().files_read
    assert never_read * SIZE <= 2 * 200 * SIZE + (64 << 20) + 16 * SIZE
    before = len(bench.fetched)
    bench.now += IDLE_S + 0.1
    bench.ahead._go_on()
    assert len(bench.fetched) == before


def test_of_what_the_cache_has_no_room_for_only_the_urls_are_asked() -> None:
    bench = Bench(room=1999 * SIZE)
    bench.open(shuffled(300))
    assert bench.fetched == []
    assert len(bench.urls) == 1_024 + 300


def test_beyond_what_may_be_unread_the_urls_are_asked_and_the_contents_come_later() -> None:
    """A file that is opened before its contents are here costs one request then."""
    bench = Bench(size=1_000_000, room=1 << 40)
    bench.open(shuffled(40))
    never_read = len(bench.fetched) - bench.ahead.stats().files_read
    assert never_read * 1_000_000 <= 2 * 40_000_000 + (64 << 20) + 1_000_000
    asked = [name for name in bench.urls if name not in bench.here]
    assert 100 < len(asked) <= 40 * 8
    assert asked[50:] == [name for name in FILES if name in asked[50:]]
    before = len(bench.fetched)
    bench.open(shuffled(100, seed=3))
    assert set(bench.fetched[before : before + 100]) <= set(asked)
    assert len(bench.fetched) == len(set(bench.fetched))


def test_it_stops_where_what_is_read_is_not_what_was_fetched() -> None:
    """A reader of every file but those that are first in the catalogue."""
    bench = Bench(size=1_000_000, room=1 << 40)
    names = shuffled(1000, files=FILES[1000:])
    bench.open(names)
    assert len(bench.fetched) < 300


def test_who_reads_in_order_begins_no_epoch() -> None:
    bench = Bench()

    def start(name: str) -> Future[None]:
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def after(path: str, count: int) -> list[tuple[str, str]]:
        at = FILES.index(path) if path in FILES else -1
        return [(name, name) for name in FILES[at + 1 : at + 1 + count]]

    prefetcher: Prefetcher[str] = Prefetcher(after, start, max_under_way=8, epochs=bench.ahead)
    for name in FILES:
        prefetcher.opened(name, SIZE)
        bench.pool.run_all()
    assert bench.fetched == bench.urls == []


def test_who_browses_in_no_order_begins_no_epoch() -> None:
    bench = Bench()
    prefetcher: Prefetcher[str] = Prefetcher(
        lambda _path, _count: [], Future, max_under_way=8, epochs=bench.ahead
    )
    for name in shuffled(400):
        prefetcher.opened(name, SIZE, browsed=True)
        bench.pool.run_all()
    assert bench.fetched == bench.urls == []


def test_a_shuffled_epoch_with_a_few_neighbours_by_chance_is_one() -> None:
    bench = Bench()
    for number, name in enumerate(shuffled(400)):
        bench.open([name], in_order=number % 20 == 0)
    assert len(bench.fetched) > 300


def test_what_is_under_way_is_bounded() -> None:
    bench = Bench(max_under_way=48)
    bench.holds = True
    bench.open(shuffled(200))
    assert len(bench.under_way) == 32
    while len(bench.under_way) < 200:
        answered, bench.under_way = bench.under_way, []
        bench.now += 0.2
        for answer in answered:
            answer()
        if len(bench.under_way) == 48:
            break
    assert bench.ahead.stats().limit == len(bench.under_way) == 48


@pytest.mark.parametrize("pause_s", [7.0, True])
def test_a_server_in_trouble_is_left_alone_for_a_while(pause_s: float | bool) -> None:
    bench = Bench()
    bench.fails = pause_s
    bench.open(shuffled(40))
    asked = len(bench.fetched)
    assert asked <= 2
    bench.fails = False
    bench.now += 7.0 if pause_s == 7.0 else 0.6
    bench.open(shuffled(100, seed=2))
    assert len(bench.fetched) > asked + 20


def test_directories_that_are_watched_are_bounded() -> None:
    table: EpochTable[str] = EpochTable()
    for directory in range(5000):
        table.opened(f"other{directory}/x.jpg", SIZE, 16.0, in_order=True)
    assert len(table._counts) == 2000


class Line:
    """Sends as many requests as a pace allows, over a latency, to a server that does so many a second."""

    def __init__(self, pace: Pace, latency_s: float, most_per_s: float) -> None:
        self.pace = pace
        self.latency_s = latency_s
        self.most_per_s = most_per_s
        self.now = self._free_at = 0.0
        self._ends: list[float] = []

    def run(self, seconds: float) -> float:
        """Answers a second."""
        end, answers = self.now + seconds, 0
        while self.now < end:
            while self.pace.allows(len(self._ends), self.now):
                self._free_at = max(self._free_at, self.now) + 1 / self.most_per_s
                heapq.heappush(self._ends, self._free_at + self.latency_s)
            self.now = heapq.heappop(self._ends) if self._ends else self.now + 0.1
            self.pace.succeeded(self.now)
            answers += 1
        return answers / seconds


def test_the_pace_doubles_each_round_for_as_long_as_that_brings_more() -> None:
    line = Line(Pace(192), latency_s=0.16, most_per_s=10_000)
    line.run(0.17)
    assert line.pace.limit == 64
    line.run(0.4)
    assert line.pace.limit == 192
    line.run(60)
    assert line.pace.limit == 192


@pytest.mark.parametrize(
    ("latency_s", "most_per_s", "least", "most"),
    [(0.002, 600, 1, 4), (0.02, 1_000, 16, 64), (0.08, 500, 32, 80)],
)
def test_the_pace_falls_until_no_requests_queue_and_the_server_has_just_enough(
    latency_s: float, most_per_s: float, least: int, most: int
) -> None:
    line = Line(Pace(192), latency_s, most_per_s)
    line.run(30)
    assert least <= line.pace.limit <= most
    assert line.run(60) > 0.8 * most_per_s
    assert least <= line.pace.limit <= most


def test_the_pace_grows_again_once_the_server_can_do_more() -> None:
    line = Line(Pace(192), latency_s=0.08, most_per_s=100)
    line.run(30)
    assert line.pace.limit <= 16
    line.most_per_s = 10_000
    line.run(30)
    assert line.pace.limit == 192


def test_a_program_that_wants_little_does_not_make_the_pace_fall() -> None:
    pace, now = Pace(192), 0.0
    for _ in range(1_000):
        assert pace.allows(0, now)
        now += 0.1
        pace.succeeded(now)
    assert pace.limit == 32


def test_the_pace_falls_by_half_after_a_failure_and_recovers() -> None:
    pace = Pace(64)
    line = Line(pace, latency_s=0.2, most_per_s=10_000)
    assert pace.limit == 32
    line.run(1)
    assert pace.limit == 64
    pace.failed(line.now, None)
    assert pace.limit == 32
    assert not pace.allows(0, line.now + 0.4)
    assert pace.allows(31, line.now + 0.6)
    assert not pace.allows(32, line.now + 0.6)
    line.run(3)
    assert pace.limit == 64
    for _ in range(10):
        pace.failed(line.now, 3.0)
    assert pace.limit == 1
    assert not pace.allows(0, line.now + 2.9)


def test_a_reader_who_meets_a_failed_one_that_was_ahead_of_it_asks_itself() -> None:
    asked: list[str] = []

    def patient(sample: str) -> str:
        asked.append(sample)
        return f"https://bucket.test/{sample}"

    urls = ReadUrls(patient, wall_clock=lambda: 0.0)
    assert urls.begin("a") is None
    waiting = urls.begin("a")
    assert isinstance(waiting, Future)
    urls.end("a", None)
    with pytest.raises(AskedOnce):
        waiting.result(0)
    assert urls.get("a") == urls.begin("a") == "https://bucket.test/a"
    assert asked == ["a"]
