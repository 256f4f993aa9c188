"""The requests that the catalogue sends to the API: the dataset's record, pages of its samples, one sample.

Converts API samples into catalogue rows, and chooses between the partial list and the plain one. Impossible
sizes and times become unknown or are clamped, invalid records are skipped: one invalid record must not affect
the others. Corrections are kept for `status`, up to a limit. `Details` requests whole samples one at a time,
and keeps them for the TTL.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Generic, NamedTuple, Protocol, TypeVar

from cachetools import TTLCache

from lightlyfs.api.client import LightlyClient
from lightlyfs.api.models import ListedSample, Sample, is_oid
from lightlyfs.api.retry import RetryPolicy
from lightlyfs.catalog.entries import Row, make_row
from lightlyfs.catalog.store import CatalogStore
from lightlyfs.catalog.tags import ID_BYTES, TagRecord, Tags, kept_in
from lightlyfs.errors import Cancelled, MalformedAnswer, NotFound, RequestError, Retryable, TooLarge

T = TypeVar("T")

# samples of one name: the lowest id is wanted, and more than a few are not believed
_FOUND_AT_MOST = 100
# an id and its quotes take 27 bytes: such a page has 1.3 MB
_MAPPINGS_PER_PAGE = 50_000
# after this many refusals in a row, while the plain list works, the partial list is left alone for this long
_REFUSED_PARTIALS, _PLAIN_FOR_S = 3, 600.0
# servers before August 2022 have no partial list, and there are several ways to say so
_NO_PARTIAL = (400, 404, 405, 501)
_AS_IT_COMES = RetryPolicy(doubt_s=0.0)
# of one dataset, where its record does not say how many it has
MAX_SAMPLES = 50_000_000
_MASK = re.compile(r"0x[0-9a-fA-F]+")
MAX_BYTES = 1 << 53  # 9 petabytes; JSON has no larger whole numbers
# whole seconds that a time in nanoseconds can hold: the years 1678 to 2261
MIN_SECONDS, MAX_SECONDS = -9_223_372_036, 9_223_372_036
# numbers in between are times of our age (1973 to 2128) in seconds, sent instead of milliseconds
_FIRST_SECONDS, _LAST_SECONDS = 100_000_000, 5_000_000_000
_MAX_PROBLEMS = 1_000


class Problem(NamedTuple):
    """A sample that was not taken as it is, or cannot be read."""

    name: str
    reason: str


class Problems:
    """What is odd in the records of a dataset, and which images cannot be read; any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # guarded by _lock: odd records by name, images that cannot be read by sample id
        self._records: dict[str, Problem] = {}
        self._images: dict[str, Problem] = {}
        self._more: set[int] = set()

    def note(self, name: str, reason: str) -> None:
        """Remember that a record is odd."""
        self._note(self._records, name, Problem(name, reason))

    def note_unreadable(self, sample_id: str, name: str, reason: str) -> None:
        """Remember that the image of a sample cannot be read."""
        self._note(self._images, sample_id, Problem(name, reason))

    def note_read(self, sample_id: str) -> None:
        """Note that an image can be read; costs one lookup unless it was reported as unreadable."""
        if sample_id in self._images:
            with self._lock:
                self._images.pop(sample_id, None)

    def _note(self, found: dict[str, Problem], key: str, problem: Problem) -> None:
        with self._lock:
            if key in found or len(self._records) + len(self._images) < _MAX_PROBLEMS:
                found[key] = problem
            elif len(self._more) < 1_000_000:
                self._more.add(hash(key))

    def count(self) -> int:
        """Return how many there are."""
        with self._lock:
            return len(self._records) + len(self._images) + len(self._more)

    def all(self) -> list[Problem]:
        """Return the first of them."""
        with self._lock:
            return [*self._records.values(), *self._images.values()]


def plausible_size(size: int | None) -> int | None:
    """Return a size in bytes, None for one that no file has."""
    return size if size is not None and 0 <= size <= MAX_BYTES else None


def plausible_seconds(milliseconds: int | None) -> int | None:
    """Return a time of the API in whole seconds, within what a file system shows; None for none."""
    if milliseconds is None:
        return None
    if _FIRST_SECONDS <= milliseconds < _LAST_SECONDS:
        return milliseconds
    return max(MIN_SECONDS, min(MAX_SECONDS, milliseconds // 1000))


def is_plausible_time(milliseconds: int | None) -> bool:
    """Return whether a time of the API is one in milliseconds, as it should be."""
    seconds = plausible_seconds(milliseconds)
    return milliseconds is None or (seconds == milliseconds // 1000 and milliseconds >= 0)


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
        """Return the dataset's record."""
        ...

    def page(self, offset: int, size: int) -> Sequence[Row]:
        """Return at most `size` samples from `offset` on; empty past the end, perhaps shorter before it."""
        ...

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return those samples of a page that are wanted."""
        ...

    def find(self, file_name: str) -> list[Row]:
        """Return the samples of this name, lowest id first; none where the API cannot tell."""
        ...

    def sample(self, sample_id: str) -> Sample:
        """Return one sample, whole."""
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
        """Return all but those that are no records."""
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
            self.problems.note(
                name[:_NAMED], f"no path can be spelled so; it is shown as {row.path[:_NAMED]}"
            )
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
    """Return whether a listing holds every sample although the dataset may have moved meanwhile.

    Rows that came twice show that rows moved, so others may have been missed. Samples that were only
    added were either met or are for the next check to find.
    """
    only_added = 0 < before.samples <= after.samples <= distinct
    return listed == distinct and (after == before or only_added)


def stored_dataset(store: CatalogStore) -> DatasetState | None:
    """Return the dataset's record as of the last listing, or None."""
    text = store.get_meta("dataset")
    return None if text is None else DatasetState(*json.loads(text))


MAX_DETAILS = 10_000
# with a TTL of zero the several attributes of one `getfattr -d` still come of one request
_MIN_TTL_S = 1.0


class Details(Generic[T]):
    """What `request(sample_id)` gives, by id; ten threads that miss one cause one request."""

    def __init__(
        self, request: Callable[[str], T], executor: Executor, *, ttl_s: float, clock: Callable[[], float]
    ) -> None:
        self._request = request
        self._executor = executor
        self._lock = threading.RLock()  # a future that is done already calls back at once
        # guarded by _lock
        self._samples: TTLCache[str, Future[T]] = TTLCache(MAX_DETAILS, max(ttl_s, _MIN_TTL_S), timer=clock)

    def get(self, sample_id: str) -> Future[T]:
        """Return the sample, now or soon; the future raises what the API raised."""
        with self._lock:
            future = kept_in(self._samples, sample_id)
            if future is None:
                future = self._samples[sample_id] = self._ask(sample_id)
                future.add_done_callback(lambda done: self._forget_failure(sample_id, done))
        return future

    def forget(self, sample_id: str) -> None:
        """Ask again for one sample."""
        with self._lock:
            self._drop_locked(sample_id)

    def forget_all(self) -> None:
        """Ask again for whatever is asked for next."""
        with self._lock:
            self._samples.clear()

    def _ask(self, sample_id: str) -> Future[T]:
        try:
            return self._executor.submit(self._request, sample_id)
        except RuntimeError:
            refused: Future[T] = Future()
            refused.set_exception(Cancelled("the mount is being taken down", request_sent=False))
            return refused

    def _forget_failure(self, sample_id: str, done: Future[T]) -> None:
        if done.cancelled() or done.exception() is not None:
            with self._lock:
                if kept_in(self._samples, sample_id) is done:
                    self._drop_locked(sample_id)

    def _drop_locked(self, sample_id: str) -> None:
        with suppress(KeyError):  # its time may be over
            del self._samples[sample_id]


class TaggedRemote:
    """`Remote` for the samples of one tag; the tag may change, and is asked for with the dataset's record."""

    def __init__(self, remote: Remote, tags: Tags, name: str) -> None:
        self._remote = remote
        self._tags = tags
        self._name = name
        self._version = ""
        self._members: frozenset[bytes] = frozenset()  # replaced as a whole

    def dataset(self) -> DatasetState:
        """Return the dataset's record and the samples of the tag; NotFound if there is no such tag."""
        record = self._remote.dataset()
        self._tags.forget_all()
        tag = self._tags.find(self._name)
        if tag is None:
            names = ", ".join(repr(tag.name) for tag in self._tags.all()) or "none"
            raise NotFound(f"the dataset has no tag {self._name!r}; there are: {names}", code="TAG_UNKNOWN")
        if tag.version() != self._version:
            self._members = self._tags.members(tag)
            self._version = tag.version()
        return record._replace(selection=self._version)

    def page(self, offset: int, size: int) -> Sequence[Row]:
        """Return a page of all samples, tagged or not."""
        return self._remote.page(offset, size)

    def kept(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Return those that the tag holds."""
        members = self._members
        return [row for row in rows if row.id in members]

    def find(self, file_name: str) -> list[Row]:
        """Return the samples of this name that the tag holds."""
        return list(self.kept(self._remote.find(file_name)))

    def sample(self, sample_id: str) -> Sample:
        """Return one sample, tagged or not."""
        return self._remote.sample(sample_id)
