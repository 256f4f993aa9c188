"""What the catalogue asks of the API: the dataset's record, pages of its samples, one sample.

Turns API samples into catalogue rows; holds the choice between the partial list and the plain one.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from lightlyfs.api.client import LightlyClient
from lightlyfs.api.models import ListedSample, Sample, is_oid
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.catalog.plausible import Problems, is_plausible_time, plausible_seconds, plausible_size
from lightlyfs.catalog.staging import Row, make_row
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tags import ID_BYTES, TagRecord
from lightlyfs.errors import Cancelled, MalformedAnswer, RequestError, Retryable, TooLarge

# of one name; the lowest id of them is wanted, and more than a few are not believed
_FOUND_AT_MOST = 100
# an id and its quotes take 27 bytes: such a page has 1.3 MB
_MAPPINGS_PER_PAGE = 50_000
# a partial list that is refused so often in a row, while the plain one is not, is not asked for this long
_REFUSED_PARTIALS, _PLAIN_FOR_S = 3, 600.0
# servers before August 2022 have no partial list, and there are several ways to say so
_NO_PARTIAL = (400, 404, 405, 501)
_AS_IT_COMES = RetryPolicy(doubt_s=0.0)
# of one dataset, where its record does not say how many it has
MAX_SAMPLES = 50_000_000
_MASK = re.compile(r"0x[0-9a-fA-F]+")


T = TypeVar("T")


class DatasetState(NamedTuple):
    """The part of the dataset's record that moves when its samples do; the times in milliseconds.

    `selection` moves when another part of the samples is wanted; "" stands for all of them.
    """

    name: str
    samples: int
    bytes: int
    created_at: int
    last_modified_at: int
    selection: str = ""


class Remote(Protocol):
    """The API as the catalogue sees it; any thread may call."""

    def dataset(self) -> DatasetState:
        """The dataset's record."""
        ...

    def page(self, offset: int, size: int) -> Sequence[Row]:
        """At most `size` samples from `offset` on; empty past the end, perhaps shorter before it."""
        ...

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Those samples of a page that are wanted."""
        ...

    def find(self, file_name: str) -> list[Row]:
        """The samples of this name, lowest id first; none where the API cannot tell."""
        ...

    def sample(self, sample_id: str) -> Sample:
        """One sample, whole."""
        ...


class ApiRemote:
    """`Remote` over the Samples API, for one dataset."""

    def __init__(
        self, client: LightlyClient, dataset_id: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._dataset_id = dataset_id
        self._clock = clock
        self.problems = Problems()
        self._fallback_time_s = 0  # written with every record; a lost race shows the older time
        # a lost race asks for one partial list more or less
        self._refused_partials = 0
        self._plain_until = float("-inf")

    def dataset(self) -> DatasetState:
        """API: GET /v1/datasets/{id}."""
        record = self._client.get_dataset(self._dataset_id)
        created = record.created_at or 0
        modified = record.last_modified_at or created
        self._fallback_time_s = plausible_seconds(modified) or 0
        return DatasetState(
            record.name or self._dataset_id,
            plausible_size(record.n_samples) or 0,
            plausible_size(record.size_in_bytes) or 0,
            created,
            modified,
        )

    def page(self, offset: int, size: int) -> Sequence[Row]:
        """API: GET samples/partial with mode full; GET samples where that does not exist."""
        return [self._row(sample) for sample in self._page(offset, size)]

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """All but those that are no records."""
        return rows if all(row.id for row in rows) else [row for row in rows if row.id]

    def tags(self) -> list[TagRecord]:
        """API: GET /v1/datasets/{id}/tags. One without a name or a mask holds nothing that could be shown."""
        listed = self._client.get_tags(self._dataset_id)
        return [
            TagRecord(tag.id, tag.name, tag.bit_mask_data)
            for tag in listed
            if tag.name and tag.bit_mask_data and _MASK.fullmatch(tag.bit_mask_data)
        ]

    def mapping(self) -> bytes:
        """API: GET /v1/datasets/{id}/mappings with field _id, to its end."""
        found = bytearray()
        last: list[str] = []
        while page := self._client.get_mappings(
            self._dataset_id, "_id", len(found) // ID_BYTES, _MAPPINGS_PER_PAGE
        ):
            if page == last or len(found) > MAX_SAMPLES * ID_BYTES:
                raise MalformedAnswer("the mappings of the tags have no end")
            last = page
            found += b"".join(_id_bytes(one) for one in page)
        return bytes(found)

    def find(self, file_name: str) -> list[Row]:
        """API: GET samples/partial with fileName; what that matches is not documented, so names are compared.

        None found says nothing: a server may ignore the name and answer with any page.
        """
        listed = self._partial_or_plain(
            lambda policy: self._client.list_samples_partial(
                self._dataset_id,
                mode="full",
                offset=0,
                size=_FOUND_AT_MOST,
                file_name=file_name,
                policy=policy,
            ),
            lambda: self._client.list_samples(
                self._dataset_id, offset=0, size=_FOUND_AT_MOST, file_name=file_name
            ),
        )
        found = [sample for sample in listed if sample.file_name == file_name]
        return [self._row_of_sample(sample) for sample in sorted(found, key=lambda sample: sample.id)]

    def sample(self, sample_id: str) -> Sample:
        """API: GET samples/{id}."""
        return self._client.get_sample(self._dataset_id, sample_id)

    def _page(self, offset: int, size: int) -> Sequence[ListedSample]:
        return self._partial_or_plain(
            lambda policy: self._client.list_page(self._dataset_id, offset, size, policy=policy),
            lambda: self._client.list_page(self._dataset_id, offset, size, partial=False),
        )

    def _partial_or_plain(self, partial: Callable[[RetryPolicy | None], T], plain: Callable[[], T]) -> T:
        """Ask the partial list, or where that is refused the plain one, whose pages are larger."""
        if self._clock() < self._plain_until:
            return plain()
        try:
            found = partial(_AS_IT_COMES)
        except (Retryable, TooLarge, Cancelled) as error:
            if error.status not in _NO_PARTIAL:
                raise
        except RequestError as error:
            if error.status not in _NO_PARTIAL:
                return partial(None)
        else:
            self._refused_partials = 0
            return found
        found = plain()
        self._refused_partials += 1
        if self._refused_partials >= _REFUSED_PARTIALS:
            self._refused_partials = 0
            self._plain_until = self._clock() + _PLAIN_FOR_S
        return found

    def _row(self, sample: ListedSample) -> Row:
        if not sample.id:
            reason = sample.file_name or "no record"
            self.problems.note(f"a record: {reason}", "it is skipped")
            return _NO_ROW
        created, modified, size = sample.created_at, sample.last_modified_at, sample.size_in_bytes
        # a name the server does not give (no mode of ours allows it) still has to be reachable
        name = sample.id if sample.file_name is None else sample.file_name
        if plausible_size(size) != size:
            self.problems.note(name, f"its size of {size} bytes cannot be, and is asked of storage")
        if not (is_plausible_time(created) and is_plausible_time(modified)):
            self.problems.note(name, f"its time cannot be: {modified if modified is not None else created}")
        created_s = plausible_seconds(created) or 0
        modified_s = plausible_seconds(modified) or created_s or self._fallback_time_s
        row = make_row(sample.id, name, plausible_size(size), modified_s, created_s)
        if row.file_name_raw is not None:
            shown = f"{row.directory}/{row.wanted}" if row.directory else row.wanted
            self.problems.note(name[:_NAMED], f"no path can be spelled so; it is shown as {shown[:_NAMED]}")
        return row

    def _row_of_sample(self, sample: Sample) -> Row:
        size = sample.meta_data.size_in_bytes if sample.meta_data else None
        return self._row(
            ListedSample(sample.id, sample.file_name, sample.created_at, sample.last_modified_at, size)
        )


_NAMED = 300  # characters of a name that a problem shows
_NO_ROW = Row(b"", "", "", None, None, 0, 0)


def _id_bytes(sample_id: str) -> bytes:
    # what is no id keeps its place, for a tag is a mask over places
    return bytes.fromhex(sample_id) if is_oid(sample_id) else bytes(ID_BYTES)


def is_settled(before: DatasetState, after: DatasetState, listed: int, distinct: int) -> bool:
    """Whether a listing holds every sample although the dataset may have moved meanwhile.

    Rows that came twice show that rows moved, so others may have been missed. Samples that were only
    added were either met or are for the next check to find.
    """
    only_added = 0 < before.samples <= after.samples <= distinct
    return listed == distinct and (after == before or only_added)


def stored_dataset(store: CatalogStore) -> DatasetState | None:
    """The dataset's record as of the last listing, or None."""
    text = store.get_meta("dataset")
    return None if text is None else DatasetState(*json.loads(text))
