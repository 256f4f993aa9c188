"""The records of the catalogue: samples and directories, and what storage reported of a sample. Pure."""

from __future__ import annotations

from typing import NamedTuple

from lightlyfs.catalog.names import split_path
from lightlyfs.tree import sample_ino


class Row(NamedTuple):
    """A sample as the API lists it, its name already split into a path."""

    id: bytes
    directory: str
    wanted: str
    file_name_raw: bytes | None
    hint: int | None
    mtime: int
    created: int

    @property
    def path(self) -> str:
        """The path that it wants."""
        return f"{self.directory}/{self.wanted}" if self.directory else self.wanted


def make_row(sample_id: str, file_name: str, hint: int | None, mtime: int, created: int) -> Row:
    """Split a sample's name into its path; `hint` is in bytes, the times in whole seconds."""
    directory, wanted = split_path(file_name)
    spelled = f"{directory}/{wanted}" if directory else wanted
    return Row(
        bytes.fromhex(sample_id), directory, wanted, name_beside(spelled, file_name), hint, mtime, created
    )


def name_beside(path: str, name: str) -> bytes | None:
    """Return what is kept of a sample's name beside its path: None where the path spells it."""
    return None if name == path else name.encode("utf-8", "surrogatepass")


class SampleEntry(NamedTuple):
    """A sample as a directory entry.

    `size` (bytes) and `etag` are what storage last reported, None until it did; they count as true while
    `verified` is set, and are a better guess than `size_hint` otherwise. `stands` is set where nothing
    contradicts them. It stays set after a refresh that asks storage again, as long as no listing differs.
    """

    name: str
    ino: int
    id: bytes
    file_name_raw: bytes | None
    size_hint: int | None
    mtime: int
    size: int | None
    etag: str | None
    verified: bool
    stands: bool

    @property
    def published_size(self) -> int | None:
        """The size to show, in bytes; None where nothing is known."""
        return self.size_hint if self.size is None else self.size

    @property
    def sample_id(self) -> str:
        """The id as the API spells it, 24 hex digits."""
        return self.id.hex()

    def at(self, path: str, name: str) -> SampleEntry:
        """Return the sample at another path, where it has this name."""
        return self._replace(name=path.rpartition("/")[2], file_name_raw=name_beside(path, name))


class DirectoryEntry(NamedTuple):
    """A directory; `mtime` is that of the newest sample below it, in seconds."""

    name: str
    ino: int
    mtime: int


Entry = SampleEntry | DirectoryEntry
# of a sample in the order of the table: the inode number of its directory, and its name
Place = tuple[int, str]


class Facts(NamedTuple):
    """What storage reported of a sample: its size in bytes and its version.

    `of` is the time and the size hint the sample had then, for it counts no longer once they move; None
    where the sample was not listed yet: they count unless the listing tells another size. Facts that are not
    `certain` are shown, but verify nothing. `before` is the version that the store had then.
    """

    size: int
    etag: str
    of: tuple[int, int | None] | None = None
    certain: bool = True
    before: str | None = None

    def hold_for(self, entry: SampleEntry) -> bool:
        """Return whether the sample is still what storage was asked about."""
        if self.of is None:
            return entry.size_hint in (None, self.size)
        return self.of == (entry.mtime, entry.size_hint)

    def applied_to(self, entry: SampleEntry) -> SampleEntry:
        """Return the sample with these facts; unchanged where it is not what storage was asked about."""
        if not self.hold_for(entry):
            return entry
        sure = self.certain
        return entry._replace(size=self.size, etag=self.etag, verified=sure, stands=sure)


def true_name(path: str, entry: SampleEntry) -> str:
    """Return the sample's name on the server, which its path may spell differently."""
    raw = entry.file_name_raw
    return path if raw is None else raw.decode("utf-8", "surrogatepass")


def entry_of(row: Row) -> SampleEntry:
    """Return a sample that no listing has met yet, as a directory entry."""
    known = row.wanted, sample_ino(row.id), row.id, row.file_name_raw, row.hint, row.mtime
    return SampleEntry(*known, size=None, etag=None, verified=False, stands=False)


class Changes(NamedTuple):
    """What a new listing changed; `paths` is None where everything may have changed."""

    added: int
    changed: int
    gone: int
    paths: tuple[str, ...] | None

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.gone)


class Totals(NamedTuple):
    """Sums over the catalogue; `unverified` counts the samples storage has not reported yet."""

    samples: int
    directories: int
    bytes: int
    unverified: int


class News(NamedTuple):
    """What other processes wrote: names, or versions of what is shown (`changed`), sizes (`resized`), or
    only what was not announced before.

    `refreshed`: storage is to be asked again for what it said before.
    """

    changed: bool
    resized: bool
    refreshed: bool = False
