"""What the API needs of a place that holds objects, and what the storage endpoint needs of a local one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Found:
    """One object met while scanning: its key, the sample's name, true size, time of change."""

    key: str
    name: str
    size: int
    modified_ms: int


class Storage(Protocol):
    """Objects by key, reached by clients through signed URLs. Methods may block; any thread may call them."""

    def scan(self) -> Iterator[Found]:
        """Yield what becomes a sample, in sorted order."""
        ...

    def accepts(self, key: str) -> bool:
        """Say whether a new object may take this key without touching what is there."""
        ...

    def exists(self, key: str) -> bool:
        """Say whether an object is stored under `key`."""
        ...

    def read_bytes(self, key: str) -> bytes | None:
        """Return the object, or None."""
        ...

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store an object, replacing what was there."""
        ...

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        ...

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        ...

    def location(self, name: str) -> str:
        """Return where `name` is, for tag exports with DATASOURCE_FULL."""
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
        """Let go of the object."""
        ...


class Upload(Protocol):
    """An object being received; nothing is visible before `commit`."""

    def write(self, data: bytes) -> None:
        """Append bytes."""
        ...

    def commit(self) -> str:
        """Make the object visible in one step and return its ETag."""
        ...

    def abort(self) -> None:
        """Forget the bytes; harmless after `commit`."""
        ...


class BlobStore(Protocol):
    """A storage whose bytes this server sends and receives itself."""

    def open_blob(self, key: str) -> Blob | None:
        """Open an object, or return None if there is none."""
        ...

    def begin_upload(self, key: str) -> Upload:
        """Start receiving an object."""
        ...
