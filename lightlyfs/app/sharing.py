"""The part of the composition root for processes that share the directory of a dataset."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from lightlyfs.errors import StartError
from lightlyfs.locks import OPENING, OPENING_PATIENCE_S
from lightlyfs.places import DatasetPlace

# a first listing of ten million samples takes some minutes
_LISTING_PATIENCE_S = 900.0


def listing_turn(
    place: DatasetPlace, catalogue: str, cancelled: Callable[[], bool]
) -> Callable[[Callable[[], None]], AbstractContextManager[None]]:
    """Return what keeps other processes from listing a catalogue while this one does; see `Refresher`."""
    return lambda on_wait: place.locks.name(f"list {catalogue}", _LISTING_PATIENCE_S, cancelled, on_wait)


@contextmanager
def opening(place: DatasetPlace) -> Iterator[None]:
    """Open files of a place in the block; StartError where that cannot be.

    Processes take turns: two may both find no catalogue of a tag, and make one.
    """
    try:
        with place.locks.name(OPENING, OPENING_PATIENCE_S):
            yield
    except (OSError, sqlite3.Error) as error:
        raise StartError(f"the cache in {place.path} cannot be used: {error}") from error


@contextmanager
def renewing(place: DatasetPlace) -> Iterator[None]:
    """Make a file of a place again in the block, which a cleaner deleted; OSError where that cannot be."""
    place.locks.renew()
    with place.locks.name(OPENING, OPENING_PATIENCE_S):
        yield
