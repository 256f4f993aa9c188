"""Read URLs on disk: for how long, for whom, how many; and that a broken disk costs only questions."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from lightlyfs.fetch.urls import URL_SHARE, ReadUrls, UrlStore

NOW = 1_700_000_000.0


class Bench:
    """A store whose jobs run at once, an API behind it, and a clock that the test moves."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "urls.db"
        self.now = NOW
        self.life_s: float | None = 1000.0
        self.asked: list[str] = []

    def store(self, token: str = "mine", *, max_urls: int = 1000) -> UrlStore:
        def at_once(job: Callable[[], None]) -> None:
            job()

        return UrlStore(self.path, token, wall_clock=lambda: self.now, later=at_once, max_urls=max_urls)

    def urls(self, store: UrlStore) -> ReadUrls:
        return ReadUrls(self.resolve, wall_clock=lambda: self.now, store=store)

    def resolve(self, sample: str) -> str:
        self.asked.append(sample)
        end = "" if self.life_s is None else f"&Expires={self.now + self.life_s}"
        return f"https://bucket.test/{sample}?n={len(self.asked)}{end}"

    def get_in_new_mount(self, sample: str, token: str = "mine") -> str:
        store = self.store(token)
        url = self.urls(store).get(sample)
        store.close()
        return url


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_next_mount_asks_for_none_until_most_of_its_life_is_over(bench: Bench) -> None:
    first = bench.get_in_new_mount("a")
    bench.now += 1000 * URL_SHARE - 1
    assert bench.get_in_new_mount("a") == first
    bench.now += 1
    assert bench.get_in_new_mount("a") != first
    assert bench.asked == ["a", "a"]


def test_one_that_came_from_the_disk_is_not_used_for_longer_in_memory(bench: Bench) -> None:
    first = bench.get_in_new_mount("a")
    urls = bench.urls(bench.store())
    assert urls.get("a") == first
    bench.now += 1000 * URL_SHARE
    assert urls.get("a") != first


@pytest.mark.parametrize("life_s", [None, -5.0])
def test_one_whose_life_is_not_known_is_not_kept(bench: Bench, life_s: float | None) -> None:
    bench.life_s = life_s
    assert bench.get_in_new_mount("a") != bench.get_in_new_mount("a")


def test_a_clock_that_was_set_back_makes_them_count_no_longer(bench: Bench) -> None:
    first = bench.get_in_new_mount("a")
    bench.now -= 3600
    assert bench.get_in_new_mount("a") != first


def test_a_refused_one_is_deleted(bench: Bench) -> None:
    refused = bench.get_in_new_mount("a")
    store = bench.store()
    bench.urls(store).renew("a", refused)
    store.discard("a", refused)  # refused a second time, to another thread: the new one stays
    store.close()
    assert bench.get_in_new_mount("a") not in ("", refused)
    assert bench.asked == ["a", "a"]


def test_another_token_finds_none_and_neither_does_the_first_one_after_it(bench: Bench) -> None:
    first = bench.get_in_new_mount("a")
    second = bench.get_in_new_mount("a", "another")
    assert bench.get_in_new_mount("a") not in (first, second)
    assert b"n=1" not in bench.path.read_bytes()


def test_their_number_is_bounded_and_the_oldest_go_first(bench: Bench) -> None:
    store = bench.store(max_urls=100)
    for number in range(1000):
        bench.now += 0.01
        store.put(str(number), f"https://bucket.test/{number}", bench.now + 1000)
    store.write()

    assert len(store) <= 100
    assert store.get("999")
    assert not store.get("0")


def test_expired_ones_are_deleted(bench: Bench) -> None:
    bench.get_in_new_mount("a")
    bench.now += 2000
    assert len(bench.store()) == 0


def test_they_are_for_our_eyes_only_and_a_link_is_not_followed(bench: Bench, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"theirs")
    bench.path.symlink_to(elsewhere)
    bench.get_in_new_mount("a")

    assert elsewhere.read_bytes() == b"theirs"
    assert stat.S_IMODE(bench.path.lstat().st_mode) == 0o600


def test_a_damaged_file_is_made_anew(bench: Bench) -> None:
    bench.path.write_bytes(b"no database at all" * 1000)
    first = bench.get_in_new_mount("a")
    assert bench.get_in_new_mount("a") == first


def test_a_file_damaged_under_way_is_made_anew_and_nobody_notices(bench: Bench) -> None:
    store = bench.store()
    for number in range(300):
        store.put(str(number), f"https://bucket.test/{number}", bench.now + 1000)
    store.write()
    with bench.path.open("r+b") as file:
        file.truncate(0)
        file.write(b"x" * 200_000)
    for suffix in ("-wal", "-shm"):
        bench.path.with_name(bench.path.name + suffix).write_bytes(b"x" * 40_000)
    store._db.execute("PRAGMA cache_size = 0")  # type: ignore[union-attr]

    assert bench.urls(store).get("7")
    assert store.errors
    store.put("8", "https://bucket.test/8", bench.now + 1000)
    store.write()
    assert store.get("8")


def test_a_place_that_takes_no_file_is_bypassed(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.path.write_bytes(b"a file in place of the directory")
    bench.path /= "urls.db"
    store = bench.store()

    assert len(store) == 0
    assert bench.urls(store).get("a")
    store.close()
    assert store.errors == 1
    assert store.get("b") is None
    assert f"the URLs in {bench.path} failed" in caplog.text


def test_a_full_disk_costs_memory_only_up_to_a_bound(bench: Bench) -> None:
    store = bench.store()
    assert store._db is not None
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError):
        store._db.execute("DELETE FROM url")
    for number in range(10_000):
        store.put(str(number), f"https://bucket.test/{number}", bench.now + 1000)

    assert store.get("5")
    assert len(store) < 5000
    assert store.errors


def kept(store: UrlStore) -> list[str]:
    """The samples whose URLs are on disk, in the order in which they end."""
    assert store._db is not None
    return [sample for (sample,) in store._db.execute("SELECT sample FROM kept ORDER BY until, rowid")]


def test_urls_are_written_in_batches_and_found_before_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.fetch.urls._BATCH", 4)
    store = bench.store()
    for number in range(3):
        store.put(f"s{number}", f"https://bucket.test/{number}", bench.now + 1000)
    assert kept(store) == []
    assert len(store) == 3
    found = store.get("s2")
    assert found == ("https://bucket.test/2", bench.now, bench.now + 800)
    store.put("s3", "https://bucket.test/3", bench.now + 1000)
    assert len(kept(store)) == len(store) == 4
    assert store.get("s2") == found
    store.put("s4", "https://bucket.test/4", bench.now + 1000)
    assert len(kept(store)) == 4
    store.close()
    assert store.get("s2") is None
    assert len(store) == 0
    assert len(kept(bench.store())) == 5


def test_while_the_disk_takes_none_a_bounded_number_waits(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.fetch.urls._BATCH", 4)
    monkeypatch.setattr("lightlyfs.fetch.urls._MAX_WAITING", 6)
    store = bench.store()
    assert store._db is not None
    store._db.execute("PRAGMA query_only = ON")
    for number in range(10):
        store.put(f"s{number}", f"https://bucket.test/{number}", bench.now + 1000)
    assert len(store) == 6
    assert store.get("s5")
    assert store.get("s6") is None
    assert store.errors == 3  # with the fourth, the fifth and the sixth
    store._db.execute("PRAGMA query_only = OFF")
    store.write()
    assert len(kept(store)) == len(store) == 6


def test_a_pool_that_is_shut_down_leaves_the_writing_to_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightlyfs.fetch.urls._BATCH", 1)

    def refuse(job: Callable[[], None]) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    store = UrlStore(bench.path, "mine", wall_clock=lambda: bench.now, later=refuse)
    store.put("a", "https://bucket.test/a", bench.now + 1000)
    assert kept(store) == []
    store.close()
    assert kept(bench.store()) == ["a"]


def test_only_what_lives_and_can_be_written_is_kept(bench: Bench) -> None:
    store = bench.store()
    store.put("over", "https://bucket.test/a", bench.now)
    store.put("lives", "https://bucket.test/a", bench.now + 1)
    store.put("odd", "https://bucket.test/\ud800", bench.now + 1000)
    assert [name for name in ("over", "lives", "odd") if store.get(name)] == ["lives"]
    bench.now += 0.79
    assert store.get("lives")
    bench.now += 0.02
    assert store.get("lives") is None


def test_where_there_are_too_many_a_tenth_more_goes(bench: Bench) -> None:
    store = bench.store(max_urls=20)
    for number in range(20):
        store.put(f"s{number:02}", f"https://bucket.test/{number}", bench.now + 1000 - number)
    store.write()
    assert len(store) == 20
    store.put("more", "https://bucket.test/more", bench.now + 2000)
    store.write()
    assert len(store) == 18
    assert kept(store) == [*[f"s{number:02}" for number in range(16, -1, -1)], "more"]


def test_a_discarded_url_counts_no_longer_written_or_not(bench: Bench) -> None:
    store = bench.store()
    for name in ("a", "b"):
        store.put(name, f"https://bucket.test/{name}", bench.now + 1000)
    store.write()
    store.put("c", "https://bucket.test/c", bench.now + 1000)
    store.discard("a", "https://bucket.test/another")
    assert len(store) == 3
    store.discard("a", "https://bucket.test/a")
    store.discard("c", "https://bucket.test/another")
    assert len(store) == 2
    store.discard("c", "https://bucket.test/c")
    assert len(store) == 1
    assert store.get("b")


def test_it_says_whether_there_is_more_than_what_is_in_memory(bench: Bench) -> None:
    store = bench.store()
    assert not store.holds_more_than(0)
    store.put("a", "https://bucket.test/a", bench.now + 1000)
    assert store.holds_more_than(0)
    assert not store.holds_more_than(1)
    store.write()
    assert not store.holds_more_than(1)


def test_a_store_that_a_cleaner_deleted_is_made_again(bench: Bench) -> None:
    store = bench.store()
    store.put("a", "https://bucket.test/a", bench.now + 1000)
    store.write()
    bench.path.unlink()
    store.put("b", "https://bucket.test/b", bench.now + 1000)
    store.write()
    assert kept(store) == ["b"]
    assert bench.path.exists()
    assert len(store) == 1
    assert store.errors == 0
