"""What the examples share: their arguments, a dataset to run over, and how a rate is printed."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightlyfs.errors import LightlyFsError
from lightlyfs.fsspec.parts import close_all

_EXPORTED = 4  # lines of `lightlyfs serve`, each of which sets a variable
_PICTURE = (128, 96)
_DIRECTORIES = 8


@dataclass(frozen=True)
class Place:
    """A dataset, and the storage options by which any process opens it."""

    dataset: str
    options: dict[str, Any]

    @property
    def url(self) -> str:
        """The root of the dataset, for functions that take URLs."""
        return f"lightly://{self.dataset}"


@dataclass(frozen=True)
class Result:
    """What a run found, how much it read for that, and in what time."""

    text: str
    files: int
    size: int
    seconds: float

    @property
    def files_per_s(self) -> float:
        """Its rate."""
        return self.files / self.seconds

    def __str__(self) -> str:
        rate = f"{self.files_per_s:,.0f} files/s, {self.size / self.seconds / 1e6:,.1f} MB/s"
        return f"{self.text}\n  {self.files:,} files in {self.seconds:.1f} s: {rate}"


Work = Callable[[Place, argparse.Namespace], Result]


def run(doc: str, needs: Sequence[str], single: Work, parallel: Work) -> None:
    """The main program of an example: one process, workers, or both of them compared.

    `needs` are the packages that it imports.
    """
    given = _parser(doc).parse_args()
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        sys.exit(f"{', '.join(missing)} is not installed; install it with: pip install {' '.join(missing)}")
    ways = {"one process": single} if given.single else {f"{given.workers} workers": parallel}
    if given.compare:
        ways = {"one process": single, f"{given.workers} workers": parallel}
    try:
        with placed(given) as place:
            results = [_shown(name, work, _apart(place, name), given) for name, work in ways.items()]
    except (LightlyFsError, OSError) as error:
        sys.exit(f"it stopped: {error}")
    if given.compare:
        one, many = results
        if one.text != many.text:
            sys.exit("the workers found something else than one process: please report this")
        print(f"\nthe same result, {many.files_per_s / one.files_per_s:.1f} times as fast")


def _shown(name: str, work: Work, place: Place, given: argparse.Namespace) -> Result:
    result = work(place, given)
    close_all()
    print(f"\n{name}: {result}", flush=True)
    return result


def _apart(place: Place, name: str) -> Place:
    """The same with a cache of its own, so that no run reads what another one fetched."""
    cache = Path(place.options["cache_dir"]) / name.replace(" ", "-")
    return replace(place, options={**place.options, "cache_dir": str(cache)})


def _parser(doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", help="a dataset, by name or id")
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="run over a folder, served here")
    parser.add_argument("--images", type=int, default=400, help="pictures to make, with neither of the two")
    parser.add_argument("--latency-ms", type=float, default=0, help="what the server waits [%(default)s]")
    parser.add_argument("--workers", type=int, default=4, help="processes [%(default)s]")
    parser.add_argument("--cache-dir", help="where to cache, for all workers [a new one each time]")
    parser.add_argument("--tag", action="append", help="partitions follow these tags, not directories")
    parser.add_argument(
        "--shuffle", action="store_true", help="partitions of files from anywhere, in random order"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--single", action="store_true", help="in one process")
    way.add_argument("--compare", action="store_true", help="in one process, then by workers")
    return parser


@contextlib.contextmanager
def placed(given: argparse.Namespace) -> Iterator[Place]:
    """The dataset to run over: one of the account, or one that is served here for the time of the block."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lightlyfs-example-")))
        options = {"cache_dir": given.cache_dir or str(scratch / "cache"), "read_only": True}
        if given.dataset and given.serve is None:
            yield Place(given.dataset, options)
            return
        folder = given.serve or make_pictures(scratch / "pictures", given.images)
        stack.enter_context(served(folder, latency_s=given.latency_ms / 1000))
        stack.callback(close_all)
        yield Place("example", options)


@contextlib.contextmanager
def served(folder: Path, *, latency_s: float = 0.0) -> Iterator[None]:
    """`lightlyfs serve` over a folder as the dataset `example`; this process's environment names it."""
    command = [sys.executable, "-m", "lightlyfs", "serve", str(folder), "--dataset-name", "example"]
    command += ["--latency", str(latency_s)] if latency_s else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        before = dict(os.environ)
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline() for _ in range(_EXPORTED)]
            if not all(lines):
                sys.exit("the local server did not start; its own line above says why")
            pairs = (line.removeprefix("export ").strip().partition("=") for line in lines)
            os.environ.update({name: value for name, _, value in pairs})
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)
            server.terminate()


def make_pictures(folder: Path, count: int) -> Path:
    """Pictures of noise in a few directories, the same each time; returns the folder."""
    from PIL import Image

    width, height = _PICTURE
    for number in range(count):
        path = folder / f"{number % _DIRECTORIES:02}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = random.Random(number).randbytes(width * height * 3)
        Image.frombytes("RGB", _PICTURE, noise).save(path, quality=85)
    return folder


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """The seconds since the block began."""
    started = time.perf_counter()
    yield lambda: time.perf_counter() - started
