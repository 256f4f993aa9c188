"""The folder of a dataset that a mount shows as its root.

Every part of a mount speaks of paths in the dataset. Where a path comes from the kernel or from a command, or
goes there, `Part` turns one kind into the other. The unlisted folder is at the root of every mount. Pure.
"""

from __future__ import annotations

FOLDER = ".lightlyfs"
_BELOW = FOLDER + "/"


def is_view(path: str) -> bool:
    """Return whether a path is the unlisted folder, or in it; no sample can be there."""
    return path.startswith(FOLDER) and (path == FOLDER or path.startswith(_BELOW))


class Part:
    """The folder at `folder`, a path in the dataset without slashes at its ends; "" is the whole dataset."""

    def __init__(self, folder: str = "") -> None:
        self.folder = folder
        self._prefix = folder + "/" if folder else ""

    def inside(self, shown: str) -> str:
        """Return the path in the dataset of a path in the mount."""
        if not self.folder or is_view(shown):
            return shown
        return self._prefix + shown if shown else self.folder

    def shown(self, path: str) -> str | None:
        """Return the path in the mount of a path in the dataset; None where the mount does not show it."""
        if not self.folder or is_view(path):
            return path
        if path.startswith(self._prefix):
            return path[len(self._prefix) :]
        return "" if path == self.folder else None
