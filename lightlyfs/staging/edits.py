"""Changes to samples that carry no bytes: names and custom metadata."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from lightlyfs.api.models import SampleUpdate
from lightlyfs.errors import (
    Cancelled,
    FileExists,
    LightlyFsError,
    NotPermitted,
    Retryable,
    ServerFault,
)
from lightlyfs.staging.upload_steps import UploadedSamples

# after a rename that made a sample unreadable, no rename is tried for this long
_BREAK_FOR_S = 600.0


class SampleEdits:
    """Edits of one dataset's samples; each runs in the pool and is waited for by its future.

    `can_be_read(sample_id)` reads one byte of a sample through a fresh URL, raising where that fails. A
    `sole_writer` asks for no names: no other program gives them.
    """

    def __init__(
        self,
        samples: UploadedSamples,
        executor: Executor,
        can_be_read: Callable[[str], None],
        *,
        sole_writer: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._samples = samples
        self._executor = executor
        self._can_be_read = can_be_read
        self._sole_writer = sole_writer
        self._clock = clock
        self._broken_until = float("-inf")
        self._broken_by = ""
        self._lock = threading.Lock()
        # guarded by _lock: what is set at the end of a sample's rename that runs
        self._running: dict[str, threading.Event] = {}

    def renames_are_off(self) -> str:
        """Return why samples cannot be renamed for the moment; "" if they can."""
        left_s = self._broken_until - self._clock()
        return f"{self._broken_by}; tried again in {left_s:.0f} s" if left_s > 0 else ""

    def rename(self, sample_id: str, old: str, new: str, *, has_object: bool) -> Future[None]:
        """Rename a sample, and check that it can still be read; NotPermitted if it cannot.

        On a dataset that lies in the user's own bucket the read URL follows the name, and a rename would
        lose the image: the old name is put back then. Where the image can be read again under that, renames
        are the cause, and none is tried for ten minutes. FileExists where another sample has the new name,
        which no listing showed yet.
        """
        return self._executor.submit(self._rename, sample_id, old, new, has_object)

    def put_away(self, sample_id: str, name: str) -> Future[str]:
        """Rename a sample that cannot be deleted to a name that no listing shows, which is returned."""
        return self._executor.submit(self._samples.put_away, sample_id, name)

    def set_custom_metadata(self, sample_id: str, value: dict[str, Any] | None) -> Future[None]:
        """Replace a sample's custom metadata; None clears it."""
        update = SampleUpdate(custom_meta_data=value)
        return self._executor.submit(self._samples.update, sample_id, update)

    def finish_rename(
        self, sample_id: str, old: str, new: str, *, has_object: bool, stands: Callable[[], bool]
    ) -> bool:
        """Finish a rename that may have been sent, as `rename` does; in the calling thread.

        False, and nothing is done, where it does not stand any more once its turn has come. FileExists where
        others have renamed the sample meanwhile: it stays so.
        """
        with self._alone(sample_id):
            if not stands():
                return False
            name = self._samples.get(sample_id).file_name
            if name == old:
                self._rename_alone(sample_id, old, new, has_object)
            elif name != new:
                raise FileExists(f"another program has renamed {old} to {name} meanwhile")
            elif has_object:
                self._keep_if_readable(sample_id, old)
            return True

    def _rename(self, sample_id: str, old: str, new: str, has_object: bool) -> None:
        with self._alone(sample_id):
            self._rename_alone(sample_id, old, new, has_object)

    @contextmanager
    def _alone(self, sample_id: str) -> Iterator[None]:
        """Wait for a rename of the same sample, whose caller may have given it up, and hold up the next."""
        ended = threading.Event()
        while True:
            with self._lock:
                running = self._running.setdefault(sample_id, ended)
            if running is ended:
                break
            running.wait()
        try:
            yield
        finally:
            with self._lock:
                del self._running[sample_id]
            ended.set()

    def _rename_alone(self, sample_id: str, old: str, new: str, has_object: bool) -> None:
        if reason := self.renames_are_off():
            raise NotPermitted(f"samples of this dataset are not renamed: {reason}")
        if not self._sole_writer and self._samples.holder_of(new, other_than=sample_id) is not None:
            raise FileExists(f"another machine has created {new} meanwhile; {old} keeps its name")
        self._samples.update(sample_id, SampleUpdate(file_name=new))
        if has_object:
            self._keep_if_readable(sample_id, old)

    def _keep_if_readable(self, sample_id: str, old: str) -> None:
        """Put the old name of a renamed sample back where its image cannot be read, and raise why."""
        try:
            self._can_be_read(sample_id)
        except LightlyFsError as error:
            self._samples.update(sample_id, SampleUpdate(file_name=old))
            if isinstance(error, Retryable | Cancelled):
                raise  # where the network failed, that says nothing of renames
            self._prove(sample_id, old, error)

    def _prove(self, sample_id: str, old: str, error: LightlyFsError) -> None:
        """Raise NotPermitted where an image is readable under its old name alone, else ServerFault."""
        try:
            self._can_be_read(sample_id)
        except LightlyFsError as second:
            raise ServerFault(f"the image of {old} cannot be read under any name: {second}") from error
        self._broken_until = self._clock() + _BREAK_FOR_S
        self._broken_by = f"renaming made {old} unreadable ({error})"
        raise NotPermitted(f"the image of {old} cannot be read under another name: {error}") from error
