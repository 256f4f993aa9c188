"""Paths below a folder, opened so that no link leads out of it, whoever changes the folder meanwhile.

The last word is a walk from the folder down, one component and one descriptor at a time, that follows no
link. A link that stays inside is resolved first and what it stands for is walked; one that leads out, or to a
hidden place, is not there.
"""

import os
from collections.abc import Sequence

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# without O_NONBLOCK a pipe would wait for its writer
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK


class Beneath:
    """A folder. Any thread may use it; `OSError` where a path is not there."""

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)

    def open_file(self, key: str) -> int:
        """Return a descriptor of a file; the caller closes it."""
        try:
            return self._open_file(key.split("/"))
        except FileNotFoundError:
            raise
        except OSError:
            pass  # a link is in the way, or something that will be there a second time
        return self._open_file(self._resolved(key))

    def open_folder(self, key: str, *, make: bool = False) -> int:
        """Return a descriptor of a folder, "" the root; `make` makes what is missing of it."""
        parts = key.split("/") if key else []
        try:
            return self._open_folder(parts, make)
        except FileNotFoundError:
            raise
        except OSError:
            pass  # a link is in the way, or something that will be there a second time
        return self._open_folder(self._resolved(key), make)

    def _open_file(self, parts: Sequence[str]) -> int:
        folder = self._open_folder(parts[:-1], False)
        try:
            return os.open(parts[-1], _FILE, dir_fd=folder)
        finally:
            os.close(folder)

    def _open_folder(self, parts: Sequence[str], make: bool) -> int:
        folder = os.open(self.root, _FOLDER)
        for part in parts:
            try:
                below = _entered(folder, part, make)
            finally:
                os.close(folder)
            folder = below
        return folder

    def _resolved(self, key: str) -> list[str]:
        """The components of what a path with links stands for now, and maybe not when they are walked."""
        real = os.path.realpath(f"{self.root}/{key}")
        parts = os.path.relpath(real, self.root).split(os.sep)
        if any(part.startswith(".") for part in parts):
            raise FileNotFoundError(f"{key} leads out of the folder or to a hidden place")
        return parts


def _entered(folder: int, part: str, make: bool) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=folder)
    except FileNotFoundError:
        if not make:
            raise
    try:
        os.mkdir(part, dir_fd=folder)
    except FileExistsError:
        pass  # somebody else made it
    return os.open(part, _FOLDER, dir_fd=folder)
