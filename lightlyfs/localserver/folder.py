"""Objects in a folder: scanned, opened, and received without ever leaving it.

Serving only reads. Uploads appear by rename, so a reader sees the old object or the new one.
"""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from .beneath import Beneath
from .errors import LocalServerError
from .keys import RESERVED
from .signing import UrlSigner
from .storage import Found

_UPLOADS = f"{RESERVED}/uploads"


class FolderBlob:
    """An open file; its ETag comes from size and mtime: it survives restarts and changes with the bytes."""

    def __init__(self, fd: int, facts: os.stat_result) -> None:
        self._fd = fd
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

    def __init__(self, root: Beneath, key: str) -> None:
        self._root = root
        self._key = key
        self._name = secrets.token_hex(12)
        self._folder = root.open_folder(_UPLOADS, make=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._name, flags, 0o666, dir_fd=self._folder), "wb")
        except BaseException:
            os.close(self._folder)
            raise

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)

    def commit(self) -> str:
        """Rename into place and return the ETag."""
        self._file.flush()
        facts = os.fstat(self._file.fileno())
        self._file.close()
        above, _, name = self._key.rpartition("/")
        target = self._root.open_folder(above, make=True)
        try:
            os.replace(self._name, name, src_dir_fd=self._folder, dst_dir_fd=target)
        finally:
            os.close(target)
        return etag_of(facts)

    def abort(self) -> None:
        """Remove the temporary file, if it is still there."""
        self._file.close()
        if self._folder < 0:
            return
        try:
            os.unlink(self._name, dir_fd=self._folder)
        except FileNotFoundError:
            pass
        finally:
            os.close(self._folder)
            self._folder = -1


class FolderStorage:
    """A folder as `Storage` and `BlobStore`. Any thread may use it."""

    def __init__(self, root: Path, signer: UrlSigner) -> None:
        if not root.is_dir():
            raise LocalServerError(f"{root} is not a folder")
        self._root = Beneath(str(root))
        self._signer = signer

    def scan(self) -> Iterator[Found]:
        """Yield every regular file that is not hidden, sorted by path."""
        found: list[Found] = []
        left = [""]
        while left:
            prefix = left.pop()
            try:
                folder = self._root.open_folder(prefix.rstrip("/"))
            except OSError:
                continue  # it is gone, or became a link
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            left.append(f"{prefix}{entry.name}/")
                        else:
                            found += self._found(prefix + entry.name, entry)
            finally:
                os.close(folder)
        found.sort(key=lambda one: os.fsencode(one.key))
        yield from found

    def _found(self, key: str, entry: os.DirEntry[str]) -> list[Found]:
        try:
            facts = self._facts(key) if entry.is_symlink() else entry.stat(follow_symlinks=False)
        except OSError:
            return []  # a link to nothing or out of the folder, or a file that is being removed
        if not stat.S_ISREG(facts.st_mode):
            return []
        return [Found(key, key, facts.st_size, max(0, facts.st_mtime_ns) // 1_000_000)]

    def _facts(self, key: str) -> os.stat_result:
        blob = self._root.open_file(key)
        try:
            return os.fstat(blob)
        finally:
            os.close(blob)

    def accepts(self, key: str) -> bool:
        """Refuse a key whose path exists, runs through a file, or leaves the folder through a link."""
        path = self._path(key)
        if os.path.lexists(path):
            return False
        above = key
        while above := above.rpartition("/")[0]:
            if os.path.lexists(self._path(above)):
                break
        try:
            os.close(self._root.open_folder(above))
        except OSError:
            return False
        return True

    def exists(self, key: str) -> bool:
        """Say whether there is a file."""
        blob = self.open_blob(key)
        if blob is not None:
            blob.close()
        return blob is not None

    def read_bytes(self, key: str) -> bytes | None:
        """Return the file's bytes, or None."""
        blob = self.open_blob(key)
        if blob is None:
            return None
        try:
            return blob.read_at(0, blob.size)
        finally:
            blob.close()

    def write_bytes(self, key: str, data: bytes) -> None:
        """Store bytes as an upload would."""
        upload = self.begin_upload(key)
        try:
            upload.write(data)
            upload.commit()
        finally:
            upload.abort()

    def read_url(self, key: str) -> str:
        """Return a signed URL for GET."""
        return self._signer.sign("GET", key)

    def write_url(self, key: str) -> str:
        """Return a signed URL for PUT."""
        return self._signer.sign("PUT", key)

    def location(self, name: str) -> str:
        """Return the absolute path the name stands for."""
        return f"{self._root.root}/{name}"

    def open_blob(self, key: str) -> FolderBlob | None:
        """Open a regular file, or return None."""
        self._path(key)
        try:
            fd = self._root.open_file(key)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise
            return None
        facts = os.fstat(fd)
        if stat.S_ISREG(facts.st_mode):
            return FolderBlob(fd, facts)
        os.close(fd)
        return None

    def begin_upload(self, key: str) -> FolderUpload:
        """Start receiving into a temporary file on the same disk."""
        self._path(key)
        return FolderUpload(self._root, key)

    def _path(self, key: str) -> str:
        # Keys are safe when they are made; this holds even if a signed URL were forged.
        if not key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"not an object key: {key!r}")
        return f"{self._root.root}/{key}"


def etag_of(facts: os.stat_result) -> str:
    """Return the strong ETag of a file with these facts."""
    return f'"{facts.st_mtime_ns:x}-{facts.st_size:x}"'
