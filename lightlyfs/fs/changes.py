"""Changes the tree: rename, unlink, directories, set attributes.

A sample keeps its identity. It never gets a name that would not be uploaded. A file renamed over a sample
replaces its bytes, and the sample keeps its id. A change of a file that is being uploaded waits for the end
of the upload, and then changes the sample.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from typing import Any

from cachetools import TTLCache

from lightlyfs.catalog.entries import DirectoryEntry, SampleEntry, true_name
from lightlyfs.catalog.names import is_text, join_name
from lightlyfs.errors import (
    AttributeTooLarge,
    BadName,
    Cancelled,
    DeadlineExceeded,
    DirectoryNotEmpty,
    DirectoryTooLarge,
    FileError,
    FileExists,
    Interrupted,
    InvalidArgument,
    IsADirectory,
    NoSuchFile,
    NotADirectory,
    NotPermitted,
    Retryable,
    TooLarge,
    UnknownNamespace,
)
from lightlyfs.fs.conversion import Completion
from lightlyfs.fs.handles import Callers
from lightlyfs.fs.namespace import HIDDEN_PREFIX, Namespace, Node
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.renames_left import RenamesLeft
from lightlyfs.fs.views import PREFIX, SHOWN
from lightlyfs.fs.writer import Writer
from lightlyfs.name_rules import is_trash
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Planned, State

log = logging.getLogger(__name__)

RENAME_NOREPLACE = 1  # linux/fs.h
MAX_RENAMED_SAMPLES = 1_000
_DIRECTORY_MODE = 0o755
# the wait for a rename ended before the rename did
_GIVEN_UP = (Interrupted, Cancelled, DeadlineExceeded)
# a program that may not link a file renames it at once, or copies it
_LINK_REFUSED_S, _MAX_LINKS_REFUSED = 1.0, 1_000


def sample_name(path: str) -> str:
    """Return the name of a new sample whose path this is, "" where none can have it.

    Raises UnicodeEncodeError for a path that is not UTF-8.
    """
    path.encode()
    name = join_name(path.split("/")) or ""
    return name if is_text(name) else ""


def refuse_trash(path: str) -> None:
    """NotPermitted for a trash folder: desktops would rename samples into it."""
    if is_trash(path):
        raise NotPermitted(f"there is no trash on a dataset: {path}")


class TreeChanges:
    """Changes to the tree of one mount; any thread may call."""

    def __init__(
        self,
        namespace: Namespace,
        local: LocalFiles,
        writer: Writer,
        edits: SampleEdits,
        completion: Completion,
        callers: Callers,
        patience: Patience,
    ) -> None:
        self._names = namespace
        self._local = local
        self._writer = writer
        self._edits = edits
        self._completion = completion
        self._callers = callers
        self.left = RenamesLeft(self, namespace, local, writer, edits, patience)
        self._links_lock = threading.Lock()
        # guarded by _links_lock: (process, old, new)
        self._links_refused: TTLCache[tuple[int, str, str], None] = TTLCache(
            _MAX_LINKS_REFUSED, _LINK_REFUSED_S, timer=time.monotonic
        )

    def name_at(self, path: str, was: str = "") -> str:
        """Return the sample name whose path this is, "" for a name that stays here.

        BadName for one that counts although no new sample can have it. `was` is the name before, of a sample:
        one that a new sample may not have the server has taken, and it may be renamed to another such name.
        """
        name = sample_name(path)
        if self._writer.counts(path) and not self._names.rules.shows(path):
            raise NotPermitted(f"--include or --exclude hides this name on this mount: {path}")
        if not name and self._writer.counts(path):
            spelled = join_name(path.split("/"))
            if not spelled:
                raise BadName(f"no sample can be called so, for its path would be another one: {path}")
            if is_text(was):
                raise BadName(f"no new sample is called so, which a server may refuse: {spelled!a}")
            return spelled
        return name

    # directories

    def make_directory(self, path: str, mode: int, turn: Turn) -> None:
        """Make a directory; it lives on this machine, and on others once a sample is in it."""
        refuse_trash(path)
        sample_name(path)
        if self._names.find(path, turn) is not None:
            raise FileExists(f"it exists already: {path}")
        self._local.make_directory(path, mode & 0o7777)

    def remove_directory(self, path: str, turn: Turn) -> None:
        """Remove an empty directory."""
        node = self._names.lookup(path, turn)
        if not isinstance(node, DirectoryEntry):
            raise NotADirectory(f"not a directory: {path}")
        if not self._names.is_empty(path, turn):
            raise DirectoryNotEmpty(f"the directory is not empty: {path}")
        self._local.remove_directory(path)
        self._names.renamed.note_removed(path)

    def set_directory(self, path: str, **values: int | None) -> None:
        """Set the mode or times of a directory that was made here; of others they cannot be kept."""
        known = {name: value for name, value in values.items() if value is not None}
        self._local.change_directory(path, **known)

    # files

    def unlink(self, path: str, turn: Turn) -> None:
        """Remove a local file; NotPermitted for a sample, for which the API has no delete."""
        node = self._names.lookup(path, turn)
        if isinstance(node, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        if path.rpartition("/")[2].startswith(HIDDEN_PREFIX):
            self._names.removed.closed(path)
        elif isinstance(node, SampleEntry):
            self._remove_sample(path, node)
        else:
            self._remove_local(path, node, turn)

    def hide(self, path: str, hidden: str, turn: Turn) -> None:
        """Give an open file that is about to be removed or replaced a hidden name, as libfuse asks for it.

        What is asked for, a removal or a rename, is seen in the call that the program waits in. Where that
        cannot be seen a file of this machine is removed, and a sample is out of view for a moment.
        """
        node, unlinks = self._names.lookup(path, turn), self._callers.caller_unlinks()
        if isinstance(node, DirectoryEntry):
            raise IsADirectory(f"a directory: {path}")
        if isinstance(node, SampleEntry):
            if unlinks:
                self._remove_sample(path, node)
            else:
                self._writer.need_overwrite(path)
                if unlinks is None:
                    self._names.removed.remove(path, node)
        elif unlinks is not False:
            self._remove_local(path, node, turn)
        self._names.removed.hide(hidden, node, path)

    def _remove_local(self, path: str, file: LocalFile, turn: Turn) -> None:
        """Remove a local file, or take the sample that it is becoming out of view to be replaced."""
        try:
            self._writer.remove(file)
        except NotPermitted:
            if not (self._may_replace() and self._writer.is_under_way(file)):
                raise
            self._writer.need_overwrite(path)
            self._writer.wait_uploaded(file)
            node = self._names.lookup(path, turn)
            if not isinstance(node, SampleEntry):
                raise
            self._remove_sample(path, node)

    def note_refused_link(self, old: str, new: str) -> None:
        """Note that the caller wanted a file under a second name, and meant to keep the first."""
        with self._links_lock:
            self._links_refused[self._callers.caller_process(), old, new] = None

    def _refuse_for_link(self, old: str, new: str) -> None:
        """NotPermitted where the caller renames for want of a link: then it copies, and the id stays.

        Where it could not replace the sample after that, the copy would be one sample too many.
        """
        with self._links_lock:
            wanted = (self._callers.caller_process(), old, new) in self._links_refused
        if wanted and self._writer.policy.allow_overwrite:
            raise NotPermitted(
                f"{old} is a sample; it is not renamed to {new} in place of a link, but copied"
            )

    def _may_replace(self) -> bool:
        """Return whether the caller is a program that removes what it is about to write."""
        process = self._callers.caller_process()
        return self._names.removed.may_replace(process, self._callers.caller_name())

    def _remove_sample(self, path: str, entry: SampleEntry) -> None:
        """Take a sample out of view for the program that is about to replace it; else NotPermitted."""
        if not self._may_replace():
            raise NotPermitted(
                f"{path} is a sample, and the Lightly API cannot delete samples (to replace it, use cp -f)"
            )
        self._writer.need_overwrite(path)
        self._names.removed.remove(path, entry)

    def rename(self, old: str, new: str, flags: int, turn: Turn) -> None:
        """Rename a file or directory; samples are renamed on the server.

        A rename of a scratch file to a real name uploads it, and reports as `close` does.
        """
        if flags & ~RENAME_NOREPLACE:
            raise InvalidArgument("exchanging two names is not possible")
        refuse_trash(new)
        node = self._names.lookup(old, turn)
        target = self._names.removed.take(new) or self._names.find(new, turn)
        if target is not None and flags & RENAME_NOREPLACE:
            raise FileExists(f"it exists already: {new}")
        if old == new:
            return
        self.left.supersede(node)
        if isinstance(node, DirectoryEntry):
            self._rename_directory(old, new, target, turn)
        elif isinstance(target, DirectoryEntry):
            raise IsADirectory(f"a directory: {new}")
        elif isinstance(node, LocalFile):
            self._rename_local(node, new, target, turn)
        else:
            self._refuse_for_link(old, new)
            was = true_name(old, node)
            try:
                self._rename_sample(node, old, new, target, turn)
            except _GIVEN_UP:
                self.left.undo([Planned(was, self.name_at(new, was), node.sample_id)])
                raise

    def set_attribute(self, path: str, name: str, value: bytes | None, turn: Turn) -> SampleEntry | None:
        """Set, or with None remove, the one extended attribute that can be: the custom metadata.

        What lightlyfs shows itself stays as it is, without an error: tools that copy attributes would fail.
        """
        if name != PREFIX + "custom_metadata" and name not in SHOWN:
            raise UnknownNamespace(f"attributes of this name are not kept: {name}")
        node = self._names.lookup(path, turn)
        if name in SHOWN or (value is None and isinstance(node, LocalFile)):
            return None
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
        if file.record.sample_id is not None:
            self._rename_sent(file, new, target, turn)
            return
        if isinstance(target, LocalFile) and not self._is_removable(target):
            # it was not on the server when this began, so that replacing it needs no leave
            target = self._uploaded(target, turn)
        elif isinstance(target, SampleEntry):
            try:
                self._writer.need_overwrite(new)
            except NotPermitted:
                # a program that saves like this meant no second sample by its temporary file
                self._writer.keep_here(file)
                raise
        changes: dict[str, Any]
        if isinstance(target, SampleEntry):
            changes = {"name": true_name(new, target), "sample_id": target.sample_id, "replaces": True}
        elif isinstance(target, LocalFile) and target.record.replaces:
            known = target.record
            changes = {"name": known.name, "sample_id": known.sample_id, "replaces": True}
        else:
            changes = {"name": self.name_at(new)}
        replaced = target if isinstance(target, LocalFile) else None
        if replaced is not None:
            self._writer.set_aside(replaced)
        try:
            with self._writer.takeover.replacing(changes.get("sample_id", "")):
                if not self._move_local(file, new, changes):
                    self._rename_sent(file, new, target, turn)
        except BaseException:
            if replaced is not None and self._local.get(new) is not file:
                self._writer.show_again(replaced)
                replaced = None
            raise
        finally:
            if replaced is not None:
                self._local.discard(replaced)

    def _is_removable(self, file: LocalFile) -> bool:
        """Return whether a local file can be replaced without a request to the server."""
        return not (file.record.create_sent or file.record.sample_id) and self._writer.withdraw(file)

    def _rename_sent(self, file: LocalFile, new: str, target: Node | None, turn: Turn) -> None:
        """Wait for an upload under the old name, and rename the file like any sample."""
        old = file.path
        self._writer.wait_uploaded(file)
        entry = self._names.lookup(old, turn)
        if not isinstance(entry, SampleEntry):
            raise NotPermitted(f"{old} is a sample that is being changed; close it, and try again")
        if isinstance(target, LocalFile) and (target.uploaded or self._writer.is_under_way(target)):
            target = self._uploaded(target, turn)
        self._rename_sample(entry, old, new, target, turn)

    def _uploaded(self, file: LocalFile, turn: Turn) -> Node | None:
        """Wait for an upload that is under way, and return what is at the path then."""
        path = file.path
        self._writer.wait_uploaded(file)
        return self._names.find(path, turn)

    def _move_local(self, file: LocalFile, new: str, changes: dict[str, Any]) -> bool:
        """Rename a file that the server does not know yet; False if its upload is under way."""
        with file.lock:
            if file.unlinked or self._local.get(file.path) is not file:
                raise NoSuchFile(f"it is elsewhere by now: {file.path}")
            if not self._writer.withdraw(file):
                return False
            record = file.record
            for_server = self._writer.counts(new) or (changes.get("replaces") and not self._writer.overlays)
            half = record.state is State.INTERRUPTED
            if half and changes.get("replaces"):
                raise NotPermitted(f"{file.path} is half a file, and {new} a whole image")
            stays = file.size == 0 or not for_server or half
            if stays and record.owed and not record.broken:
                changes |= {"state": State.LOCAL, "error": ""}
            # where it is being written, its close uploads it, under the name it has then
            here_alone = stays or bool(file.handles and file.dirty)
            if here_alone:
                covered = self._local.move(file, new, **changes)
                file.delayed = False
        if here_alone:
            self._writer.let_go(covered)
        else:
            self._writer.upload_as(file, new, **changes)
        return True

    def _rename_sample(self, entry: SampleEntry, old: str, new: str, target: Node | None, turn: Turn) -> None:
        if not self._writer.counts(new):
            raise NotPermitted(
                f"{old} is a sample; it is not renamed to a name that would not be uploaded: {new}"
            )
        if isinstance(target, LocalFile):
            self._rename_over_local(entry, old, new, target, turn)
            return
        if isinstance(target, SampleEntry) and target.id == entry.id:
            target = None  # what is shown is not up to date: no image may be put in its own place
        if isinstance(target, SampleEntry) and self._completion.was_just_created(entry.sample_id):
            self._writer.need_overwrite(new)
            self._replace_by_sample(entry, old, new, target, turn)
            return
        if target is not None:
            raise NotPermitted(f"{new} exists, and the Lightly API cannot replace one sample by another")
        was = true_name(old, entry)
        name = self.name_at(new, was)
        has_object = entry.published_size != 0
        done = self._edits.rename(entry.sample_id, was, name, has_object=has_object)
        try:
            turn.result(done)
        except FileExists:
            self._names.catalog.expect_changes()
            raise
        self.show_renamed(entry, old, new, name)

    def _rename_over_local(
        self, entry: SampleEntry, old: str, new: str, target: LocalFile, turn: Turn
    ) -> None:
        """Rename a sample over a file that the server does not know; if that fails, both stay."""
        self._writer.set_aside(target)
        try:
            self._rename_sample(entry, old, new, None, turn)
        except BaseException:
            self._writer.show_again(target)
            raise
        self._local.discard(target)

    def show_renamed(self, entry: SampleEntry, old: str, new: str, name: str) -> None:
        """Show a sample where it was renamed to on the server."""
        renamed = entry.at(new, name)
        # also where a local file shows it: a listing under way may still bring the old name
        self._completion.note_renamed(old, new, renamed)
        self._writer.takeover.follow(renamed, new)
        local = self._local.get(old)
        if local is not None and local.record.sample_id == entry.sample_id:
            try:
                self._local.move(local, new, name=name)
            except OSError as error:
                log.warning("%s is %s now, which the journal could not note: %s", old, new, error)
                with contextlib.suppress(OSError):
                    self._local.drop(local)
        self._local.touch_parent(old)
        self._local.touch_parent(new)

    def _replace_by_sample(
        self, entry: SampleEntry, old: str, new: str, target: SampleEntry, turn: Turn
    ) -> None:
        """Give a sample the bytes of a new one, which a program uploaded on the way to saving the first.

        The new one cannot be deleted: it is renamed to a name that no listing shows.
        """
        with self._writer.takeover.replacing(target.sample_id):
            self._writer.replace_image(target, new, entry)
        name = true_name(old, entry)
        away = turn.result(self._edits.put_away(entry.sample_id, name))
        self.show_renamed(entry, old, away, away)

    def _rename_directory(self, old: str, new: str, target: Node | None, turn: Turn) -> None:
        if new.startswith(old + "/"):
            raise InvalidArgument("a directory cannot be moved into itself")
        if target is not None:
            if not isinstance(target, DirectoryEntry):
                raise NotADirectory(f"not a directory: {new}")
            if not self._names.is_empty(new, turn):
                raise DirectoryNotEmpty(f"the directory is not empty: {new}")
        self._settle_below(old)
        turn.restart()
        samples = self._samples_below(old, turn)
        moves = [(path, new + path[len(old) :], entry) for path, entry in samples]
        for path, moved, _ in moves:
            if not self._writer.counts(moved):
                raise NotPermitted(
                    f"{path} is a sample; as {moved} it would have a name that is not uploaded"
                )
        known = {entry.sample_id for _, _, entry in moves}
        plan = [Planned.of_directory(old, new)]
        named = [(true_name(path, entry), moved, entry.sample_id) for path, moved, entry in moves]
        plan += [Planned(was, self.name_at(moved, was), sample_id) for was, moved, sample_id in named]
        plan += [
            Planned.of_file(file.path, new + file.path[len(old) :], file.record)
            for file in self._local.below(old)
            if file.record.sample_id not in known
        ]
        self._local.journal.put_renames(plan, forget=self.left.superseded(plan))
        begun: list[Planned] = []
        try:
            self._rename_below(plan, moves, turn, begun)
        except BaseException as error:
            if isinstance(error, FileError) and not isinstance(error, _GIVEN_UP):
                del begun[-1:]  # it was refused
            if begun:
                log.warning("%s is not %s, and what was renamed is taken back: %s", old, new, error)
            tried = self.left.undo(begun, forget=[one.key for one in plan])
            if not isinstance(error, (*_GIVEN_UP, Retryable)):
                self.left.wait_for(tried, turn)
            raise
        self.left.forget([one.key for one in plan])

    def _rename_below(
        self,
        plan: list[Planned],
        moves: list[tuple[str, str, SampleEntry]],
        turn: Turn,
        begun: list[Planned],
    ) -> None:
        """Rename what a directory holds, and then the directory; adds each to `begun` before."""
        directory, *samples = plan[: len(moves) + 1]
        old, new = directory.old, directory.new
        for planned, (path, moved, entry) in zip(samples, moves, strict=True):
            begun.append(planned)
            self._rename_sample(entry, path, moved, None, turn)
            self.left.forget([planned.key])
            turn.restart()
        for file in self._local.below(old):
            planned = Planned.of_file(file.path, new + file.path[len(old) :], file.record)
            begun.append(planned)
            self.move_below(file, planned.new, turn)
            self.left.forget([planned.key])
            turn.restart()
        begun.append(directory)
        self._local.move_directories(old, new)
        self._names.renamed.note_directory(old, new)
        if not self._local.has_directory(new) and self._names.find(new, turn) is None:
            self._local.make_directory(new, _DIRECTORY_MODE)

    def move_below(self, file: LocalFile, new: str, turn: Turn) -> None:
        """Rename a local file of a directory that is renamed."""
        if file.record.broken:  # half a file; the program that wrote it got an error
            self._local.move(file, new, name=self.name_at(new))
        else:
            self._rename_local(file, new, None, turn)

    def _settle_below(self, directory: str) -> None:
        """Wait for files that are on their way; NotPermitted where one is a sample that is being changed.

        Asked before the first of many renames, which cannot be taken back together.
        """
        for file in self._local.below(directory):
            record = file.record
            if record.owed and not record.broken and (record.sample_id or self._writer.is_on_its_way(file)):
                self._writer.wait_uploaded(file)
            if file.record.sample_id is not None and not file.uploaded:
                raise NotPermitted(f"{file.path} is a sample that is being changed; close it, and try again")

    def _samples_below(self, directory: str, turn: Turn) -> list[tuple[str, SampleEntry]]:
        found: list[tuple[str, SampleEntry]] = []
        waiting = [directory]
        while waiting:
            path = waiting.pop()
            if self._names.hides_within(path, turn):
                raise NotPermitted(f"{path} has samples that --include or --exclude hides on this mount")
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
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the value is not JSON: {error}") from None
    if parsed is not None and not isinstance(parsed, dict):
        raise InvalidArgument("the value is JSON, but not an object")
    return parsed
