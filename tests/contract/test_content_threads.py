"""Many threads over one cache and one reader; every race is met by rendezvous, none by sleeping."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest
from contentkit import MIB, NOISE, Content, Storage, recorded_bytes, sample_id, whole

from lightlyfs.api.contract import Request, Response
from lightlyfs.blocks import ContentId, Span
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.cache.block_files import CacheConfig
from lightlyfs.errors import Cancelled
from lightlyfs.fetch.transfers import NotBrought
from lightlyfs.fetch.urls import ReadUrls

T = TypeVar("T")
A = sample_id(1)
TOGETHER = 10


class Gate(Storage):
    """A storage that answers the requests numbered in `held` only once `opens` has happened."""

    def __init__(self, opens: Callable[[], Any], held: range = range(1)) -> None:
        super().__init__()
        self._opens = opens
        self._held = held
        self._lock = threading.Lock()
        self.count = 0

    def send(self, request: Request) -> Response:
        with self._lock:
            number, self.count = self.count, self.count + 1
        if number in self._held:
            self._opens()
        return super().send(request)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as executor:
        yield executor


def all_at_once(work: Callable[[int], T], count: int = TOGETHER) -> list[T]:
    """Run `work` in threads that start together; raises what one of them raised."""
    start = threading.Barrier(count)

    def run(number: int) -> T:
        start.wait(10)
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return [future.result(30) for future in [threads.submit(run, number) for number in range(count)]]


def test_ten_readers_of_one_missing_block_cause_one_fetch(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    waiting = threading.Semaphore(0)

    def wait(future: Future[T]) -> T:
        waiting.release()
        return future.result(10)

    def all_wait() -> None:
        for _ in range(TOGETHER):
            assert waiting.acquire(timeout=10)

    storage = Gate(all_wait)
    storage.put(A, NOISE, "v1")
    content = Content(tmp_path, executor=pool, storage=storage)
    found = ContentId(A, "ev1", len(NOISE))

    read = all_at_once(lambda number: content.reader.read(found, 5 * MIB + number, 10, wait))

    assert read == [NOISE[5 * MIB + number :][:10] for number in range(TOGETHER)]
    assert storage.requests.count(f"bytes={5 * MIB}-{6 * MIB - 1}") == 1


def test_ten_openers_of_one_unknown_sample_cause_one_request(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    asked = threading.Semaphore(0)

    def all_asked() -> None:
        for _ in range(TOGETHER):
            assert asked.acquire(timeout=10)

    storage = Gate(all_asked)
    storage.put(A, NOISE[:100], "v1")
    content = Content(tmp_path, executor=pool, storage=storage)

    def identify(number: int) -> ContentId:
        future = content.reader.identify(A, size_hint=100, for_reading=True)
        asked.release()
        return future.result(10)

    assert set(all_at_once(identify)) == {ContentId(A, "ev1", 100)}
    assert storage.count == 1


def test_a_head_that_fails_does_not_fail_the_fetch_of_a_block_it_announced(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    fetching, ended = threading.Event(), threading.Event()
    storage = Gate(lambda: (fetching.set(), ended.wait(10)))
    storage.put(A, NOISE[: 3 * MIB], "v1")
    content = Content(tmp_path, executor=pool, storage=storage)
    found = ContentId(A, "ev1", 3 * MIB)
    block = content.reader._claim(found, Span(1, 1))[1]
    assert fetching.wait(10)

    # the head announces all three blocks, breaks within the first one, and storage is down then
    storage.faults = [10.0, *[403] * 2]
    head = content.reader.identify(A, size_hint=3 * MIB, for_reading=True)
    assert head.result(10) == found
    pool.submit(ended.set)
    assert block.result(10) == NOISE[MIB : 2 * MIB]


def test_where_ranges_are_ignored_readers_of_all_blocks_share_one_transfer(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    # all the requests are out before the first answer, so each fetch finds out only from its own
    out = threading.Barrier(6)
    storage = Gate(lambda: out.wait(10), held=range(6))
    storage.style = whole
    storage.put(A, NOISE, "v1")
    content = Content(tmp_path, executor=pool, storage=storage)
    found = ContentId(A, "ev1", len(NOISE))
    futures = [content.reader._claim(found, Span(block, block))[block] for block in range(6)]

    for block, future in enumerate(futures):
        data = content.read(found, block * MIB, MIB)
        assert data == NOISE[block * MIB : (block + 1) * MIB]
        assert future.exception(10) is None or isinstance(future.exception(), NotBrought)

    pool.shutdown()
    assert storage.sent_bytes < 3 * len(NOISE)
    assert content.reader.stats().under_way == 0


def test_a_pool_that_is_shut_down_ends_every_wait(tmp_path: Path) -> None:
    held, let_go = threading.Event(), threading.Event()
    storage = Gate(lambda: (held.set(), let_go.wait(10)), held=range(1))
    storage.put(A, NOISE, "v1")
    pool = ThreadPoolExecutor(1)
    content = Content(tmp_path, executor=pool, storage=storage)
    first = content.reader.identify(sample_id(9), size_hint=None, for_reading=True)
    assert held.wait(10)
    queued = content.reader.identify(A, size_hint=None, for_reading=True)
    block = content.reader._claim(ContentId(A, "ev1", len(NOISE)), Span(3, 3))[3]

    pool.shutdown(wait=False, cancel_futures=True)
    later = content.reader.identify(sample_id(2), size_hint=None, for_reading=True)
    let_go.set()

    assert isinstance(queued.exception(10), Cancelled)
    assert isinstance(block.exception(10), Cancelled)
    assert isinstance(later.exception(10), Cancelled)
    assert not first.result(10).has_object
    pool.shutdown()
    assert content.reader.stats().under_way == 0


def test_threads_that_read_everything_everywhere_get_the_true_bytes_from_a_small_cache(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    content = Content(tmp_path, executor=pool, budget_bytes=5 * MIB)
    samples = {
        sample_id(n): NOISE[n * 1000 : n * 1000 + size] for n, size in enumerate((MIB, 3 * MIB, 5 * MIB))
    }
    for sample, data in samples.items():
        content.storage.put(sample, data, "v1")

    def read(number: int) -> None:
        for step in range(30):
            sample = sample_id((number + step) % 3)
            found = ContentId(sample, "ev1", len(samples[sample]))
            offset = (number * 7919 + step * 104_729) % len(samples[sample])
            assert content.read(found, offset, 200_000) == samples[sample][offset : offset + 200_000]

    all_at_once(read, 8)

    pool.shutdown()
    assert content.cache.stats().bytes <= 5 * MIB
    assert content.cache.stats().bytes == recorded_bytes(content.cache)
    assert content.reader.stats().under_way == 0


def test_writers_together_keep_the_budget_and_the_count(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, CacheConfig(3 * MIB, 0))

    def write(number: int) -> None:
        for step in range(40):
            # the numbers overlap, so that two threads also write one block at one time
            content = ContentId(sample_id((number + step) % 25), "ev1", 200_000)
            cache.write(content, 0, NOISE[:200_000])
            assert cache.read(content, 0, 200_000) in (None, NOISE[:200_000])

    all_at_once(write, 8)
    cache.write(ContentId(A, "ev2", 200_000), 0, NOISE[:200_000])

    assert cache.stats().bytes <= 3 * MIB
    assert cache.stats().errors == 0
    assert cache.stats().bytes == recorded_bytes(cache)
    assert sum(path.stat().st_size for path in tmp_path.glob("blocks/*/*")) <= 3 * MIB
    cache.close()


def test_ten_threads_that_miss_one_url_ask_for_it_once() -> None:
    came: set[int] = set()
    everybody = threading.Event()
    asked = []

    class Counted:
        """The lock of the table: a thread that holds it has arrived, and finds the first one's question."""

        def __init__(self) -> None:
            self._lock = threading.Lock()

        def __enter__(self) -> None:
            self._lock.acquire()
            came.add(threading.get_ident())
            if len(came) == TOGETHER:
                everybody.set()

        def __exit__(self, *error: object) -> None:
            self._lock.release()

    def resolve(sample: str) -> str:
        asked.append(sample)
        assert everybody.wait(10)
        return f"https://bucket.test/{len(asked)}"

    urls = ReadUrls(resolve, wall_clock=lambda: 0.0)
    urls._lock = Counted()  # type: ignore[assignment]

    assert set(all_at_once(lambda number: urls.get(A))) == {"https://bucket.test/1"}
    assert asked == [A]
