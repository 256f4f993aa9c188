"""Objects in a folder: scanned, opened, and received without ever leaving it.

Serving only reads. Uploads appear by rename, so a reader sees the old object or the new one.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import LocalServerError
from .keys import RESERVED
from .signing import UrlSigner
from .storage import Found

_UPLOADS = f"{RESERVED}/uploads"


class FolderBlob:
    """An open file; its ETag comes from size and mtime: it survives restarts and changes with the bytes."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        facts = os.fstat(self._fd)
        self.size = facts.st_size
        self.modified_s = facts.st_mtime
        self.etag = etag_of(facts)

    def read_at(self, start: int, length: int) -> bytes:
        """Return up to `length` bytes from `start`."""
        return os.pread(self._fd, length, start)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class FolderUpload:
    """A temporary file that becomes the object on commit."""

    def __init__(self, temporary: str, target: str) -> None:
        self._temporary = temporary
        self._target = target
        self._file = open(temporary, "xb")  # noqa: SIM115 - closed by commit or abort

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def commit(self) -> str:
        """Rename into place and return the ETag."""
        self._file.flush()
        facts = os.fstat(self._file.fileno())
        self._file.close()
        os.makedirs(os.path.dirname(self._target), exist_ok=True)
        os.replace(self._temporary, self._target)
        return etag_of(facts)

    def abort(self) -> None:
        """Remove the temporary file, if it is still there."""
        self._file.close()
        try:
            os.unlink(self._temporary)
        except FileNotFoundError:
            pass


class FolderStorage:
    """A folder as `Storage` and `BlobStore`. Any thread may use it."""

    def __init__(self, root: Path, signer: UrlSigner) -> None:
        if not root.is_dir():
            raise LocalServerError(f"{root} is not a folder")
        self._root = os.path.realpath(root)
        self._signer = signer

    def scan(self) -> Iterator[Found]:
        """Yield every regular file outside `.lightly`, sorted by path."""
        found = []
        for folder, names, files in os.walk(self._root):
            if folder == self._root and RESERVED in names:
                names.remove(RESERVED)
            found += [one for file in files if (one := self._found(os.path.join(folder, file)))]
        found.sort(key=lambda one: os.fsencode(one.key))
        yield from found

    def _found(self, path: str) -> Found | None:
        try:
            facts = os.stat(path)
        except OSError:
            return None  # a dangling link, or a file that is being removed
        if not stat.S_ISREG(facts.st_mode):
            return None
        key = os.path.relpath(path, self._root)
        return Found(key, key, facts.st_size, max(0, facts.st_mtime_ns) // 1_000_000)

    def accepts(self, key: str) -> bool:
        """Refuse a key whose path exists, runs through a file, or leaves the folder through a link."""
        path = self._path(key)
        if os.path.lexists(path):
            return False
        parent = os.path.dirname(path)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        real = os.path.realpath(parent)
        inside = real == self._root or real.startswith(self._root + os.sep)
        return inside and os.path.isdir(real)

    def exists(self, key: str) -> bool:
        """Say whether there is a file."""
        return os.path.isfile(self._path(key))

    def read_bytes(self, key: str) -> bytes | None:
        """Return the file's bytes, or None."""
        try:
            return Path(self._path(key)).read_bytes()
        except OSError:
            return None

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store bytes as an upload would."""
        upload = self.begin_upload(key)
        upload.write(data)
        upload.commit()

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        return self._signer.sign("GET", key)

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        return self._signer.sign("PUT", key)

    def location(self, name: str) -> str:
        """Return the absolute path the name stands for."""
        return f"{self._root}/{name}"

    def open_blob(self, key: str) -> FolderBlob | None:
        """Open a regular file, or return None."""
        path = self._path(key)
        try:
            return FolderBlob(path) if os.path.isfile(path) else None
        except OSError:
            return None

    def begin_upload(self, key: str) -> FolderUpload:
        """Start receiving into a temporary file on the same disk."""
        folder = self._path(_UPLOADS)
        os.makedirs(folder, exist_ok=True)
        return FolderUpload(os.path.join(folder, secrets.token_hex(12)), self._path(key))

    def _path(self, key: str) -> str:
        # Keys are safe when they are made; this holds even if a signed URL were forged.
        if not key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"not an object key: {key!r}")
        return f"{self._root}/{key}"


def etag_of(facts: os.stat_result) -> str:
    """Return the strong ETag of a file with these facts."""
    return f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
