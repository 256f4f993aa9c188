"""Whatever fails for a moment, once, twice or for five seconds, no program sees an error or a wrong answer.

One table: where a fault is x what it is x how long it lasts. Each place has a dataset and a file system
object of its own, and does one thing that asks there; the places run beside each other. `STAYS` says how a
read ends when the fault does not pass; that takes a minute, and is left to the long tests.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from trees import InProcessTree, in_process

from lightlyfs.testing import (
    BrokenJson,
    ChangedEtag,
    DropReply,
    Empty,
    Fault,
    Html,
    LocalServer,
    ServerOptions,
    Status,
    Truncate,
    WrongContentRange,
    WrongTotal,
)

SMALL_BYTES, LARGE_BYTES = 50_000, 5_500_000
LISTED = 40


def content(name: str, size: int = SMALL_BYTES) -> bytes:
    return random.Random(name).randbytes(size)


@dataclass
class Place:
    """A dataset, its file system object, and files that nothing has touched."""

    server: LocalServer
    tree: InProcessTree
    cold: Iterator[int]

    def reads(self) -> None:
        """Read a cold file, small or large."""
        number = next(self.cold)
        name, size = f"cold/{number:03d}.jpg", LARGE_BYTES if number % 5 == 4 else SMALL_BYTES
        self.server.add_sample(name, content(name, size), {"metaData": {"sizeInBytes": size}})
        self.tree.refresh()
        self.server.faults.add(*self.armed)  # type: ignore[arg-type]
        assert self.tree.read(name) == content(name, size)
        assert self.tree.stat(name).size == size

    def lists(self) -> None:
        """List everything again, and see that every name is there at any time."""
        self.server.add_sample(f"new/{next(self.cold)}.jpg", b"new")
        self.server.faults.add(*self.armed)  # type: ignore[arg-type]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            refreshed = pool.submit(self.tree.refresh)
            while True:
                ended = refreshed.done()
                assert len(self.tree.names("many")) == LISTED
                if ended:
                    break
                time.sleep(0.02)
        refreshed.result()
        assert len(self.tree.names("new")) == sum(
            one["fileName"][:4] == "new/" for one in self.server.samples()
        )

    def describes(self) -> None:
        """Read the metadata of a sample."""
        name = f"many/{next(self.cold) % LISTED:02d}.jpg"
        self.server.faults.add(*self.armed)  # type: ignore[arg-type]
        self.tree.parts._forget_details()
        assert b"sizeInBytes" in self.tree.xattr(name, "user.lightly.metadata")

    def writes(self) -> None:
        """Write a new file; close says that it is on the server, where it is once."""
        name = f"written/{next(self.cold):03d}.bin"
        self.server.faults.add(*self.armed)  # type: ignore[arg-type]
        self.tree.write(name, content(name))
        (sample,) = [one for one in self.server.samples() if one["fileName"] == name]
        self.server.faults.clear()
        assert self.server.object_bytes(sample["id"]) == content(name)

    def renames(self) -> None:
        """Rename a sample."""
        number = next(self.cold)
        self.server.add_sample(f"old/{number}.jpg", b"bytes")
        self.tree.refresh()
        self.server.faults.add(*self.armed)  # type: ignore[arg-type]
        self.tree.rename(f"old/{number}.jpg", f"renamed/{number}.jpg")
        assert self.tree.read(f"renamed/{number}.jpg") == b"bytes"

    armed: tuple[Fault, ...] = ()


PLACES: dict[str, Callable[[Place], None]] = {
    "readurl": Place.reads,
    "storage.get": Place.reads,
    "partial": Place.lists,
    "dataset": Place.lists,
    "get": Place.describes,
    "withWriteUrls": Place.writes,
    "storage.put": Place.writes,
    "update": Place.renames,
}
STATUSES = (400, 401, 403, 404, 405, 408, 409, 410, 412, 422, 429, 500, 502, 503, 504)
EVERYWHERE: dict[str, Fault] = {
    **{str(status): Status(status=status) for status in STATUSES},
    "429 CONFLICT": Status(status=429, code="CONFLICT"),
    "503 CONFLICT": Status(status=503, code="CONFLICT"),
    "500 SAMPLE_UNKNOWN": Status(status=500, code="SAMPLE_UNKNOWN"),
    "404 SAMPLE_UNKNOWN": Status(status=404, code="SAMPLE_UNKNOWN"),
    "429 for a second": Status(status=429, retry_after_s=1),
    "web page": Html(),
    "ends early": Truncate(),
    "hangs up": DropReply(),
    "nothing": Empty(),
}
JSON_ONLY: dict[str, Fault] = {"half a document": BrokenJson()}
STORAGE_ONLY: dict[str, Fault] = {
    "other ETag": ChangedEtag(target="storage.get"),
    "wrong total": WrongTotal(target="storage.get"),
    "wrong range": WrongContentRange(target="storage.get"),
}
TIMES = {"once": {"count": 1}, "twice": {"count": 2}, "for 5 s": {"seconds": 5.0}}
# what is tried for five seconds in every run; the rest of the column is tried by the long form
BRIEF = ("404", "429 CONFLICT", "nothing")


def faults_of(place: str) -> dict[str, Fault]:
    """The faults of a place, which count where they are."""
    found = EVERYWHERE | (STORAGE_ONLY if place == "storage.get" else {})
    if not place.startswith("storage"):
        found |= JSON_ONLY
    if place in ("withWriteUrls", "storage.put", "update"):
        # the work is done, whatever is said of it then: another test's matter
        found = {name: fault for name, fault in found.items() if name != "ends early"}
    return {name: msgspec.structs.replace(fault, target=place) for name, fault in found.items()}


def is_an_exception(place: str, fault: str, lasts: str) -> bool:
    """What no client can tell from the truth."""
    # a large file whose first answer named another version changes with the next one
    return fault == "other ETag" or (lasts == "for 5 s" and fault == "wrong total")


# how a read ends when the fault stays: the errno, or None where another answer is the truth by then
STAYS: dict[str, dict[str, int | None]] = {
    "readurl": {
        **dict.fromkeys(EVERYWHERE | JSON_ONLY, errno.EIO),
        **dict.fromkeys(["400", "422"], errno.EINVAL),
        **dict.fromkeys(["401", "403"], errno.EACCES),
        # the API names what there is not; else it is the image
        **dict.fromkeys(["404", "410"], errno.ENODATA),
        "404 SAMPLE_UNKNOWN": errno.ENOENT,
    },
    "storage.get": {
        **dict.fromkeys(EVERYWHERE, errno.EIO),
        **dict.fromkeys(["400", "422"], errno.EINVAL),
        **dict.fromkeys(["401", "403"], errno.EACCES),
        **dict.fromkeys(["404", "410", "404 SAMPLE_UNKNOWN"], errno.ENODATA),
        "nothing": None,
    },
}
# those that are waited for as long as a call may take
MAY_PASS = [
    *("408", "429", "500", "502", "503", "504", "429 CONFLICT", "503 CONFLICT", "500 SAMPLE_UNKNOWN"),
    *("429 for a second", "web page", "ends early", "hangs up"),
]


@contextlib.contextmanager
def place_for(directory: Path) -> Iterator[Place]:
    """A dataset of its own."""
    (directory / "images").mkdir(parents=True)
    with LocalServer(ServerOptions(source=directory / "images")) as server:
        for number in range(LISTED):
            server.add_sample(f"many/{number:02d}.jpg", None, {"metaData": {"sizeInBytes": 10}})
        with in_process(server, directory / "cache", page_size="9", sole_writer="") as tree:
            assert len(tree.names("many")) == LISTED
            yield Place(server, tree, itertools.count())


def run(directory: Path, place: str, cases: list[tuple[str, str]]) -> list[str]:
    """Try faults at one place, one after the other; what went wrong."""
    wrong = []
    with place_for(directory) as subject:
        for fault, lasts in cases:
            one = msgspec.structs.replace(faults_of(place)[fault], **TIMES[lasts])
            subject.armed = (one,)
            try:
                PLACES[place](subject)
                (armed,) = subject.server.faults.left() or [0]
                assert armed != one.count or lasts == "for 5 s", "the fault hit no request"
            except Exception as error:
                wrong.append(f"{place} x {fault} x {lasts}: {error!r}")
            subject.server.faults.clear()
    return wrong


def run_all(tmp_path: Path, cases: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Try all places beside each other."""
    with concurrent.futures.ThreadPoolExecutor(len(cases)) as pool:
        tried = [pool.submit(run, tmp_path / place, place, some) for place, some in cases.items()]
        return [line for one in tried for line in one.result()]


@pytest.mark.parametrize("lasts", ["once", "twice"])
def test_what_fails_once_or_twice_is_no_error(tmp_path: Path, lasts: str) -> None:
    cases = {
        place: [(fault, lasts) for fault in faults_of(place) if not is_an_exception(place, fault, lasts)]
        for place in PLACES
    }
    wrong = run_all(tmp_path, cases)
    assert wrong == [], "\n".join(wrong)


def test_what_fails_for_five_seconds_is_no_error(tmp_path: Path) -> None:
    cases = {place: [(fault, "for 5 s") for fault in BRIEF] for place in PLACES}
    wrong = run_all(tmp_path, cases)
    assert wrong == [], "\n".join(wrong)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_whatever_fails_for_five_seconds_is_no_error(tmp_path: Path) -> None:
    cases = {
        place: [
            (fault, "for 5 s") for fault in faults_of(place) if not is_an_exception(place, fault, "for 5 s")
        ]
        for place in PLACES
    }
    wrong = run_all(tmp_path, cases)
    assert wrong == [], "\n".join(wrong)


def read_with(directory: Path, place: str, fault: str, seconds: float | None) -> tuple[int | None, float]:
    """Read a cold file while a fault lasts; the errno, or None, and how long it took."""
    with place_for(directory) as subject:
        subject.server.add_sample("cold.jpg", content("cold"), {"metaData": {"sizeInBytes": SMALL_BYTES}})
        subject.tree.refresh()
        one = msgspec.structs.replace(faults_of(place)[fault], seconds=seconds)
        subject.server.faults.add(one)  # type: ignore[arg-type]
        started = time.monotonic()
        try:
            subject.tree.read("cold.jpg")
        except OSError as error:
            return error.errno, time.monotonic() - started
        return None, time.monotonic() - started


@pytest.mark.long
@pytest.mark.parametrize("place", STAYS)
@pytest.mark.parametrize("seconds", [50, None])
def test_what_stays_is_one_honest_error_in_bounded_time(
    tmp_path: Path, place: str, seconds: float | None
) -> None:
    expected = {
        fault: None if seconds and fault in MAY_PASS else number for fault, number in STAYS[place].items()
    }
    with concurrent.futures.ThreadPoolExecutor(len(expected)) as pool:
        found = {
            fault: pool.submit(read_with, tmp_path / fault.replace(" ", "_"), place, fault, seconds)
            for fault in expected
        }
        ends = {fault: one.result() for fault, one in found.items()}
    assert {fault: number for fault, (number, _) in ends.items()} == expected
    assert max(took_s for _, took_s in ends.values()) < 61
    assert max(took_s for fault, (_, took_s) in ends.items() if fault not in MAY_PASS) < 20
