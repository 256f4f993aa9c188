"""The records of the journal: of local files, with the transitions of their states, and of the rest. Pure.

    OPEN         being written; its bytes may change at any time
    LOCAL        complete, and for this machine only: its name does not count, or it is empty
    PENDING      complete, and owed to the server
    FAILED       owed, but the server refused it for good, or its write failed: a person has to decide
    INTERRUPTED  its writer or the mount was killed: half a file, which nothing uploads by itself
    UPLOADED     the server has it; kept until a listing holds the sample

A file that `replaces` a sample's image and is INTERRUPTED is not shown: the sample shows its old bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple


class State(StrEnum):
    """The state of a local file; see the module."""

    OPEN = "open"
    LOCAL = "local"
    PENDING = "pending"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    UPLOADED = "uploaded"


# every state may follow itself; what is not here is a fault of ours. `docs/semantics.md` shows the same table
TRANSITIONS: dict[State, frozenset[State]] = {
    State.OPEN: frozenset({State.LOCAL, State.PENDING, State.FAILED, State.INTERRUPTED}),
    State.LOCAL: frozenset({State.OPEN, State.PENDING, State.FAILED, State.INTERRUPTED}),
    State.PENDING: frozenset({State.OPEN, State.LOCAL, State.FAILED, State.UPLOADED, State.INTERRUPTED}),
    State.FAILED: frozenset({State.OPEN, State.LOCAL, State.PENDING, State.UPLOADED, State.INTERRUPTED}),
    State.INTERRUPTED: frozenset({State.OPEN, State.LOCAL, State.PENDING, State.FAILED}),
    State.UPLOADED: frozenset({State.OPEN}),
}


@dataclass(frozen=True)
class Record:
    """One local file; `LocalFiles.update` is the only way from one record of a file to its next.

    `path` is its place on the mount, `name` the sample's name or "" where no sample can have it. `generation`
    counts the states of its bytes. `mode` are its permission bits; times are in nanoseconds. `mark` is what
    a create of it carries, so that a create whose reply was lost can be told. `replaces` is set where
    `sample_id` is a sample that existed before. `etag` is what storage called the upload. `broken` is the
    errno of a write that failed, or 0: it is half a file then. While `generation` is being written,
    `acknowledged` is the earlier one that the server is still owed, or -1. `checksum` is the CRC-32 of
    the last generation that was sealed, or -1.
    """

    key: str
    path: str
    name: str
    state: State
    generation: int = 0
    size: int = 0
    mode: int = 0o644
    atime_ns: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    sample_id: str | None = None
    mark: str = ""
    create_sent: bool = False
    replaces: bool = False
    thumbnail_done: bool = False
    etag: str = ""
    error: str = ""
    broken: int = 0
    acknowledged: int = -1
    checksum: int = -1

    def changed(self, **values: Any) -> Record:
        """Return a copy with other values; ValueError where the state may not follow."""
        state = values.get("state", self.state)
        if state is not self.state and state not in TRANSITIONS[self.state]:
            raise ValueError(f"{self.path}: {self.state} cannot become {state}")
        if not values.keys() <= _FIELD_NAMES:
            raise TypeError(f"a record has no {', '.join(values.keys() - _FIELD_NAMES)}")
        # a tenth of the time that `dataclasses.replace` takes, eight times for each new file
        changed = object.__new__(Record)
        vars(changed).update(vars(self) | values)
        return changed

    @property
    def mtime(self) -> int:
        """Its time in whole seconds, as samples have it."""
        return self.mtime_ns // 1_000_000_000

    @property
    def owed(self) -> bool:
        """Whether the server is still to get it."""
        return self.state in (State.PENDING, State.FAILED)

    @property
    def hidden(self) -> bool:
        """Whether it is half of a new image for a sample, which shows its old one."""
        return self.state is State.INTERRUPTED and self.replaces


# what a later generation of a file has in common with an earlier one: an upload of that may still tell it
IDENTITY = frozenset({"sample_id", "mark", "create_sent", "replaces"})
FIELDS = tuple(field.name for field in fields(Record))
_FIELD_NAMES = frozenset(FIELDS)


class LocalDirectory(NamedTuple):
    """A directory that was made on this mount; times in nanoseconds."""

    path: str
    mode: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class SetTime(NamedTuple):
    """A time that was set on one version of a sample, in seconds, and when that was, in nanoseconds."""

    mtime: int
    version: str
    ctime_ns: int


# in the key of a planned rename; the id of a sample holds no colon
_FILE, _DIRECTORY, _BACK = "file:", "directory:", "back:"


class Planned(NamedTuple):
    """One of the renames that the rename of a directory takes.

    Of a sample by its id, and then these are its names; of a local file or of the directory itself, and then
    these are paths.
    """

    old: str
    new: str
    key: str

    @classmethod
    def of_file(cls, old: str, new: str, record: Record) -> Planned:
        """Return the rename of a local file."""
        return cls(old, new, _FILE + record.key)

    @classmethod
    def of_directory(cls, old: str, new: str) -> Planned:
        """Return the rename of the directory, which comes last."""
        return cls(old, new, _DIRECTORY + old)

    def back(self) -> Planned:
        """Return the rename that takes this one back."""
        return Planned(self.new, self.old, _BACK + self.key)

    @property
    def is_back(self) -> bool:
        """Whether it takes another one back, so that the new name is one that it had."""
        return self.key.startswith(_BACK)

    @property
    def sample_id(self) -> str:
        """The id of the sample; of other renames it means nothing."""
        return self.key.removeprefix(_BACK)

    @property
    def file_key(self) -> str:
        """The key of the local file, "" for other renames."""
        key = self.key.removeprefix(_BACK)
        return key.removeprefix(_FILE) if key.startswith(_FILE) else ""

    @property
    def is_directory(self) -> bool:
        """Whether it is that of the directory."""
        return self.key.startswith(_DIRECTORY)


class Renamed(NamedTuple):
    """A sample that was renamed, from one path to another, at a time in seconds since 1970."""

    sample_id: str
    old: str  # as the last listing before it had it
    new: str
    renamed_s: int


class Leftover(NamedTuple):
    """A sample that cannot be deleted and was renamed out of the way."""

    sample_id: str
    was: str  # its name before
    name: str
