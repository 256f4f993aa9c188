"""Programs that look at everything: desktops, indexers, virus scanners; what they ask costs no fetch.

What they probe for is answered without the network, and their opens cost nothing before they read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from lightlyfs.errors import NotPermitted

# seen in traces of file managers, GIO, macOS and Windows clients
_PROBED = frozenset(
    {
        ".hidden",
        ".directory",
        ".comments",
        ".metadata",
        ".sh_thumbnails",
        ".xdg-volume-info",
        ".localized",
        ".DS_Store",
        ".git",
        ".svn",
        "autorun.inf",
        "Thumbs.db",
        "thumbs.db",
        "desktop.ini",
        "Desktop.ini",
        "AutoRun.inf",
        "lost+found",
    }
)
_PROBED_PREFIXES = (".Trash", "._", ".fuse_hidden", ".goutputstream-")

# these open files that they never read, or read everything: neither should wait for storage at open
_OPENERS = frozenset(
    {
        "dolphin",
        "kioslave5",
        "kio_file",
        "thunar",
        "Thunar",
        "tumblerd",
        "nautilus",
        "pcmanfm",
        "caja",
        "nemo",
        "baloo_file",
        "baloo_file_extr",
        "tracker-extract",
        "tracker-miner-f",
        "localsearch-3",
        "updatedb",
        "updatedb.mlocat",
        "plocate",
        "clamd",
        "clamscan",
    }
)


# these show pictures of the files of a directory they open
_FILE_MANAGERS = frozenset(
    {"dolphin", "kioslave5", "kio_file", "thunar", "Thunar", "nautilus", "pcmanfm", "caja", "nemo", "gthumb"}
)


# these show one picture after another to a person
_VIEWERS = frozenset(
    {
        *("eog", "eom", "feh", "geeqie", "gthumb", "gwenview", "imv-wayland", "imv-x11", "loupe"),
        *("lximage-qt", "mirage", "nomacs", "nsxiv", "photoqt", "pix", "qimgv", "qview", "ristretto"),
        *("gpicview", "shotwell-viewer", "sxiv", "viewnior", "xviewer"),
    }
)


# these read whatever they find
_CRAWLERS = ("baloo_", "tracker-", "localsearch", "updatedb", "plocate", "recollindex", "beagled", "mlocate")


def is_crawler(program: str) -> bool:
    """Return whether a program indexes all files it finds."""
    return program.startswith(_CRAWLERS)


def is_file_manager(program: str) -> bool:
    """Return whether a program (by the kernel's name) shows pictures of the files in a directory."""
    return program in _FILE_MANAGERS


def is_viewer(program: str) -> bool:
    """Return whether a program (by the kernel's name) shows pictures to a person, one after another."""
    return program in _VIEWERS


def is_probe(path: str) -> bool:
    """Return whether a path's last part is a name that programs try in every directory."""
    name = path.rpartition("/")[2]
    return name in _PROBED or name.startswith(_PROBED_PREFIXES)


def opens_without_reading(program: str) -> bool:
    """Return whether a program (by the kernel's name, of 15 bytes) opens files it never reads."""
    return program in _OPENERS


# enough to index the words of a few documents, and some pictures
BUDGET_BYTES = 64 << 20
_REFILL_S = 3600.0


class CrawlBudget:
    """Counts what crawlers have fetched, all of them together; it is refilled each hour.

    `program()` names the program of the call under way. What is in the cache costs nothing. Any thread may
    call.
    """

    def __init__(self, program: Callable[[], str], clock: Callable[[], float]) -> None:
        self._program = program
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock
        self._left = BUDGET_BYTES
        self._refilled_at = clock()

    def spend(self, size: int) -> None:
        """Count bytes that are about to be fetched; NotPermitted where a crawler has had its share."""
        program = self._program()
        if not is_crawler(program):
            return
        with self._lock:
            if self._clock() - self._refilled_at >= _REFILL_S:
                self._left, self._refilled_at = BUDGET_BYTES, self._clock()
            if size > self._left:
                raise NotPermitted(
                    f"{program} has fetched its share of this hour; exclude the mount from what it indexes"
                )
            self._left -= size
