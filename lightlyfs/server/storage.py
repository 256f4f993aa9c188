"""The contract of a place that holds objects, and the keys that objects may have. Pure.

A sample may have any name; its object has that name as its key only where it is a plain relative path. All
other objects have keys below `.lightly/objects`, made of the sample id, so no name is ever joined to a path
unchecked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

RESERVED = ".lightly"
PART_MAX_BYTES = 255
KEY_MAX_BYTES = 1000
"""S3 keys end at 1024 bytes, and a prefix needs room."""


def plain_key(file_name: str) -> str | None:
    """Return `file_name` if it is safe to use as a relative path, else None."""
    try:
        raw = file_name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return None
    parts = raw.split(b"/")
    if len(raw) > KEY_MAX_BYTES or parts[0] == RESERVED.encode() or any(byte < 32 for byte in raw):
        return None
    if any(part in (b"", b".", b"..") or len(part) > PART_MAX_BYTES for part in parts):
        return None
    return file_name


def object_key(sample_id: str) -> str:
    """Return the key of an object if the name of its sample cannot be a path."""
    return f"{RESERVED}/objects/{sample_id}"


def thumbnail_key(sample_id: str) -> str:
    """Return the key of an uploaded thumbnail."""
    return f"{RESERVED}/thumbnails/{sample_id}"


@dataclass(frozen=True)
class ListedObject:
    """One object of a scan: its key, the name of its sample, its size and modification time."""

    key: str
    name: str
    size: int
    modified_ms: int


class Storage(Protocol):
    """Objects by key, with signed URLs for clients. Methods may block; any thread may call them."""

    def scan(self) -> Iterator[ListedObject]:
        """Yield the objects that become samples, in sorted order."""
        ...

    def accepts(self, key: str) -> bool:
        """Return whether a new object may have this key without affecting existing objects."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether an object is stored under `key`."""
        ...

    def read_bytes(self, key: str) -> bytes | None:
        """Return the object, or None."""
        ...

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store an object, replacing an existing one."""
        ...

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        ...

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        ...

    def location(self, name: str) -> str:
        """Return the location of `name`, for tag exports with DATASOURCE_FULL."""
        ...


class Blob(Protocol):
    """An object open for reading: facts that do not change while it is open."""

    size: int
    etag: str
    modified_s: float

    def read_at(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`; fewer only at the end."""
        ...

    def close(self) -> None:
        """Close the object."""
        ...


def bytes_of(blob: Blob | None) -> bytes | None:
    """Read an open object to its end and close it; None for no object."""
    if blob is None:
        return None
    try:
        return blob.read_at(0, blob.size)
    finally:
        blob.close()


class Upload(Protocol):
    """An upload in progress; the object is visible only after `commit`."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def commit(self) -> str:
        """Make the object visible atomically and return its ETag."""
        ...

    def abort(self) -> None:
        """Discard the bytes; no effect after `commit`."""
        ...


class BlobStore(Protocol):
    """A storage whose bytes this server sends and receives itself."""

    def open_blob(self, key: str) -> Blob | None:
        """Open an object, or return None if there is none."""
        ...

    def begin_upload(self, key: str) -> Upload:
        """Start an upload."""
        ...


class LocalStorage(Storage, BlobStore, Protocol):
    """A storage whose signed URLs refer to this server."""
