"""Many paths in little memory, for each worker of a training has them."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain, islice

# items that are unpacked at once: some ten microseconds, where an image takes a millisecond
_ITEMS_AT_ONCE = 32
# neither can be part of a path
_BETWEEN_PATHS, _BETWEEN_ITEMS = "\0", "\0\0"


class PackedPaths:
    """A sequence of items, each of one path or several, compressed some at a time; cannot be changed.

    `digest` is the same for the same items in the same order.
    """

    def __init__(self, items: Iterable[tuple[str, ...]]) -> None:
        self._pieces: list[bytes] = []
        self._count = 0
        left = iter(items)
        digest = hashlib.blake2b(digest_size=8)
        while some := list(islice(left, _ITEMS_AT_ONCE)):
            piece = _BETWEEN_ITEMS.join(map(_BETWEEN_PATHS.join, some)).encode(errors="surrogateescape")
            digest.update(piece + b"\0\0")
            self._pieces.append(zlib.compress(piece))
            self._count += len(some)
        self.digest = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[str, ...]:
        if number < 0:
            number += self._count
        if not 0 <= number < self._count:
            raise IndexError(f"item {number} of {self._count}")
        piece, place = divmod(number, _ITEMS_AT_ONCE)
        return self._unpack(self._pieces[piece])[place]

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return chain.from_iterable(map(self._unpack, self._pieces))

    @staticmethod
    def _unpack(piece: bytes) -> list[tuple[str, ...]]:
        text = zlib.decompress(piece).decode(errors="surrogateescape")
        return [tuple(item.split(_BETWEEN_PATHS)) for item in text.split(_BETWEEN_ITEMS)]
