"""Everything at once over a network and a server that fail now and then: no program sees any of it.

Twenty-five seconds in every run; `make soak` runs twenty minutes (LIGHTLYFS_SOAK_S) and prints figures.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mixed_load
import pytest
from mixed_load import content
from trees import MountedTree, mounted

from lightlyfs.testing import (
    BrokenJson,
    Chunked,
    DropReply,
    Empty,
    Fault,
    Gzip,
    Html,
    IgnoreRange,
    Latency,
    LocalServer,
    Stall,
    Status,
    Truncate,
    WrongContentRange,
    WrongTotal,
)

pytestmark = pytest.mark.fuse

SECONDS = float(os.environ.get("LIGHTLYFS_SOAK_S", "25"))
SMALL, LARGE, CHANGING = 400, 6, 20
OF_STORAGE: list[Fault] = [
    Status(target="storage", status=403),
    Status(target="storage", status=404),
    Status(target="storage", status=429, retry_after_s=1),
    Status(target="storage", status=500),
    Status(target="storage", status=503),
    Truncate(target="storage"),
    DropReply(target="storage"),
    Html(target="storage"),
    Empty(target="storage.get"),
    Gzip(target="storage.get"),
    Chunked(target="storage.get"),
    IgnoreRange(target="storage.get"),
    WrongContentRange(target="storage.get"),
    WrongTotal(target="storage.get"),
    Stall(target="storage.get", at="half", hold_s=2),
    Latency(target="storage", delay_s=1),
]
OF_API: list[Fault] = [
    Status(target="api", status=401),
    Status(target="api", status=403),
    Status(target="api", status=404),
    Status(target="api", status=429, code="CONFLICT"),
    Status(target="api", status=500),
    Status(target="api", status=503, retry_after_s=1),
    Html(target="api"),
    BrokenJson(target="api"),
    Truncate(target="api"),
    DropReply(target="api"),
    Empty(target="api"),
    Latency(target="api", delay_s=1),
]


def with_probability(faults: list[Fault], share: float) -> list[Any]:
    """The faults, which together hit this share of the requests."""
    import msgspec

    return [msgspec.structs.replace(fault, probability=share / len(faults)) for fault in faults]


class Changes:
    """What other people do to the dataset meanwhile, and what the memory of the mount is."""

    def __init__(self, server: LocalServer, tree: MountedTree) -> None:
        self._server = server
        self._tree = tree
        self._ended = threading.Event()
        self.changes = self.refreshes = 0
        self.resident_mb: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        ids = {one["fileName"]: one["id"] for one in self._server.samples()}
        chance = random.Random(7)
        second = 0
        while not self._ended.wait(1):
            second += 1
            name = f"changing/{chance.randrange(CHANGING):03d}.jpg"
            self._server.replace_object(ids[name], content(name, second))
            self._server.add_sample(f"small/9{second:05d}.jpg", content(f"small/9{second:05d}.jpg"))
            self.changes += 2
            pages = int(Path(f"/proc/{self._tree.process.pid}/statm").read_text().split()[1])
            self.resident_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
            if second % 15 == 0:
                self._tree.refresh()
                self.refreshes += 1


@pytest.mark.timeout(SECONDS + 240)
def test_no_program_sees_what_passes(own_server: LocalServer, tmp_path: Path) -> None:
    names = [f"small/{number:06d}.jpg" for number in range(SMALL)]
    names += [f"large/{number:03d}.bin" for number in range(LARGE)]
    names += [f"changing/{number:03d}.jpg" for number in range(CHANGING)]
    for name in names:
        data = content(name)
        own_server.add_sample(name, data, {"metaData": {"sizeInBytes": len(data)}})
    options = ("--metadata-ttl", "5", "--cache-size", "20M", "--page-size", "100")
    with mounted(own_server, tmp_path / "tree", "3", *options) as tree:
        own_server.faults.add(*with_probability(OF_STORAGE, 0.08), *with_probability(OF_API, 0.03))
        with Changes(own_server, tree) as others:
            done = subprocess.run(
                [sys.executable, mixed_load.__file__, str(tree.mountpoint), str(SECONDS)],
                capture_output=True,
                check=True,
                text=True,
                timeout=SECONDS + 120,
            )
        own_server.faults.clear()
        report = json.loads(done.stdout)
        log = tree.log.read_text()
    written = report.pop("written")
    found = [one for one in own_server.samples() if one["fileName"].startswith(("written/", "renamed/"))]
    middle = len(others.resident_mb) // 2
    report |= {"changes": others.changes, "refreshes": others.refreshes, "written": len(written)}
    report |= {"resident_mb": others.resident_mb[middle :: max(1, middle // 8)]}
    sys.stdout.write(json.dumps(report, indent=1))

    assert report["wrong"] == []
    assert sorted(one["fileName"] for one in found) == sorted(written)
    for one in found:
        assert own_server.object_bytes(one["id"]) == content(written[one["fileName"]])
    assert report["errors"] == [], log[-5000:]
    assert report.get("replaced_while_open", 0) <= others.changes // 20, log[-5000:]
    assert report["reads"] > SECONDS
    assert report["writes"] > 0
    assert report["renames"] > 0
