"""Comparing a stored listing with the server's a few rows at a time, where nothing says that it changed.

The dataset's record need not move when a sample does, so an unchanged record proves little, and listing
everything again costs as much as the first time. One round over all rows takes an hour, or twenty times as
long as a listing takes, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Callable

from lightlyfs.catalog.remote import Remote
from lightlyfs.catalog.store import CatalogStore

ROUND_S = 3600.0
LISTINGS_A_ROUND = 20
# rows that are compared at each check at least: small datasets are compared whole
_MIN_ROWS = 1_000
_OFFSET = "verified_rows"


class Verifier:
    """The rounds over one stored listing; not for several threads at once."""

    def __init__(self, store: CatalogStore, remote: Remote, *, clock: Callable[[], float]) -> None:
        self._store = store
        self._remote = remote
        self._clock = clock
        self._verified_at = clock()

    def holds(self, *, most_rows: int, listing_s: float, ttl_s: float) -> bool:
        """Compare the next rows of the round; False where the server has others."""
        listed = int(self._store.get_meta("listed") or 0)
        elapsed_s = min(self._clock() - self._verified_at, 2 * ttl_s)
        self._verified_at = self._clock()
        round_s = max(ROUND_S, LISTINGS_A_ROUND * listing_s)
        wanted = min(listed, most_rows, max(_MIN_ROWS, int(listed * elapsed_s / round_s)))
        offset = int(self._store.get_meta(_OFFSET) or 0)
        while wanted > 0:
            if offset >= listed:
                offset = 0
            rows = self._remote.page(offset, min(wanted, listed - offset))
            if not rows or not self._store.holds(self._remote.kept(rows)):
                return False
            offset += len(rows)
            wanted -= len(rows)
        self._store.set_meta({_OFFSET: str(offset)})
        return True
