"""Changes to samples that carry no bytes: names and custom metadata."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from lightlyfs.api.client import LightlyClient
from lightlyfs.api.models import SampleUpdate
from lightlyfs.errors import Cancelled, LightlyFsError, NotPermitted, Retryable


class SampleEdits:
    """Edits of one dataset's samples; each runs in the pool and is waited for by its future.

    `can_be_read(sample_id)` reads one byte of a sample through a fresh URL, raising where that fails;
    `put_away(sample_id, name)` renames one out of the way.
    """

    def __init__(
        self,
        client: LightlyClient,
        dataset_id: str,
        executor: Executor,
        can_be_read: Callable[[str], None],
        put_away: Callable[[str, str], str],
    ) -> None:
        self._client = client
        self._dataset_id = dataset_id
        self._executor = executor
        self._can_be_read = can_be_read
        self._put_away = put_away
        self._renames_break = False  # only ever turns True

    def rename(self, sample_id: str, old: str, new: str, *, has_object: bool) -> Future[None]:
        """Rename a sample, and see that it can still be read; NotPermitted where it cannot.

        On a dataset that lies in the user's own bucket the read URL follows the name, and a rename would
        lose the image: the old name is put back then, and no further rename is tried on this mount.
        """
        return self._executor.submit(self._rename, sample_id, old, new, has_object)

    def put_away(self, sample_id: str, name: str) -> Future[str]:
        """Rename a sample that cannot be deleted to a name that no listing shows, which is returned."""
        return self._executor.submit(self._put_away, sample_id, name)

    def set_custom_metadata(self, sample_id: str, value: dict[str, Any] | None) -> Future[None]:
        """Replace a sample's custom metadata; None clears it."""
        update = SampleUpdate(custom_meta_data=value)
        return self._executor.submit(self._client.update_sample, self._dataset_id, sample_id, update)

    def finish_rename(self, sample_id: str, old: str, new: str) -> None:
        """Go on with a rename that may not have been sent; in the calling thread."""
        if self._client.get_sample(self._dataset_id, sample_id).file_name == old:
            self._client.update_sample(self._dataset_id, sample_id, SampleUpdate(file_name=new))

    def _rename(self, sample_id: str, old: str, new: str, has_object: bool) -> None:
        if self._renames_break:
            raise NotPermitted("renaming samples of this dataset makes them unreadable, so it is off")
        self._client.update_sample(self._dataset_id, sample_id, SampleUpdate(file_name=new))
        if not has_object:
            return
        try:
            self._can_be_read(sample_id)
        except LightlyFsError as error:
            # where the network failed, that says nothing of renames
            unclear = isinstance(error, Retryable | Cancelled)
            self._renames_break = self._renames_break or not unclear
            self._client.update_sample(self._dataset_id, sample_id, SampleUpdate(file_name=old))
            if unclear:
                raise
            raise NotPermitted(f"the image of {old} cannot be read under another name: {error}") from error
