"""The last few blocks that the disk did not take, in memory: a block is read in several pieces."""

from __future__ import annotations

import threading
from collections import OrderedDict

# some streams with their read-ahead
MEMORY_BYTES = 32 << 20


class Overflow:
    """Blocks by content and number, the oldest dropped first; any thread may call."""

    def __init__(self, limit_bytes: int = MEMORY_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        # guarded by _lock
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def __contains__(self, place: tuple[str, int]) -> bool:
        return place in self._blocks

    def get(self, key: str, block: int) -> bytes | None:
        """The block, or None."""
        return self._blocks.get((key, block))

    def put(self, key: str, block: int, data: bytes) -> None:
        """Keep a block, at the cost of older ones."""
        with self._lock:
            self._bytes += len(data) - len(self._blocks.pop((key, block), b""))
            self._blocks[key, block] = data
            while self._bytes > self._limit_bytes:
                self._bytes -= len(self._blocks.popitem(last=False)[1])

    def discard(self, key: str, block: int) -> None:
        """Forget a block, if it is here."""
        with self._lock:
            self._bytes -= len(self._blocks.pop((key, block), b""))
