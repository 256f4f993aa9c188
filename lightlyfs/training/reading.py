"""Whole files in an order that is known: read one after the other, fetched ahead together.

Files are those of a mount, or of a dataset that this process opens by itself (`lightly://`).
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import chain, islice
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from lightlyfs.cores import with_our_threads
from lightlyfs.errors import Cancelled, LightlyFsError, Retryable, StartError, may_pass
from lightlyfs.library import SIGN_OF_LIFE_S, Closable, OrderOverSocket, mountpoint_of, open_cached

log = logging.getLogger(__name__)

ADDRESS = "lightly://"
# files that all workers of a training have on their way, or ready: at 80 ms a request, two requests a file
# and 1,000 files/s some 160 are on their way; four times that bridges steps in which none is read
FILES_AHEAD = 640
# paths in one message to a mount
_PATHS_AT_ONCE = 64
# a server that restarts, or a laptop that was asleep, is back in minutes; a training of days waits for it
_OUTAGE_S = 900.0
_PAUSE_S = 1.0


class Source(Protocol):
    """Files by their full names; any thread may call."""

    def below(self, root: str, tags: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Yield the path below `root` of each file, and the number of the first of `tags` that holds it."""
        ...

    def read(self, name: str) -> bytes:
        """Return all bytes of a file; OSError says why not."""
        ...

    def announce(self, names: Iterator[list[str]]) -> Closable:
        """Have files fetched in this order, which is asked for in another thread."""
        ...

    def while_reading(self) -> AbstractContextManager[object]:
        """In this block several files are read, and nothing else is done."""
        ...

    def sample_id(self, name: str) -> str:
        """Return the id of the sample; empty where it cannot be said."""
        ...


class AddressedFiles:
    """Files by their addresses, which this process reads by itself."""

    def __init__(self, storage_options: dict[str, Any]) -> None:
        from lightlyfs.fsspec.driver import LightlyFileSystem

        # what comes next is said, so nothing is guessed; and a training keeps the names that it listed, so
        # that 256 workers do not ask for them one by one
        self._fs = LightlyFileSystem(
            **{"read_only": True, "read_ahead": "off", "metadata_ttl": "infinite", **storage_options}
        )

    def below(self, root: str, tags: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Yield the samples that the API has now."""
        return self._fs.samples(root, tags)

    def read(self, name: str) -> bytes:
        """Return all bytes."""
        return self._fs.cat_file(name)

    def announce(self, names: Iterator[list[str]]) -> Closable:
        """Have the network loop of this process fetch them."""
        return self._fs.ahead_by_batches(names)

    def while_reading(self) -> AbstractContextManager[object]:
        """Stay on one core with the network loop, which saves a third of the CPU time."""
        return with_our_threads()

    def sample_id(self, name: str) -> str:
        """Return what the catalogue has."""
        return str(self._fs.info(name).get("sample_id", ""))


class MountedFiles:
    """Files by their paths below a mount, whose process fetches them."""

    def __init__(self, mountpoint: Path) -> None:
        self._mountpoint = mountpoint

    def below(self, root: str, tags: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Yield the files that the mount lists; of a tag those that `.lightlyfs/tags` links to."""
        if not tags:
            yield from ((path, 0) for path in _walk(root))
            return
        inside = os.path.relpath(root, self._mountpoint)
        seen: set[str] = set()
        for number, tag in enumerate(tags):
            tagged = self._mountpoint / ".lightlyfs" / "tags" / tag
            if not tagged.is_dir():
                raise FileNotFoundError(f"the dataset has no tag {tag!r}")
            if not (tagged / inside).is_dir() and os.path.isdir(root):
                continue  # it holds nothing of this directory
            new = [path for path in _walk(str(tagged / inside)) if path not in seen]
            seen.update(new)
            yield from ((path, number) for path in new)

    def read(self, name: str) -> bytes:
        """Return all bytes, from the cache's own file where it is there."""
        try:
            file = open_cached(name)
        except ValueError as error:
            # it was there, and may be mounted again
            raise ConnectionError(f"the mount on {self._mountpoint} is away") from Retryable(str(error))
        with file:
            return file.read()

    def announce(self, names: Iterator[list[str]]) -> Closable:
        """Have the mount fetch them."""
        return OrderOverSocket(self._mountpoint, _in_messages(names))

    def while_reading(self) -> AbstractContextManager[object]:
        """Nothing is to be done: the mount fetches them."""
        return nullcontext()

    def sample_id(self, name: str) -> str:
        """Return what the mount says."""
        return os.getxattr(name, "user.lightly.sample_id").decode()


def opener_of(name: str, storage_options: dict[str, Any]) -> Callable[[], Source]:
    """Return what opens the files below a directory of this name, in any process, also where a mount is away.

    ValueError where it is in no mount.
    """
    if name.startswith(ADDRESS):
        return partial(AddressedFiles, storage_options)
    if storage_options:
        raise ValueError(f"{min(storage_options)} is an option of lightly:// addresses; a mount has its own")
    try:
        mountpoint = mountpoint_of(os.path.join(name, "any"))
    except ValueError:
        raise ValueError(f"{name} is not in a dataset that you have mounted") from None
    return partial(MountedFiles, mountpoint)


class Announcer:
    """Has files fetched in the order in which they are added; ends with `close`, as `with` does.

    Used by one thread.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._added: SimpleQueue[list[str] | None] = SimpleQueue()
        self._running: Closable | None = None

    def add(self, names: Sequence[str]) -> None:
        """Have files fetched behind those that were added before."""
        if names:
            self._added.put(list(names))
            if self._running is None:
                self._begin()

    def _begin(self) -> None:
        try:
            self._running = self._source.announce(_taken(self._added))
        except (OSError, LightlyFsError) as error:
            # who reads waits for what is away, or says what is wrong; the next call tries again
            log.warning("nothing is fetched ahead: %s", error)

    def close(self) -> None:
        """Stop fetching; idempotent."""
        running, self._running = self._running, None
        if running is not None:
            running.close()
            self._added.put(None)
            self._added = SimpleQueue()

    def __del__(self) -> None:
        # the thread that asks for more stops the fetching: a finaliser must take no lock
        self._added.put(None)

    def __enter__(self) -> Announcer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _taken(added: SimpleQueue[list[str] | None]) -> Iterator[list[str]]:
    """Yield what is added, now and then nothing, which shows that there may be more; Cancelled at its end."""
    while True:
        try:
            names = added.get(timeout=SIGN_OF_LIFE_S)
        except Empty:
            names = []
        if names is None:
            raise Cancelled("the program dropped the order")
        yield names


def read_patiently(
    read: Callable[[], bytes],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> bytes:
    """Read, also over an outage of some minutes or a change of the file; raises what does not pass."""
    began = clock()
    while True:
        try:
            return read()
        except OSError as error:
            if not _passes(error) or clock() - began > _OUTAGE_S:
                raise
            log.warning("tried again: %s", error)
            sleep(_PAUSE_S)


def _passes(error: OSError) -> bool:
    """Whether what failed may work later."""
    cause = error.__cause__
    if isinstance(cause, StartError) and cause.__cause__ is not None:
        cause = cause.__cause__  # what kept the dataset from being opened
    return may_pass(cause if isinstance(cause, LightlyFsError) else error)


def batches(
    paths: Iterable[str | os.PathLike[str]], size: int, **storage_options: Any
) -> Iterator[list[tuple[str, bytes]]]:
    """Yield files in their order, `size` at once, each as its path and bytes; the last batch may be shorter.

    `paths` are files of one mount, or addresses `lightly://DATASET/...` of one dataset, which are read with
    `storage_options`; they may be an iterator of any length. Those of the next batches are fetched meanwhile.
    Raises OSError for a file that cannot be read, ValueError where the first path is in no mount of yours.
    """
    if size < 1:
        raise ValueError(f"a batch holds at least one file, not {size}")
    if isinstance(paths, str | bytes | os.PathLike):
        raise ValueError(f"paths is one path; give a list: [{paths!r}]")
    names = (os.fspath(path) for path in paths)
    first = next(names, None)
    if first is None:
        return
    directory = first if first.startswith(ADDRESS) else os.path.dirname(os.path.abspath(first))
    source = opener_of(directory, storage_options)()
    left = chain([first], names)
    waiting: deque[list[str]] = deque()
    with Announcer(source) as announcer:
        while True:
            while len(waiting) <= batches_ahead(size) and (some := list(islice(left, size))):
                announcer.add(some)
                waiting.append(some)
            if not waiting:
                return
            yield [(name, read_patiently(partial(source.read, name))) for name in waiting.popleft()]


def batches_ahead(size: int, workers: int = 1) -> int:
    """Return how many batches of so many files each worker should be ahead of the one that it reads."""
    return max(2, -(-FILES_AHEAD // (size * workers)))


def _in_messages(names: Iterator[list[str]]) -> Generator[list[str], None, None]:
    for some in names:
        yield some[:_PATHS_AT_ONCE]
        yield from (
            some[start : start + _PATHS_AT_ONCE] for start in range(_PATHS_AT_ONCE, len(some), _PATHS_AT_ONCE)
        )


def _walk(root: str) -> Iterator[str]:
    """The paths of all files below a directory, but for those that are hidden; OSError where one fails."""
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        with os.scandir(os.path.join(root, inside)) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = os.path.join(inside, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if path != ".lightlyfs":
                        waiting.append(path)
                else:
                    yield path
