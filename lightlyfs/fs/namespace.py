"""Remote samples and local unfinished files as one tree; the local ones come first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from lightlyfs.catalog.catalog import Catalog
from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.catalog.inodes import directory_ino
from lightlyfs.errors import NoSuchFile, NotADirectory
from lightlyfs.fs.attributes import Attr, attr_of_directory, attr_of_sample
from lightlyfs.fs.local import LocalFiles
from lightlyfs.fs.local_file import LocalFile
from lightlyfs.fs.overlay import RenamedSamples
from lightlyfs.fs.patience import Turn
from lightlyfs.fs.probes import is_probe
from lightlyfs.fs.times import SetTimes

Node = SampleEntry | DirectoryEntry | LocalFile
# the samples of a directory, whose path ends in a slash unless it is the root, as they are to be listed
ShowSamples = Callable[[str, Sequence[SampleEntry]], Iterable[tuple[str, Attr]]]


class Listing(NamedTuple):
    """A directory as a whole, with the inode numbers of `.` and `..`; sizes may be UNKNOWN_SIZE.

    `generation` moves when it may differ.
    """

    generation: int
    ino: int
    parent_ino: int
    entries: list[tuple[str, Attr]]


class Namespace:
    """Lookup and listing of the merged tree; any thread may call. `local` is None on a read-only mount."""

    def __init__(self, catalog: Catalog, local: LocalFiles | None, times: SetTimes) -> None:
        self.catalog = catalog
        self._local = local
        self._times = times
        self.renamed = RenamedSamples()
        self._show_samples: ShowSamples | None = None

    def show_samples_by(self, show: ShowSamples) -> None:
        """Let `show` say which samples of a directory are listed, and with which attributes."""
        self._show_samples = show

    def current_generation(self) -> int:
        """The generation whose listings may be shown again; -1 where each one has to ask the API."""
        remote = self.catalog.current_generation()
        if self._local is None or remote < 0:
            return remote
        return remote + self._local.generation + self.renamed.generation

    def lookup(self, path: str, turn: Turn) -> Node:
        """What is at a path; NoSuchFile where there is nothing."""
        found = self.find(path, turn)
        if found is None:
            raise NoSuchFile(f"no such file: {path}")
        return found

    def find(self, path: str, turn: Turn) -> Node | None:
        """What is at a path, or None."""
        local = self._local
        if local is not None:
            file = local.get(path)
            if file is not None:
                return file if file.entry is None else self._times.apply(file.entry)
        if not self.catalog.refresher.complete and is_probe(path):
            return None
        entry = self.renamed.at(path) or self.catalog.lookup(path, turn)
        if isinstance(entry, SampleEntry):
            return None if self.renamed.is_hidden(path, entry.ino) else self._times.apply(entry)
        if entry is not None and self.renamed.is_gone(path):
            entry = None
        if entry is not None or local is None:
            return entry
        known_here = local.has_directory(path) or self.renamed.has_directory(path)
        return self._local_directory(local, path) if known_here else None

    def list_directory(self, path: str, turn: Turn) -> Listing:
        """Everything in a directory, in byte order; waits for the first listing to be complete."""
        node = self.lookup(path, turn)
        if not isinstance(node, DirectoryEntry):
            raise NotADirectory(f"a file, not a directory: {path}")
        generation = self.current_generation()
        directories, samples = self.catalog.list_directory(path, turn)
        prefix = path + "/" if path else ""
        entries = [
            (d.name, attr_of_directory(d)) for d in directories if not self.renamed.is_gone(prefix + d.name)
        ]
        if self._show_samples is not None:
            entries += self._show_samples(prefix, samples)
        else:
            entries += [
                (sample.name, attr_of_sample(self._times.apply(sample)))
                for sample in samples
                if not self.renamed.is_hidden(prefix + sample.name, sample.ino)
            ]
        unsorted = bool(directories)
        if self._local is not None:
            unsorted |= self._add_local(self._local, path, entries)
        if unsorted:
            entries.sort(key=lambda pair: pair[0].encode())
        return Listing(generation, node.ino, directory_ino(path.rpartition("/")[0]), entries)

    def is_empty(self, path: str, turn: Turn) -> bool:
        """Whether a directory has nothing in it."""
        return not self.list_directory(path, turn).entries

    def _add_local(self, local: LocalFiles, path: str, entries: list[tuple[str, Attr]]) -> bool:
        files, names = local.within(path), local.directories_within(path)
        names |= self.renamed.directories_within(path)
        moved = self.renamed.within(path)
        if not files and not names and not moved:
            return False
        merged = dict(entries)
        prefix = path + "/" if path else ""
        for name in names - merged.keys():
            merged[name] = attr_of_directory(self._local_directory(local, prefix + name))
        for file in files:
            name = file.path.rpartition("/")[2]
            entry = file.entry
            merged[name] = file.attr() if entry is None else attr_of_sample(self._times.apply(entry))
        for sample in moved:
            merged[sample.name] = attr_of_sample(self._times.apply(sample))
        entries[:] = merged.items()
        return True

    @staticmethod
    def _local_directory(local: LocalFiles, path: str) -> DirectoryEntry:
        return DirectoryEntry(path.rpartition("/")[2], directory_ino(path), local.directory_time(path))
