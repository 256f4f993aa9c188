"""Fills the desktop's thumbnail cache, so that a folder of images is shown without fetching one.

When a file manager opens a directory, the server's thumbnails of its samples are put where the freedesktop
thumbnail specification has every file manager look first, in the order of names, ahead of its own reading.
Both spellings of a URI get an entry: GLib escapes `;`, `[` and `]`, KDE leaves them bare.

Threads: any may call; the work is done in a pool of its own. Failures are logged and skipped, for the file
manager then makes the picture itself.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.errors import LightlyFsError, MalformedAnswer, NotFound

log = logging.getLogger(__name__)

# what file managers read; larger ones are read only where these are missing, and would outlive a change
_FOLDERS = ("normal", "large")
_ALL_FOLDERS = (*_FOLDERS, "x-large", "xx-large")
_SIDE_PIXELS = 128
# a PNG begins with this, and its header ends where further chunks may stand
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_HEADER_BYTES = 33
_GLIB_SAFE = "/!$&'()*+,-.:=@_~"
_KDE_SAFE = _GLIB_SAFE + ";[]"
# some 18 KB each, twice: a desktop's cache is not meant for a dataset of a million
MAX_ENTRIES = 20_000
MAX_BYTES = 512 << 20
# directories that wait, the last opened first; and how many samples in a row may have no thumbnail
_MAX_WAITING = 8
_MAX_WITHOUT = 16
# file managers soon go through all files, and read those without an entry whole
WORKERS = 32
# and fewer go on behind the file manager's back, which asks for the attributes of each file by then
_WORKERS_BEHIND = 4
# so they see the names of a directory only when its entries are there, for as long as those come quickly
_HOLD_S = 10.0
_HOLD_WITHOUT_ONE_S = 1.0
_HOLD_STEP_S = 0.02


class PrefillStats(NamedTuple):
    """Entries written since the mount began, those that were there, and samples without a thumbnail."""

    written: int
    kept: int
    without: int


def entry_names(path: str) -> list[tuple[str, str]]:
    """Return the URIs of a file, as programs spell them, each with the file name of its entry."""
    raw = os.fsencode(path)
    uris = dict.fromkeys("file://" + quote(raw, safe=safe) for safe in (_GLIB_SAFE, _KDE_SAFE))
    return [(uri, hashlib.md5(uri.encode(), usedforsecurity=False).hexdigest() + ".png") for uri in uris]


def entry_of(png: bytes, uri: str, mtime: int) -> bytes:
    """Return a picture as the entry of a file with this modification time, in whole seconds."""
    texts = {"Thumb::URI": uri, "Thumb::MTime": str(mtime), "Software": "lightlyfs"}
    chunks = b"".join(_text_chunk(key, value) for key, value in texts.items())
    small = _fitted(png)
    return small[:_HEADER_BYTES] + chunks + small[_HEADER_BYTES:]


def _text_chunk(key: str, value: str) -> bytes:
    body = b"tEXt" + key.encode("latin-1") + b"\0" + value.encode("latin-1")
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _fitted(png: bytes) -> bytes:
    """Return a PNG as small as an entry has to be; it is encoded again only where it is larger."""
    if not png.startswith(_PNG_START):
        raise ValueError("not a PNG")
    width, height = struct.unpack(">II", png[len(_PNG_START) : len(_PNG_START) + 8])
    if max(width, height) <= _SIDE_PIXELS:
        return png
    from PIL import Image

    out = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        image.thumbnail((_SIDE_PIXELS, _SIDE_PIXELS))
        image.save(out, "PNG", compress_level=3)
    return out.getvalue()


def mtime_of(entry: Path) -> int | None:
    """Return the modification time that an entry is for; None where it is none, or damaged."""
    from PIL import Image

    try:
        with Image.open(entry, formats=["PNG"]) as image:
            return int(image.info.get("Thumb::MTime", ""))
    except Exception:  # Pillow raises whatever its decoders raise
        return None


def thumbnail_cache(environ_cache: str | None, home: Path) -> Path | None:
    """Return the user's thumbnail cache; None where it is another user's, for root may mount for others."""
    parent = Path(environ_cache) if environ_cache else home / ".cache"
    for path in (parent / "thumbnails", parent, parent.parent):
        try:
            found = path.lstat()
        except OSError:
            continue
        return parent / "thumbnails" if found.st_uid == os.getuid() and not path.is_symlink() else None
    return None


class ThumbnailPrefill:
    """Follows file managers through directories.

    `places(path)` says where a sample is in the file system. `samples(directory, after)` gives some samples
    of a directory behind a name, with their paths, from memory or the local disk. `picture(sample)` gives a
    PNG and may wait; it raises NotFound where there is none to be had without fetching the image.
    """

    def __init__(
        self,
        cache: Path,
        places: Callable[[str], list[str]],
        samples: Callable[[str, str], list[tuple[str, SampleEntry]]],
        picture: Callable[[SampleEntry], bytes],
        executor: Executor,
        stopped: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._places = places
        self._samples = samples
        self._picture = picture
        self._executor = executor
        self._stopped = stopped
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock: the directories to go through, with where in them, the latest last
        self._waiting: OrderedDict[str, Iterator[tuple[str, SampleEntry]]] = OrderedDict()
        self._filling: dict[str, int] = {}  # how many of each are being seen to
        self._workers = self._wanted = 0
        self._done: dict[int, int] = {}  # the time of each sample that was seen to
        self._in_a_row = 0
        self._bytes = 0
        self._stats = PrefillStats(0, 0, 0)

    def stats(self) -> PrefillStats:
        """Return what was done since the mount began."""
        with self._lock:
            return self._stats

    def opened(self, directory: str, wait: Callable[[float], None]) -> None:
        """Fill the directory that a file manager opened, and hold the caller while that goes quickly.

        `wait(seconds)` sleeps, or raises what ends the caller's wait.
        """
        if not self._begin(directory):
            return
        try:
            self._hold(directory, wait)
        finally:
            with self._lock:
                self._wanted = _WORKERS_BEHIND

    def _hold(self, directory: str, wait: Callable[[float], None]) -> None:
        started = moved_at = self._clock()
        seen = -1
        while self._is_under_way(directory) and self._clock() - started < _HOLD_S:
            moved = sum(self.stats())
            if moved != seen:
                seen, moved_at = moved, self._clock()
            elif self._clock() - moved_at > _HOLD_WITHOUT_ONE_S:
                break
            wait(_HOLD_STEP_S)

    def _is_under_way(self, directory: str) -> bool:
        with self._lock:
            return directory in self._waiting or bool(self._filling.get(directory))

    def _begin(self, directory: str) -> bool:
        with self._lock:
            if self._is_full_locked():
                return False
            self._waiting.pop(directory, None)
            self._waiting[directory] = self._walk(directory)
            while len(self._waiting) > _MAX_WAITING:
                self._waiting.popitem(last=False)
            wanted = WORKERS - self._workers
            self._workers = self._wanted = WORKERS
        for _ in range(wanted):
            try:
                self._executor.submit(self._work)
            except RuntimeError:
                return False  # the mount is being taken down
        return True

    def changed(self, paths: tuple[str, ...]) -> None:
        """Remove the entries, in all sizes, of samples that changed."""
        for path in paths:
            self._remove(path, _ALL_FOLDERS)

    def _remove(self, path: str, folders: Iterable[str]) -> None:
        for place in self._places(path):
            for _, name in entry_names(place):
                for folder in folders:
                    with suppress(OSError):
                        (self._cache / folder / name).unlink()

    # in the pool

    def _work(self) -> None:
        while (found := self._next()) is not None:
            directory, path, sample = found
            try:
                self._fill(path, sample)
            except (LightlyFsError, OSError, ValueError) as error:
                log.info("no thumbnail for %s: %s", path, error)
            except Exception:
                log.exception("no thumbnail for %s", path)
            finally:
                with self._lock:
                    self._filling[directory] -= 1
                    if not self._filling[directory]:
                        del self._filling[directory]

    def _next(self) -> tuple[str, str, SampleEntry] | None:
        with self._lock:
            while self._workers <= self._wanted and self._waiting and not self._is_over_locked():
                directory = next(reversed(self._waiting))
                for path, sample in self._waiting[directory]:
                    if self._done.get(sample.ino) != sample.mtime:
                        self._done[sample.ino] = sample.mtime
                        self._filling[directory] = self._filling.get(directory, 0) + 1
                        return directory, path, sample
                self._waiting.pop(directory, None)
            self._workers -= 1
        return None

    def _is_over_locked(self) -> bool:
        return self._stopped() or self._is_full_locked()

    def _is_full_locked(self) -> bool:
        return (
            self._stats.written >= MAX_ENTRIES or self._bytes >= MAX_BYTES or self._in_a_row >= _MAX_WITHOUT
        )

    def _walk(self, directory: str) -> Iterator[tuple[str, SampleEntry]]:
        last = ""
        while some := self._samples(directory, last):
            yield from some
            last = some[-1][1].name

    def _fill(self, path: str, sample: SampleEntry) -> None:
        missing = [
            (uri, self._cache / folder / name)
            for place in self._places(path)
            for uri, name in entry_names(place)
            for folder in _FOLDERS
            if mtime_of(self._cache / folder / name) != sample.mtime
        ]
        if not missing:
            self._count(kept=1)
            return
        try:
            png = self._picture(sample)
        except (NotFound, MalformedAnswer):
            self._count(without=1)
            return
        made: dict[str, bytes] = {}
        for uri, place in missing:
            if uri not in made:
                made[uri] = entry_of(png, uri, sample.mtime)
            _write(place, made[uri])
        written = len(missing) * len(png)
        # an entry of an older picture in a larger size would be preferred to ours, and refused
        self._remove(path, _ALL_FOLDERS[len(_FOLDERS) :])
        self._count(written=1, bytes_=written)

    def _count(self, *, written: int = 0, kept: int = 0, without: int = 0, bytes_: int = 0) -> None:
        with self._lock:
            now = self._stats
            self._stats = PrefillStats(now.written + written, now.kept + kept, now.without + without)
            self._bytes += bytes_
            self._in_a_row = self._in_a_row + without if without else 0


def _write(place: Path, entry: bytes) -> None:
    """Write an entry so that no program sees a part of it."""
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(entry)
        os.replace(temporary, place)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
