"""Finishes renames that an earlier mount was killed in, and takes back those that failed.

A rename of a directory is one of each file in it. Where the mount is killed meanwhile, the program was told
nothing, and the next mount goes on. Where the rename fails or is interrupted, the program was told that the
old names stand: what was done is taken back, by this mount or the next.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from lightlyfs.catalog.entries import SampleEntry
from lightlyfs.catalog.names import split_name
from lightlyfs.errors import DeadlineExceeded, FileExists, LightlyFsError, TooManyWaiting
from lightlyfs.fs.namespace import Namespace, Node, entry_of_uploaded
from lightlyfs.fs.patience import Patience, Turn
from lightlyfs.fs.writer import Writer
from lightlyfs.staging.edits import SampleEdits
from lightlyfs.staging.local_files import LocalFile, LocalFiles
from lightlyfs.staging.record import Planned
from lightlyfs.staging.uploader import is_worth_retrying

if TYPE_CHECKING:
    from lightlyfs.fs.changes import TreeChanges

log = logging.getLogger(__name__)

_WAITS = (DeadlineExceeded, TooManyWaiting)
# renames that the server fails for are tried again after this, twice as long each time
_FIRST_PAUSE_S, _MAX_PAUSE_S = 5.0, 60.0
_NAMED_FILES = 3
# how soon a call sees that what it has done is taken back
_LOOK_AGAIN_S = 0.05


class RenamesLeft:
    """The renames of one mount that were begun and are not done; any thread may call.

    Each lot is worked on in a thread of its own, not in a pool: it waits for requests that are made in one.
    """

    def __init__(
        self,
        changes: TreeChanges,
        namespace: Namespace,
        local: LocalFiles,
        writer: Writer,
        edits: SampleEdits,
        patience: Patience,
    ) -> None:
        self._changes = changes
        self._names = namespace
        self._local = local
        self._writer = writer
        self._edits = edits
        self._patience = patience
        # by key; single operations are atomic
        self._begun: dict[str, Planned] = {}

    def resume(self, renames: list[Planned]) -> None:
        """Go on with what an earlier mount left."""
        for lot in (True, False):
            self._begin([planned for planned in renames if planned.is_back is lot])

    def undo(self, begun: list[Planned], forget: Iterable[str] = ()) -> threading.Event:
        """Take back renames that were begun, the last perhaps in vain, and forget what was planned.

        The event is set once each was tried, or waits for the server.
        """
        back = [one.back() for one in reversed(begun) if not one.is_directory]
        try:
            self._local.journal.put_renames(back, forget=forget)
        except OSError as error:
            log.warning("a rename that failed may go on with the next mount: %s", error)
        return self._begin(back)

    @staticmethod
    def wait_for(tried: threading.Event, turn: Turn) -> None:
        """Have a program find the old names, where that takes no longer than a call may."""
        turn.restart()
        with contextlib.suppress(LightlyFsError):
            while not tried.is_set():
                turn.sleep(_LOOK_AGAIN_S)

    def supersede(self, node: Node) -> None:
        """Let a new rename of a file count instead of an earlier one."""
        if isinstance(node, LocalFile):
            self.forget(self.superseded([Planned.of_file("", "", node.record)]))
        elif isinstance(node, SampleEntry):
            self.forget(self.superseded([Planned("", "", node.sample_id)]))

    def superseded(self, renames: Iterable[Planned]) -> list[str]:
        """Let new renames count instead of earlier ones; return what the journal is to forget of these."""
        keys = [key for one in renames for key in (one.key, one.back().key)]
        return [key for key in keys if self._begun.pop(key, None) is not None]

    def forget(self, keys: Collection[str]) -> None:
        """Have the journal forget planned renames that are done, or given up."""
        try:
            if keys:
                self._local.journal.remove_renames(keys)
        except OSError as error:
            log.warning("a rename that has ended is looked at again by the next mount: %s", error)

    def _begin(self, left: list[Planned]) -> threading.Event:
        tried = threading.Event()
        if left:
            self._begun.update((one.key, one) for one in left)
            name = "lightlyfs-renames"
            threading.Thread(target=self._finish, args=(left, tried), name=name, daemon=True).start()
        else:
            tried.set()
        return tried

    def _finish(self, left: list[Planned], tried: threading.Event) -> None:
        """Finish renames of one kind."""
        is_back = left[0].is_back
        what = "of a rename that failed" if is_back else "that an earlier mount began"
        done = "took back what a rename that failed had renamed"
        if not is_back:
            named = "".join(f" {one.old} to {one.new}," for one in left if one.is_directory)
            done = f"finished what an earlier mount was renaming:{named}"
        files, pause_s = sum(not one.is_directory for one in left), _FIRST_PAUSE_S
        emptied = {split_name(one.old)[:-1] for one in left} if is_back else set()
        refused: list[str] = []
        while left:
            left, text, why = self._finish_some(self._in_turn(left))
            refused += text
            if left and not tried.is_set():
                log.warning("%d renames %s wait for the server: %s", len(left), what, why)
            tried.set()
            if left and self._patience.closing.wait(pause_s):
                log.warning("%d renames %s are left to the next mount", len(left), what)
                return
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        self._hide(emptied)
        self._names.catalog.expect_changes()
        log.info("%s%s %d files of %d", done, ":" if is_back else "", files - len(refused), files)
        if refused:
            log.warning("%d keep their names: %s", len(refused), "; ".join(refused[:_NAMED_FILES]))

    def _hide(self, emptied: Iterable[tuple[str, ...]]) -> None:
        """Show directories no more that a listing in between had, if nothing is left in them."""
        above = {parts[:count] for parts in emptied for count in range(1, len(parts) + 1)}
        for parts in sorted(above, reverse=True):
            directory = "/".join(parts)
            if self._names.renamed.leaves_nothing(directory, self._names.catalog):
                self._names.renamed.note_removed(directory)

    def _finish_some(self, renames: list[Planned]) -> tuple[list[Planned], list[str], str]:
        """Finish renames up to one that has to wait; what is left, what is given up, and why it waits."""
        refused: list[str] = []
        for at, planned in enumerate(renames):
            try:
                self._finish_one(planned)
            except Exception as error:
                waits = is_worth_retrying(error) or isinstance(error, _WAITS)
                if waits or self._patience.closing.is_set():
                    for one in renames[at:]:
                        self._resume_upload(one)
                    return [*renames[at + 1 :], planned], refused, f"{planned.old}: {error}"
                if not planned.is_directory:  # which stays for the sake of files that do
                    refused.append(f"{planned.old} is not {planned.new}: {error}")
            self._resume_upload(planned)
            if self._stands(planned):
                del self._begun[planned.key]
                self.forget([planned.key])
        return [], refused, ""

    def _in_turn(self, renames: list[Planned]) -> list[Planned]:
        """Return files that wait for their new name to be uploaded, samples, the other files, directories."""
        held = {file.record.key for file in self._local.all() if file.ticket is None and not file.uploaded}
        return sorted(
            renames,
            key=lambda one: (one.is_directory, bool(one.file_key) and one.file_key not in held),
        )

    def _resume_upload(self, planned: Planned) -> None:
        for path in (planned.old, planned.new):
            file = self._local.get(path)
            if file is not None and file.record.key == planned.file_key:
                self._writer.resume_file(file)

    def _stands(self, planned: Planned) -> bool:
        return self._begun.get(planned.key) is planned

    def _finish_one(self, planned: Planned) -> None:
        """Finish a rename, and show it; raises why it cannot be done.

        Any of its steps may have been taken. What others have changed since stays so: FileExists.
        """
        if not self._stands(planned):
            return
        if planned.is_directory:
            self._finish_directory(planned.old, planned.new)
            return
        if not planned.file_key:
            self._finish_sample(planned, planned.sample_id, planned.old, planned.new)
            return
        turn = self._patience.turn()
        file = self._local.get(planned.old)
        if file is None or file.record.key != planned.file_key:
            moved = self._local.get(planned.new)
            if moved is None or moved.record.key != planned.file_key:
                raise FileExists(f"{planned.old} is elsewhere by now")
        elif file.uploaded:
            assert file.record.sample_id is not None
            was = file.record.name
            new = self._changes.name_at(planned.new, was)
            self._finish_sample(planned, file.record.sample_id, was, new)
        elif self._names.find(planned.new, turn) is not None:
            raise FileExists(f"it exists by now: {planned.new}")
        else:
            self._changes.move_below(file, planned.new, turn)

    def _finish_sample(self, planned: Planned, sample_id: str, old: str, new: str) -> None:
        shown = self._shown_sample(sample_id, old)
        # what cannot be read under the name that it had could not be before
        has_object = not planned.is_back and (shown is None or shown[1].published_size != 0)
        stands = lambda: self._stands(planned)  # noqa: E731
        if not self._edits.finish_rename(sample_id, old, new, has_object=has_object, stands=stands):
            return
        path = "/".join(split_name(new))
        if shown is not None and shown[0] != path:
            self._changes.show_renamed(shown[1], shown[0], path, new)

    def _shown_sample(self, sample_id: str, old: str) -> tuple[str, SampleEntry] | None:
        """Return where a sample is shown: by a file that became it, at its old name, or by the catalogue."""
        for file in self._local.all():
            if file.uploaded and file.record.sample_id == sample_id:
                return file.path, entry_of_uploaded(file.record)
        path = "/".join(split_name(old))
        renamed = self._names.renamed.at(path)
        if renamed is not None and renamed.sample_id == sample_id:
            return path, renamed
        return self._names.catalog.by_id(sample_id)

    def _finish_directory(self, old: str, new: str) -> None:
        if self._local.below(old) or not self._names.renamed.leaves_nothing(old, self._names.catalog):
            raise FileExists(f"{old} has files that keep their names")
        self._local.move_directories(old, new)
        self._names.renamed.note_removed(old)
