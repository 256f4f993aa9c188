"""Files that a program says it will read: fetched in its order, so many bytes ahead of it, until it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import pytest
from contentkit import Inline
from trees import wait_until

from lightlyfs.errors import Cancelled
from lightlyfs.fetch import prefetcher
from lightlyfs.fetch.prefetcher import Announcement, Ended, EpochFetcher

SIZE = 100
FILES = [f"d/{number:02}.jpg" for number in range(20)]
WITHIN_S = 10.0


class Bench:
    """Fetches that end at once, unless they are held; and the program that reads."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.here: set[str] = set()
        self.holds = False
        self.fails = False
        self.held: list[Ended] = []
        self.fetcher: EpochFetcher[str] = EpochFetcher(
            self,
            self.content,
            lambda file, ended: False,
            Inline(),
            guesses=False,
            clock=lambda: 100.0,
            max_under_way=8,
        )

    def room_bytes(self) -> int:
        return 1 << 30

    def count_below(self, directory: str, most_bytes: int) -> tuple[int, int]:
        return 0, 0

    def walk(self, directory: str) -> Iterator[tuple[str, str, int]]:
        return iter(())

    def content(self, file: str, ended: Ended) -> bool:
        if file in self.here:
            return False
        self.fetched.append(file)
        if self.holds:
            self.held.append(ended)
        else:
            ended(not self.fails, None)
        return True

    def read(self, *files: str) -> None:
        for file in files:
            self.fetcher.opened(file, SIZE, in_order=False)

    def wait_for(self, count: int) -> None:
        """Wait until so many were fetched, and see that no more are."""
        wait_until(lambda: len(self.fetched) >= count, WITHIN_S)
        assert self.fetched == FILES[:count]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.fetcher.shut_down()


def announced(files: Iterable[str] = FILES) -> Iterator[tuple[str, str, int]]:
    return ((file, file, SIZE) for file in files)


def ended(bench: Bench) -> bool:
    return not [thread for thread in threading.enumerate() if thread.name == "lightlyfs-announced"]


def test_so_many_bytes_are_fetched_ahead_of_who_reads_and_in_order(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.fetch.prefetcher._LOOK_S", 60.0)  # it is woken, and need not look
    with bench.fetcher.announce(announced(), limit_bytes=5 * SIZE) as announcement:
        bench.wait_for(5)
        for number in range(5, 20):
            bench.read(FILES[number - 5])
            bench.wait_for(number + 1)
        wait_until(lambda: ended(bench), WITHIN_S)
        assert announcement.fetched == 20
    stats = bench.fetcher.stats()
    assert (stats.files, stats.bytes, stats.files_read, stats.under_way) == (20, 20 * SIZE, 15, 0)


def test_an_order_of_which_the_program_reads_nothing_for_a_while_goes_on_behind_it(bench: Bench) -> None:
    """As for a program that leaves out some of what it announced, and is further on by now."""
    with bench.fetcher.announce(announced(), limit_bytes=5 * SIZE):
        bench.wait_for(5)
        bench.read(*FILES[10:14])
        bench.read(FILES[0])
        bench.wait_for(6)
        bench.here.update(FILES[10:18])
        bench.read(*FILES[14:18])
        bench.wait_for(6)
        bench.read("elsewhere.jpg")
        wait_until(lambda: len(bench.fetched) == 11, WITHIN_S)
    assert bench.fetched == [*FILES[:10], FILES[18]]
    assert bench.fetcher.stats().unread == 10


def test_what_is_here_already_is_passed_over(bench: Bench) -> None:
    bench.here = set(FILES[:18])
    with bench.fetcher.announce(announced(), limit_bytes=SIZE) as announcement:
        wait_until(lambda: len(bench.fetched) == 1, WITHIN_S)
        assert bench.fetched == [FILES[18]]
        bench.read(FILES[18])
        wait_until(lambda: ended(bench), WITHIN_S)
        assert announcement.fetched == 2
    assert bench.fetcher.stats().under_way == 0


def test_what_failed_is_no_longer_ahead(bench: Bench) -> None:
    bench.fails = True
    with bench.fetcher.announce(announced(FILES[:1]), limit_bytes=SIZE) as announcement:
        wait_until(lambda: ended(bench), WITHIN_S)
    assert announcement.fetched == 0
    assert FILES[0] not in bench.fetcher.unread
    assert bench.fetcher.stats().files == 0


def test_so_many_are_under_way_at_once(bench: Bench) -> None:
    bench.holds = True
    with bench.fetcher.announce(announced(), limit_bytes=1 << 30):
        limit = bench.fetcher.stats().limit
        bench.wait_for(limit)
        assert bench.fetcher.stats().under_way == limit
        bench.held.pop(0)(True, None)
        bench.wait_for(limit + 1)
        assert bench.fetcher.stats().under_way == limit


def test_several_programs_get_theirs_in_turn(bench: Bench) -> None:
    bench.holds = True
    both = FILES[:10], FILES[10:]
    limit = bench.fetcher.stats().limit
    made = [bench.fetcher.announce(announced(files), limit_bytes=1 << 30) for files in both]
    wait_until(lambda: len(bench.fetched) == limit, WITHIN_S)
    wait_until(lambda: all(one.epoch.coming for one in made), WITHIN_S)
    del bench.fetched[:]
    for _ in range(4):
        bench.held.pop(0)(True, None)
    wait_until(lambda: len(bench.fetched) == 4, WITHIN_S)
    assert sum(file in both[0] for file in bench.fetched) == 2
    for one in made:
        one.close()


def test_an_order_goes_on_after_a_failure_although_nothing_is_under_way(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(bench.fetcher, "_clock", lambda: now[0])
    bench.fails = True
    with bench.fetcher.announce(announced(), limit_bytes=1 << 30):
        bench.wait_for(1)
        bench.fails = False
        now[0] += 60.0
        bench.wait_for(20)


def test_what_was_announced_so_far_goes_on_after_a_failure_while_no_more_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, more = [100.0], threading.Event()
    monkeypatch.setattr(bench.fetcher, "_clock", lambda: now[0])

    def order() -> Iterator[tuple[str, str, int]]:
        yield from announced(FILES[:6])
        more.wait(4 * WITHIN_S)

    bench.fails = True
    with bench.fetcher.announce(order(), limit_bytes=1 << 30) as announcement:
        wait_until(lambda: len(announcement.epoch.coming) == 5, WITHIN_S)
        bench.fails = False
        now[0] += 60.0
        bench.wait_for(6)
        more.set()
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "lightlyfs-later"], WITHIN_S)


def test_a_closed_announcement_fetches_no_more_and_forgets_what_is_unread(bench: Bench) -> None:
    announcement = bench.fetcher.announce(announced(), limit_bytes=3 * SIZE)
    bench.wait_for(3)
    assert FILES[1] in bench.fetcher.unread
    announcement.close()
    announcement.close()
    wait_until(lambda: ended(bench), WITHIN_S)
    bench.read(*FILES[:3])
    assert len(bench.fetched) == 3
    assert FILES[1] not in bench.fetcher.unread


@pytest.mark.parametrize("what", ["the announcement", "the mount"])
def test_what_is_looked_up_at_the_end_is_not_fetched(bench: Bench, what: str) -> None:
    made: list[Announcement] = []

    def order() -> Iterator[tuple[str, str, int]]:
        yield from announced(FILES[:1])
        wait_until(lambda: bool(made), WITHIN_S)
        (bench.fetcher.shut_down if what == "the mount" else made[0].close)()
        yield from announced(FILES[1:])

    made.append(bench.fetcher.announce(order(), limit_bytes=1 << 30))
    wait_until(lambda: ended(bench), WITHIN_S)
    assert bench.fetched == FILES[:1]
    assert FILES[1] not in bench.fetcher.unread


def test_the_end_of_the_mount_ends_each_announcement(bench: Bench) -> None:
    for files in (FILES[:10], FILES[10:]):
        bench.fetcher.announce(announced(files), limit_bytes=SIZE)
    bench.fetcher.shut_down()
    wait_until(lambda: ended(bench), WITHIN_S)
    assert len(bench.fetched) <= 2


@pytest.mark.parametrize(("error", "is_said"), [(RuntimeError("no"), True), (Cancelled("the end"), False)])
def test_an_order_that_breaks_off_costs_what_is_behind_it_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception, is_said: bool
) -> None:
    def broken() -> Iterator[tuple[str, str, int]]:
        yield from announced(FILES[:2])
        raise error

    with bench.fetcher.announce(broken(), limit_bytes=1 << 30):
        wait_until(lambda: ended(bench), WITHIN_S)
    assert bench.fetched == FILES[:2]
    assert ("cannot be fetched" in caplog.text) == is_said


def test_an_order_that_is_read_no_more_is_given_up(bench: Bench) -> None:
    def dropped() -> Iterator[tuple[str, str, int]]:
        yield from announced(FILES[:5])
        raise Cancelled("dropped")

    bench.fetcher.announce(dropped(), limit_bytes=1 << 30)
    wait_until(lambda: ended(bench), WITHIN_S)
    assert bench.fetcher.stats().unread == 5
    assert not bench.fetcher.unread


def test_an_order_without_end_of_files_that_are_here_is_not_looked_through_without_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took a core, for good: also after it was closed."""
    monkeypatch.setattr(prefetcher, "_PASSED_FREELY", 10)
    monkeypatch.setattr(prefetcher, "_PASSED_AT_ONCE", 5)
    monkeypatch.setattr(prefetcher, "_LOOK_S", 1_000.0)
    taken, let_go_of = [0], threading.Event()

    def order() -> Iterator[None]:
        try:
            while True:
                taken[0] += 1
                yield None
        finally:
            let_go_of.set()

    with bench.fetcher.announce(order(), limit_bytes=SIZE):
        wait_until(lambda: taken == [15], WITHIN_S)
        assert not let_go_of.is_set()
    assert let_go_of.wait(WITHIN_S)
    assert taken == [15]
