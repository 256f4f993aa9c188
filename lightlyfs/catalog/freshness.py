"""Decides when a catalogue has to be checked or listed again. Pure: `refresher` acts on what it says.

Other processes report through the store, in wall-clock time; `hear` converts to seconds of a monotonic clock.
Not thread-safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# 5,000 rows decode in about 10 ms; 25,000 would hold the interpreter lock for 80 ms
DEFAULT_PAGE_SIZE = 5_000
# after a failed check the API is left alone this long, or the TTL where that is shorter, but never less
_RETRY_AFTER_S = 5.0
_MIN_RETRY_AFTER_S = 1.0
# after a refusal (401, 403, 404): each minute at first, later each ten
_REFUSED_RETRY_S, _REFUSED_TRIES, _REFUSED_LATER_S = 60.0, 5, 600.0
# with a TTL of zero a full listing runs now and then, taking at most a twentieth of the time
_LISTINGS_SHARE = 20

# a value that is stored with the catalogue, by its key
Stored = Callable[[str], str | None]

# stored while a mount of this machine has made changes that no listing shows yet
UNLISTED = "unlisted"


@dataclass(frozen=True)
class FreshnessConfig:
    """How often to ask, and in what portions; times in seconds, `ttl_s` may be infinite."""

    ttl_s: float = 60.0
    page_size: int = DEFAULT_PAGE_SIZE
    parallel_pages: int = 8


class Freshness:
    """When a catalogue was checked and listed, by any process, and when the API may be asked again."""

    def __init__(
        self,
        config: FreshnessConfig,
        stored: Stored,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """Take what is stored as due for one check, unless the TTL is infinite."""
        self._config = config
        self._stored = stored
        self.clock = clock
        self._wall_clock = wall_clock
        self._seen_check = stored("checked_at")
        self._seen_listing = stored("listed_at")
        trusted = math.isinf(config.ttl_s) and self.is_listed and not stored(UNLISTED)
        self._checked_at = clock() if trusted else -math.inf
        self._full_at = clock() - _ago(self._seen_listing, wall_clock())
        self.listing_s = float(stored("listing_s") or 0)
        self._retry_at = -math.inf
        self._refusals = 0
        # whether the API refuses us (401, 403, 404), so that only the store answers for some minutes
        self.stopped = False

    @property
    def is_listed(self) -> bool:
        """Whether there is a complete listing, as far as was heard."""
        return self._seen_listing is not None

    def age_s(self) -> float | None:
        """Return the seconds since the catalogue was last known to be true, over mounts; None if never."""
        checked = self._stored("checked_at")
        return None if checked is None else _ago(checked, self._wall_clock())

    # decisions

    def is_due(self) -> bool:
        """Return whether the TTL is over."""
        return self.clock() - self._checked_at >= self._config.ttl_s

    def may_ask(self) -> bool:
        """Return whether the API may be asked again after a failure."""
        return self.clock() >= self._retry_at

    def needs_listing(self) -> bool:
        """Return whether only a full listing can tell what is true."""
        return math.isinf(self._full_at) or bool(self._stored(UNLISTED))

    def was_checked_elsewhere(self) -> bool:
        """Return whether another process checked recently, so that this one need not; after `hear`."""
        return not self.needs_listing() and not self.is_due()

    def rows_stand(self) -> bool | None:
        """Return whether the rows may be believed by their age alone; None where some have to be compared."""
        listed_ago_s = self.clock() - self._full_at
        if not self._config.ttl_s:
            return listed_ago_s < _LISTINGS_SHARE * self.listing_s
        return True if listed_ago_s < self._config.ttl_s else None  # listed by another process

    # what happened

    def hear(self) -> None:
        """Take note of what other processes did since the last call."""
        listed = self._stored("listed_at")
        if listed != self._seen_listing:
            self._seen_listing = listed
            self._full_at = self.clock() - _ago(listed, self._wall_clock())
            self.listing_s = float(self._stored("listing_s") or 0)
        checked = self._stored("checked_at")
        if checked != self._seen_check:
            self._seen_check = checked
            self._checked_at = self.clock() - _ago(checked, self._wall_clock())

    def distrust(self) -> None:
        """Make a full listing due with the next access."""
        self.hear()
        self._full_at = self._checked_at = -math.inf

    def start_over(self) -> None:
        """Make a full listing due at once, because the store lost its rows."""
        self.distrust()
        self._retry_at = -math.inf

    def resume(self) -> None:
        """Make a check due with the next access, because the API may accept requests again."""
        self.stopped = False
        self._retry_at = self._checked_at = -math.inf

    def note_failure(self, *, stop: bool) -> None:
        """Leave the API alone for a while; longer where it refused us, to `stop`."""
        self.stopped = stop
        pause_s = max(_MIN_RETRY_AFTER_S, min(_RETRY_AFTER_S, self._config.ttl_s))
        if stop:
            self._refusals += 1
            pause_s = _REFUSED_RETRY_S if self._refusals <= _REFUSED_TRIES else _REFUSED_LATER_S
        self._retry_at = self.clock() + pause_s

    def note_success(self) -> None:
        """Note that the API answered."""
        self.stopped = False
        self._refusals = 0

    def stamp_listing(self) -> str:
        """Return the time of a listing that is about to be stored, as `listed_at`."""
        self._seen_listing = str(self._wall_clock())
        return self._seen_listing

    def note_listed(self, started_at: float) -> None:
        """Note that a listing, begun at this time, is stored."""
        self.listing_s = self.clock() - started_at
        self._full_at = self.clock()

    def note_checked(self) -> dict[str, str]:
        """Note that the catalogue is up to date; return what has to be stored."""
        self._checked_at = self.clock()
        self._seen_check = str(self._wall_clock())
        return {"checked_at": self._seen_check, "listing_s": str(self.listing_s)}


def _ago(then: str | None, now: float) -> float:
    """Return the seconds since a stored time; infinite where there is none."""
    return math.inf if then is None else max(0.0, now - float(then))
