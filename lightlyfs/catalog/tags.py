"""The tags of a dataset: their names, and which samples each one holds.

A tag is a bit mask over the mappings, which are the ids of all samples in the order in which they were added
(API: TagData.bitMaskData, GET /v1/datasets/{id}/mappings). Samples newer than the mask are not in the tag.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from cachetools import LRUCache, TTLCache

T = TypeVar("T")

ID_BYTES = 12
# a set of a million ids takes some 110 MB
_MAX_MEMBER_SETS = 4
# with a TTL of zero one listing of a tag's folder still asks once, not once a file
_MIN_TTL_S = 2.0


class TagRecord(NamedTuple):
    """A tag as the API lists it; `mask` is hexadecimal, its lowest bit for the first sample."""

    id: str
    name: str
    mask: str

    def version(self) -> str:
        """Return a digest that moves when the tag holds other samples."""
        return hashlib.blake2b(f"{self.id}\0{self.mask}".encode(), digest_size=8).hexdigest()


class TagSource(Protocol):
    """The API as tags see it; any thread may call, and both may raise RequestError."""

    def tags(self) -> Sequence[TagRecord]:
        """Return all tags."""
        ...

    def mapping(self) -> bytes:
        """Return the ids of all samples in the order of the tags' bits, concatenated, ID_BYTES each."""
        ...


def members_of(mask: str, mapping: bytes) -> frozenset[bytes]:
    """Return the ids that a mask (`0x` and hex digits) selects; ignores bits past the end of the mapping."""
    count = len(mapping) // ID_BYTES
    members = int(mask, 16) & ((1 << count) - 1)
    return frozenset(mapping[bit * ID_BYTES : (bit + 1) * ID_BYTES] for bit in _bits_of(members))


def _bits_of(number: int) -> Iterator[int]:
    for index, byte in enumerate(number.to_bytes((number.bit_length() + 7) // 8, "little")):
        if byte:
            yield from (index * 8 + bit for bit in range(8) if byte >> bit & 1)


class Tags:
    """The tags and their members, asked for when they are needed and kept for the TTL.

    Threads: any may call; ten that miss the same thing may ask for it ten times, and no lock is held while
    asking. Methods raise what the API raised.
    """

    def __init__(self, source: TagSource, *, ttl_s: float, clock: Callable[[], float]) -> None:
        self._source = source
        self._lock = threading.Lock()
        # guarded by _lock
        self._tags: TTLCache[str, tuple[TagRecord, ...]] = TTLCache(1, max(ttl_s, _MIN_TTL_S), timer=clock)
        self._mapping: TTLCache[str, bytes] = TTLCache(1, max(ttl_s, _MIN_TTL_S), timer=clock)
        self._members: LRUCache[str, frozenset[bytes]] = LRUCache(_MAX_MEMBER_SETS)

    def all(self) -> tuple[TagRecord, ...]:
        """Return every tag."""
        with self._lock:
            kept = kept_in(self._tags)
        if kept is None:
            kept = tuple(self._source.tags())
            with self._lock:
                self._tags[""] = kept
        return kept

    def find(self, name_or_id: str) -> TagRecord | None:
        """Return the tag of this name, else of this id, or None."""
        tags = self.all()
        by_name = (tag for tag in tags if tag.name == name_or_id)
        return next(by_name, None) or next((tag for tag in tags if tag.id == name_or_id), None)

    def members(self, tag: TagRecord) -> frozenset[bytes]:
        """Return the ids of the samples that a tag holds."""
        version = tag.version()
        with self._lock:
            kept = self._members.get(version)
            mapping = kept_in(self._mapping)
        if kept is not None:
            return kept
        if mapping is None:
            mapping = self._source.mapping()
            with self._lock:
                self._mapping[""] = mapping
        kept = members_of(tag.mask, mapping)
        with self._lock:
            self._members[version] = kept
        return kept

    def forget_all(self) -> None:
        """Ask again for whatever is needed next."""
        with self._lock:
            self._tags.clear()
            self._mapping.clear()
            self._members.clear()


def kept_in(cache: TTLCache[str, T], key: str = "") -> T | None:
    """Return what a cache keeps under a key, or None."""
    try:
        # not `get`, which looks at the clock twice and fails where the time ends in between
        return cache[key]
    except KeyError:
        return None
