"""Opens the cached file of a sample for a program, so that its reads bypass FUSE.

The descriptor is read-only, and shows exactly the bytes of one version.
"""

from __future__ import annotations

import os

from lightlyfs.blocks import ContentId, Span, block_count
from lightlyfs.cache.block_cache import BlockCache
from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.errors import ContentChanged, IsADirectory, NoContent
from lightlyfs.fetch.reader import Reader
from lightlyfs.fetch.transfers import NotBrought
from lightlyfs.fs.namespace import Namespace
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.samples import Samples

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
        if not content.has_object:
            raise NoContent(f"the sample has no image on the server: {path}")
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
