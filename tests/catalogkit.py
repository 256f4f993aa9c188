"""A dataset in memory behind `Remote`, for tests of the catalogue, and names derived from the spec alone."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contentkit import Clock, Inline

from lightlyfs.api.models import Sample, SampleMetaData
from lightlyfs.catalog.entries import Changes, Row, make_row
from lightlyfs.catalog.freshness import Freshness, FreshnessConfig
from lightlyfs.catalog.listing import Lister
from lightlyfs.catalog.refresher import Refresher
from lightlyfs.catalog.remote import DatasetState, Remote
from lightlyfs.catalog.sample_catalog import Catalog, Census
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.errors import DeadlineExceeded, NotFound


@dataclass
class Record:
    """A sample as the server has it."""

    name: str
    mtime: int = 100
    hint: int | None = None


@dataclass
class FakeRemote:
    """The API; `asked` counts requests by kind, `fail` is raised by each, `before` is called by each."""

    records: dict[str, Record] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    fail: Exception | None = None
    before: Callable[[str], None] = lambda kind: None
    modified: int = 0
    samples: int | None = -1  # what the dataset's record claims; -1: the truth
    filter_ignored: bool = False
    page_limit: int = 1000

    def _ask(self, kind: str) -> None:
        self.asked.append(kind)
        self.before(kind)
        if self.fail is not None:
            raise self.fail

    def dataset(self) -> DatasetState:
        self._ask("dataset")
        claimed = len(self.records) if self.samples == -1 else self.samples or 0
        return DatasetState("cars", claimed, 0, 1, self.modified)

    def page(self, offset: int, size: int) -> Sequence[Row]:
        self._ask("page")
        rows = itertools.islice(self.records.items(), offset, offset + min(size, self.page_limit))
        return [self._row(sample_id, record) for sample_id, record in rows]

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        return rows

    def find(self, file_name: str) -> list[Row]:
        self._ask("find")
        if self.filter_ignored:
            return []
        found = sorted(item for item in self.records.items() if item[1].name == file_name)
        return [self._row(sample_id, record) for sample_id, record in found]

    def sample(self, sample_id: str) -> Sample:
        self._ask("sample")
        record = self.records.get(sample_id)
        if record is None:
            raise NotFound("no such sample", status=404, code="SAMPLE_UNKNOWN")
        return Sample(
            id=sample_id,
            file_name=record.name,
            last_modified_at=record.mtime * 1000,
            meta_data=SampleMetaData(size_in_bytes=record.hint),
        )

    @staticmethod
    def _row(sample_id: str, record: Record) -> Row:
        return make_row(sample_id, record.name, record.hint, record.mtime, 50)


class Impatient:
    """A caller who waits `rounds` times and then gives up."""

    def __init__(self, rounds: int = 1) -> None:
        self.rounds = rounds

    def check(self) -> None:
        self.rounds -= 1
        if self.rounds < 0:
            raise DeadlineExceeded("no answer")

    def restart(self) -> None:
        """The caller gives up all the same."""


class Reachable:
    """A server that answers, and takes our token."""

    def outage(self) -> None:
        """Nothing fails."""

    def outage_s(self) -> float:
        return 0.0

    def has_new_token(self) -> bool:
        return False


def refresher(
    store: CatalogStore,
    remote: Remote,
    config: FreshnessConfig,
    clock: Clock,
    on_changes: Callable[[Changes], None],
) -> Refresher:
    """A refresher whose work is done in the calling thread."""
    lister = Lister(store, remote, config, executor=Inline(), clock=clock, sleep=clock.sleep)
    freshness = Freshness(config, store.get_meta, clock=clock, wall_clock=clock)
    return Refresher(store, lister, freshness, Reachable(), executor=Inline(), on_changes=on_changes)


class World:
    """A catalogue over a remote, with an inline pool and time that does not pass by itself."""

    def __init__(
        self,
        directory: Path,
        remote: FakeRemote,
        *,
        ttl_s: float = 60.0,
        page_size: int = 3,
        clock: Clock | None = None,
    ) -> None:
        self.remote = remote
        self.clock = clock or Clock()
        self.changes: list[Changes] = []
        self.on_changes: Callable[[Changes], None] = self.changes.append
        self.store = CatalogStore(directory / "catalog.db")
        config = FreshnessConfig(ttl_s, page_size, parallel_pages=2)
        self.refresher = refresher(self.store, remote, config, self.clock, self._changed)
        census = Census(self.store, "none")
        self.catalog = Catalog(self.store, remote, self.refresher, config, census, clock=self.clock)

    def _changed(self, changes: Changes) -> None:
        self.catalog.note_changes()
        self.on_changes(changes)

    def tree(self) -> dict[str, str]:
        """Every path with the id of its sample, or "" for a directory, by listing."""
        found: dict[str, str] = {}
        left = [""]
        while left:
            path = left.pop()
            directories, samples = self.catalog.list_directory(path, Impatient())
            prefix = f"{path}/" if path else ""
            left += [prefix + entry.name for entry in directories]
            found.update({prefix + entry.name: "" for entry in directories})
            found.update({prefix + entry.name: entry.sample_id for entry in samples})
        return found


# the rules of names as `semantics` promises them, spelled without the code under test


def _escape(part: str) -> str:
    producible = r"%(?=00|2F|2E|25|FE|ED%[AB][0-9A-F]%[89AB][0-9A-F])"
    part = re.sub(producible, "%25", part).replace("\0", "%00")
    return "".join(
        "".join(f"%{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))
        if "\ud800" <= char <= "\udfff"
        else char
        for char in part
    )


def _parts(name: str) -> list[str]:
    if name == "":
        return ["%FE"]
    if set(name) == {"/"}:
        return ["%2F" * len(name)]
    body = name.rstrip("/")
    tail = "%2F" * (len(name) - len(body))
    parts: list[str] = []
    for match in re.finditer(r"(/*)([^/]+)", body):
        slashes, raw = match[1], match[2]
        owed = len(slashes) - (1 if parts else 0)  # the first slash between two parts splits them
        if raw in (".", ".."):
            text = raw.replace(".", "%2E")
        elif raw == ".lightlyfs" and not parts and not owed:
            text = "%2Elightlyfs"
        else:
            text = _escape(raw)
        parts.append("%2F" * owed + text)
    return [*parts[:-1], parts[-1] + tail]


def _insert(component: str, suffix: str) -> str:
    """`suffix` before the extension, the stem cut where the whole would be over 255 bytes."""
    stem, dot, extension = component.rpartition(".")
    if not dot or not stem or len(extension.encode()) > 32:
        stem, dot, extension = component, "", ""
    raw = component.encode()
    if len(raw) + len(suffix) > 255:
        suffix = "~" + hashlib.sha256(raw).hexdigest()[:8] + suffix
        room = 255 - len(suffix) - len((dot + extension).encode())
        stem = stem.encode()[:room].decode("utf-8", "ignore")
    return stem + suffix + dot + extension


def expected_tree(records: dict[str, Record]) -> dict[str, str]:
    """What a user may see: every path with its sample's id, or "" for a directory."""
    wanted: dict[tuple[str, ...], list[str]] = {}
    directories: set[tuple[str, ...]] = set()
    for sample_id in sorted(records):
        path = tuple(_insert(part, "") for part in _parts(records[sample_id].name))
        wanted.setdefault(path, []).append(sample_id)
        directories.update(path[:depth] for depth in range(1, len(path)))
    found = {"/".join(path): "" for path in directories}
    taken = {*wanted, *directories}
    given: set[tuple[str, ...]] = set()
    for path in sorted(wanted, key=lambda path: (path[:-1], path[-1])):
        ids = wanted[path]
        for position, sample_id in enumerate(ids):
            name = path
            if position or path in directories:
                suffixes = ["~" + sample_id[-8:]] + ["~" + sample_id + "~" * more for more in range(50)]
                names = ((*path[:-1], _insert(path[-1], suffix)) for suffix in suffixes)
                name = next(name for name in names if name not in taken and name not in given)
            given.add(name)
            found["/".join(name)] = sample_id
    return found
