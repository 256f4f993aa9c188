"""Merges remote samples and local files into one tree; local files take precedence."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.desktop.programs import is_probe
from lightlyfs.errors import NoSuchFile, NotADirectory
from lightlyfs.fs.attributes import Attr, Exact, attr_of_directory, attr_of_local, attr_of_sample
from lightlyfs.fs.overlay import HIDDEN_PREFIX, Removed, RenamedSamples
from lightlyfs.fs.patience import Turn
from lightlyfs.fs.times import SetTimes
from lightlyfs.inodes import directory_ino, sample_ino
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record
from lightlyfs.upload_rules import REPLACED_FOLDER

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

    def __init__(
        self,
        catalog: Catalog,
        local: LocalFiles | None,
        times: SetTimes,
        forget: Callable[[tuple[str, ...]], object] = lambda _: None,
    ) -> None:
        self.catalog = catalog
        self._forget = forget
        self.removed = Removed(self._changed)
        self._local = local
        self._times = times
        self.renamed = RenamedSamples()
        # the least size to show, by inode number, while an older and longer version is open
        self.held_sizes: Mapping[int, int] = {}
        self._show_samples: ShowSamples | None = None

    def show_samples_by(self, show: ShowSamples) -> None:
        """Let `show` say which samples of a directory are listed, and with which attributes."""
        self._show_samples = show

    def current_generation(self) -> int:
        """Return the generation whose listings may be shown again; -1 where each one has to ask the API."""
        remote = self.catalog.current_generation()
        if self._local is None or remote < 0:
            return remote
        return remote + self._local.generation + self.renamed.generation

    @property
    def sizes_moved(self) -> int:
        """A number that changes whenever a size in an earlier listing may be outdated."""
        here = 0 if self._local is None else self._local.generation + self.renamed.generation
        return self.catalog.sizes_moved + here

    def lookup(self, path: str, turn: Turn) -> Node:
        """Return what is at a path; NoSuchFile where there is nothing."""
        found = self.find(path, turn)
        if found is None:
            raise NoSuchFile(f"no such file: {path}")
        return found

    def find(self, path: str, turn: Turn) -> Node | None:
        """Return what is at a path, or None."""
        local = self._local
        if local is not None:
            file = local.get(path)
            if file is not None:
                return self._times.apply(entry_of_uploaded(file.record)) if file.uploaded else file
            if path.rpartition("/")[2].startswith(HIDDEN_PREFIX):
                return self.removed.at(path)
            if self.removed.is_removed(path):
                return None
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
        # a sample with the name of the directory would be found earlier
        self.catalog.wait_until_listed(turn)
        node = self.lookup(path, turn)
        if not isinstance(node, DirectoryEntry):
            raise NotADirectory(f"a file, not a directory: {path}")
        generation = self.current_generation()
        directories, samples = self.catalog.list_directory(path, turn)
        prefix = path + "/" if path else ""
        entries = [
            (d.name, self.directory_attr(prefix + d.name, d))
            for d in directories
            if not self.renamed.is_gone(prefix + d.name)
        ]
        if self._show_samples is not None:
            entries += self._show_samples(prefix, samples)
        else:
            entries += [
                (sample.name, self.sample_attr(sample))
                for sample in samples
                if not self.renamed.is_hidden(prefix + sample.name, sample.ino)
            ]
        unsorted = bool(directories)
        if self._local is not None:
            unsorted |= self._add_local(self._local, path, entries)
        entries = self._without_hidden(path, entries)
        if unsorted:
            entries.sort(key=lambda pair: pair[0].encode())
        return Listing(generation, node.ino, directory_ino(path.rpartition("/")[0]), entries)

    def is_empty(self, path: str, turn: Turn) -> bool:
        """Whether a directory has nothing in it."""
        return not self.list_directory(path, turn).entries

    def sample_attr(self, entry: SampleEntry) -> Attr:
        """Return the attributes of a sample with its time and inode number on this mount."""
        attr = attr_of_sample(self._times.apply(entry), trust_hint=not self.catalog.hints_are_wrong)
        if entry.ino in self.held_sizes:
            attr = attr._replace(size=max(attr.size, self.held_sizes.get(entry.ino, 0)))
        return self._times.numbered(attr, entry.id)

    def directory_attr(self, path: str, entry: DirectoryEntry) -> Attr:
        """Return the attributes of a directory: as created here, else with the time of its last change."""
        attr = attr_of_directory(entry)
        if self._local is None:
            return attr
        made = self._local.directory(path)
        if made is not None:
            times = made.atime_ns, made.mtime_ns, made.ctime_ns
            return attr._replace(mtime=made.mtime_ns // 1_000_000_000, exact=Exact(made.mode, *times))
        touched = self._local.directory_time_ns(path) // 1_000_000_000
        return attr if touched <= attr.mtime else attr._replace(mtime=touched)

    def knows(self, path: str) -> bool:
        """Whether a file is at a path, as far as that is known without asking the API."""
        if self._local is not None and self._local.get(path) is not None:
            return True
        if self.removed.is_removed(path):
            return False
        return isinstance(self.renamed.at(path) or self.listed_at(path), SampleEntry)

    def listed_at(self, path: str) -> SampleEntry | DirectoryEntry | None:
        """Return what the last listing has at a path, but for what this mount renamed since."""
        entry = self.catalog.known(path)
        if isinstance(entry, SampleEntry) and self.renamed.is_hidden(path, entry.ino):
            return None
        return None if isinstance(entry, DirectoryEntry) and self.renamed.is_gone(path) else entry

    def _changed(self, path: str) -> None:
        if self._local is not None:
            self._local.touch()
        self._forget((path,))

    def _without_hidden(self, path: str, entries: list[tuple[str, Attr]]) -> list[tuple[str, Attr]]:
        gone = self.removed.names_within(path)
        if not path:
            gone.add(REPLACED_FOLDER)
        return [pair for pair in entries if pair[0] not in gone] if gone else entries

    def _add_local(self, local: LocalFiles, path: str, entries: list[tuple[str, Attr]]) -> bool:
        files, names = local.within(path), local.directories_within(path)
        names |= self.renamed.directories_within(path)
        moved = self.renamed.within(path)
        if not files and not names and not moved:
            return False
        merged = dict(entries)
        prefix = path + "/" if path else ""
        for name in names - merged.keys():
            merged[name] = self.directory_attr(prefix + name, self._local_directory(local, prefix + name))
        for file in files:
            name = file.path.rpartition("/")[2]
            merged[name] = (
                self.sample_attr(entry_of_uploaded(file.record)) if file.uploaded else attr_of_local(file)
            )
        for sample in moved:
            merged[sample.name] = self.sample_attr(sample)
        entries[:] = merged.items()
        return True

    @staticmethod
    def _local_directory(local: LocalFiles, path: str) -> DirectoryEntry:
        seconds = local.directory_time_ns(path) // 1_000_000_000
        return DirectoryEntry(path.rpartition("/")[2], directory_ino(path), seconds)


def entry_of_uploaded(record: Record) -> SampleEntry:
    """Return the directory entry of a file that the server has, before a listing holds it."""
    assert record.sample_id is not None
    sample_id = bytes.fromhex(record.sample_id)
    raw = None if record.name == record.path else record.name.encode("utf-8", "surrogatepass")
    name, size, etag = record.path.rpartition("/")[2], record.size, record.etag
    ino = sample_ino(sample_id)
    return SampleEntry(name, ino, sample_id, raw, size, record.mtime, size, etag, verified=True, stands=True)
