"""A server that throttles is left alone by all readers together, and all go on soon after."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from pathlib import Path

import pytest
from trees import in_process

from lightlyfs.testing import LocalServer, ServerOptions, Status

READERS = 64
SECONDS = 4.0


def content(number: int) -> bytes:
    return b"%06d" % number * 5_000


@pytest.mark.parametrize("retry_after_s", [None, 2, pytest.param(3600, marks=pytest.mark.long)])
@pytest.mark.parametrize("target", ["storage", "readurl"])
def test_throttled_readers_probe_together_and_recover(
    tmp_path: Path, target: str, retry_after_s: int | None
) -> None:
    (tmp_path / "images").mkdir()
    with LocalServer(ServerOptions(source=tmp_path / "images")) as server:
        for number in range(READERS):
            data = content(number)
            server.add_sample(f"d/{number:03d}.jpg", data, {"metaData": {"sizeInBytes": len(data)}})
        with in_process(server, tmp_path / "tree", jobs=str(READERS)) as tree:
            assert len(tree.names("d")) == READERS
            server.stats.reset()
            # what is asked for one hour is asked again before the minute of a call is over
            seconds = 50.0 if retry_after_s == 3600 else SECONDS
            server.faults.add(Status(target=target, status=429, retry_after_s=retry_after_s, seconds=seconds))
            ended = time.monotonic() + seconds
            late: list[float] = []
            lock = threading.Lock()

            def read(number: int) -> bool:
                right = tree.read(f"d/{number:03d}.jpg") == content(number)
                with lock:
                    late.append(time.monotonic() - ended)
                return right

            with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
                assert all(pool.map(read, range(READERS)))

    refused = server.stats.snapshot()["requests"]["storage.get" if target == "storage" else target]["429"]
    assert refused <= READERS + 4 * seconds, "each asks on its own"
    assert max(late) < (10 if retry_after_s == 3600 else 5)
