"""Which bytes are meant: a sample in one version. Pure.

The version is what storage says (ETag, else Last-Modified, and always the size), so bytes of two versions
can never share a cache key or a file handle.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

# the etag of a sample that has no stored object: a version like any other, with no bytes
NO_OBJECT = "none"

_SAMPLE_ID = re.compile(r"[a-f0-9]{24}")


class ContentId(NamedTuple):
    """A sample in one version; `size` in bytes, `etag` as `etag_of` made it."""

    sample_id: str
    etag: str
    size: int

    @property
    def has_object(self) -> bool:
        """Whether the sample has bytes at all."""
        return self.etag != NO_OBJECT

    def key(self) -> str:
        """A file name for this content: the id and 16 hex digits of the version."""
        return _key_of(self)


# every read asks for the key of what it reads, several times
@lru_cache(4_096)
def _key_of(content: ContentId) -> str:
    if not _SAMPLE_ID.fullmatch(content.sample_id):
        raise ValueError(f"not a sample id: {content.sample_id!r}")
    version = hashlib.blake2b(f"{content.size}\0{content.etag}".encode(), digest_size=8).hexdigest()
    return f"{content.sample_id}.{version}"


def etag_of(headers: Mapping[str, str]) -> str:
    """The version a storage answer names, with its lower-case headers; "" where it names none."""
    etag = headers.get("etag", "").strip()
    if etag:
        # a weak tag still changes with the bytes for every storage we know of
        return "e" + etag.removeprefix("W/").strip('"')
    modified = headers.get("last-modified", "").strip()
    return "m" + modified if modified else ""
