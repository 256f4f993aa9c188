"""Reads that need no open handle: by path, and of cached files whose descriptor a program gets.

Once storage has reported every sample, a read-only mount needs no OPEN requests: the kernel keeps the pages
of a file from one open to the next, and a second epoch never reaches this process. From then on there are no
handles. So this module keeps the attributes and the content of a path consistent: a size is shown only after
storage reported it, and the version of a path stays the same until its attributes are shown again.

Threads: any may call. Single operations on the dictionary of pins are atomic; a lost one costs a lookup.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from lightlyfs.blocks import NO_OBJECT, ContentId, Span, block_count
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.errors import ContentChanged, IsADirectory, RequestError, SizeUnknown
from lightlyfs.fetch.reader import Reader
from lightlyfs.fetch.transfers import NotBrought
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr, attr_of_sample
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.samples import Samples, content_of, need_object

# versions that are held for paths that were read; of others the catalogue's version counts
_MAX_PINS = 100_000
# paths per batch of invalidations that the kernel gets
_FORGOTTEN_AT_ONCE = 1_000
# a path may have changed since it was read, which its first read detects; the second read is final
_TRIES = 2


class _Pin(NamedTuple):
    """The version that reads of a path give, and the generation of the catalogue that was asked."""

    generation: int
    content: ContentId


class PathReads:
    """What a path shows and reads, on a mount without handles.

    `settled()` says whether storage has reported every sample. `forget(paths)` tells the kernel that what it
    knows of these paths is outdated.
    """

    def __init__(
        self,
        namespace: Namespace,
        samples: Samples,
        *,
        settled: Callable[[], bool],
        forget: Callable[[tuple[str, ...] | None], bool],
    ) -> None:
        self._names = namespace
        self._samples = samples
        self._settled = settled
        self._forget = forget
        self._pins: dict[str, _Pin] = {}
        # whether the kernel may hold pages of files that are not pinned
        self._read_others = False
        self.active = False

    def begin(self) -> bool:
        """Return whether the kernel need not send opens, from now until the mount ends."""
        if not self.active and self._settled():
            self._names.show_samples_by(self.listed)
            self._read_others = self._samples.has_opened
            self.active = True
        return self.active

    def attr(self, path: str, entry: SampleEntry, turn: Turn) -> Attr:
        """Return the attributes of a sample, after asking storage where they are not verified.

        Raises NoContent for a sample without an object, since its open could not be refused.
        """
        try:
            content = self._samples.identify(entry, turn)
        except RequestError as error:
            raise SizeUnknown(f"the size of {path} cannot be found: {error}") from error
        need_object(content, path)
        self._show(path, content)
        return Attr(entry.ino, False, content.size, entry.mtime)

    def listed(self, prefix: str, samples: Sequence[SampleEntry]) -> Iterator[tuple[str, Attr]]:
        """Yield the samples of a directory; sends no request.

        After a refresh it shows sizes that storage has yet to confirm, because a request for each would take
        long. A read that detects a wrong size fails, and corrects it.
        """
        for entry in samples:
            if not entry.stands or entry.etag == NO_OBJECT:
                yield entry.name, Attr(entry.ino, False, UNKNOWN_SIZE, entry.mtime)
                continue
            if self._pins:
                self._show(prefix + entry.name, content_of(entry))
            yield entry.name, attr_of_sample(entry)

    def read(self, path: str, offset: int, size: int, turn: Turn) -> bytes:
        """Bytes of a file, short only at its end; ContentChanged once its path shows another version."""
        for tries_left in reversed(range(_TRIES)):
            pin = self._pins.get(path)
            is_first = pin is None
            if pin is None or pin.generation != self._names.catalog.generation:
                pin = self._pin(path, turn)
            try:
                if offset == 0:
                    return self._samples.begin_to_read(path, pin.content, size, turn)
                return self._samples.read_content(pin.content, offset, size, turn)
            except ContentChanged:
                self._pins.pop(path, None)
                # nothing of the older version was given yet, so nothing would be mixed
                if not is_first or not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def forget_pages(self, turn: Turn) -> None:
        """Have the kernel drop its pages of what was read, so that it is compared with storage again."""
        paths = iter(tuple(self._pins))
        if self._read_others:
            self._read_others = False
            paths = self._every_path(turn)
        while some := tuple(islice(paths, _FORGOTTEN_AT_ONCE)):
            self._forget(some)

    def _every_path(self, turn: Turn) -> Iterator[str]:
        waiting = [""]
        while waiting:
            path = waiting.pop()
            directories, samples = self._names.catalog.list_directory(path, turn)
            prefix = path + "/" if path else ""
            waiting += [prefix + directory.name for directory in directories]
            yield from (prefix + sample.name for sample in samples)

    def _pin(self, path: str, turn: Turn) -> _Pin:
        generation = self._names.catalog.generation
        entry = self._names.lookup(path, turn)
        if not isinstance(entry, SampleEntry):
            raise IsADirectory(f"a directory: {path}")
        content = self._samples.identify(entry, turn)
        before = self._pins.get(path)
        shown = entry.size if entry.stands else content.size
        if content.size != shown or (before is not None and before.content != content):
            self._pins.pop(path, None)
            self._forget((path,))
            raise ContentChanged(f"the stored object changed since it was opened: {path}")
        if len(self._pins) >= _MAX_PINS:
            self._read_others = True
            self._pins.clear()
        pin = self._pins[path] = _Pin(generation, content)
        return pin

    def _show(self, path: str, content: ContentId) -> None:
        """Show this version at a path from now on, so that its reads need not give the earlier one."""
        pin = self._pins.get(path)
        if pin is not None and pin.content != content:
            self._pins.pop(path, None)


# a waiting reader gets a block before the cache has it, and a damaged block is fetched again
_MAX_ROUNDS = 4
# an object that changed since storage was asked is asked about again
_MAX_VERSIONS = 2


class CachedFiles:
    """Opens cached files; any thread may call."""

    def __init__(
        self, namespace: Namespace, samples: Samples, reader: Reader, cache: BlockCache, patience: Patience
    ) -> None:
        self._names = namespace
        self._samples = samples
        self._reader = reader
        self._cache = cache
        self._patience = patience

    def open(self, path: str) -> int | None:
        """Return a new descriptor of a sample's bytes, fetched if needed; the caller closes it.

        None where there is no such file to hand out: one that was not uploaded yet, or that the cache
        cannot keep. Raises what an open and a read of the path would.
        """
        turn = self._patience.turn()
        node = self._names.lookup(path, turn)
        if isinstance(node, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        entry = node if isinstance(node, SampleEntry) else None
        for versions_left in reversed(range(_MAX_VERSIONS)):
            if entry is None:
                return None
            try:
                return self._open_sample(path, entry, turn)
            except ContentChanged:
                if not versions_left:
                    raise
                entry = self._names.catalog.with_facts(entry)
        raise AssertionError("the last version returns or raises")

    def _open_sample(self, path: str, entry: SampleEntry, turn: Turn) -> int | None:
        content = self._samples.identify(entry, turn)
        need_object(content, path)
        prefetcher = self._samples.prefetcher
        told = prefetcher.expects(path)
        if told:
            prefetcher.opened(path)
        if content.size == 0:
            return _empty_file()
        for _ in range(_MAX_ROUNDS):
            file = self._cache.proven_file(content)
            if file is not None and os.fstat(file.fd).st_size == content.size:
                # opened again: a file offset of its own, and read-only
                return os.open(f"/proc/self/fd/{file.fd}", os.O_RDONLY | os.O_CLOEXEC)
            self._fetch(content, turn)
            if not told:
                told = True
                prefetcher.opened(path)
        return None

    def _fetch(self, content: ContentId, turn: Turn) -> None:
        try:
            for future in self._reader.fetch(content, Span(0, block_count(content.size) - 1)):
                turn.result(future)
                turn.restart()  # a large file may take long as long as blocks come
        except NotBrought:
            pass  # the next round asks again


def _empty_file() -> int:
    anonymous = os.memfd_create("empty", os.MFD_CLOEXEC)
    try:
        return os.open(f"/proc/self/fd/{anonymous}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(anonymous)
