"""Changes to the tree: rename, unlink, directories, set attributes."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry, true_name
from lightlyfs.catalog.tree import join_name
from lightlyfs.errors import (
    AttributeTooLarge,
    BadName,
    DirectoryNotEmpty,
    DirectoryTooLarge,
    FileExists,
    InvalidArgument,
    IsADirectory,
    LightlyFsError,
    NoSuchFile,
    NotADirectory,
    NotPermitted,
    TooLarge,
    UnknownNamespace,
)
from lightlyfs.fs.local import LocalFiles
from lightlyfs.fs.local_file import LocalFile
from lightlyfs.fs.namespace import Namespace, Node
from lightlyfs.fs.paths import is_scratch
from lightlyfs.fs.patience import Turn
from lightlyfs.fs.writer import Writer
from lightlyfs.fs.xattrs import PREFIX
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.journal import State

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1  # linux/fs.h
MAX_RENAMED_SAMPLES = 1_000


@dataclass(frozen=True)
class ChangeParts:
    """What changing the tree works with."""

    namespace: Namespace
    local: LocalFiles
    writer: Writer
    edits: SampleEdits


def name_at(path: str) -> str:
    """The sample name whose path this is; BadName where no sample can have it.

    Raises UnicodeEncodeError for a path that is not UTF-8.
    """
    path.encode()
    name = join_name(path.split("/"))
    if name is None:
        raise BadName(f"no sample can be called so, for its path would be another one: {path}")
    return name


def refuse_trash(path: str) -> None:
    """NotPermitted for a trash folder: moving files there would rename samples on the server."""
    if any(part.startswith(".Trash") for part in path.split("/")):
        raise NotPermitted(f"there is no trash on a dataset: {path}")


class TreeChanges:
    """Changes to the tree of one mount; any thread may call."""

    def __init__(self, parts: ChangeParts) -> None:
        self._names = parts.namespace
        self._local = parts.local
        self._writer = parts.writer
        self._edits = parts.edits

    # directories

    def make_directory(self, path: str, turn: Turn) -> None:
        """Make a directory that lives until the mount ends, or for good once a sample is in it."""
        refuse_trash(path)
        name_at(path + "/x")
        if self._names.find(path, turn) is not None:
            raise FileExists(f"it exists already: {path}")
        self._local.make_directory(path)

    def remove_directory(self, path: str, turn: Turn) -> None:
        """Remove an empty directory."""
        node = self._names.lookup(path, turn)
        if not isinstance(node, DirectoryEntry):
            raise NotADirectory(f"not a directory: {path}")
        if not self._names.is_empty(path, turn):
            raise DirectoryNotEmpty(f"the directory is not empty: {path}")
        self._local.remove_directory(path)
        self._names.renamed.note_removed(path)

    # files

    def unlink(self, path: str, turn: Turn) -> None:
        """Remove a local file; NotPermitted for a sample, for which the API has no delete."""
        node = self._names.lookup(path, turn)
        if isinstance(node, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        if isinstance(node, SampleEntry):
            raise NotPermitted(f"{path} is a sample, and the Lightly API cannot delete samples")
        self._writer.remove(node)

    def rename(self, old: str, new: str, flags: int, turn: Turn) -> None:
        """Rename a file or directory; samples are renamed on the server.

        A rename of a scratch file to a real name uploads it, and reports as `close` does.
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument("exchanging two names is not possible")
        refuse_trash(new)
        node, target = self._names.lookup(old, turn), self._names.find(new, turn)
        if target is not None and flags & RENAME_NOREPLACE:
            raise FileExists(f"it exists already: {new}")
        if old == new:
            return
        if isinstance(node, DirectoryEntry):
            self._rename_directory(old, new, target, turn)
        elif isinstance(target, DirectoryEntry):
            raise IsADirectory(f"a directory: {new}")
        elif isinstance(node, LocalFile):
            self._rename_local(node, new, target, turn)
        else:
            self._rename_sample(node, old, new, target, turn)

    def set_attribute(self, path: str, name: str, value: bytes | None, turn: Turn) -> SampleEntry:
        """Set, or with None remove, the one extended attribute that can be: the custom metadata."""
        if name != PREFIX + "custom_metadata":
            if name.startswith(PREFIX):
                raise NotPermitted(f"{name} cannot be set")
            raise UnknownNamespace(f"attributes of this name are not kept: {name}")
        node = self._names.lookup(path, turn)
        if not isinstance(node, SampleEntry):
            raise NotPermitted(f"{path} is not on the server yet")
        metadata = None if value is None else _json_object(value)
        try:
            turn.result(self._edits.set_custom_metadata(node.sample_id, metadata))
        except TooLarge as error:
            raise AttributeTooLarge(str(error)) from error
        return node

    # one kind at a time

    def _rename_local(self, file: LocalFile, new: str, target: Node | None, turn: Turn) -> None:
        changes: dict[str, object] = {"path": new, "name": name_at(new)}
        if file.record.sample_id is not None:
            self._rename_sent(file, new, target, turn)
            return
        if isinstance(target, SampleEntry):
            self._writer.need_overwrite(new)
            changes |= {"name": true_name(new, target), "sample_id": target.sample_id, "replaces": True}
        replaced = target if isinstance(target, LocalFile) else None
        if replaced is not None:
            self._writer.set_aside(replaced)
        try:
            if not self._move_local(file, changes):
                self._rename_sent(file, new, target, turn)
        except BaseException:
            if replaced is not None and self._local.get(new) is not file:
                self._writer.show_again(replaced)
                replaced = None
            raise
        finally:
            if replaced is not None:
                self._local.discard(replaced)

    def _rename_sent(self, file: LocalFile, new: str, target: Node | None, turn: Turn) -> None:
        """It is on its way under its old name: once there, it is renamed like any sample."""
        old = file.path
        self._writer.wait_uploaded(file)
        entry = self._names.lookup(old, turn)
        if not isinstance(entry, SampleEntry):
            raise NotPermitted(f"{old} is a sample that is being changed; close it, and try again")
        self._rename_sample(entry, old, new, target, turn)

    def _move_local(self, file: LocalFile, changes: dict[str, object]) -> bool:
        """Rename what the server has not heard of; False where it is on its way."""
        with file.lock:
            if file.unlinked or self._local.get(file.path) is not file:
                raise NoSuchFile(f"it is elsewhere by now: {file.path}")
            if not self._writer.withdraw(file):
                return False
            record = file.record.changed(**changes)
            stays = file.size == 0 or (is_scratch(record.path) and not record.replaces)
            if stays and record.state in (State.PENDING, State.FAILED) and not record.broken:
                record = record.changed(state=State.LOCAL, error="")
            if stays or (file.handles and file.dirty):
                # where it is being written, its close uploads it, under the name it has then
                self._writer.rename_here(file, record)
                return True
        self._writer.upload_as(file, changes)
        return True

    def _rename_sample(self, entry: SampleEntry, old: str, new: str, target: Node | None, turn: Turn) -> None:
        if target is not None:
            raise NotPermitted(f"{new} exists, and the Lightly API cannot replace one sample by another")
        if is_scratch(new):
            raise NotPermitted(
                f"{old} is a sample; it is not renamed to the name of something unfinished: {new}"
            )
        name = name_at(new)
        has_object = entry.published_size != 0
        turn.result(self._edits.rename(entry.sample_id, true_name(old, entry), name, has_object=has_object))
        raw = None if name == new else name.encode("utf-8", "surrogatepass")
        renamed = entry._replace(name=new.rpartition("/")[2], file_name_raw=raw)
        # also where a local file shows it: a listing under way may still bring the old name
        self._names.renamed.note(old, new, renamed)
        self._writer.takeover.follow(renamed, new)
        local = self._local.get(old)
        if local is not None and local.record.sample_id == entry.sample_id:
            self._local.move_uploaded(local, new, name)

    def _rename_directory(self, old: str, new: str, target: Node | None, turn: Turn) -> None:
        if new.startswith(old + "/"):
            raise InvalidArgument("a directory cannot be moved into itself")
        if target is not None:
            if not isinstance(target, DirectoryEntry):
                raise NotADirectory(f"not a directory: {new}")
            if not self._names.is_empty(new, turn):
                raise DirectoryNotEmpty(f"the directory is not empty: {new}")
        name_at(new + "/x")
        samples = self._samples_below(old, turn)
        renames = [(true_name(path, e), name_at(new + path[len(old) :]), e.sample_id) for path, e in samples]
        journal = self._local.journal
        journal.put_renames(renames)
        for path, entry in samples:
            try:
                self._rename_sample(entry, path, new + path[len(old) :], None, turn)
            except LightlyFsError:
                for _, _, sample_id in renames:
                    journal.remove_rename(sample_id)
                raise
            journal.remove_rename(entry.sample_id)
            turn.restart()
        for file in self._local.below(old):
            self._rename_local(file, new + file.path[len(old) :], None, turn)
        self._local.move_directories(old, new)
        self._names.renamed.note_directory(old, new)
        if not samples:
            self._local.make_directory(new)
            self._local.remove_directory(old)

    def _samples_below(self, directory: str, turn: Turn) -> list[tuple[str, SampleEntry]]:
        found: list[tuple[str, SampleEntry]] = []
        waiting = [directory]
        while waiting:
            path = waiting.pop()
            for name, attr in self._names.list_directory(path, turn).entries:
                child = f"{path}/{name}"
                if attr.is_directory:
                    waiting.append(child)
                elif isinstance(node := self._names.lookup(child, turn), SampleEntry):
                    found.append((child, node))
            if len(found) > MAX_RENAMED_SAMPLES:
                raise DirectoryTooLarge(
                    f"{directory} has over {MAX_RENAMED_SAMPLES:,} samples, too many to rename one by one"
                )
        return found


def _json_object(value: bytes) -> dict[str, object] | None:
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise InvalidArgument(f"the value is not JSON: {error}") from None
    if parsed is not None and not isinstance(parsed, dict):
        raise InvalidArgument("the value is JSON, but not an object")
    return parsed
