"""The requests of one upload, in order; this module must not know the table of jobs.

The server is asked for the name before a create and once more after it: if two machines create one name at
the same moment, the later one finds the other's sample and gives way. Independent requests are sent in
parallel.
"""

from __future__ import annotations

import base64
import itertools
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from lightlyfs.api.client import Kind, LightlyClient
from lightlyfs.api.contract import BodyFile, BodyReader, Request, Response, Timeouts, Transport, put_headers
from lightlyfs.api.models import Sample, SampleCreate, SampleMetaData, SampleUpdate
from lightlyfs.api.retry import Retrier, RetryPolicy, raise_for_status
from lightlyfs.errors import (
    Conflict,
    FileExists,
    MalformedAnswer,
    NotFound,
    Refused,
    RequestError,
    ServerFault,
    UnsafeUrl,
)
from lightlyfs.name_rules import REPLACED_FOLDER
from lightlyfs.staging.image_facts import ImageFacts, thumbnail_name
from lightlyfs.staging.record import Leftover, Record, State

log = logging.getLogger(__name__)
T = TypeVar("T")

MARK = "lightlyfs_upload"
# put in place of the thumbnail of an image that is none any more, for an object cannot be deleted: a WebP of
# one transparent pixel, which readers take for no thumbnail
BLANK_THUMBNAIL = base64.b64decode("UklGRhoAAABXRUJQVlA4TA0AAAAvAAAAEAcQERGIiP4HAA==")
# a reply that was lost may belong to a create that is still being worked on, and so may that of a gateway
_LOOKS = 3
_GATEWAY_GAVE_UP = (408, 502, 504)
_LOOK_AGAIN_S = 1.0
# samples at the end of the list among which a created one is looked for, newest last
_TAIL = 1_000
_BY_NAME = 100
_CLOCKS_DIFFER_S = 86_400.0
_URL_REFUSED = (400, 401, 403)
# sending a smaller file again is quick, and no progress
_LONG_BODY_BYTES = 4 << 20
_NO_META = SampleMetaData()


class Moving(Protocol):
    """Called when an upload makes progress."""

    moved: int


class Note(Protocol):
    """Records what an upload found out, on disk if `durable`."""

    def __call__(self, *, durable: bool = False, **changes: object) -> None: ...


@dataclass(frozen=True)
class UploadConfig:
    """Limits of one upload, and what it may do.

    `s3_sse_kms_key` is the encryption that S3 is asked for, "" for none. With `allow_overwrite` a sample that
    has the name already gets the image. A `sole_writer` asks for no names: no other program creates samples.
    """

    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(budget_s=50.0))
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(connect_s=5.0, idle_s=30.0, total_s=3600.0))
    s3_sse_kms_key: str = ""
    allow_overwrite: bool = False
    sole_writer: bool = False


class UploadedSamples:
    """The samples of one dataset as uploads need them: found by name or mark, created, renamed.

    Any thread may call. `on_leftover` is called before a sample is renamed out of the way; `leftovers` are
    those that were, or were about to be.
    """

    def __init__(
        self,
        client: LightlyClient,
        dataset_id: str,
        retrier: Retrier,
        policy: RetryPolicy,
        on_leftover: Callable[[Leftover], None],
        leftovers: Callable[[], Iterable[Leftover]] = tuple,
    ) -> None:
        self.client = client
        self.dataset_id = dataset_id
        self._retrier = retrier.for_another_host()
        self._policy = policy
        # a refused create is noted before it is sent again, so that its caller repeats it
        self._create_policy = replace(policy, doubt_s=0.0)
        self._on_leftover = on_leftover
        self._leftovers = leftovers

    # by name

    def named(self, name: str, *, alone: str | None = None) -> list[Sample]:
        """Return the samples of exactly this name, as the server knows them now.

        Where the sample `alone` is all of the first page, no other is asked for: no server has pages of one.
        """
        return [one for one in self._by_name(name, alone) if one.file_name == name]

    def holder_of(self, name: str, *, other_than: str | None = None) -> Sample | None:
        """Return the sample that has a name already, other than one of this id; of several the first."""
        found = sorted((one for one in self.named(name) if one.id != other_than), key=_precedence)
        return next((sample for sample in found if self._has_name(sample, name)), None)

    def rival_of(self, record: Record, just_created: bool) -> Sample | None:
        """Return a sample of the name that was created before ours; None where ours is the first.

        One of ours that is not found was renamed by others, unless it was just created and does not show yet.
        """
        found = self.named(record.name, alone=record.sample_id)
        if not just_created and all(sample.id != record.sample_id for sample in found):
            return None
        for sample in sorted(found, key=_precedence):
            if sample.id == record.sample_id:
                return None
            if self._has_name(sample, record.name):
                return sample
        return None

    def _has_name(self, sample: Sample, name: str) -> bool:
        """Return whether a sample bears a name it was found by, for a list may lag behind a rename."""
        try:
            return self.get(sample.id).file_name == name
        except NotFound:
            return False

    def put_away(self, sample_id: str, name: str) -> str:
        """Rename a sample that cannot be deleted to a name that no listing shows; returns that."""
        away = f"{REPLACED_FOLDER}/{sample_id}-{name.rpartition('/')[2]}"
        self._on_leftover(Leftover(sample_id, name, away))
        log.warning("%s: the sample %s cannot be deleted; it is called %s now", name, sample_id, away)
        self.update(sample_id, SampleUpdate(file_name=away))
        return away

    def is_put_away(self, sample_id: str) -> bool:
        """Return whether a sample was renamed out of the way, or was about to be."""
        return any(leftover.sample_id == sample_id for leftover in self._leftovers())

    def get(self, sample_id: str) -> Sample:
        """Return one sample."""
        return self.client.get_sample(self.dataset_id, sample_id)

    def update(self, sample_id: str, changes: SampleUpdate) -> None:
        """Change the set fields of a sample."""
        self.client.update_sample(self.dataset_id, sample_id, changes)

    # creating

    def create(self, record: Record, image: Image, urls: WriteUrls, note: Note) -> Record:
        """Create the record's sample, or find the one that an earlier try created; `note` tells each step."""
        lost = record.create_sent  # by an earlier try, perhaps of an earlier mount
        since_ms = image.staged_ms() if lost else None

        def attempt() -> str:
            nonlocal record, lost, since_ms
            may_exist = record.create_sent
            if may_exist:
                found = self._find_created(record, _LOOKS if lost else 1, since_ms)
                since_ms = None
                if found is not None:
                    return found
            record = record.changed(mark=record.mark or secrets.token_hex(12), create_sent=True)
            # every other step can be taken again; a create must be known for sure
            note(durable=True, mark=record.mark, create_sent=True)
            try:
                return self._send_create(image.as_new_sample(record), urls)
            except RequestError as error:
                refused = error.status is not None and 400 <= error.status < 500 and error.status != 408
                lost = error.status is None or error.status in _GATEWAY_GAVE_UP
                if isinstance(error, Conflict):
                    # perhaps with ours, of a create whose reply was lost and that lists did not show in time
                    found = self._find_created(record, _LOOKS if may_exist else 1)
                    if found is not None:
                        return found
                    error.settled = self.holder_of(record.name) is not None
                    refused, lost = error.settled or not may_exist, may_exist
                if refused or not error.request_sent:
                    record = record.changed(create_sent=False)
                    note(create_sent=False)
                elif isinstance(error, MalformedAnswer | UnsafeUrl):
                    # it succeeded, whatever it said
                    found = self._find_created(record, _LOOKS)
                    if found is not None:
                        return found
                raise

        # no key: what is refused of one file is not believed of another
        sample_id = self._retrier.call(attempt, what=record.key, policy=self._policy)
        note(sample_id=sample_id)
        return record.changed(sample_id=sample_id)

    def _send_create(self, wanted: SampleCreate, urls: WriteUrls) -> str:
        try:
            created = self.client.create_sample_with_write_urls(
                self.dataset_id, wanted, policy=self._create_policy
            )
        except (NotFound, Refused, ServerFault) as error:
            # servers before May 2023 do not have it
            if error.status not in (404, 405, 501):
                raise
            return self.client.create_sample(self.dataset_id, wanted, policy=self._create_policy)
        urls.keep(created.sample_write_urls.full, created.sample_write_urls.thumb)
        return created.id

    def _find_created(self, record: Record, looks: int, since_ms: int | None = None) -> str | None:
        """Return the sample that bears this file's mark: by name, then among the newest.

        With `since_ms` the last look goes back to the samples that were created then.
        """
        for look in range(looks):
            if look:
                self._retrier.sleep(_LOOK_AGAIN_S * look)
            back_to_ms = since_ms if look == looks - 1 else None
            for sample in itertools.chain(self._by_name(record.name), self._newest(back_to_ms)):
                if mark_of(sample) == record.mark:
                    return sample.id
        return None

    def _by_name(self, name: str, alone: str | None = None) -> Iterator[Sample]:
        """Yield the samples of a name, however short the pages are; few where the server ignores the name.

        None where the server has no such list, as before August 2022.
        """
        seen: set[str] = set()
        while page := self._page_by_name(name, len(seen)):
            new = [sample for sample in page if sample.id not in seen]
            yield from new
            seen.update(sample.id for sample in new)
            # nothing new: the server ignores paging, too
            if not any((sample.file_name or "").startswith(name) for sample in new):
                return
            if seen == {alone}:
                return

    def _page_by_name(self, name: str, offset: int) -> list[Sample]:
        try:
            return self.client.list_samples_partial(
                self.dataset_id, mode="full", offset=offset, size=_BY_NAME, file_name=name
            )
        except NotFound:
            return []

    def _newest(self, back_to_ms: int | None) -> Iterator[Sample]:
        """Yield the end of the list, and what is before it back to a time; however short the pages are."""
        count = self.client.get_dataset(self.dataset_id).n_samples or 0
        start, end = max(0, count - _TAIL), None
        while True:
            created: list[int] = []
            for sample in self._from(start, end):
                created.append(sample.created_at or 0)
                yield sample
            if back_to_ms is None or start == 0 or max(created, default=0) < back_to_ms:
                return
            start, end = max(0, start - _TAIL), start

    def _from(self, offset: int, end: int | None) -> Iterator[Sample]:
        last: str | None = None
        while end is None or offset < end:
            size = _TAIL if end is None else end - offset
            page = self.client.list_samples(self.dataset_id, offset=offset, size=size)
            if not page or page[-1].id == last:  # the same again: the server ignores paging
                return
            yield from page
            offset, last = offset + len(page), page[-1].id


class StoredObjects:
    """Sends images and thumbnails to the storage of one dataset; any thread may call."""

    def __init__(
        self,
        client: LightlyClient,
        dataset_id: str,
        storage: Transport,
        retrier: Retrier,
        config: UploadConfig,
    ) -> None:
        """`retrier` is that of the storage."""
        self._client = client
        self._dataset_id = dataset_id
        self._storage = storage
        self._retrier = retrier
        self._config = config

    def urls(self) -> WriteUrls:
        """Return the write URLs of one upload, none of which is asked for yet."""
        return WriteUrls(self._client, self._dataset_id)

    def put(self, urls: WriteUrls, thumbnail: bool, body: bytes | BodyFile) -> str:
        """PUT, with a fresh URL where one is refused; returns the version storage names, or "".

        Where it names none, storage is asked whether it has the bytes.
        """
        refused = False

        def attempt() -> str:
            nonlocal refused
            response = self._send(urls.renewed(thumbnail) if refused else urls.get(thumbnail), body)
            if response.status in _URL_REFUSED and not refused:
                response = self._send(urls.renewed(thumbnail), body)
            refused = response.status in (*_URL_REFUSED, 404)
            raise_for_status(response, what="the upload of a file to storage", storage=True)
            etag = response.headers.get("etag", "")
            if not etag:
                self._confirm(urls.sample_id, thumbnail, body)
            return etag

        what = f"{urls.sample_id} {thumbnail}"
        return self._retrier.call(attempt, kind="put", what=what, policy=self._config.policy)

    def _confirm(self, sample_id: str, thumbnail: bool, body: bytes | BodyFile) -> None:
        """Check whether storage has what was sent: an answer without a version may come from a proxy."""
        size = len(body) if isinstance(body, bytes) else body.length
        kind: Kind = "thumbnail" if thumbnail else "full"
        url = self._client.get_sample_read_url(self._dataset_id, sample_id, kind)
        response = self._storage.send(Request("GET", url, headers={"Range": "bytes=0-0"}, fresh=True))
        total = response.headers.get("content-range", "").rpartition("/")[2]
        if response.status == 200:  # the range was ignored
            total = response.headers.get("content-length") or str(len(response.body))
        if not 200 <= response.status < 300 or total != str(size):
            raise ServerFault("storage took a file and does not have it", status=response.status)

    def _send(self, url: str, body: bytes | BodyFile) -> Response:
        headers = put_headers(url, self._config.s3_sse_kms_key)
        timeouts, cancelled = self._config.timeouts, self._retrier.cancelled
        return self._storage.send(Request("PUT", url, headers, body, timeouts, cancelled=cancelled))


class Steps:
    """Takes a file from wherever the journal says it is to the server; any thread may call."""

    def __init__(
        self,
        samples: UploadedSamples,
        objects: StoredObjects,
        facts_of: Callable[[Path], ImageFacts],
        path_of: Callable[[str, int], Path],
        config: UploadConfig,
        *,
        side: Executor,
        knows_no: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`side` runs what an upload sends at the same time.

        `knows_no(path)` says that the catalogue was compared with the server just now, and has no sample at a
        path.
        """
        self._samples = samples
        self._objects = objects
        self._facts_of = facts_of
        self._path_of = path_of
        self._config = config
        self._side = side
        self._knows_no = knows_no

    def upload(self, record: Record, moving: Moving, note: Note) -> Record:
        """Do what is left to do for a record; returns it as UPLOADED, which the caller makes durable.

        `note` is called before the step that a change speaks of. Raises what the last try of a step raised,
        or FileExists where another sample has the name; the last noted changes say where to go on.
        """
        path = self._path_of(record.key, record.generation)
        if record.sample_id and not record.replaces and self._samples.is_put_away(record.sample_id):
            record = self._put_away(record, note)
        taken: Future[Sample | None] | None = None
        if record.sample_id is None and not record.create_sent and not self._is_free(record.path):
            taken = self._side.submit(self._samples.holder_of, record.name)
        image = Image(path, self._facts_of(path))
        if taken is not None and (holder := taken.result()) is not None:
            record = self._take_over(record, holder, note)
        urls = self._objects.urls()
        created = record.sample_id is None
        if created:
            record = self._create(record, image, urls, note)
        assert record.sample_id is not None
        moving.moved += 1
        first: Future[Sample | None] | None = None
        # also of one that was created before a crash, or before a try that failed
        if not (record.replaces or self._config.sole_writer):
            first = self._side.submit(self._samples.rival_of, record, created)
        etag = self._send_bytes(record, image, urls, moving, note)
        if first is not None and (rival := first.result()) is not None:
            record = self._give_way(record, rival, note)
            urls = self._objects.urls()
            etag = self._send_bytes(record, image, urls, moving, note)
        if record.replaces:
            self._update(record, image, urls)
        return record.changed(state=State.UPLOADED, etag=etag, error="", thumbnail_done=False)

    def _send_bytes(self, record: Record, image: Image, urls: WriteUrls, moving: Moving, note: Note) -> str:
        """PUT thumbnail and image at the same time; returns the version that storage gave the image."""
        assert record.sample_id is not None
        small = None if record.thumbnail_done else image.facts.thumbnail
        urls.for_sample(record.sample_id, thumbnail=small is not None)
        put = self._objects.put
        thumbnail = None if small is None else self._side.submit(put, urls, True, small)
        try:
            etag = put(
                urls, False, _CountedBody(image.path, image.path.stat().st_size, pieces=_Pieces(moving))
            )
        except BaseException:
            if thumbnail is not None:
                thumbnail.result()
                note(thumbnail_done=True)  # the next try goes without it
            raise
        if thumbnail is not None:
            thumbnail.result()
            moving.moved += 1
        return etag

    def _create(self, record: Record, image: Image, urls: WriteUrls, note: Note) -> Record:
        """Create the record's sample, or take over the one that has the name already."""
        try:
            return self._samples.create(record, image, urls, note)
        except Conflict:
            holder = self._samples.holder_of(record.name)
            if holder is None:
                raise
            record = record.changed(mark="", create_sent=False)
            return self._take_over(record, holder, note)

    def _is_free(self, path: str) -> bool:
        return self._config.sole_writer or self._knows_no(path)

    def _take_over(self, record: Record, holder: Sample, note: Note) -> Record:
        """Replace the image of the sample that has the name; FileExists where that is not allowed."""
        if not self._config.allow_overwrite:
            raise FileExists(f"another machine has created {record.name} meanwhile; this file stays local")
        note(durable=True, sample_id=holder.id, replaces=True)
        return record.changed(sample_id=holder.id, replaces=True)

    def _give_way(self, record: Record, rival: Sample, note: Note) -> Record:
        """Rename our sample, whose name another one had first, out of the way, and take that one over."""
        return self._take_over(self._put_away(record, note), rival, note)

    def _put_away(self, record: Record, note: Note) -> Record:
        """Rename our sample out of the way, where that is not done yet; the file has none from here on."""
        assert record.sample_id is not None
        self._samples.put_away(record.sample_id, record.name)
        fresh: dict[str, Any] = {"sample_id": None, "mark": "", "create_sent": False, "replaces": False}
        note(durable=True, **fresh)
        return record.changed(**fresh, thumbnail_done=False)

    def _update(self, record: Record, image: Image, urls: WriteUrls) -> None:
        """Confirm an overwrite; what others keep in the metadata stays, the old thumbnail does not."""
        assert record.sample_id is not None
        sample = self._samples.get(record.sample_id)
        if image.facts.thumbnail is None and (sample.thumb_name or (sample.meta_data or _NO_META).shape):
            self._objects.put(urls, True, BLANK_THUMBNAIL)
        self._samples.update(record.sample_id, image.as_update(record, sample))


@dataclass(frozen=True)
class Image:
    """The staged bytes of an upload, and what is known of them; converts to documents of the API."""

    path: Path
    facts: ImageFacts

    def staged_ms(self) -> int:
        """Return a time before the create of the file was sent, in ms; clocks may differ by a day."""
        return int((self.path.stat().st_mtime - _CLOCKS_DIFFER_S) * 1000)

    def as_new_sample(self, record: Record) -> SampleCreate:
        """Return the create of the record's sample, with its mark."""
        return SampleCreate(
            file_name=record.name,
            thumb_name=self._thumb_name(record),
            exif=self.facts.exif or msgspec.UNSET,
            meta_data=msgspec.structs.replace(self._meta(), custom={MARK: record.mark}),
        )

    def as_update(self, record: Record, sample: Sample) -> SampleUpdate:
        """Return the update of a sample whose image this replaces; what others keep in it stays.

        The mark of its create goes: a journal of before, restored from a backup, is not owed this sample.
        """
        before = sample.meta_data or _NO_META
        custom = before.custom
        if isinstance(custom, dict):
            custom = {key: value for key, value in custom.items() if key != MARK}
        meta = msgspec.structs.replace(self._meta(), custom=custom, dynamic=before.dynamic)
        return SampleUpdate(thumb_name=self._thumb_name(record), exif=self.facts.exif, meta_data=meta)

    def _meta(self) -> SampleMetaData:
        return msgspec.convert(self.facts.meta, SampleMetaData)

    def _thumb_name(self, record: Record) -> str | msgspec.UnsetType:
        return msgspec.UNSET if self.facts.thumbnail is None else thumbnail_name(record.name)


class WriteUrls:
    """The write URLs of one upload: both at once where both are owed, else the one."""

    def __init__(self, client: LightlyClient, dataset_id: str) -> None:
        self._client = client
        self._dataset_id = dataset_id
        self.sample_id = ""
        self._urls: dict[bool, str] = {}

    def keep(self, full: str, thumbnail: str) -> None:
        """Keep the URLs that came with the create."""
        self._urls = {False: full, True: thumbnail}

    def for_sample(self, sample_id: str, *, thumbnail: bool) -> None:
        """Ask for what is not here."""
        self.sample_id = sample_id
        if self._urls:
            return
        if thumbnail:
            both = self._client.get_sample_write_urls(self._dataset_id, sample_id)
            self.keep(both.full, both.thumb)
        else:
            self.renewed(False)

    def get(self, thumbnail: bool) -> str:
        """Return a write URL."""
        return self._urls.get(thumbnail) or self.renewed(thumbnail)

    def renewed(self, thumbnail: bool) -> str:
        """Another one, in place of one that was refused."""
        url = self._client.get_sample_write_url(self._dataset_id, self.sample_id, is_thumbnail=thumbnail)
        self._urls[thumbnail] = url
        return url


@dataclass
class _Pieces:
    """How many pieces of a body were read in the attempt that got furthest."""

    moving: Moving
    most: int = 0


@dataclass(frozen=True, kw_only=True)
class _CountedBody(BodyFile):
    """A file to send that reports its progress: each piece, but of a short one none that is sent again."""

    pieces: _Pieces

    def open(self) -> BodyReader:
        """Return a reader that counts each piece."""
        return _CountedReader(self)


class _CountedReader(BodyReader):
    def __init__(self, body: _CountedBody) -> None:
        super().__init__(body)
        self._pieces, self._count = body.pieces, 0

    def read(self, size: int = -1) -> bytes:
        self._count += 1
        if self._count > self._pieces.most or len(self) > _LONG_BODY_BYTES:
            self._pieces.most = max(self._pieces.most, self._count)
            self._pieces.moving.moved += 1
        return super().read(size)


def _precedence(sample: Sample) -> tuple[int, str]:
    """Return the order in which samples of one name were created."""
    return sample.created_at or 0, sample.id


def mark_of(sample: Sample) -> str | None:
    """Return what the create of a sample carried, or None where it was not one of ours."""
    custom = sample.meta_data.custom if sample.meta_data else None
    mark = custom.get(MARK) if isinstance(custom, dict) else None
    return mark if isinstance(mark, str) else None
