"""The part of the composition root for processes that share the directory of a dataset."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from lightlyfs.content.cache import BlockCache
from lightlyfs.errors import StartError
from lightlyfs.places import DatasetPlace

# how soon files that another process deleted are let go of
_KEEP_UP_EVERY_S = 1.0
# a first listing of ten million samples takes some minutes
_LISTING_PATIENCE_S = 900.0


class KeepsUp:
    """A thread that has the cache exchange with other processes what it keeps."""

    def __init__(self, cache: BlockCache, closing: threading.Event) -> None:
        self._cache = cache
        self._closing = closing
        self._thread = threading.Thread(target=self._run, name="lightlyfs-sharing", daemon=True)

    def start(self) -> None:
        """Start the thread; it ends soon after `closing` is set."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread, so that the cache can be closed."""
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(_KEEP_UP_EVERY_S):
            self._cache.keep_up()


def listing_turn(
    place: DatasetPlace, catalogue: str, cancelled: Callable[[], bool]
) -> Callable[[Callable[[], None]], AbstractContextManager[None]]:
    """What keeps other processes from listing a catalogue while this one does; see `Refresher`."""
    return lambda on_wait: place.locks.name(f"list {catalogue}", _LISTING_PATIENCE_S, cancelled, on_wait)


@contextmanager
def opening(place: DatasetPlace) -> Iterator[None]:
    """Open files of a place in the block; StartError where one is damaged that may not be made anew."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise StartError(
            f"the cache in {place.path} cannot be used: {error}; end the other processes that use it, or "
            "choose another with --cache-dir"
        ) from error
