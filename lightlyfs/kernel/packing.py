"""Packs attributes and directory listings into the C structures that the kernel reads.

A directory of 100,000 files takes a fraction of a second to pack, once per generation of the catalogue and
not per `ls`. After that a page costs one call of libfuse's filler per entry.
"""

from __future__ import annotations

import ctypes
import logging
import stat
import struct
import threading
from collections.abc import Callable
from typing import Any

from cachetools import LRUCache

from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr, Ownership
from lightlyfs.fs.namespace import Listing

log = logging.getLogger(__name__)

# listings kept packed; one of 100,000 files takes some 25 MB
_MAX_KEPT_BYTES = 32 << 20
# Python's share of an entry: its name and the place of it in the list
_NAME_BYTES = 80
_BLOCK_BYTES = 4096

# the fields that are set, in the order `Packer` gives their values; all others are zero
_FIELDS = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blksize", "st_blocks")
_TIMES = ("st_atimespec", "st_mtimespec", "st_ctimespec")
_CODES = {2: "H", 4: "I", 8: "Q"}
_SIGNED_CODES = {4: "i", 8: "q"}  # of times, which may be before 1970


def mode_of(attr: Attr, owner: Ownership) -> int:
    """Return the kind and the permissions of a file, as `st_mode` holds them."""
    if attr.is_directory:
        return stat.S_IFDIR | (owner.directory_mode if attr.exact is None else attr.exact.mode)
    if attr.exact is not None:
        return stat.S_IFREG | attr.exact.mode
    return stat.S_IFLNK | 0o777 if attr.is_link else stat.S_IFREG | owner.file_mode


def links_of(attr: Attr) -> int:
    """Return the number of links: 1 for directories, which stands for "not counted"."""
    return 1 if attr.exact is None else attr.exact.links


def times_of(attr: Attr) -> tuple[int, int, int]:
    """Return the times of access, content and change, in nanoseconds."""
    if attr.exact is not None:
        return attr.exact.atime_ns, attr.exact.mtime_ns, attr.exact.ctime_ns
    mtime_ns = attr.mtime * 1_000_000_000
    return mtime_ns, mtime_ns, attr.ctime_ns or mtime_ns


class PackedListing:
    """A directory ready to be handed out; entry i has name i and the stat structure i.

    The attributes of an entry count only where `known[i]` is set; elsewhere the kernel has to ask.
    """

    def __init__(
        self, generation: int, names: list[bytes], known: bytearray, stats: bytearray, stat_bytes: int
    ) -> None:
        self.generation = generation
        self.names = names
        self.known = known
        self.stat_bytes = stat_bytes
        self._stats = (ctypes.c_char * len(stats)).from_buffer(stats)  # keeps the bytes where they are
        self.address = ctypes.addressof(self._stats)

    @property
    def memory_bytes(self) -> int:
        """About how much memory it takes."""
        return len(self.names) * (self.stat_bytes + _NAME_BYTES) + 1


class Packer:
    """Packs for one layout of `struct stat`; any thread may call."""

    def __init__(self, stat_type: type[ctypes.Structure], ownership: Ownership) -> None:
        self._ownership = ownership
        self._layout, self._order = _layout_of(stat_type)
        self._lock = threading.Lock()
        # guarded by _lock
        self._kept: LRUCache[str, PackedListing] = LRUCache(
            _MAX_KEPT_BYTES, getsizeof=lambda listing: listing.memory_bytes
        )

    @property
    def stat_bytes(self) -> int:
        """The size of one stat structure."""
        return self._layout.size

    def pack(self, attr: Attr) -> bytes:
        """Return one stat structure."""
        return self._layout.pack(*self._values(attr))

    def listing(self, path: str, generation: int, read: Callable[[str], Listing]) -> PackedListing:
        """Return a packed directory, cached if it was packed in this generation; -1 is never cached."""
        with self._lock:
            kept = self._kept.get(path)
        if kept is not None and kept.generation == generation >= 0:
            return kept
        packed = self._pack_listing(read(path))
        with self._lock:
            if packed.generation >= 0 and packed.memory_bytes <= _MAX_KEPT_BYTES:
                self._kept[path] = packed
        return packed

    def _pack_listing(self, listing: Listing) -> PackedListing:
        dots = [(".", Attr(listing.ino, True, 0, 0)), ("..", Attr(listing.parent_ino, True, 0, 0))]
        entries = dots + listing.entries
        size, pack_into, values = self._layout.size, self._layout.pack_into, self._values
        stats = bytearray(size * len(entries))
        known = bytearray(_is_lasting(attr) for _, attr in entries)
        for index, (name, attr) in enumerate(entries):
            try:
                pack_into(stats, index * size, *values(attr))
            except struct.error:
                log.warning("the attributes of %r cannot be shown: %r", name, attr)
                known[index] = 0  # a lookup of this entry alone raises the error
        names = [name.encode() for name, _ in entries]
        return PackedListing(listing.generation, names, known, stats, size)

    def _values(self, attr: Attr) -> list[int]:
        owner = self._ownership
        size, mtime = max(attr.size, 0), attr.mtime
        head = attr.ino, mode_of(attr, owner), links_of(attr), owner.uid, owner.gid
        tail = size, _BLOCK_BYTES, -(-size // 512)
        if attr.exact is None and not attr.ctime_ns:
            times = mtime, mtime, mtime, 0, 0, 0
        else:
            (a, ans), (m, mns), (c, cns) = (divmod(ns, 1_000_000_000) for ns in times_of(attr))
            times = a, m, c, ans, mns, cns
        values = head + tail + times
        return [values[index] for index in self._order]


def _is_lasting(attr: Attr) -> bool:
    """Return whether attributes may be given with a listing, which the kernel takes for the newest there are.

    Those of a file of this machine may be older than its last write by the time they are handed out.
    """
    if attr.exact is not None and not attr.is_directory:
        return False
    return attr.size != UNKNOWN_SIZE and not attr.is_guess


def _layout_of(stat_type: Any) -> tuple[struct.Struct, list[int]]:
    """Return the structure as one `struct` format with padding, and which value goes where."""
    fields = [(getattr(stat_type, name).offset, getattr(stat_type, name).size) for name in _FIELDS]
    word = ctypes.sizeof(ctypes.c_long)
    fields += [(getattr(stat_type, name).offset, word) for name in _TIMES]
    fields += [(getattr(stat_type, name).offset + word, word) for name in _TIMES]
    order = sorted(range(len(fields)), key=lambda index: fields[index][0])
    text, position = "=", 0
    for index in order:
        offset, size = fields[index]
        codes = _CODES if index < len(_FIELDS) else _SIGNED_CODES
        text += f"{offset - position}x{codes[size]}"
        position = offset + size
    return struct.Struct(f"{text}{ctypes.sizeof(stat_type) - position}x"), order
