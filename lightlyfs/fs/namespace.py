"""Merges remote samples and local files into one tree; local files take precedence.

`RenamedSamples` and `Removed` hold the names that this mount changed and the catalogue does not show yet.
Everything here speaks of paths in the dataset. `Part` is the folder of it that a mount shows as its root: it
turns paths from the kernel or a command into those, and back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cachetools import LRUCache

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry, Totals, name_beside
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.desktop.programs import is_probe
from lightlyfs.errors import NoSuchFile, NotADirectory
from lightlyfs.fs.attributes import Attr, Exact, SetTimes, attr_of_directory, attr_of_local, attr_of_sample
from lightlyfs.fs.patience import Turn
from lightlyfs.name_rules import REPLACED_FOLDER, ShownRules
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Record
from lightlyfs.tree import PathTable, above, directory_ino, sample_ino

log = logging.getLogger(__name__)

# a listing that shows the old name began before the rename, or is of a server that lags; one this much later
# tells that others have renamed it back
LISTING_LAGS_S = 600.0
# samples that are looked up at once, to see whether a directory has any that was not renamed
_LOOKED_AT = 100
_NO_INOS: frozenset[int] = frozenset()


class RenamedSamples:
    """Where samples were renamed to, until a listing shows the rename; any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock: entries by new path, and where those are; by old path the inode numbers that are
        # gone there, for it may have been the path of several samples since the listing
        self._shown: PathTable[SampleEntry] = PathTable()
        self._hidden: dict[str, frozenset[int]] = {}
        self._noted_at: dict[str, float] = {}
        # directories that were renamed with all their samples; replaced as a whole, read without the lock
        self._gone: frozenset[str] = frozenset()
        self.generation = 0

    def note(self, old: str, new: str, entry: SampleEntry, age_s: float = 0.0) -> None:
        """Note that a sample was renamed to `new` `age_s` seconds ago, with `entry` as its entry there."""
        with self._lock:
            self._forget_locked(old)
            self._forget_locked(new)
            # an empty set goes with the next listing
            self._hidden[new] = self._hidden.get(new, _NO_INOS) - {entry.ino}
            self._hidden[old] = self._hidden.get(old, _NO_INOS) | {entry.ino}
            self._noted_at[new] = self._clock() - age_s
            self._shown.put(new, entry)
            self.generation += 1

    def paths(self) -> set[str]:
        """Return the new paths that no listing shows yet."""
        with self._lock:
            return set(self._shown.by_path)

    def note_written(self, path: str, entry: SampleEntry) -> None:
        """Note the new image of a sample, if it was renamed to this path."""
        with self._lock:
            known = self._shown.by_path.get(path)
            if known is not None and known.ino == entry.ino:
                self._shown.put(path, entry)
                self.generation += 1

    def note_directory(self, old: str, new: str) -> None:
        """Note that a whole directory was renamed to `new`."""
        self.note_removed(old)
        with self._lock:
            # of `new` as the catalogue has it nothing may be there but what was renamed
            self._gone = frozenset(gone for gone in self._gone if self._hides_below_locked(gone))
            self.generation += 1

    def note_removed(self, directory: str) -> None:
        """Note that an empty directory was removed."""
        with self._lock:
            if self._hides_below_locked(directory):
                self._gone |= {directory}
            self.generation += 1

    def leaves_nothing(self, directory: str, catalog: Catalog) -> bool:
        """Return whether all samples that the catalogue has below a directory were renamed."""
        below = catalog.samples_below(directory, _LOOKED_AT)
        return all(self.is_hidden(path, entry.ino) for path, entry in below)

    def is_gone(self, path: str) -> bool:
        """Return whether the directory that the catalogue shows at a path, or one above, was renamed."""
        gone = self._gone
        while gone and path:
            if path in gone:
                return True
            path = path.rpartition("/")[0]
        return False

    def gone(self) -> list[str]:
        """Return the directories of `is_gone`, without those below another one."""
        return [path for path in self._gone if not self.is_gone(path.rpartition("/")[0])]

    def at(self, path: str) -> SampleEntry | None:
        """Return the sample that was renamed to this path."""
        return self._shown.by_path.get(path)

    def is_hidden(self, path: str, ino: int) -> bool:
        """Return whether the sample that the catalogue shows at a path is elsewhere now."""
        return bool(self._hidden) and ino in self._hidden.get(path, _NO_INOS)

    def within(self, directory: str) -> list[SampleEntry]:
        """Return the samples renamed to a place directly in a directory."""
        with self._lock:
            return self._shown.within(directory)

    def directories_within(self, directory: str) -> set[str]:
        """Return the names of directories in a directory that samples were renamed into."""
        with self._lock:
            return self._shown.directories_within(directory)

    def has_directory(self, path: str) -> bool:
        """Return whether a sample was renamed to a place below this path."""
        return self._shown.has_directory(path)

    def prune(self, catalog: Catalog) -> None:
        """Forget what a new listing shows by itself."""
        with self._lock:
            shown = list(self._shown.by_path.items())
        settled = {}
        for path, entry in shown:
            found = catalog.by_id(entry.sample_id)
            lags = found is not None and self.is_hidden(found[0], entry.ino)
            if not lags or self._clock() - self._noted_at.get(path, 0.0) > LISTING_LAGS_S:
                settled[path] = entry
        with self._lock:
            # one that was renamed on meanwhile is not settled
            done = {entry.ino for path, entry in settled.items() if self._shown.by_path.get(path) is entry}
            for path in settled:
                if self._shown.by_path.get(path) is settled[path]:
                    self._forget_locked(path)
            left = {old: inos - done for old, inos in self._hidden.items()}
            self._hidden = {old: inos for old, inos in left.items() if inos}
            self._gone = frozenset(gone for gone in self._gone if self._hides_below_locked(gone))
            self.generation += bool(done)

    def _forget_locked(self, path: str) -> None:
        self._noted_at.pop(path, None)
        self._shown.remove(path)

    def _hides_below_locked(self, directory: str) -> bool:
        return any(inos and old.startswith(directory + "/") for old, inos in self._hidden.items())


HIDDEN_PREFIX = ".fuse_hidden"
# coreutils and BusyBox remove the target of `mv -f` and `install` before they write it, and so do programs
# that unpack archives
_REPLACERS = frozenset({"mv", "install", "ginstall", "busybox", "tar", "bsdtar", "unzip"})
REPLACED_WITHIN_S = 1.0
# how many programs that have read samples are remembered; one that is forgotten is no longer refused
_MAX_READERS = 10_000
# hidden names that lead to what is still there: a rename that failed leaves the kernel with one
_MAX_HIDDEN = 1_000


class _Removal(NamedTuple):
    entry: SampleEntry
    timer: threading.Timer


class Removed:
    """What was removed on this mount but still exists; any thread may call.

    `on_changed(path)` is called when a path shows something else.
    """

    def __init__(self, on_changed: Callable[[str], None]) -> None:
        self._on_changed = on_changed
        self._lock = threading.Lock()
        # guarded by _lock
        self._files: dict[str, LocalFile] = {}
        self._kept: LRUCache[str, LocalFile | SampleEntry] = LRUCache(_MAX_HIDDEN)
        # by hidden path: what it was hidden from, until the rename ends; and where it is, if that failed
        self._origins: LRUCache[str, str] = LRUCache(_MAX_HIDDEN)
        self._places: LRUCache[str, str] = LRUCache(_MAX_HIDDEN)
        self._removals: dict[str, _Removal] = {}
        self._readers: LRUCache[int, None] = LRUCache(_MAX_READERS)

    # hidden names of open files

    def hide(self, path: str, node: LocalFile | SampleEntry, origin: str) -> None:
        """Let a hidden path lead to an open file, which was at `origin`."""
        with self._lock:
            self._origins[path] = origin
            if isinstance(node, LocalFile):
                self._files[path] = node
            else:
                self._kept[path] = node

    def renamed(self, old: str, new: str, *, done: bool) -> None:
        """Note the end of a rename; what it was to replace is where it was unless it is `done`."""
        with self._lock:
            for hidden in [hidden for hidden, origin in self._origins.items() if origin == new]:
                del self._origins[hidden]
                if not done:
                    self._places[hidden] = new
            for hidden, place in list(self._places.items()) if done else []:
                if place == old:
                    self._places[hidden] = new
                elif place == new:
                    del self._places[hidden]

    def place_of(self, path: str) -> str:
        """Return where the file of a hidden path is, if it was not replaced; else the path itself."""
        return self._places.get(path, path)

    def at(self, path: str) -> LocalFile | SampleEntry | None:
        """Return the open file that a hidden path leads to."""
        with self._lock:
            return self._files.get(path) or self._kept.get(path)

    def closed(self, path: str) -> None:
        """Forget a hidden path, whose file is closed."""
        with self._lock:
            file = self._files.pop(path, None)
            # one whose replacement failed is still there, and the kernel knows it by this path for a while
            if file is not None and not file.unlinked:
                self._kept[path] = file

    # removals that a replacement is to follow

    def note_reader(self, process: int) -> None:
        """Note that a program reads a sample: it may be moving that away."""
        if process not in self._readers:
            with self._lock:
                self._readers[process] = None

    def may_replace(self, process: int, program: str) -> bool:
        """Return whether a removal by this program is the first half of a replacement."""
        return program in _REPLACERS and process not in self._readers

    def remove(self, path: str, entry: SampleEntry) -> None:
        """Take a sample out of view for a moment."""
        timer = threading.Timer(REPLACED_WITHIN_S, self._show_again, (path,))
        timer.daemon = True
        with self._lock:
            self._removals[path] = _Removal(entry, timer)
        try:
            timer.start()
        except RuntimeError:  # no threads are left
            self._show_again(path)
            raise

    def is_removed(self, path: str) -> bool:
        """Return whether the sample at a path is out of view."""
        return bool(self._removals) and path in self._removals

    def names_within(self, directory: str) -> set[str]:
        """Return the names directly in a directory that are out of view."""
        with self._lock:
            split = [path.rpartition("/") for path in self._removals]
        return {name for parent, _, name in split if parent == directory}

    def take(self, path: str) -> SampleEntry | None:
        """Return the sample that is about to be replaced at a path, which ends its removal."""
        with self._lock:
            removal = self._removals.pop(path, None)
        if removal is None:
            return None
        removal.timer.cancel()
        return removal.entry

    def _show_again(self, path: str) -> None:
        if self.take(path) is not None:
            log.warning("%s is a sample, which the Lightly API cannot delete; it is there again", path)
            self._on_changed(path)


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
        rules: ShownRules,
        forget: Callable[[tuple[str, ...]], object] = lambda _: None,
    ) -> None:
        self.catalog = catalog
        self.rules = rules
        self._filters = not rules.show_all  # asked for each name
        self._forget = forget
        self.removed = Removed(self._changed)
        self._local = local
        self.times = times
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

    def _hides_directory(self, path: str) -> bool:
        return self._filters and not self.rules.shows_directory(path)

    def find(self, path: str, turn: Turn) -> Node | None:
        """Return what is at a path, or None."""
        local = self._local
        if local is not None:
            file = local.get(path)
            if file is not None and file.uploaded:
                hidden = self.removed.is_removed(path) or (self._filters and not self.rules.shows(path))
                return None if hidden else self.times.apply(entry_of_uploaded(file.record))
            if file is not None:
                return file
            if path.rpartition("/")[2].startswith(HIDDEN_PREFIX):
                return self.removed.at(path)
            if self.removed.is_removed(path):
                return None
        if not self.catalog.refresher.complete and is_probe(path):
            return None
        entry = self.renamed.at(path) or self.catalog.lookup(path, turn)
        if isinstance(entry, SampleEntry):
            hidden = self._filters and not self.rules.shows(path)
            gone = hidden or self.renamed.is_hidden(path, entry.ino)
            return None if gone else self.times.apply(entry)
        if entry is not None and (self.renamed.is_gone(path) or self._hides_directory(path)):
            entry = None
        if entry is not None or local is None:
            return entry
        known_here = local.has_directory(path) or self.renamed.has_directory(path)
        return self._local_directory(local, path) if known_here else None

    def list_directory(self, path: str, turn: Turn) -> Listing:
        """Return everything in a directory, in byte order; waits for the first listing to be complete."""
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
            if not (self.renamed.is_gone(prefix + d.name) or self._hides_directory(prefix + d.name))
        ]
        if self._filters:
            samples = [sample for sample in samples if self.rules.shows(prefix + sample.name)]
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
        """Return whether a directory has nothing in it, shown or not."""
        return not self.list_directory(path, turn).entries and not self.hides_within(path, turn)

    def hides_within(self, path: str, turn: Turn) -> bool:
        """Return whether a directory has something in it that `--include` or `--exclude` hides."""
        if self.rules.show_all:
            return False
        directories, samples = self.catalog.list_directory(path, turn)
        prefix = path + "/" if path else ""
        return any(not self.rules.shows_directory(prefix + one.name) for one in directories) or any(
            not self.rules.shows(prefix + one.name) for one in samples
        )

    def samples_below(self, directory: str, page: int) -> Iterator[tuple[str, SampleEntry]]:
        """Yield the samples below a directory that are shown, at any depth; looks up a page at once."""
        found = self.catalog.samples_below(directory, page)
        return found if self.rules.show_all else (pair for pair in found if self.rules.shows(pair[0]))

    def totals(self) -> Totals:
        """Return sums over all samples, where this mount has changed what is listed as it has it now."""
        if self._local is None:
            return self.catalog.totals()
        shown = ((file.path, file.record) for file in self._local.all())
        here = {sample_ino(bytes.fromhex(one.sample_id)): (path, one) for path, one in shown if one.sample_id}
        listed = self.catalog.totals(without=here)
        paths = {path for path, _ in here.values()} | self.renamed.paths()
        new = {directory for path in paths for directory in above(path) if self.listed_at(directory) is None}
        return listed._replace(
            samples=listed.samples + len(here),
            directories=listed.directories + len(new) - self._count_gone(),
            bytes=listed.bytes + sum(record.size for _, record in here.values()),
        )

    def _count_gone(self) -> int:
        """Count the directories that the catalogue has still, and that were renamed or removed here."""
        count, waiting = 0, self.renamed.gone()
        while waiting:
            path = waiting.pop()
            count += 1
            waiting += [f"{path}/{name}" for name in self.catalog.directories_in(path)]
        return count

    def sample_attr(self, entry: SampleEntry) -> Attr:
        """Return the attributes of a sample with its time and inode number on this mount."""
        attr = attr_of_sample(self.times.apply(entry), trust_hint=not self.catalog.hints_are_wrong)
        if entry.ino in self.held_sizes:
            attr = attr._replace(size=max(attr.size, self.held_sizes.get(entry.ino, 0)))
        return self.times.numbered(attr, entry.id)

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
        """Return whether a file is at a path, as far as that is known without asking the API."""
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
        for sample in moved:
            if self.rules.shows(prefix + sample.name):
                merged[sample.name] = self.sample_attr(sample)
        # as in `find`: what was written since the rename is what is there
        for file in files:
            if file.uploaded and not self.rules.shows(file.path):
                continue
            name = file.path.rpartition("/")[2]
            merged[name] = (
                self.sample_attr(entry_of_uploaded(file.record)) if file.uploaded else attr_of_local(file)
            )
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
    raw, name = name_beside(record.path, record.name), record.path.rpartition("/")[2]
    ino, size, etag = sample_ino(sample_id), record.size, record.etag
    return SampleEntry(name, ino, sample_id, raw, size, record.mtime, size, etag, verified=True, stands=True)


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
