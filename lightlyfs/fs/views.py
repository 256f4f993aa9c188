"""What the API and the mount know of samples: as files of the unlisted folder `.lightlyfs/`, and as xattrs.

    status.json          what `lightlyfs status --json` prints
    log                  the last lines of the mount's log
    by-id/ID             a link to the sample of this id; has to be named, for a listing would hold them all
    metadata/PATH.json   the sample as the API gives it
    thumbnails/PATH      its thumbnail, as PNG
    tags/TAG/PATH        links to the samples of a tag
    prefetch             paths written into it, one a line, are fetched (on mounts that may be written to)

No listing shows the folder, so `find`, rsync and data loaders never see it. Nothing here is stored: a file is
generated on access and cached for a moment, so that its size and its bytes agree.
"""

from __future__ import annotations

import codecs
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import msgspec
from cachetools import TTLCache

from lightlyfs.api.models import Sample
from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry, true_name
from lightlyfs.catalog.sample_catalog import Catalog
from lightlyfs.catalog.tags import TagRecord
from lightlyfs.errors import (
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NoSuchFile,
    NotADirectory,
    NotFound,
    NotPermitted,
    UnknownNamespace,
)
from lightlyfs.fs.attributes import UNKNOWN_SIZE, Attr
from lightlyfs.fs.namespace import FOLDER, Listing, Namespace, Node, Part
from lightlyfs.fs.patience import Turn
from lightlyfs.staging.local_files import LocalFile
from lightlyfs.staging.record import Record, State
from lightlyfs.tree import view_ino

_PREFETCH = "prefetch"
_ID = re.compile(r"[a-f0-9]{24}")
_MAX_SHOWN = 100_000
# how old a generated file may be whose size is shown
_FRESH_S = 1.0
# how long it is kept for reads by path: the kernel cuts them at the size it was shown, and holds that so long
_SNAPSHOT_S = 60.0
_MAX_SNAPSHOTS = 256


@dataclass(frozen=True)
class ViewSources:
    """Where the content comes from; futures raise what the API raised."""

    status: Callable[[], bytes]
    log: Callable[[], bytes]
    document: Callable[[str], Future[bytes]]
    thumbnail: Callable[[str, str], Future[bytes]]
    tags: Callable[[], Future[tuple[TagRecord, ...]]]
    members: Callable[[TagRecord], Future[frozenset[bytes]]]
    fetch: Callable[[list[str]], None]


@dataclass(frozen=True)
class ViewFile:
    """A file whose bytes are made when they are asked for; `mtime` None stands for now."""

    make: Callable[[Turn], bytes]
    mtime: int | None = None


@dataclass(frozen=True)
class ViewLink:
    """A link to a sample, relative to where it is."""

    target: str
    mtime: int


@dataclass(frozen=True)
class ViewDirectory:
    """A directory; `entries` gives names with whether they are directories and whether they are links."""

    entries: Callable[[Turn], Iterable[tuple[str, bool, bool]]]


ViewNode = ViewFile | ViewLink | ViewDirectory


class Views:
    """Looks up and reads what is in the folder; any thread may call.

    What the kernel is shown here holds for a moment only; `take_shown` says what it has to forget. Below
    `metadata/`, `thumbnails/` and `tags/TAG/` the paths are those of the mount, which shows `part`.
    """

    def __init__(
        self,
        namespace: Namespace,
        catalog: Catalog,
        sources: ViewSources,
        part: Part,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._names = namespace
        self._catalog = catalog
        self._sources = sources
        self._part = part
        self._clock = clock
        self._lock = threading.Lock()
        # guarded by _lock: what was made last of each file, and when
        self._snapshots: TTLCache[str, tuple[float, bytes]] = TTLCache(_MAX_SNAPSHOTS, _SNAPSHOT_S, clock)
        # guarded by _lock: the directories that hold samples of a tag, by its version and the generation
        self._holding: tuple[tuple[str, int], frozenset[int]] | None = None
        # guarded by _lock: paths of which the kernel may hold an answer that is soon outdated
        self._shown: set[str] = set()
        # set when there is something for `take_shown`
        self.shown = threading.Event()

    def attr(self, path: str, turn: Turn) -> Attr:
        """Return the attributes of a path in the folder."""
        node = self._find(path, turn)
        with self._lock:
            if len(self._shown) < _MAX_SHOWN:  # on libfuse 2 no caller takes them
                self._shown.add(path)
                self.shown.set()
        if isinstance(node, ViewDirectory):
            return Attr(view_ino(path), True, 0, int(time.time()))
        if isinstance(node, ViewLink):
            return Attr(view_ino(path), False, len(node.target.encode()), node.mtime, is_link=True)
        mtime = int(time.time()) if node.mtime is None else node.mtime
        return Attr(view_ino(path), False, len(self._content(path, node, turn)), mtime)

    def list_directory(self, path: str, turn: Turn) -> Listing:
        """Return what a directory in the folder holds; sizes are found out one by one."""
        node = self._find(path, turn)
        if not isinstance(node, ViewDirectory):
            raise NotADirectory(f"not a directory: {path}")
        entries = [
            (name, Attr(view_ino(f"{path}/{name}"), is_directory, UNKNOWN_SIZE, 0, is_link=is_link))
            for name, is_directory, is_link in node.entries(turn)
        ]
        entries.sort(key=lambda entry: entry[0].encode())
        # no generation: each call creates the listing again
        return Listing(-1, view_ino(path), view_ino(path.rpartition("/")[0]), entries)

    def read_link(self, path: str, turn: Turn) -> str:
        """Return where a link points; InvalidArgument for anything else."""
        node = self._find(path, turn)
        if not isinstance(node, ViewLink):
            raise InvalidArgument(f"not a link: {path}")
        return node.target

    def content(self, path: str, turn: Turn, *, as_shown: bool = False) -> bytes:
        """Return the bytes of a file in the folder; `as_shown`, those whose size was shown last."""
        node = self._find(path, turn)
        if not isinstance(node, ViewFile):
            raise IsADirectory(f"not a file: {path}")
        return self._content(path, node, turn, _SNAPSHOT_S if as_shown else _FRESH_S)

    def need_writable(self, path: str) -> None:
        """NotPermitted unless this is the one file that may be written to."""
        if path != f"{FOLDER}/{_PREFETCH}":
            raise NotPermitted(f"{path} shows what the mount knows, and cannot be changed")

    def fetch(self, written: bytes) -> None:
        """Fetch the files whose paths, relative to the mountpoint, were written into `prefetch`."""
        lines = written.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape").splitlines()
        self._sources.fetch([line.strip().lstrip("/") for line in lines if line.strip()])

    def take_shown(self) -> list[str]:
        """Return the paths that were looked at since this was last asked."""
        with self._lock:
            self.shown.clear()
            shown, self._shown = self._shown, set()
        return sorted(shown)

    def _content(self, path: str, node: ViewFile, turn: Turn, max_age_s: float = _FRESH_S) -> bytes:
        with self._lock:
            made_at, made = self._snapshots.get(path, (-math.inf, b""))
        if self._clock() - made_at < max_age_s:
            return made
        made = node.make(turn)
        with self._lock:
            self._snapshots[path] = self._clock(), made
        return made

    # what is at a path

    def _find(self, path: str, turn: Turn) -> ViewNode:
        head, _, rest = path.removeprefix(FOLDER).removeprefix("/").partition("/")
        kinds: dict[str, Callable[[str, str, Turn], ViewNode]] = {
            "by-id": self._by_id,
            "metadata": self._metadata,
            "thumbnails": self._thumbnails,
            "tags": self._tags,
        }
        if head in kinds:
            return kinds[head](path, rest, turn)
        files = {
            "status.json": ViewFile(lambda _: self._sources.status()),
            "log": ViewFile(lambda _: self._sources.log()),
            _PREFETCH: ViewFile(lambda _: b""),
        }
        if not head:
            return ViewDirectory(
                lambda _: [
                    *((name, True, False) for name in kinds),
                    *((name, False, False) for name in files),
                ]
            )
        if head not in files or rest:
            raise NoSuchFile(f"no such file: {path}")
        return files[head]

    def _by_id(self, path: str, sample_id: str, turn: Turn) -> ViewNode:
        if not sample_id:
            return ViewDirectory(lambda _: [])
        found = self._catalog.by_id(sample_id) if _ID.fullmatch(sample_id) else None
        if found is None:
            raise NoSuchFile(f"no sample has this id: {sample_id}")
        if not self._names.rules.shows(found[0]):
            raise NoSuchFile(f"the mount does not show this sample: {found[0]}")
        return self._link(path, *found)

    def _metadata(self, path: str, rest: str, turn: Turn) -> ViewNode:
        sample = self._sample(rest.removesuffix(".json"), turn) if rest.endswith(".json") else None
        if sample is None:
            return self._mirror(path, rest, turn, ".json")
        return ViewFile(lambda turn: turn.result(self._sources.document(sample.sample_id)), sample.mtime)

    def _thumbnails(self, path: str, rest: str, turn: Turn) -> ViewNode:
        sample = self._sample(rest, turn)
        if sample is None:
            return self._mirror(path, rest, turn, "")

        def make(turn: Turn) -> bytes:
            try:
                return turn.result(self._sources.thumbnail(sample.sample_id, str(sample.mtime)))
            except NotFound as error:
                raise NoSuchFile(f"the sample has no thumbnail: {rest}") from error

        return ViewFile(make, sample.mtime)

    def _tags(self, path: str, rest: str, turn: Turn) -> ViewNode:
        tags = turn.result(self._sources.tags())
        if not rest:
            return ViewDirectory(lambda _: [(tag.name, True, False) for tag in tags if "/" not in tag.name])
        name, _, shown = rest.partition("/")
        inside = self._part.inside(shown)
        tag = next((tag for tag in tags if tag.name == name), None)
        if tag is None:
            raise NoSuchFile(f"no such tag: {name}")
        members = turn.result(self._sources.members(tag))
        node = self._names.lookup(inside, turn)
        if isinstance(node, SampleEntry) and node.id in members:
            return self._link(path, inside, node)
        is_here = isinstance(node, DirectoryEntry) and node.ino in self._holding_of(tag, members)
        if not is_here and shown:
            raise NoSuchFile(f"not in the tag {name}: {inside}")
        return ViewDirectory(lambda turn: self._tagged_entries(inside, tag, members, turn))

    def _tagged_entries(
        self, inside: str, tag: TagRecord, members: frozenset[bytes], turn: Turn
    ) -> list[tuple[str, bool, bool]]:
        holding = self._holding_of(tag, members)
        directories, samples = self._catalog.list_directory(inside, turn)
        rules, prefix = self._names.rules, inside + "/" if inside else ""
        found = [
            (one.name, True, False)
            for one in directories
            if one.ino in holding and rules.shows_directory(prefix + one.name)
        ]
        return found + [
            (one.name, False, True) for one in samples if one.id in members and rules.shows(prefix + one.name)
        ]

    def _holding_of(self, tag: TagRecord, members: frozenset[bytes]) -> frozenset[int]:
        key = (tag.version(), self._catalog.generation)
        with self._lock:
            if self._holding is not None and self._holding[0] == key:
                return self._holding[1]
        holding = self._catalog.directories_holding(members)
        with self._lock:
            self._holding = (key, holding)
        return holding

    def _mirror(self, path: str, rest: str, turn: Turn, ending: str) -> ViewDirectory:
        """Yield a directory like that of the dataset; NoSuchFile where there is none."""
        inside = self._part.inside(rest)
        if not isinstance(self._names.lookup(inside, turn), DirectoryEntry):
            raise NoSuchFile(f"no such file: {path}")

        def entries(turn: Turn) -> Iterable[tuple[str, bool, bool]]:
            for name, attr in self._names.list_directory(inside, turn).entries:
                yield (name, True, False) if attr.is_directory else (name + ending, False, False)

        return ViewDirectory(entries)

    def _sample(self, path: str, turn: Turn) -> SampleEntry | None:
        found = self._names.find(self._part.inside(path), turn) if path else None
        return found if isinstance(found, SampleEntry) else None

    def _link(self, path: str, target: str, entry: SampleEntry) -> ViewLink:
        shown = self._part.shown(target)
        if shown is None:
            raise NoSuchFile(f"it is outside of what this mount shows: {target}")
        return ViewLink("../" * path.count("/") + shown, entry.mtime)


PREFIX = "user.lightly."
# what lightlyfs says of a file, and no program can set
SHOWN = frozenset(
    PREFIX + name for name in ("sample_id", "file_name", "type", "metadata", "exif", "upload", "thumbnail")
)
# readable by name, not listed: `getfattr -d` and `cp -a` of a folder would fetch a picture for each file
_UNLISTED = PREFIX + "thumbnail"


class ExtendedAttributes:
    """Names and values; the sample's details are asked for only where an attribute needs them.

    `details(sample_id)` gives the whole sample, `thumbnail(sample_id, version)` a PNG; both as futures.
    """

    def __init__(
        self,
        details: Callable[[str], Future[Sample]],
        thumbnail: Callable[[str, str], Future[bytes]],
        forget_details: Callable[[str], None],
    ) -> None:
        self._details = details
        self._thumbnail = thumbnail
        self._forget_details = forget_details

    def names(self, node: Node, turn: Turn) -> list[str]:
        """Return the attributes a file has and lists."""
        if not isinstance(node, SampleEntry):
            # that of a local file is readable all the same; tools that copy attributes would take it along
            return []
        sample = turn.result(self._details(node.sample_id))
        always = ["sample_id", "file_name", "upload"]
        return [PREFIX + name for name in always + [key for key, value in _facts_of(sample).items() if value]]

    def value(self, path: str, node: Node, name: str, turn: Turn) -> bytes:
        """Return the value of one attribute, text in UTF-8; NoAttribute where the file has no such thing."""
        key = name.removeprefix(PREFIX)
        if isinstance(node, LocalFile) and name == PREFIX + "upload":
            return describe(node.record).encode()
        if not isinstance(node, SampleEntry) or not name.startswith(PREFIX):
            raise NoAttribute(f"no attribute {name}: {path}")
        if key == "sample_id":
            return node.sample_id.encode()
        if key == "file_name":
            return true_name(path, node).encode("utf-8", "surrogatepass")
        if key == "upload":
            return b"uploaded"
        if name == _UNLISTED:
            return self._thumbnail_of(path, node, turn)
        value = _facts_of(turn.result(self._details(node.sample_id))).get(key)
        if not value:
            raise NoAttribute(f"no attribute {name}: {path}")
        return value

    def forget(self, entry: SampleEntry) -> None:
        """Drop the cached details of a sample that was changed."""
        self._forget_details(entry.sample_id)

    @staticmethod
    def check_name(name: str) -> None:
        """Raise UnknownNamespace for names outside `user.`, without a request."""
        if not name.startswith("user."):
            raise UnknownNamespace(f"attributes of this namespace are not kept: {name}")

    def _thumbnail_of(self, path: str, entry: SampleEntry, turn: Turn) -> bytes:
        try:
            return turn.result(self._thumbnail(entry.sample_id, str(entry.mtime)))
        except NotFound as error:
            raise NoAttribute(f"the sample has no thumbnail: {path}") from error


def _facts_of(sample: Sample) -> dict[str, bytes]:
    """Return the attributes that come of the sample's details; empty where it has no such thing."""
    return {
        "type": (sample.type or "").encode(),
        "metadata": _json(sample.meta_data),
        "custom_metadata": _json(sample.custom_meta_data),
        "exif": _json(sample.exif),
    }


def _json(value: object) -> bytes:
    text = b"" if value is None else msgspec.json.encode(value)
    return b"" if text == b"{}" else text


def describe(record: Record) -> str:
    """Return what will become of a local file, for a person to read."""
    state = record.state.value
    if record.state is State.OPEN:
        return "being written"
    return f"{state}: {record.error}" if record.error else state
