"""Whatever storage and the API do wrong, a reader gets the right bytes or an error, never other bytes."""

from __future__ import annotations

import errno
import functools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from trees import InProcessTree, MountedTree, Tree, in_process, mounted, refused, wait_until

from lightlyfs.api import retry
from lightlyfs.api.contract import Timeouts
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.app import dataset
from lightlyfs.fetch.fetcher import FetchConfig
from lightlyfs.testing import (
    BrokenJson,
    Chunked,
    DropReply,
    Expired,
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
)

# fetched whole, one byte over a block, and in ranges
SIZES = {"small.jpg": 50_000, "block.png": (1 << 20) + 1, "ranges.bin": 6_500_000}
# without a kernel no call waits for the limits of a real mount
HASTY = functools.partial(
    RetryPolicy, attempts=5, first_delay_s=0.05, max_delay_s=0.2, budget_s=3, doubt_s=0.3
)
IMPATIENT = functools.partial(
    FetchConfig, timeouts=Timeouts(connect_s=2, idle_s=0.5, total_s=60), policy=HASTY()
)

# faults that pass, or that do not matter: the bytes come. Four at most where chance decides, for each
# request is tried five times
SURVIVED: dict[str, Sequence[Fault]] = {
    "latency": [Latency(delay_s=0.05)],
    "429 with Retry-After": [Status(target="storage", status=429, retry_after_s=1, count=2)],
    "500": [Status(target="storage", status=500, count=3)],
    "503 burst": [Status(target="storage", status=503, count=4)],
    "503 of the API": [Status(target="api", status=503, count=2)],
    "429 of the API": [Status(target="api", status=429, retry_after_s=1, count=1)],
    "503 now and then": [Status(status=503, probability=0.3, count=4)],
    "hangs up": [DropReply(count=4)],
    "ends early": [Truncate(target="storage", count=2, fraction=0.6)],
    "ends at once": [Truncate(target="storage", count=2, fraction=0.0)],
    "half of a URL": [Truncate(target="readurl", count=1)],
    "ends early often": [Truncate(target="storage", probability=0.3, count=4, fraction=0.9)],
    "no ranges": [IgnoreRange(target="storage")],
    "no ranges now and then": [IgnoreRange(target="storage", probability=0.5)],
    "no ranges, ends early": [IgnoreRange(target="storage"), Truncate(target="storage", count=2)],
    "wrong ranges": [WrongContentRange(target="storage")],
    "wrong range": [WrongContentRange(target="storage", count=1)],
    "wrong block": [WrongContentRange(target="storage", shift=1 << 20, count=1)],
    "range before": [WrongContentRange(target="storage", shift=-1, probability=0.5)],
    "compressed ranges": [Gzip(target="storage")],
    "compressed whole": [Gzip(target="storage"), IgnoreRange(target="storage")],
    "compressed, ends early": [Truncate(target="storage", count=2), Gzip(target="storage")],
    "compressed documents": [Gzip(target="api")],
    "chunked": [Chunked()],
    "chunked whole": [Chunked(target="storage"), IgnoreRange(target="storage")],
    "chunked whole, ends early": [
        Truncate(target="storage", count=2),
        Chunked(target="storage"),
        IgnoreRange(target="storage"),
    ],
    "expired URL": [Expired(count=1)],
    "web page instead of the image": [Html(target="storage", count=2)],
    "web page instead of the URL": [Html(target="readurl", count=2)],
}

# faults that stay: a retry does not help, and the reader is told so
FAILED: dict[str, tuple[Sequence[Fault], int]] = {
    "503": ([Status(target="storage", status=503)], errno.EIO),
    "429": ([Status(target="storage", status=429)], errno.EIO),
    "400": ([Status(target="storage", status=400)], errno.EINVAL),
    "410": ([Status(target="storage", status=410)], errno.ENODATA),
    "418": ([Status(target="storage", status=418)], errno.EIO),
    "404": ([Status(target="storage", status=404)], errno.ENODATA),
    "expired": ([Expired()], errno.EACCES),
    "401 of the API": ([Status(target="readurl", status=401)], errno.EACCES),
    "403 of the API": ([Status(target="readurl", status=403)], errno.EACCES),
    "404 of the API": ([Status(target="readurl", status=404, code="SAMPLE_UNKNOWN")], errno.ENOENT),
    "hangs up": ([DropReply(target="storage")], errno.EIO),
    "ends at once": ([Truncate(target="storage", fraction=0.0)], errno.EIO),
    "hangs before headers": ([Stall(target="storage")], errno.ETIMEDOUT),
    "hangs behind headers": ([Stall(target="storage", at="headers")], errno.ETIMEDOUT),
    "hangs at half": ([Stall(target="storage", at="half")], errno.ETIMEDOUT),
    "web page instead of the image": ([Html(target="storage")], errno.EIO),
    "web page instead of the URL": ([Html(target="readurl")], errno.EIO),
    "half a document": ([BrokenJson(target="readurl")], errno.EIO),
}
# those whose failure a mount tells after some seconds
FAILED_SOON = ["400", "404", "404 of the API", "half a document"]
CASES = ["survived " + name for name in SURVIVED] + ["failed " + name for name in FAILED]


def content(case: str, name: str) -> bytes:
    """The bytes of one file of one case."""
    return random.Random(f"{case}/{name}").randbytes(SIZES[name])


def directory_of(case: str) -> str:
    """Where the files of a case are."""
    return f"case {CASES.index(case):02d}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files for each case, so that each starts with cold ones."""
    root = tmp_path_factory.mktemp("faults")
    for case in CASES:
        (root / directory_of(case)).mkdir()
        for name in SIZES:
            (root / directory_of(case) / name).write_bytes(content(case, name))
    return root


@pytest.fixture(scope="module", params=["in-process", pytest.param("fuse3", marks=pytest.mark.fuse)])
def tree(
    request: pytest.FixtureRequest, server: LocalServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[InProcessTree | MountedTree]:
    """The files as an impatient file system object, and as a mount."""
    directory = tmp_path_factory.mktemp("tree")
    if request.param == "in-process":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset, "FetchConfig", IMPATIENT)
            patch.setattr(retry, "RetryPolicy", HASTY)
            with in_process(server, directory) as subject:
                yield subject
    else:
        with mounted(server, directory) as subject:
            yield subject


@pytest.fixture
def faulty(server: LocalServer) -> Iterator[LocalServer]:
    """The server, whose faults end with the test."""
    server.stats.reset()
    yield server
    server.faults.clear()
    wait_until(lambda: server.stats.snapshot()["in_flight"] == 0, 30)


@pytest.mark.parametrize("name", SURVIVED)
def test_a_fault_that_passes_costs_no_byte(name: str, faulty: LocalServer, tree: Tree) -> None:
    case = f"survived {name}"
    faulty.faults.add(*SURVIVED[name])  # type: ignore[arg-type]

    for file in SIZES:
        assert tree.read(f"{directory_of(case)}/{file}") == content(case, file)

    left = [fault for fault in faulty.faults.armed() if fault.count is not None and fault.probability == 1]
    assert left == [], "a fault hit no request"


# with the other faults a mount tries for a minute; test_outages sees that end
@pytest.mark.parametrize(
    ("tree", "name"),
    [("in-process", name) for name in FAILED]
    + [pytest.param("fuse3", name, marks=pytest.mark.fuse) for name in FAILED_SOON],
    indirect=["tree"],
)
def test_a_fault_that_stays_is_an_error_and_then_forgotten(
    name: str, faulty: LocalServer, tree: Tree
) -> None:
    case = f"failed {name}"
    faults, number = FAILED[name]
    faulty.faults.add(*faults)  # type: ignore[arg-type]

    with refused(number):
        tree.read(f"{directory_of(case)}/ranges.bin")

    faulty.faults.clear()
    wait_until(lambda: faulty.stats.snapshot()["in_flight"] == 0, 30)
    for file in SIZES:
        assert tree.read(f"{directory_of(case)}/{file}") == content(case, file)
