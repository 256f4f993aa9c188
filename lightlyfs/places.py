"""Where files live on this machine, and that they are ours alone.

Blocks and the catalogue live in the user's cache directory, sockets in the runtime directory. A directory
that somebody else owns or may write to is refused: whoever can write there could have us serve their bytes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import platformdirs

from lightlyfs.errors import SettingsError

APP = "lightlyfs"
_MAX_RUNTIME_BYTES = 70


def cache_root(chosen: Path | None) -> Path:
    """The directory for everything that may be lost; made if missing."""
    return _own_directory(chosen or Path(platformdirs.user_cache_dir(APP)))


def runtime_root() -> Path:
    """The directory for sockets; made if missing."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    # the path of a socket may have 107 bytes, of which the socket's own name takes some thirty
    if base and os.access(base, os.W_OK) and len(os.fsencode(base)) < _MAX_RUNTIME_BYTES:
        return _own_directory(Path(base) / APP)
    return _own_directory(Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}")


def socket_path(mountpoint: Path) -> Path:
    """The control socket of a mount."""
    digest = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return runtime_root() / f"{digest}.sock"


def server_directory(root: Path, server: str) -> Path:
    """What is kept of one API host."""
    parts = urlsplit(server)
    host = "".join(c if c.isalnum() or c in ".-" else "_" for c in parts.netloc.rpartition("@")[2])
    return _own_directory(root / host)


class DatasetPlace:
    """The directory of one dataset, locked for this process as long as it is open.

    Where another mount holds it, a private one that vanishes at the end takes its place, and `shared`
    says so.
    """

    def __init__(self, parent: Path, dataset_id: str, *, temporary: bool = False) -> None:
        self.in_use_elsewhere = False
        self._lock_fd = -1
        self.temporary = temporary
        if not temporary:
            self.path = _own_directory(parent / dataset_id)
            self.in_use_elsewhere = not self._lock()
        if temporary or self.in_use_elsewhere:
            self.temporary = True
            self.path = Path(tempfile.mkdtemp(prefix=f"{dataset_id}.", dir=parent))

    def close(self) -> None:
        """Let go of the directory, and delete a private one."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        if self.temporary:
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> DatasetPlace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> bool:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._lock_fd = os.open(self.path / "lock", flags, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            self._lock_fd = -1
            return False
        return True


def _own_directory(path: Path) -> Path:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SettingsError(f"{path} cannot be used as a directory: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise SettingsError(f"{path} is not a directory; choose another with --cache-dir")
    if found.st_uid != os.getuid():
        raise SettingsError(f"{path} belongs to another user; choose another with --cache-dir")
    if found.st_mode & 0o022:
        raise SettingsError(f"others may write to {path}; close it with: chmod 700 {path}")
    return path
