"""How far a call travels through the code: our calls and the modules of ours that are entered, by trip.

    python tests/house.py

prints one line a trip, beside the figures of before the rooms were rebuilt. MOST_MODULES is what
`test_travel` allows. Everything runs in this process, over the local server.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lightlyfs

_OURS = str(Path(lightlyfs.__file__).parent) + os.sep
_SERVER = (_OURS + "server" + os.sep, _OURS + "testing" + os.sep)
_QUIET_S = 0.3  # work that a trip left to other threads is over by then
# threads of our own run beside a trip, and enter modules of theirs; the fewest of so many times count
_TIMES = 4
_MORE_TIMES = 6  # for trips that find all as it was
_UNCHANGING = ("getattr from memory", "cached read", "listing of 40")
LISTED = 40


class Travel(NamedTuple):
    """Our calls, and our modules that were entered."""

    calls: int
    modules: int


# as an outside judge measured them before the rooms were rebuilt
BEFORE = {
    "getattr from memory": Travel(20, 13),
    "cached read": Travel(59, 21),
    "cold read": Travel(484, 53),
    "cached read over fsspec": Travel(74, 25),
    "new file": Travel(463, 50),
    "warm of one file": Travel(496, 43),
    "listing of 40": Travel(341, 17),
}


# the most modules that a trip may enter
MOST_MODULES = {
    "getattr from memory": 10,
    "cached read": 19,
    "cold read": 46,
    "cached read over fsspec": 25,
    "new file": 46,
    "warm of one file": 38,
    "listing of 40": 15,
}


class Counter:
    """Counts in every thread that starts after it; counts nothing until it is asked to."""

    def __init__(self) -> None:
        self._counting = False
        self._calls = 0
        self._modules: set[str] = set()

    def install(self) -> None:
        """Count in this thread and in those that start from now on."""
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)

    def remove(self) -> None:
        """Count in no thread that starts from now on, and in this one no more."""
        threading.setprofile(None)  # type: ignore[arg-type]
        sys.setprofile(None)

    def of(self, trip: Callable[[int], object], times: int) -> Travel:
        """Return what one trip takes, with what other threads do for it."""
        found = [self._once(lambda number=number: trip(number)) for number in range(times)]
        return Travel(min(travel.calls for travel in found), min(travel.modules for travel in found))

    def _once(self, trip: Callable[[], object]) -> Travel:
        time.sleep(_QUIET_S)
        self._calls, self._modules = 0, set()
        self._counting = True
        trip()
        time.sleep(_QUIET_S)
        self._counting = False
        return Travel(self._calls, len(self._modules))

    def _profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if not self._counting or event != "call":
            return
        name = frame.f_code.co_filename
        if name.startswith(_OURS) and not name.startswith(_SERVER):
            self._calls += 1
            self._modules.add(name)


@contextmanager
def trips(directory: Path) -> Iterator[tuple[Counter, dict[str, Callable[[int], object]]]]:
    """The trips over a dataset of its own; each takes how often it was made before."""
    from trees import environment, in_process

    from lightlyfs.fsspec import parts as fsspec_parts
    from lightlyfs.fsspec.driver import LightlyFileSystem
    from lightlyfs.testing import LocalServer, ServerOptions

    (directory / "images").mkdir()
    for number in range(LISTED):
        path = directory / "images" / f"{number:03d}.jpg"
        path.write_bytes(os.urandom(20_000))
    counter = Counter()
    with LocalServer(ServerOptions(source=directory / "images", dataset_name="files")) as server:
        os.environ.update(environment(server, directory / "guest"))
        counter.install()
        try:
            with in_process(server, directory / "tree") as tree:
                files = tree.parts.filesystem
                guest = LightlyFileSystem(skip_instance_cache=True)
                name = f"{server.dataset_id}/000.jpg"
                guest.cat_file(name)

                def read(path: str) -> None:
                    handle = files.open(path, os.O_RDONLY).handle
                    files.read(handle, 0, 131_072)
                    files.release(handle)

                def write(number: int) -> None:
                    handle = files.create(f"new{number}.jpg", os.O_WRONLY | os.O_CREAT).handle
                    files.write(handle, 0, b"x" * 20_000)
                    files.flush(handle)
                    files.release(handle)

                for path in ("000.jpg", "000.jpg", "020.jpg"):
                    read(path)
                files.getattr("000.jpg")
                yield (
                    counter,
                    {
                        "getattr from memory": lambda _: files.getattr("000.jpg"),
                        "cached read": lambda _: read("000.jpg"),
                        "cold read": lambda number: read(f"01{3 * number}.jpg"),
                        "cached read over fsspec": lambda _: guest.cat_file(name),
                        "new file": write,
                        "warm of one file": lambda number: warm(tree.parts, f"03{3 * number}.jpg"),
                        "listing of 40": lambda _: files.list_directory(""),
                    },
                )
        finally:
            counter.remove()
            fsspec_parts.close_all()


def warm(parts: Any, path: str) -> None:
    """Fetch one file into the cache, as `lightlyfs warm` has a mount do it."""
    warming = parts.warming([path], 1, None)
    warming.start()
    assert warming.wait(10).ended


def measured(directory: Path) -> dict[str, Travel]:
    """What each trip takes."""
    with trips(directory) as (counter, each):
        return {
            name: counter.of(trip, _MORE_TIMES if name in _UNCHANGING else _TIMES)
            for name, trip in each.items()
        }


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as directory:
        found = measured(Path(directory))
    if "--json" in sys.argv:
        json.dump(found, sys.stdout)
        return
    lines = [f"{'trip':<26}{'calls':>7}{'modules':>9}   before"]
    for name, travel in found.items():
        before = BEFORE[name]
        lines.append(f"{name:<26}{travel.calls:>7}{travel.modules:>9}   {before.calls} / {before.modules}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
