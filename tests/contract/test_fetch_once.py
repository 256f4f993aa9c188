"""The thread that lets other processes see what was fetched, and that they no longer wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest

from lightlyfs.blocks import ContentId
from lightlyfs.cache.fetch_once import FetchOnce

A, B = "a" * 24, "b" * 24
CONTENT = ContentId(A, "ev1", 3 << 20)
WITHIN_S = 10.0


class Locks:
    """Locks that another process may hold; notes what was taken and let go of."""

    def __init__(self) -> None:
        self.company = True
        self.taken: list[tuple[str, int, int]] = []
        self.busy = False
        self.events: list[str] = []
        self.let_go = threading.Semaphore(0)

    def has_company(self) -> bool:
        return self.company

    def _release(self) -> None:
        self.events.append("release")
        self.let_go.release()

    def take_blocks(
        self, sample: str, first: int, last: int, _patience: float, _stop: Any
    ) -> Callable[[], None]:
        self.taken.append((sample, first, last))
        return self._release

    def try_blocks(self, sample: str, first: int, last: int) -> Callable[[], None] | None:
        self.taken.append((sample, first, last))
        return None if self.busy else self._release


class Cache:
    """A cache that notes what it is asked."""

    def __init__(self, events: list[str]) -> None:
        self.on_use: Callable[[], None] = lambda: None
        self.events = events
        self.kept_up = threading.Event()

    def publish(self) -> None:
        self.events.append("publish")

    def catch_up(self, content: ContentId) -> None:
        self.events.append(f"catch up {content.sample_id[0]}")

    def keep_up(self) -> None:
        self.kept_up.set()


class Bench:
    """One process of those that share a cache."""

    def __init__(self) -> None:
        self.locks = Locks()
        self.events = self.locks.events
        self.cache = Cache(self.events)
        self.once = FetchOnce(
            self.cache,  # type: ignore[arg-type]
            self.locks,  # type: ignore[arg-type]
            publish_facts=self._publish_facts,
            cancelled=lambda: False,
        )

    def _publish_facts(self, samples: Collection[str]) -> None:
        self.events.append("facts " + "".join(sample[0] for sample in samples))


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.once.close()


def test_what_was_fetched_is_published_before_others_may_go_on(bench: Bench) -> None:
    bench.once.start()
    for _ in range(3):  # the thread goes on
        with bench.once.blocks(CONTENT, 1, 2):
            assert bench.events[-1] == "catch up a"
        assert bench.locks.let_go.acquire(timeout=WITHIN_S)
        assert bench.events[-4:] == ["catch up a", "publish", "facts ", "release"]
    with bench.once.head(B) as shared:
        assert shared
    assert bench.locks.let_go.acquire(timeout=WITHIN_S)
    assert bench.events[-3:] == ["publish", "facts b", "release"]
    assert bench.locks.taken == [*[(A, 1, 2)] * 3, (B, 0, 3)]


def test_what_failed_to_be_published_is_let_go_of_all_the_same(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    bench.cache.publish = fail  # type: ignore[method-assign]
    bench.once.start()
    for _ in range(2):
        with bench.once.head(A):
            pass
        assert bench.locks.let_go.acquire(timeout=WITHIN_S)
    assert "cannot be published" in caplog.text


def test_a_use_of_the_cache_has_it_keep_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightlyfs.cache.fetch_once._KEEP_UP_EVERY_S", 0.01)
    bench.once.start()
    for _ in range(2):
        bench.cache.on_use()
        bench.cache.on_use()
        assert bench.cache.kept_up.wait(WITHIN_S)
        bench.cache.kept_up.clear()


def test_what_is_left_is_published_at_the_end(bench: Bench) -> None:
    with bench.once.head(A):
        pass
    # without a thread at once, by who fetched
    assert bench.events == ["publish", "facts a", "release"]
    bench.once.start()
    bench.once.close()
    assert not bench.once._thread.is_alive()
    with bench.once.head(B):
        pass
    assert bench.events[3:] == ["publish", "facts b", "release"]


def test_where_no_other_process_is_nothing_is_published(bench: Bench) -> None:
    bench.locks.company = False
    assert not bench.once.has_company()
    with bench.once.blocks(CONTENT, 0, 2):
        pass
    with bench.once.head(B) as shared:
        assert not shared
    assert bench.events == ["catch up a", "release", "release"]
    bench.locks.taken.clear()
    release = bench.once.try_blocks(A)
    assert release is not None
    release()
    assert bench.locks.taken == []


def test_blocks_that_another_process_fetches_are_not_taken(bench: Bench) -> None:
    release = bench.once.try_blocks(A)
    assert release is not None
    assert bench.locks.taken == [(A, 0, 3)]  # as many as come with one question
    assert bench.events == []
    release()
    assert bench.events == ["publish", "facts a", "release"]
    bench.locks.busy = True
    assert bench.once.try_blocks(A) is None


def test_a_fetch_that_fails_lets_go_too(bench: Bench) -> None:
    with pytest.raises(RuntimeError), bench.once.blocks(CONTENT, 0, 2):
        raise RuntimeError
    with pytest.raises(RuntimeError), bench.once.head(A):
        raise RuntimeError
    assert bench.events.count("release") == 2
