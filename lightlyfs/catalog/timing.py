"""When a catalogue was last checked and listed, by this process or by another one that shares it.

Other processes report through the store, in wall-clock time; this module converts to seconds of a monotonic
clock. Not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightlyfs.catalog.listing import DEFAULT_PAGE_SIZE
from lightlyfs.catalog.store import CatalogStore


@dataclass(frozen=True)
class FreshnessConfig:
    """How often to ask, and in what portions; times in seconds, `ttl_s` may be infinite."""

    ttl_s: float = 60.0
    page_size: int = DEFAULT_PAGE_SIZE
    parallel_pages: int = 8


class Timing:
    """The times of one catalogue; a caller that distrusts them may set `checked_at` and `full_at` to -inf."""

    def __init__(
        self,
        store: CatalogStore,
        *,
        trusted: bool,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """What is stored is to be checked once, unless it is `trusted`."""
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._seen_check = store.get_meta("checked_at")
        self._seen_listing = store.get_meta("listed_at")
        self.checked_at = clock() if trusted and self.is_listed else -math.inf
        self.full_at = clock() - _ago(self._seen_listing, wall_clock())
        self.listing_s = float(store.get_meta("listing_s") or 0)

    @property
    def is_listed(self) -> bool:
        """Whether there is a complete listing, as far as was heard."""
        return self._seen_listing is not None

    def age_s(self) -> float | None:
        """Seconds since the catalogue was last known to be true, over mounts; None if never."""
        checked = self._store.get_meta("checked_at")
        return None if checked is None else _ago(checked, self._wall_clock())

    def hear(self) -> None:
        """See what others did since the last call."""
        listed = self._store.get_meta("listed_at")
        if listed != self._seen_listing:
            self._seen_listing = listed
            self.full_at = self._clock() - _ago(listed, self._wall_clock())
            self.listing_s = float(self._store.get_meta("listing_s") or 0)
        checked = self._store.get_meta("checked_at")
        if checked != self._seen_check:
            self._seen_check = checked
            self.checked_at = self._clock() - _ago(checked, self._wall_clock())

    def note_listing(self) -> str:
        """Return the time of a listing that is about to be stored, as `listed_at`."""
        self._seen_listing = str(self._wall_clock())
        return self._seen_listing

    def note_checked(self) -> dict[str, str]:
        """Note that the catalogue is up to date; return what has to be stored."""
        self.checked_at = self._clock()
        self._seen_check = str(self._wall_clock())
        return {"checked_at": self._seen_check, "listing_s": str(self.listing_s)}


def _ago(then: str | None, now: float) -> float:
    """Seconds since a stored time; infinite where there is none."""
    return math.inf if then is None else max(0.0, now - float(then))
