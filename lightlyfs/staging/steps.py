"""The requests of one upload, in order; no threads and no table of jobs."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from lightlyfs.api.client import LightlyClient
from lightlyfs.api.contract import BodyFile, BodyReader
from lightlyfs.api.models import Sample, SampleCreate, SampleMetaData, SampleUpdate
from lightlyfs.api.retry import RetryPolicy, call_with_retries
from lightlyfs.api.transport import Request, Response, Timeouts, Transport, raise_for_status
from lightlyfs.errors import MalformedAnswer, NotFound, Refused, RequestError, ServerFault, UnsafeUrl
from lightlyfs.staging.image_facts import ImageFacts, thumbnail_name
from lightlyfs.staging.journal import Record, State

T = TypeVar("T")

MARK = "lightlyfs_upload"
# a reply that was lost may belong to a create that is still being worked on
_LOOKS = 3
_LOOK_AGAIN_S = 1.0
# samples at the end of the list among which a created one is looked for, newest last
_TAIL = 1_000
_BY_NAME = 100
_CLOCKS_DIFFER_S = 86_400.0
_URL_REFUSED = (400, 401, 403)


class Moving(Protocol):
    """Told that an upload goes on."""

    moved: int


@dataclass(frozen=True)
class UploadConfig:
    """Limits of one upload, and the encryption that S3 is asked for ("" for none)."""

    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(attempts=10, budget_s=50.0))
    timeouts: Timeouts = field(default_factory=lambda: Timeouts(connect_s=5.0, idle_s=30.0, total_s=3600.0))
    s3_sse_kms_key: str = ""


class Steps:
    """Takes a file from wherever the journal says it is to the server; any thread may call."""

    def __init__(
        self,
        client: LightlyClient,
        dataset_id: str,
        storage: Transport,
        facts_of: Callable[[Path], ImageFacts],
        path_of: Callable[[str, int], Path],
        config: UploadConfig,
        *,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        random: Callable[[], float],
        cancelled: Callable[[], bool],
    ) -> None:
        self._client = client
        self._dataset_id = dataset_id
        self._storage = storage
        self._facts_of = facts_of
        self._path_of = path_of
        self._config = config
        self._clock = clock
        self._sleep = sleep
        self._random = random
        self._cancelled = cancelled

    def upload(self, record: Record, moving: Moving, note: Callable[[Record], None]) -> Record:
        """Do what is left to do for a record; returns it as UPLOADED, which the caller makes durable.

        `note` makes a changed record durable before the step that it speaks of. Raises what the last
        try of a step raised; the last noted record says where to go on.
        """
        path = self._path_of(record.key, record.generation)
        facts = self._facts_of(path)
        meta = msgspec.convert(facts.meta, SampleMetaData)
        urls = _Urls(self._client, self._dataset_id)
        if record.sample_id is None:
            record = self._create(record, facts, meta, urls, note)
        assert record.sample_id is not None
        urls.for_sample(record.sample_id, thumbnail=facts.thumbnail is not None and not record.thumbnail_done)
        moving.moved += 1
        if facts.thumbnail is not None and not record.thumbnail_done:
            self._put(urls, True, facts.thumbnail)
            record = record.changed(thumbnail_done=True)
            note(record)
            moving.moved += 1
        etag = self._put(urls, False, _CountedBody(path, path.stat().st_size, moving))
        if record.replaces:
            self._update(record, facts, meta)
        return record.changed(state=State.UPLOADED, etag=etag, error="", thumbnail_done=False)

    # the sample

    def _create(
        self,
        record: Record,
        facts: ImageFacts,
        meta: SampleMetaData,
        urls: _Urls,
        note: Callable[[Record], None],
    ) -> Record:
        lost = record.create_sent  # by an earlier try, perhaps of an earlier mount
        since_ms = self._staged_ms(record) if lost else None

        def attempt() -> str:
            nonlocal record, lost, since_ms
            if record.create_sent:
                found = self._find_created(record, _LOOKS if lost else 1, since_ms)
                since_ms = None
                if found is not None:
                    return found
            record = record.changed(mark=record.mark or secrets.token_hex(12), create_sent=True)
            note(record)
            try:
                return self._send_create(_new_sample(record, facts, meta), urls)
            except RequestError as error:
                refused = error.status is not None and 400 <= error.status < 500 and error.status != 408
                lost = error.status is None
                if refused or not error.request_sent:
                    record = record.changed(create_sent=False)
                    note(record)
                elif isinstance(error, MalformedAnswer | UnsafeUrl):
                    # it succeeded, whatever it said
                    found = self._find_created(record, _LOOKS)
                    if found is not None:
                        return found
                raise

        sample_id = self._retrying(attempt)
        record = record.changed(sample_id=sample_id)
        note(record)
        return record

    def _staged_ms(self, record: Record) -> int:
        """A time before the create of a file was sent, in ms; clocks may differ by a day."""
        staged = self._path_of(record.key, record.generation).stat()
        return int((staged.st_mtime - _CLOCKS_DIFFER_S) * 1000)

    def _send_create(self, wanted: SampleCreate, urls: _Urls) -> str:
        try:
            created = self._client.create_sample_with_write_urls(self._dataset_id, wanted)
        except (NotFound, Refused, ServerFault) as error:
            # servers before May 2023 do not have it
            if error.status not in (404, 405, 501):
                raise
            return self._client.create_sample(self._dataset_id, wanted)
        urls.keep(created.sample_write_urls.full, created.sample_write_urls.thumb)
        return created.id

    def _find_created(self, record: Record, looks: int, since_ms: int | None = None) -> str | None:
        """The sample that bears this file's mark: by name, then among the newest.

        With `since_ms` the last look goes back to the samples that were created then.
        """
        for look in range(looks):
            if look:
                self._sleep(_LOOK_AGAIN_S * look)
            back_to_ms = since_ms if look == looks - 1 else None
            for sample in itertools.chain(self._by_name(record.name), self._newest(back_to_ms)):
                if mark_of(sample) == record.mark:
                    return sample.id
        return None

    def named(self, name: str) -> list[Sample]:
        """The samples of exactly this name, as the server knows them now."""
        return self._retrying(lambda: [one for one in self._by_name(name) if one.file_name == name])

    def _by_name(self, name: str) -> Iterator[Sample]:
        """The samples of a name, however short the pages are; few where the server ignores the name."""
        seen: set[str] = set()
        while page := self._client.list_samples_partial(
            self._dataset_id, mode="full", offset=len(seen), size=_BY_NAME, file_name=name
        ):
            new = [sample for sample in page if sample.id not in seen]
            yield from new
            seen.update(sample.id for sample in new)
            # nothing new: the server ignores paging, too
            if not any((sample.file_name or "").startswith(name) for sample in new):
                return

    def _newest(self, back_to_ms: int | None) -> Iterator[Sample]:
        """The end of the list, and what is before it back to a time; however short the pages are."""
        count = self._client.get_dataset(self._dataset_id).n_samples or 0
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
            page = self._client.list_samples(self._dataset_id, offset=offset, size=size)
            if not page or page[-1].id == last:  # the same again: the server ignores paging
                return
            yield from page
            offset, last = offset + len(page), page[-1].id

    def _update(self, record: Record, facts: ImageFacts, meta: SampleMetaData) -> None:
        """Confirm an overwrite; what others keep in the metadata stays."""
        assert record.sample_id is not None
        before = self._client.get_sample(self._dataset_id, record.sample_id).meta_data or SampleMetaData()
        changes = SampleUpdate(
            thumb_name=thumbnail_name(record.name) if facts.thumbnail is not None else msgspec.UNSET,
            exif=facts.exif,
            meta_data=msgspec.structs.replace(meta, custom=before.custom, dynamic=before.dynamic),
        )
        self._client.update_sample(self._dataset_id, record.sample_id, changes)

    # the bytes

    def _put(self, urls: _Urls, thumbnail: bool, body: bytes | BodyFile) -> str:
        """PUT, with a fresh URL where one is refused; returns the version storage names, or ""."""

        def attempt() -> str:
            response = self._send(urls.get(thumbnail), body)
            if response.status in _URL_REFUSED:
                response = self._send(urls.renewed(thumbnail), body)
            raise_for_status(response, what="the upload of a file to storage", storage=True)
            return response.headers.get("etag", "")

        return self._retrying(attempt)

    def _retrying(self, attempt: Callable[[], T]) -> T:
        return call_with_retries(
            self._config.policy,
            attempt,
            clock=self._clock,
            sleep=self._sleep,
            random=self._random,
            cancelled=self._cancelled,
        )

    def _send(self, url: str, body: bytes | BodyFile) -> Response:
        headers = put_headers(url, self._config.s3_sse_kms_key)
        return self._storage.send(
            Request(
                "PUT",
                url,
                headers=headers,
                body=body,
                timeouts=self._config.timeouts,
                cancelled=self._cancelled,
            )
        )


class _Urls:
    """The write URLs of one upload: both at once where both are owed, else the one."""

    def __init__(self, client: LightlyClient, dataset_id: str) -> None:
        self._client = client
        self._dataset_id = dataset_id
        self._sample_id = ""
        self._urls: dict[bool, str] = {}

    def keep(self, full: str, thumbnail: str) -> None:
        """Those that came with the create."""
        self._urls = {False: full, True: thumbnail}

    def for_sample(self, sample_id: str, *, thumbnail: bool) -> None:
        """Ask for what is not here."""
        self._sample_id = sample_id
        if self._urls:
            return
        if thumbnail:
            both = self._client.get_sample_write_urls(self._dataset_id, sample_id)
            self.keep(both.full, both.thumb)
        else:
            self.renewed(False)

    def get(self, thumbnail: bool) -> str:
        """A write URL."""
        return self._urls.get(thumbnail) or self.renewed(thumbnail)

    def renewed(self, thumbnail: bool) -> str:
        """Another one, in place of one that was refused."""
        url = self._client.get_sample_write_url(self._dataset_id, self._sample_id, is_thumbnail=thumbnail)
        self._urls[thumbnail] = url
        return url


class _CountedBody(BodyFile):
    """A file to send that tells how it moves."""

    def __init__(self, path: Path, length: int, moving: Moving) -> None:
        super().__init__(path, length)
        object.__setattr__(self, "_moving", moving)

    def open(self) -> BodyReader:
        """A reader that counts each piece."""
        return _CountedReader(self, getattr(self, "_moving"))  # noqa: B009 - set past the frozen class


class _CountedReader(BodyReader):
    def __init__(self, body: BodyFile, moving: Moving) -> None:
        super().__init__(body)
        self._moving = moving

    def read(self, size: int = -1) -> bytes:
        self._moving.moved += 1
        return super().read(size)


def _new_sample(record: Record, facts: ImageFacts, meta: SampleMetaData) -> SampleCreate:
    return SampleCreate(
        file_name=record.name,
        thumb_name=thumbnail_name(record.name) if facts.thumbnail is not None else msgspec.UNSET,
        exif=facts.exif or msgspec.UNSET,
        meta_data=msgspec.structs.replace(meta, custom={MARK: record.mark}),
    )


def put_headers(url: str, s3_sse_kms_key: str) -> dict[str, str]:
    """The headers a storage wants with a PUT, by whose URL it is; anything more would be refused.

    Azure wants the kind of blob; S3 is asked for encryption where that is set: `true` for its own keys,
    anything else names a key (as the official client does with LIGHTLY_S3_SSE_KMS_KEY).
    """
    parts = urlsplit(url)
    host, query = parts.hostname or "", parts.query.lower()
    if host.endswith((".windows.net", ".chinacloudapi.cn", ".usgovcloudapi.net")):
        return {"x-ms-blob-type": "BlockBlob"}
    if not s3_sse_kms_key or "x-amz-signature=" not in query:
        return {}
    if s3_sse_kms_key.lower() == "true":
        return {"x-amz-server-side-encryption": "AES256"}
    return {
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": s3_sse_kms_key,
    }


def mark_of(sample: Sample) -> str | None:
    """What the create of a sample carried, or None where it was not one of ours."""
    custom = sample.meta_data.custom if sample.meta_data else None
    mark = custom.get(MARK) if isinstance(custom, dict) else None
    return mark if isinstance(mark, str) else None
